#include "loop.h"
#include "cancel.h"
#include "describe.h"
#include "log.h"
#include "scope.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* While tasks are ready, descriptors are asked after at most this many resumptions or this long. */
#define POLL_RESUMPTIONS 64
#define POLL_INTERVAL_NS 50000

typedef enum Turn {
    TURN_OK,
    TURN_DEADLOCK, /* nothing will ever happen again by itself */
    TURN_ERROR,    /* an error is on the top of the stack */
} Turn;

/* ---- Ctrl-C ------------------------------------------------------------------------------- */

static int call_hook(lua_State *L) {
    lua_Hook hook = lua_gethook(L);
    lua_Debug ar;
    memset(&ar, 0, sizeof ar);
    ar.event = LUA_HOOKCOUNT;
    ar.currentline = -1;
    if (hook != NULL)
        hook(L, &ar);
    return 0;
}

/* Whether the hook is the one the interpreter sets on Ctrl-C, by its mask, which no debugger or
 * profiler asks for: it came before the loop began to run. */
static bool is_interruption(lua_State *main) {
    const int all = LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT;
    return lua_gethook(main) != NULL && lua_gethookmask(main) == all && lua_gethookcount(main) == 1;
}

/* The stand-alone interpreter's signal handler can do no more than set a hook on the main thread,
 * which never runs while the loop does. So when a hook appears there, it is called. True: it
 * raised an error, which is on the stack. */
static bool is_interrupted(lua_State *L, Runtime *runtime) {
    lua_Hook hook = lua_gethook(runtime->main);
    if (hook == runtime->hook)
        return false;
    runtime->hook = hook;
    if (hook == NULL)
        return false;
    if (L != runtime->main) { /* which cannot be called into: it has resumed us */
        lua_sethook(runtime->main, NULL, 0, 0);
        runtime->hook = NULL;
        lua_pushliteral(L, "interrupted!");
        return true;
    }
    lua_pushcfunction(L, call_hook);
    if (lua_pcall(L, 0, 0, 0) != LUA_OK) {
        runtime->hook = lua_gethook(runtime->main);
        return true;
    }
    return false;
}

/* ---- a turn --------------------------------------------------------------------------------- */

static void wake_watchers(lua_State *L, Loop *loop, Link *ready) {
    Link *link;
    while ((link = list_pop(ready)) != NULL) {
        Watch *watch = CONTAINER_OF(link, Watch, link);
        if (watch->kind == WATCH_OF_TASK) {
            task_wake(loop, watch->owner, WAKE_OK, 0);
        } else {
            Watcher *watcher = watch->owner;
            watcher->ready(L, watcher);
        }
    }
}

static void expire_scope(lua_State *L, Runtime *runtime, Loop *loop, Scope *scope) {
    if (scope->kind == SCOPE_GROUP)
        scope_spawn_follower(L, runtime, loop, scope);
    else
        scope_expire(L, runtime, scope);
}

static void expire_timers(lua_State *L, Runtime *runtime, Loop *loop) {
    int64_t now_ns;
    Timer *timer;
    if (timers_next_ns(&loop->timers) == CLOCK_NEVER)
        return;
    now_ns = clock_now_ns(&loop->clock);
    while ((timer = timers_expire(&loop->timers, now_ns)) != NULL) {
        if (timer->kind == TIMER_OF_TASK) {
            task_wake(loop, CONTAINER_OF(timer, Task, timer), WAKE_TIMEOUT, 0);
        } else if (timer->kind == TIMER_OF_SERVICE) {
            Alarm *alarm = CONTAINER_OF(timer, Alarm, timer);
            alarm->rings(L, alarm);
        } else
            expire_scope(L, runtime, loop, CONTAINER_OF(timer, Scope, timer));
    }
}

