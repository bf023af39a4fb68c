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
} offsets[DS_ACT_OFFSETS] = { { 1, false },   { 8, false }, { 16, false }, { 64, false },
                              { 128, false }, { 4, true },  { 32, true },  { 64, true } };

static bool uses_offset(const struct ds_panel_format *format, unsigned i)
{
    return format->offset == offsets[i].offset &&
           ds_scale_halves(format->scale) == offsets[i].halves;
}

int32_t ds_act_wide_limit(const int32_t *magnitudes, size_t stride, uint32_t n_units)
{
    enum { NARROW_UNITS = 16 }; /* k <= 512: short sums average little noise out, and cost little */
    int64_t sum = 0;
    int32_t n = 0;

    if (n_units <= NARROW_UNITS)
        return -1; /* all wide */
    for (uint32_t u = 0; u < n_units; u++) {
        int32_t magnitude = magnitudes[u * stride];

        if (magnitude < DS_ACT_MAGNITUDE_MIN || magnitude > DS_ACT_MAGNITUDE_MAX)
            continue;
        sum += magnitude;
        n++;
    }
    return n ? (int32_t) (sum / n) + WIDE_STEP : INT32_MAX;
}

struct wanted {
    bool offsets[DS_ACT_OFFSETS];
    bool half_sums;
    unsigned n_halves; /* planes of two numbers a cell that this comes to */
};

static struct wanted find_wanted(const struct ds_panel_format *const *formats, unsigned n_formats)
{
    struct wanted wanted = { 0 };

    for (unsigned j = 0; j < n_formats; j++) {
        for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
            wanted.offsets[i] |= uses_offset(formats[j], i);
        wanted.half_sums |= formats[j]->scale == DS_SCALE_2K;
    }
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
        wanted.n_halves += wanted.offsets[i] ? 2 : 0;
    wanted.n_halves += wanted.half_sums ? 1 : 0;
    return wanted;
}

/* The next size bytes of memory, aligned to 64. */
static void *cut(char **memory, size_t size)
{
    char *piece = *memory;

    *memory += (size + 63) / 64 * 64;
    return piece;
}

int ds_act_prepare(struct ds_act_memory *memory, uint32_t n_rows, uint32_t n_groups, uint32_t k,
                   const struct ds_panel_format *const *formats, unsigned n_formats)
{
    struct ds_act *act = &memory->act;
    size_t n_units = k / DS_UNIT_K, cells = n_rows * n_units;
    size_t halves = 2 * cells * sizeof(int32_t), floats = cells * sizeof(float);
    struct wanted wanted = find_wanted(formats, n_formats);
    size_t n_planes = 2 + 2 + 3 + 2 + wanted.n_halves;
    char *at = ds_scratch_get(&memory->memory, 2 * cells * DS_UNIT_K + 2 * cells + 3 * floats +
                                                   (2 + wanted.n_halves) * halves + 64 * n_planes);

    if (!at)
        return -ENOMEM;
    act->n = n_rows;
    act->k = k;
    act->n_units = (uint32_t) n_units;
    act->group_rows = n_rows < DS_ACT_GROUP ? n_rows : DS_ACT_GROUP;
    act->high = cut(&at, cells * DS_UNIT_K);
    act->low = cut(&at, cells * DS_UNIT_K);
    act->wide = cut(&at, cells);
    act->any_wide = cut(&at, n_groups * n_units);
    act->scale = cut(&at, floats);
    act->fine = cut(&at, floats);
    act->sum = cut(&at, floats);
    act->half_high = cut(&at, halves);
    act->half_low = cut(&at, halves);
    act->half_sum = wanted.half_sums ? cut(&at, halves) : NULL;
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++) {
        memory->offsets[i].high = wanted.offsets[i] ? cut(&at, halves) : NULL;
        memory->offsets[i].low = wanted.offsets[i] ? cut(&at, halves) : NULL;
    }
    return 0;
}

/* --- parts --- */

static uint32_t groups_of(uint32_t n)
{
    return (n + DS_ACT_GROUP - 1) / DS_ACT_GROUP;
}

uint32_t ds_act_part_groups(const struct ds_act_part *part)
{
    return groups_of(part->n);
}

struct ds_act_part ds_act_part_next(const struct ds_act_part *part, uint32_t n)
{
    uint32_t padded = part->n < DS_ACT_GROUP ? part->n : groups_of(part->n) * DS_ACT_GROUP;

    return (struct ds_act_part){ part->first_row + padded, part->first_group + groups_of(part->n),
                                 n };
}

