#define _GNU_SOURCE
#include "loop.h"
#include "pool_parts.h"
#include "scope.h"
#include "tracing.h"

#include <string.h>
#include <sys/wait.h>

#define CALL_METATABLE "opero.Call"
#define ARGUMENTS_MAX (1u << 30) /* bytes */

/* ---- handing in ------------------------------------------------------------------------------------ */

void submit_drop_handle(Handle *handle) {
    Call *call = handle->call;
    if (call == NULL)
        return;
    handle->call = NULL;
    if (pool_is_foreign(call->pool)) { /* nobody here has to do with it */
        for (Call *part = call; part != NULL; part = part->next_part)
            link_remove(&part->link);
        call->pending = 0;
    } else if (call->pending >
               0) { /* its task was closed by hand, or is about to be with the state */
        if (call->task != NULL)
            call->task->object = NULL;
        pool_drop_call(call);
    } else
        link_remove(&call->link); /* accepted, perhaps */
    call->has_handle = false;
    call_release(call);
}

static int handle_gc(lua_State *L) {
    submit_drop_handle(lua_touserdata(L, 1));
    return 0;
}

static int raise_closed(lua_State *L, const char *message) {
    runtime_push_error(L, "ClosedError", message, NULL);
    return lua_error(L);
}

/* Pushes a handle with a call for the pool at index 1. */
Call *submit_push_handle(lua_State *L, Pool *pool) {
    Handle *handle = lua_newuserdatauv(L, sizeof *handle, HANDLE_USER_VALUES);
    handle->call = NULL;
    luaL_setmetatable(L, CALL_METATABLE);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, HANDLE_POOL);
    handle->call = call_make(pool);
    if (handle->call == NULL)
        luaL_error(L, "not enough memory");
    handle->call->has_handle = true;
    handle->call->context = tracing_keep(pool->runtime);
    return handle->call;
}

/* The number below which all workers know the functions. */
uint32_t submit_known_to_all(const Pool *pool) {
    uint32_t least = pool->next_known;
    for (const Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        const Worker *worker = CONTAINER_OF(link, Worker, link);
        if ((worker->state == WORKER_READY || worker->state == WORKER_STARTING) &&
            worker->generation < least)
            least = worker->generation;
    }
    return least;
}

