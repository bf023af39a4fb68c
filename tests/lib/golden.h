/* SPDX-License-Identifier: Apache-2.0 */
/*
 * golden.h - where the golden data and the default model are, and a reader of .golden files.
 *
 * Both may be missing: then a test prints `skip: golden data not found at PATH: WHAT is not
 * checked` (ds_golden_skip() does) and goes on with what it makes itself.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The folder ($DSD_GOLDEN, else ../shared/golden seen from the repository), NULL where there is
 * none. Static memory. */
const char *ds_golden_path(void);

/* Where it was looked for, and the line that says what is not checked. */
const char *ds_golden_where(void);
void ds_golden_skip(const char *what);

/* ds_golden_path()/relative as fresh memory: free(). NULL where the folder or the file is missing.
 */
char *ds_golden_file(const char *relative);

/* The whole file with a NUL added: free(). NULL where it cannot be read. */
char *ds_golden_read(const char *path, size_t *ret_size);

/* SmolLM2-135M-Instruct.Q4_1.gguf in $DSD_MODELS, else in ${XDG_CACHE_HOME:-~/.cache}/dsd/models.
 * Static memory; NULL where the file is missing. */
const char *ds_default_model_path(void);

struct ds_golden_prompt {
    uint32_t *ids; /* the prompt; nothing is to be added */
    size_t n_ids;
    double nll; /* over ids 1..n-1 */
    uint32_t top_ids[8];
    double top_logprobs[8];
    size_t n_top;
    uint32_t *greedy; /* argmax continuation */
    size_t n_greedy;
    double *gaps; /* best minus second-best logit at each greedy step */
    size_t n_gaps;
};

struct ds_golden {
    char *gguf[4]; /* full paths of the forms of the model */
    size_t n_gguf;
    char *hf; /* full path of the folder of the same numbers; NULL where there is none */
    uint32_t n_vocab;
    double tol_logprob, tol_nll;           /* nll per predicted token */
    double tol_logprob_int8, tol_nll_int8; /* 0 where not given */
    double llamacpp_dev[2], llamacpp_rms;  /* 0 where not given */
    struct ds_golden_prompt *prompts;
    size_t n_prompts;
};

/* NULL where the file cannot be read or makes no sense (said on stderr). */
struct ds_golden *ds_golden_load(const char *path);
struct ds_golden *ds_golden_free(struct ds_golden *golden);
