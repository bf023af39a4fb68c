/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The feed-forward of a mixture of experts.
 *
 * Rows are sorted by expert into slots, one for each row and expert chosen, so that an expert's
 * matrices are read once for all its rows; the rows of one expert are a segment, and quantised as a
 * batch of their own. Four rounds over the threads: quantise the input, gate and up with silu,
 * quantise what they give, down. In the first an item is a group of rows, in the second a panel of
 * gate and up for a tile of rows, and in the last some panels of down for all experts one after the
 * other: such an item owns its columns of out, and every row gets its experts' parts in order of
 * their numbers, whoever else is in the batch.
 */
#include "engine/cpu/cpu.h"

struct segment {
    uint32_t expert;
    uint32_t first_slot;
    struct ds_act_part part; /* of act_hidden; of act_in too, but for a batch of one row */
};

/* Rows of a segment from first_row on: a group of them, or a tile */
struct piece {
    uint32_t segment;
    uint32_t first_row;
};

struct mixture {
    struct ds_cpu *cpu;
    const struct ds_experts *experts;
    const float *in;
    float *out;
    uint32_t n, n_used, n_slots;
    uint32_t width, ffn_width;

    uint32_t *rows; /* [n_slots] of in and out */
    float *weights; /* [n_slots] */
    struct segment *segments;
    struct piece *groups, *tiles;
    uint32_t n_segments, n_groups, n_tiles;

    float *x;                 /* [n_slots][width], NULL unless gate or up are float weights */
    float *hidden;            /* [n_slots][ffn_width] */
    uint32_t panels_per_item; /* of down */
};

struct thread_memory {
    struct ds_tile tile;
    _Alignas(64) float gate[DS_TILE_ROWS * DS_PANEL_ROWS];
    _Alignas(64) float up[DS_TILE_ROWS * DS_PANEL_ROWS];
};

/* --- who goes where --- */

/* Memory of the plan, for the case that every slot has an expert of its own. */
static int make_room(struct mixture *mixture, uint32_t **ret_counts)
{
    uint32_t n_experts = mixture->experts->gate->n_matrices;
    size_t n = mixture->n_slots;
    size_t bytes = n * (sizeof *mixture->rows + sizeof *mixture->weights +
                        sizeof *mixture->segments + 2 * sizeof(struct piece)) +
                   (n_experts + 1) * sizeof **ret_counts;
    char *at = ds_scratch_get(&mixture->cpu->mixture.plan, bytes);

    if (!at)
        return -ENOMEM;
    mixture->segments = (struct segment *) at;
    mixture->groups = (struct piece *) (mixture->segments + n);
    mixture->tiles = mixture->groups + n;
    mixture->rows = (uint32_t *) (mixture->tiles + n);
    mixture->weights = (float *) (mixture->rows + n);
    *ret_counts = (uint32_t *) (mixture->weights + n);
    return 0;
}

static void add_segment(struct mixture *mixture, uint32_t expert, uint32_t first_slot, uint32_t n)
{
    const struct segment *before = mixture->segments + mixture->n_segments - 1;
    struct segment *segment = mixture->segments + mixture->n_segments;

    segment->expert = expert;
    segment->first_slot = first_slot;
    segment->part =
        mixture->n_segments ? ds_act_part_next(&before->part, n) : (struct ds_act_part){ 0, 0, n };
    for (uint32_t row = 0; row < n; row += DS_ACT_GROUP)
        mixture->groups[mixture->n_groups++] = (struct piece){ mixture->n_segments, row };
    for (uint32_t row = 0; row < n; row += DS_TILE_ROWS)
        mixture->tiles[mixture->n_tiles++] = (struct piece){ mixture->n_segments, row };
    mixture->n_segments++;
}

