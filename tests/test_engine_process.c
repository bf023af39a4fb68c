/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the engine process does over its link what dsd asks for: load, answer, cancel, score,
 * tokenise, inspect, unload - and a failed load or a slow reader disturbs nobody.
 * Method: a real build/dsd-engine in its sandbox; this test plays dsd over a real channel; tiny
 * random models made here. (Its life and death, and hostile input: test_engine_trust.c.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <sys/wait.h>

#include "proto/base.h"
#include "proto/message.h"
#include "tests/lib/fake_dsd.h"
#include "tests/lib/tiny_model.h"

#define MODEL   7u
#define N_CROWD 8u

struct fixture {
    struct ds_fake_dsd dsd;
    uint64_t next_id;
    struct ds_fake_answer answers[N_CROWD + 1];
};

static const char *const two_threads[] = { "--threads", "2", NULL };

static void load_file(struct fixture *f, uint32_t model_id, int fd)
{
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    Ds__LinkReply *reply;
    Ds__Error *error;

    assert_true(fd >= 0);
    load.req_id = f->next_id++;
    load.model_id = model_id;
    load.name = "tiny";
    load.n_files = 1;
    ds_fake_load(&f->dsd, &load, &fd, 1);
    (void) close(fd);
    reply = ds_fake_reply(&f->dsd, load.req_id, &error, NULL);
    if (!reply)
        fail_msg("%s", error->text);
    assert_int_equal(reply->reply->result_case, DS__REPLY__RESULT_LOAD);
    assert_non_null(reply->model);
    assert_string_equal(reply->model->state, "resident");
    assert_true(reply->model->weight_bytes > 0);
    assert_true(reply->model->kv_bytes > 0);
    assert_int_equal(reply->model->n_files, 1);
    ds_message_free(reply);
}

static int set_up(void **state)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct fixture *f = calloc(1, sizeof *f);

    assert_non_null(f);
    f->next_id = 100;
    ds_fake_dsd_start(&f->dsd, NULL, two_threads);
    load_file(f, MODEL, ds_tiny_model_fd(&options));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ds_fake_dsd_stop(&f->dsd), 0);
    free(f);
    return 0;
}

/* --- asking --- */

struct question {
    Ds__LinkRequest request;
    Ds__Generate generate;
    Ds__Sampling sampling;
    Ds__Input input;
    Ds__TokenIds tokens;
    uint32_t ids[2048];
};

/* Greedy, n_prompt tokens that depend on salt, answers of exactly max_tokens. */
static void question_init(struct question *q, uint32_t n_prompt, uint32_t salt, uint32_t max_tokens)
{
    ds__link_request__init(&q->request);
    ds__generate__init(&q->generate);
    ds__sampling__init(&q->sampling);
    ds__input__init(&q->input);
    ds__token_ids__init(&q->tokens);
    for (uint32_t i = 0; i < n_prompt; i++)
        q->ids[i] = 3 + (i * 7 + salt * 31 + i * i) % 250;
    q->tokens.n_ids = n_prompt;
    q->tokens.ids = q->ids;
    q->input.kind_case = DS__INPUT__KIND_TOKENS;
    q->input.tokens = &q->tokens;
    q->sampling.has_temperature_case = DS__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    q->sampling.temperature = 0;
    q->generate.input = &q->input;
    q->generate.sampling = &q->sampling;
    q->generate.max_tokens = max_tokens;
    q->generate.ignore_eos = true;
    q->request.model_id = MODEL;
    q->request.uid = 1000;
    q->request.submitted_nsec = ds_now_nsec();
    q->request.op_case = DS__LINK_REQUEST__OP_GENERATE;
    q->request.generate = &q->generate;
}

static void text_input(struct question *q, const char *text)
{
    q->input.kind_case = DS__INPUT__KIND_TEXT;
    q->input.text = (ProtobufCBinaryData){ .len = strlen(text), .data = (uint8_t *) text };
}

/* Submits q as the i-th answer of the fixture. */
static struct ds_fake_answer *ask(struct fixture *f, unsigned i, const struct question *q)
{
    f->answers[i] = (struct ds_fake_answer){ .req_id = f->next_id++ };
    ds_fake_submit(&f->dsd, f->answers[i].req_id, &q->request);
    return &f->answers[i];
}

