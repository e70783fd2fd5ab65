#include "tracing.h"
#include "capture.h"

#include <string.h>

#define BUFFER_METATABLE "opero.ContextBuffer"
#define SCOPE_OF_FIELDS_METATABLE "opero.ContextScope"

/* ---- the context of the code that runs ---------------------------------------------------------- */

/* The number under which it stands: 0 outside any task. */
static uint32_t holder(const Runtime *runtime) {
    return runtime->current != NULL ? runtime->current->anchor : 0;
}

static Context *current(const Runtime *runtime) {
    return contexts_get(&runtime->contexts, holder(runtime));
}

Context *tracing_keep(const Runtime *runtime) {
    return context_keep(current(runtime));
}

Context *tracing_exchange(Runtime *runtime, Context *context) {
    Context *before = current(runtime), **place;
    if (before == context)
        return context;
    place = contexts_place(&runtime->contexts, holder(runtime));
    if (place == NULL)
        return context;
    *place = context;
    return before;
}

/* Takes a reference to the context, and makes it that of the code that runs. */
static void enter(lua_State *L, Runtime *runtime, Context *context) {
    Context **place = contexts_place(&runtime->contexts, holder(runtime));
    if (place == NULL) {
        context_release(&runtime->contexts, context);
        luaL_error(L, "not enough memory");
    }
    context_set(&runtime->contexts, place, context);
}

/* Pushes a buffer that is freed with it. */
static Bytes *push_buffer(lua_State *L) {
    Bytes *bytes = lua_newuserdatauv(L, sizeof *bytes, 0);
    *bytes = (Bytes){.data = NULL};
    luaL_setmetatable(L, BUFFER_METATABLE);
    return bytes;
}

static int buffer_gc(lua_State *L) {
    bytes_free(lua_touserdata(L, 1));
    return 0;
}

/* Makes the fields, which it takes, the context; none is no context. */
static void enter_fields(lua_State *L, Runtime *runtime, Bytes *fields) {
    Context *context = NULL;
    if (fields->has_failed)
        luaL_error(L, "not enough memory");
    if (fields->length > 0) {
        context = context_make(&runtime->contexts, fields);
        if (context == NULL)
            luaL_error(L, "not enough memory");
    }
    enter(L, runtime, context);
}

/* Captures the fields of the table at `index` into a buffer that is left on the stack. */
static Bytes *push_captured(lua_State *L, int index) {
    Bytes *fields = push_buffer(L);
    capture_fields(L, index, fields);
    if (fields->has_failed)
        luaL_error(L, "not enough memory");
    return fields;
}

static void add(lua_State *L, Runtime *runtime, const Bytes *fields) {
    Bytes *merged = push_buffer(L);
    fields_merge(merged, context_fields(current(runtime)), bytes_slice(fields));
    enter_fields(L, runtime, merged);
}

/* add_context(fields) */
static int call_add(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    add(L, runtime_of(L), push_captured(L, 1));
    return 0;
}

/* remove_context(name, ...) */
static int call_remove(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    int count = lua_gettop(L);
    Bytes *kept = push_buffer(L);
    Slice rest = context_fields(current(runtime)), name;
    Value value;
    for (int i = 1; i <= count; i++)
        luaL_checkstring(L, i);
    for (const char *begin = rest.data; fields_next(&rest, &name, &value); begin = rest.data) {
        bool is_named = false;
        for (int i = 1; i <= count && !is_named; i++) {
            Slice other;
            other.data = lua_tolstring(L, i, &other.length);
            is_named = slice_equals(name, other);
        }
        if (!is_named)
            bytes_append(kept, begin, (size_t)(rest.data - begin));
    }
    enter_fields(L, runtime, kept);
    return 0;
}

/* get_context() -> a table of its fields */
static int call_get(lua_State *L) {
    const Secrets none = {.count = 0};
    capture_push(L, context_fields(current(runtime_of(L))), &none);
    return 1;
}

/* ---- scopes of fields --------------------------------------------------------------------------- */

typedef struct FieldScope { /* a userdata; its user value is the task it was opened in, or nil */
    Context *before;        /* what there was, or NULL */
    uint64_t serial;        /* of the context that it made */
    Bytes own;              /* the fields it was opened with */
    Task *owner;
    bool is_open;
} FieldScope;

/* Appends the fields of `from` whose names are, or are not, among those of `names`. */
static void append_those(Bytes *bytes, Slice from, Slice names, bool that_are) {
    Slice name;
    Value value, other;
    for (const char *begin = from.data; fields_next(&from, &name, &value); begin = from.data)
        if (fields_find(names, name, &other) == that_are)
            bytes_append(bytes, begin, (size_t)(from.data - begin));
}

/* Gives the named fields the values that they had before, and leaves the others as they are. */
static void restore(lua_State *L, Runtime *runtime, Slice names, Slice before) {
    Bytes *kept = push_buffer(L), *earlier = push_buffer(L), *merged = push_buffer(L);
    append_those(kept, context_fields(current(runtime)), names, false);
    append_those(earlier, before, names, true);
    fields_merge(merged, bytes_slice(kept), bytes_slice(earlier));
    merged->has_failed = merged->has_failed || kept->has_failed || earlier->has_failed;
    enter_fields(L, runtime, merged);
}

