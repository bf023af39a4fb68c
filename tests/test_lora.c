/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a model with an adapter computes what it would with the adapter merged into its weights,
 * whoever else is in the batch; a bad adapter costs one error and nothing else.
 * Method: random adapters on F32 models (golden ones and ones made here), their logits against
 * those of the merged file; jobs with three adapters, several scales and none through one
 * scheduler, byte for byte against each alone; the instruction sets against each other; adapter
 * files that lie in every way this format allows.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format/quant.h"
#include "tests/lib/golden.h"
#include "tests/lib/model_folder.h"
#include "tests/lib/naive_backend.h"
#include "tests/lib/serving.h"
#include "tests/lib/tiny_adapter.h"

enum { N_JOBS = 24, PROMPT = 40 };

static struct ds_backend *cpu_backend(const char *isa)
{
    struct ds_cpu_options options = { .n_threads = 2, .spin_usec = 50, .isa = isa };
    struct ds_backend *backend = NULL;

    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    return backend;
}

/* The adapter of fd on runner's model, ready to run. */
static struct ds_adapter *use_adapter(struct ds_runner *runner, int fd)
{
    struct ds_lora_file *file = NULL;
    struct ds_adapter *adapter = NULL;
    struct ds_error error = { "" };

    if (ds_lora_file_open(&file, &fd, NULL, 1, "adapter", &error) != 0 ||
        ds_adapter_new(&adapter, ds_model_adapters(runner->model), runner->checkpoint, file,
                       &error) != 0 ||
        ds_adapter_admit(adapter, &error) != 0)
        fail_msg("%s", error.text);
    (void) ds_lora_file_free(file);
    return adapter;
}

/* Log-probabilities of all rows of a prompt of PROMPT tokens. */
static float *prompt_logprobs(struct ds_runner *runner)
{
    size_t n = (size_t) PROMPT * runner->n_vocab;
    float *logprobs = malloc(n * sizeof *logprobs);
    uint32_t tokens[PROMPT];

    assert_non_null(logprobs);
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (i * 37 + 11) % runner->n_vocab;
    ds_runner_reset(runner);
    ds_runner_feed(runner, tokens, PROMPT, false);
    for (uint32_t i = 0; i < PROMPT; i++)
        for (uint32_t j = 0; j < runner->n_vocab; j++)
            logprobs[(size_t) i * runner->n_vocab + j] = (float) ds_logprob(
                runner->logits + (size_t) i * runner->n_vocab, runner->n_vocab, j);
    return logprobs;
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double worst = 0.0;

    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs((double) a[i] - (double) b[i]));
    return worst;
}

/* --- equal to merged weights --- */

static void check_merged(struct ds_backend *backend, int base_fd,
                         const struct ds_tiny_adapter *options, float scale, const char *what)
{
    int adapter_fd = ds_tiny_adapter_fd(base_fd, options);
    int merged_fd = ds_tiny_adapter_merge(base_fd, adapter_fd, scale);
    struct ds_runner base, merged;
    struct ds_adapter *adapter;
    float *expected, *plain, *adapted;
    double moved, off;
    size_t n;

    ds_runner_init(&base, backend, base_fd, 64, PROMPT);
    ds_runner_init(&merged, backend, merged_fd, 64, PROMPT);
    n = (size_t) PROMPT * base.n_vocab;
    expected = prompt_logprobs(&merged);
    plain = prompt_logprobs(&base);
    adapter = use_adapter(&base, adapter_fd);
    assert_true(ds_adapter_n_pairs(adapter) > 0 && ds_adapter_bytes(adapter) > 0);
    base.use = (struct ds_adapter_use){ adapter, scale };
    adapted = prompt_logprobs(&base);
    moved = largest_difference(plain, expected, n);
    off = largest_difference(adapted, expected, n);
    printf("note: %s: the adapter moves log-probabilities by up to %.2f, off by %.1e\n", what,
           moved, off);
    assert_true(moved > 0.3);
    assert_true(off < 2e-4);

    base.use.scale = 0.0f; /* nothing of it is left */
    free(adapted);
    adapted = prompt_logprobs(&base);
    assert_memory_equal(adapted, plain, n * sizeof *plain);
    free(adapted);
    free(plain);
    free(expected);
    (void) ds_adapter_free(adapter);
    ds_runner_deinit(&merged);
    ds_runner_deinit(&base);
    (void) close(merged_fd);
    (void) close(adapter_fd);
}

