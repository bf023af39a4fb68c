/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/jinja.h"

#define LEVELS_MAX 150u /* of recursion while parsing */

/* --- what both parser files use --- */

void ds_jinja_syntax(struct ds_jinja_parser *parser, const char *what)
{
    if (parser->code == 0)
        parser->code = ds_error_set(parser->error, -EBADMSG, "chat template, line %u: %s",
                                    parser->at->line, what);
}

struct ds_jinja_node *ds_jinja_node(struct ds_jinja_parser *parser, enum ds_jinja_node_kind kind)
{
    struct ds_jinja_node *node =
        parser->code == 0 ? ds_arena_alloc(parser->arena, sizeof *node) : NULL;

    if (!node) {
        ds_jinja_syntax(parser, "too long");
        return NULL;
    }
    node->kind = kind;
    node->line = parser->at->line;
    node->height = 1;
    return node;
}

struct ds_jinja_node *ds_jinja_adopt(struct ds_jinja_parser *parser, struct ds_jinja_node *node,
                                     const struct ds_jinja_node *child)
{
    if (node && child && child->height >= node->height)
        node->height = child->height + 1;
    if (node && node->height > DS_JINJA_HEIGHT_MAX)
        ds_jinja_syntax(parser, "an expression is nested too deeply");
    return parser->code ? NULL : node;
}

bool ds_jinja_enter(struct ds_jinja_parser *parser)
{
    if (parser->level >= LEVELS_MAX)
        ds_jinja_syntax(parser, "nested too deeply");
    else if (parser->code == 0)
        parser->level++;
    return parser->code == 0;
}

static bool is_token(const struct ds_jinja_parser *parser, enum ds_jinja_token_kind kind,
                     const char *text)
{
    const struct ds_jinja_token *token = parser->at;

    return token->kind == kind && token->text.size == strlen(text) &&
           memcmp(token->text.data, text, token->text.size) == 0;
}

bool ds_jinja_is_operator(const struct ds_jinja_parser *parser, const char *text)
{
    return is_token(parser, DS_JINJA_OPERATOR, text);
}

bool ds_jinja_is_name(const struct ds_jinja_parser *parser, const char *text)
{
    return is_token(parser, DS_JINJA_NAME, text);
}

bool ds_jinja_skip_operator(struct ds_jinja_parser *parser, const char *text)
{
    bool is = parser->code == 0 && ds_jinja_is_operator(parser, text);

    parser->at += is;
    return is;
}

bool ds_jinja_skip_name(struct ds_jinja_parser *parser, const char *text)
{
    bool is = parser->code == 0 && ds_jinja_is_name(parser, text);

    parser->at += is;
    return is;
}

void ds_jinja_expect(struct ds_jinja_parser *parser, const char *operator_text)
{
    char what[48];

    if (ds_jinja_skip_operator(parser, operator_text))
        return;
    (void) snprintf(what, sizeof what, "'%s' was expected", operator_text);
    ds_jinja_syntax(parser, what);
}

struct ds_bytes ds_jinja_expect_name(struct ds_jinja_parser *parser)
{
    if (parser->at->kind != DS_JINJA_NAME)
        ds_jinja_syntax(parser, "a name was expected");
    if (parser->code)
        return (struct ds_bytes){ "", 0 };
    return parser->at++->text;
}

/* --- statements --- */

static struct ds_jinja_node *parse_body(struct ds_jinja_parser *parser, const char *const *ends);

static void expect_block_end(struct ds_jinja_parser *parser)
{
    if (parser->code)
        return;
    if (parser->at->kind != DS_JINJA_BLOCK_END)
        ds_jinja_syntax(parser, "the tag should end here");
    else
        parser->at++;
}

/* The rest of the opening tag, the statements up to the block tag that closes it, and that tag. */
static struct ds_jinja_node *parse_block(struct ds_jinja_parser *parser, const char *end)
{
    const char *ends[] = { end, NULL };
    struct ds_jinja_node *body;

    expect_block_end(parser);
    body = parse_body(parser, ends);
    (void) ds_jinja_skip_name(parser, end);
    return body;
}

