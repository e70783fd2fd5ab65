#include "pool.h"
#include "loop.h"
#include "pool_parts.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AHEAD 30 /* calls that a busy worker is sent at most beside those it runs */

/* ---- who does what --------------------------------------------------------------------------------- */

/* How many more tasks the worker may be given. */
static uint32_t allowance(const Worker *worker) {
    uint32_t max = worker->pool->max_tasks;
    if (max == 0)
        return UINT32_MAX;
    return worker->assigned < max ? max - worker->assigned : 0;
}

static bool can_take(const Worker *worker) {
    return (worker->state == WORKER_READY || worker->state == WORKER_STARTING) &&
           !worker->has_hung_up && worker->is_init_sent && worker->sending == NULL &&
           allowance(worker) > 0 && worker->load < worker->pool->setup.slots + AHEAD;
}

/* The worker with the least to do of those that can take the call. */
static Worker *choose(const Pool *pool, const Call *call) {
    Worker *best = NULL;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (can_take(worker) && worker->generation >= call->generation &&
            (best == NULL || worker->load < best->load))
            best = worker;
    }
    return best;
}

/* Sends the call, which is in the queue. False: there is no room for it yet. */
static bool send_call(Worker *worker, Call *call) {
    uint32_t allowed = allowance(worker);
    if (!crew_send_settings(worker) || !crew_send_context(worker, call->context))
        return false;
    if (call->count > allowed) {
        Call *rest = call_split(call, allowed);
        if (rest == NULL)
            return false;
        list_append(call->link.next, &rest->link);
        rest->is_placed = true;
        worker->pool->queued++;
    }
    parcel_init(&call->parcel, call->is_chunk ? RECORD_CHUNK : RECORD_CALL, STATUS_OK, call->id,
                &call->message);
    call->parcel.record.epoch = call->epoch = worker->port.epoch;
    call->parcel.record.count = (uint16_t)call->count;
    if (worker->load > 0 && parcel_size(&call->parcel) > ring_room(&worker->port.out))
        return false;
    call_unplace(call);
    call_place(call, &worker->calls, false);
    call->worker = worker;
    worker->load++;
    worker->assigned += call->count;
    worker->has_news = true;
    if (!parcel_send(&call->parcel, &worker->port)) {
        worker->sending = call;
        crew_send_rest(worker);
    }
    if (worker->load == 1)
        crew_reset_alarm(worker);
    return true;
}

/* The call needs a worker that is younger than all there are: one of them makes room. */
static void make_way(const Pool *pool, const Call *call) {
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (worker->state == WORKER_STOPPING || worker->state == WORKER_ENDING)
            return; /* there will be */
        if (worker->state == WORKER_READY && worker->load == 0 &&
            worker->generation < call->generation) {
            crew_stop(worker);
            return;
        }
    }
}

static void dispatch(lua_State *L, Pool *pool) {
    while (!list_is_empty(&pool->queue)) {
        Call *call = CONTAINER_OF(pool->queue.next, Call, link);
        Worker *worker = choose(pool, call);
        if ((worker == NULL || worker->load > 0) && pool->worker_count < pool->max_workers &&
            crew_can_start(pool)) {
            int error = crew_start(L, pool);
            if (error != 0 && pool->worker_count == 0) {
                crew_fail_queue(pool, NULL, (Death){.pid = 0, .status = error});
                return;
            }
            worker = choose(pool, call);
        }
        if (worker == NULL) {
            make_way(pool, call);
            return;
        }
        if (!send_call(worker, call))
            return;
    }
}

static Worker *find_idle(const Pool *pool) {
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (worker->load == 0 && worker->state == WORKER_READY && can_take(worker))
            return worker;
    }
    return NULL;
}

static Worker *find_busiest(const Pool *pool, uint32_t *waiting) {
    Worker *busiest = NULL;
    *waiting = 0;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        uint32_t count = worker->sending == NULL ? crew_count_waiting(worker) : 0;
        if (count > *waiting) {
            *waiting = count;
            busiest = worker;
        }
    }
    return busiest;
}