static void an_adapter_equals_merged_weights(void **state)
{
    static const enum ds_architecture architectures[] = { DS_ARCH_LLAMA, DS_ARCH_QWEN2,
                                                          DS_ARCH_QWEN3 };
    struct ds_backend *backends[] = { cpu_backend(NULL), ds_naive_backend_new() };
    struct ds_tiny_adapter adapters[] = {
        { .seed = 1, .rank = 8, .alpha = 16, .embedding = true },
        { .seed = 2, .rank = 3, .every = 2 },
        { .seed = 3, .rank = 32, .alpha = 32, .type = DS_TYPE_Q8_0, .embedding = true },
        { .seed = 4, .rank = 16, .alpha = 8, .type = DS_TYPE_F16, .every = 3 },
    };

    (void) state;
    for (unsigned b = 0; b < 2; b++) {
        for (unsigned i = 0; i < 3; i++) {
            struct ds_tiny_options model = ds_tiny_options(architectures[i], DS_TYPE_F32);
            int fd = ds_tiny_model_fd(&model);

            for (unsigned k = 0; k < 4; k++)
                check_merged(backends[b], fd, &adapters[k], k == 1 ? 1.5f : 1.0f,
                             backends[b]->name);
            (void) close(fd);
        }
        backends[b]->close(backends[b]);
    }
}

static void golden_models_with_an_adapter_equal_merged_ones(void **state)
{
    static const char *const models[] = { "gguf/llama-F32.gguf",
                                          "gguf/llama3rope-F32.gguf",
                                          "gguf/qwen2-F32.gguf",
                                          "gguf/qwen3-F32.gguf",
                                          "gguf/qwen3moe-F32.gguf",
                                          "gguf/deepseek-v2-lite-F32.gguf",
                                          "gguf/deepseek-v2-lite-kvb-F32.gguf",
                                          "gguf/deepseek-v3-F32.gguf" };
    struct ds_tiny_adapter options = {
        .seed = 9, .rank = 8, .alpha = 24, .embedding = true, .skip = "attn_kv_b"
    };
    struct ds_backend *backend;

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("adapters on the golden models");
        return;
    }
    backend = cpu_backend(NULL);
    for (unsigned i = 0; i < sizeof models / sizeof *models; i++) {
        char *path = ds_golden_file(models[i]);
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

        assert_true(fd >= 0);
        check_merged(backend, fd, &options, 1.0f, models[i]);
        (void) close(fd);
        free(path);
    }
    backend->close(backend);
}

static void all_instruction_sets_agree_bit_for_bit(void **state)
{
    static const char *const sets[] = { "portable", "avx2", "avx512" };
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_Q4_0);
    struct ds_tiny_options plain = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_F32);
    struct ds_tiny_adapter options = { .seed = 5, .rank = 5, .alpha = 5, .type = DS_TYPE_F16 };
    int fd = ds_tiny_model_fd(&model), shape_fd = ds_tiny_model_fd(&plain);
    int adapter_fd = ds_tiny_adapter_fd(shape_fd, &options);
    float *expected = NULL;

    (void) state;
    for (unsigned i = 0; i < 3; i++) {
        struct ds_cpu_options cpu = { .n_threads = 1 + i, .isa = sets[i] };
        struct ds_backend *backend = NULL;
        struct ds_runner runner;
        struct ds_adapter *adapter;
        float *got;

        if (ds_backend_cpu(&backend, &cpu) != 0) {
            printf("note: no %s here: not compared\n", sets[i]);
            continue;
        }
        ds_runner_init(&runner, backend, fd, 64, PROMPT);
        adapter = use_adapter(&runner, adapter_fd);
        runner.use = (struct ds_adapter_use){ adapter, 0.75f };
        got = prompt_logprobs(&runner);
        if (expected) {
            assert_memory_equal(got, expected, (size_t) PROMPT * runner.n_vocab * sizeof *got);
            free(got);
        } else {
            expected = got;
        }
        (void) ds_adapter_free(adapter);
        ds_runner_deinit(&runner);
        backend->close(backend);
    }
    free(expected);
    (void) close(adapter_fd);
    (void) close(shape_fd);
    (void) close(fd);
}

/* --- PEFT folders --- */

static const char *const peft_names[] = { "adapter_config.json", "adapter_model.safetensors" };

