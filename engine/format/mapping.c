/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/mapping.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/base.h"

/* Read by the signal handler, which can take no lock: base is stored last and cleared first. */
static struct slot {
    _Atomic uintptr_t base; /* 0: free */
    size_t size;
    atomic_bool lost;
    int fd;
    struct timespec changed; /* last, when it was mapped */
} slots[DS_FILE_MAPPINGS_MAX];

static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER; /* who takes and frees slots */
static struct sigaction before;

static void take_bus_error(int signal, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t) info->si_addr;
    int saved = errno;

    (void) context;
    for (unsigned i = 0; i < DS_FILE_MAPPINGS_MAX; i++) {
        uintptr_t base = atomic_load_explicit(&slots[i].base, memory_order_acquire);

        if (base == 0 || address < base || address - base >= slots[i].size)
            continue;
        atomic_store(&slots[i].lost, true);
        if (mmap((void *) base, slots[i].size, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS,
                 -1, 0) == MAP_FAILED)
            break;
        errno = saved;
        return;
    }
    (void) sigaction(signal, &before, NULL); /* the instruction runs again, and this is its end */
}

/* Anew where another handler has come since. */
static void install(void)
{
    struct sigaction action = { .sa_sigaction = take_bus_error, .sa_flags = SA_SIGINFO }, now;

    if (sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
        now.sa_sigaction == take_bus_error)
        return;
    (void) sigemptyset(&action.sa_mask);
    (void) sigaction(SIGBUS, &action, &before);
}

const void *ds_file_map(int fd, size_t size)
{
    ds_cleanup(ds_close_p) int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    struct slot *slot = NULL;
    struct stat st;
    void *data;

    if (own < 0 || fstat(own, &st) < 0)
        return NULL;
    data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        return NULL;
    (void) pthread_mutex_lock(&slots_lock);
    install();
    for (unsigned i = 0; i < DS_FILE_MAPPINGS_MAX && !slot; i++)
        if (atomic_load_explicit(&slots[i].base, memory_order_relaxed) == 0)
            slot = &slots[i];
    if (slot) {
        slot->size = size;
        slot->fd = ds_steal_fd(&own);
        slot->changed = st.st_mtim;
        atomic_store(&slot->lost, false);
        atomic_store_explicit(&slot->base, (uintptr_t) data, memory_order_release);
    }
    (void) pthread_mutex_unlock(&slots_lock);
    if (!slot) {
        (void) munmap(data, size);
        errno = EMFILE;
        return NULL;
    }
    return data;
}

static struct slot *find(const void *data)
{
    for (unsigned i = 0; i < DS_FILE_MAPPINGS_MAX; i++)
        if (atomic_load_explicit(&slots[i].base, memory_order_acquire) == (uintptr_t) data)
            return &slots[i];
    return NULL;
}

void ds_file_unmap(const void *data, size_t size)
{
    struct slot *slot = data ? find(data) : NULL;

    if (!slot)
        return;
    (void) pthread_mutex_lock(&slots_lock);
    atomic_store(&slot->base, 0);
    ds_close_p(&slot->fd);
    (void) pthread_mutex_unlock(&slots_lock);
    (void) munmap((void *) data, size);
}

int ds_file_intact(const void *data, const char *label, struct ds_error *error)
{
    const struct slot *slot = data ? find(data) : NULL;
    struct stat st;

    if (!slot)
        return 0;
    if (fstat(slot->fd, &st) < 0)
        return ds_error_set(error, -EIO, "%s: cannot be looked at again: %s", label,
                            strerror(errno));
    if ((uint64_t) st.st_size != slot->size || st.st_mtim.tv_sec != slot->changed.tv_sec ||
        st.st_mtim.tv_nsec != slot->changed.tv_nsec)
        return ds_error_set(error, -EIO,
                            "%s: was changed while it was read (it has %llu bytes, it had %zu): "
                            "try again when nobody writes to it",
                            label, (unsigned long long) st.st_size, slot->size);
    if (atomic_load(&slot->lost))
        return ds_error_set(error, -EIO,
                            "%s: its disk could not be read: see the kernel's log, and fetch it "
                            "again",
                            label);
    return 0;
}
