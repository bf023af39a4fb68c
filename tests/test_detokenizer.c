/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a stream's text is the whole text, cut before the first stop string; what has been given
 * out is whole characters, never part of a stop string, and a function of the tokens so far.
 * Method: random tokens and stop strings against a plain implementation that has the whole text;
 * after every token what was given out is compared with what these tokens alone say; cases by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/text/detokenizer.h"
#include "engine/text/unicode.h"
#include "tests/lib/random_vocab.h"

#define N_IDS 60

struct text {
    char data[N_IDS * 3 * 64];
    size_t size;
};

static void append(struct text *text, struct ds_bytes bytes)
{
    assert_true(text->size + bytes.size <= sizeof text->data);
    if (bytes.size > 0)
        memcpy(text->data + text->size, bytes.data, bytes.size);
    text->size += bytes.size;
}

static struct ds_bytes of(const char *text)
{
    return (struct ds_bytes){ text, strlen(text) };
}

/* The bytes with U+FFFD for what is no character. */
static void make_valid(struct text *text, const char *bytes, size_t size)
{
    text->size = 0;
    for (size_t at = 0; at < size;) {
        uint32_t code_point;
        int n = ds_utf8_decode(bytes + at, size - at, &code_point);

        append(text, n > 0 ? (struct ds_bytes){ bytes + at, (size_t) n } : of("\uFFFD"));
        at += n > 0 ? (size_t) n : n < 0 ? (size_t) -n : size - at;
    }
}

static bool is_valid(const char *bytes, size_t size)
{
    uint32_t code_point;
    int n;

    for (size_t at = 0; at < size; at += (size_t) n) {
        n = ds_utf8_decode(bytes + at, size - at, &code_point);
        if (n <= 0)
            return false;
    }
    return true;
}

static bool ends_in(const struct text *text, size_t end, struct ds_bytes stop, size_t size)
{
    return end >= size && memcmp(text->data + end - size, stop.data, size) == 0;
}

/* The stop string that is complete first, of several the longest; where it starts. -1: none. */
static int find_stop(const struct text *text, const struct ds_bytes *stops, unsigned n_stops,
                     size_t *ret_start)
{
    for (size_t end = 1; end <= text->size; end++) {
        int found = -1;

        for (unsigned s = 0; s < n_stops; s++)
            if (stops[s].size > 0 && is_valid(stops[s].data, stops[s].size) &&
                ends_in(text, end, stops[s], stops[s].size) &&
                (found < 0 || stops[s].size > stops[found].size))
                found = (int) s;
        if (found >= 0) {
            *ret_start = end - stops[found].size;
            return found;
        }
    }
    return -1;
}

/* The longest end of the text that a stop string starts with. */
static size_t must_hold(const struct text *text, const struct ds_bytes *stops, unsigned n_stops)
{
    size_t held = 0;

    for (unsigned s = 0; s < n_stops; s++)
        for (size_t size = 1; size < stops[s].size; size++)
            if (is_valid(stops[s].data, stops[s].size) && size > held &&
                ends_in(text, text->size, stops[s], size))
                held = size;
    return held;
}

struct run {
    const struct ds_tokenizer *tokenizer;
    uint32_t ids[N_IDS];
    size_t n_ids;
    struct ds_bytes stops[4];
    unsigned n_stops;
    bool skip_control;
};

static struct ds_detokenizer *start(const struct run *run)
{
    struct ds_detokenizer *detokenizer = NULL;

    assert_int_equal(ds_detokenizer_new(&detokenizer, run->tokenizer, run->stops, run->n_stops,
                                        run->skip_control),
                     0);
    assert_int_equal(ds_detokenizer_stop(detokenizer), -1);
    return detokenizer;
}

/* What the first n tokens must have given out (all: and the end of the answer), from the whole
 * text. Returns the index of the stop string or -1. */
