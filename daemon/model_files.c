/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/model_files.h"

#include <fcntl.h>
#include <sys/stat.h>

int ds_model_files_new(struct ds_model_files **ret_files, const char *name, unsigned n_files)
{
    struct ds_model_files *files;

    if (n_files < 1 || n_files > DS_MODEL_FILES_MAX)
        return -EINVAL;
    files = calloc(1, sizeof(*files));
    if (!files)
        return -ENOMEM;
    (void) snprintf(files->name, sizeof files->name, "%s", name);
    files->n_files = n_files;
    files->fds = calloc(n_files, sizeof(*files->fds));
    files->file_names = calloc(n_files, sizeof(*files->file_names));
    files->identities = calloc(n_files, sizeof(*files->identities));
    if (!files->fds || !files->file_names || !files->identities) {
        (void) ds_model_files_free(files);
        return -ENOMEM;
    }
    *ret_files = files;
    return 0;
}

struct ds_model_files *ds_model_files_free(struct ds_model_files *files)
{
    if (!files)
        return NULL;
    ds_model_files_close(files);
    for (unsigned i = 0; files->file_names && i < files->n_files; i++)
        free(files->file_names[i]);
    free(files->file_names);
    free(files->fds);
    free(files->identities);
    free(files);
    return NULL;
}

void ds_model_files_close(struct ds_model_files *files)
{
    for (unsigned i = 0; i < files->n_open; i++) {
        ds_close_p(&files->fds[i]);
        files->fds[i] = -1;
    }
}

void ds_model_files_free_p(struct ds_model_files **files)
{
    *files = ds_model_files_free(*files);
}

/* Names come from clients, and go on into errors. */
static char *printable(const char *file_name)
{
    char *copy = strndup(file_name, DS_FILE_NAME_MAX);

    for (char *c = copy; c && *c; c++)
        if (*c <= ' ' || *c > '~' || *c == '/')
            *c = '_';
    return copy;
}

int ds_model_files_add(struct ds_model_files *files, int fd, const char *file_name,
                       struct ds_error *error)
{
    ds_cleanup(ds_close_p) int owned = fd;
    struct statx status;
    int flags = fcntl(fd, F_GETFL);

    if (files->n_open == files->n_files)
        return ds_error_set(error, -EINVAL, "%s: more files than announced", files->name);
    if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || (flags & O_PATH))
        return ds_error_set(error, -EINVAL, "%s: file %u is not open for reading", files->name,
                            files->n_open + 1);
    /* What is known locally will do: a file system served over a network must not stall us. */
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &status) < 0)
        return ds_error_set(error, -errno, "%s: file %u: %s", files->name, files->n_open + 1,
                            strerror(errno));
    if (!S_ISREG(status.stx_mode))
        return ds_error_set(error, -EINVAL, "%s: file %u is not a regular file", files->name,
                            files->n_open + 1);
    if (file_name) {
        files->file_names[files->n_open] = printable(file_name);
        if (!files->file_names[files->n_open])
            return ds_error_set(error, -ENOMEM, "%s: no memory", files->name);
    }
    files->identities[files->n_open] = (struct ds_file_identity){
        .device = (uint64_t) status.stx_dev_major << 32 | status.stx_dev_minor,
        .inode = status.stx_ino,
        .size = status.stx_size,
        .mtime_nsec = status.stx_mtime.tv_sec * 1000000000 + status.stx_mtime.tv_nsec,
    };
    files->bytes += status.stx_size;
    files->fds[files->n_open++] = ds_steal_fd(&owned);
    return 0;
}

int ds_model_files_copy(struct ds_model_files **ret_files, const struct ds_model_files *files)
{
    ds_cleanup(ds_model_files_free_p) struct ds_model_files *copy = NULL;
    int r;

    r = ds_model_files_new(&copy, files->name, files->n_files);
    if (r < 0)
        return r;
    for (; copy->n_open < files->n_open; copy->n_open++) {
        copy->fds[copy->n_open] = fcntl(files->fds[copy->n_open], F_DUPFD_CLOEXEC, 3);
        if (copy->fds[copy->n_open] < 0)
            return -errno;
        copy->identities[copy->n_open] = files->identities[copy->n_open];
        if (!files->file_names[copy->n_open])
            continue;
        copy->file_names[copy->n_open] = strdup(files->file_names[copy->n_open]);
        if (!copy->file_names[copy->n_open]) {
            (void) close(copy->fds[copy->n_open]);
            return -ENOMEM;
        }
    }
    copy->bytes = files->bytes;
    *ret_files = ds_steal(copy);
    return 0;
}

bool ds_model_files_same(const struct ds_model_files *a, const struct ds_model_files *b)
{
    return a->n_files == b->n_files && a->n_open == b->n_open &&
           memcmp(a->identities, b->identities, a->n_open * sizeof(*a->identities)) == 0;
}
