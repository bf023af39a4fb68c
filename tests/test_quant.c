/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: every tensor type means what ggml says it means. Method: known answers over fixed bytes
 * that an independent decoder gave; conversions compared with the compiler's own for all 65536
 * halves and around every rounding boundary; quantisers must come back within their step.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "engine/format/quant.h"

static float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* --- known answers --- */

static uint32_t next_random(uint32_t *state)
{
    return *state = *state * 1664525u + 1013904223u;
}

struct answer {
    uint32_t type;
    unsigned scale_at, second_at; /* of d, and of m or dmin */
    double y0, y1, y17, last, sum, weighted;
    double many; /* of 256 blocks, weighted */
};

enum { NO = 999, BLOCKS = 256 };

/* From gguf-py 0.18 (numpy), which agrees with ggml's own C on all of them. */
static const struct answer answers[] = {
    { DS_TYPE_Q4_0, 0, NO, -0.1875, 0.125, -0.0625, 0, -1.3125, -32.375, -1201130.625 },
    { DS_TYPE_Q4_1, 0, 2, 0.96875, 0.28125, 0.78125, 0.78125, 16.3125, 265.4375, 16530977.03125 },
    { DS_TYPE_Q5_0, 0, NO, 0.5625, -0.125, 0, 0.0625, 0.9375, 7, -849342.8125 },
    { DS_TYPE_Q5_1, 0, 2, 1.21875, 1.53125, 0.34375, 0.34375, 32.5625, 510.3125, 33121096.09375 },
    { DS_TYPE_Q8_0, 0, NO, 5.3125, 7.625, -3.375, -3, -11, -505, -4481540.1875 },
    { DS_TYPE_IQ4_NL, 0, NO, -2.1875, 1.5625, -0.625, 0.0625, -16.0625, -432.4375, -14514280.625 },
    { DS_TYPE_MXFP4, NO, NO, 0, 0.75, 0.75, 0.75, 3.125, 79.75, 199061.75 },
    { DS_TYPE_Q2_K, 80, 82, 2.0625, 0, -0.09375, 0.28125, 128.6875, 15195.625, 125811151.65625 },
    { DS_TYPE_Q3_K, 108, NO, 5.0625, -6.75, 8, 2.625, 59.875, 11071.5625, 8249051.9375 },
    { DS_TYPE_Q4_K, 0, 2, 19.71875, -1.59375, -1.59375, 3.03125, 3402.5, 473302.5,
      3650434398.9375 },
    { DS_TYPE_Q5_K, 0, 2, 50.71875, -1.59375, -1.59375, 6.78125, 7263.5, 1001715.5,
      8089344056.46875 },
    { DS_TYPE_Q6_K, 208, NO, -89.4375, 106, 32, -3.75, 288.25, 49026.25, -23376316.5 },
    { DS_TYPE_IQ4_XS, 0, NO, 4.0625, -0.0625, 2.1875, -1, -687.8125, -130695.875, 86560545.75 },
    { DS_TYPE_TQ1_0, 52, NO, -0.0625, -0.0625, 0, -0.0625, -0.125, -8.1875, -87906.25 },
    { DS_TYPE_TQ2_0, 64, NO, 0.125, -0.0625, -0.0625, -0.0625, 8.0625, 1077.8125, 8415200.0625 },
    { DS_TYPE_IQ2_XXS, 0, NO, -3.6953125, 3.6953125, 3.6953125, -5.0390625, 47.734375, 2299.5625,
      2781169.0234375 },
    { DS_TYPE_IQ2_XS, 0, NO, -0.6875, 2.1484375, -1.1875, -1.1875, 93.15625, 7699.8828125,
      2704333.1640625 },
    { DS_TYPE_IQ2_S, 0, NO, -9.0703125, 5.2734375, -7.7265625, 4.8828125, -50.0390625,
      -3880.0390625, 1085935.9375 },
    { DS_TYPE_IQ3_XXS, 0, NO, -0.8125, 0.5625, -0.0625, -0.9375, -42.75, 188.9375, 127204.375 },
    { DS_TYPE_IQ3_S, 0, NO, -5.0625, 15.1875, -15.1875, 14.0625, 91, 12674.375, 10916655.75 },
    { DS_TYPE_IQ1_S, 0, NO, -0.1640625, 0.0234375, -0.1640625, -0.2734375, 1.25, -739.3125,
      -396259.546875 },
    { DS_TYPE_IQ1_M, NO, NO, -0.0546875, 0.3828125, 0.1171875, -0.1171875, 2.5625, -139.75,
      -881363.4375 },
};

enum { N_ANSWERS = sizeof answers / sizeof answers[0] };

