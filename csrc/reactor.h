/*
 * Readiness of file descriptors.
 *
 * The back end is epoll on Linux and poll(2) elsewhere, or wherever OPERO_REACTOR_POLL is defined.
 * A Watch waits for one descriptor, once: it leaves the reactor when it becomes ready, when its
 * descriptor turns out to be closed, or when it is removed. Any number of watches may wait for
 * the same descriptor. The reactor opens nothing until the first watch is added or its own
 * descriptor is asked for.
 */
#ifndef OPERO_REACTOR_H
#define OPERO_REACTOR_H

#include "list.h"

#include <stdint.h>
#include <sys/types.h>

#pragma GCC visibility push(hidden)

#if !defined(__linux__) && !defined(OPERO_REACTOR_POLL)
#define OPERO_REACTOR_POLL
#endif

enum { REACTOR_READ = 1, REACTOR_WRITE = 2 };

/* Owned by the caller; must stay in place while it waits. */
typedef struct Watch {
    Link link;   /* in its descriptor's list while it waits, then in the list of ready ones */
    void *owner; /* the caller's own */
    int fd;
    int error;      /* when ready: 0, or the errno that ended the wait (EBADF: closed meanwhile) */
    uint8_t wanted; /* REACTOR_READ | REACTOR_WRITE */
    uint8_t ready;  /* when ready without error: what it is ready for, a part of `wanted` */
    uint8_t kind;   /* the caller's own mark, to tell what `owner` is */
    bool is_waiting;
} Watch;

/* What the reactor knows of one descriptor number. */
typedef struct ReactorSlot {
    Link watches;
    uint32_t generation; /* tells events of a descriptor from those of its predecessor */
    bool is_registered;  /* epoll: known to the kernel, as far as we know */
    dev_t device;        /* poll: identity of the open file, to notice reuse of the number */
    ino_t inode;
} ReactorSlot;

typedef struct Reactor {
    ReactorSlot **slots; /* by descriptor; entries made on demand, NULL before */
    int slot_count;
    size_t watch_count; /* watches that wait */
    Link stale;         /* watches whose descriptor was found closed; the next wait reports them */
    int64_t checked_ns; /* when all descriptors were last looked at for having been closed */
    bool is_dirty;      /* code ran since then that may have closed one */
#ifdef OPERO_REACTOR_POLL
    struct pollfd *polled;
    size_t polled_capacity;
#else
    int epoll_fd; /* -1 until needed */
    pid_t owner;  /* the process that made it */
    bool lacks_pwait2;
#endif
} Reactor;

/* How a wait ended. */
enum { REACTOR_OK = 0, REACTOR_INTERRUPTED = -1 };

void reactor_init(Reactor *reactor);

/* Closes and frees all the reactor holds. Watches still waiting are forgotten. */
void reactor_destroy(Reactor *reactor);

/* Waits for `fd` to become ready for `watch->wanted`. Returns 0, or an errno: EBADF for a bad
 * descriptor, ENOMEM, ENOSPC. A descriptor that is always ready (a regular file) gives EPERM and
 * is not added. The caller sets owner, fd and wanted. */
int reactor_add(Reactor *reactor, Watch *watch);

/* Stops the wait. Harmless for a watch that is already in a list of ready ones (leaves it). */
void reactor_remove(Reactor *reactor, Watch *watch);

/* Moves watches that are ready to the end of `ready`; waits for the first at most `timeout_ns`
 * (0: do not wait, CLOCK_NEVER: for as long as it takes). Returns REACTOR_OK,
 * REACTOR_INTERRUPTED when a signal came first, or an errno. */
int reactor_wait(Reactor *reactor, Link *ready, int64_t timeout_ns);

/* Says that code ran that may have closed descriptors. */
static inline void reactor_mark_dirty(Reactor *reactor) {
    reactor->is_dirty = true;
}

/* When the next look for closed descriptors is due, by CLOCK_MONOTONIC; CLOCK_NEVER: it is not. */
int64_t reactor_check_due_ns(const Reactor *reactor);

/* Looks for watches whose descriptor was closed or reused, and moves them to `ready` with an
 * error. A look at n descriptors costs n system calls, so it is done at most every n * 20 us.
 * Returns how long after `now_ns` the next look is due: CLOCK_NEVER when nothing can have
 * changed. */
int64_t reactor_check(Reactor *reactor, Link *ready, int64_t now_ns);

/* A descriptor that polls readable when a wait would not block; -1 when there is none (the
 * poll(2) back end) or it cannot be had (errno is set). Owned by the reactor. */
int reactor_pollfd(Reactor *reactor);

#pragma GCC visibility pop

#endif
