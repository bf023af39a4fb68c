/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: whatever the bytes of a GGUF file are, reading it either gives exactly what they say or one
 * line that names the file and its fault; never a crash, never memory that is not the file's.
 * Method: files made by tests/lib/gguf_writer, whole; with one fault each; cut at every byte; with
 * every byte changed; meant to run under the address sanitizer too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format/gguf.h"
#include "tests/lib/gguf_writer.h"

static const uint64_t dims_2x3[] = { 32, 3 };
static const float values[96] = { 1.5f, -2.0f, 3.25f };

/* A file with a bit of everything, about 700 bytes. */
static struct ds_gguf_writer *small_writer(void)
{
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    const struct ds_bytes words[] = { { "one", 3 }, { "", 0 }, { "drei\0x", 6 } };
    const int16_t shorts[] = { -3, 4 };
    const uint8_t truths[] = { 1, 0, 1 };

    ds_gguf_writer_string(writer, "general.name", "small");
    ds_gguf_writer_u16(writer, "a.u16", 65535);
    ds_gguf_writer_u32(writer, "a.u32", 4000000000u);
    ds_gguf_writer_i32(writer, "a.i32", -7);
    ds_gguf_writer_u64(writer, "a.u64", UINT64_MAX);
    ds_gguf_writer_f32(writer, "a.f32", 0.5f);
    ds_gguf_writer_bool(writer, "a.bool", 1);
    ds_gguf_writer_strings(writer, "b.words", words, 3);
    ds_gguf_writer_array(writer, "b.shorts", DS_GGUF_I16, shorts, 2, 2);
    ds_gguf_writer_array(writer, "b.truths", DS_GGUF_BOOL, truths, 1, 3);
    ds_gguf_writer_floats(writer, "t.f32", DS_TYPE_F32, 2, dims_2x3, values);
    ds_gguf_writer_floats(writer, "t.q8", DS_TYPE_Q8_0, 2, dims_2x3, values);
    return writer;
}

/* What opening these bytes as a whole model's file comes to. */
static int open_bytes(const void *data, size_t size, struct ds_error *error)
{
    ds_cleanup(ds_close_p) int fd = ds_memfd_of(data, size);
    struct ds_gguf gguf;
    int r;

    assert_true(fd >= 0);
    error->text[0] = '\0';
    r = ds_gguf_init(&gguf, fd, "test.gguf", error);
    if (r == 0)
        r = ds_gguf_map(&gguf, error);
    if (r == 0) /* everything it points to can be read */
        for (uint32_t i = 0; i < gguf.n_tensors; i++) {
            const uint8_t *bytes = gguf.tensors[i].tensor.data;
            uint64_t last = gguf.tensors[i].tensor.size_bytes - 1;

            error->text[0] = (char) ((bytes[0] ^ bytes[last]) & 0);
        }
    ds_gguf_deinit(&gguf);
    return r;
}

static void expect_refusal(struct ds_gguf_writer *writer, int code, const char *words)
{
    size_t size;
    ds_cleanup(ds_free_p) uint8_t *file = ds_gguf_writer_finish(writer, &size);
    struct ds_error error;

    assert_int_equal(open_bytes(file, size, &error), code);
    if (!strstr(error.text, words) || strncmp(error.text, "test.gguf", 9) != 0)
        fail_msg("error '%s' does not say '%s'", error.text, words);
    (void) ds_gguf_writer_free(writer);
}

/* --- what is right --- */

