/*
 * Child processes for the pool: forking with a runtime that starts afresh, starting another program,
 * and noticing the end of a child without a signal handler.
 *
 * Nothing here waits for, or asks after, processes that were not started here: a host's children
 * are its own.
 */
#ifndef OPERO_PROCESS_H
#define OPERO_PROCESS_H

#include <lua.h>

#pragma GCC visibility push(hidden)

/* Adds fork, exec_process, pidfd and die_with to the table at stack index `module`. */
void process_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
