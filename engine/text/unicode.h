/* SPDX-License-Identifier: Apache-2.0 */
/*
 * unicode.h - characters of UTF-8 text and what kind of character they are.
 *
 * The table is generated at build time from the Unicode Character Database (unicode_gen.c); blocks
 * of 128 code points that are alike share one block. Everything here is pure: any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum ds_unicode_flag {
    DS_LETTER = 1u << 0,      /* general category L* */
    DS_NUMBER = 1u << 1,      /* N* */
    DS_PUNCTUATION = 1u << 2, /* P* */
    DS_SYMBOL = 1u << 3,      /* S* */
    DS_MARK = 1u << 4,        /* M* */
    DS_SPACE = 1u << 5,       /* property White_Space */
    DS_UPPER = 1u << 6,       /* Lu and Lt */
    DS_LOWER = 1u << 7,       /* Ll */
};

#define DS_CODE_POINTS   0x110000u
#define DS_UNICODE_BLOCK 128u
#define DS_REPLACEMENT   0xFFFDu /* U+FFFD, what invalid bytes count as */

/* In the generated unicode_data.c. */
extern const uint16_t ds_unicode_blocks[DS_CODE_POINTS / DS_UNICODE_BLOCK];
extern const uint8_t ds_unicode_data[];

/* Flags of a code point; 0 for unassigned ones, controls, and numbers beyond Unicode. */
static inline unsigned ds_unicode_flags(uint32_t code_point)
{
    if (code_point >= DS_CODE_POINTS)
        return 0;
    return ds_unicode_data[ds_unicode_blocks[code_point / DS_UNICODE_BLOCK] * DS_UNICODE_BLOCK +
                           code_point % DS_UNICODE_BLOCK];
}

/* Decodes the character at text; size > 0 bytes are there. Returns
 *   n > 0   a character of n bytes; *ret_code_point is set
 *   0       the text ends within a character that is valid so far
 *   -n      n bytes that can be part of no character (Unicode's maximal subpart)
 * Overlong forms, surrogates and numbers above U+10FFFF are invalid. */
int ds_utf8_decode(const char *text, size_t size, uint32_t *ret_code_point);

/* The same for scanners, which must get on: what is invalid or cut off counts as U+FFFD, byte by
 * byte. Returns 1..4. */
static inline unsigned ds_utf8_step(const char *text, size_t size, uint32_t *ret_code_point)
{
    int n;

    if ((unsigned char) text[0] < 0x80) {
        *ret_code_point = (unsigned char) text[0];
        return 1;
    }
    n = ds_utf8_decode(text, size, ret_code_point);
    if (n > 0)
        return (unsigned) n;
    *ret_code_point = DS_REPLACEMENT;
    return 1;
}

/* Writes code_point (< DS_CODE_POINTS) as UTF-8: 1..4 bytes. */
unsigned ds_utf8_encode(uint32_t code_point, char text[static 4]);
