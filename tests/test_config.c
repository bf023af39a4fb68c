/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: every value of dsd.conf is checked, and a wrong one is named with file, line and range.
 * Method: files with one fault each; and what --check-config prints must be readable again.
 */
#include "daemon/config.h"
#include "proto/base.h"
#include "proto/ds.pb-c.h"

#include <sys/stat.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct fixture {
    char directory[40], path[64];
    struct ds_config config;
    struct ds_error error;
};

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    (void) strcpy(f->directory, "/tmp/ds-config-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    (void) snprintf(f->path, sizeof f->path, "%s/dsd.conf", f->directory);
    assert_int_equal(ds_config_init(&f->config), 0);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;
    char command[80];

    ds_config_deinit(&f->config);
    (void) snprintf(command, sizeof command, "rm -rf %s", f->directory);
    (void) !system(command);
    free(f);
    return 0;
}

static void put(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    (void) fputs(text, file);
    (void) fclose(file);
}

static int parse(struct fixture *f, const char *text)
{
    int r;

    put(f->path, text);
    r = ds_config_read(&f->config, f->path, true, &f->error);
    return r < 0 ? r : ds_config_check(&f->config, &f->error);
}

static void values_of_all_kinds_are_read(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(
        parse(f, "# comment\n[dsd]\nsocket = /x/y.sock\nloop = epoll\n"
                 "log_level=debug\ndrain_sec = 7 ; comment\n[limits]\n"
                 "arena_bytes_max = 2M\n[engine]\nmemory = 3G\nthreads=4\nkv_type = Q8_0\n"),
        0);
    assert_string_equal(f->config.socket, "/x/y.sock");
    assert_int_equal(f->config.loop, DS_CONFIG_LOOP_EPOLL);
    assert_int_equal(f->config.log_level, 4);
    assert_int_equal(f->config.drain_sec, 7);
    assert_int_equal(f->config.arena_bytes_max, 2u << 20);
    assert_int_equal(f->config.memory, UINT64_C(3) << 30);
    assert_int_equal(f->config.threads, 4);
    assert_int_equal(f->config.kv_type, DS__KV_TYPE__KV_Q8_0);
    assert_int_equal(f->config.stall_sec, 30); /* a default */
}

static void a_wrong_value_is_named_with_its_place(void **state)
{
    static const struct {
        const char *text, *expected;
    } cases[] = {
        { "[dsd]\n\ndrain_sec = 99999\n",
          ":3: drain_sec = 99999: expected a number from 0 to 3600" },
        { "[dsd]\ndrain_sec = -1\n", ":2: drain_sec = -1" },
        { "[dsd]\ndrain_sec = 1x\n", ":2: drain_sec = 1x" },
        { "[dsd]\ndrain_sec =\n", ":2: drain_sec" },
        { "[dsd]\ndrain_sec = 99999999999999999999\n", ":2: drain_sec" },
        { "[engine]\nmemory = 999999999T\n", ":2: memory" },
        { "[limits]\narena_bytes_max = 1K\n", "from 64K to 32M" },
        { "[dsd]\nloop = kqueue\n", ":2: loop = kqueue: expected one of: auto io_uring epoll" },
        { "[engine]\nkv_type = Q5_0\n",
          ":2: kv_type = Q5_0: expected one of: auto F32 F16 BF16 Q8_0 Q4_0" },
        { "[engine]\nkv_type = 3\n", ":2: kv_type = 3: expected one of" },
        { "[engine]\nkv_type =\n", ":2: kv_type" },
        { "[dsd]\nsokcet = /x\n", ":2: unknown key sokcet in section [dsd]" },
        { "[dds]\nsocket = /x\n", ":2: unknown key socket in section [dds]" },
        { "[dsd]\nwhat is this\n", ":2: expected [section]" },
        { "[dsd]\nadmin_users = no-such-user-here\n", "no such user: no-such-user-here" },
        { "[dsd]\nsocket =\n", "socket: must not be empty" },
        { "[limits]\nregion_bytes_per_user=1M\n", "arena_bytes_max is larger" },
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture *f = *state;

        ds_config_deinit(&f->config);
        assert_int_equal(ds_config_init(&f->config), 0);
        f->error.text[0] = 0;
        assert_true(parse(f, cases[i].text) < 0);
        if (!strstr(f->error.text, cases[i].expected))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, f->error.text, cases[i].expected);
    }
}

