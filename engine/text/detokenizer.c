/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each stop string is searched for by Knuth, Morris and Pratt's automaton: its state is the length
 * of the longest end of the text that the stop string starts with, which is exactly what must be
 * held back. Raw bytes wait in `partial` until they are a character.
 */
#include "engine/text/detokenizer.h"

#include "engine/text/unicode.h"

struct stop {
    char *text; /* own */
    uint16_t size;
    uint16_t matched;                         /* bytes of it that the text ends in */
    uint16_t fallback[DS_STOP_BYTES_MAX + 1]; /* [k] longest proper border of its first k bytes */
};

struct ds_detokenizer {
    const struct ds_tokenizer *tokenizer; /* borrowed */
    struct stop *stops;                   /* own */
    unsigned n_stops;
    int stopped; /* index of the complete stop string, -1 */
    bool skip_control;
    char partial[4];
    unsigned n_partial;
    char *text; /* own; whole characters: given out, then held back */
    size_t size, capacity;
    size_t given; /* bytes of text given out by the last call */
};

static bool is_utf8(struct ds_bytes bytes)
{
    uint32_t code_point;
    int n;

    for (size_t at = 0; at < bytes.size; at += (size_t) n) {
        n = ds_utf8_decode(bytes.data + at, bytes.size - at, &code_point);
        if (n <= 0)
            return false;
    }
    return true;
}

/* What cannot match is kept as an empty stop string, so that indices stay. */
static int stop_init(struct stop *stop, struct ds_bytes bytes)
{
    uint16_t border = 0;

    if (bytes.size > DS_STOP_BYTES_MAX)
        return -EINVAL;
    if (bytes.size == 0 || !is_utf8(bytes))
        return 0;
    stop->text = malloc(bytes.size);
    if (!stop->text)
        return -ENOMEM;
    memcpy(stop->text, bytes.data, bytes.size);
    stop->size = (uint16_t) bytes.size;
    for (uint16_t k = 1; k < stop->size; k++) {
        while (border > 0 && stop->text[k] != stop->text[border])
            border = stop->fallback[border];
        border += stop->text[k] == stop->text[border];
        stop->fallback[k + 1] = border;
    }
    return 0;
}

/* The text went on by one byte. A complete stop string ends the answer, so no state follows it. */
static bool stop_advance(struct stop *stop, char byte)
{
    if (stop->size == 0)
        return false;
    while (stop->matched > 0 && stop->text[stop->matched] != byte)
        stop->matched = stop->fallback[stop->matched];
    stop->matched += stop->text[stop->matched] == byte;
    return stop->matched == stop->size;
}

int ds_detokenizer_new(struct ds_detokenizer **ret_detokenizer,
                       const struct ds_tokenizer *tokenizer, const struct ds_bytes *stops,
                       unsigned n_stops, bool skip_control)
{
    ds_cleanup(ds_detokenizer_free_p) struct ds_detokenizer *detokenizer = NULL;
    int r;

    if (n_stops > DS_STOP_STRINGS_MAX)
        return -EINVAL;
    detokenizer = calloc(1, sizeof *detokenizer);
    if (!detokenizer)
        return -ENOMEM;
    detokenizer->tokenizer = tokenizer;
    detokenizer->stopped = -1;
    detokenizer->skip_control = skip_control;
    if (n_stops > 0) {
        detokenizer->stops = calloc(n_stops, sizeof *detokenizer->stops);
        if (!detokenizer->stops)
            return -ENOMEM;
    }
    for (; detokenizer->n_stops < n_stops; detokenizer->n_stops++) {
        r = stop_init(&detokenizer->stops[detokenizer->n_stops], stops[detokenizer->n_stops]);
        if (r < 0)
            return r;
    }
    *ret_detokenizer = ds_steal(detokenizer);
    return 0;
}

struct ds_detokenizer *ds_detokenizer_free(struct ds_detokenizer *detokenizer)
{
    if (!detokenizer)
        return NULL;
    for (unsigned i = 0; i < detokenizer->n_stops; i++)
        free(detokenizer->stops[i].text);
    free(detokenizer->stops);
    free(detokenizer->text);
    free(detokenizer);
    return NULL;
}

void ds_detokenizer_free_p(struct ds_detokenizer **detokenizer)
{
    *detokenizer = ds_detokenizer_free(*detokenizer);
}

