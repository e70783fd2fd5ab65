#include "codec_parts.h"

#include <lauxlib.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/*
 * The values are walked in order of depth, with a stack of frames for what is open. The Lua stack
 * has two slots for each: the table and the key at which it stands, or the function and nothing.
 * Those of deep levels move to a table, for the Lua stack has a limit.
 *
 * The walk allocates no Lua objects, so no finalizer runs that could change what is being walked.
 * When it turns out that the catalogue is out of date, which has to allocate, the walk starts anew.
 */
typedef struct Encoder {
    lua_State *L;
    Codec *codec;
    CodecMessage *message;
    const CodecEncoding *options;
    char *at, *limit;     /* where the next byte goes, and the end of the room */
    size_t start;         /* of this encoding in message->bytes */
    size_t segment_count; /* the message's, with those of this encoding */
    size_t segmented;     /* bytes in segments of this encoding */
    size_t depth;         /* open frames */
    size_t resident;      /* those of them that are on the Lua stack */
    lua_Integer spilled;  /* values in the spill table */
    const void *globals;
    int codec_index, spill, floor; /* stack indices; the frames are above `floor` */
    int root;                      /* which of the values is being written, from 0 */
    bool has_spilled;
    bool has_checked; /* that the catalogue is up to date */
    bool has_built;   /* it anew, for this message */
    bool is_restarting;
} Encoder;

enum {
    IN_ELEMENTS, /* its keys were 1, 2, 3 ... so far */
    IN_PAIRS,
    AT_KEY, /* a key that is a table or the like is being written; its value comes next */
    IN_UPVALUES,
};

/* ---- bytes ------------------------------------------------------------------------------------- */

bool codec_message_reserve(CodecMessage *message, size_t length) {
    size_t needed = message->length + length, capacity = message->capacity * 2;
    char *bytes;
    if (needed <= message->capacity)
        return true;
    if (needed < length)
        return false;
    if (capacity < needed)
        capacity = needed;
    if (capacity < 256)
        capacity = 256;
    bytes = realloc(message->bytes, capacity);
    if (bytes == NULL && capacity > needed) /* a tight fit may still do */
        bytes = realloc(message->bytes, capacity = needed);
    if (bytes == NULL)
        return false;
    message->bytes = bytes;
    message->capacity = capacity;
    return true;
}

void codec_message_clear(CodecMessage *message) {
    if (message->capacity > 64 * 1024 || message->segment_capacity > 64)
        codec_message_free(message);
    message->length = message->segment_count = message->segmented = 0;
}

void codec_message_free(CodecMessage *message) {
    free(message->bytes);
    free(message->segments);
    memset(message, 0, sizeof *message);
}

/* Until the encoding is whole, message->length stays what it was. */
static bool try_to_grow(Encoder *e, size_t length) {
    CodecMessage *message = e->message;
    size_t used = (size_t)(e->at - message->bytes), before = message->length;
    bool has_grown;
    message->length = used;
    has_grown = codec_message_reserve(message, length);
    message->length = before;
    if (has_grown) {
        e->at = message->bytes + used;
        e->limit = message->bytes + message->capacity;
    }
    return has_grown;
}

static inline bool has_room(const Encoder *e, size_t length) {
    return (size_t)(e->limit - e->at) >= length;
}

static inline void make_room(Encoder *e, size_t length) {
    if (!has_room(e, length) && !try_to_grow(e, length))
        luaL_error(e->L, "not enough memory");
}

/* These five write where there is room. */
static inline void put_tag(Encoder *e, int tag) {
    *e->at++ = (char)tag;
}

static inline void put_bytes(Encoder *e, const void *bytes, size_t length) {
    memcpy(e->at, bytes, length);
    e->at += length;
}

static inline void put_u32(Encoder *e, uint32_t value) {
    put_bytes(e, &value, sizeof value);
}

static inline void put_u64(Encoder *e, uint64_t value) {
    put_bytes(e, &value, sizeof value);
}

static inline void put_place(Encoder *e, size_t place) {
    if (place <= UINT32_MAX) {
        put_tag(e, TAG_REF32);
        put_u32(e, (uint32_t)place);
    } else {
        put_tag(e, TAG_REF64);
        put_u64(e, place);
    }
}

static inline void patch_u32(Encoder *e, size_t at, uint32_t value) {
    memcpy(e->message->bytes + at, &value, sizeof value);
}

static inline size_t position(const Encoder *e) {
    return (size_t)(e->at - e->message->bytes);
}

