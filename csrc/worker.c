#define _GNU_SOURCE
#include "worker.h"
#include "cancel.h"
#include "loop.h"
#include "parcel.h"
#include "process.h"
#include "scope.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * Lua errors in what is done here, and not by a task's function, can only be lack of memory. Then
 * the process ends: the pool knows from the port what it was doing, and starts another.
 */

#define OUTPUT_BUFFER (64 * 1024)

typedef struct Worker { /* a userdata; see WORKER_... for its user values */
    Port port;
    Watch bell;
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
    size_t seen; /* bytes of a record that has not come as a whole */
} Worker;

enum {                   /* user values of a worker */
       WORKER_KNOWN = 1, /* number: function */
       WORKER_RUN_CALL,  /* functions of this file, made once */
       WORKER_RUN_CHUNK,
       WORKER_RUN_INIT,
       WORKER_CALL_ITEM,
       WORKER_DECODE,
       WORKER_USER_VALUES = WORKER_DECODE,
};

static Worker *own_worker(lua_State *L) {
    return lua_touserdata(L, UPVALUE_OWN);
}

/* ---- sending ------------------------------------------------------------------------------------- */

typedef struct Reply { /* a userdata */
    Link link;         /* in worker->outgoing until it is sent */
    Task *task;        /* that waits for that; NULL: none */
    CodecMessage message;
    Parcel parcel;
} Reply;

#define REPLY_METATABLE "opero.Reply"

static int reply_gc(lua_State *L) {
    Reply *reply = lua_touserdata(L, 1);
    link_remove(&reply->link);
    codec_message_free(&reply->message);
    return 0;
}

static Reply *push_reply(lua_State *L) {
    Reply *reply = lua_newuserdatauv(L, sizeof *reply, 1);
    memset(reply, 0, sizeof *reply);
    link_init(&reply->link);
    luaL_setmetatable(L, REPLY_METATABLE);
    return reply;
}

/* Sends what there is room for. */
static void send_outgoing(Loop *loop, Worker *worker) {
    while (!list_is_empty(&worker->outgoing)) {
        Reply *reply = CONTAINER_OF(worker->outgoing.next, Reply, link);
        bool is_sent = parcel_send(&reply->parcel, &worker->port);
        port_wake(&worker->port);
        if (!is_sent)
            return;
        link_remove(&reply->link);
        if (reply->task != NULL && reply->task->state == TASK_SUSPENDED)
            task_wake(loop, reply->task, WAKE_OK, 0);
    }
}

static void leave_reply(Loop *loop, Task *task) {
    Reply *reply = task->object;
    (void)loop;
    reply->task = NULL;
}

static const WaitKind wait_sent = {.name = "the pool to take the result", .leave = leave_reply};

/* Wakes the receiver, if it waits for the bell and has not been woken yet. */
static void wake_receiver(Loop *loop, Worker *worker) {
    if (!worker->is_waiting || worker->receiver->state != TASK_SUSPENDED)
        return;
    reactor_remove(&loop->reactor, &worker->bell);
    worker->is_waiting = false;
    task_wake(loop, worker->receiver, WAKE_OK, 0);
}

static bool send_now(Worker *worker, Reply *reply) {
    bool is_sent = list_is_empty(&worker->outgoing) && parcel_send(&reply->parcel, &worker->port);
    if (is_sent)
        port_wake(&worker->port);
    return is_sent;
}

/* Waits until the reply at the top of the stack, which send_now could not send, is sent, and goes on
 * with `k`. */
static int wait_until_sent(lua_State *L, Worker *worker, Reply *reply, lua_KFunction k) {
    Runtime *runtime = runtime_of(L);
    list_append(&worker->outgoing, &reply->link);
    port_wake(&worker->port);
    wake_receiver(runtime->loop, worker); /* which waits, but not for room yet */
    reply->task = runtime->current;
    return task_suspend(L, runtime, runtime->current, &wait_sent, NULL, reply, CLOCK_NEVER, k);
}

/* The same, whether it can be sent now or not. */
static int send_reply(lua_State *L, Worker *worker, Reply *reply, lua_KFunction k) {
    return send_now(worker, reply) ? k(L, LUA_OK, 0) : wait_until_sent(L, worker, reply, k);
}

static int encode_values(lua_State *L) { /* message, anchors or nil, values... */
    CodecEncoding options = {.what = "result", .anchors = lua_istable(L, 2) ? 2 : 0};
    codec_encode(L, 3, lua_gettop(L) - 2, lua_touserdata(L, 1), &options);
    return 0;
}

/* Encodes `count` values from `first` on. On failure the error is on the top of the stack. Long
 * strings among them are sent from where they are: they have to stay on the stack. */
