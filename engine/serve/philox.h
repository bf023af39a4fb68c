/* SPDX-License-Identifier: Apache-2.0 */
/*
 * philox.h - random numbers without a state: counter in, numbers out.
 *
 * Philox4x32-10 enciphers a 128-bit counter under a 64-bit key; equal arguments give equal numbers
 * on every machine. Source: Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2,
 * 3" (SC 2011); known answers: Random123's kat_vectors.
 */
#pragma once

#include <stdint.h>

static inline void ds_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t ret[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t) 0xD2511F53u * c0;
        uint64_t b = (uint64_t) 0xCD9E8D57u * c2;

        c0 = (uint32_t) (b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t) b;
        c2 = (uint32_t) (a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t) a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ret[0] = c0;
    ret[1] = c1;
    ret[2] = c2;
    ret[3] = c3;
}

/* Uniform in [0, 1), 53 bits, for draw number position of the stream seed. */
static inline double ds_philox_uniform(uint64_t seed, uint64_t position)
{
    const uint32_t key[2] = { (uint32_t) seed, (uint32_t) (seed >> 32) };
    const uint32_t counter[4] = { (uint32_t) position, (uint32_t) (position >> 32), 0, 0 };
    uint32_t out[4];

    ds_philox(key, counter, out);
    return (double) (((uint64_t) out[0] << 32 | out[1]) >> 11) * 0x1p-53;
}
