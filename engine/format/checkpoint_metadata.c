/* SPDX-License-Identifier: Apache-2.0 */
/* The keys of a file as text for a person: valid UTF-8 on one line, whatever the file holds. */
#include "engine/format/checkpoint_parts.h"

#define VALUE_BYTES_MAX 240u /* of a string before it is cut */

/* Bytes of the well-formed UTF-8 character at s, 0 where there is none (RFC 3629). */
static size_t utf8_length(const uint8_t *s, size_t size)
{
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

    if (length == 0 || length > size || s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return length;
}

/* C1 controls: U+0080..U+009F would reach a terminal as escape sequences. */
static bool is_control(const uint8_t *s, size_t length)
{
    return (length == 1 && (s[0] < 0x20 || s[0] == 0x7f)) ||
           (length == 2 && s[0] == 0xc2 && s[1] < 0xa0);
}

static void put_string(FILE *out, struct ds_bytes string)
{
    const uint8_t *s = (const uint8_t *) string.data;
    size_t at = 0;

    while (at < string.size && at < VALUE_BYTES_MAX) {
        size_t length = utf8_length(s + at, string.size - at);

        if (s[at] == '\n')
            (void) fputs("\\n", out);
        else if (s[at] == '\t')
            (void) fputs("\\t", out);
        else if (length == 0 || is_control(s + at, length))
            (void) fprintf(out, "\\x%02x", s[at]);
        else
            (void) fwrite(s + at, 1, length, out);
        at += length ? length : 1;
    }
    if (at < string.size)
        (void) fprintf(out, "... (%zu bytes)", string.size);
}

static void put_value(FILE *out, const struct ds_gguf_key *key)
{
    struct ds_bytes string;
    uint64_t natural;
    int64_t integer;
    double number;
    bool flag;

    if (key->is_array)
        (void) fprintf(out, "[%llu %s%s]", (unsigned long long) key->n,
                       ds_gguf_type_name(key->type),
                       key->type == DS_GGUF_STRING && key->n != 1 ? "s" : "");
    else if (ds_gguf_string(key, &string))
        put_string(out, string);
    else if (ds_gguf_bool(key, 0, &flag))
        (void) fputs(flag ? "true" : "false", out);
    else if (ds_gguf_u64(key, 0, &natural))
        (void) fprintf(out, "%llu", (unsigned long long) natural);
    else if (ds_gguf_i64(key, 0, &integer))
        (void) fprintf(out, "%lld", (long long) integer);
    else if (ds_gguf_f64(key, 0, &number))
        (void) fprintf(out, "%g", number);
    else
        (void) fputs("(beyond 63 bits)", out);
}

int ds_checkpoint_read_metadata(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    const struct ds_gguf *gguf = &checkpoint->files[0];

    checkpoint->metadata = calloc(gguf->n_keys + 1, sizeof *checkpoint->metadata);
    if (!checkpoint->metadata)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", gguf->label);
    for (uint32_t i = 0; i < gguf->n_keys; i++) {
        char *text = NULL;
        size_t size;
        FILE *out = open_memstream(&text, &size);

        if (!out)
            return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", gguf->label);
        put_value(out, &gguf->keys[i]);
        if (fclose(out) != 0) {
            free(text);
            return ds_error_set(error, -ENOMEM, "%s: no memory for its keys", gguf->label);
        }
        checkpoint->metadata[i].key = gguf->keys[i].name;
        checkpoint->metadata[i].value = text;
    }
    return 0;
}
