#include "guard.h"
#include "cancel.h"

/* ---- invoke(fn, ...): the innermost layer, a protected call ------------------------------------ */

static int invoke_ended(lua_State *L, int status, lua_KContext context) {
    (void)context; /* message handler, result or error, ... */
    luaL_checkstack(L, 1, "too many results");
    if (status == LUA_OK || status == LUA_YIELD) {
        if (lua_gettop(L) < 3 || !lua_isnil(L, 2) || lua_isnil(L, 3)) {
            lua_pushboolean(L, true);
            lua_replace(L, 1);
            return lua_gettop(L);
        }
        lua_settop(L, 3); /* nil, err: Lua's way to report a failure */
    }
    lua_pushboolean(L, false);
    lua_insert(L, -2);
    return 2;
}

static int invoke(lua_State *L) {
    int status;
    luaL_checkany(L, 1);
    lua_pushcfunction(L, runtime_note_error);
    lua_insert(L, 1);
    status = lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, 0, invoke_ended);
    return invoke_ended(L, status, 0);
}

/* ---- guard(next, on_failure): a layer that acts only when `next` fails --------------------------- */

#define UPVALUE_NEXT lua_upvalueindex(1)
#define UPVALUE_ON_FAILURE lua_upvalueindex(2)

static int failure_handled(lua_State *L, int status, lua_KContext handler) {
    if (status == LUA_OK || status == LUA_YIELD)
        return lua_gettop(L) - (int)handler;
    lua_pushboolean(L, false); /* it raised: a cancelled sleep, a user's function */
    lua_insert(L, -2);
    return 2;
}

static int next_ended(lua_State *L, int status, lua_KContext argument_count) {
    int count = (int)argument_count, handler = count + 3;
    if (lua_toboolean(L, count + 1))
        return lua_gettop(L) - count;
    lua_settop(L, count + 2); /* arguments, false, error */
    luaL_checkstack(L, count + 3, "too many arguments");
    lua_pushcfunction(L, runtime_note_error);
    lua_pushvalue(L, UPVALUE_ON_FAILURE);
    lua_pushvalue(L, count + 2);
    for (int i = 1; i <= count; i++)
        lua_pushvalue(L, i);
    status = lua_pcallk(L, count + 1, LUA_MULTRET, handler, handler, failure_handled);
    return failure_handled(L, status, handler);
}

static int guarded(lua_State *L) {
    int count = lua_gettop(L);
    luaL_checkstack(L, count + 1, "too many arguments");
    lua_pushvalue(L, UPVALUE_NEXT);
    for (int i = 1; i <= count; i++)
        lua_pushvalue(L, i);
    lua_callk(L, count, LUA_MULTRET, count, next_ended);
    return next_ended(L, LUA_OK, count);
}

static int guard(lua_State *L) {
    luaL_checkany(L, 2);
    lua_settop(L, 2);
    lua_pushcclosure(L, guarded, 2);
    return 1;
}

/* ---- errors ---------------------------------------------------------------------------------------- */

static int reraise(lua_State *L) {
    lua_settop(L, 1);
    return runtime_rethrow(L);
}

static int is_cancelled(lua_State *L) {
    lua_settop(L, 1);
    lua_pushboolean(L, is_cancellation(L, 1));
    return 1;
}

static const luaL_Reg functions[] = {
    {"reraise", reraise}, {"is_cancelled", is_cancelled}, {NULL, NULL}};

void guard_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    lua_pushcfunction(L, invoke); /* these two find all they need on the stack */
    lua_setfield(L, module, "invoke");
    lua_pushcfunction(L, guard);
    lua_setfield(L, module, "guard");
    runtime_set_functions(L, module, functions);
}
