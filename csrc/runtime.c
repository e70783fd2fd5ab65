#include "runtime.h"
#include "describe.h"
#include "log.h"
#include "scope.h"
#include "task.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char RUNTIME_KEY; /* its address is the key */

static uint64_t rotate_left(uint64_t x, int by) {
    return (x << by) | (x >> (64 - by));
}

/* splitmix64, to spread a seed of any quality over the generator's state */
void runtime_seed(Runtime *runtime, uint64_t seed) {
    contexts_seed(&runtime->contexts, seed);
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

/* ---- services -------------------------------------------------------------------------------- */

void runtime_add_service(Runtime *runtime, Service *service) {
    service->loop = runtime->loop;
    service->is_due = false;
    list_append(&runtime->services, &service->link);
}

void runtime_remove_service(Runtime *runtime, Service *service) {
    link_remove(&service->link);
    if (service->is_due)
        runtime->services_due--;
    service->is_due = false;
}

void runtime_service_due(Runtime *runtime, Service *service) {
    if (service->is_due || list_is_empty(&service->link)) /* or it is none any more */
        return;
    service->is_due = true;
    runtime->services_due++;
}

/* The first that is due; anything may have happened to the others while one did its work. */
static Service *first_due(const Runtime *runtime) {
    for (Link *link = runtime->services.next; link != &runtime->services; link = link->next)
        if (CONTAINER_OF(link, Service, link)->is_due)
            return CONTAINER_OF(link, Service, link);
    return NULL;
}

void runtime_serve(lua_State *L, Runtime *runtime) {
    for (size_t left = runtime->services_due; left > 0 && runtime->services_due > 0; left--) {
        Service *service = first_due(runtime);
        service->is_due = false;
        runtime->services_due--;
        service->work(L, service);
    }
}

void runtime_move_services(Runtime *runtime, const Loop *from, Loop *to) {
    for (Link *link = runtime->services.next; link != &runtime->services; link = link->next) {
        Service *service = CONTAINER_OF(link, Service, link);
        if (service->loop == from)
            service->move(service, to);
    }
}

/* Lets go of all services, each in the way that is given. */
static void drop_services(Runtime *runtime, bool is_forked) {
    Link *link;
    while ((link = runtime->services.next) != &runtime->services) {
        Service *service = CONTAINER_OF(link, Service, link);
        runtime_remove_service(runtime, service);
        if (is_forked)
            service->forget(service);
        else
            service->end(service);
    }
}

/* ---- the runtime ----------------------------------------------------------------------------- */

/* The task is at the top; pops it. Below it are the list of what is kept and the error it ends with. */
static void forget(lua_State *L, Task *task, lua_Integer *kept) {
    task->awaiters = NULL;
    task->state = TASK_CANCELLED;
    task->coroutine = NULL;
    while (task->scope != NULL) {
        Scope *scope = task->scope;
        task->scope = scope->outer;
        if (scope->handle != NULL)
            *scope->handle = NULL;
        free(scope);
    }
    task->home = NULL;
    lua_getiuservalue(L, -1, 1);
    lua_rawseti(L, -4, ++*kept);
    lua_pushvalue(L, -2);
    lua_setiuservalue(L, -2, 1);
    task->handed = OUTCOME_VALUE;
    lua_rawseti(L, -3, ++*kept);
}

void runtime_forget_tasks(lua_State *L, Runtime *runtime) {
    lua_Integer kept = 0;
    for (uint32_t i = 1; i <= runtime->anchor_count; i++) { /* out of all lists, before those go */
        if (lua_rawgeti(L, UPVALUE_ANCHORS, i) == LUA_TUSERDATA) {
            Task *task = lua_touserdata(L, -1);
            link_remove(&task->link);
            link_remove(&task->sibling);
        }
        lua_pop(L, 1);
    }
    drop_services(runtime, true);
    loop_destroy(&runtime->real); /* with the timers of scopes, before those go too */
    lua_createtable(L, (int)runtime->anchor_count * 2, 0);
    runtime_push_error(L, "CancelledError", "the task belongs to the parent process", NULL);
    for (uint32_t i = 1; i <= runtime->anchor_count; i++) {
        if (lua_rawgeti(L, UPVALUE_ANCHORS, i) == LUA_TUSERDATA)
            forget(L, lua_touserdata(L, -1), &kept);
        else
            lua_pop(L, 1);
        lua_pushnil(L);
        lua_rawseti(L, UPVALUE_ANCHORS, i);
    }
    lua_pop(L, 1);
    contexts_clear(&runtime->contexts);
    lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_FORGOTTEN);
    runtime->anchor_count = runtime->free_anchor = 0;
    loop_init(&runtime->real, runtime, false);
    runtime->loop = &runtime->real;
    runtime->running = NULL;
    runtime->current = NULL;
    runtime->active = NULL;
    runtime_seed(runtime, (uint64_t)clock_wall_ns() ^ (uint64_t)getpid() << 32);
}

