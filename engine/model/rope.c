/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/rope.h"

#include <math.h>

/* The pair whose wave turns rotations times within the trained context (may be a fraction). */
static double pair_of(const struct ds_hyper *hyper, double rotations)
{
    double wavelength = (double) hyper->rope_original_context / rotations;

    return hyper->rope_dims * log(wavelength / (2.0 * M_PI)) /
           (2.0 * log((double) hyper->rope_base));
}

/* How far pair i is interpolated (stretched to the new context): 0 not at all, 1 wholly. Fast pairs
 * keep their speed, since they tell neighbours apart; slow ones would leave what they were trained
 * on. */
static double yarn_share(const struct ds_hyper *hyper, uint32_t i)
{
    double low = fmax(0.0, floor(pair_of(hyper, (double) hyper->rope_beta_fast)));
    double high =
        fmin((double) hyper->rope_dims - 1.0, ceil(pair_of(hyper, (double) hyper->rope_beta_slow)));
    double share = ((double) i - low) / fmax(0.001, high - low);

    return fmin(1.0, fmax(0.0, share));
}

float ds_rope_frequencies(const struct ds_hyper *hyper, const float *factors,
                          float *ret_frequencies)
{
    double scale = (double) hyper->rope_factor;
    double magnitude = (double) hyper->rope_attn_factor;

    for (uint32_t i = 0; i < hyper->rope_dims / 2; i++) {
        double frequency = pow((double) hyper->rope_base, -2.0 * i / hyper->rope_dims);

        if (factors)
            frequency /= (double) factors[i];
        if (hyper->rope_scaling == DS_ROPE_LINEAR) {
            frequency /= scale;
        } else if (hyper->rope_scaling == DS_ROPE_YARN) {
            double share = yarn_share(hyper, i);

            frequency = frequency * (1.0 - share) + frequency / scale * share;
        }
        ret_frequencies[i] = (float) frequency;
    }
    /* DeepSeek sharpens the scores instead: ds_rope_score_scale(). */
    if (hyper->rope_scaling == DS_ROPE_YARN && scale > 1.0 && hyper->kv_lora_rank == 0)
        magnitude *= 1.0 + 0.1 * log(scale);
    return (float) magnitude;
}

float ds_rope_score_scale(const struct ds_hyper *hyper)
{
    double factor = (double) hyper->rope_factor, sharper = 1.0;

    if (hyper->rope_scaling == DS_ROPE_YARN && factor > 1.0)
        sharper += (double) hyper->rope_log_multiplier * log(factor);
    return (float) (sharper * sharper / sqrt((double) hyper->key_dim));
}
