/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/pretokenise_deepseek.h"

#include "engine/text/scan.h"

struct range {
    uint32_t first, last;
};

/* Ascending. */
static const struct range cased_letters[] = {
    { 0x41, 0x5A },       { 0x61, 0x7A },       { 0xB5, 0xB5 },       { 0xC0, 0xD6 },
    { 0xD8, 0xF6 },       { 0xF8, 0x1BA },      { 0x1BC, 0x1BF },     { 0x1C4, 0x293 },
    { 0x295, 0x2AF },     { 0x370, 0x373 },     { 0x376, 0x377 },     { 0x37B, 0x37D },
    { 0x37F, 0x37F },     { 0x386, 0x386 },     { 0x388, 0x38A },     { 0x38C, 0x38C },
    { 0x38E, 0x3A1 },     { 0x3A3, 0x3F5 },     { 0x3F7, 0x481 },     { 0x48A, 0x52F },
    { 0x531, 0x556 },     { 0x10A0, 0x10C5 },   { 0x13A0, 0x13F5 },   { 0x13F8, 0x13FD },
    { 0x1C90, 0x1CBA },   { 0x1CBD, 0x1CBF },   { 0x1D00, 0x1D2B },   { 0x1D6B, 0x1D77 },
    { 0x1D79, 0x1D9A },   { 0x1E00, 0x1F15 },   { 0x1F18, 0x1F1D },   { 0x1F20, 0x1F45 },
    { 0x1F48, 0x1F4D },   { 0x1F50, 0x1F57 },   { 0x1F59, 0x1F59 },   { 0x1F5B, 0x1F5B },
    { 0x1F5D, 0x1F5D },   { 0x1F5F, 0x1F7D },   { 0x1F80, 0x1FB4 },   { 0x1FB6, 0x1FBC },
    { 0x1FBE, 0x1FBE },   { 0x1FC2, 0x1FC4 },   { 0x1FC6, 0x1FCC },   { 0x1FD0, 0x1FD3 },
    { 0x1FD6, 0x1FDB },   { 0x1FE0, 0x1FEC },   { 0x1FF2, 0x1FF4 },   { 0x1FF6, 0x1FFC },
    { 0x2102, 0x2102 },   { 0x2107, 0x2107 },   { 0x210A, 0x2113 },   { 0x2115, 0x2115 },
    { 0x2119, 0x211D },   { 0x2124, 0x2124 },   { 0x2126, 0x2126 },   { 0x2128, 0x2128 },
    { 0x212A, 0x212D },   { 0x212F, 0x2134 },   { 0x2139, 0x2139 },   { 0x213C, 0x213F },
    { 0x2145, 0x2149 },   { 0x214E, 0x214E },   { 0x2183, 0x2184 },   { 0x2C00, 0x2C7B },
    { 0x2C7E, 0x2CE4 },   { 0x2CEB, 0x2CEE },   { 0x2CF2, 0x2CF3 },   { 0xA640, 0xA66D },
    { 0xA680, 0xA69B },   { 0xA722, 0xA76F },   { 0xA771, 0xA787 },   { 0xA78B, 0xA78E },
    { 0xAB70, 0xABBF },   { 0xFB00, 0xFB06 },   { 0xFB13, 0xFB17 },   { 0xFF21, 0xFF3A },
    { 0xFF41, 0xFF5A },   { 0x10400, 0x1044F }, { 0x104B0, 0x104D3 }, { 0x104D8, 0x104FB },
    { 0x10C80, 0x10CB2 }, { 0x10CC0, 0x10CF2 }, { 0x118A0, 0x118DF }, { 0x1E900, 0x1E943 },
};

/* U+3000 is white space before it is punctuation: see ds_stage_listed_punctuation. */
static const struct range listed_punctuation[] = {
    { '!', '/' },       { ':', '~' },       { 0x2018, 0x201F },
    { 0x3001, 0x3002 }, { 0xFF01, 0xFF0F }, { 0xFF1A, 0xFF5E },
};

static const struct range east_asian[] = { { 0x800, 0x9FA5 }, { 0xAC00, 0xD7FF } };
static const struct range han_and_kana[] = { { 0x3040, 0x30FF }, { 0x4E00, 0x9FA5 } };

#define N_RANGES(ranges) (sizeof(ranges) / sizeof(ranges)[0])

