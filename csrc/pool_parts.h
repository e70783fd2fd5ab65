/*
 * What the parts of a pool share: its data, and what each part does for the others.
 *
 * call.c: calls, and the parts they come to be. crew.c: the worker processes as the pool sees them.
 * pool.c: who does what, and the pool's own life. submit.c and chunk.c: what Lua hands in, and what it
 * gets back.
 *
 * But for those of submit.c no function here raises a Lua error or suspends: they are called where
 * neither can be.
 */
#ifndef OPERO_POOL_PARTS_H
#define OPERO_POOL_PARTS_H

#include "log.h"
#include "parcel.h"
#include "process.h"
#include "task.h"

#include <unistd.h>

#pragma GCC visibility push(hidden)

#define POOL_METATABLE "opero.Pool"
#define POOL_GRACE_NS 500000000 /* from an interruption until a worker is killed */

typedef struct Pool Pool;
typedef struct Worker Worker;
typedef struct Call Call;

typedef enum Outcome {
    CALL_PENDING,
    CALL_ANSWERED, /* `status` says with what */
    CALL_CRASHED,
    CALL_TIMED_OUT,
    CALL_CLOSED,
    CALL_NO_WORKER, /* `reply` has why, encoded, or `death` */
} Outcome;

typedef struct Death {
    pid_t pid;
    int status;
    bool is_known;
} Death;

struct Call {  /* malloc'ed; a chunk may come to be several of them, `root` and its further parts */
    Link link; /* in the pool's queue or in its worker's calls */
    Pool *pool;
    Worker *worker; /* NULL: it is in the queue, or nowhere */
    Call *root, *next_part;
    uint32_t pending; /* root: parts that have no outcome yet */
    Task *task;       /* root: that waits for it, or NULL */
    bool has_handle;  /* root: Lua holds it */
    bool is_chunk;
    bool is_placed; /* in the queue or with a worker */
    uint8_t outcome;
    uint8_t status;      /* RecordStatus */
    uint32_t id;         /* unique among those that are pending */
    uint32_t epoch;      /* in which it was sent */
    uint32_t generation; /* what its worker has to have */
    uint32_t count;      /* items; 1 for a call */
    uint32_t done;       /* items that were answered */
    uint32_t index;      /* of the first item, in the root's counting */
    CodecMessage message;
    Context *context; /* of log records, in which it was handed in */
    Parcel parcel;
    char *reply;
    size_t reply_length, reply_capacity;
    bool has_lost_reply; /* a chunk: there was no memory for a part of it */
    int64_t elapsed_ns;
    Death death;
};

typedef enum WorkerState {
    WORKER_STARTING,
    WORKER_READY,
    WORKER_STOPPING, /* it was told to end */
    WORKER_ENDING,   /* it was interrupted, or killed */
} WorkerState;

struct Worker { /* malloc'ed */
    Link link;  /* in the pool's workers */
    Pool *pool;
    Process process;
    Port port;
    Watcher bell, end;
    Alarm alarm;
    int64_t alarm_ns; /* when it is to ring; CLOCK_NEVER: not */
    WorkerState state;
    Outcome fate;        /* of the calls that run, when we end it */
    uint32_t timed_out;  /* the id of that which took too long */
    uint32_t generation; /* it knows the functions with lower numbers */
    Link calls;          /* in the order in which they were sent */
    uint32_t load;       /* their number */
    uint32_t assigned;   /* tasks it was given, ever */
    uint32_t answered;   /* tasks of this epoch that were */
    Call *sending;       /* the last of them, when a part of it is not sent yet */
    Parcel init;         /* is sent before any */
    bool is_init_sent;
    bool has_news;    /* things were sent: wake it */
    Record receiving; /* a record that comes in pieces, */
    size_t missing;   /* and what there is still to come of it */
    Call *receiver;   /* who gets it; NULL: nobody */
    bool is_receiving, is_lost;
    bool has_hung_up;
    uint64_t settings; /* the generation of the log's that it has; 0: none */
    uint64_t context;  /* the serial of the context that it has */
    Call *failure;     /* why it cannot begin: stands nowhere, its reply is the error */
};