/* When a worker has nothing to do while others have tasks they have not begun, it gets some. */
static void balance(lua_State *L, Pool *pool) {
    for (uint32_t i = 0; i < pool->max_workers; i++) {
        uint32_t waiting;
        Worker *busiest;
        Call *first;
        if (!list_is_empty(&pool->queue) || find_idle(pool) == NULL)
            return;
        busiest = find_busiest(pool, &waiting);
        if (busiest == NULL || !crew_recall(busiest) || list_is_empty(&pool->queue))
            return;
        first = CONTAINER_OF(pool->queue.next, Call, link);
        if (pool->queued == 1 && first->count > 1) { /* to each his half */
            Call *rest = call_split(first, (first->count + 1) / 2);
            if (rest != NULL)
                call_put_into_queue(rest, false);
        }
        dispatch(L, pool);
    }
}

/* Whether tasks were accepted that have yet to begin; some may have been cancelled before they did. */
static bool has_accepted(Pool *pool) {
    Link *link = pool->accepted.next;
    while (link != &pool->accepted) {
        Call *call = CONTAINER_OF(link, Call, link);
        link = link->next;
        if (task_has_ended(call->task))
            link_remove(&call->link);
    }
    return !list_is_empty(&pool->accepted);
}

/* Whether all is done that was handed in before the pool began to close. */
static bool is_done(Pool *pool) {
    if (!pool->is_closing || pool->outstanding > 0)
        return false;
    if (!has_accepted(pool))
        return true;
    pool_due(pool); /* they begin, or not, in this turn or the next */
    return false;
}

static void stop_if_done(Pool *pool) {
    Link *link = pool->workers.next;
    bool is_all_done = is_done(pool);
    while (link != &pool->workers) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        link = link->next;
        if (worker->load > 0 || (worker->state != WORKER_READY && worker->state != WORKER_STARTING))
            continue;
        if (allowance(worker) == 0 || is_all_done)
            crew_stop(worker);
    }
    if (is_all_done && pool->worker_count == 0) {
        Task *task;
        pool->is_closed = true;
        while ((task = task_first(&pool->closers)) != NULL)
            task_wake(pool->service.loop, task, WAKE_OK, 0);
    }
}

static Pool *pool_of(Service *service) {
    return CONTAINER_OF(service, Pool, service);
}

static void work(lua_State *L, Service *service) {
    Pool *pool = pool_of(service);
    if (!lua_checkstack(L, LUA_MINSTACK))
        return;
    dispatch(L, pool);
    balance(L, pool);
    stop_if_done(pool);
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next)
        crew_wake(CONTAINER_OF(link, Worker, link));
    crew_count_watches(pool);
}

/* ---- taking calls back ----------------------------------------------------------------------------- */

/* Nobody wants the part any more. */
static void drop_part(Call *part) {
    Worker *worker = part->worker;
    if (!part->is_placed)
        return;
    if (worker != NULL && worker->state != WORKER_ENDING) {
        crew_recall(worker); /* then it is in the queue again, unless it has begun */
        worker = part->worker;
    }
    if (worker != NULL && part->pool->waits_on_cancel && worker->sending != part)
        return;
    if (worker != NULL)
        crew_interrupt(worker);
    call_end(part, CALL_CLOSED);
}

/* Nobody waits for the call any more. What runs is ended, or left to end. */
void pool_drop_call(Call *root) {
    bool had_handle = root->has_handle;
    root->task = NULL;
    if (pool_is_foreign(root->pool))
        return;
    root->has_handle = true; /* stays while we are at it */
    for (Call *part = root; part != NULL; part = part->next_part)
        drop_part(part);
    pool_due(root->pool);
    root->has_handle = had_handle;
}

/* ---- the end of a pool ----------------------------------------------------------------------------- */

/* Waits, at most until then, for workers to end that were interrupted. */
static void wait_for_interrupted(Pool *pool, int64_t until_ns) {
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        int64_t left_ns = until_ns - clock_real_ns();
        struct pollfd polled = {.fd = worker->process.end_fd, .events = POLLIN};
        if (worker->state == WORKER_ENDING && worker->alarm_ns != CLOCK_NEVER && left_ns > 0)
            poll(&polled, 1, (int)(left_ns / 1000000) + 1);
    }
}

