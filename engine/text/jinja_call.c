/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments, macros, and the functions every template finds. */
#include <time.h>

#include "engine/text/jinja_run.h"

/* --- arguments --- */

static size_t count(const struct ds_jinja_node *list)
{
    size_t n = 0;

    for (; list; list = list->next)
        n++;
    return n;
}

struct ds_jinja_arguments ds_jinja_arguments(struct ds_jinja_run *run,
                                             const struct ds_jinja_node *node)
{
    struct ds_jinja_arguments arguments = { 0 };
    size_t n = count(node->list), n_named = count(node->named);

    if (n + n_named == 0)
        return arguments;
    arguments.values = ds_jinja_memory(run, (n + n_named) * sizeof *arguments.values);
    arguments.names = ds_jinja_memory(run, (n_named + 1) * sizeof *arguments.names);
    if (!arguments.values || !arguments.names)
        return arguments;
    arguments.named_values = arguments.values + n;
    for (const struct ds_jinja_node *item = node->list; item && run->code == 0; item = item->next)
        arguments.values[arguments.n++] = ds_jinja_eval(run, item);
    for (const struct ds_jinja_node *item = node->named; item && run->code == 0;
         item = item->next) {
        arguments.names[arguments.n_named] = item->text;
        arguments.named_values[arguments.n_named++] = ds_jinja_eval(run, item->a);
    }
    return arguments;
}

struct ds_jinja_value ds_jinja_argument(const struct ds_jinja_arguments *arguments, size_t at,
                                        const char *name, struct ds_jinja_value missing)
{
    if (at < arguments->n)
        return arguments->values[at];
    for (size_t i = 0; name && i < arguments->n_named; i++)
        if (ds_jinja_is(arguments->names[i], name))
            return arguments->named_values[i];
    return missing;
}

struct ds_bytes ds_jinja_argument_text(struct ds_jinja_run *run,
                                       const struct ds_jinja_arguments *arguments, size_t at,
                                       const char *name, const char *missing)
{
    struct ds_jinja_value value = ds_jinja_argument(arguments, at, name, ds_jinja_literal(missing));

    if (value.kind != DS_STRING) {
        (void) ds_jinja_fail(run, -EBADMSG, "argument '%s' should be a string, not %s", name,
                             ds_jinja_kind_name(&value));
        return (struct ds_bytes){ "", 0 };
    }
    return value.text;
}

int64_t ds_jinja_argument_integer(struct ds_jinja_run *run,
                                  const struct ds_jinja_arguments *arguments, size_t at,
                                  const char *name, int64_t missing)
{
    struct ds_jinja_value value = ds_jinja_argument(arguments, at, name, ds_jinja_integer(missing));

    if (value.kind == DS_BOOL)
        return value.truth;
    if (value.kind != DS_INTEGER) {
        (void) ds_jinja_fail(run, -EBADMSG, "argument '%s' should be an integer, not %s", name,
                             ds_jinja_kind_name(&value));
        return missing;
    }
    return value.integer;
}

/* --- macros --- */

static bool is_parameter(const struct ds_jinja_node *macro, struct ds_bytes name)
{
    for (const struct ds_jinja_node *parameter = macro->named; parameter;
         parameter = parameter->next)
        if (parameter->text.size == name.size &&
            memcmp(parameter->text.data, name.data, name.size) == 0)
            return true;
    return false;
}

/* Named arguments the signature has not: `caller` is offered to every macro, the rest is kwargs. */
static void bind_others(struct ds_jinja_run *run, const struct ds_jinja_node *macro,
                        const struct ds_jinja_arguments *arguments, size_t n_positional)
{
    struct ds_jinja_value rest = ds_jinja_list(run, DS_TUPLE);
    struct ds_jinja_value named = ds_jinja_dict(run, DS_DICT);

    for (size_t i = n_positional; i < arguments->n && run->code == 0; i++)
        ds_jinja_push(run, rest, arguments->values[i]);
    for (size_t i = 0; i < arguments->n_named && run->code == 0; i++) {
        if (is_parameter(macro, arguments->names[i]))
            continue;
        if (ds_jinja_is(arguments->names[i], "caller"))
            ds_jinja_set(run, run->frame, arguments->names[i], arguments->named_values[i]);
        else
            ds_jinja_put(run, named.dict, ds_jinja_string(arguments->names[i]),
                         arguments->named_values[i]);
    }
    ds_jinja_set(run, run->frame, (struct ds_bytes){ "varargs", 7 }, rest);
    ds_jinja_set(run, run->frame, (struct ds_bytes){ "kwargs", 6 }, named);
}

static void bind_parameters(struct ds_jinja_run *run, const struct ds_jinja_node *macro,
                            const struct ds_jinja_arguments *arguments)
{
    size_t at = 0;

    for (const struct ds_jinja_node *parameter = macro->named; parameter && run->code == 0;
         parameter = parameter->next, at++) {
        struct ds_jinja_value value = ds_jinja_undefined(parameter->text);
        bool given = at < arguments->n;

        if (given)
            value = arguments->values[at];
        for (size_t i = 0; !given && i < arguments->n_named; i++)
            if (arguments->names[i].size == parameter->text.size &&
                memcmp(arguments->names[i].data, parameter->text.data, parameter->text.size) == 0) {
                value = arguments->named_values[i];
                given = true;
            }
        if (!given && parameter->a)
            value = ds_jinja_eval(run, parameter->a);
        ds_jinja_set(run, run->frame, parameter->text, value);
    }
    bind_others(run, macro, arguments, at);
}

