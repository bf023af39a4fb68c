/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session_socket.h - a client's socket: the handshake, model files handed over, the end.
 */
#pragma once

#include <stdint.h>

#include "proto/message.h"

struct ds_session;

/* Takes the datagrams that are there, a bounded number. May drop the session. */
void ds_session_read_socket(struct ds_session *session);

/* Tells a peer why it is not let in. Best effort. */
void ds_session_reject(int socket, Ds__Error__Code code, uint32_t retry_after_ms, const char *text);
