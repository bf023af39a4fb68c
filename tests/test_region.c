/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a region can be neither cut, nor grown, nor written by who should not, whatever its holder
 * tries; its bytes exist before they are touched; what is not such a region is refused.
 * Method: do to the descriptor all that the other process could do with it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/base.h"
#include "shm/region.h"

#define SIZE 16384u

static int region_fd(enum ds_region_writer writer)
{
    int fd;

    assert_int_equal(ds_region_create("test", SIZE, &fd), 0);
    assert_int_equal(ds_region_seal(fd, writer), 0);
    return fd;
}

static void the_size_cannot_change_after_sealing(void **state)
{
    ds_cleanup(ds_close_p) int fd = region_fd(DS_REGION_JOINER);

    (void) state;
    assert_int_equal(ftruncate(fd, SIZE - 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, SIZE + 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1); /* sealing is sealed */
}

static void only_the_creators_old_mapping_can_write_its_region(void **state)
{
    ds_cleanup(ds_close_p) int fd = -1, again = -1;
    ds_cleanup(ds_region_unmap) struct ds_region ours = { 0 }, theirs = { 0 };
    char path[64];

    (void) state;
    assert_int_equal(ds_region_create("test", SIZE, &fd), 0);
    assert_int_equal(ds_region_map(&ours, fd, SIZE, 0, true), 0);
    assert_int_equal(ds_region_seal(fd, DS_REGION_CREATOR), 0);

    assert_int_equal(ds_region_map(&theirs, fd, SIZE, 0, true), -EPERM);
    assert_int_equal(write(fd, "x", 1), -1);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    (void) snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    again = open(path, O_RDWR | O_CLOEXEC);
    assert_true(again >= 0); /* opening is allowed, writing is not */
    assert_int_equal(ds_region_map(&theirs, again, SIZE, 0, true), -EPERM);

    assert_int_equal(ds_region_map(&theirs, fd, SIZE, 0, false), 0);
    assert_int_equal(mprotect(theirs.base, SIZE, PROT_READ | PROT_WRITE), -1);
    *(volatile char *) ours.base = 'y';
    assert_int_equal(*(volatile char *) theirs.base, 'y');
}

static void the_end_continues_where_the_region_is_mapped_twice(void **state)
{
    ds_cleanup(ds_close_p) int fd = -1;
    ds_cleanup(ds_region_unmap) struct ds_region region = { 0 };
    char *base;

    (void) state;
    assert_int_equal(ds_region_create("test", SIZE, &fd), 0);
    assert_int_equal(ds_region_map(&region, fd, SIZE, 8192, true), 0);
    base = region.base;
    memcpy(base + SIZE - 4, "wrapping", 8);
    assert_memory_equal(base + SIZE - 8192, "ping", 4);
    base[SIZE - 8192 + 100] = 'z';
    assert_int_equal(base[SIZE + 100], 'z');
}

static void all_bytes_are_allocated_at_once(void **state)
{
    ds_cleanup(ds_close_p) int fd = region_fd(DS_REGION_JOINER);
    struct stat st;

    (void) state;
    assert_int_equal(fstat(fd, &st), 0);
    assert_true((uint64_t) st.st_blocks * 512 >= SIZE);
}

static void the_descriptor_is_closed_on_exec(void **state)
{
    ds_cleanup(ds_close_p) int fd = region_fd(DS_REGION_JOINER);

    (void) state;
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

static void what_is_no_such_region_is_refused(void **state)
{
    ds_cleanup(ds_close_p) int joiner = region_fd(DS_REGION_JOINER);
    ds_cleanup(ds_close_p) int creator = region_fd(DS_REGION_CREATOR);
    ds_cleanup(ds_close_p) int open_fd = -1;
    ds_cleanup(ds_close_p) int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    ds_cleanup(ds_close_p) int file = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    (void) state;
    assert_int_equal(ds_region_create("test", SIZE, &open_fd), 0);
    assert_int_equal(ds_region_check(joiner, SIZE, DS_REGION_JOINER), 0);
    assert_int_equal(ds_region_check(creator, SIZE, DS_REGION_CREATOR), 0);
    assert_int_equal(ds_region_check(joiner, SIZE, DS_REGION_CREATOR), -EPROTO);
    assert_int_equal(ds_region_check(joiner, SIZE - 1, DS_REGION_JOINER), -EPROTO);
    assert_int_equal(ds_region_check(joiner, SIZE + 4096, DS_REGION_JOINER), -EPROTO);
    assert_int_equal(ds_region_check(open_fd, SIZE, DS_REGION_JOINER), -EPROTO);
    assert_int_equal(ds_region_check(null, SIZE, DS_REGION_JOINER), -EPROTO);
    assert_int_equal(ds_region_check(-1, SIZE, DS_REGION_JOINER), -EPROTO);
    if (file >= 0 && ftruncate(file, SIZE) == 0)
        assert_int_equal(ds_region_check(file, SIZE, DS_REGION_JOINER), -EPROTO);
}

static void a_region_has_a_largest_size(void **state)
{
    int fd = -1;

    (void) state;
    assert_int_equal(ds_region_create("test", DS_REGION_BYTES_MAX + 4096, &fd), -EMSGSIZE);
    assert_int_equal(fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_size_cannot_change_after_sealing),
        cmocka_unit_test(only_the_creators_old_mapping_can_write_its_region),
        cmocka_unit_test(the_end_continues_where_the_region_is_mapped_twice),
        cmocka_unit_test(all_bytes_are_allocated_at_once),
        cmocka_unit_test(the_descriptor_is_closed_on_exec),
        cmocka_unit_test(what_is_no_such_region_is_refused),
        cmocka_unit_test(a_region_has_a_largest_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
