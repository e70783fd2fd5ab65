#define _GNU_SOURCE
#include "reactor.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHECK_COST_NS 20000 /* keeps looks for closed descriptors near 1 % of the time */

/* ---- descriptors, whatever the back end ------------------------------------------------ */

static ReactorSlot *slot_of(Reactor *reactor, int fd) {
    return fd >= 0 && fd < reactor->slot_count ? reactor->slots[fd] : NULL;
}

static ReactorSlot *slot_make(Reactor *reactor, int fd) {
    ReactorSlot *slot = slot_of(reactor, fd);
    if (slot != NULL)
        return slot;
    if (fd >= reactor->slot_count) {
        int count = reactor->slot_count < 64 ? 64 : reactor->slot_count;
        ReactorSlot **slots;
        while (count <= fd)
            count *= 2; /* cannot overflow: the kernel bounds fd far below INT_MAX / 2 */
        slots = realloc(reactor->slots, (size_t)count * sizeof *slots);
        if (slots == NULL)
            return NULL;
        memset(slots + reactor->slot_count, 0,
               (size_t)(count - reactor->slot_count) * sizeof *slots);
        reactor->slots = slots;
        reactor->slot_count = count;
    }
    slot = calloc(1, sizeof *slot);
    if (slot == NULL)
        return NULL;
    link_init(&slot->watches);
    reactor->slots[fd] = slot;
    return slot;
}

static uint8_t slot_wanted(const ReactorSlot *slot) {
    uint8_t wanted = 0;
    for (Link *link = slot->watches.next; link != &slot->watches; link = link->next)
        wanted |= CONTAINER_OF(link, Watch, link)->wanted;
    return wanted;
}

static void finish(Reactor *reactor, Watch *watch, Link *ready, uint8_t events, int error) {
    reactor_remove(reactor, watch);
    watch->ready = events & watch->wanted;
    watch->error = error;
    list_append(ready, &watch->link);
}

/* Hands `events` (or an error) to the watches of a slot that want them. */
static void slot_dispatch(Reactor *reactor, ReactorSlot *slot, Link *ready, uint8_t events,
                          int error) {
    Link *link = slot->watches.next;
    while (link != &slot->watches) {
        Watch *watch = CONTAINER_OF(link, Watch, link);
        link = link->next;
        if (error != 0 || (watch->wanted & events) != 0)
            finish(reactor, watch, ready, events, error);
    }
}

/* ---- the back end: slot_arm, wait_ns ------------------------------------------------------ *
 *
 * slot_arm(reactor, slot, fd, more) sees to it that the slot's watches, and one that wants `more`
 * and is about to join them, are told. 0, or an errno: EPERM for what is always ready, EBADF when
 * fd is closed, or is another file than the one the slot's watches began to wait for. */

#ifdef OPERO_REACTOR_POLL

static void backend_init(Reactor *reactor) {
    reactor->polled = NULL;
    reactor->polled_capacity = 0;
}

static void backend_destroy(Reactor *reactor) {
    free(reactor->polled);
}

/* Nothing to arm: the set of descriptors is built anew for each wait. This notes the identity of
 * the open file, or compares it where watches wait already. */
static int slot_arm(Reactor *reactor, ReactorSlot *slot, int fd, uint8_t more) {
    struct stat st;
    (void)reactor;
    if (fstat(fd, &st) != 0)
        return errno;
    if (more != 0 && S_ISREG(st.st_mode))
        return EPERM;
    if (list_is_empty(&slot->watches)) {
        slot->device = st.st_dev;
        slot->inode = st.st_ino;
    }
    return slot->device == st.st_dev && slot->inode == st.st_ino ? 0 : EBADF;
}

static int wait_ns(Reactor *reactor, Link *ready, const struct timespec *timeout) {
    nfds_t count = 0;
    int found;
    if (reactor->watch_count > reactor->polled_capacity) {
        size_t capacity = reactor->watch_count * 2;
        struct pollfd *polled = realloc(reactor->polled, capacity * sizeof *polled);
        if (polled == NULL)
            return ENOMEM;
        reactor->polled = polled;
        reactor->polled_capacity = capacity;
    }
    for (int fd = 0; fd < reactor->slot_count; fd++) {
        ReactorSlot *slot = reactor->slots[fd];
        uint8_t wanted = slot != NULL ? slot_wanted(slot) : 0;
        if (wanted != 0) {
            short events = (short)((wanted & REACTOR_READ ? POLLIN : 0) |
                                   (wanted & REACTOR_WRITE ? POLLOUT : 0));
            reactor->polled[count++] = (struct pollfd){.fd = fd, .events = events};
        }
    }
    found = ppoll(reactor->polled, count, timeout, NULL);
    if (found < 0)
        return errno == EINTR ? REACTOR_INTERRUPTED : errno;
    for (nfds_t i = 0; i < count && found > 0; i++) {
        const struct pollfd *polled = &reactor->polled[i];
        uint8_t events = 0;
        if (polled->revents == 0)
            continue;
        found--;
        if (polled->revents & (POLLIN | POLLPRI | POLLERR | POLLHUP))
            events |= REACTOR_READ;
        if (polled->revents & (POLLOUT | POLLERR | POLLHUP))
            events |= REACTOR_WRITE;
        slot_dispatch(reactor, reactor->slots[polled->fd], ready, events,
                      polled->revents & POLLNVAL ? EBADF : 0);
    }
    return REACTOR_OK;
}

