/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

/* --- names and members --- */

static struct ds_jinja_value look_up(struct ds_jinja_run *run, struct ds_bytes name)
{
    const struct ds_jinja_value *found;

    for (struct ds_jinja_frame *frame = run->frame; frame && run->code == 0;
         frame = frame->parent) {
        found = ds_jinja_get(run, &frame->names, name);
        if (found)
            return *found;
        if (frame->loop && ds_jinja_is(name, "loop"))
            return (struct ds_jinja_value){ .kind = DS_LOOP, .loop = frame->loop };
    }
    return ds_jinja_global(run, name);
}

static struct ds_jinja_value loop_item(const struct ds_jinja_loop *loop, size_t at)
{
    if (at < loop->items->n)
        return loop->items->items[at];
    return ds_jinja_undefined((struct ds_bytes){ "item", 4 });
}

static struct ds_jinja_value loop_attribute(struct ds_jinja_run *run, struct ds_jinja_value self,
                                            struct ds_bytes name)
{
    const struct ds_jinja_loop *loop = self.loop;
    int64_t n = (int64_t) loop->items->n, i = (int64_t) loop->index;

    if (ds_jinja_is(name, "index"))
        return ds_jinja_integer(i + 1);
    if (ds_jinja_is(name, "index0"))
        return ds_jinja_integer(i);
    if (ds_jinja_is(name, "revindex"))
        return ds_jinja_integer(n - i);
    if (ds_jinja_is(name, "revindex0"))
        return ds_jinja_integer(n - i - 1);
    if (ds_jinja_is(name, "first"))
        return ds_jinja_bool(i == 0);
    if (ds_jinja_is(name, "last"))
        return ds_jinja_bool(i == n - 1);
    if (ds_jinja_is(name, "length"))
        return ds_jinja_integer(n);
    if (ds_jinja_is(name, "depth"))
        return ds_jinja_integer(1); /* there are no recursive loops */
    if (ds_jinja_is(name, "depth0"))
        return ds_jinja_integer(0);
    if (ds_jinja_is(name, "previtem"))
        return loop_item(loop, loop->index - 1);
    if (ds_jinja_is(name, "nextitem"))
        return loop_item(loop, loop->index + 1);
    return ds_jinja_method(run, self, name);
}

/* Using what is not there is an error; asking whether it is there is not. */
static struct ds_jinja_value used_undefined(struct ds_jinja_run *run,
                                            const struct ds_jinja_value *value)
{
    int size = value->text.size > 80 ? 80 : (int) value->text.size;

    return ds_jinja_fail(run, -EBADMSG, "'%.*s' is undefined", size, value->text.data);
}

static struct ds_jinja_value item_at(struct ds_jinja_run *run, struct ds_jinja_value of, int64_t at)
{
    struct ds_bytes text = of.text;
    size_t n;

    if (at < 0)
        at += ds_jinja_length(run, &of);
    if (at < 0)
        return ds_jinja_undefined((struct ds_bytes){ "item", 4 });
    if (of.kind != DS_STRING)
        return (size_t) at < of.list->n ? of.list->items[at]
                                        : ds_jinja_undefined((struct ds_bytes){ "item", 4 });
    if (!ds_jinja_pay(run, (uint64_t) at / 16))
        return ds_jinja_none();
    for (; at > 0 && text.size; at--) {
        n = ds_utf8_first(text);
        text.data += n;
        text.size -= n;
    }
    if (text.size == 0)
        return ds_jinja_undefined((struct ds_bytes){ "item", 4 });
    return ds_jinja_string((struct ds_bytes){ text.data, ds_utf8_first(text) });
}

