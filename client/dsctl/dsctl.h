/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dsctl.h - what the verbs of dsctl share: options, one connection, errors, exit codes.
 *
 * A verb is one function and the table of its options; main.c finds it, options.c parses for it
 * and prints its usage. Functions that return "an exit code" have said everything there is to say
 * on stderr (one line `dsctl: ...`) before they return anything but DSCTL_OK. Nothing here exits.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "client/ds.h"
#include "proto/message.h"

enum dsctl_exit {
    DSCTL_OK = 0,
    DSCTL_ERROR = 1,
    DSCTL_USAGE = 2,
    DSCTL_ABSENT = 69, /* EX_UNAVAILABLE: no daemon there */
    DSCTL_BUSY = 75,   /* EX_TEMPFAIL: try again later */
    DSCTL_INTERRUPTED = 130,
};

struct dsctl_verb;

struct dsctl {
    const struct dsctl_verb *verb;
    const char *socket; /* --socket or NULL */
    bool json;          /* --json */
    bool help;          /* --help */
    bool statistics;    /* --stats: of an answer, on stderr */
    bool out_terminal;  /* stdout is one */
    bool err_terminal;  /* stderr is one: progress may be drawn */
    struct ds *ds;
    int signal_fd; /* of dsctl_catch_signals(), else -1 */
    bool progress_drawn;
    bool never_spin; /* the connection is to sleep whenever it waits */
};

/* Positions that --ctx takes. */
enum { DSCTL_CTX_MIN = 2, DSCTL_CTX_MAX = 1 << 28 };

struct dsctl_option {
    const char *name;     /* long form without dashes; NULL ends the table */
    const char *argument; /* what it takes, for the usage; NULL: nothing */
    const char *help;
    int key; /* letter of the short form, or any value from 256 on where there is none */
};

struct dsctl_verb {
    const char *name;
    const char *operands; /* for the usage: "MODEL [PROMPT...]" */
    const char *summary;
    const struct dsctl_option *options;
    int min_operands, max_operands; /* max -1: any number */
    /* Parses with dsctl_options() first. An exit code. */
    int (*run)(struct dsctl *dsctl, int argc, char **argv);
};

/* --- options.c --- */

/* Called for each option with target; value NULL where it takes none. 0 or DSCTL_USAGE. */
typedef int (*dsctl_take)(void *target, int key, const char *value);

/* argv[0] is the verb. Handles --json, --socket, --help itself; checks the number of operands.
 * *ret_first: index of the first operand. An exit code; help wanted: DSCTL_OK and dsctl->help. */
int dsctl_options(struct dsctl *dsctl, int argc, char **argv, dsctl_take take, void *target,
                  int *ret_first);
void dsctl_usage(const struct dsctl_verb *verb, void *stream /* FILE */);

/* Whole numbers and decimals as option values. 0 or DSCTL_USAGE, with the line said. */
int dsctl_number(const char *what, const char *value, uint64_t min, uint64_t max, uint64_t *ret);
int dsctl_real(const char *what, const char *value, float *ret);

/* `dsctl: ...` on stderr, after wiping what progress has drawn; returns code. */
__attribute__((format(printf, 3, 4))) int dsctl_fail(struct dsctl *dsctl, int code,
                                                     const char *format, ...);

/* --- session.c --- */

/* Connects; input_bytes: how large the largest request will be. An exit code. */
int dsctl_connect(struct dsctl *dsctl, size_t input_bytes);
void dsctl_disconnect(struct dsctl *dsctl);

/* From now on SIGINT and SIGTERM end waits of dsctl_next() instead of the program. An exit code. */
int dsctl_catch_signals(struct dsctl *dsctl);

/* As ds_next(), without a limit of time. 0, DSCTL_SIGNAL, or an errno. */
#define DSCTL_SIGNAL 2
int dsctl_next(struct dsctl *dsctl, struct ds_event *ret_event);

/* One control request: sends it, shows progress, waits. On DSCTL_OK *ret_reply is to be freed with
 * ds_message_free(). An exit code. */
int dsctl_call(struct dsctl *dsctl, Ds__Request *request, Ds__Reply **ret_reply);

/* The same around one operation: request.op_case = op, part = its message. */
int dsctl_ask(struct dsctl *dsctl, Ds__Request__OpCase op, void *part, Ds__Reply **ret_reply);

