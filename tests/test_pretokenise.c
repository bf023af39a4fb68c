/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: text is cut where the published regular expressions cut it, in linear time.
 * Method: cases worked out by hand, among them every alternative of every expression; random texts
 * compared with the expressions themselves, run by perl (part of every Debian system; without it
 * that is skipped); random bytes, whose pieces must be the text again; long runs, timed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/text/pretokenise.h"
#include "tests/lib/random_vocab.h"

struct pieces {
    char text[4096]; /* sizes in bytes, as the script prints them; or the pieces with | between */
    size_t used, covered;
    const char *source;
};

static const struct ds_pretokeniser *find(const char *name)
{
    const struct ds_pretokeniser *pretokeniser =
        ds_pretokeniser_find((struct ds_bytes){ name, strlen(name) });

    assert_non_null(pretokeniser);
    return pretokeniser;
}

static int take_text(void *context, size_t start, size_t end)
{
    struct pieces *pieces = context;

    assert_int_equal(start, pieces->covered);
    assert_true(end > start);
    pieces->covered = end;
    pieces->used +=
        (size_t) snprintf(pieces->text + pieces->used, sizeof pieces->text - pieces->used, "%s%.*s",
                          start ? "|" : "", (int) (end - start), pieces->source + start);
    return 0;
}

static void cases_worked_out_by_hand(void **state)
{
    static const struct {
        const char *name, *text, *pieces;
    } cases[] = {
        { "gpt-2", "Hello, world!", "Hello|,| world|!" },
        { "gpt-2", "I'll don't CAN'T 'sound", "I|'ll| don|'t| CAN|'|T| '|sound" },
        { "gpt-2", "a  b   12 34", "a| | b|  | 12| 34" },
        { "gpt-2", "x \n\n y  ", "x| \n\n| y|  " },
        { "gpt-2", "tab\tend", "tab|\t|end" },
        { "gpt-2", "\u4f60\u597d12\u00bd\u3002x", "\u4f60\u597d|12\u00bd|\u3002|x" },
        { "gpt-2", "e\u0301t", "e|\u0301|t" },
        { "", "a1 ", "a|1| " },
        { "smollm", "a 12 b", "a| |1|2| b" },
        { "smollm", "3.14  15", "3|.|1|4|  |1|5" },
        { "llama-bpe", "1234567 a", "123|456|7| a" },
        { "llama-bpe", "we'LL they'Re 's", "we|'LL| they|'Re| '|s" },
        { "llama-bpe", "(foo) .bar!!\n\nx", "(foo|)| .|bar|!!\n\n|x" },
        { "llama-bpe", "a \n \n  b", "a| \n \n| | b" },
        { "llama-bpe", "a   \n", "a|   \n" },
        { "llama-bpe", "a   ", "a|   " },
        { "llama3", "\tx\t\ty", "\tx|\t|\ty" },
        { "qwen2", "1234 a", "1|2|3|4| a" },
        { "qwen2", "\nx \r\n\ry", "\n|x| \r\n\r|y" },
        { "qwen2", "a\u3000b", "a|\u3000b" },
        { "deepseek-r1-qwen", "e\u0301t 'tis", "e|\u0301t| '|tis" },
        { "deepseek-coder", "int a1 = 22; \n", "int| a|1| = |2|2|;| |\n" },
        { "deepseek-coder", "f(\u6211\u4eec x)", "f|(|\u6211\u4eec| x|)" },
        /* its punctuation runs from : to ~ and so takes ASCII letters from among others */
        { "deepseek-llm", "abc \u00e9t\u00e9 123 \n", "abc| \u00e9|t|\u00e9| |123| |\n" },
        { "deepseek-llm", "a, b  \u6211\u4eec\u3002c", "a|,| b|  |\u6211\u4eec|\u3002|c" },
        { "deepseek-llm", "\u0e01\u0e02 x  ", "\u0e01\u0e02| x|  " },
        { "deepseek-v3", "1234567", "123|456|7" },
        { "deepseek-v3", ".name .x $y a'b", ".name| .|x| $|y| a|'b" },
        { "deepseek-v3", "\u6211\u3042\u30a2a", "\u6211\u3042\u30a2|a" },
        { "deepseek-v3", "e\u0301t\u00e9 \u0301", "e\u0301t\u00e9| \u0301" },
        { "deepseek-v3", "?!\n\nx  \n y", "?!\n\n|x|  \n| y" },
        { "deepseek-v3", "\x01\x02z\x03", "\x01|\x02z|\x03" },
    };

    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pieces pieces = { .source = cases[i].text };

        assert_int_equal(ds_pretokenise(find(cases[i].name), cases[i].text, 0,
                                        strlen(cases[i].text), take_text, &pieces),
                         0);
        assert_int_equal(pieces.covered, strlen(cases[i].text));
        assert_string_equal(pieces.text, cases[i].pieces);
    }
}

