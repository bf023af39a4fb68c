/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/special.h"

#include "engine/text/unicode.h"

static int compare_ids(const void *a, const void *b, void *context)
{
    const struct ds_vocab *vocab = context;
    uint32_t left_id = *(const uint32_t *) a, right_id = *(const uint32_t *) b;
    struct ds_bytes left = vocab->tokens[left_id], right = vocab->tokens[right_id];
    int order = memcmp(left.data, right.data, left.size < right.size ? left.size : right.size);

    if (order == 0 && left.size != right.size)
        order = left.size < right.size ? -1 : 1;
    if (order == 0)
        order = left_id < right_id ? -1 : left_id > right_id;
    return order;
}

int ds_specials_init(struct ds_specials *specials, const struct ds_vocab *vocab, const bool *wanted)
{
    uint32_t n = 0;

    *specials = (struct ds_specials){ .vocab = vocab };
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        n += wanted[id] && vocab->tokens[id].size > 0;
    if (n == 0)
        return 0;
    specials->ids = malloc(n * sizeof *specials->ids);
    if (!specials->ids)
        return -ENOMEM;
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        if (!wanted[id] || vocab->tokens[id].size == 0)
            continue;
        specials->ids[specials->n++] = id;
        specials->starts[(uint8_t) vocab->tokens[id].data[0]] = true;
    }
    qsort_r(specials->ids, n, sizeof *specials->ids, compare_ids, (void *) vocab);
    return 0;
}

void ds_specials_deinit(struct ds_specials *specials)
{
    free(specials->ids);
    *specials = (struct ds_specials){ 0 };
}

/* In ids[low..high), which share their first `depth` bytes and are longer: the first one whose next
 * byte is at least `byte` (0..256). */
static uint32_t lower_bound(const struct ds_specials *specials, uint32_t low, uint32_t high,
                            size_t depth, unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if ((uint8_t) specials->vocab->tokens[specials->ids[middle]].data[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest special token at text[at..size), DS_TOKEN_NONE where there is none. */
static uint32_t match(const struct ds_specials *specials, const char *text, size_t at, size_t size)
{
    const struct ds_bytes *tokens = specials->vocab->tokens;
    uint32_t low = 0, high = specials->n, found = DS_TOKEN_NONE;

    for (size_t depth = 0; at + depth < size; depth++) {
        unsigned byte = (uint8_t) text[at + depth];

        low = lower_bound(specials, low, high, depth, byte);
        high = lower_bound(specials, low, high, depth, byte + 1);
        if (low == high)
            break;
        if (tokens[specials->ids[low]].size == depth + 1)
            found = specials->ids[low];
        while (low < high && tokens[specials->ids[low]].size == depth + 1)
            low++;
    }
    return found;
}

/* Flags of the character that ends at `at`, and its place; 0 where text[first..at) is empty. */
static unsigned flags_before(const char *text, size_t first, size_t at, size_t *ret_start)
{
    uint32_t code_point;
    size_t start = at;

    *ret_start = at;
    if (at == first)
        return 0;
    do
        start--;
    while (start > first && at - start < 4 && ((uint8_t) text[start] & 0xC0) == 0x80);
    if (ds_utf8_step(text + start, at - start, &code_point) != at - start)
        return 0; /* no character */
    *ret_start = start;
    return code_point == '_' ? DS_LETTER : ds_unicode_flags(code_point);
}

static unsigned flags_after(const char *text, size_t at, size_t size, size_t *ret_next)
{
    uint32_t code_point;

    *ret_next = at;
    if (at == size)
        return 0;
    *ret_next += ds_utf8_step(text + at, size - at, &code_point);
    return code_point == '_' ? DS_LETTER : ds_unicode_flags(code_point);
}

static bool touches_word(const char *text, size_t size, size_t start, size_t end)
{
    const unsigned word = DS_LETTER | DS_MARK | DS_NUMBER;
    size_t ignored;

    return (flags_before(text, 0, start, &ignored) & word) ||
           (flags_after(text, end, size, &ignored) & word);
}

/* Widens text[*start..*end) over white space as flags say, not below first. */
static void take_spaces(unsigned flags, const char *text, size_t first, size_t size, size_t *start,
                        size_t *end)
{
    size_t next;

    while ((flags & DS_TOKEN_LSTRIP) && (flags_before(text, first, *start, &next) & DS_SPACE))
        *start = next;
    while ((flags & DS_TOKEN_RSTRIP) && (flags_after(text, *end, size, &next) & DS_SPACE))
        *end = next;
}

uint32_t ds_specials_find(const struct ds_specials *specials, const char *text, size_t at,
                          size_t size, size_t *ret_start, size_t *ret_end)
{
    const size_t first = at;

    if (specials->n == 0)
        return DS_TOKEN_NONE;
    for (; at < size; at++) {
        uint32_t id =
            specials->starts[(uint8_t) text[at]] ? match(specials, text, at, size) : DS_TOKEN_NONE;
        unsigned flags;
        size_t end;

        if (id == DS_TOKEN_NONE)
            continue;
        end = at + specials->vocab->tokens[id].size;
        flags = specials->vocab->flags ? specials->vocab->flags[id] : 0;
        if ((flags & DS_TOKEN_SINGLE_WORD) && touches_word(text, size, at, end)) {
            at = end - 1;
            continue;
        }
        *ret_start = at;
        *ret_end = end;
        take_spaces(flags, text, first, size, ret_start, ret_end);
        return id;
    }
    return DS_TOKEN_NONE;
}
