/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

void ds_log_set_level(int level)
{
    (void) setlogmask(LOG_UPTO(level));
}

bool ds_log_wants(int level)
{
    return (setlogmask(0) & LOG_MASK(level)) != 0;
}

int ds_log_level(const char *name)
{
    static const struct {
        const char *name;
        int level;
    } levels[] = {
        { "error", LOG_ERR }, { "warning", LOG_WARNING }, { "notice", LOG_NOTICE },
        { "info", LOG_INFO }, { "debug", LOG_DEBUG },
    };

    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (strcmp(name, levels[i].name) == 0)
            return levels[i].level;
    return -EINVAL;
}

/* Is stderr the very stream that the service manager connected to the journal? */
static bool is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat status;

    if (!stream || sscanf(stream, "%llu:%llu", &device, &inode) != 2)
        return false;
    return fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

void ds_log(int level, const char *format, ...)
{
    char text[1024];
    va_list ap;

    if (!ds_log_wants(level))
        return;
    va_start(ap, format);
    (void) vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    for (char *c = text; *c; c++) /* names come from clients and files: one line stays one line */
        if ((unsigned char) *c < ' ')
            *c = '?';
    if (is_journal())
        (void) sd_journal_send("MESSAGE=%s", text, "PRIORITY=%i", level, "SYSLOG_IDENTIFIER=dsd",
                               NULL);
    else if (getenv("INVOCATION_ID") && !isatty(STDERR_FILENO))
        (void) fprintf(stderr, "<%d>dsd: %s\n", level, text);
    else
        (void) fprintf(stderr, "dsd: %s\n", text);
}