static bool in_ranges(uint32_t code_point, const struct range *ranges, size_t n)
{
    size_t low = 0, high = n;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (code_point > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && code_point >= ranges[low].first;
}

/* After the run of characters that lie in ranges. */
static size_t run_in_ranges(const char *text, size_t at, size_t end, const struct range *ranges,
                            size_t n)
{
    while (at < end) {
        uint32_t code_point;
        unsigned length = ds_utf8_step(text + at, end - at, &code_point);

        if (!in_ranges(code_point, ranges, n))
            break;
        at += length;
    }
    return at;
}

/* "\s?" before what run() will match: the position after one space, or `at`. */
static size_t after_one_space(const char *text, size_t at, size_t end)
{
    size_t next;

    return scan_flags(text, at, end, &next) & DS_SPACE ? next : at;
}

/* "\s?[class]+" by flags. */
static size_t spaced_flags(const char *text, size_t at, size_t end, unsigned flags)
{
    size_t start = after_one_space(text, at, end);
    size_t stop = scan_run(text, start, end, flags);

    return stop > start ? stop : at;
}

/* "\s?[class]+" by ranges, which hold no white space. */
static size_t spaced_ranges(const char *text, size_t at, size_t end, const struct range *ranges,
                            size_t n)
{
    size_t start = after_one_space(text, at, end);
    size_t stop = run_in_ranges(text, start, end, ranges, n);

    return stop > start ? stop : at;
}

size_t ds_stage_newline(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) end;
    (void) skip;
    return scan_is_newline(text[at]) ? at + 1 : at;
}

size_t ds_stage_digit(const char *text, size_t at, size_t end, size_t *skip)
{
    size_t next;

    (void) skip;
    return scan_flags(text, at, end, &next) & DS_NUMBER ? next : at;
}

size_t ds_stage_digits(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return scan_run(text, at, end, DS_NUMBER);
}

size_t ds_stage_three_digits(const char *text, size_t at, size_t end, size_t *skip)
{
    size_t next;

    (void) skip;
    for (int i = 0; i < 3 && (scan_flags(text, at, end, &next) & DS_NUMBER); i++)
        at = next;
    return at;
}

size_t ds_stage_letters(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return spaced_flags(text, at, end, DS_LETTER);
}

size_t ds_stage_punctuation(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return spaced_flags(text, at, end, DS_PUNCTUATION);
}

size_t ds_stage_cased_letters(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return spaced_ranges(text, at, end, cased_letters, N_RANGES(cased_letters));
}

/* The published class ends in U+3000-3002. What the models were served with since treats U+3000
 * as white space throughout, and so does this. */
size_t ds_stage_listed_punctuation(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return spaced_ranges(text, at, end, listed_punctuation, N_RANGES(listed_punctuation));
}

size_t ds_stage_trailing_space(const char *text, size_t at, size_t end, size_t *skip)
{
    size_t stop = scan_run(text, at, end, DS_SPACE);

    if (stop == end)
        return end;
    if (stop > at)
        *skip = stop;
    return at;
}

size_t ds_stage_east_asian(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return run_in_ranges(text, at, end, east_asian, N_RANGES(east_asian));
}

size_t ds_stage_han_and_kana(const char *text, size_t at, size_t end, size_t *skip)
{
    (void) skip;
    return run_in_ranges(text, at, end, han_and_kana, N_RANGES(han_and_kana));
}

static bool is_ascii_punctuation(char c)
{
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
}

/* [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+ | [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
 * | ?[\p{P}\p{S}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+          (the blank before ? counts) */
size_t ds_stage_deepseek_v3(const char *text, size_t at, size_t end, size_t *skip)
{
    const unsigned word = DS_LETTER | DS_MARK, sign = DS_PUNCTUATION | DS_SYMBOL;
    size_t next, after_next, start, stop = at + 1;
    unsigned flags = scan_flags(text, at, end, &next);

    (void) skip;
    if (is_ascii_punctuation(text[at]) && stop < end && scan_is_ascii_letter(text[stop])) {
        while (stop < end && scan_is_ascii_letter(text[stop]))
            stop++;
        return stop;
    }
    if (flags & word)
        return scan_run(text, at, end, word);
    if (!(flags & sign) && !scan_is_newline(text[at]) &&
        (scan_flags(text, next, end, &after_next) & word))
        return scan_run(text, next, end, word);
    start = text[at] == ' ' ? next : at;
    stop = scan_run(text, start, end, sign);
    if (stop > start) {
        while (stop < end && scan_is_newline(text[stop]))
            stop++;
        return stop;
    }
    return flags & DS_SPACE ? scan_spaces(text, at, end, true) : at;
}
