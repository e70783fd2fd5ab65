/*
 * Calls on behalf of the policies in Lua.
 *
 * A policy is a layer: a function layer(fn, ...) that returns an outcome, which is `true` and the
 * results, or `false` and the error. These functions make the two layers every policy is built
 * with, so that a call in which nothing fails allocates nothing and runs little Lua.
 */
#ifndef OPERO_GUARD_H
#define OPERO_GUARD_H

#include <lua.h>

#pragma GCC visibility push(hidden)

/* Adds invoke, guard, reraise and is_cancelled to the table at stack index `module`. */
void guard_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
