/*
 * What the parts of a worker share: its data, and what each part does for the others.
 *
 * worker.c: the process and its receiver. job.c: the tasks that run what came. reply.c: what is sent back.
 *
 * Lua errors in what is done here, and not by a task's function, can only be lack of memory. Then the
 * process ends: the pool knows from the port what it was doing, and starts another.
 */
#ifndef OPERO_WORKER_PARTS_H
#define OPERO_WORKER_PARTS_H

#include "log.h"
#include "parcel.h"
#include "task.h"

#include <signal.h>

#pragma GCC visibility push(hidden)

/* A task that runs what came, until it has answered. */
typedef struct Job {
    Task *task;   /* NULL: the place is free; kept by WORKER_JOBS */
    uint32_t id;  /* of the call */
    uint8_t kind; /* RecordKind */
} Job;

typedef struct Self { /* a userdata; see WORKER_... for its user values */
    Port port;
    Watch bell;
    pid_t pid;        /* of this process, in which it is the worker: not in what a task forks */
    Context *context; /* of log records, for the calls that come */
    Runtime *runtime;
    Task *receiver;
    bool is_waiting;   /* the receiver, for the bell: its watch is in the reactor, or was ready */
    bool has_yielded;  /* the receiver, to let a call run that might be short */
    bool is_ready;     /* takes calls */
    bool is_stopping;  /* takes nothing any more */
    uint32_t slots;    /* tasks at once */
    uint32_t running;  /* tasks */
    Link outgoing;     /* Reply.link: those for which there was no room yet */
    Record assembling; /* a record too long for the ring ... */
    char *assembled;   /* ... as far as it has come; NULL: none, or no memory for it */
    size_t assembled_length;
    bool is_assembling;
    size_t seen;          /* bytes of a record that has not come as a whole */
    Job jobs[PORT_SLOTS]; /* of which the first `slots` are in use */
} Self;

enum {                   /* user values of a worker */
       WORKER_KNOWN = 1, /* number: function */
       WORKER_RUN_CALL,  /* functions of this file, made once */
       WORKER_RUN_CHUNK,
       WORKER_RUN_INIT,
       WORKER_CALL_ITEM,
       WORKER_DECODE,
       WORKER_JOBS, /* place in `jobs`, from 1: task */
       WORKER_USER_VALUES = WORKER_JOBS,
};

typedef struct Reply { /* a userdata */
    Link link;         /* in self->outgoing until it is sent */
    Task *task;        /* that waits for that; NULL: none */
    CodecMessage message;
    Parcel parcel;
} Reply;

/* ---- worker.c ---------------------------------------------------------------------------------- */

/* The worker of which the function that runs is a closure. */
static inline Self *worker_self(lua_State *L) {
    return lua_touserdata(L, UPVALUE_OWN);
}

/* Pushes a function as a closure over the worker at index `self`. */
void worker_push_own(lua_State *L, int self, lua_CFunction function);

/* The running task has answered, and ends. */
void worker_job_ended(lua_State *L, Self *self);

/* Wakes the receiver, if it waits for the bell and has not been woken yet. */
void worker_wake_receiver(Loop *loop, Self *self);

/* Whether the process was told to end by Ctrl-C, and does. */
extern volatile sig_atomic_t worker_is_interrupted;

/* ---- job.c: the first functions of tasks, closures over the worker ------------------------------- */

int job_run_call(lua_State *L);  /* id, function, arguments... */
int job_run_init(lua_State *L);  /* 0, function */
int job_run_chunk(lua_State *L); /* chunk */
int job_call_item(lua_State *L); /* what calls an item that is no scalar */

/* The task that was noted as having begun with this id is over. */
void job_note_end(Self *self, uint32_t id);

/* Pushes a message that a chunk is done; false when there is no memory. */
bool job_push_done(lua_State *L, uint32_t id, int64_t elapsed_ns);

/* Pushes the chunk of a record: the argument of job_run_chunk. Its first item has been claimed. */
void job_push_chunk(lua_State *L, const Record *record, const char *bytes);

/* ---- reply.c ----------------------------------------------------------------------------------- */

/* Pushes an empty reply. */
Reply *reply_push(lua_State *L);

/* Makes a reply of the values from stack index `first` on, or of the error at the top of the stack, and
 * leaves it on the top. */
Reply *reply_push_outcome(lua_State *L, RecordKind kind, uint32_t id, int first, bool has_failed);

/* Sends the reply, if it is its turn and there is room. */
bool reply_send_now(Self *self, Reply *reply);

/* Waits until the reply at the top of the stack, which reply_send_now could not send, is sent, and goes
 * on with `k`: `return reply_wait_until_sent(...)`. */
int reply_wait_until_sent(lua_State *L, Self *self, Reply *reply, lua_KFunction k);

/* The same, whether it can be sent now or not; `k` is given 0 as its context when it can. */
int reply_send(lua_State *L, Self *self, Reply *reply, lua_KFunction k);

/* Sends the reply at the top of the stack some time, without waiting for it. */
void reply_send_later(lua_State *L, Self *self, Reply *reply);

/* Sends what there is room for of the replies that wait. */
void reply_send_outgoing(lua_State *L, Self *self);

/* Makes the metatable of replies. */
void reply_register(lua_State *L);

#pragma GCC visibility pop

#endif
