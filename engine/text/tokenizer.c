/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/tokenizer.h"

#include "engine/text/bpe.h"
#include "engine/text/byte_level.h"
#include "engine/text/special.h"
#include "engine/text/spm.h"
#include "engine/text/unicode.h"

enum token_flag {
    TOKEN_CONTROL = 1u << 0, /* not shown, and recognised in text only when asked for; so is
                              * the unknown token */
    TOKEN_END = 1u << 1,     /* ends an answer */
};

struct ds_tokenizer {
    const struct ds_vocab *vocab; /* borrowed */
    struct ds_bpe bpe;            /* zero for SPM */
    struct ds_spm spm;            /* zero for BPE */
    struct ds_specials always;    /* user-defined tokens */
    struct ds_specials all;       /* and control and unknown ones */
    struct ds_bytes *pieces;      /* [n_tokens] in the vocabulary or in piece_bytes */
    char *piece_bytes;
    uint8_t *flags; /* [n_tokens] enum token_flag */
    uint32_t bos, eos;
    bool adds_bos, adds_space;
};

static int32_t token_type(const struct ds_vocab *vocab, uint32_t id)
{
    return vocab->types ? vocab->types[id] : DS_TOKEN_NORMAL;
}

/* --- what the tokens are --- */

static void mark_end(struct ds_tokenizer *tokenizer, uint32_t id)
{
    if (id < tokenizer->vocab->n_tokens)
        tokenizer->flags[id] |= TOKEN_END;
}

/* Tokens that models are known to use so though their file may not say it: these are control
 * tokens whatever the file calls them. */
static const struct {
    const char *text;
    uint8_t flags;
} known_tokens[] = {
    { "<|eot_id|>", TOKEN_CONTROL | TOKEN_END },
    { "<|im_end|>", TOKEN_CONTROL | TOKEN_END },
    { "<|end|>", TOKEN_CONTROL | TOKEN_END },
    { "<|endoftext|>", TOKEN_CONTROL | TOKEN_END },
    { "<|eom_id|>", TOKEN_CONTROL | TOKEN_END },
    { "<|end_of_text|>", TOKEN_CONTROL | TOKEN_END },
    { "<end_of_turn>", TOKEN_CONTROL | TOKEN_END },
    { "</s>", TOKEN_CONTROL | TOKEN_END },
    { "<EOT>", TOKEN_CONTROL | TOKEN_END },
    { "<\uFF5Cend\u2581of\u2581sentence\uFF5C>", TOKEN_CONTROL | TOKEN_END },
    /* fill in the middle */
    { "<|fim_pad|>", TOKEN_CONTROL | TOKEN_END },
    { "<|repo_name|>", TOKEN_CONTROL | TOKEN_END },
    { "<|file_sep|>", TOKEN_CONTROL | TOKEN_END },
    { "<|fim_prefix|>", TOKEN_CONTROL },
    { "<|fim_suffix|>", TOKEN_CONTROL },
    { "<|fim_middle|>", TOKEN_CONTROL },
    { "<fim_prefix>", TOKEN_CONTROL },
    { "<fim_suffix>", TOKEN_CONTROL },
    { "<fim_middle>", TOKEN_CONTROL },
    { "<\uFF5Cfim\u2581begin\uFF5C>", TOKEN_CONTROL },
    { "<\uFF5Cfim\u2581hole\uFF5C>", TOKEN_CONTROL },
    { "<\uFF5Cfim\u2581end\uFF5C>", TOKEN_CONTROL },
};

static uint8_t known_flags(struct ds_bytes text)
{
    for (size_t i = 0; i < sizeof known_tokens / sizeof known_tokens[0]; i++)
        if (text.size == strlen(known_tokens[i].text) &&
            memcmp(text.data, known_tokens[i].text, text.size) == 0)
            return known_tokens[i].flags;
    return 0;
}

