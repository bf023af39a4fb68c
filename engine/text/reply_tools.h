/* SPDX-License-Identifier: Apache-2.0 */
/* reply_tools.h - the text of a call of tools, as reply.c has found it, to its calls. */
#pragma once

#include "engine/text/reply.h"

#define DS_TOOL_OPEN_HERMES    "<tool_call>"
#define DS_TOOL_CLOSE_HERMES   "</tool_call>"
#define DS_TOOL_OPEN_DEEPSEEK  "<\uFF5Ctool\u2581calls\u2581begin\uFF5C>"
#define DS_TOOL_CLOSE_DEEPSEEK "<\uFF5Ctool\u2581calls\u2581end\uFF5C>"
#define DS_TOOL_OPEN_LLAMA     "<|python_tag|>"

struct ds_tool_calls {
    struct ds_tool_call *calls; /* own, with what they point to */
    size_t n, capacity;
};

void ds_tool_calls_deinit(struct ds_tool_calls *calls);

enum { DS_TOOLS_PARSED, DS_TOOLS_MALFORMED };

/* Appends the calls that text, from its opening marker on, makes. DS_TOOLS_MALFORMED: it makes
 * none, or not only such; then calls is as before. -ENOMEM. */
int ds_tool_calls_parse(struct ds_tool_calls *calls, enum ds_tool_form form, struct ds_bytes text);
