/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list.h - intrusive doubly linked list. The head is a link too; an unlinked link points to itself,
 * so that taking out twice is harmless. Every list field says what it belongs to.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct ds_list {
    struct ds_list *next, *prev;
};

static inline void ds_list_init(struct ds_list *list)
{
    list->next = list->prev = list;
}

static inline bool ds_list_empty(const struct ds_list *list)
{
    return list->next == list;
}

/* Appends link (unlinked before) to the list that starts at head. */
static inline void ds_list_append(struct ds_list *head, struct ds_list *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void ds_list_remove(struct ds_list *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    ds_list_init(link);
}

static inline void ds_list_move(struct ds_list *head, struct ds_list *link)
{
    ds_list_remove(link);
    ds_list_append(head, link);
}

#define ds_container(link, type, member) ((type *) ((char *) (link) -offsetof(type, member)))

/* The body may take item itself out of the list, and free it, but no other. */
#define ds_list_each(item, head, member)                                                           \
    for (struct ds_list *at_##item = (head)->next, *next_##item = at_##item->next;                 \
         at_##item != (head) &&                                                                    \
         ((item) = ds_container(at_##item, __typeof__(*(item)), member), true);                    \
         at_##item = next_##item, next_##item = at_##item->next)
