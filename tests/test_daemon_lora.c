/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: an adapter is loaded where a request names it, comes back after a crash and after its model
 * was evicted, leaves only when nobody uses it any more, and is its owner's alone unless it lies in
 * the models directory; a bad one costs its own requests and nothing else.
 * Method: the real build/dsd; with the fake engine, whose tokens depend on the adapter's content
 * and scale; one scene with the real engine, killed in the middle of answers with adapters.
 */
#include "client/ds.h"
#include "proto/base.h"
#include "shm/handshake.h"
#include "tests/lib/dsd_process.h"
#include "tests/lib/tiny_adapter.h"
#include "tests/lib/tiny_model.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define STREAMS 6

static const char *const models[] = {
    "alpha", "ok",     "beta",  "ok beta", "fr",       "ok french", "de", "ok german", "broken",
    "fail",  "crashy", "crash", "sluggy",  "slow 300", "none",      "",   NULL,
};

struct fixture {
    struct dsd_process dsd;
    struct raw_client client;
    struct raw_client
        other; /* for what goes on meanwhile: who waits for one answer drops the rest */
};

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    dsd_start(&f->dsd, "auto", "[engine]\nmemory = 100M\n", models);
    for (unsigned i = 0; i < 2; i++) {
        char path[128];

        (void) snprintf(path, sizeof path, "%s/models/%s.gguf", f->dsd.directory, models[2 * i]);
        assert_int_equal(truncate(path, 60000000), 0);
    }
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    assert_int_equal(raw_connect(&f->other, f->dsd.socket, NULL), 0);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;

    raw_close(&f->client, true);
    raw_close(&f->other, true);
    assert_int_equal(dsd_end(&f->dsd, SIGTERM), 0);
    dsd_remove(&f->dsd);
    free(f);
    return 0;
}

/* --- requests --- */

struct wish {
    const char *model, *prompt, *lora;
    uint64_t attachment;
    float scale; /* 0: not said */
    uint32_t max_tokens;
    uint64_t seed;
};

static struct raw_answer *submit(struct raw_client *client, const struct wish *wish)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT;
    Ds__LoraRef lora = DS__LORA_REF__INIT;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    Ds__Input input = DS__INPUT__INIT;

    model.name = (char *) wish->model;
    sampling.seed = wish->seed;
    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text.data = (uint8_t *) wish->prompt;
    input.text.len = strlen(wish->prompt);
    generate.model = &model;
    generate.input = &input;
    generate.sampling = &sampling;
    generate.max_tokens = wish->max_tokens;
    generate.ignore_eos = true;
    if (wish->lora || wish->attachment)
        generate.lora = &lora;
    if (wish->lora)
        lora.name = (char *) wish->lora;
    lora.attachment = wish->attachment;
    if (wish->scale != 0.0f) {
        lora.has_scale_case = DS__LORA_REF__HAS_SCALE_SCALE;
        lora.scale = wish->scale;
    }
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &generate;
    return raw_answer_new(raw_submit(client, &request, NULL, 0));
}

/* Waits for the whole answer, which must not have failed. */
static struct raw_answer *generate(struct raw_client *client, const struct wish *wish)
{
    struct raw_answer *answer = submit(client, wish);

    assert_true(raw_wait(client, &answer, 1, 20000));
    ds_message_free(raw_reply(answer));
    return answer;
}

static void expect_error(struct raw_client *client, struct raw_answer *answer, Ds__Error__Code code,
                         const char *says)
{
    Ds__Error *error;

    assert_true(raw_wait(client, &answer, 1, 20000));
    error = raw_error(answer);
    if (error->code != code || !strstr(error->text, says))
        fail_msg("error %d: '%s', expected %d: '%s'", error->code, error->text, code, says);
    ds_message_free(error);
    (void) raw_answer_free(answer);
}

static bool same_tokens(const struct raw_answer *a, const struct raw_answer *b)
{
    return a->n_ids == b->n_ids && memcmp(a->ids, b->ids, a->n_ids * sizeof *a->ids) == 0;
}

