/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a model read from a folder says what its numbers say, in every form folders have.
 * Method: the golden folders' matrices are quantised here as FP8, GPTQ (old and new zeros, inputs
 * in order and not) and AWQ; the same folder with the dequantised numbers in F32, computed here
 * from the formats' definitions, is the truth: the naive backend must meet it closely, the CPU
 * within what eight-bit activations cost (golden tolerances), greedy ids alike. FP8 that stays FP8
 * must give the F32 model's bits. DeepSeek V3.2 and a module for further tokens: bit for bit what
 * the GGUF file of the same numbers gives.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format/quant.h"
#include "engine/format/safetensors.h"
#include "engine/serve/sampler.h"
#include "tests/lib/golden.h"
#include "tests/lib/hf_folder.h"
#include "tests/lib/model_folder.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/naive_backend.h"
#include "tests/lib/random_vocab.h"
#include "tests/lib/safetensors_writer.h"
#include "tests/lib/tiny_deepseek.h"

/* --- folders being made --- */

enum { ENTRIES_MAX = 2048 };

/* The tensors of one shard; names and data own. */
struct shard {
    struct ds_st_entry entries[ENTRIES_MAX];
    unsigned n;
};

/* Zeroed memory of the new tensor. */
static void *add(struct shard *shard, const char *name, const char *suffix, const char *dtype,
                 unsigned element_bytes, uint64_t rows, uint64_t columns)
{
    struct ds_st_entry *entry = &shard->entries[shard->n++];
    char full[256];

    assert_true(shard->n <= ENTRIES_MAX);
    (void) snprintf(full, sizeof full, "%s%s", name, suffix);
    *entry = (struct ds_st_entry){ .name = strdup(full),
                                   .dtype = dtype,
                                   .shape = { rows, columns },
                                   .n_dims = columns ? 2 : 1,
                                   .size_bytes = rows * (columns ? columns : 1) * element_bytes };
    entry->data = calloc(1, entry->size_bytes);
    assert_true(entry->name && entry->data);
    return (void *) entry->data;
}

static void shard_free(struct shard *shard)
{
    for (unsigned i = 0; i < shard->n; i++) {
        free((void *) shard->entries[i].name);
        free((void *) shard->entries[i].data);
    }
    free(shard);
}

static uint32_t draw(uint32_t *seed)
{
    return *seed = *seed * 1664525u + 1013904223u, *seed >> 8;
}

/* --- the forms, by their authors' definitions --- */

enum form { FP8, GPTQ, GPTQ_V2, ACT_ORDER, AWQ, N_FORMS };

static const struct {
    const char *name, *config;
} forms[] = {
    { "FP8", "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"weight_block_size\": [128, 128]}" },
    { "GPTQ", "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, \"sym\": false}" },
    { "GPTQ v2", "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, "
                 "\"checkpoint_format\": \"gptq_v2\"}" },
    { "GPTQ with act-order", "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, "
                             "\"desc_act\": true}" },
    { "AWQ", "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, \"version\": \"gemm\", "
             "\"zero_point\": true}" },
};

static float e4m3(unsigned code)
{
    float size = code >> 3 & 15 ? ldexpf(8 + (float) (code & 7), (int) (code >> 3 & 15) - 10)
                                : ldexpf((float) (code & 7), -9);

    return code & 128 ? -size : size;
}

static uint8_t nearest_e4m3(float x)
{
    unsigned best = 0;

    for (unsigned code = 1; code < 127; code++)
        if (fabsf(e4m3(code) - fabsf(x)) < fabsf(e4m3(best) - fabsf(x)))
            best = code;
    return (uint8_t) (best | (x < 0 ? 128u : 0u));
}

/* w[n][k] becomes what the folder says. */
static void quantise_fp8(struct shard *shard, const char *name, float *w, uint64_t n, uint64_t k)
{
    const uint64_t across = (k + 127) / 128, down = (n + 127) / 128;
    uint8_t *codes = add(shard, name, ".weight", "F8_E4M3", 1, n, k);
    float *scales = add(shard, name, ".weight_scale_inv", "F32", 4, down, across);

    for (uint64_t i = 0; i < n * k; i++) {
        float *scale = &scales[i / k / 128 * across + i % k / 128];

        *scale = fmaxf(*scale, fabsf(w[i]) / 448.0f);
    }
    for (uint64_t i = 0; i < n * k; i++) {
        float scale = scales[i / k / 128 * across + i % k / 128];

        codes[i] = nearest_e4m3(scale > 0 ? w[i] / scale : 0);
        w[i] = e4m3(codes[i]) * scale;
    }
}

