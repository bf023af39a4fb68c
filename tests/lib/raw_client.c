/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/base.h"
#include "shm/handshake.h"
#include "tests/lib/dsd_process.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static int receive(int socket, void *datagram, size_t capacity, int *fds, unsigned *n_fds)
{
    struct pollfd wait = { .fd = socket, .events = POLLIN };
    size_t size = 0;
    int r;

    if (poll(&wait, 1, 5000) != 1)
        return -ETIMEDOUT;
    r = ds_datagram_receive(socket, datagram, capacity, &size, fds, fds ? 4 : 0, n_fds);
    return r < 0 ? r : (int) size;
}

int raw_connect(struct raw_client *client, const char *path, const struct ds_geometry *geometry)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    ds_cleanup(ds_close_p) int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    _Alignas(8) uint8_t datagram[DS_DATAGRAM_MAX];
    const struct ds_datagram *head = (const void *) datagram;
    struct ds_datagram ready;
    struct ds_hello hello;
    unsigned n_fds = 0;
    int fds[4], r;

    *client = (struct raw_client){ .socket = -1 };
    (void) snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (connect(fd, (const struct sockaddr *) &address, sizeof address) < 0)
        return -errno;
    ds_hello_init(&hello, "raw test");
    if (geometry) {
        hello.sq_entries = geometry->sq_entries;
        hello.cq_entries = geometry->cq_entries;
        hello.arena_bytes = geometry->arena_bytes;
        hello.rsp_bytes = geometry->rsp_bytes;
    }
    r = ds_datagram_send(fd, &hello, sizeof hello, NULL, 0);
    if (r < 0 && r != -EPIPE) /* a refusal may be there already */
        return r;
    r = receive(fd, datagram, sizeof datagram, fds, &n_fds);
    if (r <= 0)
        return r < 0 ? r : -EPIPE;
    if (head->type == DS_DATAGRAM_REJECT)
        return -ECONNREFUSED;
    if (head->type != DS_DATAGRAM_WELCOME || n_fds != 4)
        return -EPROTO;
    r = ds_channel_join(&client->channel, DS_CHANNEL_SUBMITTER, (const void *) datagram,
                        (struct ds_channel_fds){ fds[0], fds[1], fds[2], fds[3] });
    if (r < 0)
        return r;
    ds_datagram_init(&ready, DS_DATAGRAM_READY, sizeof ready);
    r = ds_datagram_send(fd, &ready, sizeof ready, NULL, 0);
    if (r < 0)
        return r;
    client->socket = ds_steal_fd(&fd);
    return 0;
}

static void ring(struct raw_client *client)
{
    if (ds_channel_bell_due(client->channel))
        ds_channel_ring_bell(client->channel);
}

void raw_entry(struct raw_client *client, uint16_t op, uint64_t req_id)
{
    struct ds_sqe entry = { .op = op, .req_id = req_id };

    assert_int_equal(ds_channel_submit(client->channel, &entry, 0), 0);
    ring(client);
}

void raw_close(struct raw_client *client, bool goodbye)
{
    if (client->channel && goodbye)
        raw_entry(client, DS_SQE_CLOSE, 0);
    client->channel = ds_channel_free(client->channel);
    if (client->socket >= 0)
        (void) close(client->socket);
    client->socket = -1;
}

uint64_t raw_submit(struct raw_client *client, const Ds__Request *request, const uint8_t *key,
                    uint32_t resume_from)
{
    size_t size = ds_message_size(request);
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .resume_from = resume_from };
    void *payload;

    if (ds_channel_reserve(client->channel, size, &payload) != 0)
        return 0;
    assert_int_equal(ds_message_pack(request, payload, size, &size), 0);
    if (key)
        memcpy(entry.idem_key, key, sizeof entry.idem_key);
    entry.req_id = ++client->next_id;
    if (ds_channel_submit(client->channel, &entry, size) != 0)
        return 0;
    ring(client);
    return entry.req_id;
}

uint64_t raw_generate(struct raw_client *client, const char *model, const char *prompt,
                      uint32_t max_tokens, uint64_t seed)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    Ds__Input input = DS__INPUT__INIT;

    reference.name = (char *) model;
    sampling.seed = seed;
    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text.data = (uint8_t *) prompt;
    input.text.len = strlen(prompt);
    generate.model = &reference;
    generate.input = &input;
    generate.sampling = &sampling;
    generate.max_tokens = max_tokens;
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &generate;
    return raw_submit(client, &request, NULL, 0);
}

/* --- answers --- */

struct raw_answer *raw_answer_new(uint64_t req_id)
{
    struct raw_answer *answer = calloc(1, sizeof *answer);

    assert_non_null(answer);
    assert_int_not_equal(req_id, 0);
    answer->req_id = req_id;
    return answer;
}

struct raw_answer *raw_answer_free(struct raw_answer *answer)
{
    if (!answer)
        return NULL;
    free(answer->text);
    free(answer->last);
    free(answer);
    return NULL;
}

static void append(void *at, size_t *size, const void *bytes, size_t n)
{
    char **buffer = at;

    *buffer = realloc(*buffer, *size + n + 1);
    assert_non_null(*buffer);
    if (n)
        memcpy(*buffer + *size, bytes, n);
    *size += n;
    (*buffer)[*size] = 0;
}

