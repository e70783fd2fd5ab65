/*
 * Runs a scenario again and again, and each time another request for memory is refused: those of
 * Lua by way of its allocator, those of libopero by way of malloc, calloc and realloc, which the
 * linker replaces (--wrap). Whatever happens then has to be a clean error; afterwards the runtime
 * still has to work, lua_close has to give back all memory and every descriptor.
 *
 *   memory SCENARIO [STRIDE]       every request, or every STRIDE-th
 *   memory SCENARIO MODE NUMBER    a single run, with its errors shown
 */
#include "opero.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lualib.h>

/* ---- memory ---------------------------------------------------------------------------------- */

typedef enum Mode {
    MODE_NONE,
    MODE_ONCE,    /* the n-th request fails: Lua collects garbage and asks again */
    MODE_TWICE,   /* ... and fails again */
    MODE_FOREVER, /* the n-th and all after it */
    MODE_RANDOM,  /* one in sixteen, n being the seed */
} Mode;

static const char *const mode_names[] = {"none", "once", "twice", "forever", "random"};

static struct {
    Mode mode;
    long number, requests;
    uint64_t random;
    long refused;
    long blocks; /* that have not been freed */
} memory;

static bool must_fail(void) {
    long request = ++memory.requests;
    bool fails = false;
    switch (memory.mode) {
    case MODE_NONE:
        break;
    case MODE_ONCE:
        fails = request == memory.number;
        break;
    case MODE_TWICE:
        fails = request == memory.number || request == memory.number + 1;
        break;
    case MODE_FOREVER:
        fails = request >= memory.number;
        break;
    case MODE_RANDOM:
        memory.random = memory.random * 6364136223846793005u + 1442695040888963407u;
        fails = memory.random >> 60 == 0;
        break;
    }
    memory.refused += fails;
    return fails;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void __real_free(void *block);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void __wrap_free(void *block);

void *__wrap_malloc(size_t size) {
    void *block = must_fail() ? NULL : __real_malloc(size);
    memory.blocks += block != NULL;
    return block;
}

void *__wrap_calloc(size_t count, size_t size) {
    void *block = must_fail() ? NULL : __real_calloc(count, size);
    memory.blocks += block != NULL;
    return block;
}

void *__wrap_realloc(void *old, size_t size) {
    void *block = must_fail() ? NULL : __real_realloc(old, size);
    memory.blocks += block != NULL && old == NULL;
    return block;
}

void __wrap_free(void *block) {
    memory.blocks -= block != NULL;
    __real_free(block);
}

static void *allocate(void *ud, void *old, size_t old_size, size_t size) {
    void *block;
    (void)ud;
    if (size == 0) {
        memory.blocks -= old != NULL;
        __real_free(old);
        return NULL;
    }
    if ((old == NULL || size > old_size) && must_fail()) /* to make smaller must not fail */
        return NULL;
    block = __real_realloc(old, size);
    memory.blocks += block != NULL && old == NULL;
    return block;
}

/* ---- what the scenario gets from its host ---------------------------------------------------- */

static int closed; /* pending closes that ran */

static int host_pipe(lua_State *L) {
    int fd[2];
    if (pipe(fd) != 0)
        return luaL_error(L, "pipe: %s", strerror(errno));
    lua_pushinteger(L, fd[0]);
    lua_pushinteger(L, fd[1]);
    return 2;
}

static int host_write(lua_State *L) {
    return write((int)luaL_checkinteger(L, 1), "x", 1) == 1 ? 0 : luaL_error(L, "write failed");
}

static int host_read(lua_State *L) {
    char byte;
    return read((int)luaL_checkinteger(L, 1), &byte, 1) == 1 ? 0 : luaL_error(L, "read failed");
}

static int host_close(lua_State *L) {
    close((int)luaL_checkinteger(L, 1));
    return 0;
}

static int host_closed(lua_State *L) {
    (void)L;
    closed++;
    return 0;
}

static int host_exit(lua_State *L) {
    (void)L;
    _exit(9);
}

static const luaL_Reg host_functions[] = {
    {"pipe", host_pipe},     {"write", host_write}, {"read", host_read}, {"close", host_close},
    {"closed", host_closed}, {"exit", host_exit},   {NULL, NULL},
};

/* ---- one run ------------------------------------------------------------------------------------ */

static struct {
    const char *scenario;
    char *code; /* of the scenario, compiled once */
    size_t code_size;
    bool is_shown;
    int input;               /* the end of a pipe that stays empty */
    int unexpected;          /* errors that are not those of a lack of memory */
    bool has_workers;        /* it may be in one of them that memory is refused ... */
    bool is_short_elsewhere; /* ... and so it was */
} run;

static bool is_about_memory(const char *message) {
    return strstr(message, "not enough memory") != NULL || strstr(message, "emory") != NULL ||
           strstr(message, "error in error handling") != NULL ||
           strstr(message, "several tasks failed") != NULL; /* and no memory to say more */
}

/* An error came out of `where`, and is on the top of the stack. */
static void note_error(lua_State *L, const char *where) {
    const char *message;
    bool may_be_short = memory.mode != MODE_NONE;
    memory.mode = MODE_NONE; /* it is over: what is said about it must not fail too */
    message = luaL_tolstring(L, -1, NULL);
    if (run.is_shown)
        printf("%s: %s\n", where, message);
    run.is_short_elsewhere = memory.refused == 0 && may_be_short && run.has_workers;
    if ((memory.refused == 0 && !run.is_short_elsewhere) || !is_about_memory(message)) {
        printf("unexpected in %s: %s\n", where, message);
        run.unexpected++;
    }
    lua_pop(L, 2);
}

/* Loads the scenario before memory gets short; leaves its function. */
static int prepare(lua_State *L) {
    luaL_requiref(L, LUA_GNAME, luaopen_base, 1);
    luaL_requiref(L, LUA_COLIBNAME, luaopen_coroutine, 1);
    luaL_requiref(L, LUA_STRLIBNAME, luaopen_string, 1);
    if (luaL_loadbuffer(L, run.code, run.code_size, run.scenario) != LUA_OK)
        return lua_error(L);
    return 1;
}

static int open_scenario(lua_State *L) { /* the scenario's function */
    luaL_requiref(L, "opero.core", luaopen_opero_core, 0);
    luaL_newlib(L, host_functions);
    lua_pushinteger(L, run.input);
    lua_setfield(L, -2, "input");
    lua_call(L, 2, 1);
    return 1;
}

/* The runtime has to be fit for use, whatever has happened. */
static const char aftermath[] =
    "local core = ...\n"
    "for _ = 1, 20 do pcall(core.step) end\n" /* what was left half done ends, or fails */
    "local function job()\n"
    "  local task = core.spawn(function() core.sleep(0.0001) return 42 end)\n"
    "  return core.timeout(100, task.await, task)\n"
    "end\n"
    "assert(core.simulate(job) == 42)\n"
    "assert(core.run(job) == 42)\n"
    "collectgarbage()\n";

static int open_aftermath(lua_State *L) {
    luaL_loadstring(L, aftermath);
    luaL_requiref(L, "opero.core", luaopen_opero_core, 0);
    lua_call(L, 1, 0);
    return 0;
}

/* What a section left behind is its own affair: not for the next to stumble over. */
static void drain(lua_State *L) {
    for (int i = 0; i < 5; i++)
        if (opero_step(L, 0) != LUA_OK)
            lua_pop(L, 1);
}

/* Runs it all with the memory as it was set up. */
static void run_once(Mode mode, long number) {
    lua_State *L;
    lua_Integer count;
    memset(&memory, 0, sizeof memory);
    L = lua_newstate(allocate, NULL);
    if (L == NULL)
        abort();
    lua_pushcfunction(L, prepare);
    if (lua_pcall(L, 0, 1, 0) != LUA_OK) {
        note_error(L, "preparation");
        lua_close(L);
        return;
    }
    lua_pushcfunction(L, open_scenario);
    lua_insert(L, 1);
    memory.requests = 0;
    memory.number = number;
    memory.random = (uint64_t)number;
    memory.mode = mode;
    if (lua_pcall(L, 1, 1, 0) != LUA_OK) {
        note_error(L, "opening");
        lua_settop(L, 0);
    }
    count = lua_istable(L, 1) ? (lua_Integer)lua_rawlen(L, 1) : 0;
    for (lua_Integer i = 1; i <= count; i++) {
        char name[40];
        lua_rawgeti(L, 1, i);
        if (lua_pcall(L, 0, 0, 0) != LUA_OK) {
            snprintf(name, sizeof name, "section %d", (int)i);
            note_error(L, name);
            drain(L);
            if (mode != MODE_RANDOM)
                break; /* from here on nothing would fail */
            memory.mode = mode;
        }
    }
    memory.mode = MODE_NONE;
    closed = 0;
    lua_pushcfunction(L, open_aftermath);
    if (lua_pcall(L, 0, 0, 0) != LUA_OK) {
        run.unexpected++;
        printf("afterwards: %s\n", luaL_tolstring(L, -1, NULL));
    }
    lua_close(L);
    if (memory.refused == 0 && !run.is_short_elsewhere && closed != 3) {
        run.unexpected++;
        printf("%d of 3 pending closes ran\n", closed);
    }
}

/* ---- all runs -------------------------------------------------------------------------------------- */

static char current[64] = "?"; /* the run, in words */

static void say_current(void) {
    (void)!write(STDOUT_FILENO, "died in: ", 9);
    (void)!write(STDOUT_FILENO, current, strlen(current));
    (void)!write(STDOUT_FILENO, "\n", 1);
}

void __asan_on_error(void);

void __asan_on_error(void) {
    say_current();
}

static void die(int number) {
    say_current();
    signal(number, SIG_DFL);
    raise(number);
}

static int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 64; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* False when something was wrong. */
static bool check_run(Mode mode, long number) {
    int before = count_open();
    snprintf(current, sizeof current, "memory SCENARIO %s %ld", mode_names[mode], number);
    run.unexpected = 0;
    run.is_short_elsewhere = false;
    alarm(30);
    run_once(mode, number);
    alarm(0);
    if (memory.blocks != 0)
        printf("%ld blocks were not freed\n", memory.blocks);
    /* a section that ended early may have left both ends of its pipe */
    if (count_open() > before + (memory.refused > 0 ? 2 : 0))
        printf("%d descriptors were left open\n", count_open() - before);
    else if (memory.blocks == 0 && run.unexpected == 0)
        return true;
    printf("... in %s\n", current);
    return false;
}

static int append_code(lua_State *L, const void *piece, size_t size, void *ud) {
    (void)L, (void)ud;
    run.code = __real_realloc(run.code, run.code_size + size);
    if (run.code == NULL)
        return 1;
    memcpy(run.code + run.code_size, piece, size);
    run.code_size += size;
    return 0;
}

static bool compile_scenario(void) {
    lua_State *L = luaL_newstate();
    bool ok = luaL_loadfile(L, run.scenario) == LUA_OK && lua_dump(L, append_code, NULL, 0) == 0;
    if (!ok)
        printf("%s\n", luaL_tolstring(L, -1, NULL));
    lua_close(L);
    return ok;
}

static void close_left(int first) {
    for (int fd = first; fd < 64; fd++)
        close(fd);
}

static int run_all(int first_free, long stride) {
    int failures = !check_run(MODE_NONE, 0), runs = 0;
    for (int mode = MODE_ONCE; mode <= MODE_RANDOM && failures < 10; mode++) {
        /* with a stride, each mode begins elsewhere */
        for (long number = 1 + mode % stride; failures < 10; number += stride) {
            runs++;
            failures += !check_run((Mode)mode, number);
            close_left(first_free);
            if (mode == MODE_RANDOM ? number >= 200 : memory.refused == 0)
                break;
        }
    }
    printf("%d runs, %d failures\n", runs, failures);
    return failures;
}

int main(int argc, char **argv) {
    int fd[2], failures = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGALRM, die);
    signal(SIGSEGV, die);
    signal(SIGABRT, die);
    if (argc < 2 || pipe(fd) != 0)
        return 2;
    run.scenario = argv[1];
    run.has_workers = strstr(argv[1], "pool") != NULL || strstr(argv[1], "log") != NULL;
    run.input = fd[0];
    if (!compile_scenario())
        return 2;
    if (argc == 4) {
        run.is_shown = true;
        for (int mode = MODE_NONE; mode <= MODE_RANDOM; mode++)
            if (strcmp(argv[2], mode_names[mode]) == 0)
                failures += !check_run((Mode)mode, atol(argv[3]));
    } else {
        failures = run_all(fd[1] + 1, argc == 3 ? atol(argv[2]) : 1);
    }
    __real_free(run.code);
    return failures > 0;
}
