#include "codec_parts.h"

#include <lauxlib.h>
#include <string.h>

#include "runtime.h"

/*
 * Every value in a message takes a byte of it or more. So the decoder counts the values that are
 * still owed, by all tables that are open together, and refuses a table that promises more of them
 * than there are bytes left. What it allocates in advance is thus in proportion to the message.
 *
 * A table is put into what holds it as soon as it is made, and filled then. For what is open there
 * is a stack of frames as in encode.c; on the Lua stack they have one slot, for the table or the
 * function, and two while a key that is a table itself is being read.
 */
typedef struct DecodeFrame {
    uint32_t elements, pairs; /* left; of a function's upvalues: left */
    uint32_t index;           /* of the last element or upvalue */
    uint8_t kind;
    uint8_t slots;
    bool is_object;
} DecodeFrame;

enum { IN_ELEMENTS, AT_KEY, AT_VALUE, IN_UPVALUES };

#define FRAMES_AT_FIRST 24
#define STACK_MAX                                                                                  \
    (LUAI_MAXSTACK / 4 * 3)     /* of the Lua stack; the functions that called need some */
#define SIZE_HINT_MAX (1 << 26) /* of a table; more than that it grows to when there is more */

typedef struct Decoder {
    lua_State *L;
    const char *start, *at, *end;
    size_t owed; /* values */
    const CodecDecoding *options;
    DecodeFrame *frames;
    size_t depth, capacity, resident;
    lua_Integer spilled;
    int base;          /* the slots below, then the values, then the frames' slots */
    DecodeFrame first; /* the frame to be opened for the value that was just made */
    DecodeFrame frames_at_first[FRAMES_AT_FIRST];
} Decoder;

enum { /* slots above the base */
       SLOT_CODEC = 1,
       SLOT_REFERRED, /* place: value, of those that are referred to; nil before there is one */
       SLOT_SPILL,    /* table, or nil before it is needed */
       SLOT_FRAMES,   /* userdata, or nil while the frames are in the decoder */
       SLOTS = SLOT_FRAMES,
};

/* ---- errors ------------------------------------------------------------------------------------ */

static int refuse(Decoder *d, const char *message) {
    runtime_push_error(d->L, "SerializationError", message, NULL);
    return lua_error(d->L);
}

static int malformed(Decoder *d, const char *what) {
    return refuse(d, lua_pushfstring(d->L, "malformed message: %s, at byte %I of %I", what,
                                     (LUAI_UACINT)(d->at - d->start),
                                     (LUAI_UACINT)(d->end - d->start)));
}

/* Makes room on the Lua stack for so many values and for what a function here needs. That is more
 * than it needs: enough to say so when there is none. */
static void check_stack(Decoder *d, int count) {
    if (count > STACK_MAX - lua_gettop(d->L))
        malformed(d, "it needs too much of the stack");
    stack_reserve(d->L, count + 40);
}

/* ---- bytes ------------------------------------------------------------------------------------- */

static inline size_t left(const Decoder *d) {
    return (size_t)(d->end - d->at);
}

/* Steps over that many bytes. */
static inline const char *take(Decoder *d, size_t length) {
    const char *bytes = d->at;
    if (left(d) < length)
        malformed(d, "it is cut short");
    d->at += length;
    return bytes;
}

static inline unsigned take_u8(Decoder *d) {
    return (unsigned char)*take(d, 1);
}

static inline uint32_t take_u32(Decoder *d) {
    uint32_t value;
    memcpy(&value, take(d, sizeof value), sizeof value);
    return value;
}

static inline uint64_t take_u64(Decoder *d) {
    uint64_t value;
    memcpy(&value, take(d, sizeof value), sizeof value);
    return value;
}

static inline void push_string(Decoder *d, size_t length) {
    const char *bytes = take(d, length);
    lua_pushlstring(d->L, bytes, length);
}

