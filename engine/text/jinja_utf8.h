/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jinja_utf8.h - what template strings need of Unicode. Strings are bytes, taken as UTF-8; a byte
 * that belongs to no well-formed character counts as a character of its own.
 */
#pragma once

#include <stdbool.h>

#include "engine/format/checkpoint.h"

/* Bytes of the first or last character, 0 for an empty string. */
size_t ds_utf8_first(struct ds_bytes text);
size_t ds_utf8_last(struct ds_bytes text);
size_t ds_utf8_count(struct ds_bytes text); /* characters */

/* Code point of a whole character of n bytes; a malformed byte gives U+FFFD. */
unsigned ds_utf8_code(const char *text, size_t n);

/* Writes 1 to 4 bytes; what is no code point becomes U+FFFD. */
size_t ds_utf8_put(unsigned code, char *to);

bool ds_utf8_is_space(unsigned code); /* as Python's str.isspace() */

/* Bytes of white space at the front or back. */
size_t ds_utf8_space_front(struct ds_bytes text);
size_t ds_utf8_space_back(struct ds_bytes text);

/* Simple case mapping of ASCII, Latin-1, Latin Extended-A, Greek and Cyrillic; the rest stays. */
unsigned ds_utf8_upper(unsigned code);
unsigned ds_utf8_lower(unsigned code);
bool ds_utf8_is_letter(
    unsigned code); /* of these scripts; above U+0530 all but punctuation blocks */
