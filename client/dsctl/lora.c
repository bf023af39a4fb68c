/* SPDX-License-Identifier: Apache-2.0 */
/* lora load, list, unload: the LoRA adapters of resident models; and --lora of other verbs. */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include <pwd.h>

#include "proto/base.h"

enum { KEY_NAME = 400 };

/* --- --lora NAME[=SCALE] --- */

int dsctl_lora_take(struct dsctl_lora *lora, const char *value)
{
    const char *equals = strrchr(value, '=');
    size_t length = strlen(value);

    if (equals && access(value, F_OK) != 0) { /* no file whose name has one */
        length = (size_t) (equals - value);
        if (dsctl_real("the scale of --lora", equals + 1, &lora->scale) != DSCTL_OK)
            return DSCTL_USAGE;
        lora->scale_said = true;
    }
    if (length == 0 || length >= sizeof lora->argument) {
        fprintf(stderr, "dsctl: --lora takes NAME or NAME=SCALE, not '%.40s'\n", value);
        return DSCTL_USAGE;
    }
    memcpy(lora->argument, value, length);
    lora->argument[length] = '\0';
    return DSCTL_OK;
}

int dsctl_lora_ref(struct dsctl *dsctl, struct dsctl_lora *lora, Ds__LoraRef *ret_ref)
{
    int code;

    ds__lora_ref__init(ret_ref);
    if (!lora->argument[0])
        return DSCTL_OK;
    code = dsctl_model_open(dsctl, lora->argument, &lora->files);
    if (lora->files.attachment)
        ret_ref->attachment = lora->files.attachment;
    else
        ret_ref->name = lora->files.name;
    if (lora->scale_said) {
        ret_ref->has_scale_case = DS__LORA_REF__HAS_SCALE_SCALE;
        ret_ref->scale = lora->scale;
    }
    return code;
}

/* --- the verb --- */

struct lora {
    const char *name; /* --name or "" */
};

static int take(void *target, int key, const char *value)
{
    struct lora *lora = target;

    (void) key;
    lora->name = value;
    return DSCTL_OK;
}

static cJSON *json_of(const Ds__LoraInfo *info)
{
    cJSON *object = cJSON_CreateObject();

    dsctl_json_text(object, "name", info->name, strlen(info->name));
    dsctl_json_text(object, "model", info->model, strlen(info->model));
    (void) cJSON_AddStringToObject(object, "state", info->state);
    dsctl_json_u64(object, "rank", info->rank);
    dsctl_json_u64(object, "matrices", info->n_matrices);
    dsctl_json_u64(object, "bytes", info->bytes);
    dsctl_json_u64(object, "file_bytes", info->file_bytes);
    dsctl_json_u64(object, "requests", info->requests);
    dsctl_json_u64(object, "uid", info->uid);
    (void) cJSON_AddBoolToObject(object, "shared", info->shared);
    return object;
}

static int load(struct dsctl *dsctl, const struct lora *options, const char *model_name,
                const char *argument)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__LoraLoadRequest request = DS__LORA_LOAD_REQUEST__INIT;
    struct dsctl_lora lora = { .scale_said = false };
    const Ds__LoraInfo *info;
    struct dsctl_model model;
    Ds__LoraRef lora_ref;
    Ds__ModelRef ref;
    char bytes[32];
    int code;

    if (strlen(argument) >= sizeof lora.argument)
        return dsctl_fail(dsctl, DSCTL_USAGE, "the adapter's name is too long");
    strcpy(lora.argument, argument);
    code = dsctl_model_open(dsctl, model_name, &model);
    if (code == DSCTL_OK)
        code = dsctl_lora_ref(dsctl, &lora, &lora_ref);
    if (code != DSCTL_OK)
        return code;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.lora = &lora_ref;
    request.name = (char *) options->name;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_LORA_LOAD, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    info = reply->lora_load->adapter;
    if (!info)
        return dsctl_fail(dsctl, DSCTL_ERROR, "dsd's answer is empty: see `dsctl status`");
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddStringToObject(object, "event", "loaded");
        (void) cJSON_AddItemToObject(object, "adapter", json_of(info));
        (void) cJSON_AddNumberToObject(object, "seconds", reply->lora_load->seconds);
        dsctl_json_print(object);
        return DSCTL_OK;
    }
    printf("%s on %s: rank %u, %u matrices, %s in %.2f s\n", info->name, info->model, info->rank,
           info->n_matrices, dsctl_bytes(bytes, info->bytes), reply->lora_load->seconds);
    return DSCTL_OK;
}

