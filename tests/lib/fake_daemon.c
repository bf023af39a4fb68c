/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/fake_daemon.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "proto/base.h"
#include "proto/message.h"
#include "shm/channel.h"
#include "shm/handshake.h"

#define CONNECTIONS_MAX 8
#define REQUESTS_MAX    64
#define KEYS_MAX        256
#define ATTACHMENTS_MAX 8

struct request {
    uint64_t id; /* 0: free */
    uint64_t seed;
    uint32_t position, max_tokens, seq;
    bool messages, cancelled;
    bool chat; /* every token is reasoning and markup, and the message calls f */
};

struct connection {
    int socket;
    struct ds_channel *channel;
    bool ready;
    int posted; /* completions */
    struct request requests[REQUESTS_MAX];
    struct {
        uint64_t number;
        uint32_t n_files;
        uint64_t first_size;
    } attachments[ATTACHMENTS_MAX];
    unsigned n_attachments;
};

struct fake_daemon {
    struct fake_plan plan;
    char path[108];
    int listener, poke_fd;
    pthread_t thread;
    _Atomic bool stop;
    uint64_t epoch;
    uint64_t down_until;
    struct connection *connections[CONNECTIONS_MAX];
    struct {
        uint64_t seed;
        uint8_t key[16];
    } keys[KEYS_MAX];
    unsigned n_keys;
};

uint32_t fake_token(uint64_t seed, uint32_t position)
{
    uint64_t x = (seed + position) * UINT64_C(0x9E3779B97F4A7C15);

    x ^= x >> 29;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    return (uint32_t) (x >> 40) & 0xffff;
}

char *fake_answer(uint64_t seed, uint32_t n_tokens)
{
    char *text = calloc(n_tokens + 1, 8), *end = text;

    for (uint32_t i = 0; i < n_tokens; i++)
        end += sprintf(end, "%u ", fake_token(seed, i));
    strcpy(end, ".");
    return text;
}

static void disconnect(struct fake_daemon *fake, unsigned i)
{
    struct connection *connection = fake->connections[i];

    ds_channel_free(connection->channel);
    (void) close(connection->socket);
    free(connection);
    fake->connections[i] = NULL;
}

/* --- answers -----------------------------------------------------------------------------------
 */

static void post_piece(struct fake_daemon *fake, struct connection *connection,
                       struct ds_cqe *entry, const void *payload, size_t size, bool last)
{
    int lie = atomic_load(&fake->plan.lie);

    if ((lie == FAKE_LIE_SEQ && entry->seq == 3) || (lie == FAKE_LIE_TOKENS && entry->n_tokens)) {
        atomic_store(&fake->plan.lie, FAKE_HONEST);
        entry->seq += lie == FAKE_LIE_SEQ;
        entry->n_tokens += lie == FAKE_LIE_TOKENS ? 1000 : 0;
    }
    if (lie == FAKE_LIE_CRITICAL && entry->type == DS_CQE_TOKENS) {
        atomic_store(&fake->plan.lie, FAKE_HONEST);
        entry->type = 77;
        entry->flags |= DS_CQE_CRITICAL;
    }
    while (ds_channel_post(connection->channel, entry, payload, size, last) == DS_CHANNEL_FULL) {
        ds_channel_publish(connection->channel); /* the test reads in another thread */
        if (ds_channel_bell_due(connection->channel))
            ds_channel_ring_bell(connection->channel);
        (void) poll(NULL, 0, 1);
        if (atomic_load(&fake->stop))
            return;
    }
    connection->posted++;
}

static bool cut_now(struct fake_daemon *fake, struct connection *connection)
{
    return connection->posted == atomic_load(&fake->plan.drop_after);
}

