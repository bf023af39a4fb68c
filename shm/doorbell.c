/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doorbell.c - who sleeps says so first, who publishes looks.
 *
 * Each side stores one word and loads the other's: the sleeper its flag, then the index it waits
 * for; the publisher that index, then the flag. A processor may let the load overtake the store;
 * if both did, the sleeper would miss the index and the publisher the flag, and the wake-up would
 * be lost. Release and acquire do not forbid that, so a sequentially consistent fence stands
 * between store and load on both sides: one of the two then sees the other's store.
 */
#include <poll.h>

#include "proto/base.h"
#include "shm/channel.h"
#include "shm/channel_internal.h"

#ifndef DS_BELL_FENCE /* the test of this file replaces it to see that it is needed */
#define DS_BELL_FENCE() atomic_thread_fence(memory_order_seq_cst) /* E in wire.h */
#endif

static bool passed(uint32_t tail, uint32_t index)
{
    return (int32_t) (tail - index) > 0;
}

/* --- sleeping --- */

static bool submitter_sleep(struct ds_channel *channel)
{
    struct ds_submitter *submitter = &channel->submitter;
    uint32_t wake_at = submitter->cq_read + submitter->wake_after - 1;
    uint32_t flags = DS_CQ_NEED_WAKEUP | (submitter->refused ? DS_CQ_NEED_ROOM : 0u);

    ds_store(&channel->s_hot->cq_wake_at, wake_at);
    ds_store_release(&channel->s_hot->cq_flags, flags); /* not seen before wake_at */
    DS_BELL_FENCE();
    if (passed(ds_load(&channel->c_hot->cq_tail), wake_at))
        return false;
    if (submitter->refused && ds_load(&channel->c_hot->sq_head) != submitter->refused_at) {
        submitter->refused = false;
        return false;
    }
    return true;
}

static bool server_sleep(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;

    server->sq_asleep = DS_SQ_NEED_WAKEUP | (server->refused ? DS_SQ_NEED_ROOM : 0u);
    ds_store(&channel->c_hot->sq_flags, server->sq_flags | server->sq_asleep);
    DS_BELL_FENCE();
    if (server->sq_read != server->sq_tail || ds_load(&channel->s_hot->sq_tail) != server->sq_read)
        return false;
    if (server->refused && ds_load(&channel->s_hot->cq_head) != server->refused_at) {
        server->refused = false;
        return false;
    }
    return true;
}

bool ds_channel_sleep(struct ds_channel *channel)
{
    bool idle;

    if (channel->broken)
        return false;
    idle = channel->side == DS_CHANNEL_SUBMITTER ? submitter_sleep(channel) : server_sleep(channel);
    if (!idle)
        ds_channel_wake(channel);
    return idle;
}

void ds_channel_wake(struct ds_channel *channel)
{
    if (channel->side == DS_CHANNEL_SUBMITTER) {
        ds_store(&channel->s_hot->cq_flags, 0);
    } else {
        channel->server.sq_asleep = 0;
        ds_store(&channel->c_hot->sq_flags, channel->server.sq_flags);
    }
}

void ds_channel_wake_after(struct ds_channel *channel, uint32_t n_completions)
{
    /* What the server can post without touching what it keeps back. */
    uint32_t most = channel->layout.cq_entries - channel->layout.max_inflight;

    if (n_completions == 0)
        n_completions = 1;
    channel->submitter.wake_after = n_completions < most ? n_completions : most;
}

bool ds_channel_pending(const struct ds_channel *channel)
{
    if (channel->side == DS_CHANNEL_SUBMITTER)
        return ds_load(&channel->c_hot->cq_tail) != channel->submitter.cq_read;
    return ds_load(&channel->s_hot->sq_tail) != channel->server.sq_read;
}

/* --- ringing --- */

static bool submitter_bell_due(struct ds_channel *channel)
{
    struct ds_submitter *submitter = &channel->submitter;
    uint32_t flags = ds_load(&channel->c_hot->sq_flags);
    bool due = (flags & DS_SQ_NEED_WAKEUP) &&
               (submitter->submitted || (submitter->gave_back && (flags & DS_SQ_NEED_ROOM)));

    submitter->submitted = submitter->gave_back = false;
    return due;
}

/* A sleeper is rung once for the index it waits for, however often we publish before it runs: it
 * waits for another one next time, or finds this one passed before it sleeps. */
static bool server_bell_due(struct ds_channel *channel)
{
    struct ds_server *server = &channel->server;
    uint32_t flags = ds_load_acquire(&channel->s_hot->cq_flags);
    uint32_t wake_at = ds_load(&channel->s_hot->cq_wake_at);
    bool gave_back = server->gave_back;

    server->gave_back = false;
    if (!(flags & DS_CQ_NEED_WAKEUP)) {
        server->rung = false;
        return false;
    }
    if (passed(server->cq_public, wake_at)) {
        if (server->rung && server->rung_at == wake_at)
            return false;
        server->rung = true;
        server->rung_at = wake_at;
        return true;
    }
    return server->refused || (gave_back && (flags & DS_CQ_NEED_ROOM));
}

bool ds_channel_bell_due(struct ds_channel *channel)
{
    DS_BELL_FENCE();
    return channel->side == DS_CHANNEL_SUBMITTER ? submitter_bell_due(channel)
                                                 : server_bell_due(channel);
}

int ds_channel_bell_in(const struct ds_channel *channel)
{
    return channel->side == DS_CHANNEL_SUBMITTER ? channel->fds.bell_to_submitter
                                                 : channel->fds.bell_to_server;
}

int ds_channel_bell_out(const struct ds_channel *channel)
{
    return channel->side == DS_CHANNEL_SUBMITTER ? channel->fds.bell_to_server
                                                 : channel->fds.bell_to_submitter;
}

void ds_channel_ring_bell(struct ds_channel *channel)
{
    struct pollfd bell = { .fd = ds_channel_bell_out(channel), .events = POLLOUT };
    uint64_t one = 1;

    if (channel->in_place || (poll(&bell, 1, 0) == 1 && (bell.revents & POLLOUT)))
        (void) !write(bell.fd, &one, sizeof one);
}