int reactor_pollfd(Reactor *reactor) {
    (void)reactor;
    errno = ENOTSUP;
    return -1;
}

#else /* epoll */

#include <sys/epoll.h>
#include <sys/syscall.h>

#define EVENTS_AT_ONCE 256

static void backend_init(Reactor *reactor) {
    reactor->epoll_fd = -1;
}

static void backend_destroy(Reactor *reactor) {
    if (reactor->epoll_fd >= 0)
        close(reactor->epoll_fd);
}

static int slot_arm(Reactor *reactor, ReactorSlot *slot, int fd, uint8_t more);

int reactor_pollfd(Reactor *reactor) {
    bool is_forked = reactor->epoll_fd >= 0 && reactor->owner != getpid();
    if (is_forked) /* it is the parent's as well: what we did to it would be done to the parent */
        close(reactor->epoll_fd);
    if (reactor->epoll_fd < 0 || is_forked) {
        reactor->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        reactor->owner = getpid();
    }
    for (int fd = 0; is_forked && fd < reactor->slot_count; fd++) {
        ReactorSlot *slot = reactor->slots[fd];
        if (slot == NULL)
            continue;
        slot->is_registered = false;
        if (!list_is_empty(&slot->watches) && slot_arm(reactor, slot, fd, 0) != 0)
            slot_dispatch(reactor, slot, &reactor->stale, 0, EBADF);
    }
    return reactor->epoll_fd;
}

/* Asks the kernel to report, once, what the slot's watches want. Registrations outlive the wait:
 * the next one is a cheap modification. The kernel forgets a descriptor when it is closed, so for
 * one that is waited for its answer tells whether it is still the same file. */
