/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a reply is taken apart the same way however its text arrives, and what is no call of tools
 * is content.
 * Method: replies of every form, cut at every byte and fed byte by byte; the golden renders of
 * conversations with calls, parsed back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "engine/text/reply.h"
#include "tests/lib/golden.h"

#define DS_MARK(name) "<\uFF5C" name "\uFF5C>"
#define DS_BEGIN      DS_MARK("tool\u2581calls\u2581begin")
#define DS_END        DS_MARK("tool\u2581calls\u2581end")
#define DS_CALL       DS_MARK("tool\u2581call\u2581begin")
#define DS_CALL_END   DS_MARK("tool\u2581call\u2581end")
#define DS_SEP        DS_MARK("tool\u2581sep")

struct made { /* printed: easy to compare */
    char parts[4096], message[4096];
};

static void add(char *text, size_t room, const char *format, ...)
{
    size_t used = strlen(text);
    va_list ap;

    va_start(ap, format);
    assert_true(vsnprintf(text + used, room - used, format, ap) < (int) (room - used));
    va_end(ap);
}

struct taker { /* what ds_reply_take() gave, parts of one kind joined */
    struct made *made;
    int last;
};

static void take(struct ds_reply *reply, struct taker *taker)
{
    struct ds_bytes text;
    const uint32_t *parts;
    size_t n, at = 0;

    assert_int_equal(ds_reply_take(reply, &text, &parts, &n), 0);
    for (size_t i = 0; i < n; at += parts[i++] >> 2) {
        int part = (int) (parts[i] & 3);

        if (part != taker->last)
            add(taker->made->parts, sizeof taker->made->parts, "[%c]", "CRTM"[part]);
        taker->last = part;
        add(taker->made->parts, sizeof taker->made->parts, "%.*s", (int) (parts[i] >> 2),
            text.data + at);
    }
    assert_int_equal(at, text.size);
}

static void write_message(struct ds_reply *reply, struct made *made)
{
    struct ds_reply_message message;

    assert_int_equal(ds_reply_message(reply, &message), 0);
    add(made->message, sizeof made->message, "R:%.*s|C:%.*s", (int) message.reasoning.size,
        message.reasoning.data, (int) message.content.size, message.content.data);
    for (size_t i = 0; i < message.n_calls; i++)
        add(made->message, sizeof made->message, "|%s(%.*s)", message.calls[i].name,
            (int) message.calls[i].arguments.size, message.calls[i].arguments.data);
}

/* cut: the text comes as text[..cut), text[cut..); SIZE_MAX: byte by byte. */
static void make(struct ds_reply_form form, bool opened, const char *text, size_t cut,
                 struct made *made)
{
    ds_cleanup(ds_reply_free_p) struct ds_reply *reply = NULL;
    struct taker taker = { made, -1 };
    size_t size = strlen(text);

    *made = (struct made){ 0 };
    assert_int_equal(ds_reply_new(&reply, form, opened), 0);
    for (size_t at = 0, next; at < size; at = next) {
        next = cut == SIZE_MAX ? at + 1 : at < cut ? cut : size;
        assert_int_equal(ds_reply_feed(reply, (struct ds_bytes){ text + at, next - at }, true), 0);
        take(reply, &taker);
    }
    assert_int_equal(ds_reply_end(reply), 0);
    take(reply, &taker);
    write_message(reply, made);
}

struct reply_case {
    enum ds_tool_form tools;
    bool opened;
    const char *text, *parts, *message;
};

