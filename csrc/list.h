/*
 * Intrusive, circular, doubly linked lists.
 *
 * A Link is embedded in the thing that stands in a list; a list is a Link used as head. Nothing
 * is allocated. A Link that is in no list points to itself (link_init) so that link_remove is
 * always safe. Lists must not be copied or moved in memory.
 */
#ifndef OPERO_LIST_H
#define OPERO_LIST_H

#include <stdbool.h>
#include <stddef.h>

typedef struct Link {
    struct Link *next, *prev;
} Link;

/* The struct of type TYPE whose member MEMBER is *PTR. */
#define CONTAINER_OF(PTR, TYPE, MEMBER) ((TYPE *)(void *)((char *)(PTR)-offsetof(TYPE, MEMBER)))

static inline void link_init(Link *link) {
    link->next = link->prev = link;
}

static inline bool list_is_empty(const Link *head) {
    return head->next == head;
}

static inline void list_append(Link *head, Link *link) {
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

/* Takes `link` out of whatever list it stands in. */
static inline void link_remove(Link *link) {
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link_init(link);
}

/* The first link, taken out; NULL when the list is empty. */
static inline Link *list_pop(Link *head) {
    Link *first = head->next;
    if (first == head)
        return NULL;
    link_remove(first);
    return first;
}

/* Moves everything from `from` to the end of `to`. */
static inline void list_splice(Link *to, Link *from) {
    if (list_is_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    link_init(from);
}

#endif
