/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of the known ways of cutting a text a tokenizer.json describes.
 *
 * The steps of its pre_tokenizer are written one after the other as a signature, and the signature
 * is looked up: a scanner stands for an expression as a whole (engine/text/pretokenise.c), so what
 * is not in the table is refused, however little it differs. A step is, by its first letter:
 *
 *   /EXPRESSION/   Split by a regular expression, matches isolated
 *   digit          Digits, each alone
 *   digits         Digits, in runs
 *   gpt-2          ByteLevel with its own expression (use_regex)
 *
 * ByteLevel without an expression cuts nothing and must come last.
 */
#include "engine/format/hf_parts.h"

#define FILE_ DS_HF_TOKENIZER_JSON

#define CASELESS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPELLED  "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define SPACES   "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SIGNS    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define GPT2     "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"
#define V3_SIGNS "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
#define V3_WORDS "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES
#define EAST     "/[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+/"
/* every letter that has a case, in ranges */
#define CASED                                                                                      \
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"                \
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a"                 \
    "\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"                      \
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"               \
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"               \
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"                 \
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"               \
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"                  \
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"                 \
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"                \
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"               \
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"                         \
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"                              \
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
#define LISTED "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"

static const struct {
    const char *signature;
    const char *pre; /* the name of a GGUF file */
} known[] = {
    { "gpt-2", "gpt-2" },
    { "/" GPT2 "/", "gpt-2" },
    { "/" GPT2 "|\\s+/", "gpt-2" },
    { "digit gpt-2", "smollm" },
    { "/\\p{N}/ gpt-2", "smollm" },
    { "/\\p{N}/ /" GPT2 "|\\s+/", "smollm" },
    { "/" CASELESS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" SIGNS "/", "llama-bpe" },
    { "/" CASELESS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" SIGNS "/", "qwen2" },
    { "/" CASELESS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
      "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACES "/",
      "qwen35" },
    { "/\\p{N}{1,3}/ /[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+/ /" V3_SIGNS "|" V3_WORDS "/",
      "deepseek-v3" },
    { "/[\\r\\n]/ /\\s?\\p{L}+/ /\\s?\\p{P}+/ " EAST " digit", "deepseek-coder" },
    { "/[\\r\\n]/ /\\s?\\p{L}+/ /\\s?\\p{P}+/ " EAST " /\\p{N}/", "deepseek-coder" },
    { "/[\\r\\n]/ /\\s?[" CASED "]+/ /\\s?[" LISTED "]+/ /\\s+$/ " EAST " digit", "deepseek-llm" },
    { "/[\\r\\n]/ /\\s?[" CASED "]+/ /\\s?[" LISTED "]+/ /\\s+$/ " EAST " /\\p{N}+/",
      "deepseek-llm" },
};

struct signature {
    char text[4096];
    size_t size;
    bool byte_level; /* seen: nothing may follow */
    bool metaspace;  /* likewise, and blanks become U+2581 */
    int8_t space_first;
};

static int unknown(const struct ds_hf_reader *reader, const char *field, const char *what)
{
    return ds_hf_unsupported(reader, FILE_, "field '%s': %s is not known to this build", field,
                             what);
}

static bool add(struct signature *signature, const char *text, size_t size)
{
    if (size >= sizeof signature->text - signature->size)
        return false;
    memcpy(signature->text + signature->size, text, size);
    signature->size += size;
    signature->text[signature->size] = '\0';
    return true;
}

/* An expression with its line ends escaped and its contractions written one way. */
static bool add_expression(struct signature *signature, const char *expression)
{
    bool fits = add(signature, "/", 1);

    while (fits && *expression) {
        if (strncmp(expression, SPELLED, sizeof SPELLED - 1) == 0) {
            fits = add(signature, CASELESS, sizeof CASELESS - 1);
            expression += sizeof SPELLED - 1;
            continue;
        }
        if (*expression == '\r' || *expression == '\n')
            fits = add(signature, *expression == '\r' ? "\\r" : "\\n", 2);
        else
            fits = add(signature, expression, 1);
        expression++;
    }
    return fits && add(signature, "/", 1);
}

static bool is_text(const cJSON *item, const char *text)
{
    return cJSON_IsString(item) && strcmp(item->valuestring, text) == 0;
}

/* Split; false: not of the kind that is known. */
static bool add_split(struct signature *signature, const cJSON *step)
{
    const cJSON *expression = ds_hf_json_get(ds_hf_json_get(step, "pattern"), "Regex");

    return cJSON_IsString(expression) && is_text(ds_hf_json_get(step, "behavior"), "Isolated") &&
           !cJSON_IsTrue(ds_hf_json_get(step, "invert")) &&
           add_expression(signature, expression->valuestring);
}

static bool add_byte_level(struct signature *signature, const cJSON *step)
{
    const cJSON *regex = ds_hf_json_get(step, "use_regex");

    signature->byte_level = true;
    if (cJSON_IsTrue(ds_hf_json_get(step, "add_prefix_space")))
        return false;
    return cJSON_IsFalse(regex) || add(signature, "gpt-2", 5);
}

static bool add_metaspace(struct signature *signature, const cJSON *step)
{
    const cJSON *blank = ds_hf_json_get(step, "replacement");
    const cJSON *scheme = ds_hf_json_get(step, "prepend_scheme");

    signature->metaspace = true;
    signature->space_first =
        !(is_text(scheme, "never") || cJSON_IsFalse(ds_hf_json_get(step, "add_prefix_space")));
    return is_text(blank, "\u2581");
}

static int add_step(const struct ds_hf_reader *reader, struct signature *signature,
                    const cJSON *step, unsigned depth)
{
    const cJSON *type = ds_hf_json_get(step, "type");
    size_t before = signature->size;
    bool taken = false;
    int r = 0;

    if (is_text(type, "Sequence") && depth > 0) {
        const cJSON *list = ds_hf_json_get(step, "pretokenizers");

        for (list = list ? list->child : NULL; r == 0 && list; list = list->next)
            r = add_step(reader, signature, list, depth - 1);
        return r;
    }
    if (signature->byte_level || signature->metaspace)
        return unknown(reader, "pre_tokenizer", "a step after ByteLevel or Metaspace");
    if (before > 0)
        taken = add(signature, " ", 1);
    if (is_text(type, "Split"))
        taken = add_split(signature, step);
    else if (is_text(type, "ByteLevel"))
        taken = add_byte_level(signature, step);
    else if (is_text(type, "Metaspace"))
        taken = add_metaspace(signature, step);
    else if (is_text(type, "Digits"))
        taken = cJSON_IsTrue(ds_hf_json_get(step, "individual_digits"))
                    ? add(signature, "digit", 5)
                    : add(signature, "digits", 6);
    else
        taken = false;
    if (!taken)
        return unknown(reader, "pre_tokenizer",
                       cJSON_IsString(type)
                           ? ds_hf_quote(type->valuestring, strlen(type->valuestring)).text
                           : "a step without a type");
    if (signature->size == before + 1 && before > 0) /* ByteLevel that cuts nothing */
        signature->text[--signature->size] = '\0';
    return 0;
}

/* NFC is not applied (hf_vocab.h). Prepend and Replace write SPM's blanks. */
static int read_normalizer(const struct ds_hf_reader *reader, const cJSON *step, bool *ret_spm,
                           int8_t *ret_space_first, unsigned depth)
{
    const cJSON *type = ds_hf_json_get(step, "type");
    int r = 0;

    if (!step || is_text(type, "NFC"))
        return 0;
    if (is_text(type, "Sequence") && depth > 0) {
        const cJSON *list = ds_hf_json_get(step, "normalizers");

        for (list = list ? list->child : NULL; r == 0 && list; list = list->next)
            r = read_normalizer(reader, list, ret_spm, ret_space_first, depth - 1);
        return r;
    }
    if (is_text(type, "Prepend") && is_text(ds_hf_json_get(step, "prepend"), "\u2581")) {
        *ret_space_first = 1;
        return 0;
    }
    if (is_text(type, "Replace") && is_text(ds_hf_json_get(step, "content"), "\u2581") &&
        is_text(ds_hf_json_get(ds_hf_json_get(step, "pattern"), "String"), " ")) {
        *ret_spm = true;
        return 0;
    }
    return unknown(reader, "normalizer",
                   cJSON_IsString(type)
                       ? ds_hf_quote(type->valuestring, strlen(type->valuestring)).text
                       : "a step without a type");
}

static int find_known(struct ds_hf_reader *reader, const struct signature *signature)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(signature->text, known[i].signature) == 0) {
            reader->made->vocab.pre = (struct ds_bytes){ known[i].pre, strlen(known[i].pre) };
            return 0;
        }
    return ds_hf_unsupported(reader, FILE_,
                             "field 'pre_tokenizer': its way of cutting texts (%s...) is not known "
                             "to this build",
                             ds_hf_quote(signature->text, signature->size).text);
}

