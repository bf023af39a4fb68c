/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dsd-engine: one process per device, started and ended by dsd.
 *
 * Order matters here: what has to be read from the file system is read first, then the sandbox
 * closes, then the link is joined and model files arrive.
 */
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <syslog.h>

#include "engine/backend.h"
#include "engine/link.h"
#include "engine/memory.h"
#include "engine/options.h"
#include "engine/sandbox.h"
#include "proto/base.h"

__attribute__((format(printf, 2, 3))) static void say(int level, const char *format, ...)
{
    char text[640];
    va_list ap;

    va_start(ap, format);
    (void) vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    (void) dprintf(STDERR_FILENO, "<%d>dsd-engine[%d]: %s\n", level, (int) getpid(), text);
}

/* dsd decides when we end, also when a whole process group or unit is told to. Should dsd itself
 * die, so do we, at once. */
static int follow_dsd(void)
{
    struct sigaction ignore = { .sa_handler = SIG_IGN };
    const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT };

    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
        (void) sigaction(ignored[i], &ignore, NULL);
    return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 ? -errno : 0;
}

/* The link and the standard streams, nothing else that may have been left open. */
static void close_strangers(int link_fd)
{
    if (link_fd > 3)
        (void) close_range(3, (unsigned) link_fd - 1, 0);
    (void) close_range((unsigned) link_fd + 1, ~0u, 0);
}

static int enter_sandbox(const struct ds_engine_options *options)
{
    struct ds_sandbox_report report;
    int r;

    if (!options->sandbox) {
        say(LOG_WARNING, "no sandbox: a hostile model file could reach what this user can reach");
        return 0;
    }
    r = ds_sandbox_enter(&report);
    if (r < 0) {
        say(LOG_ERR, "the sandbox cannot be made: %s; --no-sandbox does without", strerror(-r));
        return r;
    }
    if (!report.landlock)
        say(LOG_INFO, "sandbox without Landlock: %s", report.landlock_reason.text);
    if (!report.seccomp)
        say(LOG_WARNING, "sandbox without seccomp: %s", report.seccomp_reason.text);
    return 0;
}

static enum ds_draft_source draft_of(const char *speculation)
{
    if (strcmp(speculation, "off") == 0)
        return DS_DRAFT_OFF;
    return strcmp(speculation, "mtp") == 0 ? DS_DRAFT_MTP : DS_DRAFT_NGRAM;
}

static int serve(const struct ds_engine_options *options, struct ds_backend *backend,
                 const struct ds_memory *memory)
{
    struct ds_link_environment environment = {
        .backend = backend,
        .memory = memory,
        .batch_tokens_max = options->batch_tokens,
        .sequences_max = options->sequences,
        .step_usec_max = options->step_usec,
        .draft = draft_of(options->speculation),
        .kv_bytes = options->kv_bytes,
    };
    struct ds_error error = { "" };
    struct ds_link *link = NULL;
    int r;

    if (getrandom(&environment.prefix_salt, sizeof environment.prefix_salt, 0) < 0)
        return -errno;
    r = ds_link_new(&link, options->link_fd, &environment, &error);
    if (r == 0)
        r = ds_link_run(link, &error);
    if (r < 0)
        say(LOG_ERR, "%s", *error.text ? error.text : strerror(-r));
    (void) ds_link_free(link);
    return r;
}

static int run(const struct ds_engine_options *options)
{
    struct ds_cpu_options cpu = {
        .n_threads = options->n_threads,
        .isa = options->isa,
        .spin_usec = options->spin_usec,
    };
    struct ds_backend *backend = NULL;
    struct ds_memory *memory = NULL;
    int r;

    r = ds_memory_new(&memory, "");
    if (r == 0)
        r = ds_backend_cpu(&backend, &cpu);
    if (r < 0) {
        say(LOG_ERR, "the CPU backend cannot be started: %s%s", strerror(-r),
            r == -ENOTSUP ? "; is --isa one this machine has?" : "");
    } else {
        r = enter_sandbox(options);
        if (r == 0)
            r = serve(options, backend, memory); /* dsd logs that it is ready, and on what */
        backend->close(backend);
    }
    (void) ds_memory_free(memory);
    return r;
}

int main(int argc, char **argv)
{
    struct ds_engine_options options;
    struct ds_error error = { "" };
    int r;

    r = ds_engine_options_parse(&options, argc, argv, &error);
    if (r < 0) {
        say(LOG_ERR, "%s", error.text);
        return 2;
    }
    if (r == DS_OPTIONS_HELP || r == DS_OPTIONS_VERSION) {
        (void) fputs(r == DS_OPTIONS_HELP ? ds_engine_help : "dsd-engine " DSD_VERSION "\n",
                     stdout);
        return 0;
    }
    if (fcntl(options.link_fd, F_SETFD, FD_CLOEXEC) < 0) {
        say(LOG_ERR, "descriptor %d is not open: dsd-engine is started by dsd, see --help",
            options.link_fd);
        return 2;
    }
    close_strangers(options.link_fd);
    r = follow_dsd();
    if (r == 0)
        r = run(&options);
    return r < 0 ? 1 : 0;
}
