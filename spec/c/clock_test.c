#include "clock.h"

#include "test.h"

#include <float.h>
#include <math.h>
#include <time.h>

static int64_t monotonic_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void real_follows_the_monotonic_clock(void) {
    Clock clock;
    clock_init_real(&clock);
    for (int i = 0; i < 1000; i++) {
        int64_t before_ns = monotonic_ns(), now_ns = clock_now_ns(&clock),
                after_ns = clock_real_ns();
        CHECK(before_ns <= now_ns && now_ns <= after_ns && after_ns <= monotonic_ns());
    }
}

static void real_cannot_be_advanced(void) {
    Clock clock;
    clock_init_real(&clock);
    clock_advance_ns(&clock, CLOCK_NEVER);
    CHECK(clock_now_ns(&clock) <= monotonic_ns());
}

static void virtual_stands_still_until_advanced(void) {
    Clock clock;
    clock_init_virtual(&clock);
    CHECK_EQUAL(clock_now_ns(&clock), 0);
    clock_advance_ns(&clock, 1);
    CHECK_EQUAL(clock_now_ns(&clock), 1);
    CHECK_EQUAL(clock_now_ns(&clock), 1);
    clock_advance_ns(&clock, 3600000000000);
    CHECK_EQUAL(clock_now_ns(&clock), 3600000000000);
    CHECK(clock_real_ns() > 0 && clock_real_ns() <= monotonic_ns());
}

static void virtual_is_never_turned_back(void) {
    Clock clock;
    clock_init_virtual(&clock);
    clock_advance_ns(&clock, 100);
    clock_advance_ns(&clock, 99);
    clock_advance_ns(&clock, 0);
    clock_advance_ns(&clock, -5);
    clock_advance_ns(&clock, INT64_MIN);
    CHECK_EQUAL(clock_now_ns(&clock), 100);
    clock_advance_ns(&clock, CLOCK_NEVER);
    CHECK_EQUAL(clock_now_ns(&clock), CLOCK_NEVER);
}

static void wall_is_the_time_of_day(void) {
    int64_t before_s = (int64_t)time(NULL), wall_ns = clock_wall_ns();
    /* time() may lag by the length of a tick */
    CHECK(wall_ns / 1000000000 >= before_s && wall_ns / 1000000000 <= (int64_t)time(NULL) + 1);
}

static void sums_saturate(void) {
    CHECK_EQUAL(clock_add_ns(0, 0), 0);
    CHECK_EQUAL(clock_add_ns(1, 2), 3);
    CHECK_EQUAL(clock_add_ns(CLOCK_NEVER - 1, 0), CLOCK_NEVER - 1);
    CHECK_EQUAL(clock_add_ns(CLOCK_NEVER - 1, 1), CLOCK_NEVER);
    CHECK_EQUAL(clock_add_ns(CLOCK_NEVER - 1, 2), CLOCK_NEVER);
    CHECK_EQUAL(clock_add_ns(1, CLOCK_NEVER - 1), CLOCK_NEVER);
    CHECK_EQUAL(clock_add_ns(1, CLOCK_NEVER), CLOCK_NEVER);
    CHECK_EQUAL(clock_add_ns(CLOCK_NEVER, CLOCK_NEVER), CLOCK_NEVER);
    CHECK_EQUAL(clock_add_ns(0, CLOCK_NEVER), CLOCK_NEVER);
}

static void seconds_become_the_nearest_nanosecond(void) {
    static const struct {
        double seconds;
        int64_t ns;
    } cases[] = {
        {0, 0},
        {1, 1000000000},
        {0.1, 100000000},
        {1e-9, 1},
        {1.4e-9, 1},
        {1.6e-9, 2},
        {4e-10, 0},
        {6e-10, 1},
        {DBL_MIN, 0},
        {DBL_TRUE_MIN, 0},
        {1234567.891234567, 1234567891234567},
        {86400 * 365.25 * 100, 3155760000000000000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_EQUAL(clock_from_seconds(cases[i].seconds), cases[i].ns);
}

static void negative_seconds_are_none(void) {
    CHECK_EQUAL(clock_from_seconds(-0.0), 0);
    CHECK_EQUAL(clock_from_seconds(-1e-12), 0);
    CHECK_EQUAL(clock_from_seconds(-1), 0);
    CHECK_EQUAL(clock_from_seconds(-DBL_MAX), 0);
    CHECK_EQUAL(clock_from_seconds(-INFINITY), 0);
}

static void too_many_seconds_are_never(void) {
    CHECK_EQUAL(clock_from_seconds(INFINITY), CLOCK_NEVER);
    CHECK_EQUAL(clock_from_seconds(DBL_MAX), CLOCK_NEVER);
    CHECK_EQUAL(clock_from_seconds(9223372036.854776), CLOCK_NEVER); /* 2^63 ns */
    CHECK_EQUAL(clock_from_seconds(9223372037), CLOCK_NEVER);
    CHECK_EQUAL(clock_from_seconds(9223372036), 9223372036000000000);
    CHECK(clock_from_seconds(nextafter(9223372036.854776, 0)) < CLOCK_NEVER);
}

static void seconds_and_back(void) {
    uint64_t seed = 1;
    for (int i = 0; i < 100000; i++) {
        /* up to 26 days: there a double tells nanoseconds apart with room to spare */
        int64_t ns = (int64_t)(test_random(&seed) >> (13 + test_random_below(&seed, 50)));
        CHECK_EQUAL(clock_from_seconds(clock_to_seconds(ns)), ns);
    }
}

static const Test tests[] = {
    {"the real clock follows CLOCK_MONOTONIC", real_follows_the_monotonic_clock},
    {"the real clock cannot be advanced", real_cannot_be_advanced},
    {"a virtual clock stands still until it is advanced", virtual_stands_still_until_advanced},
    {"a virtual clock is never turned back", virtual_is_never_turned_back},
    {"wall time is the time of day", wall_is_the_time_of_day},
    {"sums saturate", sums_saturate},
    {"seconds become the nearest nanosecond", seconds_become_the_nearest_nanosecond},
    {"negative seconds are none", negative_seconds_are_none},
    {"too many seconds are never", too_many_seconds_are_never},
    {"nanoseconds survive being seconds", seconds_and_back},
    {NULL, NULL},
};

int main(void) {
    return test_main("clock_test", tests);
}
