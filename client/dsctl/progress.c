/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"

#include "proto/base.h"

#define BAR_WIDTH 30

void dsctl_progress(struct dsctl *dsctl, const char *stage, double fraction)
{
    char bar[BAR_WIDTH + 1];
    int filled;

    if (!dsctl->err_terminal)
        return;
    if (!(fraction >= 0))
        fraction = 0;
    if (fraction > 1)
        fraction = 1;
    filled = (int) (fraction * BAR_WIDTH);
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t) filled);
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K%s [%s] %3.0f %%", stage, bar, fraction * 100);
    (void) fflush(stderr);
    dsctl->progress_drawn = true;
}

void dsctl_progress_wipe(struct dsctl *dsctl)
{
    if (!dsctl->progress_drawn)
        return;
    fputs("\r\033[K", stderr);
    (void) fflush(stderr);
    dsctl->progress_drawn = false;
}
