/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/unicode.h"

/* Continuation bytes after a lead byte, 0 where it can start nothing. */
static int continuation_bytes(uint8_t lead)
{
    if (lead >= 0xC2 && lead <= 0xDF)
        return 1;
    if (lead >= 0xE0 && lead <= 0xEF)
        return 2;
    return lead >= 0xF0 && lead <= 0xF4 ? 3 : 0;
}

int ds_utf8_decode(const char *text, size_t size, uint32_t *ret_code_point)
{
    const uint8_t *bytes = (const uint8_t *) text;
    uint8_t low = 0x80, high = 0xBF; /* bounds of the second byte: no overlongs, no surrogates */
    uint32_t code_point;
    int n = continuation_bytes(bytes[0]);

    if (bytes[0] < 0x80) {
        *ret_code_point = bytes[0];
        return 1;
    }
    if (n == 0)
        return -1;
    if (bytes[0] == 0xE0)
        low = 0xA0;
    else if (bytes[0] == 0xED)
        high = 0x9F;
    else if (bytes[0] == 0xF0)
        low = 0x90;
    else if (bytes[0] == 0xF4)
        high = 0x8F;

    code_point = bytes[0] & (0x3Fu >> n);
    for (int i = 1; i <= n; i++) {
        if ((size_t) i >= size)
            return 0;
        if (bytes[i] < low || bytes[i] > high)
            return -i;
        code_point = code_point << 6 | (bytes[i] & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    *ret_code_point = code_point;
    return n + 1;
}

unsigned ds_utf8_encode(uint32_t code_point, char text[static 4])
{
    if (code_point < 0x80) {
        text[0] = (char) code_point;
        return 1;
    }
    if (code_point < 0x800) {
        text[0] = (char) (0xC0 | code_point >> 6);
        text[1] = (char) (0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        text[0] = (char) (0xE0 | code_point >> 12);
        text[1] = (char) (0x80 | (code_point >> 6 & 0x3F));
        text[2] = (char) (0x80 | (code_point & 0x3F));
        return 3;
    }
    text[0] = (char) (0xF0 | code_point >> 18);
    text[1] = (char) (0x80 | (code_point >> 12 & 0x3F));
    text[2] = (char) (0x80 | (code_point >> 6 & 0x3F));
    text[3] = (char) (0x80 | (code_point & 0x3F));
    return 4;
}
