#include "calls.h"
#include "cancel.h"
#include "describe.h"
#include "loop.h"
#include "scope.h"

/* ---- running and spawning ------------------------------------------------------------------- */

static int await_ended(lua_State *L, int status, lua_KContext context);

static void leave_await(Loop *loop, Task *task) {
    (void)loop;
    task_remove_awaiter(task->object, task);
}

static bool undo_await(lua_State *L, Loop *loop, Task *task) {
    Task *awaited = task->object;
    (void)L, (void)loop;
    if (awaited->state == TASK_FAILED && awaited->home == NULL)
        return false; /* its parent has ended, and relies on our taking the error */
    awaited->flags &= (uint8_t)~TASK_IS_AWAITED; /* its error has reached nobody after all */
    return true;
}

static void describe_await(lua_State *L, Task *task) {
    task_push_name(L, task->object, 0);
    lua_pushfstring(L, "task:await ('%s')", lua_tostring(L, -1));
    lua_remove(L, -2);
}

static const WaitKind wait_await = {
    .name = "task:await", .describe = describe_await, .leave = leave_await, .undo = undo_await};

#define NEAR 64 /* farther up, awaiting an ancestor is found out as a deadlock */

/* Whether `task` would have to end before `awaited` can. */
static bool is_ancestor(const Task *awaited, const Task *task) {
    if (awaited->scope == NULL)
        return false;
    for (int i = 0; i < NEAR && task->home != NULL && task->home->owner != NULL; i++) {
        task = task->home->owner;
        if (task == awaited)
            return true;
    }
    return false;
}

/* Awaits the task at index 1, with an optional timeout at index 2. */
static int await_task(lua_State *L, Runtime *runtime, Task *me) {
    Task *awaited = lua_touserdata(L, 1);
    int64_t deadline_ns = check_deadline(L, runtime, 2);
    if (awaited == me)
        return luaL_error(L, "a task cannot await itself");
    if (is_ancestor(awaited, me))
        return luaL_error(L, "a task cannot await one above it, which ends only after it");
    task_add_awaiter(awaited, me);
    return task_suspend(L, runtime, me, &wait_await, NULL, awaited, deadline_ns, await_ended);
}

static int await_ended(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = task_regain(L, await_ended, context);
    (void)status;
    task_resumed(L, runtime, 2);
    return task_deliver(L, runtime, 1);
}

static int call_run(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Task *me;
    check_callable(L, 1);
    me = task_enter(L, runtime, "opero.run");
    if (me == NULL)
        return loop_run(L, runtime);
    task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), lua_gettop(L) - 1);
    return await_task(L, runtime, me);
}

static int call_spawn(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    check_callable(L, 1);
    task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), lua_gettop(L) - 1);
    return 1;
}

/* detach(fn, ...): a task that is nobody's child: whoever started it may be cancelled, or end. For the
 * Lua layer, which sees to it that somebody waits for it, and that it does not fail. */
static int call_detach(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    check_callable(L, 1);
    task_spawn(L, runtime, runtime->loop, &runtime->loop->orphans, lua_gettop(L) - 1);
    return 1;
}

/* time_left(): seconds until the first of the timeouts around this code has passed; nothing when there
 * is none. A shield keeps those away that are outside of it. */
static int call_time_left(lua_State *L) {
    const Runtime *runtime = runtime_of(L);
    const Loop *loop = runtime->loop;
    int64_t first_ns = CLOCK_NEVER;
    const Task *task = runtime->current;
    const Scope *scope = task != NULL ? task->scope : NULL;
    while (task != NULL) {
        for (; scope != NULL && scope->kind != SCOPE_SHIELD; scope = scope->outer)
            if (scope->kind == SCOPE_TIMEOUT && scope->timer.slot != 0) {
                int64_t deadline_ns = timers_deadline_ns(&loop->timers, &scope->timer);
                first_ns = deadline_ns < first_ns ? deadline_ns : first_ns;
            }
        if (scope != NULL || task->home == NULL)
            break;
        scope = task->home;
        task = scope->owner;
    }
    if (first_ns == CLOCK_NEVER)
        return 0;
    lua_pushnumber(L, clock_to_seconds(first_ns - clock_now_ns(&loop->clock)));
    return 1;
}

static int call_current(lua_State *L) {
    const Runtime *runtime = runtime_of(L);
    if (runtime->current == NULL)
        lua_pushnil(L);
    else
        lua_rawgeti(L, UPVALUE_ANCHORS, runtime->current->anchor);
    return 1;
}

