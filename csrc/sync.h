/*
 * What tasks use to wait for each other: semaphores, channels, events.
 *
 * Waiters are served in the order in which they came. A waiter that is cancelled or times out
 * leaves its queue at once; if it had been handed something but not yet run, that goes to the
 * next in line, in its old place.
 */
#ifndef OPERO_SYNC_H
#define OPERO_SYNC_H

#include "task.h"

#pragma GCC visibility push(hidden)

/* Adds semaphore, channel and event to the table at stack index `module`. */
void sync_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
