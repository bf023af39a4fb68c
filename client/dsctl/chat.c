/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chat - several turns. The whole conversation goes out with every turn; what was said before is in
 * the engine's prefix cache, so only the new turn costs time.
 */
#include "client/dsctl/editor.h"
#include "client/dsctl/generate.h"

#define INPUT_BYTES (1u << 20) /* of a conversation */

struct chat {
    struct dsctl *dsctl;
    struct dsctl_generation generation;
    struct dsctl_model model;
    struct ds_chat_turn *turns; /* contents are ours, roles are literals */
    size_t n_turns;
};

static int take(void *target, int key, const char *value)
{
    struct chat *chat = target;

    return dsctl_generation_take(&chat->generation, key, value);
}

/* Takes content. */
static bool add_turn(struct chat *chat, const char *role, char *content)
{
    struct ds_chat_turn *turns =
        content ? realloc(chat->turns, (chat->n_turns + 1) * sizeof *turns) : NULL;

    if (!turns) {
        free(content);
        return false;
    }
    chat->turns = turns;
    chat->turns[chat->n_turns++] = (struct ds_chat_turn){ role, content };
    return true;
}

static void drop_turns(struct chat *chat, size_t keep)
{
    while (chat->n_turns > keep)
        free((char *) chat->turns[--chat->n_turns].content);
}

static void chat_deinit(struct chat *chat)
{
    drop_turns(chat, 0);
    free(chat->turns);
}

static bool begin(struct chat *chat)
{
    drop_turns(chat, 0);
    return !chat->generation.system || add_turn(chat, "system", strdup(chat->generation.system));
}

/* One turn of the user's and the answer to it. An exit code. */
static int say(struct chat *chat, char *line)
{
    struct ds_request *request = &chat->generation.request;
    char *answer = NULL;
    bool inside = false;
    int code = DSCTL_OK;

    if (!add_turn(chat, "user", line))
        return dsctl_fail(chat->dsctl, DSCTL_ERROR, "out of memory");
    request->turns = chat->turns;
    request->n_turns = chat->n_turns;
    if (chat->generation.think != DSCTL_THINK_SHOW)
        code = dsctl_starts_inside(chat->dsctl, &chat->model, chat->turns, chat->n_turns, &inside);
    if (code == DSCTL_OK)
        code = dsctl_answer(chat->dsctl, request, chat->generation.think, inside, &answer);
    if (answer && (code == DSCTL_OK || code == DSCTL_INTERRUPTED)) {
        if (!add_turn(chat, "assistant", answer))
            return dsctl_fail(chat->dsctl, DSCTL_ERROR, "out of memory");
        return code;
    }
    free(answer);
    drop_turns(chat, chat->n_turns - 1); /* as if it had not been said */
    return code;
}

/* True: line was a command; *ret_quit says whether it was the last. */
static bool command(struct chat *chat, const char *line, bool *ret_quit)
{
    if (line[0] != '/')
        return false;
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0)
        *ret_quit = true;
    else if (strcmp(line, "/clear") == 0)
        (void) begin(chat);
    else
        puts("/clear  forget what was said\n/quit   leave (as Ctrl-D does)\n"
             "Ctrl-C  end the answer that is being given");
    return true;
}

static int converse(struct chat *chat, struct dsctl_editor *editor)
{
    int code = DSCTL_OK, r;
    bool quit = false;

    while (!quit) {
        char *line = NULL;

        r = dsctl_editor_line(editor, &line);
        if (r == DSCTL_LINE_END)
            break;
        if (r == DSCTL_LINE_INTERRUPTED)
            continue;
        if (!line[strspn(line, " \t")] || command(chat, line, &quit)) {
            free(line);
            continue;
        }
        code = say(chat, line);
        if (code == DSCTL_ABSENT)
            break;
        if (code == DSCTL_INTERRUPTED && chat->dsctl->out_terminal)
            code = DSCTL_OK; /* the answer was ended, not the program */
    }
    return code;
}

static int chat(struct dsctl *dsctl, int argc, char **argv)
{
    ds_cleanup(dsctl_editor_free_p) struct dsctl_editor *editor = NULL;
    ds_cleanup(chat_deinit) struct chat chat = { .dsctl = dsctl };
    int code, first;

    dsctl_generation_init(&chat.generation);
    code = dsctl_options(dsctl, argc, argv, take, &chat, &first);
    if (code != DSCTL_OK || dsctl->help)
        return code;
    code = dsctl_connect(dsctl, INPUT_BYTES);
    if (code == DSCTL_OK)
        code = dsctl_catch_signals(dsctl);
    if (code == DSCTL_OK)
        code = dsctl_model_open(dsctl, argv[first], &chat.model);
    if (code != DSCTL_OK)
        return code;
    chat.generation.request.model = chat.model.name[0] ? chat.model.name : NULL;
    chat.generation.request.attachment = chat.model.attachment;
    code = dsctl_generation_open(dsctl, &chat.generation);
    if (code != DSCTL_OK)
        return code;
    editor = dsctl_editor_new(dsctl->signal_fd, "> ");
    if (!editor || !begin(&chat))
        return dsctl_fail(dsctl, DSCTL_ERROR, "out of memory");
    return converse(&chat, editor);
}

static const struct dsctl_option options[] = {
    DSCTL_GENERATION_OPTIONS,
    { NULL, NULL, NULL, 0 },
};

const struct dsctl_verb dsctl_chat = {
    .name = "chat",
    .operands = "MODEL",
    .summary = "a conversation; Ctrl-C ends the answer, Ctrl-D the program",
    .options = options,
    .min_operands = 1,
    .max_operands = 1,
    .run = chat,
};
