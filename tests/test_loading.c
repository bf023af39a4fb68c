/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a model loaded by any number of threads is the same to the bit; a file that is cut short
 * while it is read costs one clear error and nothing else; a load can be given up.
 * Method: tiny models in memfds, which raise SIGBUS like any file; the progress callback, called
 * first before any weight is filled, does the damage.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "engine/cpu/panel.h"
#include "engine/format/mapping.h"
#include "proto/base.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/tiny_model.h"

static struct ds_backend *new_backend(unsigned n_threads)
{
    struct ds_cpu_options options = { .n_threads = n_threads };
    struct ds_backend *backend = NULL;

    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    return backend;
}

static void any_number_of_threads_makes_the_same_model(void **state)
{
    static const unsigned n_threads[] = { 1, 2, 8, 64 };
    static const uint32_t types[] = { DS_TYPE_Q4_K, DS_TYPE_Q8_0, DS_TYPE_F16 };
    static const uint32_t prompt[] = { 5, 77, 300, 12, 9, 140 };

    (void) state;
    for (unsigned t = 0; t < sizeof types / sizeof *types; t++) {
        struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN3MOE, types[t]);
        int fd;
        float *expected = NULL;
        size_t bytes = 0;

        options.ffn_width = 1024; /* several pieces a matrix */
        options.n_vocab = 2000;
        fd = ds_tiny_model_fd(&options);
        assert_true(fd >= 0);
        for (unsigned i = 0; i < sizeof n_threads / sizeof *n_threads; i++) {
            struct ds_backend *backend = new_backend(n_threads[i]);
            struct ds_runner runner;

            backend->stand_back = i % 2;
            ds_runner_init(&runner, backend, fd, 64, 8);
            ds_runner_feed(&runner, prompt, 6, false);
            bytes = (size_t) 6 * runner.n_vocab * sizeof(float);
            if (!expected) {
                expected = malloc(bytes);
                assert_non_null(expected);
                memcpy(expected, runner.logits, bytes);
            }
            assert_memory_equal(runner.logits, expected, bytes);
            ds_runner_deinit(&runner);
            backend->close(backend);
        }
        free(expected);
        (void) close(fd);
    }
}

/* --- progress that does something --- */

struct deed {
    int fd;
    off_t size; /* the file is cut to this at the first call; < 0: it is not */
    int answer;
    unsigned n_calls;
    double last;
};

static int do_it(void *arg, double fraction)
{
    struct deed *deed = arg;

    if (deed->n_calls++ == 0 && deed->size >= 0)
        assert_int_equal(ftruncate(deed->fd, deed->size), 0);
    assert_true(fraction >= deed->last);
    deed->last = fraction;
    return deed->answer;
}

static int load(struct ds_backend *backend, struct deed *deed, struct ds_error *error)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q8_0);
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_model *model = NULL;
    int r;

    deed->fd = ds_tiny_model_fd(&options);
    assert_int_equal(ds_checkpoint_open(&checkpoint, &deed->fd, 1, "victim.gguf", false, error), 0);
    r = ds_model_load(&model, backend, checkpoint, 8, 1, do_it, deed, error);
    (void) ds_model_free(model);
    (void) ds_checkpoint_free(checkpoint);
    (void) close(deed->fd);
    return r;
}

static void a_file_cut_short_while_it_is_loaded_is_one_error(void **state)
{
    static const off_t sizes[] = { 0, 4096, 40000 };
    struct ds_backend *backend = new_backend(2);
    struct ds_error error;

    (void) state;
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct deed cut = { .size = sizes[i] }, none = { .size = -1 };

        error = (struct ds_error){ "" };
        assert_int_equal(load(backend, &cut, &error), -EIO);
        assert_non_null(strstr(error.text, "victim.gguf: was changed while it was read"));
        assert_int_equal(load(backend, &none, &error), 0); /* the next one has no harm of it */
        assert_true(none.last == 1.0);
    }
    backend->close(backend);
}

static void a_load_can_be_given_up(void **state)
{
    struct deed deed = { .size = -1, .answer = 1 };
    struct ds_backend *backend = new_backend(2);
    struct ds_error error = { "" };

    (void) state;
    assert_int_equal(load(backend, &deed, &error), -ECANCELED);
    assert_non_null(strstr(error.text, "victim.gguf: loading was given up"));
    deed = (struct deed){ .size = -1 };
    assert_int_equal(load(backend, &deed, &error), 0);
    backend->close(backend);
}

/* --- the mapping itself --- */

static void a_lost_mapping_reads_as_zeros_and_says_so(void **state)
{
    int fd = memfd_create("lost", MFD_CLOEXEC);
    struct ds_error error = { "" };
    const volatile char *data;

    (void) state;
    assert_int_equal(ftruncate(fd, 3 * 4096), 0);
    assert_int_equal(pwrite(fd, "x", 1, 4096), 1);
    data = ds_file_map(fd, 3 * 4096);
    assert_non_null((const void *) data);
    assert_int_equal(data[4096], 'x');
    assert_int_equal(ds_file_intact((const void *) data, "f", &error), 0);
    assert_int_equal(ftruncate(fd, 100), 0);
    assert_int_equal(data[4096], 0);
    assert_int_equal(data[8192], 0);
    assert_int_equal(ds_file_intact((const void *) data, "f", &error), -EIO);
    assert_non_null(strstr(error.text, "it has 100 bytes, it had 12288"));
    ds_file_unmap((const void *) data, 3 * 4096);
    (void) close(fd);
}

static void a_bus_error_elsewhere_is_still_the_end(void **state)
{
    int fd = memfd_create("other", MFD_CLOEXEC), status;
    pid_t child;

    (void) state;
    assert_int_equal(ftruncate(fd, 4096), 0);
    child = fork();
    if (child == 0) {
        const volatile char *data = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

        (void) signal(SIGBUS, SIG_DFL);             /* cmocka has one of its own */
        ds_file_unmap(ds_file_map(fd, 4096), 4096); /* ours is there now, for what is its own */
        (void) !ftruncate(fd, 0);
        _exit(data[0]);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0); /* a sanitizer exits */
    (void) close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_threads_makes_the_same_model),
        cmocka_unit_test(a_file_cut_short_while_it_is_loaded_is_one_error),
        cmocka_unit_test(a_load_can_be_given_up),
        cmocka_unit_test(a_lost_mapping_reads_as_zeros_and_says_so),
        cmocka_unit_test(a_bus_error_elsewhere_is_still_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
