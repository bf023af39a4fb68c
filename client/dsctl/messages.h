/* SPDX-License-Identifier: Apache-2.0 */
/*
 * messages.h - a JSON file of chat messages to ds.ChatMessages.
 *
 * Either an array of messages, or an object {"messages": [...], "tools": [...], "variables": {...},
 * "add_generation_prompt": bool}. A message has role and content (a string or null); further
 * members are passed on to the template as they are.
 */
#pragma once

#include "client/dsctl/dsctl.h"

struct dsctl_messages {
    Ds__ChatMessages chat; /* points into the rest */
    void *memory[3];       /* cJSON tree, array of messages, array of pointers */
    char **printed;        /* JSON texts made for bytes fields */
    size_t n_printed;
};

/* error: one line. 0, -EINVAL, -ENOMEM. Free with dsctl_messages_deinit() in any case. */
struct ds_error;
int dsctl_messages_parse(struct dsctl_messages *messages, const char *text, struct ds_error *error);
void dsctl_messages_deinit(struct dsctl_messages *messages);