/* More values are due. */
static inline void owe(Decoder *d, size_t elements, size_t pairs) {
    d->owed += elements + pairs * 2; /* no overflow: each is below 2^33, and a table is 9 bytes */
    if (d->owed > left(d))
        malformed(d, "it promises more values than it has bytes");
}

/* ---- references -------------------------------------------------------------------------------- */

/* The value on the top of the stack, whose tag is at `place`, is referred to. */
static void keep(Decoder *d, size_t place) {
    lua_State *L = d->L;
    if (lua_isnil(L, d->base + SLOT_REFERRED)) {
        lua_newtable(L);
        lua_replace(L, d->base + SLOT_REFERRED);
    }
    lua_pushvalue(L, -1);
    lua_rawseti(L, d->base + SLOT_REFERRED, (lua_Integer)place);
}

static void push_referred(Decoder *d, uint64_t place) {
    lua_State *L = d->L;
    if (place >= (size_t)(d->at - d->start) || lua_isnil(L, d->base + SLOT_REFERRED) ||
        lua_rawgeti(L, d->base + SLOT_REFERRED, (lua_Integer)place) == LUA_TNIL)
        malformed(d, "it refers to nothing");
}

/* ---- names ------------------------------------------------------------------------------------- */

/* Pushes the module of the name on the top of the stack; loads it if that is allowed. */
static void push_module(Decoder *d) {
    lua_State *L = d->L;
    int name = lua_gettop(L);
    lua_getiuservalue(L, d->base + SLOT_CODEC, CODEC_LOADED);
    lua_pushvalue(L, name);
    if (lua_rawget(L, -2) == LUA_TNIL) {
        if (!d->options->functions)
            refuse(d, lua_pushfstring(L, "module '%s' is not loaded here, and no code is accepted",
                                      lua_tostring(L, name)));
        lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
        lua_pushliteral(L, "require");
        lua_rawget(L, -2);
        lua_pushvalue(L, name);
        if (lua_pcall(L, 1, 1, 0) != LUA_OK) {
            const char *message =
                lua_pushfstring(L, "module '%s' cannot be loaded here: %s", lua_tostring(L, name),
                                luaL_tolstring(L, -1, NULL));
            lua_pushvalue(L, -3);
            runtime_push_error(L, "SerializationError", message, "cause");
            lua_error(L);
        }
    }
    lua_replace(L, name + 1);
    lua_settop(L, name + 1);
}

/* A function must not come in by its name either when none are accepted. */
static void check_named(Decoder *d) {
    if (lua_isfunction(d->L, -1) && !d->options->functions)
        refuse(d, "the message has a function, and none are accepted here");
}

static void read_module(Decoder *d) {
    push_string(d, take_u32(d));
    push_module(d);
    check_named(d);
    lua_replace(d->L, -2);
}

static void read_field(Decoder *d) {
    lua_State *L = d->L;
    int module = lua_gettop(L) + 1;
    push_string(d, take_u32(d));
    push_string(d, take_u32(d));
    lua_pushvalue(L, module);
    push_module(d);
    if (lua_istable(L, -1)) {
        lua_pushvalue(L, module + 1);
        lua_rawget(L, -2);
    } else
        lua_pushnil(L);
    if (lua_isnil(L, -1))
        refuse(d, lua_pushfstring(L, "module '%s' has no field '%s' here", lua_tostring(L, module),
                                  lua_tostring(L, module + 1)));
    check_named(d);
    lua_replace(L, module);
    lua_settop(L, module);
}

static int make_stand_in(lua_State *L) { /* codec, base, name */
    class_stand_in(L, 1);
    return 1;
}

