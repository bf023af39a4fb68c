/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mapping.h - a file in memory, of which the owner may at any moment take bytes away.
 *
 * A page that a mapped file no longer has, or that its disk cannot read, raises SIGBUS. A handler
 * (installed with a mapping; it stays) then puts zeros in the place of the whole mapping
 * and notes that it is lost. Readers go on, read zeros, and ask ds_file_intact() before
 * they trust what they read. SIGBUS anywhere else does what it did before. A thread that reads a
 * mapping must not block SIGBUS. All calls from any thread; a mapping may be read by many.
 */
#pragma once

#include <stddef.h>

#include "proto/base.h"

/* The first size bytes of fd (which is dup'ed), read-only; size > 0. NULL and errno where it fails
 * (EMFILE: more than DS_FILE_MAPPINGS_MAX at once). */
#define DS_FILE_MAPPINGS_MAX 1024u
const void *ds_file_map(int fd, size_t size);

/* data: what ds_file_map() returned; NULL is a no-op. */
void ds_file_unmap(const void *data, size_t size);

/* Whether what was read until now is what the file held when it was mapped; asked for after
 * reading. -EIO + the reason: it was changed since (cut short above all), or its disk failed and
 * all may be zeros. NULL is intact. */
int ds_file_intact(const void *data, const char *label, struct ds_error *error);
