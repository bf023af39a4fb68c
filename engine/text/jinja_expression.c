/* SPDX-License-Identifier: Apache-2.0 */
/* Precedence, loosest first: if-else, or, and, not, comparisons, + -, ~, * / // %, **, unary, then
 * postfix (. [] ()) and filters and tests, which bind tightest. */
#include "engine/text/jinja.h"

static struct ds_jinja_node *parse_unary(struct ds_jinja_parser *parser, bool with_filter);
static struct ds_jinja_node *parse_primary(struct ds_jinja_parser *parser);
static struct ds_jinja_node *parse_postfix(struct ds_jinja_parser *parser,
                                           struct ds_jinja_node *node);

static struct ds_jinja_node *binary(struct ds_jinja_parser *parser, enum ds_jinja_node_kind kind,
                                    enum ds_jinja_operator op, struct ds_jinja_node *a,
                                    struct ds_jinja_node *b)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, kind);

    if (!node || !a || !b)
        return NULL;
    node->op = op;
    node->a = a;
    node->b = b;
    (void) ds_jinja_adopt(parser, node, a);
    return ds_jinja_adopt(parser, node, b);
}

/* --- arguments --- */

static struct ds_jinja_node *parse_argument(struct ds_jinja_parser *parser, bool *ret_named)
{
    struct ds_jinja_node *node;

    *ret_named = parser->at->kind == DS_JINJA_NAME && parser->at[1].kind == DS_JINJA_OPERATOR &&
                 parser->at[1].text.size == 1 && *parser->at[1].text.data == '=';
    if (!*ret_named)
        return ds_jinja_parse_expression(parser);
    node = ds_jinja_node(parser, DS_NODE_NAMED);
    if (!node)
        return NULL;
    node->text = parser->at->text;
    parser->at += 2;
    node->a = ds_jinja_parse_expression(parser);
    return ds_jinja_adopt(parser, node, node->a);
}

/* `(a, b, c=1)` into call's list and named. */
static void parse_arguments(struct ds_jinja_parser *parser, struct ds_jinja_node *call)
{
    struct ds_jinja_node **end = &call->list, **named_end = &call->named;

    ds_jinja_expect(parser, "(");
    while (parser->code == 0 && !ds_jinja_is_operator(parser, ")")) {
        struct ds_jinja_node *argument;
        bool named;

        argument = parse_argument(parser, &named);
        if (!argument)
            return;
        if (!named && call->named)
            ds_jinja_syntax(parser, "a positional argument follows a named one");
        (void) ds_jinja_adopt(parser, call, argument);
        *(named ? named_end : end) = argument;
        if (named)
            named_end = &argument->next;
        else
            end = &argument->next;
        if (!ds_jinja_is_operator(parser, ")"))
            ds_jinja_expect(parser, ",");
    }
    ds_jinja_expect(parser, ")");
}

static struct ds_jinja_node *parse_call(struct ds_jinja_parser *parser,
                                        struct ds_jinja_node *callee)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_CALL);

    if (!node || !callee)
        return NULL;
    node->a = callee;
    parse_arguments(parser, node);
    return ds_jinja_adopt(parser, node, callee);
}

static struct ds_bytes parse_dotted_name(struct ds_jinja_parser *parser)
{
    struct ds_bytes name = ds_jinja_expect_name(parser);

    while (parser->code == 0 && ds_jinja_skip_operator(parser, "."))
        name = ds_jinja_expect_name(parser);
    return name;
}

static struct ds_jinja_node *parse_filter(struct ds_jinja_parser *parser,
                                          struct ds_jinja_node *input)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_FILTER);

    if (!node)
        return NULL;
    node->text = parse_dotted_name(parser);
    node->a = input;
    if (ds_jinja_is_operator(parser, "("))
        parse_arguments(parser, node);
    return ds_jinja_adopt(parser, node, input);
}

