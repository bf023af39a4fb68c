/* SPDX-License-Identifier: Apache-2.0 */
/* `x is NAME`. */
#include <math.h>

#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

static bool is_list(const struct ds_jinja_value *value)
{
    return value->kind == DS_LIST || value->kind == DS_TUPLE;
}

static bool all_letters(struct ds_jinja_run *run, const struct ds_jinja_value *value, bool upper)
{
    struct ds_bytes text = ds_jinja_str(run, value);
    bool some = false;

    while (text.size) {
        size_t n = ds_utf8_first(text);
        unsigned code = ds_utf8_code(text.data, n);

        if (ds_utf8_upper(code) != code && upper)
            return false;
        if (ds_utf8_lower(code) != code && !upper)
            return false;
        some |= ds_utf8_upper(code) != ds_utf8_lower(code);
        text.data += n;
        text.size -= n;
    }
    return some;
}

/* Tests without arguments. */
static bool is_kind(const struct ds_jinja_value *v, struct ds_bytes name, bool *ret_known)
{
    const struct {
        const char *name;
        bool holds;
    } kinds[] = {
        { "defined", v->kind != DS_UNDEFINED },
        { "undefined", v->kind == DS_UNDEFINED },
        { "none", v->kind == DS_NONE },
        { "string", v->kind == DS_STRING },
        { "mapping", v->kind == DS_DICT },
        { "iterable",
          is_list(v) || v->kind == DS_DICT || v->kind == DS_STRING || v->kind == DS_UNDEFINED },
        { "sequence",
          is_list(v) || v->kind == DS_DICT || v->kind == DS_STRING || v->kind == DS_UNDEFINED },
        { "number", ds_jinja_is_number(v) },
        { "integer", v->kind == DS_INTEGER },
        { "float", v->kind == DS_FLOAT },
        { "boolean", v->kind == DS_BOOL },
        { "true", v->kind == DS_BOOL && v->truth },
        { "false", v->kind == DS_BOOL && !v->truth },
        { "callable", v->kind == DS_FUNCTION },
        { "escaped", false },
    };

    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (ds_jinja_is(name, kinds[i].name)) {
            *ret_known = true;
            return kinds[i].holds;
        }
    *ret_known = false;
    return false;
}

static enum ds_jinja_operator comparison(struct ds_bytes name)
{
    static const struct {
        const char *name;
        enum ds_jinja_operator op;
    } names[] = {
        { "equalto", DS_OP_EQUAL }, { "eq", DS_OP_EQUAL },         { "==", DS_OP_EQUAL },
        { "ne", DS_OP_UNEQUAL },    { "!=", DS_OP_UNEQUAL },       { "lt", DS_OP_LESS },
        { "lessthan", DS_OP_LESS }, { "<", DS_OP_LESS },           { "le", DS_OP_LESS_EQUAL },
        { "<=", DS_OP_LESS_EQUAL }, { "gt", DS_OP_GREATER },       { "greaterthan", DS_OP_GREATER },
        { ">", DS_OP_GREATER },     { "ge", DS_OP_GREATER_EQUAL }, { ">=", DS_OP_GREATER_EQUAL },
        { "in", DS_OP_IN },
    };

    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (ds_jinja_is(name, names[i].name))
            return names[i].op;
    return DS_OP_NONE;
}

static bool compare(struct ds_jinja_run *run, enum ds_jinja_operator op,
                    const struct ds_jinja_value *a, const struct ds_jinja_value *b)
{
    int order;

    if (op == DS_OP_EQUAL || op == DS_OP_UNEQUAL)
        return ds_jinja_equal(run, a, b) == (op == DS_OP_EQUAL);
    if (op == DS_OP_IN)
        return ds_jinja_contains(run, b, a);
    order = ds_jinja_order(run, a, b);
    switch (op) {
    case DS_OP_LESS:
        return order < 0;
    case DS_OP_LESS_EQUAL:
        return order <= 0;
    case DS_OP_GREATER:
        return order > 0;
    default:
        return order >= 0;
    }
}

static bool same_as(struct ds_jinja_run *run, const struct ds_jinja_value *a,
                    const struct ds_jinja_value *b)
{
    if (a->kind != b->kind)
        return false;
    if (is_list(a) || a->kind == DS_DICT)
        return a->list == b->list;
    return ds_jinja_equal(run, a, b);
}

static bool divides(struct ds_jinja_run *run, const struct ds_jinja_value *value, int64_t by)
{
    struct ds_jinja_value divisor = ds_jinja_integer(by), rest;

    rest = ds_jinja_binary(run, DS_OP_MODULO, value, &divisor);
    return run->code == 0 && !ds_jinja_truth(&rest);
}

bool ds_jinja_test(struct ds_jinja_run *run, struct ds_bytes name, struct ds_jinja_value input,
                   const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value other = ds_jinja_argument(arguments, 0, "other", ds_jinja_none());
    enum ds_jinja_operator op = comparison(name);
    bool known, holds = is_kind(&input, name, &known);

    if (known)
        return holds;
    if (op != DS_OP_NONE)
        return compare(run, op, &input, &other);
    if (ds_jinja_is(name, "sameas"))
        return same_as(run, &input, &other);
    if (ds_jinja_is(name, "upper") || ds_jinja_is(name, "lower"))
        return all_letters(run, &input, *name.data == 'u');
    if (ds_jinja_is(name, "odd"))
        return !divides(run, &input, 2);
    if (ds_jinja_is(name, "even"))
        return divides(run, &input, 2);
    if (ds_jinja_is(name, "divisibleby"))
        return divides(run, &input, ds_jinja_argument_integer(run, arguments, 0, "num", 1));
    (void) ds_jinja_fail(run, -EBADMSG, "no test named '%.*s'",
                         name.size > 80 ? 80 : (int) name.size, name.data);
    return false;
}
