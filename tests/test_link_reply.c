/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: what the engine found out reaches dsd unchanged: records, scores, errors; and completions
 * leave in order, whole, however little room the ring has.
 * Method: outputs made by hand, packed, unpacked and compared; an outbox on one side of a narrow
 * channel whose other side reads now and then.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "engine/link_outbox.h"
#include "engine/link_reply.h"
#include "engine/link_requests.h"
#include "proto/base.h"
#include "proto/message.h"
#include "tests/lib/channel_pair.h"
#include "tests/lib/tiny_model.h"

static int set_up(void **state)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_checkpoint *checkpoint;
    struct ds_error error = { "" };
    int fd;

    options.vocab_only = true;
    fd = ds_tiny_model_fd(&options);
    assert_int_equal(ds_checkpoint_open(&checkpoint, &fd, 1, "tiny", true, &error), 0);
    (void) close(fd);
    *state = checkpoint;
    return 0;
}

static int tear_down(void **state)
{
    (void) ds_checkpoint_free(*state);
    return 0;
}

static struct ds_tokenizer *tokenizer_of(void **state)
{
    struct ds_tokenizer *tokenizer;
    struct ds_error error = { "" };

    assert_int_equal(ds_tokenizer_new(&tokenizer, ds_checkpoint_vocab(*state), &error), 0);
    return tokenizer;
}

static void add(struct ds_step_bytes *step, const struct ds_output *output,
                const struct ds_tokenizer *tokenizer)
{
    size_t before = step->size;
    Ds__LinkTokens *record;

    assert_int_equal(ds_reply_tokens_new(output, tokenizer, &record), 0);
    assert_int_equal(ds_step_append(step, record), 0);
    assert_int_equal(step->size - before, ds_step_size(record));
    free(record);
}

static void test_records_of_a_step_come_back_as_they_were(void **state)
{
    static const uint32_t token = 77;
    static const float logprob = -1.5f;
    static const struct ds_top_token top[] = { { 77, -1.5f }, { 5, -2.0f } };
    struct ds_tokenizer *tokenizer = tokenizer_of(state);
    struct ds_output running = { .id = 10, .n_tokens = 1, .tokens = &token, .first = true };
    struct ds_output ended = { .id = 11, .finish = DS_FINISH_STOP };
    struct ds_output failed = { .id = 12, .finish = DS_FINISH_ERROR, .error = "no luck" };
    const uint32_t parts[] = { 1 << 2 | DS_PART_MARKUP, 2 << 2 | DS_PART_REASONING };
    const uint32_t plain[] = { 4 << 2 | DS_PART_CONTENT };
    struct ds_tool_call calls[] = { { (char[]){ "f" }, { "{}", 2 } },
                                    { (char[]){ "g" }, { "{\"a\": 1}", 8 } } };
    struct ds_reply_message message = { { "why", 3 }, { "so", 2 }, calls, 2 };
    struct ds_step_bytes bytes = { 0 };
    const Ds__ChatReply *chat;
    Ds__LinkStep *step;

    running.parts = parts;
    running.n_parts = 2;
    ended.tail_parts = plain;
    ended.n_tail_parts = 1;
    ended.message = &message;
    running.text = (struct ds_bytes){ "xyz", 3 };
    running.logprobs = &logprob;
    running.top = top;
    running.n_top = 2;
    running.n_prompt = 300;
    ended.tail_text = (struct ds_bytes){ "tail", 4 };
    ended.stop = (struct ds_bytes){ "STOP", 4 };
    ended.n_prompt = 4;
    ended.n_cached = 2;
    ended.n_completion = 9;
    ended.decode_ms = 2.5;
    failed.error_code = -EINVAL;
    add(&bytes, &running, tokenizer);
    add(&bytes, &ended, tokenizer);
    add(&bytes, &failed, tokenizer);
    assert_int_equal(ds_message_unpack(&ds__link_step__descriptor, bytes.bytes, bytes.size, &step),
                     0);
    assert_int_equal(step->n_outputs, 3);
    assert_true(step->outputs[0]->req_id == 10 && step->outputs[0]->prompt_tokens == 300);
    assert_int_equal(step->outputs[0]->chunk->ids[0], 77);
    assert_memory_equal(step->outputs[0]->chunk->text.data, "xyz", 3);
    assert_int_equal(step->outputs[0]->chunk->logprobs[0]->n_top, 2);
    assert_int_equal(step->outputs[0]->chunk->logprobs[0]->top[1]->id, 5);
    assert_int_equal(step->outputs[0]->chunk->n_parts, 2);
    assert_int_equal(step->outputs[0]->chunk->parts[1], 2 << 2 | DS__PART__PART_REASONING);
    assert_null(step->outputs[0]->result);
    chat = step->outputs[1]->result->message;
    assert_int_equal(step->outputs[1]->result->n_parts, 0); /* all content needs no word */
    assert_memory_equal(chat->reasoning.data, "why", 3);
    assert_memory_equal(chat->content.data, "so", 2);
    assert_int_equal(chat->n_tool_calls, 2);
    assert_string_equal(chat->tool_calls[1]->id, "call_1");
    assert_string_equal(chat->tool_calls[1]->name, "g");
    assert_memory_equal(chat->tool_calls[1]->arguments_json.data, "{\"a\": 1}", 8);
    assert_null(step->outputs[1]->chunk);
    assert_int_equal(step->outputs[1]->result->reason, DS__REASON__REASON_STOP);
    assert_string_equal(step->outputs[1]->result->stop, "STOP");
    assert_memory_equal(step->outputs[1]->result->text.data, "tail", 4);
    assert_int_equal(step->outputs[1]->result->usage->cached_tokens, 2);
    assert_true(step->outputs[1]->result->timing->decode_ms == 2.5);
    assert_int_equal(step->outputs[2]->error->code, DS__ERROR__CODE__INVALID);
    assert_string_equal(step->outputs[2]->error->text, "no luck");
    assert_null(step->outputs[2]->result);
    ds_message_free(step);
    free(bytes.bytes);
    (void) ds_tokenizer_free(tokenizer);
}

