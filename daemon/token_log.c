/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/token_log.h"

#include "proto/base.h"

void ds_token_log_deinit(struct ds_token_log *log)
{
    for (uint32_t i = 0; i < log->n_records; i++)
        free(log->records[i].message);
    free(log->ids);
    free(log->text);
    free(log->records);
    *log = (struct ds_token_log){ 0 };
}

/* Room for n more elements of width bytes. */
static int reserve(void *array, uint32_t used, uint32_t *size, size_t n, size_t width)
{
    void **at = array, *grown;
    size_t wanted = *size ? *size : 64;

    while (wanted < used + n)
        wanted *= 2;
    if (wanted * width > DS_TOKEN_LOG_BYTES_MAX)
        return -EFBIG;
    if (wanted == *size)
        return 0;
    grown = realloc(*at, wanted * width);
    if (!grown)
        return -ENOMEM;
    *at = grown;
    *size = (uint32_t) wanted;
    return 0;
}

int ds_token_log_append(struct ds_token_log *log, const uint32_t *ids, size_t n_ids,
                        const void *text, size_t text_size, void *message, size_t message_size)
{
    ds_cleanup(ds_free_p) void *owned = message;
    int r;

    if (n_ids > DS_TOKEN_LOG_BYTES_MAX || text_size > DS_TOKEN_LOG_BYTES_MAX ||
        log->message_bytes + message_size > DS_TOKEN_LOG_BYTES_MAX)
        return -EFBIG;
    r = reserve(&log->ids, log->n_ids, &log->ids_size, n_ids, sizeof(*log->ids));
    if (r == 0)
        r = reserve(&log->text, log->n_text, &log->text_size, text_size, 1);
    if (r == 0)
        r = reserve(&log->records, log->n_records, &log->records_size, 1, sizeof(*log->records));
    if (r < 0)
        return r;
    if (n_ids)
        memcpy(log->ids + log->n_ids, ids, n_ids * sizeof(*ids));
    if (text_size)
        memcpy(log->text + log->n_text, text, text_size);
    log->n_ids += (uint32_t) n_ids;
    log->n_text += (uint32_t) text_size;
    log->message_bytes += message_size;
    log->records[log->n_records++] = (struct ds_token_record){ .ids_end = log->n_ids,
                                                               .text_end = log->n_text,
                                                               .message = ds_steal(owned),
                                                               .message_size = message_size };
    return 0;
}

int ds_token_log_find(const struct ds_token_log *log, uint32_t n_ids, uint32_t *ret_record)
{
    uint32_t low = 0, high = log->n_records;

    while (low < high) { /* first record that ends after n_ids */
        uint32_t middle = low + (high - low) / 2;

        if (log->records[middle].ids_end > n_ids)
            high = middle;
        else
            low = middle + 1;
    }
    if (ds_token_log_ids_start(log, low) != n_ids)
        return -EINVAL;
    *ret_record = low;
    return 0;
}

size_t ds_token_log_bytes(const struct ds_token_log *log)
{
    return log->ids_size * sizeof(*log->ids) + log->text_size +
           log->records_size * sizeof(*log->records) + log->message_bytes;
}
