/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/vec_portable.h"

#define FLOAT_NAME(x) ds_##x##_portable
#define FLOAT_ROWS    1

#include "engine/cpu/float_body.h"
