/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/config.h"

#include "daemon/log.h"
#include "proto/base.h"

#include <ctype.h>
#include <dirent.h>
#include <ini.h>
#include <inttypes.h>
#include <limits.h>
#include <pwd.h>
#include <stddef.h>

enum type { TYPE_COUNT, TYPE_BYTES, TYPE_STRING, TYPE_CHOICE };

struct key {
    const char *section, *name;
    enum type type;
    size_t offset;
    uint64_t min, max, preset;
    const char *text; /* TYPE_STRING: the default; TYPE_CHOICE: the words, in order of value */
    const char *help;
};

#define AT(field) offsetof(struct ds_config, field)
#define KIB       (UINT64_C(1) << 10)
#define MIB       (UINT64_C(1) << 20)
#define GIB       (UINT64_C(1) << 30)
#define COUNT(s, f, low, high, d, h)                                                               \
    {                                                                                              \
        s, #f, TYPE_COUNT, AT(f), low, high, d, NULL, h                                            \
    }
#define BYTES(s, f, low, high, d, h)                                                               \
    {                                                                                              \
        s, #f, TYPE_BYTES, AT(f), low, high, d, NULL, h                                            \
    }
#define STRING(s, f, h)                                                                            \
    {                                                                                              \
        s, #f, TYPE_STRING, AT(f), 0, 0, 0, "", h                                                  \
    }
#define CHOICE(s, f, d, words, h)                                                                  \
    {                                                                                              \
        s, #f, TYPE_CHOICE, AT(f), 0, 0, d, words, h                                               \
    }

static const struct key keys[] = {
    STRING("dsd", socket, "where clients connect, unless systemd passes a socket"),
    STRING("dsd", models, "directories of *.gguf files, separated by colons"),
    STRING("dsd", default_model, "model of requests that name none; empty: the only one there is"),
    STRING("dsd", engine, "program that computes; empty: dsd-engine beside dsd or in libexec"),
    STRING("dsd", admin_users, "users, besides root, who may unload, pin and cancel others' work"),
    CHOICE("dsd", log_level, 3, "error warning notice info debug", "least important line logged"),
    CHOICE("dsd", loop, 0, "auto io_uring epoll", "how dsd waits"),
    COUNT("dsd", spin_usec, 0, 1000, 50, "microseconds to look for more work before sleeping"),
    COUNT("dsd", drain_sec, 0, 3600, 20, "seconds running requests have to end at shutdown"),
    COUNT("dsd", reconnect_grace_sec, 0, 600, 10,
          "seconds a lost client's requests go on, waiting for it to come back"),
    COUNT("dsd", handshake_sec, 1, 60, 2, "seconds a new client has to finish the handshake"),
    COUNT("dsd", stall_sec, 1, 3600, 30, "seconds a client may leave its completions unread"),

    COUNT("limits", clients, 1, 65536, 1024, "connections in all"),
    COUNT("limits", clients_per_user, 1, 65536, 64, "connections of one user"),
    COUNT("limits", requests_per_client, 1, 4096, 64, "requests in flight on one connection"),
    COUNT("limits", requests_per_user, 1, 65536, 256, "requests in flight of one user"),
    COUNT("limits", attachments_per_client, 0, 64, 4,
          "models a client may hand over as open files"),
    BYTES("limits", queued_bytes_per_user, 64 * KIB, 16 * GIB, 64 * MIB,
          "bytes of requests in flight of one user"),
    BYTES("limits", region_bytes_per_user, MIB, 16 * GIB, 256 * MIB,
          "bytes of shared memory of one user"),
    BYTES("limits", arena_bytes_max, 64 * KIB, 32 * MIB, 8 * MIB,
          "largest room for requests of one connection"),
    BYTES("limits", replay_bytes, 0, 16 * GIB, 64 * MIB,
          "finished answers kept for clients that lost their connection"),

    COUNT("engine", threads, 0, 1024, 0, "compute threads; 0: as many as processors"),
    COUNT("engine", context, 0, 16777216, 0,
          "most positions a request may use; 0: what the model says"),
    COUNT(
        "engine", max_step_ms, 0, 60000, 0,
        "milliseconds a step may keep running answers waiting while prompts are read; 0: twice as "
        "long as without prompts"),
    CHOICE("engine", speculation, 1, "off ngram mtp",
           "who guesses tokens ahead, where that saves time"),
    COUNT("engine", hang_sec, 1, 3600, 60, "seconds without a sign of life before a restart"),
    COUNT("engine", start_sec, 1, 600, 15, "seconds the engine has to start"),
    COUNT("engine", load_sec, 1, 86400, 600, "seconds the engine may be silent while it loads"),
    COUNT("engine", crashes_max, 1, 100, 3,
          "engine crashes that fail the request or model causing them"),
    BYTES("engine", memory, 0, UINT64_C(1) << 50, 0,
          "bytes for resident models; 0: four fifths of the machine's"),
    CHOICE("engine", kv_type, 0, "auto F32 F16 BF16 Q8_0 Q4_0", /* in order of Ds__KvType */
           "how keys and values are kept; auto: F16, or F32 where the model is F32"),
    BYTES("engine", kv_bytes, 0, UINT64_C(1) << 50, 0, "bytes of KV cache per model; 0: as needed"),
};

