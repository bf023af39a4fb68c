/* SPDX-License-Identifier: Apache-2.0 */
/*
 * template.h - chat messages to prompt text, by the model's own template.
 *
 * The template in the file is a Jinja program written by someone else: it runs in an interpreter
 * bounded in steps, output and memory. Source: Jinja 2 documentation, as transformers'
 * apply_chat_template uses it (trim_blocks, lstrip_blocks; tojson without HTML escapes, insertion
 * order, ", " and ": ").
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/format/checkpoint.h"

struct ds_template;

struct ds_chat_message {
    const char *role; /* NUL-terminated */
    struct ds_bytes content;
    const char *name;           /* "" or NULL: none */
    struct ds_bytes extra_json; /* JSON object of further members, size 0: none; members of the same
                                   name replace those above ("content": null) */
};

struct ds_chat {
    const struct ds_chat_message *messages;
    size_t n_messages;
    struct ds_bytes tools_json;     /* JSON array, size 0: none */
    struct ds_bytes variables_json; /* JSON object, size 0: none */
    bool add_generation_prompt;
    struct ds_bytes bos_text, eos_text;
};

/* Parses source (copied). -EBADMSG: syntax (line and reason in error); -ENOMEM. */
int ds_template_new(struct ds_template **ret_template, struct ds_bytes source,
                    struct ds_error *error);
struct ds_template *ds_template_free(struct ds_template *tmpl);
void ds_template_free_p(struct ds_template **tmpl);

/* Fresh memory, NUL added. -EINVAL: the template refused (raise_exception; its words in error) or
 * the messages' JSON is bad; -EBADMSG: it failed; -E2BIG: it ran beyond its bounds; -ENOMEM.
 * Thread-safe for one template. */
int ds_template_render(const struct ds_template *tmpl, const struct ds_chat *chat, char **ret_text,
                       size_t *ret_size, struct ds_error *error);