static int call_yield(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Task *me = task_enter(L, runtime, "opero.yield");
    return me != NULL ? task_yield(L, runtime, me, NULL) : loop_call(L, runtime, call_yield);
}

static const WaitKind wait_sleep = {.name = "opero.sleep"};

static int sleep_ended(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, sleep_ended, context), 0);
    return 0;
}

static int call_sleep(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    int64_t duration_ns = check_duration(L, 1), deadline_ns;
    Task *me = task_enter(L, runtime, "opero.sleep");
    if (me == NULL)
        return loop_call(L, runtime, call_sleep);
    if (duration_ns == 0)
        return task_yield(L, runtime, me, NULL);
    deadline_ns = clock_add_ns(clock_now_ns(&runtime->loop->clock), duration_ns);
    if (deadline_ns == CLOCK_NEVER && !runtime->loop->is_simulated)
        deadline_ns--; /* until cancelled or interrupted: not a deadlock */
    return task_suspend(L, runtime, me, &wait_sleep, NULL, NULL, deadline_ns, sleep_ended);
}

static int call_now(lua_State *L) {
    lua_pushnumber(L, clock_to_seconds(clock_now_ns(&runtime_of(L)->loop->clock)));
    return 1;
}

/* ---- task methods ------------------------------------------------------------------------------ */

static int task_await(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    const Task *awaited = task_check(L, 1);
    Task *me;
    check_deadline(L, runtime, 2);
    if (task_has_ended(awaited))
        return task_deliver(L, runtime, 1);
    me = task_enter(L, runtime, "task:await");
    lua_settop(L, 2);
    return me != NULL ? await_task(L, runtime, me) : loop_call(L, runtime, task_await);
}

/* Pushes the error of a cancellation for the reason at index 2. */
static void push_cancelled(lua_State *L) {
    const char *message = "cancelled";
    lua_settop(L, 2);
    if (lua_type(L, 2) == LUA_TSTRING)
        message = lua_pushfstring(L, "cancelled: %s", lua_tostring(L, 2));
    lua_pushvalue(L, 2);
    runtime_push_error(L, "CancelledError", message, "reason");
}

static int task_cancel_(lua_State *L) {
    Task *task = task_check(L, 1);
    push_cancelled(L);
    lua_pushboolean(L, task_cancel(L, runtime_of(L), task));
    return 1;
}

static int task_status(lua_State *L) {
    lua_pushstring(L, task_state_name(task_check(L, 1)));
    return 1;
}

static int task_name(lua_State *L) {
    Task *task = task_check(L, 1);
    if (lua_isnoneornil(L, 2)) {
        task_push_name(L, task, 1);
        return 1;
    }
    luaL_argexpected(L, lua_type(L, 2) == LUA_TSTRING, 2, "string");
    lua_settop(L, 2);
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_NAMES);
    lua_pushvalue(L, 1);
    lua_pushvalue(L, 2);
    lua_rawset(L, -3);
    lua_settop(L, 1);
    return 1;
}

static int task_traceback(lua_State *L) {
    const Task *task = task_check(L, 1);
    if (task->coroutine != NULL) {
        luaL_traceback(L, task->coroutine, NULL, 0);
        return 1;
    }
    if (task->state != TASK_FAILED || task->handed != OUTCOME_TABLE)
        return 0;
    lua_getiuservalue(L, 1, 1);
    lua_rawgeti(L, -1, 2);
    return 1;
}

static int task_tostring(lua_State *L) {
    Task *task = task_check(L, 1);
    task_push_name(L, task, 1);
    lua_pushfstring(L, "%s: %s (%s)", TASK_METATABLE, lua_tostring(L, -1), task_state_name(task));
    return 1;
}

/* ---- scopes -------------------------------------------------------------------------------------- *
 *
 * opero.scope, timeout and shield call a function with a scope open. Their stack is
 *   1: the message handler   2: the handle, the seconds, or nil   3 ...: results, or the error
 */
enum {
    BODY_FAILED = 1,
    BODY_CUT_SHORT = 2 /* by this scope's own cancellation */,
    BODY_EXPIRED = 4
};

static const WaitKind wait_scope = {.name = "the tasks of its scope", .is_uninterruptible = true};

static int raise_pending(lua_State *L, Task *me, int results) {
    if ((me->flags & TASK_HAS_CANCEL) != 0 && task_push_cancellation(L, me))
        return lua_error(L);
    return results;
}

