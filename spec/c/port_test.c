#include "port.h"

#include "faults.h"
#include "test.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* ---- system calls that fail ---------------------------------------------------------------- */

static struct {
    long fail_at;     /* the number of the call that fails, counted from 1; 0: none */
    long made;        /* calls of those below since fail_call */
    const char *only; /* that are counted, or NULL: all */
    int interrupts;   /* so many calls of send and recv are */
    void *mapped;     /* the last piece of address space that was asked for */
    size_t mapped_size;
} calls;

/* The n-th call from now on fails with EIO. */
static void fail_call(long number, const char *only) {
    calls.made = 0;
    calls.only = only;
    calls.fail_at = number;
}

/* No more failures. Returns whether one was due. */
static bool was_due(void) {
    bool was = calls.made >= calls.fail_at;
    calls.fail_at = 0;
    return was;
}

static bool is_refused(const char *name) {
    if (calls.fail_at == 0 || (calls.only != NULL && strcmp(name, calls.only) != 0) ||
        ++calls.made != calls.fail_at)
        return false;
    errno = EIO;
    return true;
}

int socketpair(int domain, int type, int protocol, int fds[2]) {
    static int (*real)(int, int, int, int[2]);
    FAULTS_REAL("socketpair");
    return is_refused("socketpair") ? -1 : real(domain, type, protocol, fds);
}

int fcntl(int fd, int command, ...) {
    static int (*real)(int, int, ...);
    va_list arguments;
    long argument;
    va_start(arguments, command);
    argument = va_arg(arguments, long); /* what is not there is not looked at */
    va_end(arguments);
    FAULTS_REAL("fcntl");
    return is_refused("fcntl") ? -1 : real(fd, command, argument);
}

#ifdef __linux__
int memfd_create(const char *name, unsigned flags) {
    static int (*real)(const char *, unsigned);
    FAULTS_REAL("memfd_create");
    return is_refused("memfd_create") ? -1 : real(name, flags);
}
#endif

int ftruncate(int fd, off_t length) {
    static int (*real)(int, off_t);
    FAULTS_REAL("ftruncate");
    return is_refused("ftruncate") ? -1 : real(fd, length);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    void *memory;
    FAULTS_REAL("mmap");
    if (is_refused("mmap"))
        return MAP_FAILED;
    memory = real(at, size, protection, flags, fd, offset);
    if (at == NULL && memory != MAP_FAILED) {
        calls.mapped = memory;
        calls.mapped_size = size;
    }
    return memory;
}

static bool is_interrupted(void) {
    if (calls.interrupts == 0)
        return false;
    calls.interrupts--;
    errno = EINTR;
    return true;
}

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    FAULTS_REAL("send");
    return is_interrupted() ? -1 : real(fd, bytes, length, flags);
}

ssize_t recv(int fd, void *bytes, size_t length, int flags) {
    static ssize_t (*real)(int, void *, size_t, int);
    FAULTS_REAL("recv");
    return is_interrupted() ? -1 : real(fd, bytes, length, flags);
}

/* ---- what every test needs ----------------------------------------------------------------- */

static int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

/* Whether anything is left where the last port was mapped. */
static bool is_mapped(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char there;
    for (size_t at = 0; at < calls.mapped_size; at += page)
        if (mincore((char *)calls.mapped + at, page, &there) == 0)
            return true;
    return false;
}

/* The two sides of a port, in one process. */
typedef struct Pair {
    Port pool, worker;
} Pair;

static Pair make_pair(void) {
    Pair pair;
    int peer = -1, memory = -1;
    memset(&pair, 0xa5, sizeof pair);
    CHECK_EQUAL(port_open(&pair.pool, &peer, &memory), 0);
    CHECK_EQUAL(port_attach(&pair.worker, peer, memory), 0);
    return pair;
}

static void close_pair(Pair *pair) {
    port_close(&pair->pool);
    port_close(&pair->worker);
}

