/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/worker.h"

#include <assert.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "proto/base.h"

struct queue {
    struct ds_task *head;
    struct ds_task **tail;
};

struct ds_results {
    pthread_mutex_t lock;
    struct queue queue;
    int event_fd;
};

struct ds_worker {
    struct ds_results *results;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct queue queue;
    bool stop;
};

static void queue_init(struct queue *queue)
{
    queue->head = NULL;
    queue->tail = &queue->head;
}

static void queue_push(struct queue *queue, struct ds_task *task)
{
    task->next = NULL;
    *queue->tail = task;
    queue->tail = &task->next;
}

static struct ds_task *queue_pop(struct queue *queue)
{
    struct ds_task *task = queue->head;

    if (!task)
        return NULL;
    queue->head = task->next;
    if (!queue->head)
        queue->tail = &queue->head;
    task->next = NULL;
    return task;
}

int ds_results_new(struct ds_results **ret_results)
{
    struct ds_results *results = calloc(1, sizeof *results);

    if (!results)
        return -ENOMEM;
    results->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (results->event_fd < 0) {
        int r = -errno;

        free(results);
        return r;
    }
    pthread_mutex_init(&results->lock, NULL);
    queue_init(&results->queue);
    *ret_results = results;
    return 0;
}

struct ds_results *ds_results_free(struct ds_results *results)
{
    if (!results)
        return NULL;
    assert(!results->queue.head);
    (void) close(results->event_fd);
    pthread_mutex_destroy(&results->lock);
    free(results);
    return NULL;
}

int ds_results_fd(const struct ds_results *results)
{
    return results->event_fd;
}

void ds_results_poke(struct ds_results *results)
{
    uint64_t one = 1;

    (void) !write(results->event_fd, &one, sizeof one); /* full: it is readable already */
}

static void results_put(struct ds_results *results, struct ds_task *task)
{
    pthread_mutex_lock(&results->lock);
    queue_push(&results->queue, task);
    pthread_mutex_unlock(&results->lock);
    ds_results_poke(results);
}

struct ds_task *ds_results_take(struct ds_results *results)
{
    struct ds_task *tasks;
    uint64_t count;

    (void) !read(results->event_fd, &count, sizeof count); /* before the queue: none is lost */
    pthread_mutex_lock(&results->lock);
    tasks = results->queue.head;
    queue_init(&results->queue);
    pthread_mutex_unlock(&results->lock);
    return tasks;
}

static void *worker_main(void *arg)
{
    struct ds_worker *worker = arg;
    struct ds_task *task;

    for (;;) {
        pthread_mutex_lock(&worker->lock);
        while (!worker->stop && !worker->queue.head)
            pthread_cond_wait(&worker->wake, &worker->lock);
        task = worker->stop ? NULL : queue_pop(&worker->queue);
        pthread_mutex_unlock(&worker->lock);
        if (!task)
            return NULL;
        task->run(task);
        results_put(worker->results, task);
    }
}

int ds_worker_new(struct ds_worker **ret_worker, struct ds_results *results, const char *name)
{
    struct ds_worker *worker = calloc(1, sizeof *worker);
    int r;

    if (!worker)
        return -ENOMEM;
    worker->results = results;
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->wake, NULL);
    queue_init(&worker->queue);
    r = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (r > 0) {
        pthread_cond_destroy(&worker->wake);
        pthread_mutex_destroy(&worker->lock);
        free(worker);
        return -r;
    }
    (void) pthread_setname_np(worker->thread, name);
    *ret_worker = worker;
    return 0;
}

void ds_worker_post(struct ds_worker *worker, struct ds_task *task)
{
    pthread_mutex_lock(&worker->lock);
    queue_push(&worker->queue, task);
    pthread_cond_signal(&worker->wake);
    pthread_mutex_unlock(&worker->lock);
}

struct ds_worker *ds_worker_free(struct ds_worker *worker)
{
    struct ds_task *task;

    if (!worker)
        return NULL;
    pthread_mutex_lock(&worker->lock);
    worker->stop = true;
    pthread_cond_signal(&worker->wake);
    pthread_mutex_unlock(&worker->lock);
    (void) pthread_join(worker->thread, NULL);
    while ((task = queue_pop(&worker->queue)))
        results_put(worker->results, task);
    pthread_cond_destroy(&worker->wake);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
    return NULL;
}
