#include "codec.h"
#include "codec_parts.h"

#include <lauxlib.h>
#include <string.h>

/* What the Lua layer and the specs see of the codec: core.encode and core.decode. */

#define MESSAGE_METATABLE "opero.CodecMessage"

static int message_gc(lua_State *L) {
    codec_message_free(lua_touserdata(L, 1));
    return 0;
}

static CodecMessage *push_message(lua_State *L) {
    CodecMessage *message = lua_newuserdatauv(L, sizeof *message, 0);
    memset(message, 0, sizeof *message);
    luaL_setmetatable(L, MESSAGE_METATABLE);
    return message;
}

/* Pushes the message as a string, with its segments where they belong; they are in the table at index
 * `anchors`. */
static void push_whole(lua_State *L, const CodecMessage *message, int anchors) {
    int count = (int)message->segment_count;
    size_t done = 0;
    stack_reserve(L, 2 * count + 1);
    for (int i = 0; i < count; i++) {
        size_t at = message->segments[i].at;
        lua_pushlstring(L, message->bytes + done, at - done);
        lua_rawgeti(L, anchors, i + 1);
        done = at;
    }
    lua_pushlstring(L, message->bytes + done, message->length - done);
    lua_concat(L, 2 * count + 1);
}

/* Pushes the message of the values from stack index `first` to `last`, and how many segments it had
 * on its way. */
static void push_encoded(lua_State *L, int first, int last, const CodecEncoding *options) {
    CodecMessage *message = push_message(L);
    codec_encode(L, first, last - first + 1, message, options);
    push_whole(L, message, options != NULL ? options->anchors : 0);
    lua_pushinteger(L, (lua_Integer)message->segment_count);
    codec_message_free(message); /* without waiting for the collector */
}

/* encode(...) -> string */
static int encode(lua_State *L) {
    push_encoded(L, 1, lua_gettop(L), NULL);
    lua_pop(L, 1);
    return 1;
}

/* Pushes the option, and returns its place if it is a table, else 0. */
static int push_table_option(lua_State *L, int options, const char *name) {
    if (lua_getfield(L, options, name) == LUA_TTABLE)
        return lua_gettop(L);
    return 0;
}

/* encode_with({known=, what=, leads_with_function=, segment_min=}, ...) -> string, segments */
static int encode_with(lua_State *L) {
    CodecEncoding options = {.known = 0};
    int last = lua_gettop(L);
    lua_Integer segment_min;
    luaL_checktype(L, 1, LUA_TTABLE);
    stack_reserve(L, 10);
    options.known = push_table_option(L, 1, "known");
    lua_getfield(L, 1, "what");
    options.what = lua_tostring(L, -1);
    lua_getfield(L, 1, "leads_with_function");
    options.leads_with_function = lua_toboolean(L, -1);
    lua_getfield(L, 1, "segment_min");
    segment_min = lua_tointeger(L, -1);
    options.segment_min = segment_min > 0 ? (size_t)segment_min : 0;
    lua_newtable(L);
    options.anchors = lua_gettop(L);
    push_encoded(L, 2, last, &options);
    return 2;
}

/* decode(string, {functions=, known=}?) -> ... */
static int decode(lua_State *L) {
    CodecDecoding options = {.functions = false};
    size_t length;
    const char *bytes;
    luaL_checktype(L, 1, LUA_TSTRING);
    lua_settop(L, 2);
    bytes = lua_tolstring(L, 1, &length);
    if (!lua_isnil(L, 2)) {
        luaL_checktype(L, 2, LUA_TTABLE);
        lua_getfield(L, 2, "functions");
        options.functions = lua_toboolean(L, -1);
        options.known = push_table_option(L, 2, "known");
    }
    return codec_decode(L, bytes, length, &options);
}

static const luaL_Reg functions[] = {
    {"encode", encode}, {"encode_with", encode_with}, {"decode", decode}, {NULL, NULL}};

void codec_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    codec_open(L); /* now, so that no message pays for it */
    lua_pop(L, 1);
    luaL_newmetatable(L, MESSAGE_METATABLE);
    lua_pushcfunction(L, message_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushliteral(L, "protected");
    lua_setfield(L, -2, "__metatable");
    lua_pop(L, 1);
    lua_pushvalue(L, module);
    luaL_setfuncs(L, functions, 0);
    lua_pop(L, 1);
    catalogue_register(L, module);
}
