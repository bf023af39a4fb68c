/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a checkpoint says what its files say, fills in what they leave out, and refuses what
 * contradicts itself, in one line that names the file and the thing. Method: tiny models of every
 * architecture, type and vocabulary; the same in parts, shuffled; keys replaced one by one; every
 * byte of the keys changed; the golden files where they are there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>

#include "engine/format/checkpoint.h"
#include "engine/format/quant.h"
#include "tests/lib/golden.h"
#include "tests/lib/tiny_model.h"

static struct ds_checkpoint *open_fds(const int *fds, unsigned n, const char *name, bool vocab_only,
                                      int *ret_code, struct ds_error *error)
{
    struct ds_checkpoint *checkpoint = NULL;

    error->text[0] = '\0';
    *ret_code = ds_checkpoint_open(&checkpoint, fds, n, name, vocab_only, error);
    if (*ret_code < 0) {
        assert_null(checkpoint);
        if (strncmp(error->text, name, strlen(name)) != 0)
            fail_msg("error '%s' does not begin with '%s'", error->text, name);
    }
    for (unsigned i = 0; i < n; i++)
        (void) close(fds[i]);
    return checkpoint;
}

static struct ds_checkpoint *open_tiny(const struct ds_tiny_options *options)
{
    int fd = ds_tiny_model_fd(options), code;
    struct ds_error error;
    struct ds_checkpoint *checkpoint = open_fds(&fd, 1, "tiny", options->vocab_only, &code, &error);

    if (!checkpoint)
        fail_msg("%s", error.text);
    return checkpoint;
}

/* --- what is right --- */

static void tiny_models_of_every_kind_open_with_their_parameters(void **state)
{
    static const uint32_t types[] = { DS_TYPE_F32,   DS_TYPE_F16,  DS_TYPE_BF16, DS_TYPE_Q4_0,
                                      DS_TYPE_Q4_1,  DS_TYPE_Q5_0, DS_TYPE_Q5_1, DS_TYPE_Q8_0,
                                      DS_TYPE_Q4_K,  DS_TYPE_Q5_K, DS_TYPE_Q6_K, DS_TYPE_IQ4_NL,
                                      DS_TYPE_MXFP4, DS_TYPE_Q2_K, DS_TYPE_Q3_K, DS_TYPE_IQ4_XS,
                                      DS_TYPE_TQ1_0, DS_TYPE_TQ2_0 };
    static const char *const names[] = { "llama", "qwen2", "qwen3" };

    (void) state;
    for (int architecture = 0; architecture < 3; architecture++)
        for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++) {
            struct ds_tiny_options o = ds_tiny_options(architecture, types[i]);
            struct ds_checkpoint *checkpoint = open_tiny(&o);
            const struct ds_hyper *h = ds_checkpoint_hyper(checkpoint);

            assert_string_equal(ds_checkpoint_architecture(checkpoint), names[architecture]);
            assert_int_equal(h->architecture, architecture);
            assert_int_equal(h->rope_neox, architecture != DS_ARCH_LLAMA);
            assert_int_equal(h->n_layers, o.n_layers);
            assert_int_equal(h->width, o.width);
            assert_int_equal(h->ffn_width, o.ffn_width);
            assert_int_equal(h->n_heads, o.n_heads);
            assert_int_equal(h->n_kv_heads, o.n_kv_heads);
            assert_int_equal(h->key_dim, o.head_dim);
            assert_int_equal(h->n_vocab, o.n_vocab);
            assert_int_equal(h->context, o.context);
            assert_int_equal(h->rope_scaling, DS_ROPE_NONE);
            assert_float_equal(h->rope_factor, 1, 0);
            assert_string_equal(ds_checkpoint_main_type(checkpoint),
                                ds_type_traits(types[i])->name);
            assert_true(ds_checkpoint_file_bytes(checkpoint) > 1000);
            (void) ds_checkpoint_free(checkpoint);
        }
}

