/* SPDX-License-Identifier: Apache-2.0 */
/*
 * users.h - who is served next: a virtual token counter per uid.
 *
 * Every user has a counter of the work done for it (a prompt token computed counts 1, an answer
 * token 2); whoever has the lowest is next, and within one user the oldest job. A user who comes
 * back from having nothing to do starts level with the lowest counter of those who wait or run, so
 * idleness saves up no claim. Source: Sheng et al. 2023, "Fairness in serving large language
 * models".
 *
 * A user is remembered while it has jobs, or while its counter still matters.
 */
#pragma once

#include <stdint.h>

#include "engine/serve/sequence.h"

enum { DS_USER_PROMPT_WEIGHT = 1, DS_USER_ANSWER_WEIGHT = 2 };

struct ds_user {
    uint32_t uid;
    uint32_t n_running;
    uint32_t n_waiting;
    uint64_t counter;           /* weighted tokens */
    struct ds_sequence *oldest; /* its waiting sequences by arrival, linked through them */
    struct ds_sequence *newest;
};

struct ds_users {
    struct ds_user **list;
    uint32_t n, capacity;
};

void ds_users_deinit(struct ds_users *users); /* no sequence may be left in it */

/* The user with uid, made where there is none; its counter is lifted if it had no jobs. -ENOMEM. */
int ds_users_get(struct ds_users *users, uint32_t uid, struct ds_user **ret_user);

/* Puts a sequence among the waiting ones of its user, by arrival, or takes it from there. */
void ds_user_enqueue(struct ds_user *user, struct ds_sequence *sequence);
void ds_user_dequeue(struct ds_user *user, struct ds_sequence *sequence);
