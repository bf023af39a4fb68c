/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_reply.c - what a model might write, read at once and byte by byte.
 *
 * sources: engine/text engine/format
 *
 * The first byte chooses the form. Both readings must say the same of every byte, and all that is
 * shown must come out again.
 */
#include <stdbool.h>

#include "engine/text/reply.h"
#include "proto/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

struct said {
    struct ds_reply *reply;
    uint8_t *parts; /* of each byte; own */
    char *text;     /* own */
    size_t size;
};

static void take(struct said *said, size_t most)
{
    struct ds_bytes text;
    const uint32_t *parts;
    size_t n;

    MUST(ds_reply_take(said->reply, &text, &parts, &n) == 0);
    MUST(said->size + text.size <= most);
    for (size_t i = 0, at = 0; i < n; at += parts[i++] >> 2) {
        MUST(parts[i] >> 2 > 0 && at + (parts[i] >> 2) <= text.size);
        memcpy(said->text + said->size, text.data + at, parts[i] >> 2);
        memset(said->parts + said->size, (int) (parts[i] & 3), parts[i] >> 2);
        said->size += parts[i] >> 2;
    }
}

static struct said read_text(struct ds_reply_form form, bool opened, const char *text, size_t size,
                             size_t step)
{
    struct said said = { NULL, malloc(size + 1), malloc(size + 1), 0 };

    MUST(said.parts && said.text && ds_reply_new(&said.reply, form, opened) == 0);
    for (size_t at = 0; at < size; at += step) {
        size_t n = size - at < step ? size - at : step;

        MUST(ds_reply_feed(said.reply, (struct ds_bytes){ text + at, n }, true) == 0);
        take(&said, size);
    }
    MUST(ds_reply_end(said.reply) == 0);
    take(&said, size);
    MUST(said.size == size && memcmp(said.text, text, size) == 0);
    return said;
}

static bool same(struct ds_bytes a, struct ds_bytes b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ds_reply_form form = { size > 0 && (data[0] & 4),
                                  (enum ds_tool_form)(size > 0 ? data[0] & 3 : 0) };
    bool opened = size > 0 && (data[0] & 8);
    const char *text = (const char *) data + 1;
    struct ds_reply_message one, other;
    struct said at_once, slowly;

    if (size == 0)
        return 0;
    at_once = read_text(form, opened, text, size - 1, size);
    slowly = read_text(form, opened, text, size - 1, 1);
    MUST(memcmp(at_once.parts, slowly.parts, size - 1) == 0);
    MUST(ds_reply_message(at_once.reply, &one) == 0);
    MUST(ds_reply_message(slowly.reply, &other) == 0);
    MUST(same(one.reasoning, other.reasoning) && same(one.content, other.content) &&
         one.n_calls == other.n_calls);
    for (size_t i = 0; i < one.n_calls; i++) {
        MUST(*one.calls[i].name && one.calls[i].arguments.data[0] == '{');
        MUST(same(one.calls[i].arguments, other.calls[i].arguments));
    }
    ds_reply_free(at_once.reply);
    ds_reply_free(slowly.reply);
    free(at_once.parts);
    free(at_once.text);
    free(slowly.parts);
    free(slowly.text);
    return 0;
}
