#include "ring.h"

/*
 * Who is about to wait sets its flag and then looks once more; who has written (or read) makes that
 * known and then looks at the flag. With a full fence between the two steps on either side, one of
 * them at least sees what the other has done: no wake-up is lost.
 */

void ring_init(Ring *ring, RingShared *shared, char *bytes, size_t capacity) {
    ring->shared = shared;
    ring->bytes = bytes;
    ring->capacity = capacity;
    ring->position = 0;
}

size_t ring_room(const Ring *ring) {
    uint64_t used =
        ring->position - atomic_load_explicit(&ring->shared->read, memory_order_acquire);
    return used <= ring->capacity ? (size_t)(ring->capacity - used) : 0;
}

int64_t ring_peek(const Ring *ring, const char **bytes) {
    uint64_t there =
        atomic_load_explicit(&ring->shared->written, memory_order_acquire) - ring->position;
    *bytes = ring->bytes + (ring->position & (ring->capacity - 1));
    return there <= ring->capacity ? (int64_t)there : -1;
}

/* Takes a flag of the other side back, if it is set. */
static bool take_flag(_Atomic uint32_t *flag) {
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(flag, memory_order_relaxed) != 0 && atomic_exchange(flag, 0) != 0;
}

static void set_flag(_Atomic uint32_t *flag) {
    atomic_store_explicit(flag, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

bool ring_must_wake_reader(Ring *ring) {
    return take_flag(&ring->shared->reader_waits);
}

bool ring_must_wake_writer(Ring *ring) {
    return take_flag(&ring->shared->writer_waits);
}

bool ring_wait_for_room(Ring *ring, size_t length) {
    set_flag(&ring->shared->writer_waits);
    if (ring_room(ring) < length)
        return true;
    atomic_store_explicit(&ring->shared->writer_waits, 0, memory_order_relaxed);
    return false;
}

bool ring_wait_for_bytes(Ring *ring, size_t seen) {
    const char *bytes;
    set_flag(&ring->shared->reader_waits);
    if (ring_peek(ring, &bytes) == (int64_t)seen)
        return true;
    atomic_store_explicit(&ring->shared->reader_waits, 0, memory_order_relaxed);
    return false;
}