struct ds_jinja_node *ds_jinja_parse_filters(struct ds_jinja_parser *parser,
                                             struct ds_jinja_node *node)
{
    do
        node = parse_filter(parser, node);
    while (node && ds_jinja_skip_operator(parser, "|"));
    return node;
}

/* Whether a test's argument may start here without parentheses: `x is divisibleby 3`. */
static bool argument_starts(const struct ds_jinja_parser *parser)
{
    static const char *const ends[] = { "else", "or", "and", "if", "in", "not", NULL };
    enum ds_jinja_token_kind kind = parser->at->kind;

    for (unsigned i = 0; ends[i]; i++)
        if (ds_jinja_is_name(parser, ends[i]))
            return false;
    return kind == DS_JINJA_NAME || kind == DS_JINJA_STRING || kind == DS_JINJA_INTEGER ||
           kind == DS_JINJA_FLOAT || ds_jinja_is_operator(parser, "[") ||
           ds_jinja_is_operator(parser, "{");
}

static struct ds_jinja_node *negated(struct ds_jinja_parser *parser, struct ds_jinja_node *node)
{
    struct ds_jinja_node *negation = ds_jinja_node(parser, DS_NODE_NOT);

    if (!negation || !node)
        return NULL;
    negation->a = node;
    return ds_jinja_adopt(parser, negation, node);
}

static struct ds_jinja_node *parse_test(struct ds_jinja_parser *parser, struct ds_jinja_node *input)
{
    bool is_negated = ds_jinja_skip_name(parser, "not");
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_TEST);

    if (!node)
        return NULL;
    node->text = parse_dotted_name(parser);
    node->a = input;
    if (ds_jinja_is_operator(parser, "(")) {
        parse_arguments(parser, node);
    } else if (argument_starts(parser)) {
        if (ds_jinja_is_name(parser, "is"))
            ds_jinja_syntax(parser, "tests cannot be chained with 'is'");
        node->list = parse_postfix(parser, parse_primary(parser));
        (void) ds_jinja_adopt(parser, node, node->list);
    }
    node = ds_jinja_adopt(parser, node, input);
    return is_negated ? negated(parser, node) : node;
}

/* --- postfix --- */

static struct ds_jinja_node *parse_slice(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *first = NULL, *node;

    if (!ds_jinja_is_operator(parser, ":")) {
        first = ds_jinja_parse_expression(parser);
        if (!ds_jinja_is_operator(parser, ":"))
            return first;
    }
    node = ds_jinja_node(parser, DS_NODE_SLICE);
    if (!node)
        return NULL;
    node->a = first;
    ds_jinja_expect(parser, ":");
    if (!ds_jinja_is_operator(parser, ":") && !ds_jinja_is_operator(parser, "]"))
        node->b = ds_jinja_parse_expression(parser);
    if (ds_jinja_skip_operator(parser, ":") && !ds_jinja_is_operator(parser, "]"))
        node->c = ds_jinja_parse_expression(parser);
    (void) ds_jinja_adopt(parser, node, node->a);
    (void) ds_jinja_adopt(parser, node, node->b);
    return ds_jinja_adopt(parser, node, node->c);
}

static struct ds_jinja_node *parse_subscript(struct ds_jinja_parser *parser,
                                             struct ds_jinja_node *of)
{
    struct ds_jinja_node *node;

    if (ds_jinja_skip_operator(parser, "[")) {
        node = binary(parser, DS_NODE_ITEM, DS_OP_NONE, of, parse_slice(parser));
        ds_jinja_expect(parser, "]");
        return node;
    }
    ds_jinja_expect(parser, ".");
    if (parser->at->kind == DS_JINJA_INTEGER)
        return binary(parser, DS_NODE_ITEM, DS_OP_NONE, of, parse_primary(parser));
    node = ds_jinja_node(parser, DS_NODE_ATTRIBUTE);
    if (!node)
        return NULL;
    node->text = ds_jinja_expect_name(parser);
    node->a = of;
    return ds_jinja_adopt(parser, node, of);
}