/* Four bits with zeros, groups of 32 inputs that share a number in group[k]. */
struct four {
    uint32_t *words, *zeros;
    uint16_t *scales;
    uint64_t n, k;
    enum form form;
};

static void put_quant(const struct four *four, uint64_t row, uint64_t input, unsigned q)
{
    static const unsigned place[8] = { 0, 4, 1, 5, 2, 6, 3, 7 }; /* of AWQ's outputs */

    if (four->form == AWQ)
        four->words[input * (four->n / 8) + row / 8] |= q << 4 * place[row % 8];
    else
        four->words[input / 8 * four->n + row] |= q << 4 * (input % 8);
}

static void put_zero(const struct four *four, uint64_t row, uint64_t group, unsigned zero)
{
    static const unsigned place[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };
    unsigned at = four->form == AWQ ? place[row % 8] : row % 8;
    unsigned stored = four->form == GPTQ || four->form == ACT_ORDER ? zero - 1 : zero;

    four->zeros[group * (four->n / 8) + row / 8] |= stored << 4 * at;
}

static void quantise_group(const struct four *four, float *row, uint64_t r, uint64_t group,
                           const uint32_t *groups)
{
    float low = 0, high = 0, scale;
    int zero;

    for (uint64_t i = 0; i < four->k; i++) {
        low = groups[i] == group ? fminf(low, row[i]) : low;
        high = groups[i] == group ? fmaxf(high, row[i]) : high;
    }
    four->scales[group * four->n + r] = ds_f32_to_f16((high - low) / 15.0f + 1e-6f);
    scale = ds_f16_to_f32(four->scales[group * four->n + r]);
    zero = (int) roundf(-low / scale);
    zero = zero < 1 ? 1 : zero > 15 ? 15 : zero;
    put_zero(four, r, group, (unsigned) zero);
    for (uint64_t i = 0; i < four->k; i++) {
        int q = (int) roundf(row[i] / scale) + zero;

        if (groups[i] != group)
            continue;
        q = q < 0 ? 0 : q > 15 ? 15 : q;
        put_quant(four, r, i, (unsigned) q);
        row[i] = scale * (float) (q - zero);
    }
}

static void quantise_four(struct shard *shard, enum form form, const char *name, float *w,
                          uint64_t n, uint64_t k)
{
    const uint64_t n_groups = k / 32;
    struct four four = {
        .words = form == AWQ ? add(shard, name, ".qweight", "I32", 4, k, n / 8)
                             : add(shard, name, ".qweight", "I32", 4, k / 8, n),
        .zeros = add(shard, name, ".qzeros", "I32", 4, n_groups, n / 8),
        .scales = add(shard, name, ".scales", "F16", 2, n_groups, n),
        .n = n,
        .k = k,
        .form = form,
    };
    uint32_t *groups = form == AWQ ? calloc(k, 4) : add(shard, name, ".g_idx", "I32", 4, k, 0);

    assert_true(groups && n % 8 == 0 && k % 32 == 0);
    for (uint64_t i = 0; i < k; i++)
        groups[i] = (uint32_t) (form == ACT_ORDER ? i * 7 % k / 32 : i / 32);
    for (uint64_t r = 0; r < n; r++)
        for (uint64_t group = 0; group < n_groups; group++)
            quantise_group(&four, w + r * k, r, group, groups);
    if (form == AWQ)
        free(groups);
}

/* --- a folder in two forms --- */

struct pair {
    struct shard *quantised, *plain;
    struct ds_model_folder source;
    char *config, *quantised_config;
};

static bool ends_in(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);

    return a >= b && strcmp(text + a - b, end) == 0;
}

