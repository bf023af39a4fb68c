/* SPDX-License-Identifier: Apache-2.0 */
/* ps, list, show: which models there are, and what is in them. */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include <pwd.h>

#include "proto/base.h"

enum { KEY_TENSORS = 400 };

static int take_nothing(void *target, int key, const char *value)
{
    (void) target, (void) key, (void) value;
    return DSCTL_USAGE;
}

static int begin(struct dsctl *dsctl, int argc, char **argv, dsctl_take take, void *target,
                 int *ret_first)
{
    int code = dsctl_options(dsctl, argc, argv, take, target, ret_first);

    if (code != DSCTL_OK || dsctl->help)
        return code;
    return dsctl_connect(dsctl, 0);
}

static void print_json(size_t n, Ds__ModelInfo *const *models)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *array = cJSON_AddArrayToObject(object, "models");

    for (size_t i = 0; i < n; i++)
        (void) cJSON_AddItemToArray(array, dsctl_json_model(models[i]));
    dsctl_json_print(object);
}

static const char *dash(const char *text)
{
    return text[0] ? text : "-";
}

static void cell_users(struct dsctl_table *table, const Ds__ModelInfo *model)
{
    char names[256] = "";
    size_t n = 0;

    for (size_t i = 0; i < model->n_users && n + 40 < sizeof names; i++) {
        const struct passwd *user = getpwuid(model->users[i]);

        if (user)
            n += (size_t) snprintf(names + n, 40, "%s%.30s", i ? "," : "", user->pw_name);
        else
            n += (size_t) snprintf(names + n, 40, "%s%u", i ? "," : "", model->users[i]);
    }
    dsctl_cell(table, false, "%s", dash(names));
}

static int ps(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__PsRequest request = DS__PS_REQUEST__INIT;
    const char *const titles[] = { "MODEL",   "STATE",  "DEVICE",   "WEIGHTS", "CACHE", "KV",
                                   "CONTEXT", "PINNED", "REQUESTS", "USERS",   "IDLE" };
    struct dsctl_table *table;
    char text[32];
    int code, first;

    code = begin(dsctl, argc, argv, take_nothing, NULL, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_PS, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json) {
        print_json(reply->ps->n_models, reply->ps->models);
        return DSCTL_OK;
    }
    table = dsctl_table_new(11, titles);
    for (size_t i = 0; i < reply->ps->n_models; i++) {
        const Ds__ModelInfo *model = reply->ps->models[i];

        dsctl_cell(table, false, "%s", model->name);
        dsctl_cell(table, false, "%s", dash(model->state));
        dsctl_cell(table, false, "%s", dash(model->device));
        dsctl_cell(table, true, "%s", dsctl_bytes(text, model->weight_bytes));
        dsctl_cell(table, true, "%s", dsctl_bytes(text, model->kv_bytes));
        dsctl_cell(table, false, "%s", dsctl_kv_type(model->kv_type));
        dsctl_cell(table, true, "%u", model->context);
        dsctl_cell(table, false, "%s", model->pinned ? "yes" : "no");
        dsctl_cell(table, true, "%u", model->requests);
        cell_users(table, model);
        dsctl_cell(table, true, "%s",
                   model->requests ? "-" : dsctl_duration(text, model->idle_sec));
    }
    dsctl_table_print(table);
    return DSCTL_OK;
}

static int list(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__ListRequest request = DS__LIST_REQUEST__INIT;
    const char *const titles[] = { "MODEL", "SIZE", "FILES", "STATE" };
    struct dsctl_table *table;
    char text[32];
    int code, first;

    code = begin(dsctl, argc, argv, take_nothing, NULL, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_LIST, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json) {
        print_json(reply->list->n_models, reply->list->models);
        return DSCTL_OK;
    }
    table = dsctl_table_new(4, titles);
    for (size_t i = 0; i < reply->list->n_models; i++) {
        const Ds__ModelInfo *model = reply->list->models[i];

        dsctl_cell(table, false, "%s", model->name);
        dsctl_cell(table, true, "%s", dsctl_bytes(text, model->file_bytes));
        dsctl_cell(table, true, "%u", model->n_files);
        dsctl_cell(table, false, "%s", dash(model->state));
    }
    dsctl_table_print(table);
    return DSCTL_OK;
}

/* --- show --------------------------------------------------------------------------------------
 */

static int take_tensors(void *target, int key, const char *value)
{
    (void) key, (void) value;
    *(bool *) target = true;
    return DSCTL_OK;
}

