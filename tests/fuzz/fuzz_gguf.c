/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_gguf.c - any bytes as a model file: opened whole and as a vocabulary, read where it opens.
 *
 * sources: engine/format tests/lib/gguf_writer.c tests/lib/tiny_model.c tests/lib/tiny_vocab.c
 *
 * With DSD_FUZZ_SEEDS=FOLDER in its environment it writes its seeds there and ends.
 */
#include "engine/format/checkpoint.h"
#include "engine/format/quant.h"
#include "tests/lib/tiny_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const struct ds_checkpoint *checkpoint)
{
    const struct ds_vocab *vocab = ds_checkpoint_vocab(checkpoint);
    size_t sum = vocab->chat_template.size;
    float row[256];

    for (uint32_t i = 0; i < vocab->n_tokens; i++)
        sum += vocab->tokens[i].size ? (unsigned char) vocab->tokens[i].data[0] : 0;
    for (uint32_t i = 0; i < vocab->n_merges; i++)
        sum += vocab->merges[i].size;
    for (unsigned i = 0; i < ds_checkpoint_n_metadata(checkpoint); i++)
        sum += strlen(ds_checkpoint_metadata(checkpoint)[i].value);
    for (unsigned i = 0; i < ds_checkpoint_n_tensors(checkpoint); i++) {
        const struct ds_tensor *tensor = ds_checkpoint_tensor_at(checkpoint, i);
        const struct ds_type_traits *traits = ds_type_traits(tensor->type);
        size_t n = traits->block_elements;

        traits->dequantise(tensor->data, row, n);
        traits->dequantise(
            (const uint8_t *) tensor->data + tensor->size_bytes - traits->block_bytes, row, n);
        sum += row[0] > 0;
    }
    if (sum == SIZE_MAX)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int vocab_only = 0; vocab_only < 2; vocab_only++) {
        ds_cleanup(ds_checkpoint_free_p) struct ds_checkpoint *checkpoint = NULL;
        ds_cleanup(ds_close_p) int fd = ds_memfd_of(data, size);
        struct ds_error error = { "" };
        int r = ds_checkpoint_open(&checkpoint, &fd, 1, "fuzz", vocab_only, &error);

        if (r < 0 ? strncmp(error.text, "fuzz", 4) != 0 : !checkpoint)
            abort();
        if (checkpoint)
            read_all(checkpoint);
    }
    return 0;
}

/* Before main(), so that it needs no word with whatever drives the target. */
__attribute__((constructor)) static void write_seeds(void)
{
    static const uint32_t types[] = { DS_TYPE_F16, DS_TYPE_Q4_1, DS_TYPE_Q8_0 };
    const char *folder = getenv("DSD_FUZZ_SEEDS");

    if (!folder)
        return;
    for (int i = 0; i < 3; i++) {
        struct ds_tiny_options o = ds_tiny_options(i, types[i]);
        char path[4096];

        o.n_layers = 1;
        o.width = 32;
        o.ffn_width = 32;
        o.head_dim = 8;
        o.vocab = i == 0 ? DS_VOCAB_SPM : DS_VOCAB_BPE;
        o.rope_scaling = (enum ds_rope_scaling) i;
        (void) snprintf(path, sizeof path, "%s/tiny%d.gguf", folder, i);
        (void) ds_tiny_model_file(&o, path);
        o.vocab_only = true;
        (void) snprintf(path, sizeof path, "%s/vocab%d.gguf", folder, i);
        (void) ds_tiny_model_file(&o, path);
    }
    exit(0);
}
