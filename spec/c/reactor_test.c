#define FAULTS_SYSTEM_CALLS
#include "reactor.h"

#include "clock.h"
#include "faults.h"
#include "test.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#ifdef OPERO_REACTOR_POLL
enum { IS_EPOLL = false };
#else
enum { IS_EPOLL = true };
#endif

#define MS 1000000LL

/* ---- what every test needs ----------------------------------------------------------------- */

static Reactor reactor;
static Link ready;

static void begin(void) {
    reactor_init(&reactor);
    link_init(&ready);
}

static void end(void) {
    while (list_pop(&ready) != NULL)
        ;
    reactor_destroy(&reactor);
}

typedef struct Pipe {
    int in, out; /* what comes out at `in` was put in at `out` */
} Pipe;

static Pipe make_pipe(void) {
    int fd[2] = {-1, -1};
    CHECK(pipe2(fd, O_CLOEXEC | O_NONBLOCK) == 0);
    return (Pipe){fd[0], fd[1]};
}

static void close_pipe(Pipe pipe) {
    close(pipe.in);
    close(pipe.out);
}

static void put(int fd) {
    CHECK(write(fd, "x", 1) == 1);
}

static void drain(int fd) {
    char bytes[64];
    while (read(fd, bytes, sizeof bytes) > 0)
        ;
}

/* Writes until no more fits. */
static void fill(int fd) {
    static char bytes[4096];
    while (write(fd, bytes, sizeof bytes) > 0 || write(fd, bytes, 1) > 0)
        ;
}

static int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int add(Watch *watch, int fd, uint8_t wanted) {
    memset(watch, 0xa5, sizeof *watch); /* nothing but these three is the caller's to set */
    watch->owner = watch;
    watch->fd = fd;
    watch->wanted = wanted;
    return reactor_add(&reactor, watch);
}

/* Waits, and returns how many are ready in all. */
static int wait_for(int64_t timeout_ns) {
    int count = 0;
    CHECK_EQUAL(reactor_wait(&reactor, &ready, timeout_ns), REACTOR_OK);
    for (Link *link = ready.next; link != &ready; link = link->next)
        count++;
    return count;
}

/* Takes the next of those that are ready. */
static bool is_next(const Watch *watch, int events, int error) {
    Link *link = list_pop(&ready);
    if (link == NULL || CONTAINER_OF(link, Watch, link) != watch)
        return false;
    return watch->owner == watch && !watch->is_waiting && watch->error == error &&
           (error != 0 || watch->ready == events);
}

/* Finds closed descriptors now, however short ago it was done. */
static void check_now(void) {
    static int64_t now_ns;
    reactor_mark_dirty(&reactor);
    now_ns += 3600 * 1000 * MS;
    CHECK_EQUAL(reactor_check(&reactor, &ready, now_ns), CLOCK_NEVER);
}

/* ---- readiness ----------------------------------------------------------------------------- */

static void nothing_is_opened_before_it_is_needed(void) {
    int before = count_open();
    Watch watch;
    Pipe pipe;
    begin();
    CHECK_EQUAL(wait_for(0), 0);
    CHECK_EQUAL(wait_for(1), 0);
    CHECK_EQUAL(add(&watch, -1, REACTOR_READ), EBADF);
    CHECK_EQUAL(count_open(), before);
    pipe = make_pipe();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(count_open(), before + 2 + IS_EPOLL);
    end();
    CHECK_EQUAL(count_open(), before + 2);
    close_pipe(pipe);
}

static void a_pipe_is_readable_once_written_to(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(reactor.watch_count, 1);
    CHECK(watch.is_waiting);
    CHECK_EQUAL(wait_for(0), 0);
    put(pipe.out);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK_EQUAL(wait_for(0), 0); /* it waits once */
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1); /* and if it is still readable, again */
    CHECK(is_next(&watch, REACTOR_READ, 0));
    drain(pipe.in);
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(wait_for(0), 0);
    end();
    close_pipe(pipe);
}

