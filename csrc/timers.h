/*
 * The timer queue: a 4-ary heap of deadlines.
 *
 * Deadlines are absolute, in nanoseconds of whatever clock the caller uses. Timers of equal
 * deadline expire in the order in which they were added. add, cancel and expire cost O(log n),
 * the next deadline O(1). The queue knows nothing of what a timer is for.
 */
#ifndef OPERO_TIMERS_H
#define OPERO_TIMERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Embedded in what waits; owned by the caller, must stay in place while queued.
 * Zero-initialize before first use. */
typedef struct Timer {
    uint32_t slot : 30; /* 1-based place in the heap, 0 when not queued */
    uint32_t kind : 2;  /* the caller's own mark, to tell what the timer is embedded in */
} Timer;

#define TIMERS_MAX ((1u << 30) - 1)

typedef struct TimerEntry {
    int64_t deadline_ns;
    uint64_t order; /* grows with each add: breaks ties */
    Timer *timer;
} TimerEntry;

typedef struct Timers {
    TimerEntry *heap;
    uint32_t count, capacity;
    uint64_t next_order;
} Timers;

void timers_init(Timers *timers);

/* Frees the queue's own memory; timers still in it are forgotten. */
void timers_destroy(Timers *timers);

/* Queues `timer`, which must not be queued. False when memory is short; nothing has changed then. */
bool timers_add(Timers *timers, Timer *timer, int64_t deadline_ns);

/* Takes `timer` out; does nothing when it is not queued. */
void timers_cancel(Timers *timers, Timer *timer);

/* The earliest deadline, CLOCK_NEVER (INT64_MAX) when the queue is empty. */
int64_t timers_next_ns(const Timers *timers);

/* The deadline of a timer that is queued. */
int64_t timers_deadline_ns(const Timers *timers, const Timer *timer);

/* Takes out and returns the first timer whose deadline is `now_ns` or earlier; NULL if none. */
Timer *timers_expire(Timers *timers, int64_t now_ns);

#pragma GCC visibility pop

#endif