static void collect_one(struct fixture *f, struct ds_fake_answer *answer)
{
    ds_fake_collect(&f->dsd, &answer, 1, 0);
}

static void assert_same_answer(const struct ds_fake_answer *a, const struct ds_fake_answer *b)
{
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, a->n_ids * sizeof a->ids[0]);
    assert_int_equal(a->n_text, b->n_text);
    assert_memory_equal(a->text, b->text, a->n_text);
}

/* --- answers --- */

static void test_a_prompt_is_answered_the_same_every_time(void **state)
{
    struct fixture *f = *state;
    struct question q;
    struct ds_fake_answer *first, *second;

    question_init(&q, 20, 1, 12);
    first = ask(f, 0, &q);
    collect_one(f, first);
    assert_int_equal(first->reason, DS__REASON__REASON_LENGTH);
    assert_int_equal(first->n_ids, 12);
    assert_int_equal(first->prompt_tokens, 20);
    assert_int_equal(first->usage_prompt, 20);
    assert_int_equal(first->usage_completion, 12);
    second = ask(f, 1, &q);
    collect_one(f, second);
    assert_same_answer(first, second);
}

static void test_a_crowd_gets_the_answers_each_would_get_alone(void **state)
{
    struct ds_fake_answer *crowd[N_CROWD];
    struct fixture *f = *state;
    struct question q;

    for (unsigned i = 0; i < N_CROWD; i++) {
        question_init(&q, 5 + 40 * i, i, 10 + i);
        q.request.uid = 1000 + i % 3;
        crowd[i] = ask(f, i, &q);
    }
    ds_fake_collect(&f->dsd, crowd, N_CROWD, 0);
    for (unsigned i = 0; i < N_CROWD; i++) {
        struct ds_fake_answer *alone;

        question_init(&q, 5 + 40 * i, i, 10 + i);
        alone = ask(f, N_CROWD, &q);
        collect_one(f, alone);
        assert_same_answer(crowd[i], alone);
    }
}

static void test_an_answer_goes_on_after_the_tokens_delivered(void **state)
{
    struct fixture *f = *state;
    struct ds_fake_answer *whole, *rest;
    Ds__TokenIds delivered = DS__TOKEN_IDS__INIT;
    struct question q;

    question_init(&q, 15, 4, 20);
    q.sampling.temperature = 1.5f;
    q.sampling.seed = 99;
    whole = ask(f, 0, &q);
    collect_one(f, whole);
    delivered.n_ids = 7;
    delivered.ids = whole->ids;
    q.generate.delivered = &delivered;
    rest = ask(f, 1, &q);
    collect_one(f, rest);
    assert_int_equal(rest->n_ids, 13);
    assert_memory_equal(rest->ids, whole->ids + 7, 13 * sizeof whole->ids[0]);
    assert_int_equal(rest->usage_completion, 20);
    assert_true(rest->n_text <= whole->n_text);
    assert_memory_equal(rest->text, whole->text + whole->n_text - rest->n_text, rest->n_text);
}

static void test_texts_chats_and_log_probabilities(void **state)
{
    struct fixture *f = *state;
    Ds__ChatMessage message = DS__CHAT_MESSAGE__INIT, *messages[] = { &message };
    Ds__ChatMessages chat = DS__CHAT_MESSAGES__INIT;
    struct ds_fake_answer *answer;
    struct question q;

    question_init(&q, 0, 0, 5);
    text_input(&q, "hello there");
    q.generate.logprobs = 3;
    answer = ask(f, 0, &q);
    collect_one(f, answer);
    assert_int_equal(answer->n_ids, 5);
    assert_int_equal(answer->n_logprobs, 5);
    assert_true(answer->prompt_tokens > 0);

    message.role = "user";
    message.content = (ProtobufCBinaryData){ .len = 2, .data = (uint8_t *) "hi" };
    chat.n_messages = 1;
    chat.messages = messages;
    q.input.kind_case = DS__INPUT__KIND_CHAT;
    q.input.chat = &chat;
    answer = ask(f, 1, &q);
    collect_one(f, answer);
    assert_int_equal(answer->n_ids, 5);
    assert_true(answer->prompt_tokens > 6); /* <|im_start|> user ... */
}

