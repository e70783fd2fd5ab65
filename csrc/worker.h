/*
 * The other end of a pool: the loop of a worker process.
 *
 * A task, the receiver, takes records from the port and spawns a task for each call or chunk; that
 * runs it, sends the results, and ends. See port.h for what travels.
 */
#ifndef OPERO_WORKER_H
#define OPERO_WORKER_H

#include "port.h"

#include <lua.h>

#pragma GCC visibility push(hidden)

/* In a process that was forked for it: works at the worker's side of the port until the pool has
 * enough, and ends the process. `known` is the index of a table of functions with the numbers by
 * which the pool calls them, 0: none. */
_Noreturn void worker_run(lua_State *L, Port *port, int known);

/* Adds work(bell, memory) to the table at stack index `module`: the same in a program of its own. */
void worker_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
