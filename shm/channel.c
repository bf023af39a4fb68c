/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel.c - how a channel comes to be and goes: regions, seals, mappings, bells.
 *
 * Order at creation: map our region for writing and the other one for reading, write page 0, then
 * seal. From then on nobody, not even the creator, can map the creator's region for writing again.
 */
#include "shm/channel.h"

#include <sys/eventfd.h>
#include <sys/random.h>

#include "proto/base.h"
#include "shm/channel_internal.h"
#include "shm/handshake.h"
#include "shm/layout.h"

#define SPIN_HINT_US  50u
#define HEARTBEAT_MS  1000u
#define SCRATCH_KEPT  (256u << 10) /* larger copies are not held on to ... */
#define SCRATCH_RATIO 8u           /* ... by payloads this many times smaller */

_Static_assert(sizeof(struct ds_c_header) == 120, "wire layout");
_Static_assert(sizeof(struct ds_welcome) == 136, "wire layout");
_Static_assert(sizeof(struct ds_c_hot) <= DS_WIRE_PAGE, "wire layout");
_Static_assert(sizeof(struct ds_s_hot) <= DS_WIRE_PAGE, "wire layout");
_Static_assert(offsetof(struct ds_c_hot, sq_head) == 0x80, "wire layout");
_Static_assert(offsetof(struct ds_c_hot, sq_flags) == 0x100, "wire layout");
_Static_assert(offsetof(struct ds_c_hot, heartbeat_ns) == 0x180, "wire layout");
_Static_assert(offsetof(struct ds_c_hot, state) == 0x188, "wire layout");
_Static_assert(offsetof(struct ds_c_hot, sq_invalid) == 0x200, "wire layout");
_Static_assert(offsetof(struct ds_s_hot, cq_head) == 0x80, "wire layout");
_Static_assert(offsetof(struct ds_s_hot, cq_flags) == 0x100, "wire layout");
_Static_assert(offsetof(struct ds_s_hot, cq_wake_at) == 0x104, "wire layout");
_Static_assert(offsetof(struct ds_sqe, payload_off) == 0x10, "wire layout");
_Static_assert(offsetof(struct ds_sqe, deadline_ns) == 0x28, "wire layout");
_Static_assert(offsetof(struct ds_cqe, u) == 0x18, "wire layout");

static const struct ds_channel_fds no_fds = { -1, -1, -1, -1 };

/* --- private state --- */

static int state_new(struct ds_channel *channel)
{
    if (channel->side == DS_CHANNEL_SUBMITTER) {
        channel->submitter.wake_after = 1;
        channel->submitter.arena_end = calloc(channel->layout.sq_entries, sizeof(uint64_t));
        return channel->submitter.arena_end ? 0 : -ENOMEM;
    }
    channel->server.rsp_end = calloc(channel->layout.cq_entries, sizeof(uint64_t));
    return channel->server.rsp_end ? 0 : -ENOMEM;
}

static int channel_new(struct ds_channel **ret_channel, enum ds_channel_side side,
                       const struct ds_c_header *layout)
{
    ds_cleanup(ds_channel_free_p) struct ds_channel *channel = calloc(1, sizeof *channel);
    int r;

    if (!channel)
        return -ENOMEM;
    channel->side = side;
    channel->layout = *layout;
    channel->fds = no_fds;
    r = state_new(channel);
    if (r < 0)
        return r;
    *ret_channel = ds_steal(channel);
    return 0;
}

static int map_regions(struct ds_channel *channel)
{
    const struct ds_c_header *layout = &channel->layout;
    bool submitter = channel->side == DS_CHANNEL_SUBMITTER;
    uint8_t *s, *c;
    int r;

    r = ds_region_map(&channel->s_region, channel->fds.s_fd, layout->s_size, 0, submitter);
    if (r < 0)
        return r;
    r = ds_region_map(&channel->c_region, channel->fds.c_fd, layout->c_size, layout->rsp_size,
                      !submitter);
    if (r < 0)
        return r;
    s = channel->s_region.base;
    c = channel->c_region.base;
    channel->s_hot = (struct ds_s_hot *) s;
    channel->sqes = (struct ds_sqe *) (s + layout->sq_off);
    channel->arena = s + layout->arena_off;
    channel->c_hot = (struct ds_c_hot *) (c + DS_WIRE_PAGE);
    channel->cqes = (struct ds_cqe *) (c + layout->cq_off);
    channel->rsp = c + layout->rsp_off;
    if (!submitter)
        ds_channel_set_state(channel, DS_SERVER_RUNNING);
    return 0;
}

