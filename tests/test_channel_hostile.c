/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: whatever the other side writes where it may write, this side stays within its memory, ends
 * in -EPROTO or goes on, and what it was given as its private copy does not change.
 * Method: play the liar by hand, one lie at a time (every index, every field, every descriptor),
 * then with a thread that scribbles at random. The sanitizer builds watch the honest side.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include "proto/base.h"
#include "shm/channel_internal.h"
#include "shm/region.h"
#include "tests/lib/channel_pair.h"

static const struct ds_geometry small = {
    .sq_entries = 4, .cq_entries = 8, .arena_bytes = 4096, .rsp_bytes = 4096, .max_inflight = 3
};

#define PAIR(creator)                                                                              \
    ds_cleanup(ds_channel_pair_free) struct ds_channel_pair pair =                                 \
        ds_channel_pair_new(&small, creator)

/* --- a lying submitter --- */

static void expect_receive(struct ds_channel *server, int expected)
{
    const void *payload;
    struct ds_sqe entry;

    assert_int_equal(ds_channel_receive(server, &entry, &payload), expected);
}

static void a_submission_tail_too_far_ahead_ends_the_channel(void **state)
{
    static const uint32_t lies[] = { 5, 6, 1000, 0x7fffffff, 0x80000000, UINT32_MAX };

    (void) state;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        PAIR(DS_CHANNEL_SERVER);

        ds_store_release(&pair.submitter->s_hot->sq_tail, lies[i]);
        expect_receive(pair.server, -EPROTO);
        ds_store_release(&pair.submitter->s_hot->sq_tail, 0); /* repentance is too late */
        expect_receive(pair.server, -EPROTO);
        assert_int_equal(
            ds_channel_post(pair.server, &(struct ds_cqe){ .type = DS_CQE_PONG }, NULL, 0, true),
            -EPROTO);
        assert_false(ds_channel_sleep(pair.server));
    }
}

static void a_submission_tail_that_goes_back_ends_the_channel(void **state)
{
    PAIR(DS_CHANNEL_SERVER);

    (void) state;
    assert_int_equal(ds_channel_put(pair.submitter, 1, "a", 1), 0);
    assert_int_equal(ds_channel_put(pair.submitter, 2, "b", 1), 0);
    expect_receive(pair.server, 0);
    expect_receive(pair.server, 0);
    ds_store_release(&pair.submitter->s_hot->sq_tail, 1);
    expect_receive(pair.server, -EPROTO);
}

static void entries_not_released_cannot_be_submitted_over(void **state)
{
    PAIR(DS_CHANNEL_SERVER);

    (void) state;
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(ds_channel_put(pair.submitter, i, "a", 1), 0);
    for (uint64_t i = 0; i < 4; i++)
        expect_receive(pair.server, 0);
    ds_store_release(&pair.submitter->s_hot->sq_tail, 5); /* nothing has been released */
    expect_receive(pair.server, -EPROTO);
}

static void completions_not_published_cannot_be_given_back(void **state)
{
    static const uint32_t lies[] = { 3, 8, 9, 0x80000000, UINT32_MAX };
    struct ds_cqe entry = { .type = DS_CQE_PONG };

    (void) state;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        PAIR(DS_CHANNEL_SERVER);

        for (unsigned k = 0; k < 2; k++)
            assert_int_equal(ds_channel_post(pair.server, &entry, NULL, 0, false), 0);
        ds_channel_publish(pair.server);
        while (ds_channel_post(pair.server, &entry, NULL, 0, false) == 0)
            ; /* full, but only two are public */
        ds_store_release(&pair.submitter->s_hot->cq_head, lies[i]);
        assert_int_equal(ds_channel_post(pair.server, &entry, NULL, 0, false), -EPROTO);
    }
}