uint64_t codec_checksum(const char *bytes, size_t length) {
    uint64_t sum = length * 0x9e3779b97f4a7c15, word;
    for (; length > 0; bytes += sizeof word, length -= sizeof word) {
        word = 0;
        if (length < sizeof word) {
            memcpy(&word, bytes, length);
            length = sizeof word;
        } else
            memcpy(&word, bytes, sizeof word);
        sum = (sum ^ word) * 0xd6e8feb86659fd93;
        sum ^= sum >> 32;
    }
    return sum;
}

/* ---- memos: what was written, and where -------------------------------------------------------- */

static Memo *find_memo_slot(const Codec *codec, Memo *memos, size_t capacity, uintptr_t key) {
    size_t i = codec_hash(key) & (capacity - 1);
    while (memos[i].generation == codec->generation && memos[i].key != key)
        i = (i + 1) & (capacity - 1);
    return &memos[i];
}

static Memo *find_memo(const Encoder *e, uintptr_t key) {
    Memo *memo = find_memo_slot(e->codec, e->codec->memos, e->codec->memo_capacity, key);
    return memo->generation == e->codec->generation ? memo : NULL;
}

static void grow_memos(lua_State *L, Codec *codec) {
    size_t capacity = codec->memo_capacity == 0 ? 128 : codec->memo_capacity * 2;
    Memo *memos = calloc(capacity, sizeof *memos);
    if (memos == NULL)
        luaL_error(L, "not enough memory");
    for (size_t i = 0; i < codec->memo_capacity; i++)
        if (codec->memos[i].generation == codec->generation)
            *find_memo_slot(codec, memos, capacity, codec->memos[i].key) = codec->memos[i];
    free(codec->memos);
    codec->memos = memos;
    codec->memo_capacity = capacity;
}

static void forget_memos(lua_State *L, Codec *codec) {
    if (codec->memo_capacity > 64 * 1024) { /* a burst is over */
        free(codec->memos);
        codec->memos = NULL;
        codec->memo_capacity = 0;
    }
    if (codec->memo_capacity == 0) {
        codec->generation = 1;
        grow_memos(L, codec);
    } else if (++codec->generation == 0) {
        memset(codec->memos, 0, codec->memo_capacity * sizeof *codec->memos);
        codec->generation = 1;
    }
    codec->memo_count = 0;
}

/* Notes that the key's tag is at `at`; it is not noted yet. */
static void add_memo(Encoder *e, uintptr_t key, size_t at, size_t place, uint32_t index) {
    Codec *codec = e->codec;
    Memo *memo;
    if (codec->memo_count >= codec->memo_capacity / 2)
        grow_memos(e->L, codec);
    codec->memo_count++;
    memo = find_memo_slot(codec, codec->memos, codec->memo_capacity, key);
    memo->key = key;
    memo->generation = codec->generation;
    memo->at = at;
    memo->place = place;
    memo->index = index;
}

/* Notes that what the key stands for comes next. */
static void note_here(Encoder *e, uintptr_t key) {
    size_t at = position(e);
    add_memo(e, key, at, at - e->start + e->segmented, 0);
}

static void put_reference(Encoder *e, const Memo *memo) {
    make_room(e, 9);
    e->message->bytes[memo->at] |= 1; /* the tag's twin: it is referred to */
    put_place(e, memo->place);
}

/* ---- refusing ---------------------------------------------------------------------------------- */

typedef struct Text {
    char bytes[1024];
    size_t length;
} Text;

static void append(Text *text, const char *format, ...) {
    size_t room = sizeof text->bytes - text->length;
    int length;
    va_list arguments;
    va_start(arguments, format);
    length = vsnprintf(text->bytes + text->length, room, format, arguments);
    va_end(arguments);
    if (length > 0)
        text->length += (size_t)length < room ? (size_t)length : room - 1;
}

/* A string for a message: cut, and without what would make a mess of it. */
static void append_name(Text *text, lua_State *L, int index) {
    size_t length;
    const char *bytes = lua_tolstring(L, index, &length);
    char name[44];
    size_t count = 0;
    for (; count < length && count < 40; count++)
        name[count] = (unsigned char)bytes[count] < ' ' ? '?' : bytes[count];
    name[count] = '\0';
    append(text, "%s%s", name, count < length ? "..." : "");
}

static bool is_identifier(const char *name) {
    if (*name >= '0' && *name <= '9')
        return false;
    return *name != '\0' && name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                              "0123456789_")] == '\0';
}

