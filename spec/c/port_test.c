#include "port.h"
#include "process.h"

#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static int count_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* ---- one ring, both of its sides in this process ------------------------------------------------- */

#define CAPACITY ((size_t)4096)

typedef struct Pair {
    RingShared shared;
    Port port; /* only for memory that is mapped twice */
    Ring writer, reader;
} Pair;

static void pair_open(Pair *pair) {
    int peer, memory;
    memset(pair, 0, sizeof *pair);
    CHECK_EQUAL(port_open(&pair->port, &peer, &memory), 0);
    close(peer);
    close(memory);
    pair->writer = pair->reader = pair->port.out;
}

static void write_bytes(Ring *ring, size_t length, uint64_t from) {
    char *place = ring_place(ring);
    for (size_t i = 0; i < length; i++)
        place[i] = (char)(from + i);
    ring_publish(ring, length);
}

static bool holds(const char *bytes, size_t length, uint64_t from) {
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != (char)(from + i))
            return false;
    return true;
}

static void ring_is_empty_at_first(void) {
    Pair pair;
    const char *bytes;
    pair_open(&pair);
    CHECK_EQUAL(ring_room(&pair.writer), PORT_CAPACITY);
    CHECK_EQUAL(ring_peek(&pair.reader, &bytes), 0);
    port_close(&pair.port);
}

static void ring_carries_any_lengths_around_its_end(void) {
    Pair pair;
    uint64_t state = 7, written = 0, read = 0;
    pair_open(&pair);
    while (read < 8 * PORT_CAPACITY) {
        size_t room = ring_room(&pair.writer);
        size_t length = test_random_below(&state, (uint32_t)PORT_CAPACITY) + 1;
        const char *bytes;
        int64_t there;
        if (length > room)
            length = room;
        write_bytes(&pair.writer, length, written);
        written += length;
        CHECK_EQUAL(ring_room(&pair.writer), PORT_CAPACITY - (written - read));
        there = ring_peek(&pair.reader, &bytes);
        CHECK_EQUAL(there, written - read);
        length = test_random_below(&state, (uint32_t)there) + 1;
        CHECK(holds(bytes, length, read));
        ring_consume(&pair.reader, length);
        read += length;
    }
    port_close(&pair.port);
}

static void ring_can_be_full(void) {
    Pair pair;
    const char *bytes;
    pair_open(&pair);
    write_bytes(&pair.writer, PORT_CAPACITY, 3);
    CHECK_EQUAL(ring_room(&pair.writer), 0);
    CHECK_EQUAL(ring_peek(&pair.reader, &bytes), PORT_CAPACITY);
    CHECK(holds(bytes, PORT_CAPACITY, 3));
    port_close(&pair.port);
}

static void ring_says_once_whom_to_wake(void) {
    Pair pair;
    pair_open(&pair);
    CHECK(!ring_must_wake_reader(&pair.writer));
    CHECK(ring_wait_for_bytes(&pair.reader, 0));
    write_bytes(&pair.writer, 10, 0);
    CHECK(ring_must_wake_reader(&pair.writer));
    CHECK(!ring_must_wake_reader(&pair.writer));
    CHECK(!ring_wait_for_bytes(&pair.reader, 0)); /* there are some */
    CHECK(!ring_must_wake_reader(&pair.writer));
    CHECK(ring_wait_for_bytes(&pair.reader, 10)); /* of which it knows */

    CHECK(!ring_must_wake_writer(&pair.reader));
    CHECK(!ring_wait_for_room(&pair.writer, 100));
    write_bytes(&pair.writer, PORT_CAPACITY - 10, 10);
    CHECK(ring_wait_for_room(&pair.writer, 1));
    ring_consume(&pair.reader, 10);
    CHECK(ring_must_wake_writer(&pair.reader));
    CHECK(!ring_must_wake_writer(&pair.reader));
    port_close(&pair.port);
}