static void a_full_pipe_is_not_writable(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, pipe.out, REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_WRITE, 0));
    fill(pipe.out);
    CHECK_EQUAL(add(&watch, pipe.out, REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 0);
    drain(pipe.in);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_WRITE, 0));
    end();
    close_pipe(pipe);
}

static void one_watch_waits_for_both(void) {
    int fd[2];
    Watch watch;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) == 0);
    begin();
    CHECK_EQUAL(add(&watch, fd[0], REACTOR_READ | REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_WRITE, 0));
    put(fd[1]);
    CHECK_EQUAL(add(&watch, fd[0], REACTOR_READ | REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_READ | REACTOR_WRITE, 0));
    fill(fd[0]);
    CHECK_EQUAL(add(&watch, fd[0], REACTOR_READ | REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    end();
    close(fd[0]);
    close(fd[1]);
}

static void the_other_end_hanging_up_is_readiness(void) {
    Pipe first = make_pipe(), second = make_pipe();
    Watch reader, writer;
    begin();
    fill(second.out);
    CHECK_EQUAL(add(&reader, first.in, REACTOR_READ), 0);
    CHECK_EQUAL(add(&writer, second.out, REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 0);
    close(first.out);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&reader, REACTOR_READ, 0));
    close(second.in);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&writer, REACTOR_WRITE, 0));
    end();
    close(first.in);
    close(second.out);
}

/* ---- several watches ----------------------------------------------------------------------- */

static void several_watches_share_a_descriptor(void) {
    int fd[2];
    Watch reader[3], writer, either;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) == 0);
    fill(fd[0]);
    begin();
    CHECK_EQUAL(add(&reader[0], fd[0], REACTOR_READ), 0);
    CHECK_EQUAL(add(&writer, fd[0], REACTOR_WRITE), 0);
    CHECK_EQUAL(add(&reader[1], fd[0], REACTOR_READ), 0);
    CHECK_EQUAL(add(&either, fd[0], REACTOR_READ | REACTOR_WRITE), 0);
    CHECK_EQUAL(add(&reader[2], fd[0], REACTOR_READ), 0);
    CHECK_EQUAL(reactor.watch_count, 5);
    CHECK_EQUAL(wait_for(0), 0);
    drain(fd[1]); /* now it can be written to */
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 2);
    CHECK(is_next(&writer, REACTOR_WRITE, 0));
    CHECK(is_next(&either, REACTOR_WRITE, 0));
    CHECK_EQUAL(wait_for(0), 0); /* the readers wait on */
    put(fd[1]);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 3);
    for (int i = 0; i < 3; i++) /* in the order in which they came */
        CHECK(is_next(&reader[i], REACTOR_READ, 0));
    CHECK_EQUAL(reactor.watch_count, 0);
    end();
    close(fd[0]);
    close(fd[1]);
}

static void a_watch_can_be_removed(void) {
    Pipe pipe = make_pipe();
    Watch first, second;
    begin();
    CHECK_EQUAL(add(&first, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(add(&second, pipe.in, REACTOR_READ), 0);
    reactor_remove(&reactor, &first);
    CHECK_EQUAL(reactor.watch_count, 1);
    put(pipe.out);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&second, REACTOR_READ, 0));
    CHECK_EQUAL(add(&first, pipe.in, REACTOR_READ), 0);
    reactor_remove(&reactor, &first);
    reactor_remove(&reactor, &first);
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK_EQUAL(wait_for(0), 0);
    end();
    close_pipe(pipe);
}

static void a_watch_can_be_removed_once_it_is_ready(void) {
    Pipe pipe = make_pipe();
    Watch first, second;
    begin();
    put(pipe.out);
    CHECK_EQUAL(add(&first, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(add(&second, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(wait_for(0), 2);
    reactor_remove(&reactor, &first);
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK(is_next(&second, REACTOR_READ, 0));
    CHECK(list_is_empty(&ready));
    end();
    close_pipe(pipe);
}

static void removal_leaves_other_directions_armed(void) {
    int fd[2];
    Watch reader, writer;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) == 0);
    begin();
    CHECK_EQUAL(add(&reader, fd[0], REACTOR_READ), 0);
    CHECK_EQUAL(add(&writer, fd[0], REACTOR_WRITE), 0);
    reactor_remove(&reactor, &writer);
    CHECK_EQUAL(wait_for(0), 0); /* at most a report that nobody wants */
    CHECK_EQUAL(wait_for(0), 0);
    put(fd[1]);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&reader, REACTOR_READ, 0));
    end();
    close(fd[0]);
    close(fd[1]);
}