/* How many bytes there are to read from a descriptor. */
static int count_rings(const Port *port) {
    char bytes[4096];
    return (int)recv(port->bell, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
}

static bool is_readable(int fd) {
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, 0) == 1;
}

/* Publishes `length` bytes that tell where in the stream they are. */
static void put(Ring *writer, size_t length) {
    for (size_t i = 0; i < length; i++)
        ring_place(writer)[i] = (char)((writer->position + i) % 251);
    ring_publish(writer, length);
}

/* Whether so many bytes are there, and the right ones; takes them. */
static bool take(Ring *reader, size_t length) {
    const char *bytes;
    if (ring_peek(reader, &bytes) != (int64_t)length)
        return false;
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != (char)((reader->position + i) % 251))
            return false;
    ring_consume(reader, length);
    return true;
}

/* ---- opening and closing ------------------------------------------------------------------- */

static void an_open_port_is_empty(void) {
    int before = count_open(), peer, memory;
    Port port;
    memset(&port, 0xa5, sizeof port);
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    CHECK_EQUAL(count_open(), before + 3);
    CHECK_EQUAL(port.epoch, 0);
    CHECK_EQUAL(ring_room(&port.out), PORT_CAPACITY);
    CHECK(take(&port.in, 0));
    CHECK_EQUAL(port_begun(&port), 0);
    for (int i = 0; i < PORT_SLOTS; i++)
        CHECK_EQUAL(atomic_load(&port.shared->slots[i].began_ns), 0);
    CHECK(port_answer(&port)); /* the caller has the other end */
    close(peer);
    close(memory); /* what is mapped stays */
    put(&port.out, PORT_CAPACITY);
    CHECK_EQUAL(ring_room(&port.out), 0);
    port_close(&port);
    CHECK_EQUAL(count_open(), before);
}

static void its_descriptors_are_closed_on_exec(void) {
    int peer, memory;
    Port port;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    CHECK_EQUAL(fcntl(port.bell, F_GETFD), FD_CLOEXEC);
    CHECK_EQUAL(fcntl(peer, F_GETFD), FD_CLOEXEC);
    CHECK_EQUAL(fcntl(memory, F_GETFD), FD_CLOEXEC);
    CHECK(fcntl(port.bell, F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(peer, F_GETFL) & O_NONBLOCK);
    close(peer);
    close(memory);
    port_close(&port);
}

static void closing_leaves_nothing(void) {
    int before = count_open(), peer, memory, bell;
    Port port;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    bell = port.bell;
    CHECK(is_mapped());
    port_close(&port);
    CHECK(!is_mapped());
    CHECK(!is_open(bell));
    CHECK(is_open(peer) && is_open(memory)); /* they are the caller's */
    CHECK(port.shared == NULL);
    CHECK_EQUAL(port.bell, -1);
    CHECK_EQUAL(count_open(), before + 2);
    CHECK_EQUAL(dup2(peer, bell), bell);
    port_close(&port); /* what is closed is not closed again */
    CHECK(is_open(bell));
    close(bell);
    close(peer);
    close(memory);
    CHECK_EQUAL(count_open(), before);
}

static void each_call_that_fails_is_reported(void) {
    int before = count_open(), peer, memory, error;
    long number = 0;
    Port port;
    for (;;) {
        memset(&port, 0xa5, sizeof port);
        fail_call(++number, NULL);
        calls.mapped_size = 0;
        error = port_open(&port, &peer, &memory);
        if (!was_due())
            break;
        CHECK_EQUAL(error, EIO);
        CHECK(port.shared == NULL);
        CHECK(!is_mapped());
        CHECK_EQUAL(count_open(), before);
        port_close(&port); /* it was never open */
        CHECK_EQUAL(count_open(), before);
    }
    CHECK_EQUAL(error, 0);
    CHECK(number > 10); /* a pair, its flags, the memory, its size, and four halves of rings */
    CHECK_EQUAL(count_open(), before + 3);
    close(peer);
    close(memory);
    port_close(&port);
}

/* For as long as there are fewer than the three descriptors that it takes. */
static void a_lack_of_descriptors_is_reported(void) {
    struct rlimit limit, few;
    int before = count_open(), lowest = dup(STDOUT_FILENO), peer, memory;
    close(lowest);
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int spare = 0; spare <= 3; spare++) {
        Port port;
        int error, free_below = lowest;
        for (int left = spare; left > 0; free_below++)
            left -= !is_open(free_below);
        few = limit;
        few.rlim_cur = (rlim_t)free_below;
        setrlimit(RLIMIT_NOFILE, &few);
        error = port_open(&port, &peer, &memory);
        setrlimit(RLIMIT_NOFILE, &limit);
        CHECK_EQUAL(error, spare < 3 ? EMFILE : 0);
        CHECK_EQUAL(count_open(), before + (spare < 3 ? 0 : 3));
        if (error == 0) {
            close(peer);
            close(memory);
        }
        port_close(&port);
    }
    CHECK_EQUAL(count_open(), before);
}

