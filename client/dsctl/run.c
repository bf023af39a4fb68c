/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/generate.h"

enum { KEY_RAW = 400, KEY_TOKENS, KEY_LOGPROBS, KEY_CTX, KEY_STATS };

struct run {
    struct dsctl_generation generation;
    bool raw;
    const char *tokens;
    bool statistics;
    uint64_t context; /* positions, 0: as dsd has it */
};

static int take(void *target, int key, const char *value)
{
    struct run *run = target;
    uint64_t number = 0;
    int code = DSCTL_OK;

    switch (key) {
    case KEY_RAW:
        run->raw = true;
        return DSCTL_OK;
    case KEY_TOKENS:
        run->tokens = value;
        return DSCTL_OK;
    case KEY_LOGPROBS:
        code = dsctl_number("--logprobs", value, 0, DS_LOGPROBS_MAX, &number);
        run->generation.request.logprobs = (uint32_t) number;
        return code;
    case KEY_CTX:
        return dsctl_number("--ctx", value, DSCTL_CTX_MIN, DSCTL_CTX_MAX, &run->context);
    case KEY_STATS:
        run->statistics = true;
        return DSCTL_OK;
    default:
        return dsctl_generation_take(&run->generation, key, value);
    }
}

static int parse_tokens(struct dsctl *dsctl, const char *text, uint32_t **ret_ids, size_t *ret_n)
{
    const char *bad;

    if (!dsctl_parse_ids(text, ret_ids, ret_n, &bad))
        return dsctl_fail(dsctl, DSCTL_USAGE, "--tokens takes token ids, and '%.20s' is none", bad);
    if (*ret_n == 0)
        return dsctl_fail(dsctl, DSCTL_USAGE, "--tokens is empty");
    return DSCTL_OK;
}

/* Resident with the context that was asked for, or an error says why not. */
static int load(struct dsctl *dsctl, const struct dsctl_model *model, uint64_t context)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__LoadRequest request = DS__LOAD_REQUEST__INIT;
    Ds__ModelRef ref;

    dsctl_model_ref(model, &ref);
    request.model = &ref;
    request.context = (uint32_t) context;
    return dsctl_ask(dsctl, DS__REQUEST__OP_LOAD, &request, &reply);
}

/* Everything is ready: connects, finds the model, answers. */
static int answer(struct dsctl *dsctl, const char *model_name, struct run *run, size_t input_bytes)
{
    struct ds_request *request = &run->generation.request;
    struct dsctl_model model;
    bool inside = false;
    int code;

    dsctl->statistics = run->statistics;
    code = dsctl_connect(dsctl, input_bytes);
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, model_name, &model);
    if (code == DSCTL_OK && run->context)
        code = load(dsctl, &model, run->context);
    if (code != DSCTL_OK)
        return code;
    request->model = model.name[0] ? model.name : NULL;
    request->attachment = model.attachment;
    code = dsctl_generation_open(dsctl, &run->generation);
    if (code != DSCTL_OK)
        return code;
    if (run->generation.think != DSCTL_THINK_SHOW && request->prompt)
        inside = dsctl_think_opened(request->prompt, strlen(request->prompt));
    if (run->generation.think != DSCTL_THINK_SHOW && request->turns)
        code = dsctl_starts_inside(dsctl, &model, request->turns, request->n_turns, &inside);
    if (code != DSCTL_OK)
        return code;
    return dsctl_answer(dsctl, request, run->generation.think, inside, NULL);
}

static int run(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    ds_cleanup(ds_free_p) char *text = NULL;
    struct run run = { .raw = false };
    struct ds_request *request = &run.generation.request;
    struct ds_chat_turn turns[2];
    size_t size = 0;
    int code, first;

    dsctl_generation_init(&run.generation);
    code = dsctl_options(dsctl, argc, argv, take, &run, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    if (run.tokens && (run.raw || run.generation.system || argc - first > 1))
        return dsctl_fail(dsctl, DSCTL_USAGE,
                          "--tokens is the whole input: no prompt, --raw or --system beside it");
    if (run.raw && run.generation.system)
        return dsctl_fail(dsctl, DSCTL_USAGE, "--raw uses no template, so --system has no place");
    if (run.tokens) {
        code = parse_tokens(dsctl, run.tokens, &ids, &request->n_tokens);
        request->tokens = ids;
        size = request->n_tokens * 5;
    } else {
        code = dsctl_read_text(dsctl, argc - first - 1, argv + first + 1, "prompt", &text, &size);
    }
    if (code != DSCTL_OK)
        return code;
    if (text && strlen(text) != size)
        return dsctl_fail(dsctl, DSCTL_ERROR, "the prompt contains a zero byte: take it out");
    if (run.raw) {
        request->prompt = text;
    } else if (text) {
        if (run.generation.system)
            turns[request->n_turns++] = (struct ds_chat_turn){ "system", run.generation.system };
        turns[request->n_turns++] = (struct ds_chat_turn){ "user", text };
        request->turns = turns;
    }
    return answer(dsctl, argv[first], &run, size);
}

static const struct dsctl_option options[] = {
    DSCTL_GENERATION_OPTIONS,
    { "raw", NULL, "the prompt as it is, without the model's chat template", KEY_RAW },
    { "tokens", "\"1 2 3\"", "token ids instead of a prompt", KEY_TOKENS },
    { "logprobs", "N", "print every token's log-probability and its N likeliest", KEY_LOGPROBS },
    { "ctx", "N", "load the model with a context of N positions", KEY_CTX },
    { "stats", NULL, "say at the end how many tokens there were, and how fast", KEY_STATS },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_run = {
    .name = "run",
    .operands = "MODEL [PROMPT...]",
    .summary = "one answer, streamed; the prompt comes from the operands or the standard input",
    .options = options,
    .min_operands = 1,
    .max_operands = -1,
    .run = run,
};