static void test_a_cancelled_answer_ends_and_leaves_the_others_alone(void **state)
{
    struct fixture *f = *state;
    struct ds_fake_answer *both[2], *stopped;
    struct question q;

    question_init(&q, 9, 2, 400);
    both[0] = stopped = ask(f, 0, &q);
    question_init(&q, 9, 3, 40);
    both[1] = ask(f, 1, &q);
    ds_fake_collect(&f->dsd, both, 2, 3);
    ds_fake_entry(&f->dsd, DS_SQE_CANCEL, stopped->req_id);
    ds_fake_entry(&f->dsd, DS_SQE_CANCEL, 999999); /* nobody: no harm */
    ds_fake_collect(&f->dsd, both, 2, 0);
    assert_int_equal(stopped->reason, DS__REASON__REASON_CANCELLED);
    assert_true(stopped->n_ids < 400);
    assert_int_equal(both[1]->reason, DS__REASON__REASON_LENGTH);
    assert_int_equal(both[1]->n_ids, 40);
    ds_fake_entry(&f->dsd, DS_SQE_CANCEL, stopped->req_id); /* has ended: no harm */
    assert_true(ds_fake_quiet(&f->dsd, 50));
}

static void test_what_cannot_be_done_is_said_and_nothing_else_happens(void **state)
{
    struct fixture *f = *state;
    struct ds_fake_answer *answer;
    struct question q;

    question_init(&q, 600, 0, 5); /* the context is 512 */
    answer = ask(f, 0, &q);
    collect_one(f, answer);
    assert_int_equal(answer->error, DS__ERROR__CODE__TOO_LONG);
    assert_non_null(strstr(answer->error_text, "600"));

    question_init(&q, 5, 0, 5);
    q.sampling.temperature = -1;
    answer = ask(f, 0, &q);
    collect_one(f, answer);
    assert_int_equal(answer->error, DS__ERROR__CODE__INVALID);
    assert_non_null(strstr(answer->error_text, "temperature"));

    question_init(&q, 5, 0, 5);
    q.ids[2] = 4000000;
    answer = ask(f, 0, &q);
    collect_one(f, answer);
    assert_int_equal(answer->error, DS__ERROR__CODE__INVALID);

    question_init(&q, 5, 0, 5);
    q.request.model_id = 1234;
    answer = ask(f, 0, &q);
    collect_one(f, answer);
    assert_int_equal(answer->error, DS__ERROR__CODE__NOT_FOUND);

    question_init(&q, 5, 0, 5);
    answer = ask(f, 0, &q);
    collect_one(f, answer);
    assert_int_equal(answer->n_ids, 5);
}

/* --- other operations --- */

static Ds__LinkReply *request_reply(struct fixture *f, const Ds__LinkRequest *request)
{
    uint64_t id = f->next_id++;
    Ds__LinkReply *reply;
    Ds__Error *error;

    ds_fake_submit(&f->dsd, id, request);
    reply = ds_fake_reply(&f->dsd, id, &error, NULL);
    if (!reply)
        fail_msg("%s", error->text);
    return reply;
}

