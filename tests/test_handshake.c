/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a datagram is taken whole, with exactly the descriptors that belong to it, or refused
 * without keeping any; a hello is judged by every field.
 * Method: a socket pair; what a peer may do wrong is sent with raw sendmsg; the number of open
 * descriptors is counted before and after.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>

#include "proto/base.h"
#include "shm/channel.h"
#include "shm/handshake.h"

struct sockets {
    int near, far;
};

static void sockets_close(struct sockets *sockets)
{
    (void) close(sockets->near);
    (void) close(sockets->far);
}

static struct sockets sockets_new(void)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    return (struct sockets){ fds[0], fds[1] };
}

static unsigned open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned n = 0;

    assert_non_null(directory);
    while (readdir(directory))
        n++;
    (void) closedir(directory);
    return n;
}

/* As a hostile peer would: any bytes, any number of descriptors. */
static void send_raw(int socket, const void *bytes, size_t size, unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control = { 0 };
    struct iovec data = { (void *) bytes, size };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };

    if (n_fds) {
        struct cmsghdr *head;

        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (unsigned i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(head) + i * sizeof(int), &socket, sizeof socket);
    }
    assert_int_equal(sendmsg(socket, &message, MSG_NOSIGNAL), size);
}

static struct ds_hello hello(void)
{
    struct ds_hello h;

    ds_hello_init(&h, "test");
    return h;
}

static void a_hello_arrives_and_passes(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    struct ds_hello out = hello(), in;
    struct ds_error error = { 0 };
    unsigned n_fds = 9;
    size_t size;

    (void) state;
    assert_int_equal(ds_datagram_send(s.near, &out, sizeof out, NULL, 0), 0);
    assert_int_equal(ds_datagram_receive(s.far, &in, sizeof in, &size, NULL, 0, &n_fds), 0);
    assert_int_equal(size, sizeof in);
    assert_int_equal(n_fds, 0);
    assert_memory_equal(&in, &out, sizeof in);
    assert_int_equal(ds_hello_check(&in, size, &error), 0);
    assert_string_equal(in.app_name, "test");
    assert_string_equal(error.text, "");
}

static void descriptors_arrive_closed_on_exec_and_in_order(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    unsigned before = open_fds(), n_fds;
    struct ds_channel *channel, *joined;
    struct ds_channel_fds offer, taken;
    struct ds_welcome out, in;
    int fds[4];
    size_t size;

    (void) state;
    assert_int_equal(ds_channel_create(&channel, DS_CHANNEL_SERVER, NULL, 1), 0);
    ds_channel_welcome(channel, &out, &offer);
    memcpy(fds, &offer, sizeof fds);
    assert_int_equal(ds_datagram_send(s.near, &out, sizeof out, fds, 4), 0);
    ds_channel_sent(channel);
    assert_int_equal(ds_datagram_receive(s.far, &in, sizeof in, &size, fds, 4, &n_fds), 0);
    assert_int_equal(n_fds, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    memcpy(&taken, fds, sizeof taken);
    assert_int_equal(ds_channel_join(&joined, DS_CHANNEL_SUBMITTER, &in, taken), 0);
    (void) ds_channel_free(joined);
    (void) ds_channel_free(channel);
    assert_int_equal(open_fds(), before);
}

static void nothing_there_is_eagain_and_a_hang_up_is_size_zero(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    char buffer[DS_DATAGRAM_MAX];
    size_t size = 99;

    (void) state;
    assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, NULL, 0, NULL),
                     -EAGAIN);
    (void) shutdown(s.near, SHUT_RDWR);
    assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, NULL, 0, NULL), 0);
    assert_int_equal(size, 0);
}

static void sending_to_nobody_is_an_error_not_a_signal(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    struct ds_hello out = hello();

    (void) state;
    (void) shutdown(s.far, SHUT_RDWR);
    assert_int_equal(ds_datagram_send(s.near, &out, sizeof out, NULL, 0), -EPIPE);
}

static void a_full_socket_is_eagain(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    struct ds_hello out = hello();
    int r = 0;

    (void) state;
    for (unsigned i = 0; i < 1000000 && r == 0; i++)
        r = ds_datagram_send(s.near, &out, sizeof out, NULL, 0);
    assert_int_equal(r, -EAGAIN);
}

/* n_sent descriptors where wanted may come: refused, and none of them stays open. */
static void refuses_fds(unsigned n_sent, unsigned wanted)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    struct ds_hello out = hello();
    char buffer[DS_DATAGRAM_MAX];
    int fds[DS_DATAGRAM_FDS_MAX];
    unsigned before = open_fds(), n_fds;
    size_t size;

    send_raw(s.near, &out, sizeof out, n_sent);
    assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, fds, wanted, &n_fds),
                     -EPROTO);
    assert_int_equal(open_fds(), before);
}

static void descriptors_where_none_belong_are_refused(void **state)
{
    (void) state;
    refuses_fds(1, 0);
    refuses_fds(253, 0);
}

static void a_flood_of_descriptors_is_refused_and_none_is_kept(void **state)
{
    (void) state;
    refuses_fds(2, 1); /* fits the padding of the control buffer */
    refuses_fds(4, 3);
    refuses_fds(5, 4);
    refuses_fds(253, 4);
    refuses_fds(65, DS_DATAGRAM_FDS_MAX);
    refuses_fds(253, DS_DATAGRAM_FDS_MAX);
}

