/*
 * Lua values to bytes and back, for processes of one program on one machine.
 *
 * What travels: nil, booleans, integers, floats (every bit pattern), strings, tables with all their
 * cycles and shared parts, objects of registered classes, Lua functions with their upvalues, and,
 * by name, what loaded modules hold. What does not is refused before there is a byte of it to send.
 *
 * By name travel: a loaded module (what package.loaded has, by identity); a function or a userdata,
 * light ones too, that is a field of one; a class; the globals table, which becomes the globals
 * table over there. For that is also taken an _ENV with a metatable of its own, the environment that
 * a test runner or a sandbox gave a function. All else travels as what it is: a table that is a
 * field of a module, or a Lua function that is a global. A module that was loaded after the codec
 * last looked, and that is nothing but data, may travel as data: the codec looks before it sends a
 * function as code, and before it refuses anything.
 *
 * A class is a metatable with a name (core.register_class; errors.class does it). Its objects travel
 * as their fields and the name. Of several classes of one name the later ones are numbered in the
 * order of their making, which the two processes have to share to tell them apart. When the name is
 * unknown over there: if the class has a base, or that has one, which is known there, it is stood in
 * for by a class of the same name derived from that (it has none of the methods, but the object goes
 * back home as one of the real class; a real class of that name takes its place once it is made);
 * else the message is refused.
 *
 * The bytes: in the order of bytes and in the numbers' formats of the machine. A message is a
 * version, a count and that many values; codec_parts.h has the rest.
 *
 * All errors are Lua errors: SerializationError, or the string "not enough memory". No function here
 * needs a closure made by runtime_push_function, and none of them suspends.
 */
#ifndef OPERO_CODEC_H
#define OPERO_CODEC_H

#include <lua.h>

#include <stdbool.h>
#include <stddef.h>

#pragma GCC visibility push(hidden)

/* Strings at least this long need not be copied into a message. */
#define CODEC_SEGMENT_MIN ((size_t)64 * 1024)

/* A string that belongs into a message after the first `at` of its own bytes. */
typedef struct CodecSegment {
    size_t at;
    const char *bytes;
    size_t length;
} CodecSegment;

/*
 * A buffer to encode into. All zeros is an empty one. It belongs to the caller, who lets go of it
 * with codec_message_free: as a Lua error may come at any time, keep it where a __gc finds it.
 * Several encodings, and the caller's own bytes, may stand in it one after the other.
 */
typedef struct CodecMessage {
    char *bytes;
    size_t length, capacity;
    CodecSegment *segments; /* in order of `at` */
    size_t segment_count, segment_capacity;
    size_t segmented; /* bytes in segments: `length` and this is what there is to send */
} CodecMessage;

typedef struct CodecEncoding {
    /* What a value is called in the message of an error: "argument". NULL: "value". */
    const char *what;
    /* The first value is the function that is called with the others: these are numbered from 1. */
    bool leads_with_function;
    /* Index of a table whose keys are values the other side has: they are sent as the integer, from
     * 0 to 2^32 - 1, that is their value. Functions, tables, userdata and threads are looked up. 0:
     * none. */
    int known;
    /* Those from this number on count as unknown all the same. 0: no limit. */
    uint32_t known_limit;
    /* Refuse functions, those with a name too. */
    bool refuses_functions;
    /* Index of a table; long strings then become segments instead of being copied, and are kept
     * alive in there: that of message->segments[i] at [i + 1]. 0: copy. */
    int anchors;
    size_t segment_min; /* 0: CODEC_SEGMENT_MIN */
} CodecEncoding;

typedef struct CodecDecoding {
    /* Take functions, which are bytecode that nothing checks, and load modules that are asked for.
     * Otherwise a message with a function in it, known ones aside, or with the name of a module that
     * is not loaded, is refused. */
    bool functions;
    /* Index of a table with the values that were sent as integers. 0: none. */
    int known;
} CodecDecoding;

/* Appends `count` values, from stack index `first` on, to the message. Leaves the stack as it was.
 * When it raises an error, message->length, segment_count and segmented are what they were, and so
 * is all of the message up to there. `options` may be NULL. Calls no Lua code but finalizers. */
void codec_encode(lua_State *L, int first, int count, CodecMessage *message,
                  const CodecEncoding *options);

/* Pushes the values of one encoding and returns their number. The bytes can be anything; they must
 * stay where they are until it is done. The memory it takes is in proportion to their length,
 * however hostile they are. (It cannot help that Lua's tables have keys that collide.) May call
 * `require`. `options` may be NULL. */
int codec_decode(lua_State *L, const char *bytes, size_t length, const CodecDecoding *options);

#define CODEC_VERSION 1
#define CODEC_COUNT_WIDE 0xff /* the count follows in 4 bytes */

/* ---- scalars on their own ---------------------------------------------------------------------- *
 *
 * For many small values, one after the other. A message of fewer than CODEC_COUNT_WIDE scalars is
 * the version, their number, each in a byte, and they. */

#define CODEC_SCALAR_MAX 65 /* bytes of one */

/* Writes the value at `index` to where there is room for CODEC_SCALAR_MAX bytes, if it is nil, a
 * boolean, a number or a short string. Returns how many bytes it takes, 0 for any other. */
size_t codec_put_scalar(lua_State *L, int index, char *to);

/* How many bytes the scalar takes that stands at `bytes`; 0 when there is none, or not all of it. */
size_t codec_scalar_length(const char *bytes, size_t length);

/* Pushes the scalar that stands at `bytes`, of that length, and returns it; 0 when there is none. */
size_t codec_get_scalar(lua_State *L, const char *bytes, size_t length);

/* Not the first byte of any scalar. */
#define CODEC_NO_SCALAR 0x0c

/* Makes room for `length` more bytes; false when there is no memory for it. */
bool codec_message_reserve(CodecMessage *message, size_t length);

/* Empties it; keeps its memory when that is not much. */
void codec_message_clear(CodecMessage *message);

/* Empties it and gives its memory back. */
void codec_message_free(CodecMessage *message);

/* Adds encode, encode_with, decode, register_class and set_class_maker to the table at stack index
 * `module`; they are for the Lua layer and for specs. */
void codec_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