struct ds_act_memory ds_act_view(const struct ds_act_memory *memory, const struct ds_act_part *part)
{
    struct ds_act_memory view = { .act = memory->act };
    struct ds_act *act = &view.act;
    size_t cell = (size_t) part->first_row * act->n_units;

    act->n = part->n;
    act->group_rows = part->n < DS_ACT_GROUP ? part->n : DS_ACT_GROUP;
    act->high += cell * DS_UNIT_K;
    act->low += cell * DS_UNIT_K;
    act->wide += cell;
    act->any_wide += (size_t) part->first_group * act->n_units;
    act->scale += cell;
    act->fine += cell;
    act->sum += cell;
    act->half_high += 2 * cell;
    act->half_low += 2 * cell;
    if (act->half_sum)
        act->half_sum += 2 * cell;
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
        if (memory->offsets[i].high) {
            view.offsets[i].high = memory->offsets[i].high + 2 * cell;
            view.offsets[i].low = memory->offsets[i].low + 2 * cell;
        }
    return view;
}

/* The corrections of cells first .. end for one of the offsets */
static void correct(struct ds_act_memory *memory, unsigned i, size_t first, size_t end)
{
    const struct ds_act *act = &memory->act;
    int32_t *high = memory->offsets[i].high, *low = memory->offsets[i].low;
    int32_t factor = -(int32_t) offsets[i].offset;

    for (size_t at = 2 * first; at < 2 * end; at += 2) {
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

/* As ds_act.sum is made of both halves */
static void sum_halves(const struct ds_act *act, size_t first, size_t end)
{
    for (size_t at = 2 * first; at < 2 * end; at++)
        act->half_sum[at] =
            act->fine[at / 2] * (float) (act->half_high[at] * 128 + act->half_low[at]);
}

void ds_act_finish_group(struct ds_act_memory *view, uint32_t group)
{
    struct ds_act *act = &view->act;
    uint32_t first = group * act->group_rows, left = act->n - first;
    uint32_t n = left < act->group_rows ? left : act->group_rows;
    size_t cell = ds_act_cell(act, first, 0), any = (size_t) group * act->n_units;

    for (uint32_t u = 0; u < act->n_units; u++, cell += act->group_rows) {
        act->any_wide[any + u] = 0;
        for (uint32_t i = 0; i < n; i++)
            act->any_wide[any + u] |= act->wide[cell + i];
        for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
            if (view->offsets[i].high)
                correct(view, i, cell, cell + n);
        if (act->half_sum)
            sum_halves(act, cell, cell + n);
    }
}

/* --- a batch of one part --- */

struct quantise {
    struct ds_act_memory *memory;
    const struct ds_kernels *kernels;
    const float *x;
};

static void quantise_group(void *arg, uint32_t group, unsigned thread)
{
    struct quantise *quantise = arg;
    struct ds_act *act = &quantise->memory->act;
    uint32_t first = group * act->group_rows, left = act->n - first;
    uint32_t n = left < act->group_rows ? left : act->group_rows;

    (void) thread;
    for (uint32_t row = first; row < first + n; row++)
        quantise->kernels->quantise(act, row, quantise->x + (size_t) row * act->k);
    ds_act_finish_group(quantise->memory, group);
}

int ds_act_quantise(struct ds_act_memory *memory, const struct ds_kernels *kernels,
                    struct ds_pool *pool, const float *x, uint32_t n, uint32_t k,
                    const struct ds_panel_format *const *formats, unsigned n_formats)
{
    struct quantise quantise = { memory, kernels, x };
    struct ds_act_part none = { 0, 0, n }, end = ds_act_part_next(&none, 0);
    int r;

    r = ds_act_prepare(memory, end.first_row, end.first_group, k, formats, n_formats);
    if (r < 0)
        return r;
    memory->act.n = n;
    ds_pool_run(pool, quantise_group, &quantise, end.first_group, 1);
    return 0;
}

struct ds_act_offset ds_act_offset(const struct ds_act_memory *memory,
                                   const struct ds_panel_format *format)
{
    for (unsigned i = 0; i < DS_ACT_OFFSETS; i++)
        if (uses_offset(format, i))
            return (struct ds_act_offset){ memory->offsets[i].high, memory->offsets[i].low };
    return (struct ds_act_offset){ NULL, NULL };
}

void ds_act_deinit(struct ds_act_memory *memory)
{
    ds_scratch_deinit(&memory->memory);
}
