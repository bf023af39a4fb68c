/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: what dsd asks for becomes the job that was meant: defaults in the right order, one BOS, all
 * limits held, everything copied; and what cannot be done is refused with a reason.
 * Method: messages made by hand, vocabularies of tiny models.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "engine/link_convert.h"
#include "proto/base.h"
#include "proto/message.h"
#include "tests/lib/tiny_model.h"

struct fixture {
    struct ds_checkpoint *checkpoint;
    struct ds_tokenizer *tokenizer;
    struct ds_link_text text;
};

static int set_up(void **state, enum ds_vocab_kind kind)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    struct fixture *f = calloc(1, sizeof *f);
    struct ds_error error = { "" };
    int fd;

    options.vocab = kind;
    options.vocab_only = true;
    fd = ds_tiny_model_fd(&options);
    assert_true(fd >= 0);
    assert_int_equal(ds_checkpoint_open(&f->checkpoint, &fd, 1, "tiny", true, &error), 0);
    assert_int_equal(ds_tokenizer_new(&f->tokenizer, ds_checkpoint_vocab(f->checkpoint), &error),
                     0);
    (void) close(fd);
    f->text = (struct ds_link_text){
        .name = "tiny",
        .tokenizer = f->tokenizer,
        .template_reason = "its file has no chat template",
        .advice = ds_checkpoint_advice(f->checkpoint),
    };
    *state = f;
    return 0;
}

static int set_up_spm(void **state)
{
    return set_up(state, DS_VOCAB_SPM);
}

static int set_up_bpe(void **state)
{
    return set_up(state, DS_VOCAB_BPE);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    (void) ds_tokenizer_free(f->tokenizer);
    (void) ds_checkpoint_free(f->checkpoint);
    free(f);
    return 0;
}

/* --- sampling --- */

static void test_the_request_wins_then_the_file_then_the_default(void **state)
{
    const struct ds_sampling_advice none = { NAN, NAN, NAN, NAN, -1 };
    const struct ds_sampling_advice some = { 0.6f, 0.9f, 0, 1.1f, 20 };
    Ds__Sampling said = DS__SAMPLING__INIT;
    struct ds_sampling sampling;

    (void) state;
    ds_convert_sampling(NULL, &none, &sampling);
    assert_true(sampling.temperature == 0.8f && sampling.top_k == 40 && sampling.top_p == 0.95f);
    assert_true(sampling.min_p == 0.05f && sampling.typical_p == 1 && sampling.repeat_penalty == 1);
    assert_int_equal(sampling.repeat_last_n, 64);
    ds_convert_sampling(&said, &some, &sampling);
    assert_true(sampling.temperature == 0.6f && sampling.top_k == 20 && sampling.top_p == 0.9f);
    assert_true(sampling.min_p == 0 && sampling.repeat_penalty == 1.1f);

    said.has_temperature_case = DS__SAMPLING__HAS_TEMPERATURE_TEMPERATURE; /* zero, but said */
    said.has_top_k_case = DS__SAMPLING__HAS_TOP_K_TOP_K;
    said.has_repeat_last_n_case = DS__SAMPLING__HAS_REPEAT_LAST_N_REPEAT_LAST_N;
    said.seed = 5;
    ds_convert_sampling(&said, &some, &sampling);
    assert_true(sampling.temperature == 0 && sampling.top_k == 0 && sampling.repeat_last_n == 0);
    assert_true(sampling.top_p == 0.9f && sampling.seed == 5);
}

/* --- input --- */

static size_t text_ids(struct fixture *f, const char *text, uint32_t **ret_ids)
{
    Ds__Input input = DS__INPUT__INIT;
    struct ds_error error = { "" };
    size_t n = 0;

    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text = (ProtobufCBinaryData){ .len = strlen(text), .data = (uint8_t *) text };
    assert_int_equal(ds_convert_input(&input, &f->text, 0, ret_ids, &n, &error), 0);
    return n;
}

static void test_a_text_gets_one_bos(void **state)
{
    struct fixture *f = *state;
    uint32_t bos = ds_tokenizer_bos(f->tokenizer), *plain, *opened;
    size_t n_plain, n_opened;

    assert_true(ds_tokenizer_adds_bos(f->tokenizer));
    n_plain = text_ids(f, "hello", &plain);
    assert_true(n_plain > 1);
    assert_int_equal(plain[0], bos);
    assert_int_not_equal(plain[1], bos);
    n_opened = text_ids(f, "<s>hello", &opened); /* as a chat template would write it */
    assert_int_equal(opened[0], bos);
    assert_true(n_opened > 1);
    assert_int_not_equal(opened[1], bos);
    free(plain);
    free(opened);
    n_plain = text_ids(f, "", &plain); /* nothing but the opening: that is something */
    assert_int_equal(n_plain, 1);
    assert_int_equal(plain[0], bos);
    free(plain);
}

