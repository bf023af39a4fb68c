/* SPDX-License-Identifier: Apache-2.0 */
/*
 * admission.h - who is there and how much of everything each user holds.
 *
 * Identity is SO_PEERCRED, sampled when the connection was made. Each thing is charged once and
 * released once; a user's account exists while something is charged to it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/list.h"

struct ds_config;
struct ds_error;
struct ds_user;

struct ds_admission {
    const struct ds_config *config; /* borrowed; limits are read at each charge */
    struct ds_list users;           /* struct ds_user::link */
    uint32_t n_clients;
};

struct ds_peer {
    uint32_t uid, gid, pid;
};

enum { DS_ADMITTED, DS_REFUSED };

void ds_admission_init(struct ds_admission *admission, const struct ds_config *config);
void ds_admission_deinit(struct ds_admission *admission);

int ds_peer_of(int socket, struct ds_peer *ret_peer); /* negative errno */

/* One connection. DS_ADMITTED: *ret_user holds it until ds_admission_leave(). DS_REFUSED: error
 * says which limit. -ENOMEM. */
int ds_admission_enter(struct ds_admission *admission, uint32_t uid, struct ds_user **ret_user,
                       struct ds_error *error);
void ds_admission_leave(struct ds_admission *admission, struct ds_user *user);

int ds_admission_charge_region(struct ds_admission *admission, struct ds_user *user, uint64_t bytes,
                               struct ds_error *error);
void ds_admission_release_region(struct ds_admission *admission, struct ds_user *user,
                                 uint64_t bytes);

/* One request of size bytes. The account outlives the connection that is charged for it. */
int ds_admission_charge_request(struct ds_admission *admission, struct ds_user *user, size_t size,
                                struct ds_error *error);
void ds_admission_release_request(struct ds_admission *admission, struct ds_user *user,
                                  size_t size);

uint32_t ds_user_uid(const struct ds_user *user);
