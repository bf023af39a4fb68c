/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/generate.h"

#include "client/dsctl/json.h"

void dsctl_generation_init(struct dsctl_generation *generation)
{
    *generation = (struct dsctl_generation){ 0 };
    generation->request.struct_size = sizeof generation->request;
    generation->request.stop = generation->stop;
}

static int take_number(uint32_t *field, const char *what, const char *value)
{
    uint64_t number;
    int code = dsctl_number(what, value, 0, UINT32_MAX, &number);

    if (code == DSCTL_OK)
        *field = (uint32_t) number;
    return code;
}

static int take_stop(struct dsctl_generation *generation, const char *value)
{
    if (generation->request.n_stop == DS_STOP_STRINGS_MAX || !value[0] ||
        strlen(value) > DS_STOP_BYTES_MAX) {
        fprintf(stderr, "dsctl: --stop takes 1 to %u bytes and comes at most %u times\n",
                DS_STOP_BYTES_MAX, DS_STOP_STRINGS_MAX);
        return DSCTL_USAGE;
    }
    generation->stop[generation->request.n_stop++] = value;
    return DSCTL_OK;
}

static int take_speculation(struct ds_request *request, const char *value)
{
    static const struct {
        const char *name;
        enum ds_speculation speculation;
    } names[] = { { "off", DS_SPECULATION_OFF },
                  { "ngram", DS_SPECULATION_NGRAM },
                  { "mtp", DS_SPECULATION_MTP } };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(value, names[i].name) == 0) {
            request->speculation = names[i].speculation;
            return DSCTL_OK;
        }
    }
    fprintf(stderr, "dsctl: --spec is off, ngram or mtp, not '%s'\n", value);
    return DSCTL_USAGE;
}

int dsctl_generation_take(struct dsctl_generation *generation, int key, const char *value)
{
    struct ds_request *request = &generation->request;

    switch (key) {
    case 'n':
        return take_number(&request->max_tokens, "-n", value);
    case DSCTL_KEY_TEMP:
        request->set |= DS_SET_TEMPERATURE;
        return dsctl_real("--temp", value, &request->temperature);
    case DSCTL_KEY_TOP_K:
        request->set |= DS_SET_TOP_K;
        return take_number(&request->top_k, "--top-k", value);
    case DSCTL_KEY_TOP_P:
        request->set |= DS_SET_TOP_P;
        return dsctl_real("--top-p", value, &request->top_p);
    case DSCTL_KEY_MIN_P:
        request->set |= DS_SET_MIN_P;
        return dsctl_real("--min-p", value, &request->min_p);
    case DSCTL_KEY_REPEAT_PENALTY:
        request->set |= DS_SET_REPEAT_PENALTY;
        return dsctl_real("--repeat-penalty", value, &request->repeat_penalty);
    case DSCTL_KEY_SEED:
        request->set |= DS_SET_SEED;
        return dsctl_number("--seed", value, 0, UINT64_MAX, &request->seed);
    case DSCTL_KEY_STOP:
        return take_stop(generation, value);
    case DSCTL_KEY_IGNORE_EOS:
        request->ignore_eos = 1;
        return DSCTL_OK;
    case DSCTL_KEY_NO_SPEC:
        request->speculation = DS_SPECULATION_OFF;
        return DSCTL_OK;
    case DSCTL_KEY_DRAFT:
        generation->draft = value;
        return DSCTL_OK;
    case DSCTL_KEY_SPEC:
        return take_speculation(request, value);
    case DSCTL_KEY_SYSTEM:
        generation->system = value;
        return DSCTL_OK;
    case DSCTL_KEY_LORA:
        return dsctl_lora_take(&generation->lora, value);
    case DSCTL_KEY_THINK:
        if (dsctl_think_parse(value, &generation->think))
            return DSCTL_OK;
        fprintf(stderr, "dsctl: --think is show, hide or only, not '%s'\n", value);
        return DSCTL_USAGE;
    default:
        return DSCTL_USAGE;
    }
}

