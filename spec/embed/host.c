/*
 * A C program that hosts Lua, has an event loop of its own, and lets Opero's tasks run in it.
 *
 *   host             lists the tests
 *   host TEST        runs one: silent and 0 when all is well
 *
 * docs/embedding.md explains the loop (struct Host, host_turn).
 */
#include "opero.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

#include <lauxlib.h>
#include <lualib.h>

static const char *test_name = "?";

static void check(bool ok, const char *what, int line) {
    if (ok)
        return;
    fprintf(stderr, "%s: %s:%d: %s\n", test_name, __FILE__, line, what);
    exit(1);
}

#define CHECK(CONDITION) check((CONDITION), #CONDITION, __LINE__)

/* A library must not take these for its own, nor be taken for them. */
int timers_add(void);
int task_wake(void);
int clock_real_ns(void);

int timers_add(void) {
    abort();
}

int task_wake(void) {
    abort();
}

int clock_real_ns(void) {
    abort();
}

static int64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- the host's loop --------------------------------------------------------------------------- */

enum { STATES_MAX = 4, CALLS_MAX = 8 };

/* A Lua function to be called later: the host's idea of an asynchronous operation. */
typedef struct Call {
    lua_State *L;
    int64_t due_ns;
    int function; /* its reference; LUA_NOREF: none */
} Call;

typedef struct Host {
    lua_State *states[STATES_MAX]; /* or NULL */
    Call calls[CALLS_MAX];
    long steps; /* made so far */
    int errors; /* that came out of steps; the last one's text: */
    char error[200];
} Host;

static _Thread_local Host *the_host; /* of this thread: Lua's functions below find it here */

/* Lets a state's tasks run, once each. Errors that nobody awaited come out here. */
static void host_step(Host *host, lua_State *L) {
    int top = lua_gettop(L);
    host->steps++;
    if (opero_step(L, 0) != LUA_OK) {
        host->errors++;
        snprintf(host->error, sizeof host->error, "%s", luaL_tolstring(L, -1, NULL));
        lua_settop(L, top);
    }
    CHECK(lua_gettop(L) == top);
}

static void host_call_due(Host *host) {
    for (int i = 0; i < CALLS_MAX; i++) {
        Call *call = &host->calls[i];
        if (call->L == NULL || call->due_ns > now_ns())
            continue;
        lua_rawgeti(call->L, LUA_REGISTRYINDEX, call->function);
        luaL_unref(call->L, LUA_REGISTRYINDEX, call->function);
        lua_pushliteral(call->L, "from the host");
        CHECK(lua_pcall(call->L, 1, 0, 0) == LUA_OK);
        call->L = NULL;
    }
}

static int64_t earlier(int64_t a_ns, int64_t b_ns) {
    return a_ns < 0 || (b_ns >= 0 && b_ns < a_ns) ? b_ns : a_ns; /* -1: never */
}

/* A turn of the loop: waits for a descriptor or until something is due, and does it. */
static void host_turn(Host *host) {
    struct pollfd polled[STATES_MAX];
    int64_t wait_ns = -1, begun_ns;
    host_call_due(host);
    begun_ns = now_ns();
    for (int i = 0; i < CALLS_MAX; i++)
        if (host->calls[i].L != NULL)
            wait_ns = earlier(
                wait_ns, host->calls[i].due_ns > begun_ns ? host->calls[i].due_ns - begun_ns : 0);
    for (int i = 0; i < STATES_MAX; i++) {
        lua_State *L = host->states[i];
        polled[i] = (struct pollfd){.fd = L != NULL ? opero_pollfd(L) : -1, .events = POLLIN};
        if (L == NULL)
            continue;
        wait_ns = earlier(wait_ns, opero_deadline_ns(L));
        if (polled[i].fd < 0 && opero_live(L) > 0)
            wait_ns = earlier(wait_ns, 1000000); /* built with poll(2): look now and then */
    }
    ppoll(polled, STATES_MAX,
          wait_ns < 0 ? NULL : &(struct timespec){wait_ns / 1000000000, wait_ns % 1000000000},
          NULL);
    for (int i = 0; i < STATES_MAX; i++) {
        lua_State *L = host->states[i];
        if (L != NULL && (polled[i].fd < 0 || polled[i].revents != 0 || opero_deadline_ns(L) == 0))
            host_step(host, L);
    }
}

static size_t host_live(const Host *host) {
    size_t live = 0;
    for (int i = 0; i < STATES_MAX; i++)
        if (host->states[i] != NULL)
            live += opero_live(host->states[i]);
    return live;
}