static void a_completion_head_that_goes_back_ends_the_channel(void **state)
{
    struct ds_cqe entry = { .type = DS_CQE_PONG };
    int r;

    PAIR(DS_CHANNEL_SERVER);
    (void) state;
    for (unsigned round = 0; round < 2; round++) {
        do
            r = ds_channel_post(pair.server, &entry, NULL, 0, false);
        while (r == 0);
        ds_channel_publish(pair.server);
        if (round == 0) {
            assert_int_equal(r, DS_CHANNEL_FULL);
            ds_store_release(&pair.submitter->s_hot->cq_head, 4);
        }
    }
    ds_store_release(&pair.submitter->s_hot->cq_head, 3);
    assert_int_equal(ds_channel_post(pair.server, &entry, NULL, 0, false), -EPROTO);
}

/* Giving back early is the submitter's own loss; it must not let two live payloads overlap. */
static void response_bytes_in_use_never_overlap(void **state)
{
    struct ds_cqe entry = { .type = DS_CQE_FINAL };
    uint64_t start[64], end[64];
    uint8_t bytes[1000] = { 0 };
    uint32_t head = 0, tail = 0;
    uint64_t draw = 1;

    PAIR(DS_CHANNEL_SERVER);
    (void) state;
    for (unsigned round = 0; round < 5000; round++) {
        size_t len;

        draw = draw * 6364136223846793005u + 1442695040888963407u;
        len = 41 + (draw >> 33) % 900;
        if (ds_channel_post(pair.server, &entry, bytes, len, draw & 1) == 0) {
            const struct ds_cqe *cqe = &pair.server->cqes[tail & 7];

            start[tail % 64] = cqe->u.ool.rsp_pos;
            end[tail % 64] = cqe->u.ool.rsp_pos + len;
            tail++;
            assert_true(end[(tail - 1) % 64] - start[head % 64] <= 4096);
            for (uint32_t i = head; i + 1 < tail; i++)
                assert_true(end[i % 64] <= start[(i + 1) % 64]);
            ds_channel_publish(pair.server);
        } else if (head != tail) {
            head += 1 + (uint32_t) (draw >> 40) % (tail - head);
            ds_store_release(&pair.submitter->s_hot->cq_head, head);
        }
    }
    assert_true(tail > 1000);
}

/* Publishes an entry as it is, past the honest submitter's checks. */
static void submit_raw(struct ds_channel *submitter, const struct ds_sqe *entry)
{
    uint32_t tail = ds_load(&submitter->s_hot->sq_tail);

    submitter->sqes[tail & 3] = *entry;
    ds_store_release(&submitter->s_hot->sq_tail, tail + 1);
}

static void every_bad_entry_is_refused_alone(void **state)
{
    static const struct ds_sqe bad[] = {
        { .op = DS_SQE_CLOSE + 1 },
        { .op = UINT16_MAX },
        { .op = DS_SQE_SUBMIT, .flags = 1 },
        { .op = DS_SQE_SUBMIT, .prio = 1 },
        { .op = DS_SQE_SUBMIT, .zero = 1 },
        { .op = DS_SQE_PING, .payload_len = 1 },
        { .op = DS_SQE_SUBMIT, .payload_len = 4097 },
        { .op = DS_SQE_SUBMIT, .payload_len = UINT32_MAX },
        { .op = DS_SQE_SUBMIT, .payload_len = 1, .payload_off = 4096 },
        { .op = DS_SQE_SUBMIT, .payload_len = 2, .payload_off = 4095 },
        { .op = DS_SQE_SUBMIT, .payload_len = 0, .payload_off = 4097 },
        { .op = DS_SQE_SUBMIT, .payload_len = 16, .payload_off = UINT64_MAX },
        { .op = DS_SQE_SUBMIT, .payload_len = 16, .payload_off = UINT64_MAX - 15 },
        { .op = DS_SQE_SUBMIT, .payload_len = 4096, .payload_off = (uint64_t) 1 << 63 },
    };
    const struct ds_sqe good = { .op = DS_SQE_SUBMIT, .payload_len = 1, .payload_off = 4095 };

    PAIR(DS_CHANNEL_SERVER);
    (void) state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct ds_sqe entry = bad[i], got;
        const void *payload;

        entry.req_id = 100 + i;
        submit_raw(pair.submitter, &entry);
        submit_raw(pair.submitter, &good);
        assert_int_equal(ds_channel_receive(pair.server, &got, &payload), -EBADMSG);
        assert_int_equal(got.req_id, 100 + i);
        assert_int_equal(ds_channel_receive(pair.server, &got, &payload), DS_CHANNEL_OK);
        ds_channel_release(pair.server);
    }
    assert_int_equal(ds_load(&pair.server->c_hot->sq_invalid), sizeof bad / sizeof bad[0]);
}

