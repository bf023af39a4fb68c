/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/golden.h"

#include <sys/stat.h>

#include "proto/base.h"

static bool exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

const char *ds_golden_where(void)
{
    const char *given = getenv("DSD_GOLDEN");

    return given && *given ? given : "../shared/golden";
}

const char *ds_golden_path(void)
{
    return exists(ds_golden_where()) ? ds_golden_where() : NULL;
}

void ds_golden_skip(const char *what)
{
    (void) printf("skip: golden data not found at %s: %s is not checked\n", ds_golden_where(),
                  what);
    (void) fflush(stdout);
}

char *ds_golden_file(const char *relative)
{
    char *path;

    if (!ds_golden_path() || asprintf(&path, "%s/%s", ds_golden_path(), relative) < 0)
        return NULL;
    if (exists(path))
        return path;
    free(path);
    return NULL;
}

char *ds_golden_read(const char *path, size_t *ret_size)
{
    FILE *file = fopen(path, "re");
    char *text = NULL;
    size_t size = 0, got;

    if (!file)
        return NULL;
    do {
        char *grown = realloc(text, size + 65537);

        if (!grown)
            break;
        text = grown;
        got = fread(text + size, 1, 65536, file);
        size += got;
    } while (got > 0);
    (void) fclose(file);
    if (!text)
        return NULL;
    text[size] = '\0';
    if (ret_size)
        *ret_size = size;
    return text;
}

const char *ds_default_model_path(void)
{
    static _Thread_local char path[4096];
    static const char name[] = "SmolLM2-135M-Instruct.Q4_1.gguf";
    const char *models = getenv("DSD_MODELS"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");

    if (models && *models)
        (void) snprintf(path, sizeof path, "%s/%s", models, name);
    else if (cache && *cache)
        (void) snprintf(path, sizeof path, "%s/dsd/models/%s", cache, name);
    else
        (void) snprintf(path, sizeof path, "%s/.cache/dsd/models/%s", home ? home : "", name);
    return exists(path) ? path : NULL;
}

/* --- .golden --- */

/* Appends the numbers of a line to fresh arrays; ids or numbers may be NULL. */
static bool read_list(const char *text, uint32_t **ret_ids, double **ret_numbers, size_t *ret_n)
{
    size_t n = 0, room = 0;
    char *end;

    for (;; text = end) {
        double value = strtod(text, &end);

        if (end == text)
            break;
        if (n == room) {
            void *grown;

            room = room ? 2 * room : 64;
            grown = ret_ids ? realloc(*ret_ids, room * sizeof **ret_ids)
                            : realloc(*ret_numbers, room * sizeof **ret_numbers);
            if (!grown)
                return false;
            if (ret_ids)
                *ret_ids = grown;
            else
                *ret_numbers = grown;
        }
        if (ret_ids)
            (*ret_ids)[n++] = (uint32_t) value;
        else
            (*ret_numbers)[n++] = value;
    }
    *ret_n = n;
    return n > 0;
}

static bool read_top(const char *text, struct ds_golden_prompt *prompt)
{
    char *end;

    while (prompt->n_top < 8) {
        prompt->top_ids[prompt->n_top] = (uint32_t) strtoul(text, &end, 10);
        if (end == text || *end != ':')
            break;
        prompt->top_logprobs[prompt->n_top++] = strtod(end + 1, (char **) &text);
    }
    return prompt->n_top > 0;
}

static bool add_prompt(struct ds_golden *golden, const char *rest)
{
    struct ds_golden_prompt *grown =
        realloc(golden->prompts, (golden->n_prompts + 1) * sizeof *grown);

    if (!grown)
        return false;
    golden->prompts = grown;
    grown[golden->n_prompts] = (struct ds_golden_prompt){ 0 };
    return read_list(rest, &grown[golden->n_prompts].ids, NULL, &grown[golden->n_prompts].n_ids) &&
           ++golden->n_prompts;
}

static bool read_header(struct ds_golden *golden, const char *path, const char *word,
                        const char *rest)
{
    const struct {
        const char *word;
        double *value;
    } numbers[] = {
        { "tol_logprob", &golden->tol_logprob },
        { "tol_nll", &golden->tol_nll },
        { "tol_logprob_int8", &golden->tol_logprob_int8 },
        { "tol_nll_int8", &golden->tol_nll_int8 },
        { "llamacpp_rms", &golden->llamacpp_rms },
    };
    const char *slash = strrchr(path, '/');

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strcmp(word, numbers[i].word) == 0) {
            *numbers[i].value = strtod(rest, NULL);
            return true;
        }
    if (strcmp(word, "vocab") == 0)
        golden->n_vocab = (uint32_t) strtoul(rest, NULL, 10);
    else if (strcmp(word, "llamacpp_dev") == 0)
        (void) sscanf(rest, "%lf %lf", &golden->llamacpp_dev[0], &golden->llamacpp_dev[1]);
    else if (strcmp(word, "gguf") == 0 && golden->n_gguf < 4 &&
             asprintf(&golden->gguf[golden->n_gguf], "%.*s/%s", slash ? (int) (slash - path) : 1,
                      slash ? path : ".", rest) >= 0)
        golden->n_gguf++;
    else if (strcmp(word, "hf") == 0 && !golden->hf &&
             asprintf(&golden->hf, "%.*s/%s", slash ? (int) (slash - path) : 1, slash ? path : ".",
                      rest) < 0)
        golden->hf = NULL;
    return true;
}

static bool read_line(struct ds_golden *golden, const char *path, char *line)
{
    struct ds_golden_prompt *last =
        golden->n_prompts ? &golden->prompts[golden->n_prompts - 1] : NULL;
    char *rest = line + strcspn(line, " ");

    if (*line == '#' || *line == '\0')
        return true;
    if (*rest)
        *rest++ = '\0';
    if (strcmp(line, "prompt") == 0)
        return add_prompt(golden, rest);
    if (!last)
        return read_header(golden, path, line, rest);
    if (strcmp(line, "nll") == 0) {
        last->nll = strtod(rest, NULL);
        return true;
    }
    if (strcmp(line, "top") == 0)
        return read_top(rest, last);
    if (strcmp(line, "greedy") == 0)
        return read_list(rest, &last->greedy, NULL, &last->n_greedy);
    if (strcmp(line, "gap") == 0)
        return read_list(rest, NULL, &last->gaps, &last->n_gaps);
    return false;
}

struct ds_golden *ds_golden_load(const char *path)
{
    ds_cleanup(ds_free_p) char *text = ds_golden_read(path, NULL);
    struct ds_golden *golden = calloc(1, sizeof *golden);
    char *save = NULL;

    if (!text || !golden) {
        (void) fprintf(stderr, "%s: cannot be read\n", path);
        return ds_golden_free(golden);
    }
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (!read_line(golden, path, line)) {
            (void) fprintf(stderr, "%s: makes no sense at '%s'\n", path, line);
            return ds_golden_free(golden);
        }
    return golden;
}

struct ds_golden *ds_golden_free(struct ds_golden *golden)
{
    if (!golden)
        return NULL;
    free(golden->hf);
    for (size_t i = 0; i < golden->n_prompts; i++) {
        free(golden->prompts[i].ids);
        free(golden->prompts[i].greedy);
        free(golden->prompts[i].gaps);
    }
    for (size_t i = 0; i < golden->n_gguf; i++)
        free(golden->gguf[i]);
    free(golden->prompts);
    free(golden);
    return NULL;
}
