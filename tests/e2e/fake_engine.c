/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_engine.c - an engine without models, for the tests of dsd: speaks the link protocol and
 * yields tokens that are a pure function of (prompt, seed, position). Misfortunes come on demand.
 *
 * A model is any file; its first word says how the load goes:
 *   ok           resident at once                 slow N   after N milliseconds, with progress
 *   fail         ERROR(BAD_MODEL)                 crash    abort()
 *   hang         no answer and no sign of life    size N   resident, claims N bytes of weights
 *   context N    after 100 milliseconds, ERROR(BAD_MODEL) where asked for more than N positions
 * The same words are for adapters; a request's tokens depend on the adapter's content and scale.
 *
 * A prompt may hold commands, separated by spaces (K: when position K is due):
 *   crash@K   abort()      hang@K  stop for ever       lie@K    a STEP that is no message
 *   wild@K    tokens of ids nobody asked for           big@K    20000 bytes of text
 *   slow=N    N milliseconds a token                   fail     ERROR(INVALID)
 */
#include <poll.h>
#include <signal.h>
#include <stdbool.h>

#include "proto/base.h"
#include "proto/message.h"
#include "shm/channel.h"
#include "shm/handshake.h"

#define LINK_FD       3
#define SEQUENCES_MAX 4096
#define MODELS_MAX    64

struct sequence {
    uint64_t req_id;
    uint32_t model_id;
    uint32_t position, max_tokens, prompt_tokens;
    uint64_t hash, next_nsec, step_nsec;
    char *prompt;
    bool logprobs, started, cancelled;
};

struct lora {
    uint32_t id; /* 0: unused */
    uint64_t hash;
};

struct load {
    uint64_t req_id, due_nsec;
    uint32_t model_id, lora_id;
    uint32_t context; /* asked for */
    unsigned n_seen;
    char command[64];
    bool inspect, pending;
};

struct fake {
    struct ds_channel *channel;
    struct sequence sequences[SEQUENCES_MAX];
    unsigned n_sequences;
    struct load loads[MODELS_MAX];
    struct lora loras[MODELS_MAX];
};

/* --- pure functions --- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= UINT64_C(0xff51afd7ed558ccd);
    x ^= x >> 33;
    x *= UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

static uint64_t hash_bytes(const void *bytes, size_t size, uint64_t seed)
{
    uint64_t hash = seed;

    for (size_t i = 0; i < size; i++)
        hash = mix(hash ^ ((const uint8_t *) bytes)[i]);
    return hash;
}

static uint32_t token_at(const struct sequence *sequence, uint32_t position)
{
    return (uint32_t) (mix(sequence->hash + position) % 32000);
}

static bool told(const struct sequence *sequence, const char *command)
{
    char text[48];
    size_t length = (size_t) snprintf(text, sizeof text, "%s@%u", command, sequence->position);
    const char *at = sequence->prompt ? strstr(sequence->prompt, text) : NULL;

    return at && (at[length] == 0 || at[length] == ' ');
}

/* --- out --- */

/* Waits for room: the fake is in no hurry. */
static void post(struct fake *fake, uint16_t type, uint64_t req_id, const void *message)
{
    size_t size = 0, sent = 0, max = ds_channel_post_max(fake->channel);
    void *bytes = NULL;

    if (ds_message_pack_new(message, &bytes, &size) < 0)
        abort();
    do {
        size_t piece = size - sent < max ? size - sent : max;
        struct ds_cqe entry = { .req_id = req_id,
                                .type = type,
                                .flags = piece < size - sent ? DS_CQE_MORE : 0 };
        int r = ds_channel_post(fake->channel, &entry, (uint8_t *) bytes + sent, piece,
                                piece == size - sent);

        if (r < 0)
            exit(3);
        if (r == 0)
            sent += piece;
        ds_channel_publish(fake->channel);
        if (ds_channel_bell_due(fake->channel))
            ds_channel_ring_bell(fake->channel);
        if (r != 0)
            (void) usleep(200);
    } while (sent < size);
    free(bytes);
}

static void post_error(struct fake *fake, uint64_t req_id, Ds__Error__Code code, const char *text)
{
    Ds__Error error = DS__ERROR__INIT;

    error.code = code;
    error.text = (char *) text;
    post(fake, DS_CQE_ERROR, req_id, &error);
}

static struct lora *lora_find(struct fake *fake, uint32_t id)
{
    for (int i = 0; i < MODELS_MAX; i++)
        if (fake->loras[i].id == id)
            return &fake->loras[i];
    return NULL;
}

