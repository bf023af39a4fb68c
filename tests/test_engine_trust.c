/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the engine process is locked in, ends when it should and only then, costs nothing while
 * idle, and is not confused by nonsense on its link.
 * Method: a real build/dsd-engine; /proc says what it is; this test plays a dsd that lies, hangs
 * up, or dies. The sandbox's own refusals are tried in a child of this test.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "engine/sandbox.h"
#include "proto/base.h"
#include "proto/message.h"
#include "shm/channel_internal.h"
#include "shm/handshake.h"
#include "tests/lib/fake_dsd.h"
#include "tests/lib/tiny_model.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define STATUS_MAX 8192

static const char *const two_threads[] = { "--threads", "2", NULL };

static void load_tiny(struct ds_fake_dsd *dsd, uint64_t req_id, uint32_t model_id)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    int fd = ds_tiny_model_fd(&options);
    Ds__LinkReply *reply;
    Ds__Error *error;

    load.req_id = req_id;
    load.model_id = model_id;
    load.name = "tiny";
    load.n_files = 1;
    ds_fake_load(dsd, &load, &fd, 1);
    (void) close(fd);
    reply = ds_fake_reply(dsd, req_id, &error, NULL);
    assert_non_null(reply);
    ds_message_free(reply);
}

/* A number from a /proc status file. */
static unsigned long long status_value(const char *path, const char *key)
{
    char text[STATUS_MAX], *at;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    assert_true(fd >= 0);
    n = read(fd, text, sizeof text - 1);
    (void) close(fd);
    assert_true(n > 0);
    text[n] = '\0';
    at = strstr(text, key);
    assert_non_null(at);
    return strtoull(at + strlen(key) + 1, NULL, 10);
}

/* Of all threads together. */
static unsigned long long context_switches(pid_t pid, unsigned *ret_n_threads)
{
    unsigned long long sum = 0;
    char path[PATH_MAX];
    struct dirent *entry;
    DIR *tasks;

    *ret_n_threads = 0;
    (void) snprintf(path, sizeof path, "/proc/%d/task", (int) pid);
    tasks = opendir(path);
    assert_non_null(tasks);
    while ((entry = readdir(tasks))) {
        if (entry->d_name[0] == '.')
            continue;
        (void) snprintf(path, sizeof path, "/proc/%d/task/%.16s/status", (int) pid, entry->d_name);
        sum += status_value(path, "\nvoluntary_ctxt_switches:");
        ++*ret_n_threads;
    }
    (void) closedir(tasks);
    return sum;
}

/* --- locked in --- */

static void test_every_thread_is_in_the_sandbox(void **state)
{
    struct ds_fake_dsd dsd;
    char path[PATH_MAX];
    struct dirent *entry;
    DIR *tasks;

    (void) state;
    if (SANITIZED) {
        print_message("skip: built with a sanitizer: seccomp is left out and not checked\n");
        skip();
    }
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    (void) snprintf(path, sizeof path, "/proc/%d/task", (int) dsd.pid);
    tasks = opendir(path);
    assert_non_null(tasks);
    while ((entry = readdir(tasks))) {
        if (entry->d_name[0] == '.')
            continue;
        (void) snprintf(path, sizeof path, "/proc/%d/task/%.16s/status", (int) dsd.pid,
                        entry->d_name);
        assert_int_equal(status_value(path, "\nSeccomp:"), 2);
        assert_int_equal(status_value(path, "\nNoNewPrivs:"), 1);
    }
    (void) closedir(tasks);
    assert_int_equal(ds_fake_dsd_stop(&dsd), 0);
}

static int try_to_open(void)
{
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);

    return fd < 0 && errno == EACCES ? 0 : 1;
}

static int try_to_connect(void)
{
    (void) socket(AF_INET, SOCK_STREAM, 0);
    return 1; /* not reached */
}

static int try_to_execute(void)
{
    (void) execl("/bin/true", "true", NULL);
    return 1; /* not reached */
}

static int try_executable_memory(void)
{
    (void) mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return 1; /* not reached */
}

