/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_dsd.h - plays dsd for a real dsd-engine process, over a real channel.
 *
 * What goes wrong here ends the test (cmocka assertions), so calls return what was asked for. Every
 * wait has a limit of DS_FAKE_WAIT_MSEC.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/ds.pb-c.h"
#include "shm/channel.h"

#define DS_FAKE_WAIT_MSEC 60000

struct ds_fake_dsd {
    pid_t pid; /* of the engine; -1 after it was waited for */
    int socket;
    struct ds_channel *channel;
};

/* Starts build/dsd-engine with the arguments given (NULL-terminated, may be NULL) and shakes hands.
 * geometry NULL: the default. Free with ds_fake_dsd_stop(). */
void ds_fake_dsd_start(struct ds_fake_dsd *fake, const struct ds_geometry *geometry,
                       const char *const *arguments);

/* Only the process: fake->socket is our end, no handshake yet. */
void ds_fake_dsd_spawn(struct ds_fake_dsd *fake, const char *const *arguments);

/* The program under test: $DSD_BUILD/dsd-engine, else dsd-engine in the folder above the test's. */
const char *ds_fake_engine_path(void);

/* Hangs up, waits for the engine, returns its wait status. */
int ds_fake_dsd_stop(struct ds_fake_dsd *fake);

/* Waits for the engine to end by itself: its wait status. */
int ds_fake_dsd_wait(struct ds_fake_dsd *fake);

/* A LOAD in datagrams of at most fds_each descriptors. */
void ds_fake_load(struct ds_fake_dsd *fake, const Ds__LinkLoad *load, const int *fds,
                  unsigned fds_each);
void ds_fake_submit(struct ds_fake_dsd *fake, uint64_t req_id, const Ds__LinkRequest *request);
void ds_fake_entry(struct ds_fake_dsd *fake, enum ds_sqe_op op, uint64_t req_id);

/* One completion, whole: pieces are joined. */
struct ds_fake_completion {
    struct ds_cqe entry; /* of the last piece */
    uint8_t *bytes;      /* owned */
    size_t size;
    unsigned n_pieces;
};

void ds_fake_next(struct ds_fake_dsd *fake, struct ds_fake_completion *ret_completion);
bool ds_fake_quiet(struct ds_fake_dsd *fake, int msec); /* nothing came for so long */

/* Gathered from STEP records: all there is to know of one generation. */
struct ds_fake_answer {
    uint64_t req_id;
    uint32_t ids[8192];
    size_t n_ids;
    char text[65536]; /* NUL added */
    size_t n_text;
    size_t n_logprobs;
    uint32_t prompt_tokens; /* of the first record */
    bool ended;
    Ds__Reason reason; /* where it did not fail */
    Ds__Error__Code error;
    char error_text[512];
    char stop[64];
    uint32_t usage_prompt, usage_cached, usage_completion;
};

/* Reads completions until each of the n answers (req_id set) has ended, or has min_ids tokens
 * (min_ids 0: has ended). Records of others fail the test; completions that are no STEP are passed
 * over. */
void ds_fake_collect(struct ds_fake_dsd *fake, struct ds_fake_answer **answers, size_t n,
                     size_t min_ids);

/* The reply to a request that is no generation: the reply and *ret_error NULL, or the reverse. Free
 * both with ds_message_free(). Notices are counted in *ret_notices (NULL allowed). */
Ds__LinkReply *ds_fake_reply(struct ds_fake_dsd *fake, uint64_t req_id, Ds__Error **ret_error,
                             unsigned *ret_notices);
