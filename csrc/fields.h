/*
 * The fields of log records, as bytes: names and values, in a form that knows neither Lua nor any
 * format of logs.
 *
 * Fields are a sequence of pairs, each a string and a value. A value is a tag and what belongs to it:
 * numbers in the machine's format; strings, lists and maps with their length in 4 bytes. A list is a
 * sequence of values, a map one of fields. Who reads them may be given anything: what is malformed
 * reads as the end.
 */
#ifndef OPERO_FIELDS_H
#define OPERO_FIELDS_H

#include "bytes.h"

#pragma GCC visibility push(hidden)

typedef enum ValueKind {
    VALUE_NIL,
    VALUE_FALSE,
    VALUE_TRUE,
    VALUE_INTEGER,
    VALUE_FLOAT,
    VALUE_STRING,
    VALUE_LIST,
    VALUE_MAP,
} ValueKind;

typedef struct Value {
    ValueKind kind;
    union {
        int64_t integer;
        double number;
        Slice bytes; /* of a string; what a list or a map consists of */
    } as;
} Value;

/* ---- writing --------------------------------------------------------------------------------- */

void fields_put_nil(Bytes *bytes);
void fields_put_boolean(Bytes *bytes, bool value);
void fields_put_integer(Bytes *bytes, int64_t value);
void fields_put_number(Bytes *bytes, double value);
void fields_put_string(Bytes *bytes, Slice value); /* a name, too */

/* Begins a list or a map, and ends the one that began at that place. */
size_t fields_begin(Bytes *bytes, ValueKind kind);
void fields_end(Bytes *bytes, size_t place);

/* Brings the fields from `start` on into the order of their names. Of several of one name the first
 * stays, and the others go. */
void fields_sort(Bytes *bytes, size_t start);

/* ---- reading --------------------------------------------------------------------------------- */

/* Takes the first value, or field, off the slice. False at the end. */
bool fields_next_value(Slice *rest, Value *value);
bool fields_next(Slice *rest, Slice *name, Value *value);

/* Looks for the first field of that name. */
bool fields_find(Slice fields, Slice name, Value *value);

/* Appends the fields of `base` whose names are not among those of `over`, then those, in the order of
 * their names. Both must be in that order. */
void fields_merge(Bytes *bytes, Slice base, Slice over);

#pragma GCC visibility pop

#endif
