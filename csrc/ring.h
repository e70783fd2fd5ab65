/*
 * A stream of bytes from one process to another, through memory that both have mapped.
 *
 * One side writes, the other reads. What was written and published is there for the reader even when
 * the writer dies the moment after. Neither side ever blocks here: who finds the ring empty (or
 * full) says so in it, and is then to be woken by the other side; how is not the ring's business.
 * The memory may be scribbled over by a process that has gone mad: all that is read from it is
 * checked.
 */
#ifndef OPERO_RING_H
#define OPERO_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

#define CACHE_LINE 64

/* What the two sides share; all zeros at first. Each side writes to lines of its own. */
typedef struct RingShared {
    _Alignas(CACHE_LINE) _Atomic uint64_t written; /* bytes, ever; by the writer */
    _Alignas(CACHE_LINE) _Atomic uint64_t read;    /* bytes, ever; by the reader */
    _Alignas(CACHE_LINE) _Atomic uint32_t reader_waits;
    _Atomic uint32_t writer_waits;
} RingShared;

/* One side's view. */
typedef struct Ring {
    RingShared *shared;
    char *bytes;       /* mapped twice in a row: any part of it is contiguous */
    uint64_t capacity; /* a power of 2 */
    uint64_t position; /* bytes that this side has written, or read */
} Ring;

/* `bytes` has 2 * capacity bytes of address space, the second half a mirror of the first. */
void ring_init(Ring *ring, RingShared *shared, char *bytes, size_t capacity);

/* ---- the writer's side ------------------------------------------------------------------------- */

/* How many bytes can be written. 0 too when the other side claims to have read what is not there. */
size_t ring_room(const Ring *ring);

/* Where the next byte goes: ring_room bytes can be put there. */
static inline char *ring_place(const Ring *ring) {
    return ring->bytes + (ring->position & (ring->capacity - 1));
}

/* Hands the next `length` bytes, which stand at ring_place, to the reader. */
static inline void ring_publish(Ring *ring, size_t length) {
    ring->position += length;
    atomic_store_explicit(&ring->shared->written, ring->position, memory_order_release);
}

/* Whether the reader waits for what was published and has to be woken; says so once. */
bool ring_must_wake_reader(Ring *ring);

/* Says that the writer will wait for `length` bytes of room. False: it need not, there is room now. */
bool ring_wait_for_room(Ring *ring, size_t length);

/* ---- the reader's side ------------------------------------------------------------------------- */

/* How many bytes there are to read, and where. -1: the other side claims to have written more than
 * there can be. */
int64_t ring_peek(const Ring *ring, const char **bytes);

/* Done with the first `length` of them. */
static inline void ring_consume(Ring *ring, size_t length) {
    ring->position += length;
    atomic_store_explicit(&ring->shared->read, ring->position, memory_order_release);
}

/* Whether the writer waits for room and has to be woken; says so once. */
bool ring_must_wake_writer(Ring *ring);

/* Says that the reader waits for more than the `seen` bytes that it has found. False: it need not,
 * there is more now. */
bool ring_wait_for_bytes(Ring *ring, size_t seen);

#pragma GCC visibility pop

#endif
