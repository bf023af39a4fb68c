/* SPDX-License-Identifier: Apache-2.0 */
/* Hyper-parameters of mixtures of experts. */
#include "engine/format/checkpoint_parts.h"

/* What files of an architecture mean where they do not say it. */
static const struct mixture {
    const char *architecture;
    bool always;    /* there is no such model without experts */
    bool normalise; /* expert_weights_norm */
    bool any_width; /* experts may be as wide as feed_forward_length says (Mixtral) */
    bool grouped;   /* files from before expert_group_count mean groups all the same */
} mixtures[] = {
    { "llama", false, true, true, false },
    { "qwen3moe", true, true, false, false },
    { "deepseek2", false, false, false, true },
    { "deepseek32", false, false, false, true },
};

struct reader {
    struct ds_key_reader keys;
    const char *architecture;
    char name[160];
};

static const char *key_name(struct reader *reader, const char *suffix)
{
    (void) snprintf(reader->name, sizeof reader->name, "%s.%s", reader->architecture, suffix);
    return reader->name;
}

static int get_u32(struct reader *reader, const char *suffix, bool required, uint32_t *value)
{
    return ds_key_u32(&reader->keys, key_name(reader, suffix), required, value);
}

/* Their numbers in expert_gating_func; 0 and no key mean softmax. */
static int read_gating(struct reader *reader, struct ds_hyper *hyper)
{
    static const enum ds_gating gatings[] = { DS_GATING_SOFTMAX, DS_GATING_SOFTMAX,
                                              DS_GATING_SIGMOID, DS_GATING_SOFTMAX_CHOSEN };
    uint32_t number = 0;
    int r;

    r = get_u32(reader, "expert_gating_func", false, &number);
    if (r < 0)
        return r;
    if (number >= sizeof gatings / sizeof gatings[0])
        return ds_error_set(reader->keys.error, -ENOTSUP,
                            "%s: key '%s' is %u, a gating this build has not: it knows 1 "
                            "(softmax), 2 (sigmoid) and 3 (softmax of the chosen)",
                            reader->keys.gguf->label, reader->name, number);
    hyper->gating = gatings[number];
    return 0;
}

/* DeepSeek-V3 and V2 files from before their groups were written down. */
static void infer_groups(struct ds_hyper *hyper)
{
    bool v3 = hyper->gating == DS_GATING_SIGMOID && hyper->n_experts == 256;
    bool v2 = hyper->gating == DS_GATING_SOFTMAX && hyper->n_experts == 160;

    if (v3 || v2) {
        hyper->n_expert_groups = 8;
        hyper->n_expert_groups_used = v3 ? 4 : 3;
    }
}

static int read_routing(struct reader *reader, const struct mixture *mixture,
                        struct ds_hyper *hyper)
{
    const uint32_t not_said = UINT32_MAX;
    int8_t normalise = mixture->normalise;
    int r;

    r = read_gating(reader, hyper);
    if (r == 0)
        r = ds_key_flag(&reader->keys, key_name(reader, "expert_weights_norm"), &normalise);
    hyper->expert_weights_norm = normalise;
    hyper->expert_weights_scale = 1.0f;
    if (r == 0)
        r = ds_key_f32(&reader->keys, key_name(reader, "expert_weights_scale"), false,
                       &hyper->expert_weights_scale);
    if (hyper->expert_weights_scale == 0.0f) /* some converters write 0 for "none" */
        hyper->expert_weights_scale = 1.0f;
    hyper->n_expert_groups = not_said;
    if (r == 0)
        r = get_u32(reader, "expert_group_count", false, &hyper->n_expert_groups);
    if (r < 0)
        return r;
    hyper->expert_groups_by_two = hyper->gating == DS_GATING_SIGMOID;
    if (hyper->n_expert_groups == not_said) {
        hyper->n_expert_groups = 0;
        if (mixture->grouped)
            infer_groups(hyper);
        return 0;
    }
    if (hyper->n_expert_groups <= 1)
        return 0;
    return get_u32(reader, "expert_group_used_count", true, &hyper->n_expert_groups_used);
}

static int read_sizes(struct reader *reader, const struct mixture *mixture, struct ds_hyper *hyper)
{
    int r;

    r = get_u32(reader, "expert_used_count", true, &hyper->n_experts_used);
    if (mixture->any_width)
        hyper->expert_ffn_width = hyper->ffn_width;
    if (r == 0)
        r = get_u32(reader, "expert_feed_forward_length", !mixture->any_width,
                    &hyper->expert_ffn_width);
    if (r == 0)
        r = get_u32(reader, "expert_shared_count", false, &hyper->n_experts_shared);
    if (r < 0)
        return r;
    if (__builtin_mul_overflow(hyper->n_experts_shared, hyper->expert_ffn_width,
                               &hyper->shared_ffn_width))
        hyper->shared_ffn_width = UINT32_MAX; /* out of its range */
    r = get_u32(reader, "expert_shared_feed_forward_length", false, &hyper->shared_ffn_width);
    if (r == 0)
        r = get_u32(reader, "leading_dense_block_count", false, &hyper->n_leading_dense);
    return r;
}

