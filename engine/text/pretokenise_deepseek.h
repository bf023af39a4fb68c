/* SPDX-License-Identifier: Apache-2.0 */
/* pretokenise_deepseek.h - the stages of DeepSeek's own pre-tokenisers, for pretokenise.c. */
#pragma once

#include "engine/text/pretokenise.h"

ds_stage_match ds_stage_newline;            /* [\r\n] */
ds_stage_match ds_stage_digit;              /* \p{N} */
ds_stage_match ds_stage_digits;             /* \p{N}+ */
ds_stage_match ds_stage_three_digits;       /* \p{N}{1,3} */
ds_stage_match ds_stage_letters;            /* \s?\p{L}+ */
ds_stage_match ds_stage_punctuation;        /* \s?\p{P}+ */
ds_stage_match ds_stage_cased_letters;      /* \s?[letters of scripts with case]+ */
ds_stage_match ds_stage_listed_punctuation; /* \s?[!-/:-~ and some full-width ones]+ */
ds_stage_match ds_stage_trailing_space;     /* \s+$ */
ds_stage_match ds_stage_east_asian;         /* [U+4E00-9FA5 U+0800-4E00 U+AC00-D7FF]+ */
ds_stage_match ds_stage_han_and_kana;       /* [U+4E00-9FA5 U+3040-309F U+30A0-30FF]+ */
ds_stage_match ds_stage_deepseek_v3;        /* the third of its three, quoted there */
