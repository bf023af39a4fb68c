/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

/* --- failing and paying --- */

struct ds_jinja_value ds_jinja_fail(struct ds_jinja_run *run, int code, const char *format, ...)
{
    char what[360];
    va_list ap;

    if (run->code == 0) {
        va_start(ap, format);
        (void) vsnprintf(what, sizeof what, format, ap);
        va_end(ap);
        run->code = ds_error_set(run->error, code, "chat template, line %u: %s", run->line, what);
    }
    return ds_jinja_undefined((struct ds_bytes){ "", 0 });
}

bool ds_jinja_pay(struct ds_jinja_run *run, uint64_t steps)
{
    if (run->code == 0 && steps > run->steps_left)
        (void) ds_jinja_fail(run, -E2BIG, "runs for too long");
    if (run->code)
        return false;
    run->steps_left -= steps;
    return true;
}

bool ds_jinja_deeper(struct ds_jinja_run *run)
{
    if (run->level >= DS_JINJA_LEVELS_MAX)
        (void) ds_jinja_fail(run, -E2BIG, "nested too deeply");
    if (!ds_jinja_pay(run, 1))
        return false;
    run->level++;
    return true;
}

static void out_of_memory(struct ds_jinja_run *run)
{
    if (run->arena.code == -E2BIG)
        (void) ds_jinja_fail(run, -E2BIG, "needs too much memory");
    else
        (void) ds_jinja_fail(run, -ENOMEM, "no memory");
}

void *ds_jinja_memory(struct ds_jinja_run *run, size_t size)
{
    void *piece = ds_jinja_pay(run, size / 64) ? ds_arena_alloc(&run->arena, size) : NULL;

    if (!piece)
        out_of_memory(run);
    return piece;
}

void ds_jinja_write(struct ds_jinja_run *run, struct ds_bytes text)
{
    struct ds_jinja_text *output = run->output;

    if (!ds_jinja_pay(run, text.size / 64))
        return;
    if (text.size > run->output_left) {
        (void) ds_jinja_fail(run, -E2BIG, "writes too much text");
        return;
    }
    run->output_left -= text.size;
    if (text.size >= output->room - output->size) { /* one byte stays free for a NUL */
        size_t room = 2 * (output->size + text.size) + 256;
        char *grown = realloc(output->data, room);

        if (!grown) {
            (void) ds_jinja_fail(run, -ENOMEM, "no memory");
            return;
        }
        output->data = grown;
        output->room = room;
    }
    if (text.size)
        memcpy(output->data + output->size, text.data, text.size);
    output->size += text.size;
}

/* --- making values --- */

struct ds_jinja_value ds_jinja_undefined(struct ds_bytes name)
{
    return (struct ds_jinja_value){ .kind = DS_UNDEFINED, .text = name };
}

struct ds_jinja_value ds_jinja_none(void)
{
    return (struct ds_jinja_value){ .kind = DS_NONE };
}

struct ds_jinja_value ds_jinja_bool(bool truth)
{
    return (struct ds_jinja_value){ .kind = DS_BOOL, .truth = truth };
}

struct ds_jinja_value ds_jinja_integer(int64_t integer)
{
    return (struct ds_jinja_value){ .kind = DS_INTEGER, .integer = integer };
}

struct ds_jinja_value ds_jinja_float(double number)
{
    return (struct ds_jinja_value){ .kind = DS_FLOAT, .number = number, .text = { "", 0 } };
}

struct ds_jinja_value ds_jinja_string(struct ds_bytes text)
{
    return (struct ds_jinja_value){ .kind = DS_STRING, .text = text };
}

struct ds_jinja_value ds_jinja_literal(const char *text)
{
    return ds_jinja_string((struct ds_bytes){ text, strlen(text) });
}

struct ds_jinja_value ds_jinja_list(struct ds_jinja_run *run, enum ds_jinja_kind kind)
{
    struct ds_jinja_list *list = ds_jinja_memory(run, sizeof *list);

    if (!list)
        return ds_jinja_undefined((struct ds_bytes){ "", 0 });
    return (struct ds_jinja_value){ .kind = kind, .list = list };
}

struct ds_jinja_value ds_jinja_dict(struct ds_jinja_run *run, enum ds_jinja_kind kind)
{
    struct ds_jinja_dict *dict = ds_jinja_memory(run, sizeof *dict);

    if (!dict)
        return ds_jinja_undefined((struct ds_bytes){ "", 0 });
    return (struct ds_jinja_value){ .kind = kind, .dict = dict };
}

