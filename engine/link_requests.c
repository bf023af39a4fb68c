/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_requests.h"

#include "proto/base.h"

static struct ds_link_request **bucket_of(struct ds_requests *requests, uint64_t id)
{
    /* ids count up from one: any bits would do; multiplied, so that a stride does no harm */
    return &requests->buckets[(id * UINT64_C(0x9e3779b97f4a7c15) >> 40) & (DS_REQUEST_BUCKETS - 1)];
}

void ds_requests_deinit(struct ds_requests *requests)
{
    for (unsigned i = 0; i < DS_REQUEST_BUCKETS; i++)
        while (requests->buckets[i])
            ds_requests_remove(requests, requests->buckets[i]);
}

int ds_requests_add(struct ds_requests *requests, uint64_t id, enum ds_request_kind kind,
                    struct ds_link_model *model, struct ds_link_request **ret_request)
{
    struct ds_link_request **bucket = bucket_of(requests, id);
    struct ds_link_request *request;

    if (ds_requests_find(requests, id))
        return -EEXIST;
    request = calloc(1, sizeof *request);
    if (!request)
        return -ENOMEM;
    request->id = id;
    request->kind = kind;
    request->model = model;
    request->next = *bucket;
    *bucket = request;
    requests->n++;
    *ret_request = request;
    return 0;
}

struct ds_link_request *ds_requests_find(struct ds_requests *requests, uint64_t id)
{
    struct ds_link_request *request = *bucket_of(requests, id);

    while (request && request->id != id)
        request = request->next;
    return request;
}

void ds_requests_remove(struct ds_requests *requests, struct ds_link_request *request)
{
    struct ds_link_request **at = bucket_of(requests, request->id);

    while (*at != request)
        at = &(*at)->next;
    *at = request->next;
    requests->n--;
    free(request);
}

unsigned ds_requests_drop_model(struct ds_requests *requests, const struct ds_link_model *model,
                                const struct ds_link_request *keep)
{
    unsigned n_marked = 0;

    for (unsigned i = 0; i < DS_REQUEST_BUCKETS; i++) {
        struct ds_link_request *next;

        for (struct ds_link_request *request = requests->buckets[i]; request; request = next) {
            next = request->next;
            if (request->model != model || request == keep)
                continue;
            if (request->scheduled) {
                ds_requests_remove(requests, request);
            } else {
                request->dropped = true;
                n_marked++;
            }
        }
    }
    return n_marked;
}