static struct ds_jinja_node *parse_postfix(struct ds_jinja_parser *parser,
                                           struct ds_jinja_node *node)
{
    while (node && parser->code == 0) {
        if (ds_jinja_is_operator(parser, ".") || ds_jinja_is_operator(parser, "["))
            node = parse_subscript(parser, node);
        else if (ds_jinja_is_operator(parser, "("))
            node = parse_call(parser, node);
        else
            break;
    }
    return node;
}

static struct ds_jinja_node *parse_filters_and_tests(struct ds_jinja_parser *parser,
                                                     struct ds_jinja_node *node)
{
    while (node && parser->code == 0) {
        if (ds_jinja_skip_operator(parser, "|"))
            node = parse_filter(parser, node);
        else if (ds_jinja_skip_name(parser, "is"))
            node = parse_test(parser, node);
        else if (ds_jinja_is_operator(parser, "("))
            node = parse_call(parser, node);
        else
            break;
    }
    return node;
}

/* --- primary --- */

static struct ds_jinja_node *parse_list(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_LIST), **end;

    if (!node)
        return NULL;
    end = &node->list;
    while (parser->code == 0 && !ds_jinja_is_operator(parser, "]")) {
        *end = ds_jinja_parse_expression(parser);
        if (!*end)
            return NULL;
        (void) ds_jinja_adopt(parser, node, *end);
        end = &(*end)->next;
        if (!ds_jinja_is_operator(parser, "]"))
            ds_jinja_expect(parser, ",");
    }
    ds_jinja_expect(parser, "]");
    return node;
}

static struct ds_jinja_node *parse_dict(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_DICT), **end;

    if (!node)
        return NULL;
    end = &node->list;
    while (parser->code == 0 && !ds_jinja_is_operator(parser, "}")) {
        struct ds_jinja_node *key = ds_jinja_parse_expression(parser);

        ds_jinja_expect(parser, ":");
        *end = binary(parser, DS_NODE_PAIR, DS_OP_NONE, key, ds_jinja_parse_expression(parser));
        if (!*end)
            return NULL;
        (void) ds_jinja_adopt(parser, node, *end);
        end = &(*end)->next;
        if (!ds_jinja_is_operator(parser, "}"))
            ds_jinja_expect(parser, ",");
    }
    ds_jinja_expect(parser, "}");
    return node;
}

static struct ds_jinja_node *parse_strings(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_STRING);
    size_t size = 0, n = 0;
    char *joined;

    if (!node)
        return NULL;
    while (parser->at[n].kind == DS_JINJA_STRING)
        size += parser->at[n++].text.size;
    node->text = parser->at->text;
    if (n > 1) {
        joined = ds_arena_text(parser->arena, size);
        if (!joined) {
            ds_jinja_syntax(parser, "too long");
            return NULL;
        }
        node->text = (struct ds_bytes){ joined, size };
        for (size_t i = 0; i < n; i++) {
            memcpy(joined, parser->at[i].text.data, parser->at[i].text.size);
            joined += parser->at[i].text.size;
        }
    }
    parser->at += n;
    return node;
}

static struct ds_jinja_node *parse_word(struct ds_jinja_parser *parser)
{
    static const struct {
        const char *word;
        enum ds_jinja_node_kind kind;
    } constants[] = {
        { "true", DS_NODE_TRUE },   { "True", DS_NODE_TRUE }, { "false", DS_NODE_FALSE },
        { "False", DS_NODE_FALSE }, { "none", DS_NODE_NONE }, { "None", DS_NODE_NONE },
    };
    struct ds_jinja_node *node;

    for (unsigned i = 0; i < sizeof constants / sizeof constants[0]; i++)
        if (ds_jinja_skip_name(parser, constants[i].word))
            return ds_jinja_node(parser, constants[i].kind);
    node = ds_jinja_node(parser, DS_NODE_NAME);
    if (node)
        node->text = ds_jinja_expect_name(parser);
    return node;
}