/* Counts the rows of each expert, then gives each its slots, rows in order. */
static int make_plan(struct mixture *mixture, const float *chosen, const float *weights)
{
    uint32_t n_experts = mixture->experts->gate->n_matrices, slot = 0, *next;
    int r;

    r = make_room(mixture, &next);
    if (r < 0)
        return r;
    memset(next, 0, (n_experts + 1) * sizeof *next);
    for (uint32_t i = 0; i < mixture->n_slots; i++) {
        if (!(chosen[i] >= 0.0f && chosen[i] < (float) n_experts) ||
            (i % mixture->n_used && chosen[i] <= chosen[i - 1]))
            return -EINVAL;
        next[(uint32_t) chosen[i]]++;
    }
    for (uint32_t i = 0; i < n_experts; i++) {
        uint32_t n = next[i];

        if (n)
            add_segment(mixture, i, slot, n);
        next[i] = slot;
        slot += n;
    }
    for (uint32_t i = 0; i < mixture->n_slots; i++) {
        uint32_t to = next[(uint32_t) chosen[i]]++;

        mixture->rows[to] = i / mixture->n_used;
        mixture->weights[to] = weights[i];
    }
    return 0;
}

/* --- the rounds --- */

static uint32_t rows_of(const struct mixture *mixture, const struct piece *piece, uint32_t most)
{
    uint32_t left = mixture->segments[piece->segment].part.n - piece->first_row;

    return left < most ? left : most;
}

static const float *input_row(const struct mixture *mixture, uint32_t slot)
{
    return mixture->in + (size_t) mixture->rows[slot] * mixture->width;
}

/* The part of act_in that holds a segment's rows: one row alone serves all its experts. */
static struct ds_act_part part_in(const struct mixture *mixture, const struct segment *segment)
{
    return mixture->n == 1 ? (struct ds_act_part){ 0, 0, 1 } : segment->part;
}

static bool is_integer(const struct ds_weight *weight)
{
    return weight->format->bits != 0;
}

static void prepare_in(void *arg, uint32_t item, unsigned thread)
{
    const struct mixture *mixture = arg;
    const struct ds_experts *experts = mixture->experts;
    const struct piece *piece = &mixture->groups[item];
    const struct segment *segment = &mixture->segments[piece->segment];
    const struct ds_act_part part = part_in(mixture, segment);
    uint32_t n = rows_of(mixture, piece, DS_ACT_GROUP),
             slot = segment->first_slot + piece->first_row;

    (void) thread;
    for (uint32_t i = 0; i < n && mixture->x; i++)
        memcpy(mixture->x + (size_t) (slot + i) * mixture->width, input_row(mixture, slot + i),
               mixture->width * sizeof(float));
    if (is_integer(experts->gate) || is_integer(experts->up)) {
        struct ds_act_memory view = ds_act_view(&mixture->cpu->mixture.act_in, &part);

        for (uint32_t i = 0; i < n; i++)
            mixture->cpu->kernels->quantise(&view.act, piece->first_row + i,
                                            input_row(mixture, slot + i));
        ds_act_finish_group(&view, piece->first_row / DS_ACT_GROUP);
    }
}

static void prepare_hidden(void *arg, uint32_t item, unsigned thread)
{
    const struct mixture *mixture = arg;
    const struct piece *piece = &mixture->groups[item];
    const struct segment *segment = &mixture->segments[piece->segment];
    struct ds_act_memory view = ds_act_view(&mixture->cpu->mixture.act_hidden, &segment->part);
    uint32_t n = rows_of(mixture, piece, DS_ACT_GROUP),
             slot = segment->first_slot + piece->first_row;

    (void) thread;
    for (uint32_t i = 0; i < n; i++)
        mixture->cpu->kernels->quantise(&view.act, piece->first_row + i,
                                        mixture->hidden + (size_t) (slot + i) * mixture->ffn_width);
    ds_act_finish_group(&view, piece->first_row / DS_ACT_GROUP);
}

/* acc[n][16] = a panel of the expert's matrix times rows of its segment: of act for integer
 * weights, else of x, which is the segment's first. */
static void multiply(const struct mixture *mixture, const struct ds_weight *weight,
                     const struct segment *segment, uint32_t panel, const struct piece *piece,
                     uint32_t n, const struct ds_act_memory *act, const struct ds_act_part *part,
                     const float *x, struct ds_tile *tile, float *acc)
{
    const struct ds_kernels *kernels = mixture->cpu->kernels;

    panel += segment->expert * weight->n_panels;
    if (is_integer(weight)) {
        struct ds_act_memory view = ds_act_view(act, part);

        ds_cpu_multiply_panel(kernels, weight, panel, &view, piece->first_row, n, tile, acc);
    } else {
        kernels->gemm_float(&(struct ds_gemm_float){
            weight, panel, x + (size_t) piece->first_row * weight->k, n, acc });
    }
}