/* ---- the worker's side --------------------------------------------------------------------- */

static void attaching_takes_both_descriptors(void) {
    int before = count_open(), peer, memory;
    Port pool, worker;
    CHECK_EQUAL(port_open(&pool, &peer, &memory), 0);
    pool.shared->setup = (PortSetup){.slots = 7, .nice = -3, .memory_limit = 1ULL << 40};
    put(&pool.out, 300);
    CHECK_EQUAL(fcntl(peer, F_SETFD, 0), 0); /* as a program gets it */
    memset(&worker, 0xa5, sizeof worker);
    CHECK_EQUAL(port_attach(&worker, peer, memory), 0);
    CHECK(!is_open(memory));
    CHECK_EQUAL(worker.bell, peer);
    CHECK_EQUAL(fcntl(peer, F_GETFD), FD_CLOEXEC);
    CHECK_EQUAL(worker.shared->setup.slots, 7);
    CHECK_EQUAL(worker.shared->setup.nice, -3);
    CHECK_EQUAL(worker.shared->setup.memory_limit, 1ULL << 40);
    CHECK(take(&worker.in, 300)); /* what was sent before is there */
    put(&worker.out, 200);
    CHECK(take(&pool.in, 200));
    port_close(&pool);
    put(&worker.out, 100); /* it has a mapping of its own */
    port_close(&worker);
    CHECK(!is_open(peer));
    CHECK_EQUAL(count_open(), before);
}

static void each_mapping_that_fails_is_reported(void) {
    int before = count_open(), error = -1;
    for (long number = 1; error != 0 && number < 20; number++) {
        int peer, memory;
        bool is_refusal;
        Port pool, worker;
        CHECK_EQUAL(port_open(&pool, &peer, &memory), 0);
        memset(&worker, 0xa5, sizeof worker);
        fail_call(number, "mmap");
        calls.mapped_size = 0;
        error = port_attach(&worker, peer, memory);
        is_refusal = was_due();
        CHECK_EQUAL(error, is_refusal ? EIO : 0);
        if (is_refusal) {
            CHECK(worker.shared == NULL);
            CHECK(!is_mapped());
            CHECK(!is_open(peer) && !is_open(memory));
            CHECK(!port_answer(&pool)); /* so the pool notices */
        }
        port_close(&pool);
        port_close(&worker);
        CHECK_EQUAL(count_open(), before);
    }
    CHECK_EQUAL(error, 0);
}

static void what_is_no_memory_is_refused(void) {
    int before = count_open(), fds[2];
    Port worker;
    CHECK(pipe(fds) == 0);
    CHECK(port_attach(&worker, fds[0], fds[1]) != 0);
    CHECK_EQUAL(count_open(), before);
    CHECK(pipe(fds) == 0);
    close(fds[1]);
    CHECK_EQUAL(port_attach(&worker, fds[0], fds[1]), EBADF);
    CHECK_EQUAL(count_open(), before);
}

