/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine makes of a model, in one process: prompt and answer rates for 1, 4 and 16
 * sequences, how much of a step is spent outside the backend's operations (planning, sampling,
 * text), what guessing ahead gains or costs, and how long running answers wait while a long prompt
 * arrives. usage: bench_engine [MODEL.gguf]; without an argument the default model.
 *
 * Method: jobs through a scheduler whose backend times every operation. Prompts are random and all
 * different, so the prefix cache finds nothing. The best of REPEATS runs counts: the machine may be
 * shared.
 */
#include <fcntl.h>

#include "engine/serve/philox.h"
#include "engine/serve/scheduler.h"
#include "tests/lib/golden.h"
#include "tests/lib/timed_backend.h"

enum {
    REPEATS = 3,
    PROMPT = 512,
    ANSWER = 128,
    START = 8,
    CONTEXT = 4608,
    BLOCKS = 8192 / DS_KV_BLOCK,
    PAIRS = 5,
    RUNNING = 7, /* streams while a long prompt arrives */
    LONG_PROMPT = 4096,
    BATCH = 512,
    MANY = 16,
    STEPS_MAX = 1024
};

/* --- jobs --- */

struct bench {
    struct ds_checkpoint *checkpoint;
    struct ds_tokenizer *tokenizer;
    struct ds_model *model;
    struct ds_scheduler *scheduler;
    uint64_t draw; /* next random number */
    uint32_t n_tokens, n_drafted, n_accepted;
    bool long_done; /* the long prompt's answer came */
};

/* The prompt repeats itself every `period` tokens, 0: never. */
static int add_draft(struct bench *bench, uint64_t id, uint32_t n_prompt, uint32_t n_answer,
                     uint32_t period, enum ds_draft_source draft)
{
    struct ds_job job = { .id = id,
                          .n_prompt = n_prompt,
                          .max_tokens = n_answer,
                          .ignore_eos = true,
                          .draft = draft,
                          .sampling = { .temperature = 0.8f,
                                        .top_k = 40,
                                        .top_p = 0.95f,
                                        .min_p = 0.05f,
                                        .typical_p = 1.0f,
                                        .repeat_penalty = 1.0f,
                                        .seed = id } };
    struct ds_error error = { "" };
    int r;

    job.tokens = calloc(n_prompt, sizeof *job.tokens);
    if (!job.tokens)
        return -ENOMEM;
    if (period)
        job.sampling.temperature = 0.0f;
    for (uint32_t i = 0; i < n_prompt; i++)
        job.tokens[i] =
            period && i >= period
                ? job.tokens[i - period]
                : (uint32_t) (ds_philox_uniform(5, bench->draw++) * ds_model_n_vocab(bench->model));
    r = ds_scheduler_add(bench->scheduler, &job, &error);
    if (r < 0)
        fprintf(stderr, "bench_engine: %s\n", error.text);
    return r;
}

static int add(struct bench *bench, uint64_t id, uint32_t n_prompt, uint32_t n_answer)
{
    return add_draft(bench, id, n_prompt, n_answer, 0, DS_DRAFT_OFF);
}