static const struct reply_case cases[] = {
    /* reasoning */
    { DS_TOOLS_NONE, false, "Hello <b> there", "[C]Hello <b> there", "R:|C:Hello <b> there" },
    { DS_TOOLS_NONE, false, "", "", "R:|C:" },
    { DS_TOOLS_NONE, true, "a\n</think>\n\nb", "[R]a[M]\n</think>\n\n[C]b", "R:a|C:b" },
    { DS_TOOLS_NONE, true, "\na </thin b", "[M]\n[R]a </thin b", "R:a </thin b|C:" },
    { DS_TOOLS_NONE, true, "<think>\nx</think>", "[M]<think>\n[R]x[M]</think>", "R:x|C:" },
    { DS_TOOLS_NONE, true, "</think>\n\nonly", "[M]</think>\n\n[C]only", "R:|C:only" },
    { DS_TOOLS_NONE, false, "\n<think>\nt\n\n</think>\n\nc <think>d",
      "[M]\n<think>\n[R]t[M]\n\n</think>\n\n[C]c <think>d", "R:t|C:c <think>d" },
    { DS_TOOLS_NONE, false, "  <thinking>", "[C]  <thinking>", "R:|C:  <thinking>" },
    { DS_TOOLS_NONE, false, "no <think>x</think>", "[C]no <think>x</think>",
      "R:|C:no <think>x</think>" },
    { DS_TOOLS_NONE, false, "<tool_call>{}</tool_call>", "[C]<tool_call>{}</tool_call>",
      "R:|C:<tool_call>{}</tool_call>" },
    /* Hermes */
    { DS_TOOLS_HERMES, false,
      "Sure. \n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}\n</tool_call>\n"
      "<tool_call>{\"arguments\":{},\"name\":\"g\"}</tool_call>\n",
      "[C]Sure.[M] \n[T]<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}\n"
      "</tool_call>[M]\n[T]<tool_call>{\"arguments\":{},\"name\":\"g\"}</tool_call>[M]\n",
      "R:|C:Sure.|f({\"a\": [1, \"}\"]})|g({})" },
    { DS_TOOLS_HERMES, true,
      "hm</think><tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1.50}\"}",
      "[R]hm[M]</think>[T]<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1.50}\"}",
      "R:hm|C:|f({\"a\": 1.50})" },
    { DS_TOOLS_HERMES, false, "a <tool_call>{\"name\": \"f\", \"argum",
      "[C]a[M] [T]<tool_call>{\"name\": \"f\", \"argum",
      "R:|C:a <tool_call>{\"name\": \"f\", \"argum" },
    { DS_TOOLS_HERMES, false, "<tool_call>{\"name\": 5}</tool_call> z",
      "[T]<tool_call>{\"name\": 5}</tool_call>[M] [C]z",
      "R:|C:<tool_call>{\"name\": 5}</tool_call>z" },
    { DS_TOOLS_HERMES, false, "<tool_call>{\"name\":\"f\"}</tool_call>",
      "[T]<tool_call>{\"name\":\"f\"}</tool_call>", "R:|C:|f({})" },
    { DS_TOOLS_HERMES, false, "a <tool_cal", "[C]a <tool_cal", "R:|C:a <tool_cal" },
    /* DeepSeek V3 and R1, then V3.1 */
    { DS_TOOLS_DEEPSEEK, false,
      "ok" DS_BEGIN DS_CALL "function" DS_SEP "f\n```json\n{\"a\": 1}\n```" DS_CALL_END "\n" DS_CALL
      "function" DS_SEP "g\n```json\n{}\n```" DS_CALL_END DS_END,
      "[C]ok[T]" DS_BEGIN DS_CALL "function" DS_SEP "f\n```json\n{\"a\": 1}\n```" DS_CALL_END
      "\n" DS_CALL "function" DS_SEP "g\n```json\n{}\n```" DS_CALL_END DS_END,
      "R:|C:ok|f({\"a\": 1})|g({})" },
    { DS_TOOLS_DEEPSEEK, false, DS_BEGIN DS_CALL "f" DS_SEP "{\"b\": true}" DS_CALL_END DS_END "x",
      "[T]" DS_BEGIN DS_CALL "f" DS_SEP "{\"b\": true}" DS_CALL_END DS_END "[C]x",
      "R:|C:x|f({\"b\": true})" },
    { DS_TOOLS_DEEPSEEK, false,
      DS_BEGIN DS_CALL "f" DS_SEP "{\"b\": ", "[T]" DS_BEGIN DS_CALL "f" DS_SEP "{\"b\": ",
      "R:|C:" DS_BEGIN DS_CALL "f" DS_SEP "{\"b\": " },
    /* Llama 3 */
    { DS_TOOLS_LLAMA, false, "\n{\"name\": \"f\", \"parameters\": {\"x\": \"a;b\"}}",
      "[M]\n[T]{\"name\": \"f\", \"parameters\": {\"x\": \"a;b\"}}", "R:|C:|f({\"x\": \"a;b\"})" },
    { DS_TOOLS_LLAMA, false,
      "{\"name\":\"f\",\"parameters\":{}}; {\"name\":\"g\",\"parameters\":{\"n\":1e3}}",
      "[T]{\"name\":\"f\",\"parameters\":{}}; {\"name\":\"g\",\"parameters\":{\"n\":1e3}}",
      "R:|C:|f({})|g({\"n\":1e3})" },
    { DS_TOOLS_LLAMA, false, "{\"no\": \"call\"}", "[T]{\"no\": \"call\"}",
      "R:|C:{\"no\": \"call\"}" },
    { DS_TOOLS_LLAMA, false, "{\"name\":\"f\",\"parameters\":{}} and more",
      "[T]{\"name\":\"f\",\"parameters\":{}} and more",
      "R:|C:{\"name\":\"f\",\"parameters\":{}} and more" },
    { DS_TOOLS_LLAMA, false, "I say {\"name\":\"f\",\"parameters\":{}}",
      "[C]I say {\"name\":\"f\",\"parameters\":{}}",
      "R:|C:I say {\"name\":\"f\",\"parameters\":{}}" },
    { DS_TOOLS_LLAMA, false, "<|python_tag|>brave_search.call(query=\"a, (b)\", n=3)",
      "[T]<|python_tag|>brave_search.call(query=\"a, (b)\", n=3)",
      "R:|C:|brave_search({\"query\": \"a, (b)\", \"n\": 3})" },
    { DS_TOOLS_LLAMA, false, "<|python_tag|>print(1)", "[T]<|python_tag|>print(1)",
      "R:|C:<|python_tag|>print(1)" },
};