static void turning_makes_it_the_other_side(void) {
    int before = count_open(), peer, memory, bell;
    Port pool, worker;
    CHECK_EQUAL(port_open(&pool, &peer, &memory), 0);
    close(memory);
    put(&pool.out, 500);
    worker = pool; /* as a fork copies it; but here its bell would be the pool's too */
    worker.bell = bell = dup(pool.bell);
    port_turn(&worker, peer);
    CHECK(!is_open(bell));
    CHECK_EQUAL(worker.bell, peer);
    CHECK(take(&worker.in, 500));
    put(&worker.out, 100);
    CHECK(take(&pool.in, 100));
    CHECK(ring_wait_for_bytes(&worker.in, 0));
    put(&pool.out, 1);
    port_wake(&pool);
    CHECK_EQUAL(count_rings(&worker), 1);
    close(peer);
    port_close(&pool); /* the memory is mapped once */
    CHECK_EQUAL(count_open(), before);
}

/* Both full, each from another place and in another round: they would show in each other. */
static void the_rings_are_apart(void) {
    Pair pair = make_pair();
    put(&pair.pool.out, PORT_CAPACITY);
    CHECK(take(&pair.worker.in, PORT_CAPACITY));
    put(&pair.pool.out, 100);
    put(&pair.worker.out, 5000);
    CHECK(take(&pair.worker.in, 100));
    CHECK(take(&pair.pool.in, 5000));
    for (int round = 0; round < 3; round++) {
        put(&pair.pool.out, PORT_CAPACITY - 1000);
        put(&pair.worker.out, PORT_CAPACITY);
        put(&pair.pool.out, 1000);
        CHECK(take(&pair.worker.in, PORT_CAPACITY));
        CHECK(take(&pair.pool.in, PORT_CAPACITY));
    }
    close_pair(&pair);
}

/* ---- the bell ------------------------------------------------------------------------------ */

static void who_does_not_wait_is_not_rung(void) {
    Pair pair = make_pair();
    put(&pair.pool.out, 10);
    port_wake(&pair.pool);
    CHECK(take(&pair.worker.in, 10));
    port_wake(&pair.worker);
    CHECK_EQUAL(count_rings(&pair.worker), -1);
    CHECK_EQUAL(count_rings(&pair.pool), -1);
    close_pair(&pair);
}

static void check_waking(Port *waiter, Port *other) {
    CHECK(ring_wait_for_bytes(&waiter->in, 0));
    put(&other->out, 10);
    port_wake(other);
    port_wake(other);
    CHECK_EQUAL(count_rings(waiter), 1); /* once */
    CHECK_EQUAL(count_rings(other), -1);
    CHECK(is_readable(waiter->bell));
    CHECK(port_answer(waiter));
    CHECK(!is_readable(waiter->bell));
    CHECK(take(&waiter->in, 10));

    put(&waiter->out, PORT_CAPACITY);
    CHECK(ring_wait_for_room(&waiter->out, 1));
    CHECK(take(&other->in, PORT_CAPACITY));
    port_wake(other);
    port_wake(other);
    CHECK_EQUAL(count_rings(waiter), 1);
    CHECK(port_answer(waiter));

    put(&waiter->out, PORT_CAPACITY);
    CHECK(ring_wait_for_room(&waiter->out, 1)); /* for both at once */
    CHECK(ring_wait_for_bytes(&waiter->in, 0));
    CHECK(take(&other->in, PORT_CAPACITY));
    put(&other->out, 10);
    port_wake(other);
    CHECK_EQUAL(count_rings(waiter), 1);
    CHECK(port_answer(waiter));
    CHECK(take(&waiter->in, 10));
    port_wake(other);
    CHECK_EQUAL(count_rings(waiter), -1);
}

static void who_waits_is_rung_once(void) {
    Pair pair = make_pair();
    check_waking(&pair.worker, &pair.pool);
    check_waking(&pair.pool, &pair.worker);
    close_pair(&pair);
}

