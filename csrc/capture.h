/*
 * Lua values as the fields and messages of log records.
 *
 * Any value can be captured. Tables without a __tostring or a __name become lists or maps, down to
 * CAPTURE_DEPTH levels; what is deeper, or goes round in a circle, is said to be so. Everything else
 * that is no scalar becomes what tostring makes of it. Long strings and long tables are cut, and it is
 * said where.
 *
 * These functions may call Lua code, the __tostring of values; an error in there is caught, but memory
 * errors may come from them, and other code may run while they do.
 */
#ifndef OPERO_CAPTURE_H
#define OPERO_CAPTURE_H

#include "record.h"

#include <lua.h>

#pragma GCC visibility push(hidden)

#define CAPTURE_DEPTH 8           /* levels of tables in a field */
#define CAPTURE_ENTRIES 100       /* of a table */
#define CAPTURE_NAME_MAX 200      /* bytes of a name */
#define CAPTURE_STRING_MAX 8192   /* bytes of a string */
#define CAPTURE_MESSAGE_MAX 16384 /* bytes of a message */
#define CAPTURE_TOTAL_MAX 65536   /* bytes of all fields that are captured at once */

/* Whether the error on the top of the stack is for more than the call in which it was raised: Ctrl-C, as
 * the stand-alone interpreter raises it, or a cancellation. */
bool capture_ends_more(lua_State *L);

/* Whether the value is taken for fields: a table, and not one that tostring can show. */
bool capture_is_fields(lua_State *L, int index);

/* Appends the fields of the table, in the order of their names. */
void capture_fields(lua_State *L, int index, Bytes *bytes);

/* Appends the message that the values from `first` to `last` make: a format, as string.format has it,
 * and its arguments. True: there is a table more than it has room for, at `last`, which is the fields.
 * Arguments too many or too few, or of a wrong type, are no error: they are shown as they are. A format
 * alone is shown as it is, but for "%%". `scratch` is written over. */
bool capture_message(lua_State *L, int first, int last, Bytes *message, Bytes *scratch,
                     const Secrets *secrets);

/* Pushes a table of the fields. */
void capture_push(lua_State *L, Slice fields, const Secrets *secrets);

/* Sets a field of the table at `index`, which must be absolute. */
void capture_set(lua_State *L, int index, Slice name, const Value *value, const Secrets *secrets);

#pragma GCC visibility pop

#endif
