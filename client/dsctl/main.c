/* SPDX-License-Identifier: Apache-2.0 */
/* dsctl - what a person asks of dsd. One verb, one file; this one only finds it. */
#include "client/dsctl/dsctl.h"

#include <fcntl.h>
#include <locale.h>
#include <signal.h>

#include "proto/base.h"

static const struct dsctl_verb *const verbs[] = {
    &dsctl_run,      &dsctl_chat,       &dsctl_load,     &dsctl_unload, &dsctl_pin,
    &dsctl_unpin,    &dsctl_ps,         &dsctl_list,     &dsctl_show,   &dsctl_verify,
    &dsctl_tokenize, &dsctl_detokenize, &dsctl_template, &dsctl_score,  &dsctl_lora_verb,
    &dsctl_status,   &dsctl_requests,   &dsctl_cancel,   &dsctl_ping,   &dsctl_bench,
};
#define N_VERBS (sizeof verbs / sizeof *verbs)

static void print_overview(FILE *stream)
{
    fputs("usage: dsctl [--socket PATH] [--json] VERB [OPTIONS] [OPERANDS]\n\n", stream);
    for (size_t i = 0; i < N_VERBS; i++)
        fprintf(stream, "  %-12s %s\n", verbs[i]->name, verbs[i]->summary);
    fputs("\nMODEL is a name that `dsctl list` shows, or a path to a GGUF file or a folder.\n"
          "The socket is --socket, else $DSD_SOCKET, else $XDG_RUNTIME_DIR/dsd/dsd.sock where\n"
          "there is one, else /run/dsd/dsd.sock. `dsctl help VERB` tells a verb's options.\n"
          "Exit status: 0 done, 1 error, 2 usage, 69 no daemon there, 75 busy, 130 interrupted.\n",
          stream);
}

static const struct dsctl_verb *find_verb(const char *name)
{
    for (size_t i = 0; i < N_VERBS; i++)
        if (strcmp(verbs[i]->name, name) == 0)
            return verbs[i];
    return NULL;
}

static int unknown_verb(struct dsctl *dsctl, const char *name)
{
    return dsctl_fail(dsctl, DSCTL_USAGE, "there is no verb '%s': see `dsctl help`", name);
}

static int help(struct dsctl *dsctl, const char *name)
{
    const struct dsctl_verb *verb;

    if (!name) {
        print_overview(stdout);
        return DSCTL_OK;
    }
    verb = find_verb(name);
    if (!verb)
        return unknown_verb(dsctl, name);
    dsctl_usage(verb, stdout);
    return DSCTL_OK;
}

/* Options before the verb. The index of the verb, or -exit code - 1. */
static int leading_options(struct dsctl *dsctl, int argc, char **argv)
{
    int i = 1;

    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--version") == 0) {
            printf("dsctl %s\n", DSD_VERSION);
            return -DSCTL_OK - 1;
        }
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_overview(stdout);
            return -DSCTL_OK - 1;
        }
        if (strcmp(argv[i], "--json") == 0)
            dsctl->json = true;
        else if (strncmp(argv[i], "--socket=", 9) == 0)
            dsctl->socket = argv[i] + 9;
        else if (strcmp(argv[i], "--socket") == 0 && i + 1 < argc)
            dsctl->socket = argv[++i];
        else
            return -dsctl_fail(dsctl, DSCTL_USAGE, "'%s' is no option of dsctl: see `dsctl help`",
                               argv[i]) -
                   1;
    }
    return i;
}

static int dispatch(struct dsctl *dsctl, int argc, char **argv)
{
    int i = leading_options(dsctl, argc, argv);

    if (i < 0)
        return -i - 1;
    if (i == argc) {
        print_overview(stderr);
        return DSCTL_USAGE;
    }
    if (strcmp(argv[i], "help") == 0)
        return help(dsctl, argv[i + 1]);
    dsctl->verb = find_verb(argv[i]);
    if (!dsctl->verb)
        return unknown_verb(dsctl, argv[i]);
    return dsctl->verb->run(dsctl, argc - i, argv + i);
}

/* Where a standard stream is closed, its number must not become the connection's. What is opened
 * instead refuses what the stream is for. */
static void reserve_standard_streams(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        (void) close(fd);
}

int main(int argc, char **argv)
{
    struct dsctl dsctl = { .signal_fd = -1,
                           .out_terminal = isatty(STDOUT_FILENO),
                           .err_terminal = isatty(STDERR_FILENO) };
    int code;

    reserve_standard_streams();
    (void) setlocale(LC_CTYPE, "");
    code = dispatch(&dsctl, argc, argv);
    dsctl_progress_wipe(&dsctl);
    dsctl_disconnect(&dsctl);
    errno = 0; /* an earlier flush may have failed: then nothing is left to fail now */
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == DSCTL_OK)
        code = dsctl_fail(&dsctl, DSCTL_ERROR, "the output cannot be written: %s",
                          errno ? strerror(errno) : "not all of it was taken");
    return code;
}