/* One panel of gate and of up for a tile of rows. */
static void gate_and_up(void *arg, uint32_t item, unsigned thread)
{
    const struct mixture *mixture = arg;
    const struct ds_experts *experts = mixture->experts;
    const uint32_t n_panels = experts->gate->n_panels, panel = item % n_panels;
    const struct piece *piece = &mixture->tiles[item / n_panels];
    const struct segment *segment = &mixture->segments[piece->segment];
    const struct ds_act_part part = part_in(mixture, segment);
    const struct ds_act_memory *act = &mixture->cpu->mixture.act_in;
    const float *x =
        mixture->x ? mixture->x + (size_t) segment->first_slot * mixture->width : mixture->in;
    struct thread_memory *memory = mixture->cpu->threads[thread].data;
    const uint32_t n = rows_of(mixture, piece, DS_TILE_ROWS), first = panel * DS_PANEL_ROWS;
    uint32_t lanes = mixture->ffn_width - first;
    float *to = mixture->hidden +
                (size_t) (segment->first_slot + piece->first_row) * mixture->ffn_width + first;

    multiply(mixture, experts->gate, segment, panel, piece, n, act, &part, x, &memory->tile,
             memory->gate);
    multiply(mixture, experts->up, segment, panel, piece, n, act, &part, x, &memory->tile,
             memory->up);
    mixture->cpu->kernels->silu_mul(memory->gate, memory->gate, memory->up, n * DS_PANEL_ROWS);
    lanes = lanes < DS_PANEL_ROWS ? lanes : DS_PANEL_ROWS;
    for (uint32_t i = 0; i < n; i++, to += mixture->ffn_width)
        memcpy(to, memory->gate + (size_t) i * DS_PANEL_ROWS, lanes * sizeof *to);
}

static void add_row(float *restrict out, const float *restrict acc, float weight, uint32_t lanes)
{
    for (uint32_t i = 0; i < lanes; i++)
        out[i] += weight * acc[i];
}

/* Onto out: a panel of down for a tile of rows. */
static void down_panel(const struct mixture *mixture, uint32_t panel, const struct piece *piece,
                       struct thread_memory *memory)
{
    const struct segment *segment = &mixture->segments[piece->segment];
    const uint32_t n = rows_of(mixture, piece, DS_TILE_ROWS), first = panel * DS_PANEL_ROWS;
    const uint32_t slot = segment->first_slot + piece->first_row;
    const uint32_t lanes = mixture->width - first;

    multiply(mixture, mixture->experts->down, segment, panel, piece, n,
             &mixture->cpu->mixture.act_hidden, &segment->part,
             mixture->hidden + (size_t) segment->first_slot * mixture->ffn_width, &memory->tile,
             memory->gate);
    for (uint32_t i = 0; i < n; i++) {
        float *to = mixture->out + (size_t) mixture->rows[slot + i] * mixture->width + first;
        const float *acc = memory->gate + (size_t) i * DS_PANEL_ROWS;

        if (lanes >= DS_PANEL_ROWS) /* said with constants, it becomes vectors */
            add_row(to, acc, mixture->weights[slot + i], DS_PANEL_ROWS);
        else
            add_row(to, acc, mixture->weights[slot + i], lanes);
    }
}

static void down(void *arg, uint32_t item, unsigned thread)
{
    const struct mixture *mixture = arg;
    const uint32_t n_panels = mixture->experts->down->n_panels;
    const uint32_t first = item * mixture->panels_per_item;
    uint32_t end = first + mixture->panels_per_item;

    end = end < n_panels ? end : n_panels;
    for (uint32_t tile = 0; tile < mixture->n_tiles; tile++)
        for (uint32_t panel = first; panel < end; panel++)
            down_panel(mixture, panel, &mixture->tiles[tile], mixture->cpu->threads[thread].data);
}

/* --- the operation --- */

static int prepare_act(struct ds_act_memory *act, uint32_t n_rows, uint32_t n_groups,
                       const struct ds_weight *const *weights, unsigned n)
{
    const struct ds_panel_format *formats[2];
    unsigned n_formats = 0;

    for (unsigned i = 0; i < n; i++)
        if (is_integer(weights[i]))
            formats[n_formats++] = weights[i]->format;
    return n_formats ? ds_act_prepare(act, n_rows, n_groups, weights[0]->k, formats, n_formats) : 0;
}