/* Pushes the class; one that is unknown is stood in for when one of its bases is known. */
static void read_class(Decoder *d) {
    lua_State *L = d->L;
    int codec = d->base + SLOT_CODEC, name = lua_gettop(L) + 1;
    unsigned bases;
    bool is_found;
    push_string(d, take_u32(d));
    is_found = class_find(L, codec);
    bases = take_u8(d);
    check_stack(d, (int)bases);
    for (unsigned i = 0; i < bases; i++) {
        uint32_t length = take_u32(d);
        const char *bytes = take(d, length);
        if (!is_found) { /* else the rest is of no interest */
            lua_pushlstring(L, bytes, length);
            is_found = class_find(L, codec);
        }
    }
    if (!is_found)
        refuse(d, lua_pushfstring(L, "there is no class '%s' here", lua_tostring(L, name)));
    while (lua_gettop(L) > name) { /* name, ..., name, class */
        lua_pushcfunction(L, make_stand_in);
        lua_insert(L, -3);
        lua_pushvalue(L, codec);
        lua_insert(L, -3);
        lua_insert(L, -2); /* make_stand_in, codec, class, name */
        if (lua_pcall(L, 3, 1, 0) != LUA_OK)
            refuse(d, lua_pushfstring(L, "there is no class to stand in for an unknown one: %s",
                                      luaL_tolstring(L, -1, NULL)));
    }
}

static void read_known(Decoder *d) {
    uint32_t id = take_u32(d);
    if (d->options->known == 0 || lua_rawgeti(d->L, d->options->known, id) == LUA_TNIL)
        malformed(d, "it has a value that should be known here");
}

/* ---- tables and functions ---------------------------------------------------------------------- */

static inline int hint(uint32_t count) {
    return count < SIZE_HINT_MAX ? (int)count : SIZE_HINT_MAX;
}

/* These push the value and prepare the frame for what it holds. */

static void read_table(Decoder *d, int tag) {
    bool is_object = (tag & ~1) == TAG_OBJECT;
    uint32_t elements = (tag & ~1) == TAG_TABLE ? 0 : take_u32(d), pairs = take_u32(d);
    owe(d, elements + (size_t)is_object, pairs);
    lua_createtable(d->L, hint(elements), hint(pairs));
    d->first = (DecodeFrame){.elements = elements,
                             .pairs = pairs,
                             .kind = elements > 0 ? IN_ELEMENTS : AT_KEY,
                             .slots = 1,
                             .is_object = is_object};
}

typedef struct Code {
    const char *bytes;
    size_t length;
} Code;

static const char *read_code(lua_State *L, void *data, size_t *length) {
    Code *code = data;
    (void)L;
    *length = code->length;
    code->length = 0;
    return *length > 0 ? code->bytes : NULL;
}

static int upvalue_count(lua_State *L, int index) {
    lua_Debug debug;
    lua_pushvalue(L, index);
    lua_getinfo(L, ">u", &debug);
    return debug.nups;
}

static void read_function(Decoder *d) {
    lua_State *L = d->L;
    Code code;
    uint64_t checksum;
    unsigned upvalues;
    if (!d->options->functions)
        refuse(d, "the message has a function, and none are accepted here");
    code.length = take_u32(d);
    checksum = take_u64(d);
    upvalues = take_u8(d);
    code.bytes = take(d, code.length);
    owe(d, upvalues, 0);
    if (codec_checksum(code.bytes, code.length) != checksum)
        malformed(d, "it has a function that was damaged");
    switch (lua_load(L, read_code, &code, "=?", "b")) {
    case LUA_OK:
        break;
    case LUA_ERRMEM:
        lua_error(L);
        break;
    default:
        refuse(d, lua_pushfstring(L, "a function cannot be loaded here: %s",
                                  luaL_tolstring(L, -1, NULL)));
    }
    if (upvalue_count(L, -1) != (int)upvalues)
        malformed(d, "it has a function with other upvalues");
    d->first = (DecodeFrame){.elements = upvalues, .kind = IN_UPVALUES, .slots = 1};
}