/* What comes of a folder on runner's model: 0 or an errno with the line in error. */
static int open_peft(struct ds_runner *runner, const char *config, int weights_fd,
                     struct ds_adapter **ret_adapter, struct ds_error *error)
{
    int fds[2] = { ds_memfd_of(config, strlen(config)), weights_fd };
    struct ds_lora_file *file = NULL;
    int r;

    assert_true(fds[0] >= 0);
    r = ds_lora_file_open(&file, fds, peft_names, 2, "french", error);
    if (r == 0)
        r = ds_adapter_new(ret_adapter, ds_model_adapters(runner->model), runner->checkpoint, file,
                           error);
    if (r == 0)
        r = ds_adapter_admit(*ret_adapter, error);
    (void) ds_lora_file_free(file);
    (void) close(fds[0]);
    return r;
}

static float *peft_logprobs(struct ds_runner *runner, const char *config, int weights_fd)
{
    struct ds_adapter *adapter = NULL;
    struct ds_error error = { "" };
    float *logprobs;

    if (open_peft(runner, config, weights_fd, &adapter, &error) != 0)
        fail_msg("%s", error.text);
    runner->use = (struct ds_adapter_use){ adapter, 1.0f };
    logprobs = prompt_logprobs(runner);
    runner->use = (struct ds_adapter_use){ NULL, 0.0f };
    (void) ds_adapter_free(adapter);
    return logprobs;
}

static void a_peft_folder_equals_the_gguf_form(void **state)
{
    static const enum ds_architecture architectures[] = { DS_ARCH_LLAMA, DS_ARCH_QWEN2,
                                                          DS_ARCH_QWEN3 };
    /* three ways to say a scale of 2; the last for a rank of 16, where 8 = 2 sqrt(16) */
    static const char *const configs[] = {
        "{\"peft_type\":\"LORA\",\"r\":16,\"lora_alpha\":32,\"bias\":\"none\","
        "\"use_rslora\":false,\"fan_in_fan_out\":true,\"modules_to_save\":null,"
        "\"target_modules\":[\"q_proj\"],\"rank_pattern\":{},\"alpha_pattern\":{}}",
        "{\"peft_type\":\"LORA\",\"r\":16,\"lora_alpha\":8,\"use_rslora\":true}",
        "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":1,\"rank_pattern\":{\"q_proj\":16,"
        "\"k_proj\":16,\"v_proj\":16,\"o_proj\":16,\"mlp\\\\.gate_proj\":16,\"mlp.up_proj\":16,"
        "\"model.layers.0.mlp.down_proj\":16,\"model.layers.1.mlp.down_proj\":16,"
        "\"lm_head\":16,\"embed_tokens\":16},\"alpha_pattern\":{\"q_proj\":32,\"k_proj\":32,"
        "\"v_proj\":32,\"o_proj\":32,\"gate_proj\":32,\"up_proj\":32,\"down_proj\":32,"
        "\"lm_head\":32,\"embed_tokens\":32}}",
    };
    struct ds_tiny_adapter options = { .seed = 6, .rank = 16, .alpha = 32, .embedding = true };
    struct ds_backend *backend = cpu_backend(NULL);

    (void) state;
    for (unsigned i = 0; i < 3; i++) {
        struct ds_tiny_options model = ds_tiny_options(architectures[i], DS_TYPE_F32);
        int fd = ds_tiny_model_fd(&model), gguf_fd = ds_tiny_adapter_fd(fd, &options);
        int peft_fd = ds_tiny_peft_fd(fd, &options, NULL);
        struct ds_runner runner;
        struct ds_adapter *adapter;
        float *expected;

        ds_runner_init(&runner, backend, fd, 64, PROMPT);
        adapter = use_adapter(&runner, gguf_fd);
        runner.use = (struct ds_adapter_use){ adapter, 1.0f };
        expected = prompt_logprobs(&runner);
        (void) ds_adapter_free(adapter);
        for (unsigned k = 0; k < 3; k++) {
            float *got = peft_logprobs(&runner, configs[k], peft_fd);

            assert_memory_equal(got, expected, (size_t) PROMPT * runner.n_vocab * sizeof *got);
            free(got);
        }
        free(expected);
        ds_runner_deinit(&runner);
        (void) close(peft_fd);
        (void) close(gguf_fd);
        (void) close(fd);
    }
    backend->close(backend);
}