/* Forgets what was given out and makes room for n_bytes raw bytes, each perhaps a U+FFFD. */
static int make_room(struct ds_detokenizer *detokenizer, size_t n_bytes)
{
    size_t held = detokenizer->size - detokenizer->given;
    size_t need = held + 3 * (n_bytes + sizeof detokenizer->partial);
    char *text;

    if (need > detokenizer->capacity) {
        text = realloc(detokenizer->text, need + need / 2);
        if (!text)
            return -ENOMEM;
        detokenizer->text = text;
        detokenizer->capacity = need + need / 2;
    }
    memmove(detokenizer->text, detokenizer->text + detokenizer->given, held);
    detokenizer->size = held;
    detokenizer->given = 0;
    return 0;
}

/* Appends one character; if it completes a stop string, cuts the text before that. */
static void add_character(struct ds_detokenizer *detokenizer, const char *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        detokenizer->text[detokenizer->size++] = bytes[i];
        for (unsigned s = 0; s < detokenizer->n_stops; s++) {
            struct stop *best =
                detokenizer->stopped < 0 ? NULL : &detokenizer->stops[detokenizer->stopped];

            if (stop_advance(&detokenizer->stops[s], bytes[i]) &&
                (!best || detokenizer->stops[s].size > best->size))
                detokenizer->stopped = (int) s;
        }
    }
    if (detokenizer->stopped >= 0)
        detokenizer->size -= detokenizer->stops[detokenizer->stopped].size;
}

/* Appends the characters that have become whole, in place of bytes that belong to none U+FFFD. */
static void add_byte(struct ds_detokenizer *detokenizer, char byte)
{
    uint32_t code_point;
    int n = 1;

    detokenizer->partial[detokenizer->n_partial++] = byte;
    while (detokenizer->n_partial > 0 && detokenizer->stopped < 0) {
        n = ds_utf8_decode(detokenizer->partial, detokenizer->n_partial, &code_point);
        if (n == 0)
            break;
        if (n > 0)
            add_character(detokenizer, detokenizer->partial, (unsigned) n);
        else
            add_character(detokenizer, "\uFFFD", 3);
        n = n < 0 ? -n : n;
        detokenizer->n_partial -= (unsigned) n;
        memmove(detokenizer->partial, detokenizer->partial + n, detokenizer->n_partial);
    }
}

/* Gives out everything but the last `held` bytes. */
static struct ds_bytes give(struct ds_detokenizer *detokenizer, size_t held)
{
    detokenizer->given = detokenizer->size - held;
    return (struct ds_bytes){ detokenizer->text, detokenizer->given };
}

int ds_detokenizer_push(struct ds_detokenizer *detokenizer, uint32_t id, struct ds_bytes *ret_text)
{
    struct ds_bytes piece = ds_tokenizer_piece(detokenizer->tokenizer, id);
    size_t held = 0;
    int r;

    if (detokenizer->skip_control && ds_tokenizer_is_control(detokenizer->tokenizer, id))
        piece.size = 0;
    r = make_room(detokenizer, piece.size);
    if (r < 0)
        return r;
    for (size_t i = 0; i < piece.size && detokenizer->stopped < 0; i++)
        add_byte(detokenizer, piece.data[i]);
    if (detokenizer->stopped >= 0) {
        *ret_text = give(detokenizer, 0);
        return DS_DETOKENIZER_STOPPED;
    }
    for (unsigned s = 0; s < detokenizer->n_stops; s++)
        if (detokenizer->stops[s].matched > held)
            held = detokenizer->stops[s].matched;
    *ret_text = give(detokenizer, held);
    return DS_DETOKENIZER_GO_ON;
}

int ds_detokenizer_finish(struct ds_detokenizer *detokenizer, struct ds_bytes *ret_text)
{
    int r;

    r = make_room(detokenizer, 0);
    if (r < 0)
        return r;
    if (detokenizer->n_partial > 0 && detokenizer->stopped < 0)
        add_character(detokenizer, "\uFFFD", 3);
    detokenizer->n_partial = 0;
    *ret_text = give(detokenizer, 0);
    return 0;
}

int ds_detokenizer_stop(const struct ds_detokenizer *detokenizer)
{
    return detokenizer->stopped;
}
