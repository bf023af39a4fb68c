/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend_body.h - the kernels of attention, written once over v16 and compiled once per instruction
 * set: attend_portable.c, attend_avx2.c and attend_avx512.c include a vec_*.h and define
 *
 *   ATTEND_NAME(x)   the names below for this set
 *   ATTEND_ROWS      queries of a product of queries and keys held in registers, with
 *   ATTEND_VECTORS   so many vectors of 16 positions;
 *   ATTEND_FEW       half of ATTEND_ROWS, which twice the vectors go with
 *
 * Which queries share registers changes no bit: each lane is one query's and one position's (or
 * dimension's) chain of multiply-adds.
 */
#include <assert.h>
#include <math.h>

#include "engine/cpu/attend.h"
#include "proto/base.h"

#define always_inline static inline __attribute__((always_inline))

/* 2^x within one and a half units in the last place for -126 <= x <= 127; below that 2^-126; NaN
 * for NaN. x = n + r, |r| <= 1/2; 2^r by a polynomial that interpolates it (relative error 5e-9).
 */
always_inline v16 v16_exp2(v16 x)
{
    const v16 magic = v16_set1(0x1.8p23f);
    v16 t, r, p;

    x = v16_max(v16_set1(-126.0f), x);
    t = v16_add(x, magic); /* low bits: n */
    r = v16_sub(x, v16_sub(t, magic));
    p = v16_fma(v16_set1(0x1.44138ap-13f), r, v16_set1(0x1.5f089p-10f));
    p = v16_fma(p, r, v16_set1(0x1.3b2a54p-7f));
    p = v16_fma(p, r, v16_set1(0x1.c6af6cp-5f));
    p = v16_fma(p, r, v16_set1(0x1.ebfbep-3f));
    p = v16_fma(p, r, v16_set1(0x1.62e43p-1f));
    p = v16_fma(p, r, v16_set1(1.0f));
    return v16_scale_magic(p, t);
}

always_inline v16 exp2_all(float x)
{
    return v16_exp2(v16_set1(x));
}

/* --- q k --- */

/* Scores of n queries (a column of q each) for n_vectors of 16 positions from block. */
always_inline void score(const struct ds_attend *attend, const float *q, unsigned first_vector,
                         float (*scores)[DS_ATTEND_POSITIONS], unsigned n, unsigned n_vectors)
{
    v16 s[12][4];
    const float *keys[4];

    for (unsigned j = 0; j < n_vectors; j++)
        keys[j] = attend->keys[(first_vector + j) / 2] + (size_t) 16 * ((first_vector + j) % 2);
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < n_vectors; j++)
            s[i][j] = v16_set1(0);
    for (size_t d = 0; d < attend->key_dim; d++) {
        v16 k[4];

        for (unsigned j = 0; j < n_vectors; j++)
            k[j] = v16_load(keys[j] + d * DS_KV_BLOCK);
        for (unsigned i = 0; i < n; i++) {
            v16 x = v16_set1(q[d * DS_ATTEND_QUERIES + i]);

            for (unsigned j = 0; j < n_vectors; j++)
                s[i][j] = v16_fma(k[j], x, s[i][j]);
        }
    }
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < n_vectors; j++)
            v16_store(&scores[i][16 * (first_vector + j)], s[i][j]);
}

always_inline void score_blocks(const struct ds_attend *attend, const float *q,
                                float (*scores)[DS_ATTEND_POSITIONS], unsigned n,
                                unsigned n_vectors)
{
    for (unsigned vector = 0; vector < 2 * attend->n_blocks; vector += n_vectors)
        score(attend, q, vector, scores, n, n_vectors);
}

/* Up to ATTEND_FEW queries: more vectors, so that there are chains enough. */
always_inline void score_few(const struct ds_attend *attend, const float *q,
                             float (*scores)[DS_ATTEND_POSITIONS], unsigned n)
{
    if (2 * ATTEND_VECTORS > 2 && attend->n_blocks < 2)
        score_blocks(attend, q, scores, n, ATTEND_VECTORS);
    else
        score_blocks(attend, q, scores, n, 2 * ATTEND_VECTORS);
}