/* What a failed ds_... call or a DS_EVENT_ERROR comes to. Exit codes. */
int dsctl_failed(struct dsctl *dsctl, int code);
int dsctl_event_failed(struct dsctl *dsctl, const struct ds_event *event);
const char *dsctl_error_name(uint32_t code);

/* --- model.c --- */

/* MODEL of the command line: a path to a file that is there, or a name. A file and its splits are
 * opened and attached. An exit code. */
struct dsctl_model {
    char name[256];      /* "" where attachment is used */
    uint64_t attachment; /* 0: name */
};
int dsctl_model_open(struct dsctl *dsctl, const char *argument, struct dsctl_model *ret_model);
void dsctl_model_ref(const struct dsctl_model *model, Ds__ModelRef *ret_ref);

/* --lora NAME[=SCALE]: a name or a path like MODEL. */
struct dsctl_lora {
    char argument[4096]; /* "": none */
    bool scale_said;
    float scale;
    struct dsctl_model files; /* once opened */
};
int dsctl_lora_take(struct dsctl_lora *lora, const char *value); /* 0 or DSCTL_USAGE */
int dsctl_lora_ref(struct dsctl *dsctl, struct dsctl_lora *lora, Ds__LoraRef *ret_ref);

/* Pure: is NAME-00002-of-00005.gguf part of a split? *ret_stem: length of NAME. */
bool dsctl_split_name(const char *path, unsigned *ret_count, size_t *ret_stem);

/* --- input.c --- */

/* All of a file ("-": stdin), or the operands joined by blanks, or stdin where there are none and
 * it is no terminal. *ret_text: fresh, NUL-terminated. Exit codes. */
int dsctl_read_file(struct dsctl *dsctl, const char *path, char **ret_text, size_t *ret_size);
int dsctl_read_text(struct dsctl *dsctl, int argc, char **argv, const char *what, char **ret_text,
                    size_t *ret_size);

/* "1 2,3" to ids. *ret_ids: fresh. False: something else is in it, *ret_bad points there. */
bool dsctl_parse_ids(const char *text, uint32_t **ret_ids, size_t *ret_n_ids, const char **ret_bad);

/* --- progress.c --- */
void dsctl_progress(struct dsctl *dsctl, const char *stage, double fraction);
void dsctl_progress_wipe(struct dsctl *dsctl);

/* --- printable.c --- */
/* To stdout: bytes as they are; on a terminal as dsctl_print_harmless() does. */
void dsctl_print(const struct dsctl *dsctl, const void *bytes, size_t size);
/* Control characters but newline and tab become U+FFFD, carriage returns nothing. The UTF-8 of one
 * character must not be cut. */
void dsctl_print_harmless(FILE *out, const void *bytes, size_t size);

/* --- table.c: aligned columns on stdout --- */
struct dsctl_table;
struct dsctl_table *dsctl_table_new(unsigned n_columns, const char *const *titles);
/* Copies text into the next cell. right: align it to the right. */
__attribute__((format(printf, 3, 4))) void dsctl_cell(struct dsctl_table *table, bool right,
                                                      const char *format, ...);
void dsctl_table_print(struct dsctl_table *table); /* and frees it */
/* "98.4 MB" into buffer, which is returned. */
const char *dsctl_bytes(char buffer[32], uint64_t bytes);
const char *dsctl_kv_type(Ds__KvType type); /* "Q8_0"; "-" where nothing is known */
/* "3 h 5 min" */
const char *dsctl_duration(char buffer[32], double seconds);
/* Bytes as a quoted, printable C-like string. */
const char *dsctl_quoted(char *buffer, size_t size, const void *bytes, size_t n_bytes);

/* --- the verbs --- */
extern const struct dsctl_verb dsctl_run, dsctl_chat, dsctl_load, dsctl_unload, dsctl_pin,
    dsctl_unpin, dsctl_ps, dsctl_list, dsctl_show, dsctl_verify, dsctl_tokenize, dsctl_detokenize,
    dsctl_template, dsctl_score, dsctl_lora_verb, dsctl_status, dsctl_requests, dsctl_cancel,
    dsctl_ping, dsctl_bench;
