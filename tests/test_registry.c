/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a name means the files it should, and nothing outside the models directories.
 * Method: a directory with single files, splits, incomplete splits, links and other things.
 */
#include "daemon/registry.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct fixture {
    char directory[40];
    struct ds_registry *registry;
    struct ds_error error;
};

static void put(const struct fixture *f, const char *name, const char *content)
{
    char path[400];
    FILE *file;

    (void) snprintf(path, sizeof path, "%s/%s", f->directory, name);
    file = fopen(path, "we");
    assert_non_null(file);
    (void) fputs(content, file);
    (void) fclose(file);
}

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    char path[64], list[128];

    *state = f;
    (void) strcpy(f->directory, "/tmp/ds-registry-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    put(f, "b.Q4_1.gguf", "1234");
    put(f, "a-00001-of-00003.gguf", "1");
    put(f, "a-00002-of-00003.gguf", "22");
    put(f, "a-00003-of-00003.gguf", "333");
    put(f, "half-00001-of-00002.gguf", "1");
    put(f, "odd-00000-of-00002.gguf", "1");
    put(f, "notes.txt", "x");
    put(f, ".hidden.gguf", "x");
    (void) snprintf(path, sizeof path, "%s/link.gguf", f->directory);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    (void) snprintf(path, sizeof path, "%s/pipe.gguf", f->directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    (void) snprintf(path, sizeof path, "%s/folder.gguf", f->directory);
    assert_int_equal(mkdir(path, 0700), 0);
    (void) snprintf(list, sizeof list, "/nowhere:%s", f->directory);
    assert_int_equal(ds_registry_new(&f->registry, list), 0);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;
    char command[80];

    f->registry = ds_registry_free(f->registry);
    (void) snprintf(command, sizeof command, "rm -rf %s", f->directory);
    (void) !system(command);
    free(f);
    return 0;
}

static void names_are_those_of_regular_files_and_whole_splits(void **state)
{
    static const char *const expected[] = { "a", "b.Q4_1", "half", "odd-00000-of-00002" };
    struct fixture *f = *state;
    const struct ds_registry_entry *entries;
    unsigned n;

    entries = ds_registry_entries(f->registry, &n);
    assert_int_equal(n, 4);
    for (unsigned i = 0; i < n; i++)
        assert_string_equal(entries[i].name, expected[i]);
    assert_int_equal(entries[0].n_files, 3);
    assert_int_equal(entries[0].bytes, 6);
    assert_int_equal(entries[2].n_found, 1);
}

static void files_are_opened_in_order(void **state)
{
    struct fixture *f = *state;
    struct ds_model_files *files;
    char byte;

    assert_int_equal(ds_registry_open(f->registry, "a", &files, &f->error), DS_REGISTRY_FOUND);
    assert_int_equal(files->n_open, 3);
    assert_int_equal(files->bytes, 6);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(pread(files->fds[i], &byte, 1, 0), 1);
        assert_int_equal(byte, '1' + (int) i);
        assert_true(fcntl(files->fds[i], F_GETFD) & FD_CLOEXEC);
    }
    (void) ds_model_files_free(files);
    assert_int_equal(ds_registry_open(f->registry, "b.Q4_1.gguf", &files, &f->error),
                     DS_REGISTRY_FOUND);
    assert_string_equal(files->name, "b.Q4_1");
    (void) ds_model_files_free(files);
}

static void nothing_outside_is_reached(void **state)
{
    static const char *const names[] = {
        "link",      "pipe", "folder", "../etc/passwd",    "/etc/x", ".hidden",
        "notes.txt", "",     "a/b",    "a-00001-of-00003", NULL
    };
    struct fixture *f = *state;
    struct ds_model_files *files;

    for (unsigned i = 0; names[i]; i++)
        assert_int_equal(ds_registry_open(f->registry, names[i], &files, &f->error),
                         DS_REGISTRY_UNKNOWN);
    assert_int_equal(ds_registry_open(f->registry, "half", &files, &f->error),
                     DS_REGISTRY_INCOMPLETE);
    assert_string_equal(f->error.text, "model half: only 1 of 2 files are there");
}