static int expected_text(const struct run *run, size_t n, bool all, struct text *text)
{
    char *bytes = NULL;
    size_t size = 0, cut, partial = 0;
    uint32_t code_point;
    int stop;

    assert_int_equal(
        ds_tokenizer_decode(run->tokenizer, run->ids, n, run->skip_control, false, &bytes, &size),
        0);
    for (size_t at = 0; at < size && partial == 0;) { /* an unfinished character at the end */
        int length = ds_utf8_decode(bytes + at, size - at, &code_point);

        partial = length == 0 ? size - at : 0;
        at += (size_t) (length < 0 ? -length : length);
    }
    make_valid(text, bytes, all ? size : size - partial);
    free(bytes);
    stop = find_stop(text, run->stops, run->n_stops, &cut);
    if (stop >= 0)
        text->size = cut;
    else if (!all)
        text->size -= must_hold(text, run->stops, run->n_stops);
    return stop;
}

static void check_run(const struct run *run)
{
    struct ds_detokenizer *detokenizer = start(run);
    struct text given = { .size = 0 }, expected;
    struct ds_bytes text;

    for (size_t n = 1; n <= run->n_ids; n++) {
        int r = ds_detokenizer_push(detokenizer, run->ids[n - 1], &text);
        int stop = expected_text(run, n, false, &expected);

        append(&given, text);
        assert_int_equal(r, stop >= 0 ? DS_DETOKENIZER_STOPPED : DS_DETOKENIZER_GO_ON);
        assert_int_equal(ds_detokenizer_stop(detokenizer), stop);
        assert_int_equal(given.size, expected.size);
        assert_memory_equal(given.data, expected.data, given.size);
        assert_true(is_valid(given.data, given.size));
    }
    assert_int_equal(ds_detokenizer_finish(detokenizer, &text), 0);
    append(&given, text);
    assert_int_equal(ds_detokenizer_stop(detokenizer),
                     expected_text(run, run->n_ids, true, &expected));
    assert_int_equal(given.size, expected.size);
    assert_memory_equal(given.data, expected.data, given.size);
    ds_detokenizer_free(detokenizer);
}

/* A stop string that has a chance: a part of the text, or few letters. */
static struct ds_bytes some_stop(struct ds_dice *random, const struct text *text)
{
    size_t size = 1 + ds_dice_below(random, 6);
    char *stop;

    if (ds_dice_below(random, 3) == 0 || text->size < size) {
        stop = ds_random_text(random, size, &size);
    } else {
        stop = malloc(size);
        assert_non_null(stop);
        memcpy(stop, text->data + ds_dice_below(random, (uint32_t) (text->size - size + 1)), size);
    }
    return (struct ds_bytes){ stop, size };
}

/* Letters a and b only: stop strings that overlap themselves, found late or never. */
static void check_two_letter_run(struct ds_dice *random, const struct ds_tokenizer *tokenizer)
{
    struct run run = { .tokenizer = tokenizer, .n_stops = 1 + ds_dice_below(random, 2) };
    char stops[2][12];

    for (unsigned s = 0; s < run.n_stops; s++) {
        run.stops[s] = (struct ds_bytes){ stops[s], 5 + ds_dice_below(random, 7) };
        for (size_t i = 0; i < run.stops[s].size; i++)
            stops[s][i] = ds_dice_below(random, 3) ? 'a' : 'b';
    }
    for (run.n_ids = 0; run.n_ids < N_IDS; run.n_ids++)
        run.ids[run.n_ids] = ds_dice_below(random, 3) ? 'a' : 'b'; /* a byte's id is the byte */
    check_run(&run);
}

