#include "sync.h"
#include "loop.h"

#include <math.h>

#define SEMAPHORE "opero.Semaphore"
#define CHANNEL "opero.Channel"
#define EVENT "opero.Event"

/* A thing for which tasks still wait is collected only after their coroutines were closed by hand
 * (a stack that waits for it refers to it): let them run, and end by that. */
static void release_waiters(Runtime *runtime, Link *waiters) {
    Task *task;
    while ((task = task_first(waiters)) != NULL)
        task_wake(task_loop(runtime, task), task, WAKE_CLOSED, 0);
}

/* ---- semaphore ------------------------------------------------------------------------------ */

typedef struct Semaphore {
    Link waiters; /* only while no permit is free */
    lua_Integer permits;
} Semaphore;

static void semaphore_give(Runtime *runtime, Semaphore *semaphore) {
    Task *next = task_first(&semaphore->waiters);
    if (next != NULL)
        task_wake(task_loop(runtime, next), next, WAKE_OK, 0);
    else
        semaphore->permits++;
}

static bool undo_acquire(lua_State *L, Loop *loop, Task *task) {
    (void)loop;
    semaphore_give(runtime_of(L), task->object);
    return true;
}

static const WaitKind wait_acquire = {.name = "semaphore:acquire", .undo = undo_acquire};

static int semaphore_acquired(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, semaphore_acquired, context), 2);
    lua_pushboolean(L, true);
    return 1;
}

static int semaphore_acquire(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Semaphore *semaphore = luaL_checkudata(L, 1, SEMAPHORE);
    int64_t deadline_ns = check_deadline(L, runtime, 2);
    Task *me;
    if (semaphore->permits > 0) {
        semaphore->permits--;
        lua_pushboolean(L, true);
        return 1;
    }
    lua_settop(L, 2);
    me = task_enter(L, runtime, wait_acquire.name);
    if (me == NULL)
        return loop_call(L, runtime, semaphore_acquire);
    return task_suspend(L, runtime, me, &wait_acquire, &semaphore->waiters, semaphore, deadline_ns,
                        semaphore_acquired);
}

static int semaphore_try_acquire(lua_State *L) {
    Semaphore *semaphore = luaL_checkudata(L, 1, SEMAPHORE);
    lua_pushboolean(L, semaphore->permits > 0);
    if (semaphore->permits > 0)
        semaphore->permits--;
    return 1;
}

static int semaphore_release(lua_State *L) {
    Semaphore *semaphore = luaL_checkudata(L, 1, SEMAPHORE);
    if (semaphore->permits == LUA_MAXINTEGER)
        return luaL_error(L, "semaphore:release: too many permits");
    semaphore_give(runtime_of(L), semaphore);
    return 0;
}

static int semaphore_gc(lua_State *L) {
    release_waiters(runtime_of(L), &((Semaphore *)lua_touserdata(L, 1))->waiters);
    return 0;
}

static int semaphore_available(lua_State *L) {
    const Semaphore *semaphore = luaL_checkudata(L, 1, SEMAPHORE);
    lua_pushinteger(L, semaphore->permits);
    return 1;
}

static lua_Integer count_waiters(const Link *waiters) {
    lua_Integer count = 0;
    for (const Link *link = waiters->next; link != waiters; link = link->next)
        count++;
    return count;
}

static int semaphore_waiting(lua_State *L) {
    const Semaphore *semaphore = luaL_checkudata(L, 1, SEMAPHORE);
    lua_pushinteger(L, count_waiters(&semaphore->waiters));
    return 1;
}

static lua_Integer check_count(lua_State *L, int arg, const char *what) {
    int is_integer;
    lua_Integer count = lua_tointegerx(L, arg, &is_integer);
    if (lua_type(L, arg) != LUA_TNUMBER)
        luaL_typeerror(L, arg, what);
    luaL_argcheck(L, is_integer && count >= 0, arg,
                  lua_pushfstring(L, "%s expected, got %s", what, luaL_tolstring(L, arg, NULL)));
    return count;
}

static int new_semaphore(lua_State *L) {
    lua_Integer permits = check_count(L, 1, "integer >= 0 (number of permits)");
    Semaphore *semaphore = lua_newuserdatauv(L, sizeof *semaphore, 0);
    link_init(&semaphore->waiters);
    semaphore->permits = permits;
    luaL_setmetatable(L, SEMAPHORE);
    return 1;
}

