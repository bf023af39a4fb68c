/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/channel_pair.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "proto/base.h"
#include "shm/channel_internal.h"

struct ds_channel_fds ds_channel_fds_dup(struct ds_channel_fds fds)
{
    return (struct ds_channel_fds){
        .s_fd = fcntl(fds.s_fd, F_DUPFD_CLOEXEC, 0),
        .c_fd = fcntl(fds.c_fd, F_DUPFD_CLOEXEC, 0),
        .bell_to_server = fcntl(fds.bell_to_server, F_DUPFD_CLOEXEC, 0),
        .bell_to_submitter = fcntl(fds.bell_to_submitter, F_DUPFD_CLOEXEC, 0),
    };
}

struct ds_channel_pair ds_channel_pair_new(const struct ds_geometry *geometry,
                                           enum ds_channel_side creator)
{
    enum ds_channel_side joiner =
        creator == DS_CHANNEL_SERVER ? DS_CHANNEL_SUBMITTER : DS_CHANNEL_SERVER;
    struct ds_channel *created = NULL, *joined = NULL;
    struct ds_channel_fds fds;
    struct ds_welcome welcome;

    assert_int_equal(ds_channel_create(&created, creator, geometry, 1), 0);
    ds_channel_welcome(created, &welcome, &fds);
    assert_int_equal(ds_channel_join(&joined, joiner, &welcome, ds_channel_fds_dup(fds)), 0);
    ds_channel_sent(created);
    if (creator == DS_CHANNEL_SERVER)
        return (struct ds_channel_pair){ .submitter = joined, .server = created };
    return (struct ds_channel_pair){ .submitter = created, .server = joined };
}

void ds_channel_pair_free(struct ds_channel_pair *pair)
{
    pair->submitter = ds_channel_free(pair->submitter);
    pair->server = ds_channel_free(pair->server);
}

void ds_channel_pair_alias(struct ds_channel_pair *pair)
{
    struct ds_channel *a = pair->submitter, *b = pair->server;

    b->s_hot = a->s_hot;
    b->sqes = a->sqes;
    b->arena = a->arena;
    a->c_hot = b->c_hot;
    a->cqes = b->cqes;
    a->rsp = b->rsp;
}

int ds_channel_put(struct ds_channel *submitter, uint64_t req_id, const void *payload, size_t size)
{
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .req_id = req_id };
    void *room;
    int r = ds_channel_reserve(submitter, size, &room);

    if (r)
        return r;
    if (size)
        memcpy(room, payload, size);
    return ds_channel_submit(submitter, &entry, size);
}