static float *floats_of(const struct ds_safetensor *tensor)
{
    uint64_t n = tensor->size_bytes / ds_safetensor_element_bytes(tensor->type);
    float *out = calloc(n, sizeof *out);

    assert_non_null(out);
    for (uint64_t i = 0; i < n; i++) {
        uint16_t half;

        if (tensor->type == DS_SAFETENSOR_F32) {
            memcpy(&out[i], tensor->data + 4 * i, 4);
            continue;
        }
        memcpy(&half, tensor->data + 2 * i, 2);
        assert_true(tensor->type == DS_SAFETENSOR_BF16 || tensor->type == DS_SAFETENSOR_F16);
        out[i] = tensor->type == DS_SAFETENSOR_BF16 ? ds_bf16_to_f32(half) : ds_f16_to_f32(half);
    }
    return out;
}

/* Projections are quantised, all else is the same F32 in both. */
static void split(struct pair *pair, const char *name, float *w, uint64_t n, uint64_t k,
                  enum form form)
{
    char stem[256];

    if (k && ends_in(name, "_proj.weight")) {
        (void) snprintf(stem, sizeof stem, "%.*s", (int) strlen(name) - 7, name);
        if (form == FP8)
            quantise_fp8(pair->quantised, stem, w, n, k);
        else
            quantise_four(pair->quantised, form, stem, w, n, k);
    } else {
        memcpy(add(pair->quantised, name, "", "F32", 4, n, k), w, n * (k ? k : 1) * 4);
    }
    memcpy(add(pair->plain, name, "", "F32", 4, n, k), w, n * (k ? k : 1) * 4);
}

static void set_configs(struct pair *pair, const char *config, enum form form)
{
    int length = (int) (strrchr(config, '}') - config);

    assert_true(asprintf(&pair->config, "%s", config) > 0);
    assert_true(asprintf(&pair->quantised_config, "%.*s, \"quantization_config\": %s}", length,
                         config, forms[form].config) > 0);
    pair->quantised = calloc(1, sizeof *pair->quantised);
    pair->plain = calloc(1, sizeof *pair->plain);
    assert_true(pair->quantised && pair->plain);
}

static void pair_deinit(struct pair *pair)
{
    shard_free(pair->quantised);
    shard_free(pair->plain);
    free(pair->config);
    free(pair->quantised_config);
    ds_model_folder_close(&pair->source);
}

static int find_file(const struct ds_model_folder *folder, const char *name)
{
    for (unsigned i = 0; i < folder->n; i++)
        if (strcmp(folder->names[i], name) == 0)
            return (int) i;
    fail_msg("the folder has no %s", name);
    return -1;
}

/* The golden folder, of which both forms keep the tokeniser. */
static struct pair golden_pair(const char *path, enum form form)
{
    struct pair pair = { .config = NULL };
    struct ds_error error = { "" };
    struct ds_safetensors file;
    char config[4096];
    ssize_t size;

    ds_model_folder_open(&pair.source, path);
    size = pread(pair.source.fds[find_file(&pair.source, "config.json")], config, 4095, 0);
    assert_true(size > 0);
    config[size] = '\0';
    set_configs(&pair, config, form);
    assert_int_equal(
        ds_safetensors_init(&file, pair.source.fds[find_file(&pair.source, "model.safetensors")],
                            "source", &error),
        0);
    for (uint32_t i = 0; i < file.n_tensors; i++) {
        const struct ds_safetensor *tensor = &file.tensors[i];
        float *w = floats_of(tensor);

        split(&pair, tensor->name, w, tensor->shape[0], tensor->n_dims > 1 ? tensor->shape[1] : 0,
              form);
        free(w);
    }
    ds_safetensors_deinit(&file);
    return pair;
}

/* Opens source's files with these in the places of config.json and model.safetensors. */
static struct ds_checkpoint *open_with(const struct ds_model_folder *source, const char *config,
                                       const struct shard *shard)
{
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_error error = { "" };
    int fds[DS_MODEL_FILES_MAX];
    int config_at = find_file(source, "config.json");
    int shard_at = find_file(source, "model.safetensors");

    memcpy(fds, source->fds, sizeof fds);
    fds[config_at] = ds_bytes_memfd(config, strlen(config));
    fds[shard_at] = ds_st_memfd(shard->entries, shard->n);
    if (ds_checkpoint_open_named(&checkpoint, fds, (const char *const *) source->names, source->n,
                                 "model", false, &error) < 0)
        fail_msg("%s", error.text);
    (void) close(fds[config_at]);
    (void) close(fds[shard_at]);
    return checkpoint;
}

