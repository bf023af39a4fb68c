/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/dsd_process.h"

#include "proto/base.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void program_path(char *path, size_t size, const char *name)
{
    char self[400];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);

    assert_true(length > 0);
    self[length] = 0;
    *strrchr(self, '/') = 0; /* build/tests */
    (void) snprintf(path, size, "%s/%s", self, name);
}

static void write_file(const char *path, const char *content)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    (void) fputs(content, file);
    (void) fclose(file);
}

void dsd_add_model(struct dsd_process *dsd, const char *name, const char *content)
{
    char path[256];

    (void) snprintf(path, sizeof path, "%s/models/%s.gguf", dsd->directory, name);
    write_file(path, content);
}

static bool answers(const struct dsd_process *dsd)
{
    struct raw_client client;

    if (raw_connect(&client, dsd->socket, NULL) < 0)
        return false;
    raw_close(&client, true);
    return true;
}

void dsd_again(struct dsd_process *dsd, const char *loop)
{
    char program[512], engine[512], models[96], config[96], log[96];
    char *arguments[] = { program,          (char *) "--socket",
                          dsd->socket,      (char *) "--models",
                          models,           (char *) "--config",
                          config,           (char *) "--engine",
                          engine,           (char *) "--loop",
                          (char *) loop,    (char *) "--log-level",
                          (char *) "debug", NULL };
    posix_spawn_file_actions_t actions;

    program_path(program, sizeof program, "../dsd");
    program_path(engine, sizeof engine, dsd->real_engine ? "../dsd-engine" : "e2e/fake_engine");
    (void) snprintf(models, sizeof models, "%s/models", dsd->directory);
    (void) snprintf(config, sizeof config, "%s/dsd.conf", dsd->directory);
    (void) snprintf(log, sizeof log, "%s/log", dsd->directory);
    (void) posix_spawn_file_actions_init(&actions);
    (void) posix_spawn_file_actions_addopen(&actions, 2, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    assert_int_equal(posix_spawn(&dsd->pid, program, &actions, NULL, arguments, environ), 0);
    (void) posix_spawn_file_actions_destroy(&actions);
    for (int i = 0; i < 1000; i++) {
        if (answers(dsd))
            return;
        (void) usleep(10000);
    }
    fail_msg("dsd does not answer at %s", dsd->socket);
}

void dsd_start(struct dsd_process *dsd, const char *loop, const char *config,
               const char *const *models)
{
    char path[96];

    (void) snprintf(dsd->directory, sizeof dsd->directory, "/tmp/dsd-test-XXXXXX");
    assert_non_null(mkdtemp(dsd->directory));
    (void) snprintf(dsd->socket, sizeof dsd->socket, "%s/dsd.sock", dsd->directory);
    (void) snprintf(path, sizeof path, "%s/models", dsd->directory);
    assert_int_equal(mkdir(path, 0700), 0);
    (void) snprintf(path, sizeof path, "%s/dsd.conf", dsd->directory);
    write_file(path, config);
    for (; *models; models += 2)
        dsd_add_model(dsd, models[0], models[1]);
    dsd_again(dsd, loop);
}

int dsd_end(struct dsd_process *dsd, int signal)
{
    int status;

    if (signal)
        (void) kill(dsd->pid, signal);
    for (int i = 0; i < 1000; i++) {
        if (waitpid(dsd->pid, &status, WNOHANG) == dsd->pid) {
            dsd->pid = 0;
            return status;
        }
        (void) usleep(10000);
    }
    (void) kill(dsd->pid, SIGKILL);
    (void) waitpid(dsd->pid, &status, 0);
    dsd->pid = 0;
    return -1;
}

void dsd_remove(struct dsd_process *dsd)
{
    char command[128];

    if (getenv("DSD_TEST_LOG")) {
        (void) snprintf(command, sizeof command, "cat %s/log", dsd->directory);
        (void) !system(command);
    }
    (void) snprintf(command, sizeof command, "rm -rf %s", dsd->directory);
    (void) !system(command);
}

bool dsd_alive(const struct dsd_process *dsd)
{
    siginfo_t info = { 0 };

    return waitid(P_PID, (id_t) dsd->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

pid_t dsd_engine_pid(const struct dsd_process *dsd)
{
    char path[96];
    int pid = 0;
    FILE *file;

    (void) snprintf(path, sizeof path, "/proc/%d/task/%d/children", dsd->pid, dsd->pid);
    file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%d", &pid) != 1)
        pid = 0;
    (void) fclose(file);
    return pid;
}

bool dsd_log_has(const struct dsd_process *dsd, const char *text)
{
    char path[96], line[2048];
    bool found = false;
    FILE *file;

    (void) snprintf(path, sizeof path, "%s/log", dsd->directory);
    file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file))
        found = strstr(line, text) != NULL;
    if (file)
        (void) fclose(file);
    return found;
}

unsigned dsd_count_fds(const struct dsd_process *dsd)
{
    char path[64];
    unsigned n = 0;
    DIR *directory;

    (void) snprintf(path, sizeof path, "/proc/%d/fd", dsd->pid);
    directory = opendir(path);
    assert_non_null(directory);
    while (readdir(directory))
        n++;
    (void) closedir(directory);
    return n;
}

uint64_t dsd_switches(pid_t pid)
{
    char path[64], line[256];
    unsigned long long n, sum = 0;
    FILE *file;

    (void) snprintf(path, sizeof path, "/proc/%d/status", pid);
    file = fopen(path, "re");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "voluntary_ctxt_switches: %llu", &n) == 1 ||
            sscanf(line, "nonvoluntary_ctxt_switches: %llu", &n) == 1)
            sum += n;
    (void) fclose(file);
    return sum;
}
