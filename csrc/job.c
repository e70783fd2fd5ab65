#include "cancel.h"
#include "scope.h"
#include "worker_parts.h"

#include <stdio.h>
#include <string.h>

/* ---- a task's life ------------------------------------------------------------------------------- */

static void task_begins(Self *self, uint32_t id) {
    PortShared *shared = self->port.shared;
    if (!shared->setup.is_timed)
        return;
    for (uint32_t i = 0; i < self->slots && i < PORT_SLOTS; i++)
        if (atomic_load_explicit(&shared->slots[i].began_ns, memory_order_relaxed) == 0) {
            atomic_store_explicit(&shared->slots[i].id, id, memory_order_relaxed);
            atomic_store(&shared->slots[i].began_ns, clock_real_ns());
            return;
        }
}

void job_note_end(Self *self, uint32_t id) {
    PortShared *shared = self->port.shared;
    if (!shared->setup.is_timed)
        return;
    for (uint32_t i = 0; i < self->slots && i < PORT_SLOTS; i++)
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
    (void)status, (void)context;
    worker_job_ended(L, worker_self(L));
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
static bool send_scalars(lua_State *L, Self *self, uint32_t id, int first) {
    enum { AT_MOST = 4 };
    char *start, *at;
    Record record = {.id = id, .kind = RECORD_RESULT, .status = STATUS_OK};
    int count = lua_gettop(L) - first + 1;
    if (count > AT_MOST || !list_is_empty(&self->outgoing) ||
        ring_room(&self->port.out) < sizeof record + 2 + AT_MOST * CODEC_SCALAR_MAX)
        return false;
    start = at = ring_place(&self->port.out) + sizeof record;
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
    ring_publish(&self->port.out, sizeof record + record.length);
    port_wake(&self->port);
    return true;
}

static int answer_call(lua_State *L, bool has_failed) { /* id, handler, results or ... error */
    Self *self = worker_self(L);
    uint32_t id = (uint32_t)lua_tointeger(L, 1);
    job_note_end(self, id);
    if (worker_is_interrupted) /* what it has come to is not an outcome: the process ends */
        return end_task(L, LUA_OK, 0);
    fflush(stdout);
    if (!has_failed && send_scalars(L, self, id, 3))
        return end_task(L, LUA_OK, 0);
    return reply_send(L, self, reply_push_outcome(L, RECORD_RESULT, id, 3, has_failed), reply_sent);
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

int job_run_call(lua_State *L) { /* id, function, arguments... */
    int status;
    task_begins(worker_self(L), (uint32_t)lua_tointeger(L, 1));
    lua_pushcfunction(L, runtime_note_error);
    lua_insert(L, 2);
    status = lua_pcallk(L, lua_gettop(L) - 3, LUA_MULTRET, 2, 0, call_returned);
    return call_returned(L, status, 0);
}

/* ---- init: 0, handler, function ---------------------------------------------------------------------- */

static int init_ended(lua_State *L, bool has_failed) {
    Self *self = worker_self(L);
    Reply *reply;
    if (worker_is_interrupted)
        return end_task(L, LUA_OK, 0);
    if (has_failed) {
        self->is_stopping = true;
        reply = reply_push_outcome(L, RECORD_RESULT, 0, 3, true);
    } else {
        self->is_ready = true;
        reply = reply_push(L);
        parcel_init(&reply->parcel, RECORD_READY, STATUS_OK, 0, NULL);
    }
    return reply_send(L, self, reply, reply_sent);
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

int job_run_init(lua_State *L) { /* 0, function */
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

bool job_push_done(lua_State *L, uint32_t id, int64_t elapsed_ns) {
    Reply *reply = reply_push(L);
    if (!message_append(&reply->message, &elapsed_ns, sizeof elapsed_ns))
        return false;
    parcel_init(&reply->parcel, RECORD_DONE, STATUS_OK, id, &reply->message);
    return true;
}

static int chunk_done(lua_State *L, Self *self, const Chunk *chunk) {
    if (!job_push_done(L, chunk->id, clock_real_ns() - chunk->began_ns))
        return luaL_error(L, "not enough memory");
    return reply_send(L, self, lua_touserdata(L, -1), reply_sent);
}

static int item_sent(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, item_sent, context), 0);
    return run_items(L);
}

/* Sends the result of an item, if it is a scalar and there is room. */
static bool send_scalar(lua_State *L, Self *self, uint32_t id, int index) {
    Ring *out = &self->port.out;
    Record record = {.id = id, .kind = RECORD_ITEM, .status = STATUS_SCALAR};
    size_t room = ring_room(out), length;
    char *place = ring_place(out);
    if (room < sizeof record + CODEC_SCALAR_MAX || !list_is_empty(&self->outgoing))
        return false;
    length = codec_put_scalar(L, index, place + sizeof record);
    if (length == 0)
        return false;
    record.length = (uint32_t)length;
    memcpy(place, &record, sizeof record);
    ring_publish(out, sizeof record + length);
    if (room < out->capacity / 2)
        port_wake(&self->port); /* else the end of the chunk is soon enough */
    return true;
}

/* The item has an outcome: its result is at CHUNK_BASE + 1, or the error is on the top of the stack.
 * True: it was sent. */
static bool answer_item(lua_State *L, bool has_failed, Reply **reply) {
    Self *self = worker_self(L);
    const Chunk *chunk = lua_touserdata(L, 1);
    job_note_end(self, chunk->id);
    fflush(stdout);
    if (!has_failed) {
        lua_settop(L, CHUNK_BASE + 2);
        if (lua_isnil(L, CHUNK_BASE + 1) && !lua_isnil(L, CHUNK_BASE + 2))
            has_failed = true; /* nil, err */
        else
            lua_settop(L, CHUNK_BASE + 1);
    }
    if (!has_failed && send_scalar(L, self, chunk->id, CHUNK_BASE + 1))
        return true;
    *reply = reply_push_outcome(L, RECORD_ITEM, chunk->id, CHUNK_BASE + 1, has_failed);
    return false;
}

static int go_on(lua_State *L, bool has_failed) {
    Reply *reply;
    if (worker_is_interrupted)
        return end_task(L, LUA_OK, 0);
    if (answer_item(L, has_failed, &reply) || reply_send_now(worker_self(L), reply))
        return run_items(L);
    return reply_wait_until_sent(L, worker_self(L), reply, item_sent);
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

int job_call_item(lua_State *L) { /* function; an encoded item, its length */
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
static bool claim_item(const Self *self, Chunk *chunk) {
    bool has_claim = chunk->has_claim || port_claim(&self->port, chunk->epoch);
    chunk->has_claim = false;
    return has_claim;
}

/* Runs items until one suspends, or there are no more. */
static int run_items(lua_State *L) {
    Self *self = worker_self(L);
    Runtime *runtime = runtime_of(L);
    Chunk *chunk = lua_touserdata(L, 1);
    while (!worker_is_interrupted && chunk->at < chunk->length && claim_item(self, chunk)) {
        Reply *reply;
        bool has_failed;
        lua_settop(L, CHUNK_BASE);
        task_begins(self, chunk->id);
        has_failed = lua_pcallk(L, push_item(L, chunk), 2, 2, 0, item_returned) != LUA_OK;
        if (has_children(runtime->current)) {
            if (runtime->current->scope->live > 0)
                return join_children(L, runtime, has_failed, item_joined);
            runtime->current->scope->outcome = has_failed;
            has_failed = close_children(L, runtime, CHUNK_BASE + 1);
        }
        if (worker_is_interrupted)
            break;
        if (!answer_item(L, has_failed, &reply) && !reply_send_now(self, reply))
            return reply_wait_until_sent(L, self, reply, item_sent);
    }
    lua_settop(L, CHUNK_BASE);
    return worker_is_interrupted ? end_task(L, LUA_OK, 0) : chunk_done(L, self, chunk);
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

int job_run_chunk(lua_State *L) { /* chunk */
    Self *self = worker_self(L);
    Chunk *chunk = lua_touserdata(L, 1);
    lua_pushcfunction(L, runtime_note_error);
    worker_push_own(L, UPVALUE_OWN, decode_function);
    lua_pushvalue(L, 1);
    chunk->began_ns = clock_real_ns();
    if (lua_pcall(L, 1, 1, 0) == LUA_OK)
        return run_items(L);
    /* so no item can be run: they have begun, and failed */
    for (size_t length;
         (length = item_length(chunk->bytes + chunk->at, chunk->length - chunk->at)) > 0 &&
         claim_item(self, chunk);)
        chunk->at += length;
    return reply_send(L, self, reply_push_outcome(L, RECORD_RESULT, chunk->id, CHUNK_BASE, true),
                      reply_sent);
}

void job_push_chunk(lua_State *L, const Record *record, const char *bytes) {
    Chunk *chunk = lua_newuserdatauv(L, sizeof *chunk + record->length, 0);
    chunk->id = record->id;
    chunk->epoch = record->epoch;
    chunk->length = record->length;
    chunk->at = 0;
    chunk->has_claim = true;
    memcpy(chunk->bytes, bytes, record->length);
}
