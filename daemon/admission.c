/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/admission.h"

#include "daemon/config.h"
#include "proto/base.h"

#include <assert.h>
#include <inttypes.h>
#include <sys/socket.h>

struct ds_user {
    struct ds_list link; /* ds_admission::users */
    uint32_t uid;
    uint32_t n_clients, n_requests;
    uint64_t region_bytes, queued_bytes;
};

void ds_admission_init(struct ds_admission *admission, const struct ds_config *config)
{
    *admission = (struct ds_admission){ .config = config };
    ds_list_init(&admission->users);
}

void ds_admission_deinit(struct ds_admission *admission)
{
    struct ds_user *user;

    ds_list_each(user, &admission->users, link)
    {
        ds_list_remove(&user->link);
        free(user);
    }
}

int ds_peer_of(int socket, struct ds_peer *ret_peer)
{
    struct ucred credentials;
    socklen_t size = sizeof credentials;

    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
        return -errno;
    *ret_peer = (struct ds_peer){ .uid = credentials.uid,
                                  .gid = credentials.gid,
                                  .pid = (uint32_t) credentials.pid };
    return 0;
}

static struct ds_user *user_get(struct ds_admission *admission, uint32_t uid)
{
    struct ds_user *user;

    ds_list_each(user, &admission->users, link) if (user->uid == uid) return user;
    user = calloc(1, sizeof(*user));
    if (!user)
        return NULL;
    user->uid = uid;
    ds_list_append(&admission->users, &user->link);
    return user;
}

static void user_drop_if_idle(struct ds_user *user)
{
    if (user->n_clients || user->n_requests || user->region_bytes || user->queued_bytes)
        return;
    ds_list_remove(&user->link);
    free(user);
}

int ds_admission_enter(struct ds_admission *admission, uint32_t uid, struct ds_user **ret_user,
                       struct ds_error *error)
{
    const struct ds_config *config = admission->config;
    struct ds_user *user;

    if (admission->n_clients >= config->clients) {
        (void) ds_error_set(error, 0, "%u clients are connected, which is the limit (clients)",
                            admission->n_clients);
        return DS_REFUSED;
    }
    user = user_get(admission, uid);
    if (!user)
        return -ENOMEM;
    if (user->n_clients >= config->clients_per_user) {
        (void) ds_error_set(error, 0,
                            "user %u has %u connections, which is the limit (clients_per_user)",
                            uid, user->n_clients);
        return DS_REFUSED;
    }
    user->n_clients++;
    admission->n_clients++;
    *ret_user = user;
    return DS_ADMITTED;
}

void ds_admission_leave(struct ds_admission *admission, struct ds_user *user)
{
    assert(user->n_clients > 0 && admission->n_clients > 0);
    user->n_clients--;
    admission->n_clients--;
    user_drop_if_idle(user);
}

int ds_admission_charge_region(struct ds_admission *admission, struct ds_user *user, uint64_t bytes,
                               struct ds_error *error)
{
    uint64_t limit = admission->config->region_bytes_per_user;

    if (user->region_bytes > limit || bytes > limit - user->region_bytes) {
        (void) ds_error_set(error, 0,
                            "user %u would hold more than %" PRIu64
                            " bytes of shared memory (region_bytes_per_user)",
                            user->uid, limit);
        return DS_REFUSED;
    }
    user->region_bytes += bytes;
    return DS_ADMITTED;
}

void ds_admission_release_region(struct ds_admission *admission, struct ds_user *user,
                                 uint64_t bytes)
{
    (void) admission;
    assert(user->region_bytes >= bytes);
    user->region_bytes -= bytes;
    user_drop_if_idle(user);
}

int ds_admission_charge_request(struct ds_admission *admission, struct ds_user *user, size_t size,
                                struct ds_error *error)
{
    const struct ds_config *config = admission->config;
    uint64_t limit = config->queued_bytes_per_user;

    if (user->n_requests >= config->requests_per_user) {
        (void) ds_error_set(error, 0,
                            "user %u has %u requests in flight, which is the limit "
                            "(requests_per_user)",
                            user->uid, user->n_requests);
        return DS_REFUSED;
    }
    if (user->queued_bytes > limit || size > limit - user->queued_bytes) {
        (void) ds_error_set(error, 0,
                            "the requests of user %u would exceed %" PRIu64
                            " bytes (queued_bytes_per_user)",
                            user->uid, limit);
        return DS_REFUSED;
    }
    user->n_requests++;
    user->queued_bytes += size;
    return DS_ADMITTED;
}

void ds_admission_release_request(struct ds_admission *admission, struct ds_user *user, size_t size)
{
    (void) admission;
    assert(user->n_requests > 0 && user->queued_bytes >= size);
    user->n_requests--;
    user->queued_bytes -= size;
    user_drop_if_idle(user);
}

uint32_t ds_user_uid(const struct ds_user *user)
{
    return user->uid;
}