/* More than one call to the system can report at once. */
static void hundreds_are_ready_at_once(void) {
    enum { COUNT = 300 };
    static Pipe pipes[COUNT];
    static Watch watches[COUNT];
    static bool seen[COUNT];
    int count = 0;
    begin();
    for (int i = 0; i < COUNT; i++) {
        pipes[i] = make_pipe();
        CHECK_EQUAL(add(&watches[i], pipes[i].in, REACTOR_READ), 0);
    }
    for (int i = 0; i < COUNT; i++)
        put(pipes[i].out);
    for (int turns = 0; turns < 3 && count < COUNT; turns++) {
        Link *link;
        CHECK_EQUAL(reactor_wait(&reactor, &ready, 0), REACTOR_OK);
        for (; (link = list_pop(&ready)) != NULL; count++)
            seen[CONTAINER_OF(link, Watch, link) - watches] = true;
    }
    CHECK_EQUAL(count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        CHECK(seen[i]);
        close_pipe(pipes[i]);
    }
    end();
}

static void descriptors_may_be_far_apart(void) {
    static const int numbers[] = {63, 64, 65, 127, 128, 500, 900};
    Pipe pipe = make_pipe();
    Watch watches[7];
    begin();
    put(pipe.out);
    for (int i = 0; i < 7; i++) {
        CHECK(dup2(pipe.in, numbers[i]) == numbers[i]);
        CHECK_EQUAL(add(&watches[i], numbers[i], REACTOR_READ), 0);
    }
    CHECK_EQUAL(wait_for(0), 7);
    end();
    for (int i = 0; i < 7; i++)
        close(numbers[i]);
    close_pipe(pipe);
}

/* ---- descriptors that are none, or no longer ------------------------------------------------ */

static void bad_descriptors_are_refused(void) {
    static const int numbers[] = {-1, INT_MIN, 999, INT_MAX, INT_MAX - 1, 1 << 30, (1 << 30) - 1};
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        CHECK_EQUAL(add(&watch, numbers[i], REACTOR_READ), EBADF);
    CHECK(reactor.slot_count <= 1024); /* no memory was spent on what does not exist */
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    reactor_remove(&reactor, &watch);
    close_pipe(pipe);
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), EBADF); /* known before, but closed now */
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK_EQUAL(wait_for(0), 0);
    end();
}

static void regular_files_are_always_ready(void) {
    FILE *file = tmpfile();
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, fileno(file), REACTOR_READ), EPERM);
    CHECK_EQUAL(add(&watch, fileno(file), REACTOR_READ | REACTOR_WRITE), EPERM);
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK_EQUAL(wait_for(0), 0);
    end();
    fclose(file);
}

static void a_closed_descriptor_is_found(void) {
    Pipe pipe = make_pipe();
    Watch first, second;
    begin();
    CHECK_EQUAL(add(&first, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(add(&second, pipe.in, REACTOR_WRITE), 0);
    CHECK_EQUAL(wait_for(0), 0);
    close_pipe(pipe);
    check_now();
    CHECK(is_next(&first, 0, EBADF));
    CHECK(is_next(&second, 0, EBADF));
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK_EQUAL(wait_for(0), 0);
    end();
}

/* The number comes to another file: nobody may be told of that file's readiness who waits for the
 * old one. */
static void a_reused_number_is_noticed(void) {
    Pipe old = make_pipe(), new;
    Watch first, second;
    begin();
    CHECK_EQUAL(add(&first, old.in, REACTOR_READ), 0);
    close_pipe(old);
    new = make_pipe();
    if (!CHECK_EQUAL(new.in, old.in)) /* the lowest free number: so POSIX says */
        return;
    CHECK_EQUAL(add(&second, new.in, REACTOR_READ), 0);
    CHECK_EQUAL(reactor.watch_count, 1);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1); /* what is stale is not waited for */
    CHECK(is_next(&first, 0, EBADF));
    put(new.out);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&second, REACTOR_READ, 0));
    end();
    close_pipe(new);
}

