/* SPDX-License-Identifier: Apache-2.0 */
/* status, requests, cancel: the daemon and what it has in flight. */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include "proto/base.h"

enum { KEY_ALL = 400 };

static int take(void *target, int key, const char *value)
{
    (void) key, (void) value;
    if (!target)
        return DSCTL_USAGE;
    *(bool *) target = true;
    return DSCTL_OK;
}

static void status_json(const Ds__StatusInfo *status)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *engines;

    (void) cJSON_AddStringToObject(object, "version", status->version);
    (void) cJSON_AddNumberToObject(object, "uptime_sec", status->uptime_sec);
    dsctl_json_u64(object, "clients", status->clients);
    dsctl_json_u64(object, "requests", status->requests);
    dsctl_json_u64(object, "requests_done", status->requests_done);
    dsctl_json_u64(object, "tokens", status->tokens);
    (void) cJSON_AddStringToObject(object, "loop", status->loop);
    dsctl_json_text(object, "socket", status->socket, strlen(status->socket));
    dsctl_json_text(object, "models_directory", status->models_directory,
                    strlen(status->models_directory));
    (void) cJSON_AddBoolToObject(object, "draining", status->draining);
    engines = cJSON_AddArrayToObject(object, "engines");
    for (size_t i = 0; i < status->n_engines; i++) {
        const Ds__EngineInfo *engine = status->engines[i];
        cJSON *one = cJSON_CreateObject();

        dsctl_json_u64(one, "pid", engine->pid);
        (void) cJSON_AddStringToObject(one, "device", engine->device);
        (void) cJSON_AddStringToObject(one, "state", engine->state);
        dsctl_json_u64(one, "restarts", engine->restarts);
        dsctl_json_text(one, "description", engine->description, strlen(engine->description));
        (void) cJSON_AddItemToArray(engines, one);
    }
    dsctl_json_print(object);
}

static void status_text(const Ds__StatusInfo *status)
{
    char text[32];

    printf("dsd       %s, up %s%s\n", status->version, dsctl_duration(text, status->uptime_sec),
           status->draining ? ", being stopped" : "");
    printf("socket    %s\n", status->socket);
    printf("models    %s\n", status->models_directory);
    printf("loop      %s\n", status->loop);
    printf("clients   %u\n", status->clients);
    printf("requests  %u in flight, %llu done, %llu tokens\n", status->requests,
           (unsigned long long) status->requests_done, (unsigned long long) status->tokens);
    for (size_t i = 0; i < status->n_engines; i++)
        printf("engine    %s, pid %u, %s, restarted %u times, %s\n", status->engines[i]->device,
               status->engines[i]->pid, status->engines[i]->state, status->engines[i]->restarts,
               status->engines[i]->description);
}

static int status(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__StatusRequest request = DS__STATUS_REQUEST__INIT;
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, NULL, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_connect(dsctl, 0);
    if (code == DSCTL_OK)
        code = dsctl_ask(dsctl, DS__REQUEST__OP_STATUS, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json)
        status_json(reply->status);
    else
        status_text(reply->status);
    return DSCTL_OK;
}

static void requests_json(const Ds__RequestsResult *result)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *array = cJSON_AddArrayToObject(object, "requests");

    for (size_t i = 0; i < result->n_requests; i++) {
        const Ds__RequestInfo *info = result->requests[i];
        cJSON *one = cJSON_CreateObject();

        dsctl_json_u64(one, "id", info->id);
        dsctl_json_u64(one, "uid", info->uid);
        dsctl_json_u64(one, "pid", info->pid);
        dsctl_json_text(one, "program", info->program, strlen(info->program));
        dsctl_json_text(one, "model", info->model, strlen(info->model));
        (void) cJSON_AddStringToObject(one, "state", info->state);
        dsctl_json_u64(one, "prompt_tokens", info->prompt_tokens);
        dsctl_json_u64(one, "completion_tokens", info->completion_tokens);
        (void) cJSON_AddNumberToObject(one, "age_sec", info->age_sec);
        (void) cJSON_AddItemToArray(array, one);
    }
    dsctl_json_print(object);
}

static void requests_table(const Ds__RequestsResult *result)
{
    const char *const titles[] = { "ID",    "UID",    "PID", "PROGRAM", "MODEL",
                                   "STATE", "PROMPT", "NEW", "AGE" };
    struct dsctl_table *table = dsctl_table_new(9, titles);
    char text[32];

    for (size_t i = 0; i < result->n_requests; i++) {
        const Ds__RequestInfo *info = result->requests[i];

        dsctl_cell(table, true, "%llu", (unsigned long long) info->id);
        dsctl_cell(table, true, "%u", info->uid);
        dsctl_cell(table, true, "%u", info->pid);
        dsctl_cell(table, false, "%s", info->program);
        dsctl_cell(table, false, "%s", info->model);
        dsctl_cell(table, false, "%s", info->state);
        dsctl_cell(table, true, "%u", info->prompt_tokens);
        dsctl_cell(table, true, "%u", info->completion_tokens);
        dsctl_cell(table, true, "%s", dsctl_duration(text, info->age_sec));
    }
    dsctl_table_print(table);
}

static int requests(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__RequestsRequest request = DS__REQUESTS_REQUEST__INIT;
    bool all = false;
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, &all, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    request.all_users = all;
    code = dsctl_connect(dsctl, 0);
    if (code == DSCTL_OK)
        code = dsctl_ask(dsctl, DS__REQUEST__OP_REQUESTS, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json)
        requests_json(reply->requests);
    else
        requests_table(reply->requests);
    return DSCTL_OK;
}

static int cancel(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__CancelRequest request = DS__CANCEL_REQUEST__INIT;
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, NULL, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_number("ID", argv[first], 0, UINT64_MAX, &request.id);
    if (code == DSCTL_OK)
        code = dsctl_connect(dsctl, 0);
    if (code == DSCTL_OK)
        code = dsctl_ask(dsctl, DS__REQUEST__OP_CANCEL, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (!reply->cancel->found)
        return dsctl_fail(dsctl, DSCTL_ERROR,
                          "request %s is not in flight, or not yours: see `dsctl requests`",
                          argv[first]);
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddStringToObject(object, "event", "cancelled");
        dsctl_json_u64(object, "id", request.id);
        dsctl_json_print(object);
    }
    return DSCTL_OK;
}

static const struct dsctl_option requests_options[] = {
    { "all", NULL, "of all users (root only)", KEY_ALL },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_status = {
    .name = "status", .operands = "", .summary = "the daemon and its engines", .run = status
};
const struct dsctl_verb dsctl_requests = { .name = "requests",
                                           .operands = "",
                                           .summary = "what is in flight",
                                           .options = requests_options,
                                           .run = requests };
const struct dsctl_verb dsctl_cancel = { .name = "cancel",
                                         .operands = "ID",
                                         .summary = "end a request that `dsctl requests` shows",
                                         .min_operands = 1,
                                         .max_operands = 1,
                                         .run = cancel };