/* --- a lying server --- */

static void a_submission_head_beyond_what_was_submitted_ends_the_channel(void **state)
{
    static const uint32_t lies[] = { 5, 0x80000000, UINT32_MAX };

    (void) state;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        PAIR(DS_CHANNEL_SUBMITTER);

        for (uint64_t k = 0; k < 4; k++)
            assert_int_equal(ds_channel_put(pair.submitter, k, "a", 1), 0);
        ds_store_release(&pair.server->c_hot->sq_head, lies[i]);
        assert_int_equal(ds_channel_put(pair.submitter, 9, "a", 1), -EPROTO);
        assert_int_equal(ds_channel_put(pair.submitter, 9, "a", 1), -EPROTO);
    }
}

static void a_submission_head_that_goes_back_ends_the_channel(void **state)
{
    PAIR(DS_CHANNEL_SUBMITTER);

    (void) state;
    for (uint64_t k = 0; k < 4; k++)
        assert_int_equal(ds_channel_put(pair.submitter, k, "a", 1), 0);
    ds_store_release(&pair.server->c_hot->sq_head, 2);
    for (uint64_t k = 0; k < 2; k++)
        assert_int_equal(ds_channel_put(pair.submitter, k, "a", 1), 0);
    ds_store_release(&pair.server->c_hot->sq_head, 1);
    assert_int_equal(ds_channel_put(pair.submitter, 9, "a", 1), -EPROTO);
}

static void a_completion_tail_out_of_range_ends_the_channel(void **state)
{
    static const uint32_t lies[] = { 9, 0x80000000, UINT32_MAX };
    struct ds_cqe entry;
    const void *payload;

    (void) state;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        PAIR(DS_CHANNEL_SUBMITTER);

        ds_store_release(&pair.server->c_hot->cq_tail, lies[i]);
        assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), -EPROTO);
        ds_store_release(&pair.server->c_hot->cq_tail, 0);
        assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), -EPROTO);
    }
}

static void completions_not_given_back_cannot_be_published_over(void **state)
{
    const void *payload;
    struct ds_cqe entry;

    PAIR(DS_CHANNEL_SUBMITTER);
    (void) state;
    ds_store_release(&pair.server->c_hot->cq_tail, 8);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), 0);
    ds_store_release(&pair.server->c_hot->cq_tail, 9); /* read, but not done with */
    assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), -EPROTO);
}

/* What next() says of an entry published as it is. */
static int next_of(struct ds_channel_pair *pair, const struct ds_cqe *lie, struct ds_cqe *ret_entry,
                   const void **ret_payload)
{
    uint32_t tail = ds_load(&pair->server->c_hot->cq_tail);

    pair->server->cqes[tail & 7] = *lie;
    ds_store_release(&pair->server->c_hot->cq_tail, tail + 1);
    return ds_channel_next(pair->submitter, ret_entry, ret_payload);
}

static void every_bad_completion_ends_the_channel(void **state)
{
    static const struct ds_cqe bad[] = {
        { .type = DS_CQE_FINAL, .len = 41 },
        { .type = DS_CQE_FINAL, .len = UINT32_MAX },
        { .type = DS_CQE_FINAL, .flags = DS_CQE_OOL, .len = 4097 },
        { .type = DS_CQE_FINAL, .flags = DS_CQE_OOL, .len = UINT32_MAX },
        { .type = DS_CQE_FINAL, .flags = DS_CQE_OOL, .len = 64, .u.ool.rsp_pos = 1 },
    };

    (void) state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        PAIR(DS_CHANNEL_SUBMITTER);
        const void *payload;
        struct ds_cqe entry;

        assert_int_equal(next_of(&pair, &bad[i], &entry, &payload), -EPROTO);
    }
}

