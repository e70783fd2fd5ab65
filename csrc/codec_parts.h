/*
 * What the parts of the codec share: the format, and the catalogue of what has a name.
 *
 * A value is a tag and what follows it. Even tags of what can be referred to (IS_SHARED and on) have
 * an odd twin: that it is referred to, so that the decoder keeps only those. A reference gives the
 * place of that tag, counted from the version byte.
 */
#ifndef OPERO_CODEC_PARTS_H
#define OPERO_CODEC_PARTS_H

#include "codec.h"

#include <stdint.h>

#pragma GCC visibility push(hidden)

enum {
    TAG_NIL,
    TAG_FALSE,
    TAG_TRUE,
    TAG_INT8,
    TAG_INT16,
    TAG_INT32,
    TAG_INT64,
    TAG_FLOAT,
    TAG_STRING8, /* length in 1 byte, bytes */
    TAG_REF32,   /* place in 4 bytes */
    TAG_REF64,   /* place in 8 bytes */
    TAG_KNOWN,   /* id in 4 bytes */
    TAG_GLOBALS, /* the globals table */
    TAG_UPVALUE, /* only where an upvalue is due: place of a function in 8 bytes, index in 1; it
                     is the same upvalue as that one of that function */
    TAG_IS_SHARED,
    TAG_STRING32 = TAG_IS_SHARED,     /* length in 4 bytes, bytes */
    TAG_STRING64 = TAG_IS_SHARED + 2, /* length in 8 bytes, bytes */
    TAG_TABLE = TAG_IS_SHARED + 4,    /* number of pairs in 4 bytes, pairs of key and value */
    TAG_MIXED = TAG_IS_SHARED + 6,    /* number of elements and of pairs, elements, pairs */
    TAG_OBJECT = TAG_IS_SHARED + 8, /* the same, then its class: TAG_CLASS or a reference to one */
    TAG_FUNCTION = TAG_IS_SHARED + 10, /* length of code in 4 bytes, checksum in 8, number of
                                          upvalues in 1, code, upvalues */
    TAG_MODULE = TAG_IS_SHARED + 12,   /* text (its length in 4 bytes, then the bytes) */
    TAG_FIELD = TAG_IS_SHARED + 14,    /* text of the module, text of the field */
    TAG_CLASS = TAG_IS_SHARED + 16,    /* text, number of bases in 1 byte, texts of them */
    TAG_END = TAG_IS_SHARED + 18,
    TAG_STRING = 0x40, /* and the length, up to STRING_SHORT_MAX; bytes */
    TAG_SMALL = 0x80,  /* and the integer, up to SMALL_MAX */
};

#define STRING_SHORT_MAX 0x3f
#define STRING8_MAX 0xff
#define SMALL_MAX 0x7f
#define CLASS_BASES_MAX 0xff

/* Over code: what was damaged must not reach the VM's loader. */
uint64_t codec_checksum(const char *bytes, size_t length);

/* ---- the codec of a state ---------------------------------------------------------------------- */

typedef enum EntryKind { ENTRY_MODULE, ENTRY_FIELD, ENTRY_CLASS } EntryKind;

/* One thing that has a name. It may be gone by now: see catalogue_holds. */
typedef struct Entry {
    uintptr_t key;  /* codec_identity of the thing; 0: the entry is free */
    uint32_t names; /* where its names stand in the list of them: module, field */
    uint32_t kind;  /* EntryKind */
} Entry;

/* Where in the message a thing stands that can be referred to. */
typedef struct Memo {
    uintptr_t key;
    size_t at;           /* its tag in message->bytes; of an upvalue: its function's */
    size_t place;        /* the same, counted as references do */
    uint32_t generation; /* of another message, the memo is void */
    uint32_t index;      /* of an upvalue */
} Memo;

typedef struct EncodeFrame {
    size_t at;       /* its tag in message->bytes */
    size_t elements; /* of a function: upvalues written */
    size_t pairs;    /* of a function: upvalues it has */
    uint8_t kind;
    bool is_object;
} EncodeFrame;

