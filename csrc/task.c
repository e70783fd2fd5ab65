#include "task.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define IDLE_MAX 256 /* finished coroutines kept for reuse: about 1 KiB each */

static const char RUNTIME_KEY; /* its address is the key */

/* ---- the runtime -------------------------------------------------------------------------- */

static int collect_failures(lua_State *L);

static uint64_t rotate_left(uint64_t x, int by) {
    return (x << by) | (x >> (64 - by));
}

/* splitmix64, to spread a seed of any quality over the generator's state */
void runtime_seed(Runtime *runtime, uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        uint64_t z = (seed += 0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        runtime->random[i] = z ^ (z >> 31);
    }
}

/* xoshiro256**, by David Blackman and Sebastiano Vigna; its 53 upper bits as a fraction */
double runtime_random(Runtime *runtime) {
    uint64_t *s = runtime->random;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

static void scope_init(Scope *scope, ScopeKind kind, Task *owner) {
    memset(scope, 0, sizeof *scope);
    link_init(&scope->children);
    link_init(&scope->failures);
    scope->kind = (uint8_t)kind;
    scope->owner = owner;
    scope->timer.kind = TIMER_OF_SCOPE;
}

void loop_init(Loop *loop, Runtime *runtime, bool is_simulated) {
    memset(loop, 0, sizeof *loop);
    if (is_simulated)
        clock_init_virtual(&loop->clock);
    else
        clock_init_real(&loop->clock);
    timers_init(&loop->timers);
    reactor_init(&loop->reactor);
    link_init(&loop->ready);
    scope_init(&loop->orphans, SCOPE_ROOT, NULL);
    loop->is_simulated = is_simulated;
    loop->epoch = ++runtime->epochs;
}

void loop_destroy(Loop *loop) {
    timers_destroy(&loop->timers);
    reactor_destroy(&loop->reactor);
}

/* The state closes: tasks that are still suspended run their pending closes. */
static int runtime_gc(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    runtime->is_closed = true;
    for (uint32_t i = 1; i <= runtime->anchor_count; i++) {
        Task *task;
        lua_rawgeti(L, UPVALUE_ANCHORS, i);
        task = lua_touserdata(L, -1);
        if (task != NULL && !task_has_ended(task))
            task_kill(L, runtime, task_loop(runtime, task), task);
        lua_pop(L, 1);
    }
    loop_destroy(&runtime->real);
    return 0;
}

void runtime_push_function(lua_State *L, lua_CFunction function, int own) {
    runtime_open(L);
    lua_getiuservalue(L, -1, RUNTIME_ANCHORS);
    lua_getiuservalue(L, -2, RUNTIME_IDLE);
    for (int i = 0; i < own; i++)
        lua_pushvalue(L, -3 - own);
    lua_pushcclosure(L, function, 3 + own);
    lua_insert(L, -1 - own);
    lua_pop(L, own);
}

void runtime_set_functions(lua_State *L, int table, const luaL_Reg *functions) {
    table = lua_absindex(L, table);
    for (; functions->name != NULL; functions++) {
        runtime_push_function(L, functions->func, 0);
        lua_setfield(L, table, functions->name);
    }
}

void runtime_new_metatable(lua_State *L, const char *name, const luaL_Reg *methods) {
    luaL_newmetatable(L, name);
    lua_newtable(L);
    runtime_set_functions(L, -1, methods);
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "protected");
    lua_setfield(L, -2, "__metatable");
}

Runtime *runtime_open(lua_State *L) {
    Runtime *runtime;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY) == LUA_TUSERDATA)
        return lua_touserdata(L, -1);
    lua_pop(L, 1);
    runtime = lua_newuserdatauv(L, sizeof *runtime, RUNTIME_USER_VALUES);
    memset(runtime, 0, sizeof *runtime);
    loop_init(&runtime->real, runtime, false);
    runtime->loop = &runtime->real;
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
    runtime->main = lua_tothread(L, -1);
    lua_pop(L, 1);
    runtime_seed(runtime, (uint64_t)clock_wall_ns() ^ (uint64_t)(uintptr_t)runtime ^
                              (uint64_t)getpid() << 32);
    lua_newtable(L);
    lua_setiuservalue(L, -2, RUNTIME_ANCHORS);
    lua_createtable(L, IDLE_MAX, 0);
    lua_setiuservalue(L, -2, RUNTIME_IDLE);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_setiuservalue(L, -2, RUNTIME_NAMES);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY);
    runtime_push_function(L, collect_failures, 0);
    lua_setiuservalue(L, -2, RUNTIME_COLLECTOR);
    lua_createtable(L, 0, 2); /* only now: until here there is nothing to release */
    runtime_push_function(L, runtime_gc, 0);
    lua_setfield(L, -2, "__gc");
    lua_pushliteral(L, "opero.Runtime");
    lua_setfield(L, -2, "__name");
    lua_setmetatable(L, -2);
    return runtime;
}

/* ---- errors ------------------------------------------------------------------------------- */

static int call_factory(lua_State *L) { /* class, message, field as pointers to char; value */
    const char *class_name = lua_touserdata(L, 1), *message = lua_touserdata(L, 2);
    const char *field = lua_touserdata(L, 3);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY);
    if (lua_getiuservalue(L, -1, RUNTIME_ERROR_FACTORY) != LUA_TFUNCTION) {
        lua_pushfstring(L, "%s: %s", class_name, message);
        return 1;
    }
    lua_pushstring(L, class_name);
    lua_pushstring(L, message);
    lua_createtable(L, 0, 1);
    if (field != NULL) {
        lua_pushvalue(L, 4);
        lua_setfield(L, -2, field);
    }
    lua_call(L, 3, 1);
    return 1;
}