#define FEW(n, call)                                                                               \
    case n:                                                                                        \
        if (n <= ATTEND_FEW)                                                                       \
            call;                                                                                  \
        break

static void score_group(const struct ds_attend *attend, const float *q,
                        float (*scores)[DS_ATTEND_POSITIONS], unsigned n)
{
    for (unsigned left = n, now; left; left -= now, q += now, scores += now) {
        if (left >= ATTEND_ROWS) {
            now = ATTEND_ROWS;
            score_blocks(attend, q, scores, ATTEND_ROWS, ATTEND_VECTORS);
            continue;
        }
        now = left > ATTEND_FEW ? (left + 1) / 2 : left;
        switch (now) {
            FEW(1, score_few(attend, q, scores, 1));
            FEW(2, score_few(attend, q, scores, 2));
            FEW(3, score_few(attend, q, scores, 3));
            FEW(4, score_few(attend, q, scores, 4));
            FEW(5, score_few(attend, q, scores, 5));
            FEW(6, score_few(attend, q, scores, 6));
        }
    }
}

/* --- softmax --- */

static void fade_state(float *state, float max, float new_max, uint32_t width)
{
    v16 fade = exp2_all(max - new_max);

    for (uint32_t d = 0; d < width; d += 16)
        v16_store(state + d, v16_mul(v16_load(state + d), fade));
}

/* Turns one query's scores into weights 2^(s - max), keeps max and the sixteen sums. */
always_inline void soften(float *scores, struct ds_visible visible, unsigned n_vectors, float *max,
                          float *state, uint32_t value_stride, bool whole)
{
    v16 largest, lowest = v16_set1(-INFINITY), zero = v16_set1(0), shift, sum;
    float top;

    for (unsigned j = 0; j < n_vectors; j++) {
        v16 s = v16_load(scores + 16 * j);

        if (!whole) {
            unsigned end = visible.end > 16 * j ? visible.end - 16 * j : 0;
            unsigned first = visible.first > 16 * j ? visible.first - 16 * j : 0;

            s = v16_first(first, lowest, v16_first(end, s, lowest));
        }
        largest = j ? v16_max(s, largest) : s;
    }
    top = v16_hmax(largest);
    if (top > *max) {
        if (*max > -INFINITY)
            fade_state(state, *max, top, DS_ATTEND_SUMS + value_stride);
        *max = top;
    }
    shift = v16_set1(*max);
    sum = v16_load(state);
    for (unsigned j = 0; j < n_vectors; j++) {
        v16 weight = v16_exp2(v16_sub(v16_load(scores + 16 * j), shift));

        if (!whole) {
            unsigned end = visible.end > 16 * j ? visible.end - 16 * j : 0;
            unsigned first = visible.first > 16 * j ? visible.first - 16 * j : 0;

            weight = v16_first(first, zero, v16_first(end, weight, zero));
        }
        v16_store(scores + 16 * j, weight);
        sum = v16_add(sum, weight);
    }
    v16_store(state, sum);
}

static void soften_query(const struct ds_attend *attend, float *scores, uint32_t i)
{
    size_t width = DS_ATTEND_SUMS + (size_t) attend->value_stride;
    struct ds_visible visible = attend->visible[i];

    if (visible.first == 0 && visible.end == DS_ATTEND_POSITIONS)
        soften(scores, visible, DS_ATTEND_POSITIONS / 16, &attend->max[i],
               attend->state + i * width, attend->value_stride, true);
    else if (visible.first < visible.end)
        soften(scores, visible, (visible.end + 15) / 16, &attend->max[i], attend->state + i * width,
               attend->value_stride, false);
}

/* --- p v --- */

/* Weights of some queries: [position][query] steps. */
struct weights {
    const float *at;
    size_t query, position;
};

