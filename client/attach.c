/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#include <fcntl.h>
#include <poll.h>

#include "shm/handshake.h"

static struct ds_client_attachment *attachment_free(struct ds_client_attachment *attachment)
{
    if (!attachment)
        return NULL;
    for (unsigned i = 0; i < attachment->n_fds; i++)
        ds_close_p(&attachment->fds[i]);
    for (unsigned i = 0; attachment->file_names && i < attachment->n_fds; i++)
        free(attachment->file_names[i]);
    free(attachment->file_names);
    free(attachment->fds);
    free(attachment);
    return NULL;
}

static void attachment_free_p(struct ds_client_attachment **attachment)
{
    *attachment = attachment_free(*attachment);
}

void ds_client_attachments_free(struct ds *ds)
{
    while (ds->attachments) {
        struct ds_client_attachment *attachment = ds->attachments;

        ds->attachments = attachment->next;
        attachment_free(attachment);
    }
}

/* dsd reads its sockets every turn of its loop, so a full one empties at once or dsd hangs. */
static int send_patiently(struct ds *ds, const struct ds_datagram *datagram, const int *fds,
                          unsigned n_fds)
{
    const uint64_t deadline = ds_now_nsec() + DS_CLIENT_SHAKE_MSEC * UINT64_C(1000000);
    struct pollfd wait = { .fd = ds->socket, .events = POLLOUT };
    int r;

    while ((r = ds_datagram_send(ds->socket, datagram, datagram->size, fds, n_fds)) == -EAGAIN) {
        if (ds_now_nsec() >= deadline)
            return -ETIMEDOUT;
        (void) poll(&wait, 1, 10);
    }
    return r;
}

/* The datagram for the files from `first` on: as many as go into it. */
static unsigned fill_datagram(const struct ds_client_attachment *attachment, unsigned first,
                              uint8_t bytes[DS_DATAGRAM_MAX])
{
    struct ds_attach *datagram = (void *) bytes;
    size_t size = sizeof *datagram;
    unsigned n = 0;

    *datagram = (struct ds_attach){ .attachment = attachment->number,
                                    .n_files = attachment->n_fds,
                                    .first = first };
    memcpy(datagram->name, attachment->name, sizeof datagram->name);
    for (; first + n < attachment->n_fds && n < DS_DATAGRAM_FDS_MAX; n++) {
        const char *name = attachment->file_names ? attachment->file_names[first + n] : NULL;
        size_t length = name ? strlen(name) + 1 : 0;

        if (size + length > DS_DATAGRAM_MAX)
            break;
        if (name)
            memcpy(bytes + size, name, length);
        size += length;
    }
    ds_datagram_init(&datagram->head, DS_DATAGRAM_ATTACH, size);
    return n;
}

static int hand_over(struct ds *ds, const struct ds_client_attachment *attachment)
{
    _Alignas(8) uint8_t datagram[DS_DATAGRAM_MAX];
    unsigned n;
    int r;

    for (unsigned first = 0; first < attachment->n_fds; first += n) {
        n = fill_datagram(attachment, first, datagram);
        r = send_patiently(ds, (const struct ds_datagram *) datagram, attachment->fds + first, n);
        if (r < 0)
            return ds_error_set(&ds->error, r, "%s cannot be handed to dsd: %s", attachment->name,
                                strerror(-r));
    }
    return 0;
}

int ds_client_attach_all(struct ds *ds)
{
    for (const struct ds_client_attachment *a = ds->attachments; a; a = a->next) {
        int r = hand_over(ds, a);

        if (r < 0)
            return r;
    }
    return 0;
}

static int duplicate(struct ds *ds, struct ds_client_attachment *attachment, const int *fds,
                     const char *const *file_names, unsigned n_fds)
{
    attachment->fds = malloc(n_fds * sizeof *attachment->fds);
    attachment->file_names = file_names ? calloc(n_fds, sizeof *attachment->file_names) : NULL;
    if (!attachment->fds || (file_names && !attachment->file_names))
        return ds_error_set(&ds->error, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < n_fds; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);

        if (fd < 0)
            return ds_error_set(&ds->error, -errno, "%s: descriptor %d cannot be duplicated: %s",
                                attachment->name, fds[i], strerror(errno));
        attachment->fds[attachment->n_fds++] = fd;
        if (!file_names)
            continue;
        attachment->file_names[i] = strdup(file_names[i]);
        if (!attachment->file_names[i])
            return ds_error_set(&ds->error, -ENOMEM, "out of memory");
    }
    return 0;
}

int ds_attach(struct ds *ds, const char *name, const int *fds, unsigned n_fds,
              uint64_t *ret_attachment)
{
    return ds_attach_named(ds, name, fds, NULL, n_fds, ret_attachment);
}

int ds_attach_named(struct ds *ds, const char *name, const int *fds, const char *const *file_names,
                    unsigned n_fds, uint64_t *ret_attachment)
{
    ds_cleanup(attachment_free_p) struct ds_client_attachment *attachment = NULL;
    struct ds_client_attachment **end = &ds->attachments;
    int r;

    if (!name || strlen(name) > DS_MODEL_NAME_MAX)
        return ds_error_set(&ds->error, -EINVAL, "ds_attach: a name of at most %u bytes is needed",
                            DS_MODEL_NAME_MAX);
    if (n_fds == 0 || n_fds > DS_MODEL_FILES_MAX)
        return ds_error_set(&ds->error, -EINVAL, "%s: a model has 1 to %u files, not %u", name,
                            DS_MODEL_FILES_MAX, n_fds);
    if (ds->next_attachment > DS_CLIENT_ATTACHMENTS_MAX)
        return ds_error_set(&ds->error, -EINVAL, "%s: %u models are attached already", name,
                            DS_CLIENT_ATTACHMENTS_MAX);
    for (unsigned i = 0; file_names && i < n_fds; i++)
        if (!file_names[i] || !file_names[i][0] || strlen(file_names[i]) > DS_FILE_NAME_MAX)
            return ds_error_set(&ds->error, -EINVAL, "%s: file %u needs a name of 1 to %u bytes",
                                name, i + 1, DS_FILE_NAME_MAX);
    attachment = calloc(1, sizeof *attachment);
    if (!attachment)
        return ds_error_set(&ds->error, -ENOMEM, "out of memory");
    strcpy(attachment->name, name);
    attachment->number = ds->next_attachment;
    r = duplicate(ds, attachment, fds, file_names, n_fds);
    if (r < 0)
        return r;
    if (ds->state == DS_CLIENT_UP) {
        r = hand_over(ds, attachment);
        if (r < 0)
            ds_client_lose(ds, ds->error.text); /* it is handed over with the others then */
    }
    while (*end)
        end = &(*end)->next;
    *end = attachment;
    *ret_attachment = attachment->number;
    ds->next_attachment++;
    (void) ds_steal(attachment);
    return 0;
}