/* ---- channel -------------------------------------------------------------------------------- *
 *
 * The user value is a table. At integer keys it holds the messages in the buffer, each at its
 * number; numbers are given in the order in which messages are received. At a light userdata key
 * it holds the message of that sender, which waits. A message that comes back from a receiver
 * that was cancelled before it ran returns to its number, so that order is kept; for a moment
 * the buffer may then hold more than its capacity.
 */

typedef struct Channel {
    Link receivers; /* only while there is no message and no sender */
    Link senders;   /* only while the buffer is full */
    lua_Integer capacity;
    lua_Integer
        count; /* of messages in the buffer, which has gaps if they came back out of order */
    lua_Integer first, next; /* numbers: of the first in the buffer, of the next to go in */
    bool is_closed;
} Channel;

#define MESSAGES 3 /* where a channel function keeps the table; below are self and one argument */

static Channel *check_channel(lua_State *L) {
    return luaL_checkudata(L, 1, CHANNEL);
}

/* Gives the message on the top of the stack, which is popped, to the receiver. Its number and the
 * table go along so that it can come back. */
static void hand_over(lua_State *L, Runtime *runtime, Task *receiver, lua_Integer number,
                      int messages) {
    lua_pushvalue(L, messages);
    lua_xmove(L, receiver->coroutine, 2);
    receiver->ticket = (uint32_t)number;
    task_wake(task_loop(runtime, receiver), receiver, WAKE_OK, 2);
}

/* Lets the first waiting sender go: pushes its message. */
static bool pull_sender(lua_State *L, Runtime *runtime, Channel *channel, int messages) {
    Task *sender = task_first(&channel->senders);
    if (sender == NULL)
        return false;
    lua_rawgetp(L, messages, sender);
    lua_pushnil(L);
    lua_rawsetp(L, messages, sender);
    task_wake(task_loop(runtime, sender), sender, WAKE_OK, 0);
    return true;
}

/* Puts the message on the top of the stack, which is popped, into the buffer. */
static void put_message(lua_State *L, Channel *channel, lua_Integer number, int messages) {
    lua_rawseti(L, messages, number);
    if (channel->count == 0 || number < channel->first)
        channel->first = number;
    channel->count++;
}

static void refill(lua_State *L, Runtime *runtime, Channel *channel, int messages) {
    while (channel->count < channel->capacity && pull_sender(L, runtime, channel, messages))
        put_message(L, channel, channel->next++, messages);
}

/* Takes the first message out of the buffer and pushes it. */
static void pop_message(lua_State *L, Channel *channel, int messages) {
    while (lua_rawgeti(L, messages, channel->first) == LUA_TNIL) {
        lua_pop(L, 1);
        channel->first++;
    }
    lua_pushnil(L);
    lua_rawseti(L, messages, channel->first++);
    channel->count--;
}

static int put_back(lua_State *L) { /* channel, number, as light userdata; table; message */
    const lua_Integer *number = lua_touserdata(L, 2);
    put_message(L, lua_touserdata(L, 1), *number, 3);
    return 0;
}

static bool undo_receive(lua_State *L, Loop *loop, Task *task) {
    Channel *channel = task->object;
    Task *next = task_first(&channel->receivers);
    lua_Integer number = channel->next - (uint32_t)((uint32_t)channel->next - task->ticket);
    lua_State *coroutine = task->coroutine;
    bool is_back = true;
    (void)loop;
    if (task->handed == 0)
        return true; /* woken by close */
    if (!lua_checkstack(L, 5) || !lua_checkstack(coroutine, 2))
        return false;
    if (next == NULL) {
        lua_pushcfunction(L, put_back);
        lua_pushlightuserdata(L, channel);
        lua_pushlightuserdata(L, &number);
        lua_pushvalue(coroutine, -1); /* copies: when there is no memory, it keeps its message */
        lua_pushvalue(coroutine, -3);
        lua_xmove(coroutine, L, 2);
        is_back = lua_pcall(L, 4, 0, 0) == LUA_OK;
        lua_pop(L, is_back ? 0 : 1);
        lua_pop(coroutine, is_back ? 2 : 0);
    } else { /* to the next in line, with the same number */
        lua_xmove(coroutine, L, 2);
        lua_xmove(L, next->coroutine, 2);
        next->ticket = task->ticket;
        task_wake(task_loop(runtime_of(L), next), next, WAKE_OK, 2);
    }
    return is_back;
}

/* A sender that was woken has been relieved of its message, which may be anywhere by now. */
static bool undo_send(lua_State *L, Loop *loop, Task *task) {
    (void)L, (void)loop, (void)task;
    return false;
}

static const WaitKind wait_send = {.name = "channel:send", .undo = undo_send};
static const WaitKind wait_receive = {.name = "channel:receive", .undo = undo_receive};