static bool check_random_run(struct ds_dice *random, const struct ds_tokenizer *tokenizer)
{
    struct run run = { .tokenizer = tokenizer, .skip_control = ds_dice_below(random, 2) };
    struct text whole;
    size_t cut;
    bool stopped;

    for (run.n_ids = 0; run.n_ids < N_IDS; run.n_ids++) {
        /* beyond the vocabulary now and then; often a byte: half characters */
        uint32_t n = ds_tokenizer_n_tokens(tokenizer) + 2;

        run.ids[run.n_ids] =
            ds_dice_below(random, 3) ? ds_dice_below(random, n) : 192 + ds_dice_below(random, 64);
    }
    (void) expected_text(&run, N_IDS, true, &whole);
    for (uint32_t n = ds_dice_below(random, 5); n > 0; n--)
        run.stops[run.n_stops++] = some_stop(random, &whole);
    stopped = find_stop(&whole, run.stops, run.n_stops, &cut) >= 0;
    check_run(&run);
    for (unsigned s = 0; s < run.n_stops; s++)
        free((char *) run.stops[s].data);
    return stopped;
}

static void a_random_stream_gives_the_whole_text_up_to_the_first_stop(void **state)
{
    struct ds_dice random = { 11 };
    int n_stopped = 0;

    (void) state;
    for (int round = 0; round < 60; round++) {
        struct ds_random_vocab *random_vocab =
            round % 2 ? ds_random_vocab_bpe(&random, "gpt-2") : ds_random_vocab_spm(&random, true);
        struct ds_tokenizer *tokenizer = NULL;

        assert_int_equal(ds_tokenizer_new(&tokenizer, &random_vocab->vocab, NULL), 0);
        for (int i = 0; i < 50; i++)
            n_stopped += check_random_run(&random, tokenizer);
        ds_tokenizer_free(tokenizer);
        ds_random_vocab_free(random_vocab);
    }
    assert_in_range(n_stopped, 500, 2500); /* both kinds of run are common */
}

/* --- by hand: a vocabulary whose tokens are what a test needs --- */

struct fixture {
    struct ds_random_vocab *random_vocab;
    struct ds_tokenizer *tokenizer;
    struct ds_detokenizer *detokenizer;
};

static void fixture_start(struct fixture *fixture, const char *const *tokens, size_t n_tokens,
                          const struct ds_bytes *stops, unsigned n_stops)
{
    fixture->random_vocab = ds_random_vocab_new(DS_VOCAB_SPM, "");
    for (size_t i = 0; i < n_tokens; i++)
        ds_random_vocab_string(fixture->random_vocab, tokens[i],
                               tokens[i][0] == '<' ? DS_TOKEN_CONTROL : DS_TOKEN_USER, 0);
    assert_int_equal(ds_tokenizer_new(&fixture->tokenizer, &fixture->random_vocab->vocab, NULL), 0);
    assert_int_equal(
        ds_detokenizer_new(&fixture->detokenizer, fixture->tokenizer, stops, n_stops, true), 0);
}

static void fixture_end(struct fixture *fixture)
{
    ds_detokenizer_free(fixture->detokenizer);
    ds_tokenizer_free(fixture->tokenizer);
    ds_random_vocab_free(fixture->random_vocab);
}

static void push(struct fixture *fixture, uint32_t id, int expected, const char *text)
{
    struct ds_bytes given;

    assert_int_equal(ds_detokenizer_push(fixture->detokenizer, id, &given), expected);
    assert_int_equal(given.size, strlen(text));
    assert_memory_equal(given.data, text, given.size);
}

static void finish(struct fixture *fixture, const char *text)
{
    struct ds_bytes given;

    assert_int_equal(ds_detokenizer_finish(fixture->detokenizer, &given), 0);
    assert_int_equal(given.size, strlen(text));
    assert_memory_equal(given.data, text, given.size);
}