static void post(struct fake_daemon *fake, struct connection *connection, uint64_t id,
                 uint32_t *seq, uint16_t type, uint16_t flags, uint32_t n_tokens,
                 const void *payload, size_t size)
{
    size_t piece = (size_t) atomic_load(&fake->plan.piece);
    size_t offset = 0;
    bool last = type == DS_CQE_FINAL || type == DS_CQE_ERROR;

    if (piece == 0 || piece > ds_channel_post_max(connection->channel))
        piece = ds_channel_post_max(connection->channel);
    do {
        size_t n = size - offset < piece ? size - offset : piece;
        bool more = offset + n < size;
        struct ds_cqe entry = { .req_id = id,
                                .seq = (*seq)++,
                                .type = type,
                                .flags = (uint16_t) (flags | (more ? DS_CQE_MORE : 0)),
                                .n_tokens = offset ? 0 : n_tokens };

        if (cut_now(fake, connection))
            return;
        post_piece(fake, connection, &entry, (const uint8_t *) payload + offset, n, last && !more);
        offset += n;
    } while (offset < size);
}

static void post_message(struct fake_daemon *fake, struct connection *connection, uint64_t id,
                         uint32_t *seq, uint16_t type, const void *message)
{
    ds_cleanup(ds_free_p) void *bytes = NULL;
    size_t size;

    if (ds_message_pack_new(message, &bytes, &size) < 0)
        return;
    if (type == DS_CQE_FINAL && atomic_load(&fake->plan.lie) == FAKE_LIE_GARBAGE) {
        atomic_store(&fake->plan.lie, FAKE_HONEST);
        memset(bytes, 0xff, size);
    }
    post(fake, connection, id, seq, type, type == DS_CQE_TOKENS ? DS_CQE_MESSAGE : 0,
         type == DS_CQE_TOKENS ? 1 : 0, bytes, size);
}

static void post_error(struct fake_daemon *fake, struct connection *connection, uint64_t id,
                       uint32_t *seq, Ds__Error__Code code, const char *text)
{
    Ds__Error error = DS__ERROR__INIT;

    error.code = code;
    error.text = (char *) text;
    post_message(fake, connection, id, seq, DS_CQE_ERROR, &error);
}

static void post_token(struct fake_daemon *fake, struct connection *connection,
                       struct request *request)
{
    Ds__TokenChunk chunk = DS__TOKEN_CHUNK__INIT;
    Ds__TokenLogprob logprob = DS__TOKEN_LOGPROB__INIT, *logprobs = &logprob;
    uint32_t parts[2] = { 0, 1 << 2 | DS__PART__PART_MARKUP };
    uint8_t payload[32];
    uint32_t id = fake_token(request->seed, request->position++);
    int n;

    memcpy(payload, &id, sizeof id);
    n = sprintf((char *) payload + sizeof id, "%u ", id);
    if (!request->messages && !request->chat) {
        post(fake, connection, request->id, &request->seq, DS_CQE_TOKENS, 0, 1, payload,
             sizeof id + (size_t) n);
        return;
    }
    logprob.logprob = -1.5f;
    chunk.n_ids = 1;
    chunk.n_logprobs = request->messages;
    if (request->chat) {
        parts[0] = (uint32_t) (n - 1) << 2 | DS__PART__PART_REASONING;
        chunk.n_parts = 2;
        chunk.parts = parts;
    }
    chunk.ids = &id;
    chunk.text = (ProtobufCBinaryData){ .data = payload + sizeof id, .len = (size_t) n };
    chunk.logprobs = &logprobs;
    post_message(fake, connection, request->id, &request->seq, DS_CQE_TOKENS, &chunk);
}

static void post_result(struct fake_daemon *fake, struct connection *connection,
                        struct request *request)
{
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;
    Ds__Usage usage = DS__USAGE__INIT;
    Ds__ChatReply message = DS__CHAT_REPLY__INIT;
    Ds__ToolCall call = DS__TOOL_CALL__INIT, *calls = &call;

    call.id = "call_0";
    call.name = "f";
    call.arguments_json = (ProtobufCBinaryData){ .data = (uint8_t *) "{}", .len = 2 };
    message.reasoning = (ProtobufCBinaryData){ .data = (uint8_t *) "why", .len = 3 };
    message.n_tool_calls = 1;
    message.tool_calls = &calls;
    result.message = request->chat ? &message : NULL;
    usage.prompt_tokens = 7;
    usage.completion_tokens = request->position;
    result.usage = &usage;
    result.reason = request->cancelled ? DS__REASON__REASON_CANCELLED : DS__REASON__REASON_LENGTH;
    result.text = (ProtobufCBinaryData){ .data = (uint8_t *) ".", .len = 1 };
    reply.result_case = DS__REPLY__RESULT_GENERATE;
    reply.generate = &result;
    post_message(fake, connection, request->id, &request->seq, DS_CQE_FINAL, &reply);
    request->id = 0;
}

