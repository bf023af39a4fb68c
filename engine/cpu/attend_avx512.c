/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/vec_avx512.h"

#define ATTEND_NAME(x) ds_##x##_avx512
#define ATTEND_ROWS    12
#define ATTEND_VECTORS 2
#define ATTEND_FEW     6

#include "engine/cpu/attend_body.h"
