/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - dsd's command line. Exit codes: 0 stopped in good order, 1 failure, 2 usage, 78 a bad
 * configuration.
 */
#include "daemon/config.h"
#include "daemon/log.h"
#include "daemon/server.h"
#include "proto/base.h"

#include <getopt.h>

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_BAD_CONFIG = 78 };

struct options {
    const char *config; /* NULL: the default, which may be missing */
    const char *socket, *engine, *log_level, *loop;
    char *models; /* joined with colons, owned */
    bool check_config;
};

static void print_help(void)
{
    (void) puts("usage: dsd [OPTION]...\n"
                "Keeps models resident and serves local processes through shared memory.\n"
                "\n"
                "  --socket PATH      where clients connect (systemd's socket goes first)\n"
                "  --models DIR       directory of *.gguf files; may be given several times, and\n"
                "                     may be a list separated by colons\n"
                "  --config FILE      instead of " DS_CONFIG_DEFAULT "; FILE.d/*.conf is read too\n"
                "  --engine PATH      the program that computes (default: dsd-engine beside dsd,\n"
                "                     else in ../libexec/dsd)\n"
                "  --log-level LEVEL  error, warning, notice, info, debug\n"
                "  --loop BACKEND     auto, io_uring, epoll\n"
                "  --check-config     print the effective configuration and exit\n"
                "  --version, --help\n"
                "\n"
                "Exit codes: 0 stopped in good order, 1 failure, 2 usage, 78 bad configuration.");
}

static int add_models(struct options *options, const char *directory)
{
    char *joined;

    if (asprintf(&joined, "%s%s%s", options->models ? options->models : "",
                 options->models ? ":" : "", directory) < 0)
        return -ENOMEM;
    free(options->models);
    options->models = joined;
    return 0;
}

/* 0: go on; otherwise 1 + the exit code. */
static int parse(int argc, char **argv, struct options *options)
{
    static const struct option known[] = {
        { "socket", required_argument, NULL, 's' },
        { "models", required_argument, NULL, 'm' },
        { "config", required_argument, NULL, 'c' },
        { "engine", required_argument, NULL, 'e' },
        { "log-level", required_argument, NULL, 'l' },
        { "loop", required_argument, NULL, 'b' },
        { "check-config", no_argument, NULL, 'C' },
        { "version", no_argument, NULL, 'V' },
        { "help", no_argument, NULL, 'h' },
        { 0 },
    };
    int c;

    while ((c = getopt_long(argc, argv, "hV", known, NULL)) >= 0) {
        switch (c) {
        case 's':
            options->socket = optarg;
            break;
        case 'm':
            if (add_models(options, optarg) < 0)
                return 1 + EXIT_FAILED;
            break;
        case 'c':
            options->config = optarg;
            break;
        case 'e':
            options->engine = optarg;
            break;
        case 'l':
            options->log_level = optarg;
            break;
        case 'b':
            options->loop = optarg;
            break;
        case 'C':
            options->check_config = true;
            break;
        case 'V':
            (void) puts("dsd " DSD_VERSION);
            return 1 + EXIT_DONE;
        case 'h':
            print_help();
            return 1 + EXIT_DONE;
        default:
            (void) fputs("dsd: try `dsd --help`\n", stderr);
            return 1 + EXIT_USAGE;
        }
    }
    if (optind < argc) {
        (void) fprintf(stderr, "dsd: unexpected argument: %s; try `dsd --help`\n", argv[optind]);
        return 1 + EXIT_USAGE;
    }
    return 0;
}

/* Files first, the command line over them. */
static int configure(void *arg, struct ds_config *ret_config, struct ds_error *error)
{
    const struct options *options = arg;
    const struct {
        const char *key, *value, *where;
    } given[] = {
        { "socket", options->socket, "--socket" },
        { "models", options->models, "--models" },
        { "engine", options->engine, "--engine" },
        { "log_level", options->log_level, "--log-level" },
        { "loop", options->loop, "--loop" },
    };
    struct ds_config config;
    int r;

    r = ds_config_init(&config);
    if (r < 0)
        return ds_error_set(error, r, "no memory");
    r = ds_config_read(&config, options->config ? options->config : DS_CONFIG_DEFAULT,
                       options->config != NULL, error);
    for (size_t i = 0; r == 0 && i < sizeof given / sizeof *given; i++)
        if (given[i].value)
            r = ds_config_set(&config, "dsd", given[i].key, given[i].value, given[i].where, error);
    if (r == 0)
        r = ds_config_check(&config, error);
    if (r < 0) {
        ds_config_deinit(&config);
        return r;
    }
    *ret_config = config;
    return 0;
}

static int serve(struct options *options, struct ds_config *config)
{
    ds_cleanup(ds_free_p) struct ds_server *server = malloc(sizeof(*server));
    struct ds_error error = { 0 };
    int r;

    if (!server)
        return EXIT_FAILED;
    r = ds_server_init(server, config, &error);
    if (r < 0) {
        ds_log(LOG_ERR, "%s", error.text[0] ? error.text : strerror(-r));
        return EXIT_FAILED;
    }
    server->reload = configure;
    server->reload_arg = options;
    r = ds_server_listen(server, &error);
    if (r < 0)
        ds_log(LOG_ERR, "%s", error.text);
    else
        r = ds_server_run(server);
    ds_server_deinit(server);
    return r < 0 ? EXIT_FAILED : EXIT_DONE;
}

int main(int argc, char **argv)
{
    struct options options = { 0 };
    struct ds_error error = { 0 };
    struct ds_config config = { 0 };
    int r;

    ds_log_set_level(LOG_INFO);
    r = parse(argc, argv, &options);
    if (r > 0) {
        free(options.models);
        return r - 1;
    }
    if (configure(&options, &config, &error) < 0) {
        (void) fprintf(stderr, "dsd: %s\n", error.text);
        r = EXIT_BAD_CONFIG;
    } else if (options.check_config) {
        ds_config_print(&config, stdout);
        r = EXIT_DONE;
    } else {
        r = serve(&options, &config);
    }
    ds_config_deinit(&config);
    free(options.models);
    return r;
}
