/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#define SLOT_BITS 16u
#define SLOT_MAX  (1u << SLOT_BITS)

struct ds_client_request *ds_client_find(const struct ds *ds, uint64_t id)
{
    uint32_t slot = (uint32_t) id & (SLOT_MAX - 1);

    if (slot >= ds->n_slots || !ds->slots[slot] || ds->slots[slot]->id != id)
        return NULL;
    return ds->slots[slot];
}

static int grow_slots(struct ds *ds)
{
    uint32_t n = ds->n_slots ? ds->n_slots * 2 : 64;
    struct ds_client_request **slots;

    if (n > SLOT_MAX)
        return -EAGAIN;
    slots = realloc(ds->slots, n * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    memset(slots + ds->n_slots, 0, (n - ds->n_slots) * sizeof *slots);
    ds->slots = slots;
    ds->n_slots = n;
    return 0;
}

static int find_slot(struct ds *ds, uint32_t *ret_slot)
{
    int r;

    if (ds->n_requests == ds->n_slots) {
        r = grow_slots(ds);
        if (r < 0)
            return r;
    }
    for (uint32_t i = 0;; i++) {
        uint32_t slot = (uint32_t) (ds->next_serial + i) & (ds->n_slots - 1);

        if (!ds->slots[slot]) {
            *ret_slot = slot;
            return 0;
        }
    }
}

static void request_deinit(struct ds_client_request *request)
{
    ds_client_buffer_deinit(&request->packed);
    ds_client_buffer_deinit(&request->ids);
    ds_client_buffer_deinit(&request->part);
    free(request->end_text);
}

static void request_free_p(struct ds_client_request **request)
{
    if (*request)
        request_deinit(*request);
    free(*request);
}

void ds_client_request_free(struct ds *ds, struct ds_client_request *request)
{
    ds->slots[request->id & (SLOT_MAX - 1)] = NULL;
    *(request->previous ? &request->previous->next : &ds->first) = request->next;
    *(request->next ? &request->next->previous : &ds->last) = request->previous;
    ds->n_requests--;
    if (request->state == DS_CLIENT_ENDED)
        ds->n_ended--;
    if (request->state == DS_CLIENT_SENT)
        ds->n_sent--;
    request_deinit(request);
    free(ds->spare);
    ds->spare = request;
    memset(request, 0, sizeof *request);
}

void ds_client_requests_deinit(struct ds *ds)
{
    while (ds->first)
        ds_client_request_free(ds, ds->first);
    free(ds->spare);
    free(ds->slots);
}

void ds_client_request_end(struct ds *ds, struct ds_client_request *request, uint32_t code,
                           const char *text)
{
    if (request->state == DS_CLIENT_ENDED)
        return;
    if (request->state == DS_CLIENT_SENT)
        ds->n_sent--;
    request->state = DS_CLIENT_ENDED;
    request->end_code = code;
    request->end_text = text ? strdup(text) : NULL;
    ds->n_ended++;
    ds_client_kick(ds);
}

void ds_client_ring(struct ds *ds)
{
    if (ds_channel_bell_due(ds->channel))
        ds_channel_ring_bell(ds->channel);
}

/* --- putting it on the ring ---------------------------------------------------------------- */

/* DS_CHANNEL_OK, DS_CHANNEL_FULL, -EMSGSIZE (this request alone is at fault), other errno (lost).
 */
static int put(struct ds *ds, struct ds_client_request *request)
{
    ds_cleanup(ds_free_p) void *fresh = NULL;
    struct ds_sqe entry = { .op = DS_SQE_PING, .req_id = request->id };
    const void *bytes = NULL;
    void *payload;
    size_t size = 0;
    int r;

    if (request->kind != DS_CLIENT_PING) {
        entry.op = DS_SQE_SUBMIT;
        entry.deadline_ns = request->deadline_nsec;
        entry.resume_from = (uint32_t) (request->ids.size / sizeof(uint32_t));
        memcpy(entry.idem_key, request->key, sizeof entry.idem_key);
        r = ds_client_repack(request, &bytes, &size, &fresh);
        if (r < 0)
            return r;
        r = ds_channel_reserve(ds->channel, size, &payload);
        if (r != DS_CHANNEL_OK)
            return r;
        memcpy(payload, bytes, size);
    }
    r = ds_channel_submit(ds->channel, &entry, size);
    if (r == DS_CHANNEL_OK) {
        request->state = DS_CLIENT_SENT;
        ds->n_sent++;
    }
    return r;
}

static int put_cancel(struct ds *ds, struct ds_client_request *request)
{
    const struct ds_sqe entry = { .op = DS_SQE_CANCEL, .req_id = request->id };
    int r = ds_channel_submit(ds->channel, &entry, 0);

    if (r == DS_CHANNEL_OK)
        request->cancel_sent = true;
    return r;
}

static int flush_one(struct ds *ds, struct ds_client_request *request)
{
    int r = DS_CHANNEL_OK;

    if (request->state == DS_CLIENT_WAITING && request->held_life != ds->life) {
        if (ds->n_sent >= ds_channel_layout(ds->channel)->max_inflight)
            return DS_CHANNEL_FULL;
        r = put(ds, request);
    }
    if (r == DS_CHANNEL_OK && request->state == DS_CLIENT_SENT && request->cancel_wanted &&
        !request->cancel_sent)
        r = put_cancel(ds, request);
    if (r == -EMSGSIZE) {
        ds_client_request_end(ds, request, DS__ERROR__CODE__INVALID,
                              "the request does not fit dsd's arena for this connection: ask for "
                              "a larger one with arena_bytes");
        return DS_CHANNEL_OK;
    }
    return r;
}

int ds_client_flush(struct ds *ds)
{
    bool full = false;
    int r;

    if (!ds->flush_due || ds->state != DS_CLIENT_UP)
        return 0;
    for (struct ds_client_request *request = ds->first; request && !full; request = request->next) {
        r = flush_one(ds, request);
        if (r < 0)
            return r;
        full = r == DS_CHANNEL_FULL;
    }
    ds->flush_due = full;
    ds_client_ring(ds);
    return 0;
}

/* Only this request has something new to say, unless others wait already. */
static void flush_now(struct ds *ds, struct ds_client_request *request)
{
    int r;

    if (ds->flush_due || ds->state != DS_CLIENT_UP) {
        ds->flush_due = true;
        r = ds_client_flush(ds);
    } else {
        r = flush_one(ds, request);
        ds->flush_due = r == DS_CHANNEL_FULL;
        ds_client_ring(ds);
    }
    if (r < 0)
        ds_client_lose(ds, "it broke the protocol");
    if (ds->flush_due)
        ds_client_kick(ds);
}

/* --- the calls ------------------------------------------------------------------------------- */

/* A daemon given up for lost is looked for again when there is new work for it. */
static void start_over(struct ds *ds)
{
    if (!ds->given_up)
        return;
    ds->given_up = false;
    ds->attempts = 0;
    ds->lost_nsec = ds->retry_nsec = ds_now_nsec();
}

static int check_room(struct ds *ds, size_t size)
{
    const struct ds_c_header *layout;

    if (ds->n_requests >= SLOT_MAX / 2)
        return ds_error_set(&ds->error, -EAGAIN, "%u requests are unfinished on this connection",
                            ds->n_requests);
    if (ds->state != DS_CLIENT_UP)
        return 0;
    layout = ds_channel_layout(ds->channel);
    if (size > layout->max_payload)
        return ds_error_set(&ds->error, -EMSGSIZE,
                            "a request of %zu bytes is larger than this connection's %u: %s", size,
                            layout->max_payload,
                            layout->max_payload < ds->arena_bytes
                                ? "shorten it, or raise arena_bytes_max in dsd.conf"
                                : "shorten it, or ask for a larger arena_bytes");
    if (ds->n_requests >= layout->max_inflight)
        return ds_error_set(&ds->error, -EAGAIN,
                            "%u requests are unfinished, as many as dsd grants one connection: "
                            "take events first",
                            ds->n_requests);
    return 0;
}

/* request becomes the connection's, except when this fails. */
static int enqueue(struct ds *ds, struct ds_client_request *request, uint64_t *ret_id)
{
    uint32_t slot = 0;
    int r;

    r = check_room(ds, request->packed.size);
    if (r < 0)
        return r;
    if (request->kind != DS_CLIENT_PING)
        r = ds_client_random(request->key, sizeof request->key);
    if (r == 0)
        r = find_slot(ds, &slot);
    if (r < 0)
        return ds_error_set(&ds->error, r, "no room for a request: %s", strerror(-r));
    start_over(ds);
    request->id = ds->next_serial++ << SLOT_BITS | slot;
    request->state = DS_CLIENT_WAITING;
    request->previous = ds->last;
    *(ds->last ? &ds->last->next : &ds->first) = request;
    ds->last = request;
    ds->slots[slot] = request;
    if (ds->n_requests++ == 0)
        ds->heard = true; /* silence counts from now on */
    *ret_id = request->id;
    flush_now(ds, request);
    if (ds->n_requests == 1)
        ds_client_kick(ds); /* so that ds_next() sets the timer that watches over silence */
    return 0;
}

static int request_new(struct ds *ds, enum ds_client_kind kind, struct ds_client_request **ret)
{
    struct ds_client_request *request = ds_steal(ds->spare);

    if (!request)
        request = calloc(1, sizeof *request);
    if (!request)
        return ds_error_set(&ds->error, -ENOMEM, "out of memory");
    request->kind = kind;
    *ret = request;
    return 0;
}

int ds_submit(struct ds *ds, const struct ds_request *asked, uint64_t *ret_id)
{
    ds_cleanup(request_free_p) struct ds_client_request *request = NULL;
    struct ds_request copy = { .struct_size = sizeof copy };
    int r;

    if (asked->struct_size < offsetof(struct ds_request, max_tokens))
        return ds_error_set(&ds->error, -EINVAL, "ds_submit: struct_size is not set");
    memcpy(&copy, asked, asked->struct_size < sizeof copy ? asked->struct_size : sizeof copy);
    r = request_new(ds, DS_CLIENT_GENERATE, &request);
    if (r < 0)
        return r;
    request->deadline_nsec = copy.deadline_nsec;
    r = ds_client_pack(ds, &copy, &request->packed);
    if (r < 0)
        return r;
    r = enqueue(ds, request, ret_id);
    if (r == 0)
        (void) ds_steal(request);
    return r;
}

int ds_send(struct ds *ds, const void *bytes, size_t size, uint64_t *ret_id)
{
    ds_cleanup(request_free_p) struct ds_client_request *request = NULL;
    int r;

    if (size > DS_PAYLOAD_BYTES_MAX)
        return ds_error_set(&ds->error, -EMSGSIZE,
                            "a request of %zu bytes is larger than dsd takes (%u)", size,
                            DS_PAYLOAD_BYTES_MAX);
    r = request_new(ds, DS_CLIENT_CONTROL, &request);
    if (r < 0)
        return r;
    r = ds_client_adopt(ds, bytes, size, request);
    if (r < 0)
        return r;
    r = enqueue(ds, request, ret_id);
    if (r == 0)
        (void) ds_steal(request);
    return r;
}

int ds_ping(struct ds *ds, uint64_t *ret_id)
{
    ds_cleanup(request_free_p) struct ds_client_request *request = NULL;
    int r;

    r = request_new(ds, DS_CLIENT_PING, &request);
    if (r == 0)
        r = enqueue(ds, request, ret_id);
    if (r == 0)
        (void) ds_steal(request);
    return r;
}

int ds_cancel(struct ds *ds, uint64_t id)
{
    struct ds_client_request *request = ds_client_find(ds, id);

    if (!request || request->cancel_wanted || request->state == DS_CLIENT_ENDED)
        return 0;
    request->cancel_wanted = true;
    if (request->state == DS_CLIENT_WAITING) {
        ds_client_request_end(ds, request, 0, NULL);
        return 0;
    }
    flush_now(ds, request);
    return 0;
}
