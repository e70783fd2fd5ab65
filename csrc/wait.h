/* Waiting for what lies outside the runtime: descriptors, and callbacks of other libraries. */
#ifndef OPERO_WAIT_H
#define OPERO_WAIT_H

#include <lua.h>

#pragma GCC visibility push(hidden)

/* Adds wait and await to the table at stack index `module`. */
void wait_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
