/*
 * Pools of worker processes: what is handed in, who does it, and what becomes of it.
 *
 * A call waits in the pool's queue until a worker has room for it, and then in that worker's ring. It
 * is one task's; a chunk is a call with many items. As long as a worker has not begun with it, it can
 * be taken back: when it is cancelled, when another worker has nothing to do, when the worker dies.
 * What had begun in a worker that dies has failed; nothing is begun twice.
 */
#ifndef OPERO_POOL_H
#define OPERO_POOL_H

#include <lua.h>

#pragma GCC visibility push(hidden)

/* Adds pool(options) and pool_methods to the table at stack index `module`. */
void pool_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
