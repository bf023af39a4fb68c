/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/serving.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/philox.h"
#include "engine/text/detokenizer.h"

enum { BATCH_MAX = 64, CONTEXT = 256 };

void ds_serving_init(struct ds_serving *serving, struct ds_backend *backend,
                     const struct ds_tiny_options *model)
{
    ds_serving_init_fd(serving, backend, ds_tiny_model_fd(model));
}

void ds_serving_init_fd(struct ds_serving *serving, struct ds_backend *backend, int fd)
{
    struct ds_error error = { "" };

    assert_true(fd >= 0);
    *serving = (struct ds_serving){ 0 };
    ds_runner_init(&serving->runner, backend, fd, CONTEXT, BATCH_MAX);
    (void) close(fd);
    if (ds_tokenizer_new(&serving->tokenizer, ds_checkpoint_vocab(serving->runner.checkpoint),
                         &error) != 0)
        fail_msg("%s", error.text);
}

void ds_serving_deinit(struct ds_serving *serving)
{
    (void) ds_scheduler_free(serving->scheduler);
    (void) ds_tokenizer_free(serving->tokenizer);
    ds_runner_deinit(&serving->runner);
    free(serving->answers);
}

struct ds_scheduler_options ds_serving_options(void)
{
    return (struct ds_scheduler_options){ .n_blocks = 128,
                                          .context = CONTEXT,
                                          .batch_tokens_max = BATCH_MAX,
                                          .sequences_max = 16,
                                          .outputs_max = 32,
                                          .step_usec_max = DS_STEP_UNLIMITED,
                                          .prefix_salt = 99 };
}

void ds_serving_start(struct ds_serving *serving, const struct ds_scheduler_options *options,
                      uint32_t n_answers)
{
    struct ds_error error = { "" };

    serving->scheduler = ds_scheduler_free(serving->scheduler);
    if (ds_scheduler_new(&serving->scheduler, serving->runner.backend, serving->runner.model,
                         serving->tokenizer, options, &error) != 0)
        fail_msg("%s", error.text);
    free(serving->answers);
    serving->answers = calloc(n_answers, sizeof *serving->answers);
    assert_non_null(serving->answers);
    serving->n_answers = n_answers;
}

struct ds_job ds_spec_job(const struct ds_spec *spec, uint64_t id)
{
    struct ds_job job = { .id = id,
                          .uid = spec->uid,
                          .score = spec->score,
                          .n_prompt = spec->n_prompt,
                          .n_delivered = spec->n_delivered,
                          .max_tokens = spec->max_tokens,
                          .ignore_eos = spec->ignore_eos,
                          .want_logprobs = spec->want_logprobs,
                          .n_top = spec->n_top,
                          .sampling = spec->sampling,
                          .n_stops = spec->n_stops,
                          .deadline_nsec = spec->deadline_nsec,
                          .adapter = ds_adapter_ref(spec->adapter),
                          .adapter_scale = spec->adapter_scale,
                          .submitted_nsec = ds_now_nsec() };
    size_t n = spec->n_prompt + spec->n_delivered;

    job.tokens = malloc((n + 1) * sizeof *job.tokens);
    job.bias = malloc(sizeof spec->bias);
    job.stops = malloc(sizeof spec->stops + 2 * sizeof *job.stops);
    assert_true(job.tokens && job.bias && job.stops);
    memcpy(job.tokens, spec->tokens, n * sizeof *job.tokens);
    memcpy(job.bias, spec->bias, sizeof spec->bias);
    job.sampling.bias = job.bias;
    job.sampling.n_bias = spec->n_bias;
    if (spec->chat)
        assert_int_equal(
            ds_reply_new(&job.reply, (struct ds_reply_form){ true, DS_TOOLS_HERMES }, true), 0);
    for (unsigned i = 0; i < spec->n_stops; i++) {
        char *bytes = (char *) (job.stops + 2) + i * sizeof spec->stops[0];

        job.stops[i] = (struct ds_bytes){ bytes, strlen(spec->stops[i]) };
        memcpy(bytes, spec->stops[i], job.stops[i].size);
    }
    return job;
}

void ds_serving_add(struct ds_serving *serving, const struct ds_spec *spec, uint64_t id)
{
    struct ds_job job = ds_spec_job(spec, id);
    struct ds_error error = { "" };

    assert_true(id < serving->n_answers);
    if (ds_scheduler_add(serving->scheduler, &job, &error) != 0)
        fail_msg("%s", error.text);
    assert_null(job.tokens);
}

static void add_text(struct ds_answer *answer, struct ds_bytes text)
{
    assert_true(answer->text_size + text.size < sizeof answer->text);
    if (text.size > 0)
        memcpy(answer->text + answer->text_size, text.data, text.size);
    answer->text_size += text.size;
}

static void check_parts(const uint32_t *parts, size_t n, struct ds_bytes text)
{
    for (size_t i = 0; i < n; text.size -= parts[i++] >> 2)
        assert_true(parts[i] >> 2 > 0 && parts[i] >> 2 <= text.size);
    assert_true(n == 0 || text.size == 0);
}

