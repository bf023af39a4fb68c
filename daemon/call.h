/* SPDX-License-Identifier: Apache-2.0 */
/*
 * call.h - one request in flight: from its SUBMIT until its last completion is in the client's
 * ring.
 *
 * A call remembers all that is needed to begin again: the packed request and every token yielded
 * so far (token_log.h). So it survives the engine (it is sent again with the tokens delivered) and,
 * where it has an idempotency key, the client's connection (it goes on for a while, waiting to be
 * attached to the next one).
 *
 *   LOADING -> WAITING -> RUNNING -> FINISHED -> freed, or kept for replay
 *      ^          ^----------+ engine died, or the client reads too slowly
 *      +---------------------+ engine died
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/list.h"
#include "daemon/loop.h"
#include "daemon/token_log.h"
#include "proto/message.h"
#include "shm/wire.h"

struct ds_lora;
struct ds_model_files;
struct ds_resident;
struct ds_server;
struct ds_session;
struct ds_user;

enum ds_call_state {
    DS_CALL_LOADING,  /* its model is not resident yet, or not again */
    DS_CALL_WAITING,  /* could be sent; the engine or the client has no room */
    DS_CALL_RUNNING,  /* the engine has it */
    DS_CALL_FINISHED, /* its last completion is known, though perhaps not yet delivered */
};

struct ds_item { /* a payload on its way to the client, perhaps in several entries; owned */
    void *bytes;
    size_t size, sent;
    uint32_t n_tokens;
    uint16_t type, flags;
};

struct ds_call {
    struct ds_list link;        /* ds_server::calls, or ::kept once finished and delivered */
    struct ds_list in_session;  /* ds_session::calls */
    struct ds_list in_resident; /* ds_resident::calls */
    struct ds_list in_lora;     /* ds_lora::calls */
    struct ds_list in_draft;    /* ds_resident::drafts */
    struct ds_list by_engine;   /* bucket of ds_server::by_engine, while RUNNING */
    struct ds_list by_key;      /* bucket of ds_server::by_key, where it has a key */
    struct ds_server *server;
    struct ds_session *session; /* NULL: nobody listens (any more, or for now) */
    struct ds_resident *resident;
    struct ds_lora *lora; /* NULL: the model as it is */
    float lora_scale;
    struct ds_resident *draft; /* guesses tokens ahead; NULL: none */
    bool drafts;               /* had one at some time */
    struct ds_user *user;      /* charged for packed_size while not NULL */
    uint64_t id;               /* as `dsctl requests` prints it */
    uint64_t req_id;           /* the client's */
    uint64_t session_id;       /* of the last session, for finding what was kept for it */
    uint64_t engine_id;        /* of the last sending; 0 while not RUNNING */
    uint32_t uid, pid;
    char program[33];
    uint8_t key[16];
    bool has_key;
    enum ds_call_state state;
    Ds__Request__OpCase op;
    void *packed; /* the Request, owned */
    size_t packed_size;
    uint64_t submitted_nsec, deadline_nsec;
    struct ds_timer deadline, grace;

    uint32_t n_given; /* tokens the client said it had in the first place; log counts on */
    struct ds_token_log log;
    uint32_t prompt_tokens;

    /* delivery, in this order */
    uint32_t seq;
    bool accept_due;
    struct ds_item item;  /* begun and not done */
    uint32_t next_record; /* of log, to be delivered next */
    bool notice_due;
    char stage[24];
    double fraction;
    struct ds_item last; /* FINAL or ERROR; bytes NULL until FINISHED */
    size_t kept_bytes;   /* nonzero: in ds_server::kept, counting so much */

    bool stalled, withdrawn;      /* the client has no room; so the engine was told to stop */
    bool cancelled, cancel_due;   /* cancel_due: the engine has not been told yet */
    bool progressed;              /* since it was sent */
    struct ds_model_files *files; /* ShowRequest: goes out as a LOAD on the socket; owned */
    bool want_tensors, verify;
    bool demanding;        /* LoadRequest that names a context or kv_type */
    uint32_t crash_points; /* engine deaths since it last progressed; see engine_process.c */
};

/* A call for what session submitted: payload is copied. Charges the user. DS_ADMITTED, DS_REFUSED
 * (error), -ENOMEM. Not yet started. */
int ds_call_new(struct ds_call **ret_call, struct ds_session *session, const struct ds_sqe *entry,
                const void *payload, Ds__Request__OpCase op, struct ds_error *error);
struct ds_call *ds_call_free(struct ds_call *call); /* accepts NULL */

/* Ends the call at at_nsec (0: never) unless the engine has it then: it has the deadline too. */
void ds_call_set_deadline(struct ds_call *call, uint64_t at_nsec);

struct ds_call *ds_call_by_engine(struct ds_server *server, uint64_t engine_id);
struct ds_call *ds_call_by_key(struct ds_server *server, uint32_t uid, const uint8_t key[16]);

/* The call is with the engine under a new engine id, or (ds_call_recall) no longer: what still
 * comes under the old id is ignored. */
void ds_call_sent(struct ds_call *call, uint64_t engine_id);
void ds_call_recall(struct ds_call *call);

/* --- the ends; each may free the call --- */
void ds_call_reply(struct ds_call *call, const Ds__Reply *reply);
void ds_call_error(struct ds_call *call, const Ds__Error *error);
__attribute__((format(printf, 4, 5))) void ds_call_fail(struct ds_call *call, Ds__Error__Code code,
                                                        uint32_t retry_after_ms, const char *format,
                                                        ...);
/* Ends a generation that the engine does not run with what there is. Others fail. */
void ds_call_end(struct ds_call *call, Ds__Reason reason);

/* What the engine yielded. May free the call. */
void ds_call_tokens(struct ds_call *call, const Ds__TokenChunk *chunk);
void ds_call_progress(struct ds_call *call, const char *stage, double fraction);

/* Moves what is due into the client's ring, as much as fits. May free the call. */
void ds_call_deliver(struct ds_call *call);

/* The client wants it ended, or has gone for good. Idempotent. May free the call. */
void ds_call_cancel(struct ds_call *call);

/* The connection is gone. With a key the call goes on for the grace time. May free the call. */
void ds_call_orphan(struct ds_call *call);

/* The same request came again on session: goes on there after resume_from tokens. -EINVAL: does
 * not fit what is here; begin anew. Takes the call from the session it was on. */
int ds_call_attach(struct ds_call *call, struct ds_session *session, const struct ds_sqe *entry);

/* The client left its completions unread for too long. */
void ds_call_give_up(struct ds_call *call);

/* Its last completion is in the ring. With a key it is kept for a client that loses the ring with
 * its connection; else freed. */
void ds_call_delivered(struct ds_call *call);

/* Calls kept for a session that has gone: with goodbye they are dropped, else kept for the grace
 * time. */
void ds_calls_forget(struct ds_server *server, uint64_t session_id, bool goodbye);