static bool encode(lua_State *L, CodecMessage *message, int first, int count) {
    bool has_long = false;
    for (int i = first; i < first + count; i++)
        has_long = has_long || (lua_type(L, i) == LUA_TSTRING &&
                                lua_rawlen(L, i) >= (lua_Unsigned)CODEC_SEGMENT_MIN);
    if (!lua_checkstack(L, count + 4)) {
        lua_pushliteral(L, "too many results");
        return false;
    }
    lua_pushcfunction(L, encode_values);
    lua_pushlightuserdata(L, message);
    if (has_long)
        lua_newtable(L);
    else
        lua_pushnil(L);
    for (int i = first; i < first + count; i++)
        lua_pushvalue(L, i);
    if (lua_pcall(L, count + 2, 0, 0) != LUA_OK)
        return false;
    if (message->length + message->segmented <= PARCEL_MAX)
        return true;
    runtime_push_error(L, "SerializationError", "the results take more than 4 GiB", NULL);
    return false;
}

static int make_substitute(lua_State *L) { /* an error that cannot travel; why */
    lua_settop(L, 2);
    lua_pushfstring(L, "%s (the error itself cannot travel: %s)", luaL_tolstring(L, 1, NULL),
                    luaL_tolstring(L, 2, NULL));
    runtime_push_error(L, "OperoError", lua_tostring(L, -1), NULL);
    return 1;
}

/* A task that had no memory leaves much garbage, and the next one may ask for memory in a way in which
 * Lua does not collect it first: the library's buffers do. */
static void collect_after(lua_State *L, int error) {
    if (lua_type(L, error) == LUA_TSTRING &&
        strcmp(lua_tostring(L, error), "not enough memory") == 0)
        lua_gc(L, LUA_GCCOLLECT);
}

/* Encodes the error on the top of the stack, and its traceback; pops it. What becomes of it. */
static RecordStatus encode_error(lua_State *L, CodecMessage *message) {
    int error = lua_gettop(L);
    collect_after(L, error);
    runtime_push_noted(L, error);
    if (encode(L, message, error, 2)) {
        lua_settop(L, error - 1);
        return STATUS_ERROR;
    }
    lua_pushcfunction(L, make_substitute);
    lua_pushvalue(L, error);
    lua_pushvalue(L, -3);
    if (lua_pcall(L, 2, 1, 0) == LUA_OK) {
        lua_replace(L, error);
        lua_settop(L, error + 1);
        if (encode(L, message, error, 2)) {
            lua_settop(L, error - 1);
            return STATUS_ERROR;
        }
    }
    lua_settop(L, error - 1);
    codec_message_free(message);
    return STATUS_MEMORY;
}

/* Makes a reply of the values from stack index `first` on, or of the error at the top of the stack,
 * and leaves it on the top. */
static Reply *push_outcome(lua_State *L, RecordKind kind, uint32_t id, int first, bool has_failed) {
    RecordStatus status = STATUS_OK;
    int count = lua_gettop(L) - first + 1, at;
    Reply *reply = push_reply(L);
    at = lua_gettop(L);
    if (has_failed)
        lua_pushvalue(L, at - 1);
    else if (!encode(L, &reply->message, first, count))
        has_failed = true;
    if (has_failed)
        status = encode_error(L, &reply->message);
    lua_settop(L, at);
    parcel_init(&reply->parcel, kind, status, id, &reply->message);
    return reply;
}

/* ---- Ctrl-C -------------------------------------------------------------------------------------- *
 *
 * The process is ours, so its handler may be: it makes the Lua code that runs, whatever it is doing,
 * raise a cancellation, and the loop end the rest in the way it does when it is interrupted. */

static Runtime *interrupted_runtime;
static volatile sig_atomic_t is_interrupted;

static void interrupt_hook(lua_State *L, lua_Debug *debug) {
    (void)debug;
    lua_sethook(L, NULL, 0, 0);
    runtime_push_error(L, "CancelledError", "the worker was interrupted", NULL);
    lua_error(L);
}

static void on_interrupt(int signal) {
    const int all = LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT;
    lua_State *active = interrupted_runtime->active;
    (void)signal;
    if (is_interrupted)
        return;
    is_interrupted = 1;
    lua_sethook(interrupted_runtime->main, interrupt_hook, all, 1);
    if (active != NULL)
        lua_sethook(active, interrupt_hook, all, 1);
}

static void handle_interrupts(Runtime *runtime) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);
    interrupted_runtime = runtime;
    sigaction(SIGINT, &action, NULL);
}

_Noreturn static void end_interrupted(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_DFL;
    sigaction(SIGINT, &action, NULL);
    raise(SIGINT);
    _exit(128 + SIGINT);
}

/* ---- a task's life ------------------------------------------------------------------------------- */

static void task_begins(Worker *worker, uint32_t id) {
    PortShared *shared = worker->port.shared;
    if (!shared->setup.is_timed)
        return;
    for (uint32_t i = 0; i < worker->slots && i < PORT_SLOTS; i++)
        if (atomic_load_explicit(&shared->slots[i].began_ns, memory_order_relaxed) == 0) {
            atomic_store_explicit(&shared->slots[i].id, id, memory_order_relaxed);
            atomic_store(&shared->slots[i].began_ns, clock_real_ns());
            return;
        }
}

