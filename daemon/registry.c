/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/registry.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <strings.h>
#include <sys/stat.h>

#include "proto/folder.h"

#define DIRECTORIES_MAX 16u
#define ENTRIES_MAX     65536u

struct directory {
    char *path;
    struct timespec changed; /* mtime when it was read */
    bool read;
};

struct ds_registry {
    struct directory directories[DIRECTORIES_MAX];
    unsigned n_directories;
    struct ds_registry_entry *entries;
    unsigned n_entries, size;
};

int ds_registry_new(struct ds_registry **ret_registry, const char *directories)
{
    struct ds_registry *registry = calloc(1, sizeof(*registry));
    ds_cleanup(ds_free_p) char *copy = strdup(directories);
    char *rest = NULL;

    if (!registry || !copy) {
        free(registry);
        return -ENOMEM;
    }
    for (char *path = strtok_r(copy, ":", &rest); path && registry->n_directories < DIRECTORIES_MAX;
         path = strtok_r(NULL, ":", &rest)) {
        struct directory *directory = &registry->directories[registry->n_directories];

        directory->path = strdup(path);
        if (!directory->path) {
            (void) ds_registry_free(registry);
            return -ENOMEM;
        }
        registry->n_directories++;
    }
    ds_registry_refresh(registry);
    *ret_registry = registry;
    return 0;
}

struct ds_registry *ds_registry_free(struct ds_registry *registry)
{
    if (!registry)
        return NULL;
    for (unsigned i = 0; i < registry->n_directories; i++)
        free(registry->directories[i].path);
    free(registry->entries);
    free(registry);
    return NULL;
}

/* --- names --- */

/* Is this the tail -00001-of-00003 of a split's name? Five digits each. */
static bool split_tail(const char *tail, unsigned *ret_number, unsigned *ret_n)
{
    unsigned number = 0, n = 0;

    if (strlen(tail) != 15 || tail[0] != '-' || strncmp(tail + 6, "-of-", 4) != 0)
        return false;
    for (int i = 0; i < 5; i++) {
        if (!isdigit((unsigned char) tail[1 + i]) || !isdigit((unsigned char) tail[10 + i]))
            return false;
        number = number * 10 + (unsigned) (tail[1 + i] - '0');
        n = n * 10 + (unsigned) (tail[10 + i] - '0');
    }
    *ret_number = number;
    *ret_n = n;
    return number >= 1 && number <= n && n <= DS_MODEL_FILES_MAX;
}

/* "x.gguf" -> "x"; false where it is no model's name. */
static bool file_stem(const char *file, char stem[NAME_MAX + 1])
{
    size_t length = strlen(file);

    if (file[0] == '.' || length <= 5 || length > NAME_MAX ||
        strcmp(file + length - 5, ".gguf") != 0)
        return false;
    memcpy(stem, file, length - 5);
    stem[length - 5] = 0;
    return true;
}

/* --- reading the directories --- */

static struct ds_registry_entry *find(const struct ds_registry *registry, const char *name)
{
    for (unsigned i = 0; i < registry->n_entries; i++)
        if (strcmp(registry->entries[i].name, name) == 0)
            return &registry->entries[i];
    return NULL;
}

static struct ds_registry_entry *entry_new(struct ds_registry *registry)
{
    if (registry->n_entries == registry->size) {
        unsigned size = registry->size ? registry->size * 2 : 32;
        struct ds_registry_entry *entries =
            size > ENTRIES_MAX ? NULL : realloc(registry->entries, size * sizeof(*entries));

        if (!entries)
            return NULL;
        registry->entries = entries;
        registry->size = size;
    }
    registry->entries[registry->n_entries] = (struct ds_registry_entry){ 0 };
    return &registry->entries[registry->n_entries++];
}

/* The convention for names of GGUF files puts a type at the end: NAME-F16-LoRA.gguf. */
static bool names_adapter(const char *stem)
{
    size_t length = strlen(stem);

    return length > 5 && strchr("-.", stem[length - 5]) &&
           strcasecmp(stem + length - 4, "lora") == 0;
}

/* Enters one file; the first directory that has a name wins. */
static void enter(struct ds_registry *registry, unsigned directory, const char *file,
                  uint64_t bytes)
{
    char stem[NAME_MAX + 1];
    unsigned number = 1, n = 1;
    struct ds_registry_entry *entry;
    bool split = false;
    size_t length;

    if (!file_stem(file, stem))
        return;
    length = strlen(stem);
    if (length > 15 && split_tail(stem + length - 15, &number, &n)) {
        stem[length - 15] = 0;
        split = true;
    }
    if (strlen(stem) > DS_MODEL_NAME_MAX)
        return;
    entry = find(registry, stem);
    if (!entry) {
        entry = entry_new(registry);
        if (!entry)
            return;
        (void) snprintf(entry->name, sizeof entry->name, "%s", stem);
        entry->directory = directory;
        entry->n_files = n;
        entry->split = split;
        entry->adapter = names_adapter(stem);
    }
    if (entry->directory != directory || entry->n_files != n || entry->split != split)
        return;
    entry->n_found++;
    entry->bytes += bytes;
}