void runtime_push_error(lua_State *L, const char *class_name, const char *message,
                        const char *field) {
    luaL_checkstack(L, 6, NULL);
    if (field == NULL)
        lua_pushnil(L);
    lua_pushcfunction(L, call_factory);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, (void *)class_name);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, (void *)message);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, (void *)field);
    lua_insert(L, -2);
    lua_pcall(L, 4, 1, 0); /* on failure its error serves */
}

/* Whether the error needs no new traceback: it is being raised again, or it is a cancellation, of
 * which there may be very many at once. */
static bool is_noted(lua_State *L, Runtime *runtime, int error, int runtime_index) {
    bool is_it = false;
    if (runtime->is_rethrowing) {
        runtime->is_rethrowing = false;
        lua_getiuservalue(L, runtime_index, RUNTIME_ERROR);
        is_it = lua_rawequal(L, -1, error);
        lua_pop(L, 1);
    }
    if (!is_it && lua_getmetatable(L, error)) {
        lua_getiuservalue(L, runtime_index, RUNTIME_CANCELLED);
        is_it = lua_rawequal(L, -1, -2);
        lua_pop(L, 2);
    }
    return is_it;
}

/* Notes the traceback of `thread` for the error at index `error`. */
static void note_traceback(lua_State *L, lua_State *thread, int level, int error,
                           int runtime_index) {
    lua_pushvalue(L, error);
    lua_setiuservalue(L, runtime_index, RUNTIME_ERROR);
    luaL_traceback(L, thread, NULL, level);
    lua_setiuservalue(L, runtime_index, RUNTIME_TRACEBACK);
}

int runtime_note_error(lua_State *L) {
    Runtime *runtime;
    lua_settop(L, 1);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY);
    runtime = lua_touserdata(L, 2);
    if (runtime != NULL && !is_noted(L, runtime, 1, 2))
        note_traceback(L, L, 1, 1, 2);
    lua_settop(L, 1);
    return 1;
}

int runtime_rethrow(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR);
    runtime->is_rethrowing = lua_rawequal(L, -1, -2);
    lua_pop(L, 1);
    return lua_error(L);
}

static int list_errors(lua_State *L) { /* list of errors */
    luaL_Buffer buffer;
    lua_Integer count = luaL_len(L, 1);
    luaL_buffinit(L, &buffer);
    lua_pushfstring(L, "%I tasks failed:", count);
    luaL_addvalue(&buffer);
    for (lua_Integer i = 1; i <= count; i++) {
        luaL_addstring(&buffer, "\n  ");
        lua_rawgeti(L, 1, i);
        luaL_tolstring(L, -1, NULL);
        lua_remove(L, -2);
        luaL_addvalue(&buffer);
    }
    luaL_pushresult(&buffer);
    return 1;
}

void runtime_push_aggregate(lua_State *L) {
    lua_pushcfunction(L, list_errors);
    lua_pushvalue(L, -2);
    if (lua_pcall(L, 1, 1, 0) != LUA_OK || lua_type(L, -1) != LUA_TSTRING) {
        lua_pop(L, 1);
        lua_pushliteral(L, "several tasks failed"); /* a __tostring raised */
    }
    lua_pushvalue(L, -2);
    runtime_push_error(L, "AggregateError", lua_tostring(L, -2), "errors");
    lua_replace(L, -3);
    lua_pop(L, 1);
}

bool is_cancellation(lua_State *L, int index) {
    bool is_it;
    if (!lua_getmetatable(L, index))
        return false;
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_CANCELLED);
    is_it = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return is_it;
}

int64_t check_duration(lua_State *L, int arg) {
    lua_Number seconds;
    if (lua_type(L, arg) != LUA_TNUMBER) /* no strings that look like numbers */
        luaL_typeerror(L, arg, "number of seconds");
    seconds = lua_tonumber(L, arg);
    luaL_argcheck(L, seconds == seconds, arg, "number of seconds expected, got NaN");
    return clock_from_seconds((double)seconds);
}

int64_t check_deadline(lua_State *L, Runtime *runtime, int arg) {
    int64_t timeout_ns;
    if (lua_isnoneornil(L, arg))
        return CLOCK_NEVER;
    timeout_ns = check_duration(L, arg);
    return clock_add_ns(clock_now_ns(&runtime->loop->clock), timeout_ns);
}

/* ---- a task's life ------------------------------------------------------------------------ */

static const WaitKind wait_children = {.name = "its children"};

static const WaitKind wait_yield = {.name = "yield"};

Task *task_check(lua_State *L, int arg) {
    return luaL_checkudata(L, arg, TASK_METATABLE);
}

static void make_ready(Loop *loop, Task *task) {
    task->state = TASK_READY;
    list_append(&loop->ready, &task->link);
    loop->ready_count++;
}

