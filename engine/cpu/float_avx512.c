/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/vec_avx512.h"

#define FLOAT_NAME(x) ds_##x##_avx512
#define FLOAT_ROWS    4

#include "engine/cpu/float_body.h"
