/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify - are a model's files what they were, are all their numbers numbers, and does the model
 * still compute what it computed?
 *
 * The engine hashes and decodes everything. The fingerprint is the score of a fixed row of token
 * ids: kernels give the same bits on every instruction set, so that a difference beyond rounding
 * (another version, another type of KV cache) means damaged memory or kernels. What was found the
 * first time is kept in MODEL.verify beside the model; where nothing can be written there, in
 * $XDG_STATE_HOME/dsd (~/.local/state/dsd).
 */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#include "proto/base.h"

enum { KEY_RENEW = 400, PROBE_TOKENS = 32, RECORD_BYTES_MAX = 1 << 20 };

/* Nats: what another KV cache type or version may shift the mean of the probe's log-likelihood. */
#define ROUNDING 0.05

struct verify {
    struct dsctl *dsctl;
    const char *argument;
    struct dsctl_model model;
    bool renew;
    char *beside, *elsewhere; /* where a record may be; owned, NULL: not there */
    Ds__Reply *show, *score;  /* owned */
};

static int take(void *target, int key, const char *value)
{
    (void) key;
    (void) value;
    *(bool *) target = true;
    return DSCTL_OK;
}

static void verify_deinit(struct verify *verify)
{
    ds_message_free(verify->show);
    ds_message_free(verify->score);
    free(verify->beside);
    free(verify->elsewhere);
}

static void hex(const ProtobufCBinaryData *digest, char text[65])
{
    for (size_t i = 0; i < digest->len && i < 32; i++)
        (void) snprintf(text + 2 * i, 3, "%02x", digest->data[i]);
}

/* --- asking --- */

static int ask_show(struct verify *verify)
{
    Ds__ShowRequest request = DS__SHOW_REQUEST__INIT;
    const Ds__Verification *found;
    Ds__ModelRef ref;
    int code;

    dsctl_model_ref(&verify->model, &ref);
    request.model = &ref;
    request.verify = true;
    code = dsctl_ask(verify->dsctl, DS__REQUEST__OP_SHOW, &request, &verify->show);
    if (code != DSCTL_OK)
        return code;
    found = verify->show->show->verification;
    if (!found || found->n_files == 0 || found->n_vocab == 0 || found->files[0]->sha256.len != 32)
        return dsctl_fail(verify->dsctl, DSCTL_ERROR, "dsd's answer has no verification in it");
    return DSCTL_OK;
}

/* Ids spread over the vocabulary, the same for the same vocabulary everywhere. */
static int ask_score(struct verify *verify)
{
    Ds__ScoreRequest request = DS__SCORE_REQUEST__INIT;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    Ds__Input input = DS__INPUT__INIT;
    uint32_t ids[PROBE_TOKENS];
    Ds__ModelRef ref;

    for (uint64_t i = 0; i < PROBE_TOKENS; i++)
        ids[i] = (uint32_t) ((i * 2654435761u + 12345) % verify->show->show->verification->n_vocab);
    tokens.ids = ids;
    tokens.n_ids = PROBE_TOKENS;
    input.kind_case = DS__INPUT__KIND_TOKENS;
    input.tokens = &tokens;
    dsctl_model_ref(&verify->model, &ref);
    request.model = &ref;
    request.input = &input;
    return dsctl_ask(verify->dsctl, DS__REQUEST__OP_SCORE, &request, &verify->score);
}

/* --- the record --- */

static cJSON *record_new(const struct verify *verify)
{
    const Ds__Verification *found = verify->show->show->verification;
    cJSON *record = cJSON_CreateObject(), *files = cJSON_AddArrayToObject(record, "files");

    for (size_t i = 0; i < found->n_files; i++) {
        cJSON *file = cJSON_CreateObject();
        char digest[65] = "";

        hex(&found->files[i]->sha256, digest);
        if (found->files[i]->name[0])
            (void) cJSON_AddStringToObject(file, "name", found->files[i]->name);
        dsctl_json_u64(file, "bytes", found->files[i]->bytes);
        (void) cJSON_AddStringToObject(file, "sha256", digest);
        (void) cJSON_AddItemToArray(files, file);
    }
    (void) cJSON_AddNumberToObject(record, "nll", verify->score->score->nll);
    (void) cJSON_AddItemToObject(
        record, "next", dsctl_json_top(verify->score->score->n_next, verify->score->score->next));
    return record;
}

