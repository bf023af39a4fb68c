/* SPDX-License-Identifier: Apache-2.0 */
/* Filters that take lists, or make them. */
#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

static struct ds_jinja_value nothing(void)
{
    return ds_jinja_undefined((struct ds_bytes){ "item", 4 });
}

/* The arguments after the first `from`, for the filter or test that an argument names. */
static struct ds_jinja_arguments arguments_after(const struct ds_jinja_arguments *arguments,
                                                 size_t from)
{
    struct ds_jinja_arguments rest = *arguments;

    from = from < rest.n ? from : rest.n;
    if (from)
        rest.values += from;
    rest.n -= from;
    return rest;
}

/* --- from lists to one value --- */

static struct ds_jinja_value filter_join(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);
    struct ds_jinja_value separator = ds_jinja_argument(arguments, 0, "d", ds_jinja_literal(""));
    struct ds_jinja_value attribute = ds_jinja_argument(arguments, 1, "attribute", ds_jinja_none());
    struct ds_bytes text = { "", 0 }, between = ds_jinja_str(run, &separator);

    for (size_t i = 0; items && i < items->n && run->code == 0; i++) {
        struct ds_jinja_value item = items->items[i];

        if (attribute.kind != DS_NONE)
            item = ds_jinja_path(run, item, attribute, NULL);
        if (i)
            text = ds_jinja_join(run, text, between);
        text = ds_jinja_join(run, text, ds_jinja_str(run, &item));
    }
    return ds_jinja_string(text);
}

static struct ds_jinja_value filter_first(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);

    (void) arguments;
    return items && items->n ? items->items[0] : nothing();
}

static struct ds_jinja_value filter_last(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);

    (void) arguments;
    return items && items->n ? items->items[items->n - 1] : nothing();
}

static struct ds_jinja_value filter_sum(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);
    struct ds_jinja_value attribute = ds_jinja_argument(arguments, 0, "attribute", ds_jinja_none());
    struct ds_jinja_value sum = ds_jinja_argument(arguments, 1, "start", ds_jinja_integer(0));

    for (size_t i = 0; items && i < items->n && run->code == 0; i++) {
        struct ds_jinja_value item = items->items[i];

        if (attribute.kind != DS_NONE)
            item = ds_jinja_path(run, item, attribute, NULL);
        sum = ds_jinja_binary(run, DS_OP_ADD, &sum, &item);
    }
    return sum;
}

/* --- order --- */

/* What an item is compared by. */
static struct ds_jinja_value key_of(struct ds_jinja_run *run, struct ds_jinja_value item,
                                    const struct ds_jinja_value *attribute, bool case_sensitive)
{
    struct ds_jinja_arguments none = { 0 };

    if (attribute->kind != DS_NONE)
        item = ds_jinja_path(run, item, *attribute, NULL);
    if (item.kind == DS_STRING && !case_sensitive)
        item = ds_jinja_filter(run, (struct ds_bytes){ "lower", 5 }, item, &none);
    return item;
}

/* Keys of all items, in their order. */
static const struct ds_jinja_list *keys_of(struct ds_jinja_run *run,
                                           const struct ds_jinja_list *items,
                                           const struct ds_jinja_value *attribute,
                                           bool case_sensitive)
{
    struct ds_jinja_value keys = ds_jinja_list(run, DS_LIST);

    for (size_t i = 0; items && i < items->n && run->code == 0; i++)
        ds_jinja_push(run, keys, key_of(run, items->items[i], attribute, case_sensitive));
    return run->code ? NULL : keys.list;
}

/* Merges the sorted runs order[from..middle) and order[middle..to) of indices into keys. */
static void merge(struct ds_jinja_run *run, const struct ds_jinja_list *keys, size_t *order,
                  size_t *spare, size_t from, size_t middle, size_t to, bool reverse)
{
    size_t i = from, j = middle, n = from;

    while (n < to && ds_jinja_pay(run, 1)) {
        bool right = i >= middle;

        if (!right && j < to) {
            int c = ds_jinja_order(run, &keys->items[order[j]], &keys->items[order[i]]);

            right = reverse ? c > 0 : c < 0;
        }
        spare[n++] = order[right ? j++ : i++];
    }
    if (run->code == 0)
        memcpy(order + from, spare + from, (to - from) * sizeof *order);
}

/* items in the order of their keys; equal ones stay as they were. */
static struct ds_jinja_value sorted(struct ds_jinja_run *run, const struct ds_jinja_list *items,
                                    const struct ds_jinja_list *keys, bool reverse)
{
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST);
    size_t n = keys ? keys->n : 0;
    size_t *order = ds_jinja_memory(run, (n + 1) * sizeof *order);
    size_t *spare = ds_jinja_memory(run, (n + 1) * sizeof *spare);

    if (!order || !spare)
        return result;
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t width = 1; width < n && run->code == 0; width *= 2)
        for (size_t at = 0; at + width < n && run->code == 0; at += 2 * width)
            merge(run, keys, order, spare, at, at + width, at + 2 * width < n ? at + 2 * width : n,
                  reverse);
    for (size_t i = 0; i < n && run->code == 0; i++)
        ds_jinja_push(run, result, items->items[order[i]]);
    return result;
}