static void a_long_line_is_refused_not_cut(void **state)
{
    struct fixture *f = *state;
    char text[1024] = "[dsd]\nmodels = ";

    memset(text + strlen(text), 'a', 900);
    assert_int_equal(parse(f, text), -EINVAL);
    assert_non_null(strstr(f->error.text, ":2: longer than"));
}

static void drop_ins_come_later_and_in_order(void **state)
{
    struct fixture *f = *state;
    char path[128];

    (void) snprintf(path, sizeof path, "%s.d", f->path);
    assert_int_equal(mkdir(path, 0700), 0);
    (void) snprintf(path, sizeof path, "%s.d/20-b.conf", f->path);
    put(path, "[dsd]\ndrain_sec = 3\n");
    (void) snprintf(path, sizeof path, "%s.d/10-a.conf", f->path);
    put(path, "[dsd]\ndrain_sec = 2\nstall_sec = 9\n");
    (void) snprintf(path, sizeof path, "%s.d/30-c.conf~", f->path);
    put(path, "nonsense\n");
    assert_int_equal(parse(f, "[dsd]\ndrain_sec = 1\n"), 0);
    assert_int_equal(f->config.drain_sec, 3);
    assert_int_equal(f->config.stall_sec, 9);
    (void) snprintf(path, sizeof path, "%s.d/40-d.conf", f->path);
    put(path, "[dsd]\nbad = 1\n");
    assert_int_equal(parse(f, ""), -EINVAL);
    assert_non_null(strstr(f->error.text, "40-d.conf:2: unknown key bad"));
}

static void only_a_file_that_was_asked_for_must_exist(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ds_config_read(&f->config, "/nowhere/dsd.conf", false, &f->error), 0);
    assert_int_equal(ds_config_read(&f->config, "/nowhere/dsd.conf", true, &f->error), -ENOENT);
    assert_non_null(strstr(f->error.text, "/nowhere/dsd.conf"));
}

static void what_is_printed_can_be_read_again(void **state)
{
    struct fixture *f = *state;
    char *first = NULL, *second = NULL;
    size_t size;
    FILE *out;

    assert_int_equal(parse(f, "[dsd]\nspin_usec = 0\nlog_level = error\n[engine]\nmemory = 5000\n"),
                     0);
    out = open_memstream(&first, &size);
    ds_config_print(&f->config, out);
    (void) fclose(out);
    ds_config_deinit(&f->config);
    assert_int_equal(ds_config_init(&f->config), 0);
    assert_int_equal(parse(f, first), 0);
    out = open_memstream(&second, &size);
    ds_config_print(&f->config, out);
    (void) fclose(out);
    assert_string_equal(first, second);
    assert_non_null(strstr(first, "memory = 5000\n"));
    free(first);
    free(second);
}

static void admins_are_root_ourselves_and_who_is_named(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(parse(f, "[dsd]\nadmin_users = 12345, root 777\n"), 0);
    assert_true(ds_config_is_admin(&f->config, 0));
    assert_true(ds_config_is_admin(&f->config, (uint32_t) geteuid()));
    assert_true(ds_config_is_admin(&f->config, 12345));
    assert_true(ds_config_is_admin(&f->config, 777));
    assert_false(ds_config_is_admin(&f->config, 778));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(values_of_all_kinds_are_read),
        TEST(a_wrong_value_is_named_with_its_place),
        TEST(a_long_line_is_refused_not_cut),
        TEST(drop_ins_come_later_and_in_order),
        TEST(only_a_file_that_was_asked_for_must_exist),
        TEST(what_is_printed_can_be_read_again),
        TEST(admins_are_root_ourselves_and_who_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