static void start_pair(const struct pair *pair, struct ds_backend *backend,
                       struct ds_runner runners[2])
{
    ds_runner_init_checkpoint(&runners[0], backend,
                              open_with(&pair->source, pair->quantised_config, pair->quantised),
                              512, 64, true);
    ds_runner_init_checkpoint(&runners[1], backend,
                              open_with(&pair->source, pair->config, pair->plain), 512, 64, true);
}

static struct ds_backend *cpu_backend(const char *isa)
{
    struct ds_cpu_options options = { .isa = isa, .n_threads = 2, .spin_usec = 50 };
    struct ds_backend *backend = NULL;

    return ds_backend_cpu(&backend, &options) == 0 ? backend : NULL;
}

/* --- quantised folders --- */

static double gap(const float *logits, uint32_t n, uint32_t best)
{
    double second = -INFINITY;

    for (uint32_t i = 0; i < n; i++)
        if (i != best)
            second = fmax(second, (double) logits[i]);
    return (double) logits[best] - second;
}

/* What the golden tolerances are for: the log-probabilities of the first few ids. */
#define LIKELY (-4.0)

enum { STEPS = 12, STEPS_MAX = 512 };

struct course {
    double off[STEPS_MAX]; /* of each step: the largest deviation of those */
    unsigned n, n_greedy;
};

/* greedy: where the truth's choice is clear, it must be made. */
static void compare(struct ds_runner runners[2], const struct ds_golden_prompt *prompt,
                    double tolerance, bool greedy, struct course *course)
{
    const float *logits[2];

    for (unsigned i = 0; i < 2; i++) {
        ds_runner_reset(&runners[i]);
        (void) ds_runner_prompt(&runners[i], prompt->ids, (uint32_t) prompt->n_ids, 64, &logits[i]);
    }
    for (unsigned step = 0; step < STEPS; step++) {
        uint32_t n = runners[1].n_vocab, best = ds_runner_argmax(logits[1], n);
        double *worst = &course->off[course->n++];

        assert_true(course->n <= STEPS_MAX);
        for (uint32_t id = 0; id < n; id++) {
            double right = ds_logprob(logits[1], n, id);
            double off = fabs(ds_logprob(logits[0], n, id) - right);

            assert_true(isfinite(off));
            *worst = right > LIKELY ? fmax(*worst, off) : *worst;
        }
        if (greedy && gap(logits[1], n, best) >= 2 * tolerance) {
            assert_int_equal(ds_runner_argmax(logits[0], n), best);
            course->n_greedy++;
        }
        for (unsigned i = 0; i < 2; i++) { /* the truth leads both */
            ds_runner_feed(&runners[i], &best, 1, true);
            logits[i] = runners[i].logits;
        }
    }
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* routed: where two experts are about as good, rounding may choose the other one, and that step is
 * another model's; then the step in the middle counts, and the ids do not. */
static void check_form(struct ds_backend *backend, const char *name, const struct ds_golden *golden,
                       enum form form, double tolerance, bool routed)
{
    struct pair pair = golden_pair(golden->hf, form);
    struct course course = { .n = 0 };
    struct ds_runner runners[2];
    double off;

    start_pair(&pair, backend, runners);
    for (size_t i = 0; i < golden->n_prompts; i++)
        compare(runners, &golden->prompts[i], tolerance, !routed, &course);
    qsort(course.off, course.n, sizeof course.off[0], ascending);
    off = course.off[routed ? course.n / 2 : course.n - 1];
    printf("note: %s as %s on %s: log-probabilities off by %.2e, at the worst of %u steps %.2e "
           "(tolerance %.2e), %u greedy ids\n",
           name, forms[form].name, backend->name, off, course.n, course.off[course.n - 1],
           tolerance, course.n_greedy);
    assert_true(off <= tolerance);
    assert_true(routed || course.n_greedy > 0);
    for (unsigned i = 0; i < 2; i++)
        ds_runner_deinit(&runners[i]);
    pair_deinit(&pair);
}

static void quantised_folders_say_what_their_numbers_say(void **state)
{
    static const struct {
        const char *name, *golden, *tolerances;
    } models[] = {
        { "llama", "gguf/llama.golden", "quant/q-llama-Q8_0.golden" },
        { "qwen2", "gguf/qwen2.golden", "quant/q-qwen2-Q8_0.golden" },
        { "deepseek-v3", "gguf/deepseek-v3.golden", "quant/q-deepseek-v3-Q8_0.golden" },
    };
    struct ds_backend *backends[2];

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("quantised folders as whole models");
        skip();
    }
    backends[0] = ds_naive_backend_new();
    backends[1] = cpu_backend(NULL);
    for (unsigned m = 0; m < sizeof models / sizeof models[0]; m++) {
        ds_cleanup(ds_free_p) char *path = ds_golden_file(models[m].golden);
        ds_cleanup(ds_free_p) char *other = ds_golden_file(models[m].tolerances);
        struct ds_golden *golden = path ? ds_golden_load(path) : NULL;
        struct ds_golden *tolerances = other ? ds_golden_load(other) : NULL;

        assert_true(golden && golden->hf && tolerances && tolerances->tol_logprob_int8 > 0);
        for (enum form form = 0; form < N_FORMS; form++) {
            /* act-order's weights are rounded to eight bits, too */
            double cpu = tolerances->tol_logprob_int8 * (form == ACT_ORDER ? 2 : 1);

            check_form(backends[0], models[m].name, golden, form, m == 2 ? 0.02 : 0, false);
            check_form(backends[1], models[m].name, golden, form, cpu, m == 2);
        }
        (void) ds_golden_free(golden);
        (void) ds_golden_free(tolerances);
    }
    for (unsigned b = 0; b < 2; b++)
        backends[b]->close(backends[b]);
}

