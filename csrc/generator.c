#include "generator.h"
#include "cancel.h"
#include "scope.h"
#include "task.h"
#include "tracing.h"

#define GENERATOR_METATABLE "opero.Generator"

typedef struct Generator { /* a userdata; its user value is the coroutine */
    lua_State *coroutine;
    Scope *base;     /* the innermost scope of the task that called it */
    bool is_waiting; /* it suspended its task, and is not to be resumed by others */
    bool has_begun;
    uint64_t number;  /* no two have the same */
    Context *context; /* of log records, while it does not run: its own, as a task's is */
} Generator;

/* What was in force before the generator ran, or is closed. */
typedef struct Outside {
    uint64_t generator;
    bool is_exchanged;
} Outside;

/* From here on the context is the generator's. */
static Outside enter(Runtime *runtime, Generator *generator) {
    Outside outside = {runtime->generator, tracing_exchange(runtime, &generator->context)};
    runtime->generator = generator->number;
    return outside;
}

static void leave(Runtime *runtime, Generator *generator, Outside outside) {
    runtime->generator = outside.generator;
    if (outside.is_exchanged)
        tracing_exchange(runtime, &generator->context); /* there is a place now */
}

static int body_ended(lua_State *L, int status, lua_KContext context) {
    (void)context;
    return status == LUA_OK || status == LUA_YIELD ? lua_gettop(L) - 1 : lua_error(L);
}

/* The first function of the coroutine. As in a task's, only within a protected call can pending
 * closes suspend when an error passes them. */
static int body(lua_State *L) { /* runtime_note_error, function, argument, ... */
    int status = lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, 0, body_ended);
    return body_ended(L, status, 0);
}

static int generator_waited(lua_State *L, int status, lua_KContext context);

/* Replaces the error at the top of the stack by what closing the coroutine makes of it. */
static void generator_fail(lua_State *L, Generator *generator) {
    lua_State *coroutine = generator->coroutine;
    int status = lua_status(coroutine);
    Outside outside;
    if (status == LUA_OK || status == LUA_YIELD)
        return; /* it was not its own: the generator was running already, or had ended */
    lua_pushvalue(L, -1);
    lua_xmove(L, coroutine, 1);
    outside = enter(runtime_of(L), generator);
    runtime_close_over(L, coroutine);
    leave(runtime_of(L), generator, outside);
}

/* Whether the generator, which has just come back, has left a scope open in its caller's task. What a
 * task owes its own scope is in order. */
static bool has_left_scope(const Runtime *runtime, const Generator *generator) {
    const Task *me = runtime->current;
    return me != NULL && me->scope != generator->base &&
           !(generator->base == NULL && me->scope->kind == SCOPE_ROOT);
}

/* The generator yielded within a scope, which belongs to a frame of it, while scopes belong to tasks
 * and end in the reverse order of their beginning. It ends here. */
static int refuse_to_leave(lua_State *L, Runtime *runtime, Generator *generator) {
    Task *me = runtime->current;
    Scope *outermost = me->scope;
    Outside outside;
    for (Scope *scope = me->scope; scope != generator->base; scope = scope->outer)
        if (scope->kind != SCOPE_ROOT) /* that is the task's, whoever opened it */
            outermost = scope;
    runtime_push_error(L, "CancelledError", "the generator left the scope", NULL);
    scope_cancel(L, runtime, outermost);
    scope_collapse(L, runtime->loop, me, generator->base);
    outside = enter(runtime, generator);
    runtime_close_thread(L, generator->coroutine);
    leave(runtime, generator, outside);
    return luaL_error(L,
                      "a generator cannot yield out of opero.scope, opero.timeout or opero.shield: "
                      "what it began there has to end first");
}