static void tensors_are_found_by_name_and_shape(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_checkpoint *checkpoint;
    struct ds_error error;
    uint64_t parameters = 0;

    (void) state;
    o.rope_factors = true;
    checkpoint = open_tiny(&o);
    assert_non_null(ds_checkpoint_require(checkpoint, 1, "attn_k.weight", 64, 32, &error));
    assert_non_null(ds_checkpoint_require(checkpoint, -1, "output_norm.weight", 64, 0, &error));
    assert_non_null(ds_checkpoint_tensor(checkpoint, "rope_freqs.weight"));
    assert_null(ds_checkpoint_tensor(checkpoint, "blk.2.attn_k.weight"));
    assert_null(ds_checkpoint_require(checkpoint, 2, "attn_k.weight", 64, 32, &error));
    assert_non_null(strstr(error.text, "tensor 'blk.2.attn_k.weight' is missing"));
    assert_null(ds_checkpoint_require(checkpoint, 1, "attn_k.weight", 64, 64, &error));
    assert_non_null(strstr(error.text, "64 x 32"));
    for (unsigned i = 0; i < ds_checkpoint_n_tensors(checkpoint); i++) {
        const struct ds_tensor *tensor = ds_checkpoint_tensor_at(checkpoint, i);

        assert_ptr_equal(ds_checkpoint_tensor(checkpoint, tensor->name), tensor);
        parameters += tensor->dims[0] * tensor->dims[1];
    }
    assert_int_equal(ds_checkpoint_n_parameters(checkpoint), parameters);
    assert_null(ds_checkpoint_tensor_at(checkpoint, ds_checkpoint_n_tensors(checkpoint)));
    (void) ds_checkpoint_free(checkpoint);
}

static void vocabularies_read_back(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_checkpoint *checkpoint;
    const struct ds_vocab *vocab;

    (void) state;
    o.vocab_only = true;
    checkpoint = open_tiny(&o);
    vocab = ds_checkpoint_vocab(checkpoint);
    assert_int_equal(vocab->kind, DS_VOCAB_BPE);
    assert_int_equal(vocab->n_tokens, 320);
    assert_int_equal(vocab->pre.size, 6);
    assert_memory_equal(vocab->pre.data, "smollm", 6);
    assert_memory_equal(vocab->tokens[1].data, "<|im_start|>", 12);
    assert_int_equal(vocab->types[1], DS_TOKEN_CONTROL);
    assert_memory_equal(vocab->merges[1].data, "h e", 3);
    assert_int_equal(vocab->eos, 2);
    assert_int_equal(vocab->padding, DS_TOKEN_NONE);
    assert_int_equal(vocab->add_bos, 0);
    assert_int_equal(vocab->ignore_merges, -1);
    assert_true(vocab->chat_template.size > 50);
    assert_null(vocab->scores);
    assert_int_equal(ds_checkpoint_hyper(checkpoint)->n_vocab, 320);
    (void) ds_checkpoint_free(checkpoint);

    o.vocab = DS_VOCAB_SPM;
    checkpoint = open_tiny(&o);
    vocab = ds_checkpoint_vocab(checkpoint);
    assert_int_equal(vocab->kind, DS_VOCAB_SPM);
    assert_int_equal(vocab->n_merges, 0);
    assert_int_equal(vocab->bos, 1);
    assert_float_equal(vocab->scores[300], -300, 0);
    assert_int_equal(vocab->types[3], DS_TOKEN_BYTE);
    (void) ds_checkpoint_free(checkpoint);
}

static void scaling_and_advice_are_read_or_defaulted(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_F32);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    struct ds_checkpoint *checkpoint;
    struct ds_error error;
    int fd, code;

    (void) state;
    o.rope_scaling = DS_ROPE_YARN;
    ds_tiny_model_write(writer, &o);
    ds_gguf_writer_f32(writer, "general.sampling.temp", 0.6f);
    ds_gguf_writer_i32(writer, "general.sampling.top_k", 20);
    fd = ds_gguf_writer_memfd(writer);
    (void) ds_gguf_writer_free(writer);
    checkpoint = open_fds(&fd, 1, "yarn", false, &code, &error);
    assert_non_null(checkpoint);
    assert_int_equal(ds_checkpoint_hyper(checkpoint)->rope_scaling, DS_ROPE_YARN);
    assert_float_equal(ds_checkpoint_hyper(checkpoint)->rope_factor, 4, 0);
    assert_int_equal(ds_checkpoint_hyper(checkpoint)->rope_original_context, 128);
    assert_float_equal(ds_checkpoint_hyper(checkpoint)->rope_beta_fast, 32, 0);
    assert_float_equal(ds_checkpoint_advice(checkpoint)->temperature, 0.6f, 0);
    assert_int_equal(ds_checkpoint_advice(checkpoint)->top_k, 20);
    assert_true(isnan(ds_checkpoint_advice(checkpoint)->top_p));
    (void) ds_checkpoint_free(checkpoint);
}

