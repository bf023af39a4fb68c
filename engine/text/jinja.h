/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jinja.h - source of a chat template to a tree; template.h is the interpreter's face to others.
 *
 *      source --jinja_lexer--> tokens --jinja_parser, jinja_expression--> nodes      (this header)
 *      nodes + values --jinja_run (statements), jinja_eval (expressions)--> text     (jinja_run.h)
 *
 * Everything made here lives in one bounded arena and is immutable once made.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/text/jinja_arena.h"
#include "engine/text/template.h"

#define DS_JINJA_SOURCE_BYTES_MAX (1u << 20)  /* of a template */
#define DS_JINJA_TREE_BYTES_MAX   (64u << 20) /* of its parsed form */
#define DS_JINJA_HEIGHT_MAX       200u        /* of its parsed form */

enum ds_jinja_token_kind {
    DS_JINJA_END,
    DS_JINJA_TEXT,
    DS_JINJA_BLOCK_BEGIN,
    DS_JINJA_BLOCK_END,
    DS_JINJA_PRINT_BEGIN,
    DS_JINJA_PRINT_END,
    DS_JINJA_NAME,
    DS_JINJA_STRING, /* text is decoded */
    DS_JINJA_INTEGER,
    DS_JINJA_FLOAT,
    DS_JINJA_OPERATOR, /* text is the operator */
};

struct ds_jinja_token {
    enum ds_jinja_token_kind kind;
    unsigned line;
    struct ds_bytes text;
    int64_t integer;
    double number;
};

enum ds_jinja_node_kind {
    /* expressions */
    DS_NODE_NONE,
    DS_NODE_TRUE,
    DS_NODE_FALSE,
    DS_NODE_INTEGER,   /* integer */
    DS_NODE_FLOAT,     /* number */
    DS_NODE_STRING,    /* text */
    DS_NODE_NAME,      /* text */
    DS_NODE_LIST,      /* list */
    DS_NODE_TUPLE,     /* list */
    DS_NODE_DICT,      /* list of PAIR */
    DS_NODE_PAIR,      /* a: key, b: value */
    DS_NODE_ATTRIBUTE, /* a.text */
    DS_NODE_ITEM,      /* a[b] */
    DS_NODE_SLICE,     /* a:b:c, each may be NULL */
    DS_NODE_CALL,      /* a(list, named) */
    DS_NODE_FILTER,    /* a | text(list, named); a NULL: what a block captured */
    DS_NODE_TEST,      /* a is text(list, named) */
    DS_NODE_NAMED,     /* text = a, in argument lists and signatures (a may be NULL there) */
    DS_NODE_UNARY,     /* op a */
    DS_NODE_BINARY,    /* a op b */
    DS_NODE_COMPARE,   /* a, then list of OPERAND */
    DS_NODE_OPERAND,   /* op a */
    DS_NODE_AND,       /* a, b */
    DS_NODE_OR,        /* a, b */
    DS_NODE_NOT,       /* a */
    DS_NODE_CONDITION, /* a if b else c (may be NULL) */
    DS_NODE_CONCAT,    /* list */
    /* statements */
    DS_NODE_OUTPUT_TEXT,  /* text */
    DS_NODE_OUTPUT,       /* a */
    DS_NODE_IF,           /* list of BRANCH */
    DS_NODE_BRANCH,       /* a: test or NULL, body */
    DS_NODE_FOR,          /* a: target, b: iterable, c: filter or NULL, body, other */
    DS_NODE_SET,          /* a: target, b: value */
    DS_NODE_SET_BLOCK,    /* a: target, b: filters or NULL, body */
    DS_NODE_MACRO,        /* text: name, named: parameters, body */
    DS_NODE_CALL_BLOCK,   /* a: CALL, named: parameters, body */
    DS_NODE_FILTER_BLOCK, /* b: filters, body */
    DS_NODE_WITH,         /* list of SET, body */
    DS_NODE_GROUP,        /* body */
    DS_NODE_BREAK,
    DS_NODE_CONTINUE,
};

