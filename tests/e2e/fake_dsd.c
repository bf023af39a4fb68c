/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_dsd - tests/lib/fake_daemon.c as a program, for tests of clients that need no model.
 *
 * usage: fake_dsd SOCKET [KEY=VALUE...]   keys: the first fields of struct fake_plan
 * Serves until its standard input ends; prints "ready" when it listens.
 */
#include "proto/base.h"
#include "tests/lib/fake_daemon.h"

static void set(struct fake_plan *plan, const char *word)
{
    const struct {
        const char *name;
        _Atomic int *field;
    } keys[] = {
        { "credits=", &plan->credits },     { "drop_after=", &plan->drop_after },
        { "down_msec=", &plan->down_msec }, { "piece=", &plan->piece },
        { "reject=", &plan->reject },       { "draining=", &plan->draining },
    };

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strncmp(word, keys[i].name, strlen(keys[i].name)) == 0)
            atomic_store(keys[i].field, atoi(word + strlen(keys[i].name)));
}

int main(int argc, char **argv)
{
    struct fake_daemon *fake;
    char byte;

    if (argc < 2)
        return 2;
    fake = fake_daemon_start(argv[1]);
    for (int i = 2; i < argc; i++)
        set(fake_daemon_plan(fake), argv[i]);
    puts("ready");
    (void) fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    fake_daemon_stop(fake);
    return 0;
}
