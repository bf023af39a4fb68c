/* SPDX-License-Identifier: Apache-2.0 */
/* tokenize, detokenize: text to ids and back, as the engine does it. */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include "proto/base.h"

enum { KEY_NO_SPECIAL = 400, KEY_BOS, KEY_PIECES };

struct tokenize {
    bool no_special, bos, pieces;
};

static int take(void *target, int key, const char *value)
{
    struct tokenize *options = target;

    (void) value;
    if (key == KEY_NO_SPECIAL)
        options->no_special = true;
    if (key == KEY_BOS)
        options->bos = true;
    if (key == KEY_PIECES)
        options->pieces = true;
    return DSCTL_OK;
}

/* Options, then the text of what comes after MODEL, then connection and model. */
static int begin(struct dsctl *dsctl, int argc, char **argv, struct tokenize *options,
                 const char *what, char **ret_text, size_t *ret_size, struct dsctl_model *ret_model)
{
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, options, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_read_text(dsctl, argc - first - 1, argv + first + 1, what, ret_text, ret_size);
    if (code == DSCTL_OK)
        code = dsctl_connect(dsctl, *ret_size);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, argv[first], ret_model);
    return code;
}

static void print_tokens(struct dsctl *dsctl, const Ds__TokenizeResult *result, bool pieces)
{
    char quoted[512];

    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();
        cJSON *array;

        dsctl_json_ids(object, "ids", result->ids, result->n_ids);
        array = pieces ? cJSON_AddArrayToObject(object, "pieces") : NULL;
        for (size_t i = 0; pieces && i < result->n_pieces; i++) {
            ds_cleanup(ds_free_p) char *piece =
                dsctl_json_quote(result->pieces[i].data, result->pieces[i].len);

            (void) cJSON_AddItemToArray(array, cJSON_CreateRaw(piece ? piece : "\"\""));
        }
        dsctl_json_print(object);
        return;
    }
    for (size_t i = 0; i < result->n_ids; i++) {
        if (pieces && i < result->n_pieces)
            printf(
                "%7u %s\n", result->ids[i],
                dsctl_quoted(quoted, sizeof quoted, result->pieces[i].data, result->pieces[i].len));
        else
            printf(i ? " %u" : "%u", result->ids[i]);
    }
    if (!pieces)
        putchar('\n');
}

static int tokenize(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    ds_cleanup(ds_free_p) char *text = NULL;
    Ds__TokenizeRequest request = DS__TOKENIZE_REQUEST__INIT;
    struct tokenize options = { .bos = false };
    struct dsctl_model model;
    Ds__ModelRef ref;
    size_t size = 0;
    int code;

    code = begin(dsctl, argc, argv, &options, "text", &text, &size, &model);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.text = (ProtobufCBinaryData){ .data = (uint8_t *) text, .len = size };
    request.no_special = options.no_special;
    request.bos = options.bos;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_TOKENIZE, &request, &reply);
    if (code == DSCTL_OK)
        print_tokens(dsctl, reply->tokenize, options.pieces);
    return code;
}

static int detokenize(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    ds_cleanup(ds_free_p) char *text = NULL;
    Ds__DetokenizeRequest request = DS__DETOKENIZE_REQUEST__INIT;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    struct tokenize options = { .bos = false };
    struct dsctl_model model;
    const char *bad = NULL;
    Ds__ModelRef ref;
    size_t size = 0;
    int code;

    code = begin(dsctl, argc, argv, &options, "ids", &text, &size, &model);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    if (!dsctl_parse_ids(text, &ids, &tokens.n_ids, &bad))
        return dsctl_fail(dsctl, DSCTL_USAGE, "'%.20s' is no token id", bad);
    tokens.ids = ids;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.tokens = &tokens;
    request.no_special = options.no_special;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_DETOKENIZE, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        dsctl_json_text(object, "text", reply->detokenize->text.data, reply->detokenize->text.len);
        dsctl_json_print(object);
    } else {
        dsctl_print(dsctl, reply->detokenize->text.data, reply->detokenize->text.len);
        if (dsctl->out_terminal)
            putchar('\n');
    }
    return DSCTL_OK;
}

static const struct dsctl_option tokenize_options[] = {
    { "no-special", NULL, "text that looks like a special token is plain text", KEY_NO_SPECIAL },
    { "bos", NULL, "put the begin-of-sequence token first", KEY_BOS },
    { "pieces", NULL, "print what each token stands for", KEY_PIECES },
    { NULL, NULL, NULL, 0 },
};
static const struct dsctl_option detokenize_options[] = {
    { "no-special", NULL, "leave control tokens out", KEY_NO_SPECIAL },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_tokenize = { .name = "tokenize",
                                           .operands = "MODEL [TEXT...]",
                                           .summary = "the token ids of a text",
                                           .options = tokenize_options,
                                           .min_operands = 1,
                                           .max_operands = -1,
                                           .run = tokenize };
const struct dsctl_verb dsctl_detokenize = { .name = "detokenize",
                                             .operands = "MODEL [ID...]",
                                             .summary = "the text of token ids",
                                             .options = detokenize_options,
                                             .min_operands = 1,
                                             .max_operands = -1,
                                             .run = detokenize };
