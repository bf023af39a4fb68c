/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jinja_run.h - one run of a template: its values, its bounds, and who does what.
 *
 *      jinja_run.c      statements            jinja_value.c    truth, order, text of values
 *      jinja_eval.c     expressions           jinja_json.c     JSON to values and back
 *      jinja_call.c     calls, macros         jinja_filters.c, jinja_filters_list.c   x | filter
 *      jinja_tests.c    x is test             jinja_methods.c  x.method()
 *
 * The first failure is kept in the run (ds_jinja_fail()); from then on every function returns at
 * once with an undefined value, and loops look at run->code. Nothing loops over data without paying
 * steps for it, nothing recurses without ds_jinja_deeper(), all memory is the run's bounded arena.
 * Values are plain structs; what they point to is immutable, except dictionaries of namespaces.
 */
#pragma once

#include "engine/text/jinja.h"

#define DS_JINJA_LEVELS_MAX 500u        /* nested evaluations */
#define DS_JINJA_STEPS_MAX  (16u << 20) /* plus one for each byte of input */
#define DS_JINJA_MEMORY_MAX (32u << 20) /* plus sixteen for each byte of input */
#define DS_JINJA_OUTPUT_MAX (8u << 20)  /* plus four for each byte of input */
#define DS_JINJA_RANGE_MAX  100000      /* numbers of a range() */

enum ds_jinja_kind {
    DS_UNDEFINED, /* text: the name that was not there */
    DS_NONE,
    DS_BOOL,
    DS_INTEGER,
    DS_FLOAT, /* text: a number from JSON that no int64 holds; else empty */
    DS_STRING,
    DS_LIST,
    DS_TUPLE,
    DS_DICT,
    DS_NAMESPACE,
    DS_FUNCTION, /* macro, global function or bound method */
    DS_LOOP,
};

struct ds_jinja_list;
struct ds_jinja_dict;
struct ds_jinja_function;
struct ds_jinja_loop;

struct ds_jinja_value {
    enum ds_jinja_kind kind;
    union {
        bool truth;
        int64_t integer;
        double number;
        struct ds_jinja_list *list;
        struct ds_jinja_dict *dict;
        struct ds_jinja_function *function;
        struct ds_jinja_loop *loop;
    };
    struct ds_bytes text;
};

struct ds_jinja_list {
    struct ds_jinja_value *items;
    size_t n, room;
};

struct ds_jinja_dict { /* in order of insertion */
    struct ds_jinja_value *keys, *values;
    size_t n, room;
};

struct ds_jinja_loop { /* the variable `loop` */
    const struct ds_jinja_list *items;
    size_t index;                  /* from 0 */
    struct ds_jinja_value changed; /* what loop.changed() saw last */
};

struct ds_jinja_frame { /* one scope of variables */
    struct ds_jinja_frame *parent;
    struct ds_jinja_dict names; /* keys are strings */
    struct ds_jinja_loop *loop; /* the loop this scope is the body of */
};

struct ds_jinja_arguments {
    struct ds_jinja_value *values;
    size_t n;
    struct ds_bytes *names; /* of named_values */
    struct ds_jinja_value *named_values;
    size_t n_named;
};

struct ds_jinja_run;

struct ds_jinja_function {
    const char *name; /* of a global or method */
    struct ds_jinja_value (*call)(struct ds_jinja_run *run, struct ds_jinja_value self,
                                  const struct ds_jinja_arguments *arguments);
    struct ds_jinja_value self;        /* of a method */
    const struct ds_jinja_node *macro; /* else NULL; a MACRO or CALL_BLOCK */
    struct ds_jinja_frame *closure;    /* where the macro was defined */
};

struct ds_jinja_text { /* growing output */
    char *data;
    size_t size, room;
};

struct ds_jinja_tail { /* a text with room behind it */
    char *end;
    size_t size, room; /* bytes before and behind end */
};

#define DS_JINJA_TAILS 8

struct ds_jinja_run {
    struct ds_arena arena;
    struct ds_jinja_tail tails[DS_JINJA_TAILS]; /* the largest of late */
    int code;                                   /* 0 or the first failure */
    struct ds_error *error;
    uint64_t steps_left;
    uint64_t output_left; /* bytes that may yet be written anywhere */
    unsigned level, line;
    struct ds_jinja_frame *frame;
    struct ds_jinja_text *output;
    struct ds_jinja_value captured; /* text of the block whose filters are applied */
};

