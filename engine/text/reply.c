/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/reply.h"

#include "engine/text/reply_tools.h"
#include "proto/base.h"

#define OPEN_THINK  "<think>"
#define CLOSE_THINK "</think>"
#define SPACES_MAX  64u /* white space held back before what may be a tag */

enum state {
    STATE_START, /* nothing but white space so far */
    STATE_THINK, /* after <think>: white space is skipped */
    STATE_REASONING,
    STATE_AFTER, /* after </think> or a call: white space is skipped */
    STATE_CONTENT,
    STATE_TOOL,
};

struct span {
    size_t end; /* in raw */
    enum ds_part part;
};

struct region { /* a call, from the white space before it on */
    size_t spaces, start, end;
};

struct text {
    char *data; /* own */
    size_t size, capacity;
};

struct list {    /* of anything */
    void *items; /* own */
    size_t n, capacity;
};

struct ds_reply {
    struct ds_reply_form form;
    enum state state;
    bool fresh;          /* no content yet: Llama's bare JSON may come */
    struct text raw;     /* all of it, names of control tokens included */
    struct list hidden;  /* size_t pairs: from, to; ascending */
    struct list spans;   /* struct span; cover raw up to at */
    struct list regions; /* struct region; the last one is open in STATE_TOOL */
    size_t at;           /* decided up to here */
    size_t taken;        /* given out up to here */
    size_t taken_span;   /* the span that taken lies in */
    bool ended;
    unsigned turn;      /* which of the two is next */
    struct text out[2]; /* what ds_reply_take() gave */
    struct list out_parts[2];
    struct text reasoning, content; /* of the message */
    struct ds_tool_calls calls;
};

static int append_text(struct text *text, const char *data, size_t size)
{
    if (text->size + size + 1 > text->capacity) {
        size_t capacity = 2 * text->capacity + size + 64;
        char *bigger = realloc(text->data, capacity);

        if (!bigger)
            return -ENOMEM;
        text->data = bigger;
        text->capacity = capacity;
    }
    if (size > 0)
        memcpy(text->data + text->size, data, size);
    text->size += size;
    text->data[text->size] = '\0';
    return 0;
}

static void *add_item(struct list *list, size_t item_size)
{
    if (list->n == list->capacity) {
        size_t capacity = 2 * list->capacity + 8;
        void *bigger = reallocarray(list->items, capacity, item_size);

        if (!bigger)
            return NULL;
        list->items = bigger;
        list->capacity = capacity;
    }
    return (char *) list->items + item_size * list->n++;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* --- how a model writes --- */

static bool has(struct ds_bytes text, const char *part)
{
    return text.size > 0 && memmem(text.data, text.size, part, strlen(part));
}

static bool is(struct ds_bytes text, const char *whole)
{
    return text.size == strlen(whole) && memcmp(text.data, whole, text.size) == 0;
}

static enum ds_tool_form form_of_template(struct ds_bytes source)
{
    if (has(source, DS_TOOL_OPEN_DEEPSEEK))
        return DS_TOOLS_DEEPSEEK;
    if (has(source, DS_TOOL_OPEN_HERMES))
        return DS_TOOLS_HERMES;
    if (has(source, DS_TOOL_OPEN_LLAMA) || (has(source, "tools") && has(source, "\"parameters\"")))
        return DS_TOOLS_LLAMA;
    return DS_TOOLS_NONE;
}

struct ds_reply_form ds_reply_form_of(const struct ds_vocab *vocab)
{
    struct ds_bytes source = vocab->chat_template;
    struct ds_reply_form form = { .reasons = has(source, OPEN_THINK) || has(source, CLOSE_THINK),
                                  .tools = form_of_template(source) };
    enum ds_tool_form said = DS_TOOLS_NONE;

    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        struct ds_bytes token = vocab->tokens[id];

        if (token.size < 2 || token.data[0] != '<')
            continue;
        form.reasons = form.reasons || is(token, OPEN_THINK);
        if (is(token, DS_TOOL_OPEN_DEEPSEEK))
            said = DS_TOOLS_DEEPSEEK;
        else if (said == DS_TOOLS_NONE && is(token, DS_TOOL_OPEN_HERMES))
            said = DS_TOOLS_HERMES;
        else if (said == DS_TOOLS_NONE && is(token, DS_TOOL_OPEN_LLAMA))
            said = DS_TOOLS_LLAMA;
    }
    if (form.tools == DS_TOOLS_NONE)
        form.tools = said;
    return form;
}