/* The number of the function at `index` among those known; UINT32_MAX: none. */
static uint32_t number_of(lua_State *L, int known, int index) {
    uint32_t number = UINT32_MAX;
    lua_pushvalue(L, index);
    if (lua_rawget(L, known) == LUA_TNUMBER)
        number = (uint32_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return number;
}

/* From now on the workers that are forked know the function at `index`. */
void submit_make_known(lua_State *L, Pool *pool, int known, int index) {
    if (number_of(L, known, index) != UINT32_MAX)
        return;
    lua_pushvalue(L, index);
    lua_pushinteger(L, pool->next_known);
    lua_rawset(L, known);
    pool->next_known++;
}

static int encode_values(lua_State *L) { /* encoding, known or nil, strings or nil, values... */
    Encoding *encoding = lua_touserdata(L, 1);
    encoding->options.known = lua_istable(L, 2) ? 2 : 0;
    encoding->options.anchors = lua_istable(L, 3) ? 3 : 0;
    codec_encode(L, 4, lua_gettop(L) - 3, encoding->message, &encoding->options);
    return 0;
}

/* Pushes encode_values with its arguments, for the values from `first` on. Returns their number. */
int submit_push_encoding(lua_State *L, Encoding *encoding, int known, int strings, int first,
                         int count) {
    luaL_checkstack(L, count + 8, "too many arguments");
    lua_pushcfunction(L, encode_values);
    lua_pushlightuserdata(L, encoding);
    lua_pushvalue(L, known);
    lua_pushvalue(L, strings);
    for (int i = 0; i < count; i++)
        lua_pushvalue(L, first + i);
    return count + 3;
}

static bool is_serialization_error(lua_State *L) {
    bool is_it = false;
    if (lua_type(L, -1) == LUA_TTABLE) {
        lua_getfield(L, -1, "name");
        is_it = lua_type(L, -1) == LUA_TSTRING &&
                strcmp(lua_tostring(L, -1), "SerializationError") == 0;
        lua_pop(L, 1);
    }
    return is_it;
}

/* Encodes the function at `first` and the values behind it into call->message. A function that the
 * forked workers know is sent as its number, and kept by the handle. If it, or what it holds, cannot
 * be sent to workers that were there before it was known, it has to be a worker that is forked yet. */
void submit_encode(lua_State *L, Pool *pool, Call *call, int handle, int first, int count,
                   const char *what) {
    Encoding encoding = {.message = &call->message,
                         .options = {.what = what, .leads_with_function = true}};
    int known, strings, top = lua_gettop(L), arguments;
    bool has_long = false;
    for (int i = first + 1; i < first + count; i++)
        has_long = has_long || (lua_type(L, i) == LUA_TSTRING &&
                                lua_rawlen(L, i) >= (lua_Unsigned)CODEC_SEGMENT_MIN);
    luaL_checkstack(L, count + 16, "too many arguments");
    pool_push_known(L, pool);
    known = top + 1;
    if (has_long)
        lua_newtable(L);
    else
        lua_pushnil(L);
    strings = top + 2;
    if (pool->is_fork) {
        if (!crew_is_alive(pool))
            submit_make_known(L, pool, known, first);
        encoding.options.known_limit = submit_known_to_all(pool);
        lua_pushvalue(L, first);
        lua_setiuservalue(L, handle, HANDLE_FUNCTION);
    }
    arguments = submit_push_encoding(L, &encoding, known, strings, first, count);
    if (!pool->is_fork || number_of(L, known, first) < encoding.options.known_limit) {
        lua_call(L, arguments, 0);
    } else if (lua_pcall(L, arguments, 0, 0) != LUA_OK) {
        if (!is_serialization_error(L))
            lua_error(L);
        submit_make_known(L, pool, known, first);
        encoding.options.known_limit = call->generation = pool->next_known;
        lua_call(L, submit_push_encoding(L, &encoding, known, strings, first, count), 0);
    }
    if (has_long) {
        lua_pushvalue(L, strings);
        lua_setiuservalue(L, handle, HANDLE_STRINGS);
    }
    lua_settop(L, top);
    if (call->message.length + call->message.segmented > ARGUMENTS_MAX) {
        runtime_push_error(L, "SerializationError", "the arguments take more than 1 GiB", NULL);
        lua_error(L);
    }
}

static void leave_call(Loop *loop, Task *task) {
    (void)loop;
    if (task->object != NULL)
        pool_drop_call(task->object);
}

static const WaitKind wait_call = {.name = "pool:call", .leave = leave_call};

/* Puts the call of the handle at index 1 into the queue: its task waits. `return submit_hand_in(...)`. */
int submit_hand_in(lua_State *L, Call *call, lua_KFunction k) {
    Runtime *runtime = runtime_of(L);
    Pool *pool = call->pool;
    Task *me = runtime->current;
    if (pool->is_closed)
        return raise_closed(L, "the pool was closed before the task had ended");
    link_remove(&call->link);
    if (pool->service.loop != runtime->loop) {
        if (pool->outstanding > 0)
            return luaL_error(L, "the pool is in use outside this simulation");
        crew_move(pool, runtime->loop);
    }
    call->id = pool->next_id++;
    call->pending = 1;
    call->task = me;
    pool->outstanding++;
    call_put_into_queue(call, false);
    pool_due(pool);
    return task_suspend(L, runtime, me, &wait_call, NULL, call, CLOCK_NEVER, k);
}

/* ---- what came of it ------------------------------------------------------------------------------- */

/* Sets a field of the error on the top of the stack to the value there, which it pops. */
static void set_field(lua_State *L, const char *name) {
    if (lua_istable(L, -2)) {
        lua_pushstring(L, name);
        lua_insert(L, -2);
        lua_rawset(L, -3);
    } else
        lua_pop(L, 1);
}

/* Pushes what happened to a process, in words. */
static void push_death(lua_State *L, const Death *death) {
    if (!death->is_known)
        lua_pushfstring(L, "worker %d has ended: how is not known, for other code waited for it",
                        (int)death->pid);
    else if (WIFSIGNALED(death->status))
        lua_pushfstring(L, "worker %d was killed by signal %d (%s)", (int)death->pid,
                        WTERMSIG(death->status), strsignal(WTERMSIG(death->status)));
    else
        lua_pushfstring(L, "worker %d exited with status %d", (int)death->pid,
                        WEXITSTATUS(death->status));
}

static void set_death(lua_State *L, const Death *death) {
    lua_pushinteger(L, death->pid);
    set_field(L, "pid");
    if (!death->is_known)
        return;
    if (WIFSIGNALED(death->status)) {
        lua_pushinteger(L, WTERMSIG(death->status));
        set_field(L, "signal");
    } else {
        lua_pushinteger(L, WEXITSTATUS(death->status));
        set_field(L, "status");
    }
}

/* Pushes what a worker has sent; returns how many values. */
int submit_decode(lua_State *L, const Pool *pool, const char *bytes, size_t length) {
    const CodecDecoding options = {.functions = pool->accepts_functions};
    return codec_decode(L, bytes, length, &options);
}

/* Pushes the two values of an encoded error: it, and its traceback. */
void submit_push_reported(lua_State *L, const Pool *pool, const char *bytes, size_t length) {
    int top = lua_gettop(L);
    submit_decode(L, pool, bytes, length);
    lua_settop(L, top + 2);
}

static void push_no_worker(lua_State *L, const Call *call) {
    int top = lua_gettop(L);
    if (call->reply_length > 0) {
        submit_push_reported(L, call->pool, call->reply, call->reply_length);
        lua_pushfstring(L, "a worker could not begin: %s", luaL_tolstring(L, top + 1, NULL));
        lua_pushvalue(L, top + 1);
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -2), "cause");
    } else if (call->death.pid == 0) {
        lua_pushfstring(L, "a worker cannot be started: %s%s%s",
                        call->pool->is_fork ? "" : call->pool->interpreter,
                        call->pool->is_fork ? "" : ": ", strerror(call->death.status));
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -1), NULL);
    } else {
        push_death(L, &call->death);
        lua_pushfstring(L, "%s before it was ready, and so did those before it",
                        lua_tostring(L, -1));
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -1), NULL);
        set_death(L, &call->death);
    }
    lua_copy(L, -1, top + 1);
    lua_settop(L, top + 1);
}

