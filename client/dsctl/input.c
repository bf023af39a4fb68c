/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"

#include "proto/base.h"

static void close_file(FILE **file)
{
    if (*file && *file != stdin)
        (void) fclose(*file);
}

int dsctl_read_file(struct dsctl *dsctl, const char *path, char **ret_text, size_t *ret_size)
{
    ds_cleanup(close_file) FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    ds_cleanup(ds_free_p) char *text = NULL;
    size_t size = 0, capacity = 0, n = 1;

    if (!file)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s cannot be opened: %s", path, strerror(errno));
    while (n) {
        if (capacity - size < 4096) {
            char *grown = realloc(text, capacity = capacity ? capacity * 2 : 65536);

            if (!grown)
                return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
            text = grown;
        }
        n = fread(text + size, 1, capacity - size - 1, file);
        size += n;
        if (size > DS_PAYLOAD_BYTES_MAX)
            return dsctl_fail(dsctl, DSCTL_ERROR, "%s is larger than the %u bytes dsd takes",
                              file == stdin ? "the input" : path, DS_PAYLOAD_BYTES_MAX);
    }
    if (ferror(file))
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s cannot be read: %s",
                          file == stdin ? "the input" : path, strerror(errno));
    text[size] = '\0';
    *ret_size = size;
    *ret_text = ds_steal(text);
    return DSCTL_OK;
}

int dsctl_read_text(struct dsctl *dsctl, int argc, char **argv, const char *what, char **ret_text,
                    size_t *ret_size)
{
    size_t size = 1;
    char *text, *end;

    if (argc == 0) {
        if (isatty(STDIN_FILENO))
            return dsctl_fail(dsctl, DSCTL_USAGE,
                              "%s: no %s given, neither as operand nor on the "
                              "standard input",
                              dsctl->verb->name, what);
        return dsctl_read_file(dsctl, "-", ret_text, ret_size);
    }
    for (int i = 0; i < argc; i++)
        size += strlen(argv[i]) + 1;
    text = end = malloc(size);
    if (!text)
        return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
    *end = '\0';
    for (int i = 0; i < argc; i++) {
        end = stpcpy(end, i ? " " : "");
        end = stpcpy(end, argv[i]);
    }
    *ret_text = text;
    *ret_size = (size_t) (end - text);
    return DSCTL_OK;
}

bool dsctl_parse_ids(const char *text, uint32_t **ret_ids, size_t *ret_n_ids, const char **ret_bad)
{
    uint32_t *ids = malloc((strlen(text) / 2 + 1) * sizeof *ids);
    size_t n = 0;

    while (ids) {
        unsigned long long id;
        char *end;

        text += strspn(text, " \t\r\n,");
        if (!*text)
            break;
        id = strtoull(text, &end, 10);
        if (end == text || *text == '-' || *text == '+' || id > UINT32_MAX ||
            !strchr(" \t\r\n,", *end)) {
            *ret_bad = text;
            free(ids);
            return false;
        }
        ids[n++] = (uint32_t) id;
        text = end;
    }
    *ret_ids = ids;
    *ret_n_ids = n;
    return true;
}