static void ring_trusts_no_positions(void) {
    Pair pair;
    const char *bytes;
    pair_open(&pair);
    atomic_store(&pair.writer.shared->written, PORT_CAPACITY + 1);
    CHECK_EQUAL(ring_peek(&pair.reader, &bytes), -1);
    atomic_store(&pair.writer.shared->written, UINT64_MAX);
    CHECK_EQUAL(ring_peek(&pair.reader, &bytes), -1);
    atomic_store(&pair.writer.shared->read, 1); /* of which nothing was written */
    CHECK_EQUAL(ring_room(&pair.writer), 0);
    port_close(&pair.port);
}

/* ---- a port between two processes ------------------------------------------------------------------ */

static void wait_for_bell(Port *port) {
    struct pollfd polled = {.fd = port->bell, .events = POLLIN};
    poll(&polled, 1, -1);
    CHECK(port_answer(port));
}

/* Sends back all that comes, until the other side hangs up. */
static void echo(Port *port) {
    for (;;) {
        const char *bytes;
        size_t there = (size_t)ring_peek(&port->in, &bytes), room = ring_room(&port->out);
        size_t length = there < room ? there : room;
        if (length > 0) {
            memcpy(ring_place(&port->out), bytes, length);
            ring_publish(&port->out, length);
            ring_consume(&port->in, length);
            port_wake(port);
        } else if (there > 0 ? ring_wait_for_room(&port->out, 1)
                             : ring_wait_for_bytes(&port->in, 0)) {
            struct pollfd polled = {.fd = port->bell, .events = POLLIN};
            poll(&polled, 1, -1);
            if (!port_answer(port))
                _exit(0);
        }
    }
}

/* Passes bytes to a child and back, in pieces of any size. */
static void pass(bool is_program) {
    enum { ALL = 4 * 1024 * 1024 };
    Port port;
    int peer, memory, status, before = count_descriptors();
    uint64_t state = 11, written = 0, read = 0;
    pid_t child;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    child = fork();
    if (child == 0) {
        if (is_program) { /* as good as one: it maps the memory anew */
            Port own;
            port_close(&port);
            if (port_attach(&own, peer, memory) != 0)
                _exit(9);
            echo(&own);
        }
        close(memory);
        port_turn(&port, peer);
        echo(&port);
    }
    close(peer);
    close(memory);
    while (read < ALL) {
        const char *bytes;
        size_t there = (size_t)ring_peek(&port.in, &bytes), room = ring_room(&port.out);
        size_t length = 1 + test_random_below(&state, 3 * 65536);
        bool has_moved = there > 0;
        CHECK(holds(bytes, there, read));
        ring_consume(&port.in, there);
        read += there;
        if (length > room)
            length = room;
        if (length > ALL - written)
            length = ALL - written;
        if (length > 0) {
            write_bytes(&port.out, length, written);
            written += length;
            has_moved = true;
        }
        port_wake(&port);
        if (!has_moved && ring_wait_for_bytes(&port.in, 0))
            wait_for_bell(&port);
    }
    port_close(&port);
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 0);
    CHECK_EQUAL(count_descriptors(), before);
}

static void port_carries_all_to_a_fork_and_back(void) {
    pass(false);
}

static void port_carries_all_to_a_program_and_back(void) {
    pass(true);
}

static void port_keeps_what_a_dead_worker_has_said(void) {
    Port port;
    int peer, memory, status;
    const char *bytes;
    pid_t child;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    child = fork();
    if (child == 0) {
        port_turn(&port, peer);
        write_bytes(&port.out, 1000, 5);
        kill(getpid(), SIGKILL);
    }
    close(peer);
    close(memory);
    waitpid(child, &status, 0);
    CHECK(!port_answer(&port));
    CHECK_EQUAL(ring_peek(&port.in, &bytes), 1000);
    CHECK(holds(bytes, 1000, 5));
    port_close(&port);
    port_close(&port); /* twice does no harm */
}

