/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/tiny_deepseek.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/format/quant.h"
#include "tests/lib/cpu_case.h"
#include "tests/lib/gguf_writer.h"
#include "tests/lib/tiny_model.h"
#include "tests/lib/tiny_vocab.h"

/* --- the floats --- */

static void add(struct ds_tiny_deepseek *model, struct ds_case_random *random, int layer,
                const char *name, uint64_t columns, uint64_t rows, float mean, float spread)
{
    struct ds_tiny_tensor *tensor = &model->tensors[model->n_tensors++];
    uint64_t n = columns * (rows ? rows : 1);

    if (layer < 0)
        (void) snprintf(tensor->name, sizeof tensor->name, "%s", name);
    else
        (void) snprintf(tensor->name, sizeof tensor->name, "blk.%d.%s", layer, name);
    tensor->dims[0] = columns;
    tensor->dims[1] = rows;
    tensor->values = malloc(n * sizeof *tensor->values);
    if (!tensor->values)
        abort();
    for (uint64_t i = 0; i < n; i++)
        tensor->values[i] = mean + spread * ds_case_float(random);
}

static void matrix(struct ds_tiny_deepseek *model, struct ds_case_random *random, int layer,
                   const char *name, uint64_t columns, uint64_t rows)
{
    add(model, random, layer, name, columns, rows, 0.0f, 2.5f / sqrtf((float) columns));
}

static void norm(struct ds_tiny_deepseek *model, struct ds_case_random *random, int layer,
                 const char *name, uint64_t n)
{
    add(model, random, layer, name, n, 0, 1.0f, 0.4f);
}

static void add_layer(struct ds_tiny_deepseek *m, struct ds_case_random *r, int i)
{
    const uint64_t d = DS_TINY_WIDTH, h = DS_TINY_HEADS, key = DS_TINY_NOPE + DS_TINY_ROPE;

    norm(m, r, i, "attn_norm.weight", d);
    if (m->options.compressed) {
        matrix(m, r, i, "attn_q_a.weight", d, DS_TINY_Q_RANK);
        norm(m, r, i, "attn_q_a_norm.weight", DS_TINY_Q_RANK);
        matrix(m, r, i, "attn_q_b.weight", DS_TINY_Q_RANK, h * key);
    } else {
        matrix(m, r, i, "attn_q.weight", d, h * key);
    }
    matrix(m, r, i, "attn_kv_a_mqa.weight", d, DS_TINY_RANK + DS_TINY_ROPE);
    norm(m, r, i, "attn_kv_a_norm.weight", DS_TINY_RANK);
    matrix(m, r, i, "attn_kv_b.weight", DS_TINY_RANK, h * (DS_TINY_NOPE + DS_TINY_VALUE));
    matrix(m, r, i, "attn_output.weight", h * DS_TINY_VALUE, d);
    norm(m, r, i, "ffn_norm.weight", d);
    matrix(m, r, i, "ffn_gate.weight", d, DS_TINY_FFN);
    matrix(m, r, i, "ffn_up.weight", d, DS_TINY_FFN);
    matrix(m, r, i, "ffn_down.weight", DS_TINY_FFN, d);
    if (!m->options.sparse)
        return;
    matrix(m, r, i, "indexer.attn_q_b.weight", DS_TINY_Q_RANK,
           DS_TINY_INDEX_HEADS * DS_TINY_INDEX_DIM);
    matrix(m, r, i, "indexer.attn_k.weight", d, DS_TINY_INDEX_DIM);
    norm(m, r, i, "indexer.k_norm.weight", DS_TINY_INDEX_DIM);
    add(m, r, i, "indexer.k_norm.bias", DS_TINY_INDEX_DIM, 0, 0.0f, 0.5f);
    matrix(m, r, i, "indexer.proj.weight", d, DS_TINY_INDEX_HEADS);
}

