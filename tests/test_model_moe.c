/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: models with mixtures of experts, and models with attention windows, are what their files
 * say, whatever form the experts stand in, and give the same answers alone and in company.
 * Method: tiny models made here: the three forms of experts against each other byte for byte,
 * shared experts and layers without experts against the naive backend, jobs of all kinds through
 * the scheduler against a plain loop. The golden qwen3moe in one piece and token by token. Then
 * files whose keys and tensors contradict each other: one clear error each.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format/quant.h"
#include "engine/serve/sampler.h"
#include "tests/lib/golden.h"
#include "tests/lib/naive_backend.h"
#include "tests/lib/serving.h"
#include "tests/lib/tiny_vocab.h"

enum { N_TOKENS = 61 };

static struct ds_backend *cpu_backend(void)
{
    struct ds_cpu_options options = { .n_threads = 2, .spin_usec = 50 };
    struct ds_backend *backend = NULL;

    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    return backend;
}

/* Logits of all rows of a prompt fed in pieces of chunk: free(). */
static float *logits_of(struct ds_backend *backend, const struct ds_tiny_options *options,
                        uint32_t chunk)
{
    int fd = ds_tiny_model_fd(options);
    uint32_t tokens[N_TOKENS];
    struct ds_runner runner;
    float *all;

    ds_runner_init(&runner, backend, fd, 64, N_TOKENS);
    (void) close(fd);
    all = malloc((size_t) N_TOKENS * runner.n_vocab * sizeof *all);
    assert_non_null(all);
    for (uint32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 7919u + 13u) % runner.n_vocab;
    for (uint32_t i = 0; i < N_TOKENS; i += chunk) {
        uint32_t n = N_TOKENS - i < chunk ? N_TOKENS - i : chunk;

        ds_runner_feed(&runner, tokens + i, n, false);
        memcpy(all + (size_t) i * runner.n_vocab, runner.logits,
               (size_t) n * runner.n_vocab * sizeof *all);
    }
    ds_runner_deinit(&runner);
    return all;
}

static void experts_are_the_same_in_all_their_forms(void **state)
{
    static const uint32_t types[] = { DS_TYPE_F32, DS_TYPE_Q4_0, DS_TYPE_Q6_K };
    struct ds_backend *backend = cpu_backend();

    (void) state;
    for (unsigned i = 0; i < 2 * sizeof types / sizeof types[0]; i++) {
        struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN3MOE, types[i / 2]);
        size_t size = (size_t) N_TOKENS * options.n_vocab * sizeof(float);
        float *stacked, *other;

        if (i % 2) /* up does not begin on a panel of its own */
            options.expert_ffn_width = 24;
        stacked = logits_of(backend, &options, N_TOKENS);
        for (options.experts = DS_TINY_MERGED; options.experts <= DS_TINY_SEPARATE;
             options.experts++) {
            other = logits_of(backend, &options, N_TOKENS);
            assert_memory_equal(stacked, other, size);
            free(other);
        }
        free(stacked);
    }
    backend->close(backend);
}

static double worst_deviation(const float *a, const float *b, uint32_t n_vocab)
{
    double worst = 0.0;

    for (size_t row = 0; row < N_TOKENS; row++) {
        uint32_t id = ds_runner_argmax(a + row * n_vocab, n_vocab);

        worst = fmax(worst, fabs(ds_logprob(a + row * n_vocab, n_vocab, id) -
                                 ds_logprob(b + row * n_vocab, n_vocab, id)));
    }
    return worst;
}

static void
shared_experts_and_layers_without_experts_are_as_the_naive_backend_has_them(void **state)
{
    struct ds_backend *naive = ds_naive_backend_new(), *cpu = cpu_backend();

    (void) state;
    for (unsigned i = 0; i < 5; i++) {
        struct ds_tiny_options o = ds_tiny_options(DS_ARCH_QWEN3MOE, DS_TYPE_F32);
        size_t size = (size_t) N_TOKENS * o.n_vocab * sizeof(float);
        float *right, *whole, *cut;

        o.n_experts_shared = i % 3;
        o.dense_first = i % 2;
        if (i == 4) { /* Mixtral's form: llama with experts */
            o.architecture = DS_ARCH_LLAMA;
            o.experts = DS_TINY_SEPARATE;
        }
        right = logits_of(naive, &o, N_TOKENS);
        whole = logits_of(cpu, &o, N_TOKENS);
        cut = logits_of(cpu, &o, 1);
        assert_true(worst_deviation(right, whole, o.n_vocab) <= 2e-4);
        assert_memory_equal(whole, cut, size);
        free(right);
        free(whole);
        free(cut);
    }
    naive->close(naive);
    cpu->close(cpu);
}

