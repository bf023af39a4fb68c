/* SPDX-License-Identifier: Apache-2.0 */
/*
 * think.h - tells a reasoning model's thoughts from its answer, as the text streams.
 *
 * Thoughts stand between <think> and </think>. A tag may come in any number of pieces, so what
 * could be the beginning of one is held back until it is decided. The opening tag may stand in the
 * prompt already (DeepSeek-R1's template ends with it): then the filter starts inside.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum dsctl_think_mode { DSCTL_THINK_SHOW, DSCTL_THINK_HIDE, DSCTL_THINK_ONLY };

/* A piece to print. thought: it is one (or its tag), which a terminal may show dimmed. */
typedef void (*dsctl_think_sink)(void *target, const char *text, size_t size, bool thought);

struct dsctl_think {
    enum dsctl_think_mode mode;
    dsctl_think_sink sink;
    void *target;
    bool inside;
    bool trim;     /* white space at the begin of the next piece belongs to the tag before */
    char held[16]; /* the begin of a tag, perhaps */
    size_t n_held;
};

void dsctl_think_init(struct dsctl_think *think, enum dsctl_think_mode mode, bool inside,
                      dsctl_think_sink sink, void *target);
void dsctl_think_feed(struct dsctl_think *think, const char *text, size_t size);
/* The text has ended: what was held back was no tag. */
void dsctl_think_end(struct dsctl_think *think);

/* Does a prompt leave the model inside its thoughts? */
bool dsctl_think_opened(const char *prompt, size_t size);
/* "show", "hide", "only" */
bool dsctl_think_parse(const char *word, enum dsctl_think_mode *ret_mode);