/* The same PEFT folder on both forms of a golden model: one has its rows turned, one has not. */
static void a_peft_folder_fits_both_forms_of_a_model(void **state)
{
    static const char *const models[] = { "llama", "qwen2", "qwen3", "llama3rope" };
    struct ds_tiny_adapter options = { .seed = 7, .rank = 8, .alpha = 16 };
    const char *config = "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16}";
    struct ds_backend *backend;

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("PEFT folders on the golden models");
        return;
    }
    backend = cpu_backend(NULL);
    for (unsigned i = 0; i < sizeof models / sizeof *models; i++) {
        struct ds_checkpoint *checkpoint = NULL;
        struct ds_model_folder folder;
        struct ds_runner gguf, hf;
        struct ds_error error = { "" };
        char path[128], *full;
        float *a, *b;
        double off;
        int fd, peft_fd;

        (void) snprintf(path, sizeof path, "gguf/%s-F32.gguf", models[i]);
        full = ds_golden_file(path);
        fd = full ? open(full, O_RDONLY | O_CLOEXEC) : -1;
        assert_true(fd >= 0);
        free(full);
        (void) snprintf(path, sizeof path, "hf/%s", models[i]);
        full = ds_golden_file(path);
        assert_non_null(full);
        ds_model_folder_open(&folder, full);
        if (ds_checkpoint_open_named(&checkpoint, folder.fds, (const char *const *) folder.names,
                                     folder.n, "folder", false, &error) != 0)
            fail_msg("%s", error.text);
        ds_runner_init_checkpoint(&hf, backend, checkpoint, 64, PROMPT, true);
        ds_runner_init(&gguf, backend, fd, 64, PROMPT);
        peft_fd = ds_tiny_peft_fd(fd, &options, NULL);
        a = peft_logprobs(&gguf, config, peft_fd);
        b = peft_logprobs(&hf, config, peft_fd);
        off = largest_difference(a, b, (size_t) PROMPT * gguf.n_vocab);
        printf("note: %s: the forms differ by %.1e with the adapter\n", models[i], off);
        assert_true(off < 2e-4);
        free(a);
        free(b);
        ds_runner_deinit(&hf);
        ds_runner_deinit(&gguf);
        ds_model_folder_close(&folder);
        free(full);
        (void) close(peft_fd);
        (void) close(fd);
    }
    backend->close(backend);
}

#define PEFT_GOOD "\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8"