static int try_to_fork(void)
{
    (void) fork();
    return 1; /* not reached */
}

static void *nothing(void *arg)
{
    return arg;
}

/* What has to go on: threads, memory, files that are open, the clock. */
static int try_to_work(void)
{
    pthread_t thread;
    char byte = 0;
    void *memory = malloc(64 << 20);
    int r = pthread_create(&thread, NULL, nothing, NULL);

    if (r != 0 || pthread_join(thread, NULL) != 0 || !memory)
        return 1;
    memset(memory, 1, 64 << 20);
    free(memory);
    if (lseek(0, 0, SEEK_SET) < 0 || read(0, &byte, 1) != 1 || ds_now_nsec() == 0)
        return 2;
    return byte == 'x' ? 0 : 3;
}

/* What becomes of a process that tries this in the sandbox: its wait status. */
static int in_sandbox(int (*attempt)(void))
{
    struct ds_sandbox_report report;
    int status = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        int fd = ds_memfd_of("x", 1);

        if (dup2(fd, 0) < 0 || ds_sandbox_enter(&report) < 0)
            _exit(99);
        _exit(attempt());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void assert_killed(int status)
{
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

static void test_the_sandbox_leaves_computing_and_nothing_else(void **state)
{
    (void) state;
    if (SANITIZED) {
        print_message("skip: built with a sanitizer: seccomp is left out and not checked\n");
        skip();
    }
    assert_int_equal(in_sandbox(try_to_work), 0);
    assert_int_equal(in_sandbox(try_to_open), 0);
    assert_killed(in_sandbox(try_to_connect));
    assert_killed(in_sandbox(try_to_execute));
    assert_killed(in_sandbox(try_executable_memory));
    assert_killed(in_sandbox(try_to_fork));
}

/* --- quiet --- */

static void test_an_idle_engine_does_not_wake_up(void **state)
{
    unsigned long long before, after;
    struct ds_fake_completion pong;
    unsigned n_threads, n_later;
    struct ds_fake_dsd dsd;

    (void) state;
    if (SANITIZED) {
        print_message("skip: built with a sanitizer, which has a thread of its own\n");
        skip();
    }
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    load_tiny(&dsd, 1, 1);
    ds_fake_entry(&dsd, DS_SQE_PING, 2);
    ds_fake_next(&dsd, &pong);
    free(pong.bytes);
    (void) usleep(300000); /* the compute threads stop spinning and go to sleep */
    before = context_switches(dsd.pid, &n_threads);
    (void) usleep(1000000);
    after = context_switches(dsd.pid, &n_later);
    assert_true(n_threads >= 3);
    assert_int_equal(n_threads, n_later);
    assert_true(before == after);
    assert_int_equal(ds_fake_dsd_stop(&dsd), 0);
}

/* --- life and death --- */

static void test_it_ends_quietly_when_dsd_hangs_up_in_the_middle(void **state)
{
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__Input input = DS__INPUT__INIT;
    struct ds_fake_completion first;
    struct ds_fake_dsd dsd;

    (void) state;
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    load_tiny(&dsd, 1, 1);
    input.kind_case = DS__INPUT__KIND_TEXT;
    input.text = (ProtobufCBinaryData){ .len = 5, .data = (uint8_t *) "hello" };
    generate.input = &input;
    generate.ignore_eos = true;
    request.model_id = 1;
    request.op_case = DS__LINK_REQUEST__OP_GENERATE;
    request.generate = &generate;
    ds_fake_submit(&dsd, 2, &request);
    ds_fake_next(&dsd, &first);
    assert_int_equal(first.entry.type, DS_CQE_STEP);
    free(first.bytes);
    assert_int_equal(ds_fake_dsd_stop(&dsd), 0);
}

static void test_it_ends_when_dsd_says_goodbye(void **state)
{
    struct ds_fake_dsd dsd;

    (void) state;
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    ds_fake_entry(&dsd, DS_SQE_CLOSE, 0);
    assert_int_equal(ds_fake_dsd_wait(&dsd), 0);
    assert_int_equal(ds_fake_dsd_stop(&dsd), 0);
}

static void test_signals_meant_for_the_whole_group_do_not_end_it(void **state)
{
    struct ds_fake_completion pong;
    struct ds_fake_dsd dsd;

    (void) state;
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    assert_int_equal(kill(dsd.pid, SIGTERM), 0);
    assert_int_equal(kill(dsd.pid, SIGINT), 0);
    ds_fake_entry(&dsd, DS_SQE_PING, 1);
    ds_fake_next(&dsd, &pong);
    assert_int_equal(pong.entry.type, DS_CQE_PONG);
    free(pong.bytes);
    assert_int_equal(ds_fake_dsd_stop(&dsd), 0);
}

/* A dsd that dies without closing anything: our copy of its socket keeps the link open. */
static void test_it_dies_with_its_dsd(void **state)
{
    struct pollfd gone;
    int link[2];
    pid_t dsd;

    (void) state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, link), 0);
    dsd = fork();
    assert_true(dsd >= 0);
    if (dsd == 0) {
        struct ds_fake_dsd fake;

        ds_fake_dsd_start(&fake, NULL, two_threads);
        /* hand our end to the test before dying; the engine's end lives in the engine alone */
        if (ds_datagram_send(link[1], &(struct ds_datagram){ 0 }, sizeof(struct ds_datagram),
                             &fake.socket, 1) < 0)
            _exit(1);
        (void) raise(SIGKILL);
    }
    (void) close(link[1]);
    {
        union {
            struct cmsghdr head;
            char bytes[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        struct ds_datagram datagram;
        struct iovec data = { &datagram, sizeof datagram };
        struct msghdr message = { .msg_iov = &data,
                                  .msg_iovlen = 1,
                                  .msg_control = control.bytes,
                                  .msg_controllen = sizeof control.bytes };

        assert_true(recvmsg(link[0], &message, MSG_CMSG_CLOEXEC) > 0);
        gone = (struct pollfd){ .events = POLLIN };
        memcpy(&gone.fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof gone.fd);
    }
    assert_int_equal(poll(&gone, 1, DS_FAKE_WAIT_MSEC), 1);
    assert_true(gone.revents & POLLHUP);
    assert_int_equal(waitpid(dsd, NULL, 0), dsd);
    (void) close(gone.fd);
    (void) close(link[0]);
}

/* --- nonsense --- */

/* The engine says what was wrong and ends by itself, with 1: no signal, no hang. */
static void assert_gives_up(struct ds_fake_dsd *dsd)
{
    int status = ds_fake_dsd_wait(dsd);

    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    (void) ds_fake_dsd_stop(dsd);
}

static void test_garbage_datagrams_end_it_cleanly(void **state)
{
    static const char garbage[] = "\xff\xfe GET / HTTP/1.1";
    struct ds_datagram unexpected, empty_load;
    struct ds_fake_dsd dsd;

    (void) state;
    ds_fake_dsd_spawn(&dsd, two_threads); /* instead of WELCOME */
    assert_int_equal(send(dsd.socket, garbage, sizeof garbage, 0), sizeof garbage);
    assert_gives_up(&dsd);

    ds_fake_dsd_start(&dsd, NULL, two_threads);
    assert_int_equal(send(dsd.socket, garbage, sizeof garbage, 0), sizeof garbage);
    assert_gives_up(&dsd);

    ds_fake_dsd_start(&dsd, NULL, two_threads);
    ds_datagram_init(&unexpected, DS_DATAGRAM_HELLO, sizeof unexpected);
    assert_int_equal(ds_datagram_send(dsd.socket, &unexpected, sizeof unexpected, NULL, 0), 0);
    assert_gives_up(&dsd);

    ds_fake_dsd_start(&dsd, NULL, two_threads); /* an empty LinkLoad: no files */
    ds_datagram_init(&empty_load, DS_DATAGRAM_LOAD, sizeof empty_load);
    assert_int_equal(ds_datagram_send(dsd.socket, &empty_load, sizeof empty_load, NULL, 0), 0);
    assert_gives_up(&dsd);
}

static void test_a_lying_ring_ends_it_cleanly(void **state)
{
    struct ds_fake_dsd dsd;

    (void) state;
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    atomic_store(&dsd.channel->s_hot->sq_tail, 0x40000000u); /* more than the ring holds */
    ds_channel_ring_bell(dsd.channel);
    assert_gives_up(&dsd);
}

static void test_two_requests_of_one_id_end_it_cleanly(void **state)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_F32);
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    struct ds_fake_dsd dsd;
    int fd = ds_tiny_model_fd(&options);

    (void) state;
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    load_tiny(&dsd, 1, 1);
    load.req_id = 2;
    load.model_id = 1; /* resident already */
    load.name = "tiny";
    load.n_files = 1;
    ds_fake_load(&dsd, &load, &fd, 1);
    (void) close(fd);
    assert_gives_up(&dsd);
}

