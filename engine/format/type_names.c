/* SPDX-License-Identifier: Apache-2.0 */
/* What errors call the types, those that cannot be read above all. */
#include "engine/format/quant.h"

/* Numbers that ggml has given out to types that are not in the table of quant.c. */
static const char *const unread[] = {
    [4] = "Q4_2",        [5] = "Q4_3",        [9] = "Q8_1",        [15] = "Q8_K",
    [24] = "I8",         [25] = "I16",        [26] = "I32",        [27] = "I64",
    [28] = "F64",        [31] = "Q4_0_4_4",   [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8",
    [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [40] = "NVFP4",
    [41] = "Q1_0",       [42] = "Q2_0",
};

/* ik_llama.cpp's own, from FORK_FIRST on; it has more, which are none of a file's. */
#define FORK_FIRST 97u
#define FORK_NAMED 133u
static const char *const fork_names[] = {
    [133 - FORK_NAMED] = "Q6_0",   [134 - FORK_NAMED] = "IQ1_BN",  [135 - FORK_NAMED] = "IQ2_BN",
    [137 - FORK_NAMED] = "IQ2_K",  [138 - FORK_NAMED] = "IQ3_K",   [139 - FORK_NAMED] = "IQ4_K",
    [140 - FORK_NAMED] = "IQ5_K",  [141 - FORK_NAMED] = "IQ6_K",   [144 - FORK_NAMED] = "IQ4_KS",
    [145 - FORK_NAMED] = "IQ2_KS", [146 - FORK_NAMED] = "IQ4_KSS", [152 - FORK_NAMED] = "IQ5_KS",
    [153 - FORK_NAMED] = "IQ2_KT", [154 - FORK_NAMED] = "IQ3_KT",  [155 - FORK_NAMED] = "IQ4_KT",
    [156 - FORK_NAMED] = "IQ3_KS", [157 - FORK_NAMED] = "IQ2_KL",  [158 - FORK_NAMED] = "IQ1_KT",
};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

const char *ds_type_name(uint32_t type)
{
    const struct ds_type_traits *traits = ds_type_traits(type);

    if (traits)
        return traits->name;
    if (type < COUNT(unread) && unread[type])
        return unread[type];
    if (type >= FORK_NAMED && type - FORK_NAMED < COUNT(fork_names) &&
        fork_names[type - FORK_NAMED])
        return fork_names[type - FORK_NAMED];
    return "unknown";
}

const char *ds_type_refusal(uint32_t type)
{
    switch (type) {
    case 4:
    case 5:
    case 31:
    case 32:
    case 33:
    case 36:
    case 37:
    case 38:
        return ", which ggml has withdrawn: fetch a newer file of the model (Q4_0 takes its place)";
    case 9:
    case 15:
        return ", which is for activations and has no fixed layout in files: convert the model "
               "again, to Q8_0";
    case 24:
    case 25:
    case 26:
    case 27:
    case 28:
        return ", which no weight of a supported architecture has: the file is damaged or of "
               "another kind; fetch the model as converted by llama.cpp";
    case 40:
    case 41:
    case 42:
        return ", which this version cannot read: take a file of the model in another type, such "
               "as Q4_K_M, IQ4_XS or MXFP4";
    default:
        break;
    }
    if (type >= FORK_FIRST && type < 400)
        return " of ik_llama.cpp, which no other program reads: take a file of the model that "
               "llama.cpp made, such as Q4_K_M or IQ4_XS";
    return ", a number that ggml has not given out: the file is damaged, or newer than this "
           "version; fetch it again, or take another type, such as Q4_K_M";
}