/* --- in company --- */

static void expect_the_same_in_company(const struct ds_tiny_options *model)
{
    enum { N_JOBS = 16 };
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_backend *backend = cpu_backend();
    struct ds_spec *specs = calloc(N_JOBS, sizeof *specs);
    struct ds_answer *alone = calloc(N_JOBS, sizeof *alone);
    struct ds_serving serving;

    assert_non_null(specs);
    assert_non_null(alone);
    ds_serving_init(&serving, backend, model);
    for (unsigned i = 0; i < N_JOBS; i++) {
        specs[i] = ds_spec_random(i + 1, serving.runner.n_vocab);
        ds_serving_alone(&serving, &specs[i], &alone[i]);
    }
    ds_serving_start(&serving, &options, N_JOBS);
    for (unsigned i = 0; i < N_JOBS; i++)
        ds_serving_add(&serving, &specs[i], i);
    ds_serving_run(&serving);
    for (unsigned i = 0; i < N_JOBS; i++)
        ds_assert_same_answer(&serving.answers[i], &alone[i]);
    ds_serving_deinit(&serving);
    free(specs);
    free(alone);
    backend->close(backend);
}

static void jobs_at_once_yield_what_each_yields_alone(void **state)
{
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_QWEN3MOE, DS_TYPE_Q4_0);

    (void) state;
    model.n_experts = 12;
    model.n_experts_used = 3;
    model.n_experts_shared = 1;
    expect_the_same_in_company(&model);
    model = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_Q4_0);
    model.window = 11;
    expect_the_same_in_company(&model);
}

/* --- golden --- */

static void run_golden(struct ds_backend *backend, const struct ds_golden *golden, uint32_t chunk)
{
    int fd = open(golden->gguf[0], O_RDONLY | O_CLOEXEC);
    struct ds_runner runner;
    double worst = 0.0;

    assert_true(fd >= 0);
    ds_runner_init(&runner, backend, fd, 512, chunk);
    (void) close(fd);
    for (size_t i = 0; i < golden->n_prompts; i++) {
        const struct ds_golden_prompt *p = &golden->prompts[i];
        const float *logits = NULL;

        ds_runner_reset(&runner);
        (void) ds_runner_prompt(&runner, p->ids, (uint32_t) p->n_ids, chunk, &logits);
        for (size_t j = 0; j < p->n_top; j++)
            worst = fmax(worst, fabs(ds_logprob(logits, runner.n_vocab, p->top_ids[j]) -
                                     p->top_logprobs[j]));
        for (size_t j = 0; j < p->n_greedy; j++) {
            assert_int_equal(ds_runner_argmax(logits, runner.n_vocab), p->greedy[j]);
            ds_runner_feed(&runner, &p->greedy[j], 1, true);
            logits = runner.logits;
        }
    }
    printf("note: qwen3moe in pieces of %u: off by %.2e (tolerance %.2e)\n", chunk, worst,
           golden->tol_logprob);
    assert_true(worst <= golden->tol_logprob);
    ds_runner_deinit(&runner);
}

static void the_golden_qwen3moe_is_met_in_one_piece_and_token_by_token(void **state)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file("gguf/qwen3moe.golden");
    struct ds_backend *backend;
    struct ds_golden *golden;

    (void) state;
    if (!path) {
        ds_golden_skip("qwen3moe against transformers");
        skip();
    }
    golden = ds_golden_load(path);
    assert_non_null(golden);
    backend = cpu_backend();
    run_golden(backend, golden, 1);
    run_golden(backend, golden, 300);
    backend->close(backend);
    (void) ds_golden_free(golden);
}

/* --- what files leave out --- */

