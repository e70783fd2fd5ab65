#include "ring.h"

#include "clock.h"
#include "test.h"

#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* ---- a ring and its two sides -------------------------------------------------------------- */

typedef struct Pair {
    RingShared *shared;
    char *bytes;
    size_t capacity;
    bool has_mirror;
    Ring writer, reader;
} Pair;

static size_t page_size(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void *must_map(void *at, size_t size, int flags, int fd) {
    void *memory = mmap(at, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return memory;
}

/* In memory that a fork shares. A ring of less than a page has no mirror: only a byte at a time may be
 * put into it. */
static Pair make_pair(size_t capacity) {
    Pair pair = {.capacity = capacity, .has_mirror = capacity % page_size() == 0};
    pair.shared = must_map(NULL, sizeof(RingShared), MAP_SHARED | MAP_ANONYMOUS, -1);
    pair.bytes = must_map(NULL, 2 * capacity, MAP_SHARED | MAP_ANONYMOUS, -1);
    if (pair.has_mirror) {
        FILE *file = tmpfile();
        if (file == NULL || ftruncate(fileno(file), (off_t)capacity) != 0) {
            perror("tmpfile");
            exit(2);
        }
        for (size_t half = 0; half < 2; half++)
            must_map(pair.bytes + half * capacity, capacity, MAP_SHARED | MAP_FIXED, fileno(file));
        fclose(file);
    }
    ring_init(&pair.writer, pair.shared, pair.bytes, capacity);
    ring_init(&pair.reader, pair.shared, pair.bytes, capacity);
    return pair;
}

static Pair make_page(void) {
    return make_pair(page_size());
}

static void close_pair(Pair *pair) {
    munmap(pair->shared, sizeof(RingShared));
    munmap(pair->bytes, 2 * pair->capacity);
}

/* As if so many bytes had passed. */
static void set_positions(Pair *pair, uint64_t position) {
    pair->writer.position = pair->reader.position = position;
    atomic_store(&pair->shared->written, position);
    atomic_store(&pair->shared->read, position);
}

/* ---- bytes that tell where in the stream they belong --------------------------------------- */

#define PERIOD                                                                                     \
    65521 /* a prime: what is left from a round ago does not look like what should be there */
#define LONGEST ((size_t)1 << 19)

static char pattern[PERIOD + LONGEST];

static void make_pattern(void) {
    uint64_t seed = 1;
    for (size_t i = 0; i < PERIOD; i++)
        pattern[i] = (char)test_random(&seed);
    for (size_t i = 0; i < LONGEST; i++)
        pattern[PERIOD + i] = pattern[i % PERIOD];
}

static const char *pattern_at(uint64_t position) {
    return pattern + position % PERIOD;
}

static void put(Ring *writer, size_t length) {
    memcpy(ring_place(writer), pattern_at(writer->position), length);
    ring_publish(writer, length);
}

/* Whether that many bytes are there, and the right ones. */
static bool shows(const Ring *reader, size_t length) {
    const char *bytes;
    return ring_peek(reader, &bytes) == (int64_t)length &&
           memcmp(bytes, pattern_at(reader->position), length) == 0;
}

/* ---- writing and reading ------------------------------------------------------------------- */

static void a_new_ring_is_empty(void) {
    Pair pair = make_page();
    const char *bytes = NULL;
    CHECK_EQUAL(ring_room(&pair.writer), pair.capacity);
    CHECK(ring_place(&pair.writer) == pair.bytes);
    CHECK_EQUAL(ring_peek(&pair.reader, &bytes), 0);
    CHECK(bytes == pair.bytes);
    CHECK(!ring_must_wake_reader(&pair.writer));
    CHECK(!ring_must_wake_writer(&pair.reader));
    close_pair(&pair);
}

static void each_side_writes_to_lines_of_its_own(void) {
    size_t written = offsetof(RingShared, written), read = offsetof(RingShared, read);
    CHECK_EQUAL(written % CACHE_LINE, 0);
    CHECK(written / CACHE_LINE != read / CACHE_LINE);
    CHECK(offsetof(RingShared, reader_waits) / CACHE_LINE != written / CACHE_LINE);
    CHECK(offsetof(RingShared, reader_waits) / CACHE_LINE != read / CACHE_LINE);
    CHECK(offsetof(RingShared, writer_waits) / CACHE_LINE != written / CACHE_LINE);
    CHECK(offsetof(RingShared, writer_waits) / CACHE_LINE != read / CACHE_LINE);
}

static void what_is_published_is_there(void) {
    Pair pair = make_page();
    memcpy(ring_place(&pair.writer), pattern_at(0), 100);
    CHECK(shows(&pair.reader, 0)); /* written, but not published */
    CHECK_EQUAL(ring_room(&pair.writer), pair.capacity);
    ring_publish(&pair.writer, 60);
    CHECK(shows(&pair.reader, 60));
    CHECK_EQUAL(ring_room(&pair.writer), pair.capacity - 60);
    ring_publish(&pair.writer, 0);
    CHECK(shows(&pair.reader, 60));
    CHECK(ring_place(&pair.writer) == pair.bytes + 60);
    ring_publish(&pair.writer, 40);
    CHECK(shows(&pair.reader, 100));
    CHECK(shows(&pair.reader, 100)); /* to look is not to take */
    close_pair(&pair);
}

static void what_is_consumed_makes_room(void) {
    Pair pair = make_page();
    put(&pair.writer, 100);
    ring_consume(&pair.reader, 0);
    CHECK(shows(&pair.reader, 100));
    ring_consume(&pair.reader, 30);
    CHECK(shows(&pair.reader, 70));
    CHECK_EQUAL(ring_room(&pair.writer), pair.capacity - 70);
    ring_consume(&pair.reader, 70);
    CHECK(shows(&pair.reader, 0));
    CHECK_EQUAL(ring_room(&pair.writer), pair.capacity);
    CHECK(ring_place(&pair.writer) == pair.bytes + 100);
    close_pair(&pair);
}

static void a_full_ring_has_no_room(void) {
    Pair pair = make_page();
    put(&pair.writer, pair.capacity - 1);
    CHECK_EQUAL(ring_room(&pair.writer), 1);
    put(&pair.writer, 1);
    CHECK_EQUAL(ring_room(&pair.writer), 0);
    CHECK(shows(&pair.reader, pair.capacity));
    ring_consume(&pair.reader, 1);
    CHECK_EQUAL(ring_room(&pair.writer), 1);
    put(&pair.writer, 1); /* where the first byte was */
    CHECK_EQUAL(ring_room(&pair.writer), 0);
    CHECK(shows(&pair.reader, pair.capacity));
    ring_consume(&pair.reader, pair.capacity);
    CHECK(shows(&pair.reader, 0));
    CHECK_EQUAL(ring_room(&pair.writer), pair.capacity);
    close_pair(&pair);
}

/* From each place around the end, any length is in one piece. */
static void nothing_is_split_at_the_end(void) {
    Pair pair = make_page();
    size_t c = pair.capacity, lengths[] = {1, 2, 3, 7, 8, 9, 64, c / 2, c - 1, c};
    for (uint64_t start = c - 10; start <= c + 2; start++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            set_positions(&pair, start);
            CHECK(ring_place(&pair.writer) == pair.bytes + start % c);
            put(&pair.writer, lengths[i]);
            CHECK(shows(&pair.reader, lengths[i]));
            ring_consume(&pair.reader, lengths[i]);
            CHECK(shows(&pair.reader, 0));
            CHECK_EQUAL(ring_room(&pair.writer), c);
            CHECK(ring_place(&pair.writer) >= pair.bytes);
            CHECK(ring_place(&pair.writer) < pair.bytes + c);
        }
    close_pair(&pair);
}

static void any_lengths_follow_each_other(void) {
    for (size_t pages = 1; pages <= 8; pages *= 8) {
        Pair pair = make_pair(pages * page_size());
        uint64_t seed = 7;
        size_t there = 0;
        for (int n = 0; n < 20000 && test_failed_checks == 0; n++) {
            size_t room = pair.capacity - there, length;
            CHECK_EQUAL(ring_room(&pair.writer), room);
            length = test_random_below(&seed, (uint32_t)room + 1);
            put(&pair.writer, length);
            there += length;
            CHECK(shows(&pair.reader, there));
            length = test_random_below(&seed, (uint32_t)there + 1);
            ring_consume(&pair.reader, length);
            there -= length;
        }
        CHECK(pair.writer.position > 100 * pair.capacity);
        close_pair(&pair);
    }
}

/* Positions only grow: past 32 bits soon, and past 64 of them never, but it would do no harm. */
static void positions_may_be_of_any_size(void) {
    const uint64_t ends[] = {(uint64_t)1 << 31, (uint64_t)1 << 32, (uint64_t)1 << 63, 0};
    Pair pair = make_page();
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        set_positions(&pair, ends[i] - pair.capacity / 2);
        for (size_t n = 0; n < pair.capacity; n += 100) {
            memset(ring_place(&pair.writer), (int)n, 100);
            ring_publish(&pair.writer, 100);
            CHECK_EQUAL(ring_room(&pair.writer), pair.capacity - 100);
            CHECK_EQUAL(ring_wait_for_room(&pair.writer, pair.capacity), true);
            CHECK_EQUAL(ring_wait_for_bytes(&pair.reader, 100), true);
            CHECK_EQUAL(*ring_place(&pair.reader), (char)n);
            ring_consume(&pair.reader, 100);
            CHECK_EQUAL(ring_wait_for_room(&pair.writer, pair.capacity), false);
        }
    }
    close_pair(&pair);
}

/* ---- waiting ------------------------------------------------------------------------------- */

static void who_does_not_wait_is_not_woken(void) {
    Pair pair = make_page();
    put(&pair.writer, pair.capacity);
    CHECK(!ring_must_wake_reader(&pair.writer));
    ring_consume(&pair.reader, pair.capacity);
    CHECK(!ring_must_wake_writer(&pair.reader));
    close_pair(&pair);
}

static void a_reader_that_waits_is_woken_once(void) {
    Pair pair = make_page();
    CHECK(ring_wait_for_bytes(&pair.reader, 0));
    CHECK(!ring_must_wake_writer(&pair.reader)); /* it is not the writer who waits */
    put(&pair.writer, 10);
    CHECK(ring_must_wake_reader(&pair.writer));
    CHECK(!ring_must_wake_reader(&pair.writer));
    put(&pair.writer, 10);
    CHECK(!ring_must_wake_reader(&pair.writer)); /* it has been woken, and looks */
    CHECK(ring_wait_for_bytes(&pair.reader, 20));
    CHECK(ring_wait_for_bytes(&pair.reader, 20)); /* to say it twice is to wait once */
    put(&pair.writer, 1);
    CHECK(ring_must_wake_reader(&pair.writer));
    CHECK(!ring_must_wake_reader(&pair.writer));
    close_pair(&pair);
}

static void a_reader_need_not_wait_for_what_is_there(void) {
    Pair pair = make_page();
    put(&pair.writer, 1);
    CHECK(!ring_wait_for_bytes(&pair.reader, 0));
    CHECK(!ring_must_wake_reader(&pair.writer)); /* so it does not */
    CHECK(ring_wait_for_bytes(&pair.reader, 1)); /* that one it has seen */
    put(&pair.writer, pair.capacity - 1);
    CHECK(!ring_wait_for_bytes(&pair.reader, 1));
    CHECK(!ring_must_wake_reader(&pair.writer));
    CHECK(
        ring_wait_for_bytes(&pair.reader, pair.capacity)); /* there will be none before it reads */
    ring_consume(&pair.reader, pair.capacity);
    CHECK(ring_must_wake_reader(&pair.writer));
    close_pair(&pair);
}

static void a_writer_that_waits_is_woken_once(void) {
    Pair pair = make_page();
    put(&pair.writer, pair.capacity);
    CHECK(ring_wait_for_room(&pair.writer, 1));
    CHECK(ring_wait_for_room(&pair.writer, pair.capacity));
    CHECK(!ring_must_wake_reader(&pair.writer)); /* it is not the reader who waits */
    ring_consume(&pair.reader, 10);
    CHECK(ring_must_wake_writer(&pair.reader));
    CHECK(!ring_must_wake_writer(&pair.reader));
    CHECK(ring_wait_for_room(&pair.writer, 11)); /* that was not enough */
    ring_consume(&pair.reader, 1);
    CHECK(ring_must_wake_writer(&pair.reader));
    CHECK(!ring_wait_for_room(&pair.writer, 11));
    CHECK(!ring_must_wake_writer(&pair.reader));
    close_pair(&pair);
}

static void a_writer_need_not_wait_for_room_that_is_there(void) {
    Pair pair = make_page();
    CHECK(!ring_wait_for_room(&pair.writer, 0));
    CHECK(!ring_wait_for_room(&pair.writer, pair.capacity));
    put(&pair.writer, 100);
    CHECK(!ring_wait_for_room(&pair.writer, pair.capacity - 100));
    ring_consume(&pair.reader, 50);
    CHECK(!ring_must_wake_writer(&pair.reader));
    put(&pair.writer, pair.capacity - 50);
    CHECK(!ring_wait_for_room(&pair.writer, 0));
    close_pair(&pair);
}

/* ---- a side gone mad ----------------------------------------------------------------------- */

static void more_written_than_can_be_is_noticed(void) {
    Pair pair = make_page();
    const char *bytes;
    uint64_t c = pair.capacity, at[] = {0, 1, c - 1, c, 5 * c + 77, UINT64_MAX - 5, UINT64_MAX};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        uint64_t bad[] = {1 + c, 2 * c, (uint64_t)1 << 32, (uint64_t)1 << 63, UINT64_MAX};
        set_positions(&pair, at[i]);
        atomic_store(&pair.shared->written, at[i] + c);
        CHECK_EQUAL(ring_peek(&pair.reader, &bytes), c); /* just possible */
        for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
            atomic_store(&pair.shared->written,
                         at[i] + bad[k]); /* the last: one less than before */
            CHECK_EQUAL(ring_peek(&pair.reader, &bytes), -1);
            CHECK(bytes == pair.bytes + at[i] % c);
            CHECK(!ring_wait_for_bytes(&pair.reader, 0)); /* it is to look again, and to notice */
            CHECK(!ring_wait_for_bytes(&pair.reader, (size_t)bad[k] % c));
        }
    }
    close_pair(&pair);
}

