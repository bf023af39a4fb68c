/* SPDX-License-Identifier: Apache-2.0 */
/*
 * printable.c - what others wrote, on a terminal.
 *
 * A terminal takes orders: an escape sequence in an answer, or in the metadata of a model file,
 * could rewrite what stands on the screen, the title, the clipboard.
 */
#include "client/dsctl/dsctl.h"

#include "proto/base.h"

#define REPLACEMENT "\xef\xbf\xbd"

/* Bytes at text that are one control character, or 0. */
static size_t control_length(const unsigned char *text, size_t size)
{
    if (text[0] == '\n' || text[0] == '\t')
        return 0;
    if (text[0] < 0x20 || text[0] == 0x7f)
        return 1;
    return size > 1 && text[0] == 0xc2 && text[1] >= 0x80 && text[1] < 0xa0 ? 2 : 0; /* U+0080.. */
}

void dsctl_print_harmless(FILE *out, const void *bytes, size_t size)
{
    const unsigned char *text = bytes;
    size_t begin = 0, at = 0;

    while (at < size) {
        size_t control = control_length(text + at, size - at);

        if (control == 0) {
            at++;
            continue;
        }
        (void) fwrite(text + begin, 1, at - begin, out);
        if (text[at] != '\r')
            (void) fputs(REPLACEMENT, out);
        begin = at += control;
    }
    (void) fwrite(text + begin, 1, at - begin, out);
}

void dsctl_print(const struct dsctl *dsctl, const void *bytes, size_t size)
{
    if (dsctl->out_terminal)
        dsctl_print_harmless(stdout, bytes, size);
    else
        (void) fwrite(bytes, 1, size, stdout);
}