static void post_lora_loaded(struct fake *fake, const struct load *load)
{
    Ds__LinkReply link = DS__LINK_REPLY__INIT;
    Ds__LoraInfo info = DS__LORA_INFO__INIT;
    struct lora *lora = lora_find(fake, 0);

    if (!lora)
        exit(11);
    *lora = (struct lora){ load->lora_id, hash_bytes(load->command, strlen(load->command), 5) };
    info.rank = 4;
    info.n_matrices = 7;
    info.bytes = 500;
    link.lora = &info;
    post(fake, DS_CQE_FINAL, load->req_id, &link);
}

static uint32_t context_of(const struct load *load)
{
    return strncmp(load->command, "context ", 8) == 0
               ? (uint32_t) strtoul(load->command + 8, NULL, 10)
               : 4096;
}

static void post_loaded(struct fake *fake, const struct load *load)
{
    Ds__LinkReply link = DS__LINK_REPLY__INIT;
    Ds__ModelInfo info = DS__MODEL_INFO__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__ShowResult show = DS__SHOW_RESULT__INIT;

    if (load->lora_id) {
        post_lora_loaded(fake, load);
        return;
    }
    info.architecture = (char *) "fake";
    info.device = (char *) "cpu";
    info.type = (char *) "F32";
    info.context = context_of(load);
    if (load->context > info.context) {
        post_error(fake, load->req_id, DS__ERROR__CODE__BAD_MODEL,
                   "so large a context is too much");
        return;
    }
    info.weight_bytes = 1000;
    if (strncmp(load->command, "size ", 5) == 0)
        info.weight_bytes = strtoull(load->command + 5, NULL, 10);
    link.model = &info;
    if (load->inspect) {
        show.model = &info;
        reply.result_case = DS__REPLY__RESULT_SHOW;
        reply.show = &show;
        link.reply = &reply;
    }
    post(fake, DS_CQE_FINAL, load->req_id, &link);
}

/* --- loads --- */

static void hang(void)
{
    for (;;)
        (void) pause();
}

static void load_run(struct fake *fake, struct load *load)
{
    Ds__Progress progress = DS__PROGRESS__INIT;

    if (strncmp(load->command, "crash", 5) == 0)
        abort();
    if (strncmp(load->command, "hang", 4) == 0)
        hang();
    if (strncmp(load->command, "fail", 4) == 0) {
        post_error(fake, load->req_id, DS__ERROR__CODE__BAD_MODEL,
                   "tensor blk.0.attn_q.weight lies beyond the end of the file");
        return;
    }
    if (strncmp(load->command, "slow ", 5) == 0 || strncmp(load->command, "context ", 8) == 0) {
        uint64_t msec = *load->command == 's' ? strtoull(load->command + 5, NULL, 10) : 100;

        load->due_nsec = ds_now_nsec() + msec * 1000000;
        load->pending = true;
        progress.stage = (char *) "loading";
        progress.fraction = 0.5;
        post(fake, DS_CQE_NOTICE, load->req_id, &progress);
        return;
    }
    post_loaded(fake, load);
}

static struct load *load_find(struct fake *fake, uint64_t req_id)
{
    struct load *unused = NULL;

    for (int i = 0; i < MODELS_MAX; i++) {
        if (fake->loads[i].req_id == req_id)
            return &fake->loads[i];
        if (fake->loads[i].req_id == 0)
            unused = &fake->loads[i];
    }
    return unused;
}

static void take_load(struct fake *fake, const void *bytes, size_t size, const int *fds,
                      unsigned n_fds)
{
    ds_cleanup(ds_message_free_p) Ds__LinkLoad *message = NULL;
    struct load *load;

    if (ds_message_unpack(&ds__link_load__descriptor, bytes, size, &message) < 0)
        exit(4);
    load = load_find(fake, message->req_id);
    if (!load)
        exit(5);
    if (load->n_seen == 0 && n_fds > 0 &&
        pread(fds[0], load->command, sizeof load->command - 1, 0) < 0)
        exit(6);
    load->req_id = message->req_id;
    load->model_id = message->model_id;
    load->lora_id = message->lora_id;
    load->inspect = message->inspect_only;
    load->context = message->context;
    load->n_seen += n_fds;
    for (unsigned i = 0; i < n_fds; i++)
        (void) close(fds[i]);
    if (load->n_seen < message->n_files)
        return;
    load_run(fake, load);
    if (!load->pending)
        *load = (struct load){ 0 };
}

