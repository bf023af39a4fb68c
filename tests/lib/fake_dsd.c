/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "proto/base.h"
#include "proto/message.h"
#include "shm/handshake.h"
#include "tests/lib/fake_dsd.h"

#define LINK_FD       3
#define ARGUMENTS_MAX 16

const char *ds_fake_engine_path(void)
{
    static char path[PATH_MAX];
    const char *build = getenv("DSD_BUILD");
    char self[PATH_MAX - 32];
    ssize_t n;

    if (build) {
        (void) snprintf(path, sizeof path, "%s/dsd-engine", build);
        return path;
    }
    n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = '\0';
    *strrchr(self, '/') = '\0';
    (void) snprintf(path, sizeof path, "%s/../dsd-engine", self);
    return path;
}

static _Noreturn void become_engine(int link, const char *const *arguments)
{
    const char *argv[ARGUMENTS_MAX + 2] = { "dsd-engine" };

    for (unsigned i = 0; arguments && arguments[i] && i < ARGUMENTS_MAX; i++)
        argv[i + 1] = arguments[i];
    if (link == LINK_FD ? fcntl(link, F_SETFD, 0) < 0 : dup2(link, LINK_FD) < 0)
        _exit(126);
    (void) execv(ds_fake_engine_path(), (char **) argv);
    (void) dprintf(2, "%s: %s\n", ds_fake_engine_path(), strerror(errno));
    _exit(127);
}

static void wait_for(int fd, short events)
{
    struct pollfd poll_fd = { .fd = fd, .events = events };

    if (poll(&poll_fd, 1, DS_FAKE_WAIT_MSEC) != 1)
        fail_msg("the engine is silent");
}

static void shake_hands(struct ds_fake_dsd *fake, const struct ds_geometry *geometry)
{
    static const struct ds_geometry usual = { 0 };
    struct ds_channel_fds fds;
    struct ds_welcome welcome;
    union {
        struct ds_datagram head;
        char bytes[DS_DATAGRAM_MAX];
    } ready;
    unsigned n_fds;
    size_t size;
    int sent[4];

    assert_int_equal(
        ds_channel_create(&fake->channel, DS_CHANNEL_SUBMITTER, geometry ? geometry : &usual, 1),
        0);
    ds_channel_welcome(fake->channel, &welcome, &fds);
    sent[0] = fds.s_fd;
    sent[1] = fds.c_fd;
    sent[2] = fds.bell_to_server;
    sent[3] = fds.bell_to_submitter;
    assert_int_equal(ds_datagram_send(fake->socket, &welcome, sizeof welcome, sent, 4), 0);
    ds_channel_sent(fake->channel);
    wait_for(fake->socket, POLLIN);
    assert_int_equal(
        ds_datagram_receive(fake->socket, &ready, sizeof ready, &size, NULL, 0, &n_fds), 0);
    assert_true(size > sizeof ready.head); /* and what the engine is */
    assert_int_equal(ready.head.type, DS_DATAGRAM_READY);
}

void ds_fake_dsd_spawn(struct ds_fake_dsd *fake, const char *const *arguments)
{
    int pair[2];

    *fake = (struct ds_fake_dsd){ 0 };
    if (access(ds_fake_engine_path(), X_OK) < 0)
        fail_msg("%s is not built: make all", ds_fake_engine_path());
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    fake->pid = fork();
    assert_true(fake->pid >= 0);
    if (fake->pid == 0)
        become_engine(pair[1], arguments);
    (void) close(pair[1]);
    fake->socket = pair[0];
}

void ds_fake_dsd_start(struct ds_fake_dsd *fake, const struct ds_geometry *geometry,
                       const char *const *arguments)
{
    ds_fake_dsd_spawn(fake, arguments);
    shake_hands(fake, geometry);
}

int ds_fake_dsd_wait(struct ds_fake_dsd *fake)
{
    int status = 0;

    assert_int_equal(waitpid(fake->pid, &status, 0), fake->pid);
    fake->pid = -1;
    return status;
}

int ds_fake_dsd_stop(struct ds_fake_dsd *fake)
{
    int status = 0;

    (void) close(fake->socket);
    if (fake->pid > 0)
        status = ds_fake_dsd_wait(fake);
    fake->channel = ds_channel_free(fake->channel);
    return status;
}