static uint32_t anchor_take(lua_State *L, Runtime *runtime) { /* pops the task */
    uint32_t anchor = runtime->free_anchor;
    if (anchor == 0) {
        lua_rawseti(L, UPVALUE_ANCHORS, runtime->anchor_count + 1);
        return ++runtime->anchor_count;
    }
    lua_rawgeti(L, UPVALUE_ANCHORS, anchor); /* the next free one */
    runtime->free_anchor = (uint32_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
    lua_rawseti(L, UPVALUE_ANCHORS, anchor);
    return anchor;
}

static void anchor_release(lua_State *L, Runtime *runtime, Task *task) {
    lua_pushinteger(L, runtime->free_anchor);
    lua_rawseti(L, UPVALUE_ANCHORS, task->anchor);
    runtime->free_anchor = task->anchor;
    task->anchor = 0;
}

/* Whether what is spawned into the scope is cancelled from the start. */
static bool is_cancelled_in(const Scope *scope) {
    const Task *owner = scope->owner;
    for (; scope != NULL; scope = scope->outer) {
        if (scope->is_cancelled)
            return true;
        if (scope->kind == SCOPE_SHIELD)
            return false;
    }
    return owner != NULL && (owner->flags & TASK_IS_CANCELLED) != 0;
}

Task *task_spawn(lua_State *L, Runtime *runtime, Loop *loop, Scope *home, int nargs) {
    Task *task;
    int base = lua_gettop(L) - nargs; /* of the function */
    if (runtime->is_closed)
        luaL_error(L, "cannot spawn a task: the runtime is closed");
    luaL_checkstack(L, 4, "too many arguments");
    task = lua_newuserdatauv(L, sizeof *task, 1);
    memset(task, 0, sizeof *task);
    link_init(&task->link);
    link_init(&task->sibling);
    task->timer.kind = TIMER_OF_TASK;
    task->state = TASK_CANCELLED; /* until it is registered: a dead one */
    luaL_setmetatable(L, TASK_METATABLE);
    if (runtime->idle_count > 0)
        lua_rawgeti(L, UPVALUE_IDLE, runtime->idle_count);
    else
        lua_newthread(L);
    task->coroutine = lua_tothread(L, -1);
    if (!lua_checkstack(task->coroutine, nargs + 1))
        luaL_error(L, "too many arguments");
    lua_setiuservalue(L, -2, 1);
    lua_pushvalue(L, -1);
    task->anchor = anchor_take(L, runtime);
    /* nothing raises from here on */
    if (runtime->idle_count > 0) {
        lua_pushnil(L);
        lua_rawseti(L, UPVALUE_IDLE, runtime->idle_count--);
    }
    lua_insert(L, base);
    lua_xmove(L, task->coroutine, nargs + 1);
    if (loop->is_simulated)
        task->flags |= TASK_IS_SIMULATED;
    if (is_cancelled_in(home))
        task->flags |= TASK_IS_CANCELLED | TASK_HAS_CANCEL;
    task->home = home;
    list_append(&home->children, &task->sibling);
    home->live++;
    loop->live++;
    make_ready(loop, task);
    return task;
}

void task_add_awaiter(Task *task, Task *awaiter) {
    if (task->awaiters == NULL)
        task->awaiters = &awaiter->link;
    else
        list_append(task->awaiters, &awaiter->link);
}

void task_remove_awaiter(Task *task, Task *awaiter) {
    if (task->awaiters == &awaiter->link)
        task->awaiters = list_is_empty(&awaiter->link) ? NULL : awaiter->link.next;
    link_remove(&awaiter->link);
}

/* ---- suspending and going on --------------------------------------------------------------- */

Task *task_enter(lua_State *L, Runtime *runtime, const char *what) {
    Task *task = runtime->current;
    if (runtime->is_closed)
        luaL_error(L, "%s cannot suspend: the runtime is closed", what);
    if (task == NULL) {
        if (runtime->running != NULL)
            luaL_error(L, "%s cannot suspend here: called by the scheduler, outside any task",
                       what);
        return NULL;
    }
    if (L != runtime->active) {
        if (L == runtime->closing)
            return NULL; /* as if outside: a loop within the loop, see close_coroutine */
        if (runtime->active == NULL)
            luaL_error(L,
                       "%s cannot suspend across a C-call boundary: the generator was called from "
                       "a C function that cannot yield",
                       what);
        luaL_error(L,
                   "%s cannot suspend inside a coroutine made with coroutine.wrap or "
                   "coroutine.create: make it with opero.wrap",
                   what);
    }
    if (!lua_isyieldable(L))
        luaL_error(L,
                   "%s cannot suspend across a C-call boundary: it was called from inside a C "
                   "function that cannot yield, such as table.sort, string.gsub or a finalizer",
                   what);
    return task;
}

int task_suspend(lua_State *L, Runtime *runtime, Task *task, const WaitKind *kind, Link *list,
                 void *object, int64_t deadline_ns, lua_KFunction k) {
    Loop *loop = runtime->loop;
    task->wait = kind;
    task->handed = 0;
    if ((task->flags & TASK_HAS_CANCEL) != 0 && !kind->is_uninterruptible &&
        task_push_cancellation(L, task)) {
        /* by way of the run queue, so that a task which swallows its cancellation again and
         * again does not keep the others from running */
        lua_pop(L, 1);
        if (kind->leave != NULL) {
            task->object = object;
            kind->leave(loop, task);
        }
        task->wait = &wait_yield;
        task->wake = WAKE_CANCEL;
        make_ready(loop, task);
    } else {
        if (deadline_ns != CLOCK_NEVER && !timers_add(&loop->timers, &task->timer, deadline_ns)) {
            if (kind->leave != NULL) {
                task->object = object;
                kind->leave(loop, task);
            }
            return luaL_error(L, "not enough memory");
        }
        task->object = object;
        if (list != NULL)
            list_append(list, &task->link);
        task->state = TASK_SUSPENDED;
    }
    runtime->is_suspending = true;
    return lua_yieldk(L, 0, (lua_KContext)runtime, k);
}

static int yield_ended(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, (Runtime *)context, 0);
    return 0;
}

int task_yield(lua_State *L, Runtime *runtime, Task *task) {
    task->wait = &wait_yield;
    task->handed = 0;
    task->wake = (task->flags & TASK_HAS_CANCEL) != 0 && task_push_cancellation(L, task)
                     ? WAKE_CANCEL
                     : WAKE_OK;
    make_ready(runtime->loop, task);
    runtime->is_suspending = true;
    return lua_yieldk(L, 0, (lua_KContext)runtime, yield_ended);
}

Wake task_resumed(lua_State *L, Runtime *runtime, int timeout_arg) {
    Task *task = runtime->current;
    Wake wake = task->wake;
    if (wake == WAKE_OK)
        return wake;
    if (wake == WAKE_CANCEL && task_push_cancellation(L, task))
        lua_error(L);
    if (wake == WAKE_TIMEOUT && timeout_arg != 0) {
        const char *message;
        lua_pushfstring(L, "%s timed out after %s s", task->wait->name,
                        lua_pushfstring(L, "%f", lua_tonumber(L, timeout_arg)));
        message = lua_tostring(L, -1);
        lua_pushvalue(L, timeout_arg);
        runtime_push_error(L, "TimeoutError", message, "timeout");
        lua_error(L);
    }
    return wake;
}