static struct raw_answer *submit_unload(struct raw_client *client, const char *name)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__LoraUnloadRequest unload = DS__LORA_UNLOAD_REQUEST__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT;

    model.name = (char *) "alpha";
    unload.model = &model;
    unload.name = (char *) name;
    request.op_case = DS__REQUEST__OP_LORA_UNLOAD;
    request.lora_unload = &unload;
    return raw_answer_new(raw_submit(client, &request, NULL, 0));
}

static struct raw_answer *load(struct raw_client *client, const char *lora_name,
                               uint64_t attachment, const char *name)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__LoraLoadRequest message = DS__LORA_LOAD_REQUEST__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT;
    Ds__LoraRef lora = DS__LORA_REF__INIT;

    model.name = (char *) "alpha";
    lora.name = (char *) lora_name;
    lora.attachment = attachment;
    message.model = &model;
    message.lora = &lora;
    message.name = (char *) name;
    request.op_case = DS__REQUEST__OP_LORA_LOAD;
    request.lora_load = &message;
    return raw_answer_new(raw_submit(client, &request, NULL, 0));
}

static void expect_loaded(struct raw_client *client, struct raw_answer *answer, const char *name,
                          bool shared)
{
    Ds__Reply *reply;

    assert_true(raw_wait(client, &answer, 1, 5000));
    reply = raw_reply(answer);
    assert_int_equal(reply->result_case, DS__REPLY__RESULT_LORA_LOAD);
    assert_string_equal(reply->lora_load->adapter->name, name);
    assert_string_equal(reply->lora_load->adapter->model, "alpha");
    assert_string_equal(reply->lora_load->adapter->state, "resident");
    assert_int_equal(reply->lora_load->adapter->shared, shared);
    assert_int_equal(reply->lora_load->adapter->rank, 4);
    ds_message_free(reply);
    (void) raw_answer_free(answer);
}

/* "fr:resident,de:leaving", in order of loading. */
static void expect_list(struct raw_client *client, const char *expected)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__LoraListRequest list = DS__LORA_LIST_REQUEST__INIT;
    struct raw_answer *answer;
    Ds__Reply *reply;
    char names[512] = "";

    request.op_case = DS__REQUEST__OP_LORA_LIST;
    request.lora_list = &list;
    answer = raw_call(client, &request, 5000);
    reply = raw_reply(answer);
    for (size_t i = 0; i < reply->lora_list->n_adapters; i++)
        (void) snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s:%s",
                        i ? "," : "", reply->lora_list->adapters[i]->name,
                        reply->lora_list->adapters[i]->state);
    assert_string_equal(names, expected);
    ds_message_free(reply);
    (void) raw_answer_free(answer);
}

static void attach(struct raw_client *client, uint64_t number, const char *name, int fd)
{
    struct ds_attach datagram = { .attachment = number, .n_files = 1 };

    ds_datagram_init(&datagram.head, DS_DATAGRAM_ATTACH, sizeof datagram);
    (void) snprintf(datagram.name, sizeof datagram.name, "%s", name);
    assert_true(fd >= 0);
    assert_int_equal(ds_datagram_send(client->socket, &datagram, sizeof datagram, &fd, 1), 0);
    (void) close(fd);
}

/* --- choosing --- */