static void a_new_file_is_found_without_being_told(void **state)
{
    struct fixture *f = *state;
    struct ds_model_files *files;

    put(f, "new.gguf", "x");
    assert_int_equal(ds_registry_open(f->registry, "new", &files, &f->error), DS_REGISTRY_FOUND);
    (void) ds_model_files_free(files);
}

static void the_default_is_the_preset_or_the_only_one(void **state)
{
    struct fixture *f = *state;
    struct ds_registry *other;
    char path[80];

    assert_null(ds_registry_default(f->registry, ""));
    assert_string_equal(ds_registry_default(f->registry, "b"), "b");
    (void) snprintf(path, sizeof path, "%s/folder.gguf", f->directory);
    put(f, "folder.gguf/one.gguf", "x");
    assert_int_equal(ds_registry_new(&other, path), 0);
    assert_string_equal(ds_registry_default(other, ""), "one");
    (void) ds_registry_free(other);
}

static void the_same_files_are_the_same_model_whoever_opened_them(void **state)
{
    struct fixture *f = *state;
    struct ds_model_files *named, *handed, *copy;
    char path[80];

    (void) snprintf(path, sizeof path, "%s/b.Q4_1.gguf", f->directory);
    assert_int_equal(ds_registry_open(f->registry, "b.Q4_1", &named, &f->error), 0);
    assert_int_equal(ds_model_files_new(&handed, "mine", 1), 0);
    assert_int_equal(ds_model_files_add(handed, open(path, O_RDONLY | O_CLOEXEC), NULL, &f->error),
                     0);
    assert_true(ds_model_files_same(named, handed));
    assert_int_equal(ds_model_files_copy(&copy, handed), 0);
    handed = ds_model_files_free(handed);
    assert_true(ds_model_files_same(named, copy));
    copy = ds_model_files_free(copy);
    put(f, "b.Q4_1.gguf", "other contents");
    assert_int_equal(ds_model_files_new(&handed, "mine", 1), 0);
    assert_int_equal(ds_model_files_add(handed, open(path, O_RDONLY | O_CLOEXEC), NULL, &f->error),
                     0);
    assert_false(ds_model_files_same(named, handed));
    handed = ds_model_files_free(handed);
    named = ds_model_files_free(named);
}

static void what_is_no_readable_file_is_refused(void **state)
{
    struct fixture *f = *state;
    struct ds_model_files *files;
    char path[80];

    (void) snprintf(path, sizeof path, "%s/b.Q4_1.gguf", f->directory);
    assert_int_equal(ds_model_files_new(&files, "x", 1), 0);
    assert_int_equal(ds_model_files_add(files, open(path, O_WRONLY | O_CLOEXEC), NULL, &f->error),
                     -EINVAL);
    assert_int_equal(ds_model_files_add(files, open(path, O_PATH | O_CLOEXEC), NULL, &f->error),
                     -EINVAL);
    assert_int_equal(
        ds_model_files_add(files, open("/dev/null", O_RDONLY | O_CLOEXEC), NULL, &f->error),
        -EINVAL);
    assert_int_equal(ds_model_files_add(files, open("/tmp", O_RDONLY | O_CLOEXEC), NULL, &f->error),
                     -EINVAL);
    assert_int_equal(ds_model_files_add(files, open(path, O_RDONLY | O_CLOEXEC), NULL, &f->error),
                     0);
    assert_int_equal(ds_model_files_add(files, open(path, O_RDONLY | O_CLOEXEC), NULL, &f->error),
                     -EINVAL);
    (void) ds_model_files_free(files);
    assert_int_equal(ds_model_files_new(&files, "x", 0), -EINVAL);
    assert_int_equal(ds_model_files_new(&files, "x", DS_MODEL_FILES_MAX + 1), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(names_are_those_of_regular_files_and_whole_splits),
        TEST(files_are_opened_in_order),
        TEST(nothing_outside_is_reached),
        TEST(a_new_file_is_found_without_being_told),
        TEST(the_default_is_the_preset_or_the_only_one),
        TEST(the_same_files_are_the_same_model_whoever_opened_them),
        TEST(what_is_no_readable_file_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
