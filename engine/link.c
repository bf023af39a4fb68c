/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link.h"

#include <poll.h>

#include "engine/link_state.h"
#include "proto/base.h"
#include "shm/handshake.h"

#define HANDSHAKE_MSEC  10000
#define RETRY_MSEC      100  /* while dsd does not read: a second look, should a bell be missed */
#define DESCRIPTION_MAX 120u /* bytes after READY */
#define WELCOME_FDS     4u

/* --- handshake --- */

static int receive_welcome(int socket, struct ds_welcome *ret_welcome,
                           struct ds_channel_fds *ret_fds, struct ds_error *error)
{
    struct pollfd poll_fd = { .fd = socket, .events = POLLIN };
    int fds[WELCOME_FDS] = { -1, -1, -1, -1 };
    unsigned n_fds = 0;
    size_t size = 0;
    int r;

    r = poll(&poll_fd, 1, HANDSHAKE_MSEC);
    if (r == 0)
        return ds_error_set(error, -ETIMEDOUT, "dsd sent no WELCOME within %d s",
                            HANDSHAKE_MSEC / 1000);
    r = ds_datagram_receive(socket, ret_welcome, sizeof *ret_welcome, &size, fds, WELCOME_FDS,
                            &n_fds);
    if (r == 0 && size == 0)
        return ds_error_set(error, -EPIPE, "dsd hung up before the handshake");
    if (r == 0 && (size != sizeof *ret_welcome || ret_welcome->head.type != DS_DATAGRAM_WELCOME ||
                   n_fds != WELCOME_FDS)) {
        for (unsigned i = 0; i < n_fds; i++)
            (void) close(fds[i]);
        r = -EPROTO;
    }
    if (r < 0)
        return ds_error_set(error, r, "what came on the link is no WELCOME of dsd: %s",
                            strerror(-r));
    *ret_fds = (struct ds_channel_fds){
        .s_fd = fds[0], .c_fd = fds[1], .bell_to_server = fds[2], .bell_to_submitter = fds[3]
    };
    return 0;
}

/* READY is followed by what this engine is, for dsctl status. */
static int send_ready(struct ds_link *link)
{
    const char *text = link->environment.backend->describe(link->environment.backend);
    union {
        struct ds_datagram head;
        char bytes[sizeof(struct ds_datagram) + DESCRIPTION_MAX];
    } ready;
    size_t length = strnlen(text, DESCRIPTION_MAX);

    ds_datagram_init(&ready.head, DS_DATAGRAM_READY, sizeof ready.head + length);
    memcpy(ready.bytes + sizeof ready.head, text, length);
    return ds_datagram_send(link->socket, &ready, sizeof ready.head + length, NULL, 0);
}

static int shake_hands(struct ds_link *link, struct ds_error *error)
{
    struct ds_welcome welcome;
    struct ds_channel_fds fds;
    int r;

    r = receive_welcome(link->socket, &welcome, &fds, error);
    if (r < 0)
        return r;
    r = ds_channel_join(&link->channel, DS_CHANNEL_SERVER, &welcome, fds);
    if (r < 0)
        return ds_error_set(error, r, "the regions of the link do not fit together: %s",
                            strerror(-r));
    link->piece_max = ds_channel_post_max(link->channel);
    ds_channel_set_state(link->channel, DS_SERVER_RUNNING);
    ds_channel_beat(link->channel, ds_now_nsec());
    r = send_ready(link);
    if (r < 0)
        return ds_error_set(error, r, "READY could not be sent: %s", strerror(-r));
    return 0;
}

/* A batch of a large model may take longer than dsd waits for a sign of life. */
static void on_pulse(void *arg)
{
    struct ds_link *link = arg;

    ds_channel_beat(link->channel, ds_now_nsec());
}

static void link_free_p(struct ds_link **link)
{
    (void) ds_link_free(*link);
}

int ds_link_new(struct ds_link **ret_link, int socket,
                const struct ds_link_environment *environment, struct ds_error *error)
{
    ds_cleanup(link_free_p) struct ds_link *link = calloc(1, sizeof *link);
    int r;

    if (!link) {
        (void) close(socket);
        return -ENOMEM;
    }
    link->socket = socket;
    link->environment = *environment;
    ds_outbox_init(&link->outbox);
    r = ds_results_new(&link->results);
    if (r == 0)
        r = ds_worker_new(&link->loader, link->results, "loader");
    if (r == 0)
        r = ds_worker_new(&link->texter, link->results, "text");
    if (r < 0)
        return ds_error_set(error, r, "the helper threads could not be made: %s", strerror(-r));
    r = shake_hands(link, error);
    if (r < 0)
        return r;
    link->environment.backend->pulse_arg = link;
    link->environment.backend->pulse = on_pulse;
    *ret_link = ds_steal(link);
    return 0;
}

static void take_results(struct ds_link *link)
{
    struct ds_task *next;

    for (struct ds_task *task = ds_results_take(link->results); task; task = next) {
        next = task->next;
        task->done(task, link);
    }
}