static int raise_closed(lua_State *L) {
    runtime_push_error(L, "ClosedError", "channel:send: the channel is closed", NULL);
    return lua_error(L);
}

static int channel_sent(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = task_regain(L, channel_sent, context);
    (void)status;
    if (runtime->current->wake != WAKE_OK) { /* the message stays with us */
        lua_pushnil(L);
        lua_rawsetp(L, MESSAGES, runtime->current);
    }
    lua_replace(L, 2); /* timeouts are told from argument 2 */
    if (task_resumed(L, runtime, 2) == WAKE_CLOSED)
        return raise_closed(L);
    lua_pushboolean(L, true);
    return 1;
}

static int channel_send(lua_State *L) { /* channel, message, timeout */
    Runtime *runtime = runtime_of(L);
    Channel *channel = check_channel(L);
    int64_t deadline_ns = check_deadline(L, runtime, 3);
    Task *receiver, *me;
    luaL_argcheck(L, !lua_isnoneornil(L, 2), 2,
                  "nil cannot be sent: channel:receive returns it for a closed channel");
    lua_settop(L, 3);
    if (channel->is_closed)
        return raise_closed(L);
    lua_getiuservalue(L, 1, 1);
    lua_insert(L, MESSAGES); /* channel, message, table, timeout */
    receiver = task_first(&channel->receivers);
    if (receiver != NULL) {
        lua_pushvalue(L, 2);
        hand_over(L, runtime, receiver, channel->next++, MESSAGES);
    } else if (channel->count < channel->capacity) {
        lua_pushvalue(L, 2);
        put_message(L, channel, channel->next++, MESSAGES);
    } else {
        me = task_enter(L, runtime, wait_send.name);
        if (me == NULL) {
            lua_remove(L, MESSAGES);
            return loop_call(L, runtime, channel_send);
        }
        lua_pushvalue(L, 2);
        lua_rawsetp(L, MESSAGES, me);
        return task_suspend(L, runtime, me, &wait_send, &channel->senders, channel, deadline_ns,
                            channel_sent);
    }
    lua_pushboolean(L, true);
    return 1;
}

static int push_end(lua_State *L) {
    lua_pushnil(L);
    lua_pushliteral(L, "closed");
    return 2;
}

static int channel_received(lua_State *L, int status, lua_KContext context) {
    (void)status;
    if (task_resumed(L, task_regain(L, channel_received, context), 2) == WAKE_OK)
        lua_pop(L, 1); /* the table */
    else if (check_channel(L)->count == 0)
        return push_end(L);
    else { /* closed, and yet: the message of a receiver that was cancelled came back */
        lua_getiuservalue(L, 1, 1);
        pop_message(L, check_channel(L), MESSAGES);
    }
    return 1;
}

static int channel_receive(lua_State *L) { /* channel, timeout */
    Runtime *runtime = runtime_of(L);
    Channel *channel = check_channel(L);
    int64_t deadline_ns = check_deadline(L, runtime, 2);
    Task *me;
    lua_settop(L, 2);
    if (channel->count > 0) {
        lua_getiuservalue(L, 1, 1);
        pop_message(L, channel, MESSAGES);
        refill(L, runtime, channel, MESSAGES);
        return 1;
    }
    if (!list_is_empty(&channel->senders)) { /* the capacity is 0 */
        lua_getiuservalue(L, 1, 1);
        pull_sender(L, runtime, channel, MESSAGES);
        return 1;
    }
    if (channel->is_closed)
        return push_end(L);
    me = task_enter(L, runtime, wait_receive.name);
    if (me == NULL)
        return loop_call(L, runtime, channel_receive);
    return task_suspend(L, runtime, me, &wait_receive, &channel->receivers, channel, deadline_ns,
                        channel_received);
}

static int channel_next(lua_State *L) {
    lua_settop(L, 0);
    lua_pushvalue(L, UPVALUE_OWN);
    return channel_receive(L);
}

static int channel_iter(lua_State *L) {
    check_channel(L);
    lua_settop(L, 1);
    runtime_push_function(L, channel_next, 1);
    return 1;
}

static int channel_close(lua_State *L) {
    Channel *channel = check_channel(L);
    channel->is_closed = true;
    release_waiters(runtime_of(L), &channel->receivers);
    release_waiters(runtime_of(L), &channel->senders);
    return 0;
}

static int channel_is_closed(lua_State *L) {
    lua_pushboolean(L, check_channel(L)->is_closed);
    return 1;
}

