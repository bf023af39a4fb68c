/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_ping - the bare round trip from libds to a live dsd and back, against a round trip over two
 * bare eventfds between two processes on the same processors, in pairs.
 *
 * usage: bench_ping    (runs the dsd and dsd-engine of the build directory it lies in)
 */
#include <libgen.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "client/ds.h"
#include "proto/base.h"

#define PAIRS   7
#define TRIPS   3000
#define WARM_UP 300

static void pin(pid_t pid, int processor)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    (void) sched_setaffinity(pid, sizeof set, &set);
}

static int compare(const void *a, const void *b)
{
    const double *left = a, *right = b;

    return (*left > *right) - (*left < *right);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare);
    return values[n / 2];
}

/* p50 of a round trip over two eventfds, blocking on both sides, in nanoseconds. */
static double bare(int near, int far)
{
    static double nsec[TRIPS];
    int there = eventfd(0, EFD_CLOEXEC), back = eventfd(0, EFD_CLOEXEC);
    uint64_t value = 1;
    pid_t echo = fork();

    if (echo == 0) {
        pin(0, far);
        while (read(there, &value, sizeof value) == sizeof value && value < 1000)
            (void) !write(back, &value, sizeof value);
        _exit(0);
    }
    pin(0, near);
    for (int i = 0; i < TRIPS; i++) {
        uint64_t start = ds_now_nsec();

        value = 1;
        (void) !write(there, &value, sizeof value);
        (void) !read(back, &value, sizeof value);
        nsec[i] = (double) (ds_now_nsec() - start);
    }
    value = 1000;
    (void) !write(there, &value, sizeof value);
    (void) waitpid(echo, NULL, 0);
    (void) close(there);
    (void) close(back);
    return median(nsec + WARM_UP, TRIPS - WARM_UP);
}

/* p50 of ds_ping(), or -1 where dsd went away. */
static double ping(struct ds *ds, int timeout_ms)
{
    static double nsec[TRIPS];

    for (int i = 0; i < TRIPS; i++) {
        uint64_t start = ds_now_nsec(), id;
        struct ds_event event;
        int r = ds_ping(ds, &id);

        while (r >= 0 && (r = ds_next(ds, &event, timeout_ms)) == DS_NONE)
            ;
        if (r < 0)
            return -1;
        nsec[i] = (double) (ds_now_nsec() - start);
    }
    return median(nsec + WARM_UP, TRIPS - WARM_UP);
}

static void print_pairs(const char *name, struct ds *ds, int timeout_ms, int near, int far)
{
    double ours[PAIRS], theirs[PAIRS], ratios[PAIRS];

    for (int i = 0; i < PAIRS; i++) {
        theirs[i] = bare(near, far);
        pin(0, near);
        ours[i] = ping(ds, timeout_ms);
        ratios[i] = ours[i] / theirs[i];
    }
    printf("%-34s p50 %8.0f ns   bare eventfds %8.0f ns   ratio %.2f\n", name, median(ours, PAIRS),
           median(theirs, PAIRS), median(ratios, PAIRS));
}

static pid_t start(const char *build, const char *directory, const char *socket)
{
    char program[PATH_MAX];
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    (void) snprintf(program, sizeof program, "%s/dsd", build);
    (void) execl(program, "dsd", "--socket", socket, "--models", directory, "--config", "/dev/null",
                 "--log-level", "warning", (char *) NULL);
    _exit(127);
}

int main(int argc, char **argv)
{
    char path[PATH_MAX], directory[] = "/tmp/dsd-bench-XXXXXX", socket[64];
    struct ds_connect_options options = { .struct_size = sizeof options, .socket = socket };
    struct ds *ds = NULL, *sleeper = NULL; /* sleeper never spins */
    pid_t dsd;

    if (sysconf(_SC_NPROCESSORS_ONLN) < 2 || argc < 1 || !realpath(argv[0], path)) {
        printf("skip: two processors are needed\n");
        return 77;
    }
    if (!mkdtemp(directory))
        return 1;
    (void) snprintf(socket, sizeof socket, "%s/dsd.sock", directory);
    dsd = start(dirname(dirname(dirname(path))), directory, socket);
    for (int i = 0; i < 500 && ds_connect(&ds, &options) < 0; i++)
        (void) usleep(10000);
    options.spin_usec = UINT32_MAX;
    if (ds && ds_connect(&sleeper, &options) == 0) {
        pin(dsd, 1);
        print_pairs("ping, spinning, two processors", ds, 0, 0, 1);
        print_pairs("ping, blocked, two processors", sleeper, -1, 0, 1);
        pin(dsd, 0);
        print_pairs("ping, blocked, one processor", sleeper, -1, 0, 0);
    }
    ds_close(sleeper);
    ds_close(ds);
    (void) kill(dsd, SIGTERM);
    (void) waitpid(dsd, NULL, 0);
    (void) unlink(socket);
    (void) rmdir(directory);
    return ds ? 0 : 1;
}
