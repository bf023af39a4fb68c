/* SPDX-License-Identifier: Apache-2.0 */
/* tiny_vocab.h - the tokeniser keys of a tiny model; see tiny_model.h. */
#pragma once

#include "tests/lib/tiny_model.h"

void ds_tiny_vocab_write(struct ds_gguf_writer *writer, const struct ds_tiny_options *options);