/* --- FP8 that stays FP8 --- */

/* A vocabulary's files and no others, the two that are exchanged for something empty. */
static struct ds_model_folder vocabulary(uint32_t *ret_n)
{
    static const char *const names[] = { "config.json", "model.safetensors", "tokenizer.json" };
    struct ds_random_vocab *made = ds_random_vocab_new(DS_VOCAB_BPE, "qwen2");
    struct ds_model_folder folder = { .n = 3 };
    size_t size;
    char *json;

    ds_random_vocab_bytes(made);
    json = ds_hf_tokenizer_json(&made->vocab, true, UINT32_MAX, &size);

    for (unsigned i = 0; i < 3; i++) {
        folder.names[i] = strdup(names[i]);
        folder.fds[i] = ds_bytes_memfd(json, i == 2 ? size : 0);
        assert_non_null(folder.names[i]);
    }
    *ret_n = made->vocab.n_tokens;
    free(json);
    ds_random_vocab_free(made);
    return folder;
}

enum { WIDE = 256, FFN = 384, LAYERS = 2 };

static void split_random(struct pair *pair, const char *name, uint64_t n, uint64_t k,
                         uint32_t *seed)
{
    uint64_t size = n * (k ? k : 1);
    float *w = calloc(size, sizeof *w), scale = k ? 2.0f / sqrtf((float) k) : 0.5f;

    assert_non_null(w);
    for (uint64_t i = 0; i < size; i++)
        w[i] = (k ? 0.0f : 1.0f) + scale * ((float) (draw(seed) % 20001) * 1e-4f - 1.0f);
    split(pair, name, w, n, k, FP8);
    free(w);
}

static struct pair wide_pair(uint32_t *ret_n_vocab)
{
    static const struct {
        const char *name;
        uint64_t n, k;
    } matrices[] = {
        { "input_layernorm.weight", WIDE, 0 },
        { "self_attn.q_proj.weight", WIDE, WIDE },
        { "self_attn.k_proj.weight", WIDE / 2, WIDE },
        { "self_attn.v_proj.weight", WIDE / 2, WIDE },
        { "self_attn.o_proj.weight", WIDE, WIDE },
        { "post_attention_layernorm.weight", WIDE, 0 },
        { "mlp.gate_proj.weight", FFN, WIDE },
        { "mlp.up_proj.weight", FFN, WIDE },
        { "mlp.down_proj.weight", WIDE, FFN },
    };
    struct pair pair = { .config = NULL };
    char config[640], name[128];
    uint32_t seed = 11, n_vocab;

