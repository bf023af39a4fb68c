/* SPDX-License-Identifier: Apache-2.0 */
/*
 * detokenizer.h - one answer's tokens to text, as they come.
 *
 * Emits whole UTF-8 characters only, and never any part of a stop string: the longest suffix that
 * could still become one is held back. What has been emitted after k tokens is a function of those
 * k tokens alone, so an answer can be resumed by pushing the tokens that were delivered before.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/text/tokenizer.h"

struct ds_detokenizer;

/* stops are copied. skip_control: control tokens give no text. -ENOMEM. */
int ds_detokenizer_new(struct ds_detokenizer **ret_detokenizer,
                       const struct ds_tokenizer *tokenizer, const struct ds_bytes *stops,
                       unsigned n_stops, bool skip_control);
struct ds_detokenizer *ds_detokenizer_free(struct ds_detokenizer *detokenizer);

enum { DS_DETOKENIZER_GO_ON, DS_DETOKENIZER_STOPPED };

/* *ret_text: text that became certain, borrowed until the next call. DS_DETOKENIZER_STOPPED: a stop
 * string is complete (ds_detokenizer_stop() says which); the text before it has been emitted.
 * -ENOMEM. */
int ds_detokenizer_push(struct ds_detokenizer *detokenizer, uint32_t id, struct ds_bytes *ret_text);

/* The answer ends without a stop string: what was held back; an incomplete character becomes
 * U+FFFD. */
int ds_detokenizer_finish(struct ds_detokenizer *detokenizer, struct ds_bytes *ret_text);

int ds_detokenizer_stop(
    const struct ds_detokenizer *detokenizer); /* index of the stop string, -1 */