static void test_token_ids_are_taken_as_they_are(void **state)
{
    uint32_t given[] = { 9, 8, 7 }, *ids;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    Ds__Input input = DS__INPUT__INIT;
    struct fixture *f = *state;
    struct ds_error error = { "" };
    size_t n = 0;

    tokens.n_ids = 3;
    tokens.ids = given;
    input.kind_case = DS__INPUT__KIND_TOKENS;
    input.tokens = &tokens;
    assert_int_equal(ds_convert_input(&input, &f->text, 100, &ids, &n, &error), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(ids, given, sizeof given);
    ids[102] = 1; /* room for 100 more */
    free(ids);
}

static void test_what_is_no_prompt_is_refused(void **state)
{
    Ds__ChatMessages chat = DS__CHAT_MESSAGES__INIT;
    Ds__TokenIds no_tokens = DS__TOKEN_IDS__INIT;
    Ds__Input input = DS__INPUT__INIT;
    struct fixture *f = *state;
    struct ds_error error = { "" };
    uint32_t *ids = NULL;
    size_t n = 0;

    assert_int_equal(ds_convert_input(NULL, &f->text, 0, &ids, &n, &error), -EINVAL);
    assert_int_equal(ds_convert_input(&input, &f->text, 0, &ids, &n, &error), -EINVAL);
    assert_non_null(strstr(error.text, "no input"));
    input.kind_case = DS__INPUT__KIND_TOKENS;
    input.tokens = &no_tokens;
    assert_int_equal(ds_convert_input(&input, &f->text, 0, &ids, &n, &error), -EINVAL);
    assert_non_null(strstr(error.text, "empty"));
    input.kind_case = DS__INPUT__KIND_CHAT;
    input.chat = &chat;
    assert_int_equal(ds_convert_input(&input, &f->text, 0, &ids, &n, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "no chat template"));
    assert_non_null(strstr(error.text, "--raw"));
    assert_null(ids);
}

/* --- jobs --- */

struct generation {
    Ds__LinkRequest request;
    Ds__Generate generate;
    Ds__Sampling sampling;
    Ds__Input input;
    Ds__TokenIds tokens, delivered;
};

static uint32_t prompt_ids[] = { 5, 6, 7 }, delivered_ids[] = { 50, 51 };

static void generation_init(struct generation *g)
{
    ds__link_request__init(&g->request);
    ds__generate__init(&g->generate);
    ds__sampling__init(&g->sampling);
    ds__input__init(&g->input);
    ds__token_ids__init(&g->tokens);
    ds__token_ids__init(&g->delivered);
    g->tokens.n_ids = 3;
    g->tokens.ids = prompt_ids;
    g->delivered.n_ids = 2;
    g->delivered.ids = delivered_ids;
    g->input.kind_case = DS__INPUT__KIND_TOKENS;
    g->input.tokens = &g->tokens;
    g->generate.input = &g->input;
    g->generate.sampling = &g->sampling;
    g->generate.delivered = &g->delivered;
    g->generate.max_tokens = 77;
    g->generate.deadline_nsec = 1000;
    g->request.uid = 33;
    g->request.submitted_nsec = 12;
    g->request.op_case = DS__LINK_REQUEST__OP_GENERATE;
    g->request.generate = &g->generate;
}

static void test_a_generation_becomes_a_job_that_owns_all_it_has(void **state)
{
    ProtobufCBinaryData stops[] = { { 2, (uint8_t *) "ab" }, { 3, (uint8_t *) "c\0d" } };
    Ds__LogitBias bias = DS__LOGIT_BIAS__INIT, *biases[] = { &bias };
    struct fixture *f = *state;
    struct ds_error error = { "" };
    struct generation g;
    struct ds_job job;

    generation_init(&g);
    g.generate.n_stop = 2;
    g.generate.stop = stops;
    g.generate.logprobs = 4;
    bias.token = 3;
    bias.bias = -2;
    g.sampling.n_logit_bias = 1;
    g.sampling.logit_bias = biases;
    assert_int_equal(ds_convert_job(&g.request, &f->text, 9, 2000, &job, &error), 0);
    assert_true(job.id == 9 && job.uid == 33 && job.submitted_nsec == 12);
    assert_int_equal(job.n_prompt, 3);
    assert_int_equal(job.n_delivered, 2);
    assert_int_equal(job.tokens[0], 5);
    assert_int_equal(job.tokens[3], 50);
    assert_int_equal(job.tokens[4], 51);
    assert_int_equal(job.max_tokens, 77);
    assert_true(job.deadline_nsec == 1000);
    assert_true(job.want_logprobs && job.n_top == 4 && !job.score);
    assert_int_equal(job.n_stops, 2);
    assert_int_equal(job.stops[1].size, 3);
    assert_memory_equal(job.stops[1].data, "c\0d", 3);
    assert_true(job.stops[1].data != (const char *) stops[1].data);
    assert_int_equal(job.sampling.n_bias, 1);
    assert_ptr_equal(job.sampling.bias, job.bias);
    assert_true(job.bias[0].token == 3 && job.bias[0].bias == -2);
    ds_job_deinit(&job);

    g.generate.deadline_nsec = 0; /* none here: the entry's holds */
    assert_int_equal(ds_convert_job(&g.request, &f->text, 9, 2000, &job, &error), 0);
    assert_true(job.deadline_nsec == 2000);
    ds_job_deinit(&job);
}

static void refuse(struct fixture *f, const struct generation *g, const char *word)
{
    struct ds_error error = { "" };
    struct ds_job job;

    assert_int_equal(ds_convert_job(&g->request, &f->text, 9, 0, &job, &error), -EINVAL);
    if (!strstr(error.text, word))
        fail_msg("\"%s\" does not mention %s", error.text, word);
}

static void test_limits_are_held_and_named(void **state)
{
    static char long_stop[DS_STOP_BYTES_MAX + 1];
    ProtobufCBinaryData stops[DS_STOP_STRINGS_MAX + 1] = { 0 };
    Ds__LogitBias bias = DS__LOGIT_BIAS__INIT, *biases[1025];
    struct fixture *f = *state;
    struct generation g;

    generation_init(&g);
    g.generate.stop = stops;
    g.generate.n_stop = DS_STOP_STRINGS_MAX + 1;
    refuse(f, &g, "17 stop strings");
    g.generate.n_stop = 1;
    refuse(f, &g, "0 bytes");
    stops[0] = (ProtobufCBinaryData){ sizeof long_stop, (uint8_t *) long_stop };
    refuse(f, &g, "257 bytes");

    generation_init(&g);
    g.generate.logprobs = DS_LOGPROBS_MAX + 1;
    refuse(f, &g, "21 alternatives");

    generation_init(&g);
    for (unsigned i = 0; i < 1025; i++)
        biases[i] = &bias;
    g.sampling.logit_bias = biases;
    g.sampling.n_logit_bias = 1025;
    refuse(f, &g, "1025");
}

static void test_a_score_becomes_a_job(void **state)
{
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__ScoreRequest score = DS__SCORE_REQUEST__INIT;
    struct fixture *f = *state;
    struct ds_error error = { "" };
    struct generation g;
    struct ds_job job;

    generation_init(&g);
    score.input = &g.input;
    request.op_case = DS__LINK_REQUEST__OP_SCORE;
    request.score = &score;
    assert_int_equal(ds_convert_job(&request, &f->text, 9, 0, &job, &error), 0);
    assert_true(job.score);
    assert_int_equal(job.n_top, 8);
    assert_int_equal(job.n_prompt, 3);
    ds_job_deinit(&job);
    score.top = DS_LOGPROBS_MAX + 1;
    assert_int_equal(ds_convert_job(&request, &f->text, 9, 0, &job, &error), -EINVAL);
}

static void test_ids_beyond_the_vocabulary_are_named(void **state)
{
    uint32_t ids[] = { 1, 2, 123456789 };
    Ds__DetokenizeRequest detokenize = DS__DETOKENIZE_REQUEST__INIT;
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    struct fixture *f = *state;
    struct ds_error error = { "" };
    void *bytes = NULL;
    size_t size;

    tokens.n_ids = 3;
    tokens.ids = ids;
    detokenize.tokens = &tokens;
    request.op_case = DS__LINK_REQUEST__OP_DETOKENIZE;
    request.detokenize = &detokenize;
    assert_int_equal(ds_convert_text(&request, &f->text, &bytes, &size, &error), -EINVAL);
    assert_non_null(strstr(error.text, "123456789"));
    tokens.n_ids = 2;
    assert_int_equal(ds_convert_text(&request, &f->text, &bytes, &size, &error), 0);
    free(bytes);
    request.op_case = DS__LINK_REQUEST__OP__NOT_SET;
    assert_int_equal(ds_convert_text(&request, &f->text, &bytes, &size, &error), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_request_wins_then_the_file_then_the_default),
        cmocka_unit_test_setup_teardown(test_a_text_gets_one_bos, set_up_spm, tear_down),
        cmocka_unit_test_setup_teardown(test_token_ids_are_taken_as_they_are, set_up_spm,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_no_prompt_is_refused, set_up_bpe, tear_down),
        cmocka_unit_test_setup_teardown(test_a_generation_becomes_a_job_that_owns_all_it_has,
                                        set_up_bpe, tear_down),
        cmocka_unit_test_setup_teardown(test_limits_are_held_and_named, set_up_bpe, tear_down),
        cmocka_unit_test_setup_teardown(test_a_score_becomes_a_job, set_up_bpe, tear_down),
        cmocka_unit_test_setup_teardown(test_ids_beyond_the_vocabulary_are_named, set_up_bpe,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
