/* SPDX-License-Identifier: Apache-2.0 */
/* load, unload, pin, unpin: what is resident. */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include "proto/base.h"

#include <ctype.h>

enum { KEY_PIN = 400, KEY_CONTEXT, KEY_KV_TYPE, KEY_FORCE };

struct load {
    bool pin, force;
    uint64_t context;
    Ds__KvType kv_type;
};

static int take_kv_type(const char *value, Ds__KvType *ret_type)
{
    const ProtobufCEnumValue *found;
    char name[16];
    int n = snprintf(name, sizeof name, "KV_%s", value);

    for (char *c = name; *c; c++)
        *c = (char) toupper((unsigned char) *c);
    found = protobuf_c_enum_descriptor_get_value_by_name(&ds__kv_type__descriptor, name);
    if (n < 0 || (size_t) n >= sizeof name || !found) {
        fprintf(stderr, "dsctl: --kv-type is auto, F32, F16, BF16, Q8_0 or Q4_0, not '%s'\n",
                value);
        return DSCTL_USAGE;
    }
    *ret_type = (Ds__KvType) found->value;
    return DSCTL_OK;
}

static int take(void *target, int key, const char *value)
{
    struct load *load = target;

    switch (key) {
    case KEY_PIN:
        load->pin = true;
        return DSCTL_OK;
    case KEY_FORCE:
        load->force = true;
        return DSCTL_OK;
    case KEY_KV_TYPE:
        return take_kv_type(value, &load->kv_type);
    default:
        return dsctl_number("--ctx", value, DSCTL_CTX_MIN, DSCTL_CTX_MAX, &load->context);
    }
}

/* Options, connection, model: what all four begin with. An exit code. */
static int begin(struct dsctl *dsctl, int argc, char **argv, struct load *load, Ds__ModelRef *ref,
                 struct dsctl_model *model, const char **ret_name)
{
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, load, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    *ret_name = argv[first];
    code = dsctl_connect(dsctl, 0);
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, argv[first], model);
    if (code == DSCTL_OK)
        dsctl_model_ref(model, ref);
    return code;
}

static void print_loaded(const struct dsctl *dsctl, const Ds__LoadResult *result, const char *name)
{
    const Ds__ModelInfo *model = result->model;
    char memory[32], cache[32];

    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddStringToObject(object, "event", "loaded");
        if (model)
            (void) cJSON_AddItemToObject(object, "model", dsctl_json_model(model));
        (void) cJSON_AddNumberToObject(object, "seconds", result->seconds);
        dsctl_json_print(object);
    } else if (model) {
        printf("%s: %s %s, context %u; on %s in %.2f s: weights %s, cache up to %s %s\n",
               model->name, model->architecture, model->type, model->context, model->device,
               result->seconds, dsctl_bytes(memory, model->weight_bytes),
               dsctl_bytes(cache, model->kv_bytes), dsctl_kv_type(model->kv_type));
    } else {
        printf("%s: loaded in %.2f s\n", name, result->seconds);
    }
}

static int load(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__LoadRequest request = DS__LOAD_REQUEST__INIT;
    struct load options = { .pin = false };
    struct dsctl_model model;
    const char *name;
    Ds__ModelRef ref;
    int code;

    code = begin(dsctl, argc, argv, &options, &ref, &model, &name);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    request.model = &ref;
    request.pin = options.pin;
    request.context = (uint32_t) options.context;
    request.kv_type = options.kv_type;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_LOAD, &request, &reply);
    if (code == DSCTL_OK)
        print_loaded(dsctl, reply->load, name);
    return code;
}

static int done(struct dsctl *dsctl, int code, const char *name, const char *state)
{
    if (code != DSCTL_OK)
        return code;
    if (dsctl->json) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddStringToObject(object, "event", state);
        dsctl_json_text(object, "model", name, strlen(name));
        dsctl_json_print(object);
    } else {
        printf("%s: %s\n", name, state);
    }
    return DSCTL_OK;
}

static int unload(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__UnloadRequest request = DS__UNLOAD_REQUEST__INIT;
    struct load options = { .force = false };
    struct dsctl_model model;
    const char *name;
    Ds__ModelRef ref;
    int code;

    code = begin(dsctl, argc, argv, &options, &ref, &model, &name);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    request.model = &ref;
    request.force = options.force;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_UNLOAD, &request, &reply);
    return done(dsctl, code, name, "unloaded");
}

static int set_pinned(struct dsctl *dsctl, int argc, char **argv, bool pinned)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__PinRequest request = DS__PIN_REQUEST__INIT;
    struct load options = { .pin = pinned };
    struct dsctl_model model;
    const char *name;
    Ds__ModelRef ref;
    int code;

    code = begin(dsctl, argc, argv, &options, &ref, &model, &name);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    request.model = &ref;
    request.pinned = pinned;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_PIN, &request, &reply);
    return done(dsctl, code, name, pinned ? "pinned" : "unpinned");
}

static int pin(struct dsctl *dsctl, int argc, char **argv)
{
    return set_pinned(dsctl, argc, argv, true);
}

static int unpin(struct dsctl *dsctl, int argc, char **argv)
{
    return set_pinned(dsctl, argc, argv, false);
}

static const struct dsctl_option load_options[] = {
    { "pin", NULL, "never evict it for another model", KEY_PIN },
    { "ctx", "N", "positions a request may use (default: the model's own)", KEY_CONTEXT },
    { "context", "N", "the same", KEY_CONTEXT },
    { "kv-type", "TYPE", "how keys and values are kept: F32, F16, BF16, Q8_0, Q4_0", KEY_KV_TYPE },
    { NULL, NULL, NULL, 0 },
};
static const struct dsctl_option unload_options[] = {
    { "force", NULL, "cancel what runs on it", KEY_FORCE },
    { NULL, NULL, NULL, 0 },
};

#define VERB(verb, table, words)                                                                   \
    const struct dsctl_verb dsctl_##verb = { .name = #verb,                                        \
                                             .operands = "MODEL",                                  \
                                             .summary = words,                                     \
                                             .options = table,                                     \
                                             .min_operands = 1,                                    \
                                             .max_operands = 1,                                    \
                                             .run = verb }

VERB(load, load_options, "make a model resident before it is asked for");
VERB(unload, unload_options, "free what a resident model takes");
VERB(pin, NULL, "never evict a resident model for another one");
VERB(unpin, NULL, "let a model be evicted again");