struct Pool { /* a userdata */
    Service service;
    Runtime *runtime;
    pid_t owner;
    bool is_fork, waits_on_cancel, accepts_functions;
    uint32_t max_workers, max_tasks;
    int64_t task_timeout_ns, idle_timeout_ns; /* CLOCK_NEVER: none */
    PortSetup setup;
    CodecMessage init;
    char *interpreter, *code; /* spawn: the program, and what it is to run */
    uint32_t next_known;      /* number for the next function */
    uint32_t next_id;
    Link accepted; /* calls whose tasks have not begun */
    Link queue, workers, closers;
    uint32_t queued, worker_count;
    uint64_t outstanding; /* calls without an outcome */
    uint64_t completed, failed, crashed, started;
    uint64_t replaced;      /* of those that crashed */
    uint32_t failed_starts; /* in a row */
    int64_t failed_ns;      /* when the last of them was ... */
    int64_t failing_ns;     /* ... and the first */
    bool was_killed;        /* the last one was by SIGKILL, so by somebody else */
    bool has_started;       /* a worker was ready once */
    size_t idle_watches;    /* as counted in the loop */
    bool is_closing, is_closed;
};

/* Whether it was made before this process was forked: its workers are not ours. */
static inline bool pool_is_foreign(const Pool *pool) {
    return pool->owner != getpid();
}

/* It has something to do at the end of this turn. */
static inline void pool_due(Pool *pool) {
    runtime_service_due(pool->runtime, &pool->service);
}

/* Pushes the pool's functions that forked workers know by number, function: number, weak: so a pool is
 * not kept by what it knows. The table is in the registry, under the pool's address. */
static inline void pool_push_known(lua_State *L, const Pool *pool) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, pool);
}

/* ---- call.c ------------------------------------------------------------------------------------ */

/* A call of one task that stands nowhere; NULL when there is no memory. */
Call *call_make(Pool *pool);
void call_free(Call *part);

/* Frees a root and its parts, unless Lua holds it or a part has no outcome yet. */
void call_release(Call *root);

/* Puts it into a list, which is a queue of the pool or a worker's. */
void call_place(Call *call, Link *list, bool at_front);
void call_put_into_queue(Call *call, bool at_front);

/* Takes it from wherever it stands. */
void call_unplace(Call *call);

/* The part has its outcome. Wakes who waits, if it was the last one; may free the call. */
void call_end(Call *part, Outcome outcome);

/* Makes the items of a chunk from the n-th on a part of its own, which stands nowhere. NULL when there
 * is no memory: nothing has changed then. */
Call *call_split(Call *chunk, uint32_t n);

/* ---- crew.c ------------------------------------------------------------------------------------ */

/* Starts a worker; 0, or an errno. In a worker that was forked it does not return. */
int crew_start(lua_State *L, Pool *pool);

/* Sends the worker the log's settings, if it has others, and, if that is not NULL, the context of a
 * call. False: there is no room for that yet. */
bool crew_send_settings(Worker *worker);
bool crew_send_context(Worker *worker, Context *context);

/* Whether it is worth while to start another. */
bool crew_can_start(const Pool *pool);

/* Whether there is a worker that does tasks, or will. */
bool crew_is_alive(const Pool *pool);

/* How many tasks a worker has that it has not begun. */
uint32_t crew_count_waiting(const Worker *worker);

/* Takes back what a worker has not begun: to the front of the queue, in order. False: a call is on its
 * way to it in pieces, and nothing can be taken back before it is there. */
bool crew_recall(Worker *worker);

/* Takes all that the worker has said. */
void crew_receive(Worker *worker);

/* Goes on with what could be sent in part only. */
void crew_send_rest(Worker *worker);

/* Wakes the worker if there is anything new for it. */
void crew_wake(Worker *worker);