    pair.source = vocabulary(&n_vocab);
    (void) snprintf(config, sizeof config,
                    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": %d, "
                    "\"intermediate_size\": %d, \"num_hidden_layers\": %d, "
                    "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"vocab_size\": %u, "
                    "\"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-5, "
                    "\"rope_theta\": 10000.0, \"tie_word_embeddings\": false, "
                    "\"eos_token_id\": 1}",
                    WIDE, FFN, LAYERS, n_vocab);
    set_configs(&pair, config, FP8);
    split_random(&pair, "model.embed_tokens.weight", n_vocab, WIDE, &seed);
    split_random(&pair, "model.norm.weight", WIDE, 0, &seed);
    split_random(&pair, "lm_head.weight", n_vocab, WIDE, &seed);
    for (unsigned layer = 0; layer < LAYERS; layer++)
        for (unsigned i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
            (void) snprintf(name, sizeof name, "model.layers.%u.%s", layer, matrices[i].name);
            split_random(&pair, name, matrices[i].n, matrices[i].k, &seed);
        }
    *ret_n_vocab = n_vocab;
    return pair;
}

static void fp8_models_give_the_bits_of_their_f32_numbers(void **state)
{
    static const char *const sets[] = { "portable", "avx2", "avx512" };
    uint32_t n_vocab, tokens[64];
    struct pair pair = wide_pair(&n_vocab);

    (void) state;
    for (unsigned i = 0; i < 64; i++)
        tokens[i] = (i * 7919u + 13u) % n_vocab;
    for (unsigned set = 0; set < 3; set++) {
        struct ds_backend *backend = cpu_backend(sets[set]);
        struct ds_runner runners[2];

        if (!backend)
            continue; /* not on this machine: test_cpu_isa says so */
        start_pair(&pair, backend, runners);
        assert_int_equal(
            ds_checkpoint_require(runners[0].checkpoint, 0, "ffn_up.weight", WIDE, FFN, NULL)->type,
            DS_TYPE_F8);
        for (unsigned i = 0; i < 2; i++) {
            ds_runner_feed(&runners[i], tokens, 40, false); /* many rows, then one by one */
            for (unsigned t = 40; t < 64; t++)
                ds_runner_feed(&runners[i], &tokens[t], 1, true);
        }
        assert_memory_equal(runners[0].logits, runners[1].logits, n_vocab * sizeof(float));
        assert_true(isfinite(runners[0].logits[0]) && runners[0].logits[0] != 0);
        for (unsigned i = 0; i < 2; i++)
            ds_runner_deinit(&runners[i]);
        backend->close(backend);
    }
    pair_deinit(&pair);
}

/* A code that is no number must not pass for one. */
static void what_is_no_number_in_fp8_is_none_in_the_answer(void **state)
{
    uint32_t n_vocab, token = 5;
    struct pair pair = wide_pair(&n_vocab);
    struct ds_backend *backend = cpu_backend(NULL);
    struct ds_runner runner;

    (void) state;
    for (unsigned i = 0; i < pair.quantised->n; i++)
        if (strcmp(pair.quantised->entries[i].name, "model.layers.1.mlp.down_proj.weight") == 0)
            ((uint8_t *) pair.quantised->entries[i].data)[FFN * 17 + 200] = 0xff;
    ds_runner_init_checkpoint(&runner, backend,
                              open_with(&pair.source, pair.quantised_config, pair.quantised), 64, 4,
                              true);
    ds_runner_feed(&runner, &token, 1, true);
    assert_true(isnan(runner.logits[0]));
    ds_runner_deinit(&runner);
    backend->close(backend);
    pair_deinit(&pair);
}

/* --- DeepSeek: the folder and the GGUF file of the same numbers --- */

