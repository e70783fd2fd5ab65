/*
 * The loop: resumes what is ready, lets timers expire, waits for descriptors.
 *
 * A turn waits (if nothing is ready), wakes what is due, and resumes each task that was ready
 * then, once. opero.run turns until its task has ended, opero.step turns once, a simulation turns
 * a loop of its own under a virtual clock.
 */
#ifndef OPERO_LOOP_H
#define OPERO_LOOP_H

#include "task.h"

#pragma GCC visibility push(hidden)

/* Outside any task: runs `function` (one made by runtime_push_function, without upvalues of its
 * own) with the arguments on the stack as a task, until it ends. Returns its results or raises
 * its error. `return loop_call(...)`. */
int loop_call(lua_State *L, Runtime *runtime, lua_CFunction function);

/* opero.run(fn, ...) when no task is running: the arguments are the whole stack. */
int loop_run(lua_State *L, Runtime *runtime);

/* Nanoseconds until the loop has something to do: 0 for at once, -1 when nothing waits for time. */
int64_t loop_until_deadline_ns(const Runtime *runtime, const Loop *loop);

/* Lua functions. */
int loop_simulate(lua_State *L);
int loop_step(lua_State *L);
int loop_pollfd(lua_State *L);
int loop_deadline(lua_State *L);
int loop_tasks(lua_State *L);

#pragma GCC visibility pop

#endif