/* Appends the step from a table to the field whose key is on the top of the stack. */
static void append_key(Text *text, lua_State *L, bool is_first) {
    if (is_first)
        append(text, "%sfield ", text->length > 0 ? ": " : "");
    if (lua_type(L, -1) == LUA_TSTRING) {
        const char *name = lua_tostring(L, -1);
        if (!is_first && strlen(name) <= 40 && is_identifier(name)) {
            append(text, ".%s", name);
        } else {
            append(text, is_first ? "'" : "['");
            append_name(text, L, -1);
            append(text, is_first ? "'" : "']");
        }
    } else if (lua_isinteger(L, -1))
        append(text, "[" LUA_INTEGER_FMT "]", (LUAI_UACINT)lua_tointeger(L, -1));
    else if (lua_type(L, -1) == LUA_TNUMBER)
        append(text, "[" LUA_NUMBER_FMT "]", (LUAI_UACNUMBER)lua_tonumber(L, -1));
    else if (lua_type(L, -1) == LUA_TBOOLEAN)
        append(text, "[%s]", lua_toboolean(L, -1) ? "true" : "false");
    else
        append(text, "[a %s]", luaL_typename(L, -1));
}

static void append_function(Text *text, lua_State *L, int index) {
    lua_Debug debug;
    lua_pushvalue(L, index);
    lua_getinfo(L, ">S", &debug);
    if (debug.linedefined > 0)
        append(text, "function at %s:%d", debug.short_src, debug.linedefined);
    else
        append(text, "main chunk of %s", debug.short_src);
}

/* Pushes the two values of a frame. */
static void push_frame_values(Encoder *e, size_t frame) {
    lua_State *L = e->L;
    size_t first = e->depth - e->resident; /* the first that is on the stack */
    for (int i = 1; i <= 2; i++) {
        if (frame >= first)
            lua_pushvalue(L, e->floor + (int)(2 * (frame - first)) + i);
        else
            lua_rawgeti(L, e->spill, (lua_Integer)(2 * frame) + i);
    }
}

#define STEPS_SHOWN 6 /* at either end of a path */

static void append_path(Encoder *e, Text *text) {
    lua_State *L = e->L;
    const char *what = e->options->what != NULL ? e->options->what : "value";
    int number = e->root + (e->options->leads_with_function ? 0 : 1);
    bool is_in_field = false;
    if (number > 0)
        append(text, "%s %d", what, number);
    for (size_t i = 0; i < e->depth; i++) {
        EncodeFrame *frame = &e->codec->frames[i];
        if (i == STEPS_SHOWN && e->depth > 2 * STEPS_SHOWN + 1) {
            append(text, " ... ");
            i = e->depth - STEPS_SHOWN - 1;
            is_in_field = true;
            continue;
        }
        push_frame_values(e, i);
        if (frame->kind == IN_UPVALUES) {
            const char *name = lua_getupvalue(L, -2, (int)frame->elements);
            lua_pop(L, name != NULL ? 1 : 0);
            append(text, "%supvalue '%s' of ", text->length > 0 ? ": " : "",
                   name != NULL ? name : "?");
            append_function(text, L, -2);
            is_in_field = false;
        } else if (frame->kind == AT_KEY) {
            append(text, "%sa key", text->length > 0 ? ": " : "");
            is_in_field = false;
        } else {
            append_key(text, L, !is_in_field);
            is_in_field = true;
        }
        lua_pop(L, 2);
    }
    if (text->length == 0)
        append(text, "the function");
}

/* The spill table still refers to what was there. */
static void let_go(Encoder *e) {
    if (!e->has_spilled)
        return;
    lua_newtable(e->L);
    lua_setiuservalue(e->L, e->codec_index, CODEC_SPILL);
}

/* Gives the walk up, to have the catalogue read: once a message. */
static void start_anew(Encoder *e) {
    e->has_built = e->is_restarting = true;
    e->depth = e->resident = 0;
}

/* The value on the top of the stack cannot travel. But it may be in a module that is not in the
 * catalogue, or not with this field: so at first, have that read and start anew. */
static void refuse(Encoder *e, const char *why, const char *kind) {
    lua_State *L = e->L;
    Text text = {.length = 0};
    if (!e->has_built) {
        start_anew(e);
        return;
    }
    stack_reserve(L, 10);
    append_path(e, &text);
    append(&text, " is %s", why);
    if (kind != NULL)
        append(&text, " (%s)", kind);
    let_go(e);
    runtime_push_error(L, "SerializationError", text.bytes, NULL);
    lua_error(L);
}