/* Waits until something is due, at most `limit_ns`. */
static Turn wait_for_events(lua_State *L, Runtime *runtime, Loop *loop, int64_t limit_ns) {
    Link ready;
    int64_t now_ns = clock_now_ns(&loop->clock), next_ns = timers_next_ns(&loop->timers);
    int64_t until_next_ns = next_ns == CLOCK_NEVER ? CLOCK_NEVER
                            : next_ns > now_ns     ? next_ns - now_ns
                                                   : 0;
    int64_t check_ns, timeout_ns;
    int status;
    if (loop->reactor.watch_count <= loop->idle_watches && list_is_empty(&loop->reactor.stale)) {
        if (next_ns == CLOCK_NEVER && limit_ns == CLOCK_NEVER)
            return TURN_DEADLOCK;
        if (loop->is_simulated) {
            clock_advance_ns(&loop->clock, next_ns);
            return is_interrupted(L, runtime) ? TURN_ERROR : TURN_OK;
        }
    }
    link_init(&ready);
    check_ns = reactor_check(&loop->reactor, &ready, clock_real_ns());
    timeout_ns = until_next_ns < limit_ns ? until_next_ns : limit_ns;
    if (check_ns < timeout_ns)
        timeout_ns = check_ns;
    if (!list_is_empty(&ready))
        timeout_ns = 0;
    status = reactor_wait(&loop->reactor, &ready, timeout_ns);
    /* in a simulation the clock stands still while a descriptor is waited for; if nothing came in
     * as much real time as the next deadline is away, it jumps there */
    if (loop->is_simulated && list_is_empty(&ready) && status == REACTOR_OK &&
        timeout_ns == until_next_ns)
        clock_advance_ns(&loop->clock, next_ns);
    loop->resumptions = 0;
    wake_watchers(L, loop, &ready);
    if (is_interrupted(L, runtime))
        return TURN_ERROR;
    if (status > 0) {
        lua_pushfstring(L, "waiting for events failed: %s", strerror(status));
        return TURN_ERROR;
    }
    return TURN_OK;
}

/* Looks for descriptors that are ready, without waiting. */
static void poll_events(lua_State *L, Loop *loop) {
    Link ready;
    int64_t now_ns = clock_real_ns();
    if (loop->resumptions < POLL_RESUMPTIONS && now_ns - loop->polled_ns < POLL_INTERVAL_NS)
        return;
    link_init(&ready);
    reactor_check(&loop->reactor, &ready, now_ns);
    reactor_wait(&loop->reactor, &ready, 0);
    loop->resumptions = 0;
    loop->polled_ns = now_ns;
    wake_watchers(L, loop, &ready);
}

/* Puts the ready tasks into random order (Fisher and Yates), to find races. */
static void shuffle(Runtime *runtime, Loop *loop) {
    size_t count = loop->ready_count;
    Link **links = malloc(count * sizeof *links), *link;
    if (links == NULL)
        return; /* the order of arrival is as good as any */
    for (size_t i = 0; (link = list_pop(&loop->ready)) != NULL; i++)
        links[i] = link;
    for (size_t i = count; i > 0; i--) {
        size_t j = (size_t)(runtime_random(runtime) * (double)i);
        list_append(&loop->ready, links[j]);
        links[j] = links[i - 1];
    }
    free(links);
}

static Turn turn(lua_State *L, Runtime *runtime, Loop *loop, int64_t limit_ns) {
    size_t count;
    if (runtime->services_due > 0)
        runtime_serve(L, runtime);
    if (loop->ready_count == 0) {
        Turn result = wait_for_events(L, runtime, loop, limit_ns);
        if (result != TURN_OK)
            return result;
    } else if (loop->reactor.watch_count > 0 || !list_is_empty(&loop->reactor.stale)) {
        poll_events(L, loop);
    }
    expire_timers(L, runtime, loop);
    if (runtime->log != NULL && runtime->log->noted.length > 0)
        log_deliver_noted(L, runtime); /* what a worker has logged, before its results are known */
    count = loop->ready_count;
    if (loop->has_seed && count > 1)
        shuffle(runtime, loop);
    loop->resumptions += count;
    if (count > 0)
        reactor_mark_dirty(&loop->reactor);
    if (!task_run(L, runtime, loop, count) && is_interrupted(L, runtime))
        return TURN_ERROR;
    if (runtime->services_due > 0)
        runtime_serve(L, runtime);
    return TURN_OK;
}

/* ---- running until a task has ended ----------------------------------------------------------- */

/* Calls visit for each live task of the loop; the task is on the top of the stack. */
static void each_task(lua_State *L, Runtime *runtime, Loop *loop,
                      void (*visit)(lua_State *, Task *, int), int index) {
    for (uint32_t i = 1; i <= runtime->anchor_count; i++) {
        if (lua_rawgeti(L, UPVALUE_ANCHORS, i) == LUA_TUSERDATA) {
            Task *task = lua_touserdata(L, -1);
            if (!task_has_ended(task) && task_loop(runtime, task) == loop)
                visit(L, task, index);
        }
        lua_pop(L, 1);
    }
}