static void test_texts_become_tokens_and_come_back(void **state)
{
    struct fixture *f = *state;
    const char *text = "the quick brown fox; 42 <|im_end|>";
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__TokenizeRequest tokenize = DS__TOKENIZE_REQUEST__INIT;
    Ds__DetokenizeRequest detokenize = DS__DETOKENIZE_REQUEST__INIT;
    Ds__TokenIds ids = DS__TOKEN_IDS__INIT;
    Ds__LinkReply *tokens, *back;

    tokenize.text = (ProtobufCBinaryData){ .len = strlen(text), .data = (uint8_t *) text };
    request.model_id = MODEL;
    request.op_case = DS__LINK_REQUEST__OP_TOKENIZE;
    request.tokenize = &tokenize;
    tokens = request_reply(f, &request);
    assert_int_equal(tokens->reply->result_case, DS__REPLY__RESULT_TOKENIZE);
    ids.n_ids = tokens->reply->tokenize->n_ids;
    ids.ids = tokens->reply->tokenize->ids;
    assert_true(ids.n_ids > 0);
    assert_int_equal(tokens->reply->tokenize->n_pieces, ids.n_ids);
    assert_int_equal(ids.ids[ids.n_ids - 1], 2);

    detokenize.tokens = &ids;
    request.op_case = DS__LINK_REQUEST__OP_DETOKENIZE;
    request.detokenize = &detokenize;
    back = request_reply(f, &request);
    assert_int_equal(back->reply->result_case, DS__REPLY__RESULT_DETOKENIZE);
    assert_int_equal(back->reply->detokenize->text.len, strlen(text));
    assert_memory_equal(back->reply->detokenize->text.data, text, strlen(text));
    ds_message_free(back);
    ds_message_free(tokens);
}

static void test_a_reply_larger_than_a_completion_comes_in_pieces(void **state)
{
    struct fixture *f = *state;
    const size_t size = 400000; /* a token or more for every few bytes, each with its piece */
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__TokenizeRequest tokenize = DS__TOKENIZE_REQUEST__INIT;
    struct ds_fake_completion completion;
    char *text = malloc(size);
    uint64_t id = f->next_id++;

    memset(text, 'x', size);
    tokenize.text = (ProtobufCBinaryData){ .len = size, .data = (uint8_t *) text };
    request.model_id = MODEL;
    request.op_case = DS__LINK_REQUEST__OP_TOKENIZE;
    request.tokenize = &tokenize;
    ds_fake_submit(&f->dsd, id, &request);
    ds_fake_next(&f->dsd, &completion);
    assert_true(completion.entry.req_id == id);
    assert_int_equal(completion.entry.type, DS_CQE_FINAL);
    assert_true(completion.n_pieces > 4); /* more than the response ring holds at once */
    assert_int_equal(completion.entry.seq, completion.n_pieces - 1);
    free(completion.bytes);
    free(text);
}

static void test_a_score_is_the_sum_over_its_tokens(void **state)
{
    struct fixture *f = *state;
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__ScoreRequest score = DS__SCORE_REQUEST__INIT;
    Ds__LinkReply *reply;
    struct question q;

    question_init(&q, 100, 5, 0);
    score.input = &q.input;
    request.model_id = MODEL;
    request.op_case = DS__LINK_REQUEST__OP_SCORE;
    request.score = &score;
    reply = request_reply(f, &request);
    assert_int_equal(reply->reply->result_case, DS__REPLY__RESULT_SCORE);
    assert_int_equal(reply->reply->score->n_tokens, 100);
    assert_true(reply->reply->score->nll > 0);
    assert_true(fabs(reply->reply->score->perplexity - exp(reply->reply->score->nll / 99)) <
                1e-6 * reply->reply->score->perplexity);
    assert_int_equal(reply->reply->score->n_next, 8);
    for (unsigned i = 1; i < 8; i++)
        assert_true(reply->reply->score->next[i - 1]->logprob >=
                    reply->reply->score->next[i]->logprob);
    ds_message_free(reply);
}

static void test_a_ping_comes_back(void **state)
{
    struct fixture *f = *state;
    struct ds_fake_completion completion;

    ds_fake_entry(&f->dsd, DS_SQE_PING, 4711);
    ds_fake_next(&f->dsd, &completion);
    assert_int_equal(completion.entry.type, DS_CQE_PONG);
    assert_true(completion.entry.req_id == 4711);
    free(completion.bytes);
}

/* --- models --- */