static void any_position_reads_within_the_ring(void **state)
{
    static const uint64_t positions[] = { 0, 8, 4088, 4096, UINT64_MAX - 7, (uint64_t) 1 << 63 };
    const void *payload;
    struct ds_cqe entry;

    (void) state;
    for (unsigned c = 0; c < 2; c++) {
        PAIR(c ? DS_CHANNEL_SUBMITTER : DS_CHANNEL_SERVER);

        for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
            struct ds_cqe lie = { .type = DS_CQE_FINAL,
                                  .flags = DS_CQE_OOL,
                                  .len = 4096,
                                  .u.ool.rsp_pos = positions[i] };
            unsigned sum = 0;

            assert_int_equal(next_of(&pair, &lie, &entry, &payload), DS_CHANNEL_OK);
            for (unsigned k = 0; k < entry.len; k++)
                sum += ((const volatile uint8_t *) payload)[k];
            assert_int_equal(sum, 0);
            ds_channel_done(pair.submitter);
        }
    }
}

static void who_does_not_trust_gets_a_copy_and_who_trusts_reads_in_place(void **state)
{
    const void *payload;
    struct ds_cqe entry;
    uint8_t bytes[100];

    (void) state;
    for (unsigned c = 0; c < 2; c++) {
        PAIR(c ? DS_CHANNEL_SUBMITTER : DS_CHANNEL_SERVER);
        struct ds_cqe out = { .type = DS_CQE_FINAL };

        memset(bytes, 'a', sizeof bytes);
        assert_int_equal(ds_channel_post(pair.server, &out, bytes, sizeof bytes, true), 0);
        ds_channel_publish(pair.server);
        assert_int_equal(ds_channel_next(pair.submitter, &entry, &payload), 0);
        pair.server->rsp[0] = 'b';
        assert_int_equal(*(const volatile char *) payload, c ? 'a' : 'b');
    }
}

/* --- joining --- */

static void expect_join(const struct ds_channel *created, struct ds_welcome welcome,
                        struct ds_channel_fds fds, int expected)
{
    struct ds_channel *joined = NULL;
    struct ds_channel_fds copy = ds_channel_fds_dup(fds);

    (void) created;
    assert_int_equal(ds_channel_join(&joined, DS_CHANNEL_SUBMITTER, &welcome, copy), expected);
    if (expected) {
        assert_null(joined);
        assert_int_equal(fcntl(copy.s_fd, F_GETFD), -1); /* taken, even so */
        assert_int_equal(fcntl(copy.c_fd, F_GETFD), -1);
        assert_int_equal(fcntl(copy.bell_to_server, F_GETFD), -1);
        assert_int_equal(fcntl(copy.bell_to_submitter, F_GETFD), -1);
    }
    joined = ds_channel_free(joined);
}

static void a_layout_changed_in_any_byte_is_refused(void **state)
{
    struct ds_channel *created;
    struct ds_channel_fds fds;
    struct ds_welcome welcome;

    (void) state;
    assert_int_equal(ds_channel_create(&created, DS_CHANNEL_SERVER, &small, 1), 0);
    ds_channel_welcome(created, &welcome, &fds);
    expect_join(created, welcome, fds, 0);
    for (size_t i = 0; i < sizeof welcome.layout; i++)
        for (unsigned bit = 0; bit < 8; bit += 7) {
            struct ds_welcome lie = welcome;

            ((uint8_t *) &lie.layout)[i] ^= (uint8_t) (1u << bit);
            expect_join(created, lie, fds, -EPROTO);
        }
    created = ds_channel_free(created);
}

