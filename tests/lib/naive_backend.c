/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/naive_backend.h"

#include <assert.h>
#include <math.h>

#include "engine/format/packed.h"

struct ds_buffer {
    size_t n;
    float data[];
};

struct ds_weight {
    size_t k, n, n_matrices;
    float data[]; /* [n_matrices][n][k] */
};

struct ds_kv {
    struct ds_kv_geometry geometry;
    float *keys;   /* [layer][block][DS_KV_BLOCK][head][key_dim] */
    float *index;  /* [layer][block][DS_KV_BLOCK][index_dim] */
    float *values; /* [layer][block][DS_KV_BLOCK][head][value_dim]; not used where shared */
};

/* --- memory --- */

static struct ds_buffer *buffer_new(struct ds_backend *backend, size_t n)
{
    struct ds_buffer *buffer = calloc(1, sizeof *buffer + n * sizeof *buffer->data);

    (void) backend;
    if (buffer)
        buffer->n = n;
    return buffer;
}

static void buffer_free(struct ds_backend *backend, struct ds_buffer *buffer)
{
    (void) backend;
    free(buffer);
}

static int write_buffer(struct ds_backend *backend, struct ds_buffer *to, const float *from,
                        size_t n)
{
    (void) backend;
    assert(n <= to->n);
    memcpy(to->data, from, n * sizeof *from);
    return 0;
}

static int read_buffer(struct ds_backend *backend, float *to, const struct ds_buffer *from,
                       size_t offset, size_t n)
{
    (void) backend;
    assert(offset + n <= from->n);
    memcpy(to, from->data + offset, n * sizeof *to);
    return 0;
}

static int weight_new_stack(struct ds_backend *backend, const struct ds_tensor *matrices,
                            uint32_t n_matrices, struct ds_weight **ret_weight)
{
    size_t n = matrices->dims[0] * matrices->dims[1];
    struct ds_weight *weight = malloc(sizeof *weight + n_matrices * n * sizeof *weight->data);

    (void) backend;
    if (!weight)
        return -ENOMEM;
    weight->k = matrices->dims[0];
    weight->n = matrices->dims[1];
    weight->n_matrices = n_matrices;
    for (uint32_t i = 0; i < n_matrices; i++) {
        assert(matrices[i].dims[0] == weight->k && matrices[i].dims[1] == weight->n);
        for (uint64_t row = 0; row < weight->n; row++)
            ds_tensor_row_floats(&matrices[i], row, weight->data + i * n + row * weight->k);
    }
    *ret_weight = weight;
    return 0;
}

static int weight_new(struct ds_backend *backend, const struct ds_tensor *tensor, bool gather,
                      struct ds_weight **ret_weight)
{
    (void) gather;
    return weight_new_stack(backend, tensor, 1, ret_weight);
}

static void weight_free(struct ds_backend *backend, struct ds_weight *weight)
{
    (void) backend;
    free(weight);
}

static size_t weight_bytes(const struct ds_weight *weight)
{
    return weight->n_matrices * weight->k * weight->n * sizeof *weight->data;
}

static size_t kv_floats(const struct ds_kv_geometry *g, uint32_t dim)
{
    return (size_t) g->n_layers * g->n_blocks * DS_KV_BLOCK * g->n_kv_heads * dim;
}

static size_t value_floats(const struct ds_kv_geometry *g)
{
    return g->shared ? 0 : kv_floats(g, g->value_dim);
}

static size_t index_floats(const struct ds_kv_geometry *g)
{
    return (size_t) g->n_layers * g->n_blocks * DS_KV_BLOCK * g->index_dim;
}

static void kv_free(struct ds_backend *backend, struct ds_kv *kv)
{
    (void) backend;
    if (!kv)
        return;
    free(kv->keys);
    free(kv->values);
    free(kv->index);
    free(kv);
}

static int kv_new(struct ds_backend *backend, const struct ds_kv_geometry *geometry,
                  struct ds_kv **ret_kv)
{
    struct ds_kv *kv = calloc(1, sizeof *kv);

    if (!kv)
        return -ENOMEM;
    kv->geometry = *geometry;
    kv->keys = malloc(kv_floats(geometry, geometry->key_dim) * sizeof *kv->keys);
    kv->values = malloc((value_floats(geometry) + 1) * sizeof *kv->values);
    kv->index = malloc((index_floats(geometry) + 1) * sizeof *kv->index);
    if (!kv->keys || !kv->values || !kv->index) {
        kv_free(backend, kv);
        return -ENOMEM;
    }
    /* Whatever is read before it is written shows. */
    for (size_t i = 0; i < kv_floats(geometry, geometry->key_dim); i++)
        kv->keys[i] = NAN;
    for (size_t i = 0; i < value_floats(geometry); i++)
        kv->values[i] = NAN;
    for (size_t i = 0; i < index_floats(geometry); i++)
        kv->index[i] = NAN;
    *ret_kv = kv;
    return 0;
}

