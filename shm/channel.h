/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel.h - one side of a connection: two regions, two rings, two doorbells.
 *
 * The submitter (a client, or dsd towards an engine) puts requests into the S region; the server
 * (dsd, or an engine towards dsd) answers in the C region. Whoever creates a channel makes and
 * seals both memfds and keeps the only writable mapping of its own region; the other side joins
 * with the four descriptors it was sent. dsd always creates.
 *
 * Neither side believes the other: indices are kept privately and shared copies are only checked,
 * entries and requests' payloads are copied before they are looked at. A lie yields -EPROTO, from
 * then on always, and the only thing left to do is ds_channel_free().
 *
 * One thread at a time per side. No call blocks. The bells' descriptors are the only thing that
 * makes system calls, and only the caller uses them (see Sleeping).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shm/wire.h"

struct ds_channel;

enum ds_channel_side { DS_CHANNEL_SUBMITTER, DS_CHANNEL_SERVER };

enum {
    DS_CHANNEL_OK,
    DS_CHANNEL_FULL,  /* no room now: try again after the peer has moved */
    DS_CHANNEL_EMPTY, /* nothing to read now */
};

/* Wishes; zero = default. Rounded up to powers of two and pages, clamped to proto/base.h limits. */
struct ds_geometry {
    uint32_t sq_entries;   /* 64 */
    uint32_t cq_entries;   /* 256 */
    uint32_t arena_bytes;  /* 1 MiB */
    uint32_t rsp_bytes;    /* 256 KiB */
    uint32_t max_inflight; /* 64 */
};

struct ds_channel_fds {
    int s_fd, c_fd;
    int bell_to_server, bell_to_submitter; /* eventfds */
};

/* Makes a channel of which the caller is side. -ENOMEM (region bytes are allocated here, not at
 * first touch), -EMFILE ... */
int ds_channel_create(struct ds_channel **ret_channel, enum ds_channel_side side,
                      const struct ds_geometry *geometry, uint64_t epoch);

/* The datagram and descriptors to send to the other side. The descriptors stay the channel's;
 * after sending, ds_channel_sent() closes what this side does not need. */
void ds_channel_welcome(const struct ds_channel *channel, struct ds_welcome *ret_welcome,
                        struct ds_channel_fds *ret_fds);
void ds_channel_sent(struct ds_channel *channel);

/* Joins a channel made elsewhere. Checks seals, sizes and layout; takes the descriptors, even when
 * it fails. -EPROTO: what came does not fit together. */
int ds_channel_join(struct ds_channel **ret_channel, enum ds_channel_side side,
                    const struct ds_welcome *welcome, struct ds_channel_fds fds);

/* Unmaps and closes. Accepts NULL, returns NULL. */
struct ds_channel *ds_channel_free(struct ds_channel *channel);
void ds_channel_free_p(struct ds_channel **channel);

const struct ds_c_header *ds_channel_layout(const struct ds_channel *channel); /* private copy */

/* --- submitter --- */

/* Room for size payload bytes in the arena, to be filled in place, and one free entry. The payload
 * of the last reserve without commit is given back. DS_CHANNEL_FULL, -EMSGSIZE (never fits),
 * -EPROTO. */
int ds_channel_reserve(struct ds_channel *channel, size_t size, void **ret_payload);

/* Publishes entry with the first size bytes of what was reserved (size 0: no payload, no reserve of
 * bytes needed but an entry must be free: DS_CHANNEL_FULL). Fills payload_off and payload_len. */
int ds_channel_submit(struct ds_channel *channel, const struct ds_sqe *entry, size_t size);

/* Next completion in order, or DS_CHANNEL_EMPTY, or -EPROTO. *ret_payload points to len bytes, at
 * an address that is a multiple of 8: in *ret_entry where the payload is inline, else in the C
 * region where the submitter trusts the server (a client), or in a private buffer that the next
 * call overwrites where it does not (dsd towards an engine: channel created by the submitter).
 * Payload in the C region stays valid until ds_channel_done(), which gives back all that was
 * returned so far. What the
 * entry says of the payload, like n_tokens, is the reader's to check. */
int ds_channel_next(struct ds_channel *channel, struct ds_cqe *ret_entry, const void **ret_payload);
void ds_channel_done(struct ds_channel *channel);