/* out[d..] += weights[first..end) times values: n queries by n_vectors of 16 dimensions */
always_inline void weigh(const struct ds_attend *attend, struct weights weights, float *state,
                         unsigned first, unsigned end, uint32_t d, unsigned n, unsigned n_vectors)
{
    size_t width = DS_ATTEND_SUMS + (size_t) attend->value_stride;
    size_t row = attend->shared ? attend->key_stride : attend->value_stride;
    float *out = state + DS_ATTEND_SUMS + d;
    v16 o[6][8];

    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < n_vectors; j++)
            o[i][j] = v16_load(out + i * width + 16 * j);
    while (first < end) {
        const float *values = attend->values[first / DS_KV_BLOCK] + (first % DS_KV_BLOCK) * row + d;
        unsigned stop = (first / DS_KV_BLOCK + 1) * DS_KV_BLOCK;

        for (stop = stop < end ? stop : end; first < stop; first++) {
            v16 v[8];

            for (unsigned j = 0; j < n_vectors; j++)
                v[j] = v16_load(values + 16 * j);
            for (unsigned i = 0; i < n; i++) {
                v16 w = v16_set1(weights.at[i * weights.query + first * weights.position]);

                for (unsigned j = 0; j < n_vectors; j++)
                    o[i][j] = v16_fma(w, v[j], o[i][j]);
            }
            values += row;
        }
    }
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < n_vectors; j++)
            v16_store(out + i * width + 16 * j, o[i][j]);
}

always_inline void weigh_all(const struct ds_attend *attend, struct weights weights, float *state,
                             unsigned first, unsigned end, unsigned n)
{
    uint32_t d = 0;

    if (2 * n <= ATTEND_FEW)
        for (; d + 64 * ATTEND_VECTORS <= attend->value_stride; d += 64 * ATTEND_VECTORS)
            weigh(attend, weights, state, first, end, d, n, 4 * ATTEND_VECTORS);
    for (; d + 32 * ATTEND_VECTORS <= attend->value_stride; d += 32 * ATTEND_VECTORS)
        weigh(attend, weights, state, first, end, d, n, 2 * ATTEND_VECTORS);
    for (; d < attend->value_stride; d += 16)
        weigh(attend, weights, state, first, end, d, n, 1);
}

/* One query, where it does not see what its neighbours see. */
static void weigh_one(const struct ds_attend *attend, struct weights weights, float *state,
                      unsigned first, unsigned end)
{
    if (first < end)
        weigh_all(attend, weights, state, first, end, 1);
}

/* What all of them see together, and before and after it each for itself: a value that a query does
 * not see must not touch it, not even with weight 0, for it may be NaN. */
always_inline void weigh_few(const struct ds_attend *attend, struct weights weights, uint32_t query,
                             unsigned n)
{
    size_t width = DS_ATTEND_SUMS + (size_t) attend->value_stride;
    const struct ds_visible *visible = attend->visible + query;
    float *state = attend->state + query * width;
    unsigned first = 0, end = DS_ATTEND_POSITIONS;

    for (unsigned i = 0; i < n; i++) {
        first = visible[i].first > first ? visible[i].first : first;
        end = visible[i].end < end ? visible[i].end : end;
    }
    first = first < end ? first : end;
    for (unsigned i = 0; i < n; i++) {
        struct weights own = { weights.at + i * weights.query, weights.query, weights.position };

        weigh_one(attend, own, state + i * width, visible[i].first,
                  visible[i].end < first ? visible[i].end : first);
    }
    weigh_all(attend, weights, state, first, end, n);
    for (unsigned i = 0; i < n; i++) {
        struct weights own = { weights.at + i * weights.query, weights.query, weights.position };

        weigh_one(attend, own, state + i * width, visible[i].first > end ? visible[i].first : end,
                  visible[i].end);
    }
}