void task_wake(Loop *loop, Task *task, Wake wake, int handed) {
    timers_cancel(&loop->timers, &task->timer);
    if (wake != WAKE_OK && task->wait->leave != NULL)
        task->wait->leave(loop, task);
    link_remove(&task->link);
    task->wake = (uint8_t)wake;
    task->handed = (uint8_t)handed;
    make_ready(loop, task);
}

/* ---- cancellation -------------------------------------------------------------------------- */

/* The scopes of a task that a cancellation from outside reaches begin here: those inside a shield
 * are spared. */
static Scope *unshielded(const Task *task) {
    Scope *first = task->scope;
    for (Scope *scope = task->scope; scope != NULL; scope = scope->outer)
        if (scope->kind == SCOPE_SHIELD)
            first = scope->outer;
    return first;
}

static bool is_shielded(const Task *task) {
    for (Scope *scope = task->scope; scope != NULL; scope = scope->outer)
        if (scope->kind == SCOPE_SHIELD)
            return true;
    return false;
}

/* Pushes the error by which the task was cancelled: its own, or that of the nearest thing above
 * it that has one. A cancellation is noted at its origin only, so that it allocates nothing for
 * the tasks it reaches. */
static void push_origin(lua_State *L, const Task *task) {
    for (;;) {
        const Scope *scope;
        if (lua_rawgetp(L, UPVALUE_ANCHORS, task) != LUA_TNIL)
            return;
        lua_pop(L, 1);
        for (scope = task->home; scope != NULL && !scope->is_cancelled; scope = scope->outer)
            ;
        if (scope != NULL) {
            lua_rawgetp(L, UPVALUE_ANCHORS, scope);
            return;
        }
        if (task->home == NULL || task->home->owner == NULL) {
            lua_pushnil(L);
            return;
        }
        task = task->home->owner;
    }
}

bool task_push_cancellation(lua_State *L, Task *task) {
    const Scope *cancelled = NULL;
    for (const Scope *scope = task->scope; scope != NULL; scope = scope->outer) {
        if (scope->is_cancelled)
            cancelled = scope; /* the outermost counts: it lasts longest */
        if (scope->kind == SCOPE_SHIELD) {
            if (cancelled == NULL)
                return false;
            lua_rawgetp(L, UPVALUE_ANCHORS, cancelled);
            return true;
        }
    }
    if ((task->flags & TASK_IS_CANCELLED) != 0) {
        push_origin(L, task);
        return true;
    }
    if (cancelled == NULL)
        return false;
    lua_rawgetp(L, UPVALUE_ANCHORS, cancelled);
    return true;
}

/* Wakes the task with its cancellation if it waits; takes back what it was handed but has not
 * come to run with. */
static void interrupt(lua_State *L, Runtime *runtime, Task *task) {
    Loop *loop = task_loop(runtime, task);
    task->flags |= TASK_HAS_CANCEL;
    if ((task->flags & (TASK_STARTED | TASK_BODY_ENDED)) != TASK_STARTED)
        return;
    if (task->wait != NULL && task->wait->is_uninterruptible)
        return;
    if (task->state == TASK_SUSPENDED) {
        task_wake(loop, task, WAKE_CANCEL, 0);
    } else if (task->state == TASK_READY && task->wake != WAKE_CANCEL) {
        if (task->wake == WAKE_OK && task->wait->undo != NULL) {
            if (!task->wait->undo(L, loop, task))
                return;
        } else {
            lua_pop(task->coroutine, task->handed);
        }
        task->wake = WAKE_CANCEL;
        task->handed = 0;
    }
}

static Task *first_child(Scope *scope) {
    for (; scope != NULL; scope = scope->outer)
        if (!list_is_empty(&scope->children))
            return CONTAINER_OF(scope->children.next, Task, sibling);
    return NULL;
}

/* Walks the tasks below `top`, parents first, without recursion: trees may be deep. */
static Task *next_below(const Scope *top, Task *task) {
    Task *child = first_child(unshielded(task));
    if (child != NULL)
        return child;
    for (;;) {
        Scope *home = task->home;
        if (task->sibling.next != &home->children)
            return CONTAINER_OF(task->sibling.next, Task, sibling);
        if (home == top)
            return NULL;
        child = first_child(home->outer);
        if (child != NULL)
            return child;
        task = home->owner;
    }
}

static void cancel_children(lua_State *L, Runtime *runtime, Scope *scope) {
    Task *task;
    if (list_is_empty(&scope->children))
        return;
    task = CONTAINER_OF(scope->children.next, Task, sibling);
    for (; task != NULL; task = next_below(scope, task)) {
        task->flags |= TASK_IS_CANCELLED | TASK_HAS_CANCEL;
        if (!is_shielded(task))
            interrupt(L, runtime, task);
    }
}

bool task_cancel(lua_State *L, Runtime *runtime, Task *task) {
    if (task_has_ended(task))
        return false;
    luaL_checkstack(L, 8, NULL);
    if ((task->flags & TASK_IS_CANCELLED) == 0) {
        lua_pushvalue(L, -1);
        lua_rawsetp(L, UPVALUE_ANCHORS, task); /* the only thing that may fail, so it comes first */
        task->flags |= TASK_IS_CANCELLED | TASK_HAS_CANCEL;
    }
    if (task->flags & TASK_BODY_ENDED && task->wake == TASK_DONE)
        task->wake = TASK_CANCELLED; /* it will not be whole: its children are cancelled */
    for (Scope *scope = unshielded(task); scope != NULL; scope = scope->outer)
        cancel_children(L, runtime, scope);
    if (!is_shielded(task))
        interrupt(L, runtime, task);
    return true;
}