/* --- server --- */

/* Next request: entry and payload are copied out, then checked (known op, zero fields, offset and
 * length within the arena). *ret_payload (entry.payload_len bytes) is a private buffer that the
 * next call overwrites. DS_CHANNEL_EMPTY; -EPROTO: index lie, drop the peer; -EBADMSG: this entry
 * alone is bad, ret_entry->req_id says whose, answer with an error and go on. -ENOMEM: likewise,
 * no memory for the copy. In both cases the entry counts as received. */
int ds_channel_receive(struct ds_channel *channel, struct ds_sqe *ret_entry,
                       const void **ret_payload);

/* Gives the received entries and their arena bytes back. Once per batch. */
void ds_channel_release(struct ds_channel *channel);

/* Writes one completion; not visible before ds_channel_publish(). type, flags, req_id, seq,
 * n_tokens are taken from entry; len, OOL and placement are the channel's. last: may use what is
 * kept back so that every request can always be ended: one entry per max_inflight, and response
 * bytes for a short error each. (A last payload of up to DS_CQE_INLINE_MAX bytes always fits if
 * no more than max_inflight requests are unfinished.) DS_CHANNEL_FULL: also publish and look at
 * ds_channel_bell_due(). -EMSGSIZE: payload > ds_channel_post_max(): send it in pieces with
 * DS_CQE_MORE. -EPROTO. */
int ds_channel_post(struct ds_channel *channel, const struct ds_cqe *entry, const void *payload,
                    size_t len, bool last);
void ds_channel_publish(struct ds_channel *channel);

/* Largest payload one ds_channel_post() takes: rsp_size / 4. */
size_t ds_channel_post_max(const struct ds_channel *channel);

/* Server's words in the C region. */
void ds_channel_beat(struct ds_channel *channel, uint64_t now_nsec);
void ds_channel_set_state(struct ds_channel *channel, enum ds_server_state state);

/* What the server last wrote; for the submitter. State is 0 until the server has joined. */
uint64_t ds_channel_heartbeat(const struct ds_channel *channel);
enum ds_server_state ds_channel_state(const struct ds_channel *channel);

/* --- sleeping, both sides ---
 *
 *   consumer:  if (ds_channel_sleep(c))  wait for bell_in (poll; never read it where the poll is
 *              edge-triggered, else read it);   ds_channel_wake(c);   drain
 *   after submit/publish and, once per batch, after done/release (the peer may sleep until there is
 *   room again):  if (ds_channel_bell_due(c))  write 8 bytes to bell_out
 */

/* Sets NEED_WAKEUP, fences, looks again. True: nothing there, go to sleep; if the last thing tried
 * here was refused with DS_CHANNEL_FULL, the bell also rings when there is room again. False: there
 * is work, or room now (or a lie to find), and the flag is cleared again. The flag may stay set
 * over several waits on other things; call this again before a wait once the channel was used. */
bool ds_channel_sleep(struct ds_channel *channel);
void ds_channel_wake(struct ds_channel *channel);

/* Submitter only, before sleep: be woken only when n completions are there (default 1; fewer than
 * asked for where the ring could not hold them). The server rings earlier when it finds no room.
 * Fewer may be the last that come: wait with a time limit. */
void ds_channel_wake_after(struct ds_channel *channel, uint32_t n_completions);

/* Is something to consume here now? One relaxed load: for spinning. */
bool ds_channel_pending(const struct ds_channel *channel);

/* Fences, and says whether the other side waits for what was done since the last call. */
bool ds_channel_bell_due(struct ds_channel *channel);

int ds_channel_bell_in(const struct ds_channel *channel);  /* to wait on */
int ds_channel_bell_out(const struct ds_channel *channel); /* to ring */

/* Rings without blocking, for callers without io_uring. Towards a peer that is not trusted (who
 * created the channel does not trust who joined) it polls for POLLOUT with zero timeout first; a
 * saturated bell needs no ringing. Caution: such a peer shares the open file description and may
 * clear O_NONBLOCK; if it also saturates the bell between our poll and our write, we wait for it.
 * Where that matters, ring with an io_uring write. */
void ds_channel_ring_bell(struct ds_channel *channel);
