/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify.h - reads all of a model: what its files hash to, and that every number in them is one.
 *
 * For a person who doubts a file. It takes as long as reading and decoding everything; nothing
 * stays in memory. Any thread. Source: SHA-256 is FIPS 180-4, by nettle.
 */
#pragma once

#include "engine/format/checkpoint.h"

#define DS_SHA256_BYTES 32u

struct ds_verification {
    uint64_t n_tensors, n_values; /* decoded, all of them finite */
};

/* Decodes every tensor. progress as in ds_model_load(). -EBADMSG: a value is infinite or not a
 * number; error names the tensor and the element. -ECANCELED, -ENOMEM. */
int ds_checkpoint_verify(const struct ds_checkpoint *checkpoint,
                         int (*progress)(void *arg, double fraction), void *arg,
                         struct ds_verification *ret_verification, struct ds_error *error);

/* The SHA-256 of all bytes of a file, whatever its position is. -errno of pread(); -ECANCELED when
 * progress says so. */
int ds_file_sha256(int fd, int (*progress)(void *arg, double fraction), void *arg,
                   uint8_t ret_digest[DS_SHA256_BYTES]);
