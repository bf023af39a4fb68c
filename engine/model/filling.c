/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/filling.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include "proto/base.h"

#define READ_AHEAD  ((uint64_t) 64 << 20)
#define READ_STEP   ((uint64_t) 8 << 20)
#define THREADS_MAX 256u
#define NEWS_NSEC   (20 * 1000000L)
#define NICE        10

struct job {
    struct ds_weight *weight;
    struct ds_tensor *matrices; /* [n] owned */
    uint32_t n;
    uint64_t first_piece; /* of all pieces of all jobs */
    uint64_t first_byte;  /* of all data of all jobs, in their order */
    uint64_t bytes;
};

struct ds_filling {
    struct ds_backend *backend;
    struct job *jobs;
    size_t n_jobs, room;
    uint64_t n_pieces, n_bytes;

    _Atomic uint64_t next; /* piece not yet taken */
    _Atomic uint64_t done;
    atomic_bool given_up, no_memory;

    pthread_mutex_t lock;
    pthread_cond_t ended; /* n_running became 0 */
    unsigned n_running;

    /* Read-ahead: whoever holds reading goes on where the last one stopped. */
    pthread_mutex_t reading;
    size_t read_job;
    uint32_t read_matrix;
    uint64_t read_offset;       /* in that matrix */
    _Atomic uint64_t read_byte; /* asked for, counted as first_byte */
};

int ds_filling_new(struct ds_filling **ret_filling, struct ds_backend *backend)
{
    struct ds_filling *filling = calloc(1, sizeof *filling);
    pthread_condattr_t monotonic;

    if (!filling)
        return -ENOMEM;
    filling->backend = backend;
    (void) pthread_mutex_init(&filling->lock, NULL);
    (void) pthread_mutex_init(&filling->reading, NULL);
    (void) pthread_condattr_init(&monotonic);
    (void) pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void) pthread_cond_init(&filling->ended, &monotonic);
    (void) pthread_condattr_destroy(&monotonic);
    *ret_filling = filling;
    return 0;
}

struct ds_filling *ds_filling_free(struct ds_filling *filling)
{
    if (!filling)
        return NULL;
    for (size_t i = 0; i < filling->n_jobs; i++)
        free(filling->jobs[i].matrices);
    free(filling->jobs);
    (void) pthread_cond_destroy(&filling->ended);
    (void) pthread_mutex_destroy(&filling->reading);
    (void) pthread_mutex_destroy(&filling->lock);
    free(filling);
    return NULL;
}

void ds_filling_free_p(struct ds_filling **filling)
{
    *filling = ds_filling_free(*filling);
}

int ds_filling_add(struct ds_filling *filling, struct ds_weight *weight,
                   const struct ds_tensor *matrices, uint32_t n)
{
    struct job job = {
        .weight = weight, .n = n, .first_piece = filling->n_pieces, .first_byte = filling->n_bytes
    };

    if (filling->n_jobs == filling->room) {
        size_t room = filling->room ? 2 * filling->room : 256;
        struct job *jobs = reallocarray(filling->jobs, room, sizeof *jobs);

        if (!jobs)
            return -ENOMEM;
        filling->jobs = jobs;
        filling->room = room;
    }
    job.matrices = calloc(n, sizeof *job.matrices);
    if (!job.matrices)
        return -ENOMEM;
    memcpy(job.matrices, matrices, n * sizeof *matrices);
    for (uint32_t i = 0; i < n; i++)
        job.bytes += matrices[i].size_bytes;
    filling->n_pieces += filling->backend->weight_n_pieces(weight);
    filling->n_bytes += job.bytes;
    filling->jobs[filling->n_jobs++] = job;
    return 0;
}

/* --- on its threads --- */

static const struct job *job_of(const struct ds_filling *filling, uint64_t piece)
{
    size_t low = 0, high = filling->n_jobs;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (filling->jobs[middle].first_piece <= piece)
            low = middle;
        else
            high = middle;
    }
    return &filling->jobs[low];
}

/* Asks for the next READ_STEP bytes at most, of one matrix. False: there are none. */
static bool ask_for_more(struct ds_filling *filling)
{
    static const uintptr_t page = 4096;
    const struct ds_tensor *matrix;
    uint64_t n;

    if (filling->read_job == filling->n_jobs)
        return false;
    matrix = &filling->jobs[filling->read_job].matrices[filling->read_matrix];
    n = matrix->size_bytes - filling->read_offset;
    n = n < READ_STEP ? n : READ_STEP;
    if (n > 0 && matrix->data) {
        uintptr_t from = (uintptr_t) matrix->data + filling->read_offset;
        uintptr_t start = from & ~(page - 1);

        (void) madvise((void *) start, from + n - start, MADV_WILLNEED);
    }
    (void) atomic_fetch_add(&filling->read_byte, n);
    filling->read_offset += n;
    if (filling->read_offset == matrix->size_bytes) {
        filling->read_offset = 0;
        if (++filling->read_matrix == filling->jobs[filling->read_job].n) {
            filling->read_matrix = 0;
            filling->read_job++;
        }
    }
    return true;
}

