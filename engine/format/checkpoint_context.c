/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/checkpoint.h"
#include "engine/format/checkpoint_parts.h"
#include "proto/base.h"

enum { STRETCH_MAX = 64 }; /* times what the model was trained on: beyond, nothing was ever seen */

int ds_checkpoint_stretch(struct ds_checkpoint *checkpoint, uint32_t context,
                          struct ds_error *error)
{
    struct ds_hyper *hyper = &checkpoint->hyper;
    double factor = (double) context / hyper->rope_original_context;

    if (context <= hyper->context)
        return 0;
    if (hyper->rope_scaling == DS_ROPE_NONE)
        return ds_error_set(error, -EINVAL,
                            "%s: a context of %u positions is more than its own %u, and the file "
                            "names no scaling to reach it: ask for %u at most",
                            checkpoint->name, context, hyper->context, hyper->context);
    if (factor > STRETCH_MAX)
        return ds_error_set(error, -EINVAL,
                            "%s: a context of %u positions is more than %d times the %u it was "
                            "trained on: ask for less",
                            checkpoint->name, context, STRETCH_MAX, hyper->rope_original_context);
    if (factor > (double) hyper->rope_factor)
        hyper->rope_factor = (float) factor;
    hyper->context = context;
    return 0;
}
