/*
 * The context of log records: fields that belong to a task.
 *
 * A Context never changes: to add a field is to take another one in its place. So it is shared, by
 * count of references, and a child has its parent's as it was at that moment.
 *
 * Each task has a place in a table, by a number that is its own while it lives; the table is made when
 * the first context is. Nothing here knows Lua.
 */
#ifndef OPERO_CONTEXT_H
#define OPERO_CONTEXT_H

#include "fields.h"

#pragma GCC visibility push(hidden)

#define CONTEXT_CORRELATION SLICE("correlation_id")
#define CONTEXT_ID_LENGTH 16 /* of a correlation id that is made here: hexadecimal digits */

typedef struct Context {
    uint32_t references;
    uint64_t serial;      /* no two of a process have the same */
    struct Context *base; /* of one that adds an id, or NULL: what it adds that to */
    bool has_id;
    bool is_correlated; /* it has a field of that name */
    uint64_t id;
    Bytes fields; /* in order of names; with `has_id`, made when they are asked for */
    Bytes shown;  /* the same as it was last shown, in that format and with those settings */
    uint8_t format;
    uint64_t generation; /* of the settings; 0: `shown` is nothing */
} Context;

typedef struct Contexts {
    Context *outside;  /* of code that is in no task; NULL: none */
    Context **of_task; /* by number; NULL: none of them has one */
    uint32_t capacity;
    uint64_t serial;
    Context *spare; /* freed ones, kept for reuse, by `base` */
    uint32_t spare_count;
    bool is_closed; /* no more of that */
    uint64_t next_id;
} Contexts;

/* Frees the table and all contexts that only it holds. It can be used again ... */
void contexts_clear(Contexts *contexts);

/* ... and after this not: of what others hold each is freed with its last reference. */
void contexts_destroy(Contexts *contexts);

/* The place of a task's context, or of the outside's for number 0. NULL when there is no memory. */
Context **contexts_place(Contexts *contexts, uint32_t task);

/* Whether any task may have a context, or the outside. */
static inline bool contexts_are_used(const Contexts *contexts) {
    return contexts->of_task != NULL || contexts->outside != NULL;
}

void contexts_forget(Contexts *contexts, uint32_t task);

/* The context of a task, or of the outside: NULL when it has none. */
static inline Context *contexts_get(const Contexts *contexts, uint32_t task) {
    if (task == 0)
        return contexts->outside;
    return task < contexts->capacity ? contexts->of_task[task] : NULL;
}

/* The task has ended. */
static inline void contexts_drop(Contexts *contexts, uint32_t task) {
    if (task < contexts->capacity && contexts->of_task[task] != NULL)
        contexts_forget(contexts, task);
}

/* A context of these fields, which it takes, with one reference: the caller's. NULL, and the fields
 * are still the caller's, when there is no memory. */
Context *context_make(Contexts *contexts, Bytes *fields);

/* One that adds a new correlation id to `base`, which may be NULL; the same. */
Context *context_make_execution(Contexts *contexts, Context *base);

static inline Context *context_keep(Context *context) {
    if (context != NULL)
        context->references++;
    return context;
}

void context_release(Contexts *contexts, Context *context); /* which may be NULL */

/* Puts a context, a reference to which it takes, into a place in the stead of what is there. */
void context_set(Contexts *contexts, Context **place, Context *context);

/* Its fields; none for NULL, and for lack of memory only those of its base. */
Slice context_fields(Context *context);

/* Appends those of the fields that together take no more than so many bytes, but the correlation id in
 * any case, and in the place of others that they are too long. */
void context_shorten(Bytes *bytes, Slice fields, size_t max);

/* Writes an id as CONTEXT_ID_LENGTH digits. */
void context_write_id(uint64_t id, char *to);

/* Ids count up from here, through a permutation that makes neighbours look unlike. */
void contexts_seed(Contexts *contexts, uint64_t seed);

#pragma GCC visibility pop

#endif
