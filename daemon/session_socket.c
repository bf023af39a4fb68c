/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/session_socket.h"

#include "daemon/call.h"
#include "daemon/log.h"
#include "daemon/model_files.h"
#include "daemon/server.h"
#include "daemon/session.h"
#include "shm/handshake.h"

#define DATAGRAMS_PER_TURN 16

/* --- out --- */

void ds_session_reject(int socket, Ds__Error__Code code, uint32_t retry_after_ms, const char *text)
{
    struct ds_reject reject = { .code = (uint32_t) code, .retry_after_ms = retry_after_ms };

    ds_datagram_init(&reject.head, DS_DATAGRAM_REJECT, sizeof reject);
    (void) snprintf(reject.text, sizeof reject.text, "%s", text);
    (void) ds_datagram_send(socket, &reject, sizeof reject, NULL, 0);
}

void ds_session_say_goodbye(struct ds_session *session)
{
    struct ds_datagram goodbye;

    if (session->state != DS_SESSION_ACTIVE)
        return;
    ds_datagram_init(&goodbye, DS_DATAGRAM_GOODBYE, sizeof goodbye);
    (void) ds_datagram_send(session->socket, &goodbye, sizeof goodbye, NULL, 0);
}

/* --- handshake --- */

static void on_bell(void *owner, int result)
{
    struct ds_session *session = owner;

    (void) result;
    if (session->state == DS_SESSION_ACTIVE)
        ds_session_warm(session);
}

static void refuse_peer(struct ds_session *session, Ds__Error__Code code, const char *text)
{
    ds_session_reject(session->socket, code, code == DS__ERROR__CODE__BUSY ? 1000 : 0, text);
    ds_session_drop(session, text, true);
}

/* Names come from the peer: printable ASCII only. */
static void set_program(struct ds_session *session, const char *name, size_t size)
{
    size_t n = 0;

    for (; n < size && n < sizeof session->program - 1 && name[n]; n++)
        session->program[n] = name[n] > ' ' && name[n] < 0x7f ? name[n] : '_';
    session->program[n] = 0;
}

static int make_channel(struct ds_session *session, const struct ds_hello *hello,
                        struct ds_error *error)
{
    struct ds_server *server = session->server;
    struct ds_geometry geometry = { .sq_entries = hello->sq_entries,
                                    .cq_entries = hello->cq_entries,
                                    .arena_bytes = hello->arena_bytes,
                                    .rsp_bytes = hello->rsp_bytes,
                                    .max_inflight = server->config.requests_per_client };
    const struct ds_c_header *layout;
    uint64_t bytes;
    int r;

    if (geometry.arena_bytes > server->config.arena_bytes_max)
        geometry.arena_bytes = (uint32_t) server->config.arena_bytes_max;
    if (geometry.rsp_bytes > server->config.arena_bytes_max)
        geometry.rsp_bytes = (uint32_t) server->config.arena_bytes_max;
    r = ds_channel_create(&session->channel, DS_CHANNEL_SERVER, &geometry, server->epoch);
    if (r < 0)
        return ds_error_set(error, r, "no shared memory: %s", strerror(-r));
    layout = ds_channel_layout(session->channel);
    bytes = layout->s_size + layout->c_size;
    r = ds_admission_charge_region(&server->admission, session->user, bytes, error);
    if (r != DS_ADMITTED)
        return -EDQUOT;
    session->region_bytes = bytes;
    return 0;
}