static void keys_and_tensors_read_back_as_written(void **state)
{
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = small_writer();
    ds_cleanup(ds_close_p) int fd = ds_gguf_writer_memfd(writer);
    struct ds_error error;
    struct ds_bytes text;
    struct ds_gguf gguf;
    int64_t integer;
    uint64_t natural;
    double number;
    bool truth;

    (void) state;
    assert_int_equal(ds_gguf_init(&gguf, fd, "test.gguf", &error), 0);
    assert_int_equal(ds_gguf_map(&gguf, &error), 0);
    assert_int_equal(gguf.n_keys, 10);
    assert_int_equal(gguf.version, 3);
    assert_true(ds_gguf_string(ds_gguf_find(&gguf, "general.name"), &text));
    assert_int_equal(text.size, 5);
    assert_true(ds_gguf_u64(ds_gguf_find(&gguf, "a.u16"), 0, &natural) && natural == 65535);
    assert_true(ds_gguf_u64(ds_gguf_find(&gguf, "a.u32"), 0, &natural) && natural == 4000000000u);
    assert_true(ds_gguf_i64(ds_gguf_find(&gguf, "a.i32"), 0, &integer) && integer == -7);
    assert_false(ds_gguf_u64(ds_gguf_find(&gguf, "a.i32"), 0, &natural));
    assert_false(ds_gguf_i64(ds_gguf_find(&gguf, "a.u64"), 0, &integer));
    assert_true(ds_gguf_f64(ds_gguf_find(&gguf, "a.f32"), 0, &number) && number == 0.5);
    assert_true(ds_gguf_f64(ds_gguf_find(&gguf, "a.i32"), 0, &number) && number == -7.0);
    assert_false(ds_gguf_u64(ds_gguf_find(&gguf, "a.f32"), 0, &natural));
    assert_true(ds_gguf_bool(ds_gguf_find(&gguf, "a.bool"), 0, &truth) && truth);
    assert_false(ds_gguf_bool(ds_gguf_find(&gguf, "a.u16"), 0, &truth));
    assert_true(ds_gguf_i64(ds_gguf_find(&gguf, "b.shorts"), 0, &integer) && integer == -3);
    assert_true(ds_gguf_bool(ds_gguf_find(&gguf, "b.truths"), 1, &truth) && !truth);
    assert_false(ds_gguf_string(ds_gguf_find(&gguf, "b.words"), &text));
    assert_null(ds_gguf_find(&gguf, "a.none"));

    ds_cleanup(ds_free_p) struct ds_bytes *words = ds_gguf_strings(ds_gguf_find(&gguf, "b.words"));
    assert_int_equal(words[1].size, 0);
    assert_int_equal(words[2].size, 6);
    assert_memory_equal(words[2].data, "drei\0x", 6);

    assert_int_equal(gguf.n_tensors, 2);
    assert_string_equal(gguf.tensors[1].tensor.name, "t.q8");
    assert_int_equal(gguf.tensors[1].tensor.dims[1], 3);
    assert_int_equal(gguf.tensors[1].tensor.dims[2], 1);
    assert_int_equal(gguf.tensors[0].tensor.size_bytes, sizeof values);
    assert_memory_equal(gguf.tensors[0].tensor.data, values, sizeof values);
    assert_int_equal((uintptr_t) gguf.tensors[1].tensor.data % 32, 0);
    ds_gguf_deinit(&gguf);
}

static void version_2_and_other_alignments_are_read(void **state)
{
    (void) state;
    for (uint32_t alignment = 1; alignment <= 4096; alignment *= 4) {
        struct ds_gguf_writer *writer = ds_gguf_writer_new();
        struct ds_error error;
        uint8_t *file;
        size_t size;

        ds_gguf_writer_version(writer, 2);
        ds_gguf_writer_alignment(writer, alignment);
        ds_gguf_writer_floats(writer, "x", DS_TYPE_F16, 2, dims_2x3, values);
        ds_gguf_writer_floats(writer, "y", DS_TYPE_Q4_1, 2, dims_2x3, values);
        file = ds_gguf_writer_finish(writer, &size);
        assert_int_equal(open_bytes(file, size, &error), 0);
        free(file);
        (void) ds_gguf_writer_free(writer);
    }
}

/* --- what is wrong --- */

static void other_files_and_versions_are_refused_by_name(void **state)
{
    struct ds_error error;
    int pipes[2];
    struct ds_gguf gguf;

    (void) state;
    assert_int_equal(open_bytes("", 0, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "not a GGUF file"));
    assert_int_equal(open_bytes("PK\3\4 something else", 20, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "not a GGUF file"));
    assert_int_equal(open_bytes("GGUF\1\0\0\0\0\0\0\0\0\0\0\0", 16, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "version 1"));
    assert_int_equal(open_bytes("GGUF\4\0\0\0\0\0\0\0\0\0\0\0", 16, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "version 4"));
    assert_int_equal(open_bytes("GGUF\0\0\0\3\0\0\0\0\0\0\0\0", 16, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "big-endian"));

    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(ds_gguf_init(&gguf, pipes[0], "test.gguf", &error), -EBADMSG);
    assert_non_null(strstr(error.text, "not a regular file"));
    ds_gguf_deinit(&gguf);
    (void) close(pipes[0]);
    (void) close(pipes[1]);
    assert_int_equal(ds_gguf_init(&gguf, -1, "test.gguf", &error), -EBADF);
    ds_gguf_deinit(&gguf);
}