static void more_read_than_was_written_leaves_no_room(void) {
    Pair pair = make_page();
    uint64_t c = pair.capacity, at[] = {0, 1, c - 1, c, 5 * c + 77, UINT64_MAX - 5, UINT64_MAX};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        /* ahead of what was written, or so far behind that it had been overwritten */
        uint64_t bad[] = {1, c, (uint64_t)1 << 32, (uint64_t)1 << 63, UINT64_MAX - c};
        set_positions(&pair, at[i]);
        for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
            atomic_store(&pair.shared->read, at[i] + bad[k]);
            CHECK_EQUAL(ring_room(&pair.writer), 0);
            CHECK(ring_wait_for_room(&pair.writer, 1));
            CHECK(ring_place(&pair.writer) == pair.bytes + at[i] % c);
        }
        atomic_store(&pair.shared->read, at[i] - c);
        CHECK_EQUAL(ring_room(&pair.writer), 0); /* full */
        atomic_store(&pair.shared->read, at[i] - c + 1);
        CHECK_EQUAL(ring_room(&pair.writer), 1);
    }
    close_pair(&pair);
}

/* Whatever stands there, what may be read and written is within the ring. Its bytes are touched, so
 * what is beyond would crash. */
static void scribbled_positions_lead_nowhere_else(void) {
    Pair pair = make_page();
    uint64_t seed = 3;
    int refused = 0, served = 0;
    for (int n = 0; n < 100000 && test_failed_checks == 0; n++) {
        uint64_t near = test_random_below(&seed, (uint32_t)(3 * pair.capacity));
        const char *bytes;
        int64_t there;
        size_t room;
        uint64_t random = test_random(&seed);
        atomic_store(&pair.shared->written, n % 2 ? random : pair.reader.position + near);
        atomic_store(&pair.shared->read, n % 3 ? pair.writer.position - near : ~random);
        atomic_store(&pair.shared->reader_waits, (uint32_t)(random >> 32));
        atomic_store(&pair.shared->writer_waits, (uint32_t)random);
        there = ring_peek(&pair.reader, &bytes);
        CHECK(there >= -1 && there <= (int64_t)pair.capacity);
        CHECK(bytes >= pair.bytes && bytes < pair.bytes + pair.capacity);
        if (there > 0) {
            volatile char last = bytes[there - 1];
            (void)last;
            ring_consume(&pair.reader, 1 + test_random_below(&seed, (uint32_t)there));
        }
        room = ring_room(&pair.writer);
        CHECK(room <= pair.capacity);
        if (room > 0) {
            ring_place(&pair.writer)[room - 1] = 'x';
            ring_publish(&pair.writer, 1 + test_random_below(&seed, (uint32_t)room));
        }
        CHECK_EQUAL(ring_must_wake_reader(&pair.writer), (uint32_t)(random >> 32) != 0);
        CHECK_EQUAL(ring_must_wake_writer(&pair.reader), (uint32_t)random != 0);
        refused += there < 0 || room == 0;
        served += there > 0 || room > 0;
    }
    CHECK(refused > 1000 && served > 1000);
    close_pair(&pair);
}

