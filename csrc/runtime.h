/*
 * The data model of the runtime, and what everything above it needs: C functions that find the
 * runtime, errors with tracebacks, arguments that are times.
 *
 * The calling convention, here and in task.h, scope.h and cancel.h: every function that takes a
 * lua_State must be called from a C function made by runtime_push_function, for it finds the
 * runtime's tables in the upvalues of that. Errors are Lua errors unless said otherwise.
 *
 * A task is a Lua function running in a coroutine of its own. It is a child of the scope it was
 * spawned into; a scope belongs to the task whose code stands in it, and ends only when all its
 * children have. One loop runs the tasks of a runtime; each simulation has a loop of its own.
 */
#ifndef OPERO_RUNTIME_H
#define OPERO_RUNTIME_H

#include "clock.h"
#include "context.h"
#include "list.h"
#include "reactor.h"
#include "timers.h"

#include <lauxlib.h>
#include <lua.h>

#pragma GCC visibility push(hidden)

#if LUA_VERSION_RELEASE_NUM < 50403
#error "Opero needs Lua 5.4.3 or later: before that, nothing can suspend while a variable is closed"
#endif

typedef struct Task Task;
typedef struct Scope Scope;
typedef struct Loop Loop;
typedef struct Runtime Runtime;

/* Upvalues of every C function made by runtime_push_function. */
#define UPVALUE_RUNTIME lua_upvalueindex(1)
#define UPVALUE_ANCHORS lua_upvalueindex(2)
#define UPVALUE_IDLE lua_upvalueindex(3)
#define UPVALUE_OWN lua_upvalueindex(4) /* the first of the function's own */

#define TASK_METATABLE "opero.Task"
#define SCOPE_METATABLE "opero.Scope"

typedef enum TaskState {
    TASK_READY,
    TASK_RUNNING,
    TASK_SUSPENDED,
    TASK_DONE, /* from here on it has ended */
    TASK_FAILED,
    TASK_CANCELLED,
} TaskState;

/* Why a suspended task goes on. */
typedef enum Wake {
    WAKE_OK,
    WAKE_TIMEOUT, /* the deadline given to task_suspend has passed */
    WAKE_CANCEL,
    WAKE_CLOSED, /* what it waited for was closed */
} Wake;

/* What a task can wait for. One static constant for each kind of wait. */
typedef struct WaitKind {
    const char *name; /* "semaphore:acquire" */
    /* Pushes what is waited for, in words; NULL: the name will do. */
    void (*describe)(lua_State *L, Task *task);
    /* The wait ends by timeout or cancellation: clean up what the wait list does not hold. May be
     * NULL. Called before the task is made ready; cannot raise. */
    void (*leave)(Loop *loop, Task *task);
    /* The task was woken but has not run yet, and is cancelled now: take back what it was handed
     * and give it to whom it is due. Returns false when that cannot be undone: the task then gets
     * it, and its cancellation at its next suspension. NULL: what it was handed can be dropped. */
    bool (*undo)(lua_State *L, Loop *loop, Task *task);
    bool is_uninterruptible; /* cancellation does not end the wait */
} WaitKind;

struct Task {     /* a userdata; its user value is the coroutine, later the outcome */
    Link link;    /* in the run queue or in a wait list */
    Link sibling; /* in the children of its home, or in the failures nobody awaited */
    Scope *home;  /* the scope it is a child of; NULL when that has ended */
    Scope *scope; /* the innermost scope its code stands in; NULL until it needs one */
    lua_State *coroutine;
    const WaitKind *wait;
    void *object;    /* what it waits for; of a type known to `wait` */
    Link *awaiters;  /* the first of the ring of tasks that await this one, or NULL */
    uint32_t anchor; /* its place in the anchor table; 0 when it is not there */
    Timer timer;
    uint32_t ticket; /* of a message it was handed; before it began: the height of its stack */
    uint8_t state;   /* TaskState */
    uint8_t wake;    /* Wake */
    uint8_t flags;   /* TASK_... below */
    uint8_t handed;  /* values the waker has put on its stack; of an ended task: OUTCOME_... */
};

enum {
    TASK_STARTED = 1,
    TASK_IS_CANCELLED = 2,  /* the task as a whole was cancelled */
    TASK_HAS_CANCEL = 4,    /* it, or a scope it stands in, was cancelled: look closer */
    TASK_IS_ROOT = 8,       /* an entry point from outside awaits it */
    TASK_BODY_ENDED = 16,   /* its function has returned; it waits for its children */
    TASK_IS_SIMULATED = 32, /* it belongs to the loop of a simulation */
    TASK_IS_AWAITED = 64,   /* its error is on its way to somebody who awaits it */
    TASK_IS_INTERNAL = 128, /* not the user's: opero.tasks does not list it */
};

