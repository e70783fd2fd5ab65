/*
 * Child processes: starting them, noticing their end without a signal handler, ending them.
 *
 * Nothing here waits for, or asks after, processes that were not started here: a host's children
 * are its own. Nothing here knows Lua.
 */
#ifndef OPERO_PROCESS_H
#define OPERO_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

#pragma GCC visibility push(hidden)

typedef struct Process {
    pid_t pid;  /* 0: none */
    int end_fd; /* becomes readable when the process ends; -1 where the kernel has no such thing */
    bool is_reaped; /* it has ended, and `status` is how */
    bool is_known;  /* false: somebody else has waited for it, and knows how */
    int status;     /* as waitpid tells it */
} Process;

/* Forks. 0, or an errno; in the child process->pid is 0. What stdio has buffered is written first, or
 * both would write it. In the child no handler of the parent's is left, no signal is blocked, the
 * standard input is empty, and the end of the parent ends it (on Linux: of the parent's thread that
 * called this). */
int process_fork(Process *process);

/* Starts a program, found through PATH, with `count` descriptors as its numbers 3, 4 ..., an empty
 * standard input, and no signal blocked or handled. Safe in a process with threads. 0, or an errno. */
int process_spawn(Process *process, const char *const *argv, const int *descriptors, int count);

/* In the program: what the end of the parent does to a process that was forked. */
void process_die_with(pid_t parent);

/* In a child: the standard input is empty from now on; and nothing that its parent read ahead is. */
void process_close_input(void);

void process_signal(const Process *process, int signal);

/* Whether it has ended; waits for that, if `wait` is set. */
bool process_has_ended(Process *process, bool wait);

/* Closes what there is to close. The process is not waited for. */
void process_forget(Process *process);

#pragma GCC visibility pop

#endif
