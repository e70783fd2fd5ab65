#include "task.h"
#include "cancel.h"
#include "scope.h"

#include <string.h>

static const char FAILED_KEY, SEVERAL_KEY; /* their addresses are the keys */

/* ---- a task's life --------------------------------------------------------------------------- */

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

/* What a coroutine returns at its end: nothing, one value, or a key that says what the other
 * value is. Packing is done in here, where a lack of memory is an error of the task. */
static int body_ended(lua_State *L, int status, lua_KContext context) {
    int count = lua_gettop(L) - 1;
    (void)context;
    if (status != LUA_OK && status != LUA_YIELD) {
        lua_createtable(L, 2, 0);
        lua_pushvalue(L, 2);
        lua_rawseti(L, 3, 1);
        runtime_push_noted(L, 2);
        lua_rawseti(L, 3, 2);
        lua_pushlightuserdata(L, (void *)&FAILED_KEY);
        lua_replace(L, 2);
        return 2;
    }
    if (count <= 1)
        return count;
    runtime_pack(L, 2);
    lua_pushlightuserdata(L, (void *)&SEVERAL_KEY);
    lua_insert(L, 2);
    return 2;
}

/* The first function of every coroutine. The protected call is in here, and not left to
 * lua_resume, because only so can pending closes suspend when an error passes them. */
static int body(lua_State *L) { /* runtime_note_error, function, argument, ... */
    int status = lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, 0, body_ended);
    return body_ended(L, status, 0);
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

void task_release(lua_State *L, Runtime *runtime, Task *task) {
    lua_pushinteger(L, runtime->free_anchor);
    lua_rawseti(L, UPVALUE_ANCHORS, task->anchor);
    runtime->free_anchor = task->anchor;
    task->anchor = 0;
}

Task *task_spawn(lua_State *L, Runtime *runtime, Loop *loop, Scope *home, int nargs) {
    Task *task;
    Context *context;
    int base = lua_gettop(L) - nargs; /* of the function */
    if (runtime->is_closed)
        luaL_error(L, "cannot spawn a task: the runtime is closed");
    if (loop->is_ending)
        luaL_error(L, "cannot spawn a task: the simulation has ended");
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
    if (!lua_checkstack(task->coroutine, nargs + 3))
        luaL_error(L, "too many arguments");
    lua_setiuservalue(L, -2, 1);
    if (contexts_are_used(&runtime->contexts) &&
        contexts_place(&runtime->contexts, runtime->anchor_count + 1) == NULL)
        luaL_error(L, "not enough memory");
    lua_pushvalue(L, -1);
    task->anchor = anchor_take(L, runtime);
    /* nothing raises from here on */
    context = contexts_get(&runtime->contexts, runtime_context_place(runtime));
    if (context != NULL && task->anchor < runtime->contexts.capacity)
        runtime->contexts.of_task[task->anchor] = context_keep(context);
    if (runtime->idle_count > 0) {
        lua_pushnil(L);
        lua_rawseti(L, UPVALUE_IDLE, runtime->idle_count--);
    }
    lua_insert(L, base);
    lua_pushcfunction(task->coroutine, body);
    lua_pushcfunction(task->coroutine, runtime_note_error);
    lua_xmove(L, task->coroutine, nargs + 1);
    task->ticket = (uint32_t)nargs + 3;
    if (loop->is_simulated)
        task->flags |= TASK_IS_SIMULATED;
    if (scope_is_cancelled(home))
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

/* ---- suspending and going on ----------------------------------------------------------------- */

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
    task->object = object;
    task->handed = 0;
    if ((task->flags & TASK_HAS_CANCEL) != 0 && !kind->is_uninterruptible &&
        task_push_cancellation(L, task)) {
        /* by way of the run queue, so that a task which swallows its cancellation again and
         * again does not keep the others from running */
        lua_pop(L, 1);
        if (kind->leave != NULL)
            kind->leave(loop, task);
        task->wait = &wait_yield;
        task->wake = WAKE_CANCEL;
        make_ready(loop, task);
    } else {
        if (deadline_ns != CLOCK_NEVER && !timers_add(&loop->timers, &task->timer, deadline_ns)) {
            if (kind->leave != NULL)
                kind->leave(loop, task);
            return luaL_error(L, "not enough memory");
        }
        if (list != NULL)
            list_append(list, &task->link);
        task->state = TASK_SUSPENDED;
    }
    runtime->is_suspending = true;
    return lua_yieldk(L, 0, lua_gettop(L), k);
}

