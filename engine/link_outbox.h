/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_outbox.h - completions on their way to dsd, in order, none lost.
 *
 * What is put is kept until the channel has room; a payload larger than one completion takes goes
 * in pieces, all but the last with DS_CQE_MORE, each with its own seq. One thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shm/channel.h"

/* Beyond these the step loop stops making tokens until dsd has read some. */
#define DS_OUTBOX_ENTRIES_HIGH 1024u
#define DS_OUTBOX_BYTES_HIGH   (4u << 20)

struct ds_outbox_item;

struct ds_outbox {
    struct ds_outbox_item *head;
    struct ds_outbox_item **tail;
    size_t n_items, n_bytes; /* waiting */
};

void ds_outbox_init(struct ds_outbox *outbox);
void ds_outbox_deinit(struct ds_outbox *outbox);

/* Takes bytes (malloc'ed, may be NULL with size 0) even when it fails. *seq is the number of the
 * request's next completion and is advanced by the pieces this one takes at piece_max bytes each;
 * flush must be given the same limit. last: the request's end. -ENOMEM. */
int ds_outbox_put(struct ds_outbox *outbox, uint64_t req_id, enum ds_cqe_type type, uint32_t *seq,
                  void *bytes, size_t size, size_t piece_max, bool last);

/* Posts and publishes as much as the channel takes; the caller looks at ds_channel_bell_due(). 0,
 * or a negative errno of the channel. Afterwards ds_outbox_empty() tells whether all went. */
int ds_outbox_flush(struct ds_outbox *outbox, struct ds_channel *channel);

bool ds_outbox_empty(const struct ds_outbox *outbox);
bool ds_outbox_full(const struct ds_outbox *outbox); /* above a high mark */