/* The hyper-parameters of a deepseek2 file that says of its experts what these say. */
static struct ds_hyper deepseek_hyper(uint32_t n_experts, int gating, int n_groups)
{
    struct ds_tiny_options vocab = ds_tiny_options(DS_ARCH_QWEN3, DS_TYPE_F32);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        { "deepseek2.block_count", 2 },
        { "deepseek2.context_length", 64 },
        { "deepseek2.embedding_length", 16 },
        { "deepseek2.feed_forward_length", 32 },
        { "deepseek2.attention.head_count", 2 },
        { "deepseek2.attention.key_length", 24 },
        { "deepseek2.attention.value_length", 16 },
        { "deepseek2.attention.kv_lora_rank", 16 },
        { "deepseek2.rope.dimension_count", 8 },
        { "deepseek2.expert_count", n_experts },
        { "deepseek2.expert_used_count", 6 },
        { "deepseek2.expert_feed_forward_length", 16 },
        { "deepseek2.expert_shared_count", 2 },
    };
    uint64_t dims[] = { 16, vocab.n_vocab };
    float *embedding = calloc(dims[0] * dims[1], sizeof *embedding);
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_error error = { "" };
    struct ds_hyper hyper;
    int fd;

    assert_non_null(embedding);
    ds_gguf_writer_string(writer, "general.architecture", "deepseek2");
    for (unsigned i = 0; i < sizeof keys / sizeof keys[0]; i++)
        ds_gguf_writer_u32(writer, keys[i].key, keys[i].value);
    ds_gguf_writer_f32(writer, "deepseek2.attention.layer_norm_rms_epsilon", 1e-6f);
    if (gating >= 0)
        ds_gguf_writer_u32(writer, "deepseek2.expert_gating_func", (uint32_t) gating);
    if (n_groups >= 0)
        ds_gguf_writer_u32(writer, "deepseek2.expert_group_count", (uint32_t) n_groups);
    ds_tiny_vocab_write(writer, &vocab);
    ds_gguf_writer_floats(writer, "token_embd.weight", DS_TYPE_F32, 2, dims, embedding);
    fd = ds_gguf_writer_memfd(writer);
    if (ds_checkpoint_open(&checkpoint, &fd, 1, "deepseek", false, &error) != 0)
        fail_msg("%s", error.text);
    hyper = *ds_checkpoint_hyper(checkpoint);
    (void) ds_checkpoint_free(checkpoint);
    (void) close(fd);
    (void) ds_gguf_writer_free(writer);
    free(embedding);
    return hyper;
}

static void what_old_deepseek_files_leave_out_is_inferred(void **state)
{
    enum { SIGMOID_NUMBER = 2 };
    struct ds_hyper v3 = deepseek_hyper(256, SIGMOID_NUMBER, -1);
    struct ds_hyper v3_plain = deepseek_hyper(256, SIGMOID_NUMBER, 1);
    struct ds_hyper v2 = deepseek_hyper(160, -1, -1), lite = deepseek_hyper(64, 0, -1);

    (void) state;
    assert_int_equal(v3.gating, DS_GATING_SIGMOID);
    assert_int_equal(v3.n_expert_groups, 8);
    assert_int_equal(v3.n_expert_groups_used, 4);
    assert_true(v3.expert_groups_by_two);
    assert_int_equal(v3.shared_ffn_width, 2 * 16);
    assert_false(v3.expert_weights_norm);
    assert_true(v3.expert_weights_scale == 1.0f);
    assert_int_equal(v3_plain.n_expert_groups, 1); /* said is said */
    assert_int_equal(v2.gating, DS_GATING_SOFTMAX);
    assert_int_equal(v2.n_expert_groups, 8);
    assert_int_equal(v2.n_expert_groups_used, 3);
    assert_false(v2.expert_groups_by_two);
    assert_int_equal(lite.gating, DS_GATING_SOFTMAX);
    assert_int_equal(lite.n_expert_groups, 0);
}

/* --- files that contradict themselves --- */

static int load(int fd, struct ds_error *error)
{
    struct ds_backend *backend = ds_naive_backend_new();
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_model *model = NULL;
    int r;

    error->text[0] = '\0';
    r = ds_checkpoint_open(&checkpoint, &fd, 1, "tiny", false, error);
    if (r == 0)
        r = ds_model_load(&model, backend, checkpoint, 8, 4, NULL, NULL, error);
    (void) ds_model_free(model);
    (void) ds_checkpoint_free(checkpoint);
    backend->close(backend);
    return r;
}