static void metadata_is_printable_text(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    struct ds_checkpoint *checkpoint;
    struct ds_error error;
    unsigned found = 0;
    int fd, code;

    (void) state;
    ds_gguf_writer_string(writer, "x.bad", "a\x1b[2J\xff\xc2\x9b\n\xc3\xa9\xed\xa0\x80");
    ds_tiny_model_write(writer, &o);
    fd = ds_gguf_writer_memfd(writer);
    (void) ds_gguf_writer_free(writer);
    checkpoint = open_fds(&fd, 1, "metadata", false, &code, &error);
    for (unsigned i = 0; i < ds_checkpoint_n_metadata(checkpoint); i++) {
        const struct ds_metadata *m = &ds_checkpoint_metadata(checkpoint)[i];

        for (const char *c = m->value; *c; c++)
            assert_true((unsigned char) *c >= 0x20 && *c != 0x7f);
        if (strcmp(m->key, "x.bad") == 0 && ++found)
            assert_string_equal(m->value, "a\\x1b[2J\\xff\\xc2\\n\xc3\xa9\\xed\\xa0\\x80");
        if (strcmp(m->key, "tokenizer.ggml.tokens") == 0 && ++found)
            assert_string_equal(m->value, "[320 strings]");
        if (strcmp(m->key, "llama.block_count") == 0 && ++found)
            assert_string_equal(m->value, "2");
    }
    assert_int_equal(found, 3);
    (void) ds_checkpoint_free(checkpoint);
}

/* --- splits --- */

static void parts_open_in_any_order(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_QWEN3, DS_TYPE_Q8_0);
    struct ds_checkpoint *whole = open_tiny(&o), *split;
    struct ds_error error;
    int fds[3], shuffled[3], code;

    (void) state;
    assert_int_equal(ds_tiny_model_split(&o, 3, fds), 0);
    shuffled[0] = fds[2];
    shuffled[1] = fds[0];
    shuffled[2] = fds[1];
    split = open_fds(shuffled, 3, "split", false, &code, &error);
    if (!split)
        fail_msg("%s", error.text);
    assert_int_equal(ds_checkpoint_n_tensors(split), ds_checkpoint_n_tensors(whole));
    for (unsigned i = 0; i < ds_checkpoint_n_tensors(whole); i++) {
        const struct ds_tensor *a = ds_checkpoint_tensor_at(whole, i);
        const struct ds_tensor *b = ds_checkpoint_tensor_at(split, i);

        assert_string_equal(a->name, b->name);
        assert_int_equal(a->size_bytes, b->size_bytes);
        assert_memory_equal(a->data, b->data, a->size_bytes);
    }
    (void) ds_checkpoint_free(whole);
    (void) ds_checkpoint_free(split);
}

static void incomplete_or_mixed_parts_are_refused(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_error error;
    int fds[3], wrong[3], code;

    (void) state;
    assert_int_equal(ds_tiny_model_split(&o, 3, fds), 0);
    assert_null(open_fds(fds, 2, "split", false, &code, &error));
    assert_int_equal(code, -EINVAL);
    assert_non_null(strstr(error.text, "split into 3 files, 2 given"));
    (void) close(fds[2]);

    assert_int_equal(ds_tiny_model_split(&o, 3, fds), 0);
    wrong[0] = fds[0];
    wrong[1] = fds[1];
    wrong[2] = dup(fds[1]);
    assert_null(open_fds(wrong, 3, "split", false, &code, &error));
    assert_int_equal(code, -EINVAL);
    assert_non_null(strstr(error.text, "given twice"));
    (void) close(fds[2]);

    wrong[0] = ds_tiny_model_fd(&o);
    wrong[1] = ds_tiny_model_fd(&o);
    assert_null(open_fds(wrong, 2, "split", false, &code, &error));
    assert_int_equal(code, -EINVAL);
    assert_null(open_fds(wrong, 0, "split", false, &code, &error));
    assert_int_equal(code, -EINVAL);
}

/* --- contradictions --- */

/* A tiny model whose given key is written first with another value and then not again. */
struct change {
    const char *key;
    enum { REMOVE, U32, F32, STRING, ARRAY } how;
    double number;
    const char *text;
    int code;
    const char *words;
};