/* Resumes the generator with the values on the stack. */
static int generator_resume(lua_State *L, Generator *generator) {
    Runtime *runtime = runtime_of(L);
    lua_State *coroutine = generator->coroutine, *active = runtime->active;
    int count = lua_gettop(L), status;
    Outside outside;
    if (!lua_checkstack(coroutine, count))
        return luaL_error(L, "too many arguments to a generator");
    lua_xmove(L, coroutine, count);
    if (L == active) /* it may suspend where its caller may */
        runtime->active = lua_isyieldable(L) ? coroutine : NULL;
    if (!generator->has_begun)
        count += 2; /* the handler and the function stand there already */
    generator->has_begun = true;
    outside = enter(runtime, generator);
    status = lua_resume(coroutine, L, count, &count);
    leave(runtime, generator, outside);
    runtime->active = active;
    if (status == LUA_YIELD && runtime->is_suspending && runtime->current != NULL) {
        lua_pushvalue(L, UPVALUE_OWN);
        lua_toclose(L, 1); /* if this task is closed, so is the generator */
        generator->is_waiting = true;
        return lua_yieldk(L, 0, 1, generator_waited);
    }
    if (has_left_scope(runtime, generator)) {
        lua_settop(L, 0);
        return refuse_to_leave(L, runtime, generator);
    }
    if (status == LUA_OK || status == LUA_YIELD) {
        luaL_checkstack(L, count, "too many results");
        lua_xmove(coroutine, L, count);
        return count;
    }
    lua_xmove(coroutine, L, 1);
    generator_fail(L, generator);
    return runtime_rethrow(L);
}

static int generator_waited(lua_State *L, int status, lua_KContext context) {
    Generator *generator = lua_touserdata(L, UPVALUE_OWN);
    task_regain(L, generator_waited, context);
    (void)status;
    generator->is_waiting = false;
    lua_closeslot(L, 1); /* closes nothing: it no longer waits */
    lua_remove(L, 1);
    return generator_resume(L, generator);
}

static int generator_call(lua_State *L) {
    Generator *generator = lua_touserdata(L, UPVALUE_OWN);
    const Runtime *runtime = runtime_of(L);
    if (generator->is_waiting)
        return luaL_error(L, "the generator is suspended on behalf of another task");
    generator->base = runtime->current != NULL ? runtime->current->scope : NULL;
    return generator_resume(L, generator);
}

static int generator_close(lua_State *L) {
    Generator *generator = lua_touserdata(L, 1);
    Runtime *runtime = runtime_of(L);
    Outside outside;
    int status;
    if (!generator->is_waiting)
        return 0;
    generator->is_waiting = false;
    outside = enter(runtime, generator);
    status = runtime_close_thread(L, generator->coroutine);
    leave(runtime, generator, outside);
    if (status == LUA_OK)
        return 0;
    lua_xmove(generator->coroutine, L, 1);
    return lua_error(L);
}

static int generator_gc(lua_State *L) {
    Generator *generator = lua_touserdata(L, 1);
    context_release(&runtime_of(L)->contexts, generator->context);
    generator->context = NULL;
    return 0;
}

static int call_wrap(lua_State *L) {
    Generator *generator;
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    generator = lua_newuserdatauv(L, sizeof *generator, 1);
    generator->has_begun = false;
    generator->is_waiting = false;
    generator->base = NULL;
    generator->context = NULL;
    luaL_setmetatable(L, GENERATOR_METATABLE);
    generator->context = tracing_keep(runtime_of(L));
    generator->number = ++runtime_of(L)->contexts.serial;
    generator->coroutine = lua_newthread(L);
    lua_pushcfunction(L, body);
    lua_pushcfunction(L, runtime_note_error);
    lua_pushvalue(L, 1);
    lua_xmove(L, generator->coroutine, 3);
    lua_setiuservalue(L, 2, 1);
    runtime_push_function(L, generator_call, 1);
    return 1;
}

static const luaL_Reg functions[] = {{"wrap", call_wrap}, {NULL, NULL}};

void generator_register(lua_State *L, int module) {
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, GENERATOR_METATABLE, NULL);
    runtime_push_function(L, generator_close, 0);
    lua_setfield(L, -2, "__close");
    runtime_push_function(L, generator_gc, 0);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
