/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/encoding.h"

#define SEEN_TEXT_MIN 128u        /* bytes of text from which remembering pays */
#define SEEN_SLOTS    (1u << 14u) /* at most */
#define SEEN_WORD_MAX 64u         /* bytes of a word worth remembering */

int ds_encoding_init(struct ds_encoding *encoding, const char *text, size_t size)
{
    size_t n_slots = 32;

    *encoding = (struct ds_encoding){ .text = text, .size = size };
    if (size < SEEN_TEXT_MIN)
        return 0;
    while (n_slots < SEEN_SLOTS && n_slots < size / 8)
        n_slots *= 2;
    encoding->seen = calloc(n_slots, sizeof *encoding->seen);
    if (!encoding->seen)
        return -ENOMEM;
    encoding->seen_mask = n_slots - 1;
    return 0;
}

void ds_encoding_deinit(struct ds_encoding *encoding)
{
    free(encoding->ids);
    free(encoding->seen);
    ds_merge_scratch_deinit(&encoding->scratch);
    *encoding = (struct ds_encoding){ 0 };
}

uint32_t *ds_encoding_room(struct ds_encoding *encoding, size_t n)
{
    size_t need = encoding->n + n, capacity = encoding->capacity ? encoding->capacity : 64;
    uint32_t *ids;

    if (need <= encoding->capacity)
        return encoding->ids + encoding->n;
    while (capacity < need)
        capacity += capacity / 2;
    ids = reallocarray(encoding->ids, capacity, sizeof *ids);
    if (!ids)
        return NULL;
    encoding->ids = ids;
    encoding->capacity = capacity;
    return ids + encoding->n;
}

static uint64_t hash_word(const char *word, size_t size)
{
    uint64_t hash = size * 0x9E3779B97F4A7C15u, chunk;

    for (; size >= 8; word += 8, size -= 8) {
        memcpy(&chunk, word, 8);
        hash = (hash ^ chunk) * 0xFF51AFD7ED558CCDu;
        hash ^= hash >> 32;
    }
    chunk = 0;
    memcpy(&chunk, word, size);
    hash = (hash ^ chunk) * 0xC4CEB9FE1A85EC53u;
    return hash ^ hash >> 29;
}

int ds_encoding_recall(struct ds_encoding *encoding, size_t start, size_t end,
                       struct ds_seen_word **ret_slot)
{
    const char *word = encoding->text + start;
    size_t size = end - start;
    struct ds_seen_word *slot;
    uint32_t *room;

    *ret_slot = NULL;
    if (!encoding->seen || size > SEEN_WORD_MAX)
        return DS_WORD_NEW;
    slot = &encoding->seen[(hash_word(word, size) >> 20) & encoding->seen_mask];
    if (slot->size != size || memcmp(encoding->text + slot->start, word, size) != 0) {
        *ret_slot = slot;
        return DS_WORD_NEW;
    }
    room = ds_encoding_room(encoding, slot->n);
    if (!room)
        return -ENOMEM;
    for (uint32_t i = 0; i < slot->n; i++)
        room[i] = encoding->ids[slot->first + i];
    encoding->n += slot->n;
    return DS_WORD_COPIED;
}

void ds_encoding_remember(struct ds_encoding *encoding, struct ds_seen_word *slot, size_t start,
                          size_t end, size_t first)
{
    if (slot)
        *slot = (struct ds_seen_word){ (uint32_t) start, (uint32_t) (end - start), (uint32_t) first,
                                       (uint32_t) (encoding->n - first) };
}