int runtime_close_thread(lua_State *L, lua_State *coroutine) {
#if LUA_VERSION_RELEASE_NUM >= 50406
    return lua_closethread(coroutine, L);
#elif LUA_VERSION_RELEASE_NUM == 50405
    return lua_resetthread(coroutine, L);
#else
    (void)L;
    return lua_resetthread(coroutine);
#endif
}

void runtime_close_over(lua_State *L, lua_State *coroutine) {
    if (runtime_close_thread(L, coroutine) != LUA_OK) {
        lua_pop(L, 1);
        lua_xmove(coroutine, L, 1);
    }
}

void runtime_pack(lua_State *L, int first) {
    int count = lua_gettop(L) - first + 1;
    luaL_checkstack(L, 2, "too many values");
    lua_createtable(L, count, 1);
    lua_insert(L, first);
    lua_pushinteger(L, count);
    lua_setfield(L, first, "n");
    for (; count > 0; count--)
        lua_rawseti(L, first, count);
}

int runtime_unpack(lua_State *L, int index) {
    lua_Integer count;
    lua_getfield(L, index, "n");
    count = lua_tointeger(L, -1);
    lua_pop(L, 1);
    luaL_checkstack(L, (int)count, "too many values");
    for (lua_Integer i = 1; i <= count; i++)
        lua_rawgeti(L, index, i);
    return (int)count;
}

static int warn_of(lua_State *L) { /* what, as a light userdata; a value */
    const char *text = luaL_tolstring(L, 2, NULL);
    lua_warning(L, "opero: ", 1);
    lua_warning(L, lua_touserdata(L, 1), 1);
    lua_warning(L, text, 0);
    return 0;
}

/* What the script forgot. Pops the value it is about. */
static void warn(lua_State *L, const char *what) {
    lua_pushcfunction(L, warn_of);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, (void *)what);
    lua_insert(L, -2);
    if (lua_pcall(L, 2, 0, 0) != LUA_OK)
        lua_pop(L, 1);
}

/* The state closes: tasks that are still suspended run their pending closes. */
static void close_tasks(lua_State *L, Runtime *runtime) {
    const Scope *orphans = &runtime->real.orphans;
    if (runtime->is_closed)
        return;
    for (const Link *link = orphans->children.next; link != &orphans->children; link = link->next) {
        Task *task = CONTAINER_OF(link, Task, sibling);
        if ((task->flags & TASK_STARTED) == 0) {
            task_push_name(L, task, 0);
            warn(L, "a task was spawned, but nothing ran it: ");
        }
    }
    for (const Link *link = orphans->failures.next; link != &orphans->failures; link = link->next) {
        Task *task = CONTAINER_OF(link, Task, sibling);
        lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
        task_push_error(L, task, -1);
        warn(L, "a task failed, and nobody awaited it: ");
        lua_pop(L, 1);
    }
    runtime->is_closed = true;
    if (runtime->loop != &runtime->real)
        task_kill_below(L, runtime, runtime->loop, NULL);
    task_kill_below(L, runtime, &runtime->real, NULL);
}

static int runtime_gc(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    close_tasks(L, runtime);
    drop_services(runtime, false);
    if (runtime->log != NULL)
        log_deliver_noted(L, runtime); /* the workers' last records */
    log_close(runtime);
    contexts_destroy(&runtime->contexts);
    loop_destroy(&runtime->real);
    return 0;
}

static int sentinel_gc(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    if (lua_touserdata(L, 1) == runtime->sentinel) /* not one that was replaced */
        close_tasks(L, runtime);
    return 0;
}

void runtime_keep_last(lua_State *L, Runtime *runtime) {
    void *sentinel = lua_newuserdatauv(L, 1, 0);
    if (luaL_newmetatable(L, "opero.Sentinel")) {
        runtime_push_function(L, sentinel_gc, 0);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    runtime->sentinel = sentinel;
    lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_SENTINEL);
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
    if (methods != NULL) {
        lua_newtable(L);
        runtime_set_functions(L, -1, methods);
        lua_setfield(L, -2, "__index");
    }
    lua_pushliteral(L, "protected");
    lua_setfield(L, -2, "__metatable");
}

/* Pushes a closure like runtime_push_function's, when the runtime, at the top of the stack, is not
 * registered yet. */
static void push_early(lua_State *L, lua_CFunction function) {
    lua_pushvalue(L, -1);
    lua_getiuservalue(L, -1, RUNTIME_ANCHORS);
    lua_getiuservalue(L, -2, RUNTIME_IDLE);
    lua_pushcclosure(L, function, 3);
}