static void count(void *arg, const struct ds_output *output)
{
    struct bench *bench = arg;

    bench->n_tokens += output->n_tokens;
    bench->long_done = bench->long_done || output->id == RUNNING;
    if (output->finish) {
        bench->n_drafted += output->n_drafted;
        bench->n_accepted += output->n_accepted;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

static double median(double *values, unsigned n)
{
    qsort(values, n, sizeof *values, compare);
    return n ? values[n / 2] : 0.0;
}

/* Steps until idle. Returns seconds of the steps from the one numbered first on; *ret_outside:
 * their median microseconds outside the backend. n_tokens then counts the tokens of these steps. */
static double run(struct bench *bench, unsigned first, double *ret_outside)
{
    double outside[STEPS_MAX];
    unsigned n = 0, kept = 0;
    uint64_t total = 0;

    bench->n_tokens = 0;
    for (int r = 1; r > 0; n++) {
        uint64_t before = ds_now_nsec(), spent;

        if (n == first)
            bench->n_tokens = 0;
        (void) ds_timed_backend_take();
        r = ds_scheduler_step(bench->scheduler, count, bench);
        if (r < 0)
            return -1.0;
        spent = ds_now_nsec() - before;
        total += n >= first ? spent : 0;
        if (n >= first && kept < STEPS_MAX)
            outside[kept++] = (double) (spent - ds_timed_backend_take()) / 1e3;
    }
    *ret_outside = median(outside, kept);
    return (double) total / 1e9;
}

static int measure_prompt(struct bench *bench)
{
    double best = 0.0, outside = 0.0;

    for (unsigned i = 0; i < REPEATS; i++) {
        double aside, seconds;

        if (add(bench, i, PROMPT, 1) < 0)
            return -1;
        seconds = run(bench, 0, &aside);
        if (seconds <= 0.0)
            return -1;
        if (PROMPT / seconds > best) {
            best = PROMPT / seconds;
            outside = aside;
        }
    }
    printf("pp%d            %8.1f tokens/s   %7.1f us (%.1f %%) of it outside the backend\n",
           PROMPT, best, outside, outside * best / PROMPT / 1e4);
    return 0;
}

static int measure_answers(struct bench *bench, unsigned n_streams)
{
    double best = 0.0, outside = 0.0;

    for (unsigned i = 0; i < REPEATS; i++) {
        double aside, seconds;

        for (unsigned s = 0; s < n_streams; s++) {
            if (add(bench, s, START, ANSWER + 1) < 0)
                return -1;
        }
        seconds = run(bench, 1, &aside); /* the first step computes the prompts */
        if (seconds <= 0.0)
            return -1;
        if (bench->n_tokens / seconds > best) {
            best = bench->n_tokens / seconds;
            outside = aside;
        }
    }
    printf("tg%d x %-2u       %8.1f tokens/s   %7.1f us (%.1f %%) of a step outside the backend\n",
           ANSWER, n_streams, best, outside, outside * best / n_streams / 1e4);
    return 0;
}

/* Tokens a second with guesses, against the same without: median of pairs taken in turns. */
static int measure_drafts(struct bench *bench, unsigned n_streams, uint32_t period)
{
    double ratios[PAIRS], aside;

    bench->n_drafted = bench->n_accepted = 0;
    for (unsigned i = 0; i < PAIRS; i++) {
        const uint64_t draw = bench->draw;
        double seconds[2];

        for (unsigned with = 0; with < 2; with++) {
            bench->draw = draw; /* the same prompts; shared prefixes are of no use to either */
            for (unsigned s = 0; s < n_streams; s++) {
                if (add_draft(bench, s + 100, period ? 3 * period : START, ANSWER + 1, period,
                              with ? DS_DRAFT_NGRAM : DS_DRAFT_OFF) < 0)
                    return -1;
            }
            seconds[with] = run(bench, 1, &aside);
            if (seconds[with] <= 0.0)
                return -1;
        }
        ratios[i] = seconds[0] / seconds[1];
    }
    printf("n-grams x %-2u %s %6.3f times as fast as without, %u of %u guesses right\n", n_streams,
           period ? "repeating" : "random   ", median(ratios, PAIRS), bench->n_accepted,
           bench->n_drafted);
    return 0;
}

/* Seven answers run; a long prompt arrives. */
static int measure_gap(struct bench *bench)
{
    static double plain[STEPS_MAX], mixed[STEPS_MAX];
    unsigned n_plain = 0, n_mixed = 0;
    double plain_usec;

    for (unsigned s = 0; s < RUNNING; s++) {
        if (add(bench, s, START, 0) < 0)
            return -1;
    }
    for (unsigned i = 0; i < 40; i++) {
        uint64_t before = ds_now_nsec();

        if (ds_scheduler_step(bench->scheduler, count, bench) < 0)
            return -1;
        if (i >= 8)
            plain[n_plain++] = (double) (ds_now_nsec() - before) / 1e3;
    }
    plain_usec = median(plain, n_plain);
    if (add(bench, RUNNING, LONG_PROMPT, 1) < 0)
        return -1;
    for (bench->long_done = false; !bench->long_done;) {
        uint64_t before = ds_now_nsec();

        if (ds_scheduler_step(bench->scheduler, count, bench) < 0)
            return -1;
        if (n_mixed < STEPS_MAX)
            mixed[n_mixed++] = (double) (ds_now_nsec() - before) / 1e3;
    }
    for (unsigned s = 0; s < RUNNING; s++)
        ds_scheduler_cancel(bench->scheduler, s);
    (void) ds_scheduler_step(bench->scheduler, count, bench);
    (void) median(mixed, n_mixed); /* sorts */
    printf("gap of %d streams while %d tokens of prompt arrive, in steps without: median %.2f, "
           "95 %% %.2f, worst %.2f (%u steps)\n",
           RUNNING, LONG_PROMPT, mixed[n_mixed / 2] / plain_usec,
           mixed[n_mixed * 95 / 100] / plain_usec, mixed[n_mixed - 1] / plain_usec, n_mixed);
    return 0;
}

static int load(struct bench *bench, struct ds_backend *cpu, const char *path)
{
    struct ds_scheduler_options options = {
        .n_blocks = BLOCKS, .context = CONTEXT, .batch_tokens_max = BATCH, .sequences_max = MANY
    };
    struct ds_error error = { "" };
    int fd = open(path, O_RDONLY | O_CLOEXEC), r;

    if (fd < 0) {
        fprintf(stderr, "bench_engine: %s: %s\n", path, strerror(errno));
        return -errno;
    }
    ds_timed_backend_start(cpu);
    r = ds_checkpoint_open(&bench->checkpoint, &fd, 1, path, false, &error);
    (void) close(fd);
    if (r == 0)
        r = ds_tokenizer_new(&bench->tokenizer, ds_checkpoint_vocab(bench->checkpoint), &error);
    if (r == 0)
        r = ds_model_load(&bench->model, cpu, bench->checkpoint, BATCH, MANY, NULL, NULL, &error);
    if (r == 0)
        r = ds_scheduler_new(&bench->scheduler, cpu, bench->model, bench->tokenizer, &options,
                             &error);
    if (r < 0)
        fprintf(stderr, "bench_engine: %s\n", error.text);
    return r;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : ds_default_model_path();
    struct ds_cpu_options options = { .spin_usec = 50 };
    struct ds_backend *cpu = NULL;
    struct bench bench = { 0 };
    bool done;

    (void) setvbuf(stdout, NULL, _IOLBF, 0);
    if (!path) {
        printf("skip: no model: give a GGUF file, or fetch the default one with make model\n");
        return 77;
    }
    if (ds_backend_cpu(&cpu, &options) < 0) {
        fprintf(stderr, "bench_engine: the CPU backend does not start\n");
        return 1;
    }
    done = load(&bench, cpu, path) == 0;
    if (done) {
        printf("%s on %s\n", path, cpu->describe(cpu));
        done = measure_prompt(&bench) == 0 && measure_answers(&bench, 1) == 0 &&
               measure_answers(&bench, 4) == 0 && measure_answers(&bench, MANY) == 0 &&
               measure_drafts(&bench, 1, 0) == 0 && measure_drafts(&bench, 4, 0) == 0 &&
               measure_drafts(&bench, 1, 50) == 0 && measure_drafts(&bench, 4, 50) == 0 &&
               measure_gap(&bench) == 0;
    }
    (void) ds_scheduler_free(bench.scheduler);
    (void) ds_model_free(bench.model);
    (void) ds_tokenizer_free(bench.tokenizer);
    (void) ds_checkpoint_free(bench.checkpoint);
    cpu->close(cpu);
    return done ? 0 : 1;
}