/* --- requests ----------------------------------------------------------------------------------
 */

static bool key_is_known_and_other(struct fake_daemon *fake, uint64_t seed, const uint8_t key[16])
{
    for (unsigned i = 0; i < fake->n_keys; i++)
        if (fake->keys[i].seed == seed)
            return memcmp(fake->keys[i].key, key, 16) != 0;
    if (fake->n_keys < KEYS_MAX) {
        fake->keys[fake->n_keys].seed = seed;
        memcpy(fake->keys[fake->n_keys++].key, key, 16);
    }
    return false;
}

static void begin_generate(struct fake_daemon *fake, struct connection *connection,
                           const struct ds_sqe *entry, const Ds__Generate *generate)
{
    struct request *request = connection->requests;
    uint32_t seq = 0, n = 0;

    if (generate->model && strcmp(generate->model->name, "missing") == 0) {
        post_error(fake, connection, entry->req_id, &seq, DS__ERROR__CODE__NOT_FOUND,
                   "missing: no such model; dsctl list shows them");
        return;
    }
    while (request->id && request < connection->requests + REQUESTS_MAX - 1)
        request++;
    *request = (struct request){ .id = entry->req_id,
                                 .seed = generate->sampling ? generate->sampling->seed : 0,
                                 .max_tokens = generate->max_tokens,
                                 .messages = generate->logprobs > 0,
                                 .chat = generate->input &&
                                         generate->input->kind_case == DS__INPUT__KIND_CHAT };
    if (generate->delivered)
        n = (uint32_t) generate->delivered->n_ids;
    for (uint32_t i = 0; i < n; i++)
        if (generate->delivered->ids[i] != fake_token(request->seed, i))
            atomic_fetch_add(&fake->plan.wrong, 1);
    if (n != entry->resume_from || key_is_known_and_other(fake, request->seed, entry->idem_key))
        atomic_fetch_add(&fake->plan.wrong, 1);
    if (n)
        atomic_fetch_add(&fake->plan.resumed, 1);
    request->position = n;
    post(fake, connection, request->id, &request->seq, DS_CQE_ACCEPTED, 0, 0, NULL, 0);
}

static void answer_tokenize(const struct connection *connection, const Ds__TokenizeRequest *asked,
                            Ds__TokenizeResult *result, uint32_t ids[], size_t capacity)
{
    uint64_t number = asked->model ? asked->model->attachment : 0;

    for (size_t i = 0; i < asked->text.len && i < capacity; i++)
        ids[result->n_ids++] = asked->text.data[i];
    if (number) {
        result->n_ids = 0;
        for (unsigned i = 0; i < connection->n_attachments; i++)
            if (connection->attachments[i].number == number) {
                ids[result->n_ids++] = connection->attachments[i].n_files;
                ids[result->n_ids++] = (uint32_t) connection->attachments[i].first_size;
            }
    }
    result->ids = ids;
}

static void answer_load(struct fake_daemon *fake, struct connection *connection, uint64_t id,
                        uint32_t *seq)
{
    Ds__Progress progress = DS__PROGRESS__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__LoadResult result = DS__LOAD_RESULT__INIT;

    progress.stage = (char *) "loading";
    for (int i = 1; i <= 3; i++) {
        progress.fraction = i / 4.0;
        post_message(fake, connection, id, seq, DS_CQE_NOTICE, &progress);
    }
    reply.result_case = DS__REPLY__RESULT_LOAD;
    reply.load = &result;
    post_message(fake, connection, id, seq, DS_CQE_FINAL, &reply);
}

