#include "logger.h"
#include "log.h"

#include <string.h>

#define LOGGER_METATABLE "opero.Logger"

#define UPVALUE_METATABLE UPVALUE_OWN /* further upvalues of methods */
#define UPVALUE_LEVEL lua_upvalueindex(5)

typedef struct LoggerObject { /* a userdata */
    Logger *logger;
    Bytes bound; /* fields of its own */
} LoggerObject;

/* The logger that is argument 1. As every disabled call comes through here, it compares metatables
 * instead of looking one up by its name. */
static LoggerObject *check_logger(lua_State *L) {
    LoggerObject *object = lua_touserdata(L, 1);
    if (object != NULL && lua_getmetatable(L, 1)) {
        bool is_one = lua_rawequal(L, -1, UPVALUE_METATABLE);
        lua_pop(L, 1);
        if (is_one)
            return object;
    }
    luaL_typeerror(L, 1, LOGGER_METATABLE);
    return NULL;
}

static LogLevel check_level(lua_State *L, int arg) {
    LogLevel level = log_check_level(L, arg);
    if (level == 0)
        luaL_error(L,
                   "bad argument #%d: expected a level (debug, info, warning, error, critical "
                   "or off), got %s",
                   arg, lua_isnone(L, arg) ? "no value" : luaL_tolstring(L, arg, NULL));
    return level;
}

/* ---- methods ------------------------------------------------------------------------------------ */

/* logger:debug(format, ..., fields?) and so on */
static int log_at_level(lua_State *L) {
    const LoggerObject *object = check_logger(L);
    LogLevel level = (LogLevel)lua_tointeger(L, UPVALUE_LEVEL);
    if (level >= object->logger->threshold)
        log_record(L, runtime_of(L), object->logger, level, 2, bytes_slice(&object->bound));
    return 0;
}

/* logger:log(level, format, ..., fields?) */
static int log_any(lua_State *L) {
    const LoggerObject *object = check_logger(L);
    LogLevel level = check_level(L, 2);
    if (level != LOG_OFF && level >= object->logger->threshold)
        log_record(L, runtime_of(L), object->logger, level, 3, bytes_slice(&object->bound));
    return 0;
}

static int is_enabled(lua_State *L) {
    const LoggerObject *object = check_logger(L);
    LogLevel level = check_level(L, 2);
    lua_pushboolean(L, level != LOG_OFF && level >= object->logger->threshold);
    return 1;
}

static int get_level(lua_State *L) {
    lua_pushstring(L, log_level_names[check_logger(L)->logger->level]);
    return 1;
}

static int set_level(lua_State *L) {
    const LoggerObject *object = check_logger(L);
    log_set_level(runtime_of(L)->log, object->logger,
                  lua_isnoneornil(L, 2) ? (LogLevel)0 : check_level(L, 2));
    lua_settop(L, 1);
    return 1;
}

static int get_name(lua_State *L) {
    Slice name = check_logger(L)->logger->name;
    lua_pushlstring(L, name.data, name.length);
    return 1;
}

static int logger_tostring(lua_State *L) {
    Slice name = check_logger(L)->logger->name;
    lua_pushlstring(L, name.data, name.length);
    lua_pushfstring(L, "opero.Logger: %s", lua_tostring(L, -1));
    return 1;
}

static int logger_gc(lua_State *L) {
    LoggerObject *object = lua_touserdata(L, 1);
    bytes_free(&object->bound);
    return 0;
}

/* ---- making them -------------------------------------------------------------------------------- */

static LoggerObject *push_object(lua_State *L, Logger *logger) {
    LoggerObject *object = lua_newuserdatauv(L, sizeof *object, 0);
    *object = (LoggerObject){.logger = logger};
    lua_pushvalue(L, UPVALUE_METATABLE);
    lua_setmetatable(L, -2);
    return object;
}