/* ---- two processes ------------------------------------------------------------------------- */

#define PATIENCE_MS 15000 /* who sleeps that long was forgotten */

/* How a stream is passed. */
typedef struct Stream {
    size_t capacity;
    int messages;
    uint32_t usual, longest; /* lengths: up to the first, and now and then up to the other */
    uint32_t wake_every;     /* the other is woken after so many messages, and before sleep */
    uint32_t eager;          /* looks up to so often before it says that it waits */
} Stream;

/* One end of it. */
typedef struct End {
    const Stream *stream;
    Ring *ring;
    int bell;
    uint64_t lengths; /* the state of a generator, the same at both ends */
    uint64_t seed;    /* of all else */
    int sleeps;
} End;

static uint32_t next_length(End *end) {
    const Stream *stream = end->stream;
    if (stream->longest > stream->usual && test_random_below(&end->lengths, 1000) == 0)
        return 1 + test_random_below(&end->lengths, stream->longest);
    return 1 + test_random_below(&end->lengths, stream->usual);
}

static void wake(const End *end) {
    (void)!send(end->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Until the bell is rung. */
static bool sleep_for_bell(End *end) {
    struct pollfd polled = {.fd = end->bell, .events = POLLIN};
    char bytes[16];
    end->sleeps++;
    if (poll(&polled, 1, PATIENCE_MS) != 1)
        return false;
    while (recv(end->bell, bytes, sizeof bytes, MSG_DONTWAIT) == (ssize_t)sizeof bytes)
        ;
    return true;
}

static bool is_time_to_wake(End *end) {
    return test_random_below(&end->seed, end->stream->wake_every) == 0;
}

/* Whether there is no such room, looked at a few times. */
static bool lacks_room(End *end, size_t length) {
    for (uint32_t looks = test_random_below(&end->seed, end->stream->eager + 1);; looks--)
        if (ring_room(end->ring) >= length)
            return false;
        else if (looks == 0)
            return true;
}

static bool lacks_bytes(End *end, size_t length, size_t *seen, const char **bytes) {
    for (uint32_t looks = test_random_below(&end->seed, end->stream->eager + 1);; looks--) {
        *seen = (size_t)ring_peek(end->ring, bytes);
        if (*seen >= length)
            return false;
        if (looks == 0)
            return true;
    }
}

/* What is wrong with a stream, as an exit status. */
enum { ALL_IS_WELL, FORGOTTEN, NOT_WHAT_WAS_WRITTEN };

static int write_all(End *end) {
    for (int n = 0; n < end->stream->messages; n++) {
        size_t length = next_length(end);
        while (lacks_room(end, length)) {
            if (ring_must_wake_reader(end->ring))
                wake(end);
            if (ring_wait_for_room(end->ring, length) && !sleep_for_bell(end))
                return FORGOTTEN;
        }
        put(end->ring, length);
        if (is_time_to_wake(end) && ring_must_wake_reader(end->ring))
            wake(end);
    }
    if (ring_must_wake_reader(end->ring))
        wake(end);
    return ALL_IS_WELL;
}

static int read_all(End *end) {
    for (int n = 0; n < end->stream->messages; n++) {
        size_t length = next_length(end), seen;
        const char *bytes;
        while (lacks_bytes(end, length, &seen, &bytes)) {
            if (ring_must_wake_writer(end->ring))
                wake(end);
            if (ring_wait_for_bytes(end->ring, seen) && !sleep_for_bell(end))
                return FORGOTTEN;
        }
        if (seen > end->ring->capacity ||
            memcmp(bytes, pattern_at(end->ring->position), length) != 0)
            return NOT_WHAT_WAS_WRITTEN;
        ring_consume(end->ring, length);
        if (is_time_to_wake(end) && ring_must_wake_writer(end->ring))
            wake(end);
    }
    if (ring_must_wake_writer(end->ring))
        wake(end);
    return ALL_IS_WELL;
}

/* Passes a stream from one process to the other; `is_writer`: whether it is from the child. Returns how
 * often this process has slept. */
static int pass(const Stream *stream, bool is_writer) {
    Pair pair = make_pair(stream->capacity);
    End end = {.stream = stream, .lengths = 5, .seed = 11};
    int bells[2], status = -1;
    const char *bytes;
    pid_t child;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, bells) == 0);
    child = fork();
    end.bell = bells[child == 0];
    if (child == 0) {
        close(bells[0]);
        alarm(2 * PATIENCE_MS / 1000);
        end.seed = 13;
        end.ring = is_writer ? &pair.writer : &pair.reader;
        _exit(is_writer ? write_all(&end) : read_all(&end));
    }
    close(bells[1]);
    end.ring = is_writer ? &pair.reader : &pair.writer;
    CHECK_EQUAL(is_writer ? read_all(&end) : write_all(&end), ALL_IS_WELL);
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), ALL_IS_WELL);
    pair.reader.position = atomic_load(&pair.shared->read);
    CHECK_EQUAL(ring_peek(&pair.reader, &bytes), 0);
    close(bells[0]);
    close_pair(&pair);
    return end.sleeps;
}