static void peft_folders_that_ask_for_more_are_refused_by_name(void **state)
{
    static const struct {
        const char *config, *extra;
        int code;
        const char *says;
    } lies[] = {
        { "{" PEFT_GOOD ",\"use_dora\":true}", NULL, -ENOTSUP, "'use_dora'" },
        { "{" PEFT_GOOD ",\"bias\":\"lora_only\"}", NULL, -ENOTSUP, "'bias'" },
        { "{" PEFT_GOOD ",\"modules_to_save\":[\"lm_head\"]}", NULL, -ENOTSUP,
          "'modules_to_save'" },
        { "{" PEFT_GOOD ",\"lora_bias\":true}", NULL, -ENOTSUP, "'lora_bias'" },
        { "{" PEFT_GOOD ",\"alpha_pattern\":{\".*q_proj\":3}}", NULL, -ENOTSUP, "'.*q_proj'" },
        { "{" PEFT_GOOD ",\"alpha_pattern\":{\"q_proj\":-3}}", NULL, -EINVAL, "'alpha_pattern'" },
        { "{" PEFT_GOOD ",\"alpha_pattern\":7}", NULL, -EINVAL, "'alpha_pattern'" },
        { "{" PEFT_GOOD ",\"rank_pattern\":{\"v_proj\":5}}", NULL, -EINVAL,
          "do not belong together" },
        { "{\"peft_type\":\"IA3\"}", NULL, -ENOTSUP, "'peft_type'" },
        { "{\"peft_type\":\"LORA\",\"lora_alpha\":8}", NULL, -EINVAL, "'r'" },
        { "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":\"x\"}", NULL, -EINVAL, "'lora_alpha'" },
        { "{\"peft_type\":\"LORA\",\"r\":1e3,\"lora_alpha\":8}", NULL, -EINVAL, "'r'" },
        { "{" PEFT_GOOD, NULL, -EBADMSG, "adapter_config.json" },
        { "[]", NULL, -ENOTSUP, "'peft_type'" },
        { "{" PEFT_GOOD "}", "base_model.model.model.norm.weight", -ENOTSUP, "model.norm.weight" },
        { "{" PEFT_GOOD "}",
          "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", -ENOTSUP,
          "lora_magnitude_vector" },
        { "{" PEFT_GOOD "}", "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight",
          -EINVAL, "stands without" },
        { "{" PEFT_GOOD "}", "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
          -ENOTSUP, "lora_C" },
    };
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_tiny_options larger = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_tiny_adapter options = { .seed = 8, .rank = 4, .every = 3 };
    struct ds_backend *backend = cpu_backend(NULL);
    int fd = ds_tiny_model_fd(&model), other_fd, peft_fd, alone;
    struct ds_adapter *adapter = NULL;
    struct ds_lora_file *file = NULL;
    struct ds_runner runner;
    struct ds_error error;

    (void) state;
    ds_runner_init(&runner, backend, fd, 64, PROMPT);
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        int r;

        error.text[0] = '\0';
        peft_fd = ds_tiny_peft_fd(fd, &options, lies[i].extra);
        r = open_peft(&runner, lies[i].config, peft_fd, &adapter, &error);
        if (r != lies[i].code || !strstr(error.text, lies[i].says) || !strstr(error.text, "french"))
            fail_msg("%d: '%s', expected %d: '%s'", r, error.text, lies[i].code, lies[i].says);
        (void) close(peft_fd);
    }
    larger.width = 96;
    other_fd = ds_tiny_model_fd(&larger);
    peft_fd = ds_tiny_peft_fd(other_fd, &options, NULL);
    assert_int_equal(open_peft(&runner, "{" PEFT_GOOD "}", peft_fd, &adapter, &error), -EINVAL);
    assert_non_null(strstr(error.text, "belongs to another model"));
    assert_non_null(strstr(error.text, "'base_model.model.model.layers."));
    (void) close(other_fd);
    alone = ds_memfd_of("{}", 2);
    assert_int_equal(ds_lora_file_open(&file, &alone, peft_names, 1, "french", &error), -EINVAL);
    assert_non_null(strstr(error.text, "adapter_model.safetensors"));
    (void) close(alone);
    (void) close(peft_fd);
    ds_runner_deinit(&runner);
    (void) close(fd);
    backend->close(backend);
}

/* --- in company --- */

struct company {
    struct ds_backend *backend;
    struct ds_serving serving;
    struct ds_adapter *adapters[3];
    struct ds_spec specs[N_JOBS];
    struct ds_answer expected[N_JOBS];
};

static int set_up(void **state)
{
    static const float scales[] = { 1.0f, 0.5f, 1.0f, -1.25f };
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);
    struct ds_tiny_options plain = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct company *c = calloc(1, sizeof *c);
    int shape_fd = ds_tiny_model_fd(&plain);

    assert_non_null(c);
    c->backend = cpu_backend(NULL);
    ds_serving_init(&c->serving, c->backend, &model);
    for (unsigned i = 0; i < 3; i++) {
        struct ds_tiny_adapter options = {
            .seed = 20 + i, .rank = 4 << i, .alpha = 16, .every = 1 + i, .embedding = i == 1
        };
        int fd = ds_tiny_adapter_fd(shape_fd, &options);

        c->adapters[i] = use_adapter(&c->serving.runner, fd);
        (void) close(fd);
    }
    for (unsigned i = 0; i < N_JOBS; i++) {
        c->specs[i] = ds_spec_random(500 + i, c->serving.runner.n_vocab);
        c->specs[i].uid = i % 2;
        if (i % 4) {
            c->specs[i].adapter = c->adapters[i % 4 - 1];
            c->specs[i].adapter_scale = scales[i / 4 % 4];
        }
        ds_serving_alone(&c->serving, &c->specs[i], &c->expected[i]);
    }
    (void) close(shape_fd);
    *state = c;
    return 0;
}

static int tear_down(void **state)
{
    struct company *c = *state;

    for (unsigned i = 0; i < 3; i++)
        (void) ds_adapter_free(c->adapters[i]);
    ds_serving_deinit(&c->serving);
    c->backend->close(c->backend);
    free(c);
    return 0;
}