static void shape_text(char *buffer, size_t size, const Ds__TensorInfo *tensor)
{
    size_t n = 0;

    buffer[0] = '\0';
    for (size_t i = 0; i < tensor->n_shape && n + 24 < size; i++)
        n += (size_t) snprintf(buffer + n, size - n, "%s%llu", i ? "x" : "",
                               (unsigned long long) tensor->shape[i]);
}

static void show_json(const Ds__ShowResult *result, bool tensors)
{
    cJSON *object = result->model ? dsctl_json_model(result->model) : cJSON_CreateObject();
    cJSON *part = cJSON_AddObjectToObject(object, "metadata");

    for (size_t i = 0; i < result->n_metadata; i++)
        dsctl_json_text(part, result->metadata[i]->key, result->metadata[i]->value,
                        strlen(result->metadata[i]->value));
    dsctl_json_text(object, "chat_template", result->chat_template.data, result->chat_template.len);
    part = tensors ? cJSON_AddArrayToObject(object, "tensors") : NULL;
    for (size_t i = 0; tensors && i < result->n_tensors; i++) {
        const Ds__TensorInfo *tensor = result->tensors[i];
        cJSON *one = cJSON_CreateObject();
        cJSON *shape = cJSON_AddArrayToObject(one, "shape");

        dsctl_json_text(one, "name", tensor->name, strlen(tensor->name));
        (void) cJSON_AddStringToObject(one, "type", tensor->type);
        for (size_t j = 0; j < tensor->n_shape; j++)
            (void) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double) tensor->shape[j]));
        dsctl_json_u64(one, "bytes", tensor->bytes);
        (void) cJSON_AddItemToArray(part, one);
    }
    dsctl_json_print(object);
}

static void show_text(const Ds__ShowResult *result, bool tensors)
{
    const char *const titles[] = { "TENSOR", "TYPE", "SHAPE", "SIZE" };
    const Ds__ModelInfo *model = result->model;
    struct dsctl_table *table;
    char text[128];

    if (model) {
        printf("name          %s\n", model->name);
        printf("architecture  %s\n", dash(model->architecture));
        printf("type          %s\n", dash(model->type));
        printf("parameters    %.1f M\n", (double) model->n_parameters / 1e6);
        printf("context       %u\n", model->context);
        printf("file          %s", dsctl_bytes(text, model->file_bytes));
        printf(model->n_files == 1 ? " in %u file\n" : " in %u files\n", model->n_files);
        printf("template      %s\n\n", result->chat_template.len ? "yes" : "no");
    }
    for (size_t i = 0; i < result->n_metadata; i++) {
        const Ds__KeyValue *pair = result->metadata[i];

        dsctl_print_harmless(stdout, pair->key, strlen(pair->key));
        printf(" = ");
        dsctl_print_harmless(stdout, pair->value, strlen(pair->value));
        putchar('\n');
    }
    if (!tensors)
        return;
    putchar('\n');
    table = dsctl_table_new(4, titles);
    for (size_t i = 0; i < result->n_tensors; i++) {
        dsctl_cell(table, false, "%s", result->tensors[i]->name);
        dsctl_cell(table, false, "%s", result->tensors[i]->type);
        shape_text(text, sizeof text, result->tensors[i]);
        dsctl_cell(table, false, "%s", text);
        dsctl_cell(table, true, "%s", dsctl_bytes(text, result->tensors[i]->bytes));
    }
    dsctl_table_print(table);
}

static int show(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__ShowRequest request = DS__SHOW_REQUEST__INIT;
    struct dsctl_model model;
    bool tensors = false;
    Ds__ModelRef ref;
    int code, first;

    code = begin(dsctl, argc, argv, take_tensors, &tensors, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_model_open(dsctl, argv[first], &model);
    if (code != DSCTL_OK)
        return code;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.tensors = tensors;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_SHOW, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json)
        show_json(reply->show, tensors);
    else
        show_text(reply->show, tensors);
    return DSCTL_OK;
}

static const struct dsctl_option show_options[] = {
    { "tensors", NULL, "the table of tensors too", KEY_TENSORS },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_ps = { .name = "ps",
                                     .operands = "",
                                     .summary = "resident models: memory, device, users, idle time",
                                     .run = ps };
const struct dsctl_verb dsctl_list = {
    .name = "list", .operands = "", .summary = "the models in dsd's models directory", .run = list
};
const struct dsctl_verb dsctl_show = { .name = "show",
                                       .operands = "MODEL",
                                       .summary = "what a model's file says about it",
                                       .options = show_options,
                                       .min_operands = 1,
                                       .max_operands = 1,
                                       .run = show };
