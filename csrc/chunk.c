#include "loop.h"
#include "pool_parts.h"

#include <string.h>

#define CHUNK_BYTES 65536 /* of its items, about: it fits into the ring with another one */

/* ---- chunks ---------------------------------------------------------------------------------------- *
 *
 * pool:_chunk(fn, items, first, last, results, failures) -> next, seconds, count
 *
 * Runs fn for items[first], items[first + 1] ... up to items[last] at most, and enters the result of
 * each into `results` at the same place, or { error, traceback } into `failures`. `next` is the first
 * item it did not come to: a chunk has so many bytes. The seconds are those that workers spent on the
 * `count` that were run. For the Lua layer: what it is given is as it should be.
 */
enum {
    CHUNK_POOL = 1,
    CHUNK_FN,
    CHUNK_ITEMS,
    CHUNK_FIRST,
    CHUNK_LAST,
    CHUNK_RESULTS,
    CHUNK_FAILURES,
    CHUNK_HANDLE,
    CHUNK_NEXT,
    CHUNK_SLOTS = CHUNK_NEXT
};

/* Enters the error on the top of the stack but one and its traceback above it; pops them. */
static void set_failure(lua_State *L, lua_Integer index) {
    lua_createtable(L, 2, 0);
    lua_insert(L, -3);
    lua_rawseti(L, -3, 2);
    lua_rawseti(L, -2, 1);
    lua_rawseti(L, CHUNK_FAILURES, index);
}

static bool append_or_raise(lua_State *L, CodecMessage *message, const void *bytes, size_t length) {
    if (!message_append(message, bytes, length))
        luaL_error(L, "not enough memory");
    return true;
}

/* Encodes the item on the top of the stack, which is no scalar. False: it cannot travel, and the error
 * is on the top of the stack. */
static bool append_item(lua_State *L, const Pool *pool, CodecMessage *message, uint32_t limit,
                        bool is_long) {
    Encoding encoding = {.message = message,
                         .options = {.what = "item", .leads_with_function = true}};
    size_t before = message->length;
    uint32_t length = 0;
    const char mark = CODEC_NO_SCALAR;
    int item = lua_gettop(L);
    encoding.options.known_limit = limit;
    append_or_raise(L, message, &mark, 1);
    append_or_raise(L, message, &length, sizeof length);
    pool_push_known(L, pool);
    if (is_long) {
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, CHUNK_HANDLE, HANDLE_STRINGS);
    } else
        lua_pushnil(L);
    if (lua_pcall(L, submit_push_encoding(L, &encoding, item + 1, item + 2, item, 1), 0, 0) !=
        LUA_OK) {
        message->length = before;
        return false;
    }
    length = (uint32_t)(message->length - before - ITEM_HEAD + message->segmented);
    memcpy(message->bytes + before + 1, &length, sizeof length);
    lua_settop(L, item);
    return true;
}

/* Encodes items into the chunk; returns the first index that is not in it. */
static lua_Integer append_items(lua_State *L, const Pool *pool, Call *call, lua_Integer first,
                                lua_Integer last) {
    CodecMessage *message = &call->message;
    uint32_t limit = pool->is_fork ? submit_known_to_all(pool) : 0;
    lua_Integer index = first;
    call->count = 0;
    for (; index <= last && message->length < CHUNK_BYTES && call->count < UINT16_MAX; index++) {
        bool is_long;
        size_t length;
        lua_geti(L, CHUNK_ITEMS, index);
        if (!codec_message_reserve(message, CODEC_SCALAR_MAX))
            luaL_error(L, "not enough memory");
        length = codec_put_scalar(L, -1, message->bytes + message->length);
        message->length += length;
        if (length == 0) {
            is_long = lua_type(L, -1) == LUA_TSTRING &&
                      lua_rawlen(L, -1) >= (lua_Unsigned)CODEC_SEGMENT_MIN;
            if (is_long && call->count > 0)
                return index; /* it is sent from where it is, and alone */
            if (!append_item(L, pool, message, limit, is_long)) {
                lua_pushnil(L);
                set_failure(L, index);
                return index + 1;
            }
            if (is_long) {
                call->count = 1;
                return index + 1;
            }
        }
        call->count++;
        lua_settop(L, CHUNK_HANDLE);
    }
    return index;
}

/* Enters the outcome of one item, as it stands in the reply; returns its length. */
static size_t deliver_item(lua_State *L, const Pool *pool, const char *bytes, lua_Integer index) {
    uint32_t length;
    int top = lua_gettop(L);
    memcpy(&length, bytes + 1, sizeof length);
    switch ((unsigned char)*bytes) {
    case STATUS_SCALAR:
        if (codec_get_scalar(L, bytes + REPLY_ITEM_HEAD, length) != length)
            luaL_error(L, "malformed result");
        lua_rawseti(L, CHUNK_RESULTS, index);
        break;
    case STATUS_OK:
        submit_decode(L, pool, bytes + REPLY_ITEM_HEAD, length);
        lua_settop(L, top + 1);
        lua_rawseti(L, CHUNK_RESULTS, index);
        break;
    case STATUS_ERROR:
        submit_push_reported(L, pool, bytes + REPLY_ITEM_HEAD, length);
        set_failure(L, index);
        break;
    default:
        lua_pushliteral(L, "not enough memory");
        lua_pushnil(L);
        set_failure(L, index);
        break;
    }
    return REPLY_ITEM_HEAD + length;
}