static const char *const deepseek_names[][2] = {
    { "token_embd.weight", "model.embed_tokens.weight" },
    { "output_norm.weight", "model.norm.weight" },
    { "output.weight", "lm_head.weight" },
    { "attn_norm.weight", "input_layernorm.weight" },
    { "attn_q.weight", "self_attn.q_proj.weight" },
    { "attn_q_a.weight", "self_attn.q_a_proj.weight" },
    { "attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight" },
    { "attn_q_b.weight", "self_attn.q_b_proj.weight" },
    { "attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight" },
    { "attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight" },
    { "attn_kv_b.weight", "self_attn.kv_b_proj.weight" },
    { "attn_output.weight", "self_attn.o_proj.weight" },
    { "ffn_norm.weight", "post_attention_layernorm.weight" },
    { "ffn_gate.weight", "mlp.gate_proj.weight" },
    { "ffn_up.weight", "mlp.up_proj.weight" },
    { "ffn_down.weight", "mlp.down_proj.weight" },
    { "indexer.attn_q_b.weight", "self_attn.indexer.wq_b.weight" },
    { "indexer.attn_k.weight", "self_attn.indexer.wk.weight" },
    { "indexer.k_norm.weight", "self_attn.indexer.k_norm.weight" },
    { "indexer.k_norm.bias", "self_attn.indexer.k_norm.bias" },
    { "indexer.proj.weight", "self_attn.indexer.weights_proj.weight" },
    { "nextn.enorm.weight", "enorm.weight" },
    { "nextn.hnorm.weight", "hnorm.weight" },
    { "nextn.shared_head_norm.weight", "shared_head.norm.weight" },
    { "nextn.eh_proj.weight", "eh_proj.weight" },
};

static void hugging_face_name(const char *name, char out[128])
{
    const char *rest = name;
    int layer = -1, length = 0;

    if (sscanf(name, "blk.%d.%n", &layer, &length) == 1)
        rest = name + length;
    for (unsigned i = 0; i < sizeof deepseek_names / sizeof deepseek_names[0]; i++)
        if (strcmp(deepseek_names[i][0], rest) == 0) {
            if (layer < 0)
                (void) snprintf(out, 128, "%s", deepseek_names[i][1]);
            else
                (void) snprintf(out, 128, "model.layers.%d.%s", layer, deepseek_names[i][1]);
            return;
        }
    fail_msg("%s has no name", name);
}

static struct ds_checkpoint *open_deepseek(const struct ds_tiny_deepseek *model)
{
    const struct ds_tiny_deepseek_options *o = &model->options;
    struct shard *shard = calloc(1, sizeof *shard);
    struct ds_model_folder folder;
    struct ds_checkpoint *checkpoint;
    char config[1024], name[128], q_lora[32];
    uint32_t n_listed;

    assert_non_null(shard);
    folder = vocabulary(&n_listed);
    assert_true(n_listed <= DS_TINY_VOCAB);
    for (unsigned i = 0; i < model->n_tensors; i++) {
        const struct ds_tiny_tensor *tensor = &model->tensors[i];
        uint64_t n = tensor->dims[1] ? tensor->dims[1] : tensor->dims[0];
        uint64_t k = tensor->dims[1] ? tensor->dims[0] : 0;

        hugging_face_name(tensor->name, name);
        memcpy(add(shard, name, "", "F32", 4, n, k), tensor->values, n * (k ? k : 1) * 4);
    }
    (void) snprintf(q_lora, sizeof q_lora, o->compressed ? "%d" : "null", DS_TINY_Q_RANK);
    (void) snprintf(config, sizeof config,
                    "{\"architectures\": [\"%s\"], \"hidden_size\": %d, \"intermediate_size\": %d, "
                    "\"num_hidden_layers\": %d, \"num_nextn_predict_layers\": %d, "
                    "\"num_attention_heads\": %d, \"vocab_size\": %d, "
                    "\"max_position_embeddings\": 512, \"q_lora_rank\": %s, \"kv_lora_rank\": %d, "
                    "\"qk_nope_head_dim\": %d, \"qk_rope_head_dim\": %d, \"v_head_dim\": %d, "
                    "\"index_n_heads\": %d, \"index_head_dim\": %d, \"index_topk\": %u, "
                    "\"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, "
                    "\"tie_word_embeddings\": false, \"eos_token_id\": 1}",
                    o->sparse ? "DeepseekV32ForCausalLM" : "DeepseekV3ForCausalLM", DS_TINY_WIDTH,
                    DS_TINY_FFN, DS_TINY_LAYERS, o->mtp, DS_TINY_HEADS, DS_TINY_VOCAB, q_lora,
                    DS_TINY_RANK, DS_TINY_NOPE, DS_TINY_ROPE, DS_TINY_VALUE, DS_TINY_INDEX_HEADS,
                    DS_TINY_INDEX_DIM, o->top_k);
    checkpoint = open_with(&folder, config, shard);
    ds_model_folder_close(&folder);
    shard_free(shard);
    return checkpoint;
}