static void task_ends(Worker *worker, uint32_t id) {
    PortShared *shared = worker->port.shared;
    if (!shared->setup.is_timed)
        return;
    for (uint32_t i = 0; i < worker->slots && i < PORT_SLOTS; i++)
        if (atomic_load_explicit(&shared->slots[i].id, memory_order_relaxed) == id)
            atomic_store(&shared->slots[i].began_ns, 0);
}

static const WaitKind wait_children = {.name = "its children", .is_uninterruptible = true};

/* Whether the function that has just returned has left tasks or failures of tasks behind. */
static bool has_children(const Task *me) {
    return me->scope != NULL;
}

/* Waits until all tasks have ended that the function has spawned, as it would for a task, and goes on
 * with `k`. `return join_children(...)`; has_children must be true. */
static int join_children(lua_State *L, Runtime *runtime, bool has_failed, lua_KFunction k) {
    Task *me = runtime->current;
    Scope *scope = me->scope;
    scope->outcome = has_failed;
    if (has_failed && scope->live > 0) {
        runtime_push_error(L, "CancelledError", "the parent task failed", NULL);
        scope_cancel(L, runtime, scope);
        lua_pop(L, 1);
    }
    if (scope->live == 0)
        return k(L, LUA_OK, 0);
    scope->is_joining = true;
    return task_suspend(L, runtime, me, &wait_children, NULL, scope, CLOCK_NEVER, k);
}

/* In the function that goes on then: whether the call has failed, in itself (its error is the first
 * value, at index `first`) or by a child. Then the error is on the top of the stack. */
static bool close_children(lua_State *L, Runtime *runtime, int first) {
    Task *me = runtime->current;
    bool has_failed = me->scope->outcome != 0;
    if (has_failed)
        lua_settop(L, first);
    if (scope_close(L, runtime, runtime->loop, me, has_failed ? first : 0))
        return true;
    return has_failed;
}

static int end_task(lua_State *L, int status, lua_KContext context) {
    Worker *worker = own_worker(L);
    (void)status, (void)context;
    worker->running--;
    wake_receiver(runtime_of(L)->loop, worker);
    return 0;
}

static int reply_sent(lua_State *L, int status, lua_KContext context) {
    (void)status;
    if (context != 0) /* it had to wait */
        task_resumed(L, task_regain(L, reply_sent, context), 0);
    return end_task(L, LUA_OK, 0);
}

/* ---- a call: id, handler, function, arguments... --------------------------------------------------- */

/* Most results are a few scalars: those go straight into the ring. */
static bool send_scalars(lua_State *L, Worker *worker, uint32_t id, int first) {
    enum { AT_MOST = 4 };
    char *start, *at;
    Record record = {.id = id, .kind = RECORD_RESULT, .status = STATUS_OK};
    int count = lua_gettop(L) - first + 1;
    if (count > AT_MOST || !list_is_empty(&worker->outgoing) ||
        ring_room(&worker->port.out) < sizeof record + 2 + AT_MOST * CODEC_SCALAR_MAX)
        return false;
    start = at = ring_place(&worker->port.out) + sizeof record;
    *at++ = CODEC_VERSION;
    *at++ = (char)count;
    for (int i = 0; i < count; i++) {
        size_t length = codec_put_scalar(L, first + i, at);
        if (length == 0)
            return false;
        at += length;
    }
    record.length = (uint32_t)(at - start);
    memcpy(start - sizeof record, &record, sizeof record);
    ring_publish(&worker->port.out, sizeof record + record.length);
    port_wake(&worker->port);
    return true;
}

static int answer_call(lua_State *L, bool has_failed) { /* id, handler, results or ... error */
    Worker *worker = own_worker(L);
    uint32_t id = (uint32_t)lua_tointeger(L, 1);
    task_ends(worker, id);
    if (is_interrupted) /* what it has come to is not an outcome: the process ends */
        return end_task(L, LUA_OK, 0);
    fflush(stdout);
    if (!has_failed && send_scalars(L, worker, id, 3))
        return end_task(L, LUA_OK, 0);
    return send_reply(L, worker, push_outcome(L, RECORD_RESULT, id, 3, has_failed), reply_sent);
}

static int call_joined(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = context != 0 ? task_regain(L, call_joined, context) : runtime_of(L);
    (void)status;
    if (runtime->current->scope->live > 0)
        return join_children(L, runtime, runtime->current->scope->outcome != 0, call_joined);
    return answer_call(L, close_children(L, runtime, 3));
}

static int call_returned(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = runtime_of(L);
    bool has_failed = status != LUA_OK && status != LUA_YIELD;
    (void)context;
    if (has_children(runtime->current))
        return join_children(L, runtime, has_failed, call_joined);
    return answer_call(L, has_failed);
}

static int run_call(lua_State *L) { /* id, function, arguments... */
    int status;
    task_begins(own_worker(L), (uint32_t)lua_tointeger(L, 1));
    lua_pushcfunction(L, runtime_note_error);
    lua_insert(L, 2);
    status = lua_pcallk(L, lua_gettop(L) - 3, LUA_MULTRET, 2, 0, call_returned);
    return call_returned(L, status, 0);
}