static void run_company(struct company *c, const struct ds_scheduler_options *options,
                        unsigned stride)
{
    ds_serving_start(&c->serving, options, N_JOBS);
    for (unsigned i = 0; i < N_JOBS; i++) {
        unsigned job = i * stride % N_JOBS;

        ds_serving_add(&c->serving, &c->specs[job], job);
        if (i % 5 == 4)
            (void) ds_serving_step(&c->serving);
    }
    ds_serving_run(&c->serving);
    for (unsigned i = 0; i < N_JOBS; i++)
        ds_assert_same_answer(&c->serving.answers[i], &c->expected[i]);
}

static void three_adapters_and_none_yield_in_one_batch_what_each_yields_alone(void **state)
{
    struct company *c = *state;
    struct ds_scheduler_options options = ds_serving_options();
    unsigned differing = 0;

    run_company(c, &options, 1);
    run_company(c, &options, 7); /* in another order */
    options.batch_tokens_max = 13;
    run_company(c, &options, 5); /* prompts cut small */
    options = ds_serving_options();
    options.n_blocks = 14; /* put back and computed again */
    run_company(c, &options, 11);
    for (unsigned i = 0; i < N_JOBS; i++) {
        struct ds_spec bare = c->specs[i];
        struct ds_answer answer;

        bare.adapter = NULL;
        ds_serving_alone(&c->serving, &bare, &answer);
        differing += c->specs[i].adapter &&
                     (answer.n_tokens != c->expected[i].n_tokens ||
                      memcmp(answer.tokens, c->expected[i].tokens, sizeof answer.tokens) != 0);
    }
    printf("note: %u of 18 answers with adapters differ from those without\n", differing);
    assert_true(differing >= 12);
}

static void the_prefix_cache_keeps_adapters_and_scales_apart(void **state)
{
    struct company *c = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec specs[5];
    struct ds_answer expected[5];
    /* none, adapter 0, adapter 0 at half, adapter 1; the last as the second: only it finds blocks
     */
    struct ds_adapter *adapters[] = { NULL, c->adapters[0], c->adapters[0], c->adapters[1],
                                      c->adapters[0] };
    const float scales[] = { 0, 1, 0.5f, 1, 1 };

    ds_serving_start(&c->serving, &options, 5);
    for (unsigned i = 0; i < 5; i++) {
        specs[i] = (struct ds_spec){
            .n_prompt = 100,
            .max_tokens = 8,
            .ignore_eos = true,
            .adapter = adapters[i],
            .adapter_scale = scales[i],
            .sampling = { .top_p = 1.0f, .typical_p = 1.0f, .repeat_penalty = 1.0f }
        };
        for (uint32_t t = 0; t < 100; t++)
            specs[i].tokens[t] = (t * 13 + 3) % 300;
        ds_serving_alone(&c->serving, &specs[i], &expected[i]);
        ds_serving_add(&c->serving, &specs[i], i);
        ds_serving_run(&c->serving);
        ds_assert_same_answer(&c->serving.answers[i], &expected[i]);
        assert_int_equal(c->serving.answers[i].n_cached, i == 4 ? 96 : 0);
    }
    specs[1].adapter_scale = 0.0f; /* as without: shares with the first */
    ds_serving_start(&c->serving, &options, 2);
    ds_serving_add(&c->serving, &specs[0], 0);
    ds_serving_run(&c->serving);
    ds_serving_add(&c->serving, &specs[1], 1);
    ds_serving_run(&c->serving);
    ds_assert_same_answer(&c->serving.answers[1], &expected[0]);
    assert_int_equal(c->serving.answers[1].n_cached, 96);
}

static void a_scale_that_is_no_number_is_refused(void **state)
{
    struct company *c = *state;
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_spec spec = c->specs[1];
    struct ds_error error = { "" };
    struct ds_job job;

    ds_serving_start(&c->serving, &options, 1);
    spec.adapter_scale = NAN;
    job = ds_spec_job(&spec, 0);
    assert_int_equal(ds_scheduler_add(c->serving.scheduler, &job, &error), -EINVAL);
    assert_non_null(strstr(error.text, "scale"));
}

/* --- files that lie --- */