static void take_tokens(struct raw_answer *answer, const struct ds_cqe *entry, const void *payload)
{
    size_t ids_bytes = entry->n_tokens * sizeof(uint32_t);
    Ds__TokenChunk *chunk;

    if (entry->flags & DS_CQE_COALESCED)
        answer->coalesced++;
    if (entry->flags & DS_CQE_MESSAGE) {
        assert_int_equal(
            ds_message_unpack(&ds__token_chunk__descriptor, payload, entry->len, &chunk), 0);
        assert_true(answer->n_ids + chunk->n_ids <= 8192);
        memcpy(answer->ids + answer->n_ids, chunk->ids, chunk->n_ids * sizeof(uint32_t));
        answer->n_ids += (uint32_t) chunk->n_ids;
        append(&answer->text, &answer->n_text, chunk->text.data, chunk->text.len);
        ds_message_free(chunk);
        return;
    }
    assert_true(ids_bytes <= entry->len && answer->n_ids + entry->n_tokens <= 8192);
    memcpy(answer->ids + answer->n_ids, payload, ids_bytes);
    answer->n_ids += entry->n_tokens;
    append(&answer->text, &answer->n_text, (const char *) payload + ids_bytes,
           entry->len - ids_bytes);
}

static void take(struct raw_answer *answer, const struct ds_cqe *entry, const void *payload)
{
    Ds__Progress *progress;

    if (entry->type == DS_CQE_PONG) {
        answer->pongs++;
        answer->done = true;
        return;
    }
    answer->wrong_seq |= entry->seq != answer->next_seq++;
    answer->pieces += (entry->flags & DS_CQE_MORE) != 0;
    switch (entry->type) {
    case DS_CQE_ACCEPTED:
        answer->accepted++;
        break;
    case DS_CQE_TOKENS:
        take_tokens(answer, entry, payload);
        break;
    case DS_CQE_NOTICE:
        answer->notices++;
        if (ds_message_unpack(&ds__progress__descriptor, payload, entry->len, &progress) == 0) {
            (void) snprintf(answer->stage, sizeof answer->stage, "%s", progress->stage);
            ds_message_free(progress);
        }
        break;
    default:
        append(&answer->last, &answer->last_size, payload, entry->len);
        answer->last_type = entry->type;
        answer->done = !(entry->flags & DS_CQE_MORE);
    }
}

static unsigned drain(struct raw_client *client, struct raw_answer **answers, unsigned n)
{
    const void *payload;
    struct ds_cqe entry;
    unsigned seen = 0;

    while (ds_channel_next(client->channel, &entry, &payload) == DS_CHANNEL_OK) {
        for (unsigned i = 0; i < n; i++)
            if (answers[i]->req_id == entry.req_id && !answers[i]->done)
                take(answers[i], &entry, payload);
        ds_channel_done(client->channel);
        seen++;
    }
    if (seen)
        ring(client);
    return seen;
}

bool raw_wait(struct raw_client *client, struct raw_answer **answers, unsigned n, int msec)
{
    uint64_t end = ds_now_nsec() + (uint64_t) msec * 1000000, count;
    struct pollfd wait[] = { { .fd = ds_channel_bell_in(client->channel), .events = POLLIN },
                             { .fd = client->socket, .events = POLLIN } };

    for (;;) {
        unsigned done = 0;

        (void) drain(client, answers, n);
        for (unsigned i = 0; i < n; i++)
            done += answers[i]->done;
        if (done == n)
            return true;
        if (ds_now_nsec() > end)
            return false;
        if (ds_channel_sleep(client->channel)) {
            (void) poll(wait, wait[1].fd < 0 ? 1 : 2, 20);
            if (wait[0].revents & POLLIN)
                (void) !read(wait[0].fd, &count, sizeof count);
            ds_channel_wake(client->channel);
        }
        if (wait[1].revents & POLLHUP) { /* what is in the ring still counts */
            (void) drain(client, answers, n);
            wait[1].fd = -1;
            wait[1].revents = 0;
        }
    }
}

Ds__Reply *raw_reply(const struct raw_answer *answer)
{
    Ds__Reply *reply = NULL;

    if (answer->last_type == DS_CQE_ERROR) {
        Ds__Error *error = raw_error(answer);

        fail_msg("error %d: %s", error->code, error->text);
    }
    assert_int_equal(answer->last_type, DS_CQE_FINAL);
    assert_int_equal(
        ds_message_unpack(&ds__reply__descriptor, answer->last, answer->last_size, &reply), 0);
    return reply;
}

Ds__Error *raw_error(const struct raw_answer *answer)
{
    Ds__Error *error = NULL;

    assert_int_equal(answer->last_type, DS_CQE_ERROR);
    assert_int_equal(
        ds_message_unpack(&ds__error__descriptor, answer->last, answer->last_size, &error), 0);
    return error;
}

struct raw_answer *raw_call(struct raw_client *client, const Ds__Request *request, int msec)
{
    struct raw_answer *answer = raw_answer_new(raw_submit(client, request, NULL, 0));

    assert_true(raw_wait(client, &answer, 1, msec));
    return answer;
}
