/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/think.h"

#include <ctype.h>
#include <string.h>

static const char opening[] = "<think>", closing[] = "</think>";

void dsctl_think_init(struct dsctl_think *think, enum dsctl_think_mode mode, bool inside,
                      dsctl_think_sink sink, void *target)
{
    *think = (struct dsctl_think){
        .mode = mode, .sink = sink, .target = target, .inside = inside, .trim = inside
    };
}

static void give(struct dsctl_think *think, const char *text, size_t size)
{
    if (think->mode != DSCTL_THINK_SHOW) {
        if (think->inside != (think->mode == DSCTL_THINK_ONLY))
            return;
        for (; think->trim && size && isspace((unsigned char) *text); text++)
            size--;
    }
    if (size == 0)
        return;
    think->trim = false;
    think->sink(think->target, text, size, think->inside);
}

/* A whole tag has come; it is shown where everything is. */
static void turn(struct dsctl_think *think, const char *tag)
{
    bool into = tag == opening;

    if (think->mode == DSCTL_THINK_SHOW)
        think->sink(think->target, tag, strlen(tag), true);
    think->inside = into;
    think->trim = true;
}

static bool begins(const char *tag, const char *held, size_t n_held)
{
    return n_held <= strlen(tag) && memcmp(tag, held, n_held) == 0;
}

/* Gives away what is held as far as it cannot begin a tag; turns at a whole one. */
static void settle(struct dsctl_think *think)
{
    while (think->n_held) {
        const char *tag = begins(opening, think->held, think->n_held)   ? opening
                          : begins(closing, think->held, think->n_held) ? closing
                                                                        : NULL;

        if (tag && think->n_held < strlen(tag))
            return;
        if (tag) {
            think->n_held = 0;
            turn(think, tag);
            return;
        }
        give(think, think->held, 1);
        memmove(think->held, think->held + 1, --think->n_held);
    }
}

void dsctl_think_feed(struct dsctl_think *think, const char *text, size_t size)
{
    while (size) {
        size_t plain = 0;

        if (think->n_held == 0) {
            const char *bracket = memchr(text, '<', size);

            plain = bracket ? (size_t) (bracket - text) : size;
            give(think, text, plain);
            text += plain;
            size -= plain;
        }
        if (size) {
            think->held[think->n_held++] = *text++;
            size--;
            settle(think);
        }
    }
}

void dsctl_think_end(struct dsctl_think *think)
{
    give(think, think->held, think->n_held);
    think->n_held = 0;
}

bool dsctl_think_opened(const char *prompt, size_t size)
{
    while (size && isspace((unsigned char) prompt[size - 1]))
        size--;
    return size >= strlen(opening) &&
           memcmp(prompt + size - strlen(opening), opening, strlen(opening)) == 0;
}

bool dsctl_think_parse(const char *word, enum dsctl_think_mode *ret_mode)
{
    const char *const words[] = { "show", "hide", "only" };

    for (int i = 0; i < 3; i++)
        if (strcmp(word, words[i]) == 0) {
            *ret_mode = (enum dsctl_think_mode) i;
            return true;
        }
    return false;
}