static void add_waiter(lua_State *L, Task *task, int list) {
    lua_createtable(L, 0, 3);
    task_push_name(L, task, 0);
    lua_setfield(L, -2, "name");
    task_push_wait(L, task);
    lua_setfield(L, -2, "waiting_for");
    task_push_place(L, task);
    lua_setfield(L, -2, "at");
    lua_rawseti(L, list, luaL_len(L, list) + 1);
}

/* Pushes the error that says which tasks wait, for what, and where. */
static int push_deadlock(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    luaL_Buffer message;
    lua_Integer count;
    lua_settop(L, 0);
    lua_newtable(L);
    each_task(L, runtime, runtime->running, add_waiter, 1);
    count = luaL_len(L, 1);
    luaL_buffinit(L, &message);
    luaL_addstring(&message, "deadlock: nothing can wake the tasks that wait");
    for (lua_Integer i = 1; i <= count; i++) {
        lua_rawgeti(L, 1, i);
        lua_getfield(L, -1, "name");
        lua_getfield(L, -2, "waiting_for");
        lua_getfield(L, -3, "at");
        lua_pushfstring(L, "\n  task '%s' waits for %s at %s", lua_tostring(L, -3),
                        lua_tostring(L, -2), lua_tostring(L, -1));
        lua_insert(L, -5);
        lua_pop(L, 4);
        luaL_addvalue(&message);
    }
    luaL_pushresult(&message);
    lua_pushvalue(L, 1);
    runtime_push_error(L, "DeadlockError", lua_tostring(L, -2), "waiters");
    return 1;
}

/* Something went wrong that is not the root task's doing; the error is on the top of the stack.
 * Cancels the task, lets it clean up, and raises that error. */
static int abort_run(lua_State *L, Runtime *runtime, Loop *loop, Task *root) {
    int error = lua_gettop(L);
    lua_pushvalue(L, error);
    runtime_push_error(L, "CancelledError", "the run was ended", "reason");
    task_cancel(L, runtime, root);
    lua_settop(L, error);
    while (!task_has_ended(root)) {
        if (turn(L, runtime, loop, CLOCK_NEVER) != TURN_OK)
            task_kill_below(L, runtime, loop,
                            root); /* cleanup waits for what cannot come, or again */
        lua_settop(L, error);
    }
    if (root->state == TASK_FAILED) { /* an error in cleanup is not lost either */
        lua_createtable(L, 2, 0);
        lua_pushvalue(L, error);
        lua_rawseti(L, -2, 1);
        lua_getiuservalue(L, 1, 1);
        if (root->handed == OUTCOME_TABLE)
            lua_rawgeti(L, -1, 1);
        lua_rawseti(L, error + 1, 2);
        lua_settop(L, error + 1);
        runtime_push_aggregate(L);
    }
    return lua_error(L);
}

static int run_until_ended(lua_State *L) { /* root task */
    Runtime *runtime = runtime_of(L);
    Loop *loop = runtime->running;
    Task *root = lua_touserdata(L, 1);
    luaL_checkstack(L, LUA_MINSTACK * 2, NULL);
    while (!task_has_ended(root)) {
        Turn result = turn(L, runtime, loop, CLOCK_NEVER);
        if (result == TURN_DEADLOCK) {
            runtime_push_function(L, push_deadlock, 0);
            lua_call(L, 0, 1);
        }
        if (result != TURN_OK)
            return abort_run(L, runtime, loop, root);
    }
    if (runtime->services_due > 0) /* one may have had something for another */
        runtime_serve(L, runtime);
    if (loop->live > 0)
        runtime_keep_last(L, runtime);
    return 0;
}

static void check_idle(lua_State *L, Runtime *runtime, const char *what) {
    if (runtime->is_closed)
        luaL_error(L, "%s: the runtime is closed", what);
    if (runtime->running != NULL)
        luaL_error(L, "%s cannot be called while the loop runs", what);
}

/* Calls the function on the stack, protected, with the loop marked as running. One argument, above
 * it, and one result at most. Returns what lua_pcall does. */