static size_t kv_bytes(const struct ds_kv_geometry *geometry)
{
    return (kv_floats(geometry, geometry->key_dim) + value_floats(geometry) +
            index_floats(geometry)) *
           sizeof(float);
}

/* --- operations --- */

static int embed(struct ds_backend *backend, struct ds_buffer *out, const struct ds_weight *table,
                 const uint32_t *tokens, uint32_t n)
{
    (void) backend;
    for (uint32_t i = 0; i < n; i++) {
        assert(tokens[i] < table->n);
        memcpy(out->data + i * table->k, table->data + tokens[i] * table->k,
               table->k * sizeof(float));
    }
    return 0;
}

static int rms_norm(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const struct ds_buffer *gamma, uint32_t n, uint32_t width, float epsilon)
{
    (void) backend;
    assert((size_t) n * width <= in->n && (size_t) n * width <= out->n);
    for (uint32_t i = 0; i < n; i++) {
        const float *x = in->data + (size_t) i * width;
        double sum = 0.0, scale;

        for (uint32_t j = 0; j < width; j++)
            sum += (double) x[j] * (double) x[j];
        scale = 1.0 / sqrt(sum / width + (double) epsilon);
        for (uint32_t j = 0; j < width; j++)
            out->data[(size_t) i * width + j] =
                (float) ((double) x[j] * scale * (double) gamma->data[j]);
    }
    return 0;
}

static int matmul(struct ds_backend *backend, const struct ds_product *products,
                  unsigned n_products, const struct ds_buffer *in, uint32_t n)
{
    (void) backend;
    for (unsigned p = 0; p < n_products; p++) {
        const struct ds_weight *w = products[p].weight;

        assert(n * w->k <= in->n && n * w->n <= products[p].out->n);
        for (uint32_t i = 0; i < n; i++) {
            for (size_t j = 0; j < w->n; j++) {
                float *out = &products[p].out->data[i * w->n + j];
                double sum = 0.0;

                for (size_t k = 0; k < w->k; k++)
                    sum += (double) in->data[i * w->k + k] * (double) w->data[j * w->k + k];
                sum += products[p].bias ? (double) products[p].bias->data[j] : 0.0;
                *out = (float) (products[p].accumulate ? (double) *out + sum : sum);
            }
        }
    }
    return 0;
}

static int rope_op(struct ds_backend *backend, struct ds_buffer *x, const struct ds_rope *rope,
                   const uint32_t *positions, uint32_t n, uint32_t n_heads, uint32_t head_dim)
{
    uint32_t half = rope->n_dims / 2;

    (void) backend;
    for (uint32_t row = 0; row < n * n_heads; row++) {
        float *head = x->data + (size_t) row * head_dim + rope->first;

        for (uint32_t i = 0; i < half; i++) {
            float *a = &head[rope->neox ? i : 2 * i], *b = &head[rope->neox ? i + half : 2 * i + 1];
            double angle = positions[row / n_heads] * (double) rope->frequencies[i];
            double c = cos(angle) * (double) rope->magnitude;
            double s = sin(angle) * (double) rope->magnitude;
            double u = (double) *a, v = (double) *b;

            *a = (float) (u * c - v * s);
            *b = (float) (u * s + v * c);
        }
    }
    return 0;
}

/* Where position of sequence lies, in units of one layer's [block][DS_KV_BLOCK][head]. */
static size_t kv_place(const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                       uint32_t sequence, uint32_t position)
{
    uint32_t block =
        batch->block_tables[(size_t) sequence * batch->blocks_max + position / DS_KV_BLOCK];

    assert(position / DS_KV_BLOCK < batch->blocks_max && block < kv->geometry.n_blocks);
    return (((size_t) layer * kv->geometry.n_blocks + block) * DS_KV_BLOCK +
            position % DS_KV_BLOCK) *
           kv->geometry.n_kv_heads;
}