void ds_channel_start_at(struct ds_channel *channel, uint32_t sq_index, uint32_t cq_index,
                         uint64_t bytes)
{
    struct ds_submitter *submitter = &channel->submitter;
    struct ds_server *server = &channel->server;

    if (channel->side == DS_CHANNEL_SUBMITTER) {
        submitter->sq_tail = submitter->sq_head = sq_index;
        submitter->cq_read = submitter->cq_done = submitter->cq_tail = cq_index;
        submitter->arena_head = submitter->arena_tail = bytes;
        ds_store(&channel->s_hot->sq_tail, sq_index);
        ds_store(&channel->s_hot->cq_head, cq_index);
    } else {
        server->sq_read = server->sq_released = server->sq_tail = sq_index;
        server->cq_tail = server->cq_public = server->cq_head = cq_index;
        server->rsp_tail = server->rsp_head = bytes;
        ds_store(&channel->c_hot->sq_head, sq_index);
        ds_store(&channel->c_hot->cq_tail, cq_index);
    }
}

void *ds_scratch_need(struct ds_scratch *scratch, size_t size)
{
    size_t capacity = 4096;

    if (scratch->bytes && size <= scratch->capacity &&
        (scratch->capacity <= SCRATCH_KEPT || size >= scratch->capacity / SCRATCH_RATIO))
        return scratch->bytes;
    while (capacity < size)
        capacity *= 2;
    free(scratch->bytes);
    scratch->bytes = malloc(capacity);
    scratch->capacity = scratch->bytes ? capacity : 0;
    return scratch->bytes;
}

/* --- creating --- */

static int create_fds(struct ds_channel *channel)
{
    struct ds_channel_fds *fds = &channel->fds;
    int r;

    r = ds_region_create("dsd-s", channel->layout.s_size, &fds->s_fd);
    if (r < 0)
        return r;
    r = ds_region_create("dsd-c", channel->layout.c_size, &fds->c_fd);
    if (r < 0)
        return r;
    fds->bell_to_server = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fds->bell_to_server < 0)
        return -errno;
    fds->bell_to_submitter = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fds->bell_to_submitter < 0 ? -errno : 0;
}

static int seal_regions(const struct ds_channel *channel)
{
    bool submitter = channel->side == DS_CHANNEL_SUBMITTER;
    int r;

    r = ds_region_seal(channel->fds.s_fd, submitter ? DS_REGION_CREATOR : DS_REGION_JOINER);
    if (r < 0)
        return r;
    return ds_region_seal(channel->fds.c_fd, submitter ? DS_REGION_JOINER : DS_REGION_CREATOR);
}

int ds_channel_create(struct ds_channel **ret_channel, enum ds_channel_side side,
                      const struct ds_geometry *geometry, uint64_t epoch)
{
    ds_cleanup(ds_channel_free_p) struct ds_channel *channel = NULL;
    struct ds_c_header layout;
    ssize_t n;
    int r;

    ds_layout_init(&layout, geometry, epoch);
    if (getrandom(layout.conn_id, sizeof layout.conn_id, GRND_NONBLOCK) !=
        (ssize_t) sizeof layout.conn_id)
        return -EAGAIN;
    r = channel_new(&channel, side, &layout);
    if (r < 0)
        return r;
    r = create_fds(channel);
    if (r < 0)
        return r;
    r = map_regions(channel);
    if (r < 0)
        return r;
    n = pwrite(channel->fds.c_fd, &layout, sizeof layout, 0);
    if (n != (ssize_t) sizeof layout)
        return n < 0 ? -errno : -EIO;
    r = seal_regions(channel);
    if (r < 0)
        return r;
    channel->in_place = false; /* who creates does not trust who joins */
    *ret_channel = ds_steal(channel);
    return 0;
}