struct ds_jinja_value ds_jinja_item(struct ds_jinja_run *run, struct ds_jinja_value of,
                                    struct ds_jinja_value index)
{
    if (of.kind == DS_UNDEFINED)
        return used_undefined(run, &of);
    if (of.kind == DS_DICT) {
        for (size_t i = 0; i < of.dict->n && ds_jinja_pay(run, 1); i++)
            if (ds_jinja_equal(run, &of.dict->keys[i], &index))
                return of.dict->values[i];
    } else if (of.kind == DS_LIST || of.kind == DS_TUPLE || of.kind == DS_STRING) {
        if (index.kind == DS_INTEGER || index.kind == DS_BOOL)
            return item_at(run, of, index.kind == DS_BOOL ? index.truth : index.integer);
    } else if (of.kind == DS_NAMESPACE && index.kind == DS_STRING) {
        return ds_jinja_attribute(run, of, index.text);
    } else if (of.kind == DS_LOOP && index.kind == DS_STRING) {
        return loop_attribute(run, of, index.text);
    }
    if (index.kind == DS_STRING)
        return ds_jinja_method(run, of, index.text);
    return ds_jinja_undefined((struct ds_bytes){ "item", 4 });
}

struct ds_jinja_value ds_jinja_attribute(struct ds_jinja_run *run, struct ds_jinja_value of,
                                         struct ds_bytes name)
{
    const struct ds_jinja_value *found = NULL;
    struct ds_jinja_value method;

    if (of.kind == DS_UNDEFINED)
        return used_undefined(run, &of);
    if (of.kind == DS_LOOP)
        return loop_attribute(run, of, name);
    method = ds_jinja_method(run, of, name); /* a method goes before a member of its name */
    if (method.kind != DS_UNDEFINED)
        return method;
    if (of.kind == DS_DICT || of.kind == DS_NAMESPACE)
        found = ds_jinja_get(run, of.dict, name);
    return found ? *found : ds_jinja_undefined(name);
}

struct ds_jinja_value ds_jinja_path(struct ds_jinja_run *run, struct ds_jinja_value of,
                                    struct ds_jinja_value path,
                                    const struct ds_jinja_value *otherwise)
{
    struct ds_bytes rest = path.text, part;

    if (path.kind != DS_STRING) {
        of = ds_jinja_item(run, of, path);
        return of.kind == DS_UNDEFINED && otherwise ? *otherwise : of;
    }
    while (run->code == 0) {
        const char *dot = memchr(rest.data, '.', rest.size);
        int64_t index = 0;
        bool digits = rest.size > 0;

        part = (struct ds_bytes){ rest.data, dot ? (size_t) (dot - rest.data) : rest.size };
        for (size_t i = 0; i < part.size; i++) {
            digits = digits && part.data[i] >= '0' && part.data[i] <= '9' && i < 9;
            index = digits ? index * 10 + (part.data[i] - '0') : 0;
        }
        of = ds_jinja_item(run, of, digits ? ds_jinja_integer(index) : ds_jinja_string(part));
        if (of.kind == DS_UNDEFINED && otherwise)
            of = *otherwise;
        if (!dot)
            break;
        rest = (struct ds_bytes){ dot + 1, rest.size - part.size - 1 };
    }
    return of;
}

/* --- slices --- */

static int64_t slice_bound(struct ds_jinja_run *run, const struct ds_jinja_node *node, int64_t n,
                           int64_t missing, int64_t low, int64_t high)
{
    struct ds_jinja_value value;
    int64_t at;

    if (!node)
        return missing;
    value = ds_jinja_eval(run, node);
    if (value.kind == DS_NONE || run->code)
        return missing;
    if (value.kind != DS_INTEGER) {
        (void) ds_jinja_fail(run, -EBADMSG, "slice indices must be integers");
        return missing;
    }
    at = value.integer < 0 ? (value.integer < -n ? -1 : value.integer + n) : value.integer;
    if (value.integer < 0 && value.integer < -n)
        at = low;
    return at < low ? low : at > high ? high : at;
}

static struct ds_jinja_value join_items(struct ds_jinja_run *run, const struct ds_jinja_list *list)
{
    struct ds_bytes text = { "", 0 };

