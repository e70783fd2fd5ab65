/* What Lua calls on tasks: spawning, sleeping, awaiting, cancelling, scopes. */
#ifndef OPERO_CALLS_H
#define OPERO_CALLS_H

#include "task.h"

#pragma GCC visibility push(hidden)

/* Adds the functions to the table at stack index `module` and makes the metatables. */
void calls_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
