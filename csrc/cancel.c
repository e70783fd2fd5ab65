#include "cancel.h"
#include "task.h"

bool is_cancellation(lua_State *L, int index) {
    bool is_it;
    if (!lua_getmetatable(L, index))
        return false;
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_CANCELLED);
    is_it = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return is_it;
}

/* The scopes of a task that a cancellation from `origin` (NULL: from outside) reaches begin here:
 * those inside a shield are spared. */
static Scope *unshielded(const Task *task, const Scope *origin) {
    Scope *first = task->scope;
    for (Scope *scope = task->scope; scope != origin; scope = scope->outer)
        if (scope->kind == SCOPE_SHIELD)
            first = scope->outer;
    return first;
}

static bool is_shielded(const Task *task) {
    return unshielded(task, NULL) != task->scope;
}

static int set_note(lua_State *L) { /* anchors; task or scope, as a light userdata; error */
    lua_pushvalue(L, 3);
    lua_rawsetp(L, 1, lua_touserdata(L, 2));
    return 0;
}

/* Notes the error on the top of the stack (left there) for a task or scope. Short of memory it does
 * not: the spare error stands in then. Cancelling must not fail halfway. */
static void note(lua_State *L, const void *key) {
    if (!lua_checkstack(L, 4))
        return;
    lua_pushcfunction(L, set_note);
    lua_pushvalue(L, UPVALUE_ANCHORS);
    lua_pushlightuserdata(L, (void *)key);
    lua_pushvalue(L, -4);
    if (lua_pcall(L, 3, 0, 0) != LUA_OK)
        lua_pop(L, 1);
}

static void push_note(lua_State *L, const void *key) {
    if (lua_rawgetp(L, UPVALUE_ANCHORS, key) == LUA_TNIL) {
        lua_pop(L, 1);
        lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_SPARE);
    }
}

#define FAR 16

static const Task *parent_of(const Task *task) {
    return task->home != NULL ? task->home->owner : NULL;
}

/* Pushes the error by which the task itself, or a scope it was spawned into, was cancelled. */
static bool push_nearest(lua_State *L, const Task *task) {
    const Scope *scope = task->home;
    if (lua_rawgetp(L, UPVALUE_ANCHORS, task) != LUA_TNIL)
        return true;
    while (scope != NULL && !scope->is_cancelled)
        scope = scope->outer;
    lua_pop(L, 1);
    if (scope == NULL)
        return false;
    push_note(L, scope);
    return true;
}

/* A cancellation is noted at its origin only, so that it allocates nothing for the tasks it reaches.
 * But a long way up is marked with notes, or all the ways of a deep chain together would be
 * quadratically long. */
void cancel_push_origin(lua_State *L, const Task *task) {
    const Task *origin = task;
    int steps = 0;
    while (!push_nearest(L, origin)) {
        origin = parent_of(origin);
        if (origin == NULL) {
            lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_SPARE);
            return;
        }
        steps++;
    }
    for (; steps > FAR; steps--) {
        if (steps % FAR == 0)
            note(L, task);
        task = parent_of(task);
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
            push_note(L, cancelled);
            return true;
        }
    }
    if ((task->flags & TASK_IS_CANCELLED) != 0) {
        cancel_push_origin(L, task);
        return true;
    }
    if (cancelled == NULL)
        return false;
    push_note(L, cancelled);
    return true;
}

/* Whether what is spawned into the scope is cancelled from the start. */
bool scope_is_cancelled(const Scope *scope) {
    const Task *owner = scope->owner;
    for (; scope != NULL; scope = scope->outer) {
        if (scope->is_cancelled)
            return true;
        if (scope->kind == SCOPE_SHIELD)
            return false;
    }
    return owner != NULL && (owner->flags & TASK_IS_CANCELLED) != 0;
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
        if (lua_status(task->coroutine) != LUA_YIELD) {
            /* closed by hand: what it was handed went with its stack */
        } else if (task->wake == WAKE_OK && task->wait->undo != NULL) {
            if (!task->wait->undo(L, loop, task))
                return;
        } else {
            lua_pop(task->coroutine, task->handed);
        }
        task->wake = WAKE_CANCEL;
        task->handed = 0;
    }
}

static void mark(Task *task) {
    task->flags |= TASK_IS_CANCELLED | TASK_HAS_CANCEL;
    if (task->flags & TASK_BODY_ENDED && task->wake == TASK_DONE)
        task->wake = TASK_CANCELLED; /* it will not be whole: its children are cancelled too */
}

static Task *first_child(Scope *scope) {
    for (; scope != NULL; scope = scope->outer)
        if (!list_is_empty(&scope->children))
            return CONTAINER_OF(scope->children.next, Task, sibling);
    return NULL;
}

/* Walks the tasks below `top`, parents first, without recursion: trees may be deep. */
static Task *next_below(const Scope *top, Task *task) {
    Task *child = first_child(unshielded(task, NULL));
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
        mark(task);
        if (!is_shielded(task))
            interrupt(L, runtime, task);
    }
}

bool task_cancel(lua_State *L, Runtime *runtime, Task *task) {
    if (task_has_ended(task))
        return false;
    if ((task->flags & TASK_IS_CANCELLED) == 0)
        note(L, task);
    mark(task);
    for (Scope *scope = unshielded(task, NULL); scope != NULL; scope = scope->outer)
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
    note(L, scope);
    scope->is_cancelled = true;
    if (owner == NULL) {
        cancel_children(L, runtime, scope);
        return;
    }
    first = unshielded(owner, scope);
    if (first == owner->scope)
        interrupt(L, runtime, owner);
    else
        owner->flags |= TASK_HAS_CANCEL;
    for (Scope *inner = first; inner != scope->outer; inner = inner->outer)
        cancel_children(L, runtime, inner);
}

void scope_expire(lua_State *L, Runtime *runtime, Scope *scope) {
    scope->has_expired = true;
    runtime_push_error(L, "CancelledError", "the time is up", NULL);
    scope_cancel(L, runtime, scope);
    lua_pop(L, 1);
}