enum ds_jinja_operator {
    DS_OP_NONE,
    DS_OP_ADD,
    DS_OP_SUBTRACT,
    DS_OP_MULTIPLY,
    DS_OP_DIVIDE,
    DS_OP_FLOOR_DIVIDE,
    DS_OP_MODULO,
    DS_OP_POWER,
    DS_OP_EQUAL,
    DS_OP_UNEQUAL,
    DS_OP_LESS,
    DS_OP_LESS_EQUAL,
    DS_OP_GREATER,
    DS_OP_GREATER_EQUAL,
    DS_OP_IN,
    DS_OP_NOT_IN,
};

struct ds_jinja_node {
    enum ds_jinja_node_kind kind;
    enum ds_jinja_operator op;
    unsigned line, height;
    struct ds_jinja_node *next; /* in the list it belongs to */
    struct ds_jinja_node *a, *b, *c;
    struct ds_jinja_node *list, *named, *body, *other;
    struct ds_bytes text;
    int64_t integer;
    double number;
};

/* Tokens of source (both live in arena), ended by DS_JINJA_END. NULL: error says why, *ret_code. */
struct ds_jinja_token *ds_jinja_lex(struct ds_arena *arena, struct ds_bytes source, int *ret_code,
                                    struct ds_error *error);

/* The whole template as a GROUP. Likewise. */
struct ds_jinja_node *ds_jinja_parse(struct ds_arena *arena, const struct ds_jinja_token *tokens,
                                     int *ret_code, struct ds_error *error);

/* --- between the two parser files: the first failure stays, functions return NULL from then on ---
 */

struct ds_jinja_parser {
    struct ds_arena *arena;
    const struct ds_jinja_token *at;
    unsigned level; /* of recursion */
    int code;
    struct ds_error *error;
};

void ds_jinja_syntax(struct ds_jinja_parser *parser, const char *what);
struct ds_jinja_node *ds_jinja_node(struct ds_jinja_parser *parser, enum ds_jinja_node_kind kind);
/* child became part of node: its height counts. */
struct ds_jinja_node *ds_jinja_adopt(struct ds_jinja_parser *parser, struct ds_jinja_node *node,
                                     const struct ds_jinja_node *child);
/* Every recursive function enters first and leaves at its end; false: too deep. */
bool ds_jinja_enter(struct ds_jinja_parser *parser);

bool ds_jinja_is_operator(const struct ds_jinja_parser *parser, const char *text);
bool ds_jinja_is_name(const struct ds_jinja_parser *parser, const char *text);
bool ds_jinja_skip_operator(struct ds_jinja_parser *parser, const char *text);
bool ds_jinja_skip_name(struct ds_jinja_parser *parser, const char *text);
void ds_jinja_expect(struct ds_jinja_parser *parser, const char *operator_text);
struct ds_bytes ds_jinja_expect_name(struct ds_jinja_parser *parser);

struct ds_jinja_node *ds_jinja_parse_expression(struct ds_jinja_parser *parser);
/* Commas make a tuple; with_condition: `a if b` is part of it. */
struct ds_jinja_node *ds_jinja_parse_tuple(struct ds_jinja_parser *parser, bool with_condition);
/* What can be assigned to: names, tuples of them, with_attribute: name.attribute. */
struct ds_jinja_node *ds_jinja_parse_target(struct ds_jinja_parser *parser, bool with_attribute);
/* `filter | filter ...` on node, from the first filter's name on. */
struct ds_jinja_node *ds_jinja_parse_filters(struct ds_jinja_parser *parser,
                                             struct ds_jinja_node *node);
/* `(a, b = 1)` of a macro: a list of NAMED. */
struct ds_jinja_node *ds_jinja_parse_signature(struct ds_jinja_parser *parser);
