/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.model: SentencePiece's ModelProto, of which this reads the fields that matter.
 *
 *   ModelProto      1 pieces (repeated)    2 trainer_spec    3 normalizer_spec
 *   SentencePiece   1 piece (string)       2 score (float)   3 type (enum ds_token_type's numbers)
 *   TrainerSpec     3 model_type           40 unk_id  41 bos_id  42 eos_id  43 pad_id
 *   NormalizerSpec  2 precompiled_charsmap 3 add_dummy_prefix
 *
 * Protocol buffers' wire format: a varint of field << 3 | kind; kind 0 a varint, 1 eight bytes, 2 a
 * varint of a length and so many bytes, 5 four bytes.
 */
#include <math.h>

#include "engine/format/hf_parts.h"

#define FILE_ DS_HF_TOKENIZER_MODEL

enum { MODEL_BPE = 2 };

struct field {
    uint32_t number;
    unsigned kind;
    uint64_t value;        /* kinds 0, 1, 5 */
    struct ds_bytes bytes; /* kind 2 */
};

static bool take_varint(struct ds_bytes *rest, uint64_t *ret_value)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && rest->size > 0; shift += 7) {
        uint8_t byte = (uint8_t) *rest->data++;

        rest->size--;
        value |= (uint64_t) (byte & 0x7F) << shift;
        if (byte < 0x80) {
            *ret_value = value;
            return true;
        }
    }
    return false;
}

static bool take_fixed(struct ds_bytes *rest, unsigned n, uint64_t *ret_value)
{
    if (rest->size < n)
        return false;
    *ret_value = 0;
    memcpy(ret_value, rest->data, n);
    rest->data += n;
    rest->size -= n;
    return true;
}

/* 1: a field; 0: the end; -1: no protocol buffer. */
static int take_field(struct ds_bytes *rest, struct field *ret_field)
{
    uint64_t key;

    if (rest->size == 0)
        return 0;
    *ret_field = (struct field){ 0 };
    if (!take_varint(rest, &key) || key >> 3 == 0 || key >> 3 > UINT32_MAX)
        return -1;
    ret_field->number = (uint32_t) (key >> 3);
    ret_field->kind = key & 7;
    switch (ret_field->kind) {
    case 0:
        return take_varint(rest, &ret_field->value) ? 1 : -1;
    case 1:
        return take_fixed(rest, 8, &ret_field->value) ? 1 : -1;
    case 2:
        if (!take_varint(rest, &ret_field->value) || ret_field->value > rest->size)
            return -1;
        ret_field->bytes = (struct ds_bytes){ rest->data, (size_t) ret_field->value };
        rest->data += ret_field->value;
        rest->size -= ret_field->value;
        return 1;
    case 5:
        return take_fixed(rest, 4, &ret_field->value) ? 1 : -1;
    default:
        return -1;
    }
}

static int broken(const struct ds_hf_reader *reader)
{
    return ds_hf_bad(reader, FILE_, "no model of SentencePiece: a field is cut off or of no kind");
}

static int read_piece(struct ds_hf_reader *reader, struct ds_bytes rest, uint32_t id)
{
    struct ds_hf_token token = { .type = DS_TOKEN_NORMAL };
    struct ds_bytes text = { "", 0 };
    struct field field;
    int more;

    while ((more = take_field(&rest, &field)) > 0) {
        uint32_t bits = (uint32_t) field.value;

        if (field.number == 1 && field.kind == 2)
            text = field.bytes;
        else if (field.number == 2 && field.kind == 5)
            memcpy(&token.score, &bits, sizeof token.score);
        else if (field.number == 3 && field.kind == 0)
            token.type = field.value <= DS_TOKEN_BYTE ? (uint8_t) field.value : 0;
    }
    if (more < 0)
        return broken(reader);
    if (token.type == 0 || isnan(token.score))
        return ds_hf_bad(reader, FILE_, "piece %u has an unknown type or no number as its score",
                         id);
    return ds_hf_token_add(reader, FILE_, "pieces", id, text, token);
}

static int read_trainer(struct ds_hf_reader *reader, struct ds_bytes rest, uint64_t *ret_model_type)
{
    struct ds_vocab *vocab = &reader->made->vocab;
    struct field field;
    int more;

    while ((more = take_field(&rest, &field)) > 0) {
        /* int32 on the wire: -1 is a varint of ten bytes */
        uint32_t id = field.value < reader->capacity ? (uint32_t) field.value : DS_TOKEN_NONE;

        if (field.kind != 0)
            continue;
        if (field.number == 3)
            *ret_model_type = field.value;
        else if (field.number == 40)
            vocab->unknown = id;
        else if (field.number == 41)
            vocab->bos = id;
        else if (field.number == 42)
            vocab->eos = id;
        else if (field.number == 43)
            vocab->padding = id;
    }
    return more < 0 ? broken(reader) : 0;
}

static int read_normalizer(struct ds_hf_reader *reader, struct ds_bytes rest)
{
    struct field field;
    int more;

    while ((more = take_field(&rest, &field)) > 0) {
        if (field.number == 2 && field.kind == 2 && field.bytes.size > 0)
            return ds_hf_unsupported(reader, FILE_,
                                     "field 'normalizer_spec.precompiled_charsmap' changes texts "
                                     "before they are cut, which this build does not");
        if (field.number == 3 && field.kind == 0)
            reader->made->vocab.add_space_prefix = field.value != 0;
    }
    return more < 0 ? broken(reader) : 0;
}

static int read_fields(struct ds_hf_reader *reader)
{
    struct ds_bytes rest = reader->files[FILE_];
    uint64_t model_type = 1; /* unigram */
    struct field field;
    uint32_t id = 0;
    int more, r = 0;

    while (r == 0 && (more = take_field(&rest, &field)) > 0) {
        if (field.kind != 2)
            continue;
        if (field.number == 1)
            r = read_piece(reader, field.bytes, id++);
        else if (field.number == 2)
            r = read_trainer(reader, field.bytes, &model_type);
        else if (field.number == 3)
            r = read_normalizer(reader, field.bytes);
    }
    if (r == 0 && model_type != MODEL_BPE)
        r = ds_hf_unsupported(reader, FILE_,
                              "field 'trainer_spec.model_type' is %s, this build has BPE (2)",
                              model_type == 1 ? "unigram (1)" : "not known");
    return r;
}

int ds_hf_read_sentencepiece(struct ds_hf_reader *reader)
{
    struct ds_bytes rest = reader->files[FILE_];
    struct ds_vocab *vocab = &reader->made->vocab;
    struct field field;
    size_t n = 0;
    int more, r;

    while ((more = take_field(&rest, &field)) > 0)
        n += field.number == 1 && field.kind == 2;
    if (more < 0 || n == 0)
        return broken(reader);
    vocab->kind = DS_VOCAB_SPM;
    vocab->unknown = 0; /* TrainerSpec's defaults */
    vocab->bos = 1;
    vocab->eos = 2;
    vocab->add_space_prefix = 1;
    r = ds_hf_tokens_init(reader, FILE_, n + ds_hf_tokens_of_config_max(reader));
    return r == 0 ? read_fields(reader) : r;
}