int ds_hf_read_pretokeniser(struct ds_hf_reader *reader, const cJSON *tokenizer)
{
    const cJSON *model = ds_hf_json_get(tokenizer, "model");
    bool byte_fallback = cJSON_IsTrue(ds_hf_json_get(model, "byte_fallback")), spm = false;
    struct ds_vocab *vocab = &reader->made->vocab;
    struct signature signature = { .size = 0 };
    const cJSON *step = ds_hf_json_get(tokenizer, "pre_tokenizer");
    int8_t space_first = 0;
    int r;

    r = read_normalizer(reader, ds_hf_json_get(tokenizer, "normalizer"), &spm, &space_first, 4);
    if (r == 0 && step)
        r = add_step(reader, &signature, step, 4);
    if (r < 0)
        return r;
    if (signature.byte_level && !spm) {
        vocab->kind = DS_VOCAB_BPE;
        return find_known(reader, &signature);
    }
    if (!byte_fallback || signature.byte_level || signature.size > 0 || spm == signature.metaspace)
        return unknown(reader, "pre_tokenizer",
                       "a tokeniser that is neither ByteLevel nor of SentencePiece's kind");
    vocab->kind = DS_VOCAB_SPM;
    vocab->add_space_prefix = spm ? space_first : signature.space_first;
    return 0;
}