void scope_cancel(lua_State *L, Runtime *runtime, Scope *scope) {
    Task *owner = scope->owner;
    Scope *first;
    if (scope->is_cancelled)
        return;
    luaL_checkstack(L, 8, NULL);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, UPVALUE_ANCHORS, scope);
    scope->is_cancelled = true;
    if (owner == NULL) {
        cancel_children(L, runtime, scope);
        return;
    }
    first = owner->scope;
    for (Scope *inner = owner->scope; inner != scope; inner = inner->outer)
        if (inner->kind == SCOPE_SHIELD)
            first = inner->outer;
    if (first == owner->scope)
        interrupt(L, runtime, owner);
    else
        owner->flags |= TASK_HAS_CANCEL;
    for (Scope *inner = first; inner != scope->outer; inner = inner->outer)
        cancel_children(L, runtime, inner);
}

/* ---- scopes -------------------------------------------------------------------------------- */

Scope *scope_open(lua_State *L, Task *task, ScopeKind kind) {
    Scope *scope = malloc(sizeof *scope);
    if (scope == NULL)
        luaL_error(L, "not enough memory");
    scope_init(scope, kind, task);
    scope->outer = task->scope;
    task->scope = scope;
    return scope;
}

/* Takes the innermost scope out of the task's chain. */
static Scope *scope_detach(lua_State *L, Loop *loop, Task *task) {
    Scope *scope = task->scope;
    task->scope = scope->outer;
    timers_cancel(&loop->timers, &scope->timer);
    if (scope->handle != NULL)
        *scope->handle = NULL;
    if (scope->is_cancelled) {
        lua_pushnil(L);
        lua_rawsetp(L, UPVALUE_ANCHORS, scope);
        if ((task->flags & TASK_IS_CANCELLED) == 0) {
            const Scope *outer = scope->outer;
            while (outer != NULL && !outer->is_cancelled)
                outer = outer->outer;
            if (outer == NULL)
                task->flags &= (uint8_t)~TASK_HAS_CANCEL;
        }
    }
    return scope;
}

void scope_drop(lua_State *L, Loop *loop, Task *task) {
    free(scope_detach(L, loop, task));
}

bool scope_close(lua_State *L, Runtime *runtime, Loop *loop, Task *task, int first) {
    /* out of the chain before anything is allocated: a finalizer might spawn into it */
    Scope *scope = scope_detach(L, loop, task);
    bool has_failures = scope_take_failures(L, runtime, scope, first);
    free(scope);
    return has_failures;
}

Scope *scope_current(lua_State *L, Runtime *runtime) {
    Task *task = runtime->current;
    if (task == NULL)
        return &runtime->loop->orphans;
    if (task->scope == NULL)
        scope_open(L, task, SCOPE_ROOT);
    return task->scope;
}

/* A failure leaves its scope: it was awaited, or is reported now. */
static void failure_detach(lua_State *L, Runtime *runtime, Task *task) {
    link_remove(&task->sibling);
    task->home = NULL;
    anchor_release(L, runtime, task);
}

static void push_error_of(lua_State *L, Task *task, int index) {
    lua_getiuservalue(L, index, 1);
    if (task->handed == OUTCOME_TABLE) {
        lua_rawgeti(L, -1, 1);
        lua_remove(L, -2);
    }
}

/* Detaches the failures of a scope. Returns whether there are any but those that are on their way
 * to somebody, and all errors as one. */
static int collect_failures(lua_State *L) { /* scope, as a light userdata; a first error, or none */
    Runtime *runtime = runtime_of(L);
    Scope *scope = lua_touserdata(L, 1);
    int count = lua_gettop(L) - 1;
    bool has_first = count > 0;
    while (!list_is_empty(&scope->failures)) {
        Task *task = CONTAINER_OF(scope->failures.next, Task, sibling);
        if ((task->flags & TASK_IS_AWAITED) == 0) {
            luaL_checkstack(L, 4, "too many errors");
            lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
            push_error_of(L, task, -1);
            lua_remove(L, -2);
            count++;
        }
        failure_detach(L, runtime, task);
    }
    if (count < 2) {
        lua_pushboolean(L, count == 1 && !has_first);
        lua_insert(L, 2);
        lua_settop(L, 3);
        return 2;
    }
    lua_createtable(L, count, 0);
    lua_insert(L, 2);
    for (; count > 0; count--)
        lua_rawseti(L, 2, count);
    runtime_push_aggregate(L);
    lua_pushboolean(L, true);
    lua_insert(L, -2);
    return 2;
}

bool scope_take_failures(lua_State *L, Runtime *runtime, Scope *scope, int first) {
    int base = lua_gettop(L);
    bool has_any;
    if (list_is_empty(&scope->failures))
        return false;
    luaL_checkstack(L, 8, NULL);
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_COLLECTOR);
    lua_pushlightuserdata(L, scope);
    if (first != 0)
        lua_pushvalue(L, first);
    /* short of memory, the error that says so is one too */
    has_any = lua_pcall(L, first != 0 ? 2 : 1, 2, 0) != LUA_OK || lua_toboolean(L, base + 1);
    while (!list_is_empty(&scope->failures))
        failure_detach(L, runtime, CONTAINER_OF(scope->failures.next, Task, sibling));
    if (has_any)
        lua_replace(L, base + 1);
    lua_settop(L, has_any ? base + 1 : base);
    return has_any;
}

/* ---- the end of a task ---------------------------------------------------------------------- */

/* Pops the outcome and makes it the task's user value, in place of the coroutine, which is kept
 * for reuse if it is sound. The task is at `index`. */
static void set_outcome(lua_State *L, Runtime *runtime, Task *task, int index, int outcome,
                        bool is_sound) {
    lua_State *coroutine = task->coroutine;
    task->handed = (uint8_t)outcome;
    task->coroutine = NULL;
    if (coroutine != NULL && is_sound && runtime->idle_count < IDLE_MAX &&
        lua_gethook(coroutine) == NULL) {
        lua_getiuservalue(L, index, 1);
        lua_rawseti(L, UPVALUE_IDLE, ++runtime->idle_count);
    }
    lua_setiuservalue(L, index, 1);
}

