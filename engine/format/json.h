/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json.h - the JSON of Hugging Face folders: hostile text in, a bounded tree out.
 *
 * The tree is jansson's, which refuses duplicate keys, bad UTF-8, numbers beyond 64 bits and deep
 * nesting (JSON_PARSER_MAX_DEPTH). Here is added that memory is bounded by the text: each value
 * costs at most some hundred bytes, so the values are counted before the first one is made.
 */
#pragma once

#include <jansson.h>

#include "engine/format/checkpoint.h"

#define DS_JSON_BYTES_MAX  (128u << 20)
#define DS_JSON_VALUES_MAX (4u << 20)

/* One JSON document (an object or an array) and nothing behind it; json_decref() it. label names
 * the file in errors. NULL: failed; errno-style reason in *ret_r: -EBADMSG damaged, -ENOMEM. */
json_t *ds_json_parse(const char *bytes, size_t size, const char *label, int *ret_r,
                      struct ds_error *error);

/* The whole regular file behind fd (not more than DS_JSON_BYTES_MAX) as fresh memory with a NUL
 * behind it: free(). The file is read once, so that nobody can change it between check and use.
 * -EBADMSG: too large, or shorter than it says; -ENOMEM; negative errno of reading. */
int ds_file_read(int fd, const char *label, char **ret_bytes, size_t *ret_size,
                 struct ds_error *error);
