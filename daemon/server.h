/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.h - all of dsd in one structure, and the loop that turns it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/admission.h"
#include "daemon/config.h"
#include "daemon/engine_process.h"
#include "daemon/list.h"
#include "daemon/loop.h"
#include "daemon/registry.h"

#define DS_BUCKETS 1024u /* of the two tables of calls; a power of two */

struct ds_server {
    struct ds_config config;
    /* Reads the configuration again into a fresh one, for SIGHUP. */
    int (*reload)(void *arg, struct ds_config *ret_config, struct ds_error *error);
    void *reload_arg;

    struct ds_loop *loop;
    struct ds_admission admission;
    struct ds_registry *registry;
    struct ds_engine_process engine;

    int listen_fd;     /* -1: closed */
    char *unlink_path; /* a socket that we made; NULL: systemd's */
    struct ds_watch *on_accept, *on_signal;
    int signal_fd;
    struct ds_timer accept_rest, drain, watchdog, keep;
    uint64_t watchdog_nsec;

    struct ds_list sessions; /* ds_session::link */
    struct ds_list dead;     /* ds_session::link, to be freed at the end of the turn */
    struct ds_list hot, dirty;
    struct ds_list calls;     /* ds_call::link, in the order of their coming */
    struct ds_list kept;      /* ds_call::link, finished, oldest first */
    struct ds_list residents; /* ds_resident::link */
    struct ds_list by_engine[DS_BUCKETS], by_key[DS_BUCKETS];
    uint64_t kept_bytes;
    uint32_t n_kept, n_calls, n_waiting;

    uint64_t epoch;
    uint64_t next_id; /* of calls, sessions, engine requests */
    uint32_t next_model_id;
    uint64_t now_nsec; /* of this turn, a little late at worst */
    uint64_t started_nsec;
    uint64_t n_tokens, n_done;
    uint32_t spin_nsec;
    bool draining, stop;
};

/* Takes config (moved). On failure nothing remains. */
int ds_server_init(struct ds_server *server, struct ds_config *config, struct ds_error *error);
void ds_server_deinit(struct ds_server *server);

/* The socket: systemd's, or our own. */
int ds_server_listen(struct ds_server *server, struct ds_error *error);

/* Turns until stopped. 0, or negative errno. */
int ds_server_run(struct ds_server *server);

/* No new requests; stops when the last one is over, or after drain_sec. Again: stops now. */
void ds_server_drain(struct ds_server *server);
void ds_server_reload(struct ds_server *server);

/* Called when a call or session ended: may be the last one. */
void ds_server_check_drained(struct ds_server *server);