static int kv_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                    const struct ds_buffer *k, const struct ds_buffer *v,
                    const struct ds_batch *batch)
{
    size_t k_row = (size_t) kv->geometry.n_kv_heads * kv->geometry.key_dim;
    size_t v_row = (size_t) kv->geometry.n_kv_heads * kv->geometry.value_dim;

    (void) backend;
    for (uint32_t i = 0; i < batch->n_tokens; i++) {
        size_t place = kv_place(kv, layer, batch, batch->sequences[i], batch->positions[i]);

        memcpy(kv->keys + place * kv->geometry.key_dim, k->data + i * k_row, k_row * sizeof(float));
        if (!kv->geometry.shared)
            memcpy(kv->values + place * kv->geometry.value_dim, v->data + i * v_row,
                   v_row * sizeof(float));
    }
    return 0;
}

static void attend(const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                   uint32_t row, uint32_t kv_head, const float *q, float scale, uint32_t window,
                   float *out)
{
    const struct ds_kv_geometry *g = &kv->geometry;
    uint32_t n = batch->positions[row] + 1;
    double sum[512] = { 0.0 }, total = 0.0, largest = -INFINITY;

    assert(g->value_dim <= 512);
    for (uint32_t p = window && n > window ? n - window : 0; p < n; p++) { /* running softmax */
        size_t place = kv_place(kv, layer, batch, batch->sequences[row], p) + kv_head;
        const float *value =
            g->shared ? kv->keys + place * g->key_dim : kv->values + place * g->value_dim;
        double score = 0.0, weight;

        for (uint32_t i = 0; i < g->key_dim; i++)
            score += (double) q[i] * (double) kv->keys[place * g->key_dim + i];
        score *= (double) scale;
        if (score > largest) {
            double shrink = exp(largest - score);

            total *= shrink;
            for (uint32_t i = 0; i < g->value_dim; i++)
                sum[i] *= shrink;
            largest = score;
        }
        weight = exp(score - largest);
        total += weight;
        for (uint32_t i = 0; i < g->value_dim; i++)
            sum[i] += weight * (double) value[i];
    }
    for (uint32_t i = 0; i < g->value_dim; i++)
        out[i] = (float) (sum[i] / total);
}

static int attention(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *q,
                     const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                     uint32_t n_heads, float scale, uint32_t window)
{
    (void) backend;
    for (uint32_t i = 0; i < batch->n_tokens; i++) {
        for (uint32_t h = 0; h < n_heads; h++) {
            size_t head = (size_t) i * n_heads + h;

            attend(kv, layer, batch, i, h / (n_heads / kv->geometry.n_kv_heads),
                   q->data + head * kv->geometry.key_dim, scale, window,
                   out->data + head * kv->geometry.value_dim);
        }
    }
    return 0;
}

static int silu_mul(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *gate,
                    const struct ds_buffer *up, uint32_t n, uint32_t width)
{
    (void) backend;
    for (size_t i = 0; i < (size_t) n * width; i++) {
        double g = (double) gate->data[i];

        out->data[i] = (float) (g / (1.0 + exp(-g)) * (double) up->data[i]);
    }
    return 0;
}

/* --- mixtures of experts --- */

/* The index of the largest value that is not crossed out, the first of equals. */
static uint32_t pick(const double *values, const bool *crossed, uint32_t n)
{
    uint32_t best = n;

    for (uint32_t i = 0; i < n; i++)
        if (!crossed[i] && (best == n || values[i] > values[best]))
            best = i;
    assert(best < n);
    return best;
}

static void cross_out_groups(const struct ds_routing *r, const double *score, bool *crossed)
{
    uint32_t size = r->n_experts / r->n_groups;
    double groups[DS_EXPERTS_MAX];
    bool kept[DS_EXPERTS_MAX] = { false };

    for (uint32_t g = 0; g < r->n_groups; g++) {
        bool seen[DS_EXPERTS_MAX] = { false };
        uint32_t best = pick(score + (size_t) g * size, seen, size);

        groups[g] = score[g * size + best];
        seen[best] = true;
        if (r->group_by_two && size > 1)
            groups[g] += score[g * size + pick(score + (size_t) g * size, seen, size)];
    }
    for (uint32_t i = 0; i < r->n_groups_used; i++)
        kept[pick(groups, kept, r->n_groups)] = true;
    for (uint32_t i = 0; i < r->n_experts; i++)
        crossed[i] = !kept[i / size];
}

static void softmax(double *x, uint32_t n)
{
    double max = -INFINITY, sum = 0.0;

    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, x[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] = exp(x[i] - max);
    for (uint32_t i = 0; i < n; i++)
        x[i] /= sum;
}