static int channel_length(lua_State *L) {
    lua_pushinteger(L, check_channel(L)->count);
    return 1;
}

static int new_channel(lua_State *L) {
    lua_Integer capacity;
    Channel *channel;
    if (lua_isnoneornil(L, 1))
        capacity = 0;
    else if (lua_type(L, 1) == LUA_TNUMBER && lua_tonumber(L, 1) == (lua_Number)HUGE_VAL)
        capacity = LUA_MAXINTEGER;
    else
        capacity = check_count(L, 1, "integer >= 0 or math.huge (capacity)");
    channel = lua_newuserdatauv(L, sizeof *channel, 1);
    link_init(&channel->receivers);
    link_init(&channel->senders);
    channel->capacity = capacity;
    channel->count = 0;
    channel->first = channel->next = 1;
    channel->is_closed = false;
    lua_newtable(L);
    lua_setiuservalue(L, -2, 1);
    luaL_setmetatable(L, CHANNEL);
    return 1;
}

/* ---- event ------------------------------------------------------------------------------------ */

typedef struct Event {
    Link waiters; /* only while it is not set */
    bool is_set;
} Event;

static const WaitKind wait_event = {.name = "event:wait"};

static int event_waited(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, event_waited, context), 2);
    lua_pushboolean(L, true);
    return 1;
}

static int event_wait(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Event *event = luaL_checkudata(L, 1, EVENT);
    int64_t deadline_ns = check_deadline(L, runtime, 2);
    Task *me;
    if (event->is_set) {
        lua_pushboolean(L, true);
        return 1;
    }
    lua_settop(L, 2);
    me = task_enter(L, runtime, wait_event.name);
    if (me == NULL)
        return loop_call(L, runtime, event_wait);
    return task_suspend(L, runtime, me, &wait_event, &event->waiters, event, deadline_ns,
                        event_waited);
}

static int event_set(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Event *event = luaL_checkudata(L, 1, EVENT);
    Task *task;
    event->is_set = true;
    while ((task = task_first(&event->waiters)) != NULL)
        task_wake(task_loop(runtime, task), task, WAKE_OK, 0);
    return 0;
}

static int event_gc(lua_State *L) {
    release_waiters(runtime_of(L), &((Event *)lua_touserdata(L, 1))->waiters);
    return 0;
}

static int event_clear(lua_State *L) {
    ((Event *)luaL_checkudata(L, 1, EVENT))->is_set = false;
    return 0;
}

static int event_is_set(lua_State *L) {
    lua_pushboolean(L, ((Event *)luaL_checkudata(L, 1, EVENT))->is_set);
    return 1;
}

static int new_event(lua_State *L) {
    Event *event = lua_newuserdatauv(L, sizeof *event, 0);
    link_init(&event->waiters);
    event->is_set = false;
    luaL_setmetatable(L, EVENT);
    return 1;
}

/* ---- registration ------------------------------------------------------------------------------- */

static const luaL_Reg functions[] = {
    {"semaphore", new_semaphore}, {"channel", new_channel}, {"event", new_event}, {NULL, NULL}};

static const luaL_Reg semaphore_methods[] = {
    {"acquire", semaphore_acquire}, {"try_acquire", semaphore_try_acquire},
    {"release", semaphore_release}, {"available", semaphore_available},
    {"waiting", semaphore_waiting}, {NULL, NULL},
};

static const luaL_Reg channel_methods[] = {
    {"send", channel_send},   {"receive", channel_receive},     {"iter", channel_iter},
    {"close", channel_close}, {"is_closed", channel_is_closed}, {NULL, NULL},
};

static const luaL_Reg event_methods[] = {
    {"set", event_set},       {"clear", event_clear}, {"wait", event_wait},
    {"is_set", event_is_set}, {NULL, NULL},
};

static const luaL_Reg semaphore_metamethods[] = {{"__gc", semaphore_gc}, {NULL, NULL}};
static const luaL_Reg channel_metamethods[] = {
    {"__gc", channel_close}, {"__len", channel_length}, {NULL, NULL}};
static const luaL_Reg event_metamethods[] = {{"__gc", event_gc}, {NULL, NULL}};

void sync_register(lua_State *L, int module) {
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, SEMAPHORE, semaphore_methods);
    runtime_set_functions(L, -1, semaphore_metamethods);
    runtime_new_metatable(L, CHANNEL, channel_methods);
    runtime_set_functions(L, -1, channel_metamethods);
    runtime_new_metatable(L, EVENT, event_methods);
    runtime_set_functions(L, -1, event_metamethods);
    lua_pop(L, 3);
}