/* --- requests --- */

static char *prompt_of(const Ds__Input *input, uint64_t *hash, uint32_t *n)
{
    const ProtobufCBinaryData *text = NULL;

    if (input && input->kind_case == DS__INPUT__KIND_TEXT)
        text = &input->text;
    if (input && input->kind_case == DS__INPUT__KIND_CHAT && input->chat->n_messages > 0)
        text = &input->chat->messages[input->chat->n_messages - 1]->content;
    *n = text ? (uint32_t) text->len : 1;
    *hash = text ? hash_bytes(text->data, text->len, *hash) : *hash;
    return text ? strndup((const char *) text->data, text->len) : strdup("");
}

static void take_generate(struct fake *fake, uint64_t req_id, const Ds__LinkRequest *link)
{
    const Ds__Generate *generate = link->generate;
    struct sequence *sequence = &fake->sequences[fake->n_sequences];
    const char *slow;

    if (fake->n_sequences == SEQUENCES_MAX) {
        post_error(fake, req_id, DS__ERROR__CODE__BUSY, "too many sequences");
        return;
    }
    *sequence = (struct sequence){ .req_id = req_id, .model_id = link->model_id };
    sequence->hash = generate->sampling ? mix(generate->sampling->seed + 1) : 1;
    sequence->prompt = prompt_of(generate->input, &sequence->hash, &sequence->prompt_tokens);
    if (link->lora_id) {
        const struct lora *lora = lora_find(fake, link->lora_id);

        if (!lora) {
            post_error(fake, req_id, DS__ERROR__CODE__NOT_FOUND, "no such adapter");
            free(sequence->prompt);
            return;
        }
        sequence->hash = mix(sequence->hash ^ lora->hash);
        sequence->hash = hash_bytes(&link->lora_scale, sizeof link->lora_scale, sequence->hash);
    }
    sequence->max_tokens = generate->max_tokens ? generate->max_tokens : 16;
    sequence->logprobs = generate->want_logprobs;
    slow = strstr(sequence->prompt, "slow=");
    sequence->step_nsec = slow ? strtoull(slow + 5, NULL, 10) * 1000000 : 0;
    for (size_t i = 0; generate->delivered && i < generate->delivered->n_ids; i++) {
        if (generate->delivered->ids[i] != token_at(sequence, (uint32_t) i)) {
            post_error(fake, req_id, DS__ERROR__CODE__INTERNAL, "resumed with wrong tokens");
            free(sequence->prompt);
            return;
        }
        sequence->position++;
    }
    if (strstr(sequence->prompt, "fail")) {
        post_error(fake, req_id, DS__ERROR__CODE__INVALID, "this prompt is not liked");
        free(sequence->prompt);
        return;
    }
    fake->n_sequences++;
}

static void drop_model(struct fake *fake, uint32_t model_id)
{
    for (unsigned i = fake->n_sequences; i-- > 0;) {
        if (fake->sequences[i].model_id != model_id)
            continue;
        free(fake->sequences[i].prompt);
        fake->sequences[i] = fake->sequences[--fake->n_sequences];
    }
}

static void take_submit(struct fake *fake, const struct ds_sqe *entry, const void *payload)
{
    ds_cleanup(ds_message_free_p) Ds__LinkRequest *link = NULL;
    Ds__LinkReply answer = DS__LINK_REPLY__INIT;
    Ds__TokenizeResult tokenized = DS__TOKENIZE_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    uint32_t ids[1024];

    if (ds_message_unpack(&ds__link_request__descriptor, payload, entry->payload_len, &link) < 0)
        exit(7);
    switch (link->op_case) {
    case DS__LINK_REQUEST__OP_GENERATE:
        take_generate(fake, entry->req_id, link);
        return;
    case DS__LINK_REQUEST__OP_UNLOAD:
        drop_model(fake, link->model_id);
        post(fake, DS_CQE_FINAL, entry->req_id, &answer);
        return;
    case DS__LINK_REQUEST__OP_LORA_UNLOAD:
        if (!lora_find(fake, link->lora_unload->lora_id))
            exit(12);
        lora_find(fake, link->lora_unload->lora_id)->id = 0;
        post(fake, DS_CQE_FINAL, entry->req_id, &answer);
        return;
    case DS__LINK_REQUEST__OP_TOKENIZE:
        for (size_t i = 0; i < link->tokenize->text.len && i < 1024; i++)
            ids[i] = link->tokenize->text.data[i];
        tokenized.ids = ids;
        tokenized.n_ids = link->tokenize->text.len < 1024 ? link->tokenize->text.len : 1024;
        reply.result_case = DS__REPLY__RESULT_TOKENIZE;
        reply.tokenize = &tokenized;
        answer.reply = &reply;
        post(fake, DS_CQE_FINAL, entry->req_id, &answer);
        return;
    default:
        post_error(fake, entry->req_id, DS__ERROR__CODE__UNSUPPORTED, "the fake cannot do that");
    }
}