static void test_a_score_tells_perplexity_and_what_comes_next(void **state)
{
    static const struct ds_top_token top[] = { { 3, -0.5f }, { 4, -1.0f }, { 5, -2.0f } };
    struct ds_tokenizer *tokenizer = tokenizer_of(state);
    struct ds_output output = { .n_prompt = 5, .nll = 8, .top = top, .n_top = 3 };
    Ds__LinkReply *reply;
    void *bytes;
    size_t size;

    assert_int_equal(ds_reply_score(&output, tokenizer, &bytes, &size), 0);
    assert_int_equal(ds_message_unpack(&ds__link_reply__descriptor, bytes, size, &reply), 0);
    assert_true(fabs(reply->reply->score->perplexity - exp(2)) < 1e-12);
    assert_int_equal(reply->reply->score->n_next, 3);
    assert_int_equal(reply->reply->score->next[2]->id, 5);
    ds_message_free(reply);
    free(bytes);

    output.n_prompt = 1; /* nothing was predicted */
    output.nll = 0;
    assert_int_equal(ds_reply_score(&output, tokenizer, &bytes, &size), 0);
    assert_int_equal(ds_message_unpack(&ds__link_reply__descriptor, bytes, size, &reply), 0);
    assert_true(reply->reply->score->perplexity == 1);
    ds_message_free(reply);
    free(bytes);
    (void) ds_tokenizer_free(tokenizer);
}

static void test_an_errno_means_what_failed_says(void **state)
{
    (void) state;
    assert_int_equal(ds_reply_error_code(DS_REPLY_REQUEST, -EINVAL), DS__ERROR__CODE__INVALID);
    assert_int_equal(ds_reply_error_code(DS_REPLY_LOAD, -EINVAL), DS__ERROR__CODE__BAD_MODEL);
    assert_int_equal(ds_reply_error_code(DS_REPLY_LOAD, -EBADMSG), DS__ERROR__CODE__BAD_MODEL);
    assert_int_equal(ds_reply_error_code(DS_REPLY_LOAD, -ENOTSUP), DS__ERROR__CODE__UNSUPPORTED);
    assert_int_equal(ds_reply_error_code(DS_REPLY_LOAD, -ENOMEM), DS__ERROR__CODE__BUSY);
    assert_int_equal(ds_reply_error_code(DS_REPLY_REQUEST, -EMSGSIZE), DS__ERROR__CODE__TOO_LONG);
    assert_int_equal(ds_reply_error_code(DS_REPLY_REQUEST, -EXDEV), DS__ERROR__CODE__INTERNAL);
}

static void test_a_look_at_a_file_shows_all_of_it(void **state)
{
    Ds__ModelInfo info = DS__MODEL_INFO__INIT;
    Ds__LinkReply *reply;
    void *bytes;
    size_t size;

    assert_int_equal(ds_reply_show(*state, true, &info, NULL, &bytes, &size), 0);
    assert_int_equal(ds_message_unpack(&ds__link_reply__descriptor, bytes, size, &reply), 0);
    assert_int_equal(reply->reply->show->n_metadata, ds_checkpoint_n_metadata(*state));
    assert_int_equal(reply->reply->show->n_tensors, ds_checkpoint_n_tensors(*state));
    assert_true(reply->reply->show->chat_template.len > 0);
    ds_message_free(reply);
    free(bytes);
}

/* --- outbox --- */

#define N_ITEMS 40u

static const struct ds_geometry narrow = {
    .sq_entries = 4, .cq_entries = 8, .arena_bytes = 4096, .rsp_bytes = 4096, .max_inflight = 3
};

static size_t size_of(unsigned i)
{
    return i * 263 % 5000; /* from nothing to several pieces */
}