static void answer_control(struct fake_daemon *fake, struct connection *connection, uint64_t id,
                           const Ds__Request *asked)
{
    ds_cleanup(ds_free_p) uint8_t *text = NULL;
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__TokenizeResult tokenized = DS__TOKENIZE_RESULT__INIT;
    Ds__DetokenizeResult detokenized = DS__DETOKENIZE_RESULT__INIT;
    Ds__Done done = DS__DONE__INIT;
    uint32_t ids[4096], seq = 0;

    switch (asked->op_case) {
    case DS__REQUEST__OP_SCORE:
        return;
    case DS__REQUEST__OP_LOAD:
        answer_load(fake, connection, id, &seq);
        return;
    case DS__REQUEST__OP_TOKENIZE:
        answer_tokenize(connection, asked->tokenize, &tokenized, ids, 4096);
        reply.result_case = DS__REPLY__RESULT_TOKENIZE;
        reply.tokenize = &tokenized;
        break;
    case DS__REQUEST__OP_DETOKENIZE:
        detokenized.text.len = asked->detokenize->tokens->n_ids * 1000;
        text = malloc(detokenized.text.len);
        memset(text, 'x', detokenized.text.len);
        detokenized.text.data = text;
        reply.result_case = DS__REPLY__RESULT_DETOKENIZE;
        reply.detokenize = &detokenized;
        break;
    default:
        reply.result_case = DS__REPLY__RESULT_DONE;
        reply.done = &done;
    }
    post_message(fake, connection, id, &seq, DS_CQE_FINAL, &reply);
}

static void submit(struct fake_daemon *fake, struct connection *connection,
                   const struct ds_sqe *entry, const void *payload)
{
    ds_cleanup(ds_message_free_p) Ds__Request *asked = NULL;
    uint32_t seq = 0;

    if (atomic_load(&fake->plan.draining)) {
        post_error(fake, connection, entry->req_id, &seq, DS__ERROR__CODE__DRAINING, "stopping");
        return;
    }
    if (ds_message_unpack(&ds__request__descriptor, payload, entry->payload_len, &asked) < 0)
        post_error(fake, connection, entry->req_id, &seq, DS__ERROR__CODE__INVALID, "malformed");
    else if (asked->op_case == DS__REQUEST__OP_GENERATE)
        begin_generate(fake, connection, entry, asked->generate);
    else
        answer_control(fake, connection, entry->req_id, asked);
}

static void cancel(struct fake_daemon *fake, struct connection *connection, uint64_t id)
{
    atomic_fetch_add(&fake->plan.cancels, 1);
    for (unsigned i = 0; i < REQUESTS_MAX; i++)
        if (connection->requests[i].id == id) {
            connection->requests[i].cancelled = true;
            post_result(fake, connection, &connection->requests[i]);
            return;
        }
}

static int take_entries(struct fake_daemon *fake, struct connection *connection)
{
    struct ds_sqe entry;
    const void *payload;
    uint32_t seq = 0;
    int r;

    while (!cut_now(fake, connection) &&
           (r = ds_channel_receive(connection->channel, &entry, &payload)) != DS_CHANNEL_EMPTY) {
        if (r < 0)
            return r;
        if (entry.op == DS_SQE_SUBMIT)
            submit(fake, connection, &entry, payload);
        else if (entry.op == DS_SQE_CANCEL)
            cancel(fake, connection, entry.req_id);
        else if (entry.op == DS_SQE_PING)
            post(fake, connection, entry.req_id, &seq, DS_CQE_PONG, 0, 0, NULL, 0);
        else if (entry.op == DS_SQE_CLOSE)
            atomic_fetch_add(&fake->plan.closes, 1);
        seq = 0;
    }
    ds_channel_release(connection->channel);
    return 0;
}

/* One token for each running request. True: there is more to do. */
static bool step(struct fake_daemon *fake, struct connection *connection)
{
    bool more = false;

    for (unsigned i = 0; i < REQUESTS_MAX && !cut_now(fake, connection); i++) {
        struct request *request = &connection->requests[i];

        if (!request->id)
            continue;
        if (request->position >= request->max_tokens) {
            post_result(fake, connection, request);
            continue;
        }
        if (atomic_load(&fake->plan.credits) == 0)
            continue;
        if (atomic_load(&fake->plan.credits) > 0)
            atomic_fetch_sub(&fake->plan.credits, 1);
        post_token(fake, connection, request);
        more = true;
    }
    return more;
}

/* --- connections -------------------------------------------------------------------------------
 */