struct ds_link *ds_link_free(struct ds_link *link)
{
    if (!link)
        return NULL;
    if (link->environment.backend->pulse_arg == link)
        link->environment.backend->pulse = NULL;
    ds_link_load_cancel_all(link);
    link->loader = ds_worker_free(link->loader);
    link->texter = ds_worker_free(link->texter);
    if (link->results)
        take_results(link);
    (void) ds_results_free(link->results);
    for (struct ds_link_model *model = link->models; model; model = model->next)
        model->scheduler = ds_scheduler_free(model->scheduler); /* before what they draft with */
    while (link->models) {
        struct ds_link_model *model = link->models;

        link->models = model->next;
        (void) ds_link_model_free(model);
    }
    ds_load_parts_deinit(&link->parts);
    ds_requests_deinit(&link->requests);
    ds_outbox_deinit(&link->outbox);
    free(link->step.bytes);
    if (link->channel)
        (void) ds_channel_free(link->channel);
    (void) close(link->socket);
    free(link);
    return NULL;
}

/* --- the socket --- */

/* Sets closing when dsd hung up. */
static int take_datagrams(struct ds_link *link)
{
    for (;;) {
        alignas(struct ds_datagram) uint8_t bytes[DS_DATAGRAM_MAX];
        int fds[DS_DATAGRAM_FDS_MAX];
        unsigned n_fds = 0;
        size_t size = 0;
        int r;

        r = ds_datagram_receive(link->socket, bytes, sizeof bytes, &size, fds, DS_DATAGRAM_FDS_MAX,
                                &n_fds);
        if (r == -EAGAIN)
            return 0;
        if ((r == 0 && size == 0) || r == -ECONNRESET) {
            link->closing = true;
            return 0;
        }
        if (r < 0)
            return ds_error_set(&link->error, r, "what came on the link is no datagram of dsd: %s",
                                strerror(-r));
        if (((struct ds_datagram *) bytes)->type != DS_DATAGRAM_LOAD) {
            for (unsigned i = 0; i < n_fds; i++)
                (void) close(fds[i]);
            return ds_error_set(&link->error, -EPROTO, "a datagram of type %u on the link",
                                ((struct ds_datagram *) bytes)->type);
        }
        r = ds_link_load_datagram(link, bytes, size, fds, n_fds);
        if (r < 0)
            return r;
    }
}

/* --- waiting --- */

/* Looks at all sources of work, and sleeps up to timeout_msec (-1: for ever) where there is none.
 */
static int wait_for_work(struct ds_link *link, int timeout_msec)
{
    struct pollfd fds[] = {
        { .fd = link->socket, .events = POLLIN },
        { .fd = ds_results_fd(link->results), .events = POLLIN },
        { .fd = ds_channel_bell_in(link->channel), .events = POLLIN },
    };
    bool asleep = timeout_msec != 0 && ds_channel_sleep(link->channel);
    uint64_t rings;
    int r;

    r = poll(fds, sizeof fds / sizeof fds[0], asleep ? timeout_msec : 0);
    if (asleep)
        ds_channel_wake(link->channel);
    if (r < 0)
        return errno == EINTR ? 0 : -errno;
    if (fds[2].revents & POLLIN)
        (void) !read(fds[2].fd, &rings, sizeof rings);
    if (fds[1].revents & POLLIN) {
        take_results(link);
        r = ds_link_load_news(link);
        if (r < 0)
            return r;
    }
    if (fds[0].revents)
        return take_datagrams(link);
    return 0;
}

/* --- the loop --- */

/* One step of every model with work, each published at once. *ret_busy: there is more to do. */
static int step_models(struct ds_link *link, bool *ret_busy)
{
    bool busy = false;
    int r;

    for (struct ds_link_model *model = link->models; model; model = model->next) {
        if (model->closing || ds_scheduler_idle(model->scheduler))
            continue;
        if (ds_outbox_full(&link->outbox)) /* dsd does not read: make no more */
            break;
        r = ds_link_step(link, model);
        if (r < 0)
            return r;
        r = ds_link_flush(link);
        if (r < 0)
            return r;
        busy = busy || !ds_scheduler_idle(model->scheduler);
    }
    *ret_busy = busy;
    return 0;
}

static int turn(struct ds_link *link)
{
    bool busy = false;
    int r;

    ds_channel_beat(link->channel, ds_now_nsec());
    r = ds_link_drain(link);
    if (r < 0)
        return r;
    r = step_models(link, &busy);
    if (r < 0)
        return r;
    r = ds_link_flush(link);
    if (r < 0 || link->closing)
        return r;
    if (busy)
        r = wait_for_work(link, 0);
    else
        r = wait_for_work(link, ds_outbox_empty(&link->outbox) ? -1 : RETRY_MSEC);
    return r < 0 ? r : link->failure;
}

int ds_link_run(struct ds_link *link, struct ds_error *error)
{
    int r = 0;

    while (r == 0 && !link->closing)
        r = turn(link);
    if (r < 0)
        return ds_error_set(error, r, "%s", *link->error.text ? link->error.text : strerror(-r));
    return 0;
}