/* It has something to do now, or nothing any more: when to look at it next. */
void crew_reset_alarm(Worker *worker);

/* Tells a worker that has nothing to do to end. */
void crew_stop(Worker *worker);

/* Lets what runs in it clean up, for a while, and kills it then. */
void crew_interrupt(Worker *worker);

/* Kills it; what runs in it comes to that. */
void crew_kill(Worker *worker, Outcome fate);

/* Waits until the process has ended, gives its calls their outcome or back to the queue, and frees it. */
void crew_bury(Worker *worker);

/* All that waits in the queue cannot be done. `failure` has an encoded error as its reply, or is NULL. */
void crew_fail_queue(Pool *pool, const Call *failure, Death death);

/* While a pool has nothing to do its descriptors wake no task: tells the loop so. */
void crew_count_watches(Pool *pool);

/* All workers are watched by the pool's loop from now on, and no longer by the one it had. */
void crew_move(Pool *pool, Loop *loop);

/* This process is not the one whose workers they are: lets go of them. */
void crew_forget(Pool *pool);

/* ---- pool.c ------------------------------------------------------------------------------------ */

Pool *pool_check(lua_State *L); /* argument 1 */

/* Raises ClosedError when the pool takes no tasks. */
void pool_check_open(lua_State *L, const Pool *pool);

/* Nobody waits for the call any more. What runs is ended, or left to end. */
void pool_drop_call(Call *root);

/* ---- submit.c ---------------------------------------------------------------------------------- */

typedef struct Handle { /* a userdata: what Lua holds of a call */
    Call *call;
} Handle;

enum { /* user values of a handle */
       HANDLE_POOL = 1,
       HANDLE_FUNCTION, /* that is sent as a number */
       HANDLE_STRINGS,  /* that are sent from where they are */
       HANDLE_TASK,     /* that was spawned for it */
       HANDLE_USER_VALUES = HANDLE_TASK,
};

typedef struct Encoding {
    CodecMessage *message;
    CodecEncoding options;
} Encoding;

/* Pushes a handle with a call for the pool at index 1. */
Call *submit_push_handle(lua_State *L, Pool *pool);

/* Lets go of the call. */
void submit_drop_handle(Handle *handle);

/* Encodes the function at `first` and the values behind it into call->message. */
void submit_encode(lua_State *L, Pool *pool, Call *call, int handle, int first, int count,
                   const char *what);

/* Pushes a function that encodes the values from `first` on, with its arguments; returns how many. The
 * other indices are of tables, or of nil. */
int submit_push_encoding(lua_State *L, Encoding *encoding, int known, int strings, int first,
                         int count);

/* The number below which all workers know the functions. */
uint32_t submit_known_to_all(const Pool *pool);

/* From now on the workers that are forked know the function at `index`. */
void submit_make_known(lua_State *L, Pool *pool, int known, int index);

/* Puts the call, whose handle is on the stack, into the queue and suspends its task:
 * `return submit_hand_in(...)`. */
int submit_hand_in(lua_State *L, Call *call, lua_KFunction k);

/* Pushes what a worker has sent; returns how many values. */
int submit_decode(lua_State *L, const Pool *pool, const char *bytes, size_t length);

/* Pushes the two values of an encoded error: it, and its traceback. */
void submit_push_reported(lua_State *L, const Pool *pool, const char *bytes, size_t length);

/* Pushes the error of a part that was not answered; `item` is the index of what it was about. */
void submit_push_failure(lua_State *L, const Call *call, int item);

/* Adds call and submit to the methods at stack index `methods`. */
void submit_register(lua_State *L, int methods);

/* ---- chunk.c ----------------------------------------------------------------------------------- */

enum { REPLY_ITEM_HEAD = 5 }; /* in a chunk's reply: an item's status, its length in 4 bytes */

/* Adds _chunk to the methods at stack index `methods`. */
void chunk_register(lua_State *L, int methods);

#pragma GCC visibility pop

#endif
