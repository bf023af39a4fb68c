/* SPDX-License-Identifier: Apache-2.0 */
/* Which kernels this machine can run: asked of the processor and, for its registers, the kernel. */
#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/cpu/attend.h"
#include "engine/cpu/float.h"
#include "engine/cpu/integer.h"
#include "proto/base.h"

const struct ds_kernels ds_kernels_portable = {
    .name = "portable",
    .display = "portable C",
    .quantise = ds_quantise_portable,
    .unpack = ds_unpack_portable,
    .gemm = ds_gemm_portable,
    .gemm_float = ds_gemm_float_portable,
    .attend = ds_attend_portable,
    .merge = ds_merge_portable,
    .conclude = ds_conclude_portable,
    .widen = ds_widen_portable,
    .widen_f16 = ds_widen_f16_portable,
    .index_scores = ds_index_scores_portable,
    .rms_norm = ds_rms_norm_portable,
    .silu_mul = ds_silu_mul_portable,
    .softmax = ds_softmax_portable,
    .sigmoid = ds_sigmoid_portable,
};

const struct ds_kernels ds_kernels_avx2 = {
    .name = "avx2",
    .display = "AVX2",
    .quantise = ds_quantise_avx2,
    .unpack = ds_unpack_avx2,
    .gemm = ds_gemm_avx2,
    .gemm_float = ds_gemm_float_avx2,
    .attend = ds_attend_avx2,
    .merge = ds_merge_avx2,
    .conclude = ds_conclude_avx2,
    .widen = ds_widen_avx2,
    .widen_f16 = ds_widen_f16_avx2,
    .index_scores = ds_index_scores_avx2,
    .rms_norm = ds_rms_norm_avx2,
    .silu_mul = ds_silu_mul_avx2,
    .softmax = ds_softmax_avx2,
    .sigmoid = ds_sigmoid_avx2,
};

const struct ds_kernels ds_kernels_avx512 = {
    .name = "avx512",
    .display = "AVX-512 VNNI",
    .quantise = ds_quantise_avx512,
    .unpack = ds_unpack_avx512,
    .gemm = ds_gemm_avx512,
    .gemv = ds_gemv_avx512,
    .gemm_float = ds_gemm_float_avx512,
    .attend = ds_attend_avx512,
    .merge = ds_merge_avx512,
    .conclude = ds_conclude_avx512,
    .widen = ds_widen_avx512,
    .widen_f16 = ds_widen_f16_avx512,
    .index_scores = ds_index_scores_avx512,
    .rms_norm = ds_rms_norm_avx512,
    .silu_mul = ds_silu_mul_avx512,
    .softmax = ds_softmax_avx512,
    .sigmoid = ds_sigmoid_avx512,
};

const struct ds_kernels ds_kernels_amx = {
    .name = "amx",
    .display = "AMX",
    .quantise = ds_quantise_avx512,
    .unpack = ds_unpack_amx,
    .gemm = ds_gemm_amx,
    .gemm_rows = 96,
    .fewer = &ds_kernels_avx512,
    .gemv = ds_gemv_avx512,
    .gemm_float = ds_gemm_float_avx512,
    .attend = ds_attend_avx512,
    .merge = ds_merge_avx512,
    .conclude = ds_conclude_avx512,
    .widen_f16 = ds_widen_f16_avx512,
    .index_scores = ds_index_scores_avx512,
    .rms_norm = ds_rms_norm_avx512,
    .silu_mul = ds_silu_mul_avx512,
    .softmax = ds_softmax_avx512,
    .sigmoid = ds_sigmoid_avx512,
    .widen = ds_widen_avx512,
};

/* __builtin_cpu_supports() also asks whether the system saves the registers. */
static bool have_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static bool have_avx512(void)
{
    return have_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

/* AMX: the processor has it, and the system lets this process have the registers. They are large,
 * so it wants to be asked, and may be made to refuse. */
static bool have_amx(void)
{
    enum { TILE = 1 << 24, INT8 = 1 << 25, TILE_DATA = 18 };
    unsigned eax, ebx, ecx, edx;

    if (!have_avx512() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return false;
    return (edx & TILE) && (edx & INT8) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

const struct ds_kernels *ds_kernels_choose(const char *isa)
{
    if (isa && strcmp(isa, "portable") == 0)
        return &ds_kernels_portable;
    if (isa && strcmp(isa, "avx2") == 0)
        return have_avx2() ? &ds_kernels_avx2 : NULL;
    if (isa && strcmp(isa, "avx512") == 0)
        return have_avx512() ? &ds_kernels_avx512 : NULL;
    if (isa && strcmp(isa, "amx") == 0)
        return have_amx() ? &ds_kernels_amx : NULL;
    if (isa)
        return NULL;
    if (have_amx())
        return &ds_kernels_amx;
    if (have_avx512())
        return &ds_kernels_avx512;
    return have_avx2() ? &ds_kernels_avx2 : &ds_kernels_portable;
}
