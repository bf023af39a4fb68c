/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message.h - protobuf-c with bounds: what a peer sends costs a bounded amount of memory.
 *
 * protobuf-c parses in two passes over the same bytes, so the bytes must not change meanwhile:
 * never give it shared memory, only a private copy.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "proto/ds.pb-c.h"

/* Unpacks size bytes. All memory comes from one block of at most DS_UNPACK_FACTOR_MAX * size +
 * DS_UNPACK_SLACK_BYTES, and DS_UNPACK_BYTES_MAX; free with ds_message_free(). -EBADMSG: malformed.
 * -EMSGSIZE: exceeds the bound, or DS_PAYLOAD_BYTES_MAX. -ENOMEM. The type of *ret_message is that
 * of descriptor. Strings end in NUL but may be any bytes before it. */
int ds_message_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes, size_t size,
                      void *ret_message /* Ds__X ** */);

/* Frees a message of ds_message_unpack() (not of protobuf_c_message_unpack). Accepts NULL. */
void ds_message_free(void *message);
void ds_message_free_p(void *message /* Ds__X ** */); /* for ds_cleanup */

/* Packed size, and packing into capacity bytes. -EMSGSIZE: does not fit. */
size_t ds_message_size(const void *message);
int ds_message_pack(const void *message, void *buffer, size_t capacity, size_t *ret_size);

/* Packs into fresh memory (free with free()). -ENOMEM. */
int ds_message_pack_new(const void *message, void **ret_bytes, size_t *ret_size);