static struct ds_jinja_node *adopt_body(struct ds_jinja_parser *parser, struct ds_jinja_node *node)
{
    for (const struct ds_jinja_node *child = node ? node->body : NULL; child; child = child->next)
        (void) ds_jinja_adopt(parser, node, child);
    for (const struct ds_jinja_node *child = node ? node->other : NULL; child; child = child->next)
        (void) ds_jinja_adopt(parser, node, child);
    return parser->code ? NULL : node;
}

static struct ds_jinja_node *parse_if(struct ds_jinja_parser *parser)
{
    static const char *const ends[] = { "endif", "elif", "else", NULL };
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_IF), **end;
    bool has_test = true;

    if (!node)
        return NULL;
    for (end = &node->list; parser->code == 0; end = &(*end)->next) {
        struct ds_jinja_node *branch = ds_jinja_node(parser, DS_NODE_BRANCH);

        if (!branch)
            return NULL;
        branch->a = has_test ? ds_jinja_parse_tuple(parser, true) : NULL;
        expect_block_end(parser);
        branch->body = parse_body(parser, ends);
        *end = adopt_body(parser, branch);
        (void) ds_jinja_adopt(parser, node, branch);
        if (ds_jinja_skip_name(parser, "endif") || parser->code)
            break;
        if (!has_test)
            ds_jinja_syntax(parser, "'endif' was expected after 'else'");
        has_test = !ds_jinja_skip_name(parser, "else");
        parser->at += has_test; /* elif */
    }
    return parser->code ? NULL : node;
}

static struct ds_jinja_node *parse_for(struct ds_jinja_parser *parser)
{
    static const char *const ends[] = { "endfor", "else", NULL };
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_FOR);

    if (!node)
        return NULL;
    node->a = ds_jinja_parse_target(parser, false);
    if (!ds_jinja_skip_name(parser, "in"))
        ds_jinja_syntax(parser, "'in' was expected");
    node->b = ds_jinja_parse_tuple(parser, false);
    if (ds_jinja_skip_name(parser, "if"))
        node->c = ds_jinja_parse_expression(parser);
    if (ds_jinja_is_name(parser, "recursive"))
        ds_jinja_syntax(parser, "recursive loops are not supported");
    expect_block_end(parser);
    node->body = parse_body(parser, ends);
    if (ds_jinja_skip_name(parser, "else"))
        node->other = parse_block(parser, "endfor");
    else
        (void) ds_jinja_skip_name(parser, "endfor");
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_set(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_SET);

    if (!node)
        return NULL;
    node->a = ds_jinja_parse_target(parser, true);
    if (ds_jinja_skip_operator(parser, "=")) {
        node->b = ds_jinja_parse_tuple(parser, true);
        return ds_jinja_adopt(parser, node, node->b);
    }
    node->kind = DS_NODE_SET_BLOCK;
    if (ds_jinja_skip_operator(parser, "|"))
        node->b = ds_jinja_parse_filters(parser, NULL);
    node->body = parse_block(parser, "endset");
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_macro(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_MACRO);

    if (!node)
        return NULL;
    node->text = ds_jinja_expect_name(parser);
    node->named = ds_jinja_parse_signature(parser);
    node->body = parse_block(parser, "endmacro");
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_call_block(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_CALL_BLOCK);

    if (!node)
        return NULL;
    if (ds_jinja_is_operator(parser, "("))
        node->named = ds_jinja_parse_signature(parser);
    node->a = ds_jinja_parse_expression(parser);
    if (node->a && node->a->kind != DS_NODE_CALL)
        ds_jinja_syntax(parser, "a call was expected");
    node->body = parse_block(parser, "endcall");
    (void) ds_jinja_adopt(parser, node, node->a);
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_filter_block(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_FILTER_BLOCK);

    if (!node)
        return NULL;
    node->b = ds_jinja_parse_filters(parser, NULL);
    node->body = parse_block(parser, "endfilter");
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_with(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_WITH), **end;

    if (!node)
        return NULL;
    end = &node->list;
    while (parser->code == 0 && parser->at->kind != DS_JINJA_BLOCK_END) {
        struct ds_jinja_node *set = ds_jinja_node(parser, DS_NODE_SET);

        if (!set)
            return NULL;
        set->a = ds_jinja_parse_target(parser, false);
        ds_jinja_expect(parser, "=");
        set->b = ds_jinja_parse_expression(parser);
        *end = set;
        end = &set->next;
        if (parser->at->kind != DS_JINJA_BLOCK_END)
            ds_jinja_expect(parser, ",");
    }
    node->body = parse_block(parser, "endwith");
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_generation(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node = ds_jinja_node(parser, DS_NODE_GROUP);

    if (node)
        node->body = parse_block(parser, "endgeneration");
    return adopt_body(parser, node);
}