static void a_reused_number_is_noticed_by_the_check(void) {
    Pipe old = make_pipe(), new;
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, old.in, REACTOR_READ), 0);
    close_pipe(old);
    new = make_pipe();
    check_now();
    CHECK(is_next(&watch, 0, EBADF));
    CHECK_EQUAL(add(&watch, new.in, REACTOR_READ), 0);
    check_now(); /* all is well now */
    CHECK(list_is_empty(&ready));
    put(new.out);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    end();
    close_pipe(new);
}

static void a_stale_watch_can_be_removed(void) {
    Pipe old = make_pipe(), new;
    Watch first, second;
    begin();
    CHECK_EQUAL(add(&first, old.in, REACTOR_READ), 0);
    close_pipe(old);
    new = make_pipe();
    CHECK_EQUAL(add(&second, new.in, REACTOR_READ), 0);
    reactor_remove(&reactor, &first);
    CHECK_EQUAL(reactor.watch_count, 1);
    CHECK_EQUAL(wait_for(0), 0);
    end();
    close_pipe(new);
}

/* Closed, but open under another number: the kernel goes on reporting it under the old one. */
static void a_duplicate_keeps_nobody_else_awake(void) {
    Pipe old = make_pipe(), new;
    int copy = dup(old.in);
    Watch first, second;
    begin();
    CHECK_EQUAL(add(&first, old.in, REACTOR_READ), 0);
    close(old.in);
    new = make_pipe();
    if (!CHECK_EQUAL(new.in, old.in))
        return;
    CHECK_EQUAL(add(&second, new.in, REACTOR_READ), 0);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&first, 0, EBADF));
    put(old.out); /* readable is the copy, not what has the number now */
    CHECK_EQUAL(wait_for(0), 0);
    CHECK_EQUAL(wait_for(0), 0);
    put(new.out);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&second, REACTOR_READ, 0));
    end();
    close(copy);
    close(old.out);
    close_pipe(new);
}

static void a_closed_number_of_a_duplicate_is_found(void) {
    Pipe pipe = make_pipe();
    int copy = dup(pipe.in);
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    close(pipe.in);
    check_now();
    CHECK(is_next(&watch, 0, EBADF));
    CHECK(dup2(copy, pipe.in) == pipe.in); /* the very same file comes back */
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    put(pipe.out);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    end();
    close(copy);
    close_pipe(pipe);
}

