/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base.h - the vocabulary every folder shares: limits, scope-bound cleanup, one error line.
 *
 * The bottom of the include order. It includes only libc and must stay short.
 *
 * Return values, everywhere: 0 = done; negative errno = fatal to this operation, passed up
 * untouched; positive enum of the module = an expected outcome the direct caller handles.
 */
#pragma once

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* --- limits: each has one name, is enforced at the boundary and asserted in hot code --- */

#define DS_SQ_ENTRIES_MAX     4096u       /* submission ring slots, a power of two */
#define DS_CQ_ENTRIES_MAX     65536u      /* completion ring slots, a power of two */
#define DS_ARENA_BYTES_MAX    (64u << 20) /* request arena of one connection */
#define DS_RESPONSE_BYTES_MAX (64u << 20) /* response byte ring of one connection */
#define DS_PAYLOAD_BYTES_MAX  (32u << 20) /* one packed message, before unpacking */
#define DS_UNPACK_FACTOR_MAX  24u         /* unpacked size <= factor * packed size + slack, */
#define DS_UNPACK_SLACK_BYTES (64u << 10)
#define DS_UNPACK_BYTES_MAX   (256u << 20) /* and never more than this */
#define DS_MODEL_FILES_MAX    256u         /* files of one model: splits, or a folder's */
#define DS_FILE_NAME_MAX      255u         /* bytes of a file's name */
#define DS_MODEL_NAME_MAX     255u         /* bytes of a model name */
#define DS_STOP_STRINGS_MAX   16u          /* stop strings of one request */
#define DS_STOP_BYTES_MAX     256u         /* bytes of one stop string */
#define DS_LOGPROBS_MAX       20u          /* alternatives reported per token */
#define DS_MESSAGES_MAX       4096u        /* chat messages of one request */
#define DS_KV_BLOCK           32u          /* positions of one KV block */

/* --- cleanup --- */

#define ds_cleanup(fn) __attribute__((cleanup(fn)))

static inline void ds_close_p(int *fd)
{
    if (*fd >= 0)
        (void) close(*fd);
}

static inline void ds_free_p(void *p)
{
    free(*(void **) p);
}

/* Hand a resource to a longer-lived owner: the local forgets it, so its cleanup does nothing. */
static inline int ds_steal_fd(int *fd)
{
    int stolen = *fd;

    *fd = -1;
    return stolen;
}

#define ds_steal(p)                                                                                \
    ({                                                                                             \
        __typeof__(p) ds_stolen_ = (p);                                                            \
        (p) = NULL;                                                                                \
        ds_stolen_;                                                                                \
    })

/* --- one line for a person: the thing, the reason, the remedy --- */

struct ds_error {
    char text[480]; /* NUL-terminated, no newline, "" while nothing failed */
};

/* Fills error (may be NULL) and returns code, so that a failing function can end in
 * `return ds_error_set(error, -EINVAL, "...", ...)`. */
__attribute__((format(printf, 3, 4))) static inline int
ds_error_set(struct ds_error *error, int code, const char *format, ...)
{
    va_list ap;

    if (!error)
        return code;
    va_start(ap, format);
    (void) vsnprintf(error->text, sizeof error->text, format, ap);
    va_end(ap);
    for (char *c = error->text; *c; c++) /* it may repeat what a file says */
        if ((*c > 0 && *c < ' ') || *c == 0x7f)
            *c = '?';
    return code;
}

/* CLOCK_MONOTONIC in nanoseconds: comparable between processes of one boot. */
static inline uint64_t ds_now_nsec(void)
{
    struct timespec now;

    (void) clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}