static void expect_refusal(const struct ds_tiny_options *o, const char *key, uint32_t value,
                           const char *words, int code)
{
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    struct ds_error error;
    int fd, r;

    if (key)
        ds_gguf_writer_u32(writer, key, value);
    ds_tiny_model_write(writer, o);
    fd = ds_gguf_writer_memfd(writer);
    r = load(fd, &error);
    if (r != code || !strstr(error.text, words))
        fail_msg("%s %u: %d '%s', expected %d '%s'", key ? key : "-", value, r, error.text, code,
                 words);
    (void) close(fd);
    (void) ds_gguf_writer_free(writer);
}

static void keys_that_contradict_each_other_are_refused(void **state)
{
    static const struct {
        const char *key;
        uint32_t value;
        const char *words;
        int code;
    } cases[] = {
        { "qwen3moe.expert_gating_func", 4, "gating", -ENOTSUP },
        { "qwen3moe.expert_group_count", 4, "expert_group_used_count' is missing", -EINVAL },
        { "qwen3moe.expert_group_count", 7, "expert_group_used_count' is missing", -EINVAL },
        { "qwen3moe.leading_dense_block_count", 1, "layer 0 has experts, but key", -EINVAL },
        { "qwen3moe.leading_dense_block_count", 3, "leading_dense_block_count' is 3", -EINVAL },
        { "qwen3moe.nextn_predict_layers", 2, "leaves no layer", -EINVAL },
        { "qwen3moe.expert_shared_feed_forward_length", 32, "do not agree", -EINVAL },
        { "qwen3moe.expert_shared_count", 4000000000, "expert_shared_count' is 4000000000",
          -EINVAL },
        { "qwen3moe.expert_shared_count", 1000, "blk.0.ffn_gate_shexp.weight' is missing",
          -EINVAL },
    };
    struct ds_tiny_options right = ds_tiny_options(DS_ARCH_QWEN3MOE, DS_TYPE_F32), o = right;

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_refusal(&right, cases[i].key, cases[i].value, cases[i].words, cases[i].code);
    o.n_experts_used = 0;
    expect_refusal(&o, NULL, 0, "'qwen3moe.expert_used_count' is 0", -EINVAL);
    o.n_experts_used = 7;
    expect_refusal(&o, NULL, 0, "'qwen3moe.expert_used_count' is 7, possible is 1 to 6", -EINVAL);
    o = right;
    o.n_experts = 0;
    expect_refusal(&o, NULL, 0, "'qwen3moe.expert_count' is missing", -EINVAL);
    expect_refusal(&o, "qwen3moe.expert_count", 0, "expert_count is 0", -EINVAL);
    o = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_F32);
    expect_refusal(&o, "qwen2.expert_count", 8, "a mixture of 8 experts", -ENOTSUP);
}

static void groups_must_fit(void **state)
{
    static const struct {
        uint32_t count, used;
        const char *words;
    } cases[] = {
        { 4, 1, "does not divide" },
        { 3, 0, "not between 1" },
        { 3, 4, "not between 1" },
        { 6, 1, "hold fewer experts" },
        { 7, 1, "'qwen3moe.expert_group_count' is 7" },
        { 3, 1, NULL },
    };
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_QWEN3MOE, DS_TYPE_F32);

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ds_gguf_writer *writer = ds_gguf_writer_new();
        struct ds_error error;
        int fd, r;

        ds_gguf_writer_u32(writer, "qwen3moe.expert_group_count", cases[i].count);
        ds_gguf_writer_u32(writer, "qwen3moe.expert_group_used_count", cases[i].used);
        ds_tiny_model_write(writer, &o);
        fd = ds_gguf_writer_memfd(writer);
        r = load(fd, &error);
        assert_int_equal(r, cases[i].words ? -EINVAL : 0);
        if (cases[i].words && !strstr(error.text, cases[i].words))
            fail_msg("'%s', expected '%s'", error.text, cases[i].words);
        (void) close(fd);
        (void) ds_gguf_writer_free(writer);
    }
}