static void descriptors_that_do_not_fit_are_refused(void **state)
{
    struct ds_channel *created, *other;
    struct ds_channel_fds fds, others, lie;
    struct ds_welcome welcome, ignored;
    int pipes[2];

    (void) state;
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(ds_channel_create(&created, DS_CHANNEL_SERVER, &small, 1), 0);
    assert_int_equal(ds_channel_create(&other, DS_CHANNEL_SERVER, &small, 1), 0);
    ds_channel_welcome(created, &welcome, &fds);
    ds_channel_welcome(other, &ignored, &others);

    lie = fds, lie.s_fd = fds.c_fd, expect_join(created, welcome, lie, -EPROTO);
    lie = fds, lie.c_fd = fds.s_fd, expect_join(created, welcome, lie, -EPROTO);
    lie = fds, lie.s_fd = pipes[0], expect_join(created, welcome, lie, -EPROTO);
    lie = fds, lie.c_fd = pipes[1], expect_join(created, welcome, lie, -EPROTO);
    lie = fds, lie.c_fd = others.c_fd, expect_join(created, welcome, lie, -EPROTO);
    (void) close(pipes[0]);
    (void) close(pipes[1]);
    created = ds_channel_free(created);
    other = ds_channel_free(other);
}

static void a_region_without_its_seals_is_refused(void **state)
{
    struct ds_channel *created;
    struct ds_channel_fds fds, lie;
    struct ds_welcome welcome;
    ds_cleanup(ds_close_p) int open_s = -1;
    ds_cleanup(ds_close_p) int writable_c = -1;

    (void) state;
    assert_int_equal(ds_channel_create(&created, DS_CHANNEL_SERVER, &small, 1), 0);
    ds_channel_welcome(created, &welcome, &fds);
    assert_int_equal(ds_region_create("lie", welcome.layout.s_size, &open_s), 0);
    assert_int_equal(ds_region_create("lie", welcome.layout.c_size, &writable_c), 0);
    assert_int_equal(pwrite(writable_c, &welcome.layout, sizeof welcome.layout, 0),
                     sizeof welcome.layout);
    assert_int_equal(ds_region_seal(writable_c, DS_REGION_JOINER), 0);

    lie = fds, lie.s_fd = open_s, expect_join(created, welcome, lie, -EPROTO);
    lie = fds, lie.c_fd = writable_c, expect_join(created, welcome, lie, -EPROTO);
    assert_int_equal(ds_region_seal(open_s, DS_REGION_CREATOR), 0); /* we could not write it */
    lie = fds, lie.s_fd = open_s, expect_join(created, welcome, lie, -EPROTO);
    created = ds_channel_free(created);
}

/* --- scribbling --- */

struct scribbler {
    pthread_t thread;
    atomic_bool stop;
    uint8_t *bytes;
    size_t size;
    bool spare_indices; /* the test moves them itself, honestly: else the game is over at once */
};

/* Mostly small numbers at the hot words and in the entries, sometimes anything anywhere. */
static void *scribble(void *data)
{
    struct scribbler *scribbler = data;
    uint64_t draw = 88172645463325252u;

    while (!atomic_load_explicit(&scribbler->stop, memory_order_relaxed)) {
        size_t at;

        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        at = (draw >> 8) % (scribbler->size / 4) * 4;
        if (draw & 3) /* the hot words, the ring, the start of the bytes */
            at = draw & 4 ? DS_WIRE_PAGE + at % 0x1200 : at % 0x300;
        if (at + 4 <= scribbler->size && (at >= DS_WIRE_PAGE || !scribbler->spare_indices))
            __atomic_store_n((uint32_t *) (void *) (scribbler->bytes + at),
                             draw & 8 ? (uint32_t) (draw >> 50) : (uint32_t) (draw >> 32),
                             __ATOMIC_RELAXED);
    }
    return NULL;
}

static void scribbler_start(struct scribbler *scribbler, uint8_t *bytes, size_t size)
{
    scribbler->bytes = bytes;
    scribbler->size = size;
    assert_int_equal(pthread_create(&scribbler->thread, NULL, scribble, scribbler), 0);
}

static void scribbler_stop(struct scribbler *scribbler)
{
    atomic_store(&scribbler->stop, true);
    assert_int_equal(pthread_join(scribbler->thread, NULL), 0);
}

static uint64_t sum_of(const uint8_t *bytes, size_t size)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < size; i++)
        sum = sum * 31 + bytes[i];
    return sum;
}