struct ds_tiny_deepseek *ds_tiny_deepseek_new(const struct ds_tiny_deepseek_options *options)
{
    struct ds_tiny_deepseek *model = calloc(1, sizeof *model);
    struct ds_case_random random = { options->seed };

    if (!model)
        abort();
    model->options = *options;
    add(model, &random, -1, "token_embd.weight", DS_TINY_WIDTH, DS_TINY_VOCAB, 0.0f, 1.7f);
    norm(model, &random, -1, "output_norm.weight", DS_TINY_WIDTH);
    add(model, &random, -1, "output.weight", DS_TINY_WIDTH, DS_TINY_VOCAB, 0.0f, 0.6f);
    for (int i = 0; i < DS_TINY_LAYERS + options->mtp; i++)
        add_layer(model, &random, i);
    if (options->mtp) {
        norm(model, &random, DS_TINY_LAYERS, "nextn.enorm.weight", DS_TINY_WIDTH);
        norm(model, &random, DS_TINY_LAYERS, "nextn.hnorm.weight", DS_TINY_WIDTH);
        norm(model, &random, DS_TINY_LAYERS, "nextn.shared_head_norm.weight", DS_TINY_WIDTH);
        matrix(model, &random, DS_TINY_LAYERS, "nextn.eh_proj.weight", 2 * DS_TINY_WIDTH,
               DS_TINY_WIDTH);
    }
    return model;
}

struct ds_tiny_deepseek *ds_tiny_deepseek_free(struct ds_tiny_deepseek *model)
{
    for (unsigned i = 0; model && i < model->n_tensors; i++)
        free(model->tensors[i].values);
    free(model);
    return NULL;
}

const float *ds_tiny_deepseek_get(const struct ds_tiny_deepseek *model, int layer, const char *name)
{
    char full[64];

    if (layer < 0)
        (void) snprintf(full, sizeof full, "%s", name);
    else
        (void) snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    for (unsigned i = 0; i < model->n_tensors; i++)
        if (strcmp(model->tensors[i].name, full) == 0)
            return model->tensors[i].values;
    return NULL;
}

/* --- the file --- */

static void put(struct ds_gguf_writer *writer, const struct ds_tiny_deepseek *model,
                const char *name, unsigned n_dims, const uint64_t *dims, const float *values)
{
    const struct ds_type_traits *traits = ds_type_traits(model->options.type);
    bool plain = n_dims == 1 || dims[0] % traits->block_elements != 0;

    ds_gguf_writer_floats(writer, name, plain ? DS_TYPE_F32 : model->options.type, n_dims, dims,
                          values);
}

/* attn_k_b {nope, rank, heads} and attn_v_b {rank, value, heads} of a layer's kv_b */
static void put_split(struct ds_gguf_writer *writer, const struct ds_tiny_deepseek *model,
                      const struct ds_tiny_tensor *kv_b)
{
    enum { H = DS_TINY_HEADS, NOPE = DS_TINY_NOPE, RANK = DS_TINY_RANK, VALUE = DS_TINY_VALUE };
    const bool flat = model->options.kv == DS_TINY_KV_ALL;
    uint64_t k_dims[] = { NOPE, flat ? RANK * H : RANK, H };
    uint64_t v_dims[] = { RANK, flat ? VALUE * H : VALUE, H };
    float *k = calloc((size_t) H * RANK * NOPE, sizeof *k);
    float *v = calloc((size_t) H * VALUE * RANK, sizeof *v);
    char name[80];
    int prefix = (int) (strrchr(kv_b->name, 'k') - kv_b->name);

    if (!k || !v)
        abort();
    for (size_t h = 0; h < H; h++) {
        const float *head = kv_b->values + h * (NOPE + VALUE) * RANK;

        for (size_t i = 0; i < NOPE; i++)
            for (size_t c = 0; c < RANK; c++)
                k[(h * RANK + c) * NOPE + i] = head[i * RANK + c];
        memcpy(v + h * VALUE * RANK, head + (size_t) NOPE * RANK,
               (size_t) VALUE * RANK * sizeof *v);
    }
    (void) snprintf(name, sizeof name, "%.*sk_b.weight", prefix, kv_b->name);
    put(writer, model, name, flat ? 2 : 3, k_dims, k);
    (void) snprintf(name, sizeof name, "%.*sv_b.weight", prefix, kv_b->name);
    put(writer, model, name, flat ? 2 : 3, v_dims, v);
    free(k);
    free(v);
}

