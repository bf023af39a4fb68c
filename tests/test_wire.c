/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the tables of dsd-protocol(7) are true of the code, field by field and number by number.
 * Method: the tables are read from the source of the page and compared with what the compiler says,
 * in both directions: a field that only one of them knows fails.
 */
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/base.h"
#include "shm/wire.h"

#define PAGE "man/dsd-protocol.7.scd"

struct field {
    const char *structure;
    const char *name;
    size_t offset, size;
};

#define FIELD(s, f)                                                                                \
    {                                                                                              \
#s, #f, offsetof(struct s, f), sizeof(((struct s *) 0)->f)                                 \
    }

static const struct field fields[] = {
    FIELD(ds_datagram, magic),
    FIELD(ds_datagram, type),
    FIELD(ds_datagram, size),
    FIELD(ds_hello, head),
    FIELD(ds_hello, major),
    FIELD(ds_hello, minor_min),
    FIELD(ds_hello, minor_max),
    FIELD(ds_hello, struct_size),
    FIELD(ds_hello, features_wanted),
    FIELD(ds_hello, features_required),
    FIELD(ds_hello, sq_entries),
    FIELD(ds_hello, cq_entries),
    FIELD(ds_hello, arena_bytes),
    FIELD(ds_hello, rsp_bytes),
    FIELD(ds_hello, flags),
    FIELD(ds_hello, zero),
    FIELD(ds_hello, app_name),
    FIELD(ds_welcome, head),
    FIELD(ds_welcome, layout),
    FIELD(ds_welcome, spin_hint_us),
    FIELD(ds_welcome, heartbeat_ms),
    FIELD(ds_reject, head),
    FIELD(ds_reject, code),
    FIELD(ds_reject, retry_after_ms),
    FIELD(ds_reject, text),
    FIELD(ds_attach, head),
    FIELD(ds_attach, attachment),
    FIELD(ds_attach, n_files),
    FIELD(ds_attach, first),
    FIELD(ds_attach, name),
    FIELD(ds_c_header, magic),
    FIELD(ds_c_header, major),
    FIELD(ds_c_header, minor),
    FIELD(ds_c_header, header_size),
    FIELD(ds_c_header, features),
    FIELD(ds_c_header, conn_id),
    FIELD(ds_c_header, epoch),
    FIELD(ds_c_header, sq_entries),
    FIELD(ds_c_header, cq_entries),
    FIELD(ds_c_header, sq_off),
    FIELD(ds_c_header, cq_off),
    FIELD(ds_c_header, s_size),
    FIELD(ds_c_header, c_size),
    FIELD(ds_c_header, arena_off),
    FIELD(ds_c_header, arena_size),
    FIELD(ds_c_header, rsp_off),
    FIELD(ds_c_header, rsp_size),
    FIELD(ds_c_header, max_inflight),
    FIELD(ds_c_header, max_payload),
    FIELD(ds_c_hot, cq_tail),
    FIELD(ds_c_hot, sq_head),
    FIELD(ds_c_hot, sq_flags),
    FIELD(ds_c_hot, heartbeat_ns),
    FIELD(ds_c_hot, state),
    FIELD(ds_c_hot, sq_invalid),
    FIELD(ds_c_hot, cq_stalls),
    FIELD(ds_c_hot, coalesced),
    FIELD(ds_s_hot, sq_tail),
    FIELD(ds_s_hot, cq_head),
    FIELD(ds_s_hot, cq_flags),
    FIELD(ds_s_hot, cq_wake_at),
    FIELD(ds_sqe, op),
    FIELD(ds_sqe, flags),
    FIELD(ds_sqe, payload_len),
    FIELD(ds_sqe, req_id),
    FIELD(ds_sqe, payload_off),
    FIELD(ds_sqe, idem_key),
    FIELD(ds_sqe, deadline_ns),
    FIELD(ds_sqe, resume_from),
    FIELD(ds_sqe, prio),
    FIELD(ds_sqe, zero),
    FIELD(ds_cqe, req_id),
    FIELD(ds_cqe, seq),
    FIELD(ds_cqe, type),
    FIELD(ds_cqe, flags),
    FIELD(ds_cqe, len),
    FIELD(ds_cqe, n_tokens),
    FIELD(ds_cqe, u),
};

#define N_FIELDS (sizeof fields / sizeof fields[0])

static const struct {
    const char *structure;
    size_t size;
} sizes[] = {
    { "ds_datagram", sizeof(struct ds_datagram) }, { "ds_hello", sizeof(struct ds_hello) },
    { "ds_welcome", sizeof(struct ds_welcome) },   { "ds_reject", sizeof(struct ds_reject) },
    { "ds_attach", sizeof(struct ds_attach) },     { "ds_c_header", sizeof(struct ds_c_header) },
    { "ds_sqe", sizeof(struct ds_sqe) },           { "ds_cqe", sizeof(struct ds_cqe) },
};

