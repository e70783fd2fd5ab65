/* Tasks in words, for error messages and for opero.tasks. See runtime.h for the calling convention. */
#ifndef OPERO_DESCRIBE_H
#define OPERO_DESCRIBE_H

#include "runtime.h"

#pragma GCC visibility push(hidden)

/* Pushes the name of a task (which is at stack index `index`, or 0 if it is not on the stack),
 * what it waits for ("" if for nothing), where its code stands. */
void task_push_name(lua_State *L, Task *task, int index);
void task_push_wait(lua_State *L, Task *task);
void task_push_place(lua_State *L, Task *task);

const char *task_state_name(const Task *task);

#pragma GCC visibility pop

#endif
