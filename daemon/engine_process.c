/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_process.c - spawn, watch, replace.
 *
 * Who is to blame for a crash? Every call that was in the engine and had yielded nothing since it
 * was sent gets points. One that has been there at two crashes is a suspect: suspects are tried one
 * at a time, so the third crash convicts the right one. Progress clears the points. The same holds
 * for a model whose load crashes.
 */
#include "daemon/engine_process.h"

#include "daemon/call.h"
#include "daemon/log.h"
#include "daemon/model_files.h"
#include "daemon/residency.h"
#include "daemon/server.h"
#include "shm/handshake.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define NSEC_PER_SEC     UINT64_C(1000000000)
#define NSEC_PER_MSEC    UINT64_C(1000000)
#define LINK_FD          3
#define BACKOFF_MAX_NSEC (10 * NSEC_PER_SEC)
#define UNREADY_MAX      3u /* engines in a row that never came up, until requests are told */

static void on_exit_seen(void *owner, int result);

/* --- finding and spawning --- */

static bool is_program(const char *path)
{
    return access(path, X_OK) == 0;
}

int ds_engine_process_find(struct ds_engine_process *engine, const char *configured,
                           struct ds_error *error)
{
    static const char *const places[] = { "dsd-engine", "../libexec/dsd/dsd-engine" };
    char self[400];
    ssize_t length;
    char *slash;

    if (*configured) {
        (void) snprintf(engine->path, sizeof engine->path, "%s", configured);
        if (is_program(engine->path))
            return 0;
        return ds_error_set(error, -ENOENT, "engine %s: %s", configured, strerror(errno));
    }
    length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0)
        return ds_error_set(error, -errno, "/proc/self/exe: %s", strerror(errno));
    self[length] = 0;
    slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        (void) snprintf(engine->path, sizeof engine->path, "%s/%s", self, places[i]);
        if (is_program(engine->path))
            return 0;
    }
    return ds_error_set(error, -ENOENT,
                        "dsd-engine is neither in %s nor in %s/../libexec/dsd; name it with "
                        "--engine",
                        self, self);
}

/* The environment without what is meant for dsd alone. */
static char **environment_new(void)
{
    static const char *const ours[] = { "NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_" };
    size_t n = 0, kept = 0;
    char **copy;

    while (environ[n])
        n++;
    copy = calloc(n + 1, sizeof(*copy));
    for (size_t i = 0; copy && i < n; i++) {
        bool drop = false;

        for (size_t k = 0; k < sizeof ours / sizeof *ours; k++)
            drop |= strncmp(environ[i], ours[k], strlen(ours[k])) == 0;
        if (!drop)
            copy[kept++] = environ[i];
    }
    return copy;
}

static int spawn(struct ds_engine_process *engine, int link)
{
    static const char *const speculations[] = {
        [DS_CONFIG_SPEC_OFF] = "off", [DS_CONFIG_SPEC_NGRAM] = "ngram", [DS_CONFIG_SPEC_MTP] = "mtp"
    };
    const struct ds_config *config = &engine->server->config;
    char threads[16], step_usec[16];
    char *arguments[] = { engine->path,
                          (char *) "--threads",
                          threads,
                          (char *) "--step-usec",
                          step_usec,
                          (char *) "--speculation",
                          (char *) speculations[config->speculation],
                          NULL };
    ds_cleanup(ds_free_p) char **environment = environment_new();
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int r;

    if (!environment)
        return -ENOMEM;
    (void) snprintf(threads, sizeof threads, "%u", config->threads);
    (void) snprintf(step_usec, sizeof step_usec, "%u", config->max_step_ms * 1000);
    (void) sigemptyset(&none);
    (void) sigfillset(&all);
    (void) posix_spawn_file_actions_init(&actions);
    (void) posix_spawnattr_init(&attributes);
    (void) posix_spawn_file_actions_adddup2(&actions, link, LINK_FD);
    (void) posix_spawnattr_setsigmask(&attributes, &none); /* dsd's own is blocked for signalfd */
    (void) posix_spawnattr_setsigdefault(&attributes, &all);
    (void) posix_spawnattr_setpgroup(&attributes, 0); /* Ctrl-C at a terminal is for dsd alone */
    (void) posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                                     POSIX_SPAWN_SETPGROUP);
    r = posix_spawn(&engine->pid, engine->path, &actions, &attributes, arguments, environment);
    (void) posix_spawn_file_actions_destroy(&actions);
    (void) posix_spawnattr_destroy(&attributes);
    if (r != 0) {
        engine->pid = -1;
        return -r;
    }
    engine->pidfd = (int) syscall(SYS_pidfd_open, engine->pid, 0);
    return engine->pidfd < 0 ? -errno : 0;
}

