/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_safetensors.c - any bytes as a model's folder: config.json, the index and one shard.
 *
 * sources: engine/format tests/lib/safetensors_writer.c
 *
 * An input is config.json, a NUL, the index (nothing: there is none), a NUL, and the shard. With
 * DSD_FUZZ_SEEDS=FOLDER in its environment it writes its seeds there and ends.
 */
#include <fcntl.h>

#include "engine/format/folder.h"
#include "engine/format/quant.h"
#include "tests/lib/safetensors_writer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whatever was listed before an error, too, must be there to be read. */
static void read_all(const struct ds_hf *hf)
{
    for (size_t i = 0; i < hf->n_tensors; i++) {
        const struct ds_tensor *tensor = &hf->tensors[i];
        float *row = malloc(tensor->dims[0] * sizeof *row);
        void *blocks = malloc(ds_type_row_bytes(tensor->type, tensor->dims[0]));
        const uint8_t *last;

        if (!row || !blocks)
            abort();
        ds_tensor_row_floats(tensor, 0, row);
        ds_tensor_row_floats(tensor, tensor->dims[1] - 1, row);
        last = ds_tensor_rows(tensor, tensor->dims[1] - 1, 1, blocks);
        if (last != blocks) /* as it lies in the file */
            memcpy(blocks, last, ds_type_row_bytes(tensor->type, tensor->dims[0]));
        free(blocks);
        free(row);
    }
}

static void open_folder(const struct ds_hf_files *files, bool any)
{
    struct ds_hf hf = { .n_shards = 0 };
    struct ds_error error = { "" };
    struct ds_gguf keys;
    int r = ds_hf_open(&hf, files, any, &keys, &error);

    if (r < 0 && strncmp(error.text, "fuzz", 4) != 0)
        abort();
    read_all(&hf);
    ds_gguf_deinit(&keys);
    ds_hf_deinit(&hf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *const names[] = { "config.json", "model.safetensors",
                                  "model.safetensors.index.json" };
    const uint8_t *index = memchr(data, 0, size);
    const uint8_t *shard = index ? memchr(index + 1, 0, size - (size_t) (index + 1 - data)) : NULL;
    struct ds_hf_files files = { .model = "fuzz", .names = names };
    int fds[3];

    if (!shard)
        return 0;
    fds[0] = ds_bytes_memfd(data, (size_t) (index - data));
    fds[1] = ds_bytes_memfd(shard + 1, size - (size_t) (shard + 1 - data));
    fds[2] = ds_bytes_memfd(index + 1, (size_t) (shard - index - 1));
    files.fds = fds;
    files.n = shard > index + 1 ? 3 : 2;
    open_folder(&files, false);
    open_folder(&files, true);
    for (int i = 0; i < 3; i++)
        (void) close(fds[i]);
    return 0;
}

/* --- seeds --- */

#define LLAMA LLAMA_OF("8")
#define LLAMA_OF(width)                                                                            \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": " width                          \
    ", \"intermediate_size\": 8, "                                                                 \
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"vocab_size\": 8, "                    \
    "\"max_position_embeddings\": 64, \"tie_word_embeddings\": true, \"eos_token_id\": [1, 2]"

static const struct {
    const char *config, *index;
    struct ds_st_entry entries[5];
} seeds[] = {
    { LLAMA ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
            "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0}}",
      "{\"weight_map\": {\"model.norm.weight\": \"model.safetensors\"}}",
      { { "model.norm.weight", "BF16", { 8 }, 1, NULL, 16 },
        { "model.embed_tokens.weight", "F16", { 8, 8 }, 2, NULL, 128 } } },
    { LLAMA ", \"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, "
            "\"group_size\": -1}}",
      "",
      { { "model.layers.0.mlp.up_proj.qweight", "I32", { 1, 8 }, 2, NULL, 32 },
        { "model.layers.0.mlp.up_proj.qzeros", "I32", { 1, 1 }, 2, NULL, 4 },
        { "model.layers.0.mlp.up_proj.scales", "F16", { 1, 8 }, 2, NULL, 16 },
        { "model.layers.0.mlp.up_proj.g_idx", "I32", { 8 }, 1, NULL, 32 } } },
    { LLAMA ", \"quantization_config\": {\"quant_method\": \"fp8\", "
            "\"weight_block_size\": [128, 128]}}",
      "",
      { { "model.layers.0.mlp.up_proj.weight", "F8_E4M3", { 8, 8 }, 2, NULL, 64 },
        { "model.layers.0.mlp.up_proj.weight_scale_inv", "F32", { 1, 1 }, 2, NULL, 4 } } },
    { LLAMA_OF("128") ", \"quantization_config\": {\"quant_method\": \"fp8\", "
                      "\"weight_block_size\": [128, 128]}}",
      "",
      { { "model.layers.0.mlp.up_proj.weight", "F8_E4M3", { 8, 128 }, 2, NULL, 1024 },
        { "model.layers.0.mlp.up_proj.weight_scale_inv", "BF16", { 1, 1 }, 2, NULL, 2 } } },
    { LLAMA_OF("32") ", \"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4, "
                     "\"group_size\": 32, \"version\": \"gemm\"}}",
      "",
      { { "model.layers.0.mlp.up_proj.qweight", "I32", { 32, 1 }, 2, NULL, 128 },
        { "model.layers.0.mlp.up_proj.qzeros", "I32", { 1, 1 }, 2, NULL, 4 },
        { "model.layers.0.mlp.up_proj.scales", "F16", { 1, 8 }, 2, NULL, 16 } } },
};

static void write_seed(const char *folder, unsigned i)
{
    char path[4096], bytes[4096];
    unsigned n = 0;
    ssize_t got;
    FILE *out;
    int fd;

    while (n < 5 && seeds[i].entries[n].name)
        n++;
    fd = ds_st_memfd(seeds[i].entries, n);
    (void) snprintf(path, sizeof path, "%s/folder%u", folder, i);
    out = fopen(path, "we");
    got = pread(fd, bytes, sizeof bytes, 0);
    if (!out || got < 0)
        abort();
    (void) fwrite(seeds[i].config, 1, strlen(seeds[i].config) + 1, out);
    (void) fwrite(seeds[i].index, 1, strlen(seeds[i].index) + 1, out);
    (void) fwrite(bytes, 1, (size_t) got, out);
    (void) fclose(out);
    (void) close(fd);
}

/* Before main(), so that it needs no word with whatever drives the target. */
__attribute__((constructor)) static void write_seeds(void)
{
    const char *folder = getenv("DSD_FUZZ_SEEDS");

    if (!folder)
        return;
    for (unsigned i = 0; i < sizeof seeds / sizeof seeds[0]; i++)
        write_seed(folder, i);
    exit(0);
}