static void mark_ends(struct ds_tokenizer *tokenizer)
{
    const struct ds_vocab *vocab = tokenizer->vocab;

    mark_end(tokenizer, tokenizer->eos);
    mark_end(tokenizer, vocab->eot);
    mark_end(tokenizer, vocab->eom);
    mark_end(tokenizer, vocab->fim_pad);
    mark_end(tokenizer, vocab->fim_rep);
    mark_end(tokenizer, vocab->fim_sep);
    for (uint32_t i = 0; i < vocab->n_ends; i++)
        mark_end(tokenizer, vocab->ends[i]);
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        if (vocab->tokens[id].size > 0 && vocab->tokens[id].data[0] == '<')
            tokenizer->flags[id] |= known_flags(vocab->tokens[id]);
}

static int classify(struct ds_tokenizer *tokenizer)
{
    const struct ds_vocab *vocab = tokenizer->vocab;
    ds_cleanup(ds_free_p) bool *wanted = calloc(vocab->n_tokens, sizeof *wanted);
    int r;

    tokenizer->flags = calloc(vocab->n_tokens, sizeof *tokenizer->flags);
    if (!tokenizer->flags || !wanted)
        return -ENOMEM;
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        if (token_type(vocab, id) == DS_TOKEN_CONTROL || token_type(vocab, id) == DS_TOKEN_UNKNOWN)
            tokenizer->flags[id] |= TOKEN_CONTROL;
    mark_ends(tokenizer);

    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        wanted[id] =
            token_type(vocab, id) == DS_TOKEN_USER && !(tokenizer->flags[id] & TOKEN_CONTROL);
    r = ds_specials_init(&tokenizer->always, vocab, wanted);
    if (r < 0)
        return r;
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        wanted[id] = wanted[id] || (tokenizer->flags[id] & TOKEN_CONTROL);
    return ds_specials_init(&tokenizer->all, vocab, wanted);
}

/* --- the bytes that tokens stand for --- */

/* Code points that stand for no byte stay as they are. Writes at most text.size bytes. */
static size_t decode_byte_level(struct ds_bytes text, char *bytes)
{
    size_t n = 0;

    for (size_t at = 0; at < text.size;) {
        uint32_t code_point;
        unsigned length = ds_utf8_step(text.data + at, text.size - at, &code_point);
        int byte = code_point == DS_REPLACEMENT ? -1 : ds_byte_level_byte(code_point);

        if (byte >= 0) {
            bytes[n++] = (char) byte;
        } else {
            memcpy(bytes + n, text.data + at, length);
            n += length;
        }
        at += length;
    }
    return n;
}

static size_t decode_spm(struct ds_bytes text, char *bytes)
{
    size_t n = 0;

    for (size_t at = 0; at < text.size;) {
        bool is_space = text.size - at >= DS_SPM_SPACE_SIZE &&
                        memcmp(text.data + at, DS_SPM_SPACE, DS_SPM_SPACE_SIZE) == 0;

        bytes[n++] = is_space ? ' ' : text.data[at];
        at += is_space ? DS_SPM_SPACE_SIZE : 1;
    }
    return n;
}

/* The text of user-defined, control and unknown tokens is literal. */
static struct ds_bytes decode_token(const struct ds_vocab *vocab, uint32_t id, char *bytes)
{
    struct ds_bytes text = vocab->tokens[id];
    int byte = -1;

    if (text.size == 0)
        return (struct ds_bytes){ bytes, 0 };
    switch (token_type(vocab, id)) {
    case DS_TOKEN_BYTE:
        byte = ds_spm_byte(text);
        if (byte < 0)
            return text;
        bytes[0] = (char) byte;
        return (struct ds_bytes){ bytes, 1 };
    case DS_TOKEN_NORMAL:
    case DS_TOKEN_UNUSED:
        return (struct ds_bytes){ bytes, vocab->kind == DS_VOCAB_SPM
                                             ? decode_spm(text, bytes)
                                             : decode_byte_level(text, bytes) };
    default:
        return text;
    }
}

static int decode_tokens(struct ds_tokenizer *tokenizer)
{
    const struct ds_vocab *vocab = tokenizer->vocab;
    size_t size = 1, used = 0;

    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        size += vocab->tokens[id].size;
    tokenizer->pieces = malloc(vocab->n_tokens * sizeof *tokenizer->pieces);
    tokenizer->piece_bytes = malloc(size);
    if (!tokenizer->pieces || !tokenizer->piece_bytes)
        return -ENOMEM;
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        char *bytes = tokenizer->piece_bytes + used;

        tokenizer->pieces[id] = decode_token(vocab, id, bytes);
        if (tokenizer->pieces[id].data == bytes)
            used += tokenizer->pieces[id].size;
    }
    return 0;
}