/* --- the socket --- */

static void link_up(struct ds_engine_process *engine)
{
    struct ds_server *server = engine->server;

    ds_timer_clear(server->loop, &engine->start);
    engine->state = DS_ENGINE_RUNNING;
    engine->ready = true;
    engine->unready = 0;
    engine->awake = true;
    engine->sign_of_life_nsec = ds_now_nsec();
    ds_log(LOG_INFO, "engine %d is ready%s%s", engine->pid, engine->description[0] ? ": " : "",
           engine->description);
    ds_residents_kick(server);
    ds_engine_link_pump(engine);
}

static void on_link_socket(void *owner, int result)
{
    struct ds_engine_process *engine = owner;
    _Alignas(8) uint8_t datagram[DS_DATAGRAM_MAX];
    const struct ds_datagram *head = (const void *) datagram;
    unsigned n_fds = 0;
    size_t size = 0;
    int r;

    (void) result;
    r = ds_datagram_receive(engine->socket, datagram, sizeof datagram, &size, NULL, 0, &n_fds);
    if (r == -EAGAIN || r == -EINTR)
        return;
    if (r == 0 && size > 0 && head->type == DS_DATAGRAM_READY &&
        engine->state == DS_ENGINE_STARTING) {
        (void) snprintf(engine->description, sizeof engine->description, "%.*s",
                        (int) (size - sizeof(*head)), (const char *) (head + 1));
        link_up(engine);
        return;
    }
    if (r == -ECONNRESET || (r == 0 && size == 0)) { /* it has gone, or is about to */
        engine->on_socket = ds_watch_remove(engine->on_socket);
        engine->state = DS_ENGINE_DYING;
        (void) kill(engine->pid, SIGKILL);
        return;
    }
    ds_engine_process_condemn(engine, "malformed datagram");
}

static void on_link_bell(void *owner, int result)
{
    struct ds_engine_process *engine = owner;

    (void) result;
    if (engine->channel && !engine->awake) {
        ds_channel_wake(engine->channel);
        engine->awake = true;
    }
}

static void on_start_late(void *owner)
{
    ds_engine_process_condemn(owner, "it did not start within start_sec");
}

static int open_link(struct ds_engine_process *engine, int *ret_peer)
{
    struct ds_server *server = engine->server;
    struct ds_geometry geometry = { .sq_entries = 1024,
                                    .cq_entries = 8192,
                                    .arena_bytes = (uint32_t) server->config.arena_bytes_max * 2,
                                    .rsp_bytes = 4u << 20,
                                    .max_inflight = 4096 };
    struct ds_welcome welcome;
    struct ds_channel_fds fds;
    int pair[2], r;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return -errno;
    engine->socket = pair[0];
    *ret_peer = pair[1];
    r = ds_channel_create(&engine->channel, DS_CHANNEL_SUBMITTER, &geometry, server->epoch);
    if (r < 0)
        return r;
    ds_channel_welcome(engine->channel, &welcome, &fds);
    r = ds_datagram_send(
        engine->socket, &welcome, sizeof welcome,
        (const int[]){ fds.s_fd, fds.c_fd, fds.bell_to_server, fds.bell_to_submitter }, 4);
    if (r < 0)
        return r;
    ds_channel_sent(engine->channel);
    r = ds_loop_watch(server->loop, DS_WATCH_READ, engine->socket, on_link_socket, engine,
                      &engine->on_socket);
    if (r == 0)
        r = ds_loop_watch(server->loop, DS_WATCH_BELL, ds_channel_bell_in(engine->channel),
                          on_link_bell, engine, &engine->on_bell);
    if (r == 0)
        r = ds_loop_bell(server->loop, ds_channel_bell_out(engine->channel), &engine->bell);
    return r;
}

