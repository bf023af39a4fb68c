/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/pretokenise.h"

#include "engine/text/pretokenise_deepseek.h"
#include "engine/text/scan.h"

#define WORD_OR_SPACE (DS_SPACE | DS_LETTER | DS_NUMBER)

/* 's|'t|'re|'ve|'m|'ll|'d after the apostrophe at `at`: the end, or `at`. */
static size_t contraction(const char *text, size_t at, size_t end, bool any_case)
{
    const char upper = any_case ? 0x20 : 0; /* the bit in which ASCII cases differ */
    char first, second;

    if (end - at < 2)
        return at;
    first = (char) (text[at + 1] | (scan_is_ascii_letter(text[at + 1]) ? upper : 0));
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
        return at + 2;
    if (end - at < 3)
        return at;
    second = (char) (text[at + 2] | (scan_is_ascii_letter(text[at + 2]) ? upper : 0));
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l'))
        return at + 3;
    return at;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t stage_gpt2(const char *text, size_t at, size_t end, size_t *skip)
{
    size_t start = at, next, stop;
    unsigned flags;

    (void) skip;
    if (text[at] == '\'') {
        stop = contraction(text, at, end, false);
        if (stop > at)
            return stop;
    }
    if (text[at] == ' ' && at + 1 < end)
        start++;
    flags = scan_flags(text, start, end, &next);
    if (flags & DS_LETTER)
        return scan_run(text, next, end, DS_LETTER);
    if (flags & DS_NUMBER)
        return scan_run(text, next, end, DS_NUMBER);
    if (!(flags & DS_SPACE))
        return scan_run_without(text, next, end, WORD_OR_SPACE);
    return scan_spaces(text, at, end, false);
}

/* (?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[WORD]+|\p{N}{1,N}
 * | ?[^\s WORD \p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+          WORD: \p{L}, or \p{L}\p{M} */
static size_t cut_llama3(const char *text, size_t at, size_t end, unsigned word, int n_digits)
{
    size_t next, after_next, start, stop;
    unsigned flags = scan_flags(text, at, end, &next), next_flags;

    if (flags & word)
        return scan_run(text, next, end, word);
    if (flags & DS_NUMBER) {
        for (int i = 1; i < n_digits && (scan_flags(text, next, end, &after_next) & DS_NUMBER); i++)
            next = after_next;
        return next;
    }
    if (text[at] == '\'') {
        stop = contraction(text, at, end, true);
        if (stop > at)
            return stop;
    }
    next_flags = scan_flags(text, next, end, &after_next);
    if ((next_flags & word) && !scan_is_newline(text[at]))
        return scan_run(text, after_next, end, word);
    start = text[at] == ' ' && next < end ? next : at;
    stop = scan_run_without(text, start, end, DS_SPACE | DS_NUMBER | word);
    if (stop == start)
        return scan_spaces(text, at, end, true);
    while (stop < end && scan_is_newline(text[stop]))
        stop++;
    return stop;
}

static size_t stage_llama3(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return cut_llama3(text, at, end, DS_LETTER, 3);
}

static size_t stage_qwen2(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return cut_llama3(text, at, end, DS_LETTER, 1);
}

static size_t stage_qwen35(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return cut_llama3(text, at, end, DS_LETTER | DS_MARK, 1);
}

/* [\p{P}\$\+<=>\^~\|]+ */
static size_t stage_signs(const char *text, size_t at, size_t end, size_t *skip)
{
    size_t next;

    (void) skip;
    while (at < end && ((scan_flags(text, at, end, &next) & DS_PUNCTUATION) ||
                        (text[at] != '\0' && strchr("$+<=>^~|", text[at]))))
        at = next;
    return at;
}

/* [0-9][0-9][0-9] */
static size_t stage_triples(const char *text, size_t at, size_t end, size_t *skip)
{
    size_t stop = at;

    (void) skip;
    while (stop < end && stop < at + 3 && text[stop] >= '0' && text[stop] <= '9')
        stop++;
    return stop == at + 3 ? stop : at;
}

/* The names that GGUF files carry for these ways of cutting, as llama.cpp understands them. */
static const struct ds_pretokeniser known[] = {
    { "gpt-2 gpt2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe "
      "gigachat exaone4 a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling",
      { stage_gpt2 },
      false },
    { "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
      { ds_stage_digit, stage_gpt2 },
      false },
    { "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
      { stage_llama3 },
      true },
    { "qwen2 deepseek-r1-qwen megrez kormo f2llmv2 stablelm2 hunyuan solar-open grok-2",
      { stage_qwen2 },
      false },
    { "qwen35", { stage_qwen35 }, false },
    { "deepseek-llm",
      { ds_stage_newline, ds_stage_cased_letters, ds_stage_listed_punctuation,
        ds_stage_trailing_space, ds_stage_east_asian, ds_stage_digits },
      false },
    { "deepseek-coder",
      { ds_stage_newline, ds_stage_letters, ds_stage_punctuation, ds_stage_east_asian,
        ds_stage_digit },
      false },
    { "deepseek-v3 joyai-llm hunyuan-dense",
      { ds_stage_three_digits, ds_stage_han_and_kana, ds_stage_deepseek_v3 },
      false },
    /* llama3's cut without its other habits */
    { "smaug-bpe dbrx glm4 chatglm-bpe", { stage_llama3 }, false },
    /* what files from before the key existed are read with */
    { "default", { stage_signs, stage_gpt2, ds_stage_digits, stage_triples }, false },
};

#define N_KNOWN (sizeof known / sizeof known[0])

static bool has_name(const char *names, struct ds_bytes name)
{
    while (*names) {
        size_t size = strcspn(names, " ");

        if (size == name.size && memcmp(names, name.data, size) == 0)
            return true;
        names += size;
        names += strspn(names, " ");
    }
    return false;
}

const struct ds_pretokeniser *ds_pretokeniser_find(struct ds_bytes name)
{
    if (name.size == 0)
        return &known[N_KNOWN - 1];
    for (size_t i = 0; i < N_KNOWN; i++)
        if (has_name(known[i].names, name))
            return &known[i];
    return NULL;
}

const struct ds_pretokeniser *ds_pretokeniser_at(unsigned i)
{
    return i < N_KNOWN ? &known[i] : NULL;
}

void ds_pretokeniser_list(char *buffer, size_t size)
{
    size_t used = 0;

    buffer[0] = '\0';
    for (size_t i = 0; i < N_KNOWN && used < size; i++)
        used += (size_t) snprintf(buffer + used, size - used, "%s%.*s", i ? ", " : "",
                                  (int) strcspn(known[i].names, " "), known[i].names);
}

/* The end of the piece that starts at `at`: a match, or what lies before the next one. */
static size_t next_piece(ds_stage_match *match, const char *text, size_t at, size_t end)
{
    size_t start = at;

    while (at < end) {
        uint32_t code_point;
        size_t skip = at + ds_utf8_step(text + at, end - at, &code_point);
        size_t stop = match(text, at, end, &skip);

        if (stop > at)
            return start == at ? stop : at;
        at = skip;
    }
    return end;
}

static int run_stage(ds_stage_match *const *stages, const char *text, size_t at, size_t end,
                     ds_piece_fn *take, void *context)
{
    while (at < end) {
        size_t stop = next_piece(stages[0], text, at, end);
        int r = stages[1] ? run_stage(stages + 1, text, at, stop, take, context)
                          : take(context, at, stop);

        if (r < 0)
            return r;
        at = stop;
    }
    return 0;
}

int ds_pretokenise(const struct ds_pretokeniser *pretokeniser, const char *text, size_t start,
                   size_t end, ds_piece_fn *take, void *context)
{
    return run_stage(pretokeniser->stages, text, start, end, take, context);
}