static void test_a_bad_file_is_refused_while_others_are_answered(void **state)
{
    struct fixture *f = *state;
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_Q8_0);
    struct ds_fake_answer *answer;
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    Ds__LinkReply *reply;
    Ds__Error *error;
    struct question q;
    int fd;

    question_init(&q, 30, 1, 60);
    answer = ask(f, 0, &q);
    ds_fake_collect(&f->dsd, &answer, 1, 2);
    fd = ds_tiny_model_fd(&options);
    assert_int_equal(ftruncate(fd, 5000), 0);
    load.req_id = f->next_id++;
    load.model_id = 8;
    load.name = "half-a-model";
    load.n_files = 1;
    ds_fake_load(&f->dsd, &load, &fd, 1);
    (void) close(fd);
    ds_fake_collect(&f->dsd, &answer, 1, 0); /* passes over the error, should it be early */
    assert_int_equal(answer->n_ids, 60);

    load.req_id = f->next_id++; /* loads are taken in order: after this one the first is over */
    load.model_id = 12;
    fd = ds_memfd_of("not a model", 11);
    ds_fake_load(&f->dsd, &load, &fd, 1);
    (void) close(fd);
    reply = ds_fake_reply(&f->dsd, load.req_id, &error, NULL);
    assert_null(reply);
    assert_int_equal(error->code, DS__ERROR__CODE__BAD_MODEL);
    assert_non_null(strstr(error->text, "half-a-model"));
    ds_message_free(error);
    load_file(f, 8, ds_tiny_model_fd(&options)); /* neither id was kept */
    load_file(f, 12, ds_tiny_model_fd(&options));
}

static void test_a_cancelled_load_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_Q8_0);
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    Ds__LinkReply *reply;
    Ds__Error *error;
    int fd = ds_tiny_model_fd(&options);

    load.req_id = f->next_id++;
    load.model_id = 20;
    load.name = "unwanted";
    load.n_files = 1;
    ds_fake_load(&f->dsd, &load, &fd, 1);
    (void) close(fd);
    ds_fake_entry(&f->dsd, DS_SQE_CANCEL, load.req_id);
    reply = ds_fake_reply(&f->dsd, load.req_id, &error, NULL);
    if (reply) /* it was loaded, or not yet known, when the cancellation came */
        return ds_message_free(reply);
    assert_non_null(strstr(error->text, "unwanted"));
    ds_message_free(error);
    load_file(f, 20, ds_tiny_model_fd(&options));
}

static void test_two_models_answer_at_once_and_one_can_leave(void **state)
{
    struct fixture *f = *state;
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN3, DS_TYPE_Q8_0);
    Ds__LinkRequest unload = DS__LINK_REQUEST__INIT;
    Ds__LinkUnload nothing = DS__LINK_UNLOAD__INIT;
    struct ds_fake_answer *both[2], *later;
    Ds__LinkReply *reply;
    struct question q;

    load_file(f, 9, ds_tiny_model_fd(&options));
    question_init(&q, 30, 1, 30);
    both[0] = ask(f, 0, &q);
    q.request.model_id = 9;
    both[1] = ask(f, 1, &q);
    ds_fake_collect(&f->dsd, both, 2, 0);
    assert_int_equal(both[0]->n_ids, 30);
    assert_int_equal(both[1]->n_ids, 30);

    q.generate.max_tokens = 450; /* still running when the model goes: dropped silently */
    later = ask(f, 2, &q);
    ds_fake_collect(&f->dsd, &later, 1, 1);
    unload.model_id = 9;
    unload.op_case = DS__LINK_REQUEST__OP_UNLOAD;
    unload.unload = &nothing;
    reply = request_reply(f, &unload);
    assert_int_equal(reply->reply->result_case, DS__REPLY__RESULT_DONE);
    ds_message_free(reply);
    assert_true(ds_fake_quiet(&f->dsd, 50));
    later = ask(f, 3, &q);
    collect_one(f, later);
    assert_int_equal(later->error, DS__ERROR__CODE__NOT_FOUND);
    load_file(f, 9, ds_tiny_model_fd(&options));
}

static void test_a_model_in_several_files_comes_in_several_datagrams(void **state)
{
    struct fixture *f = *state;
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_fake_answer *split, *whole;
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    Ds__LinkReply *reply;
    Ds__Error *error;
    struct question q;
    int fds[3];

    assert_int_equal(ds_tiny_model_split(&options, 3, fds), 0);
    load.req_id = f->next_id++;
    load.model_id = 10;
    load.name = "split";
    load.n_files = 3;
    load.context = 64;
    ds_fake_load(&f->dsd, &load, fds, 1);
    for (unsigned i = 0; i < 3; i++)
        (void) close(fds[i]);
    reply = ds_fake_reply(&f->dsd, load.req_id, &error, NULL);
    assert_non_null(reply);
    assert_int_equal(reply->model->n_files, 3);
    assert_int_equal(reply->model->context, 64);
    ds_message_free(reply);

    question_init(&q, 20, 1, 12);
    whole = ask(f, 0, &q);
    collect_one(f, whole);
    q.request.model_id = 10;
    split = ask(f, 1, &q);
    collect_one(f, split);
    assert_same_answer(split, whole);
}

