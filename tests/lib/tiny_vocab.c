/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/tiny_vocab.h"

/* Each merge joins two tokens that exist by then. Ġ (C4 A0) is the space of byte-level BPE. */
static const char *const merges[] = {
    "\xc4\xa0 t",
    "h e",
    "\xc4\xa0 a",
    "i n",
    "r e",
    "\xc4\xa0t he",
    "o n",
    "e r",
    "\xc4\xa0 s",
    "a t",
    "\xc4\xa0 w",
    "o u",
    "l l",
    "he ll",
    "hell o",
    "o r",
    "\xc4\xa0w or",
    "\xc4\xa0wor l",
    "i s",
    "in g",
    "a n",
    "an d",
    "\xc4\xa0 and",
    "\xc4\xa0 c",
    "\xc4\xa0 \xc4\xa0",
    "\xc4\x8a \xc4\x8a",
};

/* Pieces of the SPM vocabulary after the bytes, likeliest first. */
static const char *const pieces[] = {
    "\xe2\x96\x81t",
    "he",
    "\xe2\x96\x81the",
    "\xe2\x96\x81"
    "a",
    "in",
    "\xe2\x96\x81s",
    "re",
    "on",
    "er",
    "\xe2\x96\x81w",
    "ll",
    "ello",
    "llo",
    "lo",
    "or",
    "ld",
    "\xe2\x96\x81wor",
    "\xe2\x96\x81world",
    "\xe2\x96\x81h",
    "\xe2\x96\x81he",
    "\xe2\x96\x81hello",
    "\xe2\x96\x81",
    "e",
    "t",
    "a",
    "o",
    "i",
    "n",
    "s",
    "h",
    "r",
    "d",
    "l",
    "u",
    "w",
    "m",
    "c",
    "f",
    "g",
    "y",
    "p",
    "b",
    "v",
    "k",
    ".",
    ",",
};

static const char chatml[] =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}";

struct list {
    struct ds_bytes *tokens; /* contents owned */
    int32_t *types;
    float *scores;
    uint32_t n, room;
};

static void add(struct list *list, const char *text, size_t size, enum ds_token_type type)
{
    char *copy = malloc(size + 1);

    if (!copy || list->n == list->room)
        abort();
    memcpy(copy, text, size);
    list->scores[list->n] = type == DS_TOKEN_NORMAL ? -(float) list->n : 0.0f;
    list->types[list->n] = type;
    list->tokens[list->n++] = (struct ds_bytes){ copy, size };
}

/* Byte as GPT-2's alphabet shows it: printable Latin-1 stands for itself, the other 68 bytes for
 * U+0100 and on. All are below U+0800: at most two bytes of UTF-8. */
