/* SPDX-License-Identifier: Apache-2.0 */
/*
 * naive_backend.h - engine/backend.h as its comments read, in double arithmetic.
 *
 * The oracle for models and for other backends: no blocking, no rounding of activations, keys and
 * values kept as floats whatever type is asked for. Slow.
 */
#pragma once

#include "engine/backend.h"

/* NULL: no memory. Close with ->close(). */
struct ds_backend *ds_naive_backend_new(void);
