/*
 * Faults on purpose: stands between the code under test and the system.
 *
 * A function that a program defines itself is called in place of the library's of that name, by
 * everything in the process. So the ones below take the call, refuse it when they were told to,
 * and else pass it on; under a sanitizer or valgrind that is to the one they have put there.
 *
 * To be included by one file of a program. FAULTS_SYSTEM_CALLS, defined before, adds the calls
 * that the reactor makes.
 */
#ifndef OPERO_FAULTS_H
#define OPERO_FAULTS_H

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ------------------------------------------------------------------------------- */

static struct {
    long fail_at;  /* the number of the call that fails, counted from 1; 0: none */
    long requests; /* made since faults_begin */
    bool fail_all; /* all later ones too */
} faults_memory;

/* The n-th request for memory from now on fails; with `all`, those after it too. */
static inline void faults_begin(long fail_at, bool all) {
    faults_memory.requests = 0;
    faults_memory.fail_all = all;
    faults_memory.fail_at = fail_at;
}

/* No more failures. Returns whether one was due. */
static inline bool faults_end(void) {
    bool was_due = faults_memory.fail_at != 0 && faults_memory.requests >= faults_memory.fail_at;
    faults_memory.fail_at = 0;
    return was_due;
}

static inline bool faults_refuse_memory(void) {
    long number;
    if (faults_memory.fail_at == 0)
        return false;
    number = ++faults_memory.requests;
    return number == faults_memory.fail_at ||
           (faults_memory.fail_all && number > faults_memory.fail_at);
}

/* The definition of NAME that comes after the program's own. */
#define FAULTS_REAL(NAME)                                                                          \
    do {                                                                                           \
        if (real == NULL) {                                                                        \
            void *symbol = dlsym(RTLD_NEXT, NAME);                                                 \
            memcpy(&real, &symbol, sizeof real); /* C has no cast from one to the other */         \
        }                                                                                          \
    } while (0)

void *malloc(size_t size) {
    static void *(*real)(size_t);
    FAULTS_REAL("malloc");
    if (faults_refuse_memory()) {
        errno = ENOMEM;
        return NULL;
    }
    return real(size);
}

void *realloc(void *block, size_t size) {
    static void *(*real)(void *, size_t);
    FAULTS_REAL("realloc");
    if (faults_refuse_memory()) {
        errno = ENOMEM;
        return NULL;
    }
    return real(block, size);
}

void *calloc(size_t count, size_t size) {
    static void *(*real)(size_t, size_t);
    FAULTS_REAL("calloc");
    if (faults_refuse_memory()) {
        errno = ENOMEM;
        return NULL;
    }
    return real(count, size);
}

/* ---- system calls ------------------------------------------------------------------------- */

#ifdef FAULTS_SYSTEM_CALLS

#include <poll.h>
#include <sys/stat.h>
#include <time.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static struct {
    long count;              /* calls made of those below */
    long controls;           /* ... of these, epoll_ctl and fstat */
    const char *refused;     /* the name of the one that fails, or NULL */
    int error;               /* its errno */
    bool was_infinite;       /* the last wait had no limit ... */
    struct timespec timeout; /* ... or this one */
} faults_calls;

static inline bool faults_refuse_call(const char *name) {
    faults_calls.count++;
    if (faults_calls.refused == NULL || strcmp(faults_calls.refused, name) != 0)
        return false;
    errno = faults_calls.error;
    return true;
}

/* Makes the named call fail until faults_allow. */
static inline void faults_refuse(const char *name, int error) {
    faults_calls.refused = name;
    faults_calls.error = error;
}

static inline void faults_allow(void) {
    faults_calls.refused = NULL;
}

static inline void faults_note_timeout(const struct timespec *timeout) {
    faults_calls.was_infinite = timeout == NULL;
    faults_calls.timeout = timeout != NULL ? *timeout : (struct timespec){0, 0};
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask) {
    static int (*real)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
    FAULTS_REAL("ppoll");
    faults_note_timeout(timeout);
    return faults_refuse_call("ppoll") ? -1 : real(fds, count, timeout, mask);
}

int fstat(int fd, struct stat *st) {
    static int (*real)(int, struct stat *);
    FAULTS_REAL("fstat");
    faults_calls.controls++;
    return faults_refuse_call("fstat") ? -1 : real(fd, st);
}

#ifdef __linux__

int epoll_create1(int flags) {
    static int (*real)(int);
    FAULTS_REAL("epoll_create1");
    return faults_refuse_call("epoll_create1") ? -1 : real(flags);
}

int epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event) {
    static int (*real)(int, int, int, struct epoll_event *);
    FAULTS_REAL("epoll_ctl");
    faults_calls.controls++;
    return faults_refuse_call("epoll_ctl") ? -1 : real(epoll_fd, operation, fd, event);
}

int epoll_wait(int epoll_fd, struct epoll_event *events, int limit, int timeout) {
    static int (*real)(int, struct epoll_event *, int, int);
    FAULTS_REAL("epoll_wait");
    return faults_refuse_call("epoll_wait") ? -1 : real(epoll_fd, events, limit, timeout);
}

long syscall(long number, ...) {
    static long (*real)(long, ...);
    long a[6];
    va_list arguments;
    FAULTS_REAL("syscall");
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
#ifdef SYS_epoll_pwait2
    if (number == SYS_epoll_pwait2) {
        faults_note_timeout((const struct timespec *)a[3]);
        if (faults_refuse_call("epoll_pwait2"))
            return -1;
    }
#endif
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif /* __linux__ */
#endif /* FAULTS_SYSTEM_CALLS */
#endif