static void take_message(struct ds_answer *answer, const struct ds_reply_message *message)
{
    if (!message)
        return;
    assert_int_equal(message->n_calls, 0);
    assert_true(snprintf(answer->message, sizeof answer->message, "%.*s|%.*s",
                         (int) message->reasoning.size, message->reasoning.data,
                         (int) message->content.size,
                         message->content.data) < (int) sizeof answer->message);
}

static void take(void *arg, const struct ds_output *output)
{
    struct ds_serving *serving = arg;
    struct ds_answer *answer = &serving->answers[output->id];

    assert_true(output->id < serving->n_answers);
    assert_int_equal(answer->finish, 0); /* nothing comes after the end */
    assert_int_equal(output->first, answer->n_outputs == 0);
    answer->n_outputs++;
    check_parts(output->parts, output->n_parts, output->text);
    check_parts(output->tail_parts, output->n_tail_parts, output->tail_text);
    take_message(answer, output->message);
    for (uint32_t i = 0; i < output->n_tokens; i++) {
        uint32_t n = answer->n_tokens++;

        answer->tokens[n] = output->tokens[i];
        if (output->logprobs)
            answer->logprobs[n] = output->logprobs[i];
        if (output->top)
            memcpy(answer->top[n], output->top + i * output->n_top,
                   output->n_top * sizeof *output->top);
    }
    if (output->n_tokens == 0 && output->top)
        memcpy(answer->top[0], output->top, output->n_top * sizeof *output->top);
    add_text(answer, output->text);
    add_text(answer, output->tail_text);
    memcpy(answer->stop, output->stop.data ? output->stop.data : "", output->stop.size);
    answer->finish = output->finish;
    answer->nll = output->nll;
    answer->n_prompt = output->n_prompt;
    answer->n_cached = output->n_cached;
    answer->n_completion = output->n_completion;
    answer->n_drafted = output->n_drafted;
    answer->n_accepted = output->n_accepted;
    answer->queue_ms = output->queue_ms;
    answer->prefill_ms = output->prefill_ms;
    answer->ttft_ms = output->ttft_ms;
    answer->decode_ms = output->decode_ms;
}

int ds_serving_step(struct ds_serving *serving)
{
    int r = ds_scheduler_step(serving->scheduler, take, serving);

    assert_true(r >= 0);
    ds_scheduler_check(serving->scheduler);
    assert_int_equal(r, !ds_scheduler_idle(serving->scheduler));
    return r;
}

void ds_serving_run(struct ds_serving *serving)
{
    while (ds_serving_step(serving) > 0)
        ;
}

/* --- the plain loop --- */

static void score_alone(struct ds_serving *serving, const struct ds_spec *spec,
                        struct ds_answer *answer)
{
    struct ds_runner *runner = &serving->runner;

    for (uint32_t i = 0; i < spec->n_prompt; i++) {
        ds_runner_feed(runner, &spec->tokens[i], 1, true);
        if (i + 1 < spec->n_prompt)
            answer->nll -= ds_logprob(runner->logits, runner->n_vocab, spec->tokens[i + 1]);
    }
    ds_top_logprobs(runner->logits, runner->n_vocab, answer->top[0], spec->n_top);
    answer->finish = DS_FINISH_STOP;
}

/* Appends token; the text it adds goes into answer unless it was delivered before. */
static void append(struct ds_serving *serving, const struct ds_spec *spec,
                   struct ds_detokenizer *detokenizer, uint32_t token, uint32_t n,
                   struct ds_answer *answer)
{
    uint32_t most = CONTEXT - spec->n_prompt;
    struct ds_bytes text = { 0 };
    bool silent = n <= spec->n_delivered;

    if (!spec->ignore_eos && ds_tokenizer_is_end(serving->tokenizer, token)) {
        answer->finish = DS_FINISH_STOP;
    } else if (ds_detokenizer_push(detokenizer, token, &text) == DS_DETOKENIZER_STOPPED) {
        answer->finish = DS_FINISH_STOP;
        strcpy(answer->stop, spec->stops[ds_detokenizer_stop(detokenizer)]);
    } else if (n == (spec->max_tokens && spec->max_tokens < most ? spec->max_tokens : most)) {
        answer->finish = DS_FINISH_LENGTH;
    }
    if (!silent)
        add_text(answer, text);
    if (answer->finish && answer->stop[0] == '\0') {
        assert_int_equal(ds_detokenizer_finish(detokenizer, &text), 0);
        add_text(answer, text);
    }
}

void ds_serving_alone(struct ds_serving *serving, const struct ds_spec *spec,
                      struct ds_answer *answer)
{
    struct ds_runner *runner = &serving->runner;
    struct ds_detokenizer *detokenizer = NULL;
    struct ds_sampler *sampler = NULL;
    struct ds_sampling sampling = spec->sampling;
    struct ds_bytes stops[2];
    uint32_t history[DS_SPEC_TOKENS + CONTEXT], n = 0, token;