static void names_and_their_aliases_are_known_and_others_are_not(void **state)
{
    static const char *const unknown[] = {
        "gpt", "gpt-22", "qwen", "llama", " ", "smollm starcoder"
    };
    char list[256], tiny[8];

    (void) state;
    assert_ptr_equal(find("llama3"), find("llama-bpe"));
    assert_ptr_equal(find("llama-v3"), find("falcon3"));
    assert_ptr_equal(find(""), find("default"));
    assert_ptr_equal(find("deepseek-r1-qwen"), find("qwen2"));
    assert_ptr_equal(find("joyai-llm"), find("deepseek-v3"));
    assert_ptr_equal(find("smaug-bpe"), find("chatglm-bpe"));
    assert_false(find("smaug-bpe")->llama3);
    assert_true(find("llama3")->llama3);
    assert_false(find("qwen2")->llama3);
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        assert_null(ds_pretokeniser_find((struct ds_bytes){ unknown[i], strlen(unknown[i]) }));
    ds_pretokeniser_list(list, sizeof list);
    assert_string_equal(list,
                        "gpt-2, smollm, llama-bpe, qwen2, qwen35, deepseek-llm, deepseek-coder, "
                        "deepseek-v3, smaug-bpe, default");
    ds_pretokeniser_list(tiny, sizeof tiny);
    assert_string_equal(tiny, "gpt-2, ");
}

static int take_size(void *context, size_t start, size_t end)
{
    struct pieces *pieces = context;

    pieces->used +=
        (size_t) snprintf(pieces->text + pieces->used, sizeof pieces->text - pieces->used, "%s%zu",
                          pieces->used ? " " : "", end - start);
    return 0;
}

#define N_TEXTS 1500

/* Texts of characters that the expressions tell apart, each ended by a NUL. */
static char *characters(struct ds_dice *random, size_t *ret_size)
{
    static const char *const parts[] = {
        "a",        "b",      "Z",      " ",      "  ",     "\n",         "\r\n",   "\r",
        "\t",       "1",      "23",     "\u0663", "\u00bd", "'s",         "'LL",    "'re",
        "'",        "!",      ".",      "-",      "$",      "+",          "_",      "`x",
        "\u00e9",   "\u4f60", "\u597d", "\u30a2", "\ud55c", "\u3000",     "\u0301", "\u2028",
        "\xC2\x85", "\u00a0", "\x01",   "\u200d", "<|",     "\U0001F999", "\u05d0", "(",
        "\u3002",   "\uff1a", "\u30fc", "~~",
    };
    char *text = malloc(N_TEXTS * (14 * 4 + 1));
    size_t n = 0;

    assert_non_null(text);
    for (int i = 0; i < N_TEXTS; i++) {
        for (uint32_t left = ds_dice_below(random, 14); left > 0; left--) {
            const char *part = parts[ds_dice_below(random, sizeof parts / sizeof parts[0])];

            memcpy(text + n, part, strlen(part));
            n += strlen(part);
        }
        text[n++] = '\0';
    }
    *ret_size = n;
    return text;
}