static int open_lora(struct dsctl *dsctl, struct dsctl_generation *generation)
{
    struct dsctl_lora *lora = &generation->lora;
    struct ds_request *request = &generation->request;
    int code;

    if (!lora->argument[0])
        return DSCTL_OK;
    code = dsctl_model_open(dsctl, lora->argument, &lora->files);
    request->lora = lora->files.attachment ? NULL : lora->files.name;
    request->lora_attachment = lora->files.attachment;
    if (lora->scale_said) {
        request->set |= DS_SET_LORA_SCALE;
        request->lora_scale = lora->scale;
    }
    return code;
}

int dsctl_generation_open(struct dsctl *dsctl, struct dsctl_generation *generation)
{
    struct ds_request *request = &generation->request;
    int code = open_lora(dsctl, generation);

    if (code != DSCTL_OK || !generation->draft)
        return code;
    if (request->speculation != DS_SPECULATION_DEFAULT)
        return dsctl_fail(dsctl, DSCTL_USAGE, "--draft guesses by itself: no --spec beside it");
    code = dsctl_model_open(dsctl, generation->draft, &generation->draft_model);
    request->draft = generation->draft_model.attachment ? NULL : generation->draft_model.name;
    request->draft_attachment = generation->draft_model.attachment;
    return code;
}

int dsctl_starts_inside(struct dsctl *dsctl, const struct dsctl_model *model,
                        const struct ds_chat_turn *turns, size_t n_turns, bool *ret_inside)
{
    ds_cleanup(ds_free_p) Ds__ChatMessage *messages = calloc(n_turns, sizeof *messages);
    ds_cleanup(ds_free_p) Ds__ChatMessage **pointers = calloc(n_turns, sizeof(Ds__ChatMessage *));
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    Ds__TemplateRequest request = DS__TEMPLATE_REQUEST__INIT;
    Ds__ChatMessages chat = DS__CHAT_MESSAGES__INIT;
    Ds__ModelRef ref;
    int code;

    if (!messages || !pointers)
        return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
    for (size_t i = 0; i < n_turns; i++) {
        ds__chat_message__init(&messages[i]);
        messages[i].role = (char *) turns[i].role;
        messages[i].content.data = (uint8_t *) turns[i].content;
        messages[i].content.len = strlen(turns[i].content);
        pointers[i] = &messages[i];
    }
    chat.n_messages = n_turns;
    chat.messages = pointers;
    dsctl_model_ref(model, &ref);
    request.model = &ref;
    request.chat = &chat;
    code = dsctl_ask(dsctl, DS__REQUEST__OP_TEMPLATE, &request, &reply);
    if (code == DSCTL_OK)
        *ret_inside = dsctl_think_opened((const char *) reply->template_->text.data,
                                         reply->template_->text.len);
    return code;
}

/* --- one answer --------------------------------------------------------------------------------
 */

struct buffer {
    char *bytes;
    size_t size, capacity;
};

static bool append(struct buffer *buffer, const char *text, size_t size)
{
    if (buffer->size + size + 1 > buffer->capacity) {
        size_t capacity = (buffer->size + size + 1) * 2;
        char *bytes = realloc(buffer->bytes, capacity);

        if (!bytes)
            return false;
        buffer->bytes = bytes;
        buffer->capacity = capacity;
    }
    memcpy(buffer->bytes + buffer->size, text, size);
    buffer->size += size;
    buffer->bytes[buffer->size] = '\0';
    return true;
}

struct answer {
    struct dsctl *dsctl;
    struct dsctl_think think;
    struct buffer whole;   /* all text, for the caller */
    struct buffer visible; /* what think let through since it was last printed; json */
    uint32_t n_tokens;
    char last; /* character printed last */
    bool dimmed, logprobs;
};

static void answer_deinit(struct answer *answer)
{
    free(answer->whole.bytes);
    free(answer->visible.bytes);
}

