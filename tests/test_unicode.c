/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: every character is decoded and classed as Unicode says, every other byte string refused.
 * Method: all code points there and back; the boundary cases of Unicode's table 3-7; categories of
 * known characters, counts per category and the whole set of white space.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/text/byte_level.h"
#include "engine/text/unicode.h"
#include "proto/base.h"

static void every_code_point_survives_encoding_and_decoding(void **state)
{
    (void) state;
    for (uint32_t code_point = 0; code_point < DS_CODE_POINTS; code_point++) {
        bool surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
        char text[4];
        unsigned size = ds_utf8_encode(code_point, text);
        uint32_t decoded = UINT32_MAX;
        int n = ds_utf8_decode(text, size, &decoded);

        if (surrogate) {
            assert_true(n < 0);
            continue;
        }
        assert_int_equal(n, size);
        assert_int_equal(decoded, code_point);
        for (unsigned cut = 1; cut < size; cut++)
            assert_int_equal(ds_utf8_decode(text, cut, &decoded), 0);
    }
}

static void bytes_that_are_no_character_are_refused_by_maximal_subparts(void **state)
{
    static const struct {
        const char *bytes;
        int expected;
    } cases[] = {
        { "\x80", -1 }, /* a continuation alone */
        { "\xBFz", -1 },
        { "\xC0\xAF", -1 }, /* overlong: C0 and C1 start nothing */
        { "\xC1\xBF", -1 },
        { "\xE0\x9F\xBF", -1 },     /* overlong in three */
        { "\xED\xA0\x80", -1 },     /* a surrogate */
        { "\xF0\x8F\xBF\xBF", -1 }, /* overlong in four */
        { "\xF4\x90\x80\x80", -1 }, /* above U+10FFFF */
        { "\xF5\x80\x80\x80", -1 },
        { "\xFFz", -1 },
        { "\xC3z", -1 },
        { "\xE4\xBDz", -2 },
        { "\xF0\x9F\xA6z", -3 },
        { "\xF0\x9Fz", -2 },
        { "\xE4", 0 }, /* could go on */
        { "\xF0\x9F\xA6", 0 },
        { "\xF4\x8F", 0 },
        { "\xED\x9F", 0 },
    };

    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t code_point = 0;

        assert_int_equal(ds_utf8_decode(cases[i].bytes, strlen(cases[i].bytes), &code_point),
                         cases[i].expected);
        assert_int_equal(ds_utf8_step(cases[i].bytes, strlen(cases[i].bytes), &code_point), 1);
        assert_int_equal(code_point, DS_REPLACEMENT);
    }
}

static void characters_have_the_flags_of_their_category(void **state)
{
    static const struct {
        uint32_t code_point;
        unsigned flags;
    } cases[] = {
        { 'A', DS_LETTER | DS_UPPER },
        { 'z', DS_LETTER | DS_LOWER },
        { '0', DS_NUMBER },
        { ' ', DS_SPACE },
        { '\n', DS_SPACE },
        { 0x00, 0 },
        { 0x1C, 0 }, /* a separator for programs, not white space */
        { '_', DS_PUNCTUATION },
        { '$', DS_SYMBOL },
        { '`', DS_SYMBOL },
        { 0x85, DS_SPACE },
        { 0xA0, DS_SPACE },
        { 0xAA, DS_LETTER },             /* ordinal indicator, Lo */
        { 0xB2, DS_NUMBER },             /* superscript two, No */
        { 0xBD, DS_NUMBER },             /* one half */
        { 0x1C5, DS_LETTER | DS_UPPER }, /* title case */
        { 0x301, DS_MARK },
        { 0x378, 0 },  /* unassigned */
        { 0x200B, 0 }, /* zero width space is a format character */
        { 0x200D, 0 }, /* joiner */
        { 0x2028, DS_SPACE },
        { 0x2581, DS_SYMBOL }, /* SentencePiece's space */
        { 0x3000, DS_SPACE },
        { 0x3001, DS_PUNCTUATION },
        { 0x3005, DS_LETTER },
        { 0x4E00, DS_LETTER }, /* ends and inside of ranges given by first and last */
        { 0x6211, DS_LETTER },
        { 0x9FFF, DS_LETTER },
        { 0xAC00, DS_LETTER },
        { 0xD7A3, DS_LETTER },
        { 0xD7A4, 0 },
        { 0xD800, 0 },
        { 0xE000, 0 }, /* private use */
        { 0xFEFF, 0 },
        { 0xFF1A, DS_PUNCTUATION },
        { 0xFFFD, DS_SYMBOL },
        { 0x1F999, DS_SYMBOL },
        { 0x20000, DS_LETTER },
        { 0x10FFFF, 0 },
        { 0x110000, 0 },
        { UINT32_MAX, 0 },
    };

    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (ds_unicode_flags(cases[i].code_point) != cases[i].flags)
            fail_msg("U+%04X has flags %#x, not %#x", cases[i].code_point,
                     ds_unicode_flags(cases[i].code_point), cases[i].flags);
}