/* Scales of sensible size: 1/16, minima of 1/32. */
static void set_scales(const struct answer *answer, uint8_t *block)
{
    static const uint8_t parts[4] = { 0x00, 0x00, 0xc0, 0x20 };

    if (answer->scale_at != NO)
        memcpy(block + answer->scale_at, "\x00\x2c", 2);
    if (answer->second_at != NO)
        memcpy(block + answer->second_at, "\x00\x28", 2);
    if (answer->type == DS_TYPE_MXFP4)
        block[0] = 125;
    for (unsigned i = 0; i < 4 && answer->type == DS_TYPE_IQ1_M; i++)
        block[49 + 2 * i] = (block[49 + 2 * i] & 15) | parts[i];
}

/* The block of the known answers, moved off alignment by one byte. */
static const uint8_t *fixed_block(const struct answer *answer, uint8_t buffer[300])
{
    uint8_t *block = buffer + 1;

    for (unsigned k = 0; k < ds_type_traits(answer->type)->block_bytes; k++)
        block[k] = (uint8_t) (37 * k + 11);
    set_scales(answer, block);
    return block;
}

static void blocks_decode_to_the_known_answers(void **state)
{
    (void) state;
    for (unsigned i = 0; i < N_ANSWERS; i++) {
        const struct answer *answer = &answers[i];
        const struct ds_type_traits *traits = ds_type_traits(answer->type);
        double sum = 0, weighted = 0;
        uint8_t buffer[300];
        float y[256];

        traits->dequantise(fixed_block(answer, buffer), y, traits->block_elements);
        for (unsigned k = 0; k < traits->block_elements; k++) {
            sum += (double) y[k];
            weighted += (k + 1) * (double) y[k];
        }
        assert_float_equal(y[0], answer->y0, 0);
        assert_float_equal(y[1], answer->y1, 0);
        assert_float_equal(y[17], answer->y17, 0);
        assert_float_equal(y[traits->block_elements - 1], answer->last, 0);
        assert_true(sum == answer->sum);
        assert_true(weighted == answer->weighted);
    }
}

/* Enough of them for every index of every grid, every scale, every sign. */
static void random_blocks_decode_to_the_known_answers(void **state)
{
    (void) state;
    for (unsigned i = 0; i < N_ANSWERS; i++) {
        const struct ds_type_traits *traits = ds_type_traits(answers[i].type);
        uint32_t seed = 12345, n = BLOCKS * traits->block_elements;
        uint8_t *blocks = malloc(BLOCKS * traits->block_bytes);
        float *y = malloc(n * sizeof *y);
        double weighted = 0;

        assert_non_null(blocks);
        assert_non_null(y);
        for (unsigned k = 0; k < BLOCKS * traits->block_bytes; k++)
            blocks[k] = (uint8_t) (next_random(&seed) >> 24);
        for (unsigned k = 0; k < BLOCKS; k++)
            set_scales(&answers[i], blocks + k * traits->block_bytes);
        traits->dequantise(blocks, y, n);
        for (unsigned k = 0; k < n; k++)
            weighted += (k % 8191 + 1) * (double) y[k];
        if (weighted != answers[i].many)
            fail_msg("%s: %.8f, not %.8f", traits->name, weighted, answers[i].many);
        free(blocks);
        free(y);
    }
}

static void many_blocks_decode_as_each_alone(void **state)
{
    (void) state;
    for (unsigned i = 0; i < N_ANSWERS; i++) {
        const struct ds_type_traits *traits = ds_type_traits(answers[i].type);
        uint8_t buffer[300], three[3 * 300];
        float one[256], all[3 * 256];
        const uint8_t *block = fixed_block(&answers[i], buffer);

        for (unsigned k = 0; k < 3; k++)
            memcpy(three + k * traits->block_bytes, block, traits->block_bytes);
        traits->dequantise(block, one, traits->block_elements);
        traits->dequantise(three, all, 3 * traits->block_elements);
        for (unsigned k = 0; k < 3; k++)
            assert_memory_equal(all + k * traits->block_elements, one,
                                traits->block_elements * sizeof(float));
    }
}

static void every_type_that_blocks_have_is_in_the_answers(void **state)
{
    (void) state;
    for (uint32_t type = 0; type < DS_TYPE_GGML_END; type++) {
        unsigned i = 0;

        if (!ds_type_traits(type) || ds_type_traits(type)->block_elements == 1)
            continue;
        while (i < N_ANSWERS && answers[i].type != type)
            i++;
        if (i == N_ANSWERS)
            fail_msg("%s has no known answer", ds_type_traits(type)->name);
    }
}

static void mxfp4_scales_are_powers_of_two_down_to_denormals(void **state)
{
    (void) state;
    for (int e = 0; e < 256; e++)
        assert_true((double) ds_e8m0_half((uint8_t) e) == ldexp(1, e - 128));
}

