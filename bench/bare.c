/* Coroutines resumed in turn by a loop in C over lua_resume: no scheduler, no timers, no
 * cancellation. The upper limit of what a runtime on top of the same Lua can reach. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int yield(lua_State *L) {
    return lua_yield(L, 0);
}

static void fail(const char *what) {
    fprintf(stderr, "bare: %s\n", what);
    exit(1);
}

/* Leaves a thread on the stack of L whose function is the value on top, and pops that. */
static lua_State *new_thread(lua_State *L) {
    lua_State *co = lua_newthread(L);
    lua_pushvalue(L, -2);
    lua_xmove(L, co, 1);
    lua_remove(L, -2);
    return co;
}

/* Resumes each in turn until all have ended; returns the number of resumptions. */
static int64_t loop(lua_State *L, lua_State **list, int64_t n) {
    int64_t resumed = 0;
    while (n > 0) {
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            int results;
            int status = lua_resume(list[i], L, 0, &results);
            resumed++;
            if (status == LUA_YIELD) {
                lua_pop(list[i], results);
                list[kept++] = list[i];
            } else if (status != LUA_OK) {
                fail(lua_tostring(list[i], -1));
            }
        }
        n = kept;
    }
    return resumed;
}

/* The value on top is the function of n threads, which a table on the stack keeps alive. */
static lua_State **spawn(lua_State *L, int64_t n) {
    lua_State **list = malloc((size_t)n * sizeof *list);
    if (list == NULL) {
        fail("out of memory");
    }
    lua_newtable(L);
    for (int64_t i = 0; i < n; i++) {
        lua_pushvalue(L, -2);
        list[i] = new_thread(L);
        lua_rawseti(L, -2, i + 1);
    }
    return list;
}

static void load(lua_State *L, const char *code) {
    if (luaL_loadstring(L, code) != LUA_OK) {
        fail(lua_tostring(L, -1));
    }
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fail("usage: bare spawn|empty N, bare switch TASKS TOTAL");
    }
    lua_State *L = luaL_newstate();
    if (L == NULL) {
        fail("out of memory");
    }
    luaL_openlibs(L);
    lua_register(L, "yield", yield);
    int64_t n = strtoll(argv[2], NULL, 10);
    lua_State **list = NULL;
    if (strcmp(argv[1], "spawn") == 0 || strcmp(argv[1], "empty") == 0) {
        load(L, argv[1][0] == 's' ? "yield()" : "");
        double start = now();
        list = spawn(L, n);
        loop(L, list, n);
        printf("rate=%.0f\n", (double)n / (now() - start));
    } else if (strcmp(argv[1], "switch") == 0 && argc > 3) {
        int64_t rounds = strtoll(argv[3], NULL, 10) / n;
        char code[128];
        snprintf(code, sizeof code, "local yield = yield for _ = 1, %lld do yield() end",
                 (long long)rounds);
        load(L, code);
        list = spawn(L, n);
        double start = now();
        loop(L, list, n);
        printf("rate=%.0f\n", (double)(rounds * n) / (now() - start));
    } else {
        printf("missing=no such measurement\n");
    }
    free(list);
    lua_close(L);
    return 0;
}