static void refuse(struct ds_runner *runner, int fd, int code, const char *says)
{
    struct ds_lora_file *file = NULL;
    struct ds_adapter *adapter = NULL;
    struct ds_error error = { "" };
    int r;

    r = ds_lora_file_open(&file, &fd, NULL, 1, "french.gguf", &error);
    if (r == 0)
        r = ds_adapter_new(&adapter, ds_model_adapters(runner->model), runner->checkpoint, file,
                           &error);
    if (r != code || !strstr(error.text, says) || !strstr(error.text, "french.gguf"))
        fail_msg("%d: '%s', expected %d: '%s'", r, error.text, code, says);
    (void) ds_lora_file_free(file);
    (void) close(fd);
}

struct lie {
    const char *kind, *type, *name_a, *name_b;
    uint64_t a[3], b[3];
    unsigned n_dims;
    float value, alpha;
    int code;
    const char *says;
};

static int lying_fd(const struct lie *lie)
{
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    float *values = malloc(4096 * sizeof *values);
    int fd;

    assert_non_null(values);
    for (unsigned i = 0; i < 4096; i++)
        values[i] = lie->value;
    ds_gguf_writer_string(writer, "general.type", lie->kind ? lie->kind : "adapter");
    ds_gguf_writer_string(writer, "general.architecture", "llama");
    ds_gguf_writer_string(writer, "adapter.type", lie->type ? lie->type : "lora");
    ds_gguf_writer_f32(writer, "adapter.lora.alpha", lie->alpha);
    if (lie->name_a)
        ds_gguf_writer_floats(writer, lie->name_a, DS_TYPE_F32, lie->n_dims ? lie->n_dims : 2,
                              lie->a, values);
    if (lie->name_b)
        ds_gguf_writer_floats(writer, lie->name_b, DS_TYPE_F32, lie->n_dims ? lie->n_dims : 2,
                              lie->b, values);
    fd = ds_gguf_writer_memfd(writer);
    (void) ds_gguf_writer_free(writer);
    free(values);
    return fd;
}

#define Q_A "blk.0.attn_q.weight.lora_a"
#define Q_B "blk.0.attn_q.weight.lora_b"

/* clang-format off */
static const struct lie lies[] = {
    { .kind = "model", .code = -EINVAL, .says = "is no adapter" },
    { .type = "ia3", .code = -ENOTSUP, .says = "'ia3'" },
    { .type = "ia3\n\033[2J", .code = -ENOTSUP, .says = "'ia3??[2J'" },
    { .code = -EINVAL, .says = "holds no tensors" },
    { .name_a = Q_A, .a = { 64, 4 }, .code = -EINVAL, .says = "'" Q_A "' stands without" },
    { .name_b = Q_B, .b = { 4, 64 }, .code = -EINVAL, .says = "'" Q_B "' stands without" },
    { .name_a = Q_A, .name_b = "blk.0.attn_k.weight.lora_b", .a = { 64, 4 }, .b = { 4, 32 },
      .code = -EINVAL, .says = "stands without" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 64, 4 }, .b = { 8, 64 }, .code = -EINVAL,
      .says = "no rank in common" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 4, 64 }, .b = { 64, 4 }, .code = -EINVAL,
      .says = "another model" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 48, 4 }, .b = { 4, 64 }, .code = -EINVAL,
      .says = "made for 48 inputs where the model model has 64" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 64, 4 }, .b = { 4, 65 }, .code = -EINVAL,
      .says = "made for 65 outputs where the model model has 64" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 64, 4, 2 }, .b = { 4, 64, 2 }, .n_dims = 3,
      .code = -ENOTSUP, .says = "experts" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 64, 4 }, .b = { 4, 64 }, .value = NAN,
      .code = -EBADMSG, .says = "not finite" },
    { .name_a = Q_A, .name_b = Q_B, .a = { 64, 4 }, .b = { 4, 64 }, .alpha = INFINITY,
      .code = -EINVAL, .says = "adapter.lora.alpha" },
    { .name_a = "blk.9.attn_q.weight.lora_a", .name_b = "blk.9.attn_q.weight.lora_b",
      .a = { 64, 4 }, .b = { 4, 64 }, .code = -EINVAL, .says = "does not have" },
    { .name_a = "blk.0.attn_norm.weight", .a = { 64, 1 }, .code = -ENOTSUP,
      .says = "'blk.0.attn_norm.weight'" },
    { .name_a = "blk.0.attn_norm.weight.lora_a", .name_b = "blk.0.attn_norm.weight.lora_b",
      .a = { 1, 1 }, .b = { 1, 64 }, .code = -ENOTSUP, .says = "cannot be adapted" },
    { .name_a = "blk.0.attn_kv_b.weight.lora_a", .name_b = "blk.0.attn_kv_b.weight.lora_b",
      .a = { 64, 4 }, .b = { 4, 64 }, .code = -ENOTSUP, .says = "cannot be adapted" },
    { .name_a = ".lora_a", .name_b = ".lora_b", .a = { 1, 1 }, .b = { 1, 1 }, .code = -ENOTSUP,
      .says = "no part of a LoRA pair" },
    { .name_a = "token_embd.weight.lora_a", .name_b = "token_embd.weight.lora_b", .a = { 4, 64 },
      .b = { 4, 64 }, .code = -EINVAL, .says = "tokens" },
};
/* clang-format on */

