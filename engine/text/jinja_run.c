/* SPDX-License-Identifier: Apache-2.0 */
/* Statements. `if` makes no scope; for, macro, call, filter, with and set blocks do, and what is
 * set in them is forgotten at their end, except attributes of namespaces. */
#include "engine/text/jinja_run.h"

enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

static enum flow run_list(struct ds_jinja_run *run, const struct ds_jinja_node *list);

struct ds_jinja_frame *ds_jinja_scope(struct ds_jinja_run *run, struct ds_jinja_frame *parent)
{
    struct ds_jinja_frame *frame = ds_jinja_memory(run, sizeof *frame);

    if (frame)
        frame->parent = parent;
    return frame;
}

void ds_jinja_set(struct ds_jinja_run *run, struct ds_jinja_frame *frame, struct ds_bytes name,
                  struct ds_jinja_value value)
{
    ds_jinja_put(run, &frame->names, ds_jinja_string(name), value);
}

static void assign_attribute(struct ds_jinja_run *run, const struct ds_jinja_node *target,
                             struct ds_jinja_value value)
{
    struct ds_jinja_value of = ds_jinja_eval(run, target->a);

    if (run->code)
        return;
    if (of.kind != DS_NAMESPACE)
        (void) ds_jinja_fail(run, -EBADMSG,
                             "cannot assign an attribute of a %s, only of a "
                             "namespace",
                             ds_jinja_kind_name(&of));
    else
        ds_jinja_put(run, of.dict, ds_jinja_string(target->text), value);
}

void ds_jinja_assign(struct ds_jinja_run *run, const struct ds_jinja_node *target,
                     struct ds_jinja_value value)
{
    const struct ds_jinja_list *items;
    size_t at = 0;

    if (run->code)
        return;
    if (target->kind == DS_NODE_NAME) {
        ds_jinja_set(run, run->frame, target->text, value);
        return;
    }
    if (target->kind == DS_NODE_ATTRIBUTE) {
        assign_attribute(run, target, value);
        return;
    }
    items = ds_jinja_items(run, &value);
    for (const struct ds_jinja_node *part = target->list; part && run->code == 0;
         part = part->next, at++) {
        if (at < items->n)
            ds_jinja_assign(run, part, items->items[at]);
        else
            (void) ds_jinja_fail(run, -EBADMSG, "not enough values to unpack");
    }
    if (run->code == 0 && at < items->n)
        (void) ds_jinja_fail(run, -EBADMSG, "too many values to unpack");
}

struct ds_jinja_value ds_jinja_capture(struct ds_jinja_run *run, const struct ds_jinja_node *body)
{
    struct ds_jinja_text *outer = run->output, text = { 0 };
    struct ds_bytes copy;

    run->output = &text;
    (void) run_list(run, body);
    run->output = outer;
    copy = ds_jinja_copy(run, (struct ds_bytes){ text.data, text.size });
    free(text.data);
    return ds_jinja_string(copy);
}

/* --- blocks that capture --- */

/* The text of a body run in a scope of its own, through the filters of the block. */
static struct ds_jinja_value filtered_body(struct ds_jinja_run *run,
                                           const struct ds_jinja_node *node)
{
    struct ds_jinja_frame *outer = run->frame;
    struct ds_jinja_value text = ds_jinja_none(), outer_captured = run->captured;

    run->frame = ds_jinja_scope(run, outer);
    if (run->frame)
        text = ds_jinja_capture(run, node->body);
    run->frame = outer;
    if (node->b && run->code == 0) {
        run->captured = text;
        text = ds_jinja_eval(run, node->b);
        run->captured = outer_captured;
    }
    return text;
}

static void run_filter_block(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value text = filtered_body(run, node);

    if (run->code == 0)
        ds_jinja_write(run, ds_jinja_str(run, &text));
}

static struct ds_jinja_value make_macro(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_function *function = ds_jinja_memory(run, sizeof *function);

    if (!function)
        return ds_jinja_none();
    function->macro = node;
    function->closure = run->frame;
    return (struct ds_jinja_value){ .kind = DS_FUNCTION, .function = function };
}

static void run_call_block(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value callee = ds_jinja_eval(run, node->a->a), text;
    struct ds_jinja_arguments given = ds_jinja_arguments(run, node->a), all = given;
    struct ds_jinja_value *values;
    struct ds_bytes *names;

    values = ds_jinja_memory(run, (given.n_named + 1) * sizeof *values);
    names = ds_jinja_memory(run, (given.n_named + 1) * sizeof *names);
    if (!values || !names)
        return;
    for (size_t i = 0; i < given.n_named; i++) {
        values[i] = given.named_values[i];
        names[i] = given.names[i];
    }
    values[given.n_named] = make_macro(run, node);
    names[given.n_named] = (struct ds_bytes){ "caller", 6 };
    all.named_values = values;
    all.names = names;
    all.n_named++;
    if (run->code)
        return;
    text = ds_jinja_call(run, callee, &all);
    if (run->code == 0)
        ds_jinja_write(run, ds_jinja_str(run, &text));
}