/* Runs until no task is left in any state, for 20 s at most. */
static void host_run(Host *host) {
    int64_t begun_ns = now_ns();
    while (host_live(host) > 0) {
        CHECK(now_ns() - begun_ns < 20000000000);
        host_turn(host);
    }
}

/* ---- what Lua sees of the host ------------------------------------------------------------------- */

/* call_later(seconds, function) */
static int lua_call_later(lua_State *L) {
    lua_Number seconds = luaL_checknumber(L, 1);
    for (int i = 0; i < CALLS_MAX; i++) {
        Call *call = &the_host->calls[i];
        if (call->L != NULL)
            continue;
        lua_settop(L, 2);
        call->function = luaL_ref(L, LUA_REGISTRYINDEX);
        call->due_ns = now_ns() + (int64_t)(seconds * 1e9);
        /* not L, which may be the coroutine of a task that is gone by then */
        lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
        call->L = lua_tothread(L, -1);
        return 0;
    }
    return luaL_error(L, "too many calls");
}

static int lua_pipe(lua_State *L) {
    int fd[2];
    if (pipe(fd) != 0)
        return luaL_error(L, "pipe: %s", strerror(errno));
    lua_pushinteger(L, fd[0]);
    lua_pushinteger(L, fd[1]);
    return 2;
}

static int lua_read(lua_State *L) {
    char bytes[100];
    ssize_t count = read((int)luaL_checkinteger(L, 1), bytes, sizeof bytes);
    if (count < 0)
        return luaL_error(L, "read: %s", strerror(errno));
    lua_pushlstring(L, bytes, (size_t)count);
    return 1;
}

static int lua_write(lua_State *L) {
    size_t length;
    const char *bytes = luaL_checklstring(L, 2, &length);
    if (write((int)luaL_checkinteger(L, 1), bytes, length) != (ssize_t)length)
        return luaL_error(L, "write: %s", strerror(errno));
    return 0;
}

static int lua_close_fd(lua_State *L) {
    close((int)luaL_checkinteger(L, 1));
    return 0;
}

/* step(): what must not be called in a task; returns the status and the error. */
static int lua_step(lua_State *L) {
    lua_pushinteger(L, opero_step(L, 0));
    lua_rotate(L, 1, 1);
    return lua_gettop(L);
}

static const luaL_Reg host_functions[] = {
    {"call_later", lua_call_later}, {"pipe", lua_pipe}, {"read", lua_read}, {"write", lua_write},
    {"close_fd", lua_close_fd},     {"step", lua_step}, {NULL, NULL},
};

static int panic(lua_State *L) {
    fprintf(stderr, "%s: panic: %s\n", test_name, lua_tostring(L, -1));
    return 0;
}

/* Makes a state with the globals host and core, and runs the text in it. */
static lua_State *host_open(Host *host, int place, const char *text) {
    lua_State *L = luaL_newstate();
    CHECK(L != NULL);
    the_host = host;
    lua_atpanic(L, panic);
    luaL_openlibs(L);
    luaL_requiref(L, "opero.core", luaopen_opero_core, 0);
    lua_setglobal(L, "core");
    luaL_newlib(L, host_functions);
    lua_setglobal(L, "host");
    host->states[place] = L;
    if (luaL_dostring(L, text) != LUA_OK) {
        fprintf(stderr, "%s: %s\n", test_name, lua_tostring(L, -1));
        exit(1);
    }
    return L;
}

static lua_Integer global(lua_State *L, const char *name) {
    lua_Integer value;
    lua_getglobal(L, name);
    value = lua_tointeger(L, -1);
    lua_pop(L, 1);
    return value;
}

static void host_close(Host *host) {
    for (int i = 0; i < STATES_MAX; i++)
        if (host->states[i] != NULL)
            lua_close(host->states[i]);
}

static int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 64; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* ---- tests ------------------------------------------------------------------------------------------ */

static void sleeping_tasks(void) {
    Host host = {.steps = 0};
    int64_t begun_ns = now_ns();
    lua_State *L = host_open(&host, 0,
                             "count = 0\n"
                             "for i = 1, 10 do\n"
                             "  core.spawn(function() core.sleep(0.02) count = count + 1 end)\n"
                             "end");
    CHECK(opero_live(L) == 10);
    CHECK(opero_deadline_ns(L) == 0); /* they have not begun */
    host_run(&host);
    CHECK(global(L, "count") == 10);
    CHECK(now_ns() - begun_ns >= 20000000);
    CHECK(opero_deadline_ns(L) == -1);
    CHECK(opero_live(L) == 0);
    if (opero_pollfd(L) >= 0)
        CHECK(host.steps < 30); /* the loop slept while they did */
    host_close(&host);
}

