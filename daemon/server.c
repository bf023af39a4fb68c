/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/server.h"

#include "daemon/call.h"
#include "daemon/listener.h"
#include "daemon/log.h"
#include "daemon/residency.h"
#include "daemon/session.h"

#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#define NSEC_PER_SEC     UINT64_C(1000000000)
#define TURNS_PER_LOOK   64  /* turns of the rings between two looks at timers and descriptors */
#define TURNS_PER_PAUSE  8   /* a pause may take as long as the answer */
#define TURNS_PER_YIELD  256 /* the client we wait for may be waiting for our processor */
#define ACCEPT_REST_NSEC UINT64_C(100000000)

/* --- init --- */

static int open_signals(struct ds_server *server)
{
    sigset_t set;

    (void) sigemptyset(&set);
    (void) sigaddset(&set, SIGTERM);
    (void) sigaddset(&set, SIGINT);
    (void) sigaddset(&set, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -errno;
    (void) signal(SIGPIPE, SIG_IGN);
    server->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return server->signal_fd < 0 ? -errno : 0;
}

static void on_signal(void *owner, int result)
{
    struct ds_server *server = owner;
    struct signalfd_siginfo info;

    (void) result;
    while (read(server->signal_fd, &info, sizeof info) == (ssize_t) sizeof info) {
        if (info.ssi_signo == SIGHUP)
            ds_server_reload(server);
        else
            ds_server_drain(server);
    }
}

static void on_watchdog(void *owner)
{
    struct ds_server *server = owner;

    (void) sd_notify(0, "WATCHDOG=1");
    (void) ds_timer_set(server->loop, &server->watchdog, ds_now_nsec() + server->watchdog_nsec,
                        on_watchdog, server);
}

/* Every client costs a few descriptors, every model file one. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void) setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void init_lists(struct ds_server *server)
{
    ds_list_init(&server->sessions);
    ds_list_init(&server->dead);
    ds_list_init(&server->hot);
    ds_list_init(&server->dirty);
    ds_list_init(&server->calls);
    ds_list_init(&server->kept);
    ds_list_init(&server->residents);
    for (size_t i = 0; i < DS_BUCKETS; i++) {
        ds_list_init(&server->by_engine[i]);
        ds_list_init(&server->by_key[i]);
    }
}

static void apply_config(struct ds_server *server)
{
    static const int levels[] = { LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO, LOG_DEBUG };

    ds_log_set_level(levels[server->config.log_level]);
    server->spin_nsec = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? server->config.spin_usec * 1000 : 0;
}

static int init_loop(struct ds_server *server, struct ds_error *error)
{
    static const enum ds_loop_backend backends[] = { DS_LOOP_AUTO, DS_LOOP_URING, DS_LOOP_EPOLL };
    struct ds_error why = { 0 };
    int r;

    r = ds_loop_new(&server->loop, backends[server->config.loop], &why);
    if (r < 0)
        return ds_error_set(error, r, "%s", why.text[0] ? why.text : strerror(-r));
    if (why.text[0])
        ds_log(LOG_NOTICE, "%s", why.text);
    r = ds_loop_watch(server->loop, DS_WATCH_READ, server->signal_fd, on_signal, server,
                      &server->on_signal);
    return r < 0 ? ds_error_set(error, r, "signals: %s", strerror(-r)) : 0;
}

int ds_server_init(struct ds_server *server, struct ds_config *config, struct ds_error *error)
{
    uint64_t watchdog = 0;
    int r;

    *server = (struct ds_server){ .listen_fd = -1, .signal_fd = -1 };
    server->config = *config;
    *config = (struct ds_config){ 0 };
    init_lists(server);
    ds_admission_init(&server->admission, &server->config);
    ds_engine_process_init(&server->engine, server);
    apply_config(server);
    raise_descriptor_limit();
    server->started_nsec = server->now_nsec = ds_now_nsec();
    if (getrandom(&server->epoch, sizeof server->epoch, 0) != (ssize_t) sizeof server->epoch)
        server->epoch = server->started_nsec;
    r = open_signals(server);
    if (r < 0)
        (void) ds_error_set(error, r, "signals: %s", strerror(-r));
    if (r == 0)
        r = init_loop(server, error);
    if (r == 0)
        r = ds_registry_new(&server->registry, server->config.models);
    if (r == 0)
        r = ds_engine_process_find(&server->engine, server->config.engine, error);
    if (r < 0) {
        ds_server_deinit(server);
        return r;
    }
    ds_engine_process_start(&server->engine);
    if (sd_watchdog_enabled(0, &watchdog) > 0) {
        server->watchdog_nsec = watchdog * 1000 / 2;
        on_watchdog(server);
    }
    return 0;
}

/* --- accepting --- */

static void on_accept_rested(void *owner)
{
    struct ds_server *server = owner;

    if (server->on_accept)
        ds_watch_resume(server->on_accept);
}

static void on_accept(void *owner, int result)
{
    struct ds_server *server = owner;
    int r;

    if (result < 0) {
        ds_log(LOG_WARNING, "a client cannot be accepted: %s", strerror(-result));
        (void) ds_timer_set(server->loop, &server->accept_rest, ds_now_nsec() + ACCEPT_REST_NSEC,
                            on_accept_rested, server);
        return;
    }
    r = ds_session_new(server, result);
    if (r < 0)
        ds_log(LOG_WARNING, "a client cannot be served: %s", strerror(-r));
}

/* What systemd made: said by its own name from here on. */
static void name_socket(struct ds_server *server)
{
    struct sockaddr_un address = { 0 };
    socklen_t size = sizeof address;
    char *name;

    if (getsockname(server->listen_fd, (struct sockaddr *) &address, &size) < 0 ||
        address.sun_path[0] != '/')
        return;
    name = strndup(address.sun_path, sizeof address.sun_path);
    if (!name)
        return;
    free(server->config.socket);
    server->config.socket = name;
}

int ds_server_listen(struct ds_server *server, struct ds_error *error)
{
    bool made;
    int r;

    r = ds_listener_open(server->config.socket, &server->listen_fd, &made, error);
    if (r < 0)
        return r;
    if (made)
        server->unlink_path = strdup(server->config.socket);
    else
        name_socket(server);
    r = ds_loop_watch(server->loop, DS_WATCH_ACCEPT, server->listen_fd, on_accept, server,
                      &server->on_accept);
    if (r < 0)
        return ds_error_set(error, r, "%s: %s", server->config.socket, strerror(-r));
    (void) sd_notifyf(0, "READY=1\nSTATUS=Serving %s (%s)", server->config.socket,
                      ds_loop_name(server->loop));
    ds_log(LOG_INFO, "dsd " DSD_VERSION " serves %s with %s", server->config.socket,
           ds_loop_name(server->loop));
    return 0;
}

/* --- the loop --- */

static void free_dead(struct ds_server *server)
{
    struct ds_session *session;

    ds_list_each(session, &server->dead, link)(void) ds_session_free(session);
}

/* Everything that was posted in this turn becomes visible, in one go. */
static void flush(struct ds_server *server)
{
    struct ds_session *session;

    ds_list_each(session, &server->dirty, dirty) ds_session_publish(session);
    ds_engine_link_ring(&server->engine);
    ds_loop_flush(server->loop);
}

static bool drain_rings(struct ds_server *server)
{
    struct ds_session *session;
    bool worked = false;

    ds_list_each(session, &server->hot, hot) worked |= ds_session_drain(session);
    if (server->engine.channel && server->engine.awake && server->engine.state == DS_ENGINE_RUNNING)
        worked |= ds_engine_link_drain(&server->engine);
    return worked;
}

static bool may_spin(const struct ds_server *server)
{
    return server->spin_nsec > 0 && !ds_list_empty(&server->hot) && server->engine.n_running == 0;
}

/* Everybody is told to ring from now on. False: somebody has something for us already. */
static bool go_to_sleep(struct ds_server *server)
{
    struct ds_engine_process *engine = &server->engine;
    struct ds_session *session;
    bool quiet = true;

    ds_list_each(session, &server->hot, hot) quiet &= ds_session_cool(session);
    if (engine->channel && engine->awake && engine->state == DS_ENGINE_RUNNING) {
        engine->awake = !ds_channel_sleep(engine->channel);
        quiet &= !engine->awake;
    }
    return quiet;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* One turn of all the rings; then a look at the rest, or sleep. */
static int turn(struct ds_server *server, unsigned *turns, uint64_t *quiet_since)
{
    bool worked = drain_rings(server);
    int r = 0;

    if (worked)
        flush(server);
    if (!ds_list_empty(&server->dead))
        free_dead(server);
    if (++*turns % TURNS_PER_LOOK == 0 || ds_loop_pending(server->loop)) {
        r = ds_loop_turn(server->loop, false);
        server->now_nsec = ds_now_nsec();
    }
    if (worked || r > 0) {
        *quiet_since = 0;
    } else if (r == 0) {
        if (*quiet_since == 0)
            *quiet_since = server->now_nsec = ds_now_nsec();
        if (may_spin(server) && server->now_nsec - *quiet_since < server->spin_nsec) {
            if (*turns % TURNS_PER_YIELD == 0)
                (void) sched_yield();
            else if (*turns % TURNS_PER_PAUSE == 0)
                relax();
            return 0;
        }
        flush(server);
        if (!go_to_sleep(server))
            return 0;
        r = ds_loop_turn(server->loop, true);
        server->now_nsec = ds_now_nsec();
        *quiet_since = 0;
    }
    if (r > 0)
        flush(server);
    return r < 0 ? r : 0;
}

int ds_server_run(struct ds_server *server)
{
    uint64_t quiet_since = 0;
    unsigned turns = 0;
    int r = 0;

    while (!server->stop && r == 0)
        r = turn(server, &turns, &quiet_since);
    flush(server);
    return r;
}

/* --- the end --- */

static void end_call(struct ds_call *call)
{
    if (call->state != DS_CALL_FINISHED)
        ds_call_fail(call, DS__ERROR__CODE__DRAINING, 1000,
                     "dsd stopped before this was done; connect again to go on");
}

static void on_drain_late(void *owner)
{
    struct ds_server *server = owner;
    struct ds_call *call;

    ds_list_each(call, &server->calls, link) end_call(call);
    server->stop = true;
}

void ds_server_check_drained(struct ds_server *server)
{
    if (server->draining && server->n_calls == 0)
        server->stop = true;
}

void ds_server_drain(struct ds_server *server)
{
    struct ds_session *session;
    struct ds_call *call;

    if (server->draining) {
        on_drain_late(server);
        return;
    }
    ds_log(LOG_INFO, "stopping: %u requests in flight", server->n_calls);
    (void) sd_notifyf(0, "STOPPING=1\nSTATUS=Stopping; %u requests in flight", server->n_calls);
    server->draining = true;
    server->on_accept = ds_watch_remove(server->on_accept);
    ds_list_each(session, &server->sessions, link)
    {
        if (session->state == DS_SESSION_ACTIVE)
            ds_channel_set_state(session->channel, DS_SERVER_DRAINING);
        ds_session_say_goodbye(session);
    }
    ds_list_each(call, &server->calls, link)
    {
        if (!call->session)
            ds_call_cancel(call); /* nobody can come back for it here */
    }
    (void) ds_timer_set(server->loop, &server->drain,
                        ds_now_nsec() + server->config.drain_sec * NSEC_PER_SEC, on_drain_late,
                        server);
    ds_server_check_drained(server);
}

void ds_server_reload(struct ds_server *server)
{
    struct ds_error error = { 0 };
    struct ds_registry *registry;
    struct ds_config config;

    (void) sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, ds_now_nsec() / 1000);
    if (!server->reload || server->reload(server->reload_arg, &config, &error) < 0) {
        ds_log(LOG_ERR, "the configuration stays as it was: %s", error.text);
    } else {
        ds_config_deinit(&server->config);
        server->config = config;
        if (!server->unlink_path)
            name_socket(server);
        apply_config(server);
        if (ds_registry_new(&registry, server->config.models) == 0) {
            (void) ds_registry_free(server->registry);
            server->registry = registry;
        }
        ds_log(LOG_INFO, "configuration and models directory read again");
    }
    (void) sd_notify(0, "READY=1");
}

void ds_server_deinit(struct ds_server *server)
{
    struct ds_session *session;
    struct ds_call *call;

    server->stop = true;
    if (server->unlink_path)
        (void) unlink(server->unlink_path);
    free(server->unlink_path);
    ds_list_each(session, &server->sessions, link)
    {
        if (session->state != DS_SESSION_ACTIVE)
            continue;
        ds_channel_set_state(session->channel, DS_SERVER_DEAD);
        ds_bell_ring(session->bell);
        ds_session_drop(session, NULL, true);
    }
    if (server->loop) {
        ds_loop_flush(server->loop);
        ds_engine_process_deinit(&server->engine);
        free_dead(server);
        ds_list_each(session, &server->sessions, link)(void) ds_session_free(session);
        while (!ds_list_empty(&server->calls)) {
            call = ds_container(server->calls.next, struct ds_call, link);
            (void) ds_call_free(call);
        }
        ds_list_each(call, &server->kept, link)(void) ds_call_free(call);
        ds_residents_free(server);
        server->on_accept = ds_watch_remove(server->on_accept);
        server->on_signal = ds_watch_remove(server->on_signal);
    }
    server->registry = ds_registry_free(server->registry);
    ds_admission_deinit(&server->admission);
    server->loop = ds_loop_free(server->loop);
    if (server->listen_fd >= 0)
        (void) close(server->listen_fd);
    if (server->signal_fd >= 0)
        (void) close(server->signal_fd);
    ds_config_deinit(&server->config);
}