static enum flow run_with(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_frame *outer = run->frame, *inner = ds_jinja_scope(run, outer);
    enum flow flow = FLOW_NEXT;

    for (const struct ds_jinja_node *set = node->list; inner && set && run->code == 0;
         set = set->next) {
        struct ds_jinja_value value = ds_jinja_eval(run, set->b); /* seen from outside */

        run->frame = inner;
        ds_jinja_assign(run, set->a, value);
        run->frame = outer;
    }
    run->frame = inner;
    if (inner)
        flow = run_list(run, node->body);
    run->frame = outer;
    return flow;
}

/* --- loops --- */

/* The items for which the loop's own `if` holds. */
static const struct ds_jinja_list *choose_items(struct ds_jinja_run *run,
                                                const struct ds_jinja_node *node,
                                                const struct ds_jinja_list *items)
{
    struct ds_jinja_value chosen = ds_jinja_list(run, DS_LIST), test;
    struct ds_jinja_frame *outer = run->frame;

    for (size_t i = 0; i < items->n && run->code == 0; i++) {
        run->frame = ds_jinja_scope(run, outer);
        if (!run->frame)
            break;
        ds_jinja_assign(run, node->a, items->items[i]);
        test = ds_jinja_eval(run, node->c);
        if (run->code == 0 && ds_jinja_truth(&test))
            ds_jinja_push(run, chosen, items->items[i]);
    }
    run->frame = outer;
    return run->code ? NULL : chosen.list;
}

static void run_for(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value iterable = ds_jinja_eval(run, node->b);
    const struct ds_jinja_list *items = run->code ? NULL : ds_jinja_items(run, &iterable);
    struct ds_jinja_loop *loop = ds_jinja_memory(run, sizeof *loop);
    struct ds_jinja_frame *outer = run->frame;
    enum flow flow = FLOW_NEXT;
    size_t n;

    if (items && node->c)
        items = choose_items(run, node, items);
    if (!items || !loop)
        return;
    *loop = (struct ds_jinja_loop){ .items = items };
    n = items->n; /* the list cannot grow under a loop that is bounded by what it saw */
    for (size_t i = 0; i < n && flow != FLOW_BREAK && run->code == 0; i++) {
        loop->index = i;
        run->frame = ds_jinja_scope(run, outer);
        if (!run->frame)
            break;
        run->frame->loop = loop;
        ds_jinja_assign(run, node->a, items->items[i]);
        flow = run_list(run, node->body);
    }
    run->frame = outer;
    if (n == 0)
        (void) run_list(run, node->other);
}

/* --- statements --- */

static enum flow run_if(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    for (const struct ds_jinja_node *branch = node->list; branch && run->code == 0;
         branch = branch->next) {
        struct ds_jinja_value test =
            branch->a ? ds_jinja_eval(run, branch->a) : ds_jinja_bool(true);

        if (run->code == 0 && ds_jinja_truth(&test))
            return run_list(run, branch->body);
    }
    return FLOW_NEXT;
}

static void run_output(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    struct ds_jinja_value value = ds_jinja_eval(run, node->a);

    if (run->code == 0)
        ds_jinja_write(run, ds_jinja_str(run, &value));
}

static enum flow run_statement(struct ds_jinja_run *run, const struct ds_jinja_node *node)
{
    switch (node->kind) {
    case DS_NODE_OUTPUT_TEXT:
        ds_jinja_write(run, node->text);
        return FLOW_NEXT;
    case DS_NODE_OUTPUT:
        run_output(run, node);
        return FLOW_NEXT;
    case DS_NODE_IF:
        return run_if(run, node);
    case DS_NODE_FOR:
        run_for(run, node);
        return FLOW_NEXT;
    case DS_NODE_SET:
        ds_jinja_assign(run, node->a, ds_jinja_eval(run, node->b));
        return FLOW_NEXT;
    case DS_NODE_SET_BLOCK:
        ds_jinja_assign(run, node->a, filtered_body(run, node));
        return FLOW_NEXT;
    case DS_NODE_MACRO:
        ds_jinja_set(run, run->frame, node->text, make_macro(run, node));
        return FLOW_NEXT;
    case DS_NODE_CALL_BLOCK:
        run_call_block(run, node);
        return FLOW_NEXT;
    case DS_NODE_FILTER_BLOCK:
        run_filter_block(run, node);
        return FLOW_NEXT;
    case DS_NODE_WITH:
        return run_with(run, node);
    case DS_NODE_GROUP:
        return run_list(run, node->body);
    case DS_NODE_BREAK:
        return FLOW_BREAK;
    default:
        return FLOW_CONTINUE;
    }
}

static enum flow run_list(struct ds_jinja_run *run, const struct ds_jinja_node *list)
{
    enum flow flow = FLOW_NEXT;

    if (!ds_jinja_deeper(run))
        return FLOW_BREAK;
    for (; list && flow == FLOW_NEXT && ds_jinja_pay(run, 1); list = list->next) {
        run->line = list->line;
        flow = run_statement(run, list);
    }
    run->level--;
    return flow;
}

void ds_jinja_run_template(struct ds_jinja_run *run, const struct ds_jinja_node *group)
{
    (void) run_list(run, group->body);
}
