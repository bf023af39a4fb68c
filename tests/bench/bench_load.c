/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_load - from a file to a model that can run: with nothing of the file in memory ("cold") and
 * with all of it there ("warm"), against reading the same file around the page cache (O_DIRECT) and
 * against copying it out of the page cache, in turn, in one run.
 *
 * usage: bench_load [THREADS [FILE]]    (FILE: else the golden model under $DSD_MODELS)
 *
 * The cold row drops the file's own pages and nobody else's. The last row runs one stream of a
 * small product meanwhile, and says what the load did to its steps.
 */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "engine/cpu/panel.h"
#include "engine/model/model.h"
#include "proto/base.h"

enum { ROUNDS = 5, CHUNK = 4 << 20, DIRECT_READERS = 2 };

struct file {
    const char *path;
    int fd;
    size_t size;
};

static double seconds_since(uint64_t begun)
{
    return (double) (ds_now_nsec() - begun) / 1e9;
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

/* --- comparators --- */

struct reader {
    const struct file *file;
    int fd;
    _Atomic size_t *next;
};

static void *read_some(void *arg)
{
    struct reader *reader = arg;
    void *buffer = NULL;
    size_t at;

    if (posix_memalign(&buffer, 4096, CHUNK) != 0)
        return NULL;
    while ((at = atomic_fetch_add(reader->next, CHUNK)) < reader->file->size)
        if (pread(reader->fd, buffer, CHUNK, (off_t) at) <= 0)
            break;
    free(buffer);
    return NULL;
}

/* Seconds in which n threads read the file once; NAN where it cannot be opened like this. */
static double read_file(const struct file *file, int flags, unsigned n)
{
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | flags);
    _Atomic size_t next = 0;
    struct reader reader = { .file = file, .fd = fd, .next = &next };
    pthread_t threads[DIRECT_READERS];
    uint64_t begun = ds_now_nsec();

    if (fd < 0)
        return NAN;
    for (unsigned i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, read_some, &reader) != 0)
            n = i;
    for (unsigned i = 0; i < n; i++)
        (void) pthread_join(threads[i], NULL);
    (void) close(fd);
    return seconds_since(begun);
}

/* --- loading --- */

static double load(struct ds_backend *backend, const struct file *file)
{
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_model *model = NULL;
    struct ds_error error = { "" };
    uint64_t begun = ds_now_nsec();
    double seconds;

    if (ds_checkpoint_open(&checkpoint, &file->fd, 1, file->path, false, &error) < 0 ||
        ds_model_load(&model, backend, checkpoint, 64, 1, NULL, NULL, &error) < 0) {
        (void) fprintf(stderr, "bench_load: %s\n", error.text);
        exit(1);
    }
    seconds = seconds_since(begun);
    (void) ds_model_free(model);
    (void) ds_checkpoint_free(checkpoint);
    return seconds;
}

static void report(const char *name, double *seconds, const struct file *file, double limit)
{
    double middle = median(seconds, ROUNDS);

    (void) printf("%-24s %8.3f s %8.2f GB/s", name, middle, (double) file->size / middle / 1e9);
    if (limit > 0)
        (void) printf("   %5.2f x", limit / middle);
    (void) printf("\n");
}

/* --- a running stream meanwhile --- */

enum { K = 1024, N = 4096, STEPS_MAX = 200000 };

struct stream {
    struct ds_backend *backend;
    struct ds_weight *weight;
    struct ds_buffer *in, *out;
    atomic_bool stop;
    double *steps;
    size_t n;
};

static void *run_stream(void *arg)
{
    struct stream *stream = arg;
    struct ds_product product = { .out = stream->out, .weight = stream->weight };

    while (!atomic_load(&stream->stop) && stream->n < STEPS_MAX) {
        uint64_t begun = ds_now_nsec();

        for (unsigned i = 0; i < 20; i++) /* as many products as a small model's step */
            (void) stream->backend->matmul(stream->backend, &product, 1, stream->in, 1);
        stream->steps[stream->n++] = seconds_since(begun);
    }
    return NULL;
}