/* Reads what is there; bytes must continue where the last call stopped. */
static void read_some(struct ds_channel *submitter, unsigned *item, size_t *offset, uint32_t *seq)
{
    struct ds_cqe entry;
    const void *payload;

    while (ds_channel_next(submitter, &entry, &payload) == DS_CHANNEL_OK) {
        assert_true(entry.req_id == *item);
        assert_int_equal(entry.seq, *seq);
        for (uint32_t i = 0; i < entry.len; i++)
            assert_int_equal(((const uint8_t *) payload)[i], (uint8_t) (*item + *offset + i));
        *offset += entry.len;
        ++*seq;
        if (!(entry.flags & DS_CQE_MORE)) {
            assert_int_equal(*offset, size_of(*item));
            ++*item;
            *offset = 0;
            *seq = 0;
        }
        ds_channel_done(submitter);
    }
}

static void test_an_outbox_loses_nothing_and_keeps_the_order(void **state)
{
    struct ds_channel_pair pair;
    struct ds_outbox outbox;
    uint32_t seq_read = 0;
    unsigned item = 0, rounds = 0;
    size_t offset = 0, max;

    (void) state;
    pair = ds_channel_pair_new(&narrow, DS_CHANNEL_SUBMITTER);
    max = ds_channel_post_max(pair.server);
    ds_outbox_init(&outbox);
    for (unsigned i = 0; i < N_ITEMS; i++) {
        size_t size = size_of(i), n_pieces = size ? (size + max - 1) / max : 1;
        uint8_t *bytes = size ? malloc(size) : NULL;
        uint32_t seq = 0;

        for (size_t j = 0; j < size; j++)
            bytes[j] = (uint8_t) (i + j);
        assert_int_equal(
            ds_outbox_put(&outbox, i, DS_CQE_FINAL, &seq, bytes, size, max, i % 2 == 0), 0);
        assert_int_equal(seq, n_pieces);
    }
    while (item < N_ITEMS && rounds++ < 1000) {
        assert_int_equal(ds_outbox_flush(&outbox, pair.server), 0);
        read_some(pair.submitter, &item, &offset, &seq_read);
    }
    assert_int_equal(item, N_ITEMS);
    assert_true(ds_outbox_empty(&outbox));
    assert_true(rounds > 5); /* or the ring was not narrow */
    ds_outbox_deinit(&outbox);
    ds_channel_pair_free(&pair);
}

static void test_an_outbox_says_when_it_is_full_and_drops_what_is_left(void **state)
{
    struct ds_outbox outbox;
    uint32_t seq = 0;

    (void) state;
    ds_outbox_init(&outbox);
    for (unsigned i = 0; i <= DS_OUTBOX_ENTRIES_HIGH; i++) {
        assert_false(ds_outbox_full(&outbox));
        assert_int_equal(ds_outbox_put(&outbox, i, DS_CQE_STEP, &seq, calloc(1, 8), 8, 1024, false),
                         0);
    }
    assert_true(ds_outbox_full(&outbox));
    ds_outbox_deinit(&outbox);
}

/* --- requests --- */

static void test_requests_are_found_by_id_until_removed(void **state)
{
    struct ds_requests requests = { 0 };
    struct ds_link_model *a = (void *) &requests, *b = (void *) state; /* only compared */
    struct ds_link_request *request, *keep = NULL;

    for (uint64_t id = 1; id <= 3000; id++) {
        assert_int_equal(
            ds_requests_add(&requests, id * 1024, DS_REQUEST_GENERATE, id % 2 ? a : b, &request),
            0);
        request->scheduled = id % 3 == 0;
        if (id == 5)
            keep = request;
    }
    assert_int_equal(ds_requests_add(&requests, 1024, DS_REQUEST_TEXT, a, &request), -EEXIST);
    assert_true(ds_requests_find(&requests, 7 * 1024)->id == 7 * 1024);
    assert_null(ds_requests_find(&requests, 7));

    assert_int_equal(ds_requests_drop_model(&requests, a, keep), 999);
    assert_int_equal(requests.n, 3000 - 500);
    assert_false(keep->dropped);
    assert_true(ds_requests_find(&requests, 1024)->dropped);      /* the text thread has it */
    assert_null(ds_requests_find(&requests, 3 * 1024));           /* was scheduled */
    assert_false(ds_requests_find(&requests, 2 * 1024)->dropped); /* of the other model */
    ds_requests_deinit(&requests);
    assert_int_equal(requests.n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_of_a_step_come_back_as_they_were),
        cmocka_unit_test(test_a_score_tells_perplexity_and_what_comes_next),
        cmocka_unit_test(test_an_errno_means_what_failed_says),
        cmocka_unit_test(test_a_look_at_a_file_shows_all_of_it),
        cmocka_unit_test(test_an_outbox_loses_nothing_and_keeps_the_order),
        cmocka_unit_test(test_an_outbox_says_when_it_is_full_and_drops_what_is_left),
        cmocka_unit_test(test_requests_are_found_by_id_until_removed),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