/* Overwrites what stands at the name in the file, from offset behind it on. */
static void expect_damage_named(const struct ds_tiny_options *o, const char *name, size_t offset,
                                const void *bytes, size_t n, const char *words, int code)
{
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    struct ds_error error;
    uint8_t *file, *at;
    size_t size;
    int fd, r;

    ds_tiny_model_write(writer, o);
    file = ds_gguf_writer_finish(writer, &size);
    at = memmem(file, size, name, strlen(name));
    assert_non_null(at);
    memcpy(at + strlen(name) + offset, bytes, n);
    fd = ds_memfd_of(file, size);
    r = load(fd, &error);
    if (r != code || !strstr(error.text, words))
        fail_msg("%s: %d '%s', expected %d '%s'", name, r, error.text, code, words);
    (void) close(fd);
    free(file);
    (void) ds_gguf_writer_free(writer);
}

static void tensors_that_contradict_the_keys_are_refused(void **state)
{
    static const uint64_t shape[] = { 32, 64, 6 }, fewer[] = { 64, 32, 5 };
    static const uint32_t f16 = DS_TYPE_F16;
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_QWEN3MOE, DS_TYPE_F32);

    (void) state;
    expect_damage_named(&o, "blk.1.ffn_up_exps.weight", 4, shape, sizeof shape,
                        "'blk.1.ffn_up_exps.weight' is 32 x 64 x 6, its keys want 64 x 32 x 6",
                        -EINVAL);
    expect_damage_named(&o, "blk.0.ffn_gate_exps.weight", 4, fewer, sizeof fewer,
                        "is 64 x 32 x 5, its keys want 64 x 32 x 6", -EINVAL);
    o.experts = DS_TINY_MERGED;
    expect_damage_named(&o, "blk.0.ffn_gate_up_exps.weight", 4, fewer, sizeof fewer,
                        "its keys want 64 x 64 x 6", -EINVAL);
    o.experts = DS_TINY_SEPARATE;
    expect_damage_named(&o, "blk.1.ffn_down.4.weight", (size_t) -1, "X", 1,
                        "'blk.1.ffn_down.4.weight' is missing", -EINVAL);
    expect_damage_named(&o, "blk.0.ffn_up.3.weight", 4 + 16, &f16, sizeof f16,
                        "'blk.0.ffn_up.3.weight' is of another type", -ENOTSUP);
}

static void tensors_that_no_key_speaks_of_are_refused(void **state)
{
    static const struct {
        enum ds_architecture architecture;
        const char *tensor, *words;
    } cases[] = {
        { DS_ARCH_QWEN3, "blk.1.ffn_gate_inp.weight",
          "layer 1 has experts (tensor 'ffn_gate_inp.weight'), but no key says how many" },
        { DS_ARCH_QWEN3MOE, "blk.1.ffn_gate_shexp.weight",
          "layer 1 has shared experts (tensor 'ffn_gate_shexp.weight'), but no key says how many" },
    };
    static const float values[64];

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ds_tiny_options o = ds_tiny_options(cases[i].architecture, DS_TYPE_F32);
        struct ds_gguf_writer *writer = ds_gguf_writer_new();
        uint64_t dims[] = { 64, 1 };
        struct ds_error error;
        int fd;

        ds_tiny_model_write(writer, &o);
        ds_gguf_writer_floats(writer, cases[i].tensor, DS_TYPE_F32, 2, dims, values);
        fd = ds_gguf_writer_memfd(writer);
        assert_int_equal(load(fd, &error), -EINVAL);
        if (!strstr(error.text, cases[i].words))
            fail_msg("'%s'", error.text);
        (void) close(fd);
        (void) ds_gguf_writer_free(writer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_are_the_same_in_all_their_forms),
        cmocka_unit_test(
            shared_experts_and_layers_without_experts_are_as_the_naive_backend_has_them),
        cmocka_unit_test(jobs_at_once_yield_what_each_yields_alone),
        cmocka_unit_test(the_golden_qwen3moe_is_met_in_one_piece_and_token_by_token),
        cmocka_unit_test(what_old_deepseek_files_leave_out_is_inferred),
        cmocka_unit_test(keys_that_contradict_each_other_are_refused),
        cmocka_unit_test(groups_must_fit),
        cmocka_unit_test(tensors_that_contradict_the_keys_are_refused),
        cmocka_unit_test(tensors_that_no_key_speaks_of_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