/* push_context(fields) -> a scope, to be closed */
static int call_push(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    FieldScope *scope;
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    scope = lua_newuserdatauv(L, sizeof *scope, 1);
    memset(scope, 0, sizeof *scope);
    luaL_setmetatable(L, SCOPE_OF_FIELDS_METATABLE);
    if (runtime->current != NULL) {
        lua_rawgeti(L, UPVALUE_ANCHORS, runtime->current->anchor);
        lua_setiuservalue(L, 2, 1);
    }
    scope->owner = runtime->current;
    push_captured(L, 1);
    {
        Bytes *captured = lua_touserdata(L, -1);
        scope->own = *captured;
        *captured = (Bytes){.data = NULL};
    }
    scope->before = context_keep(current(runtime));
    add(L, runtime, &scope->own);
    scope->serial = current(runtime) != NULL ? current(runtime)->serial : 0;
    scope->is_open = true;
    lua_settop(L, 2);
    return 1;
}

static void free_scope(Runtime *runtime, FieldScope *scope) {
    context_release(&runtime->contexts, scope->before);
    scope->before = NULL;
    bytes_free(&scope->own);
}

static int scope_close_fields(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    FieldScope *scope = lua_touserdata(L, 1);
    const Context *now = current(runtime);
    if (!scope->is_open)
        return 0;
    scope->is_open = false;
    if (runtime->current == scope->owner) { /* in another task there is nothing to take back */
        if (now != NULL && now->serial == scope->serial)
            enter(L, runtime, context_keep(scope->before));
        else
            restore(L, runtime, bytes_slice(&scope->own), context_fields(scope->before));
    }
    free_scope(runtime, scope);
    return 0;
}

static int scope_gc(lua_State *L) {
    free_scope(runtime_of(L), lua_touserdata(L, 1));
    return 0;
}

/* ---- correlation ids ---------------------------------------------------------------------------- */

/* correlation_id() -> string, or nil when there is none */
static int call_correlation_id(lua_State *L) {
    Context *context = current(runtime_of(L));
    const Secrets none = {.count = 0};
    char id[CONTEXT_ID_LENGTH];
    Slice fields;
    Value value;
    lua_settop(L, 0);
    if (context == NULL || !context->is_correlated) {
        lua_pushnil(L);
        return 1;
    }
    if (context->has_id) {
        context_write_id(context->id, id);
        lua_pushlstring(L, id, sizeof id);
        return 1;
    }
    fields = context_fields(context);
    if (!fields_find(fields, CONTEXT_CORRELATION, &value))
        return 0;
    lua_newtable(L);
    capture_set(L, 1, CONTEXT_CORRELATION, &value, &none);
    lua_getfield(L, 1, "correlation_id");
    luaL_tolstring(L, -1, NULL);
    return 1;
}

/* The layer around all others: gives what runs in it a correlation id, unless there is one. `serial` is
 * that of the context it made, or 0. */
static int execution_ended(lua_State *L, int status, lua_KContext serial) {
    Runtime *runtime = runtime_of(L);
    Context *now = current(runtime);
    int count = lua_gettop(L);
    (void)status;
    if (now == NULL || serial == 0)
        return count;
    if (now->serial == (uint64_t)serial) {
        enter(L, runtime, context_keep(now->base));
    } else { /* other fields have come, and stay */
        Bytes *name = push_buffer(L);
        fields_put_string(name, CONTEXT_CORRELATION);
        fields_put_nil(name);
        restore(L, runtime, bytes_slice(name), (Slice){NULL, 0});
        lua_settop(L, count);
    }
    return count;
}

static int execution(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Context *now = current(runtime), *context;
    int count = lua_gettop(L);
    lua_KContext serial = 0;
    luaL_checkstack(L, 1, "too many arguments");
    lua_pushvalue(L, UPVALUE_OWN);
    lua_insert(L, 1);
    if (now == NULL || !now->is_correlated) {
        context = context_make_execution(&runtime->contexts, now);
        if (context != NULL) { /* else it has to do without */
            serial = (lua_KContext)context->serial;
            enter(L, runtime, context);
        }
    }
    lua_callk(L, count, LUA_MULTRET, serial, execution_ended);
    return execution_ended(L, LUA_OK, serial);
}

/* execution(layer) -> layer */
static int call_execution(lua_State *L) {
    luaL_checkany(L, 1);
    lua_settop(L, 1);
    runtime_push_function(L, execution, 1);
    return 1;
}

static const luaL_Reg functions[] = {{"add_context", call_add},
                                     {"remove_context", call_remove},
                                     {"get_context", call_get},
                                     {"push_context", call_push},
                                     {"execution", call_execution},
                                     {"correlation_id", call_correlation_id},
                                     {NULL, NULL}};

void tracing_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, BUFFER_METATABLE, NULL);
    lua_pushcfunction(L, buffer_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    runtime_new_metatable(L, SCOPE_OF_FIELDS_METATABLE, NULL);
    runtime_push_function(L, scope_close_fields, 0);
    lua_setfield(L, -2, "__close");
    runtime_push_function(L, scope_gc, 0);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
