#include "describe.h"

#include <string.h>

const char *task_state_name(const Task *task) {
    static const char *const names[] = {"ready", "running", "suspended",
                                        "done",  "failed",  "cancelled"};
    return names[task->state];
}

void task_push_name(lua_State *L, Task *task, int index) {
    lua_Debug ar;
    int base = lua_gettop(L);
    lua_getiuservalue(L, UPVALUE_RUNTIME, RUNTIME_NAMES);
    if (index != 0)
        lua_pushvalue(L, index);
    else if (task->anchor != 0)
        lua_rawgeti(L, UPVALUE_ANCHORS, task->anchor);
    else
        lua_pushnil(L);
    lua_rawget(L, base + 1);
    if (!lua_isnil(L, -1)) {
        lua_replace(L, base + 1);
        lua_settop(L, base + 1);
        return;
    }
    lua_settop(L, base);
    if (task->coroutine != NULL) {
        lua_State *coroutine = task->coroutine;
        if ((task->flags & TASK_STARTED) == 0 && lua_status(coroutine) == LUA_OK &&
            lua_gettop(coroutine) == (int)task->ticket && lua_isfunction(coroutine, 3)) {
            lua_pushvalue(coroutine, 3);
            lua_getinfo(coroutine, ">S", &ar);
            if (ar.linedefined < 0)
                lua_pushliteral(L, "C function");
            else
                lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
            return;
        }
        for (int level = 0; lua_getstack(coroutine, level, &ar); level++) {
            lua_getinfo(coroutine, "S", &ar);
            if (strcmp(ar.what, "C") != 0) { /* keep the outermost Lua function */
                lua_settop(L, base);
                lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
            }
        }
        if (lua_gettop(L) > base)
            return;
    }
    if (task->flags & TASK_IS_ROOT)
        lua_pushliteral(L, "main");
    else
        lua_pushfstring(L, "%p", (const void *)task);
}

void task_push_wait(lua_State *L, Task *task) {
    if (task->state != TASK_SUSPENDED)
        lua_pushliteral(L, "");
    else if (task->wait->describe != NULL)
        task->wait->describe(L, task);
    else
        lua_pushstring(L, task->wait->name);
}

static bool push_place_in(lua_State *L, lua_State *thread) {
    lua_Debug ar;
    for (int level = 0; lua_getstack(thread, level, &ar); level++) {
        lua_getinfo(thread, "Sl", &ar);
        if (ar.currentline >= 0) {
            lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
            return true;
        }
    }
    return false;
}

void task_push_place(lua_State *L, Task *task) {
    if (task->coroutine != NULL && push_place_in(L, task->coroutine))
        return;
    /* a call from outside any task stands where its caller does */
    if ((task->flags & TASK_IS_ROOT) == 0 || !push_place_in(L, runtime_of(L)->main))
        lua_pushliteral(L, "?");
}