static void close_link(struct ds_engine_process *engine)
{
    struct ds_server *server = engine->server;

    engine->on_exit = ds_watch_remove(engine->on_exit);
    engine->on_socket = ds_watch_remove(engine->on_socket);
    engine->on_bell = ds_watch_remove(engine->on_bell);
    engine->bell = ds_watch_remove(engine->bell);
    ds_timer_clear(server->loop, &engine->start);
    ds_timer_clear(server->loop, &engine->retry);
    engine->channel = ds_channel_free(engine->channel);
    ds_engine_link_forget_pieces(engine);
    if (engine->pidfd >= 0)
        (void) close(engine->pidfd);
    if (engine->socket >= 0)
        (void) close(engine->socket);
    engine->pid = -1;
    engine->pidfd = engine->socket = -1;
    engine->awake = engine->ring_due = engine->lied = engine->ready = false;
    engine->description[0] = 0;
    engine->state = DS_ENGINE_DOWN;
}

/* --- start, restart --- */

static void on_restart(void *owner)
{
    ds_engine_process_start(owner);
}

/* At once the first time; the more deaths in a row, the later. */
static void restart_later(struct ds_engine_process *engine)
{
    struct ds_server *server = engine->server;
    uint32_t n = engine->failures++;
    uint64_t delay = n < 2 ? 0 : 25 * NSEC_PER_MSEC << (n < 14 ? n - 2 : 12);

    if (delay > BACKOFF_MAX_NSEC)
        delay = BACKOFF_MAX_NSEC;
    (void) ds_timer_set(server->loop, &engine->start, ds_now_nsec() + delay, on_restart, engine);
}

void ds_engine_process_start(struct ds_engine_process *engine)
{
    struct ds_server *server = engine->server;
    ds_cleanup(ds_close_p) int peer = -1;
    int r;

    if (engine->state != DS_ENGINE_DOWN || server->stop)
        return;
    r = open_link(engine, &peer);
    if (r == 0)
        r = spawn(engine, peer);
    if (r == 0)
        r = ds_loop_watch(server->loop, DS_WATCH_READ, engine->pidfd, on_exit_seen, engine,
                          &engine->on_exit);
    if (r < 0) {
        ds_log(LOG_ERR, "engine %s: cannot be started: %s", engine->path, strerror(-r));
        if (engine->pid > 0) {
            (void) kill(engine->pid, SIGKILL);
            (void) waitpid(engine->pid, NULL, 0);
        }
        close_link(engine);
        restart_later(engine);
        return;
    }
    engine->state = DS_ENGINE_STARTING;
    (void) ds_timer_set(server->loop, &engine->start,
                        ds_now_nsec() + server->config.start_sec * NSEC_PER_SEC, on_start_late,
                        engine);
}

void ds_engine_process_condemn(struct ds_engine_process *engine, const char *reason)
{
    if (engine->state != DS_ENGINE_RUNNING && engine->state != DS_ENGINE_STARTING)
        return;
    ds_log(LOG_WARNING, "engine %d: %s: killed", engine->pid, reason);
    engine->lied = true;
    engine->state = DS_ENGINE_DYING;
    (void) kill(engine->pid, SIGKILL);
}

/* --- its death --- */

/* One call that was in the engine when it died. */
static void call_lost(struct ds_call *call, uint32_t points, uint32_t limit)
{
    bool progressed = call->progressed;

    ds_call_recall(call);
    if (call->cancelled) {
        ds_call_end(call, DS__REASON__REASON_CANCELLED);
        return;
    }
    call->crash_points = progressed ? 0 : call->crash_points + points;
    if (call->crash_points >= limit) {
        ds_call_fail(call, DS__ERROR__CODE__INTERNAL, 0,
                     "the engine crashed %u times on this request; it is given up",
                     call->server->config.crashes_max);
        return;
    }
    call->state = call->files ? DS_CALL_WAITING : DS_CALL_LOADING;
    ds_call_progress(call, "engine restarted", 0);
}

static void lost(struct ds_engine_process *engine, uint32_t points)
{
    struct ds_server *server = engine->server;
    uint32_t limit = server->config.crashes_max * DS_CRASH_POINTS;
    struct ds_call *call;

    engine->state = DS_ENGINE_DYING;
    if (engine->channel && !engine->lied) /* what it had said before it died still counts */
        while (ds_engine_link_drain(engine))
            ;
    close_link(engine);
    engine->restarts++;
    ds_residents_lost(server, points, limit);
    ds_list_each(call, &server->calls, link)
    {
        if (call->state == DS_CALL_RUNNING)
            call_lost(call, points, limit);
        else if (call->state == DS_CALL_WAITING && call->resident)
            call->state = DS_CALL_LOADING;
    }
    engine->probation = NULL;
    if (!server->stop)
        restart_later(engine);
}