static void test_one_malformed_request_is_answered_and_the_rest_goes_on(void **state)
{
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .req_id = 5 };
    struct ds_fake_completion completion;
    struct ds_fake_dsd dsd;
    void *payload = NULL;
    Ds__Error *error;

    (void) state;
    ds_fake_dsd_start(&dsd, NULL, two_threads);
    assert_int_equal(ds_channel_reserve(dsd.channel, 64, &payload), DS_CHANNEL_OK);
    memset(payload, 0xff, 64);
    assert_int_equal(ds_channel_submit(dsd.channel, &entry, 64), DS_CHANNEL_OK);
    ds_channel_ring_bell(dsd.channel);
    assert_null(ds_fake_reply(&dsd, 5, &error, NULL));
    assert_int_equal(error->code, DS__ERROR__CODE__INVALID);
    ds_message_free(error);

    ds_fake_entry(&dsd, 77, 6); /* no such operation */
    assert_null(ds_fake_reply(&dsd, 6, &error, NULL));
    assert_int_equal(error->code, DS__ERROR__CODE__INVALID);
    ds_message_free(error);

    ds_fake_entry(&dsd, DS_SQE_PING, 7);
    ds_fake_next(&dsd, &completion);
    assert_int_equal(completion.entry.type, DS_CQE_PONG);
    free(completion.bytes);
    assert_int_equal(ds_fake_dsd_stop(&dsd), 0);
}