/* All children of the scope have ended. */
static int scope_joined(lua_State *L, int status, lua_KContext has_waited) {
    Runtime *runtime = runtime_of(L);
    Task *me = runtime->current;
    Scope *scope = me->scope;
    int outcome = scope->outcome, kind = scope->kind;
    int results = lua_gettop(L) - 2;
    bool failed = (outcome & BODY_FAILED) != 0, was_cut = (outcome & BODY_CUT_SHORT) != 0;
    bool has_expired = scope->has_expired && (was_cut || (outcome & BODY_EXPIRED) == 0);
    bool took = scope_close(L, runtime, runtime->loop, me, failed && !was_cut ? 3 : 0);
    (void)status;
    if (took)
        return runtime_rethrow(L);
    if (failed && !was_cut) {
        lua_settop(L, 3);
        return runtime_rethrow(L);
    }
    if (has_expired) {
        const char *message =
            lua_pushfstring(L, "timed out after %s s", luaL_tolstring(L, 2, NULL));
        lua_pushvalue(L, 2);
        runtime_push_error(L, "TimeoutError", message, "timeout");
        return lua_error(L);
    }
    if (was_cut) /* by scope:cancel */
        results = 0;
    return has_waited || kind == SCOPE_SHIELD ? raise_pending(L, me, results) : results;
}

static int wait_for_children(lua_State *L, Runtime *runtime);

static int scope_waited(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = task_regain(L, scope_waited, context);
    if (runtime->current->scope->live > 0) /* spawned since the last one ended */
        return wait_for_children(L, runtime);
    return scope_joined(L, status, 1);
}

static int wait_for_children(lua_State *L, Runtime *runtime) {
    Scope *scope = runtime->current->scope;
    scope->is_joining = true;
    return task_suspend(L, runtime, runtime->current, &wait_scope, NULL, scope, CLOCK_NEVER,
                        scope_waited);
}

static int scope_body_ended(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = runtime_of(L);
    Task *me = runtime->current;
    Scope *scope = me->scope;
    (void)context;
    scope->outcome = scope->has_expired ? BODY_EXPIRED : 0;
    if (status != LUA_OK && status != LUA_YIELD) {
        scope->outcome |= BODY_FAILED;
        if (scope->is_cancelled) {
            lua_rawgetp(L, UPVALUE_ANCHORS, scope);
            if (lua_rawequal(L, -1, 3))
                scope->outcome |= BODY_CUT_SHORT;
            lua_pop(L, 1);
        } else if (scope->live > 0) {
            runtime_push_error(L, "CancelledError", "the function of the scope failed", NULL);
            scope_cancel(L, runtime, scope);
            lua_pop(L, 1);
        }
    }
    return scope->live > 0 ? wait_for_children(L, runtime) : scope_joined(L, LUA_OK, 0);
}

/* Calls the function at index 3 with the arguments above it; 1 and 2 are set up already. */
static int call_in_scope(lua_State *L) {
    int status = lua_pcallk(L, lua_gettop(L) - 3, LUA_MULTRET, 1, 0, scope_body_ended);
    return scope_body_ended(L, status, 0);
}

static int call_scope(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Task *me;
    Scope **handle;
    check_callable(L, 1);
    me = task_enter(L, runtime, "opero.scope");
    if (me == NULL)
        return loop_call(L, runtime, call_scope);
    lua_settop(L, 1);
    lua_pushcfunction(L, runtime_note_error);
    lua_insert(L, 1);
    handle = lua_newuserdatauv(L, sizeof *handle, 0);
    *handle = NULL;
    luaL_setmetatable(L, SCOPE_METATABLE);
    lua_insert(L, 2);
    lua_pushvalue(L, 2);
    *handle = scope_open(L, me, SCOPE_GROUP);
    (*handle)->handle = handle;
    return call_in_scope(L);
}

static int call_timeout(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Task *me;
    int64_t deadline_ns = check_deadline(L, runtime, 1);
    Scope *scope;
    luaL_argexpected(L, lua_type(L, 1) == LUA_TNUMBER, 1, "number of seconds");
    check_callable(L, 2);
    me = task_enter(L, runtime, "opero.timeout");
    if (me == NULL)
        return loop_call(L, runtime, call_timeout);
    lua_pushcfunction(L, runtime_note_error);
    lua_insert(L, 1);
    scope = scope_open(L, me, SCOPE_TIMEOUT);
    if (deadline_ns != CLOCK_NEVER &&
        !timers_add(&runtime->loop->timers, &scope->timer, deadline_ns)) {
        scope_drop(L, runtime->loop, me);
        return luaL_error(L, "not enough memory");
    }
    return call_in_scope(L);
}