static void random_texts_are_cut_as_by_the_expressions(void **state)
{
    static const char *const names[] = { "gpt-2",  "smollm",         "llama-bpe",   "qwen2",
                                         "qwen35", "deepseek-coder", "deepseek-v3", "default" };
    char path[] = "/tmp/dsd-pretokenise-XXXXXX", command[256], line[1024];
    struct ds_dice random = { 20 };
    size_t size = 0;
    ds_cleanup(ds_free_p) char *texts = characters(&random, &size);
    int fd = mkstemp(path);

    (void) state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, texts, size), size);
    (void) close(fd);
    if (access("tests/lib/pretokenise.pl", R_OK) < 0 || system("perl -MEncode -e 1") != 0) {
        print_message("skip: no perl, or not run in the repository: the cuts of random texts\n");
        (void) unlink(path);
        skip();
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        FILE *oracle;

        (void) snprintf(command, sizeof command, "perl tests/lib/pretokenise.pl %s < %s", names[i],
                        path);
        oracle = popen(command, "re");
        assert_non_null(oracle);
        for (const char *text = texts; text < texts + size; text += strlen(text) + 1) {
            struct pieces pieces = { .source = text };

            assert_non_null(fgets(line, sizeof line, oracle));
            line[strcspn(line, "\n")] = '\0';
            (void) ds_pretokenise(find(names[i]), text, 0, strlen(text), take_size, &pieces);
            if (strcmp(line, pieces.text) != 0)
                fail_msg("%s cuts \"%s\" into %s, not %s", names[i], text, pieces.text, line);
        }
        assert_int_equal(pclose(oracle), 0);
    }
    (void) unlink(path);
}

static int take_span(void *context, size_t start, size_t end)
{
    size_t *covered = context;

    assert_int_equal(start, *covered);
    assert_true(end > start);
    *covered = end;
    return 0;
}

static const char *const all_names[] = { "gpt-2",          "smollm",      "llama-bpe",
                                         "qwen2",          "qwen35",      "deepseek-llm",
                                         "deepseek-coder", "deepseek-v3", "default" };

#define N_NAMES (sizeof all_names / sizeof all_names[0])

static void pieces_of_any_bytes_are_the_bytes_again(void **state)
{
    struct ds_dice random = { 21 };

    (void) state;
    for (int round = 0; round < 2000; round++) {
        uint8_t bytes[64];
        size_t size = ds_dice_below(&random, sizeof bytes), covered = 0;

        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t) ds_dice_next(&random);
        assert_int_equal(ds_pretokenise(find(all_names[round % N_NAMES]), (const char *) bytes, 0,
                                        size, take_span, &covered),
                         0);
        assert_int_equal(covered, size);
    }
}

static int refuse(void *context, size_t start, size_t end)
{
    (void) start;
    (void) end;
    ++*(int *) context;
    return -ENOMEM;
}

static void a_taker_that_fails_ends_the_cutting(void **state)
{
    (void) state;
    for (size_t i = 0; i < N_NAMES; i++) {
        int n = 0;

        assert_int_equal(ds_pretokenise(find(all_names[i]), "a b c", 0, 5, refuse, &n), -ENOMEM);
        assert_int_equal(n, 1);
    }
}

static double seconds_for(const char *name, const char *unit, size_t size)
{
    size_t unit_size = strlen(unit), covered = 0;
    ds_cleanup(ds_free_p) char *text = malloc(size + unit_size);
    clock_t start;

    assert_non_null(text);
    for (size_t at = 0; at < size; at += unit_size)
        memcpy(text + at, unit, unit_size);
    start = clock();
    assert_int_equal(ds_pretokenise(find(name), text, 0, size, take_span, &covered), 0);
    assert_int_equal(covered, size);
    return (double) (clock() - start) / CLOCKS_PER_SEC;
}

/* 16 times the text may take 16 times as long, not 256: with room for noise, 64. */
static void long_runs_are_cut_in_linear_time(void **state)
{
    static const char *const units[] = { "a",      " ",    "\n",  " \n",    "'",  "1",   "\u3000",
                                         "\u0301", "\xFF", "  x", "\u4f60", "! ", "\x01" };

    (void) state;
    for (size_t i = 0; i < N_NAMES; i++)
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            double small = seconds_for(all_names[i], units[u], 1u << 14);
            double large = seconds_for(all_names[i], units[u], 1u << 18);

            if (large > 0.02 + 64 * small)
                fail_msg("%s takes %.3f s for 16 KiB of \"%s\", %.3f s for 256 KiB", all_names[i],
                         small, units[u], large);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cases_worked_out_by_hand),
        cmocka_unit_test(names_and_their_aliases_are_known_and_others_are_not),
        cmocka_unit_test(random_texts_are_cut_as_by_the_expressions),
        cmocka_unit_test(pieces_of_any_bytes_are_the_bytes_again),
        cmocka_unit_test(a_taker_that_fails_ends_the_cutting),
        cmocka_unit_test(long_runs_are_cut_in_linear_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