static void a_request_brings_its_adapter_along(void **state)
{
    struct fixture *f = *state;
    const struct wish plain = { .model = "alpha", .prompt = "x", .max_tokens = 20, .seed = 1 };
    struct wish wish = plain;
    struct raw_answer *answers[6];

    answers[0] = generate(&f->client, &wish);
    wish.lora = "fr";
    answers[1] = generate(&f->client, &wish);
    answers[2] = generate(&f->client, &wish);
    wish.lora = "fr.gguf";
    answers[3] = generate(&f->client, &wish);
    wish.scale = 0.5f;
    answers[4] = generate(&f->client, &wish);
    wish = plain;
    wish.lora = "de";
    answers[5] = generate(&f->client, &wish);
    assert_true(same_tokens(answers[1], answers[2]));
    assert_true(same_tokens(answers[1], answers[3]));
    assert_false(same_tokens(answers[0], answers[1]));
    assert_false(same_tokens(answers[1], answers[4]));
    assert_false(same_tokens(answers[1], answers[5]));
    expect_list(&f->client, "fr:resident,de:resident");
    for (unsigned i = 0; i < 6; i++)
        (void) raw_answer_free(answers[i]);

    wish.lora = "nowhere";
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__NOT_FOUND,
                 "adapter nowhere: neither loaded on model alpha");
    wish.lora = "../fr";
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__NOT_FOUND,
                 "adapter ../fr");
    wish.lora = NULL;
    wish.attachment = 99;
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__NOT_FOUND,
                 "no files were handed over");
    expect_error(&f->client, load(&f->client, "", 0, ""), DS__ERROR__CODE__INVALID,
                 "no adapter was named");
    expect_error(&f->client, load(&f->client, "fr", 0, "a/b"), DS__ERROR__CODE__INVALID, "slash");
}

static void names_belong_to_whom_they_belong(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "alpha", .prompt = "x", .max_tokens = 20, .seed = 1 };
    struct raw_answer *shared, *own, *again;
    char path[128];

    expect_loaded(&f->client, load(&f->client, "fr", 0, ""), "fr", true);
    expect_loaded(&f->client, load(&f->client, "fr", 0, ""), "fr", true); /* no second one */
    expect_list(&f->client, "fr:resident");
    wish.lora = "fr";
    shared = generate(&f->client, &wish);
    (void) snprintf(path, sizeof path, "%s/models/fr.gguf", f->dsd.directory);
    attach(&f->client, 3, "mine", open(path, O_RDONLY | O_CLOEXEC));
    expect_loaded(&f->client, load(&f->client, "", 3, ""), "fr", true); /* the same file */
    (void) snprintf(path, sizeof path, "%s/models/de.gguf", f->dsd.directory);
    attach(&f->client, 4, "fr", open(path, O_RDONLY | O_CLOEXEC));
    expect_loaded(&f->client, load(&f->client, "", 4, ""), "fr", false);
    own = generate(&f->client, &wish); /* one's own goes first */
    assert_false(same_tokens(own, shared));
    wish.lora = NULL;
    wish.attachment = 4;
    again = generate(&f->client, &wish);
    assert_true(same_tokens(own, again));
    (void) raw_answer_free(again);
    attach(&f->client, 5, "fr", open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    expect_error(&f->client, load(&f->client, "", 5, ""), DS__ERROR__CODE__INVALID,
                 "another file is loaded under this name");
    expect_loaded(&f->client, load(&f->client, "fr", 0, "français"), "français", false);
    expect_list(&f->client, "fr:resident,fr:resident,français:resident");
    (void) raw_answer_free(shared);
    (void) raw_answer_free(own);
}