    for (size_t i = 0; i < list->n && run->code == 0; i++)
        text = ds_jinja_join(run, text, list->items[i].text);
    return ds_jinja_string(text);
}

static struct ds_jinja_value slice(struct ds_jinja_run *run, struct ds_jinja_value of,
                                   const struct ds_jinja_node *node)
{
    struct ds_jinja_value result, step = ds_jinja_integer(1);
    const struct ds_jinja_list *list;
    int64_t n, from, to, by;

    if (of.kind == DS_UNDEFINED)
        return used_undefined(run, &of);
    if (of.kind != DS_LIST && of.kind != DS_TUPLE && of.kind != DS_STRING)
        return ds_jinja_fail(run, -EBADMSG, "'%s' object cannot be sliced",
                             ds_jinja_kind_name(&of));
    list = ds_jinja_items(run, &of);
    if (node->c)
        step = ds_jinja_eval(run, node->c);
    if (run->code)
        return ds_jinja_none();
    by = step.kind == DS_INTEGER ? step.integer : 1;
    if (by == 0 || by == INT64_MIN)
        return ds_jinja_fail(run, -EBADMSG, "slice step cannot be zero");
    n = (int64_t) list->n;
    from = slice_bound(run, node->a, n, by > 0 ? 0 : n - 1, by > 0 ? 0 : -1, by > 0 ? n : n - 1);
    to = slice_bound(run, node->b, n, by > 0 ? n : -1, by > 0 ? 0 : -1, by > 0 ? n : n - 1);
    result = ds_jinja_list(run, of.kind == DS_TUPLE ? DS_TUPLE : DS_LIST);
    while (run->code == 0 && (by > 0 ? from < to : from > to)) {
        ds_jinja_push(run, result, list->items[from]);
        if (by > 0 ? by >= n - from : by <= -1 - from)
            break;
        from += by;
    }
    if (run->code)
        return ds_jinja_none();
    return of.kind == DS_STRING ? join_items(run, result.list) : result;
}

/* --- arithmetic --- */

static bool is_whole(const struct ds_jinja_value *value)
{
    return value->kind == DS_INTEGER || value->kind == DS_BOOL;
}

static int64_t whole(const struct ds_jinja_value *value)
{
    return value->kind == DS_BOOL ? value->truth : value->integer;
}

static struct ds_jinja_value power(struct ds_jinja_run *run, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    if (exponent < 0)
        return ds_jinja_float(pow((double) base, (double) exponent));
    if (exponent > 63 && base != 0 && base != 1 && base != -1)
        return ds_jinja_fail(run, -EBADMSG, "a number is too large");
    exponent = exponent > 63 ? 2 + exponent % 2 : exponent;
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(result, base, &result))
            return ds_jinja_fail(run, -EBADMSG, "a number is too large");
    return ds_jinja_integer(result);
}

static struct ds_jinja_value integers(struct ds_jinja_run *run, enum ds_jinja_operator op,
                                      int64_t x, int64_t y)
{
    bool overflow = false;
    int64_t r = 0;

    switch (op) {
    case DS_OP_ADD:
        overflow = __builtin_add_overflow(x, y, &r);
        break;
    case DS_OP_SUBTRACT:
        overflow = __builtin_sub_overflow(x, y, &r);
        break;
    case DS_OP_MULTIPLY:
        overflow = __builtin_mul_overflow(x, y, &r);
        break;
    case DS_OP_POWER:
        return power(run, x, y);
    default:
        if (y == 0)
            return ds_jinja_fail(run, -EBADMSG, "division by zero");
        if (op == DS_OP_DIVIDE)
            return ds_jinja_float((double) x / (double) y);
        overflow = x == INT64_MIN && y == -1;
        if (!overflow && op == DS_OP_FLOOR_DIVIDE)
            r = x / y - (x % y != 0 && (x < 0) != (y < 0));
        else if (!overflow)
            r = x % y + (x % y != 0 && (x < 0) != (y < 0) ? y : 0);
    }
    if (overflow)
        return ds_jinja_fail(run, -EBADMSG, "a number is too large");
    return ds_jinja_integer(r);
}

