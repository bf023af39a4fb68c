/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "proto/base.h"
#include "proto/folder.h"

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
    char *names[DS_MODEL_FILES_MAX]; /* NULL where they do not matter */
    unsigned n;
};

static void files_close(struct files *files)
{
    for (unsigned i = 0; i < files->n; i++) {
        (void) close(files->fds[i]);
        free(files->names[i]);
    }
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

/* The last part of the first n bytes of a path, as the model's name. */
static void set_name(char name[256], const char *path, size_t n)
{
    size_t first = n;

    while (first > 0 && path[first - 1] != '/')
        first--;
    (void) snprintf(name, 256, "%.*s", (int) (n - first), path + first);
}

static int open_files(struct dsctl *dsctl, const char *path, struct files *files, char name[256])
{
    unsigned count;
    size_t stem;

    if (!dsctl_split_name(path, &count, &stem)) {
        set_name(name, path, strlen(path) - (ends_with(path, ".gguf") ? strlen(".gguf") : 0));
        return files_add(dsctl, files, path);
    }
    set_name(name, path, stem);
    if (count > DS_MODEL_FILES_MAX)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s is split into %u files, more than %u", path,
                          count, DS_MODEL_FILES_MAX);
    for (unsigned i = 1; i <= count; i++) {
        ds_cleanup(ds_free_p) char *split = NULL;
        int code;

        if (asprintf(&split, "%.*s-%05u-of-%05u.gguf", (int) stem, path, i, count) < 0)
            return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
        code = files_add(dsctl, files, split);
        if (code != DSCTL_OK)
            return code;
    }
    return DSCTL_OK;
}

/* --- folders --- */

static int wanted(const struct dirent *item)
{
    return ds_folder_wants(item->d_name);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name); /* whatever the locale says */
}

static int add_named(struct dsctl *dsctl, struct files *files, const char *folder, const char *name)
{
    ds_cleanup(ds_free_p) char *path = NULL;
    int code;

    if (files->n == DS_MODEL_FILES_MAX)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s holds more than %u files of a model", folder,
                          DS_MODEL_FILES_MAX);
    if (asprintf(&path, "%s/%s", folder, name) < 0) {
        path = NULL;
        return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
    }
    code = files_add(dsctl, files, path);
    if (code != DSCTL_OK)
        return code;
    files->names[files->n - 1] = strdup(name);
    return files->names[files->n - 1] ? DSCTL_OK : dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
}

static int open_folder(struct dsctl *dsctl, const char *path, struct files *files, char name[256])
{
    ds_cleanup(ds_free_p) char *real = realpath(path, NULL); /* "./" has no name of its own */
    struct dirent **items = NULL;
    int n = scandir(path, &items, wanted, by_name), code = DSCTL_OK;
    bool config = false;

    set_name(name, real ? real : path, strlen(real ? real : path));
    if (n < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s cannot be opened: %s", path, strerror(errno));
    for (int i = 0; i < n; i++) {
        config = config || strcmp(items[i]->d_name, DS_FOLDER_CONFIG) == 0 ||
                 strcmp(items[i]->d_name, DS_FOLDER_ADAPTER) == 0;
        if (code == DSCTL_OK)
            code = add_named(dsctl, files, path, items[i]->d_name);
        free(items[i]);
    }
    free(items);
    if (code == DSCTL_OK && !config)
        return dsctl_fail(dsctl, DSCTL_ERROR,
                          "%s is a folder without a %s or %s: name a model's or an adapter's "
                          "folder as Hugging Face has it, or a GGUF file",
                          path, DS_FOLDER_CONFIG, DS_FOLDER_ADAPTER);
    return code;
}

static bool is_folder(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* --- all of them --- */

int dsctl_model_open(struct dsctl *dsctl, const char *argument, struct dsctl_model *ret_model)
{
    ds_cleanup(files_close) struct files files = { .n = 0 };
    struct dsctl_model model = { .attachment = 0 };
    bool is_path =
        strchr(argument, '/') != NULL || strcmp(argument, ".") == 0 || strcmp(argument, "..") == 0;
    int r;

    if (!is_path && !(ends_with(argument, ".gguf") && access(argument, F_OK) == 0)) {
        if (!argument[0] || strlen(argument) >= sizeof model.name)
            return dsctl_fail(dsctl, DSCTL_ERROR, "a model's name has 1 to %zu bytes",
                              sizeof model.name - 1);
        strcpy(model.name, argument);
        *ret_model = model;
        return DSCTL_OK;
    }
    r = is_folder(argument) ? open_folder(dsctl, argument, &files, model.name)
                            : open_files(dsctl, argument, &files, model.name);
    if (r != DSCTL_OK)
        return r;
    r = ds_attach_named(dsctl->ds, model.name, files.fds,
                        files.names[0] ? (const char *const *) files.names : NULL, files.n,
                        &model.attachment);
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
