// A host in C++: opero.h alone has to do.
#include "opero.h"

int main() {
    lua_State *L = luaL_newstate();
    luaL_requiref(L, "opero.core", luaopen_opero_core, 0);
    lua_getfield(L, -1, "spawn");
    lua_getfield(L, -2, "yield");
    bool ok = lua_pcall(L, 1, 0, 0) == LUA_OK && opero_live(L) == 1;
    while (ok && opero_live(L) > 0)
        ok = opero_deadline_ns(L) == 0 && opero_step(L, 0) == LUA_OK;
    lua_close(L);
    return !ok;
}