/* --- making one --- */

/* What the file does not say has a default by kind: SentencePiece's numbering, and BOS first where
 * the family was trained so. */
static int set_defaults(struct ds_tokenizer *tokenizer, struct ds_error *error)
{
    const struct ds_vocab *vocab = tokenizer->vocab;
    bool spm = vocab->kind == DS_VOCAB_SPM;

    tokenizer->bos = vocab->bos;
    tokenizer->eos = vocab->eos;
    if (spm && vocab->n_tokens > 2) {
        if (tokenizer->bos == DS_TOKEN_NONE && token_type(vocab, 1) == DS_TOKEN_CONTROL)
            tokenizer->bos = 1;
        if (tokenizer->eos == DS_TOKEN_NONE && token_type(vocab, 2) == DS_TOKEN_CONTROL)
            tokenizer->eos = 2;
    }
    if (tokenizer->bos != DS_TOKEN_NONE && tokenizer->bos >= vocab->n_tokens)
        return ds_error_set(error, -EBADMSG, "BOS token %u is beyond the %u tokens of the file",
                            tokenizer->bos, vocab->n_tokens);
    if (tokenizer->eos != DS_TOKEN_NONE && tokenizer->eos >= vocab->n_tokens)
        return ds_error_set(error, -EBADMSG, "EOS token %u is beyond the %u tokens of the file",
                            tokenizer->eos, vocab->n_tokens);
    tokenizer->adds_bos =
        vocab->add_bos >= 0 ? vocab->add_bos > 0 : spm || tokenizer->bpe.pretokeniser->llama3;
    tokenizer->adds_bos = tokenizer->adds_bos && tokenizer->bos != DS_TOKEN_NONE;
    tokenizer->adds_space = spm && vocab->add_space_prefix != 0;
    return 0;
}

static int build(struct ds_tokenizer *tokenizer, struct ds_error *error)
{
    const struct ds_vocab *vocab = tokenizer->vocab;
    int r;

    if (vocab->n_tokens == 0 || vocab->n_tokens >= UINT32_MAX / 4)
        return ds_error_set(error, -EBADMSG, "the tokeniser has %u tokens", vocab->n_tokens);
    r = vocab->kind == DS_VOCAB_SPM ? ds_spm_init(&tokenizer->spm, vocab, error)
                                    : ds_bpe_init(&tokenizer->bpe, vocab, error);
    if (r < 0)
        return r;
    r = set_defaults(tokenizer, error);
    if (r < 0)
        return r;
    r = classify(tokenizer);
    if (r < 0)
        return r;
    return decode_tokens(tokenizer);
}

int ds_tokenizer_new(struct ds_tokenizer **ret_tokenizer, const struct ds_vocab *vocab,
                     struct ds_error *error)
{
    ds_cleanup(ds_tokenizer_free_p) struct ds_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    int r;

    if (!tokenizer)
        return -ENOMEM;
    tokenizer->vocab = vocab;
    r = build(tokenizer, error);
    if (r == -ENOMEM)
        return ds_error_set(error, r, "no memory for a tokeniser of %u tokens", vocab->n_tokens);
    if (r < 0)
        return r;
    *ret_tokenizer = ds_steal(tokenizer);
    return 0;
}

struct ds_tokenizer *ds_tokenizer_free(struct ds_tokenizer *tokenizer)
{
    if (!tokenizer)
        return NULL;
    ds_bpe_deinit(&tokenizer->bpe);
    ds_spm_deinit(&tokenizer->spm);
    ds_specials_deinit(&tokenizer->always);
    ds_specials_deinit(&tokenizer->all);
    free(tokenizer->pieces);
    free(tokenizer->piece_bytes);
    free(tokenizer->flags);
    free(tokenizer);
    return NULL;
}

void ds_tokenizer_free_p(struct ds_tokenizer **tokenizer)
{
    *tokenizer = ds_tokenizer_free(*tokenizer);
}

/* --- text to ids --- */