/* What the user value of an ended task is (Task.handed). */
enum {
    OUTCOME_NONE,  /* nothing: no results */
    OUTCOME_VALUE, /* the result, or the error */
    OUTCOME_TABLE, /* {result, ..., n = count}, or {error, traceback} */
};

typedef enum ScopeKind { SCOPE_ROOT, SCOPE_GROUP, SCOPE_TIMEOUT, SCOPE_SHIELD } ScopeKind;

struct Scope {      /* malloc'ed, owned by its owner's chain */
    Link children;  /* tasks that have not ended */
    Link failures;  /* tasks that ended with an error nobody awaited, in order */
    Scope *outer;   /* the scope around it in the same task */
    Task *owner;    /* NULL for a loop's own scope */
    Scope **handle; /* what Lua holds of it; cleared when the scope ends */
    size_t live;    /* number of children */
    Timer timer;    /* of a timeout, or of a follower */
    uint8_t kind;   /* ScopeKind */
    bool is_cancelled;
    bool is_joining; /* its owner waits for the children */
    bool tells_ends; /* a task that does not end well wakes its owner, whatever that waits for */
    bool has_expired;
    bool has_follower; /* see scope_set_follower */
    uint8_t outcome;   /* of the function it was opened for; see calls.c */
};

enum { TIMER_OF_TASK, TIMER_OF_SCOPE, TIMER_OF_SERVICE }; /* Timer.kind */
enum { WATCH_OF_TASK, WATCH_OF_SERVICE };                 /* Watch.kind */

/* What is no task and yet takes part in a loop: a process pool. The functions are called where a task
 * could not suspend; they raise nothing. */
typedef struct Service {
    Link link; /* in the services of the runtime */
    Loop *loop;
    bool is_due; /* see runtime_service_due */
    /* Does what there is to do: the end of a turn in which it was said to be due. */
    void (*work)(lua_State *L, struct Service *service);
    /* The loop it is in ends: goes to that one. */
    void (*move)(struct Service *service, Loop *loop);
    /* This is a forked process, and it belongs to the parent: lets go of all it holds. */
    void (*forget)(struct Service *service);
    /* The runtime is closed: ends now. */
    void (*end)(struct Service *service);
} Service;

/* The owner of a Watch of kind WATCH_OF_SERVICE. */
typedef struct Watcher {
    Watch watch;
    void (*ready)(lua_State *L, struct Watcher *watcher);
} Watcher;

/* Of which a Timer of kind TIMER_OF_SERVICE is a part. */
typedef struct Alarm {
    Timer timer;
    void (*rings)(lua_State *L, struct Alarm *alarm);
} Alarm;

struct Loop {
    Clock clock;
    Timers timers;
    Reactor reactor;
    Link ready; /* the run queue */
    size_t ready_count;
    size_t live;   /* tasks that have not ended */
    Scope orphans; /* parent of tasks spawned outside any task */
    int64_t polled_ns;
    size_t resumptions;  /* since the reactor was last asked */
    size_t idle_watches; /* of services that have nothing to do: they wake no task */
    bool is_simulated, has_seed;
    bool is_ending; /* no more tasks, please */
    uint64_t epoch; /* names the clock */
};

struct Runtime { /* a userdata in the registry; see RUNTIME_... for its user values */
    Loop real;
    Loop *loop;        /* in force: &real, or that of a simulation */
    Loop *running;     /* the loop that is running; NULL outside */
    Task *current;     /* the running task */
    lua_State *active; /* the coroutine in which it may suspend; NULL: nowhere now */
    lua_State *main;
    lua_Hook hook; /* the main thread's hook as we know it; see loop.c */
    uint32_t free_anchor, anchor_count;
    uint32_t idle_count; /* coroutines ready for reuse */
    Link services;
    size_t services_due;
    uint64_t random[4];
    uint64_t epochs;
    bool is_suspending; /* set by task_suspend, for opero.wrap to tell it from a plain yield */
    bool is_rethrowing; /* the error being raised was raised before: keep its traceback */
    bool is_closed;
    Contexts contexts;  /* of tasks, by their anchors */
    uint64_t generator; /* the innermost one that runs, by a number of its own; 0: none */
    struct Log *log;    /* NULL before it is opened; see log.h */
    void *sentinel;     /* RUNTIME_SENTINEL */
};

