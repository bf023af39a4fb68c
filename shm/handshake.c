/* SPDX-License-Identifier: Apache-2.0 */
#include "shm/handshake.h"

#include <stdbool.h>
#include <sys/socket.h>

#include "proto/base.h"

#define MAGIC ((uint32_t) DS_WIRE_MAGIC)

/* Room for one more descriptor than we ever allow, since CMSG_SPACE rounds up anyway. */
union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE((DS_DATAGRAM_FDS_MAX + 1) * sizeof(int))];
};

void ds_datagram_init(struct ds_datagram *head, enum ds_datagram_type type, size_t size)
{
    head->magic = MAGIC;
    head->type = (uint16_t) type;
    head->size = (uint16_t) size;
}

int ds_datagram_send(int socket, const void *datagram, size_t size, const int *fds, unsigned n_fds)
{
    union control control = { 0 };
    struct iovec data = { (void *) datagram, size };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
    ssize_t n;

    if (size < sizeof(struct ds_datagram) || size > DS_DATAGRAM_MAX || n_fds > DS_DATAGRAM_FDS_MAX)
        return -EINVAL;
    if (n_fds) {
        struct cmsghdr *head;

        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(head), fds, n_fds * sizeof(int));
    }
    do
        n = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    return (size_t) n == size ? 0 : -EIO;
}

/* Descriptors received so far, to be closed unless handed on. */
struct received {
    int fds[DS_DATAGRAM_FDS_MAX + 2];
    unsigned n;
};

static void received_close_p(struct received *received)
{
    for (unsigned i = 0; i < received->n; i++)
        (void) close(received->fds[i]);
}

static void collect_fds(struct msghdr *message, struct received *received)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        size_t n;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (received->n < sizeof received->fds / sizeof received->fds[0])
                received->fds[received->n++] = fd;
            else
                (void) close(fd);
        }
    }
}

static bool well_formed(const struct msghdr *message, const void *buffer, size_t size)
{
    struct ds_datagram head;

    if (message->msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        return false;
    if (size < sizeof head)
        return false;
    memcpy(&head, buffer, sizeof head);
    return head.magic == MAGIC && head.size == size;
}

int ds_datagram_receive(int socket, void *buffer, size_t capacity, size_t *ret_size, int *fds,
                        unsigned fds_max, unsigned *ret_n_fds)
{
    ds_cleanup(received_close_p) struct received received = { .n = 0 };
    union control control;
    struct iovec data = { buffer, capacity };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
    ssize_t n;

    if (fds_max > DS_DATAGRAM_FDS_MAX)
        return -EINVAL;
    if (fds_max) { /* none wanted: the kernel closes what comes and says MSG_CTRUNC */
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fds_max * sizeof(int));
    }
    do
        n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    if (fds_max)
        collect_fds(&message, &received);
    if (n == 0 && received.n == 0 && !(message.msg_flags & MSG_CTRUNC)) {
        *ret_size = 0;
        if (ret_n_fds)
            *ret_n_fds = 0;
        return 0;
    }
    if (!well_formed(&message, buffer, (size_t) n) || received.n > fds_max)
        return -EPROTO;
    if (received.n)
        memcpy(fds, received.fds, received.n * sizeof(int));
    if (ret_n_fds)
        *ret_n_fds = received.n;
    received.n = 0; /* the caller's now */
    *ret_size = (size_t) n;
    return 0;
}

/* --- hello --- */

void ds_hello_init(struct ds_hello *hello, const char *app_name)
{
    *hello = (struct ds_hello){
        .major = DS_WIRE_MAJOR,
        .minor_min = 0,
        .minor_max = DS_WIRE_MINOR,
        .struct_size = sizeof *hello,
    };
    ds_datagram_init(&hello->head, DS_DATAGRAM_HELLO, sizeof *hello);
    if (app_name)
        memcpy(hello->app_name, app_name, strnlen(app_name, sizeof hello->app_name));
}

int ds_hello_check(const void *datagram, size_t size, struct ds_error *error)
{
    struct ds_hello hello;

    if (size < sizeof hello)
        return ds_error_set(error, -EPROTO, "hello of %zu bytes is too short", size);
    memcpy(&hello, datagram, sizeof hello);
    if (hello.head.magic != MAGIC || hello.head.type != DS_DATAGRAM_HELLO ||
        hello.head.size != size || hello.struct_size != size || hello.minor_min > hello.minor_max)
        return ds_error_set(error, -EPROTO, "what came is not a hello of this protocol");
    if (hello.major != DS_WIRE_MAJOR)
        return ds_error_set(error, -EPROTONOSUPPORT,
                            "protocol version %u is not spoken here, only %u: install matching "
                            "versions of dsd and its library",
                            hello.major, DS_WIRE_MAJOR);
    if (hello.minor_min > DS_WIRE_MINOR)
        return ds_error_set(error, -EPROTONOSUPPORT,
                            "protocol version %u.%u or later is asked for, %u.%u is spoken here: "
                            "update dsd",
                            hello.major, hello.minor_min, DS_WIRE_MAJOR, DS_WIRE_MINOR);
    if (hello.features_required)
        return ds_error_set(error, -EPROTONOSUPPORT,
                            "features 0x%llx are required and not known here: update dsd",
                            (unsigned long long) hello.features_required);
    if (hello.flags || hello.zero)
        return ds_error_set(error, -EPROTO, "hello has reserved fields that are not zero");
    return 0;
}