static void print_piece(void *target, const char *text, size_t size, bool thought)
{
    struct answer *answer = target;

    if (answer->dsctl->json || answer->logprobs) {
        (void) append(&answer->visible, text, size);
        return;
    }
    if (answer->dsctl->out_terminal && thought != answer->dimmed) {
        fputs(thought ? "\033[2m" : "\033[0m", stdout);
        answer->dimmed = thought;
    }
    dsctl_print(answer->dsctl, text, size);
    answer->last = text[size - 1];
}

static void print_logprobs(const struct ds_event *event, const Ds__TokenChunk *chunk)
{
    char quoted[256];

    for (size_t i = 0; i < chunk->n_logprobs; i++) {
        const Ds__TokenLogprob *token = chunk->logprobs[i];

        printf("%7u %9.4f ", i < event->n_ids ? event->ids[i] : 0, (double) token->logprob);
        for (size_t j = 0; j < token->n_top; j++)
            printf("  %s %.4f",
                   dsctl_quoted(quoted, sizeof quoted, token->top[j]->text.data,
                                token->top[j]->text.len),
                   (double) token->top[j]->logprob);
        putchar('\n');
    }
}

static int on_tokens(struct answer *answer, const struct ds_event *event)
{
    ds_cleanup(ds_message_free_p) Ds__TokenChunk *chunk = NULL;
    cJSON *object;

    dsctl_progress_wipe(answer->dsctl);
    answer->n_tokens += (uint32_t) event->n_ids;
    answer->visible.size = 0;
    if (!append(&answer->whole, event->text, event->text_size))
        return dsctl_fail(answer->dsctl, DSCTL_ERROR, "out of memory");
    dsctl_think_feed(&answer->think, event->text, event->text_size);
    if (event->message && ds_message_unpack(&ds__token_chunk__descriptor, event->message,
                                            event->message_size, &chunk) < 0)
        return dsctl_fail(answer->dsctl, DSCTL_ERROR, "dsd's log-probabilities cannot be read");
    if (answer->dsctl->json) {
        object = dsctl_json_tokens(event->ids, event->n_ids, answer->visible.bytes,
                                   answer->visible.size);
        if (event->n_pieces && answer->think.mode == DSCTL_THINK_SHOW)
            dsctl_json_parts(object, event);
        if (chunk && chunk->n_logprobs)
            (void) cJSON_AddItemToObject(object, "logprobs", dsctl_json_logprobs(chunk));
        dsctl_json_print(object);
    } else if (chunk && answer->logprobs) {
        print_logprobs(event, chunk);
    }
    (void) fflush(stdout);
    return DSCTL_OK;
}

/* What was held back until the end: by dsd (stop strings), then by the filter. */
static void print_rest(struct answer *answer, const char *text, size_t size)
{
    answer->visible.size = 0;
    (void) append(&answer->whole, text, size);
    dsctl_think_feed(&answer->think, text, size);
    dsctl_think_end(&answer->think);
    if (answer->dsctl->json && answer->visible.size)
        dsctl_json_print(dsctl_json_tokens(NULL, 0, answer->visible.bytes, answer->visible.size));
    if (answer->dimmed)
        fputs("\033[0m", stdout);
    if (!answer->dsctl->json && answer->last != '\n')
        putchar('\n');
    (void) fflush(stdout);
}

static void print_statistics(const Ds__GenerateResult *result)
{
    static const Ds__Usage no_usage = DS__USAGE__INIT;
    static const Ds__Timing no_timing = DS__TIMING__INIT;
    const Ds__Usage *usage = result->usage ? result->usage : &no_usage;
    const Ds__Timing *timing = result->timing ? result->timing : &no_timing;

    fprintf(stderr, "prompt %u tokens, %u of them known; first token after %.1f ms\n",
            usage->prompt_tokens, usage->cached_tokens, timing->ttft_ms);
    fprintf(stderr, "answer %u tokens", usage->completion_tokens);
    if (timing->decode_ms > 0 && usage->completion_tokens > 1)
        fprintf(stderr, ", %.1f a second",
                1e3 * (usage->completion_tokens - 1) / timing->decode_ms);
    fprintf(stderr, "; guessed ahead %u, of these right %u\n", usage->drafted_tokens,
            usage->accepted_tokens);
}