/* The __name in the metatable of the value on the top of the stack, pushed, or NULL. */
static const char *push_kind(lua_State *L) {
    const char *kind = NULL;
    if (lua_getmetatable(L, -1)) {
        lua_pushliteral(L, "__name");
        lua_rawget(L, -2);
        if (lua_type(L, -1) == LUA_TSTRING)
            kind = lua_tostring(L, -1);
    }
    return kind;
}

static void refuse_with_kind(Encoder *e, const char *why) {
    lua_State *L = e->L;
    if (e->has_built) /* nothing may be allocated before that */
        refuse(e, why, push_kind(L));
    else
        refuse(e, why, NULL);
}

/* ---- scalars ----------------------------------------------------------------------------------- */

static inline char *write_bytes(char *at, int tag, const void *bytes, size_t length) {
    *at++ = (char)tag;
    memcpy(at, bytes, length);
    return at + length;
}

static inline char *write_integer(char *at, lua_Integer value) {
    if (value >= 0 && value <= SMALL_MAX) {
        *at++ = (char)(TAG_SMALL + (int)value);
    } else if (value >= INT8_MIN && value <= INT8_MAX) {
        int8_t narrow = (int8_t)value;
        at = write_bytes(at, TAG_INT8, &narrow, sizeof narrow);
    } else if (value >= INT16_MIN && value <= INT16_MAX) {
        int16_t narrow = (int16_t)value;
        at = write_bytes(at, TAG_INT16, &narrow, sizeof narrow);
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
        int32_t narrow = (int32_t)value;
        at = write_bytes(at, TAG_INT32, &narrow, sizeof narrow);
    } else {
        int64_t wide = (int64_t)value;
        at = write_bytes(at, TAG_INT64, &wide, sizeof wide);
    }
    return at;
}

_Static_assert(CODEC_NO_SCALAR == TAG_GLOBALS, "one of the tags that no scalar begins with");
_Static_assert(CODEC_SCALAR_MAX >= 1 + STRING_SHORT_MAX, "the longest scalar is a string");

size_t codec_put_scalar(lua_State *L, int index, char *to) {
    char *at = to;
    switch (lua_type(L, index)) {
    case LUA_TNIL:
        *at++ = TAG_NIL;
        break;
    case LUA_TBOOLEAN:
        *at++ = lua_toboolean(L, index) ? TAG_TRUE : TAG_FALSE;
        break;
    case LUA_TNUMBER:
        if (lua_isinteger(L, index))
            at = write_integer(at, lua_tointeger(L, index));
        else {
            lua_Number number = lua_tonumber(L, index);
            at = write_bytes(at, TAG_FLOAT, &number, sizeof number);
        }
        break;
    case LUA_TSTRING: {
        size_t length;
        const char *bytes = lua_tolstring(L, index, &length);
        if (length <= STRING_SHORT_MAX)
            at = write_bytes(at, TAG_STRING + (int)length, bytes, length);
        break;
    }
    default:
        break;
    }
    return (size_t)(at - to);
}

/* Notes a segment, if it may be one. The string is on the stack or in a table, at `index`. */
static bool put_segment(Encoder *e, int index, const char *bytes, size_t length) {
    CodecMessage *message = e->message;
    CodecSegment *segment;
    size_t least = e->options->segment_min != 0 ? e->options->segment_min : CODEC_SEGMENT_MIN;
    if (e->options->anchors == 0 || length < least)
        return false;
    if (e->segment_count == message->segment_capacity) {
        size_t capacity = message->segment_capacity == 0 ? 8 : message->segment_capacity * 2;
        segment = realloc(message->segments, capacity * sizeof *segment);
        if (segment == NULL)
            luaL_error(e->L, "not enough memory");
        message->segments = segment;
        message->segment_capacity = capacity;
    }
    segment = &message->segments[e->segment_count++];
    segment->at = position(e);
    segment->bytes = bytes;
    segment->length = length;
    e->segmented += length;
    lua_pushvalue(e->L, index);
    lua_rawseti(e->L, e->options->anchors, (lua_Integer)e->segment_count);
    return true;
}

static void put_long_string(Encoder *e, int index, const char *bytes, size_t length) {
    uintptr_t key = (uintptr_t)bytes; /* within the string's object: nothing else has it */
    const Memo *memo = find_memo(e, key);
    if (memo != NULL) {
        put_reference(e, memo);
        return;
    }
    note_here(e, key);
    make_room(e, 9);
    if (length <= UINT32_MAX) {
        put_tag(e, TAG_STRING32);
        put_u32(e, (uint32_t)length);
    } else {
        put_tag(e, TAG_STRING64);
        put_u64(e, length);
    }
    if (put_segment(e, index, bytes, length))
        return;
    make_room(e, length);
    put_bytes(e, bytes, length);
}

