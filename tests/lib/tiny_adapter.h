/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tiny_adapter.h - random LoRA adapters for any F32 GGUF, and the same GGUF with one merged in.
 *
 * The merged file is the oracle for what a model does with an adapter: W + scale B A, computed in
 * double from the adapter's file alone. The same options give the same bytes. Failures end the test
 * (cmocka asserts).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tests/lib/gguf_writer.h"

struct ds_tiny_adapter {
    uint64_t seed;
    uint32_t rank;
    float alpha;              /* 0: not said */
    uint32_t type;            /* of A and B; where rows are no whole blocks: F32 */
    unsigned every;           /* matrices with one: each, each second, ...; 0 is 1 */
    bool embedding;           /* token_embd.weight and output.weight too, where the file has both */
    const char *skip;         /* no pair for names that contain this; NULL: none is left out */
    const char *architecture; /* NULL: the base's */
};

/* Into a writer of the caller's, who may add to it: keys and pairs for the matrices of base_fd. */
void ds_tiny_adapter_write(struct ds_gguf_writer *writer, int base_fd,
                           const struct ds_tiny_adapter *options);

/* A memfd holding the adapter. */
int ds_tiny_adapter_fd(int base_fd, const struct ds_tiny_adapter *options);

/* The same adapter as PEFT would have saved it, of F32: adapter_model.safetensors as a memfd. For a
 * llama GGUF the rows of q and k stand in Hugging Face's order. extra: a further tensor of one
 * number with this name; NULL: none. */
int ds_tiny_peft_fd(int base_fd, const struct ds_tiny_adapter *options, const char *extra);

/* A memfd holding base_fd's file with scale times the adapter's matrices added to its own. */
int ds_tiny_adapter_merge(int base_fd, int adapter_fd, float scale);
