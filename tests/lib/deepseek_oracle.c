/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/deepseek_oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    D = DS_TINY_WIDTH,
    H = DS_TINY_HEADS,
    NOPE = DS_TINY_NOPE,
    ROPE = DS_TINY_ROPE,
    KEY = NOPE + ROPE,
    VALUE = DS_TINY_VALUE,
    RANK = DS_TINY_RANK,
    Q_RANK = DS_TINY_Q_RANK,
    I_HEADS = DS_TINY_INDEX_HEADS,
    I_DIM = DS_TINY_INDEX_DIM,
    N_VOCAB = DS_TINY_VOCAB,
    N = DS_ORACLE_TOKENS
};

static void times(const float *w, const double *x, double *y, int k, int n)
{
    for (int j = 0; j < n; j++) {
        y[j] = 0.0;
        for (int i = 0; i < k; i++)
            y[j] += (double) w[j * k + i] * x[i];
    }
}

static void rms(const float *gamma, const double *x, double *y, int n)
{
    double squares = 0.0;

    for (int i = 0; i < n; i++)
        squares += x[i] * x[i] / n;
    for (int i = 0; i < n; i++)
        y[i] = x[i] / sqrt(squares + 1e-6) * (double) gamma[i];
}

static void turn(double *a, double *b, int pair, int position)
{
    double angle = position * pow(10000.0, -2.0 * pair / ROPE), u = *a, v = *b;

    *a = u * cos(angle) - v * sin(angle);
    *b = u * sin(angle) + v * cos(angle);
}

struct oracle {
    const struct ds_tiny_deepseek *model;
    int layer;
    double q[N][H][KEY], k[N][H][KEY], v[N][H][VALUE];
    double index_q[N][I_HEADS][I_DIM], index_k[N][I_DIM], index_w[N][I_HEADS];
    unsigned n_left_out; /* positions that rows did not attend to */
};

static const float *weight(const struct oracle *o, const char *name)
{
    return ds_tiny_deepseek_get(o->model, o->layer, name);
}

static void index_row(struct oracle *o, int t, const double *h, const double *c_q)
{
    double k[I_DIM], mean = 0.0, variance = 0.0;

    times(weight(o, "indexer.attn_q_b.weight"), c_q, o->index_q[t][0], Q_RANK, I_HEADS * I_DIM);
    times(weight(o, "indexer.attn_k.weight"), h, k, D, I_DIM);
    times(weight(o, "indexer.proj.weight"), h, o->index_w[t], D, I_HEADS);
    for (int i = 0; i < I_DIM; i++)
        mean += k[i] / I_DIM;
    for (int i = 0; i < I_DIM; i++)
        variance += (k[i] - mean) * (k[i] - mean) / I_DIM;
    for (int i = 0; i < I_DIM; i++)
        o->index_k[t][i] =
            (k[i] - mean) / sqrt(variance + 1e-6) * (double) weight(o, "indexer.k_norm.weight")[i] +
            (double) weight(o, "indexer.k_norm.bias")[i];
    for (int i = 0; i < ROPE / 2; i++) {
        turn(&o->index_k[t][i], &o->index_k[t][i + ROPE / 2], i, t);
        for (int j = 0; j < I_HEADS; j++)
            turn(&o->index_q[t][j][i], &o->index_q[t][j][i + ROPE / 2], i, t);
    }
}

static void project_row(struct oracle *o, int t, const double *h)
{
    double c_q[Q_RANK], kv[RANK + ROPE], c[RANK], up[H * (NOPE + VALUE)];

    if (o->model->options.compressed) {
        times(weight(o, "attn_q_a.weight"), h, c_q, D, Q_RANK);
        rms(weight(o, "attn_q_a_norm.weight"), c_q, c_q, Q_RANK);
        times(weight(o, "attn_q_b.weight"), c_q, o->q[t][0], Q_RANK, H * KEY);
    } else {
        times(weight(o, "attn_q.weight"), h, o->q[t][0], D, H * KEY);
    }
    times(weight(o, "attn_kv_a_mqa.weight"), h, kv, D, RANK + ROPE);
    rms(weight(o, "attn_kv_a_norm.weight"), kv, c, RANK);
    times(weight(o, "attn_kv_b.weight"), c, up, RANK, H * (NOPE + VALUE));
    for (int i = 0; i < ROPE; i += 2)
        turn(&kv[RANK + i], &kv[RANK + i + 1], i / 2, t);
    for (int j = 0; j < H; j++) {
        memcpy(o->k[t][j], up + j * (NOPE + VALUE), NOPE * sizeof(double));
        memcpy(o->k[t][j] + NOPE, kv + RANK, ROPE * sizeof(double));
        memcpy(o->v[t][j], up + j * (NOPE + VALUE) + NOPE, VALUE * sizeof(double));
        for (int i = NOPE; i < KEY; i += 2)
            turn(&o->q[t][j][i], &o->q[t][j][i + 1], (i - NOPE) / 2, t);
    }
    if (o->model->options.sparse)
        index_row(o, t, h, c_q);
}

