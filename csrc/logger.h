/* Loggers as Lua has them. See log.h. */
#ifndef OPERO_LOGGER_H
#define OPERO_LOGGER_H

#include "runtime.h"

#pragma GCC visibility push(hidden)

/* Adds logger, adapter and logger_methods, the table of methods, to the table at index `module`. */
void logger_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
