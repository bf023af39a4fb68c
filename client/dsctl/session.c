/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#include "proto/base.h"

#define ARENA_MIN (1u << 20)

int dsctl_connect(struct dsctl *dsctl, size_t input_bytes)
{
    struct ds_connect_options options = { .struct_size = sizeof options,
                                          .socket = dsctl->socket,
                                          .app_name = "dsctl" };
    size_t arena = ARENA_MIN;
    int r;

    if (input_bytes > DS_PAYLOAD_BYTES_MAX - 4096)
        return dsctl_fail(dsctl, DSCTL_ERROR,
                          "an input of %zu bytes is larger than dsd takes (%u): shorten it",
                          input_bytes, DS_PAYLOAD_BYTES_MAX - 4096);
    while (arena < 2 * input_bytes) /* the prompt and, when resumed, what came since */
        arena *= 2;
    options.arena_bytes = (uint32_t) arena;
    options.spin_usec = dsctl->never_spin ? UINT32_MAX : 0;
    r = ds_connect(&dsctl->ds, &options);
    return r < 0 ? dsctl_failed(dsctl, r) : DSCTL_OK;
}

void dsctl_disconnect(struct dsctl *dsctl)
{
    ds_close(dsctl->ds);
    dsctl->ds = NULL;
    if (dsctl->signal_fd >= 0)
        (void) close(dsctl->signal_fd);
    dsctl->signal_fd = -1;
}

int dsctl_catch_signals(struct dsctl *dsctl)
{
    sigset_t caught;

    (void) sigemptyset(&caught);
    (void) sigaddset(&caught, SIGINT);
    (void) sigaddset(&caught, SIGTERM);
    if (sigprocmask(SIG_BLOCK, &caught, NULL) < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "signals cannot be blocked: %s", strerror(errno));
    dsctl->signal_fd = signalfd(-1, &caught, SFD_CLOEXEC | SFD_NONBLOCK);
    if (dsctl->signal_fd < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "no descriptor for signals: %s", strerror(errno));
    return DSCTL_OK;
}

int dsctl_next(struct dsctl *dsctl, struct ds_event *ret_event)
{
    struct signalfd_siginfo signal;
    int r;

    if (dsctl->signal_fd < 0) {
        while ((r = ds_next(dsctl->ds, ret_event, -1)) == -EINTR)
            ;
        return r;
    }
    for (;;) {
        struct pollfd polled[] = { { .fd = ds_fd(dsctl->ds), .events = POLLIN },
                                   { .fd = dsctl->signal_fd, .events = POLLIN } };

        r = ds_next(dsctl->ds, ret_event, 0);
        if (r != DS_NONE)
            return r;
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return -errno;
        if (read(dsctl->signal_fd, &signal, sizeof signal) == (ssize_t) sizeof signal)
            return DSCTL_SIGNAL;
    }
}

/* --- failures ----------------------------------------------------------------------------------
 */

int dsctl_failed(struct dsctl *dsctl, int code)
{
    int exit_code = DSCTL_ERROR;

    switch (code) {
    case -ENOENT:
    case -ECONNREFUSED:
    case -ECONNRESET:
    case -ENOTCONN:
    case -ETIMEDOUT:
        exit_code = DSCTL_ABSENT;
        break;
    case -EBUSY:
    case -EAGAIN:
        exit_code = DSCTL_BUSY;
        break;
    default:
        break;
    }
    return dsctl_fail(dsctl, exit_code, "%s", ds_error_text(dsctl->ds));
}

const char *dsctl_error_name(uint32_t code)
{
    const ProtobufCEnumValue *value =
        protobuf_c_enum_descriptor_get_value(&ds__error__code__descriptor, (int) code);

    return value ? value->name : "UNKNOWN";
}

int dsctl_event_failed(struct dsctl *dsctl, const struct ds_event *event)
{
    char text[1024];
    struct ds_event next;
    uint32_t code = event->error_code;

    (void) snprintf(text, sizeof text, "%s", event->text);
    if (code == DS__ERROR__CODE__BUSY || code == DS__ERROR__CODE__DRAINING)
        return dsctl_fail(dsctl, DSCTL_BUSY, "%s", text);
    if (code == DS__ERROR__CODE__INTERNAL && ds_next(dsctl->ds, &next, 0) == -ENOTCONN)
        return dsctl_fail(dsctl, DSCTL_ABSENT, "%s", text);
    return dsctl_fail(dsctl, DSCTL_ERROR, "%s", text);
}

/* --- control requests --------------------------------------------------------------------------
 */

static int unpack_reply(struct dsctl *dsctl, const struct ds_event *event, Ds__Reply **ret_reply)
{
    int r =
        ds_message_unpack(&ds__reply__descriptor, event->message, event->message_size, ret_reply);

    if (r < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "dsd's answer cannot be read: %s", strerror(-r));
    return DSCTL_OK;
}

static int await(struct dsctl *dsctl, uint64_t id, Ds__Reply **ret_reply)
{
    bool interrupted = false;
    struct ds_event event;
    int r;

    for (;;) {
        r = dsctl_next(dsctl, &event);
        if (r == DSCTL_SIGNAL) {
            if (interrupted)
                return DSCTL_INTERRUPTED;
            interrupted = true;
            (void) ds_cancel(dsctl->ds, id);
            continue;
        }
        if (r < 0)
            return dsctl_failed(dsctl, r);
        if (event.id != id)
            continue;
        if (event.type == DS_EVENT_PROGRESS)
            dsctl_progress(dsctl, event.text, event.fraction);
        if (event.type == DS_EVENT_ERROR)
            return interrupted ? DSCTL_INTERRUPTED : dsctl_event_failed(dsctl, &event);
        if (event.type == DS_EVENT_FINAL) {
            dsctl_progress_wipe(dsctl);
            return unpack_reply(dsctl, &event, ret_reply);
        }
    }
}

int dsctl_call(struct dsctl *dsctl, Ds__Request *request, Ds__Reply **ret_reply)
{
    ds_cleanup(ds_free_p) void *bytes = NULL;
    size_t size;
    uint64_t id;
    int r;

    r = ds_message_pack_new(request, &bytes, &size);
    if (r < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "the request cannot be packed: %s", strerror(-r));
    r = ds_send(dsctl->ds, bytes, size, &id);
    if (r < 0)
        return dsctl_failed(dsctl, r);
    return await(dsctl, id, ret_reply);
}

int dsctl_ask(struct dsctl *dsctl, Ds__Request__OpCase op, void *part, Ds__Reply **ret_reply)
{
    Ds__Request request = DS__REQUEST__INIT;
    int code;

    request.op_case = op;
    request.list = part; /* any member of the union: all are pointers to messages */
    code = dsctl_call(dsctl, &request, ret_reply);
    if (code == DSCTL_OK && !(*ret_reply)->list) {
        ds_message_free(*ret_reply);
        *ret_reply = NULL;
        return dsctl_fail(dsctl, DSCTL_ERROR,
                          "dsd's answer is empty: do dsctl and dsd differ in "
                          "version? (`dsctl status`)");
    }
    return code;
}