always_inline void weigh_group(const struct ds_attend *attend, struct weights weights,
                               uint32_t query, unsigned n)
{
    for (unsigned left = n, now; left; left -= now) {
        now = left >= 2 * ATTEND_FEW ? ATTEND_FEW : left > ATTEND_FEW ? (left + 1) / 2 : left;
        switch (now) {
            FEW(1, weigh_few(attend, weights, query, 1));
            FEW(2, weigh_few(attend, weights, query, 2));
            FEW(3, weigh_few(attend, weights, query, 3));
            FEW(4, weigh_few(attend, weights, query, 4));
            FEW(5, weigh_few(attend, weights, query, 5));
            FEW(6, weigh_few(attend, weights, query, 6));
        }
        query += now;
        weights.at += now * weights.query;
    }
}

static bool none_sees(const struct ds_attend *attend, uint32_t query, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (attend->visible[query + i].end != 0)
            return false;
    return true;
}

static void attend_plain(const struct ds_attend *attend, uint32_t query, unsigned n)
{
    _Alignas(64) float scores[DS_ATTEND_QUERIES][DS_ATTEND_POSITIONS];

    score_group(attend, attend->q + (size_t) query * attend->key_dim, scores, n);
    for (unsigned i = 0; i < n; i++)
        soften_query(attend, scores[i], query + i);
    weigh_group(attend, (struct weights){ scores[0], DS_ATTEND_POSITIONS, 1 }, query, n);
}

/* --- shared --- */

/* Scores of n_vectors of 16 queries and POSITIONS positions from keys. */
#define POSITIONS 8u
always_inline void score_shared(const struct ds_attend *attend, const float *q, const float *keys,
                                float *scores, unsigned n_vectors)
{
    v16 s[POSITIONS][2];

    for (unsigned i = 0; i < POSITIONS; i++)
        for (unsigned j = 0; j < n_vectors; j++)
            s[i][j] = v16_set1(0);
    for (size_t d = 0; d < attend->key_dim; d++) {
        v16 x[2];

        for (unsigned j = 0; j < n_vectors; j++)
            x[j] = v16_load(q + d * DS_ATTEND_LANES + 16 * j);
        for (unsigned i = 0; i < POSITIONS; i++) {
            v16 k = v16_set1(keys[i * attend->key_stride + d]);

            for (unsigned j = 0; j < n_vectors; j++)
                s[i][j] = v16_fma(k, x[j], s[i][j]);
        }
    }
    for (unsigned i = 0; i < POSITIONS; i++)
        for (unsigned j = 0; j < n_vectors; j++)
            v16_store(scores + (size_t) i * DS_ATTEND_LANES + 16 * j, s[i][j]);
}

static void hide(struct ds_visible visible, float (*scores)[DS_ATTEND_LANES], unsigned lane,
                 float value)
{
    if (visible.first == 0 && visible.end == DS_ATTEND_POSITIONS)
        return;
    for (unsigned p = 0; p < DS_ATTEND_POSITIONS; p++)
        if (p < visible.first || p >= visible.end)
            scores[p][lane] = value;
}

/* Sixteen queries' scores to weights, at scores[position][lane ..]; n of them count. */
static void soften_shared(const struct ds_attend *attend, float (*scores)[DS_ATTEND_LANES],
                          unsigned lane, uint32_t query, unsigned n)
{
    size_t width = DS_ATTEND_SUMS + (size_t) attend->value_stride;
    unsigned end = attend->n_blocks * DS_KV_BLOCK;
    const struct ds_visible *visible = attend->visible + query;
    v16 largest = v16_set1(-INFINITY), shift, sum = v16_set1(0);
    float top[16], max[16] = { 0 }, sums[16];

    for (unsigned i = 0; i < n; i++)
        hide(visible[i], scores, lane + i, -INFINITY);
    for (unsigned p = 0; p < end; p++)
        largest = v16_max(v16_load(&scores[p][lane]), largest);
    v16_store(top, largest);
    for (unsigned i = 0; i < n; i++) {
        float *known = &attend->max[query + i];

        if (top[i] > *known) {
            if (*known > -INFINITY)
                fade_state(attend->state + (query + i) * width, *known, top[i], width);
            *known = top[i];
        }
        max[i] = *known;
        sums[i] = attend->state[(query + i) * width];
    }
    for (unsigned i = n; i < 16; i++)
        sums[i] = 0;
    shift = v16_load(max);
    for (unsigned p = 0; p < end; p++)
        v16_store(&scores[p][lane], v16_exp2(v16_sub(v16_load(&scores[p][lane]), shift)));
    for (unsigned i = 0; i < n; i++)
        hide(visible[i], scores, lane + i, 0.0f);
    sum = v16_load(sums);
    for (unsigned p = 0; p < end; p++)
        sum = v16_add(sum, v16_load(&scores[p][lane]));
    v16_store(sums, sum);
    for (unsigned i = 0; i < n; i++)
        attend->state[(query + i) * width] = sums[i];
}