static void deadlines(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0, "core.spawn(core.sleep, 3600)");
    int64_t until_ns;
    host_step(&host, L);
    until_ns = opero_deadline_ns(L);
    CHECK(until_ns > 3590000000000 && until_ns <= 3600000000000);
    host_step(&host, L); /* a step before it is time does no harm */
    CHECK(opero_live(L) == 1);
    CHECK(luaL_dostring(L, "local t = core.spawn(core.sleep, 0.001)") == LUA_OK);
    host_step(&host, L);
    until_ns = opero_deadline_ns(L);
    CHECK(until_ns >= 0 && until_ns <= 1000000);
    CHECK(opero_step(L, INT64_MAX) == LUA_OK); /* may wait as well: until the sooner of the two */
    CHECK(opero_step(L, -1) == LUA_OK);        /* or not at all */
    CHECK(opero_live(L) == 2 || opero_live(L) == 1);
    host_close(&host);
}

static void descriptors(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0,
                             "input, output = host.pipe()\n"
                             "core.spawn(function()\n"
                             "  assert(core.wait(input, 'r') == 'r')\n"
                             "  received = #host.read(input)\n"
                             "end)");
    int output = (int)global(L, "output");
    for (int i = 0; i < 3; i++)
        host_step(&host, L);
    CHECK(opero_live(L) == 1);
    CHECK(opero_deadline_ns(L) == -1 || opero_deadline_ns(L) > 0);
    if (opero_pollfd(L) >= 0) {
        struct pollfd polled = {.fd = opero_pollfd(L), .events = POLLIN};
        CHECK(poll(&polled, 1, 0) == 0);
        CHECK(write(output, "five!", 5) == 5);
        CHECK(poll(&polled, 1, 0) == 1);
    } else {
        CHECK(write(output, "five!", 5) == 5);
    }
    host_run(&host);
    CHECK(global(L, "received") == 5);
    close((int)global(L, "input"));
    close(output);
    host_close(&host);
}

static void closed_descriptors(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0,
                             "local input, output = host.pipe()\n"
                             "core.spawn(function()\n"
                             "  local ok, err = pcall(core.wait, input, 'r')\n"
                             "  refused = not ok and err:find('closed while', 1, true)\n"
                             "end)\n"
                             "core.spawn(function()\n"
                             "  core.sleep(0.001)\n"
                             "  host.close_fd(input)\n"
                             "  host.close_fd(output)\n"
                             "end)");
    host_run(&host); /* nothing but the loop itself can find that out */
    CHECK(global(L, "refused") > 0);
    host_close(&host);
}

static void callbacks(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0,
                             "count = 0\n"
                             "for i = 1, 5 do\n"
                             "  core.spawn(function()\n"
                             "    local text = core.await(function(resume)\n"
                             "      host.call_later(0.001 * i, resume)\n"
                             "    end)\n"
                             "    assert(text == 'from the host')\n"
                             "    count = count + 1\n"
                             "  end)\n"
                             "end\n"
                             "host.call_later(0.002, function()\n"
                             "  core.spawn(function() core.yield() spawned = 1 end)\n"
                             "end)");
    host_run(&host);
    CHECK(global(L, "count") == 5);
    CHECK(global(L, "spawned") == 1);
    host_close(&host);
}

static void errors(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0,
                             "core.spawn(function() core.yield() error('lost', 0) end)\n"
                             "core.spawn(function() core.sleep(0.001) done = 1 end)");
    host_run(&host);
    CHECK(host.errors == 1);
    CHECK(strcmp(host.error, "lost") == 0);
    CHECK(global(L, "done") == 1); /* the others ran on */
    CHECK(luaL_dostring(L, "core.spawn(error)") == LUA_OK);
    CHECK(opero_step(L, 0) == LUA_ERRRUN);
    CHECK(lua_gettop(L) == 1 && lua_isnil(L, 1)); /* any value is an error */
    host_close(&host);
}

static void no_step_in_a_task(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0,
                             "core.spawn(function() status, err = host.step() end)\n"
                             "core.spawn(function()\n"
                             "  inner = coroutine.wrap(function() return host.step() end)()\n"
                             "end)");
    host_run(&host);
    CHECK(global(L, "status") == LUA_ERRRUN);
    CHECK(global(L, "inner") == LUA_ERRRUN);
    lua_getglobal(L, "err");
    CHECK(strstr(lua_tostring(L, -1), "cannot be called in a task") != NULL);
    host_close(&host);
}