/* --- conversions --- */

static void every_f16_converts_as_the_compiler_does(void **state)
{
    (void) state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint16_t half = (uint16_t) bits;
        _Float16 native;
        float expected;

        memcpy(&native, &half, sizeof native);
        expected = (float) native;
        if (isnan(expected)) {
            assert_true(isnan(ds_f16_to_f32(half)));
            assert_int_equal(bits_of(ds_f16_to_f32(half)) >> 31, bits >> 15);
            continue;
        }
        assert_int_equal(bits_of(ds_f16_to_f32(half)), bits_of(expected));
        assert_int_equal(ds_f32_to_f16(expected), bits);
    }
}

/* Floats around every half and every midpoint between two halves. */
static void f32_rounds_to_f16_to_nearest_even(void **state)
{
    (void) state;
    for (uint32_t bits = 0; bits < 0x7c00; bits++) {
        double low = (double) ds_f16_to_f32((uint16_t) bits);
        double high = bits + 1 < 0x7c00 ? (double) ds_f16_to_f32((uint16_t) (bits + 1)) : 65536.0;
        float middle = (float) ((low + high) / 2); /* exact */

        for (int sign = 0; sign < 2; sign++)
            for (int step = -1; step <= 1; step++) {
                float value = float_of(bits_of(middle) + (uint32_t) step);
                uint32_t up = step > 0 || (step == 0 && (bits & 1));

                assert_int_equal(ds_f32_to_f16(sign ? -value : value),
                                 (bits + up) | (sign ? 0x8000u : 0));
            }
    }
    assert_int_equal(ds_f32_to_f16(float_of(1)), 0);
    assert_int_equal(ds_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(ds_f32_to_f16(-INFINITY), 0xfc00);
    assert_true(isnan(ds_f16_to_f32(ds_f32_to_f16(NAN))));
    assert_true(isnan(ds_f16_to_f32(ds_f32_to_f16(float_of(0x7f800001)))));
}

static void every_bf16_converts_and_rounds_to_nearest_even(void **state)
{
    (void) state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint16_t half = (uint16_t) bits;

        assert_int_equal(bits_of(ds_bf16_to_f32(half)), bits << 16);
        if ((bits & 0x7fff) > 0x7f80) { /* NaN: stays one, quiet, of that sign */
            assert_int_equal(ds_f32_to_bf16(float_of(bits << 16)), bits | 0x40);
            continue;
        }
        assert_int_equal(ds_f32_to_bf16(float_of(bits << 16)), bits);
        if ((bits & 0x7fff) == 0x7f80)
            continue;
        assert_int_equal(ds_f32_to_bf16(float_of(bits << 16 | 0x7fff)), bits);
        assert_int_equal(ds_f32_to_bf16(float_of(bits << 16 | 0x8000)), bits + (bits & 1));
        assert_int_equal(ds_f32_to_bf16(float_of(bits << 16 | 0x8001)), bits + 1);
    }
}

/* --- quantisers --- */

/* The largest error allowed, as a share of the block's largest magnitude. */
static const struct {
    uint32_t type;
    double share;
} steps[] = {
    { DS_TYPE_F32, 0 },          { DS_TYPE_F16, 0x1p-11 },    { DS_TYPE_BF16, 0x1p-8 },
    { DS_TYPE_Q4_0, 1.0 / 7 },   { DS_TYPE_Q4_1, 1.0 / 14 },  { DS_TYPE_Q5_0, 1.0 / 15 },
    { DS_TYPE_Q5_1, 1.0 / 30 },  { DS_TYPE_Q8_0, 1.0 / 250 }, { DS_TYPE_Q4_K, 1.0 / 9 },
    { DS_TYPE_Q5_K, 1.0 / 13 },  { DS_TYPE_Q6_K, 1.0 / 28 },  { DS_TYPE_Q2_K, 1.0 / 2.5 },
    { DS_TYPE_Q3_K, 1.0 / 2.8 }, { DS_TYPE_IQ4_NL, 1.0 / 7 }, { DS_TYPE_IQ4_XS, 1.0 / 6 },
    { DS_TYPE_MXFP4, 1.0 / 3 },  { DS_TYPE_TQ1_0, 0.501 },    { DS_TYPE_TQ2_0, 0.501 },
    { DS_TYPE_F8, 1.0 / 16 },
};

