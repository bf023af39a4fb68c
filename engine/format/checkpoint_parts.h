/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint_parts.h - what the files of the checkpoint share; nobody else includes it.
 *
 * Opening goes: files (checkpoint.c) -> architecture and hyper-parameters (checkpoint_hyper.c,
 * checkpoint_experts.c) ->
 * vocabulary and advice (checkpoint_vocab.c) -> tensors -> printable keys (checkpoint_metadata.c).
 */
#pragma once

#include "engine/format/gguf.h"

#define DS_LAYERS_MAX     1024u
#define DS_WIDTH_MAX      (1u << 20) /* of any row of a matrix, and heads times head size */
#define DS_VOCABULARY_MAX (1u << 22) /* tokens, and merges */
#define DS_CONTEXT_MAX    (1u << 28) /* positions */

struct ds_checkpoint {
    char *name;
    struct ds_gguf *files; /* [n_files] in the order of split.no; of a folder one, with keys only */
    struct ds_hf *hf;      /* NULL: no folder */
    char **labels;         /* [n_files] names of the files for errors */
    unsigned n_files;
    bool vocab_only;
    char *architecture;
    struct ds_hyper hyper;
    struct ds_vocab vocab; /* arrays owned, contents in files[0]'s header */
    struct ds_sampling_advice advice;
    const struct ds_tensor **tensors; /* [n_tensors] in the files' order; point into files[] */
    const struct ds_tensor **by_name; /* [n_tensors] the same, sorted */
    unsigned n_tensors;
    struct ds_metadata *metadata; /* [files[0].n_keys]; values owned */
    uint64_t n_parameters;
    const char *main_type;
};

/* Typed keys of the first file. A missing key leaves *value as it is: put the default there before,
 * or demand it. -EINVAL names file, key and what was expected. */
struct ds_key_reader {
    const struct ds_gguf *gguf;
    struct ds_error *error;
};

int ds_key_u32(const struct ds_key_reader *reader, const char *name, bool required,
               uint32_t *value);
int ds_key_f32(const struct ds_key_reader *reader, const char *name, bool required, float *value);
int ds_key_flag(const struct ds_key_reader *reader, const char *name, int8_t *value);
int ds_key_bytes(const struct ds_key_reader *reader, const char *name, struct ds_bytes *value);
/* A key that may be one number for all layers or one for each; *ret_uniform tells whether all are
 * the same. */
int ds_key_layers(const struct ds_key_reader *reader, const char *name, bool required,
                  uint32_t *value, bool *ret_uniform);

int ds_checkpoint_read_hyper(struct ds_checkpoint *checkpoint, struct ds_error *error);
int ds_checkpoint_check_hyper(const struct ds_checkpoint *checkpoint, struct ds_error *error);
/* Of mixtures of experts; checkpoint_experts.c, called by the two above. */
int ds_checkpoint_read_experts(struct ds_checkpoint *checkpoint, struct ds_error *error);
int ds_checkpoint_check_experts(const struct ds_checkpoint *checkpoint, struct ds_error *error);
int ds_checkpoint_read_vocab(struct ds_checkpoint *checkpoint, struct ds_error *error);
int ds_checkpoint_read_metadata(struct ds_checkpoint *checkpoint, struct ds_error *error);