static struct ds_jinja_value filter_sort(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);
    struct ds_jinja_value reverse =
        ds_jinja_argument(arguments, 0, "reverse", ds_jinja_bool(false));
    struct ds_jinja_value exact =
        ds_jinja_argument(arguments, 1, "case_sensitive", ds_jinja_bool(false));
    struct ds_jinja_value attribute = ds_jinja_argument(arguments, 2, "attribute", ds_jinja_none());

    return sorted(run, items, keys_of(run, items, &attribute, ds_jinja_truth(&exact)),
                  ds_jinja_truth(&reverse));
}

static struct ds_jinja_value extreme(struct ds_jinja_run *run, struct ds_jinja_value self,
                                     const struct ds_jinja_arguments *arguments, int wanted)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self), *keys;
    struct ds_jinja_value exact =
        ds_jinja_argument(arguments, 0, "case_sensitive", ds_jinja_bool(false));
    struct ds_jinja_value attribute = ds_jinja_argument(arguments, 1, "attribute", ds_jinja_none());
    size_t best = 0;

    keys = keys_of(run, items, &attribute, ds_jinja_truth(&exact));
    for (size_t i = 1; keys && i < keys->n && ds_jinja_pay(run, 1); i++)
        if (ds_jinja_order(run, &keys->items[i], &keys->items[best]) == wanted)
            best = i;
    return keys && keys->n && run->code == 0 ? items->items[best] : nothing();
}

static struct ds_jinja_value filter_min(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    return extreme(run, self, arguments, -1);
}

static struct ds_jinja_value filter_max(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    return extreme(run, self, arguments, 1);
}

static struct ds_jinja_value filter_unique(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self), *keys;
    struct ds_jinja_value exact =
        ds_jinja_argument(arguments, 0, "case_sensitive", ds_jinja_bool(false));
    struct ds_jinja_value attribute = ds_jinja_argument(arguments, 1, "attribute", ds_jinja_none());
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST), seen = ds_jinja_list(run, DS_LIST);

    keys = keys_of(run, items, &attribute, ds_jinja_truth(&exact));
    for (size_t i = 0; keys && i < keys->n && run->code == 0; i++)
        if (!ds_jinja_contains(run, &seen, &keys->items[i])) {
            ds_jinja_push(run, seen, keys->items[i]);
            ds_jinja_push(run, result, items->items[i]);
        }
    return result;
}

static struct ds_jinja_value filter_reverse(struct ds_jinja_run *run, struct ds_jinja_value self,
                                            const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST);
    struct ds_jinja_arguments none = { 0 };

    (void) arguments;
    for (size_t i = items ? items->n : 0; i > 0 && run->code == 0; i--)
        ds_jinja_push(run, result, items->items[i - 1]);
    return self.kind == DS_STRING && run->code == 0 ? filter_join(run, result, &none) : result;
}

/* --- lists of lists --- */

static struct ds_jinja_value pair_of(struct ds_jinja_run *run, struct ds_jinja_value a,
                                     struct ds_jinja_value b)
{
    struct ds_jinja_value pair = ds_jinja_list(run, DS_TUPLE);

    ds_jinja_push(run, pair, a);
    ds_jinja_push(run, pair, b);
    return pair;
}

static struct ds_jinja_value filter_items(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);

    (void) arguments;
    if (self.kind != DS_DICT && self.kind != DS_UNDEFINED)
        return ds_jinja_fail(run, -EBADMSG, "items wants a mapping, not %s",
                             ds_jinja_kind_name(&self));
    for (size_t i = 0; self.kind == DS_DICT && i < self.dict->n && run->code == 0; i++)
        ds_jinja_push(run, list, pair_of(run, self.dict->keys[i], self.dict->values[i]));
    return list;
}

static struct ds_jinja_value filter_dictsort(struct ds_jinja_run *run, struct ds_jinja_value self,
                                             const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value exact =
        ds_jinja_argument(arguments, 0, "case_sensitive", ds_jinja_bool(false));
    struct ds_bytes by = ds_jinja_argument_text(run, arguments, 1, "by", "key");
    struct ds_jinja_value reverse =
        ds_jinja_argument(arguments, 2, "reverse", ds_jinja_bool(false));
    struct ds_jinja_value pairs = filter_items(run, self, arguments);
    struct ds_jinja_value index = ds_jinja_integer(ds_jinja_is(by, "value") ? 1 : 0);

    if (run->code)
        return pairs;
    return sorted(run, pairs.list, keys_of(run, pairs.list, &index, ds_jinja_truth(&exact)),
                  ds_jinja_truth(&reverse));
}

static struct ds_jinja_value filter_list(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST);

    (void) arguments;
    for (size_t i = 0; items && i < items->n && run->code == 0; i++)
        ds_jinja_push(run, result, items->items[i]);
    return result;
}

