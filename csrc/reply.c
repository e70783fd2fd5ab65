#include "worker_parts.h"

#include <string.h>

#define REPLY_METATABLE "opero.Reply"

static int reply_gc(lua_State *L) {
    Reply *reply = lua_touserdata(L, 1);
    link_remove(&reply->link);
    codec_message_free(&reply->message);
    return 0;
}

Reply *reply_push(lua_State *L) {
    Reply *reply = lua_newuserdatauv(L, sizeof *reply, 1);
    memset(reply, 0, sizeof *reply);
    link_init(&reply->link);
    luaL_setmetatable(L, REPLY_METATABLE);
    return reply;
}

/* Sends what there is room for. */
void reply_send_outgoing(lua_State *L, Self *self) {
    while (!list_is_empty(&self->outgoing)) {
        Reply *reply = CONTAINER_OF(self->outgoing.next, Reply, link);
        bool is_sent = parcel_send(&reply->parcel, &self->port);
        port_wake(&self->port);
        if (!is_sent)
            return;
        link_remove(&reply->link);
        if (reply->task != NULL && reply->task->state == TASK_SUSPENDED)
            task_wake(self->runtime->loop, reply->task, WAKE_OK, 0);
        lua_pushnil(L); /* it may be anchored there */
        lua_rawsetp(L, LUA_REGISTRYINDEX, reply);
    }
}

static void leave_reply(Loop *loop, Task *task) {
    Reply *reply = task->object;
    (void)loop;
    reply->task = NULL;
}

static const WaitKind wait_sent = {.name = "the pool to take the result", .leave = leave_reply};

bool reply_send_now(Self *self, Reply *reply) {
    bool is_sent = list_is_empty(&self->outgoing) && parcel_send(&reply->parcel, &self->port);
    if (is_sent)
        port_wake(&self->port);
    return is_sent;
}

/* Waits until the reply at the top of the stack, which send_now could not send, is sent, and goes on
 * with `k`. */
int reply_wait_until_sent(lua_State *L, Self *self, Reply *reply, lua_KFunction k) {
    Runtime *runtime = runtime_of(L);
    list_append(&self->outgoing, &reply->link);
    port_wake(&self->port);
    worker_wake_receiver(runtime->loop, self); /* which waits, but not for room yet */
    reply->task = runtime->current;
    return task_suspend(L, runtime, runtime->current, &wait_sent, NULL, reply, CLOCK_NEVER, k);
}

/* The same, whether it can be sent now or not. */
int reply_send(lua_State *L, Self *self, Reply *reply, lua_KFunction k) {
    return reply_send_now(self, reply) ? k(L, LUA_OK, 0) : reply_wait_until_sent(L, self, reply, k);
}

static int encode_values(lua_State *L) { /* worker, message, anchors or nil, values... */
    const Self *self = lua_touserdata(L, 1);
    CodecEncoding options = {.what = "result",
                             .anchors = lua_istable(L, 3) ? 3 : 0,
                             .refuses_functions = !self->port.shared->setup.accepts_functions};
    codec_encode(L, 4, lua_gettop(L) - 3, lua_touserdata(L, 2), &options);
    return 0;
}

/* Encodes `count` values from `first` on into the reply at index `reply`. On failure the error is on the
 * top of the stack, and the message empty. With a long string among them, such strings are sent from
 * where they are: the reply keeps them. */
static bool encode(lua_State *L, int reply, int first, int count) {
    CodecMessage *message = &((Reply *)lua_touserdata(L, reply))->message;
    bool has_long = false;
    for (int i = first; i < first + count; i++)
        has_long = has_long || (lua_type(L, i) == LUA_TSTRING &&
                                lua_rawlen(L, i) >= (lua_Unsigned)CODEC_SEGMENT_MIN);
    if (!lua_checkstack(L, count + 5)) {
        lua_pushliteral(L, "too many results");
        return false;
    }
    lua_pushcfunction(L, encode_values);
    lua_pushlightuserdata(L, worker_self(L));
    lua_pushlightuserdata(L, message);
    if (has_long) {
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, reply, 1);
    } else
        lua_pushnil(L);
    for (int i = first; i < first + count; i++)
        lua_pushvalue(L, i);
    if (lua_pcall(L, count + 3, 0, 0) == LUA_OK) {
        if (message->length + message->segmented <= PARCEL_MAX)
            return true;
        runtime_push_error(L, "SerializationError", "the results take more than 4 GiB", NULL);
    }
    codec_message_free(message);
    return false;
}

static int make_substitute(lua_State *L) { /* an error that cannot travel; why */
    lua_settop(L, 2);
    lua_pushfstring(L, "%s (the error itself cannot travel: %s)", luaL_tolstring(L, 1, NULL),
                    luaL_tolstring(L, 2, NULL));
    runtime_push_error(L, "OperoError", lua_tostring(L, -1), NULL);
    return 1;
}

/* A task that had no memory leaves much garbage, and the next one may ask for memory in a way in which
 * Lua does not collect it first: the library's buffers do. */
static void collect_after(lua_State *L, int error) {
    if (lua_type(L, error) == LUA_TSTRING &&
        strcmp(lua_tostring(L, error), "not enough memory") == 0)
        lua_gc(L, LUA_GCCOLLECT);
}

/* Encodes the error on the top of the stack, and its traceback, into the reply at index `reply`. What
 * becomes of it. */
static RecordStatus encode_error(lua_State *L, int reply) {
    int error = lua_gettop(L);
    collect_after(L, error);
    runtime_push_noted(L, error);
    if (encode(L, reply, error, 2))
        return STATUS_ERROR;
    lua_pushcfunction(L, make_substitute);
    lua_pushvalue(L, error);
    lua_pushvalue(L, -3);
    if (lua_pcall(L, 2, 1, 0) == LUA_OK) {
        lua_copy(L, -1, error);
        lua_settop(L, error);
        lua_pushnil(L);
        if (encode(L, reply, error, 2))
            return STATUS_ERROR;
    }
    return STATUS_MEMORY;
}

Reply *reply_push_outcome(lua_State *L, RecordKind kind, uint32_t id, int first, bool has_failed) {
    RecordStatus status = STATUS_OK;
    int count = lua_gettop(L) - first + 1, at;
    Reply *reply = reply_push(L);
    at = lua_gettop(L);
    if (has_failed)
        lua_pushvalue(L, at - 1);
    else if (!encode(L, at, first, count))
        has_failed = true;
    if (has_failed)
        status = encode_error(L, at);
    lua_settop(L, at);
    parcel_init(&reply->parcel, kind, status, id, &reply->message);
    return reply;
}

/* Sends a reply from the receiver, which does not wait for it. */
void reply_send_later(lua_State *L, Self *self, Reply *reply) {
    if (!list_is_empty(&self->outgoing) || !parcel_send(&reply->parcel, &self->port)) {
        list_append(&self->outgoing, &reply->link);
        lua_pushvalue(L, -1);
        lua_rawsetp(L, LUA_REGISTRYINDEX, reply); /* until it is sent */
    }
    port_wake(&self->port);
}

void reply_register(lua_State *L) {
    runtime_new_metatable(L, REPLY_METATABLE, NULL);
    lua_pushcfunction(L, reply_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