static void others_neither_see_nor_unload_what_is_not_theirs(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "alpha", .prompt = "x", .max_tokens = 3, .lora = "mine" };
    struct raw_client other;
    char path[128];
    int status;
    pid_t child;

    if (geteuid() != 0) {
        print_message("skip: not root: requests of another user are not checked\n");
        skip();
    }
    (void) snprintf(path, sizeof path, "%s/models/de.gguf", f->dsd.directory);
    attach(&f->client, 4, "mine", open(path, O_RDONLY | O_CLOEXEC));
    expect_loaded(&f->client, load(&f->client, "", 4, ""), "mine", false);
    expect_loaded(&f->client, load(&f->client, "fr", 0, ""), "fr", true);
    assert_int_equal(chmod(f->dsd.directory, 0755), 0);
    assert_int_equal(chmod(f->dsd.socket, 0777), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (setgid(65534) < 0 || setuid(65534) < 0 || raw_connect(&other, f->dsd.socket, NULL) < 0)
            _exit(1);
        expect_list(&other, "fr:resident");
        expect_error(&other, submit(&other, &wish), DS__ERROR__CODE__NOT_FOUND, "adapter mine");
        expect_error(&other, submit_unload(&other, "mine"), DS__ERROR__CODE__NOT_FOUND, "mine");
        expect_error(&other, submit_unload(&other, "fr"), DS__ERROR__CODE__PERMISSION, "fr");
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* --- leaving --- */

static void unloading_waits_for_those_who_use_it(void **state)
{
    struct fixture *f = *state;
    struct wish wish = {
        .model = "alpha", .prompt = "slow=20", .lora = "fr", .max_tokens = 40, .seed = 1
    };
    struct raw_answer *busy = submit(&f->client, &wish), *unload, *again;
    Ds__Reply *reply;

    while (busy->n_ids < 2)
        (void) raw_wait(&f->client, &busy, 1, 10);
    unload = submit_unload(&f->other, "fr");
    assert_false(raw_wait(&f->other, &unload, 1, 100));
    assert_string_equal(unload->stage, "waiting for 1");
    expect_list(&f->other, "fr:leaving");
    expect_error(&f->other, submit(&f->other, &wish), DS__ERROR__CODE__BUSY,
                 "adapter fr: is being unloaded");
    again = submit_unload(&f->other, "fr"); /* whoever else wants it gone waits as well */
    assert_true(raw_wait(&f->client, &busy, 1, 10000));
    {
        struct raw_answer *both[] = { unload, again };

        assert_true(raw_wait(&f->other, both, 2, 5000));
    }
    (void) raw_answer_free(again);
    reply = raw_reply(busy); /* served to its end */
    assert_int_equal(reply->generate->usage->completion_tokens, 40);
    ds_message_free(reply);
    reply = raw_reply(unload);
    assert_int_equal(reply->result_case, DS__REPLY__RESULT_DONE);
    ds_message_free(reply);
    expect_list(&f->client, "");
    expect_error(&f->client, submit_unload(&f->client, "fr"), DS__ERROR__CODE__NOT_FOUND, "fr");
    (void) raw_answer_free(busy);
    (void) raw_answer_free(unload);
    wish.prompt = "x"; /* and back it comes */
    busy = generate(&f->client, &wish);
    (void) raw_answer_free(busy);
}

static void an_unload_taken_back_leaves_it_there(void **state)
{
    struct fixture *f = *state;
    struct wish wish = {
        .model = "alpha", .prompt = "slow=20", .lora = "fr", .max_tokens = 60, .seed = 1
    };
    struct raw_answer *busy = submit(&f->client, &wish), *unload, *other;

    while (busy->n_ids < 2)
        (void) raw_wait(&f->client, &busy, 1, 10);
    unload = submit_unload(&f->other, "fr");
    assert_false(raw_wait(&f->other, &unload, 1, 50));
    raw_entry(&f->other, DS_SQE_CANCEL, unload->req_id);
    expect_error(&f->other, unload, DS__ERROR__CODE__INVALID, "cancelled");
    expect_list(&f->other, "fr:resident");
    wish.prompt = "x";
    other = generate(&f->other, &wish);
    (void) raw_answer_free(other);
    (void) raw_answer_free(busy);
}

/* --- misfortunes --- */

static void answers_with_adapters_survive_the_engine(void **state)
{
    struct fixture *f = *state;
    static const char *const loras[] = { NULL, "fr", "de" };
    struct raw_answer *wanted[STREAMS], *got[STREAMS], *unload;
    struct wish wishes[STREAMS];
    pid_t pid;

    for (unsigned i = 0; i < STREAMS; i++) {
        struct wish wish = { .model = "alpha",
                             .prompt = "slow=3",
                             .lora = loras[i % 3],
                             .scale = i < 3 ? 0.0f : 0.25f,
                             .max_tokens = 60,
                             .seed = i };

        wanted[i] = generate(&f->other, &wish);
        wishes[i] = wish;
    }
    for (unsigned i = 0; i < STREAMS; i++)
        got[i] = submit(&f->client, &wishes[i]);
    while (got[STREAMS - 1]->n_ids < 5 && !got[STREAMS - 1]->done)
        (void) raw_wait(&f->client, got, STREAMS, 5);
    unload = submit_unload(&f->other, "fr"); /* still waits after the crash */
    pid = dsd_engine_pid(&f->dsd);
    (void) kill(pid, SIGKILL);
    assert_true(raw_wait(&f->client, got, STREAMS, 20000));
    assert_true(raw_wait(&f->other, &unload, 1, 5000));
    ds_message_free(raw_reply(unload));
    assert_int_not_equal(dsd_engine_pid(&f->dsd), pid);
    for (unsigned i = 0; i < STREAMS; i++) {
        assert_true(same_tokens(got[i], wanted[i]));
        (void) raw_answer_free(got[i]);
        (void) raw_answer_free(wanted[i]);
    }
    (void) raw_answer_free(unload);
    expect_list(&f->client, "de:resident");
}

static void a_bad_adapter_costs_its_own_requests_alone(void **state)
{
    struct fixture *f = *state;
    struct wish good = {
        .model = "alpha", .prompt = "slow=10", .lora = "fr", .max_tokens = 100, .seed = 3
    };
    struct wish bad = { .model = "alpha", .prompt = "x", .max_tokens = 5 };
    struct raw_answer *busy = submit(&f->client, &good), *wanted;

    while (busy->n_ids < 2)
        (void) raw_wait(&f->client, &busy, 1, 10);
    bad.lora = "broken";
    expect_error(&f->other, submit(&f->other, &bad), DS__ERROR__CODE__BAD_MODEL,
                 "adapter broken: tensor");
    bad.lora = "crashy";
    expect_error(&f->other, submit(&f->other, &bad), DS__ERROR__CODE__BAD_MODEL,
                 "adapter crashy: the engine crashed again and again");
    assert_true(raw_wait(&f->client, &busy, 1, 20000));
    good.prompt = "slow=10"; /* the same, undisturbed */
    wanted = generate(&f->client, &good);
    assert_true(same_tokens(busy, wanted));
    expect_list(&f->client, "fr:resident");
    (void) raw_answer_free(busy);
    (void) raw_answer_free(wanted);
}

static void a_load_that_nobody_waits_for_leaves_nothing_behind(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answer = load(&f->client, "sluggy", 0, "");
    struct wish wish = { .model = "alpha", .prompt = "x", .max_tokens = 5, .lora = "sluggy" };

    assert_false(raw_wait(&f->client, &answer, 1, 50));
    raw_entry(&f->client, DS_SQE_CANCEL, answer->req_id);
    expect_error(&f->client, answer, DS__ERROR__CODE__INVALID, "cancelled");
    answer = generate(&f->client, &wish);
    (void) raw_answer_free(answer);
    answer = submit_unload(&f->client, "sluggy");
    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
    expect_list(&f->client, "");
}

static void eviction_of_the_model_does_not_show(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "alpha", .prompt = "x", .max_tokens = 20, .seed = 5 };
    struct wish other = { .model = "beta", .prompt = "x", .max_tokens = 3 };
    struct raw_answer *before, *between, *after;
    char path[128];

    (void) snprintf(path, sizeof path, "%s/models/de.gguf", f->dsd.directory);
    attach(&f->client, 4, "mine", open(path, O_RDONLY | O_CLOEXEC));
    expect_loaded(&f->client, load(&f->client, "", 4, ""), "mine", false);
    wish.lora = "mine";
    before = generate(&f->client, &wish);
    between = generate(&f->client, &other); /* 60 MB and 60 MB are more than 100M */
    expect_list(&f->client, "mine:available");
    after = generate(&f->client, &wish);
    assert_true(same_tokens(before, after));
    expect_list(&f->client, "mine:resident");
    (void) raw_answer_free(before);
    (void) raw_answer_free(between);
    (void) raw_answer_free(after);
}

