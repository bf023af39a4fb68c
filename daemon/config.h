/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.h - dsd.conf and its drop-ins: one table of keys says type, range, default and meaning.
 *
 * FILE is read first, then the *.conf files of FILE.d in the order of their names; later values
 * win. An unknown key or a value out of range is an error that names file, line, key, value and
 * range.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct ds_error;

#define DS_CONFIG_DEFAULT    "/etc/dsd/dsd.conf"
#define DS_CONFIG_STRING_MAX 4096u
#define DS_ADMINS_MAX        64u

enum ds_config_loop { DS_CONFIG_LOOP_AUTO, DS_CONFIG_LOOP_URING, DS_CONFIG_LOOP_EPOLL };

enum ds_config_speculation { DS_CONFIG_SPEC_OFF, DS_CONFIG_SPEC_NGRAM, DS_CONFIG_SPEC_MTP };

struct ds_config { /* what each field means is said once, in the table in config.c */
    char *socket, *models, *default_model, *engine, *admin_users; /* owned */
    uint32_t log_level, loop, spin_usec;
    uint32_t drain_sec, reconnect_grace_sec, handshake_sec, stall_sec;

    uint32_t clients, clients_per_user, requests_per_client, requests_per_user;
    uint32_t attachments_per_client;
    uint64_t queued_bytes_per_user, region_bytes_per_user, arena_bytes_max, replay_bytes;

    uint32_t threads, context, max_step_ms, speculation, hang_sec, start_sec, load_sec, crashes_max;
    uint32_t kv_type; /* Ds__KvType */
    uint64_t memory, kv_bytes;

    uint32_t admins[DS_ADMINS_MAX]; /* admin_users resolved */
    uint32_t n_admins;
};

/* Defaults of this process: its own user, its directories. -ENOMEM. */
int ds_config_init(struct ds_config *config);
void ds_config_deinit(struct ds_config *config);

/* Reads path and its drop-ins over what is there. A missing file is an error only where required.
 * On failure error says file, line, key and reason. */
int ds_config_read(struct ds_config *config, const char *path, bool required,
                   struct ds_error *error);

/* One value, as the command line gives it: where is named in the error text. -EINVAL. */
int ds_config_set(struct ds_config *config, const char *section, const char *key, const char *value,
                  const char *where, struct ds_error *error);

/* Relations between values; resolves admin_users. After the last set. */
int ds_config_check(struct ds_config *config, struct ds_error *error);

/* The effective configuration in the format of the file, every key with its comment. */
void ds_config_print(const struct ds_config *config, FILE *out);

/* May uid administer the daemon (unload, pin, cancel others' requests)? root, dsd's own user,
 * admin_users. */
bool ds_config_is_admin(const struct ds_config *config, uint32_t uid);