/* Writes a string that is no scalar. */
static void put_string(Encoder *e, int index) {
    size_t length;
    const char *bytes = lua_tolstring(e->L, index, &length);
    if (length > STRING8_MAX) {
        put_long_string(e, index, bytes, length);
        return;
    }
    make_room(e, 2 + length);
    put_tag(e, TAG_STRING8);
    put_tag(e, (int)length);
    put_bytes(e, bytes, length);
}

/* Writes the value at `index` if it is one of those that hold no others and have no name. */
static inline bool put_scalar(Encoder *e, int index) {
    size_t length;
    make_room(e, CODEC_SCALAR_MAX);
    length = codec_put_scalar(e->L, index, e->at);
    e->at += length;
    if (length > 0)
        return true;
    if (lua_type(e->L, index) != LUA_TSTRING)
        return false;
    put_string(e, index);
    return true;
}

/* ---- what travels by name ---------------------------------------------------------------------- */

static void put_text(Encoder *e, const char *bytes, size_t length) {
    make_room(e, 4 + length);
    put_u32(e, (uint32_t)length);
    put_bytes(e, bytes, length);
}

/* Writes the name of the class on the top of the stack and the names of its bases. */
static void put_class(Encoder *e) {
    lua_State *L = e->L;
    uintptr_t key = codec_identity(L, -1, LUA_TTABLE);
    const Memo *memo = find_memo(e, key);
    size_t length, count_at;
    const char *name;
    int bases = 0;
    if (memo != NULL) {
        put_reference(e, memo);
        return;
    }
    note_here(e, key);
    make_room(e, 1);
    put_tag(e, TAG_CLASS);
    class_push_name(L, e->codec_index, -1);
    name = lua_tolstring(L, -1, &length);
    put_text(e, name, length);
    count_at = position(e);
    make_room(e, 1);
    put_tag(e, 0);
    class_push_base(L, e->codec_index, -2);
    while (bases < CLASS_BASES_MAX && class_push_name(L, e->codec_index, -1) == LUA_TSTRING) {
        name = lua_tolstring(L, -1, &length);
        put_text(e, name, length);
        bases++;
        class_push_base(L, e->codec_index, -2);
        lua_replace(L, -3);
        lua_pop(L, 1);
    }
    e->message->bytes[count_at] = (char)bases;
    lua_pop(L, bases < CLASS_BASES_MAX ? 3 : 2);
}

/* Writes the value on the top of the stack by its name, if it has one. */
static bool put_named(Encoder *e, uintptr_t key) {
    lua_State *L = e->L;
    const Entry *entry = catalogue_find(e->codec, key);
    const char *name;
    size_t length;
    if (entry == NULL)
        return false;
    if (!catalogue_holds(L, e->codec_index, entry, -1)) {
        if (!e->has_built) /* it did so once */
            start_anew(e);
        return e->is_restarting;
    }
    if (entry->kind == ENTRY_CLASS) {
        put_class(e);
        return true;
    }
    note_here(e, key);
    make_room(e, 1);
    put_tag(e, entry->kind == ENTRY_MODULE ? TAG_MODULE : TAG_FIELD);
    for (int i = 0; i < (entry->kind == ENTRY_MODULE ? 1 : 2); i++) {
        name = catalogue_push_name(L, e->codec_index, entry, i, &length);
        put_text(e, name, length);
        lua_pop(L, 1);
    }
    return true;
}

static bool put_known(Encoder *e) {
    lua_State *L = e->L;
    lua_Integer id;
    int is_integer;
    lua_pushvalue(L, -1);
    lua_rawget(L, e->options->known);
    id = lua_tointegerx(L, -1, &is_integer);
    lua_pop(L, 1);
    if (!is_integer || id < 0 || id > UINT32_MAX ||
        (e->options->known_limit != 0 && id >= e->options->known_limit))
        return false;
    make_room(e, 5);
    put_tag(e, TAG_KNOWN);
    put_u32(e, (uint32_t)id);
    return true;
}

/* ---- frames ------------------------------------------------------------------------------------ */