static struct ds_jinja_value call_macro(struct ds_jinja_run *run,
                                        const struct ds_jinja_function *function,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_frame *outer = run->frame;
    struct ds_jinja_value text = ds_jinja_none();

    if (!ds_jinja_deeper(run))
        return text;
    run->frame = ds_jinja_scope(run, function->closure);
    if (run->frame) {
        bind_parameters(run, function->macro, arguments);
        text = ds_jinja_capture(run, function->macro->body);
    }
    run->frame = outer;
    run->level--;
    return text;
}

struct ds_jinja_value ds_jinja_call(struct ds_jinja_run *run, struct ds_jinja_value callee,
                                    const struct ds_jinja_arguments *arguments)
{
    if (callee.kind == DS_UNDEFINED)
        return ds_jinja_fail(run, -EBADMSG, "'%.*s' is undefined and cannot be called",
                             callee.text.size > 80 ? 80 : (int) callee.text.size, callee.text.data);
    if (callee.kind != DS_FUNCTION)
        return ds_jinja_fail(run, -EBADMSG, "'%s' object is not callable",
                             ds_jinja_kind_name(&callee));
    if (callee.function->macro)
        return call_macro(run, callee.function, arguments);
    return callee.function->call(run, callee.function->self, arguments);
}

/* --- functions every template finds --- */

static struct ds_jinja_value call_range(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);
    int64_t first = ds_jinja_argument_integer(run, arguments, 0, "start", 0);
    int64_t end = ds_jinja_argument_integer(run, arguments, 1, "stop", first);
    int64_t step = ds_jinja_argument_integer(run, arguments, 2, "step", 1);

    (void) self;
    if (arguments->n == 1)
        first = 0;
    if (step == 0)
        return ds_jinja_fail(run, -EBADMSG, "range() wants a step other than zero");
    for (int64_t i = first; run->code == 0 && (step > 0 ? i < end : i > end);) {
        if (list.list->n >= DS_JINJA_RANGE_MAX)
            return ds_jinja_fail(run, -E2BIG, "range() of more than %d numbers",
                                 DS_JINJA_RANGE_MAX);
        ds_jinja_push(run, list, ds_jinja_integer(i));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return list;
}

static struct ds_jinja_value make_dict(struct ds_jinja_run *run,
                                       const struct ds_jinja_arguments *arguments,
                                       enum ds_jinja_kind kind)
{
    struct ds_jinja_value dict = ds_jinja_dict(run, kind);
    struct ds_jinja_value from = ds_jinja_argument(arguments, 0, NULL, ds_jinja_none());

    for (size_t i = 0; from.kind == DS_DICT && i < from.dict->n && run->code == 0; i++)
        ds_jinja_put(run, dict.dict, from.dict->keys[i], from.dict->values[i]);
    for (size_t i = 0; i < arguments->n_named && run->code == 0; i++)
        ds_jinja_put(run, dict.dict, ds_jinja_string(arguments->names[i]),
                     arguments->named_values[i]);
    return dict;
}

static struct ds_jinja_value call_namespace(struct ds_jinja_run *run, struct ds_jinja_value self,
                                            const struct ds_jinja_arguments *arguments)
{
    (void) self;
    return make_dict(run, arguments, DS_NAMESPACE);
}

static struct ds_jinja_value call_dict(struct ds_jinja_run *run, struct ds_jinja_value self,
                                       const struct ds_jinja_arguments *arguments)
{
    (void) self;
    return make_dict(run, arguments, DS_DICT);
}

/* The template's own words, for the person who wrote the messages. */
static struct ds_jinja_value call_raise(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value message =
        ds_jinja_argument(arguments, 0, "message", ds_jinja_literal("no reason given"));
    struct ds_bytes words = ds_jinja_str(run, &message);

    (void) self;
    if (run->code == 0)
        run->code = ds_error_set(run->error, -EINVAL,
                                 "the model's chat template refuses the messages: %.*s",
                                 words.size > 300 ? 300 : (int) words.size, words.data);
    return ds_jinja_none();
}

static struct ds_jinja_value call_strftime(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes format = ds_jinja_argument_text(run, arguments, 0, "format", "%Y-%m-%d");
    char pattern[128], text[512];
    time_t now = time(NULL);
    struct tm local;
    size_t size;

    (void) self;
    if (run->code)
        return ds_jinja_none();
    if (format.size >= sizeof pattern)
        return ds_jinja_fail(run, -EBADMSG, "strftime_now() wants a shorter format");
    memcpy(pattern, format.data, format.size);
    pattern[format.size] = '\0';
    size = localtime_r(&now, &local) ? strftime(text, sizeof text, pattern, &local) : 0;
    return ds_jinja_string(ds_jinja_copy(run, (struct ds_bytes){ text, size }));
}

static const struct ds_jinja_entry globals[] = {
    { "range", call_range },           { "namespace", call_namespace },   { "dict", call_dict },
    { "raise_exception", call_raise }, { "strftime_now", call_strftime }, { NULL, NULL },
};

struct ds_jinja_value ds_jinja_global(struct ds_jinja_run *run, struct ds_bytes name)
{
    struct ds_jinja_function *function;

    for (unsigned i = 0; globals[i].name; i++) {
        if (!ds_jinja_is(name, globals[i].name))
            continue;
        function = ds_jinja_memory(run, sizeof *function);
        if (!function)
            break;
        function->name = globals[i].name;
        function->call = globals[i].call;
        return (struct ds_jinja_value){ .kind = DS_FUNCTION, .function = function };
    }
    return ds_jinja_undefined(name);
}