static struct ds_jinja_value filter_batch(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = ds_jinja_items(run, &self);
    int64_t size = ds_jinja_argument_integer(run, arguments, 0, "linecount", 1);
    struct ds_jinja_value fill = ds_jinja_argument(arguments, 1, "fill_with", ds_jinja_none());
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST), row = result;

    if (size < 1 || size > DS_JINJA_RANGE_MAX)
        return ds_jinja_fail(run, -EBADMSG, "batch wants a size of 1 to %d", DS_JINJA_RANGE_MAX);
    for (size_t i = 0; items && i < items->n && run->code == 0; i++) {
        if (i % (size_t) size == 0) {
            row = ds_jinja_list(run, DS_LIST);
            ds_jinja_push(run, result, row);
        }
        ds_jinja_push(run, row, items->items[i]);
    }
    while (run->code == 0 && fill.kind != DS_NONE && items && items->n &&
           row.list->n < (size_t) size)
        ds_jinja_push(run, row, fill);
    return result;
}

/* --- choosing and mapping --- */

/* What map and select go through: what is false holds nothing, so `none|map(...)` is no error. */
static const struct ds_jinja_list *items_if_any(struct ds_jinja_run *run,
                                                const struct ds_jinja_value *value)
{
    return ds_jinja_truth(value) ? ds_jinja_items(run, value) : NULL;
}

static struct ds_jinja_value filter_map(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_list *items = items_if_any(run, &self);
    struct ds_jinja_value attribute =
        ds_jinja_argument(arguments, arguments->n, "attribute", ds_jinja_none());
    struct ds_jinja_value otherwise =
        ds_jinja_argument(arguments, arguments->n, "default", ds_jinja_none());
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST), item;
    struct ds_jinja_arguments rest = arguments_after(arguments, 1);

    if (attribute.kind == DS_NONE && (arguments->n == 0 || arguments->values[0].kind != DS_STRING))
        return ds_jinja_fail(run, -EBADMSG, "map wants the name of a filter or attribute=");
    for (size_t i = 0; items && i < items->n && run->code == 0; i++) {
        if (attribute.kind == DS_NONE) {
            item = ds_jinja_filter(run, arguments->values[0].text, items->items[i], &rest);
        } else {
            item = ds_jinja_path(run, items->items[i], attribute,
                                 otherwise.kind != DS_NONE ? &otherwise : NULL);
        }
        ds_jinja_push(run, result, item);
    }
    return result;
}

/* Items for which a test says `wanted`: of the item itself, or of one of its attributes. */
static struct ds_jinja_value choose(struct ds_jinja_run *run, struct ds_jinja_value self,
                                    const struct ds_jinja_arguments *arguments, bool by_attribute,
                                    bool wanted)
{
    const struct ds_jinja_list *items = items_if_any(run, &self);
    struct ds_jinja_value result = ds_jinja_list(run, DS_LIST), subject;
    size_t at = by_attribute ? 1 : 0;
    struct ds_jinja_arguments rest = arguments_after(arguments, at + 1);
    bool holds;

    if (by_attribute && arguments->n == 0)
        return ds_jinja_fail(run, -EBADMSG, "the name of an attribute is missing");
    if (arguments->n > at && arguments->values[at].kind != DS_STRING)
        return ds_jinja_fail(run, -EBADMSG, "the name of a test is missing");
    for (size_t i = 0; items && i < items->n && run->code == 0; i++) {
        subject = items->items[i];
        if (by_attribute)
            subject = ds_jinja_path(run, subject, arguments->values[0], NULL);
        holds = arguments->n > at ? ds_jinja_test(run, arguments->values[at].text, subject, &rest)
                                  : ds_jinja_truth(&subject);
        if (holds == wanted)
            ds_jinja_push(run, result, items->items[i]);
    }
    return result;
}

static struct ds_jinja_value filter_select(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    return choose(run, self, arguments, false, true);
}

static struct ds_jinja_value filter_reject(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    return choose(run, self, arguments, false, false);
}

static struct ds_jinja_value filter_selectattr(struct ds_jinja_run *run, struct ds_jinja_value self,
                                               const struct ds_jinja_arguments *arguments)
{
    return choose(run, self, arguments, true, true);
}

static struct ds_jinja_value filter_rejectattr(struct ds_jinja_run *run, struct ds_jinja_value self,
                                               const struct ds_jinja_arguments *arguments)
{
    return choose(run, self, arguments, true, false);
}

const struct ds_jinja_entry ds_jinja_list_filters[] = {
    { "join", filter_join },
    { "first", filter_first },
    { "last", filter_last },
    { "list", filter_list },
    { "map", filter_map },
    { "select", filter_select },
    { "reject", filter_reject },
    { "selectattr", filter_selectattr },
    { "rejectattr", filter_rejectattr },
    { "items", filter_items },
    { "dictsort", filter_dictsort },
    { "sort", filter_sort },
    { "unique", filter_unique },
    { "reverse", filter_reverse },
    { "min", filter_min },
    { "max", filter_max },
    { "sum", filter_sum },
    { "batch", filter_batch },
    { NULL, NULL },
};