static int call_running(lua_State *L, Runtime *runtime, Loop *loop) {
    int status;
    runtime->hook = is_interruption(runtime->main) ? NULL : lua_gethook(runtime->main);
    runtime->running = loop;
    reactor_mark_dirty(&loop->reactor); /* who knows what was closed since it last ran */
    status = lua_pcall(L, 1, 1, 0);
    runtime->running = NULL;
    runtime->current = NULL;
    runtime->active = NULL;
    return status;
}

/* Raises what tasks spawned outside any task left behind. */
static void raise_orphans(lua_State *L, Runtime *runtime, Loop *loop) {
    if (scope_take_failures(L, runtime, &loop->orphans, 0))
        runtime_rethrow(L);
}

static int run_in(lua_State *L, Runtime *runtime, Loop *loop) { /* function, arguments */
    Task *root;
    luaL_checkstack(L, 4, NULL);
    runtime_push_function(L, run_until_ended, 0); /* all that may fail comes before the task */
    lua_insert(L, 1);
    root = task_spawn(L, runtime, loop, &loop->orphans, lua_gettop(L) - 2);
    root->flags |= TASK_IS_ROOT;
    lua_pushvalue(L, 2);
    lua_insert(L, 1); /* root, run_until_ended, root */
    if (call_running(L, runtime, loop) != LUA_OK) {
        if (!task_has_ended(root)) /* memory was short, so much that it could not be cancelled */
            task_kill_below(L, runtime, loop, root);
        return runtime_rethrow(L);
    }
    lua_settop(L, 1);
    if (root->state == TASK_DONE)
        raise_orphans(L, runtime, loop);
    return task_deliver(L, runtime, 1);
}

int loop_run(lua_State *L, Runtime *runtime) {
    check_idle(L, runtime, "opero.run");
    return run_in(L, runtime, runtime->loop);
}

int loop_call(lua_State *L, Runtime *runtime, lua_CFunction function) {
    runtime_push_function(L, function, 0);
    lua_insert(L, 1);
    return run_in(L, runtime, runtime->loop);
}

/* ---- simulation ------------------------------------------------------------------------------ */

static int simulate_body(lua_State *L) { /* function */
    Runtime *runtime = runtime_of(L);
    return run_in(L, runtime, runtime->loop);
}

static bool check_options(lua_State *L, lua_Integer *seed) {
    bool has_seed = false;
    if (lua_isnoneornil(L, 2))
        return false;
    luaL_checktype(L, 2, LUA_TTABLE);
    for (lua_pushnil(L); lua_next(L, 2) != 0; lua_pop(L, 1)) {
        int is_integer;
        if (lua_type(L, -2) != LUA_TSTRING || strcmp(lua_tostring(L, -2), "seed") != 0)
            luaL_error(L, "opero.simulate: unknown option '%s' (known: seed)",
                       luaL_tolstring(L, -2, NULL));
        *seed = lua_tointegerx(L, -1, &is_integer);
        if (!is_integer || lua_type(L, -1) != LUA_TNUMBER)
            luaL_error(L, "opero.simulate: option 'seed' takes an integer, got %s",
                       luaL_tolstring(L, -1, NULL));
        has_seed = true;
    }
    return has_seed;
}

int loop_simulate(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Loop *loop;
    uint64_t random[4], next_id;
    lua_Integer seed = 0;
    bool has_seed;
    int status;
    check_callable(L, 1);
    has_seed = check_options(L, &seed);
    if (runtime->current != NULL)
        return luaL_error(L,
                          "opero.simulate cannot be called in a task: it has a clock of its own");
    check_idle(L, runtime, "opero.simulate");
    lua_settop(L, 1);
    runtime_push_function(L, simulate_body, 0);
    lua_insert(L, 1);
    luaL_checkstack(L, LUA_MINSTACK, NULL);
    loop = malloc(sizeof *loop);
    if (loop == NULL)
        return luaL_error(L, "not enough memory");
    loop_init(loop, runtime, true);
    loop->has_seed = has_seed;
    memcpy(random, runtime->random, sizeof random);
    next_id = runtime->contexts.next_id;
    runtime_seed(runtime, (uint64_t)seed);
    runtime->loop = loop;
    status = lua_pcall(L, 1, LUA_MULTRET, 0);
    loop->is_ending = true;
    task_kill_below(L, runtime, loop, NULL); /* only after an error: else all have ended */
    if (scope_take_failures(L, runtime, &loop->orphans, 0))
        lua_pop(L, 1);
    runtime_move_services(runtime, loop, &runtime->real);
    runtime->loop = &runtime->real;
    memcpy(runtime->random, random, sizeof random);
    contexts_seed(&runtime->contexts, next_id);
    loop_destroy(loop);
    free(loop);
    return status == LUA_OK ? lua_gettop(L) : runtime_rethrow(L);
}

