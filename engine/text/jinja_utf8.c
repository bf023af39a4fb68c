/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/jinja_utf8.h"

static bool is_tail(char c)
{
    return ((unsigned char) c & 0xc0) == 0x80;
}

size_t ds_utf8_first(struct ds_bytes text)
{
    const unsigned char *s = (const unsigned char *) text.data;
    size_t n;

    if (text.size == 0)
        return 0;
    n = s[0] < 0xc2 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 1;
    if (n > text.size)
        return 1;
    for (size_t i = 1; i < n; i++)
        if (!is_tail(text.data[i]))
            return 1;
    return n;
}

size_t ds_utf8_last(struct ds_bytes text)
{
    for (size_t n = 1; n <= 4 && n <= text.size; n++) {
        struct ds_bytes tail = { text.data + text.size - n, n };

        if (!is_tail(*tail.data))
            return ds_utf8_first(tail) == n ? n : 1;
    }
    return text.size ? 1 : 0;
}

size_t ds_utf8_count(struct ds_bytes text)
{
    size_t count = 0;

    while (text.size) {
        size_t n = ds_utf8_first(text);

        text.data += n;
        text.size -= n;
        count++;
    }
    return count;
}

unsigned ds_utf8_code(const char *text, size_t n)
{
    unsigned code = (unsigned char) text[0];

    if (n == 1)
        return code < 0x80 ? code : 0xfffd;
    code &= 0xffu >> (n + 1);
    for (size_t i = 1; i < n; i++)
        code = code << 6 | ((unsigned char) text[i] & 0x3fu);
    return code;
}

size_t ds_utf8_put(unsigned code, char *to)
{
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        code = 0xfffd;
    if (code < 0x80) {
        to[0] = (char) code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (char) (0xc0 | code >> 6);
        to[1] = (char) (0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (char) (0xe0 | code >> 12);
        to[1] = (char) (0x80 | (code >> 6 & 0x3f));
        to[2] = (char) (0x80 | (code & 0x3f));
        return 3;
    }
    to[0] = (char) (0xf0 | code >> 18);
    to[1] = (char) (0x80 | (code >> 12 & 0x3f));
    to[2] = (char) (0x80 | (code >> 6 & 0x3f));
    to[3] = (char) (0x80 | (code & 0x3f));
    return 4;
}

bool ds_utf8_is_space(unsigned code)
{
    return (code >= 9 && code <= 13) || (code >= 28 && code <= 32) || code == 0x85 ||
           code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
           code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

size_t ds_utf8_space_front(struct ds_bytes text)
{
    size_t at = 0;

    while (at < text.size) {
        size_t n = ds_utf8_first((struct ds_bytes){ text.data + at, text.size - at });

        if (!ds_utf8_is_space(ds_utf8_code(text.data + at, n)))
            break;
        at += n;
    }
    return at;
}

size_t ds_utf8_space_back(struct ds_bytes text)
{
    size_t left = text.size;

    while (left > 0) {
        size_t n = ds_utf8_last((struct ds_bytes){ text.data, left });

        if (!ds_utf8_is_space(ds_utf8_code(text.data + left - n, n)))
            break;
        left -= n;
    }
    return text.size - left;
}

/* --- case --- */

/* Blocks where capitals are even and their small letters follow. */
static bool is_pair_even(unsigned c)
{
    return (c >= 0x100 && c <= 0x137 && c != 0x130 && c != 0x131) || (c >= 0x14a && c <= 0x177) ||
           (c >= 0x460 && c <= 0x481) || (c >= 0x48a && c <= 0x4bf);
}

static bool is_pair_odd(unsigned c)
{
    return (c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17e);
}

unsigned ds_utf8_lower(unsigned c)
{
    if ((c >= 'A' && c <= 'Z') || (c >= 0xc0 && c <= 0xde && c != 0xd7) ||
        (c >= 0x391 && c <= 0x3ab && c != 0x3a2) || (c >= 0x410 && c <= 0x42f))
        return c + 32;
    if (c >= 0x400 && c <= 0x40f)
        return c + 80;
    if (is_pair_even(c))
        return c | 1;
    if (is_pair_odd(c))
        return c & 1 ? c + 1 : c;
    return c == 0x178 ? 0xff : c;
}

unsigned ds_utf8_upper(unsigned c)
{
    if ((c >= 'a' && c <= 'z') || (c >= 0xe0 && c <= 0xfe && c != 0xf7) ||
        (c >= 0x3b1 && c <= 0x3cb && c != 0x3c2) || (c >= 0x430 && c <= 0x44f))
        return c - 32;
    if (c == 0x3c2) /* final sigma */
        return 0x3a3;
    if (c >= 0x450 && c <= 0x45f)
        return c - 80;
    if (is_pair_even(c))
        return c & ~1u;
    if (is_pair_odd(c))
        return c & 1 ? c : c - 1;
    return c == 0xff ? 0x178 : c == 0xb5 ? 0x39c : c == 0x131 ? 'I' : c;
}

bool ds_utf8_is_letter(unsigned c)
{
    if (c < 0x80)
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c < 0xc0)
        return c == 0xaa || c == 0xb5 || c == 0xba;
    return c != 0xd7 && c != 0xf7 && !ds_utf8_is_space(c) && (c < 0x2000 || c > 0x2bff) &&
           (c < 0x3000 || c > 0x3020) && (c < 0xff00 || c > 0xff20) && c < 0x1f000;
}