static int deliver_item_protected(lua_State *L) { /* ..., as in a chunk; bytes, index */
    const char *bytes = lua_touserdata(L, CHUNK_SLOTS + 1);
    lua_Integer index = lua_tointeger(L, CHUNK_SLOTS + 2);
    deliver_item(L, lua_touserdata(L, CHUNK_POOL), bytes, index);
    return 0;
}

/* The same for one that may be refused: then that is what became of the item. */
static size_t deliver_carefully(lua_State *L, const char *bytes, lua_Integer index) {
    uint32_t length;
    memcpy(&length, bytes + 1, sizeof length);
    lua_pushcfunction(L, deliver_item_protected);
    for (int i = 1; i <= CHUNK_SLOTS; i++)
        lua_pushvalue(L, i);
    lua_pushlightuserdata(L, (void *)bytes);
    lua_pushinteger(L, index);
    if (lua_pcall(L, CHUNK_SLOTS + 2, 0, 0) != LUA_OK) {
        lua_pushnil(L);
        set_failure(L, index);
    }
    return REPLY_ITEM_HEAD + length;
}

/* Enters what became of the items of a part. */
static void deliver_part(lua_State *L, const Call *part) {
    lua_Integer first = lua_tointeger(L, CHUNK_FIRST) + part->index;
    size_t at = 0;
    uint32_t i = 0;
    for (; i < part->done && !part->has_lost_reply; i++) {
        const char *bytes = part->reply + at;
        at += *bytes == STATUS_OK ? deliver_carefully(L, bytes, first + i)
                                  : deliver_item(L, part->pool, bytes, first + i);
    }
    for (; i < part->count; i++) {
        if (part->outcome == CALL_ANSWERED && part->status == STATUS_ERROR) {
            submit_push_reported(L, part->pool, part->reply + at,
                                 part->reply_length - at); /* of them all */
        } else if (part->outcome == CALL_ANSWERED) {
            lua_pushliteral(L, "not enough memory");
            lua_pushnil(L);
        } else {
            lua_geti(L, CHUNK_ITEMS, first + i);
            submit_push_failure(L, part, lua_gettop(L));
            lua_replace(L, -2);
            lua_pushnil(L);
        }
        set_failure(L, first + i);
    }
}

static int deliver_chunk(lua_State *L) {
    Handle *handle = lua_touserdata(L, CHUNK_HANDLE);
    int64_t elapsed_ns = 0;
    lua_Integer count = 0;
    for (const Call *part = handle->call; part != NULL; part = part->next_part) {
        lua_settop(L, CHUNK_SLOTS);
        deliver_part(L, part);
        elapsed_ns += part->elapsed_ns;
        count += part->elapsed_ns > 0 ? part->done : 0;
    }
    submit_drop_handle(handle);
    lua_settop(L, CHUNK_SLOTS);
    lua_pushnumber(L, clock_to_seconds(elapsed_ns));
    lua_pushinteger(L, count);
    return 3;
}

static int chunk_answered(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, chunk_answered, context), 0);
    return deliver_chunk(L);
}

static int pool_chunk(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Pool *pool = pool_check(L);
    uint32_t length = 0;
    lua_Integer next;
    Call *call;
    pool_check_open(L, pool);
    if (task_enter(L, runtime, "pool:map") == NULL)
        return loop_call(L, runtime, pool_chunk);
    lua_settop(L, CHUNK_FAILURES);
    call = submit_push_handle(L, pool);
    call->is_chunk = true;
    append_or_raise(L, &call->message, &length, sizeof length);
    submit_encode(L, pool, call, CHUNK_HANDLE, CHUNK_FN, 1, "argument");
    length = (uint32_t)(call->message.length - sizeof length);
    memcpy(call->message.bytes, &length, sizeof length);
    next = append_items(L, pool, call, lua_tointeger(L, CHUNK_FIRST), lua_tointeger(L, CHUNK_LAST));
    lua_settop(L, CHUNK_HANDLE);
    lua_pushinteger(L, next);
    if (call->count > 0)
        return submit_hand_in(L, call, chunk_answered);
    submit_drop_handle(lua_touserdata(L, CHUNK_HANDLE));
    lua_pushnumber(L, 0);
    lua_pushinteger(L, 0);
    return 3;
}

void chunk_register(lua_State *L, int methods) {
    runtime_push_function(L, pool_chunk, 0);
    lua_setfield(L, methods, "_chunk");
}