/* Renames the key in the file's bytes, so that the new one in front of it is the only one. */
static int changed_model(const struct change *change)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    const uint32_t two[] = { (uint32_t) change->number, (uint32_t) change->number + 1 };
    size_t size, from;
    uint8_t *file, *at;
    int fd;

    if (change->how == U32)
        ds_gguf_writer_u32(writer, change->key, (uint32_t) change->number);
    else if (change->how == F32)
        ds_gguf_writer_f32(writer, change->key, (float) change->number);
    else if (change->how == STRING)
        ds_gguf_writer_string(writer, change->key, change->text);
    else if (change->how == ARRAY)
        ds_gguf_writer_array(writer, change->key, DS_GGUF_U32, two, 4, 2);
    ds_tiny_model_write(writer, &o);
    file = ds_gguf_writer_finish(writer, &size);
    from = 24 + (change->how == REMOVE ? 0 : 8 + strlen(change->key));
    at = memmem(file + from, size - from, change->key, strlen(change->key));
    if (at)
        at[0] = '~';
    fd = ds_memfd_of(file, size);
    free(file);
    (void) ds_gguf_writer_free(writer);
    return fd;
}

static const struct change changes[] = {
    { "general.architecture", REMOVE, 0, "", -EINVAL, "'general.architecture' is missing" },
    { "general.architecture", STRING, 0, "mamba", -ENOTSUP, "architecture 'mamba'" },
    { "general.architecture", STRING, 0, "a\x1b[1m", -ENOTSUP, "architecture 'a?[1m'" },
    { "general.architecture", U32, 3, "", -EINVAL, "should be a string" },
    { "general.type", STRING, 0, "adapter", -ENOTSUP, "is an adapter" },
    { "llama.block_count", REMOVE, 0, "", -EINVAL, "'llama.block_count' is missing" },
    { "llama.block_count", U32, 0, "", -EINVAL, "'llama.block_count' is 0" },
    { "llama.block_count", U32, 100000, "", -EINVAL, "'llama.block_count' is 100000" },
    { "llama.block_count", F32, 2, "", -EINVAL, "should be a number" },
    { "llama.context_length", U32, 0, "", -EINVAL, "llama.context_length" },
    { "llama.embedding_length", U32, 128, "", -EINVAL, "token_embd.weight" },
    { "llama.feed_forward_length", ARRAY, 96, "", -ENOTSUP, "differs between layers" },
    { "llama.attention.head_count", U32, 0, "", -EINVAL, "no heads" },
    { "llama.attention.head_count", U32, 5, "", -EINVAL, "do not divide" },
    { "llama.attention.head_count_kv", U32, 3, "", -EINVAL, "do not divide" },
    { "llama.attention.head_count_kv", U32, 0, "", -EINVAL, "head_count_kv" },
    { "llama.attention.key_length", U32, 0, "", -EINVAL, "key_length" },
    { "llama.rope.dimension_count", U32, 15, "", -EINVAL, "is odd" },
    { "llama.rope.dimension_count", U32, 32, "", -EINVAL, "dimension_count" },
    { "llama.rope.freq_base", F32, 0, "", -EINVAL, "RoPE" },
    { "llama.rope.freq_base", F32, INFINITY, "", -EINVAL, "finite" },
    { "llama.rope.scaling.type", STRING, 0, "longrope", -ENOTSUP, "none, linear and yarn" },
    { "llama.rope.scaling.factor", F32, -1, "", -EINVAL, "RoPE" },
    { "llama.expert_count", U32, 8, "", -EINVAL, "'llama.expert_used_count' is missing" },
    { "tokenizer.ggml.model", REMOVE, 0, "", -EINVAL, "'tokenizer.ggml.model' is missing" },
    { "tokenizer.ggml.model", STRING, 0, "bert", -ENOTSUP, "kind of tokeniser" },
    { "tokenizer.ggml.model", STRING, 0, "llama", -EINVAL, "tokenizer.ggml.scores" },
    { "tokenizer.ggml.tokens", REMOVE, 0, "", -EINVAL, "tokenizer.ggml.tokens" },
    { "tokenizer.ggml.tokens", ARRAY, 0, "", -EINVAL, "array of at most" },
    { "tokenizer.ggml.token_type", ARRAY, 0, "", -EINVAL, "one number for each token" },
    { "tokenizer.ggml.eos_token_id", U32, 320, "", -EINVAL, "no token of its vocabulary" },
    { "tokenizer.ggml.add_bos_token", U32, 1, "", -EINVAL, "true or false" },
    { "tokenizer.chat_template", U32, 1, "", -EINVAL, "should be a string" },
    { "token_embd.weight", REMOVE, 0, "", -EINVAL, "holds no weights" },
};

