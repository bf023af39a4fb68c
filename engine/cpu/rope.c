/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/cpu.h"

static bool table_fits(const struct ds_rope_table *table, const struct ds_rope *rope,
                       const uint32_t *positions, uint32_t n)
{
    uint32_t n_pairs = rope->n_dims / 2;

    return table->n == n && table->n_pairs == n_pairs && table->magnitude == rope->magnitude &&
           memcmp(table->positions.data, positions, n * sizeof *positions) == 0 &&
           memcmp(table->frequencies.data, rope->frequencies, n_pairs * sizeof(float)) == 0;
}

static int table_make(struct ds_rope_table *table, const struct ds_rope *rope,
                      const uint32_t *positions, uint32_t n)
{
    uint32_t n_pairs = rope->n_dims / 2;
    float *at = ds_scratch_get(&table->cos_sin, (size_t) n * n_pairs * 2 * sizeof *at);

    table->n = 0; /* not valid until complete */
    if (!at || !ds_scratch_get(&table->positions, n * sizeof *positions) ||
        !ds_scratch_get(&table->frequencies, n_pairs * sizeof(float)))
        return -ENOMEM;
    for (uint32_t row = 0; row < n; row++, at += 2 * n_pairs)
        for (uint32_t i = 0; i < n_pairs; i++) {
            double sine, cosine;

            ds_sincos((double) positions[row] * (double) rope->frequencies[i], &sine, &cosine);
            at[i] = (float) cosine * rope->magnitude;
            at[n_pairs + i] = (float) sine * rope->magnitude;
        }
    memcpy(table->positions.data, positions, n * sizeof *positions);
    memcpy(table->frequencies.data, rope->frequencies, n_pairs * sizeof(float));
    table->n = n;
    table->n_pairs = n_pairs;
    table->magnitude = rope->magnitude;
    return 0;
}

void ds_rope_table_deinit(struct ds_rope_table *table)
{
    ds_scratch_deinit(&table->positions);
    ds_scratch_deinit(&table->frequencies);
    ds_scratch_deinit(&table->cos_sin);
}

static void rotate_neox(float *restrict x, const float *cosines, const float *sines,
                        uint32_t n_pairs)
{
    float *restrict y = x + n_pairs;

    for (uint32_t i = 0; i < n_pairs; i++) {
        float a = x[i], b = y[i];

        x[i] = a * cosines[i] - b * sines[i];
        y[i] = a * sines[i] + b * cosines[i];
    }
}

static void rotate_normal(float *x, const float *cosines, const float *sines, uint32_t n_pairs)
{
    for (uint32_t i = 0; i < n_pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1];

        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
}

struct rotate {
    const struct ds_rope_table *table;
    const struct ds_rope *rope;
    float *x;
    uint32_t n_heads, head_dim;
};

static void rotate_row(void *arg, uint32_t row, unsigned thread)
{
    const struct rotate *rotate = arg;
    uint32_t n_pairs = rotate->table->n_pairs;
    const float *cosines = (const float *) rotate->table->cos_sin.data + (size_t) row * 2 * n_pairs;
    float *x = rotate->x + (size_t) row * rotate->n_heads * rotate->head_dim + rotate->rope->first;

    (void) thread;
    for (uint32_t head = 0; head < rotate->n_heads; head++, x += rotate->head_dim) {
        if (rotate->rope->neox)
            rotate_neox(x, cosines, cosines + n_pairs, n_pairs);
        else
            rotate_normal(x, cosines, cosines + n_pairs, n_pairs);
    }
}

int ds_cpu_rope(struct ds_backend *backend, struct ds_buffer *x, const struct ds_rope *rope,
                const uint32_t *positions, uint32_t n, uint32_t n_heads, uint32_t head_dim)
{
    struct ds_cpu *cpu = ds_cpu(backend);
    struct rotate rotate = { &cpu->rope, rope, x->data, n_heads, head_dim };
    int r;

    if (rope->first > head_dim || rope->n_dims > head_dim - rope->first || rope->n_dims % 2)
        return -EINVAL;
    if (n == 0 || rope->n_dims == 0)
        return 0;
    if (!table_fits(&cpu->rope, rope, positions, n)) {
        r = table_make(&cpu->rope, rope, positions, n);
        if (r < 0)
            return r;
    }
    ds_pool_run(cpu->pool, rotate_row, &rotate, n, 16);
    return 0;
}
