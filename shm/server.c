/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.c - requests in, completions out.
 *
 * Response bytes are handed out in a circle and given back in the order of their entries. How far
 * an entry's return frees is remembered privately: the submitter's index says which entries are
 * done, never which bytes.
 */
#include "proto/base.h"
#include "shm/channel.h"
#include "shm/channel_internal.h"

#define RSP_ALIGN      8u
#define LAST_RSP_BYTES 256u /* kept back per request in flight, for its last message */

static int broken(struct ds_channel *channel)
{
    channel->broken = true;
    return -EPROTO;
}

/* --- requests --- */

/* Looks for new requests (pairs with A in wire.h). */
static int accept_tail(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;
    uint32_t tail = ds_load_acquire(&channel->s_hot->sq_tail);

    if (!ds_index_between(tail, server->sq_tail, server->sq_released + channel->layout.sq_entries))
        return broken(channel);
    server->sq_tail = tail;
    return 0;
}

/* The entry is our copy. 0 or -EBADMSG. */
static int check_entry(const struct ds_channel *channel, const struct ds_sqe *entry)
{
    uint64_t arena = channel->layout.arena_size;

    if (entry->op > DS_SQE_CLOSE || entry->flags || entry->prio || entry->zero)
        return -EBADMSG;
    if (entry->payload_len && entry->op != DS_SQE_SUBMIT)
        return -EBADMSG;
    if (entry->payload_len > channel->layout.max_payload || entry->payload_off > arena ||
        entry->payload_len > arena - entry->payload_off)
        return -EBADMSG;
    return 0;
}

/* Statistics have one writer, so adding needs no more than this. */
static void count(_Atomic uint32_t *statistic)
{
    ds_store(statistic, ds_load(statistic) + 1);
}

int ds_channel_receive(struct ds_channel *channel, struct ds_sqe *ret_entry,
                       const void **ret_payload)
{
    struct ds_server *server = &channel->server;
    void *copy;
    int r;

    if (channel->broken)
        return -EPROTO;
    if (server->sq_read == server->sq_tail) {
        r = accept_tail(channel);
        if (r < 0)
            return r;
        if (server->sq_read == server->sq_tail)
            return DS_CHANNEL_EMPTY;
    }
    ds_entry_copy(ret_entry, &channel->sqes[server->sq_read & (channel->layout.sq_entries - 1)]);
    server->sq_read++;
    r = check_entry(channel, ret_entry);
    if (r < 0) {
        count(&channel->c_hot->sq_invalid);
        return r;
    }
    copy = ds_scratch_need(&channel->scratch, ret_entry->payload_len);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, channel->arena + ret_entry->payload_off, ret_entry->payload_len);
    *ret_payload = copy;
    return 0;
}

void ds_channel_release(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;

    if (server->sq_released == server->sq_read)
        return;
    server->sq_released = server->sq_read;
    ds_store_release(&channel->c_hot->sq_head, server->sq_released); /* B in wire.h */
    server->gave_back = true;
}

/* --- completions --- */

/* Takes back what the submitter has given back (pairs with D in wire.h). Only what was published
 * can have been read. */
static int collect(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;
    uint32_t head = ds_load_acquire(&channel->s_hot->cq_head);

    if (!ds_index_between(head, server->cq_head, server->cq_public))
        return broken(channel);
    if (head != server->cq_head) {
        server->cq_head = head;
        server->rsp_head = server->rsp_end[(head - 1) & (channel->layout.cq_entries - 1)];
    }
    return 0;
}

static size_t out_of_line(size_t len)
{
    return len <= DS_CQE_INLINE_MAX ? 0 : (len + RSP_ALIGN - 1) / RSP_ALIGN * RSP_ALIGN;
}

static bool room(const struct ds_channel *channel, size_t len, bool last)
{
    const struct ds_server *server = &channel->server;
    const struct ds_c_header *layout = &channel->layout;
    uint64_t entries = layout->cq_entries - (server->cq_tail - server->cq_head);
    uint64_t bytes = layout->rsp_size - (server->rsp_tail - server->rsp_head);
    uint64_t kept_bytes = (uint64_t) layout->max_inflight * LAST_RSP_BYTES;

    if (kept_bytes > layout->rsp_size / 4)
        kept_bytes = layout->rsp_size / 4;
    if (last)
        return entries >= 1 && bytes >= out_of_line(len);
    if (len <= DS_CQE_INLINE_MAX)
        return entries > layout->max_inflight;
    return entries > layout->max_inflight && bytes >= kept_bytes + out_of_line(len);
}

static int full(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;

    count(&channel->c_hot->cq_stalls);
    server->refused = true;
    server->refused_at = server->cq_head;
    return DS_CHANNEL_FULL;
}

size_t ds_channel_post_max(const struct ds_channel *channel)
{
    return channel->layout.rsp_size / 4;
}

int ds_channel_post(struct ds_channel *channel, const struct ds_cqe *entry, const void *payload,
                    size_t len, bool last)
{
    struct ds_server *server = &channel->server;
    uint32_t slot = server->cq_tail & (channel->layout.cq_entries - 1);
    struct ds_cqe cqe = { .req_id = entry->req_id,
                          .seq = entry->seq,
                          .type = entry->type,
                          .flags = entry->flags & (uint16_t) ~DS_CQE_OOL,
                          .len = (uint32_t) len,
                          .n_tokens = entry->n_tokens };
    int r;

    if (channel->broken)
        return -EPROTO;
    if (len > ds_channel_post_max(channel))
        return -EMSGSIZE;
    if (!room(channel, len, last)) {
        r = collect(channel);
        if (r < 0)
            return r;
        if (!room(channel, len, last))
            return full(channel);
    }
    if (len > DS_CQE_INLINE_MAX) {
        cqe.flags |= DS_CQE_OOL;
        cqe.u.ool.rsp_pos = server->rsp_tail;
        memcpy(channel->rsp + (server->rsp_tail & (channel->layout.rsp_size - 1)), payload, len);
        server->rsp_tail += out_of_line(len);
    } else if (len) {
        memcpy(cqe.u.data, payload, len);
    }
    if (cqe.flags & DS_CQE_COALESCED)
        count(&channel->c_hot->coalesced);
    server->refused = false;
    server->rsp_end[slot] = server->rsp_tail;
    channel->cqes[slot] = cqe;
    server->cq_tail++;
    return 0;
}

void ds_channel_publish(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;

    if (server->cq_public == server->cq_tail)
        return;
    server->cq_public = server->cq_tail;
    ds_store_release(&channel->c_hot->cq_tail, server->cq_public); /* C in wire.h */
    ds_prefetch_write(&channel->cqes[server->cq_tail & (channel->layout.cq_entries - 1)]);
}

/* --- the server's words --- */

void ds_channel_beat(struct ds_channel *channel, uint64_t now_nsec)
{
    atomic_store_explicit(&channel->c_hot->heartbeat_ns, now_nsec, memory_order_relaxed);
}

void ds_channel_set_state(struct ds_channel *channel, enum ds_server_state state)
{
    if (state != DS_SERVER_RUNNING)
        channel->server.sq_flags |= DS_SQ_DRAINING;
    ds_store(&channel->c_hot->sq_flags, channel->server.sq_flags | channel->server.sq_asleep);
    ds_store_release(&channel->c_hot->state, (uint32_t) state);
}