static bool take_submissions(struct fake *fake)
{
    const void *payload;
    struct ds_sqe entry;
    bool any = false;
    int r;

    while ((r = ds_channel_receive(fake->channel, &entry, &payload)) == DS_CHANNEL_OK) {
        any = true;
        if (entry.op == DS_SQE_SUBMIT)
            take_submit(fake, &entry, payload);
        for (unsigned i = 0; entry.op == DS_SQE_CANCEL && i < fake->n_sequences; i++)
            fake->sequences[i].cancelled |= fake->sequences[i].req_id == entry.req_id;
    }
    if (r < 0)
        exit(8);
    if (any) {
        ds_channel_release(fake->channel);
        if (ds_channel_bell_due(fake->channel))
            ds_channel_ring_bell(fake->channel);
    }
    return any;
}

/* --- steps --- */

static void obey(struct fake *fake, const struct sequence *sequence)
{
    static const uint8_t garbage[] = { 0x0a, 0xff, 0xff, 0xff, 0x7f, 1, 2, 3 };
    Ds__LinkTokens output = DS__LINK_TOKENS__INIT, *outputs[] = { &output };
    Ds__TokenChunk chunk = DS__TOKEN_CHUNK__INIT;
    Ds__LinkStep step = DS__LINK_STEP__INIT;
    struct ds_cqe entry = { .type = DS_CQE_STEP };
    uint32_t id = 7;

    if (told(sequence, "crash"))
        abort();
    if (told(sequence, "hang"))
        hang();
    if (told(sequence, "lie")) {
        (void) ds_channel_post(fake->channel, &entry, garbage, sizeof garbage, true);
        ds_channel_publish(fake->channel);
        if (ds_channel_bell_due(fake->channel))
            ds_channel_ring_bell(fake->channel);
        hang();
    }
    if (told(sequence, "wild")) {
        chunk.ids = &id;
        chunk.n_ids = 1;
        output.chunk = &chunk;
        step.outputs = outputs;
        step.n_outputs = 1;
        output.req_id = UINT64_MAX;
        post(fake, DS_CQE_STEP, 0, &step);
        post_error(fake, UINT64_MAX - 1, DS__ERROR__CODE__INTERNAL, "nobody's");
    }
}

/* One token of one sequence. True: it is over. */
static bool advance(struct fake *fake, struct sequence *sequence)
{
    Ds__LinkTokens output = DS__LINK_TOKENS__INIT, *outputs[] = { &output };
    Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;
    Ds__TokenChunk chunk = DS__TOKEN_CHUNK__INIT;
    Ds__TokenLogprob logprob = DS__TOKEN_LOGPROB__INIT, *logprobs[] = { &logprob };
    Ds__LinkStep step = DS__LINK_STEP__INIT;
    Ds__Usage usage = DS__USAGE__INIT;
    ds_cleanup(ds_free_p) char *text = NULL;
    uint32_t id = token_at(sequence, sequence->position);
    bool over;

    step.outputs = outputs;
    step.n_outputs = 1;
    output.req_id = sequence->req_id;
    output.prompt_tokens = sequence->started ? 0 : sequence->prompt_tokens;
    sequence->started = true;
    if (!sequence->cancelled && sequence->position < sequence->max_tokens) {
        obey(fake, sequence);
        if (asprintf(&text, "%u%*s", id, told(sequence, "big") ? 20000 : 1, " ") < 0)
            abort();
        chunk.ids = &id;
        chunk.n_ids = 1;
        chunk.text.data = (uint8_t *) text;
        chunk.text.len = strlen(text);
        logprob.logprob = -0.5f;
        chunk.logprobs = logprobs;
        chunk.n_logprobs = sequence->logprobs ? 1 : 0;
        output.chunk = &chunk;
        sequence->position++;
    }
    over = sequence->cancelled || sequence->position >= sequence->max_tokens;
    if (over) {
        result.reason =
            sequence->cancelled ? DS__REASON__REASON_CANCELLED : DS__REASON__REASON_LENGTH;
        usage.prompt_tokens = sequence->prompt_tokens;
        usage.completion_tokens = sequence->position;
        result.usage = &usage;
        output.result = &result;
    }
    post(fake, DS_CQE_STEP, 0, &step);
    sequence->next_nsec = ds_now_nsec() + sequence->step_nsec;
    return over;
}