#define N_KEYS (sizeof keys / sizeof *keys)

static void *field(struct ds_config *config, const struct key *key)
{
    return (char *) config + key->offset;
}

/* --- values --- */

/* 64, 64K, 64M, 64G, 64T. */
static int parse_bytes(const char *value, uint64_t *ret_bytes)
{
    static const char suffixes[] = "KMGT";
    unsigned long long number;
    unsigned shift = 0;
    char *end;

    errno = 0;
    number = strtoull(value, &end, 10);
    if (errno || end == value || !isdigit((unsigned char) *value))
        return -EINVAL;
    if (*end) {
        const char *suffix = strchr(suffixes, toupper((unsigned char) *end));

        if (!suffix || end[1])
            return -EINVAL;
        shift = 10 * (unsigned) (suffix - suffixes + 1);
    }
    if (number > UINT64_MAX >> shift)
        return -EINVAL;
    *ret_bytes = (uint64_t) number << shift;
    return 0;
}

static void format_bytes(uint64_t bytes, char text[32])
{
    static const char suffixes[] = "KMGT";
    int i = -1;

    while (bytes > 0 && bytes % 1024 == 0 && i < 3) {
        bytes /= 1024;
        i++;
    }
    (void) snprintf(text, 32, "%" PRIu64 "%.1s", bytes, i < 0 ? "" : suffixes + i);
}

/* The word's number in words, or -1. */
static int choice_find(const char *words, const char *value)
{
    size_t length = strlen(value);

    for (int i = 0; *words; i++) {
        size_t n = strcspn(words, " ");

        if (n == length && memcmp(words, value, n) == 0)
            return i;
        words += n + (words[n] == ' ');
    }
    return -1;
}

static const char *choice_word(const char *words, uint32_t number, char word[16])
{
    size_t n;

    while (number-- > 0)
        words += strcspn(words, " ") + 1;
    n = strcspn(words, " ");
    (void) snprintf(word, 16, "%.*s", (int) n, words);
    return word;
}

static int set_number(struct ds_config *config, const struct key *key, const char *value,
                      const char *where, struct ds_error *error)
{
    char low[32], high[32];
    uint64_t number;

    format_bytes(key->min, low);
    format_bytes(key->max, high);
    if (key->type == TYPE_COUNT) {
        (void) snprintf(low, sizeof low, "%" PRIu64, key->min);
        (void) snprintf(high, sizeof high, "%" PRIu64, key->max);
    }
    if (parse_bytes(value, &number) < 0 || number < key->min || number > key->max)
        return ds_error_set(error, -EINVAL, "%s: %s = %s: expected a number from %s to %s", where,
                            key->name, value, low, high);
    if (key->type == TYPE_BYTES)
        *(uint64_t *) field(config, key) = number;
    else
        *(uint32_t *) field(config, key) = (uint32_t) number;
    return 0;
}