/* --- requests --- */

void ds_fake_load(struct ds_fake_dsd *fake, const Ds__LinkLoad *load, const int *fds,
                  unsigned fds_each)
{
    union {
        struct ds_datagram head;
        uint8_t bytes[DS_DATAGRAM_MAX];
    } datagram;
    size_t size;

    assert_int_equal(ds_message_pack(load, datagram.bytes + sizeof datagram.head,
                                     sizeof datagram.bytes - sizeof datagram.head, &size),
                     0);
    size += sizeof datagram.head;
    ds_datagram_init(&datagram.head, DS_DATAGRAM_LOAD, size);
    for (unsigned sent = 0; sent < load->n_files;) {
        unsigned n = load->n_files - sent < fds_each ? load->n_files - sent : fds_each;

        wait_for(fake->socket, POLLOUT);
        assert_int_equal(ds_datagram_send(fake->socket, &datagram, size, fds + sent, n), 0);
        sent += n;
    }
}

static void ring(struct ds_fake_dsd *fake)
{
    if (ds_channel_bell_due(fake->channel))
        ds_channel_ring_bell(fake->channel);
}

void ds_fake_submit(struct ds_fake_dsd *fake, uint64_t req_id, const Ds__LinkRequest *request)
{
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .req_id = req_id };
    size_t size = ds_message_size(request);
    void *payload = NULL;

    assert_int_equal(ds_channel_reserve(fake->channel, size, &payload), DS_CHANNEL_OK);
    assert_int_equal(ds_message_pack(request, payload, size, &size), 0);
    assert_int_equal(ds_channel_submit(fake->channel, &entry, size), DS_CHANNEL_OK);
    ring(fake);
}

void ds_fake_entry(struct ds_fake_dsd *fake, enum ds_sqe_op op, uint64_t req_id)
{
    struct ds_sqe entry = { .op = (uint16_t) op, .req_id = req_id };

    assert_int_equal(ds_channel_submit(fake->channel, &entry, 0), DS_CHANNEL_OK);
    ring(fake);
}

/* --- completions --- */

/* Sleeps until a completion may be there. False: nothing rang in time. */
static bool sleep_for_bell(struct ds_fake_dsd *fake, int msec)
{
    struct pollfd poll_fd = { .fd = ds_channel_bell_in(fake->channel), .events = POLLIN };
    uint64_t rings;
    int n = 1;

    if (ds_channel_sleep(fake->channel))
        n = poll(&poll_fd, 1, msec);
    ds_channel_wake(fake->channel);
    if (poll_fd.revents & POLLIN)
        (void) !read(poll_fd.fd, &rings, sizeof rings);
    return n > 0;
}

bool ds_fake_quiet(struct ds_fake_dsd *fake, int msec)
{
    return !ds_channel_pending(fake->channel) && !sleep_for_bell(fake, msec);
}

void ds_fake_next(struct ds_fake_dsd *fake, struct ds_fake_completion *ret_completion)
{
    struct ds_fake_completion whole = { 0 };
    const void *payload;
    int r;

    for (;;) {
        r = ds_channel_next(fake->channel, &whole.entry, &payload);
        if (r == DS_CHANNEL_EMPTY) {
            if (!sleep_for_bell(fake, DS_FAKE_WAIT_MSEC))
                fail_msg("the engine is silent");
            continue;
        }
        assert_int_equal(r, DS_CHANNEL_OK);
        whole.bytes = realloc(whole.bytes, whole.size + whole.entry.len + 1);
        assert_non_null(whole.bytes);
        if (whole.entry.len)
            memcpy(whole.bytes + whole.size, payload, whole.entry.len);
        whole.size += whole.entry.len;
        whole.n_pieces++;
        ds_channel_done(fake->channel);
        ring(fake);
        if (!(whole.entry.flags & DS_CQE_MORE))
            break;
    }
    *ret_completion = whole;
}