static int yield_ended(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, yield_ended, context), 0);
    return 0;
}

int task_yield(lua_State *L, Runtime *runtime, Task *task, lua_KFunction k) {
    task->wait = &wait_yield;
    task->handed = 0;
    task->wake = (task->flags & TASK_HAS_CANCEL) != 0 && task_push_cancellation(L, task)
                     ? WAKE_CANCEL
                     : WAKE_OK;
    make_ready(runtime->loop, task);
    runtime->is_suspending = true;
    return lua_yieldk(L, 0, lua_gettop(L), k != NULL ? k : yield_ended);
}

/* How many values the task whose coroutine is L has been handed but has not come to run with. */
static int count_handed(lua_State *L, const Runtime *runtime) {
    int handed = 0;
    for (uint32_t i = 1; i <= runtime->anchor_count; i++) {
        const Task *task;
        lua_rawgeti(L, UPVALUE_ANCHORS, i);
        task = lua_touserdata(L, -1);
        lua_pop(L, 1);
        if (task != NULL && task->coroutine == L)
            handed = task->handed;
    }
    return handed;
}

Runtime *task_regain(lua_State *L, lua_KFunction k, lua_KContext height) {
    Runtime *runtime = runtime_of(L);
    if (L != runtime->active) { /* away with the arguments of whoever resumed it */
        lua_settop(L, (int)height + count_handed(L, runtime));
        lua_yieldk(L, 0, height, k);
    }
    return runtime;
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
                        luaL_tolstring(L, timeout_arg, NULL));
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

/* ---- the end of a task ----------------------------------------------------------------------- */

void task_push_error(lua_State *L, Task *task, int index) {
    lua_getiuservalue(L, index, 1);
    if (task->handed == OUTCOME_TABLE) {
        lua_rawgeti(L, -1, 1);
        lua_remove(L, -2);
    }
}

/* Pops the outcome and makes it the task's user value, in place of the coroutine, which is kept
 * for reuse if it is sound. The task is at `index`. */