/* Opens a frame for the value on the top of the stack, whose tag comes next. */
static EncodeFrame *open_frame(Encoder *e, int kind) {
    lua_State *L = e->L;
    Codec *codec = e->codec;
    EncodeFrame *frame;
    if (e->depth == codec->frame_capacity) {
        size_t capacity = codec->frame_capacity == 0 ? 64 : codec->frame_capacity * 2;
        EncodeFrame *frames = realloc(codec->frames, capacity * sizeof *frames);
        if (frames == NULL)
            luaL_error(L, "not enough memory");
        codec->frames = frames;
        codec->frame_capacity = capacity;
    }
    if (e->resident == RESIDENT_MAX) {
        stack_spill(L, e->floor, 2 * RESIDENT_MAX, e->spill, &e->spilled);
        e->resident = 0;
        e->has_spilled = true;
    }
    stack_reserve(L, 12);
    lua_pushnil(L);
    frame = &codec->frames[e->depth++];
    e->resident++;
    memset(frame, 0, sizeof *frame);
    frame->kind = (uint8_t)kind;
    frame->at = position(e);
    return frame;
}

static void close_frame(Encoder *e) {
    lua_pop(e->L, 2);
    e->depth--;
    e->resident--;
    if (e->resident == 0 && e->depth > 0) {
        size_t count = e->depth < RESIDENT_MAX / 2 ? e->depth : RESIDENT_MAX / 2;
        stack_unspill(e->L, (int)(2 * count), e->spill, &e->spilled);
        e->resident = count;
    }
}

/* The table is on the top of the stack. Opens a frame and stands at its first pair, with key and
 * value pushed; or writes an empty one, and pops it. */
static bool open_table(Encoder *e, uintptr_t key) {
    lua_State *L = e->L;
    EncodeFrame *frame;
    bool is_object = false, has_pair, has_elements;
    if (lua_getmetatable(L, -1)) {
        const Entry *entry = catalogue_find(e->codec, codec_identity(L, -1, LUA_TTABLE));
        is_object = entry != NULL && entry->kind == ENTRY_CLASS &&
                    catalogue_holds(L, e->codec_index, entry, -1);
        lua_pop(L, 1);
        if (!is_object) {
            refuse_with_kind(e, "a table whose metatable is not that of a registered class");
            return false;
        }
    }
    note_here(e, key);
    make_room(e, 9);
    frame = open_frame(e, IN_PAIRS);
    frame->is_object = is_object;
    has_pair = lua_next(L, -2) != 0;
    has_elements = has_pair && lua_isinteger(L, -2) && lua_tointeger(L, -2) == 1;
    if (has_elements)
        frame->kind = IN_ELEMENTS;
    put_tag(e, is_object ? TAG_OBJECT : has_elements ? TAG_MIXED : TAG_TABLE);
    put_u32(e, 0); /* the counts come when it is closed */
    if (is_object || has_elements)
        put_u32(e, 0);
    if (!has_pair)
        lua_pushnil(L); /* for lua_next has popped the key */
    return has_pair;
}

static void close_table(Encoder *e, EncodeFrame *frame) {
    lua_State *L = e->L;
    size_t at = frame->at;
    if (frame->elements > UINT32_MAX || frame->pairs > UINT32_MAX) {
        e->has_built = true;
        refuse(e, "in a table with too many fields", NULL);
    }
    if ((e->message->bytes[at] | 1) == (TAG_TABLE | 1))
        patch_u32(e, at + 1, (uint32_t)frame->pairs);
    else {
        patch_u32(e, at + 1, (uint32_t)frame->elements);
        patch_u32(e, at + 5, (uint32_t)frame->pairs);
    }
    if (frame->is_object) {
        lua_getmetatable(L, -2);
        put_class(e);
        lua_pop(L, 1);
    }
    close_frame(e);
}

static int write_code(lua_State *L, const void *bytes, size_t length, void *encoder) {
    Encoder *e = encoder;
    (void)L;
    if (!has_room(e, length) && !try_to_grow(e, length))
        return 1;
    put_bytes(e, bytes, length);
    return 0;
}

/* The Lua function is on the top of the stack. Writes its code, and opens a frame for its upvalues
 * if it has any. */
