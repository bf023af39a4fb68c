/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/json.h"

#include <sys/stat.h>

/* Every value but the first follows a comma or opens an array or an object. Those inside of strings
 * are counted too: a limit need not be exact. */
static bool too_many_values(const char *bytes, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < size; i++)
        n += bytes[i] == ',' || bytes[i] == '[' || bytes[i] == '{';
    return n > DS_JSON_VALUES_MAX;
}

json_t *ds_json_parse(const char *bytes, size_t size, const char *label, int *ret_r,
                      struct ds_error *error)
{
    json_error_t reason;
    json_t *json;

    if (too_many_values(bytes, size)) {
        *ret_r = ds_error_set(error, -EBADMSG,
                              "%s: holds more than %u values: it is damaged, fetch it again", label,
                              DS_JSON_VALUES_MAX);
        return NULL;
    }
    json = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &reason);
    if (json) {
        *ret_r = 0;
        return json;
    }
    if (json_error_code(&reason) == json_error_out_of_memory) {
        *ret_r = ds_error_set(error, -ENOMEM, "%s: no memory for it", label);
        return NULL;
    }
    *ret_r =
        ds_error_set(error, -EBADMSG, "%s: no valid JSON: line %d, column %d: %s; fetch it again",
                     label, reason.line, reason.column, reason.text);
    for (char *c = error ? error->text : NULL; c && *c; c++) /* the reason quotes the file */
        if ((unsigned char) *c < ' ' || *c == 0x7f)
            *c = '?';
    return NULL;
}

int ds_file_read(int fd, const char *label, char **ret_bytes, size_t *ret_size,
                 struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *bytes = NULL;
    struct stat status;
    size_t size, at = 0;

    if (fstat(fd, &status) < 0)
        return ds_error_set(error, -errno, "%s: cannot be read: %s", label, strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_size < 0 || status.st_size > DS_JSON_BYTES_MAX)
        return ds_error_set(error, -EBADMSG,
                            "%s: no regular file of at most %u MiB: fetch it again", label,
                            DS_JSON_BYTES_MAX >> 20);
    size = (size_t) status.st_size;
    bytes = malloc(size + 1);
    if (!bytes)
        return ds_error_set(error, -ENOMEM, "%s: no memory for its %zu bytes", label, size);
    while (at < size) {
        ssize_t n = pread(fd, bytes + at, size - at, (off_t) at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ds_error_set(error, -errno, "%s: cannot be read: %s", label, strerror(errno));
        if (n == 0)
            return ds_error_set(error, -EBADMSG, "%s: became shorter while it was read", label);
        at += (size_t) n;
    }
    bytes[size] = '\0';
    *ret_bytes = ds_steal(bytes);
    *ret_size = size;
    return 0;
}