bool ds_reply_opened_by(struct ds_bytes prompt)
{
    const size_t size = sizeof OPEN_THINK - 1;

    while (prompt.size > 0 && is_space(prompt.data[prompt.size - 1]))
        prompt.size--;
    return prompt.size >= size && memcmp(prompt.data + prompt.size - size, OPEN_THINK, size) == 0;
}

/* --- life --- */

int ds_reply_new(struct ds_reply **ret_reply, struct ds_reply_form form, bool opened)
{
    struct ds_reply *reply = calloc(1, sizeof *reply);

    if (!reply)
        return -ENOMEM;
    reply->form = form;
    reply->state = opened ? STATE_THINK : form.reasons ? STATE_START : STATE_CONTENT;
    reply->fresh = true;
    *ret_reply = reply;
    return 0;
}

struct ds_reply *ds_reply_free(struct ds_reply *reply)
{
    if (!reply)
        return NULL;
    free(reply->raw.data);
    free(reply->hidden.items);
    free(reply->spans.items);
    free(reply->regions.items);
    for (unsigned i = 0; i < 2; i++) {
        free(reply->out[i].data);
        free(reply->out_parts[i].items);
    }
    free(reply->reasoning.data);
    free(reply->content.data);
    ds_tool_calls_deinit(&reply->calls);
    free(reply);
    return NULL;
}

void ds_reply_free_p(struct ds_reply **reply)
{
    *reply = ds_reply_free(*reply);
}

/* --- deciding --- */

/* The next n bytes are part. */
static int decide(struct ds_reply *reply, size_t n, enum ds_part part)
{
    struct span *last = reply->spans.items, *span;

    if (n == 0)
        return 0;
    reply->at += n;
    if (reply->spans.n > 0 && last[reply->spans.n - 1].part == part) {
        last[reply->spans.n - 1].end = reply->at;
        return 0;
    }
    span = add_item(&reply->spans, sizeof *span);
    if (!span)
        return -ENOMEM;
    *span = (struct span){ reply->at, part };
    return 0;
}

static struct ds_bytes undecided(const struct ds_reply *reply)
{
    return (struct ds_bytes){ reply->raw.data + reply->at, reply->raw.size - reply->at };
}

static size_t leading_spaces(struct ds_bytes text)
{
    size_t n = 0;

    while (n < text.size && is_space(text.data[n]))
        n++;
    return n;
}

/* White space that text[..end) ends in, as much of it as is held back. */
static size_t trailing_spaces(const char *text, size_t end)
{
    size_t n = 0;

    while (n < end && n < SPACES_MAX && is_space(text[end - 1 - n]))
        n++;
    return n;
}

/* Bytes at the end of text that could begin a tag, with the white space before them. */
static size_t held(struct ds_bytes text, const char *tag)
{
    size_t most = strlen(tag) - 1;

    for (size_t n = most < text.size ? most : text.size; n > 0; n--)
        if (memcmp(text.data + text.size - n, tag, n) == 0)
            return n + trailing_spaces(text.data, text.size - n);
    return trailing_spaces(text.data, text.size);
}

static bool begins(struct ds_bytes text, const char *tag)
{
    return text.size >= strlen(tag) && memcmp(text.data, tag, strlen(tag)) == 0;
}

static bool may_begin(struct ds_bytes text, const char *tag)
{
    return text.size < strlen(tag) && memcmp(text.data, tag, text.size) == 0;
}

/* Each step decides what it can and returns 1 where the next state is to look, 0 where more text
 * is needed. */

/* White space and, perhaps, <think>. */
static int step_start(struct ds_reply *reply)
{
    struct ds_bytes rest = undecided(reply);
    size_t spaces = leading_spaces(rest);
    int r;

    rest.data += spaces;
    rest.size -= spaces;
    if (spaces <= SPACES_MAX && begins(rest, OPEN_THINK)) {
        r = decide(reply, spaces + sizeof OPEN_THINK - 1, DS_PART_MARKUP);
        reply->state = STATE_THINK;
        return r < 0 ? r : 1;
    }
    if (!reply->ended && spaces <= SPACES_MAX && may_begin(rest, OPEN_THINK))
        return 0;
    reply->state = STATE_CONTENT;
    return 1;
}

/* Models repeat the tag that the prompt ended with. */
static int step_think(struct ds_reply *reply)
{
    struct ds_bytes rest;
    int r = decide(reply, leading_spaces(undecided(reply)), DS_PART_MARKUP);

    if (r < 0)
        return r;
    rest = undecided(reply);
    if (begins(rest, OPEN_THINK))
        r = decide(reply, sizeof OPEN_THINK - 1, DS_PART_MARKUP);
    else if (!reply->ended && may_begin(rest, OPEN_THINK))
        return 0;
    else
        reply->state = STATE_REASONING;
    return r < 0 ? r : 1;
}

