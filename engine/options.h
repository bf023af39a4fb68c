/* SPDX-License-Identifier: Apache-2.0 */
/*
 * options.h - what dsd tells its engine on the command line.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/base.h"

struct ds_engine_options {
    int link_fd;
    unsigned n_threads;      /* 0 = what affinity and cgroup quota allow */
    const char *isa;         /* NULL = the best there is; borrowed from argv */
    unsigned spin_usec;      /* compute threads spin this long before they sleep */
    const char *speculation; /* "off", "ngram", "mtp": for requests that leave it open */
    uint32_t step_usec;      /* most for a step that has decodes in it; 0 = DS_STEP_TWICE */
    uint64_t kv_bytes;       /* KV cache of a model; 0 = choose */
    uint32_t batch_tokens;   /* rows of one batch */
    uint32_t sequences;      /* running at once, for each model */
    bool sandbox;
};

enum {
    DS_OPTIONS_OK,
    DS_OPTIONS_HELP,    /* the person wants ds_engine_help */
    DS_OPTIONS_VERSION, /* ... or the version */
};

extern const char ds_engine_help[];

/* DS_OPTIONS_*, or -EINVAL with the reason in error. Call once per process (getopt). */
int ds_engine_options_parse(struct ds_engine_options *ret_options, int argc, char **argv,
                            struct ds_error *error);
