/* SPDX-License-Identifier: Apache-2.0 */
/*
 * siphash.h - a keyed 128-bit hash: who does not know the key cannot make two inputs collide.
 *
 * SipHash-2-4 with 128 bits of output. Source: Aumasson, Bernstein: "SipHash: a fast short-input
 * PRF" (2012) and the authors' reference vectors. Little-endian input, native result.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t ds_siphash_rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void ds_siphash_rounds(uint64_t v[4], unsigned n)
{
    while (n--) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = ds_siphash_rotate(v[1], 13) ^ v[0];
        v[3] = ds_siphash_rotate(v[3], 16) ^ v[2];
        v[0] = ds_siphash_rotate(v[0], 32);
        v[2] += v[1];
        v[0] += v[3];
        v[1] = ds_siphash_rotate(v[1], 17) ^ v[2];
        v[3] = ds_siphash_rotate(v[3], 21) ^ v[0];
        v[2] = ds_siphash_rotate(v[2], 32);
    }
}

static inline void ds_siphash_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    ds_siphash_rounds(v, 2);
    v[0] ^= word;
}

static inline void ds_siphash128(const uint64_t key[2], const void *data, size_t size,
                                 uint64_t ret[2])
{
    const unsigned char *bytes = data;
    uint64_t v[4] = { key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du ^ 0xee,
                      key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u };
    uint64_t word;
    size_t left;

    for (left = size; left >= 8; left -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        ds_siphash_word(v, word);
    }
    word = (uint64_t) size << 56;
    for (size_t i = 0; i < left; i++)
        word |= (uint64_t) bytes[i] << (8 * i);
    ds_siphash_word(v, word);
    v[2] ^= 0xee;
    ds_siphash_rounds(v, 4);
    ret[0] = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    ds_siphash_rounds(v, 4);
    ret[1] = v[0] ^ v[1] ^ v[2] ^ v[3];
}
