/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/users.h"

#include <assert.h>

static bool is_active(const struct ds_user *user)
{
    return user->n_running > 0 || user->n_waiting > 0;
}

void ds_users_deinit(struct ds_users *users)
{
    for (uint32_t i = 0; i < users->n; i++) {
        assert(!is_active(users->list[i]));
        free(users->list[i]);
    }
    free(users->list);
    *users = (struct ds_users){ 0 };
}

/* Lowest counter of the users with jobs; UINT64_MAX where nobody has any. */
static uint64_t lowest_counter(const struct ds_users *users)
{
    uint64_t lowest = UINT64_MAX;

    for (uint32_t i = 0; i < users->n; i++) {
        if (is_active(users->list[i]) && users->list[i]->counter < lowest)
            lowest = users->list[i]->counter;
    }
    return lowest;
}

/* An idle user not above the lowest counter would start level with it: as good as unknown. */
static void forget_idle(struct ds_users *users, uint64_t lowest)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < users->n; i++) {
        struct ds_user *user = users->list[i];

        if (is_active(user) || user->counter > lowest)
            users->list[kept++] = user;
        else
            free(user);
    }
    users->n = kept;
}

static int make_user(struct ds_users *users, uint32_t uid, struct ds_user **ret_user)
{
    struct ds_user *user;

    if (users->n == users->capacity) {
        uint32_t capacity = users->capacity ? 2 * users->capacity : 8;
        struct ds_user **list = reallocarray(users->list, capacity, sizeof(struct ds_user *));

        if (!list)
            return -ENOMEM;
        users->list = list;
        users->capacity = capacity;
    }
    user = calloc(1, sizeof *user);
    if (!user)
        return -ENOMEM;
    user->uid = uid;
    users->list[users->n++] = user;
    *ret_user = user;
    return 0;
}

int ds_users_get(struct ds_users *users, uint32_t uid, struct ds_user **ret_user)
{
    uint64_t lowest = lowest_counter(users);
    struct ds_user *user = NULL;
    int r;

    for (uint32_t i = 0; i < users->n; i++) {
        if (users->list[i]->uid == uid)
            user = users->list[i];
    }
    if (!user) {
        forget_idle(users, lowest);
        r = make_user(users, uid, &user);
        if (r < 0)
            return r;
    }
    if (!is_active(user) && lowest != UINT64_MAX && user->counter < lowest)
        user->counter = lowest;
    *ret_user = user;
    return 0;
}

void ds_user_enqueue(struct ds_user *user, struct ds_sequence *sequence)
{
    struct ds_sequence *before = user->newest; /* one that was put back goes near the front */

    while (before && before->arrival > sequence->arrival)
        before = before->older;
    sequence->older = before;
    sequence->newer = before ? before->newer : user->oldest;
    *(before ? &before->newer : &user->oldest) = sequence;
    *(sequence->newer ? &sequence->newer->older : &user->newest) = sequence;
    user->n_waiting++;
}

void ds_user_dequeue(struct ds_user *user, struct ds_sequence *sequence)
{
    assert(user->n_waiting > 0);
    *(sequence->older ? &sequence->older->newer : &user->oldest) = sequence->newer;
    *(sequence->newer ? &sequence->newer->older : &user->newest) = sequence->older;
    sequence->older = sequence->newer = NULL;
    user->n_waiting--;
}
