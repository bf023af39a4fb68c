/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dsd_process.h - for tests of the daemon: build/dsd with the fake engine, in a directory of its
 * own, and a client that speaks to it directly over shm/ (so that it can also misbehave).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/message.h"
#include "shm/channel.h"

struct dsd_process {
    char directory[64]; /* holds dsd.sock, dsd.conf, models/, log */
    char socket[96];
    pid_t pid;
    bool real_engine; /* build/dsd-engine instead of the fake one; set before dsd_start() */
};

/* Models: pairs of name and content, ended by NULL. config: lines of dsd.conf, or "". loop: "auto"
 * or "epoll". Waits until it answers. Fails the test where it cannot. */
void dsd_start(struct dsd_process *dsd, const char *loop, const char *config,
               const char *const *models);
void dsd_again(struct dsd_process *dsd, const char *loop); /* after an end: same directory */
/* SIGTERM (0 = do not signal), waits at most 10 s: exit status as of waitpid(), -1 it hangs. */
int dsd_end(struct dsd_process *dsd, int signal);
void dsd_remove(struct dsd_process *dsd); /* the directory; prints the log where asked */
void dsd_add_model(struct dsd_process *dsd, const char *name, const char *content);
bool dsd_alive(const struct dsd_process *dsd);
pid_t dsd_engine_pid(const struct dsd_process *dsd); /* 0: none now */
bool dsd_log_has(const struct dsd_process *dsd, const char *text);
unsigned dsd_count_fds(const struct dsd_process *dsd);
uint64_t dsd_switches(pid_t pid); /* context switches of all its threads */

/* --- a client --- */

struct raw_client {
    int socket;
    struct ds_channel *channel;
    uint64_t next_id;
};

/* Connects and shakes hands; geometry may be NULL. 0, or -errno (-ECONNREFUSED: REJECT). */
int raw_connect(struct raw_client *client, const char *socket, const struct ds_geometry *geometry);
void raw_close(struct raw_client *client, bool goodbye);

/* Submits; returns its req_id, or 0 where there is no room. key may be NULL. */
uint64_t raw_submit(struct raw_client *client, const Ds__Request *request, const uint8_t *key,
                    uint32_t resume_from);
void raw_entry(struct raw_client *client, uint16_t op, uint64_t req_id);
uint64_t raw_generate(struct raw_client *client, const char *model, const char *prompt,
                      uint32_t max_tokens, uint64_t seed);

/* What has come for one request. */
struct raw_answer {
    uint64_t req_id;
    uint32_t ids[8192];
    uint32_t n_ids;
    char *text;
    size_t n_text;
    unsigned accepted, notices, coalesced, pieces, pongs;
    uint32_t next_seq;
    bool wrong_seq, done;
    uint16_t last_type;
    void *last; /* packed Reply or Error */
    size_t last_size;
    char stage[32];
};

struct raw_answer *raw_answer_new(uint64_t req_id);
struct raw_answer *raw_answer_free(struct raw_answer *answer);

/* Takes completions for the answers until all are done or msec have passed. True: all done. */
bool raw_wait(struct raw_client *client, struct raw_answer **answers, unsigned n, int msec);

/* The last completion; fails the test where it is none of that kind. Free with ds_message_free().
 */
Ds__Reply *raw_reply(const struct raw_answer *answer);
Ds__Error *raw_error(const struct raw_answer *answer);

/* Submits and waits; the caller frees. */
struct raw_answer *raw_call(struct raw_client *client, const Ds__Request *request, int msec);