static void route_row(const struct ds_routing *r, const float *logits, float *chosen,
                      float *weights)
{
    double p[DS_EXPERTS_MAX], score[DS_EXPERTS_MAX], w[DS_EXPERTS_USED_MAX], sum = 0.0;
    bool crossed[DS_EXPERTS_MAX] = { false }, used[DS_EXPERTS_MAX] = { false };
    uint32_t n = 0;

    for (uint32_t i = 0; i < r->n_experts; i++)
        p[i] = r->gating == DS_GATING_SIGMOID ? 1.0 / (1.0 + exp(-(double) logits[i]))
                                              : (double) logits[i];
    if (r->gating == DS_GATING_SOFTMAX)
        softmax(p, r->n_experts);
    for (uint32_t i = 0; i < r->n_experts; i++)
        score[i] = p[i] + (r->bias ? (double) r->bias->data[i] : 0.0);
    if (r->n_groups > 1)
        cross_out_groups(r, score, crossed);
    for (uint32_t i = 0; i < r->n_used; i++) {
        uint32_t best = pick(score, crossed, r->n_experts);

        crossed[best] = used[best] = true;
    }
    for (uint32_t i = 0; i < r->n_experts; i++)
        if (used[i]) {
            chosen[n] = (float) i;
            w[n++] = p[i];
        }
    if (r->gating == DS_GATING_SOFTMAX_CHOSEN)
        softmax(w, n);
    for (uint32_t i = 0; i < n; i++)
        sum += w[i];
    for (uint32_t i = 0; i < n; i++)
        weights[i] = (float) ((r->normalise ? w[i] / (sum + 1e-20) : w[i]) * (double) r->scale);
}

static int route(struct ds_backend *backend, struct ds_buffer *chosen, struct ds_buffer *weights,
                 const struct ds_buffer *logits, const struct ds_routing *routing, uint32_t n)
{
    (void) backend;
    for (size_t i = 0; i < n; i++)
        route_row(routing, logits->data + i * routing->n_experts,
                  chosen->data + i * routing->n_used, weights->data + i * routing->n_used);
    return 0;
}

static double dot(const float *w, const double *x, size_t k)
{
    double sum = 0.0;

    for (size_t i = 0; i < k; i++)
        sum += (double) w[i] * x[i];
    return sum;
}

static void add_expert(const struct ds_experts *experts, size_t expert, double weight,
                       const float *in, double *sum)
{
    size_t k = experts->gate->k, n = experts->gate->n;
    const float *gate = experts->gate->data + expert * k * n;
    const float *up = experts->up->data + expert * k * n;
    const float *down = experts->down->data + expert * k * n;
    double *x = calloc(k + n, sizeof *x), *hidden = x + k;

    assert(x && experts->down->k == n && experts->down->n == k);
    for (size_t i = 0; i < k; i++)
        x[i] = (double) in[i];
    for (size_t j = 0; j < n; j++) {
        double g = dot(gate + j * k, x, k);

        hidden[j] = g / (1.0 + exp(-g)) * dot(up + j * k, x, k);
    }
    for (size_t i = 0; i < k; i++)
        sum[i] += weight * dot(down + i * n, hidden, n);
    free(x);
}

static int expert_ffn(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_experts *experts, const struct ds_buffer *chosen,
                      const struct ds_buffer *weights, uint32_t n_used, uint32_t n)
{
    size_t width = experts->gate->k;
    double *sum = malloc(width * sizeof *sum);

    (void) backend;
    assert(sum);
    for (size_t row = 0; row < n; row++) {
        for (size_t i = 0; i < width; i++)
            sum[i] = (double) out->data[row * width + i];
        for (size_t i = 0; i < n_used; i++) {
            float expert = chosen->data[row * n_used + i];

            assert(expert >= 0.0f && expert < (float) experts->gate->n_matrices);
            add_expert(experts, (size_t) expert, (double) weights->data[row * n_used + i],
                       in->data + row * width, sum);
        }
        for (size_t i = 0; i < width; i++)
            out->data[row * width + i] = (float) sum[i];
    }
    free(sum);
    return 0;
}

static int gather(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                  const uint32_t *rows, uint32_t n, uint32_t width)
{
    (void) backend;
    for (uint32_t i = 0; i < n; i++)
        memcpy(out->data + (size_t) i * width, in->data + (size_t) rows[i] * width,
               width * sizeof(float));
    return 0;
}