static int set_value(struct ds_config *config, const struct key *key, const char *value,
                     const char *where, struct ds_error *error)
{
    char **string, *copy;
    int number;

    switch (key->type) {
    case TYPE_COUNT:
    case TYPE_BYTES:
        return set_number(config, key, value, where, error);
    case TYPE_CHOICE:
        number = choice_find(key->text, value);
        if (number < 0)
            return ds_error_set(error, -EINVAL, "%s: %s = %s: expected one of: %s", where,
                                key->name, value, key->text);
        *(uint32_t *) field(config, key) = (uint32_t) number;
        return 0;
    case TYPE_STRING:
        break;
    }
    if (strlen(value) > DS_CONFIG_STRING_MAX)
        return ds_error_set(error, -EINVAL, "%s: %s: longer than %u bytes", where, key->name,
                            DS_CONFIG_STRING_MAX);
    copy = strdup(value);
    if (!copy)
        return -ENOMEM;
    string = field(config, key);
    free(*string);
    *string = copy;
    return 0;
}

int ds_config_set(struct ds_config *config, const char *section, const char *name,
                  const char *value, const char *where, struct ds_error *error)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(keys[i].section, section) == 0 && strcmp(keys[i].name, name) == 0)
            return set_value(config, &keys[i], value, where, error);
    return ds_error_set(error, -EINVAL,
                        "%s: unknown key %s in section [%s]; `dsd --check-config` prints those "
                        "there are",
                        where, name, section);
}

/* --- defaults --- */

static char *format_new(const char *format, const char *a)
{
    char *text;

    return asprintf(&text, format, a) < 0 ? NULL : text;
}

static char *default_socket(void)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    if (geteuid() != 0 && runtime && *runtime == '/')
        return format_new("%s/dsd/dsd.sock", runtime);
    return strdup("/run/dsd/dsd.sock");
}

static char *default_models(void)
{
    const char *state = getenv("STATE_DIRECTORY"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");

    if (state && *state == '/' && !strchr(state, ':'))
        return format_new("%s/models", state);
    if (geteuid() != 0 && cache && *cache == '/')
        return format_new("%s/dsd/models", cache);
    if (geteuid() != 0 && home && *home == '/')
        return format_new("%s/.cache/dsd/models", home);
    return strdup("/var/lib/dsd/models");
}

int ds_config_init(struct ds_config *config)
{
    *config = (struct ds_config){ 0 };
    for (size_t i = 0; i < N_KEYS; i++) {
        const struct key *key = &keys[i];

        if (key->type == TYPE_BYTES)
            *(uint64_t *) field(config, key) = key->preset;
        else if (key->type != TYPE_STRING)
            *(uint32_t *) field(config, key) = (uint32_t) key->preset;
    }
    config->socket = default_socket();
    config->models = default_models();
    config->default_model = strdup("");
    config->engine = strdup("");
    config->admin_users = strdup("");
    if (!config->socket || !config->models || !config->default_model || !config->engine ||
        !config->admin_users) {
        ds_config_deinit(config);
        return -ENOMEM;
    }
    return 0;
}

void ds_config_deinit(struct ds_config *config)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (keys[i].type == TYPE_STRING) {
            char **string = field(config, &keys[i]);

            free(*string);
            *string = NULL;
        }
}

/* --- files --- */

struct reading {
    struct ds_config *config;
    const char *path;
    FILE *file;
    unsigned line;
    int result;
    struct ds_error *error;
};

/* inih cuts long lines silently; we refuse them. */
static char *read_line(char *buffer, int capacity, void *stream)
{
    struct reading *reading = stream;
    size_t length;

    if (reading->result < 0 || !fgets(buffer, capacity, reading->file))
        return NULL;
    reading->line++;
    length = strlen(buffer);
    if (length > 0 && buffer[length - 1] != '\n' && !feof(reading->file)) {
        reading->result = ds_error_set(reading->error, -EINVAL, "%s:%u: longer than %d bytes",
                                       reading->path, reading->line, capacity - 2);
        return NULL;
    }
    return buffer;
}

static int take_value(void *user, const char *section, const char *name, const char *value)
{
    struct reading *reading = user;
    char where[PATH_MAX + 16];

    if (reading->result < 0)
        return 0;
    (void) snprintf(where, sizeof where, "%s:%u", reading->path, reading->line);
    reading->result = ds_config_set(reading->config, section, name, value, where, reading->error);
    return reading->result == 0;
}

static int read_file(struct ds_config *config, const char *path, bool required,
                     struct ds_error *error)
{
    struct reading reading = { .config = config, .path = path, .error = error };
    int bad_line;

