/*
 * Scopes: what tasks are children of, and where the errors nobody awaited are kept until the
 * scope ends. See runtime.h for the data and for the calling convention.
 */
#ifndef OPERO_SCOPE_H
#define OPERO_SCOPE_H

#include "runtime.h"

#pragma GCC visibility push(hidden)

void scope_init(Scope *scope, ScopeKind kind, Task *owner);

/* Opens a scope in the running task. Raises when memory is short. */
Scope *scope_open(lua_State *L, Task *task, ScopeKind kind);

/* When the scope is still there at that time, the function on the top of the stack, which it pops, is
 * spawned into it. For a scope of kind SCOPE_GROUP; once. Raises when memory is short. */
void scope_set_follower(lua_State *L, Loop *loop, Scope *scope, int64_t deadline_ns);

/* That time has come. Raises when memory is short. */
void scope_spawn_follower(lua_State *L, Runtime *runtime, Loop *loop, Scope *scope);

/* Ends the innermost scope of the task, which has no children left, and does with its failures
 * what scope_take_failures does. */
bool scope_close(lua_State *L, Runtime *runtime, Loop *loop, Task *task, int first);

/* The same when its failures, if any, have been dealt with. */
void scope_drop(lua_State *L, Loop *loop, Task *task);

/* The frames that opened the inner scopes of the task are gone, or about to go with the coroutine they
 * are in (so call this first: what Lua holds of a scope is on its stack). All that is in them goes to
 * the scope `base`, or, if that is NULL, to the outermost, which becomes the task's own. */
void scope_collapse(lua_State *L, Loop *loop, Task *task, Scope *base);

/* The scope into which the running task spawns; the loop's own outside tasks. */
Scope *scope_current(lua_State *L, Runtime *runtime);

/* Takes the failures nobody awaited off the scope and pushes them as one error: the failure
 * itself when there is one, an AggregateError when there are several. `first`, unless 0, is the
 * stack index of an error that comes before them. Returns false, pushing nothing, if the scope
 * has none. */
bool scope_take_failures(lua_State *L, Runtime *runtime, Scope *scope, int first);

/* A failed task leaves its scope: its error was awaited, or is reported now. Raises nothing. */
void scope_forget_failure(lua_State *L, Runtime *runtime, Task *task);

/* The function of the runtime that gathers failures, for scope_take_failures. */
int scope_collect_failures(lua_State *L);

#pragma GCC visibility pop

#endif
