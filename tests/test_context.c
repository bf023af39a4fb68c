/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a context beyond the model's own is reached by the scaling its file names, or refused.
 * Method: tiny models with and without scaling through a whole load; hyper-parameters before and
 * after; a stretched model against one whose file says the same.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/link_model.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/tiny_model.h"

static struct ds_checkpoint *open_tiny(enum ds_rope_scaling scaling)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_error error = { "" };
    int fd;

    options.rope_scaling = scaling;
    fd = ds_tiny_model_fd(&options);
    assert_true(fd >= 0);
    assert_int_equal(ds_checkpoint_open(&checkpoint, &fd, 1, "tiny", false, &error), 0);
    (void) close(fd);
    return checkpoint;
}

static void a_file_without_scaling_goes_no_further_than_it_says(void **state)
{
    struct ds_checkpoint *checkpoint = open_tiny(DS_ROPE_NONE);
    struct ds_error error = { "" };

    (void) state;
    assert_int_equal(ds_checkpoint_stretch(checkpoint, 512, &error), 0);
    assert_int_equal(ds_checkpoint_stretch(checkpoint, 513, &error), -EINVAL);
    assert_non_null(strstr(error.text, "tiny"));
    assert_non_null(strstr(error.text, "513"));
    assert_non_null(strstr(error.text, "512"));
    assert_int_equal(ds_checkpoint_hyper(checkpoint)->context, 512);
    (void) ds_checkpoint_free(checkpoint);
}

static void scaling_is_stretched_as_far_as_needed(void **state)
{
    static const enum ds_rope_scaling scalings[] = { DS_ROPE_LINEAR, DS_ROPE_YARN };

    (void) state;
    for (unsigned i = 0; i < 2; i++) {
        struct ds_checkpoint *checkpoint = open_tiny(scalings[i]);
        const struct ds_hyper *hyper = ds_checkpoint_hyper(checkpoint);
        uint32_t original = hyper->rope_original_context;
        struct ds_error error = { "" };

        assert_true(hyper->rope_factor == 4.0f);
        assert_int_equal(ds_checkpoint_stretch(checkpoint, 300, &error), 0);
        assert_true(hyper->rope_factor == 4.0f && hyper->context == 512);
        assert_int_equal(ds_checkpoint_stretch(checkpoint, 8 * original, &error), 0);
        assert_true(hyper->rope_factor == 8.0f && hyper->context == 8 * original);
        assert_int_equal(ds_checkpoint_stretch(checkpoint, 65 * original, &error), -EINVAL);
        assert_non_null(strstr(error.text, "ask for less"));
        assert_int_equal(hyper->context, 8 * original);
        (void) ds_checkpoint_free(checkpoint);
    }
}

struct load {
    struct ds_backend *backend;
    struct ds_memory *memory;
    struct ds_link_environment environment;
};

static int open_model(struct load *load, enum ds_rope_scaling scaling, uint32_t context,
                      uint64_t kv_bytes, struct ds_link_model **ret_model, struct ds_error *error)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_link_model_spec spec = { .id = 1,
                                       .name = "tiny",
                                       .n_fds = 1,
                                       .context = context,
                                       .demand_context = true,
                                       .kv_bytes = kv_bytes };
    int fd, r;

    options.rope_scaling = scaling;
    fd = ds_tiny_model_fd(&options);
    assert_true(fd >= 0);
    spec.fds = &fd;
    r = ds_link_model_open(ret_model, &spec, &load->environment, NULL, NULL, error);
    (void) close(fd);
    return r;
}

static void a_load_gets_the_context_it_demands_or_an_error(void **state)
{
    struct ds_cpu_options cpu = { .n_threads = 1, .spin_usec = 0 };
    struct ds_link_model *model = NULL;
    struct ds_error error = { "" };
    struct load load = { 0 };
    Ds__ModelInfo info;

    (void) state;
    assert_int_equal(ds_backend_cpu(&load.backend, &cpu), 0);
    assert_int_equal(ds_memory_new(&load.memory, ""), 0);
    load.environment = (struct ds_link_environment){
        .backend = load.backend, .memory = load.memory, .batch_tokens_max = 64, .sequences_max = 4
    };
    assert_int_equal(open_model(&load, DS_ROPE_YARN, 2048, 0, &model, &error), 0);
    ds_link_model_info(model, load.backend, &info);
    assert_int_equal(info.context, 2048);
    assert_true(info.kv_bytes >= 2048ull * 2 * 2 * 2 * 16 * 4); /* layers, k and v, heads, F32 */
    model = ds_link_model_free(model);

    assert_int_equal(open_model(&load, DS_ROPE_NONE, 2048, 0, &model, &error), -EINVAL);
    assert_non_null(strstr(error.text, "names no scaling"));
    assert_int_equal(open_model(&load, DS_ROPE_YARN, 4096, 256 << 10, &model, &error), -ENOMEM);
    assert_non_null(strstr(error.text, "4096"));
    assert_non_null(strstr(error.text, "kv_bytes"));
    assert_int_equal(open_model(&load, DS_ROPE_NONE, 1, 0, &model, &error), -EINVAL);
    assert_non_null(strstr(error.text, "context of 1 position"));
    assert_null(model);
    (void) ds_memory_free(load.memory);
    load.backend->close(load.backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_without_scaling_goes_no_further_than_it_says),
        cmocka_unit_test(scaling_is_stretched_as_far_as_needed),
        cmocka_unit_test(a_load_gets_the_context_it_demands_or_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