/* User values of the runtime. */
enum {
    RUNTIME_ANCHORS = 1, /* integer: live task; light userdata (Task, Scope): its cancel error */
    RUNTIME_IDLE,        /* list of finished coroutines */
    RUNTIME_ERROR_FACTORY,
    RUNTIME_NAMES,     /* task (weak): name */
    RUNTIME_ERROR,     /* the last error raised out of a task or an attempt ... */
    RUNTIME_TRACEBACK, /* ... and its traceback */
    RUNTIME_CANCELLED, /* the metatable of CancelledError objects */
    RUNTIME_COLLECTOR, /* a function of scope.c */
    RUNTIME_SPARE,     /* a CancelledError for when there is no memory to note the right one */
    RUNTIME_SENTINEL,  /* see runtime_keep_last */
    RUNTIME_FORGOTTEN, /* in a forked process: the parent's tasks and their coroutines */
    RUNTIME_LOG,       /* the log and */
    RUNTIME_LOGGERS,   /* name: Logger. Both live as long as the state, for finalizers that log */
    RUNTIME_OUTPUTS,   /* functions that records go to, by their places in Log.outputs */
    RUNTIME_USER_VALUES = RUNTIME_OUTPUTS,
};

#define RUNTIME_IDLE_MAX 256 /* finished coroutines kept for reuse: about 1 KiB each */

/* The runtime of this state, made on first use; pushes it. */
Runtime *runtime_open(lua_State *L);

/* Pushes `function` as a closure with the runtime's upvalues; the `own` values on the top of the
 * stack become its further upvalues. Works anywhere. */
void runtime_push_function(lua_State *L, lua_CFunction function, int own);

/* Adds functions to the table at stack index `table`. */
void runtime_set_functions(lua_State *L, int table, const luaL_Reg *functions);

/* Makes and pushes the named metatable, with the methods in its __index. */
void runtime_new_metatable(lua_State *L, const char *name, const luaL_Reg *methods);

/* The number under which the code that runs has its context: 0 outside any task. */
static inline uint32_t runtime_context_place(const Runtime *runtime) {
    return runtime->current != NULL ? runtime->current->anchor : 0;
}

static inline Runtime *runtime_of(lua_State *L) {
    return (Runtime *)lua_touserdata(L, UPVALUE_RUNTIME);
}

/* Pushes an error object of the named class; `field`, when not NULL, is set to the value on the
 * top of the stack, which is consumed. Never raises: short of memory, it pushes that error. */
void runtime_push_error(lua_State *L, const char *class_name, const char *message,
                        const char *field);

/* Replaces the list of errors on the top of the stack by an AggregateError of them. */
void runtime_push_aggregate(lua_State *L);

/* Raises the value on the top of the stack as it is, keeping the traceback known of it. */
int runtime_rethrow(lua_State *L);

/* Pushes the traceback noted for the error at index `error`, or nil. For any C function. */
void runtime_push_noted(lua_State *L, int error);

/* A message handler for lua_pcall: leaves the value alone and notes the traceback. */
int runtime_note_error(lua_State *L);

/* Replaces the values from stack index `first` on by a table of them, with n. For any C function. */
void runtime_pack(lua_State *L, int first);

/* Pushes the values of such a table, which is at `index`; returns their number. */
int runtime_unpack(lua_State *L, int index);

/* Closes a coroutine that L may close; returns its status, as lua_closethread does. */
int runtime_close_thread(lua_State *L, lua_State *coroutine);

/* The same; an error it is left with replaces the value at the top of the stack. */
void runtime_close_over(lua_State *L, lua_State *coroutine);

/* A random number in [0, 1): seeded in a simulation, from the system otherwise. */
double runtime_random(Runtime *runtime);
void runtime_seed(Runtime *runtime, uint64_t seed);

/* Sees to it that when the state closes, the tasks that live now are closed before anything they
 * have made is finalized: Lua finalizes first what was made last. May raise for lack of memory. */
void runtime_keep_last(lua_State *L, Runtime *runtime);

/* In a child process: makes the runtime one without tasks, services, timers and watched descriptors.
 * The parent's tasks count as cancelled; their coroutines are kept, so that nothing in them is closed
 * or finalized in the child too. */
void runtime_forget_tasks(lua_State *L, Runtime *runtime);

/* The service has something to do, soon. Works anywhere. */
void runtime_service_due(Runtime *runtime, Service *service);

/* Has the services do what they have to. */
void runtime_serve(lua_State *L, Runtime *runtime);

/* Makes it a service of the loop in force, and no longer. */
void runtime_add_service(Runtime *runtime, Service *service);
void runtime_remove_service(Runtime *runtime, Service *service);

/* All services of the one loop go to the other. */
void runtime_move_services(Runtime *runtime, const Loop *from, Loop *to);

void loop_init(Loop *loop, Runtime *runtime, bool is_simulated);
void loop_destroy(Loop *loop);

/* Refuses an argument that is no function and has no __call. */
void check_callable(lua_State *L, int arg);

/* Seconds given as argument `arg`, in nanoseconds; refuses what is no number and NaN. Negative
 * values count as 0; infinity is CLOCK_NEVER. */
int64_t check_duration(lua_State *L, int arg);

/* The time at which argument `arg`, an optional timeout in seconds, has passed. */
int64_t check_deadline(lua_State *L, Runtime *runtime, int arg);

#pragma GCC visibility pop

#endif