static void a_server_survives_a_submitter_that_scribbles(void **state)
{
    unsigned ended = 0, received = 0, refused = 0;

    (void) state;
    for (unsigned life = 0; life < 150; life++) {
        PAIR(DS_CHANNEL_SERVER);
        struct scribbler scribbler = { .spare_indices = life % 2 };
        uint8_t bytes[1024] = { 0 };

        scribbler_start(&scribbler, pair.submitter->s_region.base, pair.submitter->s_region.size);
        for (unsigned i = 0; i < 3000; i++) {
            struct ds_cqe out = { .type = DS_CQE_FINAL };
            struct ds_sqe entry;
            const void *payload;
            int r;

            if (scribbler.spare_indices)
                ds_store_release(&pair.submitter->s_hot->sq_tail,
                                 pair.server->server.sq_released + 1);
            r = ds_channel_receive(pair.server, &entry, &payload);
            if (r == -EPROTO) {
                ended++;
                break;
            }
            if (r == DS_CHANNEL_OK) { /* what was checked is what we hold */
                uint64_t sum = sum_of(payload, entry.payload_len);

                assert_true(entry.payload_len <= 4096);
                assert_true(entry.payload_off <= 4096 - entry.payload_len);
                assert_int_equal(entry.flags | entry.prio | entry.zero, 0);
                assert_int_equal(sum_of(payload, entry.payload_len), sum);
                received++;
            }
            refused += r == -EBADMSG;
            if (i % 3 == 0 || scribbler.spare_indices)
                ds_channel_release(pair.server);
            r = ds_channel_post(pair.server, &out, bytes, i % 1024, i & 1);
            assert_true(r == 0 || r == DS_CHANNEL_FULL || r == -EPROTO);
            ds_channel_publish(pair.server);
            (void) ds_channel_bell_due(pair.server);
            (void) ds_channel_sleep(pair.server);
        }
        scribbler_stop(&scribbler);
    }
    assert_true(ended > 0 && received > 0 && refused > 0);
}

static void a_submitter_survives_a_server_that_scribbles(void **state)
{
    unsigned ended = 0, got = 0;

    (void) state;
    for (unsigned life = 0; life < 150; life++) {
        PAIR(DS_CHANNEL_SUBMITTER);
        struct scribbler scribbler = { .spare_indices = life % 2 };

        scribbler_start(&scribbler, (uint8_t *) pair.server->c_region.base + DS_WIRE_PAGE,
                        pair.server->c_region.size - DS_WIRE_PAGE);
        for (unsigned i = 0; i < 3000; i++) {
            struct ds_cqe entry;
            const void *payload;
            int r;

            if (scribbler.spare_indices) {
                uint64_t *words = (void *) &pair.server->cqes[i % 8];

                __atomic_store_n(&words[2], 0, __ATOMIC_RELAXED); /* no length for now */
                ds_store_release(&pair.server->c_hot->cq_tail, i + 1);
            }
            r = ds_channel_next(pair.submitter, &entry, &payload);
            if (r == -EPROTO) {
                ended++;
                break;
            }
            if (r == DS_CHANNEL_OK) {
                uint64_t sum = sum_of(payload, entry.len);

                assert_true(entry.len <= 4096);
                assert_int_equal(sum_of(payload, entry.len), sum);
                got++;
            }
            if (i % 3 == 0 || scribbler.spare_indices)
                ds_channel_done(pair.submitter);
            r = ds_channel_put(pair.submitter, i, "abc", 3);
            assert_true(r == 0 || r == DS_CHANNEL_FULL || r == -EPROTO);
            (void) ds_channel_bell_due(pair.submitter);
            (void) ds_channel_sleep(pair.submitter);
        }
        scribbler_stop(&scribbler);
    }
    assert_true(ended > 0 && got > 0);
}

/* One entry whose length and offset flip between two values that are fine alone and bad together,
 * over a payload that flips as well. */