static int step_reasoning(struct ds_reply *reply)
{
    struct ds_bytes rest = undecided(reply);
    const char *tag =
        rest.size ? memmem(rest.data, rest.size, CLOSE_THINK, sizeof CLOSE_THINK - 1) : NULL;
    size_t before, spaces;
    int r;

    if (!tag)
        return decide(reply, rest.size - (reply->ended ? 0 : held(rest, CLOSE_THINK)),
                      DS_PART_REASONING);
    before = (size_t) (tag - rest.data);
    spaces = trailing_spaces(rest.data, before);
    r = decide(reply, before - spaces, DS_PART_REASONING);
    if (r == 0)
        r = decide(reply, spaces + sizeof CLOSE_THINK - 1, DS_PART_MARKUP);
    reply->state = STATE_AFTER;
    return r < 0 ? r : 1;
}

static int step_after(struct ds_reply *reply)
{
    int r = decide(reply, leading_spaces(undecided(reply)), DS_PART_MARKUP);

    if (r < 0 || reply->at == reply->raw.size)
        return r;
    reply->state = STATE_CONTENT;
    return 1;
}

static const char *opening(const struct ds_reply *reply)
{
    switch (reply->form.tools) {
    case DS_TOOLS_HERMES:
        return DS_TOOL_OPEN_HERMES;
    case DS_TOOLS_DEEPSEEK:
        return DS_TOOL_OPEN_DEEPSEEK;
    case DS_TOOLS_LLAMA:
        return DS_TOOL_OPEN_LLAMA;
    default:
        return NULL;
    }
}

/* A call starts behind `before` bytes and the white space after them. */
static int open_region(struct ds_reply *reply, size_t before, size_t spaces)
{
    struct region *region;
    int r;

    r = decide(reply, before, DS_PART_CONTENT);
    if (r < 0)
        return r;
    region = add_item(&reply->regions, sizeof *region);
    if (!region)
        return -ENOMEM;
    *region = (struct region){ reply->at, reply->at + spaces, reply->at + spaces };
    r = decide(reply, spaces, DS_PART_MARKUP);
    reply->state = STATE_TOOL;
    return r < 0 ? r : 1;
}

/* Llama's JSON with nothing before it. */
static int step_fresh(struct ds_reply *reply)
{
    struct ds_bytes rest = undecided(reply);
    size_t spaces = leading_spaces(rest);

    if (spaces <= SPACES_MAX && spaces < rest.size && rest.data[spaces] == '{')
        return open_region(reply, 0, spaces);
    if (spaces == rest.size && spaces <= SPACES_MAX && !reply->ended)
        return 0;
    reply->fresh = false;
    return 1;
}

static int step_content(struct ds_reply *reply)
{
    struct ds_bytes rest = undecided(reply);
    const char *open = opening(reply), *found;
    size_t before, spaces;

    if (!open)
        return decide(reply, rest.size, DS_PART_CONTENT);
    if (rest.size == 0)
        return 0;
    if (reply->fresh && reply->form.tools == DS_TOOLS_LLAMA)
        return step_fresh(reply);
    found = memmem(rest.data, rest.size, open, strlen(open));
    if (!found)
        return decide(reply, rest.size - (reply->ended ? 0 : held(rest, open)), DS_PART_CONTENT);
    before = (size_t) (found - rest.data);
    spaces = trailing_spaces(rest.data, before);
    return open_region(reply, before - spaces, spaces);
}

static int step_tool(struct ds_reply *reply)
{
    struct region *region = (struct region *) reply->regions.items + reply->regions.n - 1;
    const char *close = reply->form.tools == DS_TOOLS_HERMES     ? DS_TOOL_CLOSE_HERMES
                        : reply->form.tools == DS_TOOLS_DEEPSEEK ? DS_TOOL_CLOSE_DEEPSEEK
                                                                 : NULL;
    size_t back = close ? strlen(close) - 1 : 0, from;
    const char *found = NULL;
    int r;

    from = reply->at > region->start + back ? reply->at - back : region->start;
    if (close && from < reply->raw.size)
        found = memmem(reply->raw.data + from, reply->raw.size - from, close, back + 1);
    region->end = found ? (size_t) (found - reply->raw.data) + back + 1 : reply->raw.size;
    r = decide(reply, region->end - reply->at, DS_PART_TOOL_CALL);
    if (r < 0 || !found)
        return r;
    reply->state = STATE_AFTER;
    return 1;
}

