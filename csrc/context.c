#include "context.h"

#include <stdlib.h>
#include <string.h>

enum { SPARE_MAX = 64, FIELDS_KEPT = 1024 };

static void free_context(Context *context) {
    bytes_free(&context->fields);
    bytes_free(&context->shown);
    free(context);
}

/* ---- a table of them ---------------------------------------------------------------------------- */

Context **contexts_place(Contexts *contexts, uint32_t task) {
    uint32_t capacity = contexts->capacity;
    Context **grown;
    if (task == 0)
        return &contexts->outside;
    if (task < capacity)
        return &contexts->of_task[task];
    capacity = capacity < 8 ? 16 : capacity * 2;
    if (capacity <= task)
        capacity = task + 1;
    grown = realloc(contexts->of_task, capacity * sizeof *grown);
    if (grown == NULL)
        return NULL;
    memset(grown + contexts->capacity, 0, (capacity - contexts->capacity) * sizeof *grown);
    contexts->of_task = grown;
    contexts->capacity = capacity;
    return &grown[task];
}

void contexts_forget(Contexts *contexts, uint32_t task) {
    context_set(contexts, &contexts->of_task[task], NULL);
}

void contexts_clear(Contexts *contexts) {
    context_set(contexts, &contexts->outside, NULL);
    for (uint32_t i = 0; i < contexts->capacity; i++)
        context_set(contexts, &contexts->of_task[i], NULL);
    free(contexts->of_task);
    contexts->of_task = NULL;
    contexts->capacity = 0;
}

void contexts_destroy(Contexts *contexts) {
    contexts_clear(contexts);
    contexts->is_closed = true;
    while (contexts->spare != NULL) {
        Context *spare = contexts->spare;
        contexts->spare = spare->base;
        free_context(spare);
    }
    contexts->spare_count = 0;
}

void contexts_seed(Contexts *contexts, uint64_t seed) {
    contexts->next_id = seed;
}

/* ---- one of them -------------------------------------------------------------------------------- */

static Context *make(Contexts *contexts) {
    Context *context = contexts->spare;
    if (context != NULL) {
        contexts->spare = context->base;
        contexts->spare_count--;
    } else {
        context = calloc(1, sizeof *context);
        if (context == NULL)
            return NULL;
    }
    context->references = 1;
    context->serial = ++contexts->serial;
    context->base = NULL;
    context->has_id = false;
    return context;
}

Context *context_make(Contexts *contexts, Bytes *fields) {
    Context *context = fields->has_failed ? NULL : make(contexts);
    Value value;
    if (context == NULL)
        return NULL;
    bytes_free(&context->fields);
    context->fields = *fields;
    *fields = (Bytes){.data = NULL};
    context->is_correlated =
        fields_find(bytes_slice(&context->fields), CONTEXT_CORRELATION, &value);
    return context;
}

Context *context_make_execution(Contexts *contexts, Context *base) {
    Context *context = make(contexts);
    uint64_t id;
    if (context == NULL)
        return NULL;
    context->base = context_keep(base);
    context->has_id = context->is_correlated = true;
    /* splitmix64, by Sebastiano Vigna */
    id = contexts->next_id += 0x9e3779b97f4a7c15;
    id = (id ^ (id >> 30)) * 0xbf58476d1ce4e5b9;
    id = (id ^ (id >> 27)) * 0x94d049bb133111eb;
    context->id = id ^ (id >> 31);
    return context;
}

void context_release(Contexts *contexts, Context *context) {
    while (context != NULL && --context->references == 0) {
        Context *base = context->base;
        bytes_clear(&context->fields, FIELDS_KEPT);
        bytes_clear(&context->shown, FIELDS_KEPT);
        context->generation = 0;
        if (contexts->spare_count < SPARE_MAX && !contexts->is_closed) {
            context->base = contexts->spare;
            contexts->spare = context;
            contexts->spare_count++;
        } else {
            free_context(context);
        }
        context = base;
    }
}

void context_set(Contexts *contexts, Context **place, Context *context) {
    Context *before = *place;
    *place = context;
    context_release(contexts, before);
}

void context_write_id(uint64_t id, char *to) {
    for (int i = 0; i < CONTEXT_ID_LENGTH; i++)
        to[i] = "0123456789abcdef"[id >> (60 - 4 * i) & 0xf];
}

Slice context_fields(Context *context) {
    Bytes own = {.data = NULL};
    char id[CONTEXT_ID_LENGTH];
    Slice base;
    if (context == NULL)
        return (Slice){NULL, 0};
    if (!context->has_id || context->fields.length > 0)
        return bytes_slice(&context->fields);
    base = context_fields(context->base);
    context_write_id(context->id, id);
    fields_put_string(&own, CONTEXT_CORRELATION);
    fields_put_string(&own, (Slice){id, sizeof id});
    if (!own.has_failed)
        fields_merge(&context->fields, base, bytes_slice(&own));
    if (own.has_failed || context->fields.has_failed)
        bytes_clear(&context->fields, 0);
    bytes_free(&own);
    return context->fields.length > 0 ? bytes_slice(&context->fields) : base;
}

void context_shorten(Bytes *bytes, Slice fields, size_t max) {
    enum { SHORT = 256 }; /* those that are no longer do no harm */
    size_t end = bytes->length + max, half = bytes->length + max / 2;
    Bytes notice = {.data = NULL};
    Slice name;
    Value value;
    for (const char *begin = fields.data; fields_next(&fields, &name, &value);
         begin = fields.data) {
        Slice whole = {begin, (size_t)(fields.data - begin)};
        if (slice_equals(name, CONTEXT_CORRELATION) ||
            bytes->length + whole.length <= (whole.length <= SHORT ? end : half)) {
            bytes_append_slice(bytes, whole);
            continue;
        }
        bytes_clear(&notice, SHORT);
        fields_put_string(&notice, name);
        fields_put_string(&notice, SLICE("(too long to be sent)"));
        if (bytes->length + notice.length <= end)
            bytes_append_slice(bytes, bytes_slice(&notice));
        bytes->has_failed = bytes->has_failed || notice.has_failed;
    }
    bytes_free(&notice);
}
