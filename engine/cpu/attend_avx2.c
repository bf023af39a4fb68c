/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/vec_avx2.h"

#define ATTEND_NAME(x) ds_##x##_avx2
#define ATTEND_ROWS    6
#define ATTEND_VECTORS 1
#define ATTEND_FEW     3

#include "engine/cpu/attend_body.h"
