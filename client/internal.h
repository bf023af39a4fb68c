/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal.h - what a connection of libds is made of; shared by the files of client/ alone.
 *
 * A connection outlives daemons. Everything that must survive one is kept here privately: requests
 * (packed, with the ids delivered so far), attachments (duplicated descriptors), and three
 * descriptors of our own that make ds_fd() stable. What belongs to one life of the daemon - socket,
 * channel - is thrown away and made again by resume.c:
 *
 *      ds_connect --> UP --lost--> AWAY --due--> SHAKING --READY--> UP
 *                                   ^  ^------------/ refused, silent
 *                                   \-- given_up once reconnect_timeout has passed
 *
 * A request is WAITING (to be put on the ring: new, or its daemon died), SENT, or ENDED (its last
 * event is made here and not yet taken).
 *
 * Return values: 0, negative errno, or DS_NONE (nothing for the caller). One thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/ds.h"
#include "proto/base.h"
#include "proto/message.h"
#include "shm/channel.h"

#define DS_CLIENT_SHAKE_MSEC      5000u  /* HELLO sent to WELCOME received */
#define DS_CLIENT_RETRY_MSEC_MIN  10u    /* pause after the second failed attempt; doubles */
#define DS_CLIENT_RETRY_MSEC_MAX  1000u  /* the longest pause between attempts */
#define DS_CLIENT_SETTLED_MSEC    5000u  /* a connection this old has recovered from a loss */
#define DS_CLIENT_SILENCE_MSEC    5000u  /* nothing heard while something is unfinished: ask */
#define DS_CLIENT_RECONNECT_MSEC  30000u /* default of reconnect_timeout_ms */
#define DS_CLIENT_LOOK_MSEC       1u     /* ds_next(0) looks at the socket at most this often */
#define DS_CLIENT_FLUSH_MSEC      5u     /* try again to put waiting requests on a full ring */
#define DS_CLIENT_SPIN_USEC_MAX   200u   /* ceiling for what dsd suggests */
#define DS_CLIENT_GLANCES         8u     /* ds_next(0) reads the clock every so many times */
#define DS_CLIENT_ARENA_BYTES     (1u << 20)
#define DS_CLIENT_ATTACHMENTS_MAX 256u
#define DS_CLIENT_PROBE_ID        UINT64_MAX /* req_id of our own pings */

struct ds_client_buffer {
    uint8_t *bytes;
    size_t size, capacity; /* bytes */
};

enum ds_client_kind { DS_CLIENT_GENERATE, DS_CLIENT_CONTROL, DS_CLIENT_PING };
enum ds_client_request_state { DS_CLIENT_WAITING, DS_CLIENT_SENT, DS_CLIENT_ENDED };

struct ds_client_request {
    uint64_t id; /* low 16 bits: slot */
    enum ds_client_kind kind;
    enum ds_client_request_state state;
    struct ds_client_request *previous, *next; /* ds::first, in order of submission */

    struct ds_client_buffer packed; /* the ds.Request as submitted; empty for a ping */
    uint8_t key[16];                /* idempotency key, the same in every life */
    uint64_t deadline_nsec;
    bool once; /* must not be sent again to another daemon */

    struct ds_client_buffer ids; /* uint32_t: tokens delivered so far, in order */
    uint32_t next_seq;           /* of this life's completions */
    bool cancel_wanted, cancel_sent;
    uint64_t held_life; /* ds::life that told us it is draining; 0: none */

    uint16_t part_type; /* completion type being put together from pieces; 0: none */
    uint16_t part_flags;
    uint32_t part_tokens;
    struct ds_client_buffer part;

    uint32_t end_code; /* ENDED: ds.Error.Code, 0 = cancelled */
    char *end_text;    /* ENDED with a code */
};

struct ds_client_attachment {
    struct ds_client_attachment *next;
    uint64_t number;
    char name[256];
    int *fds; /* [n_fds], ours */
    unsigned n_fds;
    char **file_names; /* [n_fds], ours; NULL: not said */
};

enum ds_client_state { DS_CLIENT_AWAY, DS_CLIENT_SHAKING, DS_CLIENT_UP };

struct ds {
    struct ds_error error;
    enum ds_client_state state;

    /* as asked for */
    char *path;
    char *app_name;
    uint32_t arena_bytes;
    uint64_t reconnect_nsec; /* 0: never */
    uint32_t spin_usec;      /* 0: as dsd suggests; UINT32_MAX: never */

    /* one life of the daemon */
    int socket;
    struct ds_channel *channel;
    uint64_t life; /* counts connections, from 1 */
    uint64_t epoch;
    uint32_t hint_usec;   /* how long to spin for short answers; 0 where there is one processor */
    uint32_t sleeps_left; /* waits to go without spinning, after spinning was in vain */
    bool hangup;          /* the socket is at its end: drain the ring, then lose */
    bool entry_held;      /* ds_channel_done() is due before the next entry */
    uint32_t n_sent;
    uint64_t connected_nsec;
    bool heard;           /* an entry came since heard_nsec was set */
    uint64_t heard_nsec;  /* last sign of life */
    uint64_t probe_nsec;  /* our ping went out; 0: none is */
    uint64_t looked_nsec; /* at the socket, from a ds_next() that does not wait */
    uint32_t glances;     /* such calls that found nothing */

    /* the time without one */
    uint64_t lost_nsec;  /* since when; 0: all is well */
    uint64_t retry_nsec; /* when to try again; SHAKING: when to give this attempt up */
    unsigned attempts;
    bool given_up;
    char why[160]; /* what went wrong last, in a few words */