Runtime *runtime_open(lua_State *L) {
    Runtime *runtime;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY) == LUA_TUSERDATA)
        return lua_touserdata(L, -1);
    lua_pop(L, 1);
    runtime = lua_newuserdatauv(L, sizeof *runtime, RUNTIME_USER_VALUES);
    memset(runtime, 0, sizeof *runtime);
    loop_init(&runtime->real, runtime, false);
    link_init(&runtime->services);
    runtime->loop = &runtime->real;
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
    runtime->main = lua_tothread(L, -1);
    lua_pop(L, 1);
    runtime_seed(runtime, (uint64_t)clock_wall_ns() ^ (uint64_t)(uintptr_t)runtime ^
                              (uint64_t)getpid() << 32);
    lua_newtable(L);
    lua_setiuservalue(L, -2, RUNTIME_ANCHORS);
    lua_createtable(L, RUNTIME_IDLE_MAX, 0);
    lua_setiuservalue(L, -2, RUNTIME_IDLE);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_setiuservalue(L, -2, RUNTIME_NAMES);
    push_early(L, scope_collect_failures);
    lua_setiuservalue(L, -2, RUNTIME_COLLECTOR);
    push_early(L, runtime_gc);
    lua_createtable(L, 0, 2);
    lua_insert(L, -2);
    lua_setfield(L, -2, "__gc");
    lua_pushliteral(L, "opero.Runtime");
    lua_setfield(L, -2, "__name");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY); /* last: it is whole now */
    return runtime;
}

/* ---- errors ---------------------------------------------------------------------------------- */

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

/* Whether the error, at index 1, needs no new traceback: it is being raised again, or it is a
 * cancellation, of which there may be very many at once. The runtime is at index 2. */
static bool is_noted(lua_State *L, Runtime *runtime) {
    bool is_it = false;
    if (runtime->is_rethrowing) {
        runtime->is_rethrowing = false;
        lua_getiuservalue(L, 2, RUNTIME_ERROR);
        is_it = lua_rawequal(L, -1, 1);
        lua_pop(L, 1);
    }
    if (!is_it && lua_getmetatable(L, 1)) {
        lua_getiuservalue(L, 2, RUNTIME_CANCELLED);
        is_it = lua_rawequal(L, -1, -2);
        lua_pop(L, 2);
    }
    return is_it;
}

int runtime_note_error(lua_State *L) {
    lua_settop(L, 1);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY) != LUA_TNIL &&
        !is_noted(L, lua_touserdata(L, 2))) {
        lua_pushvalue(L, 1);
        lua_setiuservalue(L, 2, RUNTIME_ERROR);
        luaL_traceback(L, L, NULL, 1);
        lua_setiuservalue(L, 2, RUNTIME_TRACEBACK);
    }
    lua_settop(L, 1);
    return 1;
}

void runtime_push_noted(lua_State *L, int error) {
    int index = lua_gettop(L) + 1;
    error = lua_absindex(L, error);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &RUNTIME_KEY);
    lua_getiuservalue(L, index, RUNTIME_ERROR);
    if (lua_rawequal(L, -1, error))
        lua_getiuservalue(L, index, RUNTIME_TRACEBACK);
    else
        lua_pushnil(L);
    lua_replace(L, index);
    lua_settop(L, index);
}

int runtime_rethrow(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR);
    runtime->is_rethrowing = lua_rawequal(L, -1, -2);
    lua_pop(L, 1);
    return lua_error(L);
}

#define LISTED 10 /* errors told in the message of an AggregateError; its list has all */

static int list_errors(lua_State *L) { /* list of errors */
    luaL_Buffer buffer;
    lua_Integer count = luaL_len(L, 1);
    luaL_buffinit(L, &buffer);
    lua_pushfstring(L, "%I tasks failed:", count);
    luaL_addvalue(&buffer);
    for (lua_Integer i = 1; i <= count && i <= LISTED; i++) {
        luaL_addstring(&buffer, "\n  ");
        lua_rawgeti(L, 1, i);
        luaL_tolstring(L, -1, NULL);
        lua_remove(L, -2);
        luaL_addvalue(&buffer);
    }
    if (count > LISTED) {
        lua_pushfstring(L, "\n  and %I more", count - LISTED);
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

/* ---- arguments ------------------------------------------------------------------------------- */

void check_callable(lua_State *L, int arg) {
    if (lua_isfunction(L, arg))
        return;
    if (luaL_getmetafield(L, arg, "__call") == LUA_TNIL)
        luaL_typeerror(L, arg, "function");
    lua_pop(L, 1);
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
