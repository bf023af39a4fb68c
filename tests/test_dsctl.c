/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: what dsctl does to text is right for any text: thoughts are told from answers however they
 * are cut, JSON is JSON whatever bytes a model utters, ids and file names are read exactly.
 * Method: the pure parts of client/dsctl, with the expected results written down or, for the
 * filter, with the result of the uncut text.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"
#include "client/dsctl/messages.h"
#include "client/dsctl/statistics.h"
#include "client/dsctl/think.h"
#include "proto/base.h"

/* --- thoughts ----------------------------------------------------------------------------------
 */

struct sink {
    char text[512];
    size_t n;
    size_t n_thought; /* of these, marked as thoughts */
};

static void collect(void *target, const char *text, size_t size, bool thought)
{
    struct sink *sink = target;

    assert_true(size > 0);
    assert_true(sink->n + size < sizeof sink->text);
    memcpy(sink->text + sink->n, text, size);
    sink->n += size;
    sink->n_thought += thought ? size : 0;
}

/* Filters text in pieces of `piece` bytes. */
static void filter(struct sink *sink, enum dsctl_think_mode mode, bool inside, const char *text,
                   size_t piece)
{
    struct dsctl_think think;

    *sink = (struct sink){ .n = 0 };
    dsctl_think_init(&think, mode, inside, collect, sink);
    for (size_t at = 0, size = strlen(text); at < size; at += piece)
        dsctl_think_feed(&think, text + at, size - at < piece ? size - at : piece);
    dsctl_think_end(&think);
    sink->text[sink->n] = '\0';
}

static void test_thoughts_are_found_however_the_text_is_cut(void **state)
{
    static const struct {
        bool inside;
        const char *text, *hidden, *only;
    } cases[] = {
        { false, "plain answer", "plain answer", "" },
        { false, "<think>\nhm\n</think>\n\nYes.", "Yes.", "hm\n" },
        { true, "hm, <b> or </b>?\n</think>\n\nYes <3.", "Yes <3.", "hm, <b> or </b>?\n" },
        { true, "never ends", "", "never ends" },
        { false, "a <think>b</think> c", "a c", "b" },
        { false, "<think></think>x", "x", "" },
        { false, "<<think>a</think>b", "<b", "a" },
        { false, "<thin", "<thin", "" },
        { true, "x</think", "", "x</think" },
        { false, "</think>late", "late", "" },
        { false, "<think>a<think>b</think>c", "c", "ab" },
        { false, "1 < 2 </thinks> <", "1 < 2 </thinks> <", "" },
        { false, "", "", "" },
    };

    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t piece = 1; piece < 40; piece++) {
            struct sink sink;

            filter(&sink, DSCTL_THINK_HIDE, cases[i].inside, cases[i].text, piece);
            assert_string_equal(sink.text, cases[i].hidden);
            filter(&sink, DSCTL_THINK_ONLY, cases[i].inside, cases[i].text, piece);
            assert_string_equal(sink.text, cases[i].only);
            filter(&sink, DSCTL_THINK_SHOW, cases[i].inside, cases[i].text, piece);
            assert_string_equal(sink.text, cases[i].text);
        }
}

static void test_shown_thoughts_are_marked(void **state)
{
    struct sink sink;

    (void) state;
    filter(&sink, DSCTL_THINK_SHOW, false, "<think>abc</think>de", 3);
    assert_int_equal(sink.n_thought, strlen("<think>abc</think>"));
}

static void test_an_opening_tag_at_the_end_of_the_prompt_counts(void **state)
{
    const char *const opened[] = { "x<think>", "<think>\n", "<|Assistant|><think>\n  " };
    const char *const closed[] = { "", "think>", "<think>\n</think>", "<think> say it" };

    (void) state;
    for (size_t i = 0; i < 3; i++)
        assert_true(dsctl_think_opened(opened[i], strlen(opened[i])));
    for (size_t i = 0; i < 4; i++)
        assert_false(dsctl_think_opened(closed[i], strlen(closed[i])));
}

static void test_the_three_ways_have_names(void **state)
{
    enum dsctl_think_mode mode;

    (void) state;
    assert_true(dsctl_think_parse("only", &mode));
    assert_int_equal(mode, DSCTL_THINK_ONLY);
    assert_false(dsctl_think_parse("sho", &mode));
    assert_false(dsctl_think_parse("", &mode));
}

/* --- JSON --------------------------------------------------------------------------------------
 */

