/*
 * Time, in int64 nanoseconds.
 *
 * A Clock is either the machine's monotonic clock or a virtual one, which stands still until it
 * is told to advance. CLOCK_NEVER is a point in time that is never reached; arithmetic saturates
 * there, so a duration of any size can be added to any time.
 */
#ifndef OPERO_CLOCK_H
#define OPERO_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

#define CLOCK_NEVER INT64_MAX

typedef struct Clock {
    bool is_virtual;
    int64_t virtual_ns; /* the time shown, when virtual */
} Clock;

/* A clock that follows CLOCK_MONOTONIC. */
void clock_init_real(Clock *clock);

/* A virtual clock that shows 0. */
void clock_init_virtual(Clock *clock);

/* The time now. Its origin means nothing; only differences do. */
int64_t clock_now_ns(const Clock *clock);

/* CLOCK_MONOTONIC, whatever clock is in force. */
int64_t clock_real_ns(void);

/* Sets a virtual clock to `time_ns` unless it is there or past it; never turns it back. */
void clock_advance_ns(Clock *clock, int64_t time_ns);

/* The time of day: nanoseconds since 1970-01-01 UTC. */
int64_t clock_wall_ns(void);

/* time + duration (duration >= 0), CLOCK_NEVER when that is out of range. */
int64_t clock_add_ns(int64_t time_ns, int64_t duration_ns);

/* Seconds to nanoseconds, rounded to the nearest. Negative values give 0, infinity and what is
 * too large give CLOCK_NEVER. `seconds` must not be NaN. */
int64_t clock_from_seconds(double seconds);

double clock_to_seconds(int64_t time_ns);

#pragma GCC visibility pop

#endif