/* ---- init: 0, handler, function ---------------------------------------------------------------------- */

static int init_ended(lua_State *L, bool has_failed) {
    Worker *worker = own_worker(L);
    Reply *reply;
    if (is_interrupted)
        return end_task(L, LUA_OK, 0);
    if (has_failed) {
        worker->is_stopping = true;
        reply = push_outcome(L, RECORD_RESULT, 0, 3, true);
    } else {
        worker->is_ready = true;
        reply = push_reply(L);
        parcel_init(&reply->parcel, RECORD_READY, STATUS_OK, 0, NULL);
    }
    return send_reply(L, worker, reply, reply_sent);
}

static int init_joined(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = context != 0 ? task_regain(L, init_joined, context) : runtime_of(L);
    (void)status;
    if (runtime->current->scope->live > 0)
        return join_children(L, runtime, runtime->current->scope->outcome != 0, init_joined);
    return init_ended(L, close_children(L, runtime, 3));
}

static int init_returned(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = runtime_of(L);
    bool has_failed = status != LUA_OK && status != LUA_YIELD;
    (void)context;
    if (has_children(runtime->current))
        return join_children(L, runtime, has_failed, init_joined);
    return init_ended(L, has_failed);
}

static int run_init(lua_State *L) { /* 0, function */
    int status;
    lua_pushcfunction(L, runtime_note_error);
    lua_insert(L, 2);
    status = lua_pcallk(L, lua_gettop(L) - 3, 0, 2, 0, init_returned);
    return init_returned(L, status, 0);
}

/* ---- a chunk: chunk, handler, function, ... ------------------------------------------------------------ */

typedef struct Chunk { /* a userdata, with the bytes behind it */
    uint32_t id, epoch;
    size_t length, at; /* of the bytes; those before `at` are done with */
    int64_t began_ns;
    bool has_claim; /* on the next item */
    char bytes[];
} Chunk;

enum { CHUNK_BASE = 3 }; /* stack slots below what an item needs */

static int run_items(lua_State *L);

static int chunk_done(lua_State *L, Worker *worker, const Chunk *chunk) {
    int64_t elapsed_ns = clock_real_ns() - chunk->began_ns;
    Reply *reply = push_reply(L);
    if (!message_append(&reply->message, &elapsed_ns, sizeof elapsed_ns))
        return luaL_error(L, "not enough memory");
    parcel_init(&reply->parcel, RECORD_DONE, STATUS_OK, chunk->id, &reply->message);
    return send_reply(L, worker, reply, reply_sent);
}

static int item_sent(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, item_sent, context), 0);
    return run_items(L);
}

/* Sends the result of an item, if it is a scalar and there is room. */
static bool send_scalar(lua_State *L, Worker *worker, uint32_t id, int index) {
    Ring *out = &worker->port.out;
    Record record = {.id = id, .kind = RECORD_ITEM, .status = STATUS_SCALAR};
    size_t room = ring_room(out), length;
    char *place = ring_place(out);
    if (room < sizeof record + CODEC_SCALAR_MAX || !list_is_empty(&worker->outgoing))
        return false;
    length = codec_put_scalar(L, index, place + sizeof record);
    if (length == 0)
        return false;
    record.length = (uint32_t)length;
    memcpy(place, &record, sizeof record);
    ring_publish(out, sizeof record + length);
    if (room < out->capacity / 2)
        port_wake(&worker->port); /* else the end of the chunk is soon enough */
    return true;
}

/* The item has an outcome: its result is at CHUNK_BASE + 1, or the error is on the top of the stack.
 * True: it was sent. */
static bool answer_item(lua_State *L, bool has_failed, Reply **reply) {
    Worker *worker = own_worker(L);
    const Chunk *chunk = lua_touserdata(L, 1);
    task_ends(worker, chunk->id);
    fflush(stdout);
    if (!has_failed) {
        lua_settop(L, CHUNK_BASE + 2);
        if (lua_isnil(L, CHUNK_BASE + 1) && !lua_isnil(L, CHUNK_BASE + 2))
            has_failed = true; /* nil, err */
        else
            lua_settop(L, CHUNK_BASE + 1);
    }
    if (!has_failed && send_scalar(L, worker, chunk->id, CHUNK_BASE + 1))
        return true;
    *reply = push_outcome(L, RECORD_ITEM, chunk->id, CHUNK_BASE + 1, has_failed);
    return false;
}

static int go_on(lua_State *L, bool has_failed) {
    Reply *reply;
    if (is_interrupted)
        return end_task(L, LUA_OK, 0);
    if (answer_item(L, has_failed, &reply) || send_now(own_worker(L), reply))
        return run_items(L);
    return wait_until_sent(L, own_worker(L), reply, item_sent);
}

