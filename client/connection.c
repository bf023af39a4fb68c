/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#include <poll.h>
#include <sys/stat.h>

/* ds_connect() has no connection to keep its failure in. */
static _Thread_local struct ds_error connect_error;

static char *user_socket(void)
{
    const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
    struct stat status;
    char *path = NULL;

    if (!runtime || runtime[0] != '/')
        return NULL;
    if (asprintf(&path, "%s/dsd/dsd.sock", runtime) < 0)
        return NULL;
    if (stat(path, &status) == 0)
        return path;
    free(path);
    return NULL;
}

/* The option, else $DSD_SOCKET, else the user's where there is one, else the system's. */
static char *resolve_path(const char *option)
{
    const char *variable = secure_getenv("DSD_SOCKET");
    char *path;

    if (option)
        return strdup(option);
    if (variable && variable[0])
        return strdup(variable);
    path = user_socket();
    return path ? path : strdup("/run/dsd/dsd.sock");
}

static int configure(struct ds *ds, const struct ds_connect_options *options)
{
    struct ds_connect_options asked = { .struct_size = sizeof asked };

    if (options) {
        if (options->struct_size < offsetof(struct ds_connect_options, socket))
            return ds_error_set(&ds->error, -EINVAL, "ds_connect: struct_size is not set");
        memcpy(&asked, options,
               options->struct_size < sizeof asked ? options->struct_size : sizeof asked);
    }
    ds->path = resolve_path(asked.socket);
    ds->app_name = strdup(asked.app_name ? asked.app_name : program_invocation_short_name);
    if (!ds->path || !ds->app_name)
        return ds_error_set(&ds->error, -ENOMEM, "out of memory");
    ds->arena_bytes = asked.arena_bytes ? asked.arena_bytes : DS_CLIENT_ARENA_BYTES;
    ds->spin_usec = asked.spin_usec;
    ds->reconnect_nsec =
        1000000u * (uint64_t) (asked.reconnect_timeout_ms ? asked.reconnect_timeout_ms
                                                          : DS_CLIENT_RECONNECT_MSEC);
    if (asked.reconnect_timeout_ms == UINT32_MAX)
        ds->reconnect_nsec = 0;
    return 0;
}

/* The first handshake waits; later ones are steps of ds_next(). */
static int shake(struct ds *ds)
{
    const uint64_t deadline = ds_now_nsec() + DS_CLIENT_SHAKE_MSEC * UINT64_C(1000000);
    int r;

    while ((r = ds_client_shake_begin(ds)) == -EAGAIN && ds_now_nsec() < deadline)
        (void) poll(NULL, 0, 5); /* dsd's queue of new connections is full: it has no descriptor */
    if (r < 0)
        return r;
    while ((r = ds_client_shake_continue(ds)) == -EAGAIN) {
        struct pollfd wait = { .fd = ds->socket, .events = POLLIN };
        uint64_t now = ds_now_nsec();

        if (now >= deadline) {
            ds_client_hang_up(ds);
            return ds_error_set(&ds->error, -ETIMEDOUT,
                                "dsd at %s took the connection but does not answer: look at "
                                "its journal, or restart it",
                                ds->path);
        }
        (void) poll(&wait, 1, (int) ((deadline - now) / 1000000u) + 1);
    }
    return r;
}

static int ds_new(struct ds **ret_ds)
{
    struct ds *ds = calloc(1, sizeof *ds);

    if (!ds)
        return -ENOMEM;
    ds->socket = ds->epoll_fd = ds->kick_fd = ds->timer_fd = -1;
    ds->next_serial = 1;
    ds->next_attachment = 1;
    *ret_ds = ds;
    return 0;
}

static void disconnect_p(struct ds **ds)
{
    ds_close(*ds);
}

int ds_connect(struct ds **ret_ds, const struct ds_connect_options *options)
{
    ds_cleanup(disconnect_p) struct ds *ds = NULL;
    int r;

    *ret_ds = NULL;
    connect_error.text[0] = '\0';
    r = ds_new(&ds);
    if (r < 0)
        return ds_error_set(&connect_error, r, "out of memory");
    r = configure(ds, options);
    if (r == 0)
        r = ds_client_ready_init(ds);
    if (r == 0)
        r = shake(ds);
    if (r < 0) {
        connect_error = ds->error;
        return r;
    }
    *ret_ds = ds_steal(ds);
    return 0;
}

static void say_goodbye(struct ds *ds)
{
    const struct ds_sqe entry = { .op = DS_SQE_CLOSE };

    if (ds_channel_submit(ds->channel, &entry, 0) == DS_CHANNEL_OK)
        ds_client_ring(ds);
}

void ds_close(struct ds *ds)
{
    if (!ds)
        return;
    if (ds->state == DS_CLIENT_UP) {
        ds_client_release(ds);
        say_goodbye(ds);
    }
    ds_client_hang_up(ds);
    ds_client_requests_deinit(ds);
    ds_client_attachments_free(ds);
    ds_client_ready_deinit(ds);
    ds_client_buffer_deinit(&ds->message);
    ds_client_buffer_deinit(&ds->pieces);
    ds_client_buffer_deinit(&ds->calls);
    ds_client_buffer_deinit(&ds->text);
    free(ds->path);
    free(ds->app_name);
    free(ds);
}

const char *ds_error_text(const struct ds *ds)
{
    return ds ? ds->error.text : connect_error.text;
}
