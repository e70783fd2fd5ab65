/*
 * Opero for C hosts that run Lua 5.4 and have an event loop of their own.
 *
 *   luaL_requiref(L, "opero.core", luaopen_opero_core, 0);   // or let require find core.so
 *
 * Then, in the host's loop: wait until opero_pollfd() is readable or opero_deadline_ns() has
 * passed, and call opero_step(). There is one runtime to a lua_State (all its coroutines share
 * it); it makes no threads, sets no signal handlers, and is freed by lua_close, which runs the
 * pending closes of tasks that are still suspended. Nothing here may be called while a task runs
 * (from a function that a task called), but for luaopen_opero_core. The functions need three free
 * slots on the stack; after luaopen_opero_core has returned, none of them raises an error.
 */
#ifndef OPERO_H
#define OPERO_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <lua.hpp>
#else
#include <lua.h>
#endif

#ifdef __GNUC__
#define OPERO_API __attribute__((visibility("default")))
#else
#define OPERO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Opens the module opero.core; the value on the stack is its table. Lua code gets at the whole
 * library by require "opero", which needs this module and the files of lua/opero. Those define the
 * errors: without them cancellations are plain text, and count as failures of the tasks. */
OPERO_API int luaopen_opero_core(lua_State *L);

/* One step that waits at most `timeout_ns` nanoseconds (0: not at all) when nothing is ready:
 * wakes what is due and resumes each task that is ready, once. Returns LUA_OK, or an error status
 * with the error on the stack: that of a task which was spawned outside any task and which nobody
 * awaited, or of a lack of memory. */
OPERO_API int opero_step(lua_State *L, int64_t timeout_ns);

/* A descriptor that becomes readable when opero_step would find a descriptor ready. It belongs to
 * the runtime: do not close it. -1 when there is none (a build with poll(2)) or it cannot be had. */
OPERO_API int opero_pollfd(lua_State *L);

/* Nanoseconds until opero_step should be called, whatever the descriptor says: 0 for at once, -1
 * when no task waits for time. */
OPERO_API int64_t opero_deadline_ns(lua_State *L);

/* The number of tasks that have not ended. */
OPERO_API size_t opero_live(lua_State *L);

#ifdef __cplusplus
}
#endif

#endif