static void an_answer_takes_all_rings(void) {
    Pair pair = make_pair();
    for (size_t count = 0; count <= 300; count++) {
        char bytes[300] = "";
        CHECK(count == 0 || send(pair.pool.bell, bytes, count, 0) == (ssize_t)count);
        CHECK(port_answer(&pair.worker));
        CHECK_EQUAL(count_rings(&pair.worker), -1);
        CHECK(port_answer(&pair.worker)); /* and does not block when there is none */
    }
    close_pair(&pair);
}

static void a_bell_that_is_full_has_been_rung(void) {
    Pair pair = make_pair();
    char bytes[4096] = "";
    while (send(pair.pool.bell, bytes, sizeof bytes, 0) > 0 || send(pair.pool.bell, "", 1, 0) > 0)
        ;
    CHECK(ring_wait_for_bytes(&pair.worker.in, 0));
    put(&pair.pool.out, 1);
    port_wake(&pair.pool); /* does not block */
    CHECK(is_readable(pair.worker.bell));
    CHECK(port_answer(&pair.worker));
    CHECK(!is_readable(pair.worker.bell));
    close_pair(&pair);
}

static void signals_neither_lose_a_ring_nor_an_answer(void) {
    Pair pair = make_pair();
    CHECK(ring_wait_for_bytes(&pair.worker.in, 0));
    put(&pair.pool.out, 1);
    calls.interrupts = 3;
    port_wake(&pair.pool);
    CHECK_EQUAL(calls.interrupts, 0);
    CHECK_EQUAL(count_rings(&pair.worker), 1);
    calls.interrupts = 3;
    CHECK(port_answer(&pair.worker));
    CHECK_EQUAL(calls.interrupts, 0);
    CHECK_EQUAL(count_rings(&pair.worker), -1);
    close_pair(&pair);
}

/* At once, or if it was rung before, when that has been taken in; it is readable then too. */
static void check_closed(Port *left, bool was_rung) {
    CHECK(is_readable(left->bell));
    if (was_rung)
        port_answer(left);
    CHECK(is_readable(left->bell));
    CHECK(!port_answer(left));
    CHECK(!port_answer(left)); /* and so it stays */
    ring_wait_for_bytes(&left->in, 0);
    put(&left->out, 1);
    port_wake(left); /* without a SIGPIPE */
}

static void a_closed_end_is_noticed(void) {
    const size_t rung[] = {0, 1, 63, 64, 65, 128, 200};
    char bytes[200] = "";
    for (size_t i = 0; i < sizeof rung / sizeof *rung; i++)
        for (int has_unread = 0; has_unread < 2; has_unread++) {
            Pair pair = make_pair();
            CHECK(port_answer(&pair.pool));
            CHECK(rung[i] == 0 || send(pair.worker.bell, bytes, rung[i], 0) > 0);
            if (has_unread) /* makes it a reset */
                CHECK(send(pair.pool.bell, "", 1, 0) == 1);
            atomic_store(&pair.pool.shared->to_worker.reader_waits, 1);
            port_close(&pair.worker);
            check_closed(&pair.pool, rung[i] > 0);
            close_pair(&pair);

            pair = make_pair();
            port_close(&pair.pool);
            atomic_store(&pair.worker.shared->to_pool.reader_waits, 1);
            check_closed(&pair.worker, false);
            close_pair(&pair);
        }
}

/* ---- a worker that was forked -------------------------------------------------------------- */

#define PATIENCE_MS 15000

static void wait_for_bell(Port *port) {
    struct pollfd polled = {.fd = port->bell, .events = POLLIN};
    CHECK_EQUAL(poll(&polled, 1, PATIENCE_MS), 1);
}

