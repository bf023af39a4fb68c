/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_state.h - what the files of the link share: its state, and the calls between them.
 *
 *   link.c          handshake, the loop, waiting
 *   link_request.c  ring entries: submit, cancel, ping, unload; the text thread's tasks
 *   link_load.c     LOAD datagrams and the loader's tasks
 *   link_lora.c     adapters of resident models
 *   link_draft.c    resident models that guess for others
 *   link_send.c     completions: step records, final replies, errors, news
 *
 * Everything here runs on the loop thread. Calls return 0 or a negative errno that ends the engine;
 * failures of one request are answered to dsd and are no failure here.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/link_model.h"
#include "engine/link_outbox.h"
#include "engine/link_reply.h"
#include "engine/link_requests.h"
#include "engine/worker.h"
#include "shm/channel.h"

struct ds_load_task; /* link_load.c */

struct ds_load_parts {                    /* a load whose descriptors are still coming in */
    Ds__LinkLoad *message;                /* owned; NULL: none under way */
    int fds[DS_MODEL_FILES_MAX];          /* owned */
    char *file_names[DS_MODEL_FILES_MAX]; /* owned; NULL where not said */
    unsigned n_fds;
};

struct ds_link {
    struct ds_link_environment environment;
    int socket;
    struct ds_channel *channel;
    struct ds_results *results;
    struct ds_worker *loader, *texter;
    struct ds_link_model *models; /* resident, and closing ones */
    struct ds_load_task *loads;   /* queued or under way */
    struct ds_load_parts parts;
    struct ds_requests requests;
    struct ds_outbox outbox;
    size_t piece_max;          /* payload bytes of one completion */
    struct ds_step_bytes step; /* of the step that runs */
    uint32_t step_seq;
    struct ds_limits limits; /* as last measured */
    uint64_t limits_nsec;    /* when; 0: never */
    const struct ds_link_model *stepping;
    int failure;  /* first failure inside a callback; ends the loop */
    bool closing; /* dsd said goodbye */
    struct ds_error error;
};

/* --- link_request.c --- */
int ds_link_drain(struct ds_link *link); /* everything that is in the ring */
struct ds_link_model *ds_link_find_model(struct ds_link *link, uint32_t id); /* NULL: none */
/* The last task of a helper thread on a closing model is done: frees it and answers the unload. */
int ds_link_finish_unload(struct ds_link *link, struct ds_link_model *model);

/* --- link_load.c --- */
int ds_link_load_datagram(struct ds_link *link, const void *bytes, size_t size, int *fds,
                          unsigned n_fds);   /* takes the descriptors */
int ds_link_load_news(struct ds_link *link); /* tells dsd how far loads are */
void ds_link_load_cancel(struct ds_load_task *load);
void ds_link_load_cancel_all(struct ds_link *link);
void ds_load_parts_deinit(struct ds_load_parts *parts);

/* --- link_lora.c --- */

/* On the loader thread: an adapter from its files. Errors as ds_lora_file_open(), ds_adapter_new().
 */
int ds_link_lora_make(const struct ds_link_model *model, const struct ds_load_parts *parts,
                      struct ds_adapter **ret_adapter, struct ds_error *error);
/* Requests may name it by id from now on; takes a reference of its own. -ENOMEM. */
int ds_link_lora_adopt(struct ds_link_model *model, uint32_t id, struct ds_adapter *adapter,
                       struct ds_error *error);
struct ds_adapter *ds_link_lora_find(const struct ds_link_model *model, uint32_t id); /* or NULL */
int ds_link_lora_send(struct ds_link *link, struct ds_link_request *request,
                      const struct ds_adapter *adapter, const char *name); /* ends */
int ds_link_lora_unload(struct ds_link *link, struct ds_link_request *request,
                        struct ds_link_model *model, uint32_t id); /* ends */

/* --- link_draft.c --- */

/* The drafter of the resident model id for requests on model, which must have the same vocabulary:
 * else -EINVAL; -ENOENT. *ret_drafter NULL: there is no memory for it. */
int ds_link_draft_find(struct ds_link *link, struct ds_link_model *model, uint32_t id,
                       struct ds_drafter **ret_drafter, struct ds_error *error);
/* draft is about to go: nobody drafts with it any more. */
void ds_link_draft_forget(struct ds_link *link, const struct ds_link_model *draft);

/* --- link_send.c: send_* that end a request remove it --- */
int ds_link_send_bytes(struct ds_link *link, struct ds_link_request *request, enum ds_cqe_type type,
                       void *bytes, size_t size); /* takes bytes */
int ds_link_send_final(struct ds_link *link, struct ds_link_request *request, void *bytes,
                       size_t size); /* takes bytes; ends */
int ds_link_send_error(struct ds_link *link, struct ds_link_request *request,
                       enum ds_reply_phase phase, int r, const char *text);        /* ends */
int ds_link_send_cancelled(struct ds_link *link, struct ds_link_request *request); /* ends */
int ds_link_send_stray_error(struct ds_link *link, uint64_t req_id, Ds__Error__Code code,
                             const char *text); /* for what is no request */
int ds_link_send_pong(struct ds_link *link, uint64_t req_id);
int ds_link_step(struct ds_link *link, struct ds_link_model *model); /* one scheduler step */
int ds_link_flush(struct ds_link *link);                             /* outbox to channel, bell */
void ds_link_ring(struct ds_link *link); /* where dsd waits for what was done */
