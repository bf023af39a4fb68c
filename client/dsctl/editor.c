/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/editor.h"

#include <histedit.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <wchar.h>

#include "proto/base.h"

#define HISTORY_LINES 1000

struct dsctl_editor {
    EditLine *line; /* NULL: no terminal, lines are read as they are */
    History *history;
    const char *prompt;
    char *path; /* of the history, NULL: none */
    int signal_fd;
    bool interrupted;
    mbstate_t decoding;
};

/* Makes every directory on the way to path; failing means no history. */
static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void) mkdir(path, 0700);
        *slash = '/';
    }
}

static char *history_path(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int n = -1;

    if (state && state[0] == '/')
        n = asprintf(&path, "%s/dsd/chat_history", state);
    else if (home && home[0] == '/')
        n = asprintf(&path, "%s/.local/state/dsd/chat_history", home);
    if (n < 0)
        return NULL;
    make_parents(path);
    return path;
}

/* One character for libedit, or -1 when Ctrl-C was pressed: signals are blocked and come by
 * descriptor, so that none is lost between looking and reading. */
static int next_character(EditLine *line, wchar_t *ret)
{
    struct signalfd_siginfo signal;
    struct dsctl_editor *editor = NULL;

    (void) el_get(line, EL_CLIENTDATA, &editor);
    for (;;) {
        struct pollfd polled[] = { { .fd = STDIN_FILENO, .events = POLLIN },
                                   { .fd = editor->signal_fd, .events = POLLIN } };
        char byte;
        ssize_t n;
        size_t used;

        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return -1;
        if (read(editor->signal_fd, &signal, sizeof signal) > 0) {
            editor->interrupted = true;
            return -1;
        }
        if (!polled[0].revents)
            continue;
        n = read(STDIN_FILENO, &byte, 1);
        if (n <= 0)
            return (int) n;
        used = mbrtowc(ret, &byte, 1, &editor->decoding);
        if (used == (size_t) -1) /* no such character: start over with the next byte */
            memset(&editor->decoding, 0, sizeof editor->decoding);
        else if (used != (size_t) -2)
            return 1;
    }
}

static char *prompt_of(EditLine *line)
{
    struct dsctl_editor *editor = NULL;

    (void) el_get(line, EL_CLIENTDATA, &editor);
    return (char *) editor->prompt;
}

static void begin_history(struct dsctl_editor *editor)
{
    HistEvent event;

    editor->history = history_init();
    if (!editor->history)
        return;
    (void) history(editor->history, &event, H_SETSIZE, HISTORY_LINES);
    (void) history(editor->history, &event, H_SETUNIQUE, 1);
    editor->path = history_path();
    if (editor->path)
        (void) history(editor->history, &event, H_LOAD, editor->path);
    (void) el_set(editor->line, EL_HIST, history, editor->history);
}

struct dsctl_editor *dsctl_editor_new(int signal_fd, const char *prompt)
{
    struct dsctl_editor *editor = calloc(1, sizeof *editor);

    if (!editor)
        return NULL;
    editor->signal_fd = signal_fd;
    editor->prompt = prompt;
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return editor;
    editor->line = el_init("dsctl", stdin, stdout, stderr);
    if (!editor->line)
        return editor;
    (void) el_set(editor->line, EL_CLIENTDATA, editor);
    (void) el_set(editor->line, EL_PROMPT, prompt_of);
    (void) el_set(editor->line, EL_EDITOR, "emacs");
    (void) el_set(editor->line, EL_GETCFN, next_character);
    begin_history(editor);
    (void) el_source(editor->line, NULL); /* ~/.editrc */
    return editor;
}

static int plain_line(struct dsctl_editor *editor, char **ret_line)
{
    struct pollfd polled[] = { { .fd = STDIN_FILENO, .events = POLLIN },
                               { .fd = editor->signal_fd, .events = POLLIN } };
    struct signalfd_siginfo signal;
    ds_cleanup(ds_free_p) char *line = NULL;
    size_t capacity = 0;
    ssize_t n;

    (void) fflush(stdout);
    /* stdio may hold lines that poll does not see, so a signal counts only where nothing waits */
    if (poll(polled, 2, 0) >= 0 && read(editor->signal_fd, &signal, sizeof signal) > 0)
        return DSCTL_LINE_END;
    n = getline(&line, &capacity, stdin);
    if (n < 0)
        return DSCTL_LINE_END;
    if (n > 0 && line[n - 1] == '\n')
        line[n - 1] = '\0';
    *ret_line = ds_steal(line);
    return DSCTL_LINE;
}

int dsctl_editor_line(struct dsctl_editor *editor, char **ret_line)
{
    const char *line;
    HistEvent event;
    int n = 0;

    if (!editor->line)
        return plain_line(editor, ret_line);
    editor->interrupted = false;
    line = el_gets(editor->line, &n);
    if (editor->interrupted) {
        putchar('\n');
        return DSCTL_LINE_INTERRUPTED;
    }
    if (!line || n <= 0) {
        putchar('\n');
        return DSCTL_LINE_END;
    }
    if (editor->history && n > 1)
        (void) history(editor->history, &event, H_ENTER, line);
    *ret_line = strndup(line, strcspn(line, "\n"));
    return *ret_line ? DSCTL_LINE : DSCTL_LINE_END;
}

struct dsctl_editor *dsctl_editor_free(struct dsctl_editor *editor)
{
    HistEvent event;
    mode_t mask;

    if (!editor)
        return NULL;
    if (editor->history && editor->path) {
        mask = umask(077); /* what was said is nobody else's business */
        (void) history(editor->history, &event, H_SAVE, editor->path);
        (void) umask(mask);
    }
    if (editor->history)
        history_end(editor->history);
    if (editor->line)
        el_end(editor->line);
    free(editor->path);
    free(editor);
    return NULL;
}

void dsctl_editor_free_p(struct dsctl_editor **editor)
{
    *editor = dsctl_editor_free(*editor);
}
