/* SPDX-License-Identifier: Apache-2.0 */
/*
 * submitter.c - requests out, completions in.
 *
 * The arena is a circle in which a payload never crosses the end: one that does not fit there
 * starts over at the beginning, and the gap belongs to it. Since the server gives entries back in
 * order, remembering for each entry how far the arena was handed out is all the bookkeeping.
 */
#include "proto/base.h"
#include "shm/channel.h"
#include "shm/channel_internal.h"

#define ARENA_ALIGN 64u

static int broken(struct ds_channel *channel)
{
    channel->broken = true;
    return -EPROTO;
}

/* --- requests --- */

static int full(struct ds_submitter *submitter)
{
    submitter->refused = true;
    submitter->refused_at = submitter->sq_head;
    return DS_CHANNEL_FULL;
}

/* Takes back what the server has given back (pairs with B in wire.h). */
static int collect(struct ds_channel *channel)
{
    struct ds_submitter *submitter = &channel->submitter;
    uint32_t head = ds_load_acquire(&channel->c_hot->sq_head);

    if (!ds_index_between(head, submitter->sq_head, submitter->sq_tail))
        return broken(channel);
    if (head != submitter->sq_head) {
        submitter->sq_head = head;
        submitter->arena_head = submitter->arena_end[(head - 1) & (channel->layout.sq_entries - 1)];
    }
    return 0;
}

static bool entry_free(const struct ds_channel *channel)
{
    return channel->submitter.sq_tail - channel->submitter.sq_head < channel->layout.sq_entries;
}

/* Where size bytes can start without crossing the end of the circle. */
static bool arena_find(const struct ds_channel *channel, size_t size, uint64_t *ret_at)
{
    const struct ds_submitter *submitter = &channel->submitter;
    uint64_t circle = channel->layout.arena_size;
    uint64_t at = submitter->arena_tail;
    uint64_t to_end = circle - at % circle;

    if (size > to_end)
        at += to_end;
    /* When nothing is in use, the gap at the end may make the sum too large; it does not matter. */
    if (at + size - submitter->arena_head > circle &&
        submitter->arena_head != submitter->arena_tail)
        return false;
    *ret_at = at;
    return true;
}

int ds_channel_reserve(struct ds_channel *channel, size_t size, void **ret_payload)
{
    struct ds_submitter *submitter = &channel->submitter;
    uint64_t at;
    int r;

    submitter->reserved = 0;
    if (channel->broken)
        return -EPROTO;
    if (size > channel->layout.max_payload)
        return -EMSGSIZE;
    if (!entry_free(channel) || !arena_find(channel, size, &at)) {
        r = collect(channel);
        if (r < 0)
            return r;
        if (!entry_free(channel) || !arena_find(channel, size, &at))
            return full(submitter);
    }
    submitter->reserved_at = at;
    submitter->reserved = size;
    *ret_payload = channel->arena + at % channel->layout.arena_size;
    return 0;
}

int ds_channel_submit(struct ds_channel *channel, const struct ds_sqe *entry, size_t size)
{
    struct ds_submitter *submitter = &channel->submitter;
    uint32_t slot = submitter->sq_tail & (channel->layout.sq_entries - 1);
    struct ds_sqe sqe = *entry;
    int r;

    if (channel->broken)
        return -EPROTO;
    if (size > submitter->reserved)
        return -EINVAL;
    if (!entry_free(channel)) {
        r = collect(channel);
        if (r < 0)
            return r;
        if (!entry_free(channel))
            return full(submitter);
    }
    sqe.payload_off = 0;
    sqe.payload_len = (uint32_t) size;
    if (size) {
        uint64_t end = submitter->reserved_at + size;

        sqe.payload_off = submitter->reserved_at % channel->layout.arena_size;
        submitter->arena_tail = (end + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    }
    submitter->reserved = 0;
    submitter->refused = false;
    submitter->arena_end[slot] = submitter->arena_tail;
    channel->sqes[slot] = sqe;
    submitter->sq_tail++;
    ds_store_release(&channel->s_hot->sq_tail, submitter->sq_tail); /* A in wire.h */
    submitter->submitted = true;
    ds_prefetch_write(&channel->sqes[submitter->sq_tail & (channel->layout.sq_entries - 1)]);
    return 0;
}

/* --- completions --- */

/* The entry is our copy; what it says about its payload must hold within the ring. */
static int check_entry(const struct ds_channel *channel, const struct ds_cqe *entry)
{
    if (entry->flags & DS_CQE_OOL) {
        if (entry->len > channel->layout.rsp_size || entry->u.ool.rsp_pos % 8 != 0)
            return -EPROTO;
    } else if (entry->len > DS_CQE_INLINE_MAX) {
        return -EPROTO;
    }
    return 0;
}

/* Finds the payload of a checked entry: len bytes from any offset lie within the ring because it
 * is mapped twice. */
static int find_payload(struct ds_channel *channel, const struct ds_cqe *entry,
                        const void **ret_payload)
{
    const uint8_t *bytes;
    void *copy;

    if (!(entry->flags & DS_CQE_OOL)) {
        *ret_payload = entry->u.data;
        return 0;
    }
    bytes = channel->rsp + (entry->u.ool.rsp_pos & (channel->layout.rsp_size - 1));
    if (channel->in_place) {
        *ret_payload = bytes;
        return 0;
    }
    copy = ds_scratch_need(&channel->scratch, entry->len);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, bytes, entry->len);
    *ret_payload = copy;
    return 0;
}

/* Looks for new completions (pairs with C in wire.h). */
static int accept_tail(struct ds_channel *channel)
{
    struct ds_submitter *submitter = &channel->submitter;
    uint32_t tail = ds_load_acquire(&channel->c_hot->cq_tail);

    if (!ds_index_between(tail, submitter->cq_tail,
                          submitter->cq_done + channel->layout.cq_entries))
        return broken(channel);
    submitter->cq_tail = tail;
    return 0;
}

int ds_channel_next(struct ds_channel *channel, struct ds_cqe *ret_entry, const void **ret_payload)
{
    struct ds_submitter *submitter = &channel->submitter;
    int r;

    if (channel->broken)
        return -EPROTO;
    if (submitter->cq_read == submitter->cq_tail) {
        r = accept_tail(channel);
        if (r < 0)
            return r;
        if (submitter->cq_read == submitter->cq_tail)
            return DS_CHANNEL_EMPTY;
    }
    ds_entry_copy(ret_entry, &channel->cqes[submitter->cq_read & (channel->layout.cq_entries - 1)]);
    r = check_entry(channel, ret_entry);
    if (r < 0)
        return broken(channel);
    r = find_payload(channel, ret_entry, ret_payload);
    if (r < 0)
        return r;
    submitter->cq_read++;
    return 0;
}

void ds_channel_done(struct ds_channel *channel)
{
    struct ds_submitter *submitter = &channel->submitter;

    if (submitter->cq_done == submitter->cq_read)
        return;
    submitter->cq_done = submitter->cq_read;
    ds_store_release(&channel->s_hot->cq_head, submitter->cq_done); /* D in wire.h */
    submitter->gave_back = true;
}

uint64_t ds_channel_heartbeat(const struct ds_channel *channel)
{
    return atomic_load_explicit(&channel->c_hot->heartbeat_ns, memory_order_relaxed);
}

enum ds_server_state ds_channel_state(const struct ds_channel *channel)
{
    return (enum ds_server_state) ds_load_acquire(&channel->c_hot->state);
}