static void every_form_is_read_alike_wherever_its_text_is_cut(void **state)
{
    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct reply_case *c = &cases[i];
        struct ds_reply_form form = { .reasons = true, .tools = c->tools };
        struct made whole, made;

        make(form, c->opened, c->text, 0, &whole);
        assert_string_equal(whole.parts, c->parts);
        assert_string_equal(whole.message, c->message);
        make(form, c->opened, c->text, SIZE_MAX, &made);
        assert_memory_equal(&made, &whole, sizeof made);
        for (size_t cut = 1; cut < strlen(c->text); cut++) {
            make(form, c->opened, c->text, cut, &made);
            assert_memory_equal(&made, &whole, sizeof made);
        }
    }
}

/* What has been given out after n bytes must not hang on how they came. */
static void what_is_certain_after_n_bytes_is_a_function_of_them(void **state)
{
    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ds_reply_form form = { .reasons = true, .tools = cases[i].tools };
        ds_cleanup(ds_reply_free_p) struct ds_reply *slow = NULL;
        struct made made = { 0 };
        struct taker taker = { &made, -1 };

        assert_int_equal(ds_reply_new(&slow, form, cases[i].opened), 0);
        for (size_t n = 1; n <= strlen(cases[i].text); n++) {
            ds_cleanup(ds_reply_free_p) struct ds_reply *fast = NULL;
            struct made at_once = { 0 };
            struct taker other = { &at_once, -1 };

            assert_int_equal(
                ds_reply_feed(slow, (struct ds_bytes){ cases[i].text + n - 1, 1 }, true), 0);
            take(slow, &taker);
            assert_int_equal(ds_reply_new(&fast, form, cases[i].opened), 0);
            assert_int_equal(ds_reply_feed(fast, (struct ds_bytes){ cases[i].text, n }, true), 0);
            take(fast, &other);
            assert_string_equal(made.parts, at_once.parts);
        }
    }
}