/* SPM: the space that stands before every text is also put after a special token. */
static int encode_text(const struct ds_tokenizer *tokenizer, struct ds_encoding *encoding,
                       unsigned flags)
{
    const struct ds_specials *specials =
        flags & DS_ENCODE_SPECIAL ? &tokenizer->all : &tokenizer->always;
    size_t at = 0, start, end;
    uint32_t id;
    int r;

    do {
        start = end = encoding->size;
        id = ds_specials_find(specials, encoding->text, at, encoding->size, &start, &end);
        if (start > at) {
            r = tokenizer->vocab->kind == DS_VOCAB_SPM
                    ? ds_spm_encode(&tokenizer->spm, encoding, at, start, tokenizer->adds_space)
                    : ds_bpe_encode(&tokenizer->bpe, encoding, at, start);
            if (r < 0)
                return r;
        }
        if (id != DS_TOKEN_NONE) {
            r = ds_encoding_push(encoding, id);
            if (r < 0)
                return r;
        }
        at = end;
    } while (id != DS_TOKEN_NONE);
    return 0;
}

int ds_tokenizer_encode(const struct ds_tokenizer *tokenizer, const char *text, size_t size,
                        unsigned flags, uint32_t **ret_ids, size_t *ret_n_ids)
{
    ds_cleanup(ds_encoding_deinit) struct ds_encoding encoding = { 0 };
    int r;

    if (size > DS_ENCODE_BYTES_MAX)
        return -ENOMEM;
    r = ds_encoding_init(&encoding, text, size);
    if (r < 0)
        return r;
    if ((flags & DS_ENCODE_BOS) && tokenizer->bos != DS_TOKEN_NONE) {
        r = ds_encoding_push(&encoding, tokenizer->bos);
        if (r < 0)
            return r;
    }
    r = encode_text(tokenizer, &encoding, flags);
    if (r < 0)
        return r;
    if (!ds_encoding_room(&encoding, 1)) /* never NULL for the caller, even for no ids */
        return -ENOMEM;
    *ret_n_ids = encoding.n;
    *ret_ids = ds_steal(encoding.ids);
    return 0;
}

/* --- ids to text --- */

struct ds_bytes ds_tokenizer_piece(const struct ds_tokenizer *tokenizer, uint32_t id)
{
    if (id >= tokenizer->vocab->n_tokens)
        return (struct ds_bytes){ "", 0 };
    return tokenizer->pieces[id];
}

int ds_tokenizer_decode(const struct ds_tokenizer *tokenizer, const uint32_t *ids, size_t n_ids,
                        bool skip_control, bool strip_space, char **ret_text, size_t *ret_size)
{
    size_t size = 0, skip;
    char *text;

    for (size_t i = 0; i < n_ids; i++)
        if (!skip_control || !ds_tokenizer_is_control(tokenizer, ids[i]))
            size += ds_tokenizer_piece(tokenizer, ids[i]).size;
    text = malloc(size + 1);
    if (!text)
        return -ENOMEM;
    size = 0;
    for (size_t i = 0; i < n_ids; i++) {
        struct ds_bytes piece = ds_tokenizer_piece(tokenizer, ids[i]);

        if (skip_control && ds_tokenizer_is_control(tokenizer, ids[i]))
            continue;
        memcpy(text + size, piece.data, piece.size);
        size += piece.size;
    }
    skip = strip_space && tokenizer->adds_space && size > 0 && text[0] == ' ';
    memmove(text, text + skip, size - skip);
    text[size - skip] = '\0';
    *ret_text = text;
    *ret_size = size - skip;
    return 0;
}

/* --- what it is --- */

uint32_t ds_tokenizer_n_tokens(const struct ds_tokenizer *tokenizer)
{
    return tokenizer->vocab->n_tokens;
}

uint32_t ds_tokenizer_bos(const struct ds_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

uint32_t ds_tokenizer_eos(const struct ds_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

bool ds_tokenizer_adds_bos(const struct ds_tokenizer *tokenizer)
{
    return tokenizer->adds_bos;
}

bool ds_tokenizer_is_end(const struct ds_tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->vocab->n_tokens && (tokenizer->flags[id] & TOKEN_END);
}

bool ds_tokenizer_is_control(const struct ds_tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->vocab->n_tokens && (tokenizer->flags[id] & TOKEN_CONTROL);
}