static int item_joined(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = context != 0 ? task_regain(L, item_joined, context) : runtime_of(L);
    (void)status;
    if (runtime->current->scope->live > 0)
        return join_children(L, runtime, runtime->current->scope->outcome != 0, item_joined);
    return go_on(L, close_children(L, runtime, CHUNK_BASE + 1));
}

/* After an item that has suspended. */
static int item_returned(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = runtime_of(L);
    bool has_failed = status != LUA_OK && status != LUA_YIELD;
    (void)context;
    if (has_children(runtime->current))
        return join_children(L, runtime, has_failed, item_joined);
    return go_on(L, has_failed);
}

static int item_called(lua_State *L, int status, lua_KContext context) {
    (void)L, (void)status, (void)context;
    return 2;
}

static int call_item(lua_State *L) { /* function; an encoded item, its length */
    CodecDecoding options = {.functions = true, .known = 4};
    const char *bytes = lua_touserdata(L, 2);
    size_t length = (size_t)lua_tointeger(L, 3);
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_KNOWN);
    if (codec_decode(L, bytes, length, &options) != 1)
        return luaL_error(L, "malformed item");
    lua_replace(L, 2);
    lua_settop(L, 2);
    lua_callk(L, 1, 2, 0, item_called);
    return 2;
}

/* Pushes what calls the function with the next item, and its arguments; returns how many. */
static int push_item(lua_State *L, Chunk *chunk) {
    const char *bytes = chunk->bytes + chunk->at;
    size_t left = chunk->length - chunk->at, length;
    lua_pushvalue(L, CHUNK_BASE);
    length = codec_get_scalar(L, bytes, left);
    if (length > 0) {
        chunk->at += length;
        return 1;
    }
    length = item_length(bytes, left);
    if (length == 0)
        return luaL_error(L, "malformed chunk");
    chunk->at += length;
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_CALL_ITEM);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, (void *)(bytes + ITEM_HEAD));
    lua_pushinteger(L, (lua_Integer)(length - ITEM_HEAD));
    return 3;
}

/* Begins with the next item, if it was not taken back. */
static bool claim_item(const Worker *worker, Chunk *chunk) {
    bool has_claim = chunk->has_claim || port_claim(&worker->port, chunk->epoch);
    chunk->has_claim = false;
    return has_claim;
}

/* Runs items until one suspends, or there are no more. */
static int run_items(lua_State *L) {
    Worker *worker = own_worker(L);
    Runtime *runtime = runtime_of(L);
    Chunk *chunk = lua_touserdata(L, 1);
    while (!is_interrupted && chunk->at < chunk->length && claim_item(worker, chunk)) {
        Reply *reply;
        bool has_failed;
        lua_settop(L, CHUNK_BASE);
        task_begins(worker, chunk->id);
        has_failed = lua_pcallk(L, push_item(L, chunk), 2, 2, 0, item_returned) != LUA_OK;
        if (has_children(runtime->current)) {
            if (runtime->current->scope->live > 0)
                return join_children(L, runtime, has_failed, item_joined);
            runtime->current->scope->outcome = has_failed;
            has_failed = close_children(L, runtime, CHUNK_BASE + 1);
        }
        if (is_interrupted)
            break;
        if (!answer_item(L, has_failed, &reply) && !send_now(worker, reply))
            return wait_until_sent(L, worker, reply, item_sent);
    }
    lua_settop(L, CHUNK_BASE);
    return is_interrupted ? end_task(L, LUA_OK, 0) : chunk_done(L, worker, chunk);
}

/* Pushes a function of this file as a closure over the worker at index `worker`. */
static void push_own(lua_State *L, int worker, lua_CFunction function) {
    lua_pushvalue(L, worker);
    runtime_push_function(L, function, 1);
}

/* Pushes the function of a chunk. */
static int decode_function(lua_State *L) { /* chunk */
    CodecDecoding options = {.functions = true, .known = 2};
    Chunk *chunk = lua_touserdata(L, 1);
    uint32_t length;
    if (chunk->length < sizeof length)
        return luaL_error(L, "malformed chunk");
    memcpy(&length, chunk->bytes, sizeof length);
    if (chunk->length - sizeof length < length)
        return luaL_error(L, "malformed chunk");
    chunk->at = sizeof length + length;
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_KNOWN);
    if (codec_decode(L, chunk->bytes + sizeof length, length, &options) != 1)
        return luaL_error(L, "malformed chunk");
    return 1;
}

static int run_chunk(lua_State *L) { /* chunk */
    Worker *worker = own_worker(L);
    Chunk *chunk = lua_touserdata(L, 1);
    lua_pushcfunction(L, runtime_note_error);
    push_own(L, UPVALUE_OWN, decode_function);
    lua_pushvalue(L, 1);
    chunk->began_ns = clock_real_ns();
    if (lua_pcall(L, 1, 1, 0) == LUA_OK)
        return run_items(L);
    /* so no item can be run: they have begun, and failed */
    for (size_t length;
         (length = item_length(chunk->bytes + chunk->at, chunk->length - chunk->at)) > 0 &&
         claim_item(worker, chunk);)
        chunk->at += length;
    return send_reply(L, worker, push_outcome(L, RECORD_RESULT, chunk->id, CHUNK_BASE, true),
                      reply_sent);
}