static void test_a_file_can_be_looked_at_without_loading_it(void **state)
{
    struct fixture *f = *state;
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_Q8_0);
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    Ds__ShowResult *show;
    Ds__LinkReply *reply;
    Ds__Error *error;
    int fd = ds_tiny_model_fd(&options);

    load.req_id = f->next_id++;
    load.model_id = 0;
    load.name = "looked-at";
    load.n_files = 1;
    load.inspect_only = true;
    load.want_tensors = true;
    ds_fake_load(&f->dsd, &load, &fd, 1);
    (void) close(fd);
    reply = ds_fake_reply(&f->dsd, load.req_id, &error, NULL);
    assert_non_null(reply);
    assert_int_equal(reply->reply->result_case, DS__REPLY__RESULT_SHOW);
    show = reply->reply->show;
    assert_string_equal(show->model->architecture, "qwen2");
    assert_string_equal(show->model->type, "Q8_0");
    assert_true(show->n_metadata > 5);
    assert_true(show->n_tensors > 10);
    assert_true(show->chat_template.len > 0);
    ds_message_free(reply);
}

static void test_a_slow_reader_loses_nothing(void **state)
{
    static const struct ds_geometry narrow = { .sq_entries = 16,
                                               .cq_entries = 8,
                                               .arena_bytes = 65536,
                                               .rsp_bytes = 4096,
                                               .max_inflight = 4 };
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct ds_fake_answer *crowd[4];
    struct fixture *f = *state;
    struct ds_fake_dsd usual = f->dsd;
    struct question q;

    ds_fake_dsd_start(&f->dsd, &narrow, two_threads);
    load_file(f, MODEL, ds_tiny_model_fd(&options));
    for (unsigned i = 0; i < 4; i++) {
        question_init(&q, 10, i, 300);
        q.generate.logprobs = 5;
        crowd[i] = ask(f, i, &q);
    }
    (void) usleep(300000); /* not to wait for anything: to let the engine run into the full ring */
    ds_fake_collect(&f->dsd, crowd, 4, 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(crowd[i]->n_ids, 300);
        assert_int_equal(crowd[i]->n_logprobs, 300);
    }
    assert_int_equal(ds_fake_dsd_stop(&f->dsd), 0);
    f->dsd = usual;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_prompt_is_answered_the_same_every_time),
        cmocka_unit_test(test_a_crowd_gets_the_answers_each_would_get_alone),
        cmocka_unit_test(test_an_answer_goes_on_after_the_tokens_delivered),
        cmocka_unit_test(test_texts_chats_and_log_probabilities),
        cmocka_unit_test(test_a_cancelled_answer_ends_and_leaves_the_others_alone),
        cmocka_unit_test(test_what_cannot_be_done_is_said_and_nothing_else_happens),
        cmocka_unit_test(test_texts_become_tokens_and_come_back),
        cmocka_unit_test(test_a_reply_larger_than_a_completion_comes_in_pieces),
        cmocka_unit_test(test_a_score_is_the_sum_over_its_tokens),
        cmocka_unit_test(test_a_ping_comes_back),
        cmocka_unit_test(test_a_bad_file_is_refused_while_others_are_answered),
        cmocka_unit_test(test_a_cancelled_load_leaves_nothing),
        cmocka_unit_test(test_two_models_answer_at_once_and_one_can_leave),
        cmocka_unit_test(test_a_model_in_several_files_comes_in_several_datagrams),
        cmocka_unit_test(test_a_file_can_be_looked_at_without_loading_it),
        cmocka_unit_test(test_a_slow_reader_loses_nothing),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