/* Returns when the next one is due, UINT64_MAX for never. */
static uint64_t run_steps(struct fake *fake)
{
    uint64_t next = UINT64_MAX, now = ds_now_nsec();

    for (unsigned i = fake->n_sequences; i-- > 0;) {
        struct sequence *sequence = &fake->sequences[i];

        if ((sequence->cancelled || sequence->next_nsec <= now) && advance(fake, sequence)) {
            free(sequence->prompt);
            *sequence = fake->sequences[--fake->n_sequences];
            next = 0; /* another one stands here now */
            continue;
        }
        next = sequence->next_nsec < next ? sequence->next_nsec : next;
    }
    for (int i = 0; i < MODELS_MAX; i++) {
        struct load *load = &fake->loads[i];

        if (!load->pending)
            continue;
        if (load->due_nsec <= now) {
            post_loaded(fake, load);
            *load = (struct load){ 0 };
        } else if (load->due_nsec < next) {
            next = load->due_nsec;
        }
    }
    return next;
}

/* --- the link --- */

static void take_socket(struct fake *fake)
{
    _Alignas(8) uint8_t datagram[DS_DATAGRAM_MAX];
    const struct ds_datagram *head = (const void *) datagram;
    int fds[DS_DATAGRAM_FDS_MAX];
    unsigned n_fds = 0;
    size_t size = 0;
    int r;

    while ((r = ds_datagram_receive(LINK_FD, datagram, sizeof datagram, &size, fds,
                                    DS_DATAGRAM_FDS_MAX, &n_fds)) == 0) {
        if (size == 0)
            exit(0);
        if (head->type == DS_DATAGRAM_LOAD)
            take_load(fake, head + 1, size - sizeof *head, fds, n_fds);
    }
    if (r != -EAGAIN)
        exit(9);
}

static void join(struct fake *fake)
{
    static const char about[] = "a fake";
    struct pollfd wait = { .fd = LINK_FD, .events = POLLIN };
    struct ds_welcome welcome;
    struct {
        struct ds_datagram head;
        char text[sizeof about];
    } ready;
    unsigned n_fds = 0;
    size_t size = 0;
    int fds[4];

    if (poll(&wait, 1, 5000) != 1 ||
        ds_datagram_receive(LINK_FD, &welcome, sizeof welcome, &size, fds, 4, &n_fds) < 0 ||
        n_fds != 4)
        exit(10);
    if (ds_channel_join(&fake->channel, DS_CHANNEL_SERVER, &welcome,
                        (struct ds_channel_fds){ fds[0], fds[1], fds[2], fds[3] }) < 0)
        exit(11);
    ds_datagram_init(&ready.head, DS_DATAGRAM_READY, sizeof ready);
    memcpy(ready.text, about, sizeof about);
    if (ds_datagram_send(LINK_FD, &ready, sizeof ready, NULL, 0) < 0)
        exit(12);
}

static void sleep_until(struct fake *fake, uint64_t next)
{
    struct pollfd wait[] = { { .fd = LINK_FD, .events = POLLIN },
                             { .fd = ds_channel_bell_in(fake->channel), .events = POLLIN } };
    uint64_t now = ds_now_nsec(), count;
    int timeout = next == UINT64_MAX ? -1 : next <= now ? 0 : (int) ((next - now) / 1000000 + 1);

    if (ds_channel_sleep(fake->channel)) {
        (void) poll(wait, 2, timeout);
        if (wait[1].revents & POLLIN)
            (void) !read(wait[1].fd, &count, sizeof count);
        ds_channel_wake(fake->channel);
    }
}

int main(void)
{
    struct fake *fake = calloc(1, sizeof *fake);

    if (!fake)
        return 1;
    (void) signal(SIGPIPE, SIG_IGN);
    join(fake);
    for (;;) {
        uint64_t next;

        take_socket(fake);
        (void) take_submissions(fake);
        next = run_steps(fake);
        ds_channel_beat(fake->channel, ds_now_nsec());
        sleep_until(fake, next);
    }
}
