/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timed_backend.h - how long a backend's operations took, for benches.
 *
 * The table of a backend is replaced in place by operations that time those that were there; one
 * backend of the program at a time. Not thread-safe, as the backend itself.
 */
#pragma once

#include "engine/backend.h"

void ds_timed_backend_start(struct ds_backend *backend);
void ds_timed_backend_stop(struct ds_backend *backend); /* the table is what it was */

/* Nanoseconds inside operations since the last call; parallel() is host work and not counted. */
uint64_t ds_timed_backend_take(void);