static int prepare(struct mixture *mixture)
{
    struct ds_mixture *memory = &mixture->cpu->mixture;
    const struct ds_experts *experts = mixture->experts;
    const struct ds_weight *first[] = { experts->gate, experts->up };
    const struct segment *last = mixture->segments + mixture->n_segments - 1;
    struct ds_act_part end = ds_act_part_next(&last->part, 0);
    bool alone = mixture->n == 1;
    int r;

    for (unsigned i = 0; i < ds_pool_n_threads(mixture->cpu->pool); i++)
        if (!ds_scratch_get(&mixture->cpu->threads[i], sizeof(struct thread_memory)))
            return -ENOMEM;
    mixture->hidden = ds_scratch_get(&memory->hidden, (size_t) mixture->n_slots *
                                                          mixture->ffn_width * sizeof(float));
    if (!mixture->hidden)
        return -ENOMEM;
    if (!alone && !(is_integer(experts->gate) && is_integer(experts->up))) {
        mixture->x = ds_scratch_get(&memory->rows,
                                    (size_t) mixture->n_slots * mixture->width * sizeof(float));
        if (!mixture->x)
            return -ENOMEM;
    }
    r = prepare_act(&memory->act_in, alone ? 1 : end.first_row, alone ? 1 : end.first_group, first,
                    2);
    if (r < 0)
        return r;
    return prepare_act(&memory->act_hidden, end.first_row, end.first_group, &experts->down, 1);
}

static bool fit(const struct ds_experts *experts)
{
    const struct ds_weight *gate = experts->gate, *up = experts->up, *last = experts->down;

    return gate->k == up->k && gate->n == up->n && last->k == gate->n && last->n == gate->k &&
           gate->n_matrices == up->n_matrices && gate->n_matrices == last->n_matrices;
}

static void run(struct mixture *mixture)
{
    struct ds_pool *pool = mixture->cpu->pool;
    const uint32_t n_panels = mixture->experts->down->n_panels;
    const uint32_t shares = ds_pool_n_threads(pool) * 8; /* pieces of work a thread gets */
    uint32_t n_items;

    ds_pool_run(pool, prepare_in, mixture, mixture->n == 1 ? 1 : mixture->n_groups, 1);
    n_items = mixture->n_tiles * mixture->experts->gate->n_panels;
    ds_pool_run(pool, gate_and_up, mixture, n_items, n_items / shares);
    if (is_integer(mixture->experts->down))
        ds_pool_run(pool, prepare_hidden, mixture, mixture->n_groups, 1);
    mixture->panels_per_item = n_panels / shares < 1 ? 1 : n_panels / shares;
    n_items = (n_panels + mixture->panels_per_item - 1) / mixture->panels_per_item;
    ds_pool_run(pool, down, mixture, n_items, 1);
}

int ds_cpu_expert_ffn(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_experts *experts, const struct ds_buffer *chosen,
                      const struct ds_buffer *weights, uint32_t n_used, uint32_t n)
{
    struct mixture mixture = { .cpu = ds_cpu(backend),
                               .experts = experts,
                               .in = in->data,
                               .out = out->data,
                               .n = n,
                               .n_used = n_used,
                               .n_slots = n * n_used,
                               .width = experts->gate->k,
                               .ffn_width = experts->gate->n };
    int r;

    if (!fit(experts) || n_used == 0 || n_used > DS_EXPERTS_USED_MAX || n > UINT32_MAX / n_used)
        return -EINVAL;
    if (n == 0)
        return 0;
    r = make_plan(&mixture, chosen->data, weights->data);
    if (r == 0)
        r = prepare(&mixture);
    if (r == 0)
        run(&mixture);
    return r;
}

void ds_mixture_deinit(struct ds_mixture *mixture)
{
    ds_scratch_deinit(&mixture->plan);
    ds_scratch_deinit(&mixture->rows);
    ds_scratch_deinit(&mixture->hidden);
    ds_act_deinit(&mixture->act_in);
    ds_act_deinit(&mixture->act_hidden);
}