static void port_leaves_nothing_open_when_it_cannot_be_opened(void) {
    struct rlimit limit, tight;
    int before = count_descriptors(), failures = 0, lowest_free = dup(STDIN_FILENO);
    close(lowest_free);
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int spare = 0; spare < 3; spare++) {
        Port port;
        int peer, memory;
        tight = limit;
        tight.rlim_cur = (rlim_t)(lowest_free + spare);
        setrlimit(RLIMIT_NOFILE, &tight);
        failures += port_open(&port, &peer, &memory) == EMFILE;
        setrlimit(RLIMIT_NOFILE, &limit);
        CHECK_EQUAL(count_descriptors(), before);
    }
    CHECK_EQUAL(failures, 3);
}

/* ---- claims ---------------------------------------------------------------------------------------- */

static void claims_are_of_their_epoch(void) {
    Pair pair;
    pair_open(&pair);
    CHECK(port_claim(&pair.port, 0));
    CHECK(port_claim(&pair.port, 0));
    CHECK(!port_claim(&pair.port, 1));
    CHECK_EQUAL(port_begun(&pair.port), 2);
    CHECK_EQUAL(port_revoke(&pair.port), 2);
    CHECK_EQUAL(pair.port.epoch, 1);
    CHECK_EQUAL(port_begun(&pair.port), 0);
    CHECK(!port_claim(&pair.port, 0));
    CHECK(port_claim(&pair.port, 1));
    CHECK_EQUAL(port_revoke(&pair.port), 1);
    port_close(&pair.port);
}

/* A child claims in whatever epoch it is, while this process ends one after the other: each claim is
 * counted, once. */
static void claims_are_counted_once(void) {
    enum { EPOCHS = 100000 };
    Port port;
    int peer, memory, status;
    uint64_t counted = 0;
    const char *bytes;
    pid_t child;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    child = fork();
    if (child == 0) {
        uint64_t claims = 0;
        uint32_t epoch = 0;
        port_turn(&port, peer);
        while (epoch < EPOCHS)
            if (port_claim(&port, epoch))
                claims++;
            else
                epoch++;
        memcpy(ring_place(&port.out), &claims, sizeof claims);
        ring_publish(&port.out, sizeof claims);
        _exit(0);
    }
    close(peer);
    close(memory);
    for (int i = 0; i < EPOCHS; i++)
        counted += port_revoke(&port);
    waitpid(child, &status, 0);
    if (CHECK_EQUAL(ring_peek(&port.in, &bytes), sizeof counted)) {
        uint64_t claims;
        memcpy(&claims, bytes, sizeof claims);
        CHECK_EQUAL(claims, counted);
    }
    port_close(&port);
}

/* ---- processes ------------------------------------------------------------------------------------- */

static void handle(int signal) {
    (void)signal;
    _exit(77);
}

static void process_forks_one_with_signals_as_at_first(void) {
    Process process;
    sigset_t blocked, before;
    int descriptors = count_descriptors();
    signal(SIGUSR1, handle);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0) {
        char byte;
        if (read(STDIN_FILENO, &byte, 1) != 0)
            _exit(1); /* the standard input is to be empty */
        raise(SIGUSR1);
        _exit(2);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    CHECK(process_has_ended(&process, true));
    CHECK(process.is_known && WIFSIGNALED(process.status));
    CHECK_EQUAL(WTERMSIG(process.status), SIGUSR1);
    process_forget(&process);
    signal(SIGUSR1, SIG_DFL);
    CHECK_EQUAL(count_descriptors(), descriptors);
}

static void process_tells_its_end_by_a_descriptor(void) {
    Process process;
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        for (;;)
            pause();
    CHECK(!process_has_ended(&process, false));
    process_signal(&process, SIGKILL);
    if (process.end_fd >= 0) {
        struct pollfd polled = {.fd = process.end_fd, .events = POLLIN};
        CHECK_EQUAL(poll(&polled, 1, -1), 1);
        CHECK(process_has_ended(&process, false));
    }
    CHECK(process_has_ended(&process, true));
    CHECK_EQUAL(WTERMSIG(process.status), SIGKILL);
    process_signal(&process, SIGKILL); /* of no effect */
    process_forget(&process);
}