static int advance(struct ds_reply *reply)
{
    static int (*const steps[])(struct ds_reply *) = {
        [STATE_START] = step_start,         [STATE_THINK] = step_think,
        [STATE_REASONING] = step_reasoning, [STATE_AFTER] = step_after,
        [STATE_CONTENT] = step_content,     [STATE_TOOL] = step_tool,
    };
    int r;

    if (!reply->raw.data)
        return 0;
    do
        r = steps[reply->state](reply);
    while (r > 0);
    return r;
}

int ds_reply_feed(struct ds_reply *reply, struct ds_bytes text, bool shown)
{
    size_t start = reply->raw.size, *pair;
    int r;

    if (text.size == 0)
        return 0;
    r = append_text(&reply->raw, text.data, text.size);
    if (r < 0)
        return r;
    if (!shown) {
        pair = add_item(&reply->hidden, 2 * sizeof *pair);
        if (!pair)
            return -ENOMEM;
        pair[0] = start;
        pair[1] = reply->raw.size;
    }
    return advance(reply);
}

int ds_reply_end(struct ds_reply *reply)
{
    reply->ended = true;
    return advance(reply);
}

/* --- giving out --- */

/* Appends what is shown of raw[from..to). */
static int append_shown(const struct ds_reply *reply, struct text *text, size_t from, size_t to)
{
    const size_t(*hidden)[2] = reply->hidden.items;
    size_t low = 0, high = reply->hidden.n;
    int r = 0;

    while (low < high) { /* the first hidden range that ends behind from */
        size_t middle = (low + high) / 2;

        if (hidden[middle][1] <= from)
            low = middle + 1;
        else
            high = middle;
    }
    while (r == 0 && from < to) {
        size_t stop = low < reply->hidden.n && hidden[low][0] < to ? hidden[low][0] : to;

        if (stop > from)
            r = append_text(text, reply->raw.data + from, stop - from);
        from = stop;
        if (stop < to)
            from = hidden[low++][1];
    }
    return r;
}

int ds_reply_take(struct ds_reply *reply, struct ds_bytes *ret_text, const uint32_t **ret_parts,
                  size_t *ret_n_parts)
{
    const struct span *spans = reply->spans.items;
    struct text *out = &reply->out[reply->turn];
    struct list *parts = &reply->out_parts[reply->turn];
    int r = 0;

    reply->turn = !reply->turn;
    out->size = 0;
    parts->n = 0;
    while (r == 0 && reply->taken < reply->at) {
        const struct span *span = &spans[reply->taken_span];
        size_t before = out->size;
        uint32_t *part;

        r = append_shown(reply, out, reply->taken, span->end);
        if (r == 0 && out->size > before) {
            part = add_item(parts, sizeof *part);
            if (!part)
                return -ENOMEM;
            *part = (uint32_t) (out->size - before) << 2 | (uint32_t) span->part;
        }
        reply->taken = span->end;
        reply->taken_span += reply->taken_span + 1 < reply->spans.n;
    }
    *ret_text = (struct ds_bytes){ out->data, out->size };
    *ret_parts = parts->items;
    *ret_n_parts = parts->n;
    return r;
}

/* The calls of a region, or its text as content. */
static int read_region(struct ds_reply *reply, const struct region *region)
{
    struct ds_bytes text = { reply->raw.data + region->start, region->end - region->start };
    int r = ds_tool_calls_parse(&reply->calls, reply->form.tools, text);

    return r == DS_TOOLS_MALFORMED
               ? append_shown(reply, &reply->content, region->spaces, region->end)
               : r;
}

int ds_reply_message(struct ds_reply *reply, struct ds_reply_message *ret_message)
{
    const struct region *region = reply->regions.items;
    const struct region *last = region ? region + reply->regions.n : NULL;
    const struct span *spans = reply->spans.items;
    size_t from = 0;
    int r = 0;

    reply->reasoning.size = reply->content.size = 0;
    ds_tool_calls_deinit(&reply->calls);
    for (size_t i = 0; r == 0 && i < reply->spans.n; from = spans[i++].end) {
        if (spans[i].part == DS_PART_REASONING)
            r = append_shown(reply, &reply->reasoning, from, spans[i].end);
        else if (spans[i].part == DS_PART_CONTENT)
            r = append_shown(reply, &reply->content, from, spans[i].end);
        else if (spans[i].part == DS_PART_TOOL_CALL) /* several regions may touch */
            for (; r == 0 && region < last && region->start < spans[i].end; region++)
                r = read_region(reply, region);
    }
    if (r < 0)
        return r;
    *ret_message = (struct ds_reply_message){
        .reasoning = { reply->reasoning.data, reply->reasoning.size },
        .content = { reply->content.data, reply->content.size },
        .calls = reply->calls.calls,
        .n_calls = reply->calls.n,
    };
    return 0;
}
