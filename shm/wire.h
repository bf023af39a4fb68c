/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - the bytes two processes share: handshake datagrams, region headers, ring entries.
 *
 * Everything is little-endian and naturally aligned; sizes are asserted below. A connection has
 * two memfds, so that neither side can write what the other owns:
 *
 *   S region - written by the submitter (a client; dsd towards an engine), read by the server
 *   C region - written by the server (dsd; an engine towards dsd), read by the submitter
 *
 *   C region                                     S region
 *   0x0000  struct ds_c_header, immutable         0x0000  struct ds_s_hot
 *   0x1000  struct ds_c_hot                       0x1000  sqe[sq_entries], 64 bytes each
 *   0x2000  cqe[cq_entries], 64 bytes each        then    request arena, page aligned
 *   then    response byte ring, page aligned
 *
 * Each hot word has one writer and stands 128 bytes from the next one (adjacent-line prefetch
 * fetches pairs of lines). Indices run freely through 32 bits and are masked at use.
 *
 * Ordering, with the barrier each one pairs with:
 *   A  submitter writes arena and entry, stores sq_tail (release)
 *      <-> server loads sq_tail (acquire), copies entry and payload out
 *   B  server has copied them out, stores sq_head (release)
 *      <-> submitter loads sq_head (acquire), uses entry and arena again
 *   C  server writes response bytes and entry, stores cq_tail (release)
 *      <-> submitter loads cq_tail (acquire), reads them
 *   D  submitter is done with them, stores cq_head (release)
 *      <-> server loads cq_head (acquire), uses entry and bytes again
 *   E  going to sleep: store NEED_WAKEUP, fence (seq_cst), load the index waited for
 *      <-> moving that index: store it, fence (seq_cst), load NEED_WAKEUP
 *
 * A value loaded from shared memory is loaded once and judged by that copy.
 *
 * Source: the study in man/dsd-protocol.7 (io_uring, AF_XDP, BPF ring buffer, Aeron, virtio).
 */
#pragma once

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#define DS_WIRE_MAGIC UINT64_C(0x0031305044534453) /* "SDSDP01\0" */
#define DS_WIRE_MAJOR 1u
#define DS_WIRE_MINOR 0u
#define DS_WIRE_PAGE  4096u

/* --- ring entries --- */

enum ds_sqe_op {
    DS_SQE_NOP,
    DS_SQE_SUBMIT, /* payload: Request (client) or LinkRequest (dsd to engine) */
    DS_SQE_CANCEL, /* req_id: the request to cancel; its last completion still comes */
    DS_SQE_PING,   /* answered by DS_CQE_PONG with the same req_id */
    DS_SQE_CLOSE,  /* the submitter says goodbye: nothing more will come */
};

struct ds_sqe {
    uint16_t op;          /* enum ds_sqe_op */
    uint16_t flags;       /* zero */
    uint32_t payload_len; /* bytes at payload_off */
    uint64_t req_id;      /* chosen by the submitter, unique among its unfinished requests */
    uint64_t payload_off; /* within the arena; the payload does not wrap */
    uint8_t idem_key[16]; /* idempotency key of a SUBMIT, zero for none */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC, 0 for none */
    uint32_t resume_from; /* tokens the submitter has already (they are in the payload) */
    uint32_t prio;        /* zero */
    uint64_t zero;        /* must be zero */
};
_Static_assert(sizeof(struct ds_sqe) == 64, "wire layout");

enum ds_cqe_type {
    DS_CQE_ACCEPTED = 1, /* a SUBMIT was admitted */
    DS_CQE_TOKENS, /* raw: u32 id[n_tokens], then UTF-8 text; or TokenChunk (DS_CQE_MESSAGE) */
    DS_CQE_FINAL,  /* payload: Reply (client) or LinkReply (engine to dsd) */
    DS_CQE_ERROR,  /* payload: Error; ends the request */
    DS_CQE_PONG,
    DS_CQE_NOTICE, /* payload: Progress */
    DS_CQE_STEP,   /* engine to dsd only: LinkStep, req_id 0 */
};

enum ds_cqe_flags {
    DS_CQE_MORE = 1u << 0,      /* the payload goes on in this request's next entry of this type */
    DS_CQE_OOL = 1u << 1,       /* payload in the response ring at rsp_pos, not inline */
    DS_CQE_COALESCED = 1u << 2, /* several steps' tokens in one entry: the client lagged */
    DS_CQE_MESSAGE = 1u << 3,   /* TOKENS: the payload is a TokenChunk */
    DS_CQE_CRITICAL = 1u << 15, /* a reader that does not know the type must give up */
};

#define DS_CQE_INLINE_MAX 40u

struct ds_cqe {
    uint64_t req_id;
    uint32_t seq; /* per request, from 0 */
    uint16_t type;
    uint16_t flags;
    uint32_t len;      /* payload bytes */
    uint32_t n_tokens; /* TOKENS: how many ids the payload has, all its pieces together */
    union {
        uint8_t data[DS_CQE_INLINE_MAX];
        struct {
            uint64_t rsp_pos; /* free-running byte position; & (rsp_size - 1) is the offset */
        } ool;
    } u;
};
_Static_assert(sizeof(struct ds_cqe) == 64, "wire layout");