/* Ends all that there is, at once. */
static void end_all(Pool *pool) {
    Task *task;
    pool->is_closing = true;
    while (!list_is_empty(&pool->queue))
        call_end(CONTAINER_OF(pool->queue.next, Call, link), CALL_CLOSED);
    wait_for_interrupted(pool, clock_real_ns() + POOL_GRACE_NS);
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        crew_receive(worker);
        crew_kill(worker, CALL_CLOSED);
    }
    while (!list_is_empty(&pool->workers))
        crew_bury(CONTAINER_OF(pool->workers.next, Worker, link));
    while (!list_is_empty(&pool->queue)) /* what had not begun */
        call_end(CONTAINER_OF(pool->queue.next, Call, link), CALL_CLOSED);
    pool->is_closed = true;
    while ((task = task_first(&pool->closers)) != NULL)
        task_wake(pool->service.loop, task, WAKE_OK, 0);
    crew_count_watches(pool);
}

static void forget(Service *service) {
    crew_forget(pool_of(service));
}

static void end(Service *service) {
    if (pool_is_foreign(pool_of(service)))
        forget(service);
    else
        end_all(pool_of(service));
}

static void move(Service *service, Loop *loop) {
    crew_move(pool_of(service), loop);
}

static int pool_gc(lua_State *L) {
    Pool *pool = lua_touserdata(L, 1);
    if (!list_is_empty(&pool->service.link)) { /* else the runtime has ended it already */
        end(&pool->service);
        runtime_remove_service(pool->runtime, &pool->service);
    }
    pool->is_closing = pool->is_closed = true;
    codec_message_free(&pool->init);
    free(pool->interpreter);
    free(pool->code);
    pool->interpreter = pool->code = NULL;
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, pool);
    return 0;
}

/* ---- the pool itself ------------------------------------------------------------------------------- */

Pool *pool_check(lua_State *L) {
    return luaL_checkudata(L, 1, POOL_METATABLE);
}

static void refuse_closed(lua_State *L, const char *message) {
    runtime_push_error(L, "ClosedError", message, NULL);
    lua_error(L);
}

void pool_check_open(lua_State *L, const Pool *pool) {
    if (pool_is_foreign(pool))
        refuse_closed(L, "the pool belongs to the parent process: it was made before the fork");
    if (pool->is_closing)
        refuse_closed(L, "the pool is closed");
}

static void set_count(lua_State *L, const char *name, uint64_t count) {
    lua_pushinteger(L, (lua_Integer)count);
    lua_setfield(L, -2, name);
}

static int pool_stats(lua_State *L) {
    const Pool *pool = pool_check(L);
    uint64_t idle = 0, busy = 0, waiting = 0, running = 0;
    lua_Integer pids = 0;
    lua_createtable(L, 0, 10);
    lua_newtable(L);
    for (const Link *link = pool->workers.next; link != &pool->workers && !pool_is_foreign(pool);
         link = link->next) {
        const Worker *worker = CONTAINER_OF(link, Worker, link);
        uint32_t ahead = crew_count_waiting(worker), all = 0;
        for (const Link *at = worker->calls.next; at != &worker->calls; at = at->next)
            all += CONTAINER_OF(at, Call, link)->count - CONTAINER_OF(at, Call, link)->done;
        waiting += ahead;
        running += all > ahead ? all - ahead : 0;
        if (worker->load > 0)
            busy++;
        else
            idle++;
        lua_pushinteger(L, worker->process.pid);
        lua_rawseti(L, -2, ++pids);
    }
    for (const Link *link = pool->queue.next; link != &pool->queue; link = link->next)
        waiting += CONTAINER_OF(link, Call, link)->count;
    lua_setfield(L, -2, "pids");
    set_count(L, "workers", idle + busy);
    set_count(L, "idle", idle);
    set_count(L, "busy", busy);
    set_count(L, "queued", waiting);
    set_count(L, "running", running);
    set_count(L, "completed", pool->completed);
    set_count(L, "failed", pool->failed);
    set_count(L, "crashed", pool->crashed);
    set_count(L, "started", pool->started);
    return 1;
}

