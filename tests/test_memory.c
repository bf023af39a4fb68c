/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the engine knows how much memory it may take, and its KV caches stay within it.
 * Method: directories that hold a proc/ and a sys/ of our own making; plans for small and large
 * machines, computed by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include "engine/memory.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

struct machine {
    char root[64];
};

static void put(const struct machine *machine, const char *path, const char *text)
{
    char full[PATH_MAX];
    FILE *file;

    (void) snprintf(full, sizeof full, "%s%s", machine->root, path);
    for (char *slash = strchr(full + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void) mkdir(full, 0700);
        *slash = '/';
    }
    file = fopen(full, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int set_up(void **state)
{
    struct machine *machine = calloc(1, sizeof *machine);

    (void) snprintf(machine->root, sizeof machine->root, "/tmp/dsd-test-memory-XXXXXX");
    assert_non_null(mkdtemp(machine->root));
    *state = machine;
    return 0;
}

static int tear_down(void **state)
{
    struct machine *machine = *state;
    char command[128];

    (void) snprintf(command, sizeof command, "rm -rf '%s'", machine->root);
    assert_int_equal(system(command), 0);
    free(machine);
    return 0;
}

static uint64_t available(const struct machine *machine)
{
    struct ds_memory *memory;
    uint64_t bytes;

    assert_int_equal(ds_memory_new(&memory, machine->root), 0);
    bytes = ds_memory_available(memory);
    memory = ds_memory_free(memory);
    assert_null(memory);
    return bytes;
}

static void test_nothing_known_does_not_limit(void **state)
{
    assert_true(available(*state) == UINT64_MAX);
}

static void test_the_machine_limits(void **state)
{
    put(*state, "/proc/meminfo",
        "MemTotal: 9000 kB\nMemAvailableX: 1 kB\nMemAvailable:  4096 kB\n");
    assert_true(available(*state) == 4 * MIB);
}

static void test_the_tightest_cgroup_limits_and_cache_counts_as_free(void **state)
{
    put(*state, "/proc/meminfo", "MemAvailable: 1048576 kB\n");
    put(*state, "/proc/self/cgroup", "1:name=old:/x\n0::/system.slice/dsd.service\n");
    put(*state, "/sys/fs/cgroup/system.slice/memory.max", "104857600\n");
    put(*state, "/sys/fs/cgroup/system.slice/memory.current", "94371840\n");
    put(*state, "/sys/fs/cgroup/system.slice/memory.stat",
        "anon 1\nfile 73400320\ninactive_file 41943040\nactive_file 10485760\n");
    put(*state, "/sys/fs/cgroup/system.slice/dsd.service/memory.max", "max\n");
    assert_true(available(*state) == 60 * MIB);

    put(*state, "/sys/fs/cgroup/system.slice/dsd.service/memory.max", "1048576\n");
    put(*state, "/sys/fs/cgroup/system.slice/dsd.service/memory.current", "2097152\n");
    assert_true(available(*state) == 0); /* over its limit already: nothing is left */
}

static void test_the_older_hierarchy_limits_too(void **state)
{
    put(*state, "/proc/meminfo", "MemAvailable: 1048576 kB\n");
    put(*state, "/proc/self/cgroup", "9:name=systemd:/\n4:memory:/job/7\n0::/\n");
    put(*state, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put(*state, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "8388608\n");
    put(*state, "/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "3145728\n");
    assert_true(available(*state) == 5 * MIB);
}

static void test_a_long_lived_probe_sees_what_changes(void **state)
{
    struct ds_memory *memory;

    put(*state, "/proc/meminfo", "MemAvailable: 4096 kB\n");
    assert_int_equal(ds_memory_new(&memory, ((struct machine *) *state)->root), 0);
    assert_true(ds_memory_available(memory) == 4 * MIB);
    put(*state, "/proc/meminfo", "MemAvailable: 2048 kB\n");
    assert_true(ds_memory_available(memory) == 2 * MIB);
    memory = ds_memory_free(memory);
}

static struct ds_kv_plan plan(uint64_t block_bytes, uint32_t context, uint64_t kv_bytes,
                              uint64_t available_bytes)
{
    const struct ds_kv_demand demand = { block_bytes, context, kv_bytes, available_bytes };
    struct ds_error error = { "" };
    struct ds_kv_plan result = { 0 };

    assert_int_equal(ds_kv_plan(&demand, &result, &error), 0);
    return result;
}

static void test_plans_are_roomy_but_modest(void **state)
{
    struct ds_kv_plan result;

    (void) state;
    /* a small model on a large machine: four contexts */
    result = plan(64 << 10, 2048, 0, 64 * GIB);
    assert_int_equal(result.n_blocks, 4 * 64);
    assert_int_equal(result.context, 2048);
    /* four contexts would be 720 MiB: the typical size it is */
    result = plan(720 << 10, 8192, 0, 64 * GIB);
    assert_int_equal(result.n_blocks, 512 * MIB / (720 << 10));
    /* one context is more than that: one context */
    result = plan(4 * MIB, 32768, 0, 64 * GIB);
    assert_int_equal(result.n_blocks, 1024);
    assert_int_equal(result.context, 32768);
    /* a quarter of what is free is less */
    result = plan(MIB, 2048, 0, GIB);
    assert_int_equal(result.n_blocks, 256);
}

static void test_a_context_that_does_not_fit_is_shortened(void **state)
{
    struct ds_kv_plan result;

    (void) state;
    result = plan(4 * MIB, 131072, 0, 4 * GIB); /* one context: 16 GiB */
    assert_int_equal(result.n_blocks, 3 * GIB / (4 * MIB));
    assert_int_equal(result.context, result.n_blocks * DS_KV_BLOCK);
}

static void test_a_size_that_was_asked_for_is_taken_or_refused(void **state)
{
    const struct ds_kv_demand large = { MIB, 2048, 2 * GIB, GIB };
    const struct ds_kv_demand small = { MIB, 2048, 2 * MIB, GIB };
    const struct ds_kv_demand full = { MIB, 2048, 0, 3 * MIB };
    struct ds_error error = { "" };
    struct ds_kv_plan result;

    (void) state;
    assert_int_equal(plan(MIB, 2048, 10 * MIB, GIB).n_blocks, 10);
    assert_int_equal(plan(MIB, 2048, 10 * MIB, GIB).context, 320);
    assert_int_equal(ds_kv_plan(&large, &result, &error), -ENOMEM);
    assert_non_null(strstr(error.text, "2048 MiB"));
    assert_int_equal(ds_kv_plan(&small, &result, &error), -ENOMEM);
    assert_int_equal(ds_kv_plan(&full, &result, &error), -ENOMEM);
    assert_non_null(strstr(error.text, "unload"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nothing_known_does_not_limit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_machine_limits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_tightest_cgroup_limits_and_cache_counts_as_free,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_older_hierarchy_limits_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_long_lived_probe_sees_what_changes, set_up,
                                        tear_down),
        cmocka_unit_test(test_plans_are_roomy_but_modest),
        cmocka_unit_test(test_a_context_that_does_not_fit_is_shortened),
        cmocka_unit_test(test_a_size_that_was_asked_for_is_taken_or_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
