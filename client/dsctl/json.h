/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json.h - the JSON shapes of dsctl, one object a line on stdout.
 *
 * Text of a model is any bytes: what is no UTF-8 becomes U+FFFD, and a NUL \u0000.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "client/ds.h"
#include "proto/message.h"

/* Bytes of the well-formed character at in, of which size > 0 bytes are there; 0: none. */
size_t dsctl_utf8_length(const uint8_t *in, size_t size);

/* Bytes as a JSON string with its quotes: fresh memory, NULL without any. */
char *dsctl_json_quote(const void *bytes, size_t size);
void dsctl_json_text(cJSON *object, const char *name, const void *bytes, size_t size);
void dsctl_json_u64(cJSON *object, const char *name, uint64_t value);
void dsctl_json_ids(cJSON *object, const char *name, const uint32_t *ids, size_t n_ids);

/* Prints object on a line of its own and deletes it. */
void dsctl_json_print(cJSON *object);

/* Shapes that several verbs share. */
cJSON *dsctl_json_tokens(const uint32_t *ids, size_t n_ids, const char *text, size_t size);
/* "parts": [["reasoning", 5], ...] of a token event's text, sizes in bytes. */
void dsctl_json_parts(cJSON *object, const struct ds_event *event);
cJSON *dsctl_json_logprobs(const Ds__TokenChunk *chunk);
cJSON *dsctl_json_top(size_t n_top, Ds__TopToken *const *top);
cJSON *dsctl_json_final(const Ds__GenerateResult *result);
cJSON *dsctl_json_failed(const char *code, const char *text, uint32_t completion_tokens);
cJSON *dsctl_json_model(const Ds__ModelInfo *model);
const char *dsctl_reason_name(Ds__Reason reason);