/* Makes the frame's next upvalue the same as one of another function. */
static void read_upvalue(Decoder *d, const DecodeFrame *frame) {
    lua_State *L = d->L;
    uint64_t place = take_u64(d);
    unsigned index = take_u8(d);
    push_referred(d, place);
    if (!lua_isfunction(L, -1) || lua_iscfunction(L, -1) || index == 0 ||
        (int)index > upvalue_count(L, -1))
        malformed(d, "it refers to no upvalue");
    lua_upvaluejoin(L, -2, (int)frame->index, -1, (int)index);
    lua_pop(L, 1);
}

/* ---- values ------------------------------------------------------------------------------------ */

size_t codec_scalar_length(const char *bytes, size_t length) {
    static const uint8_t lengths[] = {
        [TAG_NIL] = 1,   [TAG_FALSE] = 1, [TAG_TRUE] = 1,  [TAG_INT8] = 2,
        [TAG_INT16] = 3, [TAG_INT32] = 5, [TAG_INT64] = 9, [TAG_FLOAT] = 9};
    unsigned tag;
    size_t needed = 0;
    if (length == 0)
        return 0;
    tag = (unsigned char)*bytes;
    if (tag >= TAG_SMALL)
        needed = 1;
    else if (tag >= TAG_STRING)
        needed = 1 + tag - TAG_STRING;
    else if (tag < sizeof lengths)
        needed = lengths[tag];
    return needed <= length ? needed : 0;
}

size_t codec_get_scalar(lua_State *L, const char *bytes, size_t length) {
    size_t taken = codec_scalar_length(bytes, length);
    unsigned tag;
    if (taken == 0)
        return 0;
    tag = (unsigned char)*bytes++;
    if (tag >= TAG_SMALL) {
        lua_pushinteger(L, (lua_Integer)tag - TAG_SMALL);
        return taken;
    }
    if (tag >= TAG_STRING) {
        lua_pushlstring(L, bytes, taken - 1);
        return taken;
    }
    switch (tag) {
    case TAG_NIL:
        lua_pushnil(L);
        break;
    case TAG_FALSE:
    case TAG_TRUE:
        lua_pushboolean(L, tag == TAG_TRUE);
        break;
    case TAG_INT8:
        lua_pushinteger(L, *(const signed char *)bytes);
        break;
    case TAG_INT16: {
        int16_t value;
        memcpy(&value, bytes, sizeof value);
        lua_pushinteger(L, value);
        break;
    }
    case TAG_INT32: {
        int32_t value;
        memcpy(&value, bytes, sizeof value);
        lua_pushinteger(L, value);
        break;
    }
    case TAG_INT64: {
        int64_t value;
        memcpy(&value, bytes, sizeof value);
        lua_pushinteger(L, (lua_Integer)value);
        break;
    }
    default: { /* TAG_FLOAT */
        lua_Number value;
        memcpy(&value, bytes, sizeof value);
        lua_pushnumber(L, value);
        break;
    }
    }
    return taken;
}

/* Pushes what can be referred to. Returns whether a frame is to be opened for it. */
static bool read_referable(Decoder *d, int tag) {
    size_t place = (size_t)(d->at - d->start) - 1;
    bool is_open = false;
    switch (tag & ~1) {
    case TAG_STRING32:
        push_string(d, take_u32(d));
        break;
    case TAG_STRING64: {
        uint64_t length = take_u64(d);
        if (length > left(d))
            malformed(d, "it is cut short");
        push_string(d, (size_t)length);
        break;
    }
    case TAG_TABLE:
    case TAG_MIXED:
    case TAG_OBJECT:
        read_table(d, tag);
        is_open = true;
        break;
    case TAG_FUNCTION:
        read_function(d);
        is_open = true;
        break;
    case TAG_MODULE:
        read_module(d);
        break;
    case TAG_FIELD:
        read_field(d);
        break;
    case TAG_CLASS:
        read_class(d);
        break;
    default:
        malformed(d, "it has a value of no known type");
    }
    if (tag & 1)
        keep(d, place);
    return is_open;
}

