#include "timers.h"

#include <stdlib.h>

#define ARITY 4u
#define MIN_CAPACITY 16u

void timers_init(Timers *timers) {
    timers->heap = NULL;
    timers->count = timers->capacity = 0;
    timers->next_order = 0;
}

void timers_destroy(Timers *timers) {
    for (uint32_t i = 0; i < timers->count; i++)
        timers->heap[i].timer->slot = 0;
    free(timers->heap);
    timers_init(timers);
}

static bool is_before(const TimerEntry *a, const TimerEntry *b) {
    if (a->deadline_ns != b->deadline_ns)
        return a->deadline_ns < b->deadline_ns;
    return a->order < b->order;
}

static void place(Timers *timers, uint32_t index, TimerEntry entry) {
    timers->heap[index] = entry;
    entry.timer->slot = (index + 1) & TIMERS_MAX;
}

static void sift_up(Timers *timers, uint32_t index, TimerEntry entry) {
    while (index > 0) {
        uint32_t parent = (index - 1) / ARITY;
        if (!is_before(&entry, &timers->heap[parent]))
            break;
        place(timers, index, timers->heap[parent]);
        index = parent;
    }
    place(timers, index, entry);
}

static void sift_down(Timers *timers, uint32_t index, TimerEntry entry) {
    for (;;) {
        uint32_t first = index * ARITY + 1, least = first;
        if (first >= timers->count)
            break;
        for (uint32_t i = first + 1; i < first + ARITY && i < timers->count; i++)
            if (is_before(&timers->heap[i], &timers->heap[least]))
                least = i;
        if (!is_before(&timers->heap[least], &entry))
            break;
        place(timers, index, timers->heap[least]);
        index = least;
    }
    place(timers, index, entry);
}

static bool resize(Timers *timers, uint32_t capacity) {
    TimerEntry *heap = realloc(timers->heap, capacity * sizeof *heap);
    if (heap == NULL)
        return false;
    timers->heap = heap;
    timers->capacity = capacity;
    return true;
}

bool timers_add(Timers *timers, Timer *timer, int64_t deadline_ns) {
    TimerEntry entry = {deadline_ns, timers->next_order, timer};
    if (timers->count == timers->capacity) {
        uint32_t wanted = timers->capacity < MIN_CAPACITY ? MIN_CAPACITY : timers->capacity * 2;
        if (timers->count >= TIMERS_MAX / 2 || !resize(timers, wanted))
            return false;
    }
    timers->next_order++;
    timers->count++;
    sift_up(timers, timers->count - 1, entry);
    return true;
}

static void remove_at(Timers *timers, uint32_t index) {
    TimerEntry last = timers->heap[--timers->count];
    timers->heap[index].timer->slot = 0;
    if (index < timers->count) {
        if (index > 0 && is_before(&last, &timers->heap[(index - 1) / ARITY]))
            sift_up(timers, index, last);
        else
            sift_down(timers, index, last);
    }
    /* give memory back after a burst; the old block serves on when there is none smaller */
    if (timers->capacity > MIN_CAPACITY && timers->count < timers->capacity / 8)
        (void)resize(timers,
                     timers->capacity / 4 < MIN_CAPACITY ? MIN_CAPACITY : timers->capacity / 4);
}

void timers_cancel(Timers *timers, Timer *timer) {
    if (timer->slot != 0)
        remove_at(timers, timer->slot - 1);
}

int64_t timers_next_ns(const Timers *timers) {
    return timers->count > 0 ? timers->heap[0].deadline_ns : INT64_MAX;
}

int64_t timers_deadline_ns(const Timers *timers, const Timer *timer) {
    return timers->heap[timer->slot - 1].deadline_ns;
}

Timer *timers_expire(Timers *timers, int64_t now_ns) {
    Timer *timer;
    if (timers->count == 0 || timers->heap[0].deadline_ns > now_ns)
        return NULL;
    timer = timers->heap[0].timer;
    remove_at(timers, 0);
    return timer;
}
