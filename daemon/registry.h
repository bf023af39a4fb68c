/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registry.h - the models directories: which names there are, and which files stand behind them.
 *
 * A model is NAME.gguf, or a complete set NAME-00001-of-0000N.gguf ... known as NAME, or a folder
 * NAME with a config.json (proto/folder.h says which of its files belong to the model). Directories
 * and such folders are read again when they have changed. Only regular files lying directly in a
 * directory or folder count; symbolic links are not followed, and a name never contains a slash.
 */
#pragma once

#include "daemon/model_files.h"

struct ds_registry;

struct ds_registry_entry {
    char name[DS_MODEL_NAME_MAX + 1];
    unsigned directory; /* index in the order given */
    unsigned n_files;   /* 1, or how many splits, or what a folder holds */
    unsigned n_found;   /* of these */
    uint64_t bytes;
    bool adapter; /* by its name (NAME-LoRA.gguf), or a folder with an adapter's configuration */
    bool split, folder;
    struct timespec changed; /* folder: mtime when it was read */
};

enum { DS_REGISTRY_FOUND, DS_REGISTRY_UNKNOWN, DS_REGISTRY_INCOMPLETE };

/* directories: separated by colons; those that do not exist (yet) are empty. -ENOMEM. */
int ds_registry_new(struct ds_registry **ret_registry, const char *directories);
struct ds_registry *ds_registry_free(struct ds_registry *registry); /* accepts NULL */

/* Looks at the directories again where they have changed. The pointer below it becomes invalid. */
void ds_registry_refresh(struct ds_registry *registry);

/* All models, sorted by name. Borrowed until the next refresh. */
const struct ds_registry_entry *ds_registry_entries(const struct ds_registry *registry,
                                                    unsigned *ret_n);

/* The name that a request means which names none: preset, or "" : the only model there is. NULL:
 * there is none or more than one. */
const char *ds_registry_default(const struct ds_registry *registry, const char *preset);

/* Opens the files of name (with or without .gguf); a folder's in the order of their names.
 * DS_REGISTRY_FOUND, DS_REGISTRY_UNKNOWN, DS_REGISTRY_INCOMPLETE (splits missing), negative errno;
 * error says it for a person. */
int ds_registry_open(struct ds_registry *registry, const char *name,
                     struct ds_model_files **ret_files, struct ds_error *error);
