/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_files.h - the open files of one model, and what makes two of them the same model.
 *
 * They come from the models directory or from a client that opened them itself. dsd never reads
 * them; it holds the descriptors and passes them to an engine, again after a restart.
 */
#pragma once

#include "proto/base.h"

#include <stdbool.h>

struct ds_file_identity { /* the same four: the same file with the same contents */
    uint64_t device, inode, size;
    int64_t mtime_nsec;
};

struct ds_model_files {
    char name[DS_MODEL_NAME_MAX + 1]; /* how people call it */
    unsigned n_files;                 /* in all; descriptors present: n_open */
    unsigned n_open;
    uint64_t bytes;
    int *fds;                            /* [n_files] owned */
    char **file_names;                   /* [n_files] owned; NULL where nobody said */
    struct ds_file_identity *identities; /* [n_files] */
};

/* Room for n_files (1..DS_MODEL_FILES_MAX) descriptors. -EINVAL, -ENOMEM. */
int ds_model_files_new(struct ds_model_files **ret_files, const char *name, unsigned n_files);
struct ds_model_files *ds_model_files_free(struct ds_model_files *files); /* accepts NULL */
void ds_model_files_free_p(struct ds_model_files **files);

/* Adds the next file; takes fd, even when it fails. file_name: without its folder, NULL for none;
 * what is not printable in it becomes '_'. -EINVAL: not a readable regular file, or one too many;
 * the error says which. */
int ds_model_files_add(struct ds_model_files *files, int fd, const char *file_name,
                       struct ds_error *error);

/* A second set of the same files with its own descriptors. -EMFILE, -ENOMEM. */
int ds_model_files_copy(struct ds_model_files **ret_files, const struct ds_model_files *files);

/* Gives the descriptors back; who they were is remembered. */
void ds_model_files_close(struct ds_model_files *files);

bool ds_model_files_same(const struct ds_model_files *a, const struct ds_model_files *b);