static int add_rows(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                    const uint32_t *rows, const float *scales, uint32_t n, uint32_t width)
{
    (void) backend;
    for (size_t i = 0; i < (size_t) n * width; i++)
        out->data[rows[i / width] * (size_t) width + i % width] += scales[i / width] * in->data[i];
    return 0;
}

static float *slice_at(const struct ds_slice *slice, uint32_t row, uint32_t head, size_t width)
{
    size_t at = (size_t) row * slice->row_stride + (size_t) head * slice->head_stride;

    assert(at + slice->first + width <= slice->buffer->n);
    return slice->buffer->data + at + slice->first;
}

static int copy(struct ds_backend *backend, const struct ds_slice *out, const struct ds_slice *in,
                uint32_t n, uint32_t n_heads, uint32_t width)
{
    (void) backend;
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t head = 0; head < n_heads; head++)
            memcpy(slice_at(out, row, head, width), slice_at(in, row, head, width),
                   width * sizeof(float));
    return 0;
}

static int matmul_heads(struct ds_backend *backend, const struct ds_slice *out,
                        const struct ds_weight *stack, const struct ds_slice *in, uint32_t n,
                        uint32_t n_heads)
{
    (void) backend;
    assert(stack->n_matrices == n_heads);
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t head = 0; head < n_heads; head++) {
            size_t width = stack->n;
            const float *x = slice_at(in, row, head, stack->k);
            const float *w = stack->data + head * width * stack->k;
            float *y = slice_at(out, row, head, width);

            for (size_t j = 0; j < width; j++, w += stack->k) {
                double sum = 0.0;

                for (size_t k = 0; k < stack->k; k++)
                    sum += (double) x[k] * (double) w[k];
                y[j] = (float) sum;
            }
        }
    return 0;
}

static int kv_read(struct ds_backend *backend, struct ds_buffer *out, const struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch)
{
    size_t row = (size_t) kv->geometry.n_kv_heads * kv->geometry.key_dim;

    (void) backend;
    for (uint32_t i = 0; i < batch->n_tokens; i++)
        memcpy(out->data + i * row,
               kv->keys + kv_place(kv, layer, batch, batch->sequences[i], batch->positions[i]) *
                              kv->geometry.key_dim,
               row * sizeof(float));
    return 0;
}

static int layer_norm(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *in,
                      const struct ds_buffer *gamma, const struct ds_buffer *beta, uint32_t n,
                      uint32_t width, float epsilon)
{
    (void) backend;
    for (uint32_t i = 0; i < n; i++) {
        const float *x = in->data + (size_t) i * width;
        float *y = out->data + (size_t) i * width;
        double mean = 0.0, variance = 0.0;

        for (uint32_t j = 0; j < width; j++)
            mean += (double) x[j] / width;
        for (uint32_t j = 0; j < width; j++)
            variance += pow((double) x[j] - mean, 2.0) / width;
        for (uint32_t j = 0; j < width; j++)
            y[j] = (float) (((double) x[j] - mean) / sqrt(variance + (double) epsilon) *
                                (double) gamma->data[j] +
                            (double) beta->data[j]);
    }
    return 0;
}

static float *index_key(const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                        uint32_t row, uint32_t position)
{
    size_t place = kv_place(kv, layer, batch, batch->sequences[row], position);

    return kv->index + place / kv->geometry.n_kv_heads * kv->geometry.index_dim;
}

static int index_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                       const struct ds_buffer *k, const struct ds_batch *batch)
{
    uint32_t dim = kv->geometry.index_dim;

    (void) backend;
    assert(dim > 0);
    for (uint32_t i = 0; i < batch->n_tokens; i++)
        memcpy(index_key(kv, layer, batch, i, batch->positions[i]), k->data + (size_t) i * dim,
               dim * sizeof(float));
    return 0;
}