    *answer = (struct ds_answer){ 0 };
    ds_runner_reset(runner);
    runner->use = (struct ds_adapter_use){ spec->adapter, spec->adapter_scale };
    if (spec->score) {
        score_alone(serving, spec, answer);
        return;
    }
    sampling.bias = spec->bias;
    sampling.n_bias = spec->n_bias;
    for (unsigned i = 0; i < spec->n_stops; i++)
        stops[i] = (struct ds_bytes){ spec->stops[i], strlen(spec->stops[i]) };
    assert_int_equal(ds_sampler_new(&sampler, runner->n_vocab), 0);
    assert_int_equal(
        ds_detokenizer_new(&detokenizer, serving->tokenizer, stops, spec->n_stops, true), 0);
    for (; n < spec->n_prompt + spec->n_delivered && !answer->finish; n++) {
        history[n] = spec->tokens[n];
        if (n >= spec->n_prompt)
            append(serving, spec, detokenizer, history[n], n + 1 - spec->n_prompt, answer);
        if (!answer->finish)
            ds_runner_feed(runner, &history[n], 1, true);
    }
    while (!answer->finish) {
        const float *logits = runner->logits;
        uint32_t i = answer->n_tokens++;

        token = ds_sampler_pick(sampler, &sampling, logits, history, n, n);
        answer->tokens[i] = history[n++] = token;
        answer->logprobs[i] = spec->want_logprobs || spec->n_top > 0
                                  ? (float) ds_logprob(logits, runner->n_vocab, token)
                                  : 0.0f;
        ds_top_logprobs(logits, runner->n_vocab, answer->top[i], spec->n_top);
        append(serving, spec, detokenizer, token, n - spec->n_prompt, answer);
        if (!answer->finish)
            ds_runner_feed(runner, &token, 1, true);
    }
    (void) ds_detokenizer_free(detokenizer);
    (void) ds_sampler_free(sampler);
}

void ds_assert_same_answer(const struct ds_answer *answer, const struct ds_answer *expected)
{
    assert_int_equal(answer->n_tokens, expected->n_tokens);
    assert_memory_equal(answer->tokens, expected->tokens,
                        expected->n_tokens * sizeof *expected->tokens);
    assert_memory_equal(answer->logprobs, expected->logprobs,
                        expected->n_tokens * sizeof *expected->logprobs);
    assert_memory_equal(answer->top, expected->top, sizeof expected->top);
    assert_int_equal(answer->text_size, expected->text_size);
    assert_string_equal(answer->text, expected->text);
    assert_int_equal(answer->finish, expected->finish);
    assert_string_equal(answer->stop, expected->stop);
    assert_true(answer->nll == expected->nll);
}

/* --- varied jobs --- */

static uint32_t below(uint64_t seed, uint64_t *draw, uint32_t n)
{
    return (uint32_t) (ds_philox_uniform(seed, (*draw)++) * n);
}

struct ds_spec ds_spec_random(uint64_t seed, uint32_t n_vocab)
{
    static const char *const stops[] = { "a", "th", "er", " ", "xyz" };
    struct ds_spec spec = { .uid = seed % 3 };
    uint64_t draw = 0;
    uint32_t shared = below(seed, &draw, 2) ? below(seed, &draw, 110) : 0;

    spec.n_prompt = 1 + below(seed, &draw, 120);
    for (uint32_t i = 0; i < spec.n_prompt; i++)
        spec.tokens[i] = i < shared ? (i * 17 + 5) % n_vocab : below(seed, &draw, n_vocab);
    spec.max_tokens = 1 + below(seed, &draw, 40);
    spec.ignore_eos = below(seed, &draw, 2);
    spec.want_logprobs = below(seed, &draw, 2);
    spec.n_top = below(seed, &draw, 3);
    spec.sampling = (struct ds_sampling){
        .temperature = below(seed, &draw, 3) ? 0.5f + (float) below(seed, &draw, 10) / 5.0f : 0.0f,
        .top_k = below(seed, &draw, 2) ? below(seed, &draw, 60) : 0,
        .top_p = below(seed, &draw, 2) ? 0.9f : 1.0f,
        .min_p = below(seed, &draw, 2) ? 0.05f : 0.0f,
        .typical_p = below(seed, &draw, 4) ? 1.0f : 0.8f,
        .repeat_penalty = below(seed, &draw, 2) ? 1.2f : 1.0f,
        .repeat_last_n = below(seed, &draw, 80),
        .frequency_penalty = below(seed, &draw, 2) ? 0.3f : 0.0f,
        .presence_penalty = below(seed, &draw, 2) ? 0.2f : 0.0f,
        .seed = seed * 77,
    };
    spec.bias[0] = (struct ds_logit_bias){ 2, 6.0f }; /* the end token, so that it happens */
    spec.n_bias = below(seed, &draw, 2);
    spec.n_stops = below(seed, &draw, 3);
    for (uint32_t i = 0; i < spec.n_stops; i++)
        strcpy(spec.stops[i], stops[below(seed, &draw, 5)]);
    if (below(seed, &draw, 8) == 0) {
        spec.score = true;
        spec.n_stops = spec.n_bias = spec.want_logprobs = 0;
    }
    return spec;
}