/* at: the byte that is needed now. */
static void read_ahead(struct ds_filling *filling, uint64_t at)
{
    uint64_t wanted = at + READ_AHEAD;

    if (atomic_load(&filling->read_byte) >= wanted || pthread_mutex_trylock(&filling->reading) != 0)
        return;
    while (atomic_load(&filling->read_byte) < wanted && ask_for_more(filling))
        ;
    (void) pthread_mutex_unlock(&filling->reading);
}

/* False: none is left. */
static bool fill_one(struct ds_filling *filling)
{
    uint64_t piece = atomic_fetch_add(&filling->next, 1);
    const struct job *job;
    uint64_t own, of;

    if (piece >= filling->n_pieces || atomic_load(&filling->given_up) ||
        atomic_load(&filling->no_memory))
        return false;
    job = job_of(filling, piece);
    own = piece - job->first_piece;
    of = filling->backend->weight_n_pieces(job->weight);
    read_ahead(filling,
               job->first_byte + (uint64_t) ((double) job->bytes / (double) of * (double) own));
    if (!filling->backend->weight_fill(job->weight, job->matrices, (uint32_t) own)) {
        atomic_store(&filling->no_memory, true);
        return false;
    }
    (void) atomic_fetch_add(&filling->done, 1);
    return true;
}

struct worker {
    struct ds_filling *filling;
    pthread_t thread;
    unsigned index;
};

static void *work(void *arg)
{
    struct worker *worker = arg;
    struct ds_filling *filling = worker->filling;
    struct sched_param none = { 0 };

    /* Of this thread alone, each a wish. */
    if (filling->backend->stand_back && worker->index > 0)
        (void) sched_setscheduler(0, SCHED_IDLE, &none);
    else if (filling->backend->stand_back)
        (void) setpriority(PRIO_PROCESS, 0, NICE);
    while (fill_one(filling))
        ;
    (void) pthread_mutex_lock(&filling->lock);
    if (--filling->n_running == 0)
        (void) pthread_cond_signal(&filling->ended);
    (void) pthread_mutex_unlock(&filling->lock);
    return NULL;
}

/* --- on the caller's --- */

/* Signals are for others, but for the one that tells of a file cut short (mapping.h). */
static unsigned start(struct ds_filling *filling, struct worker *workers, unsigned n)
{
    sigset_t others, before;
    unsigned started = 0;

    (void) sigfillset(&others);
    (void) sigdelset(&others, SIGBUS);
    (void) pthread_sigmask(SIG_SETMASK, &others, &before);
    filling->n_running = n;
    while (started < n) {
        struct worker *worker = &workers[started];

        *worker = (struct worker){ .filling = filling, .index = started };
        if (pthread_create(&worker->thread, NULL, work, worker) != 0)
            break;
        (void) pthread_setname_np(worker->thread, "ds-fill");
        started++;
    }
    (void) pthread_mutex_lock(&filling->lock);
    filling->n_running -= n - started;
    (void) pthread_mutex_unlock(&filling->lock);
    (void) pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static void tell(struct ds_filling *filling, int (*progress)(void *arg, double fraction), void *arg)
{
    double done = (double) atomic_load(&filling->done);

    if (progress && progress(arg, done / (double) filling->n_pieces))
        atomic_store(&filling->given_up, true);
}

static void wait_for_all(struct ds_filling *filling, int (*progress)(void *arg, double fraction),
                         void *arg)
{
    bool over = false;

    while (!over) {
        struct timespec until;

        (void) clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += NEWS_NSEC;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        (void) pthread_mutex_lock(&filling->lock);
        if (filling->n_running > 0)
            (void) pthread_cond_timedwait(&filling->ended, &filling->lock, &until);
        over = filling->n_running == 0;
        (void) pthread_mutex_unlock(&filling->lock);
        tell(filling, progress, arg);
    }
}

int ds_filling_run(struct ds_filling *filling, int (*progress)(void *arg, double fraction),
                   void *arg)
{
    unsigned n = filling->backend->n_threads ? filling->backend->n_threads : 1, started;
    struct worker workers[THREADS_MAX];

    if (filling->n_pieces == 0)
        return 0;
    if (n > filling->n_pieces)
        n = (unsigned) filling->n_pieces;
    started = start(filling, workers, n < THREADS_MAX ? n : THREADS_MAX);
    if (started == 0) /* no thread to be had: it takes longer */
        while (fill_one(filling))
            tell(filling, progress, arg);
    wait_for_all(filling, progress, arg);
    for (unsigned i = 0; i < started; i++)
        (void) pthread_join(workers[i].thread, NULL);
    if (atomic_load(&filling->no_memory))
        return -ENOMEM;
    return atomic_load(&filling->done) == filling->n_pieces ? 0 : -ECANCELED;
}
