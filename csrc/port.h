/*
 * What connects a pool and one of its workers: a ring in each direction, a bell to wake the other
 * side, and the claims, which say what the worker has begun.
 *
 * All but the bell is shared memory, so that when a worker dies the pool still finds every result
 * that was finished, and knows which task was running. Nothing here knows Lua, and nothing blocks.
 *
 * What is sent are records: a Record and `length` bytes.
 */
#ifndef OPERO_PORT_H
#define OPERO_PORT_H

#include "ring.h"

#include <sys/types.h>

#pragma GCC visibility push(hidden)

#define PORT_CAPACITY ((size_t)1 << 18) /* of each ring */
#define PORT_SLOTS 256                  /* tasks that can run in a worker at once */

typedef enum RecordKind {
    /* to the worker */
    RECORD_INIT = 1, /* a function, encoded, to be called before anything else */
    RECORD_CALL,     /* a function and its arguments, encoded in one */
    RECORD_CHUNK,    /* ChunkHead, a function, items; see parcel.h */
    RECORD_STOP,     /* end when all that was begun has ended */
    RECORD_SETTINGS, /* of the log: levels and such, as fields */
    RECORD_CONTEXT,  /* of log records, as fields: that of the calls that follow */
    /* to the pool */
    RECORD_READY,  /* it can begin with calls; any other record before that: it never will */
    RECORD_RESULT, /* of a call, or of what came before READY */
    RECORD_ITEM,   /* of the next item of a chunk */
    RECORD_LOG,    /* a log record, whole */
    RECORD_DONE,   /* with a chunk, as far as it was not revoked: nanoseconds, int64 */
} RecordKind;

typedef enum RecordStatus {
    STATUS_OK,     /* the results, encoded */
    STATUS_ERROR,  /* the error and its traceback, encoded */
    STATUS_MEMORY, /* not enough memory, not even to say so: no bytes */
    STATUS_SCALAR, /* of an item: one scalar */
} RecordStatus;

typedef struct Record {
    uint32_t length; /* of what follows */
    uint32_t id;     /* of the call */
    uint32_t epoch;  /* of a call or a chunk, see port_claim */
    uint8_t kind;    /* RecordKind */
    uint8_t status;  /* RecordStatus */
    uint16_t count;  /* of the items of a chunk; of a call 1 */
} Record;

/* When a task began, of those that run; for the pool, which ends those that take too long. */
typedef struct PortSlot {
    _Atomic int64_t began_ns; /* 0: the slot is free */
    _Atomic uint32_t id;
} PortSlot;

/* How a worker is to be; set before it starts. */
typedef struct PortSetup {
    uint32_t slots; /* tasks at once */
    bool has_init;
    bool is_timed;          /* note when tasks begin */
    bool accepts_functions; /* in results */
    bool has_nice;
    int32_t nice;
    uint64_t memory_limit; /* 0: none */
    pid_t parent;
} PortSetup;

typedef struct PortShared {
    RingShared to_worker, to_pool;
    _Alignas(CACHE_LINE) _Atomic uint64_t claims; /* epoch << 32 | tasks begun in it */
    _Alignas(CACHE_LINE) PortSetup setup;
    _Alignas(CACHE_LINE) PortSlot slots[PORT_SLOTS];
} PortShared;

typedef struct Port {
    PortShared *shared; /* NULL: closed */
    Ring in, out;
    int bell;       /* a socket, non-blocking, closed on exec */
    uint32_t epoch; /* at the pool's side: of what is sent now */
} Port;

/* Makes the pool's side. `peer` becomes the worker's bell and `memory` a descriptor of what is
 * shared; both are the caller's to close. 0, or an errno and nothing is left open. */
int port_open(Port *port, int *peer, int *memory);

/* In a worker that was forked: makes it the worker's side, with that bell; closes the pool's. */
void port_turn(Port *port, int bell);

/* In a worker that is a program of its own. Takes both descriptors. 0, or an errno. */
int port_attach(Port *port, int bell, int memory);

void port_close(Port *port);

/* Wakes the other side if it waits for what was written or for the room that was made. */
void port_wake(Port *port);

/* Takes in that the bell was rung. False: there is nobody at the other end any more. */
bool port_answer(Port *port);

/* ---- claims ---------------------------------------------------------------------------------- *
 *
 * What has been sent can be taken back as long as it has not begun, without a word from the worker,
 * which may be busy: before a worker begins with a task it claims it, and the pool can end the epoch
 * in which it was sent. One of them is first. */

/* In the worker: begins with a task of that epoch. False: it was taken back. */
bool port_claim(const Port *port, uint32_t epoch);

/* How many tasks of port->epoch the worker has begun. */
uint32_t port_begun(const Port *port);

/* Ends the epoch and begins the next; returns how many tasks were begun in it. What was sent and is
 * not among them will not begin. */
uint32_t port_revoke(Port *port);

#pragma GCC visibility pop

#endif