static void set_outcome(lua_State *L, Runtime *runtime, Task *task, int index, int outcome,
                        bool is_sound) {
    lua_State *coroutine = task->coroutine;
    task->handed = (uint8_t)outcome;
    task->coroutine = NULL;
    if (coroutine != NULL && is_sound && runtime->idle_count < RUNTIME_IDLE_MAX &&
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
            task_push_error(L, task, base + 1);
            first = base + 2;
        }
        if (scope_close(L, runtime, loop, task, first)) {
            set_outcome(L, runtime, task, base + 1, OUTCOME_VALUE, false);
            task->wake = TASK_FAILED;
        }
    }
    if (task->wake == TASK_CANCELLED && task->flags & TASK_BODY_ENDED) {
        cancel_push_origin(L, task); /* in place of results that came before the cancellation */
        set_outcome(L, runtime, task, base + 1, OUTCOME_VALUE, false);
    }
    if (task->flags & TASK_IS_CANCELLED) {
        lua_pushnil(L);
        lua_rawsetp(L, UPVALUE_ANCHORS, task);
    }
    task->state = task->wake;
    task->wait = NULL;
    contexts_drop(&runtime->contexts, task->anchor);
    loop->live--;
    link_remove(&task->sibling);
    home->live--;
    while (task->awaiters != NULL) {
        Task *awaiter = CONTAINER_OF(task->awaiters, Task, link);
        task_remove_awaiter(task, awaiter);
        task_wake(loop, awaiter, WAKE_OK, 0);
    }
    if (home->tells_ends && task->state != TASK_DONE && home->owner->state == TASK_SUSPENDED)
        task_wake(loop, home->owner, WAKE_CLOSED, 0);
    if (task->state == TASK_FAILED && (task->flags & TASK_IS_ROOT) == 0) {
        list_append(&home->failures, &task->sibling);
        if (has_awaiters && home->kind != SCOPE_GROUP)
            task->flags |= TASK_IS_AWAITED;
        if (home->kind == SCOPE_GROUP && !home->is_cancelled) {
            runtime_push_error(L, "CancelledError", "another task of the scope failed", NULL);
            scope_cancel(L, runtime, home);
        }
    } else {
        task->home = NULL;
        task_release(L, runtime, task);
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

/* The task's function has ended: `state` says how, the outcome is on the top of the stack. */
static void end_body(lua_State *L, Runtime *runtime, Loop *loop, Task *task, TaskState state,
                     int outcome, bool is_sound) {
    lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
    lua_insert(L, -2);
    set_outcome(L, runtime, task, lua_gettop(L) - 1, outcome, is_sound);
    lua_pop(L, 1);
    task->wake = (uint8_t)state;
    scope_collapse(L, loop, task, NULL);
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

/* The function did not end by itself: memory was short at an awkward moment, or other code yielded,
 * resumed or closed the coroutine by hand. Pushes the error. */
static void fail(lua_State *L, Loop *loop, Task *task, int status) {
    lua_State *coroutine = task->coroutine;
    if (status == LUA_YIELD) {
        lua_pushliteral(L, "attempt to yield from outside a coroutine: "
                           "a task suspends through opero (opero.yield lets others run)");
    } else {
        lua_xmove(coroutine, L, 1);
        lua_pushvalue(L, -1);
        lua_xmove(L, coroutine, 1); /* stays there too: closing looks for it */
    }
    scope_collapse(L, loop, task, NULL);
    runtime_close_over(L, coroutine); /* where nothing can suspend */
}

/* The coroutine has returned, or died: `status` and `count` are those of lua_resume. */
static void finish(lua_State *L, Runtime *runtime, Loop *loop, Task *task, int status, int count) {
    lua_State *coroutine = task->coroutine;
    TaskState state = TASK_DONE;
    int outcome = OUTCOME_VALUE;
    if (status != LUA_OK) {
        state = TASK_FAILED;
        fail(L, loop, task, status);
    } else if (count == 0) {
        outcome = OUTCOME_NONE;
        lua_pushnil(L);
    } else {
        if (count == 2) {
            outcome = OUTCOME_TABLE;
            if (lua_touserdata(coroutine, 1) == (const void *)&FAILED_KEY)
                state = TASK_FAILED;
        }
        lua_xmove(coroutine, L, 1);
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

/* Whether what task_spawn put on the coroutine's stack is still there, and nothing else. */
static bool is_untouched(const Task *task) {
    return lua_status(task->coroutine) == LUA_OK &&
           lua_gettop(task->coroutine) == (int)task->ticket;
}

/* The first resumption: returns the number of values to resume with, or -1 when other code has
 * resumed the coroutine by hand and the function with its arguments is no longer there. */
static int start(Task *task) {
    task->flags |= TASK_STARTED;
    if (lua_status(task->coroutine) != LUA_OK || lua_gettop(task->coroutine) != (int)task->ticket)
        return -1;
    return (int)task->ticket - 1;
}

static void end_unstarted(lua_State *L, Runtime *runtime, Loop *loop, Task *task) {
    bool is_sound = is_untouched(task);
    if (is_sound)
        lua_settop(task->coroutine, 0);
    cancel_push_origin(L, task);
    end_body(L, runtime, loop, task, TASK_CANCELLED, OUTCOME_VALUE, is_sound);
}

static void end_spoilt(lua_State *L, Runtime *runtime, Loop *loop, Task *task) {
    lua_pushliteral(L, "the task's coroutine was resumed by hand before it began");
    end_body(L, runtime, loop, task, TASK_FAILED, OUTCOME_VALUE, false);
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
        if ((task->flags & (TASK_STARTED | TASK_IS_CANCELLED)) == TASK_IS_CANCELLED) {
            end_unstarted(L, runtime, loop, task);
            continue;
        }
        values = task->flags & TASK_STARTED ? task->handed : start(task);
        if (values < 0) {
            end_spoilt(L, runtime, loop, task);
            continue;
        }
        if (task->handed != 0 && lua_status(task->coroutine) != LUA_YIELD)
            values = 0; /* closed by hand: what it was handed went with its stack */
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
    /* a group reports its failures whoever else has heard of them */
    if (task->state == TASK_FAILED && task->home != NULL && task->home->kind != SCOPE_GROUP)
        scope_forget_failure(L, runtime, task);
    lua_getiuservalue(L, index, 1);
    if (task->state == TASK_DONE)
        return outcome == OUTCOME_VALUE ? 1 : runtime_unpack(L, lua_gettop(L));
    if (outcome == OUTCOME_TABLE) {
        lua_rawgeti(L, -1, 1);
        lua_rawgeti(L, -2, 2);
        lua_pushvalue(L, -2);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_TRACEBACK);
    }
    return runtime_rethrow(L);
}

/* A pending close of a killed task failed, and there is nobody left to tell. */
static int warn_of_error(lua_State *L) {
    const char *message = luaL_tolstring(L, 1, NULL);
    lua_warning(L, "opero: error in a suspended task that was closed: ", 1);
    lua_warning(L, message, 0);
    return 0;
}

static void close_killed(lua_State *L, Task *task) {
    lua_State *coroutine = task->coroutine;
    task->coroutine = NULL;
    lua_pushnil(L);
    runtime_close_over(L, coroutine); /* where nothing can suspend */
    lua_pushcfunction(L, warn_of_error);
    lua_insert(L, -2);
    if (lua_isnil(L, -1))
        lua_pop(L, 2);
    else if (lua_pcall(L, 1, 0, 0) != LUA_OK)
        lua_pop(L, 1);
}

static void kill(lua_State *L, Runtime *runtime, Loop *loop, Task *task) {
    bool is_running = task->state == TASK_RUNNING; /* os.exit in a task: its frames stay */
    timers_cancel(&loop->timers, &task->timer);
    if (task->state == TASK_SUSPENDED && task->wait->leave != NULL)
        task->wait->leave(loop, task);
    link_remove(&task->link);
    if (task->state == TASK_READY) {
        loop->ready_count--;
        if (task->flags & TASK_STARTED && task->wake == WAKE_OK && task->wait->undo != NULL &&
            lua_status(task->coroutine) == LUA_YIELD)
            task->wait->undo(L, loop, task);
    }
    task->state = TASK_CANCELLED;
    scope_collapse(L, loop, task, NULL); /* before the coroutine goes: see there */
    if (task->coroutine != NULL && task->flags & TASK_STARTED && !is_running)
        close_killed(L, task);
    task->coroutine = NULL;
    if (task->scope != NULL) {
        Link *link;
        while ((link = list_pop(&task->scope->children)) != NULL) {
            CONTAINER_OF(link, Task, sibling)->home = &loop->orphans;
            list_append(&loop->orphans.children, link);
            loop->orphans.live++;
        }
        while (!list_is_empty(&task->scope->failures))
            scope_forget_failure(L, runtime,
                                 CONTAINER_OF(task->scope->failures.next, Task, sibling));
        scope_drop(L, loop, task);
    }
    lua_pushnil(L);
    lua_rawsetp(L, UPVALUE_ANCHORS, task);
    lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
    if (runtime->is_closed)
        lua_pushnil(L);
    else
        runtime_push_error(L, "CancelledError", "the task was killed: its loop has ended", NULL);
    lua_setiuservalue(L, -2, 1);
    lua_pop(L, 1);
    task->handed = OUTCOME_VALUE;
    while (task->awaiters != NULL) {
        Task *awaiter = CONTAINER_OF(task->awaiters, Task, link);
        task_remove_awaiter(task, awaiter);
        task_wake(task_loop(runtime, awaiter), awaiter, WAKE_OK, 0);
    }
    link_remove(&task->sibling);
    task->home->live--;
    task->home = NULL;
    contexts_drop(&runtime->contexts, task->anchor);
    loop->live--;
    task_release(L, runtime, task);
}

static bool is_below(const Task *task, const Task *top) {
    while (task != top && task->home != NULL && task->home->owner != NULL)
        task = task->home->owner;
    return task == top;
}

static bool has_children(const Task *task) {
    for (const Scope *scope = task->scope; scope != NULL; scope = scope->outer)
        if (scope->live > 0)
            return true;
    return false;
}

void task_kill_below(lua_State *L, Runtime *runtime, Loop *loop, const Task *top) {
    bool has_more = true, has_killed = true;
    while (has_more && has_killed) {
        has_more = has_killed = false;
        for (uint32_t i = runtime->anchor_count; i > 0; i--) {
            if (lua_rawgeti(L, UPVALUE_ANCHORS, i) == LUA_TUSERDATA) {
                Task *task = lua_touserdata(L, -1);
                if (!task_has_ended(task) && task_loop(runtime, task) == loop &&
                    (top == NULL || is_below(task, top))) {
                    if (has_children(task))
                        has_more = true;
                    else {
                        kill(L, runtime, loop, task);
                        has_killed = true;
                    }
                }
            }
            lua_pop(L, 1);
        }
    }
}
