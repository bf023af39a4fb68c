/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scan.h - small steps that the pre-tokenisers' scanners are made of.
 *
 * text[at..end) is what a scanner may see; at == end has no flags. Positions are bytes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/text/unicode.h"

/* Flags of the character at `at` and the position after it. */
static inline unsigned scan_flags(const char *text, size_t at, size_t end, size_t *ret_next)
{
    uint32_t code_point;

    if (at >= end) {
        *ret_next = end;
        return 0;
    }
    *ret_next = at + ds_utf8_step(text + at, end - at, &code_point);
    return ds_unicode_flags(code_point);
}

/* After the run of characters that have one of flags. */
static inline size_t scan_run(const char *text, size_t at, size_t end, unsigned flags)
{
    size_t next;

    while (at < end && (scan_flags(text, at, end, &next) & flags))
        at = next;
    return at;
}

/* After the run of characters that have none of flags. */
static inline size_t scan_run_without(const char *text, size_t at, size_t end, unsigned flags)
{
    size_t next;

    while (at < end && !(scan_flags(text, at, end, &next) & flags))
        at = next;
    return at;
}

static inline bool scan_is_newline(char c)
{
    return c == '\r' || c == '\n';
}

static inline bool scan_is_ascii_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* White space at `at`: "\s*[\r\n]+|\s+(?!\S)|\s+" (newlines) or "\s+(?!\S)|\s+". Through the last
 * newline of the run if there is one; else all but the last character where text follows, so that
 * it can lead the next word. */
static inline size_t scan_spaces(const char *text, size_t at, size_t end, bool newlines)
{
    size_t newline_end = at, last = at, stop = at, next;

    while (stop < end && (scan_flags(text, stop, end, &next) & DS_SPACE)) {
        if (newlines && scan_is_newline(text[stop]))
            newline_end = next;
        last = stop;
        stop = next;
    }
    if (newline_end > at)
        return newline_end;
    return stop < end && last > at ? last : stop;
}