static int fake_listen(struct fake_daemon *fake)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    (void) unlink(fake->path);
    fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    strcpy(address.sun_path, fake->path);
    if (bind(fake->listener, (struct sockaddr *) &address, sizeof address) < 0 ||
        listen(fake->listener, 16) < 0)
        return -errno;
    fake->epoch++;
    return 0;
}

static void greet(struct fake_daemon *fake, struct connection *connection)
{
    const struct ds_geometry geometry = { .arena_bytes = 1 << 16, .rsp_bytes = 1 << 14 };
    struct ds_reject reject = { .code = (uint32_t) atomic_load(&fake->plan.reject) };
    struct ds_welcome welcome;
    struct ds_channel_fds fds;

    if (atomic_load(&fake->plan.mute))
        return;
    if (reject.code) {
        ds_datagram_init(&reject.head, DS_DATAGRAM_REJECT, sizeof reject);
        strcpy(reject.text, "refused by the test");
        (void) ds_datagram_send(connection->socket, &reject, sizeof reject, NULL, 0);
        return;
    }
    if (ds_channel_create(&connection->channel, DS_CHANNEL_SERVER, &geometry, fake->epoch) < 0)
        return;
    ds_channel_welcome(connection->channel, &welcome, &fds);
    welcome.spin_hint_us = 20;
    (void) ds_datagram_send(
        connection->socket, &welcome, sizeof welcome,
        (int[]){ fds.s_fd, fds.c_fd, fds.bell_to_server, fds.bell_to_submitter }, 4);
    ds_channel_sent(connection->channel);
}

static void attach(struct fake_daemon *fake, struct connection *connection,
                   const struct ds_attach *datagram, const int *fds, unsigned n_fds)
{
    unsigned i = connection->n_attachments;
    struct stat status = { 0 };

    atomic_fetch_add(&fake->plan.attached, (int) n_fds);
    if (i == ATTACHMENTS_MAX || datagram->first != 0)
        return;
    (void) fstat(fds[0], &status);
    connection->attachments[i].number = datagram->attachment;
    connection->attachments[i].n_files = datagram->n_files;
    connection->attachments[i].first_size = (uint64_t) status.st_size;
    connection->n_attachments++;
}

static int listen_to(struct fake_daemon *fake, struct connection *connection)
{
    union {
        struct ds_datagram head;
        struct ds_attach attach;
        uint8_t bytes[DS_DATAGRAM_MAX];
    } datagram;
    int fds[DS_DATAGRAM_FDS_MAX];
    unsigned n_fds = 0;
    size_t size;
    int r;

    while ((r = ds_datagram_receive(connection->socket, &datagram, sizeof datagram, &size, fds,
                                    DS_DATAGRAM_FDS_MAX, &n_fds)) == 0) {
        if (size == 0)
            return -ECONNRESET;
        if (datagram.head.type == DS_DATAGRAM_HELLO)
            greet(fake, connection);
        else if (datagram.head.type == DS_DATAGRAM_READY)
            connection->ready = true;
        else if (datagram.head.type == DS_DATAGRAM_ATTACH)
            attach(fake, connection, &datagram.attach, fds, n_fds);
        for (unsigned i = 0; i < n_fds; i++)
            (void) close(fds[i]);
        if (datagram.head.type == DS_DATAGRAM_READY)
            atomic_fetch_add(&fake->plan.lives, 1);
    }
    return r == -EAGAIN ? 0 : r;
}

static void adopt(struct fake_daemon *fake)
{
    int fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    for (unsigned i = 0; fd >= 0 && i < CONNECTIONS_MAX; i++)
        if (!fake->connections[i]) {
            fake->connections[i] = calloc(1, sizeof *fake->connections[i]);
            fake->connections[i]->socket = fd;
            return;
        }
    if (fd >= 0)
        (void) close(fd);
}

/* A cut: everybody is dropped, and for a while nobody listens. */
static void fall(struct fake_daemon *fake)
{
    atomic_store(&fake->plan.drop_after, -1);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (fake->connections[i])
            disconnect(fake, i);
    if (atomic_load(&fake->plan.down_msec) == 0)
        return;
    (void) close(fake->listener);
    fake->listener = -1;
    (void) unlink(fake->path);
    fake->down_until = ds_now_nsec() + (uint64_t) atomic_load(&fake->plan.down_msec) * 1000000u;
}