static struct ds_jinja_node *parse_parentheses(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node;

    if (ds_jinja_skip_operator(parser, ")"))
        return ds_jinja_node(parser, DS_NODE_TUPLE);
    node = ds_jinja_parse_tuple(parser, true);
    ds_jinja_expect(parser, ")");
    return node;
}

static struct ds_jinja_node *parse_primary(struct ds_jinja_parser *parser)
{
    const struct ds_jinja_token *token = parser->at;
    struct ds_jinja_node *node;

    if (token->kind == DS_JINJA_NAME)
        return parse_word(parser);
    if (token->kind == DS_JINJA_STRING)
        return parse_strings(parser);
    if (token->kind == DS_JINJA_INTEGER || token->kind == DS_JINJA_FLOAT) {
        node =
            ds_jinja_node(parser, token->kind == DS_JINJA_FLOAT ? DS_NODE_FLOAT : DS_NODE_INTEGER);
        if (node) {
            node->integer = token->integer;
            node->number = token->number;
            parser->at++;
        }
        return node;
    }
    if (ds_jinja_skip_operator(parser, "("))
        return parse_parentheses(parser);
    if (ds_jinja_skip_operator(parser, "["))
        return parse_list(parser);
    if (ds_jinja_skip_operator(parser, "{"))
        return parse_dict(parser);
    ds_jinja_syntax(parser, "an expression was expected");
    return NULL;
}

/* --- operators --- */

static struct ds_jinja_node *parse_unary(struct ds_jinja_parser *parser, bool with_filter)
{
    struct ds_jinja_node *node;

    if (!ds_jinja_enter(parser))
        return NULL;
    if (ds_jinja_is_operator(parser, "-") || ds_jinja_is_operator(parser, "+")) {
        node = ds_jinja_node(parser, DS_NODE_UNARY);
        if (node) {
            node->op = *parser->at->text.data == '-' ? DS_OP_SUBTRACT : DS_OP_ADD;
            parser->at++;
            node->a = parse_unary(parser, false);
            node = ds_jinja_adopt(parser, node, node->a);
        }
    } else {
        node = parse_primary(parser);
    }
    node = parse_postfix(parser, node);
    if (with_filter)
        node = parse_filters_and_tests(parser, node);
    parser->level--;
    return parser->code ? NULL : node;
}

struct level {
    const char *text;
    enum ds_jinja_operator op;
};

/* Left-associative operators of one level; table ends with NULL. */
static enum ds_jinja_operator skip_one_of(struct ds_jinja_parser *parser, const struct level *table)
{
    for (; table->text; table++)
        if (ds_jinja_skip_operator(parser, table->text))
            return table->op;
    return DS_OP_NONE;
}

static struct ds_jinja_node *parse_power(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = parse_unary(parser, true);

    while (node && ds_jinja_skip_operator(parser, "**"))
        node = binary(parser, DS_NODE_BINARY, DS_OP_POWER, node, parse_unary(parser, true));
    return node;
}

static struct ds_jinja_node *parse_product(struct ds_jinja_parser *parser)
{
    static const struct level table[] = { { "*", DS_OP_MULTIPLY },
                                          { "//", DS_OP_FLOOR_DIVIDE },
                                          { "/", DS_OP_DIVIDE },
                                          { "%", DS_OP_MODULO },
                                          { NULL, DS_OP_NONE } };
    struct ds_jinja_node *node = parse_power(parser);
    enum ds_jinja_operator op;

    while (node && (op = skip_one_of(parser, table)))
        node = binary(parser, DS_NODE_BINARY, op, node, parse_power(parser));
    return node;
}