/* The two places a record may be in. */
static int places(struct verify *verify)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__StatusRequest request = DS__STATUS_REQUEST__INIT;
    size_t length = strlen(verify->argument);
    char digest[65] = "";
    int r = 0, code;

    while (length > 1 && verify->argument[length - 1] == '/')
        length--;
    if (verify->model.attachment) {
        r = asprintf(&verify->beside, "%.*s.verify", (int) length, verify->argument);
    } else {
        code = dsctl_ask(verify->dsctl, DS__REQUEST__OP_STATUS, &request, &reply);
        if (code != DSCTL_OK)
            return code;
        r = asprintf(&verify->beside, "%s/%s.verify", reply->status->models_directory,
                     verify->argument);
    }
    hex(&verify->show->show->verification->files[0]->sha256, digest);
    if (r >= 0 && state && *state == '/')
        r = asprintf(&verify->elsewhere, "%s/dsd/%s.verify", state, digest);
    else if (r >= 0 && home && *home == '/')
        r = asprintf(&verify->elsewhere, "%s/.local/state/dsd/%s.verify", home, digest);
    return r < 0 ? dsctl_fail(verify->dsctl, DSCTL_ERROR, "out of memory") : DSCTL_OK;
}

/* NULL: there is none. A record that cannot be read is one that says nothing. */
static cJSON *record_read(const char *path)
{
    ds_cleanup(ds_free_p) char *text = NULL;
    FILE *file = path ? fopen(path, "re") : NULL;
    cJSON *record = NULL;
    size_t n;

    if (!file)
        return NULL;
    text = malloc(RECORD_BYTES_MAX);
    n = text ? fread(text, 1, RECORD_BYTES_MAX - 1, file) : 0;
    if (text) {
        text[n] = '\0';
        record = cJSON_Parse(text);
    }
    (void) fclose(file);
    return record;
}

/* Through a file of its own name, so that a record is whole or not there. */
static int write_to(const char *path, const char *text)
{
    ds_cleanup(ds_free_p) char *draft = NULL;
    FILE *file;
    bool good;
    int fd;

    if (asprintf(&draft, "%s.XXXXXX", path) < 0)
        return -ENOMEM;
    fd = mkostemp(draft, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    file = fdopen(fd, "w");
    if (!file) {
        (void) close(fd);
        (void) unlink(draft);
        return -ENOMEM;
    }
    (void) fchmod(fd, 0644);
    good = fprintf(file, "%s\n", text) > 0;
    good = fclose(file) == 0 && good;
    if (good && rename(draft, path) == 0)
        return 0;
    (void) unlink(draft);
    return -EIO;
}

static void make_directories(const char *path)
{
    ds_cleanup(ds_free_p) char *copy = strdup(path);

    for (char *at = copy ? strchr(copy + 1, '/') : NULL; at; at = strchr(at + 1, '/')) {
        *at = '\0';
        (void) mkdir(copy, 0700);
        *at = '/';
    }
}

static int record_write(struct verify *verify, const cJSON *record, const char **ret_path)
{
    ds_cleanup(ds_free_p) char *text = cJSON_Print(record);
    int r = -ENOMEM;

    *ret_path = verify->beside;
    if (text && write_to(verify->beside, text) == 0)
        return DSCTL_OK;
    *ret_path = verify->elsewhere;
    if (text && verify->elsewhere) {
        make_directories(verify->elsewhere);
        r = write_to(verify->elsewhere, text);
    }
    return r == 0 ? DSCTL_OK
                  : dsctl_fail(verify->dsctl, DSCTL_ERROR,
                               "the record cannot be written to %s%s%s: %s", verify->beside,
                               verify->elsewhere ? " or " : "",
                               verify->elsewhere ? verify->elsewhere : "", strerror(-r));
}

/* --- comparing --- */

static const char *string_of(const cJSON *object, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));

    return text ? text : "";
}