static void a_million_messages_arrive(void) {
    Stream stream = {
        .messages = 500000, .usual = 32, .wake_every = 8, .capacity = 2 * page_size(), .eager = 3};
    stream.longest = (uint32_t)stream.capacity;
    CHECK(pass(&stream, true) > 0);
    CHECK(pass(&stream, false) > 0);
}

/* In a ring of a few bytes someone is about to sleep all the time, while the other acts. */
static void nobody_sleeps_for_ever(void) {
    for (uint32_t capacity = 1; capacity <= 4; capacity *= 2)
        for (int eager = 0; eager <= 200; eager += 100) {
            Stream stream = {.messages = 1000, .usual = 1, .wake_every = 1};
            stream.capacity = capacity;
            stream.eager = (uint32_t)eager;
            pass(&stream, true);
        }
}

/* The same without system calls, which leave too much time between one step and the next: who sleeps
 * looks at a number that the other counts up. A lost wake-up takes two processors to come about, and
 * then some luck. For as long as a moment, as they may have to share one. */
typedef struct Nap {
    _Atomic uint32_t rings[2]; /* at the writer's side, and at the reader's */
    _Atomic int forgotten;
} Nap;

#define NAP_NS 100000000

static bool nap(Nap *shared, int side) {
    int64_t begun_ns = clock_real_ns();
    for (uint32_t looks = 1; atomic_load(&shared->rings[side]) == 0; looks++) {
        if (atomic_load(&shared->forgotten))
            return false;
        if (looks % 256 == 0)
            sched_yield();
        if (looks % 4096 == 0 && clock_real_ns() - begun_ns > PATIENCE_MS * (int64_t)1000000) {
            atomic_store(&shared->forgotten, true);
            return false;
        }
    }
    atomic_store(&shared->rings[side], 0);
    return true;
}