static void memory_for_an_adapter_is_counted(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "alpha", .prompt = "x", .max_tokens = 3, .lora = "fr" };
    char path[128];

    (void) snprintf(path, sizeof path, "%s/models/fr.gguf", f->dsd.directory);
    assert_int_equal(truncate(path, 50000000), 0); /* beside 60 of 100 MB */
    expect_error(&f->client, submit(&f->client, &wish), DS__ERROR__CODE__BUSY,
                 "adapter fr: its 48 MiB do not fit");
    assert_int_equal(truncate(path, 5000000), 0);
    (void) raw_answer_free(generate(&f->client, &wish));
}

/* --- libds --- */

/* Submits, and takes events until the last one; ids has room for 200. Kills dsd after three tokens
 * and starts it again, where restart is not NULL. */
static uint32_t answer_of(struct ds *ds, const struct ds_request *request, uint32_t *ids,
                          struct dsd_process *restart)
{
    struct ds_event event;
    uint32_t n = 0;
    uint64_t id;

    assert_int_equal(ds_submit(ds, request, &id), 0);
    for (;;) {
        assert_int_equal(ds_next(ds, &event, 20000), 0);
        if (event.type == DS_EVENT_ERROR)
            fail_msg("%s", event.text);
        if (event.type == DS_EVENT_FINAL)
            return n;
        for (size_t i = 0; event.type == DS_EVENT_TOKENS && i < event.n_ids && n < 200; i++)
            ids[n++] = event.ids[i];
        if (restart && n >= 3) {
            (void) dsd_end(restart, SIGKILL);
            dsd_again(restart, "auto");
            restart = NULL;
        }
    }
}

