/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/json.h"
#include "client/dsctl/messages.h"

#include "proto/base.h"

enum { KEY_MESSAGES = 400, KEY_NO_GENERATION_PROMPT };

struct options {
    const char *path;
    bool no_generation_prompt;
};

static int take(void *target, int key, const char *value)
{
    struct options *options = target;

    if (key == KEY_MESSAGES)
        options->path = value;
    else
        options->no_generation_prompt = true;
    return DSCTL_OK;
}

static int ask(struct dsctl *dsctl, const char *name, Ds__ChatMessages *chat, size_t size)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__TemplateRequest request = DS__TEMPLATE_REQUEST__INIT;
    struct dsctl_model model;
    Ds__ModelRef ref;
    int code;

    code = dsctl_connect(dsctl, size);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, name, &model);
    if (code != DSCTL_OK)
        return code;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.chat = chat;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_TEMPLATE, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        dsctl_json_text(object, "text", reply->template_->text.data, reply->template_->text.len);
        dsctl_json_print(object);
    } else {
        dsctl_print(dsctl, reply->template_->text.data, reply->template_->text.len);
    }
    return DSCTL_OK;
}

static int template(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(dsctl_messages_deinit) struct dsctl_messages messages = { .n_printed = 0 };
    ds_cleanup(ds_free_p) char *text = NULL;
    struct options options = { .path = "-" };
    struct ds_error error = { .text = "out of memory" };
    size_t size = 0;
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, &options, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_read_file(dsctl, options.path, &text, &size);
    if (code != DSCTL_OK)
        return code;
    if (dsctl_messages_parse(&messages, text, &error) < 0)
        return dsctl_fail(dsctl, DSCTL_ERROR, "%s cannot be used: %s",
                          strcmp(options.path, "-") ? options.path : "the standard input",
                          error.text);
    messages.chat.no_generation_prompt |= options.no_generation_prompt;
    return ask(dsctl, argv[first], &messages.chat, size);
}

static const struct dsctl_option options_table[] = {
    { "messages", "FILE.json", "the chat: an array of {\"role\", \"content\"} (default: stdin)",
      KEY_MESSAGES },
    { "no-generation-prompt", NULL, "do not end with the assistant's opening",
      KEY_NO_GENERATION_PROMPT },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_template = {
    .name = "template",
    .operands = "MODEL",
    .summary = "the prompt that the model's chat template makes of messages",
    .options = options_table,
    .min_operands = 1,
    .max_operands = 1,
    .run = template,
};
