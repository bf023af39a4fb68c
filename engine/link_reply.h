/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_reply.h - what the engine found out, in dsd's words: outputs, results and errors packed.
 *
 * Pure functions of their arguments. Fresh memory is freed with free().
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"
#include "engine/serve/scheduler.h"
#include "engine/text/tokenizer.h"
#include "proto/ds.pb-c.h"

/* A growing LinkStep: packed records, one after the other. Zeroed memory is an empty one. */
struct ds_step_bytes {
    uint8_t *bytes; /* owned */
    size_t size, capacity;
};

/* Bytes one record of output takes in a LinkStep; appending it. record is what
 * ds_reply_tokens_new() made. -ENOMEM. */
int ds_step_append(struct ds_step_bytes *step, const Ds__LinkTokens *record);
size_t ds_step_size(const Ds__LinkTokens *record);

/* output as a record. It borrows from output and tokenizer, and is one allocation: free(). -ENOMEM.
 */
int ds_reply_tokens_new(const struct ds_output *output, const struct ds_tokenizer *tokenizer,
                        Ds__LinkTokens **ret_record);

/* The packed LinkReply of a finished score. */
int ds_reply_score(const struct ds_output *output, const struct ds_tokenizer *tokenizer,
                   void **ret_bytes, size_t *ret_size);

/* The packed LinkReply{generate{cancelled}}: how every cancelled request that is no generation
 * ends. */
int ds_reply_cancelled(void **ret_bytes, size_t *ret_size);

/* The packed LinkReply{done}. */
int ds_reply_done(void **ret_bytes, size_t *ret_size);

/* The packed LinkReply{limits}. */
int ds_reply_limits(const struct ds_limits *limits, const struct ds_model_cost *cost,
                    void **ret_bytes, size_t *ret_size);

/* The packed LinkReply of an inspect_only load; verification may be NULL. */
int ds_reply_show(const struct ds_checkpoint *checkpoint, bool tensors, Ds__ModelInfo *info,
                  Ds__Verification *verification, void **ret_bytes, size_t *ret_size);

/* The packed Progress. */
int ds_reply_progress(const char *stage, double fraction, void **ret_bytes, size_t *ret_size);

/* What failed decides what an errno means. */
enum ds_reply_phase { DS_REPLY_LOAD, DS_REPLY_REQUEST };
Ds__Error__Code ds_reply_error_code(enum ds_reply_phase phase, int r);

/* The packed Error. */
int ds_reply_error(Ds__Error__Code code, const char *text, void **ret_bytes, size_t *ret_size);
