/* SPDX-License-Identifier: Apache-2.0 */
/* Methods of dictionaries, lists and loops, and how a method is found. */
#include "engine/text/jinja_run.h"

/* --- dictionaries --- */

static struct ds_jinja_value call_get(struct ds_jinja_run *run, struct ds_jinja_value self,
                                      const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value key = ds_jinja_argument(arguments, 0, "key", ds_jinja_none());

    for (size_t i = 0; i < self.dict->n && ds_jinja_pay(run, 1); i++)
        if (ds_jinja_equal(run, &self.dict->keys[i], &key))
            return self.dict->values[i];
    return ds_jinja_argument(arguments, 1, "default", ds_jinja_none());
}

static struct ds_jinja_value call_items(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    return ds_jinja_filter(run, (struct ds_bytes){ "items", 5 }, self, arguments);
}

static struct ds_jinja_value call_keys(struct ds_jinja_run *run, struct ds_jinja_value self,
                                       const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_arguments none = { 0 };

    (void) arguments;
    return ds_jinja_filter(run, (struct ds_bytes){ "list", 4 }, self, &none);
}

static struct ds_jinja_value call_values(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);

    (void) arguments;
    for (size_t i = 0; i < self.dict->n && run->code == 0; i++)
        ds_jinja_push(run, list, self.dict->values[i]);
    return list;
}

static struct ds_jinja_value call_copy(struct ds_jinja_run *run, struct ds_jinja_value self,
                                       const struct ds_jinja_arguments *arguments)
{
    (void) run;
    (void) arguments;
    return self; /* nothing can change it */
}

static const struct ds_jinja_entry dict_methods[] = {
    { "get", call_get },       { "items", call_items }, { "keys", call_keys },
    { "values", call_values }, { "copy", call_copy },   { NULL, NULL },
};

/* --- lists --- */

static struct ds_jinja_value call_index(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value what = ds_jinja_argument(arguments, 0, "value", ds_jinja_none());

    for (size_t i = 0; i < self.list->n && ds_jinja_pay(run, 1); i++)
        if (ds_jinja_equal(run, &self.list->items[i], &what))
            return ds_jinja_integer((int64_t) i);
    return ds_jinja_fail(run, -EBADMSG, "index(): value is not in the list");
}

static struct ds_jinja_value call_count(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value what = ds_jinja_argument(arguments, 0, "value", ds_jinja_none());
    int64_t n = 0;

    for (size_t i = 0; i < self.list->n && ds_jinja_pay(run, 1); i++)
        n += ds_jinja_equal(run, &self.list->items[i], &what);
    return ds_jinja_integer(n);
}

static const struct ds_jinja_entry list_methods[] = {
    { "index", call_index },
    { "count", call_count },
    { "copy", call_copy },
    { NULL, NULL },
};

/* --- loops --- */

static struct ds_jinja_value call_cycle(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    if (arguments->n == 0)
        return ds_jinja_fail(run, -EBADMSG, "loop.cycle() wants something to cycle through");
    return arguments->values[self.loop->index % arguments->n];
}

static struct ds_jinja_value call_changed(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value seen = ds_jinja_list(run, DS_TUPLE);
    bool changed;

    for (size_t i = 0; i < arguments->n && run->code == 0; i++)
        ds_jinja_push(run, seen, arguments->values[i]);
    if (run->code)
        return seen;
    changed = !ds_jinja_equal(run, &seen, &self.loop->changed);
    self.loop->changed = seen;
    return ds_jinja_bool(changed);
}

static const struct ds_jinja_entry loop_methods[] = {
    { "cycle", call_cycle },
    { "changed", call_changed },
    { NULL, NULL },
};

/* --- finding --- */

static const struct ds_jinja_entry *methods_of(enum ds_jinja_kind kind)
{
    switch (kind) {
    case DS_STRING:
        return ds_jinja_string_methods;
    case DS_DICT:
        return dict_methods;
    case DS_LIST:
    case DS_TUPLE:
        return list_methods;
    case DS_LOOP:
        return loop_methods;
    default:
        return NULL;
    }
}

struct ds_jinja_value ds_jinja_method(struct ds_jinja_run *run, struct ds_jinja_value value,
                                      struct ds_bytes name)
{
    const struct ds_jinja_entry *entry = methods_of(value.kind);
    struct ds_jinja_function *function;

    for (; entry && entry->name; entry++) {
        if (!ds_jinja_is(name, entry->name))
            continue;
        function = ds_jinja_memory(run, sizeof *function);
        if (!function)
            break;
        function->name = entry->name;
        function->call = entry->call;
        function->self = value;
        return (struct ds_jinja_value){ .kind = DS_FUNCTION, .function = function };
    }
    return ds_jinja_undefined(name);
}
