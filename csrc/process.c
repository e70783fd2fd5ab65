#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#ifdef __GLIBC__
#include <stdio_ext.h>
#endif

extern char **environ;

/* ---- starting ------------------------------------------------------------------------------------ */

void process_die_with(pid_t parent) {
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != parent)
        _exit(1); /* it ended before we asked */
}

void process_close_input(void) {
    int fd = open("/dev/null", O_RDONLY);
    if (fd < 0) { /* perhaps no number is left but this one */
        close(STDIN_FILENO);
        fd = open("/dev/null", O_RDONLY);
    }
    if (fd >= 0 && fd != STDIN_FILENO) {
        dup2(fd, STDIN_FILENO);
        close(fd);
    }
#ifdef __GLIBC__
    __fpurge(stdin);
#else
    fseek(stdin, 0, SEEK_END);
#endif
    clearerr(stdin);
}

static void set_watch(Process *process) {
    process->end_fd = -1;
#ifdef SYS_pidfd_open
    process->end_fd = (int)syscall(SYS_pidfd_open, process->pid, 0);
#endif
}

/* A handler of the parent's must not run here: it might write into a pipe of the parent's. */
static void reset_signals(void) {
    sigset_t none;
    struct sigaction action;
    for (int signal = 1; signal < NSIG; signal++)
        if (sigaction(signal, NULL, &action) == 0 && action.sa_handler != SIG_IGN &&
            action.sa_handler != SIG_DFL) {
            memset(&action, 0, sizeof action);
            action.sa_handler = SIG_DFL;
            sigaction(signal, &action, NULL);
        }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

int process_fork(Process *process) {
    pid_t parent = getpid();
    sigset_t all, before;
    memset(process, 0, sizeof *process);
    process->end_fd = -1;
    fflush(NULL);
    sigfillset(&all); /* until the handlers are gone */
    sigprocmask(SIG_SETMASK, &all, &before);
    process->pid = fork();
    if (process->pid == 0) {
        reset_signals();
        process_die_with(parent);
        process_close_input();
        return 0;
    }
    if (process->pid < 0) {
        int error = errno;
        sigprocmask(SIG_SETMASK, &before, NULL);
        process->pid = 0;
        return error;
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    set_watch(process);
    return 0;
}

#define FIRST_DESCRIPTOR 3

/* The descriptors move up first, or one might stand where another has to go. */
static int move_up(const int *descriptors, int count, int *moved) {
    for (int i = 0; i < count; i++) {
        moved[i] = fcntl(descriptors[i], F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR + count);
        if (moved[i] < 0) {
            int error = errno;
            while (i > 0)
                close(moved[--i]);
            return error;
        }
    }
    return 0;
}

static int prepare(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes,
                   const int *descriptors, int count) {
    sigset_t signals;
    int error = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    for (int i = 0; i < count && error == 0; i++)
        error = posix_spawn_file_actions_adddup2(actions, descriptors[i], FIRST_DESCRIPTOR + i);
    sigemptyset(&signals);
    if (error == 0)
        error = posix_spawnattr_setsigmask(attributes, &signals);
    if (error == 0)
        error = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK);
    return error;
}

int process_spawn(Process *process, const char *const *argv, const int *descriptors, int count) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int moved[8], error;
    memset(process, 0, sizeof *process);
    process->end_fd = -1;
    fflush(stdout); /* what was printed before comes before what the program prints */
    error = move_up(descriptors, count, moved);
    if (error != 0)
        return error;
    error = posix_spawn_file_actions_init(&actions);
    if (error == 0) {
        error = posix_spawnattr_init(&attributes);
        if (error == 0) {
            error = prepare(&actions, &attributes, moved, count);
            if (error == 0)
                error = posix_spawnp(&process->pid, argv[0], &actions, &attributes,
                                     (char *const *)argv, environ);
            posix_spawnattr_destroy(&attributes);
        }
        posix_spawn_file_actions_destroy(&actions);
    }
    for (int i = 0; i < count; i++)
        close(moved[i]);
    if (error != 0)
        process->pid = 0;
    else
        set_watch(process);
    return error;
}

/* ---- ending -------------------------------------------------------------------------------------- */

void process_signal(const Process *process, int signal) {
    if (process->pid <= 0 || process->is_reaped)
        return;
#ifdef SYS_pidfd_send_signal
    /* this cannot hit another process, should somebody else have waited for ours */
    if (process->end_fd >= 0 &&
        (syscall(SYS_pidfd_send_signal, process->end_fd, signal, NULL, 0) == 0 || errno == ESRCH))
        return;
#endif
    kill(process->pid, signal);
}

bool process_has_ended(Process *process, bool wait) {
    pid_t pid;
    if (process->is_reaped || process->pid <= 0)
        return true;
    do
        pid = waitpid(process->pid, &process->status, wait ? 0 : WNOHANG);
    while (pid < 0 && errno == EINTR);
    if (pid == 0)
        return false;
    process->is_reaped = true;
    process->is_known = pid == process->pid;
    return true;
}

void process_forget(Process *process) {
    if (process->end_fd >= 0)
        close(process->end_fd);
    process->end_fd = -1;
    process->pid = 0;
}