/* What one state does at its own pace, another need not know of. */
static const char two_kinds_of_work[] = "local input, output = host.pipe()\n"
                                        "local channel = core.channel(2)\n"
                                        "sum = 0\n"
                                        "core.spawn(function()\n"
                                        "  for i = 1, 100 do\n"
                                        "    if i % 10 == 0 then core.sleep(0.0005) end\n"
                                        "    channel:send(i)\n"
                                        "  end\n"
                                        "  channel:close()\n"
                                        "end)\n"
                                        "core.spawn(function()\n"
                                        "  for i in channel:iter() do\n"
                                        "    host.write(output, 'x')\n"
                                        "    core.wait(input, 'r')\n"
                                        "    sum = sum + i * #host.read(input)\n"
                                        "  end\n"
                                        "  host.close_fd(input)\n"
                                        "  host.close_fd(output)\n"
                                        "end)\n";

static void two_states(void) {
    Host host = {.steps = 0};
    lua_State *first = host_open(&host, 0, two_kinds_of_work);
    lua_State *second = host_open(&host, 2, two_kinds_of_work);
    lua_State *third = host_open(&host, 1,
                                 "core.spawn(core.sleep, 1000)\n"
                                 "core.spawn(function() core.semaphore(0):acquire() end)\n"
                                 "core.spawn(core.yield)");
    host_turn(&host);
    host_turn(&host);
    lua_close(third); /* in the middle of things */
    host.states[1] = NULL;
    host_run(&host);
    CHECK(global(first, "sum") == 5050);
    CHECK(global(second, "sum") == 5050);
    host_close(&host);
}

static void *run_thread(void *sum) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0, two_kinds_of_work);
    for (int i = 0; i < 20; i++) {
        host_run(&host);
        *(lua_Integer *)sum += global(L, "sum");
        CHECK(luaL_dostring(L, two_kinds_of_work) == LUA_OK);
    }
    host_close(&host); /* with tasks that have not begun */
    return NULL;
}

static void two_threads(void) {
    pthread_t thread[2];
    lua_Integer sum[2] = {0, 0};
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&thread[i], NULL, run_thread, &sum[i]) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(thread[i], NULL) == 0);
        CHECK(sum[i] == 20 * 5050);
    }
}

static const char suspended_in_every_way[] =
    "local closing = setmetatable({}, { __close = function() host.write(told, 'x') end })\n"
    "local function left(fn, ...)\n"
    "  core.spawn(function(...) local _ <close> = closing fn(...) end, ...)\n"
    "end\n"
    "input, output = host.pipe()\n"
    "left(core.sleep, 1000)\n"
    "left(core.wait, input, 'r')\n"
    "left(core.wait, input, 'r', 1000)\n"
    "left(function() core.semaphore(0):acquire() end)\n"
    "left(function() core.channel(0):send(1) end)\n"
    "left(function() core.channel(0):receive() end)\n"
    "left(function() core.event():wait(1000) end)\n"
    "left(core.await, function() end)\n"
    "left(core.await, function(resume) host.call_later(1000, resume) end)\n"
    "left(core.scope, function(s) s:spawn(core.sleep, 1000) end)\n"
    "left(core.timeout, 1000, core.sleep, 1000)\n"
    "left(core.shield, core.sleep, 1000)\n"
    "left(function() core.spawn(core.sleep, 1000):await() end)\n"
    "left(core.wrap(function() core.sleep(1000) end))\n";

static void closing(void) {
    int before = count_open(), fd[2];
    char bytes[64];
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0, suspended_in_every_way);
    int input = (int)global(L, "input"), output = (int)global(L, "output");
    CHECK(pipe(fd) == 0);
    lua_pushinteger(L, fd[1]);
    lua_setglobal(L, "told");
    for (int i = 0; i < 3; i++)
        host_turn(&host);
    CHECK(opero_live(L) >= 14);
    CHECK(luaL_dostring(L, "core.spawn(core.sleep, 1)") == LUA_OK); /* and one not begun */
    lua_close(L);
    CHECK(read(fd[0], bytes, sizeof bytes) == 14); /* all pending closes ran */
    close(fd[0]);
    close(fd[1]);
    close(input);
    close(output);
    CHECK(count_open() == before);
}

/* The runtime as a part of the program's Lua code, which need not know that there is a loop. */
static void the_whole_library(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(
        &host, 0,
        "local opero = require 'opero'\n"
        "local orch = opero.Orchestrator{\n"
        "  retry_config = { max_attempts = 3, wait_min = 0.001, wait_max = 0.002 },\n"
        "  fallbacks = { function(x) opero.sleep(0.001) return x .. ' by fallback' end },\n"
        "}\n"
        "opero.spawn(function()\n"
        "  local calls = 0\n"
        "  result = orch:execute(function() calls = calls + 1 error('no', 0) end, 'done')\n"
        "  attempts = calls\n"
        "end)");
    host_run(&host);
    CHECK(host.errors == 0);
    CHECK(global(L, "attempts") == 3);
    lua_getglobal(L, "result");
    CHECK(strcmp(lua_tostring(L, -1), "done by fallback") == 0);
    host_close(&host);
}

