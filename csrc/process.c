#include "process.h"
#include "loop.h"
#include "scope.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

extern char **environ;

static int push_errno(lua_State *L, const char *what) {
    int error = errno;
    lua_pushnil(L);
    lua_pushfstring(L, "%s: %s", what, strerror(error));
    return 2;
}

/* ---- fork -------------------------------------------------------------------------------------- */

/* The child is killed when the parent's thread ends. On other systems the pool's socket tells it,
 * once it looks there. */
static void die_with_parent(pid_t parent) {
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1); /* it ended before we asked */
#else
    (void)parent;
#endif
}

/* In the child, with the function to run at index 1: never returns. What the parent's script had
 * open stays open, its tasks are gone, its buffers are empty, for the parent flushed them. */
static int run_child(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    runtime_forget_tasks(L, runtime);
    return loop_run(L, runtime);
}

static int call_fork(lua_State *L) {
    pid_t parent = getpid(), child;
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    runtime_push_function(L, run_child, 0);
    lua_insert(L, 1);
    fflush(NULL); /* or the child would write what is buffered once more */
    child = fork();
    if (child < 0)
        return push_errno(L, "fork");
    if (child == 0) {
        int status;
        die_with_parent(parent);
        status = lua_pcall(L, 1, 0, 0);
        if (status != LUA_OK)
            fprintf(stderr, "opero: a worker failed: %s\n", luaL_tolstring(L, -1, NULL));
        fflush(NULL);
        _exit(status == LUA_OK ? 0 : 1);
    }
    lua_pushinteger(L, child);
    return 1;
}

/* ---- another program ----------------------------------------------------------------------------- */

/* exec_process(argv, fd): starts the program argv[1], found through PATH, with the descriptor `fd`
 * as its number 3 and the standard ones inherited. Safe in a process with threads. Returns the pid,
 * or nil and why not. */
static int call_exec_process(lua_State *L) {
    posix_spawn_file_actions_t actions;
    int fd = (int)luaL_checkinteger(L, 2), error;
    lua_Integer count;
    const char **argv;
    pid_t child;
    luaL_checktype(L, 1, LUA_TTABLE);
    count = luaL_len(L, 1);
    luaL_argcheck(L, count > 0, 1, "no program");
    argv = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *argv, 0);
    luaL_checkstack(L, (int)count, NULL);
    for (lua_Integer i = 0; i < count; i++) {
        lua_rawgeti(L, 1, i + 1); /* stays on the stack */
        argv[i] = luaL_checkstring(L, -1);
    }
    argv[count] = NULL;
    error = posix_spawn_file_actions_init(&actions);
    if (error == 0) {
        error = posix_spawn_file_actions_adddup2(&actions, fd, 3);
        if (error == 0)
            error = posix_spawnp(&child, argv[0], &actions, NULL, (char *const *)argv, environ);
        posix_spawn_file_actions_destroy(&actions);
    }
    if (error != 0) {
        errno = error;
        return push_errno(L, argv[0]);
    }
    lua_pushinteger(L, child);
    return 1;
}

/* pidfd(pid): a descriptor that becomes readable when the process ends; nil where the kernel has
 * none. The caller closes it. */
static int call_pidfd(lua_State *L) {
    pid_t pid = (pid_t)luaL_checkinteger(L, 1);
#ifdef SYS_pidfd_open
    long fd = syscall(SYS_pidfd_open, pid, 0);
    if (fd >= 0) {
        lua_pushinteger(L, fd);
        return 1;
    }
    return push_errno(L, "pidfd_open");
#else
    (void)pid;
    errno = ENOSYS;
    return push_errno(L, "pidfd_open");
#endif
}

/* die_with(pid): in a worker that is a program of its own, what a forked one gets by itself. */
static int call_die_with(lua_State *L) {
    die_with_parent((pid_t)luaL_checkinteger(L, 1));
    return 0;
}

static const luaL_Reg functions[] = {
    {"fork", call_fork},   {"exec_process", call_exec_process},
    {"pidfd", call_pidfd}, {"die_with", call_die_with},
    {NULL, NULL},
};

void process_register(lua_State *L, int module) {
    runtime_set_functions(L, module, functions);
}
