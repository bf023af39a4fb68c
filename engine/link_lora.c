/* SPDX-License-Identifier: Apache-2.0 */
/* Adapters of resident models: made on the loader thread, adopted and given up on the loop's. */
#include "engine/format/lora_file.h"
#include "engine/link_state.h"
#include "proto/base.h"
#include "proto/message.h"

struct ds_link_lora {
    struct ds_link_lora *next; /* ds_link_model::loras */
    uint32_t id;
    struct ds_adapter *adapter; /* one reference; jobs have their own */
};

struct ds_adapter *ds_link_lora_find(const struct ds_link_model *model, uint32_t id)
{
    const struct ds_link_lora *lora = model->loras;

    while (lora && lora->id != id)
        lora = lora->next;
    return lora ? lora->adapter : NULL;
}

int ds_link_lora_make(const struct ds_link_model *model, const struct ds_load_parts *parts,
                      struct ds_adapter **ret_adapter, struct ds_error *error)
{
    ds_cleanup(ds_lora_file_free_p) struct ds_lora_file *file = NULL;
    struct ds_adapter *adapter = NULL;
    int r;

    r = ds_lora_file_open(&file, parts->fds, (const char *const *) parts->file_names, parts->n_fds,
                          parts->message->name, error);
    if (r < 0)
        return r;
    r = ds_adapter_new(&adapter, ds_model_adapters(model->weights), model->checkpoint, file, error);
    if (r == 0 || r == -EBADMSG) { /* a file that was changed meanwhile is not a damaged one */
        int changed = ds_lora_file_intact(file, error);

        r = changed < 0 ? changed : r;
    }
    if (r < 0) {
        (void) ds_adapter_free(adapter);
        return r;
    }
    *ret_adapter = adapter;
    return 0;
}

int ds_link_lora_adopt(struct ds_link_model *model, uint32_t id, struct ds_adapter *adapter,
                       struct ds_error *error)
{
    struct ds_link_lora *lora;
    int r;

    r = ds_adapter_admit(adapter, error);
    if (r < 0)
        return r;
    lora = calloc(1, sizeof *lora);
    if (!lora)
        return ds_error_set(error, -ENOMEM, "no memory for another adapter");
    lora->id = id;
    lora->adapter = ds_adapter_ref(adapter);
    lora->next = model->loras;
    model->loras = lora;
    return 0;
}

void ds_link_loras_free(struct ds_link_model *model)
{
    while (model->loras) {
        struct ds_link_lora *lora = model->loras;

        model->loras = lora->next;
        (void) ds_adapter_free(lora->adapter);
        free(lora);
    }
}

int ds_link_lora_unload(struct ds_link *link, struct ds_link_request *request,
                        struct ds_link_model *model, uint32_t id)
{
    struct ds_link_lora **at = &model->loras, *lora;
    void *bytes = NULL;
    size_t size = 0;
    int r;

    while (*at && (*at)->id != id)
        at = &(*at)->next;
    lora = *at;
    if (!lora)
        return ds_link_send_error(link, request, DS_REPLY_REQUEST, -ENOENT,
                                  "the adapter is not resident in this engine");
    *at = lora->next;
    (void) ds_adapter_free(lora->adapter);
    free(lora);
    r = ds_reply_done(&bytes, &size);
    return r < 0 ? r : ds_link_send_final(link, request, bytes, size);
}

int ds_link_lora_send(struct ds_link *link, struct ds_link_request *request,
                      const struct ds_adapter *adapter, const char *name)
{
    Ds__LinkReply link_reply = DS__LINK_REPLY__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__Done done = DS__DONE__INIT;
    Ds__LoraInfo info = DS__LORA_INFO__INIT;
    void *bytes = NULL;
    size_t size = 0;
    int r;

    info.name = (char *) name;
    info.rank = ds_adapter_rank(adapter);
    info.n_matrices = ds_adapter_n_pairs(adapter);
    info.bytes = ds_adapter_bytes(adapter);
    reply.result_case = DS__REPLY__RESULT_DONE;
    reply.done = &done;
    link_reply.reply = &reply;
    link_reply.lora = &info;
    r = ds_message_pack_new(&link_reply, &bytes, &size);
    return r < 0 ? r : ds_link_send_final(link, request, bytes, size);
}
