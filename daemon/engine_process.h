/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_process.h - dsd-engine as dsd sees it: spawned, spoken to, watched, replaced.
 *
 *   DOWN -> STARTING (READY expected) -> RUNNING -> DYING (killed or hung up; not reaped) -> DOWN
 *
 * The engine is believed no more than a client: its messages are bounded and copied, ids that dsd
 * does not know are ignored, and a broken protocol costs it its life. Its death costs a pause: the
 * next one loads what was resident and gets every call again, with the tokens delivered.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/list.h"
#include "daemon/loop.h"
#include "proto/message.h"
#include "shm/channel.h"

struct ds_call;
struct ds_model_files;
struct ds_server;

enum ds_engine_state {
    DS_ENGINE_DOWN,
    DS_ENGINE_STARTING,
    DS_ENGINE_RUNNING,
    DS_ENGINE_DYING,
};

#define DS_CRASH_POINTS      4u /* for a crash of its own: signal, exit, lie, hang */
#define DS_CRASH_POINTS_KILL 1u /* for a SIGKILL from outside: a person, or the OOM killer */

struct ds_assembly {     /* a payload that comes in pieces (DS_CQE_MORE) */
    struct ds_list link; /* ds_engine_process::assemblies */
    uint64_t req_id;
    uint16_t type;
    uint8_t *bytes;
    size_t size, capacity;
};

struct ds_engine_process {
    struct ds_server *server;
    enum ds_engine_state state;
    pid_t pid;
    int pidfd, socket; /* -1: none */
    struct ds_channel *channel;
    struct ds_watch *on_exit, *on_socket, *on_bell, *bell;
    struct ds_timer start, retry, hang;
    bool awake;                  /* the link is looked at in every turn */
    bool ring_due;               /* something was submitted */
    bool lied;                   /* broke the protocol or hung: its death is its own */
    bool ready;                  /* it came up */
    uint32_t restarts, failures; /* in all; in a row without progress */
    uint32_t unready;            /* in a row that never came up */
    uint64_t sign_of_life_nsec;
    uint32_t n_running;        /* calls it has */
    struct ds_call *probation; /* the one suspect that is tried now */
    struct ds_list assemblies;
    size_t assembly_bytes;
    char path[512];
    char description[128]; /* what READY said of itself */
};

void ds_engine_process_init(struct ds_engine_process *engine, struct ds_server *server);
/* Kills it and waits for it. */
void ds_engine_process_deinit(struct ds_engine_process *engine);

/* Finds the program: the configured path, else beside dsd, else libexec. -ENOENT. */
int ds_engine_process_find(struct ds_engine_process *engine, const char *configured,
                           struct ds_error *error);

void ds_engine_process_start(struct ds_engine_process *engine);

/* Broke the protocol or hung: kills it. */
void ds_engine_process_condemn(struct ds_engine_process *engine, const char *reason);

/* Sends packed LinkLoad with the files that *sent does not count yet. 0 when all are out; -EAGAIN:
 * again later; other negatives: the socket is broken. */
int ds_engine_process_load(struct ds_engine_process *engine, const Ds__LinkLoad *load,
                           const struct ds_model_files *files, unsigned *sent);

/* --- engine_link.c: the rings --- */

/* Sends every call that can go out. */
void ds_engine_link_pump(struct ds_engine_process *engine);
/* 0, DS_CHANNEL_FULL, -errno. */
int ds_engine_link_cancel(struct ds_engine_process *engine, uint64_t engine_id);
int ds_engine_link_unload(struct ds_engine_process *engine, uint32_t model_id, uint64_t engine_id);
int ds_engine_link_lora_unload(struct ds_engine_process *engine, uint32_t model_id,
                               uint32_t lora_id, uint64_t engine_id);
/* Takes completions; true: something was there. Condemns the engine where it lies. */
bool ds_engine_link_drain(struct ds_engine_process *engine);
void ds_engine_link_ring(struct ds_engine_process *engine);
void ds_engine_link_forget_pieces(struct ds_engine_process *engine);
