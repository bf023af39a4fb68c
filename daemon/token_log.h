/* SPDX-License-Identifier: Apache-2.0 */
/*
 * token_log.h - what one request has yielded so far: the replay log, and what is still to deliver.
 *
 * Records keep the cuts the engine made: a record's text belongs to its ids as a whole, so delivery
 * and resumption happen at record ends only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DS_TOKEN_LOG_BYTES_MAX (128u << 20)

struct ds_token_record {
    uint32_t ids_end, text_end; /* ends in ids and text; starts are the previous record's */
    void *message;              /* packed TokenChunk where there are log-probabilities, else NULL */
    size_t message_size;
};

struct ds_token_log { /* zero = empty */
    uint32_t *ids;
    char *text;
    struct ds_token_record *records;
    uint32_t n_ids, ids_size;
    uint32_t n_text, text_size;
    uint32_t n_records, records_size;
    size_t message_bytes;
};

void ds_token_log_deinit(struct ds_token_log *log);

/* Appends one record; takes message (malloc), even when it fails. -ENOMEM; -EFBIG: beyond
 * DS_TOKEN_LOG_BYTES_MAX. */
int ds_token_log_append(struct ds_token_log *log, const uint32_t *ids, size_t n_ids,
                        const void *text, size_t text_size, void *message, size_t message_size);

/* The first record after n_ids tokens, or -EINVAL where no record ends there. */
int ds_token_log_find(const struct ds_token_log *log, uint32_t n_ids, uint32_t *ret_record);

static inline uint32_t ds_token_log_ids_start(const struct ds_token_log *log, uint32_t record)
{
    return record ? log->records[record - 1].ids_end : 0;
}

static inline uint32_t ds_token_log_text_start(const struct ds_token_log *log, uint32_t record)
{
    return record ? log->records[record - 1].text_end : 0;
}

size_t ds_token_log_bytes(const struct ds_token_log *log);