static size_t alphabet(unsigned byte, char text[2])
{
    unsigned code = byte, skipped = 0;

    for (unsigned b = 0; b <= byte; b++)
        if (!((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae)) {
            if (b == byte)
                code = 0x100 + skipped;
            skipped++;
        }
    if (code < 0x80) {
        text[0] = (char) code;
        return 1;
    }
    text[0] = (char) (0xc0 | code >> 6);
    text[1] = (char) (0x80 | (code & 0x3f));
    return 2;
}

static void add_bpe(struct list *list)
{
    static const char *const controls[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    char text[32];

    for (unsigned i = 0; i < 3; i++)
        add(list, controls[i], strlen(controls[i]), DS_TOKEN_CONTROL);
    for (unsigned b = 0; b < 256; b++)
        add(list, text, alphabet(b, text), DS_TOKEN_NORMAL);
    for (unsigned i = 0; i < sizeof merges / sizeof merges[0]; i++) {
        const char *space = strchr(merges[i], ' ');

        (void) snprintf(text, sizeof text, "%.*s%s", (int) (space - merges[i]), merges[i],
                        space + 1);
        add(list, text, strlen(text), DS_TOKEN_NORMAL);
    }
}

static void add_spm(struct list *list)
{
    char text[32];

    add(list, "<unk>", 5, DS_TOKEN_UNKNOWN);
    add(list, "<s>", 3, DS_TOKEN_CONTROL);
    add(list, "</s>", 4, DS_TOKEN_CONTROL);
    for (unsigned b = 0; b < 256; b++) {
        (void) snprintf(text, sizeof text, "<0x%02X>", b);
        add(list, text, 6, DS_TOKEN_BYTE);
    }
    for (unsigned i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
        add(list, pieces[i], strlen(pieces[i]), DS_TOKEN_NORMAL);
}

static void put_specials(struct ds_gguf_writer *writer, enum ds_vocab_kind kind)
{
    bool spm = kind == DS_VOCAB_SPM;

    ds_gguf_writer_u32(writer, "tokenizer.ggml.bos_token_id", spm ? 1 : 0);
    ds_gguf_writer_u32(writer, "tokenizer.ggml.eos_token_id", 2);
    ds_gguf_writer_u32(writer, "tokenizer.ggml.unknown_token_id", 0);
    ds_gguf_writer_bool(writer, "tokenizer.ggml.add_bos_token", spm);
    ds_gguf_writer_bool(writer, "tokenizer.ggml.add_eos_token", 0);
    ds_gguf_writer_bool(writer, "tokenizer.ggml.add_space_prefix", spm);
}

static void put_merges(struct ds_gguf_writer *writer)
{
    struct ds_bytes list[sizeof merges / sizeof merges[0]];
    unsigned n = sizeof merges / sizeof merges[0];

    for (unsigned i = 0; i < n; i++)
        list[i] = (struct ds_bytes){ merges[i], strlen(merges[i]) };
    ds_gguf_writer_strings(writer, "tokenizer.ggml.merges", list, n);
}

static const char *pre_tokeniser(const struct ds_tiny_options *options)
{
    if (options->pre)
        return options->pre;
    if (options->vocab == DS_VOCAB_SPM)
        return "default";
    return options->architecture == DS_ARCH_LLAMA ? "smollm" : "qwen2";
}

void ds_tiny_vocab_write(struct ds_gguf_writer *writer, const struct ds_tiny_options *options)
{
    const char *template = options->chat_template ? options->chat_template : chatml;
    struct list list = { .room = options->n_vocab };
    bool spm = options->vocab == DS_VOCAB_SPM;
    char text[32];

    list.tokens = calloc(list.room, sizeof *list.tokens);
    list.types = calloc(list.room, sizeof *list.types);
    list.scores = calloc(list.room, sizeof *list.scores);
    if (!list.tokens || !list.types || !list.scores)
        abort();
    if (spm)
        add_spm(&list);
    else
        add_bpe(&list);
    while (list.n < list.room) {
        (void) snprintf(text, sizeof text, "<unused%u>", list.n);
        add(&list, text, strlen(text), DS_TOKEN_UNUSED);
    }
    ds_gguf_writer_string(writer, "tokenizer.ggml.model", spm ? "llama" : "gpt2");
    ds_gguf_writer_string(writer, "tokenizer.ggml.pre", pre_tokeniser(options));
    ds_gguf_writer_strings(writer, "tokenizer.ggml.tokens", list.tokens, list.n);
    ds_gguf_writer_array(writer, "tokenizer.ggml.token_type", DS_GGUF_I32, list.types, 4, list.n);
    if (spm)
        ds_gguf_writer_array(writer, "tokenizer.ggml.scores", DS_GGUF_F32, list.scores, 4, list.n);
    else
        put_merges(writer);
    put_specials(writer, options->vocab);
    if (*template)
        ds_gguf_writer_string(writer, "tokenizer.chat_template", template);
    for (uint32_t i = 0; i < list.n; i++)
        free((char *) list.tokens[i].data);
    free(list.tokens);
    free(list.types);
    free(list.scores);
}
