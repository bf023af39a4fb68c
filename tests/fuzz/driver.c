/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.c - runs a fuzz target without libFuzzer: every seed, then random changes of seeds.
 *
 * usage: TARGET [-max_total_time=SECONDS] [-OPTION...] FOLDER... (0 seconds: until stopped)
 * Blind to what the target reaches, so it finds less; it needs no compiler but the system's. An
 * input about to be run is kept in crash-PID until it has passed.
 */
#include <dirent.h>
#include <stdbool.h>

#include "proto/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX 4096u
#define SEEDS_MAX 1024u

struct input {
    uint8_t data[INPUT_MAX];
    size_t size;
};

struct driver {
    struct input *seeds; /* own, SEEDS_MAX */
    size_t n_seeds;
    uint64_t state; /* of the random numbers */
};

static uint32_t below(struct driver *driver, uint32_t n)
{
    driver->state = driver->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) ((driver->state >> 32) * n >> 32);
}

static void run_one(const struct input *input)
{
    char path[64];
    FILE *file;

    (void) snprintf(path, sizeof path, "build-fuzz/crash-%d", (int) getpid());
    file = fopen(path, "we");
    if (file) {
        (void) fwrite(input->data, 1, input->size, file);
        (void) fclose(file);
    }
    (void) LLVMFuzzerTestOneInput(input->data, input->size);
    (void) unlink(path);
}

static void read_seeds(struct driver *driver, const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    while (dir && (entry = readdir(dir)) && driver->n_seeds < SEEDS_MAX) {
        char path[1024];
        FILE *file;

        (void) snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
        if (!file)
            continue;
        driver->seeds[driver->n_seeds].size =
            fread(driver->seeds[driver->n_seeds].data, 1, INPUT_MAX, file);
        driver->n_seeds++;
        (void) fclose(file);
    }
    if (dir)
        (void) closedir(dir);
}

/* A few bytes changed, dropped, or put in, some of them another seed's. */
static void change(struct driver *driver, struct input *input)
{
    for (uint32_t n = 1 + below(driver, 6); n > 0; n--) {
        const struct input *other = &driver->seeds[below(driver, (uint32_t) driver->n_seeds)];
        size_t at = input->size ? below(driver, (uint32_t) input->size) : 0;
        size_t count = 1 + below(driver, 16);

        if (below(driver, 3) == 0 && input->size > 0) {
            input->data[at] ^= (uint8_t) (1u << below(driver, 8));
        } else if (below(driver, 2) == 0) {
            count = count < input->size - at ? count : input->size - at;
            memmove(input->data + at, input->data + at + count, input->size - at - count);
            input->size -= count;
        } else if (input->size + count <= INPUT_MAX) {
            memmove(input->data + at + count, input->data + at, input->size - at);
            for (size_t i = 0; i < count; i++)
                input->data[at + i] = i < other->size && below(driver, 2)
                                          ? other->data[i]
                                          : (uint8_t) below(driver, 256);
            input->size += count;
        }
    }
}

int main(int argc, char **argv)
{
    struct driver driver = { .seeds = calloc(SEEDS_MAX, sizeof *driver.seeds), .state = 1 };
    static struct input input;
    unsigned long n = 0;
    time_t end = 0;

    if (!driver.seeds)
        return 1;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-')
            read_seeds(&driver, argv[i]);
        else if (strncmp(argv[i], "-max_total_time=", 16) == 0 && atoi(argv[i] + 16) > 0)
            end = time(NULL) + atoi(argv[i] + 16);
    }
    if (driver.n_seeds == 0)
        driver.n_seeds = 1; /* the empty one */
    for (size_t i = 0; i < driver.n_seeds; i++, n++)
        run_one(&driver.seeds[i]);
    for (; end == 0 || time(NULL) < end; n++) {
        input = driver.seeds[below(&driver, (uint32_t) driver.n_seeds)];
        change(&driver, &input);
        run_one(&input);
    }
    printf("Done %lu runs\n", n);
    free(driver.seeds);
    return 0;
}
