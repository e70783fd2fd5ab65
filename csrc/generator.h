/*
 * Generators that may suspend the task they are called in: opero.wrap.
 *
 * A coroutine made by Lua's own library cannot: its yields go to whoever resumed it. A generator's
 * coroutine passes the runtime's suspensions on to its caller, and keeps its own yields to itself.
 */
#ifndef OPERO_GENERATOR_H
#define OPERO_GENERATOR_H

#include <lua.h>

#pragma GCC visibility push(hidden)

/* Adds wrap to the table at stack index `module`. */
void generator_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