/* True: there is more to do at once. */
static bool serve(struct fake_daemon *fake, unsigned i)
{
    struct connection *connection = fake->connections[i];
    bool more = false;

    if (listen_to(fake, connection) < 0) {
        disconnect(fake, i);
        return false;
    }
    if (!connection->ready || !connection->channel)
        return false;
    ds_channel_wake(connection->channel);
    if (take_entries(fake, connection) < 0) {
        disconnect(fake, i);
        return false;
    }
    more = step(fake, connection);
    ds_channel_publish(connection->channel);
    if (ds_channel_bell_due(connection->channel))
        ds_channel_ring_bell(connection->channel);
    if (cut_now(fake, connection)) {
        fall(fake);
        return true;
    }
    return more;
}

static int to_wait_for(struct fake_daemon *fake, struct pollfd *polled)
{
    int n = 0;

    polled[n++] = (struct pollfd){ .fd = fake->poke_fd, .events = POLLIN };
    polled[n++] = (struct pollfd){ .fd = fake->listener, .events = POLLIN };
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = fake->connections[i];

        if (!connection)
            continue;
        polled[n++] = (struct pollfd){ .fd = connection->socket, .events = POLLIN };
        if (connection->channel)
            polled[n++] =
                (struct pollfd){ .fd = ds_channel_bell_in(connection->channel), .events = POLLIN };
        if (connection->channel && !ds_channel_sleep(connection->channel))
            polled[0].revents = 1; /* marks: do not wait */
    }
    return n;
}

static void *run(void *argument)
{
    struct fake_daemon *fake = argument;
    struct pollfd polled[2 + 2 * CONNECTIONS_MAX];
    uint64_t count;

    while (!atomic_load(&fake->stop)) {
        bool more = false;
        int n;

        if (atomic_load(&fake->plan.frozen)) {
            (void) poll(NULL, 0, 1);
            continue;
        }
        if (fake->listener < 0 && ds_now_nsec() >= fake->down_until) {
            atomic_store(&fake->plan.draining, 0);
            (void) fake_listen(fake);
        }
        if (fake->listener >= 0)
            adopt(fake);
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
            if (fake->connections[i])
                more |= serve(fake, i);
        n = to_wait_for(fake, polled);
        if (more || polled[0].revents)
            continue;
        (void) poll(polled, (nfds_t) n, fake->listener < 0 ? 1 : -1);
        for (int i = 0; i < n; i++) /* bells and poke; sockets are read in listen_to() */
            if (polled[i].fd >= 0 && (polled[i].revents & POLLIN) && i != 1)
                if (recv(polled[i].fd, &count, 0, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == ENOTSOCK)
                    (void) !read(polled[i].fd, &count, sizeof count);
    }
    return NULL;
}

struct fake_daemon *fake_daemon_start(const char *path)
{
    struct fake_daemon *fake = calloc(1, sizeof *fake);

    strcpy(fake->path, path);
    fake->epoch = 1;
    atomic_store(&fake->plan.credits, -1);
    atomic_store(&fake->plan.drop_after, -1);
    fake->poke_fd = eventfd(0, EFD_CLOEXEC);
    if (fake->poke_fd < 0 || fake_listen(fake) < 0 ||
        pthread_create(&fake->thread, NULL, run, fake) != 0)
        abort();
    return fake;
}

struct fake_plan *fake_daemon_plan(struct fake_daemon *fake)
{
    return &fake->plan;
}

void fake_daemon_poke(struct fake_daemon *fake)
{
    const uint64_t one = 1;

    (void) !write(fake->poke_fd, &one, sizeof one);
}

struct fake_daemon *fake_daemon_stop(struct fake_daemon *fake)
{
    if (!fake)
        return NULL;
    atomic_store(&fake->stop, true);
    fake_daemon_poke(fake);
    (void) pthread_join(fake->thread, NULL);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (fake->connections[i])
            disconnect(fake, i);
    if (fake->listener >= 0)
        (void) close(fake->listener);
    (void) close(fake->poke_fd);
    (void) unlink(fake->path);
    free(fake);
    return NULL;
}
