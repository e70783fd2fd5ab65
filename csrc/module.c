#include "opero.h"

#include "calls.h"
#include "codec.h"
#include "generator.h"
#include "guard.h"
#include "log.h"
#include "logger.h"
#include "loop.h"
#include "pool.h"
#include "sync.h"
#include "tracing.h"
#include "wait.h"
#include "worker.h"

int luaopen_opero_core(lua_State *L) {
    luaL_checkversion(L);
    lua_newtable(L);
    calls_register(L, lua_gettop(L));
    wait_register(L, lua_gettop(L));
    generator_register(L, lua_gettop(L));
    sync_register(L, lua_gettop(L));
    guard_register(L, lua_gettop(L));
    log_register(L, lua_gettop(L));
    logger_register(L, lua_gettop(L));
    tracing_register(L, lua_gettop(L));
    codec_register(L, lua_gettop(L));
    pool_register(L, lua_gettop(L));
    worker_register(L, lua_gettop(L));
    return 1;
}

static int step(lua_State *L) { /* limit, as a light userdata */
    const int64_t *timeout_ns = lua_touserdata(L, 1);
    runtime_push_function(L, loop_step, 0);
    lua_pushnumber(L, clock_to_seconds(*timeout_ns));
    lua_call(L, 1, 0);
    return 0;
}

int opero_step(lua_State *L, int64_t timeout_ns) {
    lua_pushcfunction(L, step); /* allocates nothing: whatever does is called protected */
    lua_pushlightuserdata(L, &timeout_ns);
    return lua_pcall(L, 1, 0, 0);
}

static Runtime *open_runtime(lua_State *L) {
    Runtime *runtime = runtime_open(L);
    lua_pop(L, 1);
    return runtime;
}

int opero_pollfd(lua_State *L) {
    return reactor_pollfd(&open_runtime(L)->real.reactor);
}

int64_t opero_deadline_ns(lua_State *L) {
    const Runtime *runtime = open_runtime(L);
    return loop_until_deadline_ns(runtime, &runtime->real);
}

size_t opero_live(lua_State *L) {
    return open_runtime(L)->real.live;
}
