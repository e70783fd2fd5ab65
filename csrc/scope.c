#include "scope.h"
#include "task.h"

#include <stdlib.h>
#include <string.h>

void scope_init(Scope *scope, ScopeKind kind, Task *owner) {
    memset(scope, 0, sizeof *scope);
    link_init(&scope->children);
    link_init(&scope->failures);
    scope->kind = (uint8_t)kind;
    scope->owner = owner;
    scope->timer.kind = TIMER_OF_SCOPE;
}

Scope *scope_open(lua_State *L, Task *task, ScopeKind kind) {
    Scope *scope = malloc(sizeof *scope);
    if (scope == NULL)
        luaL_error(L, "not enough memory");
    scope_init(scope, kind, task);
    scope->outer = task->scope;
    task->scope = scope;
    return scope;
}

/* Where the function is kept: beside the place of the scope's cancellation. */
static const void *follower_key(const Scope *scope) {
    return (const char *)scope + 1;
}

static void forget_follower(lua_State *L, Scope *scope) {
    if (!scope->has_follower)
        return;
    scope->has_follower = false;
    lua_pushnil(L);
    lua_rawsetp(L, UPVALUE_ANCHORS, follower_key(scope));
}

void scope_set_follower(lua_State *L, Loop *loop, Scope *scope, int64_t deadline_ns) {
    lua_rawsetp(L, UPVALUE_ANCHORS, follower_key(scope));
    scope->has_follower = true;
    timers_cancel(&loop->timers, &scope->timer);
    if (deadline_ns != CLOCK_NEVER && !timers_add(&loop->timers, &scope->timer, deadline_ns))
        luaL_error(L, "not enough memory");
}

void scope_spawn_follower(lua_State *L, Runtime *runtime, Loop *loop, Scope *scope) {
    if (!scope->has_follower)
        return;
    lua_rawgetp(L, UPVALUE_ANCHORS, follower_key(scope));
    forget_follower(L, scope);
    task_spawn(L, runtime, loop, scope, 0);
    lua_pop(L, 1);
}

/* Takes the innermost scope out of the task's chain. */
static Scope *scope_detach(lua_State *L, Loop *loop, Task *task) {
    Scope *scope = task->scope;
    task->scope = scope->outer;
    timers_cancel(&loop->timers, &scope->timer);
    forget_follower(L, scope);
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

static void move_tasks(Link *to, Link *from, Scope *home) {
    Link *link;
    while ((link = list_pop(from)) != NULL) {
        CONTAINER_OF(link, Task, sibling)->home = home;
        list_append(to, link);
    }
}

void scope_collapse(lua_State *L, Loop *loop, Task *task, Scope *base) {
    if (base == NULL && task->scope != NULL) {
        base = task->scope;
        while (base->outer != NULL)
            base = base->outer;
        base->kind = SCOPE_ROOT;
        timers_cancel(&loop->timers, &base->timer);
        if (base->handle != NULL)
            *base->handle = NULL;
        base->handle = NULL;
        if (base->is_cancelled) { /* it was that of what is gone, not the task's */
            base->is_cancelled = false;
            lua_pushnil(L);
            lua_rawsetp(L, UPVALUE_ANCHORS, base);
            if ((task->flags & TASK_IS_CANCELLED) == 0)
                task->flags &= (uint8_t)~TASK_HAS_CANCEL;
        }
    }
    while (task->scope != base) {
        Scope *inner = task->scope;
        base->live += inner->live;
        move_tasks(&base->children, &inner->children, base);
        move_tasks(&base->failures, &inner->failures, base);
        scope_drop(L, loop, task);
    }
}

Scope *scope_current(lua_State *L, Runtime *runtime) {
    Task *task = runtime->current;
    if (task == NULL)
        return &runtime->loop->orphans;
    if (task->scope == NULL)
        scope_open(L, task, SCOPE_ROOT);
    return task->scope;
}

/* ---- failures nobody awaited ----------------------------------------------------------------- */

/* A failure leaves its scope: it was awaited, or is reported now. */
void scope_forget_failure(lua_State *L, Runtime *runtime, Task *task) {
    link_remove(&task->sibling);
    task->home = NULL;
    task_release(L, runtime, task);
}

/* Detaches the failures of a scope. Returns whether there are any but those that are on their way
 * to somebody, and all errors as one. */
int scope_collect_failures(lua_State *L) { /* scope, as a light userdata; a first error, or none */
    Runtime *runtime = runtime_of(L);
    Scope *scope = lua_touserdata(L, 1);
    int count = lua_gettop(L) - 1;
    bool has_first = count > 0;
    while (!list_is_empty(&scope->failures)) {
        Task *task = CONTAINER_OF(scope->failures.next, Task, sibling);
        if ((task->flags & TASK_IS_AWAITED) == 0) {
            luaL_checkstack(L, 4, "too many errors");
            lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
            task_push_error(L, task, -1);
            lua_remove(L, -2);
            count++;
        }
        scope_forget_failure(L, runtime, task);
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
    if (lua_pcall(L, first != 0 ? 2 : 1, 2, 0) != LUA_OK) { /* an error too, of memory */
        lua_pushboolean(L, true);
        lua_insert(L, base + 1);
    }
    has_any = lua_toboolean(L, base + 1);
    while (!list_is_empty(&scope->failures))
        scope_forget_failure(L, runtime, CONTAINER_OF(scope->failures.next, Task, sibling));
    if (has_any)
        lua_replace(L, base + 1);
    lua_settop(L, has_any ? base + 1 : base);
    return has_any;
}