static void contradictions_are_refused_with_their_reason(void **state)
{
    (void) state;
    for (unsigned i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        struct ds_error error;
        int fd = changed_model(&changes[i]), code;

        assert_null(open_fds(&fd, 1, "changed", false, &code, &error));
        if (code != changes[i].code || !strstr(error.text, changes[i].words))
            fail_msg("%s: %d '%s', expected %d '%s'", changes[i].key, code, error.text,
                     changes[i].code, changes[i].words);
    }
}

static void missing_optional_keys_take_their_defaults(void **state)
{
    static const char *const optional[] = {
        "llama.attention.head_count_kv", "llama.attention.key_length", "llama.rope.freq_base",
        "llama.rope.dimension_count",    "llama.vocab_size",           "tokenizer.ggml.token_type",
        "tokenizer.ggml.bos_token_id"
    };

    (void) state;
    for (unsigned i = 0; i < sizeof optional / sizeof optional[0]; i++) {
        struct change removal = { optional[i], REMOVE, 0, "", 0, "" };
        struct ds_error error;
        int fd = changed_model(&removal), code;
        struct ds_checkpoint *checkpoint = open_fds(&fd, 1, "default", false, &code, &error);

        if (!checkpoint)
            fail_msg("%s", error.text);
        assert_int_equal(ds_checkpoint_hyper(checkpoint)->key_dim, 16);
        assert_int_equal(ds_checkpoint_hyper(checkpoint)->rope_dims, 16);
        assert_float_equal(ds_checkpoint_hyper(checkpoint)->rope_base, 10000, 0);
        assert_int_equal(ds_checkpoint_hyper(checkpoint)->n_kv_heads, i == 0 ? 4 : 2);
        (void) ds_checkpoint_free(checkpoint);
    }
}

static void a_file_without_weights_opens_only_as_a_vocabulary(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_error error;
    int fd, code;

    (void) state;
    o.vocab_only = true;
    fd = ds_tiny_model_fd(&o);
    assert_null(open_fds(&fd, 1, "vocab", false, &code, &error));
    assert_int_equal(code, -EINVAL);
    assert_non_null(strstr(error.text, "holds no weights"));
}

/* Every byte of keys and tensor list takes other values: the file opens or is refused. */
static void any_changed_byte_of_the_keys_is_survived(void **state)
{
    struct ds_tiny_options o = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    uint8_t *file, *end;
    size_t size;

    (void) state;
    o.n_layers = 1;
    ds_tiny_model_write(writer, &o);
    file = ds_gguf_writer_finish(writer, &size);
    end = memmem(file, size, "output.weight", 13);
    assert_non_null(end);
    for (uint8_t *at = file; at < end + 60; at += at < file + 900 || at > end - 900 ? 1 : 7) {
        struct ds_checkpoint *checkpoint;
        struct ds_error error;
        int fd, code;

        *at ^= 0x81;
        fd = ds_memfd_of(file, size);
        *at ^= 0x81;
        checkpoint = open_fds(&fd, 1, "flip", false, &code, &error);
        assert_true(code == 0 || code == -EBADMSG || code == -EINVAL || code == -ENOTSUP);
        (void) ds_checkpoint_free(checkpoint);
    }
    free(file);
    (void) ds_gguf_writer_free(writer);
}

/* --- golden files --- */

struct expectation {
    const char *file;
    enum ds_architecture architecture;
    uint32_t n_layers, width, ffn_width, n_heads, n_kv_heads, key_dim;
    const char *main_type;
};