/* --- regions --- */

struct ds_c_header { /* page 0 of C; written once before the handshake */
    uint64_t magic;
    uint16_t major;
    uint16_t minor;
    uint32_t header_size;
    uint64_t features;
    uint8_t conn_id[16];
    uint64_t epoch; /* of the server process: another value = another life */
    uint32_t sq_entries;
    uint32_t cq_entries;
    uint32_t sq_off; /* in S */
    uint32_t cq_off; /* in C */
    uint64_t s_size;
    uint64_t c_size;
    uint64_t arena_off; /* in S */
    uint64_t arena_size;
    uint64_t rsp_off;  /* in C */
    uint64_t rsp_size; /* power of two */
    uint32_t max_inflight;
    uint32_t max_payload;
};

/* NEED_ROOM beside NEED_WAKEUP: the sleeper was refused room (FULL), so wake it when entries have
 * been given back, too. */
enum {
    DS_SQ_NEED_WAKEUP = 1u << 0,
    DS_SQ_DRAINING = 1u << 1,
    DS_SQ_OVERLOADED = 1u << 2, /* reserved */
    DS_SQ_NEED_ROOM = 1u << 3,  /* in the completion ring */
};
enum {
    DS_CQ_NEED_WAKEUP = 1u << 0,
    DS_CQ_NEED_ROOM = 1u << 1, /* in the submission ring or the arena */
};
enum ds_server_state { DS_SERVER_RUNNING = 1, DS_SERVER_DRAINING, DS_SERVER_DEAD };

struct ds_c_hot { /* page 1 of C; writer: server */
    alignas(128) _Atomic uint32_t cq_tail;
    alignas(128) _Atomic uint32_t sq_head;
    alignas(128) _Atomic uint32_t sq_flags;
    alignas(128) _Atomic uint64_t heartbeat_ns; /* CLOCK_MONOTONIC of the last turn of its loop */
    _Atomic uint32_t state;                     /* enum ds_server_state */
    alignas(128) _Atomic uint32_t sq_invalid;   /* statistics: entries refused */
    _Atomic uint32_t cq_stalls;                 /* posts that found no room */
    _Atomic uint32_t coalesced;
};

struct ds_s_hot { /* page 0 of S; writer: submitter */
    alignas(128) _Atomic uint32_t sq_tail;
    alignas(128) _Atomic uint32_t cq_head;
    alignas(128) _Atomic uint32_t cq_flags;
    _Atomic uint32_t cq_wake_at; /* wake me when cq_tail has passed this index */
};

/* --- handshake datagrams on SOCK_SEQPACKET, one each way, then READY --- */

enum ds_datagram_type {
    DS_DATAGRAM_HELLO = 1, /* submitter -> server, no descriptors */
    DS_DATAGRAM_WELCOME, /* server -> submitter + SCM_RIGHTS S, C, bell to server, bell to submitter
                          */
    DS_DATAGRAM_REJECT,  /* server -> submitter, then it hangs up */
    DS_DATAGRAM_READY,   /* submitter -> server */
    DS_DATAGRAM_ATTACH,  /* submitter -> server + 1..DS_MODEL_FILES_MAX descriptors of a model */
    DS_DATAGRAM_GOODBYE, /* server -> submitter: draining, reconnect later */
    DS_DATAGRAM_LOAD,    /* dsd -> engine + descriptors; payload: LinkLoad after the header */
};

struct ds_datagram { /* common start of all of them */
    uint32_t magic;  /* low half of DS_WIRE_MAGIC */
    uint16_t type;
    uint16_t size; /* of the whole datagram */
};

struct ds_hello {
    struct ds_datagram head;
    uint16_t major;
    uint16_t minor_min;
    uint16_t minor_max;
    uint16_t struct_size;
    uint64_t features_wanted;
    uint64_t features_required;
    uint32_t sq_entries; /* wishes; 0 = default. The answer is in WELCOME */
    uint32_t cq_entries;
    uint32_t arena_bytes;
    uint32_t rsp_bytes;
    uint32_t flags; /* zero */
    uint32_t zero;
    char app_name[32]; /* for dsctl requests; need not be NUL-terminated */
};
_Static_assert(sizeof(struct ds_hello) == 88, "wire layout");

struct ds_welcome {
    struct ds_datagram head;
    struct ds_c_header layout; /* the same bytes as page 0 of C */
    uint32_t spin_hint_us;
    uint32_t heartbeat_ms;
};

struct ds_reject {
    struct ds_datagram head;
    uint32_t code; /* Error.Code */
    uint32_t retry_after_ms;
    char text[240]; /* NUL-terminated */
};

/* Behind it may stand the descriptors' file names, each with a NUL, for all of them or for none. */
struct ds_attach {
    struct ds_datagram head;
    uint64_t attachment; /* number chosen by the client, nonzero; see ModelRef */
    uint32_t n_files;    /* descriptors of the whole attachment */
    uint32_t first;      /* index of the first descriptor in this datagram */
    char name[256];      /* how to call the model in messages, NUL-terminated */
};

#define DS_DATAGRAM_MAX     4096u
#define DS_DATAGRAM_FDS_MAX 64u /* per datagram */