static void take_hello(struct ds_session *session, const void *datagram, size_t size)
{
    struct ds_server *server = session->server;
    const struct ds_hello *hello = datagram;
    struct ds_welcome welcome;
    struct ds_channel_fds fds;
    struct ds_error error = { 0 };
    int r;

    r = ds_hello_check(datagram, size, &error);
    if (r < 0) {
        refuse_peer(session,
                    r == -EPROTONOSUPPORT ? DS__ERROR__CODE__UNSUPPORTED : DS__ERROR__CODE__INVALID,
                    error.text);
        return;
    }
    set_program(session, hello->app_name, sizeof hello->app_name);
    r = make_channel(session, hello, &error);
    if (r < 0) {
        refuse_peer(session, DS__ERROR__CODE__BUSY, error.text);
        return;
    }
    ds_channel_welcome(session->channel, &welcome, &fds);
    welcome.spin_hint_us = server->spin_nsec / 1000;
    r = ds_datagram_send(
        session->socket, &welcome, sizeof welcome,
        (const int[]){ fds.s_fd, fds.c_fd, fds.bell_to_server, fds.bell_to_submitter }, 4);
    if (r < 0) {
        ds_session_drop(session, r == -EPIPE ? NULL : "it does not take its welcome", false);
        return;
    }
    ds_channel_sent(session->channel);
    session->state = DS_SESSION_WELCOMED;
}

static void take_ready(struct ds_session *session)
{
    struct ds_server *server = session->server;
    int r;

    ds_timer_clear(server->loop, &session->handshake);
    r = ds_loop_bell(server->loop, ds_channel_bell_out(session->channel), &session->bell);
    if (r == 0)
        r = ds_loop_watch(server->loop, DS_WATCH_BELL, ds_channel_bell_in(session->channel),
                          on_bell, session, &session->on_bell);
    if (r < 0) {
        ds_session_drop(session, strerror(-r), false);
        return;
    }
    session->state = DS_SESSION_ACTIVE;
    ds_session_warm(session); /* whatever it has submitted before the bell was watched */
    ds_log(LOG_DEBUG, "client %s (pid %u, uid %u) connected", session->program, session->peer.pid,
           session->peer.uid);
}

/* --- model files --- */

static struct ds_attachment *attachment_find(struct ds_session *session, uint64_t number)
{
    for (uint32_t i = 0; i < session->n_attachments; i++)
        if (session->attachments[i].number == number)
            return &session->attachments[i];
    return NULL;
}

/* Room for one more; the oldest makes way. */
static struct ds_attachment *attachment_new(struct ds_session *session)
{
    uint32_t limit = session->server->config.attachments_per_client;
    struct ds_attachment *attachments = session->attachments;

    if (limit == 0)
        return NULL;
    if (session->n_attachments >= limit) {
        (void) ds_model_files_free(attachments[0].files);
        session->n_attachments--;
        memmove(attachments, attachments + 1, session->n_attachments * sizeof(*attachments));
    } else {
        attachments =
            realloc(attachments, (session->n_attachments + 1) * sizeof(*session->attachments));
        if (!attachments)
            return NULL;
        session->attachments = attachments;
    }
    attachments[session->n_attachments] = (struct ds_attachment){ 0 };
    return &attachments[session->n_attachments++];
}

/* A model's name for people: one line of printable ASCII. */
static void set_model_name(char name[DS_MODEL_NAME_MAX + 1], const char *from, size_t size)
{
    size_t n = 0;

    for (; n < size && n < DS_MODEL_NAME_MAX && from[n]; n++)
        name[n] = from[n] >= ' ' && from[n] < 0x7f ? from[n] : '_';
    name[n] = 0;
    if (n == 0)
        (void) strcpy(name, "unnamed");
}

/* The names behind an ATTACH: one for each descriptor, or none at all. */
static int split_names(const char *bytes, size_t size, unsigned n, const char *ret_names[])
{
    size_t at = 0;

    for (unsigned i = 0; i < n; i++) {
        size_t length = size > 0 ? strnlen(bytes + at, size - at) : 0;

        if (size > 0 && (length == 0 || length > DS_FILE_NAME_MAX || at + length == size))
            return -EPROTO;
        ret_names[i] = size > 0 ? bytes + at : NULL;
        at += size > 0 ? length + 1 : 0;
    }
    return at == size ? 0 : -EPROTO;
}