    reading.file = fopen(path, "re");
    if (!reading.file) {
        if (errno == ENOENT && !required)
            return 0;
        return ds_error_set(error, -errno, "%s: %s", path, strerror(errno));
    }
    /* inih hands the reader's stream to the reader alone; both of ours are the same object. */
    bad_line = ini_parse_stream(read_line, &reading, take_value, &reading);
    (void) fclose(reading.file);
    if (reading.result < 0)
        return reading.result;
    if (bad_line < 0)
        return -ENOMEM;
    if (bad_line > 0)
        return ds_error_set(error, -EINVAL, "%s:%d: expected [section], key = value or # comment",
                            path, bad_line);
    return 0;
}

static int is_drop_in(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);

    return entry->d_name[0] != '.' && length > 5 &&
           strcmp(entry->d_name + length - 5, ".conf") == 0;
}

int ds_config_read(struct ds_config *config, const char *path, bool required,
                   struct ds_error *error)
{
    char directory[PATH_MAX], file[PATH_MAX + NAME_MAX + 2];
    struct dirent **entries = NULL;
    int n, r;

    r = read_file(config, path, required, error);
    if (r < 0)
        return r;
    if (snprintf(directory, sizeof directory, "%s.d", path) >= (int) sizeof directory)
        return -ENAMETOOLONG;
    n = scandir(directory, &entries, is_drop_in, alphasort);
    for (int i = 0; i < n; i++) {
        (void) snprintf(file, sizeof file, "%s/%s", directory, entries[i]->d_name);
        if (r == 0)
            r = read_file(config, file, true, error);
        free(entries[i]);
    }
    free(entries);
    return r;
}

/* --- relations --- */

static int resolve_admins(struct ds_config *config, struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *names = strdup(config->admin_users);
    char *rest = NULL;

    if (!names)
        return -ENOMEM;
    config->n_admins = 0;
    for (char *name = strtok_r(names, " ,", &rest); name; name = strtok_r(NULL, " ,", &rest)) {
        const struct passwd *user;
        char *end;
        unsigned long uid = strtoul(name, &end, 10);

        if (*end || !isdigit((unsigned char) *name)) {
            user = getpwnam(name);
            if (!user)
                return ds_error_set(error, -EINVAL, "admin_users: no such user: %s", name);
            uid = user->pw_uid;
        }
        if (config->n_admins == DS_ADMINS_MAX || uid >= UINT32_MAX)
            return ds_error_set(error, -EINVAL, "admin_users: more than %u users", DS_ADMINS_MAX);
        config->admins[config->n_admins++] = (uint32_t) uid;
    }
    return 0;
}

int ds_config_check(struct ds_config *config, struct ds_error *error)
{
    if (!*config->socket)
        return ds_error_set(error, -EINVAL, "socket: must not be empty");
    if (config->clients_per_user > config->clients)
        config->clients_per_user = config->clients;
    if (config->arena_bytes_max > config->region_bytes_per_user)
        return ds_error_set(error, -EINVAL,
                            "arena_bytes_max is larger than region_bytes_per_user: no client "
                            "could have it");
    return resolve_admins(config, error);
}

bool ds_config_is_admin(const struct ds_config *config, uint32_t uid)
{
    if (uid == 0 || uid == geteuid())
        return true;
    for (uint32_t i = 0; i < config->n_admins; i++)
        if (config->admins[i] == uid)
            return true;
    return false;
}

void ds_config_print(const struct ds_config *config, FILE *out)
{
    const char *section = "";

    for (size_t i = 0; i < N_KEYS; i++) {
        const struct key *key = &keys[i];
        const void *at = field((struct ds_config *) config, key);
        char text[32];

        if (strcmp(section, key->section) != 0)
            (void) fprintf(out, "%s[%s]\n", i ? "\n" : "", key->section);
        section = key->section;
        (void) fprintf(out, "# %s\n", key->help);
        switch (key->type) {
        case TYPE_STRING:
            (void) fprintf(out, "%s = %s\n", key->name, *(char *const *) at);
            break;
        case TYPE_COUNT:
            (void) fprintf(out, "%s = %u\n", key->name, *(const uint32_t *) at);
            break;
        case TYPE_BYTES:
            format_bytes(*(const uint64_t *) at, text);
            (void) fprintf(out, "%s = %s\n", key->name, text);
            break;
        case TYPE_CHOICE:
            (void) fprintf(out, "%s = %s\n", key->name,
                           choice_word(key->text, *(const uint32_t *) at, text));
            break;
        }
    }
}