/* Sends back all that comes, as long as there is a pool. */
static void echo(Port *port) {
    for (;;) {
        const char *bytes;
        int64_t there = ring_peek(&port->in, &bytes);
        size_t room = ring_room(&port->out), length = (size_t)there < room ? (size_t)there : room;
        if (there < 0)
            _exit(2);
        if (length > 0) {
            memcpy(ring_place(&port->out), bytes, length);
            ring_publish(&port->out, length);
            ring_consume(&port->in, length);
        } else if (there > 0 ? ring_wait_for_room(&port->out, 1)
                             : ring_wait_for_bytes(&port->in, 0)) {
            port_wake(port);
            wait_for_bell(port);
            if (!port_answer(port))
                _exit(test_failed_checks > 0);
        }
    }
}

/* Makes this process, which was forked, a worker. */
static void become_worker(Port *port, int peer, int memory, bool is_program) {
    alarm(20);
    test_failed_checks = 0;
    if (is_program) { /* as good as one: it has nothing of the pool's but the descriptors */
        port_close(port);
        CHECK_EQUAL(port_attach(port, peer, memory), 0);
        CHECK(!is_open(memory));
    } else {
        int bell = port->bell;
        close(memory);
        port_turn(port, peer);
        CHECK(!is_open(bell)); /* or it would hold its own other end open */
    }
    CHECK_EQUAL(port->bell, peer);
    CHECK_EQUAL(ring_room(&port->out), PORT_CAPACITY);
}

static void check_exit(pid_t child) {
    int status = -1;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 0);
}

static void check_passing(bool is_program) {
    enum { ALL = 8 << 20 };
    int before = count_open(), peer, memory;
    uint64_t seed = 11;
    pid_t child;
    Port port;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    child = fork();
    if (child == 0) {
        become_worker(&port, peer, memory, is_program);
        echo(&port);
    }
    close(peer);
    close(memory);
    while (port.in.position < ALL && test_failed_checks == 0) {
        const char *bytes;
        size_t there = (size_t)ring_peek(&port.in, &bytes), room = ring_room(&port.out);
        size_t length = 1 + test_random_below(&seed, 3 << 16), left = ALL - port.out.position;
        if (length > room)
            length = room;
        if (length > left)
            length = left;
        CHECK(take(&port.in, there));
        put(&port.out, length);
        if (there > 0 || length > 0)
            continue;
        port_wake(&port);
        if (ring_wait_for_bytes(&port.in, 0) && (left == 0 || ring_wait_for_room(&port.out, 1))) {
            wait_for_bell(&port);
            CHECK(port_answer(&port));
        }
    }
    port_close(&port);
    check_exit(child); /* it has noticed */
    CHECK_EQUAL(count_open(), before);
}

static void a_fork_sends_back_all(void) {
    check_passing(false);
}

static void a_program_sends_back_all(void) {
    check_passing(true);
}

static void what_a_dead_worker_has_said_is_there(void) {
    for (int is_program = 0; is_program < 2; is_program++) {
        int before = count_open(), peer, memory, status;
        pid_t child;
        Port port;
        CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
        put(&port.out, 10);
        CHECK(ring_wait_for_bytes(&port.in, 0));
        child = fork();
        if (child == 0) {
            become_worker(&port, peer, memory, is_program);
            CHECK(take(&port.in, 10));
            CHECK(port_claim(&port, 0) && port_claim(&port, 0));
            atomic_store(&port.shared->slots[3].began_ns, 77);
            put(&port.out, 1000);
            if (test_failed_checks > 0)
                _exit(1);
            raise(SIGKILL);
        }
        close(peer);
        close(memory);
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK(WIFSIGNALED(status));
        CHECK(is_readable(port.bell)); /* that it died shows, though it has not rung */
        CHECK(!port_answer(&port));
        CHECK(take(&port.in, 1000));
        CHECK_EQUAL(atomic_load(&port.shared->slots[3].began_ns), 77);
        CHECK_EQUAL(port_revoke(&port), 2);
        port_close(&port);
        CHECK_EQUAL(count_open(), before);
    }
}

/* ---- claims -------------------------------------------------------------------------------- */

