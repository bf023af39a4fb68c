/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h - one client: its socket, its channel, its requests.
 *
 *   GREETING (HELLO expected) -> WELCOMED (READY expected) -> ACTIVE -> DEAD
 *
 * A session that is hot is looked at in every turn and needs no doorbell; a cold one sleeps with
 * NEED_WAKEUP set. Whatever breaks the protocol makes a session DEAD, and it is freed at the end
 * of the turn, so that a session stays valid within one callback.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/admission.h"
#include "daemon/list.h"
#include "daemon/loop.h"
#include "proto/message.h"
#include "shm/channel.h"

struct ds_model_files;
struct ds_server;

enum ds_session_state {
    DS_SESSION_GREETING,
    DS_SESSION_WELCOMED,
    DS_SESSION_ACTIVE,
    DS_SESSION_DEAD,
};

#define DS_REFUSAL_MAX 512u
#define DS_DRAIN_MAX   64 /* entries taken from one client in one turn */

struct ds_attachment { /* files of a model that the client opened */
    uint64_t number;
    struct ds_model_files *files; /* owned; complete when n_open == n_files */
};

struct ds_session {
    struct ds_list link;  /* ds_server::sessions, or ::dead */
    struct ds_list hot;   /* ds_server::hot */
    struct ds_list dirty; /* ds_server::dirty: completions posted, not yet published */
    struct ds_list calls; /* ds_call::in_session */
    struct ds_server *server;
    uint64_t id;
    enum ds_session_state state;
    int socket; /* owned */
    struct ds_peer peer;
    struct ds_user *user;
    char program[33];
    struct ds_channel *channel; /* from WELCOMED on */
    uint64_t region_bytes;
    struct ds_watch *on_socket, *on_bell, *bell;
    struct ds_timer handshake, stall;
    uint64_t stalled_since_nsec; /* 0: not stalled */
    uint32_t n_calls;
    uint64_t last_traffic_nsec;
    struct ds_attachment *attachments; /* [n_attachments] */
    uint32_t n_attachments;

    bool goodbye; /* left in good order */
    bool held;    /* an answer below found no room: nothing more is taken until it has */
    struct ds_cqe held_entry;
    uint8_t held_bytes[DS_REFUSAL_MAX];
    size_t held_size;
};

/* Takes socket, even when it fails. Refusals are told to the peer. */
int ds_session_new(struct ds_server *server, int socket);
struct ds_session *ds_session_free(struct ds_session *session); /* accepts NULL */

/* Drops the client: reason for the log, NULL where there is nothing to say. Its calls with keys go
 * on for the grace time, unless goodbye. */
void ds_session_drop(struct ds_session *session, const char *reason, bool goodbye);

/* Takes what is in the submission ring, a bounded number. True: something was there. */
bool ds_session_drain(struct ds_session *session);

/* Posts one completion, to be published at the end of the turn. 0, DS_CHANNEL_FULL (and the
 * session is stalled: what waits is retried by timer), -EMSGSIZE, or another negative: the session
 * has been dropped. */
int ds_session_post(struct ds_session *session, const struct ds_cqe *entry, const void *payload,
                    size_t size, bool last);

/* Answers an entry that made no call. */
__attribute__((format(printf, 5, 6))) void ds_session_refuse(struct ds_session *session,
                                                             uint64_t req_id, Ds__Error__Code code,
                                                             uint32_t retry_after_ms,
                                                             const char *format, ...);

/* Publishes and rings. Makes the session clean. */
void ds_session_publish(struct ds_session *session);

void ds_session_warm(struct ds_session *session); /* hot from now on */
/* Ready to sleep: true when the session went cold; false: there is work. */
bool ds_session_cool(struct ds_session *session);

/* The complete files handed over under number, or NULL. Looks into the socket where needed. */
const struct ds_model_files *ds_session_attachment(struct ds_session *session, uint64_t number);

/* Tells the client that the daemon is stopping. */
void ds_session_say_goodbye(struct ds_session *session);