static void adapters_that_do_not_fit_are_refused_by_name(void **state)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_tiny_adapter other = { .seed = 1, .rank = 4, .architecture = "qwen2" };
    struct ds_backend *backend = cpu_backend(NULL);
    int fd = ds_tiny_model_fd(&options);
    struct ds_runner runner;

    (void) state;
    ds_runner_init(&runner, backend, fd, 64, PROMPT);
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++)
        refuse(&runner, lying_fd(&lies[i]), lies[i].code, lies[i].says);
    refuse(&runner, ds_tiny_adapter_fd(fd, &other), -EINVAL, "'qwen2'");
    refuse(&runner, ds_memfd_of("GGUF", 4), -EBADMSG, "");
    ds_runner_deinit(&runner); /* asserts that no adapter is left */
    (void) close(fd);
    backend->close(backend);
}

/* Every byte of a good file's front, damaged: refused or run, never more. */
static void damaged_adapters_never_do_worse_than_fail(void **state)
{
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_tiny_adapter options = { .seed = 1, .rank = 2, .every = 5 };
    struct ds_backend *backend = cpu_backend(NULL);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    int fd = ds_tiny_model_fd(&model);
    struct ds_runner runner;
    unsigned refused = 0, taken = 0;
    uint8_t *bytes;
    size_t size;

    (void) state;
    ds_runner_init(&runner, backend, fd, 64, PROMPT);
    ds_tiny_adapter_write(writer, fd, &options);
    bytes = ds_gguf_writer_finish(writer, &size);
    for (size_t at = 0; at < size && at < 700; at++) {
        struct ds_lora_file *file = NULL;
        struct ds_adapter *adapter = NULL;
        struct ds_error error = { "" };
        uint8_t kept = bytes[at];
        int damaged, r;

        bytes[at] ^= (uint8_t) (1 << at % 8 | 0x80);
        damaged = ds_memfd_of(bytes, at % 3 ? size : size - at);
        bytes[at] = kept;
        r = ds_lora_file_open(&file, &damaged, NULL, 1, "damaged", &error);
        if (r == 0)
            r = ds_adapter_new(&adapter, ds_model_adapters(runner.model), runner.checkpoint, file,
                               &error);
        assert_true(r == 0 || error.text[0]);
        taken += r == 0;
        refused += r != 0;
        (void) ds_adapter_free(adapter);
        (void) ds_lora_file_free(file);
        (void) close(damaged);
    }
    printf("note: %u refused, %u taken\n", refused, taken);
    assert_true(refused > 300);
    ds_runner_deinit(&runner);
    (void) ds_gguf_writer_free(writer);
    free(bytes);
    (void) close(fd);
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_adapter_equals_merged_weights),
        cmocka_unit_test(golden_models_with_an_adapter_equal_merged_ones),
        cmocka_unit_test(all_instruction_sets_agree_bit_for_bit),
        cmocka_unit_test(a_peft_folder_equals_the_gguf_form),
        cmocka_unit_test(a_peft_folder_fits_both_forms_of_a_model),
        cmocka_unit_test(peft_folders_that_ask_for_more_are_refused_by_name),
        cmocka_unit_test_setup_teardown(
            three_adapters_and_none_yield_in_one_batch_what_each_yields_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_prefix_cache_keeps_adapters_and_scales_apart, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_scale_that_is_no_number_is_refused, set_up, tear_down),
        cmocka_unit_test(adapters_that_do_not_fit_are_refused_by_name),
        cmocka_unit_test(damaged_adapters_never_do_worse_than_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