static void put_keys(struct ds_gguf_writer *writer, const struct ds_tiny_deepseek *model)
{
    const struct ds_tiny_deepseek_options *o = &model->options;
    const char *architecture = o->sparse ? "deepseek32" : "deepseek2";
    const bool old = o->kv == DS_TINY_KV_ONE;
    const uint32_t key = DS_TINY_NOPE + DS_TINY_ROPE;
    const struct {
        const char *name;
        uint32_t value;
        bool wanted;
    } keys[] = {
        { "vocab_size", DS_TINY_VOCAB, true },
        { "context_length", 512, true },
        { "embedding_length", DS_TINY_WIDTH, true },
        { "block_count", DS_TINY_LAYERS + o->mtp, true },
        { "nextn_predict_layers", 1, o->mtp },
        { "feed_forward_length", DS_TINY_FFN, true },
        { "attention.head_count", DS_TINY_HEADS, true },
        { "attention.head_count_kv", old ? DS_TINY_HEADS : 1, true },
        { "attention.key_length", old ? key : DS_TINY_RANK + DS_TINY_ROPE, true },
        { "attention.value_length", old ? DS_TINY_VALUE : DS_TINY_RANK, true },
        { "attention.key_length_mla", key, !old },
        { "attention.value_length_mla", DS_TINY_VALUE, !old },
        { "attention.kv_lora_rank", DS_TINY_RANK, true },
        { "attention.q_lora_rank", DS_TINY_Q_RANK, o->compressed },
        { "attention.indexer.head_count", DS_TINY_INDEX_HEADS, o->sparse },
        { "attention.indexer.key_length", DS_TINY_INDEX_DIM, o->sparse },
        { "attention.indexer.top_k", o->top_k, o->sparse },
        { "rope.dimension_count", DS_TINY_ROPE, true },
    };
    char name[96];

    ds_gguf_writer_string(writer, "general.architecture", architecture);
    for (unsigned i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        (void) snprintf(name, sizeof name, "%s.%s", architecture, keys[i].name);
        if (keys[i].wanted)
            ds_gguf_writer_u32(writer, name, keys[i].value);
    }
    (void) snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", architecture);
    ds_gguf_writer_f32(writer, name, 1e-6f);
}

static bool ends_in(const char *name, const char *end)
{
    size_t a = strlen(name), b = strlen(end);

    return a >= b && strcmp(name + a - b, end) == 0;
}

uint8_t *ds_tiny_deepseek_file(const struct ds_tiny_deepseek *model, const char *without,
                               size_t *ret_size)
{
    struct ds_tiny_options vocab = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    uint8_t *bytes;

    put_keys(writer, model);
    ds_tiny_vocab_write(writer, &vocab);
    for (unsigned i = 0; i < model->n_tensors; i++) {
        const struct ds_tiny_tensor *tensor = &model->tensors[i];
        bool kv_b = ends_in(tensor->name, "attn_kv_b.weight");

        if (without && strcmp(tensor->name, without) == 0)
            continue;
        if (kv_b && model->options.kv != DS_TINY_KV_ONE)
            put_split(writer, model, tensor);
        if (!kv_b || model->options.kv != DS_TINY_KV_SPLIT)
            put(writer, model, tensor->name, tensor->dims[1] ? 2 : 1, tensor->dims, tensor->values);
    }
    bytes = ds_gguf_writer_finish(writer, ret_size);
    (void) ds_gguf_writer_free(writer);
    return bytes;
}
