#include "wait.h"
#include "loop.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- descriptors ------------------------------------------------------------------------------------ */

static void leave_fd(Loop *loop, Task *task) {
    reactor_remove(&loop->reactor, task->object);
    free(task->object);
    task->object = NULL;
}

static bool undo_fd(lua_State *L, Loop *loop, Task *task) {
    (void)L;
    leave_fd(loop, task);
    return true;
}

static const char *const directions[] = {"r", "w", "rw", NULL}; /* REACTOR_... minus 1 */

static void describe_fd(lua_State *L, Task *task) {
    const Watch *watch = task->object;
    lua_pushfstring(L, "opero.wait (descriptor %d, \"%s\")", watch->fd,
                    directions[watch->wanted - 1]);
}

static const WaitKind wait_fd = {
    .name = "opero.wait", .describe = describe_fd, .leave = leave_fd, .undo = undo_fd};

static int wait_ended(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = task_regain(L, wait_ended, context);
    Watch watch;
    (void)status;
    task_resumed(L, runtime, 3);
    memcpy(&watch, runtime->current->object, sizeof watch);
    free(runtime->current->object);
    if (watch.error == EBADF)
        return luaL_error(L, "opero.wait: descriptor %d was closed while it was waited for",
                          watch.fd);
    if (watch.error != 0)
        return luaL_error(L, "opero.wait: descriptor %d: %s", watch.fd, strerror(watch.error));
    lua_pushstring(L, directions[watch.ready - 1]);
    return 1;
}

/* The descriptor of argument 1: a number, a file, or an object with a method that tells it. */
static int check_fd(lua_State *L) {
    static const char *const methods[] = {"getfd", "pollfd", "fileno", NULL};
    const luaL_Stream *stream = luaL_testudata(L, 1, LUA_FILEHANDLE);
    lua_Integer fd = -1;
    int is_integer = 0;
    if (stream != NULL) {
        luaL_argcheck(L, stream->closef != NULL, 1, "the file is closed");
        return fileno(stream->f);
    }
    if (lua_type(L, 1) == LUA_TNUMBER) {
        fd = lua_tointegerx(L, 1, &is_integer);
    } else if (lua_type(L, 1) == LUA_TTABLE || lua_type(L, 1) == LUA_TUSERDATA) {
        bool has_method = false;
        for (int i = 0; !has_method && methods[i] != NULL; i++) {
            if (lua_type(L, 1) == LUA_TUSERDATA && luaL_getmetafield(L, 1, "__index") == LUA_TNIL)
                break;
            lua_settop(L, 3);
            lua_getfield(L, 1, methods[i]);
            has_method = !lua_isnil(L, -1);
            if (has_method) {
                lua_pushvalue(L, 1);
                lua_call(L, 1, 1);
                fd = lua_tointegerx(L, -1, &is_integer);
                if (!is_integer)
                    luaL_error(L, "opero.wait: the object's %s() gave no descriptor but %s",
                               methods[i], luaL_tolstring(L, -1, NULL));
            }
        }
        lua_settop(L, 3);
        if (!has_method)
            luaL_argerror(L, 1, "object has none of the methods getfd, pollfd and fileno");
    } else {
        luaL_typeerror(L, 1,
                       "descriptor (an integer), file, or object with getfd, pollfd or fileno");
    }
    luaL_argcheck(L, is_integer && fd >= 0 && fd <= INT_MAX, 1,
                  lua_pushfstring(L, "not a descriptor: %s", luaL_tolstring(L, 1, NULL)));
    return (int)fd;
}

static int call_wait(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    uint8_t wanted = (uint8_t)(luaL_checkoption(L, 2, NULL, directions) + 1);
    int64_t deadline_ns = check_deadline(L, runtime, 3);
    Task *me;
    Watch *watch;
    int fd, error;
    lua_settop(L, 3);
    fd = check_fd(L);
    me = task_enter(L, runtime, "opero.wait");
    if (me == NULL)
        return loop_call(L, runtime, call_wait);
    watch = malloc(sizeof *watch);
    if (watch == NULL)
        return luaL_error(L, "not enough memory");
    watch->fd = fd;
    watch->owner = me;
    watch->kind = WATCH_OF_TASK;
    watch->wanted = wanted;
    error = reactor_add(&runtime->loop->reactor, watch);
    if (error == 0)
        return task_suspend(L, runtime, me, &wait_fd, NULL, watch, deadline_ns, wait_ended);
    free(watch);
    if (error != EPERM)
        return luaL_error(L, "opero.wait: descriptor %d: %s", fd, strerror(error));
    lua_pushvalue(L, 2); /* always ready: a regular file */
    return 1;
}

/* ---- callbacks ---------------------------------------------------------------------------------------- */

#define CALLBACK_METATABLE "opero.Callback"

typedef struct Callback { /* a userdata; its user value is the packed arguments of resume */
    Task *task;           /* that waits; NULL before and after */
    bool is_used;
} Callback;

static void leave_callback(Loop *loop, Task *task) {
    Callback *callback = task->object;
    (void)loop;
    if (callback != NULL) {
        callback->task = NULL;
        callback->is_used = true;
    }
}

/* Collected while the task waits: only after the task's coroutine was closed by hand. */
static int callback_gc(lua_State *L) {
    Callback *callback = lua_touserdata(L, 1);
    if (callback->task != NULL)
        callback->task->object = NULL;
    callback->task = NULL;
    return 0;
}

static const WaitKind wait_callback = {.name = "opero.await (a callback)", .leave = leave_callback};

static int resume_callback(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Callback *callback = lua_touserdata(L, UPVALUE_OWN);
    if (callback->is_used) {
        lua_pushboolean(L, false);
        return 1;
    }
    runtime_pack(L, 1);
    lua_setiuservalue(L, UPVALUE_OWN, 1);
    callback->is_used = true;
    if (callback->task != NULL)
        task_wake(task_loop(runtime, callback->task), callback->task, WAKE_OK, 0);
    callback->task = NULL;
    lua_pushboolean(L, true);
    return 1;
}

static int callback_came(lua_State *L) {
    lua_getiuservalue(L, 1, 1);
    return runtime_unpack(L, 2);
}

static int callback_waited(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, callback_waited, context), 0);
    lua_settop(L, 1);
    return callback_came(L);
}

static int callback_given(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = runtime_of(L);
    Callback *callback = lua_touserdata(L, 1);
    (void)status, (void)context;
    lua_settop(L, 1);
    if (callback->is_used)
        return callback_came(L);
    callback->task = runtime->current;
    return task_suspend(L, runtime, runtime->current, &wait_callback, NULL, callback, CLOCK_NEVER,
                        callback_waited);
}

static int call_await(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Callback *callback;
    check_callable(L, 1);
    if (task_enter(L, runtime, "opero.await") == NULL)
        return loop_call(L, runtime, call_await);
    lua_settop(L, 1);
    callback = lua_newuserdatauv(L, sizeof *callback, 1);
    callback->task = NULL;
    callback->is_used = false;
    luaL_setmetatable(L, CALLBACK_METATABLE);
    lua_insert(L, 1);
    lua_pushvalue(L, 1);
    runtime_push_function(L, resume_callback, 1);
    lua_callk(L, 1, 0, 0, callback_given);
    return callback_given(L, LUA_OK, 0);
}

/* ---- registration ------------------------------------------------------------------------------- */

static const luaL_Reg functions[] = {{"wait", call_wait}, {"await", call_await}, {NULL, NULL}};

void wait_register(lua_State *L, int module) {
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, CALLBACK_METATABLE, NULL);
    lua_pushcfunction(L, callback_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