/* Which of 0..t the row attends to: those that fewer than top_k others beat. */
static void choose(struct oracle *o, int t, bool *chosen)
{
    double scores[N] = { 0.0 };

    for (int s = 0; s <= t && o->model->options.sparse; s++)
        for (int j = 0; j < I_HEADS; j++) {
            double dot = 0.0;

            for (int i = 0; i < I_DIM; i++)
                dot += o->index_q[t][j][i] * o->index_k[s][i];
            scores[s] += o->index_w[t][j] * fmax(dot, 0.0) / sqrt(I_DIM * I_HEADS);
        }
    for (int s = 0; s <= t; s++) {
        unsigned better = 0;

        for (int other = 0; other <= t; other++)
            better += scores[other] > scores[s] || (scores[other] == scores[s] && other < s);
        chosen[s] = !o->model->options.sparse || better < o->model->options.top_k;
        o->n_left_out += !chosen[s];
    }
}

static void attend_row(struct oracle *o, int t, double *x)
{
    double mix[H * VALUE] = { 0.0 }, out[D];
    bool chosen[N];

    choose(o, t, chosen);
    for (int j = 0; j < H; j++) {
        double p[N] = { 0.0 }, total = 0.0;

        for (int s = 0; s <= t; s++) {
            for (int i = 0; i < KEY; i++)
                p[s] += o->q[t][j][i] * o->k[s][j][i] / sqrt(KEY);
            p[s] = chosen[s] ? exp(p[s]) : 0.0;
            total += p[s];
        }
        for (int s = 0; s <= t; s++)
            for (int i = 0; i < VALUE; i++)
                mix[j * VALUE + i] += p[s] / total * o->v[s][j][i];
    }
    times(weight(o, "attn_output.weight"), mix, out, H * VALUE, D);
    for (int i = 0; i < D; i++)
        x[i] += out[i];
}

static void feed_row(const struct oracle *o, double *x)
{
    double h[D], gate[DS_TINY_FFN], up[DS_TINY_FFN], out[D];

    rms(weight(o, "ffn_norm.weight"), x, h, D);
    times(weight(o, "ffn_gate.weight"), h, gate, D, DS_TINY_FFN);
    times(weight(o, "ffn_up.weight"), h, up, D, DS_TINY_FFN);
    for (int i = 0; i < DS_TINY_FFN; i++)
        gate[i] *= up[i] / (1.0 + exp(-gate[i]));
    times(weight(o, "ffn_down.weight"), gate, out, DS_TINY_FFN, D);
    for (int i = 0; i < D; i++)
        x[i] += out[i];
}

static void run_layer(struct oracle *o, int layer, double (*x)[D], int n)
{
    double h[D];

    o->layer = layer;
    for (int t = 0; t < n; t++) {
        rms(weight(o, "attn_norm.weight"), x[t], h, D);
        project_row(o, t, h);
    }
    for (int t = 0; t < n; t++) {
        attend_row(o, t, x[t]);
        feed_row(o, x[t]);
    }
}

static void embed(const struct ds_tiny_deepseek *model, uint32_t token, double *x)
{
    for (int i = 0; i < D; i++)
        x[i] = (double) ds_tiny_deepseek_get(model, -1, "token_embd.weight")[token * D + i];
}

struct ds_truth *ds_oracle_think(const struct ds_tiny_deepseek *model, const uint32_t *tokens)
{
    struct oracle *o = calloc(1, sizeof *o);
    struct ds_truth *truth = calloc(1, sizeof *truth);

    if (!o || !truth)
        abort();
    o->model = model;
    for (int t = 0; t < N; t++)
        embed(model, tokens[t], truth->x[t]);
    for (int layer = 0; layer < DS_TINY_LAYERS; layer++)
        run_layer(o, layer, truth->x, N);
    for (int t = 0; t < N; t++) {
        rms(ds_tiny_deepseek_get(model, -1, "output_norm.weight"), truth->x[t], truth->hidden[t],
            D);
        times(ds_tiny_deepseek_get(model, -1, "output.weight"), truth->hidden[t], truth->logits[t],
              D, N_VOCAB);
    }
    truth->n_left_out = o->n_left_out;
    free(o);
    return truth;
}

struct ds_truth *ds_oracle_guess(const struct ds_tiny_deepseek *model, double (*hidden)[D],
                                 const uint32_t *next)
{
    struct oracle *o = calloc(1, sizeof *o);
    struct ds_truth *truth = calloc(1, sizeof *truth);

    if (!o || !truth)
        abort();
    o->model = model;
    o->layer = DS_TINY_LAYERS;
    for (int t = 0; t < N; t++) {
        double both[2 * D];

        embed(model, next[t], both);
        rms(weight(o, "nextn.enorm.weight"), both, both, D);
        rms(weight(o, "nextn.hnorm.weight"), hidden[t], both + D, D);
        times(weight(o, "nextn.eh_proj.weight"), both, truth->x[t], 2 * D, D);
    }
    run_layer(o, DS_TINY_LAYERS, truth->x, N);
    for (int t = 0; t < N; t++) {
        rms(weight(o, "nextn.shared_head_norm.weight"), truth->x[t], truth->hidden[t], D);
        times(ds_tiny_deepseek_get(model, -1, "output.weight"), truth->hidden[t], truth->logits[t],
              D, N_VOCAB);
    }
    free(o);
    return truth;
}