static double steps(struct stream *stream, const struct file *file, double *ret_worst)
{
    pthread_t thread;

    stream->n = 0;
    atomic_store(&stream->stop, false);
    if (pthread_create(&thread, NULL, run_stream, stream) != 0)
        return NAN;
    if (file)
        (void) load(stream->backend, file);
    else
        (void) usleep(300000);
    atomic_store(&stream->stop, true);
    (void) pthread_join(thread, NULL);
    qsort(stream->steps, stream->n, sizeof *stream->steps, compare);
    *ret_worst = stream->steps[stream->n - 1 - stream->n / 100];
    return stream->steps[stream->n / 2];
}

static void disturb(struct ds_backend *backend, const struct file *file)
{
    struct ds_tensor tensor = { .name = "w",
                                .type = DS_TYPE_F16,
                                .n_dims = 2,
                                .dims = { K, N, 1, 1 },
                                .size_bytes = (uint64_t) 2 * K * N };
    struct stream stream = { .backend = backend, .steps = calloc(STEPS_MAX, sizeof(double)) };
    void *data = calloc(N, 2 * K);
    double alone, beside, alone_worst, beside_worst;

    tensor.data = data;
    stream.in = backend->buffer_new(backend, K);
    stream.out = backend->buffer_new(backend, N);
    if (!stream.steps || !data || !stream.in || !stream.out ||
        backend->weight_new(backend, &tensor, false, &stream.weight) < 0)
        exit(1);
    backend->stand_back = true;
    alone = steps(&stream, NULL, &alone_worst);
    beside = steps(&stream, file, &beside_worst);
    (void) printf("a stream's step: alone %.3f ms (99%%: %.3f), during a warm load %.3f ms (99%%: "
                  "%.3f): %.2f x\n",
                  alone * 1e3, alone_worst * 1e3, beside * 1e3, beside_worst * 1e3, beside / alone);
    backend->weight_free(backend, stream.weight);
    backend->buffer_free(backend, stream.in);
    backend->buffer_free(backend, stream.out);
    free(stream.steps);
    free(data);
}

int main(int argc, char **argv)
{
    const char *folder = getenv("DSD_MODELS");
    struct ds_cpu_options options = { .n_threads = argc > 1 ? (unsigned) atoi(argv[1]) : 0 };
    double direct[ROUNDS], cold[ROUNDS], copied[ROUNDS], warm[ROUNDS];
    struct ds_backend *backend = NULL;
    struct file file = { .fd = -1 };
    char path[4096];
    struct stat st;

    (void) snprintf(path, sizeof path, "%s/SmolLM2-135M-Instruct.Q4_1.gguf",
                    folder ? folder : "/work/models");
    file.path = argc > 2 ? argv[2] : path;
    file.fd = open(file.path, O_RDONLY | O_CLOEXEC);
    if (file.fd < 0 || fstat(file.fd, &st) < 0) {
        (void) printf("SKIP: %s: %s\n", file.path, strerror(errno));
        return 77;
    }
    file.size = (size_t) st.st_size;
    if (ds_backend_cpu(&backend, &options) < 0)
        return 1;
    for (unsigned i = 0; i < ROUNDS; i++) {
        direct[i] = read_file(&file, O_DIRECT, DIRECT_READERS);
        (void) posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
        cold[i] = load(backend, &file);
        (void) read_file(&file, 0, 1); /* all of it is there now */
        copied[i] = read_file(&file, 0, 1);
        warm[i] = load(backend, &file);
    }
    (void) printf("%s, %.0f MB, %s\n", file.path, (double) file.size / 1e6,
                  backend->describe(backend));
    report("O_DIRECT, 2 threads", direct, &file, 0);
    report("load, cold", cold, &file, median(direct, ROUNDS));
    report("page cache, 1 thread", copied, &file, 0);
    report("load, warm", warm, &file, median(copied, ROUNDS));
    disturb(backend, &file);
    backend->close(backend);
    (void) close(file.fd);
    return 0;
}