/* ---- receiving ----------------------------------------------------------------------------------- */

/* The pool is gone, or has gone mad, or this process can do no more. */
_Noreturn static void give_up(void) {
    fflush(stdout);
    _exit(1);
}

typedef struct Received {
    const Record *record;
    const char *bytes;
} Received;

/* Pushes the values of a call: its function, the arguments. */
static int decode_call(lua_State *L) { /* Received */
    CodecDecoding options = {.functions = true, .known = 2};
    const Received *received = lua_touserdata(L, 1);
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_KNOWN);
    return codec_decode(L, received->bytes, received->record->length, &options);
}

/* Sends a reply from the receiver, which does not wait for it. */
static void send_later(lua_State *L, Worker *worker, Reply *reply) {
    if (!list_is_empty(&worker->outgoing) || !parcel_send(&reply->parcel, &worker->port)) {
        list_append(&worker->outgoing, &reply->link);
        lua_rawsetp(L, LUA_REGISTRYINDEX, reply); /* until it is sent; seldom, and few */
    }
    port_wake(&worker->port);
}

/* Spawns a task that runs what was received, by the function that is that user value. */
static void spawn(lua_State *L, Worker *worker, int function, const Received *received) {
    Runtime *runtime = runtime_of(L);
    int base = lua_gettop(L);
    lua_getiuservalue(L, UPVALUE_OWN, function);
    lua_pushinteger(L, received->record->id);
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_DECODE);
    lua_pushlightuserdata(L, (void *)received);
    if (lua_pcall(L, 1, LUA_MULTRET, 0) == LUA_OK) {
        task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), lua_gettop(L) - base - 1);
        worker->running++;
    } else {
        send_later(L, worker, push_outcome(L, RECORD_RESULT, received->record->id, 0, true));
        worker->is_stopping = worker->is_stopping || !worker->is_ready;
    }
    lua_settop(L, base);
}

static void spawn_chunk(lua_State *L, Worker *worker, const Received *received) {
    Runtime *runtime = runtime_of(L);
    const Record *record = received->record;
    Chunk *chunk;
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_RUN_CHUNK);
    chunk = lua_newuserdatauv(L, sizeof *chunk + record->length, 0);
    chunk->id = record->id;
    chunk->epoch = record->epoch;
    chunk->length = record->length;
    chunk->at = 0;
    chunk->has_claim = true;
    memcpy(chunk->bytes, received->bytes, record->length);
    task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), 1);
    worker->running++;
    lua_pop(L, 1);
}

/* Begins with what a whole record asks for. */
static void handle(lua_State *L, Worker *worker, const Record *record, const char *bytes) {
    Received received = {record, bytes};
    switch (record->kind) {
    case RECORD_INIT:
        spawn(L, worker, WORKER_RUN_INIT, &received);
        break;
    case RECORD_CALL:
        if (port_claim(&worker->port, record->epoch))
            spawn(L, worker, WORKER_RUN_CALL, &received);
        break;
    case RECORD_CHUNK: /* the other items are claimed one by one */
        if (port_claim(&worker->port, record->epoch))
            spawn_chunk(L, worker, &received);
        break;
    case RECORD_STOP:
        worker->is_stopping = true;
        break;
    default:
        give_up();
    }
}

/* There was no memory for a long record: what it is about has begun, and failed. */
static void refuse_long(lua_State *L, Worker *worker, const Record *record) {
    Reply *reply;
    if (record->kind != RECORD_CALL && record->kind != RECORD_CHUNK)
        give_up();
    for (uint32_t i = 0; i < record->count; i++)
        if (!port_claim(&worker->port, record->epoch))
            return;
    reply = push_reply(L);
    parcel_init(&reply->parcel, RECORD_RESULT, STATUS_MEMORY, record->id, NULL);
    send_later(L, worker, reply);
}

/* Takes what has come of a record too long for the ring. */
static bool assemble(lua_State *L, Worker *worker, const char *bytes, size_t there) {
    const Record *record = &worker->assembling;
    size_t count = record->length - worker->assembled_length;
    if (count > there)
        count = there;
    if (worker->assembled != NULL)
        memcpy(worker->assembled + worker->assembled_length, bytes, count);
    worker->assembled_length += count;
    ring_consume(&worker->port.in, count);
    if (worker->assembled_length == record->length) {
        worker->is_assembling = false;
        if (worker->assembled != NULL)
            handle(L, worker, record, worker->assembled);
        else
            refuse_long(L, worker, record);
        free(worker->assembled);
        worker->assembled = NULL;
        return true;
    }
    return count > 0;
}

