/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/options.h"

#include <getopt.h>

const char ds_engine_help[] =
    "usage: dsd-engine [options]\n"
    "\n"
    "The process that computes. dsd starts it, with one end of a socketpair as descriptor 3; it "
    "is\n"
    "of no use without dsd. It ends when dsd hangs up, and takes no notice of SIGINT and SIGTERM.\n"
    "\n"
    "  --link-fd N       descriptor of the link to dsd (3)\n"
    "  --threads N       compute threads; 0: what affinity and cgroup quota allow (0)\n"
    "  --isa NAME        the best instructions to use: portable, avx2, avx512, amx\n"
    "  --spin-usec N     compute threads spin this long before they sleep (50)\n"
    "  --step-usec N     how long a step with answers in it may take; prompts are cut to fit;\n"
    "                    0: twice as long as without prompts (0)\n"
    "  --speculation KIND  who guesses tokens ahead where a request leaves it open: off, ngram, "
    "or\n"
    "                    mtp, which is ngram for models without such a module (ngram)\n"
    "  --kv-bytes N      memory for a model's KV cache where the load does not say; 0: a share of\n"
    "                    what is free (0)\n"
    "  --batch-tokens N  tokens of one batch, 16 to 8192 (512)\n"
    "  --sequences N     answers of one model made at once, 1 to 1024 (64)\n"
    "  --no-sandbox      keep the file system and all system calls: for debuggers\n"
    "  --help, --version\n"
    "\n"
    "It logs to standard error with sd-daemon(3) level prefixes. Exit: 0 dsd hung up, 1 failure\n"
    "(the last line says which), 2 usage.\n";

enum option_id {
    OPTION_LINK_FD = 256,
    OPTION_THREADS,
    OPTION_ISA,
    OPTION_SPIN_USEC,
    OPTION_STEP_USEC,
    OPTION_KV_BYTES,
    OPTION_BATCH_TOKENS,
    OPTION_SEQUENCES,
    OPTION_NO_SANDBOX,
    OPTION_SPECULATION,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    { "link-fd", required_argument, NULL, OPTION_LINK_FD },
    { "threads", required_argument, NULL, OPTION_THREADS },
    { "isa", required_argument, NULL, OPTION_ISA },
    { "spin-usec", required_argument, NULL, OPTION_SPIN_USEC },
    { "step-usec", required_argument, NULL, OPTION_STEP_USEC },
    { "kv-bytes", required_argument, NULL, OPTION_KV_BYTES },
    { "batch-tokens", required_argument, NULL, OPTION_BATCH_TOKENS },
    { "sequences", required_argument, NULL, OPTION_SEQUENCES },
    { "no-sandbox", no_argument, NULL, OPTION_NO_SANDBOX },
    { "speculation", required_argument, NULL, OPTION_SPECULATION },
    { "help", no_argument, NULL, OPTION_HELP },
    { "version", no_argument, NULL, OPTION_VERSION },
    { NULL, 0, NULL, 0 },
};

/* A whole number of digits only, within the range. */
static int parse_number(const char *name, const char *text, uint64_t min, uint64_t max,
                        uint64_t *ret_value, struct ds_error *error)
{
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value < min || value > max)
        return ds_error_set(error, -EINVAL, "--%s %s: a number from %llu to %llu is needed", name,
                            text, (unsigned long long) min, (unsigned long long) max);
    *ret_value = value;
    return 0;
}

static int take_number(struct ds_engine_options *options, int id, const char *name,
                       const char *text, struct ds_error *error)
{
    uint64_t value = 0;
    int r;

    switch (id) {
    case OPTION_LINK_FD:
        r = parse_number(name, text, 3, 1u << 20, &value, error);
        options->link_fd = (int) value;
        return r;
    case OPTION_THREADS:
        r = parse_number(name, text, 0, 1024, &value, error);
        options->n_threads = (unsigned) value;
        return r;
    case OPTION_SPIN_USEC:
        r = parse_number(name, text, 0, 1000000, &value, error);
        options->spin_usec = (unsigned) value;
        return r;
    case OPTION_STEP_USEC:
        r = parse_number(name, text, 0, 60000000, &value, error);
        options->step_usec = (uint32_t) value;
        return r;
    case OPTION_KV_BYTES:
        return parse_number(name, text, 0, UINT64_C(1) << 50, &options->kv_bytes, error);
    case OPTION_BATCH_TOKENS:
        r = parse_number(name, text, 16, 8192, &value, error);
        options->batch_tokens = (uint32_t) value;
        return r;
    default:
        r = parse_number(name, text, 1, 1024, &value, error);
        options->sequences = (uint32_t) value;
        return r;
    }
}

static int judge(const struct ds_engine_options *options, struct ds_error *error)
{
    if (options->sequences > options->batch_tokens)
        return ds_error_set(error, -EINVAL, "--sequences %u needs as many --batch-tokens, not %u",
                            options->sequences, options->batch_tokens);
    if (strcmp(options->speculation, "off") != 0 && strcmp(options->speculation, "ngram") != 0 &&
        strcmp(options->speculation, "mtp") != 0)
        return ds_error_set(error, -EINVAL, "--speculation %s: off, ngram or mtp is needed",
                            options->speculation);
    return DS_OPTIONS_OK;
}

int ds_engine_options_parse(struct ds_engine_options *ret_options, int argc, char **argv,
                            struct ds_error *error)
{
    struct ds_engine_options options = {
        .link_fd = 3,
        .spin_usec = 50,
        .batch_tokens = 512,
        .sequences = 64,
        .sandbox = true,
        .speculation = "ngram",
    };
    int id, index = 0, r;

    opterr = 0;
    while ((id = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        switch (id) {
        case OPTION_HELP:
            return DS_OPTIONS_HELP;
        case OPTION_VERSION:
            return DS_OPTIONS_VERSION;
        case OPTION_NO_SANDBOX:
            options.sandbox = false;
            break;
        case OPTION_SPECULATION:
            options.speculation = optarg;
            break;
        case OPTION_ISA:
            options.isa = optarg;
            break;
        case '?':
            return ds_error_set(error, -EINVAL, "%s is no option, or lacks its value; see --help",
                                argv[optind - 1]);
        default:
            r = take_number(&options, id, long_options[index].name, optarg, error);
            if (r < 0)
                return r;
        }
    }
    if (optind < argc)
        return ds_error_set(error, -EINVAL, "%s: no arguments are expected; see --help",
                            argv[optind]);
    r = judge(&options, error);
    if (r < 0)
        return r;
    *ret_options = options;
    return DS_OPTIONS_OK;
}
