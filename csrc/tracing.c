#include "tracing.h"
#include "cancel.h"
#include "capture.h"
#include "histogram.h"

#include <string.h>

#define BUFFER_METATABLE "opero.ContextBuffer"
#define SCOPE_OF_FIELDS_METATABLE "opero.ContextScope"
#define METER_METATABLE "opero.Meter"

#define UPVALUE_METER lua_upvalueindex(5)  /* of execution, after the layer */
#define UPVALUE_RAISES lua_upvalueindex(6) /* whether it gives results or raises, as a call does */

/* ---- the context of the code that runs ---------------------------------------------------------- */

static Context *current(const Runtime *runtime) {
    return contexts_get(&runtime->contexts, runtime_context_place(runtime));
}

Context *tracing_keep(const Runtime *runtime) {
    return context_keep(current(runtime));
}

bool tracing_exchange(Runtime *runtime, Context **context) {
    Context *before = current(runtime), **place;
    if (before == *context)
        return true;
    place = contexts_place(&runtime->contexts, runtime_context_place(runtime));
    if (place == NULL)
        return false;
    *place = *context;
    *context = before;
    return true;
}

/* Takes a reference to the context, and makes it that of the code that runs. False: memory is short, and
 * nothing has changed. */
static bool enter(Runtime *runtime, Context *context) {
    Context **place = runtime->contexts.is_closed
                          ? NULL
                          : contexts_place(&runtime->contexts, runtime_context_place(runtime));
    if (place == NULL) {
        context_release(&runtime->contexts, context);
        return runtime->contexts.is_closed; /* there is nothing left that would have one */
    }
    context_set(&runtime->contexts, place, context);
    return true;
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

/* Makes the fields, which it takes, the context; none is no context. The same. */
static bool enter_fields(Runtime *runtime, Bytes *fields) {
    Context *context = NULL;
    if (fields->has_failed)
        return false;
    if (fields->length > 0) {
        context = context_make(&runtime->contexts, fields);
        if (context == NULL)
            return false;
    }
    return enter(runtime, context);
}

static void raise_unless(lua_State *L, bool is_done) {
    if (!is_done)
        luaL_error(L, "not enough memory");
}

/* Pushes a copy of the current fields: what allocates may run finalizers, which may change them. */
static Slice push_current(lua_State *L, const Runtime *runtime) {
    Bytes *fields = push_buffer(L);
    bytes_append_slice(fields, context_fields(current(runtime))); /* none when the state closes */
    raise_unless(L, !fields->has_failed);
    return bytes_slice(fields);
}

static bool add(Runtime *runtime, Slice fields) {
    Bytes merged = {.data = NULL};
    bool is_done;
    fields_merge(&merged, context_fields(current(runtime)), fields);
    is_done = enter_fields(runtime, &merged);
    bytes_free(&merged);
    return is_done;
}

/* add_context(fields) */
static int call_add(lua_State *L) {
    Bytes *fields;
    luaL_checktype(L, 1, LUA_TTABLE);
    /* When the state closes, no finalizer would free what is made now. */
    if (runtime_of(L)->contexts.is_closed)
        return 0;
    fields = push_buffer(L);
    capture_fields(L, 1, fields);
    raise_unless(L, !fields->has_failed && add(runtime_of(L), bytes_slice(fields)));
    bytes_free(fields);
    return 0;
}

/* remove_context(name, ...) */
static int call_remove(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    int count = lua_gettop(L);
    Bytes *kept;
    Slice rest, name;
    Value value;
    for (int i = 1; i <= count; i++)
        luaL_checkstring(L, i);
    if (contexts_get(&runtime->contexts, runtime_context_place(runtime)) == NULL)
        return 0;
    kept = push_buffer(L);
    rest = context_fields(current(runtime)); /* no Lua from here on */
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
    raise_unless(L, enter_fields(runtime, kept));
    return 0;
}

/* get_context() -> a table of its fields */
static int call_get(lua_State *L) {
    const Secrets none = {.count = 0};
    capture_push(L, push_current(L, runtime_of(L)), &none);
    return 1;
}

/* ---- scopes of fields --------------------------------------------------------------------------- */

typedef struct FieldScope { /* a userdata; its user value is the task it was opened in, or nil */
    Context *before;        /* what there was, or NULL */
    uint64_t serial;        /* of the context that it made */
    Bytes own;              /* the fields it was opened with */
    const Task *task;       /* in which it was opened ... */
    uint64_t generator;     /* ... or in this generator, whichever task that runs in */
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
static bool restore(Runtime *runtime, Slice names, Slice before) {
    Bytes kept = {.data = NULL}, earlier = {.data = NULL}, merged = {.data = NULL};
    bool is_done;
    append_those(&kept, context_fields(current(runtime)), names, false);
    append_those(&earlier, before, names, true);
    fields_merge(&merged, bytes_slice(&kept), bytes_slice(&earlier));
    is_done = !kept.has_failed && !earlier.has_failed && enter_fields(runtime, &merged);
    bytes_free(&kept);
    bytes_free(&earlier);
    bytes_free(&merged);
    return is_done;
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
    scope->task = runtime->current;
    scope->generator = runtime->generator;
    if (runtime->contexts.is_closed)
        return 1;
    capture_fields(L, 1, &scope->own);
    scope->before = context_keep(current(runtime));
    raise_unless(L, !scope->own.has_failed && add(runtime, bytes_slice(&scope->own)));
    scope->serial = current(runtime) != NULL ? current(runtime)->serial : 0;
    scope->is_open = true;
    return 1;
}

static void free_scope(Runtime *runtime, FieldScope *scope) {
    context_release(&runtime->contexts, scope->before);
    scope->before = NULL;
    bytes_free(&scope->own);
}

/* Whether this code has the context in which the scope was opened. */
static bool is_at_home(const Runtime *runtime, const FieldScope *scope) {
    if (scope->generator != 0 || runtime->generator != 0)
        return scope->generator == runtime->generator;
    return scope->task == runtime->current;
}

static int scope_close_fields(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    FieldScope *scope = lua_touserdata(L, 1);
    const Context *now = current(runtime);
    bool is_done = true;
    if (!scope->is_open)
        return 0;
    scope->is_open = false;
    if (is_at_home(runtime, scope)) { /* elsewhere there is nothing to take back */
        if (now != NULL && now->serial == scope->serial)
            is_done = enter(runtime, context_keep(scope->before));
        else
            is_done = restore(runtime, bytes_slice(&scope->own), context_fields(scope->before));
    }
    free_scope(runtime, scope);
    raise_unless(L, is_done);
    return 0;
}

static int scope_gc(lua_State *L) {
    free_scope(runtime_of(L), lua_touserdata(L, 1));
    return 0;
}

/* ---- correlation ids ---------------------------------------------------------------------------- */

/* correlation_id() -> string, or nil when there is none */
static int call_correlation_id(lua_State *L) {
    const Context *context = current(runtime_of(L));
    const Secrets none = {.count = 0};
    char id[CONTEXT_ID_LENGTH];
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
    capture_push(L, push_current(L, runtime_of(L)), &none);
    lua_getfield(L, -1, "correlation_id");
    luaL_tolstring(L, -1, NULL);
    return 1;
}

/* ---- meters --------------------------------------------------------------------------------------- */

typedef struct Meter { /* a userdata */
    Histogram durations;
    lua_Integer succeeded, failed, cancelled;
} Meter;

/* meter() -> a meter */
static int call_meter(lua_State *L) {
    Meter *meter = lua_newuserdatauv(L, sizeof *meter, 0);
    memset(meter, 0, sizeof *meter);
    luaL_setmetatable(L, METER_METATABLE);
    return 1;
}

static Meter *check_meter(lua_State *L) {
    return luaL_checkudata(L, 1, METER_METATABLE);
}

static void set_number(lua_State *L, const char *name, double value) {
    lua_pushnumber(L, value);
    lua_setfield(L, -2, name);
}

/* meter:read() -> succeeded, failed, cancelled, and a table of seconds */
static int meter_read(lua_State *L) {
    const Meter *meter = check_meter(L);
    const Histogram *durations = &meter->durations;
    lua_pushinteger(L, meter->succeeded);
    lua_pushinteger(L, meter->failed);
    lua_pushinteger(L, meter->cancelled);
    lua_createtable(L, 0, 8);
    lua_pushinteger(L, (lua_Integer)durations->count);
    lua_setfield(L, -2, "count");
    if (durations->count > 0) {
        set_number(L, "sum", durations->sum_ns / 1e9);
        set_number(L, "mean", durations->sum_ns / 1e9 / (double)durations->count);
        set_number(L, "min", clock_to_seconds(durations->least_ns));
        set_number(L, "max", clock_to_seconds(durations->most_ns));
    }
    return 4;
}

/* meter:count() -> how many durations were added */
static int meter_count(lua_State *L) {
    lua_pushinteger(L, (lua_Integer)check_meter(L)->durations.count);
    return 1;
}

/* meter:percentile(fraction) -> seconds, nil when nothing was measured */
static int meter_percentile(lua_State *L) {
    const Meter *meter = check_meter(L);
    double fraction = luaL_checknumber(L, 2);
    if (meter->durations.count == 0)
        return 0;
    lua_pushnumber(L, clock_to_seconds(histogram_percentile_ns(&meter->durations, fraction)));
    return 1;
}

/* meter:below(seconds) -> how many took no longer */
static int meter_below(lua_State *L) {
    const Meter *meter = check_meter(L);
    lua_pushinteger(L, (lua_Integer)histogram_count_below(
                           &meter->durations, clock_from_seconds(luaL_checknumber(L, 2))));
    return 1;
}

/* meter:add(seconds) */
static int meter_add(lua_State *L) {
    histogram_add(&check_meter(L)->durations, clock_from_seconds(luaL_checknumber(L, 2)));
    return 0;
}

static int meter_gc(lua_State *L) {
    histogram_free(&check_meter(L)->durations);
    return 0;
}

static const luaL_Reg meter_methods[] = {
    {"read", meter_read},   {"count", meter_count}, {"percentile", meter_percentile},
    {"below", meter_below}, {"add", meter_add},     {NULL, NULL}};

/* Counts the outcome that stands above the time at which an execution began. Of cancelled ones the time
 * says nothing. */
static void note_outcome(lua_State *L, const Runtime *runtime) {
    Meter *meter = lua_touserdata(L, UPVALUE_METER);
    if (lua_toboolean(L, 2)) {
        meter->succeeded++;
    } else if (is_cancellation(L, 3)) {
        meter->cancelled++;
        return;
    } else
        meter->failed++;
    histogram_add(&meter->durations,
                  clock_now_ns(&runtime->loop->clock) - (int64_t)lua_tointeger(L, 1));
}

/* ---- executions ------------------------------------------------------------------------------------ */

/* Returns what stands above the time at which the execution began: its outcome, or what a call gives. */
static int hand_over(lua_State *L) {
    if (!lua_toboolean(L, UPVALUE_RAISES))
        return lua_gettop(L) - 1;
    if (lua_toboolean(L, 2))
        return lua_gettop(L) - 2;
    lua_settop(L, 3); /* nil, where the outcome has no error */
    return runtime_rethrow(L);
}

/* The layer around all others: gives what runs in it a correlation id, unless there is one. `serial` is
 * that of the context it made, or 0. */
static int execution_ended(lua_State *L, int status, lua_KContext serial) {
    Runtime *runtime = runtime_of(L);
    Context *now = current(runtime);
    (void)status;
    luaL_checkstack(L, 4, "too many results");
    note_outcome(L, runtime);
    if (now == NULL || serial == 0)
        return hand_over(L);
    if ((lua_KContext)now->serial == serial) {
        enter(runtime, context_keep(now->base)); /* there is a place: it needs no memory */
    } else {                                     /* other fields have come, and stay */
        Bytes name = {.data = NULL};
        fields_put_string(&name, CONTEXT_CORRELATION);
        fields_put_nil(&name);
        if (name.has_failed || !restore(runtime, bytes_slice(&name), (Slice){NULL, 0}))
            enter(runtime, NULL); /* better none than that of another execution */
        bytes_free(&name);
    }
    return hand_over(L);
}

static int execution(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Context *now = current(runtime), *context;
    int count = lua_gettop(L);
    lua_KContext serial = 0;
    luaL_checkstack(L, 2, "too many arguments");
    lua_pushinteger(L, clock_now_ns(&runtime->loop->clock));
    lua_pushvalue(L, UPVALUE_OWN);
    lua_rotate(L, 1, 2);
    if (now == NULL || !now->is_correlated) {
        context = context_make_execution(&runtime->contexts, now);
        if (context != NULL) { /* else it has to do without */
            serial = (lua_KContext)context->serial;
            if (!enter(runtime, context))
                serial = 0;
        }
    }
    lua_callk(L, count, LUA_MULTRET, serial, execution_ended);
    return execution_ended(L, LUA_OK, serial);
}

/* execution(layer, meter, raises?) -> layer, or a function like one that returns the results or raises the
 * error */
static int call_execution(lua_State *L) {
    luaL_checkany(L, 1);
    luaL_checkudata(L, 2, METER_METATABLE);
    lua_settop(L, 3);
    runtime_push_function(L, execution, 3);
    return 1;
}

static const luaL_Reg functions[] = {{"add_context", call_add},
                                     {"remove_context", call_remove},
                                     {"get_context", call_get},
                                     {"push_context", call_push},
                                     {"execution", call_execution},
                                     {"meter", call_meter},
                                     {"correlation_id", call_correlation_id},
                                     {NULL, NULL}};

void tracing_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, BUFFER_METATABLE, NULL);
    lua_pushcfunction(L, buffer_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    runtime_new_metatable(L, METER_METATABLE, meter_methods);
    lua_pushcfunction(L, meter_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    runtime_new_metatable(L, SCOPE_OF_FIELDS_METATABLE, NULL);
    runtime_push_function(L, scope_close_fields, 0);
    lua_setfield(L, -2, "__close");
    runtime_push_function(L, scope_gc, 0);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
