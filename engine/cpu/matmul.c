/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A group of products over one input: quantise it once, then share out panels among the threads.
 * An item is one panel and up to TILE_ROWS rows of input; each product element is computed by one
 * item alone, so sharing out changes no result.
 */
#include "engine/cpu/cpu.h"

#define TILE_ROWS    DS_TILE_ROWS
#define PRODUCTS_MAX 8u

struct thread_memory {
    struct ds_tile tile;
    _Alignas(64) float acc[TILE_ROWS * DS_PANEL_ROWS];
};

struct matmul {
    struct ds_cpu *cpu;
    const struct ds_product *products;
    unsigned n_products;
    uint32_t first_panel[PRODUCTS_MAX + 1]; /* of each product, counted through all of them */
    const float *in;
    uint32_t n, k;
    uint32_t tile_rows; /* of every item but those of the last tile */
};

void ds_cpu_multiply_panel(const struct ds_kernels *kernels, const struct ds_weight *weight,
                           uint32_t panel, const struct ds_act_memory *act, uint32_t first_row,
                           uint32_t n_rows, struct ds_tile *tile, float *acc)
{
    const uint32_t n_units = act->act.n_units;
    struct ds_act_offset offset = ds_act_offset(act, weight->format);
    struct ds_gemm gemm = {
        .format = weight->format,
        .tile = tile,
        .act = &act->act,
        .offset = offset,
        .first_row = first_row,
        .n_rows = n_rows,
        .acc = acc,
    };

    if (kernels->gemv && n_rows <= DS_GEMV_ROWS) {
        kernels->gemv(
            &(struct ds_gemv){ weight, panel, &act->act, offset, first_row, n_rows, acc });
        return;
    }
    if (n_rows < kernels->gemm_rows)
        kernels = kernels->fewer;
    for (uint32_t unit = 0; unit < n_units; unit += DS_TILE_UNITS) {
        gemm.first_unit = unit;
        gemm.n_units = n_units - unit < DS_TILE_UNITS ? n_units - unit : DS_TILE_UNITS;
        kernels->unpack(tile, weight, panel, unit, gemm.n_units);
        kernels->gemm(&gemm);
    }
}

static void store_row(float *restrict out, const float *restrict acc, const float *restrict bias,
                      bool accumulate, uint32_t lanes)
{
    for (uint32_t i = 0; i < lanes; i++) {
        float value = bias[i] + acc[i];

        out[i] = accumulate ? out[i] + value : value;
    }
}

/* Adds bias and what is there already, and leaves out the padding rows of the last panel. */
static void store(const struct ds_product *product, uint32_t panel, uint32_t first_row,
                  uint32_t n_rows, const float *acc)
{
    static const float no_bias[DS_PANEL_ROWS] = { -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f,
                                                  -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f,
                                                  -0.0f, -0.0f, -0.0f, -0.0f };
    uint32_t n = product->weight->n, first = panel * DS_PANEL_ROWS;
    uint32_t lanes = n - first < DS_PANEL_ROWS ? n - first : DS_PANEL_ROWS;
    const float *bias = product->bias ? product->bias->data + first : no_bias;
    float *out = product->out->data + (size_t) first_row * n + first;

    for (uint32_t row = 0; row < n_rows; row++, acc += DS_PANEL_ROWS, out += n) {
        if (lanes == DS_PANEL_ROWS) /* said with constants, it becomes vectors */
            store_row(out, acc, bias, product->accumulate, DS_PANEL_ROWS);
        else
            store_row(out, acc, bias, product->accumulate, lanes);
    }
}

static void multiply(void *arg, uint32_t item, unsigned thread)
{
    const struct matmul *matmul = arg;
    uint32_t n_panels = matmul->first_panel[matmul->n_products];
    uint32_t first_row = item / n_panels * matmul->tile_rows, panel = item % n_panels;
    uint32_t left = matmul->n - first_row,
             n_rows = left < matmul->tile_rows ? left : matmul->tile_rows;
    struct thread_memory *memory = matmul->cpu->threads[thread].data;
    const struct ds_product *product = matmul->products;
    unsigned i = 0;

    while (panel >= matmul->first_panel[i + 1])
        i++;
    product += i;
    panel -= matmul->first_panel[i];
    if (product->weight->format->bits)
        ds_cpu_multiply_panel(matmul->cpu->kernels, product->weight, panel, &matmul->cpu->act,
                              first_row, n_rows, &memory->tile, memory->acc);
    else
        matmul->cpu->kernels->gemm_float(&(struct ds_gemm_float){
            product->weight, panel, matmul->in + (size_t) first_row * matmul->k, n_rows,
            memory->acc });
    store(product, panel, first_row, n_rows, memory->acc);
}

static int prepare(struct matmul *matmul)
{
    const struct ds_panel_format *formats[PRODUCTS_MAX];
    struct ds_cpu *cpu = matmul->cpu;
    unsigned n_formats = 0;
    int r;

    for (unsigned i = 0; i < matmul->n_products; i++) {
        const struct ds_weight *weight = matmul->products[i].weight;

        /* Whoever multiplies by a gathered weight gets its panels made now. */
        r = ds_weight_prepare((struct ds_weight *) weight);
        if (r < 0)
            return r;
        matmul->first_panel[i + 1] = matmul->first_panel[i] + weight->n_panels;
        if (weight->format->bits)
            formats[n_formats++] = weight->format;
    }
    for (unsigned i = 0; i < ds_pool_n_threads(cpu->pool); i++)
        if (!ds_scratch_get(&cpu->threads[i], sizeof(struct thread_memory)))
            return -ENOMEM;
    if (n_formats)
        return ds_act_quantise(&cpu->act, cpu->kernels, cpu->pool, matmul->in, matmul->n, matmul->k,
                               formats, n_formats);
    return 0;
}

/* As few tiles as hold n rows, and all of about one size: unpacking a panel costs the same for a
 * tile of few rows. */
static uint32_t even_tile(uint32_t n)
{
    uint32_t n_tiles = (n + TILE_ROWS - 1) / TILE_ROWS, rows = (n + n_tiles - 1) / n_tiles;

    return (rows + DS_ACT_GROUP - 1) / DS_ACT_GROUP * DS_ACT_GROUP;
}

static int multiply_group(struct ds_cpu *cpu, const struct ds_product *products,
                          unsigned n_products, const struct ds_buffer *in, uint32_t n)
{
    struct matmul matmul = { .cpu = cpu,
                             .products = products,
                             .n_products = n_products,
                             .in = in->data,
                             .n = n,
                             .k = products->weight->k,
                             .tile_rows = even_tile(n) };
    uint32_t n_items, grain;
    int r;

    r = prepare(&matmul);
    if (r < 0)
        return r;
    n_items = matmul.first_panel[n_products] * ((n + matmul.tile_rows - 1) / matmul.tile_rows);
    grain = n_items / (ds_pool_n_threads(cpu->pool) * 8);
    ds_pool_run(cpu->pool, multiply, &matmul, n_items, grain);
    return 0;
}

int ds_cpu_matmul(struct ds_backend *backend, const struct ds_product *products,
                  unsigned n_products, const struct ds_buffer *in, uint32_t n)
{
    int r = 0;

    for (unsigned i = 0; i < n_products; i++)
        if (products[i].weight->k != products->weight->k)
            return -EINVAL;
    for (unsigned i = 0; i < n_products && n && r == 0; i += PRODUCTS_MAX) {
        unsigned count = n_products - i < PRODUCTS_MAX ? n_products - i : PRODUCTS_MAX;

        r = multiply_group(ds_cpu(backend), products + i, count, in, n);
    }
    return r;
}
