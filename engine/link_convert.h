/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_convert.h - what dsd asks for, in the engine's own words: messages to jobs and texts.
 *
 * Pure functions of their arguments: no channel, no threads, nothing kept. They run on the text
 * thread. The texts in error are meant for the person who asked.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"
#include "engine/serve/scheduler.h"
#include "engine/text/reply.h"
#include "engine/text/template.h"
#include "engine/text/tokenizer.h"
#include "proto/ds.pb-c.h"

/* What conversions need of a model. All borrowed; immutable, so any thread may read. */
struct ds_link_text {
    const char *name;
    const struct ds_tokenizer *tokenizer;
    const struct ds_template *tmpl; /* NULL: chat is not possible, template_reason says why */
    const char *template_reason;
    const struct ds_sampling_advice *advice;
    struct ds_reply_form form; /* how the model writes its replies */
};

/* Fields said in message (NULL: none), else the file's advice, else dsd's defaults. Without bias.
 * Values are judged by ds_sampling_check() later. */
void ds_convert_sampling(const Ds__Sampling *message, const struct ds_sampling_advice *advice,
                         struct ds_sampling *ret_sampling);

/* Input to token ids in fresh memory with room for extra more. A text or a rendered chat that opens
 * with the model's BOS text does not get a second one. -EINVAL, -ENOTSUP (chat without template),
 * -EBADMSG, -E2BIG, -ENOMEM. */
int ds_convert_input(const Ds__Input *input, const struct ds_link_text *text, size_t extra,
                     uint32_t **ret_ids, size_t *ret_n_ids, struct ds_error *error);

/* A LinkRequest with generate or score. The job is the caller's: ds_scheduler_add() or
 * ds_job_deinit(). deadline_nsec: of the ring entry, 0 = none; the earlier one holds. */
int ds_convert_job(const Ds__LinkRequest *request, const struct ds_link_text *text, uint64_t id,
                   uint64_t deadline_nsec, struct ds_job *ret_job, struct ds_error *error);

/* A LinkRequest with tokenize, detokenize or template: the packed LinkReply, fresh memory. */
int ds_convert_text(const Ds__LinkRequest *request, const struct ds_link_text *text,
                    void **ret_bytes, size_t *ret_size, struct ds_error *error);
