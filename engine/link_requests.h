/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_requests.h - every request the engine has not finished, by the id dsd gave it.
 *
 * A request is in the table from its arrival until its last completion is in the outbox. Pointers
 * stay valid until ds_requests_remove(). One thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum ds_request_kind {
    DS_REQUEST_GENERATE, /* answered by DS_CQE_STEP records */
    DS_REQUEST_SCORE,    /* runs in the scheduler, answered by one DS_CQE_FINAL */
    DS_REQUEST_TEXT,     /* tokenise, detokenise, template: the text thread alone */
    DS_REQUEST_LIMITS,   /* answered at once */
    DS_REQUEST_LOAD,
    DS_REQUEST_UNLOAD,
};

struct ds_link_model;
struct ds_load_task;

struct ds_link_request {
    struct ds_link_request *next; /* ds_requests::buckets */
    uint64_t id;
    enum ds_request_kind kind;
    uint32_t seq;                /* of its next completion */
    struct ds_link_model *model; /* borrowed; NULL for a load */
    struct ds_load_task *load;   /* borrowed while a load is under way */
    bool scheduled;              /* the scheduler has it */
    bool cancelled;              /* dsd took it back before it was scheduled */
    bool dropped;                /* its model is being unloaded: no answer is wanted */
};

#define DS_REQUEST_BUCKETS 1024u /* a power of two */

struct ds_requests {
    struct ds_link_request *buckets[DS_REQUEST_BUCKETS];
    unsigned n;
};

/* Zeroed memory is an empty table. */
void ds_requests_deinit(struct ds_requests *requests);

/* -EEXIST: an unfinished request has this id; -ENOMEM. */
int ds_requests_add(struct ds_requests *requests, uint64_t id, enum ds_request_kind kind,
                    struct ds_link_model *model, struct ds_link_request **ret_request);
struct ds_link_request *ds_requests_find(struct ds_requests *requests, uint64_t id); /* or NULL */
void ds_requests_remove(struct ds_requests *requests, struct ds_link_request *request);

/* Of model's requests: marks those as dropped that the scheduler does not have yet, and removes
 * those that it has. keep: one request to leave alone. Returns the number marked. */
unsigned ds_requests_drop_model(struct ds_requests *requests, const struct ds_link_model *model,
                                const struct ds_link_request *keep);
