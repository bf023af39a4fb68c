/* SPDX-License-Identifier: Apache-2.0 */
/* lora_parts.h - what the two readers of adapters share; nobody else includes it. */
#pragma once

#include "engine/format/gguf.h"
#include "engine/format/lora_file.h"

struct ds_lora_file {
    char *name;
    struct ds_gguf gguf; /* of a GGUF adapter */
    char architecture[65];
    float alpha;  /* GGUF: 0: not said, the scale is 1 */
    bool hf_rows; /* PEFT: the rows of q and k in Hugging Face's order */
    struct ds_lora_pair *pairs;
    char **names; /* [n_pairs] owned: pairs[].name */
    void *
        *copies; /* [4 n_pairs] PEFT: owned: numbers of A and B, their tensors' names; else NULL */
    unsigned n_pairs;
};

/* Ranks that agree and are possible. -ENOTSUP, -EINVAL. */
int ds_lora_check_pair(const struct ds_lora_file *file, const struct ds_lora_pair *pair,
                       struct ds_error *error);

/* lora_peft.c: reads a folder's files into file, which has a name. */
int ds_lora_read_peft(struct ds_lora_file *file, const int *fds, const char *const *file_names,
                      unsigned n_fds, struct ds_error *error);