/* All children of the task have ended, and so does it. Returns the parent if that can end now. */
static Task *settle(lua_State *L, Runtime *runtime, Loop *loop, Task *task) {
    Scope *home = task->home;
    bool has_awaiters = task->awaiters != NULL;
    int base = lua_gettop(L);
    lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
    if (task->scope != NULL) {
        int first = 0;
        if (task->wake == TASK_FAILED) {
            push_error_of(L, task, base + 1);
            first = base + 2;
        }
        if (scope_close(L, runtime, loop, task, first)) {
            set_outcome(L, runtime, task, base + 1, OUTCOME_VALUE, false);
            task->wake = TASK_FAILED;
        }
    }
    if (task->wake == TASK_CANCELLED && task->flags & TASK_BODY_ENDED) {
        push_origin(L, task); /* in place of results that came before the cancellation */
        set_outcome(L, runtime, task, base + 1, OUTCOME_VALUE, false);
    }
    if (task->flags & TASK_IS_CANCELLED) {
        lua_pushnil(L);
        lua_rawsetp(L, UPVALUE_ANCHORS, task);
    }
    task->state = task->wake;
    task->wait = NULL;
    loop->live--;
    link_remove(&task->sibling);
    home->live--;
    while (task->awaiters != NULL) {
        Task *awaiter = CONTAINER_OF(task->awaiters, Task, link);
        task_remove_awaiter(task, awaiter);
        task_wake(loop, awaiter, WAKE_OK, 0);
    }
    if (task->state == TASK_FAILED && (task->flags & TASK_IS_ROOT) == 0) {
        list_append(&home->failures, &task->sibling);
        if (has_awaiters)
            task->flags |= TASK_IS_AWAITED;
        if (home->kind == SCOPE_GROUP && !home->is_cancelled) {
            runtime_push_error(L, "CancelledError", "another task of the scope failed", NULL);
            scope_cancel(L, runtime, home);
        }
    } else {
        task->home = NULL;
        anchor_release(L, runtime, task);
    }
    lua_settop(L, base);
    if (home->live > 0 || !home->is_joining)
        return NULL;
    home->is_joining = false;
    if (home->owner->flags & TASK_BODY_ENDED)
        return home->owner;
    task_wake(loop, home->owner, WAKE_OK, 0);
    return NULL;
}

void scope_expire(lua_State *L, Runtime *runtime, Scope *scope) {
    scope->has_expired = true;
    runtime_push_error(L, "CancelledError", "the time is up", NULL);
    scope_cancel(L, runtime, scope);
    lua_pop(L, 1);
}

/* The task's function has ended: `state` says how, the outcome is on the top of the stack. */
static void end_body(lua_State *L, Runtime *runtime, Loop *loop, Task *task, TaskState state,
                     int outcome, bool is_sound) {
    lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
    lua_insert(L, -2);
    set_outcome(L, runtime, task, lua_gettop(L) - 1, outcome, is_sound);
    lua_pop(L, 1);
    task->wake = (uint8_t)state;
    if (task->scope != NULL && task->scope->live > 0) {
        task->state = TASK_SUSPENDED;
        task->flags |= TASK_BODY_ENDED;
        task->wait = &wait_children;
        task->scope->is_joining = true;
        if (state == TASK_FAILED) {
            runtime_push_error(L, "CancelledError", "the parent task failed", NULL);
            scope_cancel(L, runtime, task->scope);
            lua_pop(L, 1);
        }
        return;
    }
    while (task != NULL)
        task = settle(L, runtime, loop, task);
}

/* Runs the pending closes of a coroutine; an error that is left replaces the value at the top of
 * the stack. Lua runs these closes where they cannot yield. So when one of them suspends, the
 * loop runs inside of it until that is over; see task_enter. */
static void close_coroutine(lua_State *L, Runtime *runtime, lua_State *coroutine) {
    lua_State *closing = runtime->closing;
    int status;
    runtime->closing = coroutine;
#if LUA_VERSION_RELEASE_NUM >= 50406
    status = lua_closethread(coroutine, L);
#else
    status = lua_resetthread(coroutine);
#endif
    runtime->closing = closing;
    if (status != LUA_OK) {
        lua_pop(L, 1);
        lua_xmove(coroutine, L, 1);
    }
}

/* The coroutine is gone without having ended the scopes it stood in: all that is in them goes to
 * the outermost, which becomes the task's own. */
static void collapse_scopes(lua_State *L, Loop *loop, Task *task) {
    Scope *outermost = task->scope;
    if (outermost == NULL)
        return;
    while (outermost->outer != NULL)
        outermost = outermost->outer;
    outermost->kind = SCOPE_ROOT;
    while (task->scope != outermost) {
        Scope *inner = task->scope;
        Link *link;
        while ((link = list_pop(&inner->children)) != NULL) {
            CONTAINER_OF(link, Task, sibling)->home = outermost;
            list_append(&outermost->children, link);
            outermost->live++;
        }
        while ((link = list_pop(&inner->failures)) != NULL) {
            CONTAINER_OF(link, Task, sibling)->home = outermost;
            list_append(&outermost->failures, link);
        }
        scope_drop(L, loop, task);
    }
}

static int pack_results(lua_State *L) { /* coroutine, as a light userdata */
    lua_State *coroutine = lua_touserdata(L, 1);
    int count = lua_gettop(coroutine);
    luaL_checkstack(coroutine, 1, "too many results");
    lua_createtable(L, count, 1);
    for (int i = 1; i <= count; i++) {
        lua_pushvalue(coroutine, i);
        lua_xmove(coroutine, L, 1);
        lua_rawseti(L, -2, i);
    }
    lua_pushinteger(L, count);
    lua_setfield(L, -2, "n");
    return 1;
}

