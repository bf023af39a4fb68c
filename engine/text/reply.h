/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reply.h - what a chat model writes, taken apart: its reasoning, its answer, its calls of tools.
 *
 *   <think>\n first, ... \n</think>\n\n It is mild. \n<tool_call>\n{"name": ...}\n</tool_call>
 *   |MARKUP |REASONING  |MARKUP       |CONTENT     |MU|TOOL_CALL                            |
 *
 * Reads the text as it comes and says of every byte what it is a part of, as soon as that is
 * certain: what could still become a tag is held back, with white space before it. What has been
 * said after n bytes is a function of those n bytes, in whatever pieces they came, so an answer can
 * be resumed. A part is called a TOOL_CALL for its looks; only the message at the end knows whether
 * it was one: a call that is cut off or no JSON is content, never an error.
 *
 * Forms of calls, after the models' own templates:
 *   Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
 *   DeepSeek       calls between tool-calls-begin and -end, each "function" SEP NAME and fenced
 * JSON (V3, R1), or NAME SEP JSON (V3.1) Llama 3        the whole answer is {"name": ...,
 * "parameters": {...}}, several of them parted by
 *                  ";", or follows <|python_tag|>, also as NAME.call(KEY=VALUE, ...)
 *
 * One thread at a time.
 */
#pragma once

#include <stdbool.h>

#include "engine/format/checkpoint.h"

enum ds_part { DS_PART_CONTENT, DS_PART_REASONING, DS_PART_TOOL_CALL, DS_PART_MARKUP };

enum ds_tool_form { DS_TOOLS_NONE, DS_TOOLS_HERMES, DS_TOOLS_DEEPSEEK, DS_TOOLS_LLAMA };

/* How a model writes. */
struct ds_reply_form {
    bool reasons; /* it can open its answer with <think> */
    enum ds_tool_form tools;
};

/* From the model's template, and from its tokens where that says nothing. */
struct ds_reply_form ds_reply_form_of(const struct ds_vocab *vocab);

/* Does this prompt leave the model inside its reasoning? */
bool ds_reply_opened_by(struct ds_bytes prompt);

struct ds_tool_call {
    char *name;                /* NUL-terminated */
    struct ds_bytes arguments; /* a JSON object, as the model wrote it */
};

struct ds_reply_message { /* owned by the reply */
    struct ds_bytes reasoning, content;
    const struct ds_tool_call *calls;
    size_t n_calls;
};

struct ds_reply;

/* form.tools NONE: calls are not looked for (the request gave no tools). opened: the prompt has
 * opened the reasoning. -ENOMEM. */
int ds_reply_new(struct ds_reply **ret_reply, struct ds_reply_form form, bool opened);
struct ds_reply *ds_reply_free(struct ds_reply *reply);
void ds_reply_free_p(struct ds_reply **reply);

/* The text goes on. shown false: by the name of a control token, which is no part of the text that
 * anybody sees. -ENOMEM. */
int ds_reply_feed(struct ds_reply *reply, struct ds_bytes text, bool shown);

/* The text has ended: nothing is held back any more. -ENOMEM. */
int ds_reply_end(struct ds_reply *reply);

/* Shown text that has become certain since the last call, and its parts: n_parts times
 * size << 2 | enum ds_part. Borrowed until the call of this after the next one. -ENOMEM. */
int ds_reply_take(struct ds_reply *reply, struct ds_bytes *ret_text, const uint32_t **ret_parts,
                  size_t *ret_n_parts);

/* After ds_reply_end(). -ENOMEM. */
int ds_reply_message(struct ds_reply *reply, struct ds_reply_message *ret_message);
