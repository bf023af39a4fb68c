/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/memory.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>

#define CGROUP_LEVELS_MAX 16u
#define FILE_BYTES_MAX    8192u

struct level {
    int max_fd, current_fd, stat_fd;
};

struct ds_memory {
    int meminfo_fd;
    unsigned n_levels;
    struct level levels[CGROUP_LEVELS_MAX];
};

static int open_quietly(const char *format, const char *a, const char *b, const char *c)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s%s%s%s", format, a, b, c);

    if (n < 0 || (size_t) n >= sizeof path)
        return -1;
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* Whole file from its start; "" where it cannot be read. */
static void read_again(int fd, char buffer[FILE_BYTES_MAX])
{
    ssize_t n = fd < 0 ? -1 : pread(fd, buffer, FILE_BYTES_MAX - 1, 0);

    buffer[n > 0 ? n : 0] = '\0';
}

/* The number after the line's first word. */
static uint64_t line_value(const char *text, const char *word, uint64_t otherwise)
{
    size_t length = strlen(word);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, word, length) == 0 && (line[length] == ' ' || line[length] == ':'))
            return strtoull(line + length + strspn(line + length, ": \t"), NULL, 10);
        if (!*line)
            break;
    }
    return otherwise;
}

/* Where a hierarchy is mounted, and what it calls its files. */
struct hierarchy {
    const char *folder, *max, *current;
};

static const struct hierarchy unified = { "/sys/fs/cgroup", "/memory.max", "/memory.current" };
static const struct hierarchy legacy = { "/sys/fs/cgroup/memory", "/memory.limit_in_bytes",
                                         "/memory.usage_in_bytes" };

/* group and its parents; group is used up. */
static void open_levels(struct ds_memory *memory, const char *root,
                        const struct hierarchy *hierarchy, char *group)
{
    if (strcmp(group, "/") == 0)
        *group = '\0';
    while (memory->n_levels < CGROUP_LEVELS_MAX) {
        struct level *level = &memory->levels[memory->n_levels++];
        char *slash = strrchr(group, '/');

        level->max_fd = open_quietly(root, hierarchy->folder, group, hierarchy->max);
        level->current_fd = open_quietly(root, hierarchy->folder, group, hierarchy->current);
        level->stat_fd = open_quietly(root, hierarchy->folder, group, "/memory.stat");
        if (!slash)
            return;
        *slash = '\0';
    }
}

/* Lines of /proc/self/cgroup: number:controllers:path; the unified one has no controllers. */
static void open_groups(struct ds_memory *memory, const char *root, char *text)
{
    char *rest = NULL;

    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;

        if (!path || path[1] != '/')
            continue;
        *path++ = '\0';
        if (strcmp(controllers, ":") == 0)
            open_levels(memory, root, &unified, path);
        else if (strcmp(controllers, ":memory") == 0)
            open_levels(memory, root, &legacy, path);
    }
}

int ds_memory_new(struct ds_memory **ret_memory, const char *root)
{
    struct ds_memory *memory = calloc(1, sizeof *memory);
    char text[FILE_BYTES_MAX];
    ds_cleanup(ds_close_p) int fd = -1;

    if (!memory)
        return -ENOMEM;
    memory->meminfo_fd = open_quietly(root, "/proc/meminfo", "", "");
    fd = open_quietly(root, "/proc/self/cgroup", "", "");
    read_again(fd, text);
    open_groups(memory, root, text);
    *ret_memory = memory;
    return 0;
}

struct ds_memory *ds_memory_free(struct ds_memory *memory)
{
    if (!memory)
        return NULL;
    ds_close_p(&memory->meminfo_fd);
    for (unsigned i = 0; i < memory->n_levels; i++) {
        ds_close_p(&memory->levels[i].max_fd);
        ds_close_p(&memory->levels[i].current_fd);
        ds_close_p(&memory->levels[i].stat_fd);
    }
    free(memory);
    return NULL;
}

static uint64_t level_available(const struct level *level)
{
    char text[FILE_BYTES_MAX];
    uint64_t max, current, cache;

    read_again(level->max_fd, text);
    if (text[0] < '0' || text[0] > '9') /* "max", or no such file */
        return UINT64_MAX;
    max = strtoull(text, NULL, 10);
    read_again(level->current_fd, text);
    current = strtoull(text, NULL, 10);
    read_again(level->stat_fd, text);
    cache = line_value(text, "active_file", 0) + line_value(text, "inactive_file", 0);
    current -= cache < current ? cache : current;
    return max > current ? max - current : 0;
}

uint64_t ds_memory_available(const struct ds_memory *memory)
{
    char text[FILE_BYTES_MAX];
    uint64_t least, kib;

    read_again(memory->meminfo_fd, text);
    kib = line_value(text, "MemAvailable", UINT64_MAX);
    least = kib > UINT64_MAX / 1024 ? UINT64_MAX : kib * 1024;
    for (unsigned i = 0; i < memory->n_levels; i++) {
        uint64_t here = level_available(&memory->levels[i]);

        if (here < least)
            least = here;
    }
    return least;
}

static uint64_t least_of(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t most_of(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static int plan_given(const struct ds_kv_demand *demand, uint64_t *ret_bytes,
                      struct ds_error *error)
{
    if (demand->kv_bytes > demand->available_bytes)
        return ds_error_set(error, -ENOMEM,
                            "a KV cache of %" PRIu64 " MiB does not fit the %" PRIu64
                            " MiB that are free; set a smaller kv size, or unload a model",
                            demand->kv_bytes >> 20, demand->available_bytes >> 20);
    *ret_bytes = demand->kv_bytes;
    return 0;
}

int ds_kv_plan(const struct ds_kv_demand *demand, struct ds_kv_plan *ret_plan,
               struct ds_error *error)
{
    uint64_t per_context = (demand->context + DS_KV_BLOCK - 1) / DS_KV_BLOCK;
    uint64_t one = per_context * demand->block_bytes;
    uint64_t bytes = 0, n_blocks;
    int r;

    if (demand->kv_bytes) {
        r = plan_given(demand, &bytes, error);
        if (r < 0)
            return r;
    } else {
        bytes = least_of(one * DS_KV_SEQUENCES, most_of(one, DS_KV_BYTES_TYPICAL));
        bytes = least_of(bytes, most_of(demand->available_bytes / 4,
                                        least_of(one, demand->available_bytes / 4 * 3)));
    }
    n_blocks = least_of(bytes / demand->block_bytes, UINT32_MAX / DS_KV_BLOCK);
    if (n_blocks < per_context && n_blocks < DS_KV_CONTEXT_MIN / DS_KV_BLOCK)
        return ds_error_set(error, -ENOMEM,
                            "the KV cache would have %" PRIu64 " of %" PRIu64
                            " KiB for each %u positions, fewer than %u positions; give it more "
                            "memory, or unload a model",
                            bytes >> 10, demand->block_bytes >> 10, DS_KV_BLOCK, DS_KV_CONTEXT_MIN);
    ret_plan->n_blocks = (uint32_t) n_blocks;
    ret_plan->context = (uint32_t) least_of(demand->context, n_blocks * DS_KV_BLOCK);
    return 0;
}
