/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One small product per head: head h of every row times matrix h of a stack.
 *
 * The rows of one head are quantised as a batch of their own, so that a head's matrix is read once
 * for all of them. Two rounds over the threads: an item of the first is a group of rows of one
 * head, of the second a panel of one head's matrix and a tile of rows. Where all heads share one
 * input, it is prepared once.
 */
#include "engine/cpu/cpu.h"

struct heads {
    struct ds_cpu *cpu;
    const struct ds_weight *stack;
    struct ds_slice out, in;
    uint32_t n;
    uint32_t n_groups, n_tiles; /* of one head's rows */
    struct ds_act_part after;   /* the part after the first: where the second begins */
    float *x;                   /* [inputs][n][k], NULL unless the stack is of a float type */
};

struct thread_memory {
    struct ds_tile tile;
    _Alignas(64) float acc[DS_TILE_ROWS * DS_PANEL_ROWS];
};

static uint32_t input_of(const struct heads *heads, uint32_t head)
{
    return heads->in.head_stride ? head : 0;
}

/* The input's rows as a batch of their own. */
static struct ds_act_memory view_of(const struct heads *heads, uint32_t input)
{
    struct ds_act_part part = { input * heads->after.first_row, input * heads->after.first_group,
                                heads->n };

    return ds_act_view(&heads->cpu->act, &part);
}

static void prepare_group(void *arg, uint32_t item, unsigned thread)
{
    const struct heads *heads = arg;
    const uint32_t k = heads->stack->k, group = item % heads->n_groups;
    const uint32_t input = item / heads->n_groups, first = group * DS_ACT_GROUP;
    const uint32_t n = heads->n - first < DS_ACT_GROUP ? heads->n - first : DS_ACT_GROUP;

    (void) thread;
    if (heads->x) {
        float *to = heads->x + ((size_t) input * heads->n + first) * k;

        for (uint32_t row = first; row < first + n; row++, to += k)
            memcpy(to, ds_slice_at(&heads->in, row, input), k * sizeof *to);
        return;
    }
    struct ds_act_memory view = view_of(heads, input);

    for (uint32_t row = first; row < first + n; row++)
        heads->cpu->kernels->quantise(&view.act, row, ds_slice_at(&heads->in, row, input));
    ds_act_finish_group(&view, group);
}

static void multiply(void *arg, uint32_t item, unsigned thread)
{
    const struct heads *heads = arg;
    const struct ds_weight *stack = heads->stack;
    const struct ds_kernels *kernels = heads->cpu->kernels;
    const uint32_t panel = item % stack->n_panels, lane = panel * DS_PANEL_ROWS;
    const uint32_t tile = item / stack->n_panels % heads->n_tiles;
    const uint32_t head = item / stack->n_panels / heads->n_tiles;
    const uint32_t lanes = stack->n - lane < DS_PANEL_ROWS ? stack->n - lane : DS_PANEL_ROWS;
    const uint32_t first = tile * DS_TILE_ROWS, left = heads->n - first;
    const uint32_t n = left < DS_TILE_ROWS ? left : DS_TILE_ROWS, input = input_of(heads, head);
    struct thread_memory *memory = heads->cpu->threads[thread].data;

    if (heads->x) {
        const float *x = heads->x + ((size_t) input * heads->n + first) * stack->k;

        kernels->gemm_float(
            &(struct ds_gemm_float){ stack, head * stack->n_panels + panel, x, n, memory->acc });
    } else {
        struct ds_act_memory view = view_of(heads, input);

        ds_cpu_multiply_panel(kernels, stack, head * stack->n_panels + panel, &view, first, n,
                              &memory->tile, memory->acc);
    }
    for (uint32_t row = 0; row < n; row++)
        memcpy(ds_slice_at(&heads->out, first + row, head) + lane,
               memory->acc + (size_t) row * DS_PANEL_ROWS, lanes * sizeof(float));
}

static int prepare(struct heads *heads, uint32_t n_inputs)
{
    const struct ds_panel_format *format = heads->stack->format;
    struct ds_cpu *cpu = heads->cpu;
    size_t floats = (size_t) n_inputs * heads->n * heads->stack->k;

    for (unsigned i = 0; i < ds_pool_n_threads(cpu->pool); i++)
        if (!ds_scratch_get(&cpu->threads[i], sizeof(struct thread_memory)))
            return -ENOMEM;
    if (format->bits)
        return ds_act_prepare(&cpu->act, n_inputs * heads->after.first_row,
                              n_inputs * heads->after.first_group, heads->stack->k, &format, 1);
    heads->x = ds_scratch_get(&cpu->heads, floats * sizeof *heads->x);
    return heads->x ? 0 : -ENOMEM;
}

int ds_cpu_matmul_heads(struct ds_backend *backend, const struct ds_slice *out,
                        const struct ds_weight *stack, const struct ds_slice *in, uint32_t n,
                        uint32_t n_heads)
{
    const struct ds_act_part whole = { 0, 0, n };
    struct heads heads = { .cpu = ds_cpu(backend),
                           .stack = stack,
                           .out = *out,
                           .in = *in,
                           .n = n,
                           .n_groups = ds_act_part_groups(&whole),
                           .n_tiles = (n + DS_TILE_ROWS - 1) / DS_TILE_ROWS,
                           .after = ds_act_part_next(&whole, 0) };
    uint32_t n_inputs = in->head_stride ? n_heads : 1, n_items, grain;
    int r;

    if (stack->n_matrices != n_heads)
        return -EINVAL;
    if (n == 0)
        return 0;
    r = prepare(&heads, n_inputs);
    if (r < 0)
        return r;
    ds_pool_run(heads.cpu->pool, prepare_group, &heads, n_inputs * heads.n_groups, 1);
    n_items = n_heads * heads.n_tiles * stack->n_panels;
    grain = n_items / (ds_pool_n_threads(heads.cpu->pool) * 8);
    ds_pool_run(heads.cpu->pool, multiply, &heads, n_items, grain);
    return 0;
}
