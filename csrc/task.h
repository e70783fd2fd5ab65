/*
 * Tasks and the run queue: spawning, suspending and waking, running, ending.
 *
 * See runtime.h for the data and for the calling convention. No function here suspends but
 * task_suspend and task_yield, which must be returned from the C function at once.
 */
#ifndef OPERO_TASK_H
#define OPERO_TASK_H

#include "runtime.h"

#pragma GCC visibility push(hidden)

/* Makes a task of the function and `nargs` arguments on the top of the stack, as a child of
 * `home`, and makes it ready. Replaces them by the task. */
Task *task_spawn(lua_State *L, Runtime *runtime, Loop *loop, Scope *home, int nargs);

Task *task_check(lua_State *L, int arg);

static inline bool task_has_ended(const Task *task) {
    return task->state >= TASK_DONE;
}

static inline Loop *task_loop(Runtime *runtime, const Task *task) {
    return task->flags & TASK_IS_SIMULATED ? runtime->loop : &runtime->real;
}

/* The running task, when it may suspend here; NULL outside any task. Raises, naming `what` and
 * the reason, where suspension is impossible. */
Task *task_enter(lua_State *L, Runtime *runtime, const char *what);

/* Suspends the running task: `return task_suspend(...)`. It stands in `list` (unless NULL) until
 * task_wake, the deadline (unless CLOCK_NEVER) or its cancellation; `k` goes on then; see
 * task_regain and task_resumed. */
int task_suspend(lua_State *L, Runtime *runtime, Task *task, const WaitKind *kind, Link *list,
                 void *object, int64_t deadline_ns, lua_KFunction k);

/* Puts the running task at the end of the run queue and suspends it; `k` goes on then as after
 * task_suspend, or the calling function returns, if that is NULL. */
int task_yield(lua_State *L, Runtime *runtime, Task *task, lua_KFunction k);

/* What every continuation given to task_suspend calls first, with itself and its context: returns
 * the runtime. When other code has resumed the coroutine by hand, it does not return but suspends
 * it again, with nothing changed. */
Runtime *task_regain(lua_State *L, lua_KFunction k, lua_KContext context);

/* Why the task goes on; raises its cancellation if that is why. For WAKE_TIMEOUT it raises
 * TimeoutError, naming the wait and the seconds in argument `timeout_arg`, unless that is 0. */
Wake task_resumed(lua_State *L, Runtime *runtime, int timeout_arg);

/* Makes a suspended task ready. The `handed` values were put on its coroutine's stack. */
void task_wake(Loop *loop, Task *task, Wake wake, int handed);

/* The first task in a wait list, NULL if there is none. */
static inline Task *task_first(const Link *list) {
    return list_is_empty(list) ? NULL : CONTAINER_OF(list->next, Task, link);
}

/* Pushes the error of a task that has failed; the task is at stack index `index`. */
void task_push_error(lua_State *L, Task *task, int index);

/* Gives an ended task's place in the anchor table back. */
void task_release(lua_State *L, Runtime *runtime, Task *task);

/* Pushes the outcome of an ended task and returns how many values; raises its error. The task is
 * at stack index `index`. */
int task_deliver(lua_State *L, Runtime *runtime, int index);

/* Resumes the first `count` ready tasks; each is suspended, ready again, or ended afterwards.
 * Stops early, and returns false, when the main thread's hook is another than runtime->hook.
 * Needs some stack space; raises nothing. */
bool task_run(lua_State *L, Runtime *runtime, Loop *loop, size_t count);

/* Ends tasks with force, for when their loop is over: closes their coroutines, running pending closes,
 * which cannot suspend then. All that are `top` or below it, or every task of the loop if that is
 * NULL; children first. Raises nothing. */
void task_kill_below(lua_State *L, Runtime *runtime, Loop *loop, const Task *top);

/* Enters `awaiter` into the ring of those who await `task`, or takes it out. */
void task_add_awaiter(Task *task, Task *awaiter);
void task_remove_awaiter(Task *task, Task *awaiter);

#pragma GCC visibility pop

#endif