static struct ds_jinja_value floats(struct ds_jinja_run *run, enum ds_jinja_operator op, double x,
                                    double y)
{
    if (op == DS_OP_ADD)
        return ds_jinja_float(x + y);
    if (op == DS_OP_SUBTRACT)
        return ds_jinja_float(x - y);
    if (op == DS_OP_MULTIPLY)
        return ds_jinja_float(x * y);
    if (op == DS_OP_POWER)
        return ds_jinja_float(pow(x, y));
    if (y == 0.0)
        return ds_jinja_fail(run, -EBADMSG, "division by zero");
    if (op == DS_OP_DIVIDE)
        return ds_jinja_float(x / y);
    if (op == DS_OP_FLOOR_DIVIDE)
        return ds_jinja_float(floor(x / y));
    return ds_jinja_float(x - y * floor(x / y));
}

static bool is_list(const struct ds_jinja_value *value)
{
    return value->kind == DS_LIST || value->kind == DS_TUPLE;
}

static struct ds_jinja_value repeat(struct ds_jinja_run *run, const struct ds_jinja_value *of,
                                    int64_t times)
{
    struct ds_jinja_value result;
    struct ds_bytes text = { "", 0 };

    if (of->kind == DS_STRING) {
        for (int64_t i = 0; of->text.size && i < times && run->code == 0; i++)
            text = ds_jinja_join(run, text, of->text);
        return ds_jinja_string(text);
    }
    result = ds_jinja_list(run, of->kind);
    for (int64_t i = 0; of->list->n && i < times && run->code == 0; i++)
        for (size_t j = 0; j < of->list->n && run->code == 0; j++)
            ds_jinja_push(run, result, of->list->items[j]);
    return result;
}

static struct ds_jinja_value add_lists(struct ds_jinja_run *run, const struct ds_jinja_value *a,
                                       const struct ds_jinja_value *b)
{
    struct ds_jinja_value result = ds_jinja_list(run, a->kind);

    for (size_t i = 0; i < a->list->n && run->code == 0; i++)
        ds_jinja_push(run, result, a->list->items[i]);
    for (size_t i = 0; i < b->list->n && run->code == 0; i++)
        ds_jinja_push(run, result, b->list->items[i]);
    return result;
}

struct ds_jinja_value ds_jinja_binary(struct ds_jinja_run *run, enum ds_jinja_operator op,
                                      const struct ds_jinja_value *a,
                                      const struct ds_jinja_value *b)
{
    static const char *const signs[] = { "", "+", "-", "*", "/", "//", "%", "**" };

    if (run->code)
        return ds_jinja_none();
    if (a->kind == DS_UNDEFINED || b->kind == DS_UNDEFINED)
        return used_undefined(run, a->kind == DS_UNDEFINED ? a : b);
    if (ds_jinja_is_number(a) && ds_jinja_is_number(b)) {
        if (a->kind == DS_FLOAT || b->kind == DS_FLOAT)
            return floats(run, op, ds_jinja_number(a), ds_jinja_number(b));
        return integers(run, op, whole(a), whole(b));
    }
    if (op == DS_OP_ADD && a->kind == DS_STRING && b->kind == DS_STRING)
        return ds_jinja_string(ds_jinja_join(run, a->text, b->text));
    if (op == DS_OP_ADD && is_list(a) && a->kind == b->kind)
        return add_lists(run, a, b);
    if (op == DS_OP_MULTIPLY && (a->kind == DS_STRING || is_list(a)) && is_whole(b))
        return repeat(run, a, whole(b));
    if (op == DS_OP_MULTIPLY && (b->kind == DS_STRING || is_list(b)) && is_whole(a))
        return repeat(run, b, whole(a));
    if (op == DS_OP_MODULO && a->kind == DS_STRING) {
        struct ds_jinja_arguments arguments = { .values = (struct ds_jinja_value *) b, .n = 1 };

        if (b->kind == DS_TUPLE)
            arguments = (struct ds_jinja_arguments){ .values = b->list->items, .n = b->list->n };
        return ds_jinja_filter(run, (struct ds_bytes){ "format", 6 }, *a, &arguments);
    }
    return ds_jinja_fail(run, -EBADMSG, "unsupported operand types for %s: '%s' and '%s'",
                         signs[op], ds_jinja_kind_name(a), ds_jinja_kind_name(b));
}

