/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/text_index.h"

#include <stdbool.h>

/* FNV-1a with a final mix: texts are short, and the second part continues the first. */
static uint32_t hash_text(struct ds_bytes first, struct ds_bytes second)
{
    uint64_t hash = 0xCBF29CE484222325u;

    for (size_t i = 0; i < first.size; i++)
        hash = (hash ^ (uint8_t) first.data[i]) * 0x100000001B3u;
    for (size_t i = 0; i < second.size; i++)
        hash = (hash ^ (uint8_t) second.data[i]) * 0x100000001B3u;
    hash = (hash ^ hash >> 32) * 0x9E3779B97F4A7C15u;
    return (uint32_t) (hash >> 32);
}

static bool same_text(struct ds_bytes text, struct ds_bytes first, struct ds_bytes second)
{
    return text.size == first.size + second.size &&
           (first.size == 0 || memcmp(text.data, first.data, first.size) == 0) &&
           (second.size == 0 || memcmp(text.data + first.size, second.data, second.size) == 0);
}

/* The slot that holds the text, or the empty one where it belongs. */
static struct ds_text_slot *find_slot(const struct ds_text_index *index, struct ds_bytes first,
                                      struct ds_bytes second, uint32_t hash)
{
    for (size_t at = hash & index->mask;; at = (at + 1) & index->mask) {
        struct ds_text_slot *slot = &index->slots[at];

        if (slot->id == DS_TOKEN_NONE)
            return slot;
        if (slot->hash == hash && same_text(ds_text_index_text(index, slot->id), first, second))
            return slot;
    }
}

static int slots_new(struct ds_text_slot **ret_slots, size_t n)
{
    struct ds_text_slot *slots = malloc(n * sizeof *slots);

    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        slots[i] = (struct ds_text_slot){ .id = DS_TOKEN_NONE };
    *ret_slots = slots;
    return 0;
}

/* Twice the slots; hashes are kept, so no text is read again. */
static int grow(struct ds_text_index *index)
{
    struct ds_text_slot *old = index->slots, *slots;
    size_t n_old = index->mask + 1, mask = 2 * n_old - 1;
    int r;

    r = slots_new(&slots, 2 * n_old);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n_old; i++) {
        size_t at = old[i].hash & mask;

        if (old[i].id == DS_TOKEN_NONE)
            continue;
        while (slots[at].id != DS_TOKEN_NONE)
            at = (at + 1) & mask;
        slots[at] = old[i];
    }
    free(old);
    index->slots = slots;
    index->mask = mask;
    return 0;
}

/* What plain text can become. */
static bool indexed(const struct ds_vocab *vocab, uint32_t id)
{
    int32_t type = vocab->types ? vocab->types[id] : DS_TOKEN_NORMAL;

    return vocab->tokens[id].size > 0 && type != DS_TOKEN_CONTROL && type != DS_TOKEN_UNKNOWN &&
           type != DS_TOKEN_BYTE;
}

int ds_text_index_init(struct ds_text_index *index, const struct ds_vocab *vocab)
{
    const struct ds_bytes nothing = { NULL, 0 };
    size_t n_slots = 64;
    int r;

    while (n_slots < 2 * (size_t) vocab->n_tokens)
        n_slots *= 2;
    *index = (struct ds_text_index){ .vocab = vocab, .mask = n_slots - 1 };
    r = slots_new(&index->slots, n_slots);
    if (r < 0)
        return r;
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        uint32_t hash = hash_text(vocab->tokens[id], nothing);
        struct ds_text_slot *slot;

        if (!indexed(vocab, id))
            continue;
        slot = find_slot(index, vocab->tokens[id], nothing, hash);
        index->n_used += slot->id == DS_TOKEN_NONE;
        *slot = (struct ds_text_slot){ hash, id };
    }
    return 0;
}

void ds_text_index_deinit(struct ds_text_index *index)
{
    for (uint32_t i = 0; i < index->n_symbols; i++)
        free((char *) index->symbols[i].data);
    free(index->symbols);
    free(index->slots);
    *index = (struct ds_text_index){ 0 };
}

uint32_t ds_text_index_find(const struct ds_text_index *index, struct ds_bytes first,
                            struct ds_bytes second)
{
    return find_slot(index, first, second, hash_text(first, second))->id;
}

/* Appends a copy of the text to the symbols. */
static int symbol_add(struct ds_text_index *index, struct ds_bytes first, struct ds_bytes second)
{
    char *copy;

    if (index->n_symbols == index->symbols_max) {
        uint32_t max = index->symbols_max ? 2 * index->symbols_max : 16;
        struct ds_bytes *symbols;

        if (max >= DS_TOKEN_NONE / 2 - index->vocab->n_tokens)
            return -ENOMEM;
        symbols = reallocarray(index->symbols, max, sizeof *symbols);
        if (!symbols)
            return -ENOMEM;
        index->symbols = symbols;
        index->symbols_max = max;
    }
    copy = malloc(first.size + second.size + 1);
    if (!copy)
        return -ENOMEM;
    if (first.size > 0)
        memcpy(copy, first.data, first.size);
    if (second.size > 0)
        memcpy(copy + first.size, second.data, second.size);
    index->symbols[index->n_symbols++] = (struct ds_bytes){ copy, first.size + second.size };
    return 0;
}

int ds_text_index_intern(struct ds_text_index *index, struct ds_bytes first, struct ds_bytes second,
                         uint32_t *ret_id)
{
    uint32_t hash = hash_text(first, second);
    struct ds_text_slot *slot = find_slot(index, first, second, hash);
    int r;

    if (slot->id == DS_TOKEN_NONE) {
        if (2 * (index->n_used + 1) > index->mask) {
            r = grow(index);
            if (r < 0)
                return r;
            slot = find_slot(index, first, second, hash);
        }
        r = symbol_add(index, first, second);
        if (r < 0)
            return r;
        *slot = (struct ds_text_slot){ hash, index->vocab->n_tokens + index->n_symbols - 1 };
        index->n_used++;
    }
    *ret_id = slot->id;
    return 0;
}

int ds_text_index_plain(struct ds_text_index *index, uint32_t id, uint32_t *ret_id)
{
    const struct ds_bytes nothing = { NULL, 0 };

    if (!indexed(index->vocab, id))
        return ds_text_index_intern(index, index->vocab->tokens[id], nothing, ret_id);
    *ret_id = id;
    return 0;
}