static void keys_that_make_no_sense_are_refused(void **state)
{
    static const uint8_t nested[] = { 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0 };
    static const uint8_t huge[] = { 4, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255 };
    static const uint8_t long_string[] = { 255, 255, 255, 255, 255, 255, 255, 127 };
    static const uint8_t two = 2;
    struct ds_gguf_writer *writer;

    (void) state;
    writer = small_writer();
    ds_gguf_writer_u32(writer, "a.u32", 1);
    expect_refusal(writer, -EBADMSG, "key 'a.u32' stands twice");
    writer = small_writer();
    ds_gguf_writer_raw(writer, "k", 13, "", 0);
    expect_refusal(writer, -EBADMSG, "key 'k' has value type 13");
    writer = small_writer();
    ds_gguf_writer_raw(writer, "k", DS_GGUF_ARRAY, nested, sizeof nested);
    expect_refusal(writer, -EBADMSG, "key 'k' has value type 9");
    writer = small_writer();
    ds_gguf_writer_raw(writer, "k", DS_GGUF_ARRAY, huge, sizeof huge);
    expect_refusal(writer, -EBADMSG, "truncated or damaged");
    writer = small_writer();
    ds_gguf_writer_raw(writer, "k", DS_GGUF_STRING, long_string, sizeof long_string);
    expect_refusal(writer, -EBADMSG, "truncated or damaged");
    writer = small_writer();
    ds_gguf_writer_raw(writer, "k", DS_GGUF_BOOL, &two, 1);
    expect_refusal(writer, -EBADMSG, "neither 0 nor 1");
    writer = small_writer();
    ds_gguf_writer_u32(writer, "", 1);
    expect_refusal(writer, -EBADMSG, "a name is empty");
    writer = small_writer();
    ds_gguf_writer_u32(writer, "with \x1b[31m colour", 1);
    expect_refusal(writer, -EBADMSG, "bytes that no name has");
}

static void alignments_that_make_no_sense_are_refused(void **state)
{
    static const uint32_t wrong[] = { 0, 3, 48, 1u << 21, UINT32_MAX };
    struct ds_gguf_writer *writer;

    (void) state;
    for (unsigned i = 0; i < 5; i++) {
        writer = small_writer();
        ds_gguf_writer_u32(writer, "general.alignment", wrong[i]);
        expect_refusal(writer, -EBADMSG, "general.alignment");
    }
    writer = small_writer();
    ds_gguf_writer_string(writer, "general.alignment", "32");
    expect_refusal(writer, -EBADMSG, "general.alignment");
}

static void tensors_that_make_no_sense_are_refused(void **state)
{
    static const uint64_t overflow[] = { 1ull << 40, 1ull << 40 }, zero[] = { 32, 0 };
    static const uint64_t odd[] = { 33, 2 }, five[] = { 1, 1, 1, 1, 1 }, large[] = { 1u << 20 };
    char name[200];
    struct ds_gguf_writer *writer;

    (void) state;
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t.f32", DS_TYPE_F32, 2, dims_2x3, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "tensor 't.f32' stands twice");
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t", DS_TYPE_F32, 2, overflow, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "tensor 't' has an impossible size");
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t", DS_TYPE_F32, 2, zero, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "tensor 't' has an impossible size");
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t", DS_TYPE_F32, 0, zero, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "tensor 't' has 0 dimensions");
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t", DS_TYPE_F32, 5, five, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "tensor 't' has 5 dimensions");
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t", DS_TYPE_Q4_0, 2, odd, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "rows of tensor 't' are not whole blocks of Q4_0");
    writer = small_writer();
    ds_gguf_writer_tensor(writer, "t", DS_TYPE_F32, 1, large, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "truncated: the file has");
    writer = small_writer();
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    ds_gguf_writer_tensor(writer, name, DS_TYPE_F32, 2, dims_2x3, values, sizeof values);
    expect_refusal(writer, -EBADMSG, "far too long");
}

static void types_this_build_has_not_are_named(void **state)
{
    static const struct {
        uint32_t type;
        const char *words;
    } refused[] = {
        { 5, "tensor 't' has type Q4_3 (5), which ggml has withdrawn: " },
        { 9, "tensor 't' has type Q8_1 (9), which is for activations" },
        { 15, "tensor 't' has type Q8_K (15), which is for activations" },
        { 26, "tensor 't' has type I32 (26), which no weight" },
        { 28, "tensor 't' has type F64 (28), which no weight" },
        { 31, "tensor 't' has type Q4_0_4_4 (31), which ggml has withdrawn" },
        { 40, "tensor 't' has type NVFP4 (40), which this version cannot read: " },
        { 41, "tensor 't' has type Q1_0 (41), which this version" },
        { 43, "tensor 't' has type unknown (43), a number that ggml has not given out" },
        { DS_TYPE_GGML_END, "tensor 't' has type unknown (64), a number" },
        { 139, "tensor 't' has type IQ4_K (139) of ik_llama.cpp, which no other program reads: " },
        { 210, "tensor 't' has type unknown (210) of ik_llama.cpp" },
        { UINT32_MAX, "(4294967295), a number that ggml has not given out: " },
    };

    (void) state;
    for (unsigned i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct ds_gguf_writer *writer = small_writer();

        ds_gguf_writer_tensor(writer, "t", refused[i].type, 2, dims_2x3, values, sizeof values);
        expect_refusal(writer, -ENOTSUP, refused[i].words);
    }
}