/* ---- for a host with a loop of its own ---------------------------------------------------------- */

static int step_body(lua_State *L) { /* limit in nanoseconds */
    Runtime *runtime = runtime_of(L);
    Loop *loop = runtime->running;
    luaL_checkstack(L, LUA_MINSTACK * 2, NULL);
    loop->polled_ns = 0; /* so that a step looks at descriptors in any case */
    if (turn(L, runtime, loop, lua_tointeger(L, 1)) == TURN_ERROR)
        return lua_error(L);
    if (runtime->services_due > 0) /* one may have had something for another */
        runtime_serve(L, runtime);
    if (loop->live > 0)
        runtime_keep_last(L, runtime);
    return 0;
}

int loop_step(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    int64_t limit_ns = lua_isnoneornil(L, 1) ? 0 : check_duration(L, 1);
    if (runtime->current != NULL)
        return luaL_error(L, "opero.step cannot be called in a task");
    check_idle(L, runtime, "opero.step");
    lua_settop(L, 0);
    runtime_push_function(L, step_body, 0);
    lua_pushinteger(L, limit_ns);
    if (call_running(L, runtime, runtime->loop) != LUA_OK)
        return runtime_rethrow(L);
    raise_orphans(L, runtime, runtime->loop);
    lua_pushboolean(L, runtime->loop->live > 0);
    return 1;
}

int loop_pollfd(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    int fd;
    if (runtime->is_closed)
        return luaL_error(L, "opero.pollfd: the runtime is closed");
    fd = reactor_pollfd(&runtime->real.reactor);
    if (fd < 0) {
        lua_pushnil(L);
        lua_pushfstring(L, "no pollable descriptor: %s", strerror(errno));
        return 2;
    }
    lua_pushinteger(L, fd);
    return 1;
}

int64_t loop_until_deadline_ns(const Runtime *runtime, const Loop *loop) {
    int64_t next_ns = timers_next_ns(&loop->timers);
    int64_t check_ns = reactor_check_due_ns(&loop->reactor);
    int64_t now_ns;
    if (loop->ready_count > 0 || runtime->services_due > 0 || !list_is_empty(&loop->reactor.stale))
        return 0;
    if (check_ns < next_ns)
        next_ns = check_ns;
    if (next_ns == CLOCK_NEVER)
        return -1;
    now_ns = clock_now_ns(&loop->clock);
    return next_ns > now_ns ? next_ns - now_ns : 0;
}

int loop_deadline(lua_State *L) {
    const Runtime *runtime = runtime_of(L);
    int64_t until_ns = loop_until_deadline_ns(runtime, runtime->loop);
    if (until_ns < 0)
        lua_pushnil(L);
    else
        lua_pushnumber(L, clock_to_seconds(until_ns));
    return 1;
}

/* ---- what is there ------------------------------------------------------------------------------ */

static void add_task(lua_State *L, Task *task, int list) {
    if (task->flags & TASK_IS_INTERNAL)
        return;
    lua_createtable(L, 0, 5);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, "task");
    task_push_name(L, task, 0);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, task_state_name(task));
    lua_setfield(L, -2, "status");
    if (task->state == TASK_SUSPENDED) {
        task_push_wait(L, task);
        lua_setfield(L, -2, "waiting_for");
    }
    if (task->coroutine != NULL) {
        luaL_traceback(L, task->coroutine, NULL, 0);
        lua_setfield(L, -2, "traceback");
    }
    lua_rawseti(L, list, luaL_len(L, list) + 1);
}

int loop_tasks(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    lua_settop(L, 0);
    lua_newtable(L);
    each_task(L, runtime, runtime->loop, add_task, 1);
    return 1;
}