/* Takes the next record, or a part of it, from the ring. False: there is none yet. */
static bool take(lua_State *L, Worker *worker) {
    Ring *in = &worker->port.in;
    const char *bytes;
    int64_t there = ring_peek(in, &bytes);
    Record record;
    if (there < 0)
        give_up();
    worker->seen = (size_t)there;
    if (worker->is_assembling)
        return assemble(L, worker, bytes, (size_t)there);
    if ((size_t)there < sizeof record)
        return false;
    memcpy(&record, bytes, sizeof record);
    if (record.length > in->capacity / 2) {
        worker->assembling = record;
        worker->assembled = malloc(record.length);
        worker->assembled_length = 0;
        worker->is_assembling = true;
        ring_consume(in, sizeof record);
        return true;
    }
    if ((size_t)there < sizeof record + record.length)
        return false;
    handle(L, worker, &record, bytes + sizeof record);
    ring_consume(in, sizeof record + record.length);
    return true;
}

static void leave_bell(Loop *loop, Task *task) {
    Worker *worker = task->object;
    reactor_remove(&loop->reactor, &worker->bell);
    worker->is_waiting = false;
}

static const WaitKind wait_bell = {.name = "the pool", .leave = leave_bell};

static int receive(lua_State *L, int status, lua_KContext context);

/* Suspends the receiver until the bell is rung or a task has ended, or returns -1 when there is no
 * need to. */
static int wait_for_bell(lua_State *L, Worker *worker, bool wants_records) {
    Runtime *runtime = runtime_of(L);
    if (wants_records && !ring_wait_for_bytes(&worker->port.in, worker->seen))
        return -1;
    if (!list_is_empty(&worker->outgoing) && !ring_wait_for_room(&worker->port.out, sizeof(Record)))
        return -1;
    worker->bell.fd = worker->port.bell;
    worker->bell.owner = worker->receiver;
    worker->bell.kind = WATCH_OF_TASK;
    worker->bell.wanted = REACTOR_READ;
    if (reactor_add(&runtime->loop->reactor, &worker->bell) != 0)
        give_up(); /* a task has closed it */
    worker->is_waiting = true;
    return task_suspend(L, runtime, worker->receiver, &wait_bell, NULL, worker, CLOCK_NEVER,
                        receive);
}

/* The receiver's loop; `context` is 0 at first. */
static int receive(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = context != 0 ? task_regain(L, receive, context) : runtime_of(L);
    Worker *worker = own_worker(L);
    Task *me = runtime->current;
    (void)status;
    if (worker->is_waiting && me->wake == WAKE_OK) { /* the bell was rung */
        worker->is_waiting = false;
        if (worker->bell.error != 0 || !port_answer(&worker->port))
            give_up();
    }
    if (context != 0)
        task_resumed(L, runtime, 0);
    for (;;) {
        bool wants_records = !worker->is_stopping && worker->running < worker->slots &&
                             (worker->is_ready || worker->running == 0);
        int result;
        lua_settop(L, 1); /* the worker: a stack of no height would look like a beginning */
        send_outgoing(runtime->loop, worker);
        if (me->scope != NULL && !list_is_empty(&me->scope->failures))
            give_up(); /* a task failed in what is done here: no memory */
        if (wants_records && take(L, worker)) {
            port_wake(&worker->port); /* there is room */
            worker->has_yielded = false;
            continue;
        }
        if (worker->is_stopping && worker->running == 0 && list_is_empty(&worker->outgoing))
            return 0;
        if (worker->running > 0 && !worker->has_yielded) {
            worker->has_yielded = true; /* most calls are short */
            return task_yield(L, runtime, me, receive);
        }
        result = wait_for_bell(L, worker, wants_records);
        if (result >= 0)
            return result;
    }
}

/* ---- beginning ----------------------------------------------------------------------------------- */

/* The address space that the process takes up now. */
static uint64_t address_space(void) {
    uint64_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        unsigned long long count;
        if (fscanf(file, "%llu", &count) == 1)
            pages = count;
        fclose(file);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Makes the process as it is to be. */
static int set_up(lua_State *L) { /* setup, as a light userdata */
    const PortSetup *setup = lua_touserdata(L, 1);
    if (setup->memory_limit > 0) {
        struct rlimit limit;
        if (getrlimit(RLIMIT_AS, &limit) == 0) {
            rlim_t wanted = (rlim_t)(address_space() + setup->memory_limit);
            if (limit.rlim_max == RLIM_INFINITY || wanted < limit.rlim_max)
                limit.rlim_cur = wanted;
            if (setrlimit(RLIMIT_AS, &limit) != 0)
                return luaL_error(L, "the memory limit cannot be set: %s", strerror(errno));
        }
    }
    if (setup->has_nice && setpriority(PRIO_PROCESS, 0, setup->nice) != 0)
        return luaL_error(L, "niceness %d cannot be set: %s", (int)setup->nice, strerror(errno));
    return 0;
}

static int work(lua_State *L) { /* the first function of the receiver */
    Worker *worker = own_worker(L);
    Runtime *runtime = runtime_of(L);
    PortSetup setup = worker->port.shared->setup;
    Reply *reply = NULL;
    worker->receiver = runtime->current;
    /* now, while the standard descriptors are there: should a task close those, ours is none of them */
    reactor_pollfd(&runtime->loop->reactor);
    worker->slots = setup.slots >= 1 && setup.slots <= PORT_SLOTS ? setup.slots : 1;
    lua_settop(L, 0);
    lua_pushvalue(L, UPVALUE_OWN);
    lua_pushcfunction(L, set_up);
    lua_pushlightuserdata(L, &setup);
    if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
        worker->is_stopping = true;
        reply = push_outcome(L, RECORD_RESULT, 0, 0, true);
    } else if (!setup.has_init) {
        worker->is_ready = true;
        reply = push_reply(L);
        parcel_init(&reply->parcel, RECORD_READY, STATUS_OK, 0, NULL);
    }
    if (reply != NULL)
        send_later(L, worker, reply);
    return receive(L, LUA_OK, 0);
}