static void open_function(Encoder *e, uintptr_t key) {
    lua_State *L = e->L;
    lua_Debug debug;
    size_t at = position(e), length;
    uint64_t checksum;
    lua_pushvalue(L, -1);
    lua_getinfo(L, ">u", &debug);
    note_here(e, key);
    make_room(e, 14);
    put_tag(e, TAG_FUNCTION);
    put_u32(e, 0);
    put_u64(e, 0);
    put_tag(e, debug.nups);
    if (lua_dump(L, write_code, e, 0) != 0)
        luaL_error(L, "not enough memory");
    length = position(e) - at - 14;
    if (length > UINT32_MAX)
        luaL_error(L, "not enough memory");
    patch_u32(e, at + 1, (uint32_t)length);
    checksum = codec_checksum(e->message->bytes + at + 14, length);
    memcpy(e->message->bytes + at + 5, &checksum, sizeof checksum);
    open_frame(e, IN_UPVALUES);
    e->codec->frames[e->depth - 1].pairs = debug.nups;
}

/* ---- the walk ---------------------------------------------------------------------------------- */

/* Whether the walk had to be given up because other modules are loaded now. */
static bool has_to_start_anew(Encoder *e) {
    if (e->has_checked || e->has_built)
        return false;
    e->has_checked = true;
    if (!catalogue_is_outdated(e->L, e->codec_index))
        return false;
    start_anew(e);
    return true;
}

/* Writes the value on the top of the stack, which is no scalar, and pops it; or opens a frame for
 * it. Returns whether that stands at a pair already. The walk may have been given up after that. */
static bool put_value(Encoder *e) {
    lua_State *L = e->L;
    int type = lua_type(L, -1);
    uintptr_t key = codec_identity(L, -1, type);
    const Memo *memo = find_memo(e, key);
    stack_reserve(L, 12);
    if (memo != NULL)
        put_reference(e, memo);
    else if (type == LUA_TFUNCTION && e->options->refuses_functions) {
        e->has_built = true; /* whatever its name may be */
        refuse(e, "a function, and none are accepted", NULL);
    } else if (e->options->known != 0 && put_known(e))
        ;
    else if (type == LUA_TTABLE && (void *)key == e->globals) {
        make_room(e, 1);
        put_tag(e, TAG_GLOBALS);
    } else if (put_named(e, key))
        ;
    else if (type == LUA_TTABLE)
        return open_table(e, key);
    else if (type == LUA_TFUNCTION && !lua_iscfunction(L, -1)) {
        if (has_to_start_anew(e))
            return false;
        open_function(e, key);
        return false;
    } else if (type == LUA_TFUNCTION)
        refuse(e, "a C function that is no field of a loaded module", NULL);
    else if (type == LUA_TUSERDATA)
        refuse_with_kind(e, "userdata");
    else if (type == LUA_TLIGHTUSERDATA)
        refuse(e, "light userdata", NULL);
    else
        refuse(e, "a thread", NULL);
    lua_pop(L, 1);
    return false;
}

/* Whether the table on the top of the stack has a metatable, and not that of a class. */
static bool is_foreign(Encoder *e) {
    lua_State *L = e->L;
    bool is_class;
    const Entry *entry;
    if (!lua_getmetatable(L, -1))
        return false;
    entry = catalogue_find(e->codec, codec_identity(L, -1, LUA_TTABLE));
    is_class = entry != NULL && entry->kind == ENTRY_CLASS;
    lua_pop(L, 1);
    return !is_class;
}

/* Writes the upvalue of this name, on the top of the stack, if it is an environment that falls back
 * on something else, as test runners give one to the files they load. It cannot travel, but for what
 * is in there over here the globals over there will mostly do. */
static bool put_environment(Encoder *e, const char *name) {
    if (strcmp(name, "_ENV") != 0 || !lua_istable(e->L, -1) || !is_foreign(e))
        return false;
    make_room(e, 1);
    put_tag(e, TAG_GLOBALS);
    return true;
}

/* Writes the next upvalues of the function in the frame, up to one that opens a frame. */
static bool put_upvalues(Encoder *e, EncodeFrame *frame) {
    lua_State *L = e->L;
    const char *name;
    while (frame->elements < frame->pairs) {
        int index = (int)++frame->elements;
        uintptr_t key = (uintptr_t)lua_upvalueid(L, -2, index);
        const Memo *memo = find_memo(e, key);
        if (memo != NULL) {
            make_room(e, 10);
            e->message->bytes[memo->at] |= 1;
            put_tag(e, TAG_UPVALUE);
            put_u64(e, memo->place);
            put_tag(e, (int)memo->index);
            continue;
        }
        memo = find_memo(e, codec_identity(L, -2, LUA_TFUNCTION));
        add_memo(e, key, memo->at, memo->place, (uint32_t)index);
        name = lua_getupvalue(L, -2, index);
        if (!put_scalar(e, -1) && !put_environment(e, name))
            return put_value(e);
        lua_pop(L, 1);
    }
    close_frame(e);
    return false;
}