/* Between steps the host may as well use the calls that run the loop themselves. */
static void running_to_the_end(void) {
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0, "core.spawn(function() core.sleep(0.001) other = 1 end)");
    host_turn(&host);
    CHECK(luaL_dostring(L, "result = core.run(function() core.sleep(0.002) return 7 end)") ==
          LUA_OK);
    CHECK(global(L, "result") == 7);
    CHECK(global(L, "other") == 1); /* it ran meanwhile */
    CHECK(opero_live(L) == 0);
    host_close(&host);
}

/* ---- short of memory ---------------------------------------------------------------------------------- */

static long allowed = -1; /* requests until one fails and all after it; -1: no limit */

static void *allocate(void *ud, void *old, size_t old_size, size_t size) {
    (void)ud;
    if (size == 0) {
        free(old);
        return NULL;
    }
    if ((old == NULL || size > old_size) && allowed >= 0 && allowed-- == 0) {
        allowed = 0;
        return NULL;
    }
    return realloc(old, size);
}

static void short_of_memory(void) {
    lua_State *L = lua_newstate(allocate, NULL);
    long failures = 0;
    int status;
    CHECK(L != NULL);
    lua_atpanic(L, panic);
    luaL_openlibs(L);
    luaL_requiref(L, "opero.core", luaopen_opero_core, 0);
    lua_setglobal(L, "core");
    for (long number = 0;; number++) {
        CHECK(luaL_dostring(L, "core.spawn(function() core.yield() return {} end)") == LUA_OK);
        allowed = number;
        status = opero_step(L, 0); /* an error, but never a panic */
        (void)opero_deadline_ns(L);
        (void)opero_live(L);
        allowed = -1;
        if (status == LUA_OK)
            break;
        CHECK(status == LUA_ERRMEM || strstr(lua_tostring(L, -1), "memory") != NULL);
        lua_settop(L, 0);
        failures++;
        for (int i = 0; i < 10; i++)
            if (opero_step(L, 0) != LUA_OK)
                lua_settop(L, 0);
        CHECK(opero_live(L) == 0); /* and what was begun ends */
    }
    CHECK(failures > 0);
    lua_close(L);
}

/* ---- another kind of loop ------------------------------------------------------------------------------- */

static void nested_epoll(void) {
#ifdef __linux__
    Host host = {.steps = 0};
    lua_State *L = host_open(&host, 0,
                             "input, output = host.pipe()\n"
                             "core.spawn(function()\n"
                             "  for _ = 1, 3 do core.wait(input, 'r') host.read(input) end\n"
                             "  host.close_fd(input)\n"
                             "end)");
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC), output = (int)global(L, "output");
    struct epoll_event event = {.events = EPOLLIN};
    if (opero_pollfd(L) < 0)
        return; /* built with poll(2) */
    CHECK(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, opero_pollfd(L), &event) == 0);
    host_step(&host, L);
    for (int i = 0; i < 3; i++) {
        CHECK(epoll_wait(epoll_fd, &event, 1, 0) == 0);
        CHECK(write(output, "x", 1) == 1);
        CHECK(epoll_wait(epoll_fd, &event, 1, 1000) == 1);
        host_step(&host, L);
    }
    CHECK(opero_live(L) == 0);
    close(epoll_fd);
    close(output);
    host_close(&host);
#endif
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"runs tasks that sleep", sleeping_tasks},
    {"knows when the next step is due", deadlines},
    {"waits for descriptors", descriptors},
    {"finds descriptors closed while they are waited for", closed_descriptors},
    {"resumes tasks from callbacks", callbacks},
    {"gets the errors that nobody awaited", errors},
    {"cannot step in a task", no_step_in_a_task},
    {"runs two states side by side", two_states},
    {"runs a state in each of two threads", two_threads},
    {"closes a state with tasks suspended in every way", closing},
    {"runs the whole library", the_whole_library},
    {"may run something to its end", running_to_the_end},
    {"survives a lack of memory", short_of_memory},
    {"may have a loop over epoll", nested_epoll},
};

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc < 2) {
            puts(tests[i].name);
        } else if (strcmp(argv[1], tests[i].name) == 0) {
            test_name = argv[1];
            alarm(60);
            tests[i].run();
            return 0;
        }
    }
    return argc >= 2;
}
