#include "clock.h"

#include <math.h>
#include <time.h>

#define NS_PER_S 1000000000LL

static int64_t read_ns(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts); /* cannot fail: both ids exist and ts is writable */
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

void clock_init_real(Clock *clock) {
    clock->is_virtual = false;
    clock->virtual_ns = 0;
}

void clock_init_virtual(Clock *clock) {
    clock->is_virtual = true;
    clock->virtual_ns = 0;
}

int64_t clock_real_ns(void) {
    return read_ns(CLOCK_MONOTONIC);
}

int64_t clock_now_ns(const Clock *clock) {
    return clock->is_virtual ? clock->virtual_ns : clock_real_ns();
}

void clock_advance_ns(Clock *clock, int64_t time_ns) {
    if (clock->is_virtual && time_ns > clock->virtual_ns)
        clock->virtual_ns = time_ns;
}

int64_t clock_wall_ns(void) {
    return read_ns(CLOCK_REALTIME);
}

int64_t clock_add_ns(int64_t time_ns, int64_t duration_ns) {
    return duration_ns > CLOCK_NEVER - time_ns ? CLOCK_NEVER : time_ns + duration_ns;
}

int64_t clock_from_seconds(double seconds) {
    double ns;
    if (seconds <= 0)
        return 0;
    ns = seconds * 1e9;
    /* 2^63 as a double: the first value that int64 cannot hold */
    return ns >= 9223372036854775808.0 ? CLOCK_NEVER : (int64_t)llround(ns);
}

double clock_to_seconds(int64_t time_ns) {
    return (double)time_ns / 1e9;
}