/* Pushes the next value. Returns whether a frame is to be opened for it. */
static inline bool read_value(Decoder *d) {
    lua_State *L = d->L;
    size_t scalar = codec_get_scalar(L, d->at, left(d));
    int tag;
    d->owed--;
    if (scalar > 0) {
        d->at += scalar;
        return false;
    }
    tag = (int)take_u8(d);
    switch (tag) {
    case TAG_STRING8:
        push_string(d, take_u8(d));
        return false;
    case TAG_REF32:
        push_referred(d, take_u32(d));
        return false;
    case TAG_REF64:
        push_referred(d, take_u64(d));
        return false;
    case TAG_KNOWN:
        read_known(d);
        return false;
    case TAG_GLOBALS:
        lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
        return false;
    case TAG_UPVALUE:
        malformed(d, "it has an upvalue where there is no function");
        return false;
    default:
        if (tag < TAG_IS_SHARED || tag >= TAG_STRING)
            malformed(d, "it is cut short");
        return read_referable(d, tag);
    }
}

/* ---- frames ------------------------------------------------------------------------------------ */

static void grow_frames(Decoder *d) {
    size_t capacity = d->capacity * 2;
    DecodeFrame *frames = lua_newuserdatauv(d->L, capacity * sizeof *frames, 0);
    memcpy(frames, d->frames, d->depth * sizeof *frames);
    lua_replace(d->L, d->base + SLOT_FRAMES);
    d->frames = frames;
    d->capacity = capacity;
}

/* What `count` frames from the `from`-th on have on the stack. */
static int count_slots(const Decoder *d, size_t from, size_t count) {
    int slots = 0;
    for (size_t i = 0; i < count; i++)
        slots += d->frames[from + i].slots;
    return slots;
}

/* Opens the frame that was prepared for the value on the top of the stack. */
static void open_frame(Decoder *d) {
    lua_State *L = d->L;
    if (d->depth == d->capacity)
        grow_frames(d);
    if (d->resident == RESIDENT_MAX) {
        int slots = count_slots(d, d->depth - RESIDENT_MAX, RESIDENT_MAX);
        if (lua_isnil(L, d->base + SLOT_SPILL)) {
            lua_newtable(L);
            lua_replace(L, d->base + SLOT_SPILL);
        }
        stack_spill(L, lua_gettop(L) - 1 - slots, slots, d->base + SLOT_SPILL, &d->spilled);
        d->resident = 0;
    }
    check_stack(d, 0);
    d->frames[d->depth++] = d->first;
    d->resident++;
}

static void close_frame(Decoder *d) {
    lua_pop(d->L, 1);
    d->depth--;
    d->resident--;
    if (d->resident == 0 && d->depth > 0) {
        size_t count = d->depth < RESIDENT_MAX / 2 ? d->depth : RESIDENT_MAX / 2;
        stack_unspill(d->L, count_slots(d, d->depth - count, count), d->base + SLOT_SPILL,
                      &d->spilled);
        d->resident = count;
    }
}

/* Reads the class of the object on the top of the stack. */
static void read_object_class(Decoder *d) {
    lua_State *L = d->L;
    int tag = left(d) > 0 ? (unsigned char)*d->at : TAG_NIL;
    bool is_class = (tag & ~1) == TAG_CLASS || tag == TAG_REF32 || tag == TAG_REF64;
    if (!is_class)
        malformed(d, "it has an object without a class");
    read_value(d);
    if (lua_type(L, -1) != LUA_TTABLE ||
        class_push_name(L, d->base + SLOT_CODEC, -1) != LUA_TSTRING)
        malformed(d, "it has an object without a class");
    lua_pop(L, 1);
    lua_setmetatable(L, -2);
}

static inline void check_key(Decoder *d) {
    lua_State *L = d->L;
    if (lua_isnil(L, -1) ||
        (lua_type(L, -1) == LUA_TNUMBER && lua_tonumber(L, -1) != lua_tonumber(L, -1)))
        malformed(d, "it has nil or NaN as a key");
}