static void attend_shared(const struct ds_attend *attend, uint32_t query, unsigned n)
{
    _Alignas(64) float scores[DS_ATTEND_POSITIONS][DS_ATTEND_LANES];
    const float *q = attend->q + (size_t) query * attend->key_dim;

    for (unsigned p = 0; p < attend->n_blocks * DS_KV_BLOCK; p += POSITIONS) {
        const float *keys =
            attend->keys[p / DS_KV_BLOCK] + (size_t) (p % DS_KV_BLOCK) * attend->key_stride;

        if (n <= 16)
            score_shared(attend, q, keys, scores[p], 1);
        else
            for (unsigned j = 0; j < 2; j += ATTEND_VECTORS)
                score_shared(attend, q + (size_t) 16 * j, keys, &scores[p][16 * j], ATTEND_VECTORS);
    }
    for (unsigned lane = 0; lane < n; lane += 16)
        soften_shared(attend, scores, lane, query + lane, n - lane < 16 ? n - lane : 16);
    weigh_group(attend, (struct weights){ scores[0], 1, DS_ATTEND_LANES }, query, n);
}

void ATTEND_NAME(attend)(const struct ds_attend *attend)
{
    unsigned group = attend->shared ? DS_ATTEND_LANES : DS_ATTEND_QUERIES;

    for (uint32_t query = 0; query < attend->n_queries; query += group) {
        uint32_t left = attend->n_queries - query;
        unsigned n = left < group ? left : group;

        if (none_sees(attend, query, n))
            continue;
        if (attend->shared)
            attend_shared(attend, query, n);
        else
            attend_plain(attend, query, n);
    }
}

/* --- parts --- */

void ATTEND_NAME(merge)(float *max, float *state, float part_max, const float *part,
                        uint32_t value_stride)
{
    float top = part_max > *max ? part_max : *max;
    v16 fade_into = exp2_all(*max - top), fade_part = exp2_all(part_max - top);

    *max = top;
    for (uint32_t d = 0; d < DS_ATTEND_SUMS + value_stride; d += 16) {
        v16 a = v16_mul(v16_load(state + d), fade_into);

        v16_store(state + d, v16_fma(v16_load(part + d), fade_part, a));
    }
}

void ATTEND_NAME(conclude)(float *out, const float *state, uint32_t value_dim)
{
    v16 sum = v16_set1(v16_sum(v16_load(state)));
    const float *from = state + DS_ATTEND_SUMS;
    uint32_t d = 0;

    for (; d + 16 <= value_dim; d += 16)
        v16_store(out + d, v16_div(v16_load(from + d), sum));
    if (d < value_dim)
        v16_store_n(out + d, v16_div(v16_load(from + d), sum), value_dim - d);
}

/* --- the cache's types --- */

/* Asks for what lies n bytes (up to 64) from `from`: the next block, while this one is read. */
always_inline void ask(const uint8_t *from, size_t n)
{
    __builtin_prefetch(from + n, 0, 2);
}

