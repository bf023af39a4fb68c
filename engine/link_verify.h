/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_verify.h - a whole model read and hashed, as a message.
 */
#pragma once

#include "engine/format/checkpoint.h"
#include "proto/ds.pb-c.h"

/* Decodes all of checkpoint and hashes the files it is made of. progress runs from 0 to 1 and may
 * return nonzero to give up. *ret_verification: one allocation, free(); its names borrow from
 * names (NULL, or with NULLs: not known). Errors as ds_checkpoint_verify() and ds_file_sha256(). */
int ds_link_verify(const struct ds_checkpoint *checkpoint, const int *fds, const char *const *names,
                   unsigned n_fds, int (*progress)(void *arg, double fraction), void *arg,
                   Ds__Verification **ret_verification, struct ds_error *error);