static void process_may_have_been_waited_for_by_others(void) {
    Process process;
    int status;
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(3);
    CHECK_EQUAL(waitpid(process.pid, &status, 0), process.pid);
    CHECK(process_has_ended(&process, true));
    CHECK(!process.is_known);
    process_forget(&process);
}

static int spawn_shell(Process *process, const char *command, int first, int second) {
    const char *argv[] = {"sh", "-c", command, NULL};
    const int descriptors[] = {first, second};
    return process_spawn(process, argv, descriptors, 2);
}

static void process_spawns_a_program_with_descriptors(void) {
    int before = count_descriptors(), pipes[2][2];
    CHECK_EQUAL(pipe2(pipes[0], O_CLOEXEC) + pipe2(pipes[1], O_CLOEXEC), 0);
    for (int swapped = 0; swapped < 2; swapped++) {
        Process process;
        char byte[2] = "";
        int first = pipes[swapped][1], second = pipes[!swapped][1];
        CHECK_EQUAL(
            spawn_shell(&process, "printf a >&3; printf b >&4; read x || exit 5", first, second),
            0);
        CHECK(process_has_ended(&process, true));
        CHECK_EQUAL(WEXITSTATUS(process.status), 5);
        CHECK_EQUAL(read(pipes[swapped][0], &byte[0], 1), 1);
        CHECK_EQUAL(read(pipes[!swapped][0], &byte[1], 1), 1);
        CHECK(byte[0] == 'a' && byte[1] == 'b');
        process_forget(&process);
    }
    for (int i = 0; i < 4; i++)
        close(pipes[i / 2][i % 2]);
    CHECK_EQUAL(count_descriptors(), before);
}

static void process_says_why_a_program_cannot_be_started(void) {
    Process process;
    const char *argv[] = {"/no/such/program", NULL};
    CHECK_EQUAL(process_spawn(&process, argv, NULL, 0), ENOENT);
    CHECK_EQUAL(process.pid, 0);
    CHECK(process_has_ended(&process, true));
    process_forget(&process);
}

/* A child forks a process that would go on for ever, and is killed: that process goes too. */
static void process_ends_with_its_parent(void) {
    int fds[2];
    char byte;
    pid_t child;
    CHECK_EQUAL(pipe(fds), 0);
    child = fork();
    if (child == 0) {
        Process process;
        if (process_fork(&process) == 0 && process.pid == 0)
            for (;;)
                pause();
        kill(getpid(), SIGKILL);
    }
    close(fds[1]);
    waitpid(child, NULL, 0);
    CHECK_EQUAL(read(fds[0], &byte, 1), 0); /* the last one that had the other end is gone */
    close(fds[0]);
}

int main(void) {
    static const Test tests[] = {
        {"ring: is empty at first", ring_is_empty_at_first},
        {"ring: carries any lengths around its end", ring_carries_any_lengths_around_its_end},
        {"ring: can be full", ring_can_be_full},
        {"ring: says once whom to wake", ring_says_once_whom_to_wake},
        {"ring: trusts no positions", ring_trusts_no_positions},
        {"port: carries all to a fork and back", port_carries_all_to_a_fork_and_back},
        {"port: carries all to a program and back", port_carries_all_to_a_program_and_back},
        {"port: keeps what a dead worker has said", port_keeps_what_a_dead_worker_has_said},
        {"port: leaves nothing open when it cannot be opened",
         port_leaves_nothing_open_when_it_cannot_be_opened},
        {"claims: are of their epoch", claims_are_of_their_epoch},
        {"claims: are counted once", claims_are_counted_once},
        {"process: forks one with signals as at first", process_forks_one_with_signals_as_at_first},
        {"process: tells its end by a descriptor", process_tells_its_end_by_a_descriptor},
        {"process: may have been waited for by others", process_may_have_been_waited_for_by_others},
        {"process: spawns a program with descriptors", process_spawns_a_program_with_descriptors},
        {"process: says why a program cannot be started",
         process_says_why_a_program_cannot_be_started},
        {"process: ends with its parent", process_ends_with_its_parent},
        {NULL, NULL},
    };
    return test_main("port_test", tests);
}