static DIR *open_folder(int directory_fd, const char *name)
{
    int fd = openat(directory_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);

    if (fd >= 0 && !stream)
        (void) close(fd);
    return stream;
}

/* The next file of a folder that belongs to a model; false after the last. */
static bool next_wanted(DIR *stream, const char **ret_name, struct stat *ret_status)
{
    const struct dirent *item;

    while ((item = readdir(stream)))
        if (ds_folder_wants(item->d_name) &&
            fstatat(dirfd(stream), item->d_name, ret_status, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(ret_status->st_mode)) {
            *ret_name = item->d_name;
            return true;
        }
    return false;
}

/* Enters a folder, if it is a model's and no file has its name. */
static void enter_folder(struct ds_registry *registry, unsigned directory, int directory_fd,
                         const char *name)
{
    struct ds_registry_entry *entry;
    bool config, adapter;
    struct stat status;
    const char *file;
    DIR *stream;

    if (name[0] == '.' || strlen(name) > DS_MODEL_NAME_MAX || find(registry, name))
        return;
    stream = open_folder(directory_fd, name);
    if (!stream)
        return;
    config = fstatat(dirfd(stream), DS_FOLDER_CONFIG, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
             S_ISREG(status.st_mode);
    adapter = !config &&
              fstatat(dirfd(stream), DS_FOLDER_ADAPTER, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
              S_ISREG(status.st_mode);
    entry = (config || adapter) && fstat(dirfd(stream), &status) == 0 ? entry_new(registry) : NULL;
    if (entry) {
        (void) snprintf(entry->name, sizeof entry->name, "%s", name);
        entry->directory = directory;
        entry->folder = true;
        entry->adapter = adapter;
        entry->changed = status.st_mtim;
        while (next_wanted(stream, &file, &status)) {
            entry->bytes += (uint64_t) status.st_size;
            entry->n_files++;
        }
        entry->n_found = entry->n_files;
    }
    (void) closedir(stream);
}

static void read_directory(struct ds_registry *registry, unsigned index)
{
    struct directory *directory = &registry->directories[index];
    DIR *stream = opendir(directory->path);
    const struct dirent *item;
    struct stat status;

    directory->read = true;
    if (!stream)
        return;
    while ((item = readdir(stream)))
        if (fstatat(dirfd(stream), item->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(status.st_mode))
            enter(registry, index, item->d_name, (uint64_t) status.st_size);
    rewinddir(stream);
    while ((item = readdir(stream)))
        if (fstatat(dirfd(stream), item->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(status.st_mode))
            enter_folder(registry, index, dirfd(stream), item->d_name);
    (void) closedir(stream);
}

/* A file that came into a folder does not touch the directory above it. */
static bool folder_changed(const struct ds_registry *registry,
                           const struct ds_registry_entry *entry)
{
    ds_cleanup(ds_free_p) char *path = NULL;
    struct stat status;

    if (asprintf(&path, "%s/%s", registry->directories[entry->directory].path, entry->name) < 0) {
        path = NULL;
        return true;
    }
    return lstat(path, &status) < 0 || status.st_mtim.tv_sec != entry->changed.tv_sec ||
           status.st_mtim.tv_nsec != entry->changed.tv_nsec;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct ds_registry_entry *) a)->name,
                  ((const struct ds_registry_entry *) b)->name);
}

void ds_registry_refresh(struct ds_registry *registry)
{
    bool changed = false;

    for (unsigned i = 0; i < registry->n_directories; i++) {
        struct directory *directory = &registry->directories[i];
        struct stat status = { 0 };

        (void) stat(directory->path, &status);
        if (!directory->read || status.st_mtim.tv_sec != directory->changed.tv_sec ||
            status.st_mtim.tv_nsec != directory->changed.tv_nsec)
            changed = true;
        directory->changed = status.st_mtim;
    }
    for (unsigned i = 0; !changed && i < registry->n_entries; i++)
        changed = registry->entries[i].folder && folder_changed(registry, &registry->entries[i]);
    if (!changed)
        return;
    registry->n_entries = 0;
    for (unsigned i = 0; i < registry->n_directories; i++)
        read_directory(registry, i);
    if (registry->n_entries > 0)
        qsort(registry->entries, registry->n_entries, sizeof(*registry->entries), by_name);
}

const struct ds_registry_entry *ds_registry_entries(const struct ds_registry *registry,
                                                    unsigned *ret_n)
{
    *ret_n = registry->n_entries;
    return registry->entries;
}

const char *ds_registry_default(const struct ds_registry *registry, const char *preset)
{
    const char *only = NULL;
    unsigned n = 0;

    if (*preset)
        return preset;
    for (unsigned i = 0; i < registry->n_entries; i++) {
        if (registry->entries[i].adapter)
            continue;
        only = registry->entries[i].name;
        n++;
    }
    return n == 1 ? only : NULL;
}

/* --- opening --- */

/* named: the file's name goes with it. */
static int open_file(int directory_fd, const char *path, const char *file, bool named,
                     struct ds_model_files *files, struct ds_error *error)
{
    int fd;

    /* Not blocking: a FIFO put there meanwhile must not hold us up. */
    fd = openat(directory_fd, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return ds_error_set(error, -errno, "%s/%s: %s", path, file, strerror(errno));
    return ds_model_files_add(files, fd, named ? file : NULL, error);
}

static int open_splits(const struct ds_registry_entry *entry, int directory_fd, const char *path,
                       struct ds_model_files **ret_files, struct ds_error *error)
{
    char file[2 * NAME_MAX];
    int r;

    r = ds_model_files_new(ret_files, entry->name, entry->n_files);
    for (unsigned i = 0; r == 0 && i < entry->n_files; i++) {
        if (entry->split)
            (void) snprintf(file, sizeof file, "%s-%05u-of-%05u.gguf", entry->name, i + 1,
                            entry->n_files);
        else
            (void) snprintf(file, sizeof file, "%s.gguf", entry->name);
        r = open_file(directory_fd, path, file, false, *ret_files, error);
    }
    return r;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The folder as it is now, which may not be as it was when it was listed. */
static int open_folder_files(const struct ds_registry_entry *entry, int directory_fd,
                             const char *path, struct ds_model_files **ret_files,
                             struct ds_error *error)
{
    ds_cleanup(ds_free_p) char(*names)[DS_FILE_NAME_MAX + 1] =
        calloc(DS_MODEL_FILES_MAX, sizeof(*names));
    DIR *stream = open_folder(directory_fd, entry->name);
    struct stat status;
    const char *name;
    unsigned n = 0;
    int r = 0;

    if (!stream || !names) {
        r = names ? -errno : -ENOMEM;
        if (stream)
            (void) closedir(stream);
        return ds_error_set(error, r, "%s/%s: %s", path, entry->name, strerror(-r));
    }
    while (n < DS_MODEL_FILES_MAX && next_wanted(stream, &name, &status))
        (void) snprintf(names[n++], sizeof(*names), "%s", name);
    if (next_wanted(stream, &name, &status))
        r = ds_error_set(error, -EINVAL, "%s/%s: more than %u files; a model has less", path,
                         entry->name, DS_MODEL_FILES_MAX);
    qsort(names, n, sizeof(*names), compare_names);
    if (r == 0)
        r = ds_model_files_new(ret_files, entry->name, n);
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = open_file(dirfd(stream), entry->name, names[i], true, *ret_files, error);
    (void) closedir(stream);
    return r;
}

int ds_registry_open(struct ds_registry *registry, const char *name,
                     struct ds_model_files **ret_files, struct ds_error *error)
{
    ds_cleanup(ds_model_files_free_p) struct ds_model_files *files = NULL;
    ds_cleanup(ds_close_p) int directory_fd = -1;
    const struct ds_registry_entry *entry;
    char stem[NAME_MAX + 1];
    const char *path;
    int r;

    if (strlen(name) > DS_MODEL_NAME_MAX || strchr(name, '/')) {
        (void) ds_error_set(error, 0,
                            "model %.80s: not a name in the models directory; a file elsewhere "
                            "is opened by the client and handed over",
                            name);
        return DS_REGISTRY_UNKNOWN;
    }
    ds_registry_refresh(registry);
    entry = find(registry, name);
    if (!entry && file_stem(name, stem))
        entry = find(registry, stem);
    if (!entry) {
        (void) ds_error_set(error, 0, "model %s: no such model; `dsctl list` shows those there are",
                            name);
        return DS_REGISTRY_UNKNOWN;
    }
    if (entry->n_found != entry->n_files) {
        (void) ds_error_set(error, 0, "model %s: only %u of %u files are there", entry->name,
                            entry->n_found, entry->n_files);
        return DS_REGISTRY_INCOMPLETE;
    }
    path = registry->directories[entry->directory].path;
    directory_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory_fd < 0)
        return ds_error_set(error, -errno, "%s: %s", path, strerror(errno));
    r = (entry->folder ? open_folder_files : open_splits)(entry, directory_fd, path, &files, error);
    if (r < 0)
        return r;
    *ret_files = ds_steal(files);
    return DS_REGISTRY_FOUND;
}
