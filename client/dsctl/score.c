/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include "proto/base.h"

enum { KEY_TOKENS = 400, KEY_LORA };

struct score {
    const char *tokens;
    struct dsctl_lora lora;
};

static int take(void *target, int key, const char *value)
{
    struct score *score = target;

    if (key == KEY_LORA)
        return dsctl_lora_take(&score->lora, value);
    score->tokens = value;
    return DSCTL_OK;
}

static void print_score(struct dsctl *dsctl, const Ds__ScoreResult *result)
{
    char quoted[256];

    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        dsctl_json_u64(object, "n_tokens", result->n_tokens);
        (void) cJSON_AddNumberToObject(object, "nll", result->nll);
        (void) cJSON_AddNumberToObject(object, "ppl", result->perplexity);
        (void) cJSON_AddItemToObject(object, "next", dsctl_json_top(result->n_next, result->next));
        dsctl_json_print(object);
        return;
    }
    printf("tokens      %u\nnll         %.4f\nperplexity  %.4f\n\nnext token:\n", result->n_tokens,
           result->nll, result->perplexity);
    for (size_t i = 0; i < result->n_next; i++)
        printf("%7u %9.4f  %s\n", result->next[i]->id, (double) result->next[i]->logprob,
               dsctl_quoted(quoted, sizeof quoted, result->next[i]->text.data,
                            result->next[i]->text.len));
}

static int ask(struct dsctl *dsctl, const char *name, struct dsctl_lora *lora, Ds__Input *input,
               size_t size)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__ScoreRequest request = DS__SCORE_REQUEST__INIT;
    struct dsctl_model model;
    Ds__LoraRef lora_ref;
    Ds__ModelRef ref;
    int code;

    code = dsctl_connect(dsctl, size);
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, name, &model);
    if (code == DSCTL_OK)
        code = dsctl_lora_ref(dsctl, lora, &lora_ref);
    if (code != DSCTL_OK)
        return code;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.input = input;
    request.lora = lora->argument[0] ? &lora_ref : NULL;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_SCORE, &request, &reply);
    if (code == DSCTL_OK)
        print_score(dsctl, reply->score);
    return code;
}

static int score(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    ds_cleanup(ds_free_p) char *text = NULL;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    struct score options = { .tokens = NULL };
    const char *words, *bad = NULL;
    size_t size = 0;
    Ds__Input input;
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, &options, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    words = options.tokens;
    ds__input__init(&input);
    if (words && argc - first > 1)
        return dsctl_fail(dsctl, DSCTL_USAGE, "--tokens is the whole input: no FILE beside it");
    if (words) {
        if (!dsctl_parse_ids(words, &ids, &tokens.n_ids, &bad))
            return dsctl_fail(dsctl, DSCTL_USAGE, "--tokens takes token ids, and '%.20s' is none",
                              bad);
        tokens.ids = ids;
        size = tokens.n_ids * 5;
        input.kind_case = DS__INPUT__KIND_TOKENS;
        input.tokens = &tokens;
    } else {
        code = dsctl_read_file(dsctl, argc - first > 1 ? argv[first + 1] : "-", &text, &size);
        if (code != DSCTL_OK)
            return code;
        input.kind_case = DS__INPUT__KIND_TEXT;
        input.text = (ProtobufCBinaryData){ .data = (uint8_t *) text, .len = size };
    }
    return ask(dsctl, argv[first], &options.lora, &input, size);
}

static const struct dsctl_option score_options[] = {
    { "tokens", "\"1 2 3\"", "token ids, taken as they are, instead of a text", KEY_TOKENS },
    { "lora", "NAME[=SCALE]", "with this LoRA adapter, a name or a file", KEY_LORA },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_score = {
    .name = "score",
    .operands = "MODEL [FILE]",
    .summary = "how likely a text is: nll, perplexity, and the next token's top 8",
    .options = score_options,
    .min_operands = 1,
    .max_operands = 2,
    .run = score,
};
