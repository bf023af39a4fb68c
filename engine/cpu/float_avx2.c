/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/vec_avx2.h"

#define FLOAT_NAME(x) ds_##x##_avx2
#define FLOAT_ROWS    2

#include "engine/cpu/float_body.h"