/* Moves n values into room for twice as many. */
static struct ds_jinja_value *grow(struct ds_jinja_run *run, struct ds_jinja_value *old, size_t n,
                                   size_t room)
{
    struct ds_jinja_value *grown = ds_jinja_memory(run, room * sizeof *grown);

    if (grown && n)
        memcpy(grown, old, n * sizeof *grown);
    return grown;
}

void ds_jinja_push(struct ds_jinja_run *run, struct ds_jinja_value value,
                   struct ds_jinja_value item)
{
    struct ds_jinja_list *list = value.list;
    struct ds_jinja_value *items;

    if (!ds_jinja_pay(run, 1))
        return;
    if (list->n == list->room) {
        size_t room = list->room ? 2 * list->room : 4;

        items = grow(run, list->items, list->n, room);
        if (!items)
            return;
        list->items = items;
        list->room = room;
    }
    list->items[list->n++] = item;
}

void ds_jinja_put(struct ds_jinja_run *run, struct ds_jinja_dict *dict, struct ds_jinja_value key,
                  struct ds_jinja_value value)
{
    if (!dict || !ds_jinja_pay(run, 1 + dict->n / 8))
        return;
    if (key.kind == DS_LIST || key.kind == DS_DICT) {
        (void) ds_jinja_fail(run, -EBADMSG, "a %s cannot be a key", ds_jinja_kind_name(&key));
        return;
    }
    for (size_t i = 0; i < dict->n; i++)
        if (ds_jinja_equal(run, &dict->keys[i], &key)) {
            dict->values[i] = value;
            return;
        }
    if (dict->n == dict->room) {
        size_t room = dict->room ? 2 * dict->room : 4;
        struct ds_jinja_value *keys = grow(run, dict->keys, dict->n, room);
        struct ds_jinja_value *values = grow(run, dict->values, dict->n, room);

        if (!keys || !values)
            return;
        dict->keys = keys;
        dict->values = values;
        dict->room = room;
    }
    dict->keys[dict->n] = key;
    dict->values[dict->n++] = value;
}

const struct ds_jinja_value *ds_jinja_get(struct ds_jinja_run *run,
                                          const struct ds_jinja_dict *dict, struct ds_bytes key)
{
    if (!ds_jinja_pay(run, 1 + dict->n / 8))
        return NULL;
    for (size_t i = 0; i < dict->n; i++)
        if (dict->keys[i].kind == DS_STRING && dict->keys[i].text.size == key.size &&
            (key.size == 0 || memcmp(dict->keys[i].text.data, key.data, key.size) == 0))
            return &dict->values[i];
    return NULL;
}

struct ds_bytes ds_jinja_copy(struct ds_jinja_run *run, struct ds_bytes text)
{
    return ds_jinja_join(run, text, (struct ds_bytes){ "", 0 });
}

/* Long texts get as much room again behind them: a text that grows piece by piece, in a loop that
 * makes other things meanwhile, then takes memory in proportion to its final size. The room belongs
 * to whoever joins first: a text that was continued does not end at its tail any more. */
#define ROOM_FROM_BYTES 256u

static bool extend_tail(struct ds_jinja_run *run, struct ds_bytes a, struct ds_bytes b)
{
    for (unsigned i = 0; i < DS_JINJA_TAILS; i++) {
        struct ds_jinja_tail *tail = &run->tails[i];

        if (tail->end != a.data + a.size || tail->size < a.size || tail->room < b.size)
            continue;
        memcpy(tail->end, b.data, b.size);
        tail->end += b.size;
        tail->size += b.size;
        tail->room -= b.size;
        return true;
    }
    return false;
}

static void keep_tail(struct ds_jinja_run *run, char *end, size_t size)
{
    struct ds_jinja_tail *smallest = &run->tails[0];

    for (unsigned i = 1; i < DS_JINJA_TAILS; i++)
        if (run->tails[i].size < smallest->size)
            smallest = &run->tails[i];
    *smallest = (struct ds_jinja_tail){ .end = end, .size = size, .room = size };
}

struct ds_bytes ds_jinja_join(struct ds_jinja_run *run, struct ds_bytes a, struct ds_bytes b)
{
    size_t size = a.size + b.size;
    bool roomy = a.size && b.size && size >= ROOM_FROM_BYTES;
    char *joined;

    if (!ds_jinja_pay(run, 1 + b.size / 64))
        return (struct ds_bytes){ "", 0 };
    if (a.size && b.size && extend_tail(run, a, b))
        return (struct ds_bytes){ a.data, size };
    joined =
        ds_jinja_pay(run, a.size / 64) ? ds_arena_text(&run->arena, roomy ? 2 * size : size) : NULL;
    if (!joined) {
        out_of_memory(run);
        return (struct ds_bytes){ "", 0 };
    }
    if (a.size)
        memcpy(joined, a.data, a.size);
    if (b.size)
        memcpy(joined + a.size, b.data, b.size);
    if (roomy)
        keep_tail(run, joined + size, size);
    return (struct ds_bytes){ joined, size };
}