static struct ds_jinja_value unary(struct ds_jinja_run *run, enum ds_jinja_operator op,
                                   struct ds_jinja_value value)
{
    struct ds_jinja_value zero = ds_jinja_integer(0);

    if (run->code || (op == DS_OP_ADD && ds_jinja_is_number(&value)))
        return value;
    if (value.kind == DS_FLOAT)
        return ds_jinja_float(-value.number);
    return ds_jinja_binary(run, op, &zero, &value);
}

/* --- comparisons and logic --- */

static bool compare(struct ds_jinja_run *run, enum ds_jinja_operator op,
                    const struct ds_jinja_value *a, const struct ds_jinja_value *b)
{
    switch (op) {
    case DS_OP_EQUAL:
        return ds_jinja_equal(run, a, b);
    case DS_OP_UNEQUAL:
        return !ds_jinja_equal(run, a, b);
    case DS_OP_IN:
        return ds_jinja_contains(run, b, a);
    case DS_OP_NOT_IN:
        return !ds_jinja_contains(run, b, a);
    case DS_OP_LESS:
        return ds_jinja_order(run, a, b) < 0;
    case DS_OP_LESS_EQUAL:
        return ds_jinja_order(run, a, b) <= 0;
    case DS_OP_GREATER:
        return ds_jinja_order(run, a, b) > 0;
    default:
        return ds_jinja_order(run, a, b) >= 0;
    }
}

static struct ds_jinja_value eval_compare(struct ds_jinja_run *run,
                                          const struct ds_jinja_node *node)
{
    struct ds_jinja_value left = ds_jinja_eval(run, node->a), right;

    for (const struct ds_jinja_node *operand = node->list; operand && run->code == 0;
         operand = operand->next) {
        right = ds_jinja_eval(run, operand->a);
        if (run->code || !compare(run, operand->op, &left, &right))
            return ds_jinja_bool(false);
        left = right;
    }
    return ds_jinja_bool(true);
}

static struct ds_jinja_value eval_logic(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value value = ds_jinja_eval(run, node->a);

    if (node->kind == DS_NODE_NOT)
        return ds_jinja_bool(!ds_jinja_truth(&value));
    if (run->code || ds_jinja_truth(&value) == (node->kind == DS_NODE_OR))
        return value;
    return ds_jinja_eval(run, node->b);
}

static struct ds_jinja_value eval_condition(struct ds_jinja_run *run,
                                            const struct ds_jinja_node *node)
{
    struct ds_jinja_value test = ds_jinja_eval(run, node->b);

    if (run->code)
        return test;
    if (ds_jinja_truth(&test))
        return ds_jinja_eval(run, node->a);
    if (node->c)
        return ds_jinja_eval(run, node->c);
    return ds_jinja_undefined((struct ds_bytes){ "the inline if", 13 });
}

/* --- literals --- */

static struct ds_jinja_value eval_list(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value list =
        ds_jinja_list(run, node->kind == DS_NODE_TUPLE ? DS_TUPLE : DS_LIST);

    for (const struct ds_jinja_node *item = node->list; item && run->code == 0; item = item->next)
        ds_jinja_push(run, list, ds_jinja_eval(run, item));
    return list;
}

