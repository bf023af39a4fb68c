/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: which models are resident is decided as documented: least recently used ones make room,
 * pinned and busy ones stay, files handed over are one model with the same file in the directory,
 * nobody's file hides behind another's name, only who may pins and unloads, and what one load
 * demands is nobody else's loss.
 * Method: the real build/dsd with an engine that claims any size; one client of another user where
 * the test runs as root.
 */
#include "proto/base.h"
#include "shm/handshake.h"
#include "tests/lib/dsd_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char *const models[] = {
    "a",      "ok a",          "b",      "ok b",         "c",  "ok c", "d", "ok d",
    "greedy", "size 90000000", "narrow", "context 4096", NULL,
};

struct fixture {
    struct dsd_process dsd;
    struct raw_client client;
};

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    dsd_start(&f->dsd, "auto", "[engine]\nmemory = 100M\n", models);
    for (char name = 'a'; name <= 'd'; name++) {
        char path[128];

        (void) snprintf(path, sizeof path, "%s/models/%c.gguf", f->dsd.directory, name);
        assert_int_equal(truncate(path, 40000000), 0);
    }
    assert_int_equal(raw_connect(&f->client, f->dsd.socket, NULL), 0);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;

    raw_close(&f->client, true);
    assert_int_equal(dsd_end(&f->dsd, SIGTERM), 0);
    dsd_remove(&f->dsd);
    free(f);
    return 0;
}

static void use(struct fixture *f, const char *model)
{
    struct raw_answer *answer = raw_answer_new(raw_generate(&f->client, model, "x", 3, 1));

    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
}

/* "a,b": the names that ps shows, in order of loading. */
static void expect_resident(struct fixture *f, const char *expected)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__PsRequest ps = DS__PS_REQUEST__INIT;
    struct raw_answer *answer;
    Ds__Reply *reply;
    char names[256] = "";

    request.op_case = DS__REQUEST__OP_PS;
    request.ps = &ps;
    answer = raw_call(&f->client, &request, 5000);
    reply = raw_reply(answer);
    for (size_t i = 0; i < reply->ps->n_models; i++)
        (void) snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? "," : "",
                        reply->ps->models[i]->name);
    assert_string_equal(names, expected);
    ds_message_free(reply);
    (void) raw_answer_free(answer);
}

static struct raw_answer *pin(struct raw_client *client, const char *model, bool pinned)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__PinRequest message = DS__PIN_REQUEST__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;

    reference.name = (char *) model;
    message.model = &reference;
    message.pinned = pinned;
    request.op_case = DS__REQUEST__OP_PIN;
    request.pin = &message;
    return raw_call(client, &request, 5000);
}

static void the_least_recently_used_makes_room(void **state)
{
    struct fixture *f = *state;

    use(f, "a");
    use(f, "b");
    expect_resident(f, "a,b");
    use(f, "a"); /* b is older now */
    use(f, "c");
    expect_resident(f, "a,c");
    use(f, "d");
    expect_resident(f, "c,d");
}

static void one_that_needs_more_than_its_file_says_costs_idle_ones(void **state)
{
    struct fixture *f = *state;

    use(f, "a");
    use(f, "greedy");
    expect_resident(f, "greedy");
}

static void pinned_and_busy_models_stay(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *busy, *answer;
    Ds__Error *error;

    use(f, "a");
    answer = pin(&f->client, "a", true);
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
    busy = raw_answer_new(raw_generate(&f->client, "b", "slow=20", 1000, 1));
    while (busy->n_ids < 1)
        (void) raw_wait(&f->client, &busy, 1, 10);
    answer = raw_answer_new(raw_generate(&f->client, "c", "x", 3, 1));
    assert_true(raw_wait(&f->client, &answer, 1, 5000));
    error = raw_error(answer);
    assert_int_equal(error->code, DS__ERROR__CODE__BUSY);
    assert_non_null(strstr(error->text, "model c: needs 38 MiB"));
    ds_message_free(error);
    expect_resident(f, "a,b");
    (void) raw_answer_free(answer);
    (void) raw_answer_free(busy);
}

static void resident_models_come_back_after_a_crash(void **state)
{
    struct fixture *f = *state;

    use(f, "a");
    use(f, "b");
    (void) kill(dsd_engine_pid(&f->dsd), SIGKILL);
    use(f, "b");
    expect_resident(f, "a,b");
}