static void add_chunk(struct ds_fake_answer *answer, const Ds__TokenChunk *chunk)
{
    assert_true(answer->n_ids + chunk->n_ids <= sizeof answer->ids / sizeof answer->ids[0]);
    for (size_t i = 0; i < chunk->n_ids; i++)
        answer->ids[answer->n_ids++] = chunk->ids[i];
    answer->n_logprobs += chunk->n_logprobs;
    assert_true(answer->n_text + chunk->text.len < sizeof answer->text);
    if (chunk->text.len)
        memcpy(answer->text + answer->n_text, chunk->text.data, chunk->text.len);
    answer->n_text += chunk->text.len;
}

static void add_result(struct ds_fake_answer *answer, const Ds__GenerateResult *result)
{
    answer->ended = true;
    answer->reason = result->reason;
    (void) snprintf(answer->stop, sizeof answer->stop, "%s", result->stop);
    assert_true(answer->n_text + result->text.len < sizeof answer->text);
    if (result->text.len)
        memcpy(answer->text + answer->n_text, result->text.data, result->text.len);
    answer->n_text += result->text.len;
    if (result->usage) {
        answer->usage_prompt = result->usage->prompt_tokens;
        answer->usage_cached = result->usage->cached_tokens;
        answer->usage_completion = result->usage->completion_tokens;
    }
}

static void add_record(struct ds_fake_answer *answer, const Ds__LinkTokens *record)
{
    assert_false(answer->ended);
    if (record->prompt_tokens)
        answer->prompt_tokens = record->prompt_tokens;
    if (record->chunk)
        add_chunk(answer, record->chunk);
    if (record->result)
        add_result(answer, record->result);
    if (record->error) {
        answer->ended = true;
        answer->error = record->error->code;
        (void) snprintf(answer->error_text, sizeof answer->error_text, "%s", record->error->text);
    }
    answer->text[answer->n_text] = '\0';
}

static void add_step(const struct ds_fake_completion *completion, struct ds_fake_answer **answers,
                     size_t n)
{
    Ds__LinkStep *step = NULL;

    assert_int_equal(
        ds_message_unpack(&ds__link_step__descriptor, completion->bytes, completion->size, &step),
        0);
    assert_true(step->n_outputs > 0);
    for (size_t i = 0; i < step->n_outputs; i++) {
        size_t at = 0;

        while (at < n && answers[at]->req_id != step->outputs[i]->req_id)
            at++;
        if (at == n)
            fail_msg("a record for request %llu", (unsigned long long) step->outputs[i]->req_id);
        else
            add_record(answers[at], step->outputs[i]);
    }
    ds_message_free(step);
}

void ds_fake_collect(struct ds_fake_dsd *fake, struct ds_fake_answer **answers, size_t n,
                     size_t min_ids)
{
    for (;;) {
        struct ds_fake_completion completion;
        size_t n_enough = 0;

        for (size_t i = 0; i < n; i++)
            n_enough += answers[i]->ended || (min_ids && answers[i]->n_ids >= min_ids);
        if (n_enough == n)
            return;
        ds_fake_next(fake, &completion);
        if (completion.entry.type == DS_CQE_STEP)
            add_step(&completion, answers, n);
        free(completion.bytes);
    }
}

Ds__LinkReply *ds_fake_reply(struct ds_fake_dsd *fake, uint64_t req_id, Ds__Error **ret_error,
                             unsigned *ret_notices)
{
    struct ds_fake_completion completion;
    Ds__LinkReply *reply = NULL;
    unsigned n_notices = 0;

    *ret_error = NULL;
    for (;;) {
        ds_fake_next(fake, &completion);
        if (completion.entry.req_id == req_id && completion.entry.type != DS_CQE_NOTICE)
            break;
        n_notices += completion.entry.req_id == req_id;
        free(completion.bytes);
    }
    if (completion.entry.type == DS_CQE_ERROR) {
        assert_int_equal(
            ds_message_unpack(&ds__error__descriptor, completion.bytes, completion.size, ret_error),
            0);
    } else {
        assert_int_equal(completion.entry.type, DS_CQE_FINAL);
        assert_int_equal(ds_message_unpack(&ds__link_reply__descriptor, completion.bytes,
                                           completion.size, &reply),
                         0);
    }
    free(completion.bytes);
    if (ret_notices)
        *ret_notices = n_notices;
    return reply;
}