static void describe(const siginfo_t *info, char *text, size_t size)
{
    if (info->si_code == CLD_EXITED)
        (void) snprintf(text, size, "exited with status %d", info->si_status);
    else
        (void) snprintf(text, size, "was ended by signal %d (%s)", info->si_status,
                        strsignal(info->si_status));
}

/* There may never be an engine: nobody shall wait for one. Later requests wait for one more try. */
static void fail_waiting(struct ds_engine_process *engine, const char *how)
{
    struct ds_call *call;

    ds_list_each(call, &engine->server->calls, link)
    {
        if (call->state == DS_CALL_LOADING || call->state == DS_CALL_WAITING)
            ds_call_fail(call, DS__ERROR__CODE__INTERNAL, 5000,
                         "dsd-engine does not start: the last one %s; see the log of dsd", how);
    }
}

static void on_exit_seen(void *owner, int result)
{
    struct ds_engine_process *engine = owner;
    bool outside;
    siginfo_t info = { 0 };
    char text[96];

    (void) result;
    if (waitid(P_PIDFD, (id_t) engine->pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
        return;
    describe(&info, text, sizeof text);
    ds_log(LOG_WARNING, "engine %d %s; %u requests wait for the next one", engine->pid, text,
           engine->n_running);
    outside = !engine->lied && info.si_code == CLD_KILLED && info.si_status == SIGKILL;
    if (!engine->ready) {
        engine->failures += 2; /* a program that does not even start: do not hurry */
        engine->unready++;
    }
    lost(engine, outside ? DS_CRASH_POINTS_KILL : DS_CRASH_POINTS);
    if (engine->unready >= UNREADY_MAX)
        fail_waiting(engine, text);
}

/* --- files --- */

/* How many files from `first` on go into a datagram of which `used` bytes are taken. A name costs
 * its bytes, a tag and at most two bytes of length. */
static unsigned files_that_fit(const struct ds_model_files *files, unsigned first, size_t used)
{
    unsigned n = 0;

    for (; first + n < files->n_files && n < DS_DATAGRAM_FDS_MAX; n++) {
        const char *name = files->file_names[first + n];

        used += name ? strlen(name) + 3 : 0;
        if (used > DS_DATAGRAM_MAX)
            break;
    }
    return n;
}

int ds_engine_process_load(struct ds_engine_process *engine, const Ds__LinkLoad *load,
                           const struct ds_model_files *files, unsigned *sent)
{
    _Alignas(8) uint8_t datagram[DS_DATAGRAM_MAX];
    struct ds_datagram *head = (void *) datagram;
    Ds__LinkLoad part = *load;
    size_t size = 0;
    int r;

    if (engine->state != DS_ENGINE_RUNNING)
        return -ENOTCONN;
    while (*sent < files->n_files) {
        unsigned n = files_that_fit(files, *sent, sizeof(*head) + ds_message_size(load));

        part.file_names = files->file_names + *sent;
        part.n_file_names = files->file_names[*sent] ? n : 0;
        r = ds_message_pack(&part, head + 1, sizeof datagram - sizeof(*head), &size);
        if (r < 0)
            return r;
        ds_datagram_init(head, DS_DATAGRAM_LOAD, sizeof(*head) + size);
        r = ds_datagram_send(engine->socket, datagram, head->size, files->fds + *sent, n);
        if (r < 0)
            return r;
        *sent += n;
    }
    engine->ring_due = true; /* it may sleep on its doorbell */
    return 0;
}

/* --- life --- */

void ds_engine_process_init(struct ds_engine_process *engine, struct ds_server *server)
{
    *engine = (struct ds_engine_process){ .server = server, .pid = -1, .pidfd = -1, .socket = -1 };
    ds_list_init(&engine->assemblies);
}

void ds_engine_process_deinit(struct ds_engine_process *engine)
{
    struct pollfd gone = { .fd = engine->pidfd, .events = POLLIN };
    pid_t pid = engine->pid;

    ds_timer_clear(engine->server->loop, &engine->hang);
    ds_timer_clear(engine->server->loop, &engine->start);
    if (pid <= 0)
        return;
    (void) shutdown(engine->socket, SHUT_RDWR); /* asks it to leave */
    if (poll(&gone, 1, 1000) != 1)
        (void) kill(pid, SIGKILL);
    (void) waitpid(pid, NULL, 0);
    close_link(engine);
}