static void programs_choose_adapters_and_outlive_the_daemon(void **state)
{
    struct fixture *f = *state;
    struct wish wish = { .model = "alpha", .prompt = "slow=5", .lora = "fr", .max_tokens = 40 };
    struct raw_answer *named, *scaled;
    struct ds_connect_options options = { .struct_size = sizeof options, .socket = f->dsd.socket };
    struct ds_request request = { .struct_size = sizeof request,
                                  .model = "alpha",
                                  .prompt = "slow=5",
                                  .max_tokens = 40,
                                  .set = DS_SET_SEED,
                                  .ignore_eos = 1,
                                  .lora = "fr" };
    uint32_t ids[200], n;
    char path[128];
    struct ds *ds;
    uint64_t id;
    int fd;

    named = generate(&f->client, &wish);
    wish.scale = 0.25f;
    scaled = generate(&f->client, &wish);
    assert_int_equal(ds_connect(&ds, &options), 0);
    n = answer_of(ds, &request, ids, NULL);
    assert_int_equal(n, named->n_ids);
    assert_memory_equal(ids, named->ids, n * sizeof *ids);
    request.set |= DS_SET_LORA_SCALE;
    request.lora_scale = 0.25f;
    n = answer_of(ds, &request, ids, NULL);
    assert_int_equal(n, scaled->n_ids);
    assert_memory_equal(ids, scaled->ids, n * sizeof *ids);

    (void) snprintf(path, sizeof path, "%s/models/fr.gguf", f->dsd.directory);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(ds_attach(ds, "by hand", &fd, 1, &request.lora_attachment), 0);
    (void) close(fd);
    assert_int_equal(ds_submit(ds, &request, &id), -EINVAL); /* a name and an attachment */
    assert_non_null(strstr(ds_error_text(ds), "one adapter"));
    request.lora = NULL;
    n = answer_of(ds, &request, ids, &f->dsd); /* handed over again to the next dsd */
    assert_int_equal(n, scaled->n_ids);
    assert_memory_equal(ids, scaled->ids, n * sizeof *ids);
    ds_close(ds);
    (void) raw_answer_free(named);
    (void) raw_answer_free(scaled);
}

/* --- the real engine --- */

