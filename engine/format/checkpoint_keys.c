/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/format/checkpoint_parts.h"

static int missing(const struct ds_key_reader *reader, const char *name)
{
    return ds_error_set(reader->error, -EINVAL,
                        "%s: key '%s' is missing: convert the model again with a current converter",
                        reader->gguf->label, name);
}

static int unexpected(const struct ds_key_reader *reader, const char *name, const char *expected)
{
    return ds_error_set(reader->error, -EINVAL,
                        "%s: key '%s' should be %s: convert the model again", reader->gguf->label,
                        name, expected);
}

int ds_key_layers(const struct ds_key_reader *reader, const char *name, bool required,
                  uint32_t *value, bool *ret_uniform)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);
    uint64_t first, other;

    *ret_uniform = true;
    if (!key)
        return required ? missing(reader, name) : 0;
    if (key->n == 0 || !ds_gguf_u64(key, 0, &first) || first > UINT32_MAX)
        return unexpected(reader, name, "a number or an array of numbers");
    for (uint64_t i = 1; i < key->n; i++)
        if (!ds_gguf_u64(key, i, &other) || other != first)
            *ret_uniform = false;
    *value = (uint32_t) first;
    return 0;
}

int ds_key_u32(const struct ds_key_reader *reader, const char *name, bool required, uint32_t *value)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);
    uint64_t number;

    if (!key)
        return required ? missing(reader, name) : 0;
    if (key->is_array || !ds_gguf_u64(key, 0, &number) || number > UINT32_MAX)
        return unexpected(reader, name, "a number from 0 to 4294967295");
    *value = (uint32_t) number;
    return 0;
}

int ds_key_f32(const struct ds_key_reader *reader, const char *name, bool required, float *value)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);
    double number;

    if (!key)
        return required ? missing(reader, name) : 0;
    if (key->is_array || !ds_gguf_f64(key, 0, &number) || !isfinite((float) number))
        return unexpected(reader, name, "a finite number");
    *value = (float) number;
    return 0;
}

int ds_key_flag(const struct ds_key_reader *reader, const char *name, int8_t *value)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);
    bool flag;

    if (!key)
        return 0;
    if (key->is_array || !ds_gguf_bool(key, 0, &flag))
        return unexpected(reader, name, "true or false");
    *value = flag;
    return 0;
}

int ds_key_bytes(const struct ds_key_reader *reader, const char *name, struct ds_bytes *value)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);

    if (key && !ds_gguf_string(key, value))
        return unexpected(reader, name, "a string");
    return 0;
}
