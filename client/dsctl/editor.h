/* SPDX-License-Identifier: Apache-2.0 */
/*
 * editor.h - lines from a person (edited, with a history that stays) or from a pipe (as they are).
 *
 * The history is $XDG_STATE_HOME/dsd/chat_history, else ~/.local/state/dsd/chat_history, readable
 * by its owner alone; without a home directory there is none.
 */
#pragma once

struct dsctl_editor;

enum { DSCTL_LINE, DSCTL_LINE_INTERRUPTED, DSCTL_LINE_END };

/* signal_fd: of dsctl_catch_signals(). NULL without memory. */
struct dsctl_editor *dsctl_editor_new(int signal_fd, const char *prompt);
/* *ret_line: fresh, without its newline; only with DSCTL_LINE. */
int dsctl_editor_line(struct dsctl_editor *editor, char **ret_line);
struct dsctl_editor *dsctl_editor_free(struct dsctl_editor *editor);
void dsctl_editor_free_p(struct dsctl_editor **editor);