/* --- failing and paying --- */

/* Keeps code and "chat template, line N: ..." unless something failed before. Undefined. */
__attribute__((format(printf, 3, 4))) struct ds_jinja_value
ds_jinja_fail(struct ds_jinja_run *run, int code, const char *format, ...);
/* false: the run is over. */
bool ds_jinja_pay(struct ds_jinja_run *run, uint64_t steps);
/* Pays one step and goes one level down; each true needs one run->level--. */
bool ds_jinja_deeper(struct ds_jinja_run *run);
void *ds_jinja_memory(struct ds_jinja_run *run, size_t size); /* zeroed; NULL: the run is over */
void ds_jinja_write(struct ds_jinja_run *run, struct ds_bytes text);

/* --- making values --- */

struct ds_jinja_value ds_jinja_undefined(struct ds_bytes name);
struct ds_jinja_value ds_jinja_none(void);
struct ds_jinja_value ds_jinja_bool(bool truth);
struct ds_jinja_value ds_jinja_integer(int64_t integer);
struct ds_jinja_value ds_jinja_float(double number);
struct ds_jinja_value ds_jinja_string(struct ds_bytes text); /* borrowed */
struct ds_jinja_value ds_jinja_literal(const char *text);    /* borrowed */
struct ds_jinja_value ds_jinja_list(struct ds_jinja_run *run, enum ds_jinja_kind kind);
struct ds_jinja_value ds_jinja_dict(struct ds_jinja_run *run, enum ds_jinja_kind kind);
void ds_jinja_push(struct ds_jinja_run *run, struct ds_jinja_value list,
                   struct ds_jinja_value item);
void ds_jinja_put(struct ds_jinja_run *run, struct ds_jinja_dict *dict, struct ds_jinja_value key,
                  struct ds_jinja_value value);
/* NULL: not there. */
const struct ds_jinja_value *ds_jinja_get(struct ds_jinja_run *run,
                                          const struct ds_jinja_dict *dict, struct ds_bytes key);
/* Joined text. Where nothing was joined to a before, and there is room behind it, in place. */
struct ds_bytes ds_jinja_join(struct ds_jinja_run *run, struct ds_bytes a, struct ds_bytes b);
struct ds_bytes ds_jinja_copy(struct ds_jinja_run *run, struct ds_bytes text);

/* --- what values are --- */

bool ds_jinja_is(const struct ds_bytes text, const char *word);
bool ds_jinja_truth(const struct ds_jinja_value *value);
bool ds_jinja_is_number(const struct ds_jinja_value *value); /* bool, int or float */
double ds_jinja_number(const struct ds_jinja_value *value);  /* of those */
bool ds_jinja_equal(struct ds_jinja_run *run, const struct ds_jinja_value *a,
                    const struct ds_jinja_value *b);
/* -1, 0, 1; fails where they cannot be ordered. */
int ds_jinja_order(struct ds_jinja_run *run, const struct ds_jinja_value *a,
                   const struct ds_jinja_value *b);
bool ds_jinja_contains(struct ds_jinja_run *run, const struct ds_jinja_value *in,
                       const struct ds_jinja_value *what);
/* As Python's str(): what `{{ }}` prints. */
struct ds_bytes ds_jinja_str(struct ds_jinja_run *run, const struct ds_jinja_value *value);
const char *ds_jinja_kind_name(const struct ds_jinja_value *value); /* Python's: "dict", ... */
/* Everything a for loop would see, as a list. NULL: failed. */
const struct ds_jinja_list *ds_jinja_items(struct ds_jinja_run *run,
                                           const struct ds_jinja_value *value);
/* Length as `|length` says; fails where there is none. */
int64_t ds_jinja_length(struct ds_jinja_run *run, const struct ds_jinja_value *value);
/* a.name and a[index]; undefined where there is none. */
struct ds_jinja_value ds_jinja_attribute(struct ds_jinja_run *run, struct ds_jinja_value of,
                                         struct ds_bytes name);
struct ds_jinja_value ds_jinja_item(struct ds_jinja_run *run, struct ds_jinja_value of,
                                    struct ds_jinja_value index);