/* DeepSeek's marks are control tokens: nobody sees them, but they part the calls. */
static void names_of_control_tokens_part_the_text_unseen(void **state)
{
    static const struct {
        const char *text;
        bool shown;
    } pieces[] = { { "ok", true },         { DS_BEGIN, false }, { DS_CALL, false },
                   { "f", true },          { DS_SEP, false },   { "{\"a\":1}", true },
                   { DS_CALL_END, false }, { DS_END, false },   { "done", true } };
    ds_cleanup(ds_reply_free_p) struct ds_reply *reply = NULL;
    struct made made = { 0 };
    struct taker taker = { &made, -1 };

    (void) state;
    assert_int_equal(
        ds_reply_new(&reply, (struct ds_reply_form){ false, DS_TOOLS_DEEPSEEK }, false), 0);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        struct ds_bytes text = { pieces[i].text, strlen(pieces[i].text) };

        assert_int_equal(ds_reply_feed(reply, text, pieces[i].shown), 0);
        take(reply, &taker);
    }
    assert_int_equal(ds_reply_end(reply), 0);
    take(reply, &taker);
    write_message(reply, &made);
    assert_string_equal(made.parts, "[C]ok[T]f{\"a\":1}[C]done");
    assert_string_equal(made.message, "R:|C:okdone|f({\"a\":1})");
}

static void a_prompt_that_ends_in_the_tag_opens_the_reasoning(void **state)
{
    static const struct {
        const char *prompt;
        bool opened;
    } prompts[] = { { "a<think>", true },
                    { "a<think>\n\n", true },
                    { "<think></think>", false },
                    { "a<think>b", false },
                    { "", false },
                    { "think>", false } };

    (void) state;
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++)
        assert_int_equal(
            ds_reply_opened_by((struct ds_bytes){ prompts[i].prompt, strlen(prompts[i].prompt) }),
            prompts[i].opened);
}

/* --- goldens --- */

static struct ds_reply_form form_of(const char *template_name)
{
    ds_cleanup(ds_free_p) char *name = NULL;
    ds_cleanup(ds_free_p) char *path = NULL;
    ds_cleanup(ds_free_p) char *source = NULL;
    struct ds_vocab vocab = { 0 };

    assert_true(asprintf(&name, "chat/templates/%s.jinja", template_name) > 0);
    path = ds_golden_file(name);
    source = ds_golden_read(path, &vocab.chat_template.size);
    vocab.chat_template.data = source;
    return ds_reply_form_of(&vocab);
}

/* What the assistant said, from each of its openings on to the next end of a turn. */
static char *next_turn(const char **render)
{
    static const char *const opens[] = { DS_MARK("Assistant"), "<|im_start|>assistant",
                                         "<|start_header_id|>assistant<|end_header_id|>\n\n" };
    static const char *const ends[] = { DS_MARK("end\u2581of\u2581sentence"), "<|im_end|>",
                                        "<|eot_id|>" };

    for (size_t i = 0; i < 3; i++) {
        const char *start = strstr(*render, opens[i]), *end, *outputs;

        if (!start)
            continue;
        start += strlen(opens[i]);
        end = strstr(start, ends[i]);
        outputs = strstr(start, DS_MARK("tool\u2581outputs\u2581begin"));
        if (outputs && (!end || outputs < end)) /* some templates close nothing before them */
            end = outputs;
        if (!end)
            end = start + strlen(start);
        if (strncmp(start, "</think>", 8) == 0)
            start += 8; /* of the prompt */
        *render = end;
        return strndup(start, (size_t) (end - start));
    }
    return NULL;
}

