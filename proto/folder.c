/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/folder.h"

#include "proto/base.h"

static const char *const names[] = {
    DS_FOLDER_CONFIG,          "generation_config.json", "model.safetensors.index.json",
    "quantize_config.json", /* older GPTQ folders */
    "quant_config.json",    /* older AWQ folders */
    "tokenizer.json",          "tokenizer.model",        "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",      "chat_template.jinja",
    DS_FOLDER_ADAPTER,
};

bool ds_folder_wants(const char *file_name)
{
    static const char tensors[] = ".safetensors";
    size_t length = strlen(file_name), tail = sizeof tensors - 1;

    if (file_name[0] == '.' || length > DS_FILE_NAME_MAX)
        return false;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(file_name, names[i]) == 0)
            return true;
    return length > tail && strcmp(file_name + length - tail, tensors) == 0;
}