static int pack_error(lua_State *L) { /* coroutine, as a light userdata; error */
    lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY);
    if (!is_noted(L, lua_touserdata(L, 3), 2, 3))
        note_traceback(L, lua_touserdata(L, 1), 0, 2, 3);
    lua_createtable(L, 2, 0);
    lua_getiuservalue(L, 3, RUNTIME_ERROR);
    if (lua_rawequal(L, 2, -1)) {
        lua_getiuservalue(L, 3, RUNTIME_TRACEBACK);
        lua_rawseti(L, 4, 2);
    }
    lua_pushvalue(L, 2);
    lua_rawseti(L, 4, 1);
    lua_settop(L, 4);
    return 1;
}

/* Calls a function above with the coroutine and, if there is one, the value on the top of the
 * stack, which its result replaces. Short of memory, that error does; false then. */
static bool pack(lua_State *L, lua_CFunction function, lua_State *coroutine, int values) {
    lua_pushcfunction(L, function); /* has no upvalues: pushing it allocates nothing */
    lua_insert(L, -1 - values);
    lua_pushlightuserdata(L, coroutine);
    lua_insert(L, -1 - values);
    return lua_pcall(L, 1 + values, 1, 0) == LUA_OK;
}

/* The function has raised an error, or yielded when it must not. Pushes the outcome. */
static int fail(lua_State *L, Runtime *runtime, Loop *loop, Task *task, int status) {
    lua_State *coroutine = task->coroutine;
    bool is_packed;
    if (status == LUA_YIELD) {
        lua_pushliteral(L, "attempt to yield from outside a coroutine: "
                           "a task suspends through opero (opero.yield lets others run)");
    } else {
        lua_pushvalue(coroutine, -1); /* the original stays: closing looks for it there */
        lua_xmove(coroutine, L, 1);
    }
    collapse_scopes(L, loop, task);
    lua_pushvalue(L, -1);
    is_packed = pack(L, pack_error, coroutine, 1);
    lua_insert(L, -2);
    lua_pushvalue(L, -1);
    runtime->current = task; /* what its closes spawn are its children */
    close_coroutine(L, runtime, coroutine);
    runtime->current = NULL; /* packed, error, what became of the error */
    if (is_packed && lua_rawequal(L, -1, -2)) {
        lua_pop(L, 2);
        return OUTCOME_TABLE;
    }
    lua_replace(L, -3);
    lua_pop(L, 1);
    return OUTCOME_VALUE;
}

/* The coroutine has returned, or died: `status` and `count` are those of lua_resume. */
static void finish(lua_State *L, Runtime *runtime, Loop *loop, Task *task, int status, int count) {
    lua_State *coroutine = task->coroutine;
    TaskState state = TASK_DONE;
    int outcome = OUTCOME_NONE;
    if (status != LUA_OK) {
        state = TASK_FAILED;
        outcome = fail(L, runtime, loop, task, status);
    } else if (count == 0) {
        lua_pushnil(L);
    } else if (count == 1) {
        outcome = OUTCOME_VALUE;
        lua_xmove(coroutine, L, 1);
    } else {
        if (pack(L, pack_results, coroutine, 0)) {
            outcome = OUTCOME_TABLE;
        } else {
            state = TASK_FAILED;
            outcome = OUTCOME_VALUE;
        }
        lua_settop(coroutine, 0);
    }
    if (state == TASK_FAILED && (task->flags & TASK_IS_CANCELLED) != 0) {
        lua_pushvalue(L, -1);
        if (outcome == OUTCOME_TABLE)
            lua_rawgeti(L, -1, 1);
        if (is_cancellation(L, -1))
            state = TASK_CANCELLED;
        lua_pop(L, outcome == OUTCOME_TABLE ? 2 : 1);
    }
    end_body(L, runtime, loop, task, state, outcome, status == LUA_OK);
}

/* The first resumption: returns the number of values to resume with. */
static int start(Task *task) {
    task->flags |= TASK_STARTED;
    return lua_gettop(task->coroutine) - 1;
}

static void end_unstarted(lua_State *L, Runtime *runtime, Loop *loop, Task *task) {
    lua_settop(task->coroutine, 0);
    push_origin(L, task);
    end_body(L, runtime, loop, task, TASK_CANCELLED, OUTCOME_VALUE, true);
}

/* With very many tasks each is long out of the cache when its turn comes: fetch the next one's
 * coroutine and the one after that while this one runs. */
static void prefetch_after(const Loop *loop, const Task *task) {
#ifdef __GNUC__
    const Link *next = task->link.next;
    if (next != &loop->ready) {
        const char *coroutine = (const char *)CONTAINER_OF(next, Task, link)->coroutine;
        __builtin_prefetch(next->next);
        __builtin_prefetch((const char *)next->next + 64);
        for (int line = 0; line < 3; line++)
            __builtin_prefetch(coroutine + line * 64);
    }
#else
    (void)loop, (void)task;
#endif
}

/* The resumption is in this function, and not in one of its own, because a yield is a longjmp:
 * the processor mispredicts each return between it and the loop. */
bool task_run(lua_State *L, Runtime *runtime, Loop *loop, size_t count) {
    for (; count > 0; count--) {
        Task *task = CONTAINER_OF(loop->ready.next, Task, link);
        int status, values;
        prefetch_after(loop, task);
        link_remove(&task->link);
        loop->ready_count--;
        if ((task->flags & (TASK_STARTED | TASK_IS_CANCELLED | TASK_IS_ROOT)) ==
            TASK_IS_CANCELLED) { /* before it began: it never will */
            end_unstarted(L, runtime, loop, task);
            continue;
        }
        values = task->flags & TASK_STARTED ? task->handed : start(task);
        task->handed = 0;
        task->state = TASK_RUNNING;
        runtime->current = task;
        runtime->active = task->coroutine;
        runtime->is_suspending = false;
        status = lua_resume(task->coroutine, L, values, &values);
        runtime->current = NULL;
        runtime->active = NULL;
        if (status != LUA_YIELD || !runtime->is_suspending)
            finish(L, runtime, loop, task, status, values);
        if (lua_gethook(runtime->main) != runtime->hook)
            return false;
    }
    return true;
}