/* Words of the page that stand for numbers of the code, as "NAME number". */
static const struct {
    const char *name;
    unsigned long number;
    int base;
} numbers[] = {
    { "HELLO", DS_DATAGRAM_HELLO, 10 },
    { "WELCOME", DS_DATAGRAM_WELCOME, 10 },
    { "REJECT", DS_DATAGRAM_REJECT, 10 },
    { "READY", DS_DATAGRAM_READY, 10 },
    { "ATTACH", DS_DATAGRAM_ATTACH, 10 },
    { "GOODBYE", DS_DATAGRAM_GOODBYE, 10 },
    { "LOAD", DS_DATAGRAM_LOAD, 10 },
    { "NOP", DS_SQE_NOP, 10 },
    { "SUBMIT", DS_SQE_SUBMIT, 10 },
    { "CANCEL", DS_SQE_CANCEL, 10 },
    { "PING", DS_SQE_PING, 10 },
    { "CLOSE", DS_SQE_CLOSE, 10 },
    { "ACCEPTED", DS_CQE_ACCEPTED, 10 },
    { "TOKENS", DS_CQE_TOKENS, 10 },
    { "FINAL", DS_CQE_FINAL, 10 },
    { "ERROR", DS_CQE_ERROR, 10 },
    { "PONG", DS_CQE_PONG, 10 },
    { "NOTICE", DS_CQE_NOTICE, 10 },
    { "STEP", DS_CQE_STEP, 10 },
    { "MORE", DS_CQE_MORE, 16 },
    { "OOL", DS_CQE_OOL, 16 },
    { "COALESCED", DS_CQE_COALESCED, 16 },
    { "MESSAGE", DS_CQE_MESSAGE, 16 },
    { "CRITICAL", DS_CQE_CRITICAL, 16 },
    { "RUNNING", DS_SERVER_RUNNING, 10 },
    { "DEAD", DS_SERVER_DEAD, 10 },
};

/* The page, or NULL with a line that says what is not checked. Free it. */
static char *page_read(void)
{
    FILE *file = fopen(PAGE, "r");
    char *text = NULL;
    size_t size = 0;

    if (!file) {
        printf("skip: %s is not here (run from the top of the tree): its tables are not checked\n",
               PAGE);
        return NULL;
    }
    assert_true(getdelim(&text, &size, '\0', file) > 0);
    (void) fclose(file);
    return text;
}

/* "  0e   2  flags   ..." */
static bool parse_row(const char *line, char name[64], size_t *ret_offset, size_t *ret_size)
{
    char offset[8];
    int used = 0;

    if (sscanf(line, "  %7[0-9a-f] %zu  %63[a-z0-9_]%n", offset, ret_size, name, &used) != 3)
        return false;
    *ret_offset = strtoul(offset, NULL, 16);
    return used > 0;
}

static void every_row_of_the_page_is_true_and_every_field_has_one(void **state)
{
    ds_cleanup(ds_free_p) char *text = page_read();
    char structure[64] = "";
    size_t rows = 0;

    (void) state;
    for (char *save = NULL, *line = text ? strtok_r(text, "\n", &save) : NULL; line;
         line = strtok_r(NULL, "\n", &save)) {
        size_t offset, size, i;
        char name[64];

        if (sscanf(line, "struct %63[a-z_]", name) == 1)
            memcpy(structure, name, sizeof structure);
        if (!parse_row(line, name, &offset, &size))
            continue;
        for (i = 0; i < N_FIELDS; i++)
            if (strcmp(fields[i].structure, structure) == 0 && strcmp(fields[i].name, name) == 0)
                break;
        if (i == N_FIELDS || fields[i].offset != offset || fields[i].size != size)
            fail_msg("the page is wrong about struct %s: %s", structure, line);
        rows++;
    }
    assert_int_equal(rows, text ? N_FIELDS : 0);
}

static void the_sizes_on_the_page_are_true(void **state)
{
    ds_cleanup(ds_free_p) char *text = page_read();

    (void) state;
    for (size_t i = 0; text && i < sizeof sizes / sizeof sizes[0]; i++) {
        char title[96];

        (void) snprintf(title, sizeof title, "struct %s, %zu bytes", sizes[i].structure,
                        sizes[i].size);
        if (!strstr(text, title))
            fail_msg("the page does not say: %s", title);
    }
}

static void the_numbers_on_the_page_are_true(void **state)
{
    ds_cleanup(ds_free_p) char *text = page_read();

    (void) state;
    for (size_t i = 0; text && i < sizeof numbers / sizeof numbers[0]; i++) {
        size_t length = strlen(numbers[i].name);
        unsigned found = 0;

        for (const char *at = text; (at = strstr(at, numbers[i].name)); at += length) {
            bool word = !isalnum((unsigned char) at[-1]) && at[-1] != '_';

            if (!word || at[length] != ' ' || !isxdigit((unsigned char) at[length + 1]))
                continue;
            if (isalpha((unsigned char) at[length + 1])) /* prose */
                continue;
            found++;
            assert_int_equal(strtoul(at + length, NULL, numbers[i].base), numbers[i].number);
        }
        if (found == 0)
            fail_msg("the page does not say the number of %s", numbers[i].name);
    }
}

static void hot_words_of_different_use_stand_two_lines_apart(void **state)
{
    (void) state;
    assert_true(offsetof(struct ds_c_hot, sq_head) - offsetof(struct ds_c_hot, cq_tail) >= 128);
    assert_true(offsetof(struct ds_c_hot, sq_flags) - offsetof(struct ds_c_hot, sq_head) >= 128);
    assert_true(offsetof(struct ds_s_hot, cq_head) - offsetof(struct ds_s_hot, sq_tail) >= 128);
    assert_true(offsetof(struct ds_s_hot, cq_flags) - offsetof(struct ds_s_hot, cq_head) >= 128);
    assert_memory_equal(&(uint64_t){ DS_WIRE_MAGIC }, "SDSDP01", 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_of_the_page_is_true_and_every_field_has_one),
        cmocka_unit_test(the_sizes_on_the_page_are_true),
        cmocka_unit_test(the_numbers_on_the_page_are_true),
        cmocka_unit_test(hot_words_of_different_use_stand_two_lines_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