static void check_quote(const void *bytes, size_t size, const char *expected)
{
    ds_cleanup(ds_free_p) char *quoted = dsctl_json_quote(bytes, size);

    assert_string_equal(quoted, expected);
}

static void test_any_bytes_become_a_json_string(void **state)
{
    (void) state;
    check_quote("", 0, "\"\"");
    check_quote("a\"b\\c\n\t\r\x01\x7f", 10, "\"a\\\"b\\\\c\\n\\t\\r\\u0001\\u007f\"");
    check_quote("a\0b", 3, "\"a\\u0000b\"");
    check_quote("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9,
                "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
    check_quote("\xff", 1, "\"\xef\xbf\xbd\"");
    check_quote("\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* cut short */
    check_quote("\xc0\xaf", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* overlong */
    check_quote("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* surrogate */
    check_quote("\xf4\x90\x80\x80", 4,
                "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* beyond U+10FFFF */
}

static void check_printed(cJSON *object, const char *expected)
{
    char *line = cJSON_PrintUnformatted(object);

    assert_string_equal(line, expected);
    cJSON_free(line);
    cJSON_Delete(object);
}

static void test_the_shapes_that_scripts_rely_on(void **state)
{
    Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;
    Ds__Usage usage = DS__USAGE__INIT;
    Ds__Timing timing = DS__TIMING__INIT;

    (void) state;
    check_printed(dsctl_json_tokens((uint32_t[]){ 1, 4294967295u }, 2, "a\n", 2),
                  "{\"event\":\"tokens\",\"ids\":[1,4294967295],\"text\":\"a\\n\"}");
    check_printed(dsctl_json_tokens(NULL, 0, "", 0),
                  "{\"event\":\"tokens\",\"ids\":[],\"text\":\"\"}");
    usage.prompt_tokens = 3;
    usage.cached_tokens = 2;
    usage.completion_tokens = 1;
    usage.drafted_tokens = 9;
    usage.accepted_tokens = 7;
    timing.queue_ms = 0.5;
    timing.prefill_ms = 2;
    timing.ttft_ms = 2.5;
    timing.decode_ms = 10.25;
    result.reason = DS__REASON__REASON_STOP;
    result.usage = &usage;
    result.timing = &timing;
    check_printed(dsctl_json_final(&result),
                  "{\"event\":\"final\",\"reason\":\"stop\",\"usage\":{\"prompt_tokens\":3,"
                  "\"cached_tokens\":2,\"completion_tokens\":1,\"drafted_tokens\":9,\"accepted_"
                  "tokens\":7},\"timing\":{\"queue_ms\":0.5,"
                  "\"prefill_ms\":2,\"ttft_ms\":2.5,\"decode_ms\":10.25}}");
    check_printed(dsctl_json_failed("NOT_FOUND", "no \"m\"", 0),
                  "{\"event\":\"final\",\"reason\":\"error\",\"usage\":{\"prompt_tokens\":0,"
                  "\"cached_tokens\":0,\"completion_tokens\":0,\"drafted_tokens\":0,\"accepted_"
                  "tokens\":0},\"timing\":{\"queue_ms\":0,"
                  "\"prefill_ms\":0,\"ttft_ms\":0,\"decode_ms\":0},\"error\":{\"code\":"
                  "\"NOT_FOUND\",\"text\":\"no \\\"m\\\"\"}}");
}

static void test_every_reason_has_its_word(void **state)
{
    (void) state;
    assert_string_equal(dsctl_reason_name(DS__REASON__REASON_STOP), "stop");
    assert_string_equal(dsctl_reason_name(DS__REASON__REASON_LENGTH), "length");
    assert_string_equal(dsctl_reason_name(DS__REASON__REASON_CANCELLED), "cancelled");
    assert_string_equal(dsctl_reason_name(DS__REASON__REASON_DEADLINE), "deadline");
    assert_string_equal(dsctl_reason_name(DS__REASON__REASON_UNSET), "error");
}

/* --- input -------------------------------------------------------------------------------------
 */

static void test_ids_are_read_exactly_or_not_at_all(void **state)
{
    const char *const bad[] = { "1 x", "-1", "+1", "1.5", "4294967296", "1;2", "0x10" };
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    const char *where;
    size_t n;

    (void) state;
    assert_true(dsctl_parse_ids(" 1 2,3\n\t4294967295 ", &ids, &n, &where));
    assert_int_equal(n, 4);
    assert_int_equal(ids[2], 3);
    assert_int_equal(ids[3], 4294967295u);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t *none = NULL;

        assert_false(dsctl_parse_ids(bad[i], &none, &n, &where));
        assert_in_range((uintptr_t) where, (uintptr_t) bad[i], (uintptr_t) (bad[i] + 2));
    }
}

static void test_split_files_are_recognised_by_name(void **state)
{
    const char *const none[] = { "model.gguf",
                                 "m-00001-of-0003.gguf",
                                 "m-00004-of-00003.gguf",
                                 "m-00000-of-00003.gguf",
                                 "-00001-of-00003.gguf",
                                 "m-00001-of-00003.bin",
                                 "m-000 1-of-00003.gguf.part" };
    unsigned count;
    size_t stem;

    (void) state;
    assert_true(dsctl_split_name("/a/DeepSeek-R1-00002-of-00015.gguf", &count, &stem));
    assert_int_equal(count, 15);
    assert_int_equal(stem, strlen("/a/DeepSeek-R1"));
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_false(dsctl_split_name(none[i], &count, &stem));
}

static void test_messages_are_an_array_or_in_an_object(void **state)
{
    struct dsctl_messages messages;
    struct ds_error error;

    (void) state;
    assert_int_equal(dsctl_messages_parse(&messages,
                                          "[{\"role\":\"system\",\"content\":\"be\"},"
                                          "{\"role\":\"user\",\"content\":\"hi\"}]",
                                          &error),
                     0);
    assert_int_equal(messages.chat.n_messages, 2);
    assert_string_equal(messages.chat.messages[1]->role, "user");
    assert_memory_equal(messages.chat.messages[1]->content.data, "hi", 2);
    assert_int_equal(messages.chat.messages[1]->extra_json.len, 0);
    assert_false(messages.chat.no_generation_prompt);
    dsctl_messages_deinit(&messages);

    assert_int_equal(dsctl_messages_parse(
                         &messages,
                         "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"
                         "[1]}],\"tools\":[{\"a\":1}],\"variables\":{\"x\":2},"
                         "\"add_generation_prompt\":false}",
                         &error),
                     0);
    assert_int_equal(messages.chat.messages[0]->content.len, 0);
    assert_memory_equal(messages.chat.messages[0]->extra_json.data, "{\"tool_calls\":[1]}", 18);
    assert_memory_equal(messages.chat.tools_json.data, "[{\"a\":1}]", 9);
    assert_memory_equal(messages.chat.variables_json.data, "{\"x\":2}", 7);
    assert_true(messages.chat.no_generation_prompt);
    dsctl_messages_deinit(&messages);
}

static void test_messages_that_are_none_are_refused_with_a_reason(void **state)
{
    const char *const bad[] = { "",
                                "{",
                                "[]",
                                "{}",
                                "7",
                                "[{\"content\":\"x\"}]",
                                "[{\"role\":1,\"content\":\"x\"}]",
                                "[{\"role\":\"user\",\"content\":[1]}]",
                                "[\"hello\"]",
                                "[{\"role\":\"user\",\"content\":\"x\"}] trailing" };

    (void) state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct dsctl_messages messages;
        struct ds_error error = { "" };

        assert_int_equal(dsctl_messages_parse(&messages, bad[i], &error), -EINVAL);
        assert_true(error.text[0]);
        dsctl_messages_deinit(&messages);
    }
}

/* --- numbers -----------------------------------------------------------------------------------
 */

static void test_quantiles_are_values_that_occurred(void **state)
{
    uint64_t values[] = { 50, 10, 40, 20, 30, 60, 70, 80, 90, 100 };

    (void) state;
    dsctl_sort(values, 10);
    assert_int_equal(dsctl_quantile(values, 10, 0.5), 50);
    assert_int_equal(dsctl_quantile(values, 10, 0.9), 90);
    assert_int_equal(dsctl_quantile(values, 10, 0.99), 100);
    assert_int_equal(dsctl_quantile(values, 10, 0.0), 10);
    assert_int_equal(dsctl_quantile(values, 1, 0.999), 10);
}

static void test_the_deviation_is_a_samples(void **state)
{
    const double values[] = { 2, 4, 4, 4, 5, 5, 7, 9 };

    (void) state;
    assert_true(dsctl_mean(values, 8) == 5);
    assert_float_equal(dsctl_deviation(values, 8), 2.13808993529939, 1e-12);
    assert_true(dsctl_deviation(values, 1) == 0);
}

static void check_harmless(const char *text, const char *expected)
{
    char *printed = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&printed, &size);

    assert_non_null(out);
    dsctl_print_harmless(out, text, strlen(text));
    assert_int_equal(fclose(out), 0);
    assert_string_equal(printed, expected);
    free(printed);
}

static void test_what_a_model_says_cannot_command_a_terminal(void **state)
{
    (void) state;
    check_harmless("", "");
    check_harmless("two\tlines\nof \xc3\xa9t\xc3\xa9", "two\tlines\nof \xc3\xa9t\xc3\xa9");
    check_harmless("\033]0;title\a", "\xef\xbf\xbd]0;title\xef\xbf\xbd");
    check_harmless("a\033[2J", "a\xef\xbf\xbd[2J");
    check_harmless("one\r\ntwo\b\x7f", "one\ntwo\xef\xbf\xbd\xef\xbf\xbd");
    check_harmless("\xc2\x9b"
                   "2J\xc2\xa0",
                   "\xef\xbf\xbd"
                   "2J\xc2\xa0"); /* CSI in one character */
}

static void test_quoted_bytes_are_printable(void **state)
{
    static const char bytes[] = "\033 \xc2\x9b \xe2\x80 \xff \xc3\xa9 \" \xc2";
    char text[128];

    (void) state;
    assert_string_equal(dsctl_quoted(text, sizeof text, bytes, sizeof bytes - 1),
                        "\"\\x1b \\xc2\\x9b \\xe2\\x80 \\xff \xc3\xa9 \\\" \\xc2\"");
}

static void test_sizes_and_times_read_well(void **state)
{
    char text[64];

    (void) state;
    assert_string_equal(dsctl_bytes(text, 0), "0 B");
    assert_string_equal(dsctl_bytes(text, 999), "999 B");
    assert_string_equal(dsctl_bytes(text, 98362432), "98.4 MB");
    assert_string_equal(dsctl_bytes(text, 999999), "1.0 MB");
    assert_string_equal(dsctl_bytes(text, 670000000000), "670 GB");
    assert_string_equal(dsctl_duration(text, 59.9), "59 s");
    assert_string_equal(dsctl_duration(text, 3599), "59 min 59 s");
    assert_string_equal(dsctl_duration(text, 90000), "1 d 1 h");
    assert_string_equal(dsctl_quoted(text, sizeof text, "a\n\"\x01", 4), "\"a\\n\\\"\\x01\"");
}

static void test_an_adapter_may_have_a_scale(void **state)
{
    static const char *const none[] = { "", "=2", "fr=", "fr=much", "fr=nan" };
    struct dsctl_lora lora = { .scale_said = false };

    (void) state;
    assert_int_equal(dsctl_lora_take(&lora, "fr"), DSCTL_OK);
    assert_string_equal(lora.argument, "fr");
    assert_false(lora.scale_said);
    assert_int_equal(dsctl_lora_take(&lora, "./a=b/fr.gguf=-0.5"), DSCTL_OK);
    assert_string_equal(lora.argument, "./a=b/fr.gguf");
    assert_true(lora.scale_said && lora.scale == -0.5f);
    for (unsigned i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(dsctl_lora_take(&lora, none[i]), DSCTL_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thoughts_are_found_however_the_text_is_cut),
        cmocka_unit_test(test_shown_thoughts_are_marked),
        cmocka_unit_test(test_an_opening_tag_at_the_end_of_the_prompt_counts),
        cmocka_unit_test(test_the_three_ways_have_names),
        cmocka_unit_test(test_any_bytes_become_a_json_string),
        cmocka_unit_test(test_the_shapes_that_scripts_rely_on),
        cmocka_unit_test(test_every_reason_has_its_word),
        cmocka_unit_test(test_ids_are_read_exactly_or_not_at_all),
        cmocka_unit_test(test_split_files_are_recognised_by_name),
        cmocka_unit_test(test_an_adapter_may_have_a_scale),
        cmocka_unit_test(test_messages_are_an_array_or_in_an_object),
        cmocka_unit_test(test_messages_that_are_none_are_refused_with_a_reason),
        cmocka_unit_test(test_quantiles_are_values_that_occurred),
        cmocka_unit_test(test_the_deviation_is_a_samples),
        cmocka_unit_test(test_what_a_model_says_cannot_command_a_terminal),
        cmocka_unit_test(test_quoted_bytes_are_printable),
        cmocka_unit_test(test_sizes_and_times_read_well),
    };

    return cmocka_run_group_tests_name("dsctl", tests, NULL, NULL);
}
