/* SPDX-License-Identifier: Apache-2.0 */
/*
 * detokenizer.h - one answer's tokens to text, as they come.
 *
 * Emits whole UTF-8 characters only, and never any part of a stop string: the longest suffix that
 * could still become one is held back. What has been emitted after k tokens is a function of those
 * k tokens alone, so an answer can be resumed by pushing the tokens that were delivered before.
 * Bytes that are no UTF-8 become U+FFFD, one for each maximal subpart (Unicode 15, section 3.9).
 * Of several stop strings the one that is complete first counts, and of those complete at once the
 * longest. An empty stop string, or one that is not UTF-8, never matches.
 *
 * Text goes on from what precedes it: SPM's first space stays. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/text/tokenizer.h"

struct ds_detokenizer;

/* stops are copied. skip_control: control tokens give no text. -EINVAL: more than
 * DS_STOP_STRINGS_MAX stops, or one longer than DS_STOP_BYTES_MAX; -ENOMEM. */
int ds_detokenizer_new(struct ds_detokenizer **ret_detokenizer,
                       const struct ds_tokenizer *tokenizer, const struct ds_bytes *stops,
                       unsigned n_stops, bool skip_control);
struct ds_detokenizer *ds_detokenizer_free(struct ds_detokenizer *detokenizer);
void ds_detokenizer_free_p(struct ds_detokenizer **detokenizer);

enum { DS_DETOKENIZER_GO_ON, DS_DETOKENIZER_STOPPED };

/* *ret_text: text that became certain, borrowed until the next call. DS_DETOKENIZER_STOPPED: a stop
 * string is complete (ds_detokenizer_stop() says which); the text before it has been emitted,
 * and nothing follows. -ENOMEM: nothing was pushed. */
int ds_detokenizer_push(struct ds_detokenizer *detokenizer, uint32_t id, struct ds_bytes *ret_text);

/* The answer ends without a stop string: what was held back; an incomplete character becomes
 * U+FFFD. Empty after a stop. 0 or -ENOMEM. */
int ds_detokenizer_finish(struct ds_detokenizer *detokenizer, struct ds_bytes *ret_text);

int ds_detokenizer_stop(
    const struct ds_detokenizer *detokenizer); /* index of the stop string, -1 */