static void linger(uint64_t *seed) {
    for (volatile uint32_t n = test_random_below(seed, 150); n > 0; n--)
        ;
}

static bool nap_write(Nap *shared, Ring *ring, bool is_last, uint64_t *seed) {
    while (ring_room(ring) == 0)
        if (ring_wait_for_room(ring, 1) && !nap(shared, 0))
            return false;
    *ring_place(ring) = is_last;
    ring_publish(ring, 1);
    if (ring_must_wake_reader(ring))
        atomic_store(&shared->rings[1], 1);
    linger(seed);
    return true;
}

static void nap_read(Nap *shared, Ring *ring) {
    uint64_t seed = 17;
    for (bool is_last = false; !is_last;) {
        const char *bytes;
        while (ring_peek(ring, &bytes) == 0)
            if (ring_wait_for_bytes(ring, 0) && !nap(shared, 1))
                return;
        is_last = *bytes;
        ring_consume(ring, 1);
        if (ring_must_wake_writer(ring))
            atomic_store(&shared->rings[0], 1);
        linger(&seed);
    }
}

static void nobody_naps_for_ever(void) {
    Pair pair = make_pair(1);
    Nap *shared = must_map(NULL, sizeof *shared, MAP_SHARED | MAP_ANONYMOUS, -1);
    int64_t end_ns = clock_real_ns() + NAP_NS;
    uint64_t seed = 19;
    pid_t child = fork();
    if (child == 0) {
        alarm(2 * PATIENCE_MS / 1000);
        nap_read(shared, &pair.reader);
        _exit(0);
    }
    for (int n = 1; nap_write(shared, &pair.writer, false, &seed); n++)
        if (n % 16 == 0 && clock_real_ns() >= end_ns)
            break;
    nap_write(shared, &pair.writer, true, &seed);
    CHECK_EQUAL(waitpid(child, NULL, 0), child);
    CHECK_EQUAL(atomic_load(&shared->forgotten), false);
    munmap(shared, sizeof *shared);
    close_pair(&pair);
}