static struct ds_jinja_node *parse_concatenation(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *first = parse_product(parser), *node, **end;

    if (!first || !ds_jinja_is_operator(parser, "~"))
        return first;
    node = ds_jinja_node(parser, DS_NODE_CONCAT);
    if (!node)
        return NULL;
    node->list = first;
    (void) ds_jinja_adopt(parser, node, first);
    end = &first->next;
    while (ds_jinja_skip_operator(parser, "~")) {
        *end = parse_product(parser);
        if (!*end)
            return NULL;
        (void) ds_jinja_adopt(parser, node, *end);
        end = &(*end)->next;
    }
    return node;
}

static struct ds_jinja_node *parse_sum(struct ds_jinja_parser *parser)
{
    static const struct level table[] = { { "+", DS_OP_ADD },
                                          { "-", DS_OP_SUBTRACT },
                                          { NULL, DS_OP_NONE } };
    struct ds_jinja_node *node = parse_concatenation(parser);
    enum ds_jinja_operator op;

    while (node && (op = skip_one_of(parser, table)))
        node = binary(parser, DS_NODE_BINARY, op, node, parse_concatenation(parser));
    return node;
}

static enum ds_jinja_operator skip_comparison(struct ds_jinja_parser *parser)
{
    static const struct level table[] = { { "==", DS_OP_EQUAL },         { "!=", DS_OP_UNEQUAL },
                                          { "<=", DS_OP_LESS_EQUAL },    { "<", DS_OP_LESS },
                                          { ">=", DS_OP_GREATER_EQUAL }, { ">", DS_OP_GREATER },
                                          { NULL, DS_OP_NONE } };

    if (ds_jinja_skip_name(parser, "in"))
        return DS_OP_IN;
    if (ds_jinja_is_name(parser, "not") && parser->at[1].kind == DS_JINJA_NAME &&
        parser->at[1].text.size == 2 && memcmp(parser->at[1].text.data, "in", 2) == 0) {
        parser->at += 2;
        return DS_OP_NOT_IN;
    }
    return skip_one_of(parser, table);
}

static struct ds_jinja_node *parse_comparison(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *first = parse_sum(parser), *node = NULL, **end = NULL;
    enum ds_jinja_operator op;

    while (first && (op = skip_comparison(parser))) {
        struct ds_jinja_node *operand = ds_jinja_node(parser, DS_NODE_OPERAND);

        if (!node) {
            node = ds_jinja_node(parser, DS_NODE_COMPARE);
            if (!node)
                return NULL;
            node->a = first;
            (void) ds_jinja_adopt(parser, node, first);
            end = &node->list;
        }
        if (!operand)
            return NULL;
        operand->op = op;
        operand->a = parse_sum(parser);
        *end = ds_jinja_adopt(parser, operand, operand->a);
        if (!ds_jinja_adopt(parser, node, operand))
            return NULL;
        end = &operand->next;
    }
    return node ? node : first;
}

static struct ds_jinja_node *parse_not(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node;

    if (!ds_jinja_is_name(parser, "not"))
        return parse_comparison(parser);
    if (!ds_jinja_enter(parser))
        return NULL;
    parser->at++;
    node = negated(parser, parse_not(parser));
    parser->level--;
    return node;
}

static struct ds_jinja_node *parse_and(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = parse_not(parser);

    while (node && ds_jinja_skip_name(parser, "and"))
        node = binary(parser, DS_NODE_AND, DS_OP_NONE, node, parse_not(parser));
    return node;
}

static struct ds_jinja_node *parse_or(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = parse_and(parser);

    while (node && ds_jinja_skip_name(parser, "or"))
        node = binary(parser, DS_NODE_OR, DS_OP_NONE, node, parse_and(parser));
    return node;
}

struct ds_jinja_node *ds_jinja_parse_expression(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node;

    if (!ds_jinja_enter(parser))
        return NULL;
    node = parse_or(parser);
    while (node && ds_jinja_skip_name(parser, "if")) {
        struct ds_jinja_node *condition =
            binary(parser, DS_NODE_CONDITION, DS_OP_NONE, node, parse_or(parser));

        if (condition && ds_jinja_skip_name(parser, "else")) {
            condition->c = ds_jinja_parse_expression(parser);
            (void) ds_jinja_adopt(parser, condition, condition->c);
        }
        node = condition;
    }
    parser->level--;
    return parser->code ? NULL : node;
}