/* Pushes the error of a part that was not answered; `item` is the index of what it was about. */
void submit_push_failure(lua_State *L, const Call *call, int item) {
    int top = lua_gettop(L);
    switch (call->outcome) {
    case CALL_TIMED_OUT:
        lua_pushnumber(L, clock_to_seconds(call->pool->task_timeout_ns));
        lua_pushfstring(L, "the task timed out after %f s: its worker was killed",
                        lua_tonumber(L, -1));
        lua_insert(L, -2);
        runtime_push_error(L, "TimeoutError", lua_tostring(L, -2), "timeout");
        break;
    case CALL_CLOSED:
        runtime_push_error(L, "ClosedError", "the pool was closed before the task had ended", NULL);
        break;
    case CALL_NO_WORKER:
        push_no_worker(L, call);
        break;
    default:
        push_death(L, &call->death);
        lua_pushfstring(L, "%s while it ran the task", lua_tostring(L, -1));
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -1), NULL);
        set_death(L, &call->death);
        break;
    }
    lua_pushvalue(L, item);
    set_field(L, "item");
    lua_copy(L, -1, top + 1);
    lua_settop(L, top + 1);
}

/* Raises the error on the top of the stack but one, with the traceback above it. */
static int raise_reported(lua_State *L) {
    if (lua_isstring(L, -1)) {
        lua_pushvalue(L, -2);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR);
        lua_pushliteral(L, "in a worker process:\n");
        lua_insert(L, -2);
        lua_concat(L, 2);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_TRACEBACK);
    } else
        lua_pop(L, 1);
    return runtime_rethrow(L);
}

static int deliver(lua_State *L) { /* handle, first argument */
    Handle *handle = lua_touserdata(L, 1);
    const Call *call = handle->call;
    int count = 0;
    lua_settop(L, 2);
    if (call->outcome != CALL_ANSWERED) {
        submit_push_failure(L, call, 2);
        submit_drop_handle(handle);
        return lua_error(L);
    }
    switch (call->status) {
    case STATUS_OK:
        count = submit_decode(L, call->pool, call->reply, call->reply_length);
        submit_drop_handle(handle);
        return count;
    case STATUS_ERROR:
        submit_push_reported(L, call->pool, call->reply, call->reply_length);
        submit_drop_handle(handle);
        return raise_reported(L);
    default:
        submit_drop_handle(handle);
        lua_pushliteral(L, "not enough memory");
        return lua_error(L);
    }
}

static int call_answered(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, call_answered, context), 0);
    return deliver(L);
}

static int run_submitted(lua_State *L) { /* handle, first argument */
    return submit_hand_in(L, ((Handle *)lua_touserdata(L, 1))->call, call_answered);
}

/* Replaces the arguments (pool, function, ...) by the handle of an encoded call and the first of what
 * the function is given. */
static Call *encode_arguments(lua_State *L, Pool *pool) {
    int top = lua_gettop(L);
    Call *call = submit_push_handle(L, pool); /* which keeps the pool */
    submit_encode(L, pool, call, top + 1, 2, top - 1, "argument");
    if (top > 2)
        lua_pushvalue(L, 3);
    else
        lua_pushnil(L);
    lua_copy(L, top + 1, 1);
    lua_copy(L, top + 2, 2);
    lua_settop(L, 2);
    return call;
}

static int pool_call(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Pool *pool = pool_check(L);
    check_callable(L, 2);
    pool_check_open(L, pool);
    if (task_enter(L, runtime, "pool:call") == NULL)
        return loop_call(L, runtime, pool_call);
    return submit_hand_in(L, encode_arguments(L, pool), call_answered);
}

static int pool_submit(lua_State *L) { /* its own upvalue is run_submitted */
    Runtime *runtime = runtime_of(L);
    Pool *pool = pool_check(L);
    Call *call;
    check_callable(L, 2);
    pool_check_open(L, pool);
    call = encode_arguments(L, pool);
    lua_pushvalue(L, UPVALUE_OWN);
    lua_insert(L, 1);
    lua_pushvalue(L, 2);
    lua_insert(L, 1); /* handle, function, handle, first argument */
    call->task = task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), 2);
    list_append(&pool->accepted, &call->link);
    lua_pushvalue(L, 2);
    lua_setiuservalue(L, 1, HANDLE_TASK);
    return 1;
}

void submit_register(lua_State *L, int methods) {
    runtime_push_function(L, pool_call, 0);
    lua_setfield(L, methods, "call");
    runtime_push_function(L, run_submitted, 0);
    runtime_push_function(L, pool_submit, 1);
    lua_setfield(L, methods, "submit");
    runtime_new_metatable(L, CALL_METATABLE, NULL);
    lua_pushcfunction(L, handle_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
