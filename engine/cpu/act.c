/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/act.h"

#include "engine/cpu/float.h"
#include "proto/base.h"

/* Half an octave above the mean of the row. Measured on SmolLM2-135M-Instruct Q4_1, whose
 * activations have large outliers: rms deviation of the top 8 log-probabilities from float32, and
 * prompt speed with AVX-512 against a limit of infinity: never wide 0.114, 1;  2 octaves 0.072;  1
 * octave 0.041, 0.98;  1/2 octave 0.031; the mean itself 0.030, 0.92;  always wide 0.0015, 0.74 */
#define WIDE_STEP (1 << 22)

static const struct {
    uint16_t offset;
    bool halves; /* one scale for each half of a unit */
} offsets[DS_ACT_OFFSETS] = { { 8, false }, { 16, false }, { 32, true }, { 128, false } };

int32_t ds_act_wide_limit(const int32_t *magnitudes, uint32_t n_units)
{
    enum { NARROW_UNITS = 16 }; /* k <= 512: short sums average little noise out, and cost little */
    int64_t sum = 0;
    int32_t n = 0;

    if (n_units <= NARROW_UNITS)
        return -1; /* all wide */
    for (uint32_t u = 0; u < n_units; u++) {
        int32_t magnitude = magnitudes[2 * u];

        if (magnitude < DS_ACT_MAGNITUDE_MIN || magnitude > DS_ACT_MAGNITUDE_MAX)
            continue;
        sum += magnitude;
        n++;
    }
    return n ? (int32_t) (sum / n) + WIDE_STEP : INT32_MAX;
}

/* The next size bytes of memory, aligned to 64. */
static void *cut(char **memory, size_t size)
{
    char *piece = *memory;

    *memory += (size + 63) / 64 * 64;
    return piece;
}

static int resize(struct ds_act_memory *memory, uint32_t n, uint32_t k)
{
    struct ds_act *act = &memory->act;
    size_t elements = (size_t) n * k, units = elements / DS_UNIT_K;
    size_t halves = 2 * units * sizeof(int32_t), floats = units * sizeof(float);
    size_t n_planes = 2 + 1 + 3 + 2 + 2 * DS_ACT_OFFSETS;
    char *at = ds_scratch_get(&memory->memory, 2 * elements + (size_t) k / DS_UNIT_K * (n + 16) +
                                                   3 * floats + (2 + 2 * DS_ACT_OFFSETS) * halves +
                                                   64 * n_planes);

    if (!at)
        return -ENOMEM;
    act->n = n;
    act->k = k;
    act->n_units = k / DS_UNIT_K;
    act->high = cut(&at, elements);
    act->low = cut(&at, elements);
    act->wide_stride = n + 16;
    act->wide = cut(&at, act->n_units * act->wide_stride);
    act->scale = cut(&at, floats);
    act->fine = cut(&at, floats);
    act->sum = cut(&at, floats);
    act->half_high = cut(&at, halves);
    act->half_low = cut(&at, halves);
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++) {
        memory->offsets[i].high = cut(&at, halves);
        memory->offsets[i].low = cut(&at, halves);
    }
    return 0;
}

struct quantise {
    struct ds_act_memory *memory;
    const struct ds_kernels *kernels;
    const float *x;
    bool wanted[DS_ACT_OFFSETS];
};

static void quantise_row(void *arg, uint32_t row, unsigned thread)
{
    struct quantise *quantise = arg;
    struct ds_act_memory *memory = quantise->memory;
    struct ds_act *act = &memory->act;
    size_t first = (size_t) row * act->n_units * 2, end = first + 2 * (size_t) act->n_units;

    (void) thread;
    quantise->kernels->quantise(act, row, quantise->x + (size_t) row * act->k);
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++) {
        int32_t *high = memory->offsets[i].high, *low = memory->offsets[i].low;
        int32_t factor = -(int32_t) offsets[i].offset;

        for (size_t at = first; at < end && quantise->wanted[i]; at += 2) {
            high[at] = act->half_high[at] * factor;
            low[at] = act->half_low[at] * factor;
            high[at + 1] = act->half_high[at + 1] * factor;
            low[at + 1] = act->half_low[at + 1] * factor;
            if (offsets[i].halves)
                continue;
            high[at] += high[at + 1];
            low[at] += low[at + 1];
            high[at + 1] = low[at + 1] = 0;
        }
    }
}

int ds_act_quantise(struct ds_act_memory *memory, const struct ds_kernels *kernels,
                    struct ds_pool *pool, const float *x, uint32_t n, uint32_t k,
                    const struct ds_panel_format *const *formats, unsigned n_formats)
{
    struct quantise quantise = { memory, kernels, x, { 0 } };
    int r;

    r = resize(memory, n, k);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
        for (unsigned j = 0; j < n_formats; j++)
            quantise.wanted[i] |= formats[j]->offset == offsets[i].offset;
    /* A row takes less time than waking a thread. */
    ds_pool_run(pool, quantise_row, &quantise, n, 8);
    return 0;
}

struct ds_act_offset ds_act_offset(const struct ds_act_memory *memory,
                                   const struct ds_panel_format *format)
{
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
        if (offsets[i].offset == format->offset)
            return (struct ds_act_offset){ memory->offsets[i].high, memory->offsets[i].low };
    return (struct ds_act_offset){ NULL, NULL };
}

void ds_act_deinit(struct ds_act_memory *memory)
{
    ds_scratch_deinit(&memory->memory);
}
