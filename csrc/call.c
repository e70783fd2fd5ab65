#include "pool_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- calls --------------------------------------------------------------------------------------- */

void call_free(Call *part) {
    context_release(&part->pool->runtime->contexts, part->context);
    codec_message_free(&part->message);
    free(part->reply);
    free(part);
}

/* Frees a root and its parts, unless somebody still has to do with it. */
void call_release(Call *root) {
    if (root->has_handle || root->pending > 0)
        return;
    while (root != NULL) {
        Call *next = root->next_part;
        call_free(root);
        root = next;
    }
}

void call_place(Call *call, Link *list, bool at_front) {
    if (at_front)
        list_append(list->next, &call->link);
    else
        list_append(list, &call->link);
    call->is_placed = true;
}

void call_put_into_queue(Call *call, bool at_front) {
    call_place(call, &call->pool->queue, at_front);
    call->worker = NULL;
    call->pool->queued++;
}

/* Takes a call from wherever it stands. */
void call_unplace(Call *call) {
    Worker *worker = call->worker;
    if (!call->is_placed)
        return;
    link_remove(&call->link);
    call->is_placed = false;
    if (worker == NULL) {
        call->pool->queued--;
    } else {
        worker->load--;
        if (worker->sending == call)
            worker->sending = NULL;
        if (worker->receiver == call)
            worker->receiver = NULL;
        call->worker = NULL;
    }
}

/* A part of a call has its outcome. */
void call_end(Call *part, Outcome outcome) {
    Pool *pool = part->pool;
    Call *root = part->root;
    call_unplace(part);
    part->outcome = (uint8_t)outcome;
    pool->outstanding--;
    root->pending--;
    if (root->pending > 0)
        return;
    if (root->task != NULL) {
        Task *task = root->task;
        root->task = NULL;
        task_wake(pool->service.loop, task, WAKE_OK, 0);
    }
    call_release(root);
}

Call *call_make(Pool *pool) {
    Call *call = calloc(1, sizeof *call);
    if (call == NULL)
        return NULL;
    link_init(&call->link);
    call->pool = pool;
    call->root = call;
    call->count = 1;
    return call;
}

/* Where the items of a chunk begin. */
static size_t items_at(const CodecMessage *message) {
    uint32_t length;
    memcpy(&length, message->bytes, sizeof length);
    return sizeof length + length;
}

/* Makes the items of a chunk from the n-th on a part of its own, which is placed nowhere. NULL when
 * there is no memory: nothing has changed then. */
Call *call_split(Call *chunk, uint32_t n) {
    Call *part = call_make(chunk->pool), *root = chunk->root;
    size_t head = items_at(&chunk->message), at = head;
    if (part == NULL)
        return NULL;
    for (uint32_t i = 0; i < n; i++)
        at += item_length(chunk->message.bytes + at, chunk->message.length - at);
    if (!message_append(&part->message, chunk->message.bytes, head) ||
        !message_append(&part->message, chunk->message.bytes + at, chunk->message.length - at)) {
        call_free(part);
        return NULL;
    }
    chunk->message.length = at; /* or, should it be sent yet, it would be with those */
    part->context = context_keep(chunk->context);
    part->is_chunk = true;
    part->root = root;
    part->next_part = chunk->next_part; /* who goes through the parts comes to it next */
    chunk->next_part = part;
    root->pending++;
    part->pool->outstanding++;
    part->id = part->pool->next_id++;
    part->generation = chunk->generation;
    part->index = chunk->index + n;
    part->count = chunk->count - n;
    chunk->count = n;
    return part;
}