static void compare_call(const cJSON *wanted, const struct ds_tool_call *call)
{
    const cJSON *function = cJSON_GetObjectItem(wanted, "function");
    const cJSON *arguments = cJSON_GetObjectItem(function, "arguments");
    cJSON *expected = cJSON_IsString(arguments) ? cJSON_Parse(arguments->valuestring)
                                                : cJSON_Duplicate(arguments, true);
    cJSON *got = cJSON_ParseWithLength(call->arguments.data, call->arguments.size);

    assert_string_equal(call->name, cJSON_GetStringValue(cJSON_GetObjectItem(function, "name")));
    assert_non_null(got);
    assert_true(cJSON_Compare(expected, got, true));
    cJSON_Delete(expected);
    cJSON_Delete(got);
}

/* Parses every turn of a render; the number of calls that were found as wanted. */
static unsigned check_render(const char *render, struct ds_reply_form form, const cJSON *messages)
{
    const cJSON *wanted = NULL, *message = messages->child;
    const char *whole = render;
    bool braces = false;
    unsigned n = 0;
    char *turn;

    while ((turn = next_turn(&render))) {
        ds_cleanup(ds_reply_free_p) struct ds_reply *reply = NULL;
        struct ds_reply_message made;

        assert_int_equal(ds_reply_new(&reply, form, false), 0);
        assert_int_equal(ds_reply_feed(reply, (struct ds_bytes){ turn, strlen(turn) }, true), 0);
        assert_int_equal(ds_reply_end(reply), 0);
        assert_int_equal(ds_reply_message(reply, &made), 0);
        for (size_t i = 0; i < made.n_calls; i++, n++, wanted = wanted->next) {
            for (; !wanted && message; message = message->next) {
                const cJSON *calls = cJSON_GetObjectItem(message, "tool_calls");

                wanted = cJSON_IsArray(calls) ? calls->child : NULL;
            }
            assert_non_null(wanted);
            compare_call(wanted, &made.calls[i]);
        }
        braces = braces || strchr(turn, '{');
        free(turn);
    }
    assert_null(wanted); /* the calls of the message that was begun have all come */
    if (n == 0) {        /* some templates leave the calls of a message out */
        if (braces)
            fail_msg("no call in: %s", whole);
        return 0;
    }
    for (; message; message = message->next)
        assert_false(cJSON_IsArray(cJSON_GetObjectItem(message, "tool_calls")));
    return n;
}

static void golden_renders_of_calls_are_parsed_back(void **state)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file("chat/chat.jsonl");
    unsigned n_calls = 0, n_forms[4] = { 0 };
    char *file;

    (void) state;
    if (!path) {
        ds_golden_skip("calls of tools in rendered conversations");
        skip();
    }
    file = ds_golden_read(path, NULL);
    assert_non_null(file);
    for (char *rest = file, *line; (line = strsep(&rest, "\n")) && *line;) {
        cJSON *object = cJSON_Parse(line);
        const char *expected = cJSON_GetStringValue(cJSON_GetObjectItem(object, "expected"));
        const char *conversation =
            cJSON_GetStringValue(cJSON_GetObjectItem(object, "conversation"));
        struct ds_reply_form form =
            form_of(cJSON_GetStringValue(cJSON_GetObjectItem(object, "template")));

        if (expected && strncmp(conversation, "tool", 4) == 0 && form.tools != DS_TOOLS_NONE) {
            unsigned n = check_render(expected, form, cJSON_GetObjectItem(object, "messages"));

            n_calls += n;
            n_forms[form.tools] += n > 0;
        }
        cJSON_Delete(object);
    }
    free(file);
    print_message("%u calls parsed back\n", n_calls);
    assert_true(n_forms[DS_TOOLS_HERMES] > 0 && n_forms[DS_TOOLS_DEEPSEEK] > 0 &&
                n_forms[DS_TOOLS_LLAMA] > 0);
    assert_true(n_calls >= 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_is_read_alike_wherever_its_text_is_cut),
        cmocka_unit_test(what_is_certain_after_n_bytes_is_a_function_of_them),
        cmocka_unit_test(names_of_control_tokens_part_the_text_unseen),
        cmocka_unit_test(a_prompt_that_ends_in_the_tag_opens_the_reasoning),
        cmocka_unit_test(golden_renders_of_calls_are_parsed_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
