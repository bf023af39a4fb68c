/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.h - one line for a person, written once, where a failure is decided.
 *
 * To the journal with fields where stderr is the journal's ($JOURNAL_STREAM), else to stderr as
 * `dsd: text`, with `<n>` in front where a service manager other than a terminal reads it. Levels
 * are those of syslog.h; the threshold is libc's own (setlogmask), so nothing is kept here.
 */
#pragma once

#include <stdbool.h>
#include <syslog.h>

/* LOG_ERR..LOG_DEBUG. */
void ds_log_set_level(int level);
bool ds_log_wants(int level);

__attribute__((format(printf, 2, 3))) void ds_log(int level, const char *format, ...);

/* "error", "warning", "notice", "info", "debug" -> level, or -EINVAL. */
int ds_log_level(const char *name);