static void a_claim_is_counted(void) {
    Pair pair = make_pair();
    for (uint32_t n = 0; n < 1000; n++) {
        CHECK_EQUAL(port_begun(&pair.pool), n);
        CHECK(port_claim(&pair.worker, 0));
    }
    CHECK_EQUAL(port_begun(&pair.pool), 1000);
    CHECK_EQUAL(port_begun(&pair.worker), 1000);
    close_pair(&pair);
}

static void what_is_of_another_epoch_cannot_be_claimed(void) {
    Pair pair = make_pair();
    CHECK(!port_claim(&pair.worker, 1)); /* not yet */
    CHECK(!port_claim(&pair.worker, UINT32_MAX));
    CHECK_EQUAL(port_begun(&pair.pool), 0);
    CHECK_EQUAL(port_revoke(&pair.pool), 0);
    CHECK_EQUAL(pair.pool.epoch, 1);
    CHECK(!port_claim(&pair.worker, 0)); /* no more */
    CHECK(!port_claim(&pair.worker, 2));
    CHECK_EQUAL(port_begun(&pair.pool), 0);
    CHECK(port_claim(&pair.worker, 1));
    CHECK_EQUAL(port_begun(&pair.pool), 1);
    close_pair(&pair);
}

static void revoking_tells_how_many_had_begun(void) {
    Pair pair = make_pair();
    for (uint32_t epoch = 0; epoch < 100; epoch++) {
        CHECK_EQUAL(pair.pool.epoch, epoch);
        for (uint32_t n = 0; n < epoch % 7; n++)
            CHECK(port_claim(&pair.worker, epoch));
        CHECK_EQUAL(port_begun(&pair.pool), epoch % 7);
        CHECK_EQUAL(port_revoke(&pair.pool), epoch % 7);
        CHECK_EQUAL(port_begun(&pair.pool), 0);
        CHECK(!port_claim(&pair.worker, epoch));
    }
    close_pair(&pair);
}

static void set_claims(Pair *pair, uint32_t epoch, uint32_t begun) {
    pair->pool.epoch = epoch;
    atomic_store(&pair->pool.shared->claims, (uint64_t)epoch << 32 | begun);
}

/* After 2^32 tasks the count begins anew, and the epoch goes on. */
static void tasks_without_end_can_be_claimed(void) {
    Pair pair = make_pair();
    set_claims(&pair, 5, UINT32_MAX);
    CHECK(port_claim(&pair.worker, 5));
    CHECK_EQUAL(port_begun(&pair.pool), 0);
    CHECK(port_claim(&pair.worker, 5));
    CHECK_EQUAL(port_begun(&pair.pool), 1);
    CHECK(!port_claim(&pair.worker, 6));
    set_claims(&pair, UINT32_MAX, UINT32_MAX);
    CHECK(port_claim(&pair.worker, UINT32_MAX));
    CHECK(port_claim(&pair.worker, UINT32_MAX));
    CHECK_EQUAL(port_revoke(&pair.pool), 1);
    close_pair(&pair);
}

static void epochs_go_round(void) {
    Pair pair = make_pair();
    set_claims(&pair, UINT32_MAX, 3);
    CHECK(port_claim(&pair.worker, UINT32_MAX));
    CHECK_EQUAL(port_revoke(&pair.pool), 4);
    CHECK_EQUAL(pair.pool.epoch, 0);
    CHECK(!port_claim(&pair.worker, UINT32_MAX));
    CHECK(port_claim(&pair.worker, 0));
    CHECK_EQUAL(port_revoke(&pair.pool), 1);
    close_pair(&pair);
}

#define EPOCHS 100000

/* What a worker has claimed, by its own count. */
typedef struct Race {
    uint32_t claimed[EPOCHS];
    _Atomic bool is_over;
} Race;

/* Claims in the epoch that it knows of, until that is refused, and then looks for the next; now and then
 * in one that has passed or has not come. */