static void descriptors_of_a_bad_datagram_are_closed(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    char buffer[DS_DATAGRAM_MAX];
    unsigned before = open_fds(), n_fds;
    int fds[4];
    size_t size;

    (void) state;
    send_raw(s.near, "not a datagram", 14, 4);
    assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, fds, 4, &n_fds),
                     -EPROTO);
    assert_int_equal(open_fds(), before);
    send_raw(s.near, "", 0, 4); /* nothing but descriptors: not a hang-up */
    assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, fds, 4, &n_fds),
                     -EPROTO);
    assert_int_equal(open_fds(), before);
}

static void malformed_datagrams_are_refused(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    struct ds_hello bad;
    char buffer[DS_DATAGRAM_MAX], large[DS_DATAGRAM_MAX + 64] = { 0 };
    size_t size;

    (void) state;
    send_raw(s.near, "abc", 3, 0); /* shorter than a head */
    bad = hello();
    bad.head.magic ^= 1;
    send_raw(s.near, &bad, sizeof bad, 0);
    bad = hello();
    bad.head.size--;
    send_raw(s.near, &bad, sizeof bad, 0);
    bad = hello();
    send_raw(s.near, &bad, sizeof bad - 8, 0); /* cut */
    ds_datagram_init((struct ds_datagram *) (void *) large, DS_DATAGRAM_HELLO, sizeof large);
    send_raw(s.near, large, sizeof large, 0); /* larger than the buffer */
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, NULL, 0, NULL),
                         -EPROTO);
    assert_int_equal(ds_datagram_receive(s.far, buffer, sizeof buffer, &size, NULL, 0, NULL),
                     -EAGAIN);
}

static void what_cannot_be_sent_is_refused_before_sending(void **state)
{
    ds_cleanup(sockets_close) struct sockets s = sockets_new();
    char large[DS_DATAGRAM_MAX + 1] = { 0 };
    int fds[DS_DATAGRAM_FDS_MAX + 1] = { 0 };

    (void) state;
    assert_int_equal(ds_datagram_send(s.near, large, sizeof large, NULL, 0), -EINVAL);
    assert_int_equal(ds_datagram_send(s.near, large, 4, NULL, 0), -EINVAL);
    assert_int_equal(ds_datagram_send(s.near, large, 64, fds, DS_DATAGRAM_FDS_MAX + 1), -EINVAL);
}

static void check(struct ds_hello h, size_t size, int expected)
{
    struct ds_error error = { 0 };

    assert_int_equal(ds_hello_check(&h, size, &error), expected);
    assert_int_equal(error.text[0] != '\0', expected != 0);
}

static void a_hello_is_judged_by_every_field(void **state)
{
    struct ds_hello h;
    uint8_t longer[sizeof h + 16] = { 0 };

    (void) state;
    check(hello(), sizeof h, 0);
    check(hello(), sizeof h - 1, -EPROTO);
    h = hello(), h.head.magic = 0, check(h, sizeof h, -EPROTO);
    h = hello(), h.head.type = DS_DATAGRAM_READY, check(h, sizeof h, -EPROTO);
    h = hello(), h.head.size++, check(h, sizeof h, -EPROTO);
    h = hello(), h.struct_size--, check(h, sizeof h, -EPROTO);
    h = hello(), h.flags = 1, check(h, sizeof h, -EPROTO);
    h = hello(), h.zero = 1, check(h, sizeof h, -EPROTO);
    h = hello(), h.minor_min = 2, h.minor_max = 1, check(h, sizeof h, -EPROTO);
    h = hello(), h.major = 2, check(h, sizeof h, -EPROTONOSUPPORT);
    h = hello(), h.minor_min = h.minor_max = 1, check(h, sizeof h, -EPROTONOSUPPORT);
    h = hello(), h.features_required = 4, check(h, sizeof h, -EPROTONOSUPPORT);
    h = hello(), h.minor_max = 7, h.features_wanted = 4, check(h, sizeof h, 0);

    h = hello(); /* a later minor version's, grown at the end */
    h.head.size = h.struct_size = sizeof longer;
    memcpy(longer, &h, sizeof h);
    assert_int_equal(ds_hello_check(longer, sizeof longer, NULL), 0);
}

static void a_long_name_fills_its_field_and_no_more(void **state)
{
    struct ds_hello h;

    (void) state;
    ds_hello_init(&h, "a name of more than thirty-two bytes, which is cut");
    assert_memory_equal(h.app_name, "a name of more than thirty-two b", 32);
    ds_hello_init(&h, NULL);
    assert_int_equal(h.app_name[0], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hello_arrives_and_passes),
        cmocka_unit_test(descriptors_arrive_closed_on_exec_and_in_order),
        cmocka_unit_test(nothing_there_is_eagain_and_a_hang_up_is_size_zero),
        cmocka_unit_test(sending_to_nobody_is_an_error_not_a_signal),
        cmocka_unit_test(a_full_socket_is_eagain),
        cmocka_unit_test(descriptors_where_none_belong_are_refused),
        cmocka_unit_test(a_flood_of_descriptors_is_refused_and_none_is_kept),
        cmocka_unit_test(descriptors_of_a_bad_datagram_are_closed),
        cmocka_unit_test(malformed_datagrams_are_refused),
        cmocka_unit_test(what_cannot_be_sent_is_refused_before_sending),
        cmocka_unit_test(a_hello_is_judged_by_every_field),
        cmocka_unit_test(a_long_name_fills_its_field_and_no_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
