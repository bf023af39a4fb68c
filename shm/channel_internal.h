/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel_internal.h - what channel.c, submitter.c, server.c and doorbell.c share, and nobody else
 * (but the tests).
 *
 * The pointers into the regions are const on nothing: the mapping's protection is what keeps a
 * side from writing the other's region. Everything a decision rests on is private to this struct.
 */
#pragma once

#include <stdatomic.h>
#include <string.h>

#include "shm/channel.h"
#include "shm/region.h"

/* Memory of our own that entries' payloads are copied into. */
struct ds_scratch {
    void *bytes;
    size_t capacity;
};

struct ds_submitter {
    uint32_t sq_tail;    /* ours, as published */
    uint32_t sq_head;    /* the server's, as last accepted */
    uint32_t cq_read;    /* next completion to return */
    uint32_t cq_done;    /* ours, as published: given back up to here */
    uint32_t cq_tail;    /* the server's, as last accepted */
    uint32_t wake_after; /* completions worth waking for */

    /* The arena is handed out in a circle; positions count bytes and never wrap. */
    uint64_t arena_head;  /* given back up to here */
    uint64_t arena_tail;  /* handed out up to here */
    uint64_t reserved_at; /* start of the reservation */
    size_t reserved;      /* its bytes, 0: none */
    uint64_t *arena_end; /* [sq_entries] arena_tail after that entry: what its return frees up to */

    uint32_t refused_at; /* sq_head when there was no room */
    bool refused;        /* and it has not moved since */
    bool submitted;      /* since the bell was last looked at */
    bool gave_back;      /* likewise */
};

struct ds_server {
    uint32_t sq_read;     /* next entry to receive */
    uint32_t sq_released; /* ours, as published */
    uint32_t sq_tail;     /* the submitter's, as last accepted */
    uint32_t cq_tail;     /* entries written */
    uint32_t cq_public;   /* of these, published */
    uint32_t cq_head;     /* the submitter's, as last accepted */

    uint64_t rsp_tail; /* response bytes handed out, never wraps */
    uint64_t rsp_head; /* given back */
    uint64_t *rsp_end; /* [cq_entries] rsp_tail after that entry. Private, so that what a lying
                          cq_head frees is still ours to say */

    uint32_t refused_at; /* cq_head when there was no room */
    bool refused;        /* and it has not moved since */
    bool gave_back;      /* since the bell was last looked at */
    bool rung;           /* for a sleeper that waits for ... */
    uint32_t rung_at;    /* ... this index: it need not be rung for again */
    uint32_t sq_flags;   /* C's sq_flags: the lasting bits ... */
    uint32_t sq_asleep;  /* ... and those of ds_channel_sleep() */
};

struct ds_channel {
    enum ds_channel_side side;
    bool in_place; /* submitter: payloads are read where the server wrote them */
    bool broken;   /* the peer has lied */
    struct ds_c_header layout;
    struct ds_region s_region, c_region;
    struct ds_channel_fds fds;
    struct ds_scratch scratch;

    struct ds_s_hot *s_hot; /* S region */
    struct ds_sqe *sqes;    /* [sq_entries] */
    uint8_t *arena;         /* [arena_size] */
    struct ds_c_hot *c_hot; /* C region */
    struct ds_cqe *cqes;    /* [cq_entries] */
    uint8_t *rsp;           /* [rsp_size], mapped twice */

    struct ds_submitter submitter; /* one of the two is used */
    struct ds_server server;
};

/* Both sides, before any use: as if so many entries and bytes had gone through already. Lets tests
 * cross the wrap of the indices. */
void ds_channel_start_at(struct ds_channel *channel, uint32_t sq_index, uint32_t cq_index,
                         uint64_t bytes);

/* Room for size bytes, contents undefined. NULL: no memory. Does not hold on to a huge block for
 * the sake of small payloads. */
void *ds_scratch_need(struct ds_scratch *scratch, size_t size);

/* low <= index <= high on the circle of 32-bit numbers: the one check of a peer's index. */
static inline bool ds_index_between(uint32_t index, uint32_t low, uint32_t high)
{
    return index - low <= high - low;
}

/* Copies one 64-byte entry out of memory that a peer may be writing, each word loaded once. */
static inline void ds_entry_copy(void *ret_entry, const void *shared)
{
    typedef uint64_t __attribute__((may_alias)) word;
    const word *from = shared;
    uint64_t copy[8];

    for (unsigned i = 0; i < 8; i++)
        copy[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    memcpy(ret_entry, copy, sizeof copy);
}

/* Asks for the line that will be written next while there is time: the peer has read it a round
 * ago, so that writing it must first take it from the peer. Worth a tenth of a round trip. */
#if defined(__x86_64__)
static inline void ds_prefetch_write(const void *line)
{
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *) line));
}
#else
static inline void ds_prefetch_write(const void *line)
{
    __builtin_prefetch(line, 1);
}
#endif

static inline uint32_t ds_load(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static inline uint32_t ds_load_acquire(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline void ds_store(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static inline void ds_store_release(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}
