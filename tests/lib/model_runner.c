/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/model_runner.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/sampler.h"

void ds_runner_init(struct ds_runner *runner, struct ds_backend *backend, int fd, uint32_t context,
                    uint32_t batch_max)
{
    ds_runner_init_form(runner, backend, fd, context, batch_max, false);
}

static struct ds_checkpoint *open_gguf(int fd)
{
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_error error = { "" };

    if (ds_checkpoint_open(&checkpoint, &fd, 1, "model", false, &error) != 0)
        fail_msg("%s", error.text);
    return checkpoint;
}

/* exact: keys and values as F32. */
static void init(struct ds_runner *runner, struct ds_backend *backend,
                 struct ds_checkpoint *checkpoint, uint32_t context, uint32_t batch_max, bool naive,
                 bool exact)
{
    struct ds_kv_geometry geometry;
    struct ds_error error = { "" };
    uint32_t n_blocks = (context + DS_KV_BLOCK - 1) / DS_KV_BLOCK;

    *runner = (struct ds_runner){
        .backend = backend, .checkpoint = checkpoint, .context = context, .batch_max = batch_max
    };
    int r = naive ? ds_model_load_naive(&runner->model, backend, checkpoint, batch_max, batch_max,
                                        &error)
                  : ds_model_load(&runner->model, backend, checkpoint, batch_max, batch_max, NULL,
                                  NULL, &error);
    if (r < 0)
        fail_msg("%s", error.text);
    runner->n_vocab = ds_model_n_vocab(runner->model);
    ds_model_kv_geometry(runner->model, &geometry);
    geometry.n_blocks = n_blocks;
    if (exact)
        geometry.type = DS_KV_F32;
    assert_int_equal(backend->kv_new(backend, &geometry, &runner->kv), 0);
    runner->blocks = calloc(n_blocks, sizeof *runner->blocks);
    runner->logits = calloc((size_t) batch_max * runner->n_vocab, sizeof *runner->logits);
    assert_true(runner->blocks && runner->logits);
    for (uint32_t i = 0; i < n_blocks; i++)
        runner->blocks[i] = n_blocks - 1 - i;
}

void ds_runner_use_kv_type(struct ds_runner *runner, enum ds_kv_type type)
{
    struct ds_kv_geometry geometry;
    struct ds_error error = { "" };

    if (ds_model_use_kv_type(runner->model, type, &error) < 0)
        fail_msg("%s", error.text);
    ds_model_kv_geometry(runner->model, &geometry);
    geometry.n_blocks = (runner->context + DS_KV_BLOCK - 1) / DS_KV_BLOCK;
    runner->backend->kv_free(runner->backend, runner->kv);
    assert_int_equal(runner->backend->kv_new(runner->backend, &geometry, &runner->kv), 0);
}

void ds_runner_init_form(struct ds_runner *runner, struct ds_backend *backend, int fd,
                         uint32_t context, uint32_t batch_max, bool naive)
{
    init(runner, backend, open_gguf(fd), context, batch_max, naive, false);
}

void ds_runner_init_checkpoint(struct ds_runner *runner, struct ds_backend *backend,
                               struct ds_checkpoint *checkpoint, uint32_t context,
                               uint32_t batch_max, bool exact)
{
    init(runner, backend, checkpoint, context, batch_max, false, exact);
}

void ds_runner_deinit(struct ds_runner *runner)
{
    runner->backend->kv_free(runner->backend, runner->kv);
    (void) ds_model_free(runner->model);
    (void) ds_checkpoint_free(runner->checkpoint);
    free(runner->blocks);
    free(runner->logits);
}

void ds_runner_reset(struct ds_runner *runner)
{
    runner->n_past = 0;
}

void ds_runner_feed(struct ds_runner *runner, const uint32_t *tokens, uint32_t n, bool last_only)
{
    uint32_t *positions = calloc(n, sizeof *positions), *rows = calloc(n, sizeof *rows);
    uint32_t *sequences = calloc(n, sizeof *sequences);
    struct ds_batch batch = { .n_tokens = n,
                              .n_sequences = 1,
                              .n_outputs = last_only ? 1 : n,
                              .blocks_max = (runner->context + DS_KV_BLOCK - 1) / DS_KV_BLOCK,
                              .tokens = tokens,
                              .positions = positions,
                              .sequences = sequences,
                              .outputs = rows,
                              .block_tables = runner->blocks,
                              .adapters = runner->use.adapter ? &runner->use : NULL };

    assert_true(positions && rows && sequences);
    assert_true(n <= runner->batch_max && runner->n_past + n <= runner->context);
    for (uint32_t i = 0; i < n; i++) {
        positions[i] = runner->n_past + i;
        rows[i] = last_only ? n - 1 : i;
    }
    assert_int_equal(ds_model_forward(runner->model, runner->kv, &batch, runner->logits), 0);
    runner->n_past += n;
    free(positions);
    free(rows);
    free(sequences);
}

double ds_runner_prompt(struct ds_runner *runner, const uint32_t *tokens, uint32_t n,
                        uint32_t chunk, const float **ret_last)
{
    double nll = 0.0;

    for (uint32_t start = 0; start < n; start += chunk) {
        uint32_t rows = n - start < chunk ? n - start : chunk;

        ds_runner_feed(runner, tokens + start, rows, false);
        for (uint32_t i = 0; i < rows && start + i + 1 < n; i++)
            nll -= ds_logprob(runner->logits + (size_t) i * runner->n_vocab, runner->n_vocab,
                              tokens[start + i + 1]);
        *ret_last = runner->logits + (size_t) (rows - 1) * runner->n_vocab;
    }
    return nll;
}

uint32_t ds_runner_argmax(const float *logits, uint32_t n_vocab)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n_vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}