/* --- tuples and targets --- */

static bool tuple_ends(const struct ds_jinja_parser *parser)
{
    return parser->at->kind == DS_JINJA_BLOCK_END || parser->at->kind == DS_JINJA_PRINT_END ||
           ds_jinja_is_operator(parser, ")") || ds_jinja_is_operator(parser, "=") ||
           ds_jinja_is_name(parser, "in");
}

static struct ds_jinja_node *collect_tuple(struct ds_jinja_parser *parser,
                                           struct ds_jinja_node *first,
                                           struct ds_jinja_node *(*next)(struct ds_jinja_parser *) )
{
    struct ds_jinja_node *tuple, **end;

    if (!first || !ds_jinja_is_operator(parser, ","))
        return first;
    tuple = ds_jinja_node(parser, DS_NODE_TUPLE);
    if (!tuple)
        return NULL;
    tuple->list = first;
    (void) ds_jinja_adopt(parser, tuple, first);
    end = &first->next;
    while (ds_jinja_skip_operator(parser, ",") && !tuple_ends(parser)) {
        *end = next(parser);
        if (!*end)
            return NULL;
        (void) ds_jinja_adopt(parser, tuple, *end);
        end = &(*end)->next;
    }
    return tuple;
}

struct ds_jinja_node *ds_jinja_parse_tuple(struct ds_jinja_parser *parser, bool with_condition)
{
    struct ds_jinja_node *(*next)(struct ds_jinja_parser *) =
        with_condition ? ds_jinja_parse_expression : parse_or;
    struct ds_jinja_node *tuple;

    if (!ds_jinja_enter(parser))
        return NULL;
    tuple = collect_tuple(parser, next(parser), next);
    parser->level--;
    return parser->code ? NULL : tuple;
}

static struct ds_jinja_node *parse_target_name(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node;

    if (!ds_jinja_enter(parser))
        return NULL;
    if (ds_jinja_skip_operator(parser, "(")) {
        node = collect_tuple(parser, parse_target_name(parser), parse_target_name);
        ds_jinja_expect(parser, ")");
    } else {
        node = ds_jinja_node(parser, DS_NODE_NAME);
        if (node)
            node->text = ds_jinja_expect_name(parser);
    }
    parser->level--;
    return parser->code ? NULL : node;
}

struct ds_jinja_node *ds_jinja_parse_target(struct ds_jinja_parser *parser, bool with_attribute)
{
    struct ds_jinja_node *node = parse_target_name(parser), *attribute;

    if (node && with_attribute && node->kind == DS_NODE_NAME &&
        ds_jinja_skip_operator(parser, ".")) {
        attribute = ds_jinja_node(parser, DS_NODE_ATTRIBUTE);
        if (!attribute)
            return NULL;
        attribute->a = node;
        attribute->text = ds_jinja_expect_name(parser);
        return attribute;
    }
    return collect_tuple(parser, node, parse_target_name);
}

struct ds_jinja_node *ds_jinja_parse_signature(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *list = NULL, **end = &list;

    ds_jinja_expect(parser, "(");
    while (parser->code == 0 && !ds_jinja_is_operator(parser, ")")) {
        *end = ds_jinja_node(parser, DS_NODE_NAMED);
        if (!*end)
            return NULL;
        (*end)->text = ds_jinja_expect_name(parser);
        if (ds_jinja_skip_operator(parser, "="))
            (*end)->a = ds_jinja_parse_expression(parser);
        end = &(*end)->next;
        if (!ds_jinja_is_operator(parser, ")"))
            ds_jinja_expect(parser, ",");
    }
    ds_jinja_expect(parser, ")");
    return list;
}
