/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hf_folder.h - writes the tokenizer.json that a vocabulary would have come from.
 *
 * Tests compare what is read back with the vocabulary itself.
 */
#pragma once

#include <stdbool.h>

#include "engine/format/checkpoint.h"

/* JSON text of the tokeniser: fresh memory, free(). BPE needs a vocab->pre that Hugging Face's
 * files can say; SPM gets the merges that its scores stand for. pairs: merges as ["a", "b"], not "a
 * b". n_listed: tokens from this id on are not written. */
char *ds_hf_tokenizer_json(const struct ds_vocab *vocab, bool pairs, uint32_t n_listed,
                           size_t *ret_size);
