/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#include <sys/random.h>

int ds_client_buffer_reserve(struct ds_client_buffer *buffer, size_t capacity)
{
    size_t grown = buffer->capacity ? buffer->capacity : 64;
    uint8_t *bytes;

    if (capacity <= buffer->capacity)
        return 0;
    while (grown < capacity)
        grown *= 2;
    bytes = realloc(buffer->bytes, grown);
    if (!bytes)
        return -ENOMEM;
    buffer->bytes = bytes;
    buffer->capacity = grown;
    return 0;
}

int ds_client_buffer_append(struct ds_client_buffer *buffer, const void *bytes, size_t size)
{
    int r = ds_client_buffer_reserve(buffer, buffer->size + size);

    if (r < 0)
        return r;
    if (size)
        memcpy(buffer->bytes + buffer->size, bytes, size);
    buffer->size += size;
    return 0;
}

void ds_client_buffer_deinit(struct ds_client_buffer *buffer)
{
    free(buffer->bytes);
    *buffer = (struct ds_client_buffer){ 0 };
}

int ds_client_random(void *bytes, size_t size)
{
    size_t filled = 0;

    while (filled < size) {
        ssize_t n = getrandom((uint8_t *) bytes + filled, size - filled, 0);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            filled += (size_t) n;
    }
    return 0;
}