static const struct expectation expectations[] = {
    { "gguf/llama-F32.gguf", DS_ARCH_LLAMA, 3, 96, 224, 6, 2, 16, "F32" },
    { "gguf/llama3rope-F32.gguf", DS_ARCH_LLAMA, 2, 128, 192, 4, 1, 32, "F32" },
    { "gguf/qwen2-F32.gguf", DS_ARCH_QWEN2, 2, 96, 256, 3, 1, 32, "F32" },
    { "gguf/qwen3-F32.gguf", DS_ARCH_QWEN3, 3, 64, 160, 4, 2, 32, "F32" },
    { "gguf/qwen3moe-F32.gguf", DS_ARCH_QWEN3MOE, 2, 64, 192, 4, 2, 32, "F32" },
    { "gguf/deepseek-v3-F32.gguf", DS_ARCH_DEEPSEEK2, 3, 64, 160, 4, 1, 48, "F32" },
    { "models/stories15M-Q8_0.gguf", DS_ARCH_LLAMA, 6, 288, 768, 6, 6, 48, "Q8_0" },
    { "quant/q-llama-Q4_K_M.gguf", DS_ARCH_LLAMA, 1, 256, 256, 8, 2, 32, "Q4_K" },
    { "quant/q-llama-BF16.gguf", DS_ARCH_LLAMA, 1, 256, 256, 8, 2, 32, "BF16" },
    { "quant/q-qwen2-Q6_K.gguf", DS_ARCH_QWEN2, 1, 256, 256, 4, 1, 64, "Q6_K" },
};

static void golden_models_have_their_parameters(void **state)
{
    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("the parameters of the golden models");
        return;
    }
    for (unsigned i = 0; i < sizeof expectations / sizeof expectations[0]; i++) {
        const struct expectation *e = &expectations[i];
        ds_cleanup(ds_free_p) char *path = ds_golden_file(e->file);
        struct ds_error error;
        int fd = open(path, O_RDONLY | O_CLOEXEC), code;
        struct ds_checkpoint *checkpoint = open_fds(&fd, 1, "golden", false, &code, &error);
        const struct ds_hyper *h;

        if (!checkpoint)
            fail_msg("%s", error.text);
        h = ds_checkpoint_hyper(checkpoint);
        assert_int_equal(h->architecture, e->architecture);
        assert_int_equal(h->n_layers, e->n_layers);
        assert_int_equal(h->width, e->width);
        assert_int_equal(h->ffn_width, e->ffn_width);
        assert_int_equal(h->n_heads, e->n_heads);
        assert_int_equal(h->n_kv_heads, e->n_kv_heads);
        assert_int_equal(h->key_dim, e->key_dim);
        assert_string_equal(ds_checkpoint_main_type(checkpoint), e->main_type);
        (void) ds_checkpoint_free(checkpoint);
    }
}

static void check_folder(const char *folder, bool vocab_only)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file(folder);
    DIR *dir = opendir(path);
    unsigned n = 0;

    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        ds_cleanup(ds_free_p) char *file = NULL;
        struct ds_checkpoint *checkpoint;
        struct ds_error error;
        size_t size = strlen(entry->d_name);
        int fd, code;

        if (size < 5 || strcmp(entry->d_name + size - 5, ".gguf") != 0)
            continue;
        assert_true(asprintf(&file, "%s/%s", path, entry->d_name) > 0);
        fd = open(file, O_RDONLY | O_CLOEXEC);
        checkpoint = open_fds(&fd, 1, entry->d_name, vocab_only, &code, &error);
        if (code != 0)
            fail_msg("%s: %d %s", entry->d_name, code, error.text);
        if (vocab_only)
            assert_true(ds_checkpoint_vocab(checkpoint)->n_tokens > 30000);
        (void) ds_checkpoint_free(checkpoint);
        n++;
    }
    (void) closedir(dir);
    assert_true(n > 2);
}

static void all_golden_files_open(void **state)
{
    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("opening of the golden files");
        return;
    }
    check_folder("gguf", false);
    check_folder("models", false);
    check_folder("quant", false);
    check_folder("vocab", true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models_of_every_kind_open_with_their_parameters),
        cmocka_unit_test(tensors_are_found_by_name_and_shape),
        cmocka_unit_test(vocabularies_read_back),
        cmocka_unit_test(scaling_and_advice_are_read_or_defaulted),
        cmocka_unit_test(metadata_is_printable_text),
        cmocka_unit_test(parts_open_in_any_order),
        cmocka_unit_test(incomplete_or_mixed_parts_are_refused),
        cmocka_unit_test(contradictions_are_refused_with_their_reason),
        cmocka_unit_test(missing_optional_keys_take_their_defaults),
        cmocka_unit_test(a_file_without_weights_opens_only_as_a_vocabulary),
        cmocka_unit_test(any_changed_byte_of_the_keys_is_survived),
        cmocka_unit_test(golden_models_have_their_parameters),
        cmocka_unit_test(all_golden_files_open),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