int task_deliver(lua_State *L, Runtime *runtime, int index) {
    Task *task = lua_touserdata(L, index);
    int outcome = task->handed;
    if (outcome == OUTCOME_NONE && task->state == TASK_DONE)
        return 0;
    if (task->state == TASK_FAILED && task->home != NULL)
        failure_detach(L, runtime, task);
    lua_getiuservalue(L, index, 1);
    if (task->state == TASK_DONE) {
        lua_Integer count;
        int table = lua_gettop(L);
        if (outcome == OUTCOME_VALUE)
            return 1;
        lua_getfield(L, table, "n");
        count = lua_tointeger(L, -1);
        lua_pop(L, 1);
        luaL_checkstack(L, (int)count, "too many results");
        for (lua_Integer i = 1; i <= count; i++)
            lua_rawgeti(L, table, i);
        return (int)count;
    }
    if (outcome == OUTCOME_TABLE) {
        lua_rawgeti(L, -1, 1);
        lua_rawgeti(L, -2, 2);
        lua_pushvalue(L, -2);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_TRACEBACK);
    }
    return runtime_rethrow(L);
}

void task_kill(lua_State *L, Runtime *runtime, Loop *loop, Task *task) {
    lua_State *coroutine = task->coroutine;
    bool is_running = task->state == TASK_RUNNING; /* os.exit in a task: its frames stay */
    timers_cancel(&loop->timers, &task->timer);
    if (task->state == TASK_SUSPENDED && task->wait->leave != NULL)
        task->wait->leave(loop, task);
    link_remove(&task->link);
    if (task->state == TASK_READY) {
        loop->ready_count--;
        if (task->flags & TASK_STARTED && task->wake == WAKE_OK && task->wait->undo != NULL)
            task->wait->undo(L, loop, task);
    }
    task->state = TASK_CANCELLED;
    while (task->awaiters != NULL)
        task_remove_awaiter(task, CONTAINER_OF(task->awaiters, Task, link));
    task->coroutine = NULL;
    if (coroutine != NULL && !is_running) {
        lua_pushnil(L);
        if (task->flags & TASK_STARTED)
            close_coroutine(L, runtime, coroutine);
        if (!lua_isnil(L, -1)) { /* a pending close failed and there is nobody left to tell */
            lua_warning(L, "opero: error in a suspended task that was closed: ", 1);
            lua_warning(L, luaL_tolstring(L, -1, NULL), 0);
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
    }
    while (task->scope != NULL) {
        Scope *scope = task->scope;
        while (!list_is_empty(&scope->children)) {
            Task *child = CONTAINER_OF(scope->children.next, Task, sibling);
            link_remove(&child->sibling);
            child->home = NULL;
        }
        while (!list_is_empty(&scope->failures))
            failure_detach(L, runtime, CONTAINER_OF(scope->failures.next, Task, sibling));
        scope_drop(L, loop, task);
    }
    lua_pushnil(L);
    lua_rawsetp(L, UPVALUE_ANCHORS, task);
    link_remove(&task->sibling);
    if (task->home != NULL)
        task->home->live--;
    task->home = NULL;
    loop->live--;
    anchor_release(L, runtime, task);
}

/* ---- in words --------------------------------------------------------------------------------- */

const char *task_state_name(const Task *task) {
    static const char *const names[] = {"ready", "running", "suspended",
                                        "done",  "failed",  "cancelled"};
    return names[task->state];
}

void task_push_name(lua_State *L, Task *task, int index) {
    lua_Debug ar;
    int base = lua_gettop(L);
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_NAMES);
    if (index != 0)
        lua_pushvalue(L, index);
    else if (task->anchor != 0)
        lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
    else
        lua_pushnil(L);
    lua_rawget(L, base + 1);
    if (!lua_isnil(L, -1)) {
        lua_replace(L, base + 1);
        lua_settop(L, base + 1);
        return;
    }
    lua_settop(L, base);
    if (task->coroutine != NULL) {
        lua_State *coroutine = task->coroutine;
        if ((task->flags & TASK_STARTED) == 0 && lua_isfunction(coroutine, 1)) {
            lua_pushvalue(coroutine, 1);
            lua_getinfo(coroutine, ">S", &ar);
            lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
            return;
        }
        for (int level = 0; lua_getstack(coroutine, level, &ar); level++) {
            lua_getinfo(coroutine, "S", &ar);
            if (strcmp(ar.what, "C") != 0) { /* keep the outermost Lua function */
                lua_settop(L, base);
                lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
            }
        }
        if (lua_gettop(L) > base)
            return;
    }
    if (task->flags & TASK_IS_ROOT)
        lua_pushliteral(L, "main");
    else
        lua_pushfstring(L, "%p", (const void *)task);
}

void task_push_wait(lua_State *L, Task *task) {
    if (task->state != TASK_SUSPENDED)
        lua_pushliteral(L, "");
    else if (task->wait->describe != NULL)
        task->wait->describe(L, task);
    else
        lua_pushstring(L, task->wait->name);
}

static bool push_place_in(lua_State *L, lua_State *thread) {
    lua_Debug ar;
    for (int level = 0; lua_getstack(thread, level, &ar); level++) {
        lua_getinfo(thread, "Sl", &ar);
        if (ar.currentline >= 0) {
            lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
            return true;
        }
    }
    return false;
}

void task_push_place(lua_State *L, Task *task) {
    if (task->coroutine != NULL && push_place_in(L, task->coroutine))
        return;
    /* a call from outside any task stands where its caller does */
    if ((task->flags & TASK_IS_ROOT) == 0 || !push_place_in(L, runtime_of(L)->main))
        lua_pushliteral(L, "?");
}