static void quantised_values_come_back_within_their_step(void **state)
{
    uint32_t seed = 7;

    (void) state;
    for (unsigned i = 0; i < sizeof steps / sizeof steps[0]; i++)
        for (int round = 0; round < 50; round++) {
            const struct ds_type_traits *traits = ds_type_traits(steps[i].type);
            float in[512], out[512];
            uint8_t blocks[512 * 4];
            double largest = 0;

            for (int k = 0; k < 512; k++) {
                in[k] =
                    (float) (int32_t) next_random(&seed) * 0x1p-31f + 0.2f * (float) (round % 3);
                largest = fmax(largest, fabs((double) in[k]));
            }
            assert_int_equal(ds_quantise(steps[i].type, in, blocks, 512), 0);
            traits->dequantise(blocks, out, 512);
            for (int k = 0; k < 512; k++)
                if (fabs((double) in[k] - (double) out[k]) > steps[i].share * largest)
                    fail_msg("%s: %g came back as %g", traits->name, (double) in[k],
                             (double) out[k]);
        }
}

static void zeros_and_constants_quantise_without_harm(void **state)
{
    static const float constants[] = { 0.0f, 1.0f, -1.0f, 1e-30f, 60000.0f };

    (void) state;
    for (unsigned i = 0; i < sizeof steps / sizeof steps[0]; i++)
        for (unsigned c = 0; c < 5; c++) {
            const struct ds_type_traits *traits = ds_type_traits(steps[i].type);
            /* powers of two times 6 at most: 7.99 comes back as 6 */
            float share = steps[i].type == DS_TYPE_MXFP4 ? 0.25f : 0.04f;
            uint8_t blocks[256 * 4];
            float in[256], out[256];

            for (int k = 0; k < 256; k++)
                in[k] = constants[c];
            assert_int_equal(ds_quantise(steps[i].type, in, blocks, 256), 0);
            traits->dequantise(blocks, out, 256);
            for (int k = 0; k < 256; k++)
                assert_true(fabsf(out[k] - in[k]) <= share * fabsf(in[k]) + 1e-7f);
        }
}

/* --- the table --- */

static void rows_are_whole_blocks(void **state)
{
    (void) state;
    assert_int_equal(ds_type_row_bytes(DS_TYPE_F32, 7), 28);
    assert_int_equal(ds_type_row_bytes(DS_TYPE_Q4_0, 64), 36);
    assert_int_equal(ds_type_row_bytes(DS_TYPE_Q4_0, 33), 0);
    assert_int_equal(ds_type_row_bytes(DS_TYPE_Q6_K, 512), 420);
    assert_int_equal(ds_type_row_bytes(DS_TYPE_Q6_K, 128), 0);
    assert_int_equal(ds_type_row_bytes(9999, 32), 0);
    assert_int_equal(ds_quantise(DS_TYPE_Q4_0, (float[33]){ 0 }, (uint8_t[64]){ 0 }, 33), -ENOTSUP);
    assert_int_equal(ds_quantise(17, (float[32]){ 0 }, (uint8_t[64]){ 0 }, 32), -ENOTSUP);
}

static void every_known_type_has_a_name(void **state)
{
    (void) state;
    assert_string_equal(ds_type_name(DS_TYPE_Q5_K), "Q5_K");
    assert_string_equal(ds_type_name(20), "IQ4_NL");
    assert_string_equal(ds_type_name(39), "MXFP4");
    assert_string_equal(ds_type_name(4), "Q4_2");
    assert_string_equal(ds_type_name(26), "I32");
    assert_string_equal(ds_type_name(40), "NVFP4");
    assert_string_equal(ds_type_name(139), "IQ4_K");
    assert_string_equal(ds_type_name(158), "IQ1_KT");
    assert_string_equal(ds_type_name(96), "unknown");
    assert_string_equal(ds_type_name(142), "unknown");
    assert_string_equal(ds_type_name(UINT32_MAX), "unknown");
    assert_null(ds_type_traits(5));
    assert_null(ds_type_traits(UINT32_MAX));
    for (uint32_t type = 0; type < 64; type++)
        if (ds_type_traits(type))
            assert_string_equal(ds_type_traits(type)->name, ds_type_name(type));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_decode_to_the_known_answers),
        cmocka_unit_test(random_blocks_decode_to_the_known_answers),
        cmocka_unit_test(many_blocks_decode_as_each_alone),
        cmocka_unit_test(every_type_that_blocks_have_is_in_the_answers),
        cmocka_unit_test(mxfp4_scales_are_powers_of_two_down_to_denormals),
        cmocka_unit_test(every_f16_converts_as_the_compiler_does),
        cmocka_unit_test(f32_rounds_to_f16_to_nearest_even),
        cmocka_unit_test(every_bf16_converts_and_rounds_to_nearest_even),
        cmocka_unit_test(quantised_values_come_back_within_their_step),
        cmocka_unit_test(zeros_and_constants_quantise_without_harm),
        cmocka_unit_test(rows_are_whole_blocks),
        cmocka_unit_test(every_known_type_has_a_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
