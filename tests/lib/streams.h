/* SPDX-License-Identifier: Apache-2.0 */
/*
 * streams.h - libds against the fake daemon: the fixture, and streams whose answer is known.
 *
 * Include after cmocka.h.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "client/ds.h"
#include "proto/message.h"
#include "tests/lib/fake_daemon.h"

#define STREAMS 3
#define PATIENT 20000 /* ms; a test that waits so long has failed */

struct fixture {
    char directory[64], path[96];
    struct fake_daemon *fake;
    struct fake_plan *plan;
    struct ds *ds; /* of fixture_dial() */
};

/* cmocka set-up and tear-down; *state is a struct fixture. */
int fixture_set_up(void **state);
int fixture_tear_down(void **state);
void fixture_dial(struct fixture *f, uint32_t reconnect_timeout_ms);
void fixture_hang_up(struct fixture *f);

/* What came of one request. */
struct stream {
    uint64_t id, seed;
    char text[4096];
    uint32_t ids[512];
    size_t n_ids;
    struct ds_event end; /* pointers in it are stale */
    char end_text[512];
    int n_ends;
};

struct ds_request stream_request(uint64_t seed, uint32_t n_tokens);
void stream_submit(struct fixture *f, struct stream *stream, uint64_t seed, uint32_t n_tokens);
void streams_feed(struct stream *streams, size_t n, const struct ds_event *event);
/* Takes n events for them. */
void streams_take(struct fixture *f, struct stream *streams, size_t n_streams, int n_events);
/* Until every stream has ended. */
void streams_collect(struct fixture *f, struct stream *streams, size_t n);
/* The stream is the undisturbed one. */
void stream_check(const struct stream *stream, uint32_t n_tokens);

/* Sends a control request whose part is part. */
uint64_t control_send(struct fixture *f, Ds__Request__OpCase op, void *part);
/* The FINAL of id, unpacked: ds_message_free(). */
Ds__Reply *control_reply(struct fixture *f, uint64_t id);
