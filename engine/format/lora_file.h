/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lora_file.h - one LoRA adapter's files: which matrices it changes, and by what.
 *
 *      W' = W + scale B A        A {K, r}: r rows of K    B {r, N}: N rows of r    scale = alpha /
 * r
 *
 * The one matrix whose columns are tokens, token_embd.weight, is kept the other way round, as
 * llama.cpp's converter writes it: A {r, n_vocab} has a row for each token.
 *
 * A GGUF adapter has general.type "adapter", adapter.type "lora", adapter.lora.alpha and tensors
 * NAME.lora_a, NAME.lora_b, where NAME is the base matrix. A PEFT adapter is a folder with
 * adapter_config.json and adapter_model.safetensors; its tensors are given GGUF's names here. The
 * files are hostile and every length is checked. What this build cannot apply is refused by its
 * name, never left out. Sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA); llama.cpp
 * convert_lora_to_gguf.py; peft.
 */
#pragma once

#include "engine/format/checkpoint.h"

#define DS_LORA_RANK_MAX 4096u

struct ds_lora_pair {
    const char *name; /* of the base matrix: "blk.3.attn_q.weight" */
    struct ds_tensor a, b;
    float scale; /* before the one the request says */
};

struct ds_lora_file;

/* fds stay the caller's; file_names: as checkpoint.h has them, NULL for a GGUF file; name is for
 * error texts. -EBADMSG damaged; -EINVAL no adapter, or a
 * contradiction; -ENOTSUP a kind of adapter this build has not; -ENOMEM, -EIO. */
int ds_lora_file_open(struct ds_lora_file **ret_file, const int *fds, const char *const *file_names,
                      unsigned n_fds, const char *name, struct ds_error *error);
/* As ds_checkpoint_intact(). */
int ds_lora_file_intact(const struct ds_lora_file *file, struct ds_error *error);
struct ds_lora_file *ds_lora_file_free(struct ds_lora_file *file); /* accepts NULL */
void ds_lora_file_free_p(struct ds_lora_file **file);

const char *ds_lora_file_name(const struct ds_lora_file *file);
/* Of the base model, "" where the adapter does not say. */
const char *ds_lora_file_architecture(const struct ds_lora_file *file);
/* Are the rows of q and k in the order of Hugging Face's files? A llama GGUF has others:
 * each head's first half and second half alternate there. */
bool ds_lora_file_hf_rows(const struct ds_lora_file *file);
/* Every name once. */
const struct ds_lora_pair *ds_lora_file_pairs(const struct ds_lora_file *file, unsigned *ret_n);
