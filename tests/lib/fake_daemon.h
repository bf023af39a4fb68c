/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_daemon.h - a dsd of one thread for the tests of libds: real handshake, real rings, tokens
 * that are a pure function of (seed, position), and misfortunes on demand.
 *
 * The test sets the plan's fields at any time; the daemon reads them as it goes. What it can do:
 *
 *   generate   token i has id fake_token(seed, i) and the text "<id> "; ends after max_tokens with
 *              FINAL (length), whose text is "."; logprobs > 0 gives TokenChunk messages;
 *              of a chat all is reasoning, and the message calls f({})
 *   load       three PROGRESS, then FINAL            tokenize    ids = the bytes of the text
 *   detokenize "x" 1000 times for each id            score       never answered
 *   others     FINAL with Done; model names: "missing" NOT_FOUND, "busy" BUSY
 *   an attachment (tokenize): ids = n_files, size of the first file in bytes
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum fake_lie {
    FAKE_HONEST,
    FAKE_LIE_SEQ,      /* a completion's number is skipped */
    FAKE_LIE_TOKENS,   /* more ids announced than the payload holds */
    FAKE_LIE_CRITICAL, /* an unknown type that must be understood */
    FAKE_LIE_GARBAGE,  /* FINAL that is no Reply */
};

struct fake_plan {
    _Atomic int credits;    /* tokens that may still be generated, -1 = any number */
    _Atomic int drop_after; /* completions after which the connection is cut once, -1 = never */
    _Atomic int down_msec;  /* after a cut: so long nobody listens and a new epoch begins */
    _Atomic int piece;      /* bytes of one piece of a payload (DS_CQE_MORE), 0 = whole */
    _Atomic int reject;     /* Error.Code that every HELLO is refused with, 0 = none */
    _Atomic int mute;       /* 1: HELLO is not answered */
    _Atomic int draining;   /* 1: SUBMIT is answered with ERROR(DRAINING) until the next life */
    _Atomic int frozen;     /* 1: the loop does nothing at all */
    _Atomic int lie;        /* enum fake_lie, told once */

    /* what the daemon saw */
    _Atomic int lives;    /* connections made */
    _Atomic int resumed;  /* SUBMITs with delivered ids */
    _Atomic int wrong;    /* resumptions with wrong ids, count or key; 0 at the end of a test */
    _Atomic int cancels;  /* CANCEL entries */
    _Atomic int attached; /* descriptors received */
    _Atomic int closes;   /* CLOSE entries */
};

struct fake_daemon;

/* Listens on path. The plan is inside and lives until fake_daemon_stop(). */
struct fake_daemon *fake_daemon_start(const char *path);
struct fake_plan *fake_daemon_plan(struct fake_daemon *fake);
void fake_daemon_poke(struct fake_daemon *fake); /* after a change of the plan */
struct fake_daemon *fake_daemon_stop(struct fake_daemon *fake);

uint32_t fake_token(uint64_t seed, uint32_t position);
/* The whole text of an undisturbed answer: fresh memory. */
char *fake_answer(uint64_t seed, uint32_t n_tokens);