static struct ds_jinja_node *parse_break(struct ds_jinja_parser *parser)
{
    return ds_jinja_node(parser, DS_NODE_BREAK);
}

static struct ds_jinja_node *parse_continue(struct ds_jinja_parser *parser)
{
    return ds_jinja_node(parser, DS_NODE_CONTINUE);
}

static struct ds_jinja_node *parse_statement(struct ds_jinja_parser *parser)
{
    static const struct {
        const char *word;
        struct ds_jinja_node *(*parse)(struct ds_jinja_parser *parser);
    } statements[] = {
        { "if", parse_if },           { "for", parse_for },
        { "set", parse_set },         { "macro", parse_macro },
        { "call", parse_call_block }, { "filter", parse_filter_block },
        { "with", parse_with },       { "generation", parse_generation },
        { "break", parse_break },     { "continue", parse_continue },
    };
    struct ds_jinja_node *node;
    char what[96];

    for (unsigned i = 0; i < sizeof statements / sizeof statements[0]; i++)
        if (ds_jinja_skip_name(parser, statements[i].word)) {
            node = statements[i].parse(parser);
            expect_block_end(parser);
            return node;
        }
    (void) snprintf(what, sizeof what, "tag '%.*s' is unknown or has no place here",
                    (int) (parser->at->text.size > 40 ? 40 : parser->at->text.size),
                    parser->at->text.data);
    ds_jinja_syntax(parser, what);
    return NULL;
}

static bool at_one_of(const struct ds_jinja_parser *parser, const char *const *names)
{
    for (; names && *names; names++)
        if (ds_jinja_is_name(parser, *names))
            return true;
    return false;
}

static struct ds_jinja_node *parse_output(struct ds_jinja_parser *parser)
{
    struct ds_jinja_node *node;

    if (parser->at->kind == DS_JINJA_TEXT) {
        node = ds_jinja_node(parser, DS_NODE_OUTPUT_TEXT);
        if (node)
            node->text = parser->at++->text;
        return node;
    }
    parser->at++;
    node = ds_jinja_node(parser, DS_NODE_OUTPUT);
    if (!node)
        return NULL;
    node->a = ds_jinja_parse_tuple(parser, true);
    if (parser->at->kind != DS_JINJA_PRINT_END)
        ds_jinja_syntax(parser, "'}}' was expected");
    else
        parser->at++;
    return ds_jinja_adopt(parser, node, node->a);
}

/* Statements up to a block tag that starts with one of ends, whose word is then the current token;
 * ends NULL: up to the end of the template. */
static struct ds_jinja_node *parse_body(struct ds_jinja_parser *parser, const char *const *ends)
{
    struct ds_jinja_node *list = NULL, **end = &list;
    char what[64];

    if (!ds_jinja_enter(parser))
        return NULL;
    while (parser->code == 0 && parser->at->kind != DS_JINJA_END) {
        if (parser->at->kind == DS_JINJA_BLOCK_BEGIN) {
            parser->at++;
            if (at_one_of(parser, ends))
                break;
            *end = parse_statement(parser);
        } else {
            *end = parse_output(parser);
        }
        if (*end)
            end = &(*end)->next;
    }
    if (ends && parser->at->kind == DS_JINJA_END) {
        (void) snprintf(what, sizeof what, "the template ends without '%s'", ends[0]);
        ds_jinja_syntax(parser, what);
    }
    parser->level -= parser->code == 0;
    return parser->code ? NULL : list;
}

struct ds_jinja_node *ds_jinja_parse(struct ds_arena *arena, const struct ds_jinja_token *tokens,
                                     int *ret_code, struct ds_error *error)
{
    struct ds_jinja_parser parser = { .arena = arena, .at = tokens, .error = error };
    struct ds_jinja_node *group = ds_jinja_node(&parser, DS_NODE_GROUP);

    if (group)
        group->body = parse_body(&parser, NULL);
    if (parser.code) {
        *ret_code = arena->code == -ENOMEM ? -ENOMEM : parser.code;
        return NULL;
    }
    return group;
}