static void checks_are_rare(void) {
    enum { COUNT = 10 };
    Pipe pipe = make_pipe();
    Watch watches[COUNT];
    begin();
    CHECK_EQUAL(reactor_check(&reactor, &ready, 1000 * MS), CLOCK_NEVER);
    reactor_mark_dirty(&reactor);
    CHECK_EQUAL(reactor_check(&reactor, &ready, 1000 * MS), CLOCK_NEVER); /* nothing waits */
    for (int i = 0; i < COUNT; i++)
        CHECK_EQUAL(add(&watches[i], pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(reactor_check(&reactor, &ready, 1000 * MS), CLOCK_NEVER);
    faults_calls.controls = 0;
    CHECK_EQUAL(reactor_check(&reactor, &ready, 1000 * MS), CLOCK_NEVER); /* not dirty */
    CHECK_EQUAL(faults_calls.controls, 0);
    reactor_mark_dirty(&reactor);
    close_pipe(pipe);
    CHECK_EQUAL(reactor_check(&reactor, &ready, 1000 * MS + 50000), COUNT * 20000 - 50000);
    CHECK(list_is_empty(&ready));
    CHECK_EQUAL(reactor_check(&reactor, &ready, 1000 * MS + COUNT * 20000), CLOCK_NEVER);
    for (int i = 0; i < COUNT; i++)
        CHECK(is_next(&watches[i], 0, EBADF));
    end();
}

/* ---- time ---------------------------------------------------------------------------------- */

static void limits_are_exact(void) {
    static const int64_t limits_ns[] = {0, 1, 999, 1234567, 999999999};
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    for (int has_watch = 1; has_watch >= 0; has_watch--) {
        for (int i = 0; i < 4; i++) { /* to the last not, for it takes a second */
            int64_t begun_ns = clock_real_ns();
            CHECK_EQUAL(wait_for(limits_ns[i]), 0);
            CHECK(clock_real_ns() - begun_ns >= limits_ns[i]);
            CHECK(!faults_calls.was_infinite);
            CHECK_EQUAL(faults_calls.timeout.tv_sec * 1000 * MS + faults_calls.timeout.tv_nsec,
                        limits_ns[i]);
        }
        put(pipe.out); /* what is ready ends a wait of any length */
        if (has_watch) {
            CHECK_EQUAL(wait_for(limits_ns[4]), 1);
            CHECK(is_next(&watch, REACTOR_READ, 0));
        }
    }
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(wait_for(CLOCK_NEVER - 1), 1);
    CHECK(!faults_calls.was_infinite);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(faults_calls.was_infinite);
    end();
    close_pipe(pipe);
}

static void never_waits_as_long_as_it_takes(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    pid_t child;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    child = fork();
    if (child == 0) {
        nanosleep(&(struct timespec){0, 20 * MS}, NULL);
        _exit(write(pipe.out, "x", 1) != 1);
    }
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    CHECK(waitpid(child, NULL, 0) == child);
    end();
    close_pipe(pipe);
}

static volatile sig_atomic_t signals;

static void note_signal(int number) {
    (void)number;
    signals++;
}

static void a_signal_interrupts(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    struct sigaction action, before;
    /* again and again, as the first may come before the wait has begun */
    struct itimerval often = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
    memset(&action, 0, sizeof action);
    action.sa_handler = note_signal;
    sigaction(SIGVTALRM, &action, &before);
    action.sa_flags = SA_RESTART; /* makes no difference to waits */
    sigaction(SIGALRM, &action, &before);
    begin();
    for (int has_watch = 0; has_watch < 2; has_watch++) {
        if (has_watch)
            CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
        signals = 0;
        setitimer(ITIMER_REAL, &often, NULL);
        CHECK_EQUAL(reactor_wait(&reactor, &ready, CLOCK_NEVER), REACTOR_INTERRUPTED);
        setitimer(ITIMER_REAL, &off, NULL);
        CHECK(signals > 0);
        CHECK(list_is_empty(&ready));
    }
    put(pipe.out); /* and the wait goes on as if nothing had been */
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    sigaction(SIGALRM, &before, NULL);
    alarm(30);
    end();
    close_pipe(pipe);
}

/* ---- what it costs ------------------------------------------------------------------------- */

static void waiting_is_one_system_call(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    faults_calls.count = 0;
    CHECK_EQUAL(wait_for(1), 0);
    CHECK_EQUAL(faults_calls.count, 1); /* with nothing to wait for */
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    faults_calls.count = 0;
    CHECK_EQUAL(wait_for(1), 0);
    CHECK_EQUAL(faults_calls.count, 1);
    put(pipe.out);
    faults_calls.count = 0;
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK_EQUAL(faults_calls.count, 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    drain(pipe.in);
    faults_calls.count = 0;
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    CHECK_EQUAL(faults_calls.count, 1); /* and so is waiting for it again */
    end();
    close_pipe(pipe);
}

/* ---- failures of the system ---------------------------------------------------------------- */

static void each_lack_of_memory_is_reported(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    int refusals = 0;
    for (long number = 1;; number++) {
        int error;
        bool was_due;
        begin();
        faults_begin(number, false);
        error = add(&watch, pipe.in, REACTOR_READ);
        was_due = faults_end();
        CHECK_EQUAL(error, was_due ? ENOMEM : 0);
        CHECK_EQUAL(reactor.watch_count, !was_due);
        if (was_due) {
            refusals++;
            CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
        }
        put(pipe.out);
        CHECK_EQUAL(wait_for(0), 1);
        CHECK(is_next(&watch, REACTOR_READ, 0));
        drain(pipe.in);
        end();
        if (!was_due)
            break;
    }
    CHECK_EQUAL(refusals, 2);
    close_pipe(pipe);
}

static void a_wait_short_of_memory_loses_nothing(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    put(pipe.out);
    faults_begin(1, true);
    CHECK_EQUAL(reactor_wait(&reactor, &ready, 0), IS_EPOLL ? REACTOR_OK : ENOMEM);
    CHECK_EQUAL(faults_end(), !IS_EPOLL);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    end();
    close_pipe(pipe);
}

/* A call that fails is reported; after it, all is as it was before. */
static void check_refusal_of_add(const char *name, int error) {
    Pipe pipe = make_pipe();
    Watch first, second;
    begin();
    faults_refuse(name, error);
    CHECK_EQUAL(add(&first, pipe.in, REACTOR_READ), error);
    faults_allow();
    CHECK_EQUAL(reactor.watch_count, 0);
    CHECK_EQUAL(add(&first, pipe.in, REACTOR_READ), 0);
    put(pipe.out);
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&first, REACTOR_READ, 0));
    faults_refuse(name, error);
    CHECK_EQUAL(add(&second, pipe.out, REACTOR_WRITE),
                strcmp(name, "epoll_create1") == 0 ? 0 : error);
    faults_allow();
    end();
    close_pipe(pipe);
}

static void check_refusal_of_wait(const char *name, int error) {
    Pipe pipe = make_pipe();
    Watch watch;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    put(pipe.out);
    faults_refuse(name, error);
    CHECK_EQUAL(reactor_wait(&reactor, &ready, 0), error == EINTR ? REACTOR_INTERRUPTED : error);
    faults_allow();
    CHECK(list_is_empty(&ready));
    CHECK_EQUAL(wait_for(0), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    end();
    close_pipe(pipe);
}

static void failures_of_the_system_are_reported(void) {
    if (IS_EPOLL) {
        check_refusal_of_add("epoll_create1", EMFILE);
        check_refusal_of_add("epoll_ctl", ENOSPC);
        check_refusal_of_add("epoll_ctl", ENOMEM);
        check_refusal_of_wait("epoll_pwait2", EINVAL);
        check_refusal_of_wait("epoll_pwait2", EINTR);
    } else {
        check_refusal_of_add("fstat", EIO);
        check_refusal_of_wait("ppoll", EINVAL);
        check_refusal_of_wait("ppoll", EINTR);
        check_refusal_of_wait("ppoll", ENOMEM);
    }
}

#ifndef OPERO_REACTOR_POLL

static void check_old_kernel(int error) {
    Pipe pipe = make_pipe();
    Watch watch;
    int64_t begun_ns;
    begin();
    CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
    faults_refuse("epoll_pwait2", error);
    begun_ns = clock_real_ns();
    CHECK_EQUAL(wait_for(MS), 0);
    CHECK(clock_real_ns() - begun_ns >= MS);
    faults_allow();
    CHECK(reactor.lacks_pwait2);
    faults_refuse("ppoll", EINTR);
    CHECK_EQUAL(reactor_wait(&reactor, &ready, CLOCK_NEVER), REACTOR_INTERRUPTED);
    faults_allow();
    CHECK_EQUAL(wait_for(1234567), 0); /* precise to the nanosecond here too */
    CHECK_EQUAL(faults_calls.timeout.tv_nsec, 1234567);
    faults_calls.count = 0;
    CHECK_EQUAL(wait_for(1), 0);
    CHECK_EQUAL(faults_calls.count, 1);
    put(pipe.out);
    CHECK_EQUAL(wait_for(CLOCK_NEVER), 1);
    CHECK(is_next(&watch, REACTOR_READ, 0));
    end();
    close_pipe(pipe);
}

static void old_kernels_serve(void) {
    check_old_kernel(ENOSYS); /* Linux before 5.11 */
    check_old_kernel(EPERM);  /* a sandbox that is older than the call */
}

#endif

/* ---- the descriptor of the reactor --------------------------------------------------------- */

static bool is_readable(int fd) {
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, 0) == 1;
}

static void its_own_descriptor_tells_when_to_wait(void) {
    Pipe pipe = make_pipe();
    Watch watch;
    int fd;
    begin();
    errno = 0;
    fd = reactor_pollfd(&reactor);
    CHECK_EQUAL(fd >= 0, IS_EPOLL);
    CHECK_EQUAL(reactor_pollfd(&reactor), fd);
    if (!IS_EPOLL) {
        CHECK_EQUAL(errno, ENOTSUP);
    } else {
        CHECK(!is_readable(fd));
        CHECK_EQUAL(add(&watch, pipe.in, REACTOR_READ), 0);
        CHECK(!is_readable(fd));
        put(pipe.out);
        CHECK(is_readable(fd));
        CHECK_EQUAL(wait_for(0), 1);
        CHECK(!is_readable(fd));
        CHECK_EQUAL(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    }
    end();
    close_pipe(pipe);
}

/* ---- a random walk, against poll(2) --------------------------------------------------------- */

enum { SOCKETS = 12, WATCHES = 60 };

typedef struct Walk {
    uint64_t seed;
    int fd[SOCKETS], peer[SOCKETS];
    uint32_t generation[SOCKETS];
    Watch watch[WATCHES];
    bool is_added[WATCHES];
    int socket[WATCHES]; /* that it waits for, and of which generation */
    uint32_t of[WATCHES];
} Walk;

static void walk_open(Walk *walk, int i) {
    int fd[2] = {-1, -1};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) == 0);
    walk->fd[i] = fd[0];
    walk->peer[i] = fd[1];
    walk->generation[i]++;
}