/* --- what values are --- */

bool ds_jinja_is(const struct ds_bytes text, const char *word)
{
    return text.size == strlen(word) && memcmp(text.data, word, text.size) == 0;
}

const char *ds_jinja_kind_name(const struct ds_jinja_value *value)
{
    static const char *const names[] = {
        [DS_UNDEFINED] = "undefined", [DS_NONE] = "NoneType",     [DS_BOOL] = "bool",
        [DS_INTEGER] = "int",         [DS_FLOAT] = "float",       [DS_STRING] = "str",
        [DS_LIST] = "list",           [DS_TUPLE] = "tuple",       [DS_DICT] = "dict",
        [DS_NAMESPACE] = "namespace", [DS_FUNCTION] = "function", [DS_LOOP] = "loop",
    };

    return names[value->kind];
}

bool ds_jinja_truth(const struct ds_jinja_value *value)
{
    switch (value->kind) {
    case DS_UNDEFINED:
    case DS_NONE:
        return false;
    case DS_BOOL:
        return value->truth;
    case DS_INTEGER:
        return value->integer != 0;
    case DS_FLOAT:
        return value->number != 0.0;
    case DS_STRING:
        return value->text.size > 0;
    case DS_LIST:
    case DS_TUPLE:
        return value->list->n > 0;
    case DS_DICT:
        return value->dict->n > 0;
    default:
        return true;
    }
}

bool ds_jinja_is_number(const struct ds_jinja_value *value)
{
    return value->kind == DS_BOOL || value->kind == DS_INTEGER || value->kind == DS_FLOAT;
}

double ds_jinja_number(const struct ds_jinja_value *value)
{
    if (value->kind == DS_FLOAT)
        return value->number;
    return value->kind == DS_BOOL ? (double) value->truth : (double) value->integer;
}

static int64_t whole(const struct ds_jinja_value *value)
{
    return value->kind == DS_BOOL ? value->truth : value->integer;
}

static int order_numbers(const struct ds_jinja_value *a, const struct ds_jinja_value *b)
{
    double x, y;

    if (a->kind != DS_FLOAT && b->kind != DS_FLOAT)
        return whole(a) < whole(b) ? -1 : whole(a) > whole(b);
    x = ds_jinja_number(a);
    y = ds_jinja_number(b);
    return x < y ? -1 : x > y;
}

static int order_text(struct ds_jinja_run *run, struct ds_bytes a, struct ds_bytes b)
{
    size_t common = a.size < b.size ? a.size : b.size;
    int order = 0;

    if (common && ds_jinja_pay(run, common / 64))
        order = memcmp(a.data, b.data, common);
    if (order == 0)
        order = a.size < b.size ? -1 : a.size > b.size;
    return order < 0 ? -1 : order > 0;
}

static bool is_list(const struct ds_jinja_value *value)
{
    return value->kind == DS_LIST || value->kind == DS_TUPLE;
}

static bool equal_lists(struct ds_jinja_run *run, const struct ds_jinja_list *a,
                        const struct ds_jinja_list *b)
{
    bool equal = a->n == b->n;

    for (size_t i = 0; equal && run->code == 0 && i < a->n; i++)
        equal = ds_jinja_equal(run, &a->items[i], &b->items[i]);
    return equal;
}

static bool equal_dicts(struct ds_jinja_run *run, const struct ds_jinja_dict *a,
                        const struct ds_jinja_dict *b)
{
    bool equal = a->n == b->n;

    for (size_t i = 0; equal && run->code == 0 && i < a->n; i++) {
        equal = false;
        for (size_t j = 0; !equal && run->code == 0 && j < b->n; j++)
            equal = ds_jinja_equal(run, &a->keys[i], &b->keys[j]) &&
                    ds_jinja_equal(run, &a->values[i], &b->values[j]);
    }
    return equal;
}

bool ds_jinja_equal(struct ds_jinja_run *run, const struct ds_jinja_value *a,
                    const struct ds_jinja_value *b)
{
    bool equal = false;

    if (ds_jinja_is_number(a) && ds_jinja_is_number(b))
        return order_numbers(a, b) == 0 && !isnan(ds_jinja_number(a));
    if (a->kind != b->kind)
        return false;
    if (a->kind == DS_STRING)
        return a->text.size == b->text.size && order_text(run, a->text, b->text) == 0;
    if (a->kind == DS_UNDEFINED || a->kind == DS_NONE)
        return true;
    if (!ds_jinja_deeper(run))
        return false;
    if (is_list(a))
        equal = equal_lists(run, a->list, b->list);
    else if (a->kind == DS_DICT)
        equal = equal_dicts(run, a->dict, b->dict);
    else
        equal = a->dict == b->dict; /* the same namespace, function or loop */
    run->level--;
    return equal;
}

