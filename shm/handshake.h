/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handshake.h - the datagrams by which two processes come to share a channel.
 *
 *   client -> dsd   HELLO                         dsd -> engine   WELCOME + 4 descriptors
 *   dsd -> client   WELCOME + 4 descriptors       engine -> dsd   READY
 *   client -> dsd   READY
 *
 * Sending and receiving never block (MSG_DONTWAIT): -EAGAIN is passed up. Descriptors are received
 * close-on-exec; more than asked for, or where none belong, close them all and give -EPROTO.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "shm/wire.h"

/* One datagram with n_fds descriptors (0 allowed). The descriptors stay the caller's. */
int ds_datagram_send(int socket, const void *datagram, size_t size, const int *fds, unsigned n_fds);

/* One datagram into buffer (capacity bytes) and at most fds_max descriptors into fds, now the
 * caller's. *ret_size 0 with return 0: the peer hung up. -EAGAIN, -EPROTO (truncated, bad magic,
 * size field differs, unexpected descriptors). The kind is in ((struct ds_datagram *)
 * buffer)->type. */
int ds_datagram_receive(int socket, void *buffer, size_t capacity, size_t *ret_size, int *fds,
                        unsigned fds_max, unsigned *ret_n_fds);

void ds_hello_init(struct ds_hello *hello, const char *app_name);
void ds_datagram_init(struct ds_datagram *head, enum ds_datagram_type type, size_t size);

/* Judges a received HELLO of size bytes: 0, -EPROTO (not ours), -EPROTONOSUPPORT (version or
 * required feature; the text says which). */
struct ds_error;
int ds_hello_check(const void *datagram, size_t size, struct ds_error *error);