/* Pushes a worker at the port, and a function that runs it. */
static void push_worker(lua_State *L, const Port *port, int known) {
    Worker *worker = lua_newuserdatauv(L, sizeof *worker, WORKER_USER_VALUES);
    int index = lua_gettop(L);
    memset(worker, 0, sizeof *worker);
    worker->port = *port;
    link_init(&worker->outgoing);
    lua_newtable(L);
    if (known != 0)
        for (lua_pushnil(L); lua_next(L, known); lua_pop(L, 1)) {
            lua_pushvalue(L, -2);
            lua_rawseti(L, -4, lua_tointeger(L, -2));
        }
    lua_setiuservalue(L, index, WORKER_KNOWN);
    push_own(L, index, run_call);
    lua_setiuservalue(L, index, WORKER_RUN_CALL);
    push_own(L, index, run_chunk);
    lua_setiuservalue(L, index, WORKER_RUN_CHUNK);
    push_own(L, index, run_init);
    lua_setiuservalue(L, index, WORKER_RUN_INIT);
    push_own(L, index, decode_call);
    lua_setiuservalue(L, index, WORKER_DECODE);
    push_own(L, index, call_item);
    lua_setiuservalue(L, index, WORKER_CALL_ITEM);
    push_own(L, index, work);
}

/* So that what a task prints goes out in one piece, when it has ended, unless somebody watches. */
static void keep_output_together(void) {
    static char buffer[OUTPUT_BUFFER];
    if (isatty(STDOUT_FILENO))
        return;
    /* A stream that has been written to would write once more before it makes use of another buffer,
     * unless it forgets, as it does for this, that it was writing. */
    fseeko(stdout, 0, SEEK_CUR);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
}

/* ---- the process --------------------------------------------------------------------------------- */

static int run_forked(lua_State *L) { /* port, as a light userdata; known functions or nil */
    Runtime *runtime = runtime_of(L);
    runtime_forget_tasks(L, runtime);
    push_worker(L, lua_touserdata(L, 1), lua_istable(L, 2) ? 2 : 0);
    lua_replace(L, 1);
    lua_settop(L, 1);
    return loop_run(L, runtime);
}

static int run_program(lua_State *L) { /* port, as a light userdata */
    push_worker(L, lua_touserdata(L, 1), 0);
    lua_replace(L, 1);
    lua_settop(L, 1);
    return loop_run(L, runtime_of(L));
}

void worker_run(lua_State *L, Port *port, int known) {
    int status;
    if (known != 0)
        lua_pushvalue(L, known);
    else
        lua_pushnil(L);
    runtime_push_function(L, run_forked, 0);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, port);
    lua_insert(L, -2);
    keep_output_together();
    handle_interrupts(runtime_of(L));
    status = lua_pcall(L, 2, 0, 0);
    fflush(NULL);
    if (is_interrupted)
        end_interrupted();
    if (status != LUA_OK)
        fprintf(stderr, "opero: a worker failed: %s\n", luaL_tolstring(L, -1, NULL));
    _exit(status == LUA_OK ? 0 : 1);
}

static int call_work(lua_State *L) { /* bell, memory */
    Port port;
    int bell = (int)luaL_checkinteger(L, 1), memory = (int)luaL_checkinteger(L, 2), status;
    int error = port_attach(&port, bell, memory);
    if (error != 0)
        return luaL_error(L, "this is no worker of a pool: %s", strerror(error));
    process_die_with(port.shared->setup.parent);
    keep_output_together();
    handle_interrupts(runtime_of(L));
    runtime_push_function(L, run_program, 0);
    lua_pushlightuserdata(L, &port);
    status = lua_pcall(L, 1, 0, 0);
    if (is_interrupted) {
        fflush(NULL);
        end_interrupted();
    }
    return status == LUA_OK ? 0 : lua_error(L);
}

static const luaL_Reg functions[] = {{"work", call_work}, {NULL, NULL}};

void worker_register(lua_State *L, int module) {
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, REPLY_METATABLE, NULL);
    lua_pushcfunction(L, reply_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
