/*
 * What the C unit tests share: checks that count, and a runner.
 *
 * A test is a function; it has passed when none of its checks failed. The last line a program
 * prints is "NAME: N passed, N failed", and it exits non-zero when one failed.
 */
#ifndef OPERO_TEST_H
#define OPERO_TEST_H

#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct Test {
    const char *name;
    void (*run)(void);
} Test;

static int test_failed_checks;        /* of the test that runs */
static const char *test_running = ""; /* its name */

static inline bool test_check(bool ok, const char *what, const char *file, int line) {
    if (!ok) {
        test_failed_checks++;
        printf("%s:%d: %s\n", file, line, what);
    }
    return ok;
}

static inline bool test_equal(int64_t got, int64_t wanted, const char *what, const char *file,
                              int line) {
    if (got != wanted)
        printf("%s:%d: %s is %" PRId64 ", not %" PRId64 "\n", file, line, what, got, wanted);
    test_failed_checks += got != wanted;
    return got == wanted;
}

/* Each goes on after a failure, and says whether it held. */
#define CHECK(CONDITION) test_check((CONDITION), #CONDITION, __FILE__, __LINE__)
#define CHECK_EQUAL(GOT, WANTED)                                                                   \
    test_equal((int64_t)(GOT), (int64_t)(WANTED), #GOT, __FILE__, __LINE__)

/* A small generator, the same everywhere: xorshift64*. The state must not be 0. */
static inline uint64_t test_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1d;
}

static inline uint32_t test_random_below(uint64_t *state, uint32_t limit) {
    return (uint32_t)((test_random(state) >> 32) % limit);
}

static inline void test_hangs(int number) {
    ssize_t written = write(STDOUT_FILENO, test_running, strlen(test_running));
    (void)!write(STDOUT_FILENO, ": hangs\n", 8);
    (void)number, (void)written;
    _exit(2);
}

/* Runs the tests, which end with one without a name. A hang is ended by SIGALRM. */
static inline int test_main(const char *name, const Test *tests) {
    int passed = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGALRM, test_hangs);
    for (; tests->name != NULL; tests++) {
        test_running = tests->name;
        test_failed_checks = 0;
        alarm(30);
        tests->run();
        alarm(0);
        if (test_failed_checks == 0) {
            passed++;
        } else {
            failed++;
            printf("%s: failed: %s\n", name, tests->name);
        }
    }
    printf("%s: %d passed, %d failed\n", name, passed, failed);
    return failed > 0;
}

#endif