/* --- what a load demands --- */

static uint64_t submit_load(struct fixture *f, const char *model, uint32_t context, Ds__KvType type)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__LoadRequest load = DS__LOAD_REQUEST__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;

    reference.name = (char *) model;
    load.model = &reference;
    load.context = context;
    load.kv_type = type;
    request.op_case = DS__REQUEST__OP_LOAD;
    request.load = &load;
    return raw_submit(&f->client, &request, NULL, 0);
}

static void expect_error(const struct raw_answer *answer, Ds__Error__Code code, const char *text)
{
    Ds__Error *error = raw_error(answer);

    assert_int_equal(error->code, code);
    assert_non_null(strstr(error->text, text));
    ds_message_free(error);
}

static void a_demand_fails_alone(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answers[2];

    answers[0] = raw_answer_new(submit_load(f, "narrow", 5000, DS__KV_TYPE__KV_AUTO));
    answers[1] = raw_answer_new(raw_generate(&f->client, "narrow", "x", 3, 1));
    assert_true(raw_wait(&f->client, answers, 2, 5000));
    expect_error(answers[0], DS__ERROR__CODE__BAD_MODEL, "too much");
    ds_message_free(raw_reply(answers[1]));
    expect_resident(f, "narrow");
    for (int i = 0; i < 2; i++)
        (void) raw_answer_free(answers[i]);
}

/* A model that comes back after a crash comes back as it was, whoever asks for it meanwhile. */
static void a_demand_changes_nothing_while_an_engine_starts(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answers[41];

    answers[0] = raw_answer_new(raw_generate(&f->client, "narrow", "slow=5", 100, 1));
    while (answers[0]->n_ids < 1)
        (void) raw_wait(&f->client, answers, 1, 10);
    (void) kill(dsd_engine_pid(&f->dsd), SIGKILL);
    for (unsigned i = 1; i < 41; i++) {
        bool even = i % 2 == 0;

        answers[i] = raw_answer_new(submit_load(f, "narrow", even ? 5000 : 0,
                                                even ? DS__KV_TYPE__KV_AUTO : DS__KV_TYPE__KV_F32));
        (void) usleep(100); /* some of them meet dsd without an engine */
    }
    assert_true(raw_wait(&f->client, answers, 41, 5000));
    ds_message_free(raw_reply(answers[0]));
    assert_int_equal(answers[0]->n_ids, 100);
    for (unsigned i = 1; i < 41; i++)
        expect_error(answers[i], DS__ERROR__CODE__BUSY, "unload it first");
    for (unsigned i = 0; i < 41; i++)
        (void) raw_answer_free(answers[i]);
}

/* --- files handed over --- */

static void attach(struct raw_client *client, uint64_t number, const char *name, int fd)
{
    struct ds_attach datagram = { .attachment = number, .n_files = 1 };

    ds_datagram_init(&datagram.head, DS_DATAGRAM_ATTACH, sizeof datagram);
    (void) snprintf(datagram.name, sizeof datagram.name, "%s", name);
    assert_true(fd >= 0);
    assert_int_equal(ds_datagram_send(client->socket, &datagram, sizeof datagram, &fd, 1), 0);
    (void) close(fd);
}

static struct raw_answer *load_attached(struct raw_client *client, uint64_t number)
{
    Ds__Request request = DS__REQUEST__INIT;
    Ds__LoadRequest message = DS__LOAD_REQUEST__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;

    reference.attachment = number;
    message.model = &reference;
    request.op_case = DS__REQUEST__OP_LOAD;
    request.load = &message;
    return raw_call(client, &request, 5000);
}