static int contradiction(const struct ds_checkpoint *checkpoint, struct ds_error *error,
                         const char *what)
{
    return ds_error_set(error, -EINVAL, "%s: %s: convert the model again",
                        checkpoint->files[0].label, what);
}

int ds_checkpoint_read_experts(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    struct reader reader = { .keys = { &checkpoint->files[0], error },
                             .architecture = checkpoint->architecture };
    struct ds_hyper *hyper = &checkpoint->hyper;
    const struct mixture *mixture = NULL;
    int r;

    if (checkpoint->vocab_only)
        return 0;
    for (unsigned i = 0; i < sizeof mixtures / sizeof mixtures[0]; i++)
        if (strcmp(mixtures[i].architecture, checkpoint->architecture) == 0)
            mixture = &mixtures[i];
    r = get_u32(&reader, "expert_count", mixture && mixture->always, &hyper->n_experts);
    if (r == 0)
        r = get_u32(&reader, "nextn_predict_layers", false, &hyper->n_nextn);
    if (r < 0)
        return r;
    if (hyper->n_experts == 0)
        return mixture && mixture->always
                   ? contradiction(checkpoint, error, "its key expert_count is 0")
                   : 0;
    if (!mixture)
        return ds_error_set(error, -ENOTSUP,
                            "%s: a mixture of %u experts, which this build cannot run with "
                            "architecture '%s': use a dense model",
                            checkpoint->files[0].label, hyper->n_experts, checkpoint->architecture);
    r = read_sizes(&reader, mixture, hyper);
    return r < 0 ? r : read_routing(&reader, mixture, hyper);
}

/* --- do they make sense together? --- */

static int check_sizes(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_hyper *h = &checkpoint->hyper;
    const uint32_t used_max =
        h->n_experts < DS_EXPERTS_USED_MAX ? h->n_experts : DS_EXPERTS_USED_MAX;
    const struct {
        const char *what;
        uint32_t value, low, high;
    } ranges[] = {
        { "expert_count", h->n_experts, 1, DS_EXPERTS_MAX },
        { "expert_used_count", h->n_experts_used, 1, used_max },
        { "expert_feed_forward_length", h->expert_ffn_width, 1, DS_WIDTH_MAX },
        { "expert_shared_count", h->n_experts_shared, 0, DS_EXPERTS_MAX },
        { "expert_shared_feed_forward_length", h->shared_ffn_width, 0, DS_WIDTH_MAX },
        { "expert_group_count", h->n_expert_groups, 0, h->n_experts },
        { "leading_dense_block_count", h->n_leading_dense, 0, h->n_layers },
    };

    for (unsigned i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
            return ds_error_set(error, -EINVAL,
                                "%s: key '%s.%s' is %u, possible is %u to %u: "
                                "convert the model again",
                                checkpoint->files[0].label, checkpoint->architecture,
                                ranges[i].what, ranges[i].value, ranges[i].low, ranges[i].high);
    return 0;
}

int ds_checkpoint_check_experts(const struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_hyper *h = &checkpoint->hyper;
    int r;

    if (h->n_nextn >= h->n_layers && h->n_nextn > 0)
        return contradiction(checkpoint, error,
                             "nextn_predict_layers leaves no layer for the model itself");
    if (h->n_experts == 0) /* where there must be some, that was refused when it was read */
        return 0;
    r = check_sizes(checkpoint, error);
    if (r < 0)
        return r;
    if (h->n_expert_groups > 1) {
        uint32_t size = h->n_experts / h->n_expert_groups;

        if (h->n_experts % h->n_expert_groups != 0)
            return contradiction(checkpoint, error,
                                 "expert_group_count does not divide expert_count");
        if (h->n_expert_groups_used == 0 || h->n_expert_groups_used > h->n_expert_groups)
            return contradiction(checkpoint, error,
                                 "expert_group_used_count is not between 1 and "
                                 "expert_group_count");
        if (size * h->n_expert_groups_used < h->n_experts_used)
            return contradiction(checkpoint, error,
                                 "the groups of experts used hold fewer experts than "
                                 "expert_used_count");
    }
    if (!(h->expert_weights_scale > 0.0f))
        return contradiction(checkpoint, error, "expert_weights_scale is not positive");
    if ((h->n_experts_shared == 0) != (h->shared_ffn_width == 0))
        return contradiction(checkpoint, error,
                             "expert_shared_count and expert_shared_feed_forward_length do not "
                             "agree whether there are shared experts");
    return 0;
}