static void stop_strings_that_overlap_themselves_are_found(void **state)
{
    struct ds_dice random = { 12 };
    struct ds_random_vocab *random_vocab = ds_random_vocab_new(DS_VOCAB_BPE, "gpt-2");
    struct ds_tokenizer *tokenizer = NULL;

    (void) state;
    ds_random_vocab_bytes(random_vocab);
    assert_int_equal(ds_tokenizer_new(&tokenizer, &random_vocab->vocab, NULL), 0);
    for (int round = 0; round < 500; round++)
        check_two_letter_run(&random, tokenizer);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

static void half_characters_wait_for_their_other_half(void **state)
{
    static const char *const tokens[] = { "\xF0\x9F", "\xA6", "\x99!", "a" };
    struct fixture fixture;

    (void) state;
    fixture_start(&fixture, tokens, 4, NULL, 0);
    push(&fixture, 3, 0, "a");
    push(&fixture, 0, 0, "");
    push(&fixture, 1, 0, "");
    push(&fixture, 2, 0, "\U0001F999!");
    push(&fixture, 0, 0, "");
    push(&fixture, 3, 0, "\uFFFDa"); /* the other half never came */
    push(&fixture, 1, 0, "\uFFFD");
    push(&fixture, 0, 0, "");
    finish(&fixture, "\uFFFD");
    fixture_end(&fixture);
}

static void what_could_become_a_stop_string_waits(void **state)
{
    static const char *const tokens[] = { "\nUs", "er", ":", "x", " aab", "aab", "aac" };
    const struct ds_bytes stops[] = { of("\nUser:"), of("aabaac") };
    struct fixture fixture;

    (void) state;
    fixture_start(&fixture, tokens, 7, stops, 2);
    push(&fixture, 3, DS_DETOKENIZER_GO_ON, "x");
    push(&fixture, 0, DS_DETOKENIZER_GO_ON, "");
    push(&fixture, 1, DS_DETOKENIZER_GO_ON, "");
    push(&fixture, 3, DS_DETOKENIZER_GO_ON, "\nUserx");
    push(&fixture, 4, DS_DETOKENIZER_GO_ON, " ");
    push(&fixture, 5, DS_DETOKENIZER_GO_ON, "aab"); /* "aabaab": only "aab" may still go on */
    push(&fixture, 6, DS_DETOKENIZER_STOPPED, "");
    assert_int_equal(ds_detokenizer_stop(fixture.detokenizer), 1);
    push(&fixture, 3, DS_DETOKENIZER_STOPPED, ""); /* nothing follows a stop */
    finish(&fixture, "");
    fixture_end(&fixture);

    fixture_start(&fixture, tokens, 7, stops, 2);
    push(&fixture, 0, DS_DETOKENIZER_GO_ON, "");
    push(&fixture, 1, DS_DETOKENIZER_GO_ON, "");
    finish(&fixture, "\nUser");
    fixture_end(&fixture);
}

static void of_stop_strings_complete_at_once_the_longest_counts(void **state)
{
    static const char *const tokens[] = { "xabc", "d" };
    const struct ds_bytes stops[] = { of("c"), of("abc"), of("bc"), of("abcd") };
    struct fixture fixture;

    (void) state;
    fixture_start(&fixture, tokens, 2, stops, 4);
    push(&fixture, 0, DS_DETOKENIZER_STOPPED, "x");
    assert_int_equal(ds_detokenizer_stop(fixture.detokenizer), 1);
    fixture_end(&fixture);
}

static void control_tokens_give_text_only_where_they_are_wanted(void **state)
{
    static const char *const tokens[] = { "<end>", "a" };
    const struct ds_bytes stops[] = { of("<end>") };
    struct ds_bytes given;
    struct ds_detokenizer *shown = NULL;
    struct fixture fixture;

    (void) state;
    fixture_start(&fixture, tokens, 2, stops, 1);
    push(&fixture, 1, DS_DETOKENIZER_GO_ON, "a");
    push(&fixture, 0, DS_DETOKENIZER_GO_ON, "");
    push(&fixture, 4711, DS_DETOKENIZER_GO_ON, "");
    assert_int_equal(ds_detokenizer_new(&shown, fixture.tokenizer, NULL, 0, false), 0);
    assert_int_equal(ds_detokenizer_push(shown, 0, &given), DS_DETOKENIZER_GO_ON);
    assert_int_equal(given.size, 5);
    assert_memory_equal(given.data, "<end>", 5);
    ds_detokenizer_free(shown);
    fixture_end(&fixture);
}

static void a_continuation_keeps_its_space(void **state)
{
    struct ds_random_vocab *spm = ds_random_vocab_new(DS_VOCAB_SPM, "");
    struct ds_detokenizer *detokenizer = NULL;
    struct ds_tokenizer *tokenizer = NULL;
    struct ds_bytes given;

    (void) state;
    ds_random_vocab_string(spm, "\u2581day", DS_TOKEN_NORMAL, 0);
    assert_int_equal(ds_tokenizer_new(&tokenizer, &spm->vocab, NULL), 0);
    assert_int_equal(ds_detokenizer_new(&detokenizer, tokenizer, NULL, 0, true), 0);
    assert_int_equal(ds_detokenizer_push(detokenizer, 0, &given), 0);
    assert_int_equal(given.size, 4);
    assert_memory_equal(given.data, " day", 4);
    ds_detokenizer_free(detokenizer);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(spm);
}

static void stop_strings_beyond_the_limits_are_refused_and_odd_ones_never_match(void **state)
{
    static const char *const tokens[] = { "\x80", "\xE4\xBD", "\xA0", "a" };
    struct ds_bytes stops[DS_STOP_STRINGS_MAX + 1] = { of("\x80"), of(""), of("\xBD\xA0"),
                                                       of("\xE4\xBD") };
    struct ds_detokenizer *detokenizer = NULL;
    char long_stop[DS_STOP_BYTES_MAX + 1];
    struct fixture fixture;

    (void) state;
    fixture_start(&fixture, tokens, 4, stops, 4);
    push(&fixture, 0, DS_DETOKENIZER_GO_ON, "\uFFFD");
    push(&fixture, 1, DS_DETOKENIZER_GO_ON, "");
    push(&fixture, 2, DS_DETOKENIZER_GO_ON, "\u4f60");
    for (size_t i = 0; i <= DS_STOP_STRINGS_MAX; i++)
        stops[i] = of("stop");
    assert_int_equal(
        ds_detokenizer_new(&detokenizer, fixture.tokenizer, stops, DS_STOP_STRINGS_MAX + 1, true),
        -EINVAL);
    memset(long_stop, 'a', sizeof long_stop);
    stops[1] = (struct ds_bytes){ long_stop, sizeof long_stop };
    assert_int_equal(ds_detokenizer_new(&detokenizer, fixture.tokenizer, stops, 2, true), -EINVAL);
    assert_null(detokenizer);
    fixture_end(&fixture);

    stops[0] = (struct ds_bytes){ long_stop, DS_STOP_BYTES_MAX }; /* the longest allowed */
    fixture_start(&fixture, tokens, 4, stops, 1);
    for (unsigned i = 0; i < DS_STOP_BYTES_MAX - 1; i++)
        push(&fixture, 3, DS_DETOKENIZER_GO_ON, "");
    push(&fixture, 3, DS_DETOKENIZER_STOPPED, "");
    fixture_end(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_random_stream_gives_the_whole_text_up_to_the_first_stop),
        cmocka_unit_test(stop_strings_that_overlap_themselves_are_found),
        cmocka_unit_test(half_characters_wait_for_their_other_half),
        cmocka_unit_test(what_could_become_a_stop_string_waits),
        cmocka_unit_test(of_stop_strings_complete_at_once_the_longest_counts),
        cmocka_unit_test(control_tokens_give_text_only_where_they_are_wanted),
        cmocka_unit_test(a_continuation_keeps_its_space),
        cmocka_unit_test(stop_strings_beyond_the_limits_are_refused_and_odd_ones_never_match),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
