/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/vec_portable.h"

#define ATTEND_NAME(x) ds_##x##_portable
#define ATTEND_ROWS    2
#define ATTEND_VECTORS 1
#define ATTEND_FEW     1

#include "engine/cpu/attend_body.h"
