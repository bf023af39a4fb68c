/* SPDX-License-Identifier: Apache-2.0 */
/*
 * byte_level.h - the printable alphabet in which byte-level BPE writes bytes.
 *
 * Bytes 21-7E, A1-AC and AE-FF stand for the code point of the same number; the 68 others, in
 * order, for U+0100 and up (a space is U+0120). Source: the GPT-2 encoder's published byte table.
 */
#pragma once

#include <stdint.h>

static inline uint32_t ds_byte_level_code_point(uint8_t byte)
{
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return 0x121u + (byte - 0x7Fu);
    return byte == 0xAD ? 0x143u : byte;
}

/* The byte a code point stands for, -1 where it stands for none. */
static inline int ds_byte_level_byte(uint32_t code_point)
{
    if (code_point >= 0x100 && code_point <= 0x120)
        return (int) code_point - 0x100;
    if (code_point >= 0x121 && code_point <= 0x142)
        return (int) code_point - 0x121 + 0x7F;
    if (code_point == 0x143)
        return 0xAD;
    if (code_point > 0xFF || ds_byte_level_code_point((uint8_t) code_point) != code_point)
        return -1;
    return (int) code_point;
}
