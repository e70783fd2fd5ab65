/*
 * The context of records, from Lua: scopes of fields, correlation ids. See context.h for the data and
 * runtime.h for the calling convention.
 */
#ifndef OPERO_TRACING_H
#define OPERO_TRACING_H

#include "runtime.h"

#pragma GCC visibility push(hidden)

/* Exchanges the context of the code that runs for that one; both references change hands. False:
 * memory is short, and nothing has changed. */
bool tracing_exchange(Runtime *runtime, Context **context);

/* The context of the code that runs, with a reference for the caller; may be NULL. */
Context *tracing_keep(const Runtime *runtime);

/* Adds add_context, remove_context, push_context, get_context, correlation_id and execution to the
 * table at stack index `module`. */
void tracing_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