static void walk_add(Walk *walk, int i) {
    int s = (int)test_random_below(&walk->seed, SOCKETS);
    if (walk->is_added[i])
        return;
    CHECK_EQUAL(add(&walk->watch[i], walk->fd[s], (uint8_t)(1 + test_random_below(&walk->seed, 3))),
                0);
    walk->is_added[i] = true;
    walk->socket[i] = s;
    walk->of[i] = walk->generation[s];
}

/* What the watch is ready for, by poll(2). */
static int walk_readiness(const Walk *walk, int i) {
    uint8_t wanted = walk->watch[i].wanted;
    struct pollfd polled = {.fd = walk->fd[walk->socket[i]], .events = POLLIN | POLLOUT};
    poll(&polled, 1, 0);
    return ((polled.revents & (POLLIN | POLLHUP | POLLERR)) != 0 ? wanted & REACTOR_READ : 0) |
           ((polled.revents & (POLLOUT | POLLHUP | POLLERR)) != 0 ? wanted & REACTOR_WRITE : 0);
}

/* Looks for what was closed, waits, and compares what is ready with what should be. */
static void walk_compare(Walk *walk) {
    bool expected[WATCHES];
    Link *link;
    size_t waiting = 0;
    for (int i = 0; i < WATCHES; i++)
        expected[i] = walk->is_added[i] && (walk->of[i] != walk->generation[walk->socket[i]] ||
                                            walk_readiness(walk, i) != 0);
    check_now();
    CHECK_EQUAL(reactor_wait(&reactor, &ready, 0), REACTOR_OK);
    while ((link = list_pop(&ready)) != NULL) {
        Watch *watch = CONTAINER_OF(link, Watch, link);
        int i = (int)(watch - walk->watch);
        bool is_closed = walk->of[i] != walk->generation[walk->socket[i]];
        CHECK(walk->is_added[i] && expected[i]);
        CHECK_EQUAL(watch->error, is_closed ? EBADF : 0);
        CHECK_EQUAL(watch->ready, is_closed ? 0 : walk_readiness(walk, i));
        walk->is_added[i] = expected[i] = false;
    }
    for (int i = 0; i < WATCHES; i++) {
        CHECK(!expected[i]);
        waiting += walk->is_added[i];
    }
    CHECK_EQUAL(reactor.watch_count, waiting);
}