static const WaitKind wait_closed = {.name = "pool:close"};

static int close_waited(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = task_regain(L, close_waited, context);
    Pool *pool = lua_touserdata(L, 1);
    (void)status;
    if (runtime->current->wake != WAKE_OK && !pool->is_closed)
        end_all(pool);
    if (runtime->current->wake == WAKE_CANCEL)
        task_resumed(L, runtime, 0);
    return 0;
}

/* Ends the pool: what was handed in may end, until then. */
static int close_until(lua_State *L, Runtime *runtime, Pool *pool, Task *me, int64_t deadline_ns) {
    pool->is_closing = true;
    pool_due(pool);
    lua_settop(L, 1);
    return task_suspend(L, runtime, me, &wait_closed, &pool->closers, pool, deadline_ns,
                        close_waited);
}

static int pool_close(lua_State *L) { /* pool, timeout */
    Runtime *runtime = runtime_of(L);
    Pool *pool = pool_check(L);
    int64_t deadline_ns = check_deadline(L, runtime, 2);
    Task *me;
    if (pool->is_closed || pool_is_foreign(pool)) {
        pool->is_closing = true;
        return 0;
    }
    if (pool->outstanding == 0 && pool->worker_count == 0 && list_is_empty(&pool->accepted)) {
        pool->is_closing = pool->is_closed = true;
        return 0;
    }
    me = task_enter(L, runtime, "pool:close");
    if (me == NULL)
        return loop_call(L, runtime, pool_close);
    if (pool->service.loop != runtime->loop) {
        if (pool->outstanding > 0)
            return luaL_error(L, "the pool is in use outside this simulation");
        crew_move(pool, runtime->loop);
    }
    return close_until(L, runtime, pool, me, deadline_ns);
}

static int pool_tbc(lua_State *L) { /* __close: pool, error */
    Pool *pool = pool_check(L);
    if (!lua_isnil(L, 2) && !pool_is_foreign(pool) && !pool->is_closed)
        end_all(pool);
    lua_settop(L, 1);
    return pool_close(L);
}

static int pool_tostring(lua_State *L) {
    const Pool *pool = pool_check(L);
    lua_pushfstring(L, "%s: %p (%s, %d of %d workers%s)", POOL_METATABLE, (const void *)pool,
                    pool->is_fork ? "fork" : "spawn", (int)pool->worker_count,
                    (int)pool->max_workers, pool->is_closing ? ", closed" : "");
    return 1;
}

static lua_Integer integer_option(lua_State *L, const char *name, lua_Integer otherwise) {
    lua_Integer value = otherwise;
    if (lua_getfield(L, 1, name) != LUA_TNIL)
        value = lua_tointeger(L, -1);
    lua_pop(L, 1);
    return value;
}

static int64_t seconds_option(lua_State *L, const char *name) {
    int64_t value = CLOCK_NEVER;
    if (lua_getfield(L, 1, name) != LUA_TNIL)
        value = clock_from_seconds((double)lua_tonumber(L, -1));
    lua_pop(L, 1);
    return value;
}

static bool is_option(lua_State *L, const char *name, const char *value) {
    bool is_it = lua_getfield(L, 1, name) == LUA_TSTRING && strcmp(lua_tostring(L, -1), value) == 0;
    lua_pop(L, 1);
    return is_it;
}

static char *string_option(lua_State *L, const char *name) {
    char *copy;
    lua_getfield(L, 1, name);
    copy = strdup(luaL_checkstring(L, -1));
    lua_pop(L, 1);
    if (copy == NULL)
        luaL_error(L, "not enough memory");
    return copy;
}

/* Encodes the option `init`, for every worker to get it. */
static void encode_init(lua_State *L, Pool *pool, int known) {
    Encoding encoding = {.message = &pool->init,
                         .options = {.what = "init", .leads_with_function = true}};
    int top = lua_gettop(L);
    if (lua_getfield(L, 1, "init") != LUA_TNIL) {
        lua_pushnil(L);
        if (pool->is_fork) {
            submit_make_known(L, pool, known, top + 1);
            lua_pushvalue(L, top + 1);
            lua_setiuservalue(L, known - 1, 1); /* it is known weakly, and the pool keeps it */
        }
        lua_call(L, submit_push_encoding(L, &encoding, known, top + 2, top + 1, 1), 0);
        pool->setup.has_init = true;
    }
    lua_settop(L, top);
}