static int unload(struct dsctl *dsctl, const char *model_name, const char *name)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__LoraUnloadRequest request = DS__LORA_UNLOAD_REQUEST__INIT;
    struct dsctl_model model;
    Ds__ModelRef ref;
    int code;

    code = dsctl_model_open(dsctl, model_name, &model);
    if (code != DSCTL_OK)
        return code;
    dsctl_model_ref(&model, &ref);
    request.model = &ref;
    request.name = (char *) name;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_LORA_UNLOAD, &request, &reply);
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddStringToObject(object, "event", "unloaded");
        dsctl_json_text(object, "adapter", name, strlen(name));
        dsctl_json_print(object);
    } else {
        printf("%s: unloaded\n", name);
    }
    return DSCTL_OK;
}

static void print_list(const struct dsctl *dsctl, const Ds__LoraListResult *result)
{
    static const char *const titles[] = { "ADAPTER",  "MODEL",  "STATE",    "RANK",
                                          "MATRICES", "MEMORY", "REQUESTS", "OWNER" };
    struct dsctl_table *table;
    char text[32];

    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();
        cJSON *array = cJSON_AddArrayToObject(object, "adapters");

        for (size_t i = 0; i < result->n_adapters; i++)
            (void) cJSON_AddItemToArray(array, json_of(result->adapters[i]));
        dsctl_json_print(object);
        return;
    }
    table = dsctl_table_new(8, titles);
    for (size_t i = 0; i < result->n_adapters; i++) {
        const Ds__LoraInfo *info = result->adapters[i];
        const struct passwd *user = getpwuid(info->uid);

        dsctl_cell(table, false, "%s", info->name);
        dsctl_cell(table, false, "%s", info->model);
        dsctl_cell(table, false, "%s", info->state);
        dsctl_cell(table, true, "%u", info->rank);
        dsctl_cell(table, true, "%u", info->n_matrices);
        dsctl_cell(table, true, "%s", dsctl_bytes(text, info->bytes));
        dsctl_cell(table, true, "%u", info->requests);
        if (info->shared)
            dsctl_cell(table, false, "(shared)");
        else if (user)
            dsctl_cell(table, false, "%.30s", user->pw_name);
        else
            dsctl_cell(table, false, "%u", info->uid);
    }
    dsctl_table_print(table);
}

static int list(struct dsctl *dsctl, const char *model_name)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__LoraListRequest request = DS__LORA_LIST_REQUEST__INIT;
    struct dsctl_model model;
    Ds__ModelRef ref;
    int code;

    if (model_name) {
        code = dsctl_model_open(dsctl, model_name, &model);
        if (code != DSCTL_OK)
            return code;
        dsctl_model_ref(&model, &ref);
        request.model = &ref;
    }
    code = dsctl_ask(dsctl, DS__REQUEST__OP_LORA_LIST, &request, &reply);
    if (code == DSCTL_OK)
        print_list(dsctl, reply->lora_list);
    return code;
}

static int lora(struct dsctl *dsctl, int argc, char **argv)
{
    struct lora asked = { .name = "" };
    const char *const *operands;
    int code, first, n;
    bool loads, unloads, lists;

    code = dsctl_options(dsctl, argc, argv, take, &asked, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    operands = (const char *const *) argv + first + 1;
    n = argc - first - 1;
    loads = strcmp(argv[first], "load") == 0 && n == 2;
    unloads = strcmp(argv[first], "unload") == 0 && n == 2;
    lists = strcmp(argv[first], "list") == 0 && n <= 1;
    if ((!loads && !unloads && !lists) || (asked.name[0] && !loads))
        return dsctl_fail(dsctl, DSCTL_USAGE,
                          "lora takes load MODEL ADAPTER [--name NAME], unload MODEL NAME or list "
                          "[MODEL]: see `dsctl help lora`");
    code = dsctl_connect(dsctl, 0);
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code != DSCTL_OK)
        return code;
    if (loads)
        return load(dsctl, &asked, operands[0], operands[1]);
    return unloads ? unload(dsctl, operands[0], operands[1]) : list(dsctl, n ? operands[0] : NULL);
}

static const struct dsctl_option options[] = {
    { "name", "NAME", "load: what requests shall call it (default: as its file)", KEY_NAME },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_lora_verb = {
    .name = "lora",
    .operands = "load MODEL ADAPTER | unload MODEL NAME | list [MODEL]",
    .summary = "LoRA adapters of resident models: many at once, chosen by each request",
    .options = options,
    .min_operands = 1,
    .max_operands = 3,
    .run = lora,
};
