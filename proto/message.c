/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message.c - protobuf-c on a block of fixed size.
 *
 * protobuf-c allocates the message itself first and everything it points to afterwards, and would
 * free piece by piece with the same allocator. Here allocation bumps a cursor through one block
 * and freeing does nothing, so that
 *
 *   - what a message may cost is decided before its first byte is looked at;
 *   - a parser that frees twice or too early (merging of repeated submessages, replaced oneof
 *     members) cannot hurt;
 *   - the message's address is the block's address, and freeing it is one free().
 *
 * Depth needs no counter: the parser descends only along the fields of the schema, which is not
 * recursive (a test holds it to that); groups and unknown fields are never descended into.
 */
#include "proto/message.h"

#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>

#include "proto/base.h"

struct arena {
    uint8_t *block;
    size_t size;
    size_t used;
    bool exhausted;
};

/* What is allocated is a structure, an array or a string, so its alignment divides its size: the
 * largest power of two in the size is enough, and strings pack tightly. */
static size_t alignment_of(size_t size)
{
    size_t power = size & -size;

    return power > alignof(max_align_t) ? alignof(max_align_t) : power;
}

static void *arena_alloc(void *data, size_t size)
{
    struct arena *arena = data;
    size_t align, start;

    if (size == 0)
        size = 1;
    align = alignment_of(size);
    start = (arena->used + align - 1) & ~(align - 1);
    if (start > arena->size || size > arena->size - start) {
        arena->exhausted = true;
        return NULL;
    }
    arena->used = start + size;
    return arena->block + start;
}

static void arena_free(void *data, void *p)
{
    (void) data;
    (void) p;
}

static size_t block_size(const ProtobufCMessageDescriptor *descriptor, size_t size)
{
    size_t block = DS_UNPACK_FACTOR_MAX * size + DS_UNPACK_SLACK_BYTES;

    if (block > DS_UNPACK_BYTES_MAX)
        block = DS_UNPACK_BYTES_MAX;
    assert(descriptor->sizeof_message <= DS_UNPACK_SLACK_BYTES);
    return block;
}

int ds_message_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes, size_t size,
                      void *ret_message)
{
    ds_cleanup(ds_free_p) void *block = NULL;
    struct arena arena = { 0 };
    ProtobufCAllocator allocator = { arena_alloc, arena_free, &arena };
    ProtobufCMessage *message;

    if (size > DS_PAYLOAD_BYTES_MAX)
        return -EMSGSIZE;
    arena.size = block_size(descriptor, size);
    block = malloc(arena.size);
    if (!block)
        return -ENOMEM;
    arena.block = block;

    message = protobuf_c_message_unpack(descriptor, &allocator, size, bytes);
    if (!message)
        return arena.exhausted ? -EMSGSIZE : -EBADMSG;
    assert((void *) message == block);
    *(void **) ret_message = ds_steal(block);
    return 0;
}

void ds_message_free(void *message)
{
    free(message);
}

void ds_message_free_p(void *message)
{
    free(*(void **) message);
}

size_t ds_message_size(const void *message)
{
    return protobuf_c_message_get_packed_size(message);
}

int ds_message_pack(const void *message, void *buffer, size_t capacity, size_t *ret_size)
{
    size_t size = ds_message_size(message);

    if (size > capacity)
        return -EMSGSIZE;
    *ret_size = protobuf_c_message_pack(message, buffer);
    return 0;
}

int ds_message_pack_new(const void *message, void **ret_bytes, size_t *ret_size)
{
    size_t size = ds_message_size(message);
    void *bytes = malloc(size ? size : 1);

    if (!bytes)
        return -ENOMEM;
    *ret_size = protobuf_c_message_pack(message, bytes);
    *ret_bytes = bytes;
    return 0;
}