always_inline void widen_halves(enum ds_kv_type type, float *out, const uint8_t *in,
                                const uint8_t *next, size_t n)
{
    for (size_t i = 0; i + 32 <= n; i += 32) {
        const uint16_t *halves = (const uint16_t *) (in + 2 * i);

        ask(next, 2 * i);
        v16_store(out + i, type == DS_KV_F16 ? v16_load_f16(halves) : v16_load_bf16(halves));
        v16_store(out + i + 16,
                  type == DS_KV_F16 ? v16_load_f16(halves + 16) : v16_load_bf16(halves + 16));
    }
    if (n % 32) {
        const uint16_t *halves = (const uint16_t *) (in + 2 * (n - 16));

        v16_store(out + n - 16, type == DS_KV_F16 ? v16_load_f16(halves) : v16_load_bf16(halves));
    }
}

/* 32 dimensions of 32 positions each; or, below, 32 dimensions of one position. */
always_inline void widen_columns(enum ds_kv_type type, float *out, const uint8_t *in,
                                 const uint8_t *next, const uint16_t *scales)
{
    v16 a = v16_load_f16(scales), b = v16_load_f16(scales + 16), high[2];

    for (size_t i = 0; i < (type == DS_KV_Q8_0 ? 32 : 16); i++, in += 32, out += 32) {
        if (i % 2 == 0)
            ask(next, i * 32);
        if (type == DS_KV_Q8_0) {
            v16_store(out, v16_mul(v16_load_i8((const int8_t *) in), a));
            v16_store(out + 16, v16_mul(v16_load_i8((const int8_t *) in + 16), b));
            continue;
        }
        v16_store(out, v16_mul(v16_load_u4(in, &high[0]), a));
        v16_store(out + 16, v16_mul(v16_load_u4(in + 16, &high[1]), b));
        v16_store(out + 16 * 32, v16_mul(high[0], a));
        v16_store(out + 16 * 32 + 16, v16_mul(high[1], b));
    }
}

always_inline void widen_group(enum ds_kv_type type, float *out, const uint8_t *in, v16 scale)
{
    v16 low, high;

    if (type == DS_KV_Q8_0) {
        low = v16_load_i8((const int8_t *) in);
        high = v16_load_i8((const int8_t *) in + 16);
    } else {
        low = v16_load_u4(in, &high);
    }
    v16_store(out, v16_mul(low, scale));
    v16_store(out + 16, v16_mul(high, scale));
}

always_inline void widen_scaled(enum ds_kv_type type, float *out,
                                const struct ds_kv_section *section, const uint8_t *in,
                                const uint8_t *next)
{
    const uint16_t *scales = (const uint16_t *) (in + section->scales_at);
    const size_t group_bytes = type == DS_KV_Q8_0 ? 32 : 16;
    size_t n_groups = (size_t) section->n_rows * section->width / 32;

    if (section->columns) {
        for (size_t i = 0; i < n_groups; i += 32)
            widen_columns(type, out + 32 * i, in + group_bytes * i, next + group_bytes * i,
                          scales + i);
        return;
    }
    for (size_t first = 0; first < n_groups; first += 16) { /* there are 32 rows, so no rest */
        float lanes[16];

        v16_store(lanes, v16_load_f16(scales + first));
        for (size_t i = first; i < first + 16; i++) {
            if (i % 2 == 0)
                ask(next, group_bytes * i);
            widen_group(type, out + 32 * i, in + group_bytes * i, v16_set1(lanes[i - first]));
        }
    }
}

void ATTEND_NAME(widen)(float *out, const struct ds_kv_section *section, const void *at,
                        const void *next)
{
    size_t n = (size_t) section->n_rows * section->width;

    switch (section->type) {
    case DS_KV_F16:
        widen_halves(DS_KV_F16, out, at, next, n);
        return;
    case DS_KV_BF16:
        widen_halves(DS_KV_BF16, out, at, next, n);
        return;
    case DS_KV_Q8_0:
        widen_scaled(DS_KV_Q8_0, out, section, at, next);
        return;
    case DS_KV_Q4_0:
        widen_scaled(DS_KV_Q4_0, out, section, at, next);
        return;
    case DS_KV_F32:
        assert(!"lies as it is wanted");
    }
}

void ATTEND_NAME(widen_f16)(float *out, const uint16_t *in, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        v16_store(out + i, v16_load_f16(in + i));
}
