/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel_pair.h - both sides of a channel in one process, for tests.
 */
#pragma once

#include "shm/channel.h"

struct ds_channel_pair {
    struct ds_channel *submitter, *server;
};

/* Makes both sides; creator says which of them created. Fails the test on error. */
struct ds_channel_pair ds_channel_pair_new(const struct ds_geometry *geometry,
                                           enum ds_channel_side creator);
void ds_channel_pair_free(struct ds_channel_pair *pair);

/* The same descriptors again, for the other side to take. */
struct ds_channel_fds ds_channel_fds_dup(struct ds_channel_fds fds);

/* Lets both sides use one mapping of each region instead of one each, so that a thread sanitizer
 * sees that they meet at the same addresses. */
void ds_channel_pair_alias(struct ds_channel_pair *pair);

/* Submits size bytes under req_id; returns what reserve or submit said. */
int ds_channel_put(struct ds_channel *submitter, uint64_t req_id, const void *payload, size_t size);