/* "a.b.0": as the attribute= of filters says it. otherwise (may be NULL) stands in for what is not
 * there. */
struct ds_jinja_value ds_jinja_path(struct ds_jinja_run *run, struct ds_jinja_value of,
                                    struct ds_jinja_value path,
                                    const struct ds_jinja_value *otherwise);

/* --- JSON --- */

struct ds_jinja_json_style {
    int64_t indent; /* < 0: all on one line */
    struct ds_bytes item_separator, key_separator;
    bool ascii, sort_keys;
};

struct ds_bytes ds_jinja_to_json(struct ds_jinja_run *run, const struct ds_jinja_value *value,
                                 const struct ds_jinja_json_style *style);
/* Fails with -EINVAL, naming what. */
struct ds_jinja_value ds_jinja_from_json(struct ds_jinja_run *run, struct ds_bytes json,
                                         const char *what);
struct ds_bytes ds_jinja_format_float(struct ds_jinja_run *run, double number); /* as repr() */

/* --- running --- */

struct ds_jinja_value ds_jinja_eval(struct ds_jinja_run *run, const struct ds_jinja_node *node);
struct ds_jinja_value ds_jinja_binary(struct ds_jinja_run *run, enum ds_jinja_operator op,
                                      const struct ds_jinja_value *a,
                                      const struct ds_jinja_value *b);
/* Arguments of a CALL, FILTER or TEST node. */
struct ds_jinja_arguments ds_jinja_arguments(struct ds_jinja_run *run,
                                             const struct ds_jinja_node *node);
/* Argument by place or name; otherwise missing. */
struct ds_jinja_value ds_jinja_argument(const struct ds_jinja_arguments *arguments, size_t at,
                                        const char *name, struct ds_jinja_value missing);
/* Its text and number; fails on another kind. */
struct ds_bytes ds_jinja_argument_text(struct ds_jinja_run *run,
                                       const struct ds_jinja_arguments *arguments, size_t at,
                                       const char *name, const char *missing);
int64_t ds_jinja_argument_integer(struct ds_jinja_run *run,
                                  const struct ds_jinja_arguments *arguments, size_t at,
                                  const char *name, int64_t missing);

struct ds_jinja_value ds_jinja_call(struct ds_jinja_run *run, struct ds_jinja_value callee,
                                    const struct ds_jinja_arguments *arguments);
struct ds_jinja_value ds_jinja_filter(struct ds_jinja_run *run, struct ds_bytes name,
                                      struct ds_jinja_value input,
                                      const struct ds_jinja_arguments *arguments);
bool ds_jinja_test(struct ds_jinja_run *run, struct ds_bytes name, struct ds_jinja_value input,
                   const struct ds_jinja_arguments *arguments);
/* A bound method of that name, undefined where value has none. */
struct ds_jinja_value ds_jinja_method(struct ds_jinja_run *run, struct ds_jinja_value value,
                                      struct ds_bytes name);
/* range, namespace, ...: undefined where there is none of that name. */
struct ds_jinja_value ds_jinja_global(struct ds_jinja_run *run, struct ds_bytes name);

/* Functions of one kind of table: ends with a NULL name. */
struct ds_jinja_entry {
    const char *name;
    struct ds_jinja_value (*call)(struct ds_jinja_run *run, struct ds_jinja_value self,
                                  const struct ds_jinja_arguments *arguments);
};
extern const struct ds_jinja_entry ds_jinja_list_filters[];
extern const struct ds_jinja_entry ds_jinja_string_methods[];

void ds_jinja_set(struct ds_jinja_run *run, struct ds_jinja_frame *frame, struct ds_bytes name,
                  struct ds_jinja_value value);
struct ds_jinja_frame *ds_jinja_scope(struct ds_jinja_run *run, struct ds_jinja_frame *parent);
/* Runs a list of statements with its own output; the text. */
struct ds_jinja_value ds_jinja_capture(struct ds_jinja_run *run, const struct ds_jinja_node *body);
void ds_jinja_run_template(struct ds_jinja_run *run, const struct ds_jinja_node *group);
/* Unpacks value into a target node: name, tuple of names, name.attribute. */
void ds_jinja_assign(struct ds_jinja_run *run, const struct ds_jinja_node *target,
                     struct ds_jinja_value value);