static void *flip(void *data)
{
    struct scribbler *scribbler = data;
    struct ds_sqe *entry = (struct ds_sqe *) (void *) (scribbler->bytes + DS_WIRE_PAGE);
    uint8_t *arena = scribbler->bytes + 2 * DS_WIRE_PAGE;

    for (uint32_t i = 0; !atomic_load_explicit(&scribbler->stop, memory_order_relaxed); i++) {
        __atomic_store_n(&entry->payload_len, i & 1 ? 4096 : 1, __ATOMIC_RELAXED);
        __atomic_store_n(&entry->payload_off, i & 2 ? 4095 : 0, __ATOMIC_RELAXED);
        __atomic_store_n(&arena[i & 4095], (uint8_t) i, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void an_entry_that_flips_while_it_is_read_is_judged_by_one_reading(void **state)
{
    struct scribbler scribbler = { 0 };
    unsigned fine = 0, bad = 0;

    PAIR(DS_CHANNEL_SERVER);
    (void) state;
    for (unsigned i = 0; i < 4; i++)
        pair.submitter->sqes[i] = (struct ds_sqe){ .op = DS_SQE_SUBMIT, .payload_len = 1 };
    scribbler.bytes = pair.submitter->s_region.base;
    assert_int_equal(pthread_create(&scribbler.thread, NULL, flip, &scribbler), 0);
    for (uint32_t i = 0; i < 200000; i++) {
        struct ds_sqe entry;
        const void *payload;
        int r;

        ds_store_release(&pair.submitter->s_hot->sq_tail, i + 1);
        r = ds_channel_receive(pair.server, &entry, &payload);
        if (r == DS_CHANNEL_OK) {
            uint64_t sum = sum_of(payload, entry.payload_len);

            assert_true(entry.payload_off + entry.payload_len <= 4096);
            if (i % 64 == 0)
                assert_int_equal(sum_of(payload, entry.payload_len), sum);
            fine++;
        } else {
            assert_int_equal(r, -EBADMSG);
            assert_true(entry.payload_off + entry.payload_len > 4096);
            bad++;
        }
        ds_channel_release(pair.server);
    }
    scribbler_stop(&scribbler);
    assert_int_equal(fine + bad, 200000);
}

/* --- bells --- */

static void a_saturated_bell_does_not_block_who_rings_it(void **state)
{
    uint64_t all = UINT64_MAX - 1;
    int flags;

    PAIR(DS_CHANNEL_SERVER);
    (void) state;
    flags = fcntl(ds_channel_bell_in(pair.submitter), F_GETFL);
    assert_int_equal(fcntl(ds_channel_bell_in(pair.submitter), F_SETFL, flags & ~O_NONBLOCK), 0);
    assert_int_equal(write(ds_channel_bell_in(pair.submitter), &all, sizeof all), sizeof all);
    (void) alarm(5);
    ds_channel_ring_bell(pair.server);
    (void) alarm(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_submission_tail_too_far_ahead_ends_the_channel),
        cmocka_unit_test(a_submission_tail_that_goes_back_ends_the_channel),
        cmocka_unit_test(entries_not_released_cannot_be_submitted_over),
        cmocka_unit_test(completions_not_published_cannot_be_given_back),
        cmocka_unit_test(a_completion_head_that_goes_back_ends_the_channel),
        cmocka_unit_test(response_bytes_in_use_never_overlap),
        cmocka_unit_test(every_bad_entry_is_refused_alone),
        cmocka_unit_test(a_submission_head_beyond_what_was_submitted_ends_the_channel),
        cmocka_unit_test(a_submission_head_that_goes_back_ends_the_channel),
        cmocka_unit_test(a_completion_tail_out_of_range_ends_the_channel),
        cmocka_unit_test(completions_not_given_back_cannot_be_published_over),
        cmocka_unit_test(every_bad_completion_ends_the_channel),
        cmocka_unit_test(any_position_reads_within_the_ring),
        cmocka_unit_test(who_does_not_trust_gets_a_copy_and_who_trusts_reads_in_place),
        cmocka_unit_test(a_layout_changed_in_any_byte_is_refused),
        cmocka_unit_test(descriptors_that_do_not_fit_are_refused),
        cmocka_unit_test(a_region_without_its_seals_is_refused),
        cmocka_unit_test(a_server_survives_a_submitter_that_scribbles),
        cmocka_unit_test(a_submitter_survives_a_server_that_scribbles),
        cmocka_unit_test(an_entry_that_flips_while_it_is_read_is_judged_by_one_reading),
        cmocka_unit_test(a_saturated_bell_does_not_block_who_rings_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