void ds_channel_welcome(const struct ds_channel *channel, struct ds_welcome *ret_welcome,
                        struct ds_channel_fds *ret_fds)
{
    struct ds_welcome welcome = { .layout = channel->layout,
                                  .spin_hint_us = SPIN_HINT_US,
                                  .heartbeat_ms = HEARTBEAT_MS };

    ds_datagram_init(&welcome.head, DS_DATAGRAM_WELCOME, sizeof welcome);
    *ret_welcome = welcome;
    *ret_fds = channel->fds;
}

void ds_channel_sent(struct ds_channel *channel)
{
    ds_close_p(&channel->fds.s_fd);
    ds_close_p(&channel->fds.c_fd);
    channel->fds.s_fd = channel->fds.c_fd = -1;
}

/* --- joining --- */

static int check_offer(const struct ds_channel *channel, const struct ds_welcome *welcome)
{
    bool submitter = channel->side == DS_CHANNEL_SUBMITTER;
    struct ds_c_header page0;
    int r;

    r = ds_region_check(channel->fds.s_fd, welcome->layout.s_size,
                        submitter ? DS_REGION_JOINER : DS_REGION_CREATOR);
    if (r < 0)
        return r;
    r = ds_region_check(channel->fds.c_fd, welcome->layout.c_size,
                        submitter ? DS_REGION_CREATOR : DS_REGION_JOINER);
    if (r < 0)
        return r;
    /* The same bytes, or the descriptors belong to another connection. */
    if (pread(channel->fds.c_fd, &page0, sizeof page0, 0) != (ssize_t) sizeof page0 ||
        memcmp(&page0, &welcome->layout, sizeof page0) != 0)
        return -EPROTO;
    return channel->fds.bell_to_server < 0 || channel->fds.bell_to_submitter < 0 ? -EPROTO : 0;
}

static void fds_close(struct ds_channel_fds *fds)
{
    ds_close_p(&fds->s_fd);
    ds_close_p(&fds->c_fd);
    ds_close_p(&fds->bell_to_server);
    ds_close_p(&fds->bell_to_submitter);
    *fds = no_fds;
}

int ds_channel_join(struct ds_channel **ret_channel, enum ds_channel_side side,
                    const struct ds_welcome *welcome, struct ds_channel_fds fds)
{
    ds_cleanup(ds_channel_free_p) struct ds_channel *channel = NULL;
    int r;

    r = ds_layout_check(&welcome->layout);
    if (r >= 0)
        r = channel_new(&channel, side, &welcome->layout);
    if (r < 0) {
        fds_close(&fds);
        return r;
    }
    channel->fds = fds;
    r = check_offer(channel, welcome);
    if (r < 0)
        return r;
    r = map_regions(channel);
    if (r == -EPERM || r == -EACCES) /* sealed or opened against what we are to write */
        return -EPROTO;
    if (r < 0)
        return r;
    channel->in_place = true; /* who joins trusts who created */
    ds_channel_sent(channel);
    *ret_channel = ds_steal(channel);
    return 0;
}

/* --- the rest --- */

struct ds_channel *ds_channel_free(struct ds_channel *channel)
{
    if (!channel)
        return NULL;
    ds_region_unmap(&channel->s_region);
    ds_region_unmap(&channel->c_region);
    fds_close(&channel->fds);
    free(channel->submitter.arena_end);
    free(channel->server.rsp_end);
    free(channel->scratch.bytes);
    free(channel);
    return NULL;
}

void ds_channel_free_p(struct ds_channel **channel)
{
    (void) ds_channel_free(*channel);
}

const struct ds_c_header *ds_channel_layout(const struct ds_channel *channel)
{
    return &channel->layout;
}