static void write_real_files(const char *directory)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    char path[160];
    int fd;

    (void) snprintf(path, sizeof path, "%s/models/tiny.gguf", directory);
    assert_int_equal(ds_tiny_model_file(&options, path), 0);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (unsigned i = 0; i < 3; i++) {
        struct ds_tiny_adapter adapter = { .seed = 30 + i, .rank = 4, .alpha = 16 };
        struct ds_gguf_writer *writer = ds_gguf_writer_new();

        (void) snprintf(path, sizeof path, "%s/models/lora%u.gguf", directory, i);
        ds_tiny_adapter_write(writer, fd, &adapter);
        assert_int_equal(ds_gguf_writer_file(writer, path), 0);
        (void) ds_gguf_writer_free(writer);
    }
    (void) close(fd);
}

static void the_real_engine_may_die_among_answers_with_adapters(void **state)
{
    static const char *const nothing[] = { NULL };
    static const char *const loras[] = { NULL, "lora0", "lora1", "lora2" };
    struct dsd_process dsd = { .real_engine = true };
    struct raw_answer *wanted[4], *got[8], *answer;
    struct wish wish = { .model = "tiny", .max_tokens = 300 };
    struct raw_client client;
    unsigned n_early = 0;

    (void) state;
    dsd_start(&dsd, "auto", "", nothing);
    write_real_files(dsd.directory);
    assert_int_equal(raw_connect(&client, dsd.socket, NULL), 0);
    wish.prompt = "the quick brown fox";
    for (unsigned i = 0; i < 4; i++) {
        wish.lora = loras[i];
        wish.seed = i;
        wanted[i] = generate(&client, &wish);
        for (unsigned j = 0; j < i; j++)
            assert_false(same_tokens(wanted[i], wanted[j]));
    }
    for (unsigned i = 0; i < 8; i++) { /* all in one batch, twice */
        wish.lora = loras[i % 4];
        wish.seed = i % 4;
        got[i] = submit(&client, &wish);
    }
    while (got[7]->n_ids < 3)
        (void) raw_wait(&client, got, 8, 1);
    for (unsigned i = 0; i < 8; i++)
        n_early += got[i]->done;
    (void) kill(dsd_engine_pid(&dsd), SIGKILL);
    assert_true(raw_wait(&client, got, 8, 60000));
    printf("note: %u of 8 answers were done when the engine died\n", n_early);
    assert_int_equal(n_early, 0);
    for (unsigned i = 0; i < 8; i++) {
        ds_message_free(raw_reply(got[i]));
        assert_true(same_tokens(got[i], wanted[i % 4]));
        (void) raw_answer_free(got[i]);
    }
    for (unsigned i = 0; i < 4; i++)
        (void) raw_answer_free(wanted[i]);
    wish.lora = "tiny";
    expect_error(&client, submit(&client, &wish), DS__ERROR__CODE__BAD_MODEL, "is no adapter");
    wish.model = "lora0";
    wish.lora = NULL;
    expect_error(&client, submit(&client, &wish), DS__ERROR__CODE__UNSUPPORTED,
                 "dsctl lora load MODEL ADAPTER");
    answer = generate(&client, &(struct wish){ .model = "tiny", .prompt = "x", .max_tokens = 2 });
    (void) raw_answer_free(answer);
    raw_close(&client, true);
    assert_int_equal(dsd_end(&dsd, SIGTERM), 0);
    dsd_remove(&dsd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_request_brings_its_adapter_along),
        TEST(names_belong_to_whom_they_belong),
        TEST(others_neither_see_nor_unload_what_is_not_theirs),
        TEST(unloading_waits_for_those_who_use_it),
        TEST(an_unload_taken_back_leaves_it_there),
        TEST(answers_with_adapters_survive_the_engine),
        TEST(a_bad_adapter_costs_its_own_requests_alone),
        TEST(a_load_that_nobody_waits_for_leaves_nothing_behind),
        TEST(eviction_of_the_model_does_not_show),
        TEST(memory_for_an_adapter_is_counted),
        TEST(programs_choose_adapters_and_outlive_the_daemon),
        cmocka_unit_test(the_real_engine_may_die_among_answers_with_adapters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