static void what_a_dead_writer_published_is_there(void) {
    Pair pair = make_page();
    int status;
    pid_t child;
    set_positions(&pair, pair.capacity - 100);
    CHECK(ring_wait_for_bytes(&pair.reader, 0));
    child = fork();
    if (child == 0) {
        put(&pair.writer, 1000);
        memset(ring_place(&pair.writer), 'x', 1000); /* was about to write more */
        raise(SIGKILL);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status));
    CHECK(shows(&pair.reader, 1000));
    CHECK(!ring_wait_for_bytes(&pair.reader, 0)); /* though nobody was left to wake it */
    CHECK(ring_wait_for_bytes(&pair.reader, 1000));
    close_pair(&pair);
}

static const Test tests[] = {
    {"a new ring is empty", a_new_ring_is_empty},
    {"each side writes to lines of its own", each_side_writes_to_lines_of_its_own},
    {"what is published is there", what_is_published_is_there},
    {"what is consumed makes room", what_is_consumed_makes_room},
    {"a full ring has no room", a_full_ring_has_no_room},
    {"nothing is split at the end", nothing_is_split_at_the_end},
    {"any lengths follow each other", any_lengths_follow_each_other},
    {"positions may be of any size", positions_may_be_of_any_size},
    {"who does not wait is not woken", who_does_not_wait_is_not_woken},
    {"a reader that waits is woken once", a_reader_that_waits_is_woken_once},
    {"a reader need not wait for what is there", a_reader_need_not_wait_for_what_is_there},
    {"a writer that waits is woken once", a_writer_that_waits_is_woken_once},
    {"a writer need not wait for room that is there",
     a_writer_need_not_wait_for_room_that_is_there},
    {"more written than can be is noticed", more_written_than_can_be_is_noticed},
    {"more read than was written leaves no room", more_read_than_was_written_leaves_no_room},
    {"scribbled positions lead nowhere else", scribbled_positions_lead_nowhere_else},
    {"a million messages arrive", a_million_messages_arrive},
    {"nobody sleeps for ever", nobody_sleeps_for_ever},
    {"nobody naps for ever", nobody_naps_for_ever},
    {"what a dead writer published is there", what_a_dead_writer_published_is_there},
    {NULL, NULL},
};

int main(void) {
    make_pattern();
    signal(SIGCHLD, SIG_DFL); /* whatever the shell has made of it */
    return test_main("ring_test", tests);
}