static void a_file_handed_over_is_the_model_it_is(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answer;
    char path[128];
    Ds__Error *error;

    use(f, "a");
    (void) snprintf(path, sizeof path, "%s/models/a.gguf", f->dsd.directory);
    attach(&f->client, 7, "by hand", open(path, O_RDONLY | O_CLOEXEC));
    answer = load_attached(&f->client, 7);
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
    expect_resident(f, "a"); /* the same file: the same model */
    attach(&f->client, 8, "b", open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    answer = load_attached(&f->client, 8);
    ds_message_free(raw_reply(answer));
    (void) raw_answer_free(answer);
    use(f, "b"); /* the directory's b, not the one that calls itself so */
    answer = load_attached(&f->client, 99);
    error = raw_error(answer);
    assert_int_equal(error->code, DS__ERROR__CODE__NOT_FOUND);
    ds_message_free(error);
    (void) raw_answer_free(answer);
}

/* --- who may --- */

static void only_admins_pin_unload_and_see_others(void **state)
{
    struct fixture *f = *state;
    struct raw_answer *answer;
    struct raw_client other;
    Ds__Error *error;
    int status;
    pid_t child;

    if (geteuid() != 0) {
        print_message("skip: not root: requests of another user are not checked\n");
        skip();
    }
    use(f, "a");
    assert_int_equal(chmod(f->dsd.directory, 0755), 0);
    assert_int_equal(chmod(f->dsd.socket, 0777), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (setgid(65534) < 0 || setuid(65534) < 0 || raw_connect(&other, f->dsd.socket, NULL) < 0)
            _exit(1);
        answer = pin(&other, "a", true);
        error = raw_error(answer);
        _exit(error->code == DS__ERROR__CODE__PERMISSION ? 0 : 2);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void a_type_of_cache_that_nobody_knows_is_refused(void **state)
{
    static const int unknown[] = { 6, 77, -1, INT32_MAX };
    struct fixture *f = *state;
    Ds__Request request = DS__REQUEST__INIT;
    Ds__LoadRequest message = DS__LOAD_REQUEST__INIT;
    Ds__ModelRef reference = DS__MODEL_REF__INIT;

    reference.name = (char *) "a";
    message.model = &reference;
    request.op_case = DS__REQUEST__OP_LOAD;
    request.load = &message;
    for (unsigned i = 0; i < 2 * sizeof unknown / sizeof *unknown; i++) {
        struct raw_answer *answer;
        Ds__Error *error;

        if (i == sizeof unknown / sizeof *unknown) { /* now with the model resident */
            expect_resident(f, "");
            use(f, "a");
        }
        message.kv_type = (Ds__KvType) unknown[i % (sizeof unknown / sizeof *unknown)];
        answer = raw_call(&f->client, &request, 5000);
        error = raw_error(answer);
        assert_int_equal(error->code, DS__ERROR__CODE__INVALID);
        assert_non_null(strstr(error->text, "load: kv_type"));
        ds_message_free(error);
        (void) raw_answer_free(answer);
    }
    expect_resident(f, "a");
}

static void sighup_reads_the_configuration_again(void **state)
{
    struct fixture *f = *state;
    char path[128];
    FILE *file;

    (void) snprintf(path, sizeof path, "%s/dsd.conf", f->dsd.directory);
    file = fopen(path, "we");
    assert_non_null(file);
    (void) fputs("[engine]\nmemory = 50M\n", file);
    (void) fclose(file);
    assert_int_equal(kill(f->dsd.pid, SIGHUP), 0);
    for (int i = 0; i < 300 && !dsd_log_has(&f->dsd, "read again"); i++)
        (void) usleep(10000);
    use(f, "a");
    use(f, "b");
    expect_resident(f, "b"); /* no room for both any more */
    file = fopen(path, "we");
    assert_non_null(file);
    (void) fputs("[engine]\nmemroy = 50M\n", file);
    (void) fclose(file);
    assert_int_equal(kill(f->dsd.pid, SIGHUP), 0);
    for (int i = 0; i < 300 && !dsd_log_has(&f->dsd, "unknown key memroy"); i++)
        (void) usleep(10000);
    assert_true(dsd_log_has(&f->dsd, "stays as it was"));
    use(f, "a");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_least_recently_used_makes_room),
        TEST(one_that_needs_more_than_its_file_says_costs_idle_ones),
        TEST(pinned_and_busy_models_stay),
        TEST(resident_models_come_back_after_a_crash),
        TEST(a_demand_fails_alone),
        TEST(a_demand_changes_nothing_while_an_engine_starts),
        TEST(a_file_handed_over_is_the_model_it_is),
        TEST(only_admins_pin_unload_and_see_others),
        TEST(a_type_of_cache_that_nobody_knows_is_refused),
        TEST(sighup_reads_the_configuration_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
