/* SPDX-License-Identifier: Apache-2.0 */
/* How many threads this process may keep busy: sched_setaffinity(2), cgroups (cgroup v2: cpu.max).
 */
#include <fcntl.h>
#include <limits.h>
#include <sched.h>

#include "engine/cpu/pool.h"
#include "proto/base.h"

unsigned ds_pool_parse_cpu_max(const char *text)
{
    unsigned long long quota, period;

    if (sscanf(text, "%llu %llu", &quota, &period) != 2 || period == 0 || quota == 0)
        return 0;
    if (quota / period >= DS_POOL_THREADS_MAX)
        return 0;
    return (unsigned) ((quota + period - 1) / period);
}

static int read_text(const char *path, char *text, size_t size)
{
    ds_cleanup(ds_close_p) int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return -errno;
    n = read(fd, text, size - 1);
    if (n < 0)
        return -errno;
    text[n] = '\0';
    return 0;
}

static unsigned affinity(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return (unsigned) CPU_COUNT(&set);
    return (unsigned) sysconf(_SC_NPROCESSORS_ONLN); /* more cpus than the set holds */
}

/* The smallest quota on the way from this process's cgroup up to the root; 0 = none. A sandbox
 * that hides these files hides the quota too, which costs speed and nothing else. */
static unsigned quota(void)
{
    char groups[PATH_MAX], path[PATH_MAX + 64], text[64];
    unsigned least = 0;
    char *group, *slash;

    if (read_text("/proc/self/cgroup", groups, sizeof groups) < 0)
        return 0;
    group = strstr(groups, "0::/");
    if (!group)
        return 0;
    group += strlen("0::");
    group[strcspn(group, "\n")] = '\0';
    for (;;) {
        (void) snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        if (read_text(path, text, sizeof text) == 0) {
            unsigned cpus = ds_pool_parse_cpu_max(text);

            if (cpus && (!least || cpus < least))
                least = cpus;
        }
        slash = strrchr(group, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

unsigned ds_pool_n_allowed(void)
{
    unsigned n = affinity(), limit = quota();

    if (limit && limit < n)
        n = limit;
    if (n > DS_POOL_THREADS_MAX)
        n = DS_POOL_THREADS_MAX;
    return n ? n : 1;
}