static int slot_arm(Reactor *reactor, ReactorSlot *slot, int fd, uint8_t more) {
    uint8_t wanted = slot_wanted(slot) | more;
    struct epoll_event event = {
        .events = (wanted & REACTOR_READ ? (uint32_t)(EPOLLIN | EPOLLRDHUP) : 0) |
                  (wanted & REACTOR_WRITE ? (uint32_t)EPOLLOUT : 0) | (uint32_t)EPOLLONESHOT,
    };
    if (reactor_pollfd(reactor) < 0) /* which may register the slot anew */
        return errno;
    event.data.u64 = (uint64_t)slot->generation << 32 | (uint32_t)fd;
    if (slot->is_registered) {
        if (epoll_ctl(reactor->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0)
            return 0;
        slot->is_registered = false;
        if (!list_is_empty(&slot->watches))
            return EBADF;
        if (errno != ENOENT)
            return errno;
    }
    event.data.u64 = (uint64_t)++slot->generation << 32 | (uint32_t)fd;
    if (epoll_ctl(reactor->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0 &&
        (errno != EEXIST || epoll_ctl(reactor->epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0))
        return errno;
    slot->is_registered = true;
    return 0;
}

/* epoll_pwait2 takes nanoseconds but came with Linux 5.11; before that, ppoll on the epoll
 * descriptor waits as precisely, at the price of a second call. */
static int epoll_wait_ns(Reactor *reactor, struct epoll_event *events,
                         const struct timespec *timeout) {
#ifdef SYS_epoll_pwait2
    if (!reactor->lacks_pwait2) {
        struct {
            int64_t seconds,
                nanoseconds; /* the kernel's 64-bit timespec, also on 32-bit machines */
        } ts = {0, 0};
        long found;
        if (timeout != NULL) {
            ts.seconds = timeout->tv_sec;
            ts.nanoseconds = timeout->tv_nsec;
        }
        found = syscall(SYS_epoll_pwait2, reactor->epoll_fd, events, EVENTS_AT_ONCE,
                        timeout != NULL ? &ts : NULL, NULL, 0);
        /* EPERM: sandboxes older than the call refuse it so; it has no such error of its own */
        if (found >= 0 || (errno != ENOSYS && errno != EPERM))
            return (int)found;
        reactor->lacks_pwait2 = true;
    }
#endif
    {
        struct pollfd polled = {.fd = reactor->epoll_fd, .events = POLLIN};
        int found = ppoll(&polled, 1, timeout, NULL);
        return found <= 0 ? found : epoll_wait(reactor->epoll_fd, events, EVENTS_AT_ONCE, 0);
    }
}

static int wait_ns(Reactor *reactor, Link *ready, const struct timespec *timeout) {
    struct epoll_event events[EVENTS_AT_ONCE];
    int found;
    if (reactor->epoll_fd < 0)
        found = ppoll(NULL, 0, timeout, NULL);
    else if (reactor_pollfd(reactor) < 0)
        return errno;
    else
        found = epoll_wait_ns(reactor, events, timeout);
    if (found < 0)
        return errno == EINTR ? REACTOR_INTERRUPTED : errno;
    for (int i = 0; i < found; i++) {
        int fd = (int)(uint32_t)events[i].data.u64;
        uint32_t bits = events[i].events;
        ReactorSlot *slot = slot_of(reactor, fd);
        uint8_t what = 0;
        if (slot == NULL || slot->generation != (uint32_t)(events[i].data.u64 >> 32))
            continue; /* a closed descriptor whose file lives on through a duplicate */
        if (bits & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
            what |= REACTOR_READ;
        if (bits & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            what |= REACTOR_WRITE;
        slot_dispatch(reactor, slot, ready, what, 0);
        if (!list_is_empty(&slot->watches) && slot_arm(reactor, slot, fd, 0) != 0)
            slot_dispatch(reactor, slot, ready, 0, EBADF);
    }
    return REACTOR_OK;
}

#endif

/* ---- the face ------------------------------------------------------------------------------ */

void reactor_init(Reactor *reactor) {
    memset(reactor, 0, sizeof *reactor);
    link_init(&reactor->stale);
    backend_init(reactor);
}

void reactor_destroy(Reactor *reactor) {
    for (int fd = 0; fd < reactor->slot_count; fd++) {
        ReactorSlot *slot = reactor->slots[fd];
        if (slot == NULL)
            continue;
        while (list_pop(&slot->watches) != NULL)
            ;
        free(slot);
    }
    free(reactor->slots);
    backend_destroy(reactor);
    while (list_pop(&reactor->stale) != NULL)
        ;
    reactor_init(reactor);
}

int reactor_add(Reactor *reactor, Watch *watch) {
    ReactorSlot *slot;
    int error;
    link_init(&watch->link);
    watch->is_waiting = false;
    /* ask before a table as long as the number is made */
    if (watch->fd < 0 || (watch->fd >= reactor->slot_count && fcntl(watch->fd, F_GETFD) < 0))
        return EBADF;
    slot = slot_make(reactor, watch->fd);
    if (slot == NULL)
        return ENOMEM;
    if (!list_is_empty(&slot->watches) && slot_arm(reactor, slot, watch->fd, 0) != 0)
        slot_dispatch(reactor, slot, &reactor->stale, 0, EBADF); /* closed while waited for */
    error = slot_arm(reactor, slot, watch->fd, watch->wanted);
    if (error != 0)
        return error;
    list_append(&slot->watches, &watch->link);
    watch->is_waiting = true;
    reactor->watch_count++;
    return 0;
}

void reactor_remove(Reactor *reactor, Watch *watch) {
    /* what the kernel was told stays: at worst it reports an event that nobody wants, once */
    link_remove(&watch->link);
    if (watch->is_waiting)
        reactor->watch_count--;
    watch->is_waiting = false;
}

int reactor_wait(Reactor *reactor, Link *ready, int64_t timeout_ns) {
    struct timespec ts;
    if (!list_is_empty(&reactor->stale)) {
        list_splice(ready, &reactor->stale);
        timeout_ns = 0;
    }
    ts.tv_sec = (time_t)(timeout_ns / 1000000000);
    ts.tv_nsec = (long)(timeout_ns % 1000000000);
    return wait_ns(reactor, ready, timeout_ns == CLOCK_NEVER ? NULL : &ts);
}

int64_t reactor_check_due_ns(const Reactor *reactor) {
    if (!reactor->is_dirty || reactor->watch_count == 0)
        return CLOCK_NEVER;
    return reactor->checked_ns + (int64_t)reactor->watch_count * CHECK_COST_NS;
}

int64_t reactor_check(Reactor *reactor, Link *ready, int64_t now_ns) {
    int64_t due_ns = reactor_check_due_ns(reactor);
    if (due_ns == CLOCK_NEVER)
        return CLOCK_NEVER;
    if (now_ns < due_ns)
        return due_ns - now_ns;
    for (int fd = 0; fd < reactor->slot_count; fd++) {
        ReactorSlot *slot = reactor->slots[fd];
        if (slot == NULL || list_is_empty(&slot->watches))
            continue;
        if (slot_arm(reactor, slot, fd, 0) != 0)
            slot_dispatch(reactor, slot, ready, 0, EBADF);
    }
    reactor->checked_ns = now_ns;
    reactor->is_dirty = false;
    return CLOCK_NEVER;
}
