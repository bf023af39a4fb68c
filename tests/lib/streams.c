/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/base.h"
#include "tests/lib/streams.h"

int fixture_set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    strcpy(f->directory, "/tmp/ds-test-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    (void) snprintf(f->path, sizeof f->path, "%s/s", f->directory);
    f->fake = fake_daemon_start(f->path);
    f->plan = fake_daemon_plan(f->fake);
    *state = f;
    return 0;
}

int fixture_tear_down(void **state)
{
    struct fixture *f = *state;

    ds_close(f->ds);
    fake_daemon_stop(f->fake);
    (void) rmdir(f->directory);
    free(f);
    return 0;
}

void fixture_dial(struct fixture *f, uint32_t reconnect_timeout_ms)
{
    const struct ds_connect_options options = { .struct_size = sizeof options,
                                                .socket = f->path,
                                                .app_name = "test",
                                                .reconnect_timeout_ms = reconnect_timeout_ms };

    if (ds_connect(&f->ds, &options) != 0)
        fail_msg("ds_connect: %s", ds_error_text(NULL));
}

void fixture_hang_up(struct fixture *f)
{
    ds_close(f->ds);
    f->ds = NULL;
}

struct ds_request stream_request(uint64_t seed, uint32_t n_tokens)
{
    return (struct ds_request){ .struct_size = sizeof(struct ds_request),
                                .model = "m",
                                .prompt = "hello",
                                .max_tokens = n_tokens,
                                .set = DS_SET_SEED,
                                .seed = seed };
}

void stream_submit(struct fixture *f, struct stream *stream, uint64_t seed, uint32_t n_tokens)
{
    struct ds_request request = stream_request(seed, n_tokens);

    memset(stream, 0, sizeof *stream);
    stream->seed = seed;
    assert_int_equal(ds_submit(f->ds, &request, &stream->id), 0);
}

void streams_feed(struct stream *streams, size_t n, const struct ds_event *event)
{
    struct stream *stream = streams;

    while (stream < streams + n && stream->id != event->id)
        stream++;
    assert_true(stream < streams + n);
    assert_int_equal(stream->n_ends, 0); /* nothing comes after the last event */
    if (event->type == DS_EVENT_TOKENS) {
        memcpy(stream->ids + stream->n_ids, event->ids, event->n_ids * sizeof(uint32_t));
        stream->n_ids += event->n_ids;
    }
    if (event->type == DS_EVENT_TOKENS || event->type == DS_EVENT_FINAL) {
        assert_int_equal(event->text[event->text_size], '\0');
        strcat(stream->text, event->text);
    }
    if (event->type == DS_EVENT_FINAL || event->type == DS_EVENT_ERROR) {
        stream->n_ends++;
        stream->end = *event;
        strncat(stream->end_text, event->text, sizeof stream->end_text - 1);
    }
}

static int take(struct fixture *f, struct stream *streams, size_t n, struct ds_event *ret_event)
{
    int r = ds_next(f->ds, ret_event, PATIENT);

    if (r != 0)
        fail_msg("ds_next: %d %s", r, ds_error_text(f->ds));
    streams_feed(streams, n, ret_event);
    return ret_event->type == DS_EVENT_FINAL || ret_event->type == DS_EVENT_ERROR;
}

void streams_take(struct fixture *f, struct stream *streams, size_t n_streams, int n_events)
{
    struct ds_event event;

    while (n_events-- > 0)
        (void) take(f, streams, n_streams, &event);
}

void streams_collect(struct fixture *f, struct stream *streams, size_t n)
{
    struct ds_event event;
    size_t ended = 0;

    for (size_t i = 0; i < n; i++)
        ended += (size_t) streams[i].n_ends;
    while (ended < n)
        ended += (size_t) take(f, streams, n, &event);
}

void stream_check(const struct stream *stream, uint32_t n_tokens)
{
    ds_cleanup(ds_free_p) char *expected = fake_answer(stream->seed, n_tokens);

    assert_string_equal(stream->text, expected);
    assert_int_equal(stream->n_ids, n_tokens);
    for (uint32_t i = 0; i < n_tokens; i++)
        assert_int_equal(stream->ids[i], fake_token(stream->seed, i));
    assert_int_equal(stream->end.type, DS_EVENT_FINAL);
    assert_int_equal(stream->end.reason, DS_REASON_LENGTH);
    assert_int_equal(stream->end.completion_tokens, n_tokens);
}

uint64_t control_send(struct fixture *f, Ds__Request__OpCase op, void *part)
{
    ds_cleanup(ds_free_p) void *bytes = NULL;
    Ds__Request request = DS__REQUEST__INIT;
    uint64_t id = 0;
    size_t size;

    request.op_case = op;
    request.list = part; /* members of one union of pointers */
    assert_int_equal(ds_message_pack_new(&request, &bytes, &size), 0);
    assert_int_equal(ds_send(f->ds, bytes, size, &id), 0);
    return id;
}

Ds__Reply *control_reply(struct fixture *f, uint64_t id)
{
    struct ds_event event;
    Ds__Reply *reply;

    assert_int_equal(ds_next(f->ds, &event, PATIENT), 0);
    assert_int_equal(event.type, DS_EVENT_FINAL);
    assert_int_equal(event.id, id);
    assert_int_equal(
        ds_message_unpack(&ds__reply__descriptor, event.message, event.message_size, &reply), 0);
    return reply;
}