static int exit_code_of(const char *argument)
{
    int status = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        (void) dup2(open("/dev/null", O_WRONLY), 1);
        (void) dup2(1, 2);
        (void) close_range(3, ~0u, 0);
        (void) execl(ds_fake_engine_path(), "dsd-engine", argument, NULL);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_the_command_line_is_judged(void **state)
{
    (void) state;
    assert_int_equal(exit_code_of("--help"), 0);
    assert_int_equal(exit_code_of("--version"), 0);
    assert_int_equal(exit_code_of("--frobnicate"), 2);
    assert_int_equal(exit_code_of("--threads=many"), 2);
    assert_int_equal(exit_code_of("--batch-tokens=1"), 2);
    assert_int_equal(exit_code_of("prompt"), 2);
    assert_int_equal(exit_code_of("--threads=1"), 2); /* no link */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_is_in_the_sandbox),
        cmocka_unit_test(test_the_sandbox_leaves_computing_and_nothing_else),
        cmocka_unit_test(test_an_idle_engine_does_not_wake_up),
        cmocka_unit_test(test_it_ends_quietly_when_dsd_hangs_up_in_the_middle),
        cmocka_unit_test(test_it_ends_when_dsd_says_goodbye),
        cmocka_unit_test(test_signals_meant_for_the_whole_group_do_not_end_it),
        cmocka_unit_test(test_it_dies_with_its_dsd),
        cmocka_unit_test(test_garbage_datagrams_end_it_cleanly),
        cmocka_unit_test(test_a_lying_ring_ends_it_cleanly),
        cmocka_unit_test(test_two_requests_of_one_id_end_it_cleanly),
        cmocka_unit_test(test_one_malformed_request_is_answered_and_the_rest_goes_on),
        cmocka_unit_test(test_the_command_line_is_judged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
