/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "shm/handshake.h"

/* What a person is told when nobody answers at path. */
static int absent(struct ds *ds, int code)
{
    (void) snprintf(ds->why, sizeof ds->why, "%s", strerror(-code));
    if (code == -EACCES || code == -EPERM)
        return ds_error_set(&ds->error, -EACCES,
                            "no permission to use dsd at %s: join the group that owns the socket",
                            ds->path);
    return ds_error_set(&ds->error, code,
                        "no dsd answers at %s (%s): start it, or name its socket in $DSD_SOCKET",
                        ds->path, strerror(-code));
}

static int dial(struct ds *ds, int *ret_socket)
{
    ds_cleanup(ds_close_p) int fd = -1;
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    if (strlen(ds->path) >= sizeof address.sun_path)
        return ds_error_set(&ds->error, -ENAMETOOLONG,
                            "socket path %.80s... is longer than %zu bytes: use a shorter one",
                            ds->path, sizeof address.sun_path - 1);
    memcpy(address.sun_path, ds->path, strlen(ds->path));
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return ds_error_set(&ds->error, -errno, "no socket to reach dsd with: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *) &address, sizeof address) < 0)
        return absent(ds, -errno);
    *ret_socket = ds_steal_fd(&fd);
    return 0;
}

int ds_client_shake_begin(struct ds *ds)
{
    struct ds_hello hello;
    int r;

    r = dial(ds, &ds->socket);
    if (r < 0)
        return r;
    ds_hello_init(&hello, ds->app_name);
    hello.arena_bytes = ds->arena_bytes;
    r = ds_datagram_send(ds->socket, &hello, sizeof hello, NULL, 0);
    if (r < 0 && r != -EPIPE &&
        r != -ECONNRESET) { /* these: perhaps refused already, so read why */
        ds_client_hang_up(ds);
        return absent(ds, r);
    }
    ds_client_watch_add(ds);
    return 0;
}

static int rejected(struct ds *ds, const struct ds_reject *reject)
{
    int code;

    (void) snprintf(ds->why, sizeof ds->why, "%.*s",
                    (int) strnlen(reject->text, sizeof reject->text), reject->text);
    switch (reject->code) {
    case DS__ERROR__CODE__BUSY:
        code = -EBUSY;
        break;
    case DS__ERROR__CODE__PERMISSION:
        code = -EACCES;
        break;
    case DS__ERROR__CODE__UNSUPPORTED:
        code = -EPROTONOSUPPORT;
        break;
    case DS__ERROR__CODE__DRAINING:
        code = -ECONNREFUSED;
        break;
    default:
        code = -EPROTO;
    }
    return ds_error_set(&ds->error, code, "dsd at %s refused: %.*s", ds->path,
                        (int) strnlen(reject->text, sizeof reject->text), reject->text);
}

static int welcomed(struct ds *ds, const struct ds_welcome *welcome, struct ds_channel_fds fds)
{
    struct ds_datagram ready;
    int r;

    r = ds_channel_join(&ds->channel, DS_CHANNEL_SUBMITTER, welcome, fds);
    if (r < 0)
        return ds_error_set(&ds->error, r,
                            "dsd at %s offered shared memory that does not fit together (%s)",
                            ds->path, strerror(-r));
    ds_datagram_init(&ready, DS_DATAGRAM_READY, sizeof ready);
    r = ds_datagram_send(ds->socket, &ready, sizeof ready, NULL, 0);
    if (r < 0)
        return ds_error_set(&ds->error, r, "dsd at %s hung up: %s", ds->path, strerror(-r));
    ds->epoch = ds_channel_layout(ds->channel)->epoch;
    ds->hint_usec = ds_client_spin_hint(welcome->spin_hint_us);
    return 0;
}

static int answer(struct ds *ds)
{
    union {
        struct ds_datagram head;
        struct ds_welcome welcome;
        struct ds_reject reject;
        uint8_t bytes[DS_DATAGRAM_MAX];
    } datagram;
    int fds[4] = { -1, -1, -1, -1 };
    unsigned n_fds = 0;
    size_t size = 0;
    int r;

    r = ds_datagram_receive(ds->socket, &datagram, sizeof datagram, &size, fds, 4, &n_fds);
    if (r == -ECONNRESET) /* dsd closed before it read our hello; what it had said comes after */
        r = ds_datagram_receive(ds->socket, &datagram, sizeof datagram, &size, fds, 4, &n_fds);
    if (r == -EAGAIN)
        return r;
    if (r == 0 && size == 0)
        r = -ECONNRESET;
    if (r < 0)
        return ds_error_set(&ds->error, r, "dsd at %s hung up during the handshake: %s", ds->path,
                            strerror(-r));
    if (datagram.head.type == DS_DATAGRAM_WELCOME && size == sizeof datagram.welcome && n_fds == 4)
        return welcomed(ds, &datagram.welcome,
                        (struct ds_channel_fds){ fds[0], fds[1], fds[2], fds[3] });
    for (unsigned i = 0; i < n_fds; i++)
        (void) close(fds[i]);
    if (datagram.head.type == DS_DATAGRAM_REJECT && size == sizeof datagram.reject)
        return rejected(ds, &datagram.reject);
    return ds_error_set(&ds->error, -EPROTO, "what answers at %s does not speak dsd's protocol",
                        ds->path);
}

int ds_client_shake_continue(struct ds *ds)
{
    int r = answer(ds);

    if (r == -EAGAIN)
        return r;
    if (r < 0) {
        ds_client_hang_up(ds);
        return r;
    }
    ds_client_watch_remove(ds); /* put back with the bell */
    ds_client_watch_add(ds);
    ds->state = DS_CLIENT_UP;
    ds->life++;
    ds->connected_nsec = ds->heard_nsec = ds_now_nsec();
    ds->probe_nsec = 0;
    ds->sleeps_left = 0;
    ds->flush_due = true;
    r = ds_client_attach_all(ds);
    if (r < 0)
        ds_client_hang_up(ds);
    return r;
}

void ds_client_hang_up(struct ds *ds)
{
    ds_client_watch_remove(ds);
    ds_client_release(ds);
    ds->channel = ds_channel_free(ds->channel);
    ds_close_p(&ds->socket);
    ds->socket = -1;
    ds->hangup = false;
    ds->armed = false;
    ds->n_sent = 0;
    ds->state = DS_CLIENT_AWAY;
}