static void a_random_walk_agrees_with_poll(void) {
    static Walk walk;
    walk.seed = 7;
    begin();
    for (int i = 0; i < SOCKETS; i++)
        walk_open(&walk, i);
    for (int n = 0; n < 20000 && test_failed_checks == 0; n++) {
        int s = (int)test_random_below(&walk.seed, SOCKETS);
        int i = (int)test_random_below(&walk.seed, WATCHES);
        switch (test_random_below(&walk.seed, 8)) {
        case 0:
        case 1:
        case 2:
            walk_add(&walk, i);
            break;
        case 3:
            if (walk.is_added[i])
                reactor_remove(&reactor, &walk.watch[i]);
            walk.is_added[i] = false;
            break;
        case 4:
            (void)!write(walk.peer[s], "x", 1);
            break;
        case 5:
            drain(test_random_below(&walk.seed, 2) ? walk.peer[s] : walk.fd[s]);
            break;
        case 6:
            if (test_random_below(&walk.seed, 8) == 0) {
                fill(walk.fd[s]);
            } else if (test_random_below(&walk.seed, 8) == 0) {
                close(walk.fd[s]);
                close(walk.peer[s]);
                walk_open(&walk, s); /* under the same numbers, or swapped */
            }
            break;
        default:
            walk_compare(&walk);
        }
    }
    end();
    for (int i = 0; i < SOCKETS; i++) {
        close(walk.fd[i]);
        close(walk.peer[i]);
    }
}