typedef struct Codec { /* a userdata in the registry; see CODEC_... for its user values */
    Entry *entries;
    uint32_t entry_capacity, entry_count, name_count; /* the capacity is a power of 2 */
    uint64_t fingerprint;                             /* of package.loaded when it was read */
    bool is_built;
    bool is_closed;
    /* What an encoding works with. No Lua code runs while it does. */
    Memo *memos;
    size_t memo_capacity, memo_count; /* the capacity is a power of 2 */
    uint32_t generation;
    EncodeFrame *frames;
    size_t frame_capacity;
} Codec;

enum {                    /* user values of the codec */
       CODEC_NAMES = 1,   /* list of module, field or false, module, ... */
       CODEC_LOADED,      /* package.loaded */
       CODEC_CLASS_NAMES, /* class (weak): name */
       CODEC_CLASSES,     /* name: class (weak) */
       CODEC_BASES,       /* class (weak): the class it is derived from */
       CODEC_COUNTS,      /* name: number of classes that were given it */
       CODEC_STAND_INS,   /* class (weak): true */
       CODEC_MAKER,       /* makes a stand-in, of a name and a base */
       CODEC_SPILL,       /* what an encoding has no room for on the stack */
       CODEC_USER_VALUES = CODEC_SPILL,
};

/* The codec of this state, made on first use; pushes it. */
Codec *codec_open(lua_State *L);

/* The identity of a value that has one, never 0. */
static inline uintptr_t codec_identity(lua_State *L, int index, int type) {
    uintptr_t pointer = (uintptr_t)lua_topointer(L, index);
    return type == LUA_TLIGHTUSERDATA ? ~pointer : pointer;
}

static inline size_t codec_hash(uintptr_t key) {
    uint64_t mixed = (uint64_t)key * 0x9e3779b97f4a7c15;
    return (size_t)(mixed ^ mixed >> 32);
}

/* ---- the catalogue; `codec` is the index of the codec ------------------------------------------ */

/* Whether modules were loaded or dropped since it was read. Allocates nothing. */
bool catalogue_is_outdated(lua_State *L, int codec);

/* Reads it anew. May run finalizers, but only when it is done. */
void catalogue_build(lua_State *L, int codec);

/* The entry of this identity, or NULL. */
const Entry *catalogue_find(const Codec *codec, uintptr_t key);

/* Whether the value at `index` is what the entry says. Allocates nothing. */
bool catalogue_holds(lua_State *L, int codec, const Entry *entry, int index);

/* Pushes the n-th name of the entry, 0 that of the module, 1 that of the field. */
const char *catalogue_push_name(lua_State *L, int codec, const Entry *entry, int n, size_t *length);

/* Pushes the name of the class at `index`, or nil; its base, or nil. Returns the type. */
int class_push_name(lua_State *L, int codec, int index);
int class_push_base(lua_State *L, int codec, int index);

/* Replaces the name on the top of the stack by the class; false, and no change, if there is none. */
bool class_find(lua_State *L, int codec);

/* Pops a name and, below it, a base, and pushes a class to stand in for that of this name. */
void class_stand_in(lua_State *L, int codec);

/* ---- the stack beyond the stack ---------------------------------------------------------------- */

#define RESIDENT_MAX 64 /* levels of nesting that are kept on the Lua stack */

/* Moves `count` values from above stack index `floor` to the table `spill`, which has `*spilled`;
 * and back, when nothing is left on the stack there. */
void stack_spill(lua_State *L, int floor, int count, int spill, lua_Integer *spilled);
void stack_unspill(lua_State *L, int count, int spill, lua_Integer *spilled);

/* Makes room for `count` more values, or raises what is the matter: luaL_checkstack calls a lack of
 * memory a stack overflow. */
void stack_reserve(lua_State *L, int count);

/* Adds register_class and set_class_maker to the table at stack index `module`. */
void catalogue_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
