/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.h - the socket clients connect to: passed by systemd, or bound here.
 */
#pragma once

#include <stdbool.h>

struct ds_error;

/* The listening socket. systemd's first SEQPACKET socket where there is one (LISTEN_FDS), else path
 * is bound: directories that are missing are made, a socket that nobody answers on is replaced, a
 * living one is not (-EADDRINUSE), anything else in the way is left alone (-EEXIST). Mode 0660 for
 * root (group dsd decides by the directory), 0600 for others. *ret_made: it is ours to unlink. */
int ds_listener_open(const char *path, int *ret_fd, bool *ret_made, struct ds_error *error);