enum { N_TOKENS = 75 };

/* All logits, or with hidden states those that the module makes of these. */
static void run_deepseek(struct ds_runner *runner, bool module, float *logits)
{
    uint32_t tokens[N_TOKENS + 1], positions[N_TOKENS], sequences[N_TOKENS] = { 0 };
    uint32_t outputs[N_TOKENS];
    float *hidden = calloc((size_t) N_TOKENS * DS_TINY_WIDTH, sizeof *hidden);
    struct ds_batch batch = { .n_tokens = N_TOKENS,
                              .n_sequences = 1,
                              .n_outputs = N_TOKENS,
                              .blocks_max = 128 / DS_KV_BLOCK,
                              .tokens = tokens,
                              .positions = positions,
                              .sequences = sequences,
                              .outputs = outputs,
                              .block_tables = runner->blocks,
                              .hidden = hidden };

    assert_non_null(hidden);
    for (uint32_t i = 0; i <= N_TOKENS; i++)
        tokens[i] = (i * 7919u + 13u) % DS_TINY_VOCAB;
    for (uint32_t i = 0; i < N_TOKENS; i++)
        positions[i] = outputs[i] = i;
    assert_int_equal(ds_model_forward(runner->model, runner->kv, &batch, logits), 0);
    batch.hidden = NULL;
    batch.tokens = tokens + 1;
    if (module)
        assert_int_equal(ds_model_mtp(runner->model, runner->kv, &batch, hidden, logits, NULL), 0);
    free(hidden);
}

static void deepseek_folders_give_the_bits_of_their_gguf_files(void **state)
{
    static const struct ds_tiny_deepseek_options kinds[] = {
        { .compressed = true, .kv = DS_TINY_KV_ONE, .mtp = true, .seed = 1 },
        { .kv = DS_TINY_KV_ONE, .seed = 2 },
        { .sparse = true, .compressed = true, .kv = DS_TINY_KV_ONE, .top_k = 20, .seed = 3 },
        { .sparse = true,
          .compressed = true,
          .mtp = true,
          .kv = DS_TINY_KV_ONE,
          .top_k = 33,
          .seed = 4 },
    };
    struct ds_backend *backend = cpu_backend(NULL);
    const size_t size = (size_t) N_TOKENS * DS_TINY_VOCAB * sizeof(float);
    float *logits[2] = { malloc(size), malloc(size) };

    (void) state;
    assert_true(logits[0] && logits[1]);
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(&kinds[i]);
        struct ds_runner runners[2];
        size_t file_size;
        uint8_t *file = ds_tiny_deepseek_file(model, NULL, &file_size);
        int fd = ds_bytes_memfd(file, file_size);

        ds_runner_init(&runners[0], backend, fd, 128, N_TOKENS);
        ds_runner_init_checkpoint(&runners[1], backend, open_deepseek(model), 128, N_TOKENS, false);
        for (unsigned module = 0; module <= kinds[i].mtp; module++) {
            for (unsigned r = 0; r < 2; r++) {
                assert_true(ds_model_has_mtp(runners[r].model) == kinds[i].mtp);
                run_deepseek(&runners[r], module, logits[r]);
            }
            assert_memory_equal(logits[0], logits[1], size);
            assert_true(isfinite(logits[0][0]) && logits[0][0] != 0);
        }
        for (unsigned r = 0; r < 2; r++)
            ds_runner_deinit(&runners[r]);
        (void) close(fd);
        free(file);
        (void) ds_tiny_deepseek_free(model);
    }
    free(logits[0]);
    free(logits[1]);
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantised_folders_say_what_their_numbers_say),
        cmocka_unit_test(fp8_models_give_the_bits_of_their_f32_numbers),
        cmocka_unit_test(what_is_no_number_in_fp8_is_none_in_the_answer),
        cmocka_unit_test(deepseek_folders_give_the_bits_of_their_gguf_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