/* These read on, up to a value that opens a frame or to the end of theirs. */

static bool read_pairs(Decoder *d, DecodeFrame *frame) {
    lua_State *L = d->L;
    while (frame->elements > 0) {
        bool is_open = read_value(d);
        frame->elements--;
        frame->index++;
        if (is_open) {
            lua_pushvalue(L, -1);
            lua_rawseti(L, -3, frame->index);
            return true;
        }
        lua_rawseti(L, -2, frame->index);
    }
    if (frame->kind == IN_ELEMENTS)
        frame->kind = AT_KEY;
    while (frame->pairs > 0) {
        if (frame->kind == AT_KEY) {
            bool is_open = read_value(d);
            check_key(d);
            frame->kind = AT_VALUE;
            if (is_open) {
                frame->slots = 2;
                lua_pushvalue(L, -1);
                return true;
            }
        }
        frame->kind = AT_KEY;
        frame->slots = 1;
        frame->pairs--;
        if (read_value(d)) {
            lua_pushvalue(L, -1);
            lua_insert(L, -3); /* table, value, key, value */
            lua_rawset(L, -4);
            return true;
        }
        lua_rawset(L, -3);
    }
    if (frame->is_object)
        read_object_class(d);
    close_frame(d);
    return false;
}

static bool read_upvalues(Decoder *d, DecodeFrame *frame) {
    lua_State *L = d->L;
    while (frame->elements > 0) {
        frame->elements--;
        frame->index++;
        if (left(d) > 0 && *d->at == TAG_UPVALUE) {
            d->at++;
            d->owed--;
            read_upvalue(d, frame);
        } else if (read_value(d)) {
            lua_pushvalue(L, -1);
            lua_setupvalue(L, -3, (int)frame->index);
            return true;
        } else
            lua_setupvalue(L, -2, (int)frame->index);
    }
    close_frame(d);
    return false;
}

/* Pushes the next value and reads all that it holds. */
static void read_tree(Decoder *d) {
    bool is_open = read_value(d);
    if (!is_open)
        return;
    lua_pushvalue(d->L, -1); /* the frame takes one */
    open_frame(d);
    while (d->depth > 0) {
        DecodeFrame *frame = &d->frames[d->depth - 1];
        is_open = frame->kind == IN_UPVALUES ? read_upvalues(d, frame) : read_pairs(d, frame);
        if (is_open)
            open_frame(d);
    }
}

int codec_decode(lua_State *L, const char *bytes, size_t length, const CodecDecoding *options) {
    CodecDecoding chosen = {.functions = false};
    Decoder d;
    size_t count;
    if (options != NULL)
        chosen = *options;
    stack_reserve(L, 40);
    if (chosen.known != 0)
        chosen.known = lua_absindex(L, chosen.known);
    d.L = L;
    d.start = d.at = bytes;
    d.end = bytes + length;
    d.owed = 0;
    d.options = &chosen;
    d.frames = d.frames_at_first;
    d.capacity = FRAMES_AT_FIRST;
    d.depth = d.resident = 0;
    d.spilled = 0;
    d.base = lua_gettop(L);
    codec_open(L);
    lua_settop(L, d.base + SLOTS);
    if (take_u8(&d) != CODEC_VERSION)
        malformed(&d, "it is of another version");
    count = take_u8(&d);
    if (count == CODEC_COUNT_WIDE)
        count = take_u32(&d);
    owe(&d, count, 0);
    check_stack(&d, count < INT32_MAX / 2 ? (int)count : INT32_MAX / 2);
    for (size_t i = 0; i < count; i++)
        read_tree(&d);
    if (d.at != d.end)
        malformed(&d, "it goes on after its end");
    lua_rotate(L, d.base + 1, (int)count);
    lua_pop(L, SLOTS);
    return (int)count;
}