/* Writes the next pairs of the table in the frame, up to one that opens a frame. With `has_pair` its
 * first one is on the stack already. */
static bool put_pairs(Encoder *e, EncodeFrame *frame, bool has_pair) {
    lua_State *L = e->L;
    if (frame->kind == AT_KEY) { /* which is written now */
        frame->kind = IN_PAIRS;
        lua_pushvalue(L, -1);
        lua_rawget(L, -3);
        if (!put_scalar(e, -1))
            return put_value(e);
        lua_pop(L, 1);
    }
    if (frame->kind == IN_ELEMENTS) {
        for (; has_pair || lua_next(L, -2); has_pair = false) {
            if (!lua_isinteger(L, -2) ||
                lua_tointeger(L, -2) != (lua_Integer)(frame->elements + 1)) {
                frame->kind = IN_PAIRS;
                has_pair = true;
                break;
            }
            frame->elements++;
            if (!put_scalar(e, -1))
                return put_value(e);
            lua_pop(L, 1);
        }
    }
    if (frame->kind == IN_PAIRS) {
        for (; has_pair || lua_next(L, -2); has_pair = false) {
            frame->pairs++;
            if (!put_scalar(e, -2)) {
                frame->kind = AT_KEY;
                lua_pop(L, 1);
                lua_pushvalue(L, -1);
                return put_value(e);
            }
            if (!put_scalar(e, -1))
                return put_value(e);
            lua_pop(L, 1);
        }
    }
    lua_pushnil(L);
    close_table(e, frame);
    return false;
}

/* Writes the value on the top of the stack, and all that it holds, and pops it. */
static void put_tree(Encoder *e) {
    bool has_pair;
    if (put_scalar(e, -1)) {
        lua_pop(e->L, 1);
        return;
    }
    has_pair = put_value(e);
    while (e->depth > 0) {
        EncodeFrame *frame = &e->codec->frames[e->depth - 1];
        if (frame->kind == IN_UPVALUES)
            has_pair = put_upvalues(e, frame);
        else
            has_pair = put_pairs(e, frame, has_pair);
    }
}

static void walk(Encoder *e, int first, int count) {
    lua_State *L = e->L;
    forget_memos(L, e->codec);
    e->at = e->message->bytes + e->start;
    e->limit = e->message->bytes + e->message->capacity;
    e->segment_count = e->message->segment_count;
    e->segmented = 0;
    e->depth = e->resident = 0;
    e->spilled = 0;
    e->is_restarting = false;
    make_room(e, 6);
    put_tag(e, CODEC_VERSION);
    put_tag(e, count < CODEC_COUNT_WIDE ? count : CODEC_COUNT_WIDE);
    if (count >= CODEC_COUNT_WIDE)
        put_u32(e, (uint32_t)count);
    for (e->root = 0; e->root < count && !e->is_restarting; e->root++) {
        lua_pushvalue(L, first + e->root);
        put_tree(e);
    }
    lua_settop(L, e->floor);
}

void codec_encode(lua_State *L, int first, int count, CodecMessage *message,
                  const CodecEncoding *options) {
    static const CodecEncoding no_options;
    CodecEncoding chosen = options != NULL ? *options : no_options;
    Encoder e = {.L = L, .message = message, .options = &chosen, .start = message->length};
    int top = lua_gettop(L);
    stack_reserve(L, 20);
    first = lua_absindex(L, first);
    if (chosen.known != 0)
        chosen.known = lua_absindex(L, chosen.known);
    if (chosen.anchors != 0)
        chosen.anchors = lua_absindex(L, chosen.anchors);
    e.codec = codec_open(L);
    e.codec_index = top + 1;
    lua_getiuservalue(L, e.codec_index, CODEC_SPILL);
    e.spill = top + 2;
    e.floor = top + 2;
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    e.globals = lua_topointer(L, -1);
    lua_pop(L, 1);
    if (!e.codec->is_built) {
        catalogue_build(L, e.codec_index);
        e.has_built = true;
    }
    walk(&e, first, count);
    while (e.is_restarting) {
        catalogue_build(L, e.codec_index);
        walk(&e, first, count);
    }
    if (e.codec->frame_capacity > 4096) { /* a burst is over */
        free(e.codec->frames);
        e.codec->frames = NULL;
        e.codec->frame_capacity = 0;
    }
    let_go(&e);
    lua_settop(L, top);
    message->length = position(&e);
    message->segment_count = e.segment_count;
    message->segmented += e.segmented;
}