/* What differs from the record, as a line; false: nothing that matters. */
static bool differs(const cJSON *record, const cJSON *now, const char *path, struct ds_error *line)
{
    const cJSON *old_files = cJSON_GetObjectItemCaseSensitive(record, "files");
    const cJSON *new_files = cJSON_GetObjectItemCaseSensitive(now, "files");
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(record, "nll");
    int n = cJSON_GetArraySize(new_files);
    double shift;

    if (cJSON_GetArraySize(old_files) != n || !cJSON_IsNumber(old)) {
        (void) ds_error_set(
            line, 0, "%s is the record of another set of files: --renew writes a new one", path);
        return true;
    }
    for (int i = 0; i < n; i++) {
        const cJSON *was = cJSON_GetArrayItem(old_files, i), *is = cJSON_GetArrayItem(new_files, i);

        if (strcmp(string_of(was, "sha256"), string_of(is, "sha256")) == 0)
            continue;
        (void) ds_error_set(line, 0,
                            "file %d%s%s has changed since %s was written: its SHA-256 is %s, it "
                            "was %.64s; fetch it again, or --renew the record",
                            i + 1, *string_of(is, "name") ? " " : "", string_of(is, "name"), path,
                            string_of(is, "sha256"), string_of(was, "sha256"));
        return true;
    }
    shift = fabs(cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(now, "nll")) -
                 cJSON_GetNumberValue(old)) /
            (PROBE_TOKENS - 1);
    if (shift <= ROUNDING)
        return false;
    (void) ds_error_set(
        line, 0,
        "the files are the same, but the model's answer to the probe is off by %.3f "
        "nats a token from the record in %s: suspect the machine's memory, or "
        "--renew it if dsd was updated",
        shift, path);
    return true;
}

static void print_found(const struct verify *verify, cJSON *now, const char *record_path,
                        bool first)
{
    const Ds__Verification *found = verify->show->show->verification;
    double nll = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(now, "nll"));

    dsctl_progress_wipe(verify->dsctl);
    if (verify->dsctl->json) {
        dsctl_json_u64(now, "tensors", found->n_tensors);
        dsctl_json_u64(now, "values", found->n_values);
        (void) cJSON_AddStringToObject(now, "record", record_path);
        (void) cJSON_AddBoolToObject(now, "first", first);
        dsctl_json_print(now);
        return;
    }
    for (size_t i = 0; i < found->n_files; i++) {
        char digest[65] = "", size[32];

        hex(&found->files[i]->sha256, digest);
        printf("sha256      %s  %s %s\n", digest, dsctl_bytes(size, found->files[i]->bytes),
               found->files[i]->name);
    }
    printf("tensors     %llu, all %llu values are finite\n", (unsigned long long) found->n_tensors,
           (unsigned long long) found->n_values);
    printf("fingerprint %.6f nats over %d tokens\n", nll, PROBE_TOKENS - 1);
    printf("%s %s\n", first ? "recorded in" : "as recorded in", record_path);
    cJSON_Delete(now);
}

static int compare(struct verify *verify)
{
    const char *path = verify->beside;
    struct ds_error line = { "" };
    cJSON *now = record_new(verify), *record = NULL;
    bool first;
    int code = DSCTL_OK;

    if (!verify->renew && !(record = record_read(path))) {
        path = verify->elsewhere;
        record = record_read(path);
    }
    first = !record;
    if (first)
        code = record_write(verify, now, &path);
    else if (differs(record, now, path, &line))
        code = dsctl_fail(verify->dsctl, DSCTL_ERROR, "%s: %s", verify->argument, line.text);
    cJSON_Delete(record);
    if (code == DSCTL_OK)
        print_found(verify, now, path, first);
    else
        cJSON_Delete(now);
    return code;
}

static int run(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(verify_deinit) struct verify verify = { .dsctl = dsctl };
    int code, first;

    code = dsctl_options(dsctl, argc, argv, take, &verify.renew, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    verify.argument = argv[first];
    code = dsctl_connect(dsctl, 0);
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, verify.argument, &verify.model);
    if (code == DSCTL_OK)
        code = ask_show(&verify);
    if (code == DSCTL_OK)
        code = ask_score(&verify);
    if (code == DSCTL_OK)
        code = places(&verify);
    return code == DSCTL_OK ? compare(&verify) : code;
}

static const struct dsctl_option options[] = {
    { "renew", NULL, "write a new record in place of the old one", KEY_RENEW },
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_verify = {
    .name = "verify",
    .operands = "MODEL",
    .summary = "hash the files, decode every number, compare a fingerprint",
    .options = options,
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
