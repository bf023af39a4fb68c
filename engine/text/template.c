/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/template.h"

#include "engine/text/jinja_run.h"

struct ds_template {
    struct ds_arena arena;
    struct ds_jinja_node *group;
};

int ds_template_new(struct ds_template **ret_template, struct ds_bytes source,
                    struct ds_error *error)
{
    ds_cleanup(ds_template_free_p) struct ds_template *tmpl = NULL;
    struct ds_jinja_token *tokens;
    int r = 0;

    if (source.size > DS_JINJA_SOURCE_BYTES_MAX)
        return ds_error_set(error, -EBADMSG, "chat template: longer than %u bytes",
                            DS_JINJA_SOURCE_BYTES_MAX);
    tmpl = calloc(1, sizeof *tmpl);
    if (!tmpl)
        return ds_error_set(error, -ENOMEM, "chat template: no memory");
    ds_arena_init(&tmpl->arena, DS_JINJA_TREE_BYTES_MAX);
    tokens = ds_jinja_lex(&tmpl->arena, source, &r, error);
    if (tokens)
        tmpl->group = ds_jinja_parse(&tmpl->arena, tokens, &r, error);
    if (!tmpl->group)
        return r;
    *ret_template = ds_steal(tmpl);
    return 0;
}

struct ds_template *ds_template_free(struct ds_template *tmpl)
{
    if (tmpl)
        ds_arena_deinit(&tmpl->arena);
    free(tmpl);
    return NULL;
}

void ds_template_free_p(struct ds_template **tmpl)
{
    *tmpl = ds_template_free(*tmpl);
}

/* --- what the template sees --- */

static void put(struct ds_jinja_run *run, struct ds_jinja_dict *dict, const char *name,
                struct ds_jinja_value value)
{
    ds_jinja_put(run, dict, ds_jinja_literal(name), value);
}

/* Members of a JSON object into dict, over those that are there. */
static void put_members(struct ds_jinja_run *run, struct ds_jinja_dict *dict, struct ds_bytes json,
                        const char *what)
{
    struct ds_jinja_value object;

    if (json.size == 0)
        return;
    object = ds_jinja_from_json(run, json, what);
    if (run->code == 0 && object.kind != DS_DICT)
        run->code = ds_error_set(run->error, -EINVAL, "%s: should be a JSON object", what);
    for (size_t i = 0; run->code == 0 && i < object.dict->n; i++)
        ds_jinja_put(run, dict, object.dict->keys[i], object.dict->values[i]);
}

static struct ds_jinja_value make_messages(struct ds_jinja_run *run, const struct ds_chat *chat)
{
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);
    char what[48];

    for (size_t i = 0; i < chat->n_messages && run->code == 0; i++) {
        const struct ds_chat_message *message = &chat->messages[i];
        struct ds_jinja_value dict = ds_jinja_dict(run, DS_DICT);

        (void) snprintf(what, sizeof what, "message %zu", i + 1);
        put(run, dict.dict, "role", ds_jinja_literal(message->role));
        put(run, dict.dict, "content",
            message->content.size ? ds_jinja_string(message->content) : ds_jinja_literal(""));
        if (message->name && *message->name)
            put(run, dict.dict, "name", ds_jinja_literal(message->name));
        put_members(run, dict.dict, message->extra_json, what);
        ds_jinja_push(run, list, dict);
    }
    return list;
}

static void make_variables(struct ds_jinja_run *run, const struct ds_chat *chat)
{
    struct ds_jinja_dict *names = &run->frame->names;
    struct ds_jinja_value tools = ds_jinja_none();

    if (chat->tools_json.size)
        tools = ds_jinja_from_json(run, chat->tools_json, "tools");
    if (run->code == 0 && tools.kind != DS_LIST && tools.kind != DS_NONE)
        run->code = ds_error_set(run->error, -EINVAL, "tools: should be a JSON array");
    put(run, names, "messages", make_messages(run, chat));
    put(run, names, "tools", tools);
    put(run, names, "documents", ds_jinja_none());
    put(run, names, "add_generation_prompt", ds_jinja_bool(chat->add_generation_prompt));
    if (chat->bos_text.size)
        put(run, names, "bos_token", ds_jinja_string(chat->bos_text));
    if (chat->eos_text.size)
        put(run, names, "eos_token", ds_jinja_string(chat->eos_text));
    put_members(run, names, chat->variables_json, "template variables");
}

static size_t input_bytes(const struct ds_chat *chat)
{
    size_t total = chat->tools_json.size + chat->variables_json.size;

    for (size_t i = 0; i < chat->n_messages; i++)
        total += 64 + chat->messages[i].content.size + chat->messages[i].extra_json.size;
    return total;
}

int ds_template_render(const struct ds_template *tmpl, const struct ds_chat *chat, char **ret_text,
                       size_t *ret_size, struct ds_error *error)
{
    size_t input = input_bytes(chat);
    ds_cleanup(ds_free_p) char *data = NULL;
    struct ds_jinja_text output = { 0 };
    struct ds_jinja_run run = {
        .error = error,
        .steps_left = DS_JINJA_STEPS_MAX + input,
        .output_left = DS_JINJA_OUTPUT_MAX + 4 * (uint64_t) input,
        .output = &output,
    };

    ds_arena_init(&run.arena, DS_JINJA_MEMORY_MAX + 16 * input);
    run.frame = ds_jinja_scope(&run, NULL);
    if (run.frame)
        make_variables(&run, chat);
    if (run.code == 0)
        ds_jinja_run_template(&run, tmpl->group);
    ds_jinja_write(&run, (struct ds_bytes){ "", 0 }); /* room for the NUL even without text */
    ds_arena_deinit(&run.arena);
    data = output.data;
    if (run.code)
        return run.code;
    data[output.size] = '\0';
    *ret_text = ds_steal(data);
    *ret_size = output.size;
    return 0;
}