/* logger(name) -> the logger of that name; of "" the root */
static int call_logger(lua_State *L) {
    Slice name;
    name.data = luaL_checklstring(L, 1, &name.length);
    push_object(L, log_logger(L, log_open(L, runtime_of(L)), name));
    return 1;
}

/* adapter(logger, fields?) -> the same logger, with these fields in all its records */
static int call_adapter(lua_State *L) {
    const LoggerObject *object = check_logger(L);
    LoggerObject *adapter;
    lua_settop(L, 2);
    adapter = push_object(L, object->logger);
    if (!lua_isnil(L, 2)) {
        Bytes fields = {.data = NULL};
        bool is_whole;
        luaL_checktype(L, 2, LUA_TTABLE);
        capture_fields(L, 2, &adapter->bound);
        is_whole = !adapter->bound.has_failed;
        fields_merge(&fields, bytes_slice(&object->bound), bytes_slice(&adapter->bound));
        bytes_free(&adapter->bound);
        adapter->bound = fields;
        if (!is_whole || fields.has_failed)
            return luaL_error(L, "not enough memory");
    } else if (object->bound.length > 0) {
        bytes_append_slice(&adapter->bound, bytes_slice(&object->bound));
        if (adapter->bound.has_failed)
            return luaL_error(L, "not enough memory");
    }
    return 1;
}

/* is_noted(level) -> whether a record of the library's own would go anywhere; the level as a number from
 * 1, debug. As logger("opero"):enabled, but quicker. */
static int call_is_noted(lua_State *L) {
    lua_pushboolean(L, log_is_noted(runtime_of(L), (LogLevel)lua_tointeger(L, 1)));
    return 1;
}

/* is_logger(value) -> boolean */
static int call_is_logger(lua_State *L) {
    lua_settop(L, 1);
    lua_pushboolean(L, lua_isuserdata(L, 1) && lua_getmetatable(L, 1) &&
                           lua_rawequal(L, -1, UPVALUE_METATABLE));
    return 1;
}

/* Pushes a function with the metatable, which is at `metatable`, and a level as its upvalues. */
static void push_method(lua_State *L, int metatable, lua_CFunction function, LogLevel level) {
    lua_pushvalue(L, metatable);
    lua_pushinteger(L, level);
    runtime_push_function(L, function, 2);
}

void logger_register(lua_State *L, int module) {
    static const luaL_Reg methods[] = {{"log", log_any},     {"enabled", is_enabled},
                                       {"level", get_level}, {"set_level", set_level},
                                       {"name", get_name},   {NULL, NULL}};
    static const luaL_Reg functions[] = {{"logger", call_logger},
                                         {"adapter", call_adapter},
                                         {"is_logger", call_is_logger},
                                         {"is_noted", call_is_noted},
                                         {NULL, NULL}};
    int metatable;
    module = lua_absindex(L, module);
    runtime_new_metatable(L, LOGGER_METATABLE, NULL);
    metatable = lua_gettop(L);
    push_method(L, metatable, logger_tostring, LOG_OFF);
    lua_setfield(L, metatable, "__tostring");
    lua_pushcfunction(L, logger_gc);
    lua_setfield(L, metatable, "__gc");
    lua_newtable(L);
    for (const luaL_Reg *method = methods; method->name != NULL; method++) {
        push_method(L, metatable, method->func, LOG_OFF);
        lua_setfield(L, -2, method->name);
    }
    for (LogLevel level = LOG_DEBUG; level <= LOG_CRITICAL; level++) {
        push_method(L, metatable, log_at_level, level);
        lua_setfield(L, -2, log_level_names[level]);
    }
    lua_pushvalue(L, -1);
    lua_setfield(L, module, "logger_methods"); /* the Lua layer adds to them */
    lua_setfield(L, metatable, "__index");
    for (const luaL_Reg *function = functions; function->name != NULL; function++) {
        push_method(L, metatable, function->func, LOG_OFF);
        lua_setfield(L, module, function->name);
    }
    lua_pop(L, 1);
}
