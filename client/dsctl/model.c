/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "proto/base.h"

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

bool dsctl_split_name(const char *path, unsigned *ret_count, size_t *ret_stem)
{
    const size_t tail = strlen("-00001-of-00002.gguf");
    size_t length = strlen(path);
    unsigned index, count;
    int end = 0;

    if (length <= tail)
        return false;
    if (sscanf(path + length - tail, "-%5u-of-%5u.gguf%n", &index, &count, &end) != 2 ||
        (size_t) end != tail)
        return false;
    if (index < 1 || index > count)
        return false;
    *ret_count = count;
    *ret_stem = length - tail;
    return true;
}

struct files {
    int fds[DS_MODEL_FILES_MAX];
    unsigned n;
};

static void files_close(struct files *files)
{
    for (unsigned i = 0; i < files->n; i++)
        (void) close(files->fds[i]);
}

static int files_add(struct dsctl *dsctl, struct files *files, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s cannot be opened: %s", path, strerror(errno));
    files->fds[files->n++] = fd;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s is no regular file: name a GGUF file", path);
    return DSCTL_OK;
}

static int open_files(struct dsctl *dsctl, const char *path, struct files *files, size_t *ret_stem)
{
    unsigned count;

    if (!dsctl_split_name(path, &count, ret_stem)) {
        *ret_stem = strlen(path) - (ends_with(path, ".gguf") ? strlen(".gguf") : 0);
        return files_add(dsctl, files, path);
    }
    if (count > DS_MODEL_FILES_MAX)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s is split into %u files, more than %u", path,
                          count, DS_MODEL_FILES_MAX);
    for (unsigned i = 1; i <= count; i++) {
        ds_cleanup(ds_free_p) char *split = NULL;
        int code;

        if (asprintf(&split, "%.*s-%05u-of-%05u.gguf", (int) *ret_stem, path, i, count) < 0)
            return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
        code = files_add(dsctl, files, split);
        if (code != DSCTL_OK)
            return code;
    }
    return DSCTL_OK;
}

int dsctl_model_open(struct dsctl *dsctl, const char *argument, struct dsctl_model *ret_model)
{
    ds_cleanup(files_close) struct files files = { .n = 0 };
    struct dsctl_model model = { .attachment = 0 };
    bool is_path = strchr(argument, '/') != NULL;
    const char *base = is_path ? strrchr(argument, '/') + 1 : argument;
    size_t stem = 0;
    int r;

    if (!is_path && !(ends_with(argument, ".gguf") && access(argument, F_OK) == 0)) {
        if (!argument[0] || strlen(argument) >= sizeof model.name)
            return dsctl_fail(dsctl, DSCTL_ERROR, "a model's name has 1 to %zu bytes",
                              sizeof model.name - 1);
        strcpy(model.name, argument);
        *ret_model = model;
        return DSCTL_OK;
    }
    r = open_files(dsctl, argument, &files, &stem);
    if (r != DSCTL_OK)
        return r;
    (void) snprintf(model.name, sizeof model.name, "%.*s",
                    (int) (stem - (size_t) (base - argument)), base);
    r = ds_attach(dsctl->ds, model.name, files.fds, files.n, &model.attachment);
    if (r < 0)
        return dsctl_failed(dsctl, r);
    model.name[0] = '\0';
    *ret_model = model;
    return DSCTL_OK;
}

void dsctl_model_ref(const struct dsctl_model *model, Ds__ModelRef *ret_ref)
{
    ds__model_ref__init(ret_ref);
    if (model->name[0])
        ret_ref->name = (char *) model->name;
    ret_ref->attachment = model->attachment;
}