static void white_space_is_the_published_set(void **state)
{
    static const uint32_t spaces[] = { 0x09,   0x0A,   0x0B,   0x0C,   0x0D,   0x20,   0x85,
                                       0xA0,   0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004,
                                       0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A, 0x2028,
                                       0x2029, 0x202F, 0x205F, 0x3000 };
    size_t n = 0;

    (void) state;
    for (uint32_t code_point = 0; code_point < DS_CODE_POINTS; code_point++) {
        if (!(ds_unicode_flags(code_point) & DS_SPACE))
            continue;
        assert_true(n < sizeof spaces / sizeof spaces[0]);
        assert_int_equal(code_point, spaces[n]);
        n++;
    }
    assert_int_equal(n, sizeof spaces / sizeof spaces[0]);
}

/* Categories only grow from one Unicode version to the next: the counts are those of version 14. */
static void no_category_is_smaller_than_it_was(void **state)
{
    static const unsigned at_least[] = { 131756, 1791, 819, 7741, 2408, 25, 1862, 2227 };
    unsigned count[8] = { 0 };

    (void) state;
    for (uint32_t code_point = 0; code_point < DS_CODE_POINTS; code_point++) {
        unsigned flags = ds_unicode_flags(code_point);
        unsigned kind = flags & (DS_LETTER | DS_NUMBER | DS_PUNCTUATION | DS_SYMBOL | DS_MARK);

        assert_int_equal(kind & (kind - 1), 0); /* one category at most */
        assert_true(!(flags & (DS_UPPER | DS_LOWER)) || (flags & DS_LETTER));
        for (unsigned bit = 0; bit < 8; bit++)
            count[bit] += flags >> bit & 1;
    }
    for (unsigned bit = 0; bit < 8; bit++)
        assert_in_range(count[bit], at_least[bit], at_least[bit] + at_least[bit] / 4);
}

static void bytes_and_their_printable_alphabet_map_one_to_one(void **state)
{
    bool seen[0x144] = { false };
    int n_bytes = 0;

    (void) state;
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t code_point = ds_byte_level_code_point((uint8_t) byte);

        assert_true(code_point < 0x144 && !seen[code_point]);
        assert_int_equal(ds_byte_level_byte(code_point), byte);
        assert_int_equal(ds_unicode_flags(code_point) & DS_SPACE, 0);
        seen[code_point] = true;
    }
    for (uint32_t code_point = 0; code_point < 0x400; code_point++)
        n_bytes += ds_byte_level_byte(code_point) >= 0;
    assert_int_equal(n_bytes, 256);
    assert_int_equal(ds_byte_level_code_point(' '), 0x120);
    assert_int_equal(ds_byte_level_code_point('\n'), 0x10A);
    assert_int_equal(ds_byte_level_code_point(0xAD), 0x143);
    assert_int_equal(ds_byte_level_code_point('a'), 'a');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_survives_encoding_and_decoding),
        cmocka_unit_test(bytes_that_are_no_character_are_refused_by_maximal_subparts),
        cmocka_unit_test(characters_have_the_flags_of_their_category),
        cmocka_unit_test(white_space_is_the_published_set),
        cmocka_unit_test(no_category_is_smaller_than_it_was),
        cmocka_unit_test(bytes_and_their_printable_alphabet_map_one_to_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