static void take_attach(struct ds_session *session, const void *datagram, size_t size,
                        const int *fds, unsigned n_fds)
{
    const char *file_names[DS_DATAGRAM_FDS_MAX];
    const struct ds_attach *attach = datagram;
    struct ds_attachment *attachment;
    char name[DS_MODEL_NAME_MAX + 1];
    struct ds_error error = { 0 };
    unsigned taken = 0;
    int r = size >= sizeof(*attach) && n_fds > 0 && attach->attachment ? 0 : -EPROTO;

    if (r == 0)
        r = split_names((const char *) (attach + 1), size - sizeof(*attach), n_fds, file_names);

    if (r == 0) {
        set_model_name(name, attach->name, sizeof attach->name);
        attachment = attachment_find(session, attach->attachment);
        if (!attachment && attach->first == 0) {
            attachment = attachment_new(session);
            if (attachment) {
                attachment->number = attach->attachment;
                (void) ds_model_files_new(&attachment->files, name, attach->n_files);
            }
        }
        if (!attachment || !attachment->files || attach->first != attachment->files->n_open)
            r = -EPROTO;
        for (; r == 0 && taken < n_fds; taken++)
            r = ds_model_files_add(attachment->files, fds[taken], file_names[taken], &error);
    }
    while (taken < n_fds)
        (void) close(fds[taken++]);
    if (r < 0)
        ds_session_drop(session, error.text[0] ? error.text : "malformed attachment", false);
}

const struct ds_model_files *ds_session_attachment(struct ds_session *session, uint64_t number)
{
    const struct ds_attachment *attachment = attachment_find(session, number);

    if (!attachment || attachment->files->n_open < attachment->files->n_files) {
        ds_session_read_socket(session); /* sent before the request, but not seen yet */
        if (session->state != DS_SESSION_ACTIVE)
            return NULL;
        attachment = attachment_find(session, number);
    }
    if (!attachment || attachment->files->n_open < attachment->files->n_files)
        return NULL;
    return attachment->files;
}

/* --- in --- */

static void take_datagram(struct ds_session *session, const void *datagram, size_t size,
                          const int *fds, unsigned n_fds)
{
    const struct ds_datagram *head = datagram;

    if (head->type != DS_DATAGRAM_ATTACH || session->state != DS_SESSION_ACTIVE) {
        for (unsigned i = 0; i < n_fds; i++)
            (void) close(fds[i]);
        if (n_fds > 0) {
            ds_session_drop(session, "descriptors where none belong", false);
            return;
        }
    }
    if (session->state == DS_SESSION_GREETING && head->type == DS_DATAGRAM_HELLO)
        take_hello(session, datagram, size);
    else if (session->state == DS_SESSION_WELCOMED && head->type == DS_DATAGRAM_READY)
        take_ready(session);
    else if (session->state == DS_SESSION_ACTIVE && head->type == DS_DATAGRAM_ATTACH)
        take_attach(session, datagram, size, fds, n_fds);
    else
        ds_session_drop(session, "unexpected datagram", false);
}

void ds_session_read_socket(struct ds_session *session)
{
    _Alignas(8) uint8_t datagram[DS_DATAGRAM_MAX];
    int fds[DS_DATAGRAM_FDS_MAX];

    for (int i = 0; i < DATAGRAMS_PER_TURN; i++) {
        unsigned n_fds = 0;
        size_t size;
        int r = ds_datagram_receive(session->socket, datagram, sizeof datagram, &size, fds,
                                    session->state == DS_SESSION_ACTIVE ? DS_DATAGRAM_FDS_MAX : 0,
                                    &n_fds);

        if (r == -EAGAIN || r == -EINTR)
            return;
        if (r < 0) {
            ds_session_drop(session, r == -ECONNRESET ? NULL : "malformed datagram", false);
            return;
        }
        if (size == 0) {
            ds_session_drop(session, NULL, false);
            return;
        }
        take_datagram(session, datagram, size, fds, n_fds);
        if (session->state == DS_SESSION_DEAD)
            return;
    }
}