static const Test tests[] = {
    {"nothing is opened before it is needed", nothing_is_opened_before_it_is_needed},
    {"a pipe is readable once written to", a_pipe_is_readable_once_written_to},
    {"a full pipe is not writable", a_full_pipe_is_not_writable},
    {"one watch waits for both", one_watch_waits_for_both},
    {"the other end hanging up is readiness", the_other_end_hanging_up_is_readiness},
    {"several watches share a descriptor", several_watches_share_a_descriptor},
    {"a watch can be removed", a_watch_can_be_removed},
    {"a watch can be removed once it is ready", a_watch_can_be_removed_once_it_is_ready},
    {"removal leaves other directions armed", removal_leaves_other_directions_armed},
    {"hundreds are ready at once", hundreds_are_ready_at_once},
    {"descriptors may be far apart", descriptors_may_be_far_apart},
    {"bad descriptors are refused", bad_descriptors_are_refused},
    {"regular files are always ready", regular_files_are_always_ready},
    {"a closed descriptor is found", a_closed_descriptor_is_found},
    {"a reused number is noticed", a_reused_number_is_noticed},
    {"a reused number is noticed by the check", a_reused_number_is_noticed_by_the_check},
    {"a stale watch can be removed", a_stale_watch_can_be_removed},
    {"a duplicate keeps nobody else awake", a_duplicate_keeps_nobody_else_awake},
    {"a closed number of a duplicate is found", a_closed_number_of_a_duplicate_is_found},
    {"checks are rare", checks_are_rare},
    {"limits are exact", limits_are_exact},
    {"never waits as long as it takes", never_waits_as_long_as_it_takes},
    {"a signal interrupts", a_signal_interrupts},
    {"waiting is one system call", waiting_is_one_system_call},
    {"each lack of memory is reported", each_lack_of_memory_is_reported},
    {"a wait short of memory loses nothing", a_wait_short_of_memory_loses_nothing},
    {"failures of the system are reported", failures_of_the_system_are_reported},
#ifndef OPERO_REACTOR_POLL
    {"old kernels serve", old_kernels_serve},
#endif
    {"its own descriptor tells when to wait", its_own_descriptor_tells_when_to_wait},
    {"a random walk agrees with poll(2)", a_random_walk_agrees_with_poll},
    {NULL, NULL},
};

int main(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1024) {
        limit.rlim_cur = limit.rlim_max < 1024 ? limit.rlim_max : 1024;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    return test_main("reactor_test", tests);
}