/* The offset of a tensor stands in the last 8 bytes of its entry: find it by its value. */
static void overlapping_and_unaligned_tensors_are_refused(void **state)
{
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = small_writer();
    const uint64_t old = sizeof values, overlapping = 352, unaligned = 392;
    struct ds_error error;
    size_t size;
    ds_cleanup(ds_free_p) uint8_t *file = ds_gguf_writer_finish(writer, &size);
    uint8_t *place;

    (void) state;
    place = memmem(file, size, &old, 8);
    assert_non_null(place);
    memcpy(place, &overlapping, 8);
    assert_int_equal(open_bytes(file, size, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "overlap"));
    memcpy(place, &unaligned, 8);
    assert_int_equal(open_bytes(file, size, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "'t.q8'"));
}

static void counts_beyond_the_file_are_refused_before_memory_is_taken(void **state)
{
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = small_writer();
    const uint64_t many = UINT64_MAX, some = 60000;
    struct ds_error error;
    size_t size;
    ds_cleanup(ds_free_p) uint8_t *file = ds_gguf_writer_finish(writer, &size);

    (void) state;
    memcpy(file + 8, &many, 8);
    assert_int_equal(open_bytes(file, size, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "more tensors than it can hold"));
    memcpy(file + 16, &many, 8);
    assert_int_equal(open_bytes(file, size, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "more keys than it can hold"));
    memcpy(file + 16, &some, 8);
    assert_int_equal(open_bytes(file, size, &error), -EBADMSG);
}

/* --- everything else that can go wrong with bytes --- */

static void a_file_cut_at_any_byte_is_refused(void **state)
{
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = small_writer();
    struct ds_error error;
    size_t size;
    ds_cleanup(ds_free_p) uint8_t *file = ds_gguf_writer_finish(writer, &size);

    (void) state;
    for (size_t cut = 0; cut < size; cut++) {
        assert_int_equal(open_bytes(file, cut, &error), -EBADMSG);
        assert_int_equal(strncmp(error.text, "test.gguf: ", 11), 0);
    }
    assert_int_equal(open_bytes(file, size, &error), 0);
}

static void any_changed_byte_is_read_or_refused_but_never_crashes(void **state)
{
    static const uint8_t masks[] = { 0x01, 0x80, 0xff, 0x7f };
    ds_cleanup(ds_gguf_writer_free_p) struct ds_gguf_writer *writer = small_writer();
    struct ds_error error;
    size_t size, refused = 0;
    ds_cleanup(ds_free_p) uint8_t *file = ds_gguf_writer_finish(writer, &size);

    (void) state;
    for (size_t at = 0; at < size; at++)
        for (unsigned m = 0; m < 4; m++) {
            int r;

            file[at] ^= masks[m];
            r = open_bytes(file, size, &error);
            file[at] ^= masks[m];
            if (r != 0 && r != -EBADMSG && r != -ENOTSUP)
                fail_msg("byte %zu: %d %s", at, r, error.text);
            if (r < 0)
                assert_int_equal(strncmp(error.text, "test.gguf: ", 11), 0);
            refused += r < 0;
        }
    assert_true(refused > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_and_tensors_read_back_as_written),
        cmocka_unit_test(version_2_and_other_alignments_are_read),
        cmocka_unit_test(other_files_and_versions_are_refused_by_name),
        cmocka_unit_test(keys_that_make_no_sense_are_refused),
        cmocka_unit_test(alignments_that_make_no_sense_are_refused),
        cmocka_unit_test(tensors_that_make_no_sense_are_refused),
        cmocka_unit_test(types_this_build_has_not_are_named),
        cmocka_unit_test(overlapping_and_unaligned_tensors_are_refused),
        cmocka_unit_test(counts_beyond_the_file_are_refused_before_memory_is_taken),
        cmocka_unit_test(a_file_cut_at_any_byte_is_refused),
        cmocka_unit_test(any_changed_byte_is_read_or_refused_but_never_crashes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