static void claim_all(Port *port, Race *race) {
    uint64_t seed = 3;
    uint32_t epoch = 0;
    while (!atomic_load_explicit(&race->is_over, memory_order_relaxed)) {
        if (port_claim(port, epoch) && epoch < EPOCHS)
            race->claimed[epoch]++;
        else
            epoch = (uint32_t)(atomic_load(&port->shared->claims) >> 32);
        if (test_random_below(&seed, 8) == 0) {
            uint32_t other = epoch + 1 - 2 * test_random_below(&seed, 2);
            if (other < EPOCHS && port_claim(port, other)) {
                race->claimed[other]++; /* it has just come */
                epoch = other;
            }
        }
    }
}

/* In each epoch the pool counts what the worker counts: no claim twice, and none after its end. */
static void each_claim_is_counted_once(void) {
    Race *race =
        mmap(NULL, sizeof *race, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    static uint32_t counted[EPOCHS];
    uint64_t all = 0;
    int peer, memory, wrong = 0;
    pid_t child;
    Port port;
    CHECK_EQUAL(port_open(&port, &peer, &memory), 0);
    child = fork();
    if (child == 0) {
        become_worker(&port, peer, memory, false);
        claim_all(&port, race);
        _exit(0);
    }
    close(peer);
    close(memory);
    for (uint32_t epoch = 0; epoch < EPOCHS; epoch++) {
        uint32_t begun;
        while (epoch % 5000 == 0 && port_begun(&port) == 0)
            sched_yield(); /* or it might be over before the worker has begun */
        begun = port_begun(&port);
        counted[epoch] = port_revoke(&port);
        wrong += counted[epoch] < begun || port.epoch != epoch + 1;
    }
    atomic_store(&race->is_over, true);
    check_exit(child);
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        wrong += counted[epoch] != race->claimed[epoch];
        all += counted[epoch];
    }
    CHECK_EQUAL(wrong, 0);
    CHECK(all >= EPOCHS / 5000);
    munmap(race, sizeof *race);
    port_close(&port);
}

static const Test tests[] = {
    {"an open port is empty", an_open_port_is_empty},
    {"its descriptors are closed on exec", its_descriptors_are_closed_on_exec},
    {"closing leaves nothing", closing_leaves_nothing},
    {"each call that fails is reported", each_call_that_fails_is_reported},
    {"a lack of descriptors is reported", a_lack_of_descriptors_is_reported},
    {"attaching takes both descriptors", attaching_takes_both_descriptors},
    {"each mapping that fails is reported", each_mapping_that_fails_is_reported},
    {"what is no memory is refused", what_is_no_memory_is_refused},
    {"turning makes it the other side", turning_makes_it_the_other_side},
    {"the rings are apart", the_rings_are_apart},
    {"who does not wait is not rung", who_does_not_wait_is_not_rung},
    {"who waits is rung once", who_waits_is_rung_once},
    {"an answer takes all rings", an_answer_takes_all_rings},
    {"a bell that is full has been rung", a_bell_that_is_full_has_been_rung},
    {"signals neither lose a ring nor an answer", signals_neither_lose_a_ring_nor_an_answer},
    {"a closed end is noticed", a_closed_end_is_noticed},
    {"a fork sends back all", a_fork_sends_back_all},
    {"a program sends back all", a_program_sends_back_all},
    {"what a dead worker has said is there", what_a_dead_worker_has_said_is_there},
    {"a claim is counted", a_claim_is_counted},
    {"what is of another epoch cannot be claimed", what_is_of_another_epoch_cannot_be_claimed},
    {"revoking tells how many had begun", revoking_tells_how_many_had_begun},
    {"tasks without end can be claimed", tasks_without_end_can_be_claimed},
    {"epochs go round", epochs_go_round},
    {"each claim is counted once", each_claim_is_counted_once},
    {NULL, NULL},
};

int main(void) {
    signal(SIGCHLD, SIG_DFL); /* whatever the shell has made of it */
    return test_main("port_test", tests);
}