static int on_final(struct answer *answer, const struct ds_event *event, bool interrupted)
{
    ds_cleanup(ds_message_free_p) Ds__Reply *reply = NULL;
    int r;

    dsctl_progress_wipe(answer->dsctl);
    print_rest(answer, event->text, event->text_size);
    r = ds_message_unpack(&ds__reply__descriptor, event->message, event->message_size, &reply);
    if (r < 0 || reply->result_case != DS__REPLY__RESULT_GENERATE)
        return dsctl_fail(answer->dsctl, DSCTL_ERROR, "dsd's answer cannot be read");
    if (answer->dsctl->json)
        dsctl_json_print(dsctl_json_final(reply->generate));
    else if (answer->dsctl->statistics)
        print_statistics(reply->generate);
    if (event->content_size) { /* what a conversation goes on with */
        answer->whole.size = 0;
        if (!append(&answer->whole, event->content, event->content_size))
            return dsctl_fail(answer->dsctl, DSCTL_ERROR, "out of memory");
    }
    if (interrupted)
        return DSCTL_INTERRUPTED;
    switch (event->reason) {
    case DS_REASON_STOP:
    case DS_REASON_LENGTH:
        return DSCTL_OK;
    case DS_REASON_CANCELLED:
        return dsctl_fail(answer->dsctl, DSCTL_ERROR, "the request was cancelled by someone else");
    case DS_REASON_DEADLINE:
        return dsctl_fail(answer->dsctl, DSCTL_ERROR, "the request's time was over");
    default:
        return dsctl_fail(answer->dsctl, DSCTL_ERROR,
                          "the engine gave the answer up: see dsd's journal");
    }
}

static int on_error(struct answer *answer, const struct ds_event *event, bool interrupted)
{
    if (answer->n_tokens)
        print_rest(answer, "", 0);
    if (answer->dsctl->json)
        dsctl_json_print(
            dsctl_json_failed(dsctl_error_name(event->error_code), event->text, answer->n_tokens));
    return interrupted ? DSCTL_INTERRUPTED : dsctl_event_failed(answer->dsctl, event);
}

/* Takes events until the last one. */
static int stream(struct answer *answer, uint64_t id)
{
    struct dsctl *dsctl = answer->dsctl;
    bool interrupted = false;
    struct ds_event event;
    int r;

    for (;;) {
        r = dsctl_next(dsctl, &event);
        if (r == DSCTL_SIGNAL) {
            if (interrupted)
                return DSCTL_INTERRUPTED;
            interrupted = true;
            (void) ds_cancel(dsctl->ds, id);
            continue;
        }
        if (r < 0)
            return dsctl_failed(dsctl, r);
        if (event.id != id)
            continue;
        switch (event.type) {
        case DS_EVENT_TOKENS:
            r = on_tokens(answer, &event);
            if (r != DSCTL_OK)
                return r;
            break;
        case DS_EVENT_PROGRESS:
            if (answer->n_tokens == 0)
                dsctl_progress(dsctl, event.text, event.fraction);
            break;
        case DS_EVENT_FINAL:
            return on_final(answer, &event, interrupted);
        case DS_EVENT_ERROR:
            return on_error(answer, &event, interrupted);
        default:
            break;
        }
    }
}

int dsctl_answer(struct dsctl *dsctl, const struct ds_request *request, enum dsctl_think_mode think,
                 bool inside, char **ret_text)
{
    ds_cleanup(answer_deinit) struct answer answer = { .dsctl = dsctl,
                                                       .logprobs = request->logprobs > 0,
                                                       .last = '\n' };
    uint64_t id;
    int code;

    if (!append(&answer.whole, "", 0) || !append(&answer.visible, "", 0))
        return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
    dsctl_think_init(&answer.think, think, inside, print_piece, &answer);
    code = ds_submit(dsctl->ds, request, &id);
    if (code < 0)
        return dsctl_failed(dsctl, code);
    code = stream(&answer, id);
    if (ret_text)
        *ret_text = ds_steal(answer.whole.bytes);
    return code;
}
