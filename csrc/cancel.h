/*
 * Cancellation: an error raised where a task is suspended, again at every further suspension,
 * until the task, or the scope that was cancelled, has ended.
 *
 * Cancelling reaches the tasks below, whatever the depth, but for those inside a shield. It is
 * noted at its origin and marked in all it reaches, so that it allocates nothing for them. See
 * runtime.h for the data and for the calling convention.
 */
#ifndef OPERO_CANCEL_H
#define OPERO_CANCEL_H

#include "runtime.h"

#pragma GCC visibility push(hidden)

/* Cancels a task with the error on the top of the stack (left there). False: it had ended. */
bool task_cancel(lua_State *L, Runtime *runtime, Task *task);

/* Cancels what is in the scope, with the error on the top of the stack (left there). */
void scope_cancel(lua_State *L, Runtime *runtime, Scope *scope);

/* The time of a timeout scope is up: cancels it. */
void scope_expire(lua_State *L, Runtime *runtime, Scope *scope);

/* True, and the error pushed, when the running task's next suspension raises a cancellation. */
bool task_push_cancellation(lua_State *L, Task *task);

/* Pushes the error by which the task was cancelled as a whole. */
void cancel_push_origin(lua_State *L, const Task *task);

/* Whether what is spawned into the scope is cancelled from the start. */
bool scope_is_cancelled(const Scope *scope);

/* Whether the value at `index` is a CancelledError. */
bool is_cancellation(lua_State *L, int index);

#pragma GCC visibility pop

#endif