static struct ds_jinja_value eval_dict(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value dict = ds_jinja_dict(run, DS_DICT);

    for (const struct ds_jinja_node *pair = node->list; pair && run->code == 0; pair = pair->next) {
        struct ds_jinja_value key = ds_jinja_eval(run, pair->a);

        ds_jinja_put(run, dict.dict, key, ds_jinja_eval(run, pair->b));
    }
    return dict;
}

static struct ds_jinja_value eval_concat(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_bytes text = { "", 0 };

    for (const struct ds_jinja_node *part = node->list; part && run->code == 0; part = part->next) {
        struct ds_jinja_value value = ds_jinja_eval(run, part);

        text = ds_jinja_join(run, text, ds_jinja_str(run, &value));
    }
    return ds_jinja_string(text);
}

static struct ds_jinja_value eval_filter_or_test(struct ds_jinja_run *run,
                                                 const struct ds_jinja_node *node)
{
    struct ds_jinja_value input = node->a ? ds_jinja_eval(run, node->a) : run->captured;
    struct ds_jinja_arguments arguments = ds_jinja_arguments(run, node);

    if (run->code)
        return ds_jinja_none();
    if (node->kind == DS_NODE_FILTER)
        return ds_jinja_filter(run, node->text, input, &arguments);
    return ds_jinja_bool(ds_jinja_test(run, node->text, input, &arguments));
}

static struct ds_jinja_value eval_item(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value of = ds_jinja_eval(run, node->a), index;

    if (run->code)
        return of;
    if (node->b->kind == DS_NODE_SLICE)
        return slice(run, of, node->b);
    index = ds_jinja_eval(run, node->b);
    return run->code ? index : ds_jinja_item(run, of, index);
}

static struct ds_jinja_value eval_call(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value callee = ds_jinja_eval(run, node->a);
    struct ds_jinja_arguments arguments = ds_jinja_arguments(run, node);

    return run->code ? ds_jinja_none() : ds_jinja_call(run, callee, &arguments);
}

static struct ds_jinja_value eval_node(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value value;

    switch (node->kind) {
    case DS_NODE_TRUE:
    case DS_NODE_FALSE:
        return ds_jinja_bool(node->kind == DS_NODE_TRUE);
    case DS_NODE_INTEGER:
        return ds_jinja_integer(node->integer);
    case DS_NODE_FLOAT:
        return ds_jinja_float(node->number);
    case DS_NODE_STRING:
        return ds_jinja_string(node->text);
    case DS_NODE_NAME:
        return look_up(run, node->text);
    case DS_NODE_LIST:
    case DS_NODE_TUPLE:
        return eval_list(run, node);
    case DS_NODE_DICT:
        return eval_dict(run, node);
    case DS_NODE_ATTRIBUTE:
        value = ds_jinja_eval(run, node->a);
        return run->code ? value : ds_jinja_attribute(run, value, node->text);
    case DS_NODE_ITEM:
        return eval_item(run, node);
    case DS_NODE_CALL:
        return eval_call(run, node);
    case DS_NODE_FILTER:
    case DS_NODE_TEST:
        return eval_filter_or_test(run, node);
    case DS_NODE_UNARY:
        return unary(run, node->op, ds_jinja_eval(run, node->a));
    case DS_NODE_BINARY: {
        struct ds_jinja_value a = ds_jinja_eval(run, node->a), b = ds_jinja_eval(run, node->b);

        return ds_jinja_binary(run, node->op, &a, &b);
    }
    case DS_NODE_COMPARE:
        return eval_compare(run, node);
    case DS_NODE_AND:
    case DS_NODE_OR:
    case DS_NODE_NOT:
        return eval_logic(run, node);
    case DS_NODE_CONDITION:
        return eval_condition(run, node);
    case DS_NODE_CONCAT:
        return eval_concat(run, node);
    default:
        return ds_jinja_none();
    }
}

struct ds_jinja_value ds_jinja_eval(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value value;

    if (!ds_jinja_deeper(run))
        return ds_jinja_none();
    run->line = node->line;
    value = eval_node(run, node);
    run->level--;
    return value;
}