    /* requests */
    struct ds_client_request **slots; /* [n_slots], NULL = free */
    uint32_t n_slots;
    uint32_t n_requests;
    uint32_t n_ended;
    uint64_t next_serial;
    struct ds_client_request *first, *last;
    struct ds_client_request *spare; /* zeroed, for the next one; may be NULL */
    bool flush_due;                  /* something may be WAITING or a cancel unsent */
    uint64_t held_nsec;              /* since when requests are held for the next daemon; 0: none */

    struct ds_client_attachment *attachments;
    uint64_t next_attachment;

    /* what the event taken last points to */
    struct ds_cqe entry;             /* small payloads lie in it */
    struct ds_client_buffer message; /* private copy of a payload */
    struct ds_client_buffer text;
    void *unpacked;
    struct ds_client_buffer pieces, calls; /* of the event */

    /* readiness */
    int epoll_fd; /* what ds_fd() gives: { kick_fd, timer_fd, bell, socket } */
    int kick_fd;  /* eventfd: call ds_next() */
    int timer_fd;
    uint64_t timer_nsec; /* what timer_fd is set to; UINT64_MAX: not */
    bool watched;        /* ds_fd() was called */
    bool kicked;
    bool armed; /* NEED_WAKEUP is set: we said that we sleep */
};

/* --- memory.c --- */
int ds_client_buffer_reserve(struct ds_client_buffer *buffer, size_t capacity);
int ds_client_buffer_append(struct ds_client_buffer *buffer, const void *bytes, size_t size);
void ds_client_buffer_deinit(struct ds_client_buffer *buffer);
int ds_client_random(void *bytes, size_t size);

/* --- handshake, connection.c --- */

/* Makes a socket and sends HELLO. On failure the line is in ds->error, nothing is kept. */
int ds_client_shake_begin(struct ds *ds);
/* WELCOME or REJECT: 0 = up, -EAGAIN = not yet, else the attempt has failed (line in ds->error). */
int ds_client_shake_continue(struct ds *ds);
/* Drops socket and channel. */
void ds_client_hang_up(struct ds *ds);

/* --- attach.c --- */
int ds_client_attach_all(struct ds *ds);
void ds_client_attachments_free(struct ds *ds);

/* --- pack.c --- */

/* Packs a public request; buffer is empty before. -EINVAL (line in ds->error), -ENOMEM. */
int ds_client_pack(struct ds *ds, const struct ds_request *request,
                   struct ds_client_buffer *buffer);
/* Takes a packed ds.Request apart far enough to know what it is; a generation without a seed is
 * packed again with one. */
int ds_client_adopt(struct ds *ds, const void *bytes, size_t size,
                    struct ds_client_request *request);
/* The request as it goes out now: packed, or packed anew with the ids delivered so far. *ret_bytes
 * is request->packed.bytes or fresh memory in *ret_fresh (free()). */
int ds_client_repack(const struct ds_client_request *request, const void **ret_bytes,
                     size_t *ret_size, void **ret_fresh);

/* --- request.c --- */
struct ds_client_request *ds_client_find(const struct ds *ds, uint64_t id);
void ds_client_request_free(struct ds *ds, struct ds_client_request *request);
void ds_client_requests_deinit(struct ds *ds);
/* Its last event is made here: code 0 = cancelled, else a ds.Error.Code with text. */
void ds_client_request_end(struct ds *ds, struct ds_client_request *request, uint32_t code,
                           const char *text);
/* Puts on the ring what waits and fits. 0, or an errno that means the connection is lost. */
int ds_client_flush(struct ds *ds);
void ds_client_ring(struct ds *ds);

/* --- events.c --- */
int ds_client_take(struct ds *ds, struct ds_event *ret_event);
void ds_client_release(struct ds *ds);

/* --- resume.c --- */

/* The connection is gone: keeps what is to be resumed, ends what cannot be. why: one line. */
void ds_client_lose(struct ds *ds, const char *why);
/* Whatever is due now: attempts, give-ups, probes. 0 = something changed, DS_NONE = nothing did. */
int ds_client_tend(struct ds *ds, uint64_t now_nsec);
/* When ds_client_tend() wants to be called again; UINT64_MAX: never. */
uint64_t ds_client_due(const struct ds *ds, uint64_t now_nsec);
/* A datagram or the end of the socket. */
void ds_client_hear(struct ds *ds);
/* A request that a draining daemon sent back is kept for the next one. */
void ds_client_hold(struct ds *ds, struct ds_client_request *request);

/* --- wait.c --- */
int ds_client_ready_init(struct ds *ds);
void ds_client_ready_deinit(struct ds *ds);
void ds_client_watch_add(struct ds *ds);    /* socket, and bell where there is a channel */
void ds_client_watch_remove(struct ds *ds); /* before either is closed */
/* Makes ds_fd() readable, where somebody looks at it. */
void ds_client_kick(struct ds *ds);
/* Waits for something to do until deadline_nsec (UINT64_MAX: no limit). 0 = look again, DS_NONE =
 * the time is over and ds_fd() is at rest, -EINTR. */
int ds_client_wait(struct ds *ds, uint64_t deadline_nsec);
/* What of dsd's suggestion to follow on this machine, in microseconds. */
uint32_t ds_client_spin_hint(uint32_t suggested_usec);
/* Takes back "we sleep". */
void ds_client_wake(struct ds *ds);
