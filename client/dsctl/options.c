/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"

#include <getopt.h>
#include <math.h>

#include "proto/base.h"

enum { OPTIONS_MAX = 40, KEY_JSON = 0x7001, KEY_SOCKET, KEY_HELP };

static const struct dsctl_option common[] = {
    { "json", NULL, "print JSON", KEY_JSON },
    { "socket", "PATH", "where dsd listens", KEY_SOCKET },
    { "help", NULL, "print this", KEY_HELP },
    { NULL, NULL, NULL, 0 },
};

static void print_option(FILE *stream, const struct dsctl_option *option)
{
    char left[64];
    int n = 0;

    if (option->key < 256)
        n = snprintf(left, sizeof left, "-%c, ", option->key);
    (void) snprintf(left + n, sizeof left - (size_t) n, "--%s%s%s", option->name,
                    option->argument ? " " : "", option->argument ? option->argument : "");
    fprintf(stream, "  %-26s %s\n", left, option->help);
}

void dsctl_usage(const struct dsctl_verb *verb, void *stream)
{
    fprintf(stream, "usage: dsctl %s [OPTIONS]%s%s\n%s\n\n", verb->name,
            verb->operands[0] ? " " : "", verb->operands, verb->summary);
    for (const struct dsctl_option *option = verb->options; option && option->name; option++)
        print_option(stream, option);
    for (const struct dsctl_option *option = common; option->name; option++)
        print_option(stream, option);
}

/* What getopt_long wants to know. */
struct getopt_tables {
    struct option longs[OPTIONS_MAX];
    char shorts[2 * OPTIONS_MAX + 3];
    unsigned n;
    char *end;
};

static void add(struct getopt_tables *tables, const struct dsctl_option *option)
{
    for (; option && option->name && tables->n + 1 < OPTIONS_MAX; option++) {
        tables->longs[tables->n++] =
            (struct option){ .name = option->name,
                             .has_arg = option->argument ? required_argument : no_argument,
                             .val = option->key };
        if (option->key >= 256)
            continue;
        *tables->end++ = (char) option->key;
        if (option->argument)
            *tables->end++ = ':';
    }
}

static int take_common(struct dsctl *dsctl, int key)
{
    switch (key) {
    case KEY_JSON:
        dsctl->json = true;
        return DSCTL_OK;
    case KEY_SOCKET:
        dsctl->socket = optarg;
        return DSCTL_OK;
    case KEY_HELP:
        dsctl->help = true;
        return DSCTL_OK;
    default:
        return DSCTL_USAGE;
    }
}

/* One line for what getopt_long() refused: ':' lacks its value, '?' is unknown, or has a value that
 * it does not take; optopt is 0 where no such word is known. word is the last that was looked at.
 */
static int refuse(struct dsctl *dsctl, int key, const char *word)
{
    const char *verb = dsctl->verb->name;

    if (key == ':')
        return dsctl_fail(dsctl, DSCTL_USAGE,
                          "%s takes a value, and there is none: see `dsctl help %s`", word, verb);
    if (strncmp(word, "--", 2) == 0 && optopt)
        return dsctl_fail(dsctl, DSCTL_USAGE, "%s takes no value: see `dsctl help %s`", word, verb);
    return dsctl_fail(dsctl, DSCTL_USAGE, "'%s' is no option of %s: see `dsctl help %s`", word,
                      verb, verb);
}

static bool is_common(int key)
{
    return key == KEY_JSON || key == KEY_SOCKET || key == KEY_HELP;
}

static int check_operands(struct dsctl *dsctl, int n)
{
    const struct dsctl_verb *verb = dsctl->verb;

    if (n >= verb->min_operands && (verb->max_operands < 0 || n <= verb->max_operands))
        return DSCTL_OK;
    return dsctl_fail(dsctl, DSCTL_USAGE, "%s takes %s%s: see `dsctl help %s`", verb->name,
                      verb->operands[0] ? verb->operands : "no operands",
                      n < verb->min_operands ? ", and something is missing" : "", verb->name);
}

int dsctl_options(struct dsctl *dsctl, int argc, char **argv, dsctl_take take, void *target,
                  int *ret_first)
{
    struct getopt_tables tables = { .n = 0 };
    int key, code;

    tables.end = tables.shorts;
    *tables.end++ = ':'; /* getopt_long() says nothing itself, and tells what lacks its value */
    add(&tables, dsctl->verb->options);
    add(&tables, common);
    optind = 0;
    while ((key = getopt_long(argc, argv, tables.shorts, tables.longs, NULL)) != -1) {
        if (key == '?' || key == ':')
            return refuse(dsctl, key, argv[optind - 1]);
        code = is_common(key) ? take_common(dsctl, key) : take(target, key, optarg);
        if (code != DSCTL_OK)
            return code;
    }
    argv[0] = (char *) dsctl->verb->name;
    *ret_first = optind;
    if (dsctl->help) {
        dsctl_usage(dsctl->verb, stdout);
        return DSCTL_OK;
    }
    return check_operands(dsctl, argc - optind);
}

int dsctl_number(const char *what, const char *value, uint64_t min, uint64_t max, uint64_t *ret)
{
    unsigned long long number;
    char *end;

    errno = 0;
    number = strtoull(value, &end, 10);
    if (errno || end == value || *end || value[0] == '-' || number < min || number > max) {
        fprintf(stderr, "dsctl: %s is a whole number from %llu to %llu, not '%s'\n", what,
                (unsigned long long) min, (unsigned long long) max, value);
        return DSCTL_USAGE;
    }
    *ret = number;
    return DSCTL_OK;
}

int dsctl_real(const char *what, const char *value, float *ret)
{
    char *end;
    float number = strtof(value, &end);

    if (end == value || *end || !isfinite(number)) {
        fprintf(stderr, "dsctl: %s is a number, not '%s'\n", what, value);
        return DSCTL_USAGE;
    }
    *ret = number;
    return DSCTL_OK;
}

int dsctl_fail(struct dsctl *dsctl, int code, const char *format, ...)
{
    ds_cleanup(ds_free_p) char *text = NULL;
    va_list ap;

    (void) fflush(stdout);
    dsctl_progress_wipe(dsctl);
    fputs("dsctl: ", stderr);
    va_start(ap, format);
    if (vasprintf(&text, format, ap) < 0)
        text = NULL;
    va_end(ap);
    if (text) /* it may name what a model file says */
        dsctl_print_harmless(stderr, text, strlen(text));
    fputc('\n', stderr);
    return code;
}