/* Takes the best that is left, top_k times over; then sorts by position. */
static int index_choose(struct ds_backend *backend, struct ds_buffer *chosen,
                        const struct ds_buffer *q, const struct ds_buffer *weights,
                        const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                        uint32_t n_heads, uint32_t top_k)
{
    uint32_t dim = kv->geometry.index_dim;

    (void) backend;
    for (uint32_t row = 0; row < batch->n_tokens; row++) {
        uint32_t n = batch->positions[row] + 1, at = 0;
        double *scores = calloc(n, sizeof *scores);
        bool *taken = calloc(n, sizeof *taken);

        assert(scores && taken);
        for (uint32_t p = 0; p < n; p++) {
            const float *key = index_key(kv, layer, batch, row, p);

            for (uint32_t h = 0; h < n_heads; h++) {
                const float *x = q->data + ((size_t) row * n_heads + h) * dim;
                double dot = 0.0;

                for (uint32_t i = 0; i < dim; i++)
                    dot += (double) x[i] * (double) key[i];
                scores[p] += (double) weights->data[row * n_heads + h] * fmax(dot, 0.0);
            }
        }
        for (uint32_t i = 0; i < top_k && n > top_k; i++) {
            uint32_t best = n;

            for (uint32_t p = 0; p < n; p++)
                if (!taken[p] && (best == n || scores[p] > scores[best]))
                    best = p;
            taken[best] = true;
        }
        for (uint32_t p = 0; p < n && n > top_k; p++)
            if (taken[p])
                memcpy(&chosen->data[(size_t) row * top_k + at++], &p, sizeof p);
        free(scores);
        free(taken);
    }
    return 0;
}

static int attention_chosen(struct ds_backend *backend, struct ds_buffer *out,
                            const struct ds_buffer *q, const struct ds_kv *kv, uint32_t layer,
                            const struct ds_batch *batch, uint32_t n_heads, float scale,
                            const struct ds_buffer *chosen, uint32_t top_k)
{
    const struct ds_kv_geometry *g = &kv->geometry;

    (void) backend;
    for (uint32_t row = 0; row < batch->n_tokens; row++) {
        uint32_t n = batch->positions[row] + 1, kept = n > top_k ? top_k : n;
        double *weights = calloc(kept, sizeof *weights);

        assert(weights);
        for (uint32_t h = 0; h < n_heads; h++) {
            size_t head = (size_t) row * n_heads + h;
            float *o = out->data + head * g->value_dim;
            double total = 0.0, largest = -INFINITY;

            for (uint32_t pass = 0; pass < 3; pass++) {
                for (uint32_t i = 0; i < g->value_dim && pass == 2; i++)
                    o[i] = 0.0f;
                for (uint32_t i = 0; i < kept; i++) {
                    uint32_t p = i;
                    const float *key;

                    if (n > top_k)
                        memcpy(&p, &chosen->data[(size_t) row * top_k + i], sizeof p);
                    key = kv->keys + (kv_place(kv, layer, batch, batch->sequences[row], p) +
                                      h / (n_heads / g->n_kv_heads)) *
                                         g->key_dim;
                    assert(g->shared);
                    for (uint32_t d = 0; d < g->key_dim && pass == 0; d++)
                        weights[i] += (double) q->data[head * g->key_dim + d] * (double) key[d] *
                                      (double) scale;
                    if (pass == 0)
                        largest = fmax(largest, weights[i]);
                    if (pass == 1)
                        total += exp(weights[i] - largest);
                    for (uint32_t d = 0; d < g->value_dim && pass == 2; d++)
                        o[d] += (float) (exp(weights[i] - largest) / total * (double) key[d]);
                }
            }
            memset(weights, 0, kept * sizeof *weights);
        }
        free(weights);
    }
    return 0;
}

static const char *describe(const struct ds_backend *backend)
{
    (void) backend;
    return "double arithmetic";
}

static void close_backend(struct ds_backend *backend)
{
    free(backend);
}

struct ds_backend *ds_naive_backend_new(void)
{
    struct ds_backend *backend = malloc(sizeof *backend);

    if (!backend)
        return NULL;
    *backend = (struct ds_backend){
        .name = "naive",
        .buffer_new = buffer_new,
        .buffer_free = buffer_free,
        .write = write_buffer,
        .read = read_buffer,
        .weight_new = weight_new,
        .weight_new_stack = weight_new_stack,
        .weight_free = weight_free,
        .weight_bytes = weight_bytes,
        .kv_new = kv_new,
        .kv_free = kv_free,
        .kv_bytes = kv_bytes,
        .embed = embed,
        .rms_norm = rms_norm,
        .matmul = matmul,
        .rope = rope_op,
        .kv_write = kv_write,
        .attention = attention,
        .silu_mul = silu_mul,
        .route = route,
        .expert_ffn = expert_ffn,
        .gather = gather,
        .add_rows = add_rows,
        .copy = copy,
        .matmul_heads = matmul_heads,
        .kv_read = kv_read,
        .layer_norm = layer_norm,
        .index_write = index_write,
        .index_choose = index_choose,
        .attention_chosen = attention_chosen,
        .describe = describe,
        .close = close_backend,
    };
    return backend;
}