static int call_shield(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Task *me;
    check_callable(L, 1);
    me = task_enter(L, runtime, "opero.shield");
    if (me == NULL)
        return loop_call(L, runtime, call_shield);
    lua_pushcfunction(L, runtime_note_error);
    lua_pushnil(L);
    lua_rotate(L, 1, 2);
    scope_open(L, me, SCOPE_SHIELD);
    return call_in_scope(L);
}

static Scope *check_scope(lua_State *L, const char *method) {
    Scope **handle = luaL_checkudata(L, 1, SCOPE_METATABLE);
    if (*handle == NULL)
        luaL_error(L, "%s: the scope has ended", method);
    return *handle;
}

static int scope_spawn(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Scope *scope = check_scope(L, "scope:spawn");
    check_callable(L, 2);
    task_spawn(L, runtime, task_loop(runtime, scope->owner), scope, lua_gettop(L) - 2);
    return 1;
}

/* scope:_after(seconds, fn): spawns fn into the scope, if that is still there by then; once. For the Lua
 * layer. */
static int scope_after(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Scope *scope = check_scope(L, "scope:_after");
    Loop *loop = task_loop(runtime, scope->owner);
    int64_t delay_ns = check_duration(L, 2);
    check_callable(L, 3);
    lua_settop(L, 3);
    scope_set_follower(L, loop, scope, clock_add_ns(clock_now_ns(&loop->clock), delay_ns));
    return 0;
}

static int scope_cancel_(lua_State *L) {
    Scope *scope = check_scope(L, "scope:cancel");
    push_cancelled(L);
    scope_cancel(L, runtime_of(L), scope);
    return 0;
}

/* ---- errors, and what the Lua layer needs ----------------------------------------------------------------- */

static int call_traceback(lua_State *L) {
    lua_settop(L, 1);
    runtime_push_noted(L, 1);
    if (lua_isnil(L, -1))
        luaL_traceback(L, L, NULL, 1);
    return 1;
}

static int call_set_error_factory(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR_FACTORY);
    runtime_push_error(L, "CancelledError", "cancelled", NULL);
    if (lua_type(L, -1) == LUA_TSTRING)
        return lua_error(L);
    luaL_argcheck(L, lua_getmetatable(L, -1), 1, "makes errors without a metatable");
    lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_CANCELLED);
    lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_SPARE);
    return 0;
}

static int call_random(lua_State *L) {
    lua_pushnumber(L, runtime_random(runtime_of(L)));
    return 1;
}

static int call_epoch(lua_State *L) {
    lua_pushinteger(L, (lua_Integer)runtime_of(L)->loop->epoch);
    return 1;
}

/* ---- registration ------------------------------------------------------------------------------------------- */

static const luaL_Reg functions[] = {
    {"run", call_run},
    {"simulate", loop_simulate},
    {"spawn", call_spawn},
    {"current", call_current},
    {"detach", call_detach},
    {"time_left", call_time_left},
    {"sleep", call_sleep},
    {"yield", call_yield},
    {"now", call_now},
    {"scope", call_scope},
    {"timeout", call_timeout},
    {"shield", call_shield},
    {"tasks", loop_tasks},
    {"step", loop_step},
    {"pollfd", loop_pollfd},
    {"deadline", loop_deadline},
    {"traceback", call_traceback},
    {"set_error_factory", call_set_error_factory},
    {"random", call_random},
    {"epoch", call_epoch},
    {NULL, NULL},
};

static const luaL_Reg task_methods[] = {
    {"await", task_await}, {"cancel", task_cancel_},      {"status", task_status},
    {"name", task_name},   {"traceback", task_traceback}, {NULL, NULL},
};

static const luaL_Reg scope_methods[] = {
    {"spawn", scope_spawn}, {"cancel", scope_cancel_}, {"_after", scope_after}, {NULL, NULL}};

void calls_register(lua_State *L, int module) {
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, TASK_METATABLE, task_methods);
    runtime_push_function(L, task_tostring, 0);
    lua_setfield(L, -2, "__tostring");
    runtime_new_metatable(L, SCOPE_METATABLE, scope_methods);
    lua_pop(L, 2);
}