/* pool(options): they are checked and complete, see lua/opero/pool.lua. */
static int new_pool(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Pool *pool;
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    pool = lua_newuserdatauv(L, sizeof *pool, 1);
    memset(pool, 0, sizeof *pool);
    link_init(&pool->service.link);
    link_init(&pool->accepted);
    link_init(&pool->queue);
    link_init(&pool->workers);
    link_init(&pool->closers);
    pool->runtime = runtime;
    pool->owner = getpid();
    pool->next_id = 1;
    luaL_setmetatable(L, POOL_METATABLE);
    lua_newtable(L); /* known functions */
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, pool);
    pool->is_fork = is_option(L, "backend", "fork");
    pool->waits_on_cancel = is_option(L, "cancel", "wait");
    lua_getfield(L, 1, "accept_functions");
    pool->accepts_functions = lua_toboolean(L, -1);
    lua_pop(L, 1);
    pool->max_workers = (uint32_t)integer_option(L, "max_workers", 1);
    pool->max_tasks = (uint32_t)integer_option(L, "max_tasks_per_worker", 0);
    pool->task_timeout_ns = seconds_option(L, "task_timeout");
    pool->idle_timeout_ns = seconds_option(L, "idle_timeout");
    pool->setup.slots = (uint32_t)integer_option(L, "tasks_per_worker", 1);
    pool->setup.memory_limit = (uint64_t)integer_option(L, "memory_limit", 0);
    pool->setup.has_nice = lua_getfield(L, 1, "nice") != LUA_TNIL;
    lua_pop(L, 1);
    pool->setup.nice = (int32_t)integer_option(L, "nice", 0);
    pool->setup.accepts_functions = pool->accepts_functions;
    pool->setup.is_timed = pool->task_timeout_ns != CLOCK_NEVER;
    pool->setup.parent = pool->owner;
    if (!pool->is_fork) {
        pool->interpreter = string_option(L, "interpreter");
        pool->code = string_option(L, "code");
    }
    encode_init(L, pool, 3);
    lua_settop(L, 2);
    pool->service.work = work;
    pool->service.move = move;
    pool->service.forget = forget;
    pool->service.end = end;
    runtime_add_service(runtime, &pool->service);
    return 1;
}

static int is_closed(lua_State *L) {
    lua_pushboolean(L, pool_check(L)->is_closing);
    return 1;
}

/* pool:_limits() -> max_workers, tasks_per_worker; of a pool that takes tasks */
static int limits(lua_State *L) {
    const Pool *pool = pool_check(L);
    pool_check_open(L, pool);
    lua_pushinteger(L, pool->max_workers);
    lua_pushinteger(L, pool->setup.slots);
    return 2;
}

/* processors() -> how many are online */
static int processors(lua_State *L) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    lua_pushinteger(L, count > 0 ? count : 1);
    return 1;
}

static const luaL_Reg functions[] = {{"pool", new_pool}, {"processors", processors}, {NULL, NULL}};

static const luaL_Reg methods[] = {{"_limits", limits},
                                   {"stats", pool_stats},
                                   {"close", pool_close},
                                   {"is_closed", is_closed},
                                   {NULL, NULL}};

static const luaL_Reg metamethods[] = {
    {"__gc", pool_gc}, {"__close", pool_tbc}, {"__tostring", pool_tostring}, {NULL, NULL}};

void pool_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, POOL_METATABLE, methods);
    runtime_set_functions(L, -1, metamethods);
    lua_getfield(L, -1, "__index");
    submit_register(L, lua_gettop(L));
    chunk_register(L, lua_gettop(L));
    lua_setfield(L, module, "pool_methods"); /* the Lua layer has more of them */
    lua_pop(L, 1);
}