static int order_lists(struct ds_jinja_run *run, const struct ds_jinja_list *a,
                       const struct ds_jinja_list *b)
{
    for (size_t i = 0; run->code == 0 && i < a->n && i < b->n; i++)
        if (!ds_jinja_equal(run, &a->items[i], &b->items[i]))
            return ds_jinja_order(run, &a->items[i], &b->items[i]);
    return a->n < b->n ? -1 : a->n > b->n;
}

int ds_jinja_order(struct ds_jinja_run *run, const struct ds_jinja_value *a,
                   const struct ds_jinja_value *b)
{
    int order;

    if (ds_jinja_is_number(a) && ds_jinja_is_number(b))
        return order_numbers(a, b);
    if (a->kind == DS_STRING && b->kind == DS_STRING)
        return order_text(run, a->text, b->text);
    if (is_list(a) && a->kind == b->kind && ds_jinja_deeper(run)) {
        order = order_lists(run, a->list, b->list);
        run->level--;
        return order;
    }
    (void) ds_jinja_fail(run, -EBADMSG, "%s and %s cannot be ordered", ds_jinja_kind_name(a),
                         ds_jinja_kind_name(b));
    return 0;
}

bool ds_jinja_contains(struct ds_jinja_run *run, const struct ds_jinja_value *in,
                       const struct ds_jinja_value *what)
{
    const struct ds_jinja_value *values = NULL;
    size_t n = 0;

    if (in->kind == DS_STRING) {
        if (what->kind != DS_STRING)
            (void) ds_jinja_fail(run, -EBADMSG, "'in <string>' wants a string, not %s",
                                 ds_jinja_kind_name(what));
        else if (ds_jinja_pay(run, in->text.size / 16))
            return memmem(in->text.data, in->text.size, what->text.data, what->text.size) != NULL;
        return false;
    }
    if (is_list(in)) {
        values = in->list->items;
        n = in->list->n;
    } else if (in->kind == DS_DICT || in->kind == DS_NAMESPACE) {
        values = in->dict->keys;
        n = in->dict->n;
    } else if (in->kind != DS_UNDEFINED) {
        (void) ds_jinja_fail(run, -EBADMSG, "%s holds nothing to look for", ds_jinja_kind_name(in));
    }
    for (size_t i = 0; i < n && ds_jinja_pay(run, 1); i++)
        if (ds_jinja_equal(run, &values[i], what))
            return true;
    return false;
}

static struct ds_jinja_value characters(struct ds_jinja_run *run, struct ds_bytes text)
{
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);

    while (text.size && run->code == 0) {
        size_t n = ds_utf8_first(text);

        ds_jinja_push(run, list, ds_jinja_string((struct ds_bytes){ text.data, n }));
        text.data += n;
        text.size -= n;
    }
    return list;
}

const struct ds_jinja_list *ds_jinja_items(struct ds_jinja_run *run,
                                           const struct ds_jinja_value *value)
{
    struct ds_jinja_value list;

    if (is_list(value))
        return value->list;
    if (value->kind == DS_STRING) {
        list = characters(run, value->text);
        return run->code ? NULL : list.list;
    }
    if (value->kind != DS_UNDEFINED && value->kind != DS_DICT) {
        (void) ds_jinja_fail(run, -EBADMSG, "'%s' object is not iterable",
                             ds_jinja_kind_name(value));
        return NULL;
    }
    list = ds_jinja_list(run, DS_LIST);
    for (size_t i = 0; value->kind == DS_DICT && run->code == 0 && i < value->dict->n; i++)
        ds_jinja_push(run, list, value->dict->keys[i]);
    return run->code ? NULL : list.list;
}

int64_t ds_jinja_length(struct ds_jinja_run *run, const struct ds_jinja_value *value)
{
    if (value->kind == DS_UNDEFINED)
        return 0;
    if (value->kind == DS_STRING)
        return ds_jinja_pay(run, value->text.size / 16) ? (int64_t) ds_utf8_count(value->text) : 0;
    if (is_list(value))
        return (int64_t) value->list->n;
    if (value->kind == DS_DICT)
        return (int64_t) value->dict->n;
    (void) ds_jinja_fail(run, -EBADMSG, "'%s' object has no length", ds_jinja_kind_name(value));
    return 0;
}
