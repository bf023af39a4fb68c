/* SPDX-License-Identifier: Apache-2.0 */
/*
 * folder.h - which files of a folder make a model, by their names alone.
 *
 * A model in Hugging Face's form is a folder: config.json, safetensors, and what belongs to the
 * tokeniser. Whoever opens one (a client, or dsd in its models directory) opens all files that
 * these functions name and reads none of them: the engine decides what they mean.
 */
#pragma once

#include <stdbool.h>

#define DS_FOLDER_CONFIG "config.json" /* a folder with it is a model */

#define DS_FOLDER_ADAPTER "adapter_config.json" /* one with this, but not that, an adapter */

/* Does a file of this name belong to a model (or to an adapter for one)? */
bool ds_folder_wants(const char *file_name);
