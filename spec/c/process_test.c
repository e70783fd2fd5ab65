#include "process.h"

#include "faults.h"
#include "test.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

/* ---- system calls that fail ---------------------------------------------------------------- */

static struct {
    int fork_error;           /* of all forks, if it is not 0 */
    int signal_on_fork;       /* comes to the child before anything else */
    bool lacks_pidfd_open;    /* the kernel is too old for it */
    bool lacks_pidfd_signal;  /* a sandbox forbids it */
    int kills, waits, pidfds; /* calls of kill and waitpid, and descriptors of processes made */
    pid_t killed, waited_for; /* the last one */
} calls;

pid_t fork(void) {
    static pid_t (*real)(void);
    pid_t pid;
    FAULTS_REAL("fork");
    if (calls.fork_error != 0) {
        errno = calls.fork_error;
        return -1;
    }
    pid = real();
    if (pid == 0 && calls.signal_on_fork != 0)
        raise(calls.signal_on_fork);
    return pid;
}

int kill(pid_t pid, int signal) {
    static int (*real)(pid_t, int);
    FAULTS_REAL("kill");
    calls.kills++;
    calls.killed = pid;
    return real(pid, signal);
}

pid_t waitpid(pid_t pid, int *status, int options) {
    static pid_t (*real)(pid_t, int *, int);
    FAULTS_REAL("waitpid");
    calls.waits++;
    calls.waited_for = pid;
    return real(pid, status, options);
}

#ifdef SYS_pidfd_open

enum { HAS_PIDFD = true };

long syscall(long number, ...) {
    static long (*real)(long, ...);
    long a[6];
    va_list arguments;
    FAULTS_REAL("syscall");
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long); /* what is not there is not looked at */
    va_end(arguments);
    if (number == SYS_pidfd_open && calls.lacks_pidfd_open) {
        errno = ENOSYS;
        return -1;
    }
    if (number == SYS_pidfd_send_signal && calls.lacks_pidfd_signal) {
        errno = EPERM;
        return -1;
    }
    calls.pidfds += number == SYS_pidfd_open;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#else

enum { HAS_PIDFD = false };

#endif

/* ---- what every test needs ----------------------------------------------------------------- */

#define PATIENCE_MS 15000

static const char *this_program;
static int handled_at_first; /* signals, by a sanitizer */

static int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

/* The exit status of a child; -1 when it ended otherwise. */
static int exit_status(pid_t child) {
    int status = -1;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Runs a test in a process of its own, as it changes what belongs to all of it. */
static void run_apart(void (*run)(void)) {
    pid_t child = fork();
    if (child == 0) {
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* should it hang with all signals blocked */
#endif
        alarm(20);
        run();
        _exit(test_failed_checks > 0);
    }
    CHECK_EQUAL(exit_status(child), 0);
}

typedef struct Pipe {
    int in, out; /* what comes out at `in` was put in at `out` */
} Pipe;

static Pipe make_pipe(void) {
    int fd[2] = {-1, -1};
    CHECK(pipe2(fd, O_CLOEXEC) == 0);
    return (Pipe){fd[0], fd[1]};
}

static void close_pipe(Pipe pipe) {
    close(pipe.in);
    close(pipe.out);
}

/* Waits until a pipe's last writer is gone. */
static bool has_hung_up(int in) {
    struct pollfd polled = {.fd = in, .events = POLLIN};
    char byte;
    return poll(&polled, 1, PATIENCE_MS) == 1 && read(in, &byte, 1) == 0;
}

static bool is_readable(int fd, int timeout_ms) {
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, timeout_ms) == 1;
}

static void pause_for_ever(void) {
    for (;;)
        pause();
}

/* Forks one that waits to be ended, or a test that hangs to be given up. */
static Process fork_idler(void) {
    Process process;
    memset(&process, 0xa5, sizeof process);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0) {
        alarm(20);
        pause_for_ever();
    }
    return process;
}

static Process fork_exiting(int status) {
    Process process;
    memset(&process, 0xa5, sizeof process);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(status);
    return process;
}

static void check_ended(Process *process, int status) {
    CHECK(process_has_ended(process, true));
    CHECK(process->is_reaped);
    CHECK(process->is_known);
    CHECK_EQUAL(process->status, status);
    process_forget(process);
}

static void check_exited(Process *process, int status) {
    check_ended(process, status << 8);
}

static void note_signal(int number) {
    (void)number;
    _exit(77);
}

/* ---- forking ------------------------------------------------------------------------------- */

static void a_fork_has_two_sides(void) {
    int before = count_open();
    pid_t parent = getpid();
    Process process;
    memset(&process, 0xa5, sizeof process);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(getpid() == parent || getppid() != parent || process.end_fd != -1 ||
              process.is_reaped || count_open() != before);
    CHECK(process.pid > 0 && process.pid != parent);
    CHECK_EQUAL(process.end_fd >= 0, HAS_PIDFD);
    CHECK_EQUAL(count_open(), before + HAS_PIDFD);
    CHECK(!process.is_reaped);
    if (HAS_PIDFD)
        CHECK_EQUAL(fcntl(process.end_fd, F_GETFD), FD_CLOEXEC);
    check_exited(&process, 0);
    CHECK_EQUAL(count_open(), before);
}

static bool is_catchable(int number) {
    struct sigaction action;
    return number != SIGKILL && number != SIGSTOP && sigaction(number, NULL, &action) == 0;
}

/* How many signals are handled here. */
static int count_handled(void) {
    int count = 0;
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0)
            count += action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
    }
    return count;
}

static int count_blocked(void) {
    sigset_t blocked;
    int count = 0;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int number = 1; number < NSIG; number++)
        count += sigismember(&blocked, number) == 1;
    return count;
}

static void note_signal_fully(int number, siginfo_t *info, void *context) {
    (void)info, (void)context;
    note_signal(number);
}

/* Handles all signals, each other one with all there is to know, and blocks all. Returns how many. */
static int take_all_signals(void) {
    sigset_t all;
    int count = 0;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        if (number % 2) {
            action.sa_sigaction = note_signal_fully;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
        } else
            action.sa_handler = note_signal;
        if (is_catchable(number))
            count += sigaction(number, &action, NULL) == 0;
    }
    return count;
}

static void check_signals(void) {
    int handled = take_all_signals(), blocked = count_blocked();
    Process process;
    CHECK(handled > 30);
    CHECK(blocked >= handled);
    CHECK_EQUAL(count_handled(), handled);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(count_handled() + count_blocked());
    CHECK_EQUAL(count_handled(), handled); /* the parent has kept its own */
    CHECK_EQUAL(count_blocked(), blocked);
    check_exited(&process, 0);
}

static void signals_are_as_at_first(void) {
    run_apart(check_signals);
}

/* One that comes when the handlers are not gone yet does what it does by default, later. */
static void check_early_signal(void) {
    Process process;
    signal(SIGUSR1, note_signal);
    calls.signal_on_fork = SIGUSR1;
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(3);
    calls.signal_on_fork = 0;
    CHECK_EQUAL(count_blocked(), 0);
    check_ended(&process, SIGUSR1);
}

static void no_handler_runs_in_the_child(void) {
    run_apart(check_early_signal);
}

/* Makes a file without a name the standard input. */
static void set_input(const char *text) {
    FILE *file = tmpfile();
    CHECK(file != NULL);
    if (file == NULL)
        return;
    fputs(text, file);
    rewind(file);
    CHECK_EQUAL(dup2(fileno(file), STDIN_FILENO), STDIN_FILENO);
    fclose(file);
}

static void check_input(void) {
    char line[16];
    Process process;
    set_input("first\nsecond\nthird\n");
    CHECK(fgets(line, sizeof line, stdin) != NULL && strcmp(line, "first\n") == 0);
    CHECK_EQUAL(process_fork(&process), 0); /* the second has been read ahead */
    if (process.pid == 0) {
        char byte;
        if (feof(stdin) || ferror(stdin))
            _exit(1);
        if (getchar() != EOF || !feof(stdin) || ferror(stdin))
            _exit(2);
        if (read(STDIN_FILENO, &byte, 1) != 0)
            _exit(3);
        exit(0); /* which leaves the place in the file where it is */
    }
    check_exited(&process, 0);
    CHECK(fgets(line, sizeof line, stdin) != NULL && strcmp(line, "second\n") == 0);
    CHECK(fgets(line, sizeof line, stdin) != NULL && strcmp(line, "third\n") == 0);
    CHECK(fgets(line, sizeof line, stdin) == NULL);
}

/* What nobody has read yet is left to the parent. */
static void check_unread_input(void) {
    Pipe pipe = make_pipe();
    char bytes[8] = "";
    Process process;
    CHECK_EQUAL(write(pipe.out, "text", 4), 4);
    CHECK_EQUAL(dup2(pipe.in, STDIN_FILENO), STDIN_FILENO);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(read(STDIN_FILENO, bytes, sizeof bytes) != 0);
    check_exited(&process, 0);
    CHECK_EQUAL(read(STDIN_FILENO, bytes, sizeof bytes), 4);
}

static void check_input_at_its_end(void) {
    Process process;
    set_input("");
    CHECK_EQUAL(getchar(), EOF);
    CHECK(feof(stdin));
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(feof(stdin) || getchar() != EOF || ferror(stdin));
    check_exited(&process, 0);
}

static void check_closed_input(void) {
    Process process;
    close(STDIN_FILENO);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0) {
        char byte;
        _exit(read(STDIN_FILENO, &byte, 1) != 0);
    }
    CHECK(is_open(STDIN_FILENO) == (process.end_fd == STDIN_FILENO));
    check_exited(&process, 0);
}

/* There is no descriptor left to open anything with. */
static void check_input_without_descriptors(void) {
    struct rlimit few;
    Process process;
    char byte;
    int lowest;
    set_input("text");
    lowest = dup(STDOUT_FILENO);
    close(lowest);
    getrlimit(RLIMIT_NOFILE, &few);
    few.rlim_cur = (rlim_t)lowest;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &few), 0);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0)
        _exit(read(STDIN_FILENO, &byte, 1) != 0);
    CHECK_EQUAL(process.end_fd, -1);
    check_exited(&process, 0);
    CHECK_EQUAL(read(STDIN_FILENO, &byte, 1), 1);
}

static void the_standard_input_is_empty(void) {
    run_apart(check_input);
    run_apart(check_unread_input);
    run_apart(check_input_at_its_end);
    run_apart(check_closed_input);
    run_apart(check_input_without_descriptors);
}

/* Makes a file without a name the standard output, with a buffer; returns a descriptor of it. */
static int set_output(void) {
    FILE *file = tmpfile();
    int fd = file != NULL ? dup(fileno(file)) : -1;
    CHECK(fd >= 0);
    fflush(stdout);
    setvbuf(stdout, NULL, _IOFBF, 4096);
    CHECK_EQUAL(dup2(fd, STDOUT_FILENO), STDOUT_FILENO);
    if (file != NULL)
        fclose(file);
    return fd;
}

static bool holds(int fd, const char *text) {
    char bytes[256] = "";
    ssize_t length = pread(fd, bytes, sizeof bytes - 1, 0);
    return length >= 0 && strcmp(bytes, text) == 0;
}

static void check_output(void) {
    FILE *other = tmpfile();
    int fd = set_output();
    Process process;
    CHECK(other != NULL);
    if (other == NULL)
        return;
    printf("parent, ");
    fprintf(other, "parent, ");
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0) {
        printf("child, ");
        fprintf(other, "child, ");
        fclose(other);
        exit(0);
    }
    check_exited(&process, 0);
    printf("parent");
    fprintf(other, "parent");
    fflush(stdout);
    fflush(other);
    dup2(STDERR_FILENO, STDOUT_FILENO); /* for what failed */
    CHECK(holds(fd, "parent, child, parent"));
    CHECK(holds(fileno(other), "parent, child, parent"));
    fclose(other);
    close(fd);
}

static void nothing_is_printed_twice(void) {
    run_apart(check_output);
}

/* Forks a parent that does what it does and is then killed; `run` is of its child, and holds a pipe open.
 * Returns how the child has ended. */
static int status_without_parent(void (*run)(pid_t parent)) {
    Pipe alive = make_pipe();
    pid_t parent = fork(), child = -1;
    int status = -1;
    if (parent == 0) {
        alarm(20);
        run(getpid());
        raise(SIGKILL);
    }
    close(alive.out);
    CHECK_EQUAL(waitpid(parent, &status, 0), parent);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(has_hung_up(alive.in));
    close(alive.in);
    status = -1;
#ifdef __linux__
    child = waitpid(-1, &status, 0); /* it is ours now */
#endif
    CHECK(child > 0 && child != parent);
    return status;
}

static void fork_and_go(pid_t parent) {
    (void)parent;
    fork_idler();
}

static void fork_and_go_later(pid_t parent) {
    Pipe ready = make_pipe();
    Process process;
    (void)parent;
    if (process_fork(&process) == 0 && process.pid == 0) {
        alarm(20);
        close_pipe(ready);
        pause_for_ever();
    }
    close(ready.out);
    has_hung_up(ready.in);
}

/* What a program does that was spawned. */
static void be_program_and_go(pid_t parent) {
    Pipe ready = make_pipe();
    if (fork() == 0) {
        alarm(20);
        process_die_with(parent);
        close_pipe(ready);
        pause_for_ever();
    }
    close(ready.out);
    has_hung_up(ready.in);
}

static void check_end_of_parent(void) {
#ifdef __linux__
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    CHECK_EQUAL(status_without_parent(fork_and_go_later), SIGKILL);
    CHECK_EQUAL(status_without_parent(be_program_and_go), SIGKILL);
    for (int i = 0; i < 10; i++) { /* at any moment: it is killed, or finds its parent gone */
        int status = status_without_parent(fork_and_go);
        CHECK(status == SIGKILL || status == 1 << 8);
    }
#endif
}

static void the_end_of_the_parent_ends_it(void) {
    run_apart(check_end_of_parent);
}

static void a_parent_that_has_ended_ends_it(void) {
    pid_t child = fork();
    if (child == 0) {
        process_die_with(getpid()); /* not the parent any more, as it seems */
        _exit(0);
    }
    CHECK_EQUAL(exit_status(child), 1);
    child = fork();
    if (child == 0) {
        process_die_with(getppid());
        _exit(0);
    }
    CHECK_EQUAL(exit_status(child), 0);
}

static void a_fork_that_fails_changes_nothing(void) {
    int before = count_open();
    sigset_t some, old;
    Process process;
    memset(&process, 0xa5, sizeof process);
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigprocmask(SIG_SETMASK, &some, &old);
    calls.fork_error = EAGAIN;
    CHECK_EQUAL(process_fork(&process), EAGAIN);
    calls.fork_error = 0;
    CHECK_EQUAL(count_blocked(), 1);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK_EQUAL(process.pid, 0);
    CHECK_EQUAL(process.end_fd, -1);
    CHECK_EQUAL(count_open(), before);
    CHECK(process_has_ended(&process, true)); /* there is none */
    process_forget(&process);
    CHECK_EQUAL(count_open(), before);
}

/* ---- another program ----------------------------------------------------------------------- */

#define REPORTED 64 /* descriptors */

/* What a program finds. */
typedef struct Report {
    int handled, blocked;
    ssize_t input; /* what reading the standard input has given */
    int arguments;
    char word[16];           /* of the environment */
    uint8_t flags[REPORTED]; /* 0: closed; 1 + FD_CLOEXEC: closed on exec */
} Report;

/* The program: reports to descriptor 3, and says so at 4, 5 ... up to `count` of them. */
static int be_program(int argc, char **argv) {
    int count = atoi(argv[2]);
    const char *word = getenv("PROCESS_TEST");
    char byte;
    Report report;
    memset(&report, 0, sizeof report);
    for (int fd = 0; fd < REPORTED; fd++) {
        int flags = fcntl(fd, F_GETFD);
        report.flags[fd] = flags < 0 ? 0 : (uint8_t)(1 + flags);
    }
    report.handled = count_handled();
    report.blocked = count_blocked();
    report.input = read(STDIN_FILENO, &byte, 1);
    report.arguments = argc;
    if (word != NULL)
        strncpy(report.word, word, sizeof report.word - 1);
    if (count > 0 && write(3, &report, sizeof report) != (ssize_t)sizeof report)
        return 99;
    for (int fd = 4; fd < 3 + count; fd++) {
        byte = (char)fd;
        if (write(fd, &byte, 1) != 1)
            return 98;
    }
    return atoi(argv[3]);
}

static int spawn_this(Process *process, const int *descriptors, int count, const char *status) {
    char number[16];
    const char *argv[] = {this_program, "program", number, status, NULL};
    snprintf(number, sizeof number, "%d", count);
    memset(process, 0xa5, sizeof *process);
    return process_spawn(process, argv, descriptors, count);
}

static int spawn_shell(Process *process, const char *command, const int *descriptors, int count) {
    const char *argv[] = {"sh", "-c", command, NULL};
    memset(process, 0xa5, sizeof *process);
    return process_spawn(process, argv, descriptors, count);
}

/* Spawns this program with descriptors, and takes its report. */
static Report report_of(const int *descriptors, int count, int in) {
    Report report;
    Process process;
    memset(&report, 0, sizeof report);
    CHECK_EQUAL(spawn_this(&process, descriptors, count, "7"), 0);
    CHECK(process.pid > 0);
    CHECK_EQUAL(process.end_fd >= 0, HAS_PIDFD);
    check_exited(&process, 7);
    CHECK_EQUAL(read(in, &report, sizeof report), sizeof report);
    return report;
}

static void a_program_tells_how_it_has_ended(void) {
    const char *const statuses[] = {"0", "1", "255"};
    int before = count_open();
    Process process;
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(spawn_this(&process, NULL, 0, statuses[i]), 0);
        check_exited(&process, atoi(statuses[i]));
    }
    CHECK_EQUAL(spawn_shell(&process, "kill -9 $$", NULL, 0), 0);
    check_ended(&process, SIGKILL);
    CHECK_EQUAL(count_open(), before);
}

static void check_program(void) {
    Pipe pipe = make_pipe();
    Report report;
    set_input("text");
    take_all_signals();
    setenv("PROCESS_TEST", "word", 1);
    report = report_of(&pipe.out, 1, pipe.in);
    CHECK_EQUAL(report.handled, handled_at_first);
    CHECK_EQUAL(report.blocked, 0);
    CHECK_EQUAL(report.input, 0);
    CHECK_EQUAL(report.arguments, 4);
    CHECK(strcmp(report.word, "word") == 0);
    close(STDIN_FILENO);
    report = report_of(&pipe.out, 1, pipe.in);
    CHECK_EQUAL(report.input, 0);
    close_pipe(pipe);
}

static void a_program_starts_afresh(void) {
    run_apart(check_program);
}

/* Puts a descriptor at a number, where it is closed on exec or not, and closes the other one. */
static void move_to(int *fd, int number, bool is_closed_on_exec) {
    CHECK_EQUAL(dup3(*fd, number, is_closed_on_exec ? O_CLOEXEC : 0), number);
    close(*fd);
    *fd = number;
}

static int first_at, second_at, closed_on_exec;

static void check_descriptors(void) {
    Pipe first = make_pipe(), second = make_pipe();
    int before, descriptors[2];
    char byte = 0;
    Report report;
    /* all four out of the way, then two to where they shall be */
    move_to(&first.in, 30, true);
    move_to(&first.out, 31, true);
    move_to(&second.in, 32, true);
    move_to(&second.out, 33, true);
    move_to(&first.out, first_at, closed_on_exec & 1);
    if (second_at != first_at)
        move_to(&second.out, second_at, closed_on_exec & 2);
    descriptors[0] = first_at;
    descriptors[1] = second_at;
    before = count_open();
    report = report_of(descriptors, 2, first.in);
    CHECK_EQUAL(read(second_at == first_at ? first.in : second.in, &byte, 1), 1);
    CHECK_EQUAL(byte, 4);
    CHECK_EQUAL(report.flags[STDIN_FILENO], 1);
    CHECK_EQUAL(report.flags[3], 1); /* there, and not to be closed on exec */
    CHECK_EQUAL(report.flags[4], 1);
    for (int fd = 5; fd < REPORTED; fd++) {
        bool is_left = (fd == first_at && !(closed_on_exec & 1)) ||
                       (fd == second_at && second_at != first_at && !(closed_on_exec & 2));
        CHECK(is_left || report.flags[fd] == 0 || !(fd >= 30 && fd <= 33));
        CHECK(!is_left || report.flags[fd] == 1);
    }
    CHECK_EQUAL(count_open(), before);
    CHECK_EQUAL(fcntl(first_at, F_GETFD), closed_on_exec & 1 ? FD_CLOEXEC : 0);
}

static void descriptors_come_from_anywhere(void) {
    static const int at[][2] = {{3, 4}, {4, 3}, {4, 5}, {5, 4}, {3, 20},  {20, 4}, {4, 20},
                                {6, 5}, {3, 3}, {4, 4}, {0, 4}, {20, 20}, {40, 41}};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        first_at = at[i][0];
        second_at = at[i][1];
        closed_on_exec = (int)(i % 4);
        run_apart(check_descriptors);
    }
    closed_on_exec = 3;
    for (size_t i = 0; i < 2; i++) {
        first_at = at[i][0];
        second_at = at[i][1];
        run_apart(check_descriptors);
    }
}

static void check_many_descriptors(void) {
    enum { MANY = 8 };
    Pipe pipe[MANY];
    int descriptors[MANY];
    char byte;
    for (int i = 0; i < MANY; i++) {
        pipe[i] = make_pipe();
        descriptors[MANY - 1 - i] = pipe[i].out; /* where others have to go */
    }
    report_of(descriptors, MANY, pipe[MANY - 1].in);
    for (int i = 1; i < MANY; i++) {
        CHECK_EQUAL(read(pipe[MANY - 1 - i].in, &byte, 1), 1);
        CHECK_EQUAL(byte, 3 + i);
    }
}

static void there_may_be_eight_descriptors(void) {
    run_apart(check_many_descriptors);
}

static void what_is_closed_on_exec_is(void) {
    Process idler = fork_idler();
    Pipe pipe = make_pipe();
    int open = fcntl(pipe.out, F_DUPFD, 40), closed = fcntl(pipe.out, F_DUPFD_CLOEXEC, 40);
    Report report = report_of(&pipe.out, 1, pipe.in);
    CHECK_EQUAL(report.flags[open], 1); /* that is the host's to decide */
    CHECK_EQUAL(report.flags[closed], 0);
    if (HAS_PIDFD && idler.end_fd != 3)
        CHECK_EQUAL(report.flags[idler.end_fd], 0);
    close(open);
    close(closed);
    close_pipe(pipe);
    process_signal(&idler, SIGKILL);
    check_ended(&idler, SIGKILL);
}

static void check_path(void) {
    char folder[] = "/tmp/process_test_XXXXXX", path[64], all[128], target[1024];
    const char *argv[] = {"process_test_of_opero", "program", "0", "9", NULL};
    Process process;
    CHECK(mkdtemp(folder) != NULL);
    CHECK(realpath(this_program, target) != NULL);
    snprintf(path, sizeof path, "%s/%s", folder, argv[0]);
    snprintf(all, sizeof all, "/nowhere:%s", folder);
    CHECK_EQUAL(process_spawn(&process, argv, NULL, 0), ENOENT);
    CHECK_EQUAL(symlink(target, path), 0);
    CHECK_EQUAL(process_spawn(&process, argv, NULL, 0), ENOENT);
    setenv("PATH", all, 1);
    CHECK_EQUAL(process_spawn(&process, argv, NULL, 0), 0);
    check_exited(&process, 9);
    unlink(path);
    rmdir(folder);
}

static void a_program_is_found_through_path(void) {
    run_apart(check_path);
}

static void check_order(void) {
    int fd = set_output();
    Process process;
    printf("before, ");
    CHECK_EQUAL(spawn_shell(&process, "printf 'program, '", NULL, 0), 0);
    check_exited(&process, 0);
    printf("after");
    fflush(stdout);
    dup2(STDERR_FILENO, STDOUT_FILENO); /* for what failed */
    CHECK(holds(fd, "before, program, after"));
}

static void what_was_printed_before_comes_before(void) {
    run_apart(check_order);
}

static void check_refusal(const char *program, const int *descriptors, int count, int error) {
    const char *argv[] = {program, "program", "0", "0", NULL};
    int before = count_open();
    Process process;
    memset(&process, 0xa5, sizeof process);
    CHECK_EQUAL(process_spawn(&process, argv, descriptors, count), error);
    CHECK_EQUAL(process.pid, 0);
    CHECK_EQUAL(process.end_fd, -1);
    CHECK_EQUAL(count_open(), before);
    CHECK(process_has_ended(&process, true)); /* there is none */
    process_forget(&process);
    CHECK_EQUAL(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_EQUAL(errno, ECHILD);
}

static void check_refusals(void) {
    const int good[] = {STDOUT_FILENO, STDERR_FILENO}, bad[] = {STDOUT_FILENO, -1};
    const int closed[] = {STDOUT_FILENO, 200};
    close(200);
    check_refusal("/no/such/program", NULL, 0, ENOENT);
    check_refusal("/no/such/program", good, 2, ENOENT);
    check_refusal("no_such_program_anywhere", good, 2, ENOENT);
    check_refusal("/dev/null", good, 2, EACCES);
    check_refusal("/", good, 2, EACCES);
    check_refusal("/dev/null/program", good, 2, ENOTDIR);
    check_refusal(this_program, bad, 2, EBADF);
    check_refusal(this_program, closed, 2, EBADF);
}

static void what_cannot_be_started_is_reported(void) {
    run_apart(check_refusals);
}

static void check_few_descriptors(void) {
    const int descriptors[] = {STDOUT_FILENO, STDERR_FILENO};
    int before = count_open(), refusals = 0, error = -1;
    for (int limit = 0; error != 0 && limit < 100; limit++) {
        struct rlimit few, old;
        Process process;
        getrlimit(RLIMIT_NOFILE, &old);
        few = old;
        few.rlim_cur = (rlim_t)limit;
        setrlimit(RLIMIT_NOFILE, &few);
        error = spawn_shell(&process, "exit 3", descriptors, 2);
        setrlimit(RLIMIT_NOFILE, &old);
        if (error == 0) {
            check_exited(&process, 3);
        } else {
            refusals++;
            CHECK(error == EMFILE || error == EINVAL || error == EBADF);
            CHECK_EQUAL(process.pid, 0);
        }
        CHECK_EQUAL(count_open(), before);
    }
    CHECK_EQUAL(error, 0);
    CHECK(refusals >= 2);
}

static void a_lack_of_descriptors_is_reported(void) {
    run_apart(check_few_descriptors);
}

static void a_lack_of_memory_is_reported(void) {
    const int descriptors[] = {0, 1, 2, 0, 1, 2, 0, 1};
    const char *argv[] = {this_program, "program", "0", "5", NULL};
    int before = count_open(), error = -1;
    for (long number = 1; error != 0 && number < 100; number++) {
        Process process;
        bool was_due;
        faults_begin(number, false);
        error = process_spawn(&process, argv, descriptors, 8);
        was_due = faults_end();
        CHECK_EQUAL(error, was_due ? ENOMEM : 0);
        if (error == 0)
            check_exited(&process, 5);
        CHECK_EQUAL(count_open(), before);
    }
}

/* ---- how it ends --------------------------------------------------------------------------- */

static void it_ends_when_it_ends(void) {
    Process process = fork_idler();
    for (int i = 0; i < 3; i++)
        CHECK(!process_has_ended(&process, false));
    CHECK(!process.is_reaped);
    if (HAS_PIDFD)
        CHECK(!is_readable(process.end_fd, 0));
    process_signal(&process, SIGTERM);
    if (HAS_PIDFD) {
        CHECK(is_readable(process.end_fd, PATIENCE_MS));
        CHECK(process_has_ended(&process, false)); /* then there is nothing to wait for */
    } else
        CHECK(process_has_ended(&process, true));
    CHECK(process.is_reaped && process.is_known);
    CHECK_EQUAL(process.status, SIGTERM);
    calls.waits = 0;
    CHECK(process_has_ended(&process, false)); /* again, and it is not asked after again */
    CHECK(process_has_ended(&process, true));
    CHECK_EQUAL(calls.waits, 0);
    CHECK_EQUAL(process.status, SIGTERM);
    process_forget(&process);
}

static void one_that_is_stopped_has_not_ended(void) {
    Process process = fork_idler();
    process_signal(&process, SIGSTOP);
    while (!process.is_reaped) { /* until it stands */
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)process.pid, &info, WSTOPPED | WNOWAIT) == 0 &&
            info.si_code == CLD_STOPPED)
            break;
    }
    CHECK(!process_has_ended(&process, false));
    process_signal(&process, SIGCONT);
    CHECK(!process_has_ended(&process, false));
    process_signal(&process, SIGKILL);
    check_ended(&process, SIGKILL);
}

static volatile sig_atomic_t alarms;
static int let_go; /* a descriptor */

/* The third time, the child may end. */
static void note_alarm(int number) {
    (void)number;
    if (++alarms == 3)
        (void)!write(let_go, "x", 1);
}

static void check_interrupted_wait(void) {
    struct itimerval often = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
    struct sigaction action;
    Pipe pipe = make_pipe();
    Process process;
    let_go = pipe.out;
    memset(&action, 0, sizeof action);
    action.sa_handler = note_alarm; /* without SA_RESTART */
    sigaction(SIGALRM, &action, NULL);
    CHECK_EQUAL(process_fork(&process), 0);
    if (process.pid == 0) {
        char byte;
        _exit(read(pipe.in, &byte, 1) == 1 ? 6 : 1);
    }
    setitimer(ITIMER_REAL, &often, NULL);
    CHECK(process_has_ended(&process, true));
    setitimer(ITIMER_REAL, &off, NULL);
    CHECK(alarms >= 3);
    check_exited(&process, 6);
    close_pipe(pipe);
}

static void signals_do_not_end_a_wait(void) {
    run_apart(check_interrupted_wait);
}

static void one_that_somebody_else_has_waited_for(void) {
    for (int wait = 0; wait < 2; wait++) {
        int before = count_open();
        Process process = fork_exiting(3);
        CHECK_EQUAL(exit_status(process.pid), 3);
        CHECK(process_has_ended(&process, wait));
        CHECK(process.is_reaped);
        CHECK(!process.is_known);
        if (HAS_PIDFD)
            CHECK(is_readable(process.end_fd, 0));
        process_forget(&process);
        CHECK_EQUAL(count_open(), before);
    }
}

/* A host that ignores SIGCHLD has no child to wait for. */
static void check_ignored_children(void) {
    Process process;
    signal(SIGCHLD, SIG_IGN);
    process = fork_idler();
    CHECK(!process_has_ended(&process, false));
    process_signal(&process, SIGKILL);
    CHECK(process_has_ended(&process, true));
    CHECK(process.is_reaped && !process.is_known);
    process_forget(&process);
    for (int i = 0; i < 20; i++) { /* some are gone before their descriptor could be made */
        process = fork_exiting(0);
        CHECK(process_has_ended(&process, true));
        CHECK(!process.is_known);
        process_forget(&process);
    }
}

static void one_that_nobody_may_wait_for(void) {
    run_apart(check_ignored_children);
}

static void other_children_are_left_alone(void) {
    pid_t own = fork(), ours;
    Process process;
    siginfo_t info;
    if (own == 0)
        _exit(4);
    CHECK_EQUAL(waitid(P_PID, (id_t)own, &info, WEXITED | WNOWAIT), 0); /* it has ended */
    process = fork_exiting(5);
    ours = process.pid;
    calls.waits = 0;
    while (!process_has_ended(&process, false))
        CHECK_EQUAL(calls.waited_for, ours);
    CHECK_EQUAL(calls.waited_for, ours);
    check_exited(&process, 5);
    CHECK_EQUAL(exit_status(own), 4);
}

static void forgetting_does_not_wait(void) {
    int before = count_open();
    Process process = fork_exiting(8);
    pid_t pid = process.pid;
    process_forget(&process);
    CHECK_EQUAL(process.pid, 0);
    CHECK_EQUAL(process.end_fd, -1);
    CHECK_EQUAL(count_open(), before);
    process_forget(&process); /* twice does no harm */
    CHECK_EQUAL(count_open(), before);
    CHECK(process_has_ended(&process, true));
    CHECK_EQUAL(exit_status(pid), 8);
    process = fork_idler();
    pid = process.pid;
    process_forget(&process); /* nor does it end it */
    CHECK_EQUAL(waitpid(pid, NULL, WNOHANG), 0);
    kill(pid, SIGKILL);
    CHECK_EQUAL(exit_status(pid), -1);
}

/* ---- signals ------------------------------------------------------------------------------- */

static void a_signal_ends_it(void) {
    const int signals[] = {SIGTERM, SIGUSR1, SIGKILL, SIGUSR2};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        Process process = fork_idler();
        process_signal(&process, 0); /* of no effect */
        process_signal(&process, signals[i]);
        check_ended(&process, signals[i]);
    }
}

static void nobody_else_is_signalled(void) {
    Process process = fork_exiting(0), none;
    pid_t pid = process.pid;
    memset(&none, 0, sizeof none);
    none.end_fd = -1;
    calls.kills = 0;
    process_signal(&none, SIGKILL); /* would else end all of us */
    CHECK_EQUAL(exit_status(pid), 0);
    if (HAS_PIDFD)
        process_signal(&process, SIGKILL); /* its number may be another's by now */
    CHECK(process_has_ended(&process, false));
    process_signal(&process, SIGKILL);
    process_forget(&process);
    process_signal(&process, SIGKILL);
    process = fork_exiting(0);
    CHECK(process_has_ended(&process, true));
    process_signal(&process, SIGKILL);
    process_forget(&process);
    CHECK_EQUAL(calls.kills, 0);
}

static void one_that_has_ended_can_be_signalled(void) {
    Process process = fork_exiting(2);
    siginfo_t info;
    CHECK_EQUAL(waitid(P_PID, (id_t)process.pid, &info, WEXITED | WNOWAIT), 0);
    process_signal(&process, SIGKILL);
    check_exited(&process, 2);
}

#ifdef SYS_pidfd_open

static void older_kernels_serve(void) {
    int before = count_open();
    Process process;
    calls.lacks_pidfd_open = true;
    process = fork_idler();
    CHECK_EQUAL(process.end_fd, -1);
    CHECK_EQUAL(count_open(), before);
    CHECK(!process_has_ended(&process, false));
    calls.kills = 0;
    process_signal(&process, SIGTERM);
    CHECK_EQUAL(calls.kills, 1);
    CHECK_EQUAL(calls.killed, process.pid);
    CHECK(process_has_ended(&process, true));
    process_signal(&process, SIGTERM); /* its number may be another's by now */
    CHECK_EQUAL(calls.kills, 1);
    check_ended(&process, SIGTERM);
    CHECK_EQUAL(spawn_shell(&process, "exit 4", NULL, 0), 0);
    CHECK_EQUAL(process.end_fd, -1);
    check_exited(&process, 4);
    calls.lacks_pidfd_open = false;

    calls.lacks_pidfd_signal = true;
    process = fork_idler();
    CHECK(process.end_fd >= 0);
    process_signal(&process, SIGTERM);
    CHECK_EQUAL(calls.kills, 2);
    check_ended(&process, SIGTERM);
    calls.lacks_pidfd_signal = false;
    CHECK_EQUAL(count_open(), before);
}

#endif

static void many_leave_nothing(void) {
    int before = count_open();
    Process process[20];
    for (int i = 0; i < 20; i++)
        if (i % 4 == 3)
            CHECK_EQUAL(spawn_shell(&process[i], "exit 3", NULL, 0), 0);
        else
            process[i] = i % 2 ? fork_exiting(i) : fork_idler();
    CHECK_EQUAL(count_open(), before + 20 * HAS_PIDFD);
    for (int i = 0; i < 20; i++) {
        if (i % 2 == 0)
            process_signal(&process[i], SIGKILL);
        check_ended(&process[i], i % 4 == 3 ? 3 << 8 : i % 2 ? i << 8 : SIGKILL);
    }
    CHECK_EQUAL(count_open(), before);
    CHECK_EQUAL(waitpid(-1, NULL, WNOHANG), -1); /* no child is left either */
}

static const Test tests[] = {
    {"a fork has two sides", a_fork_has_two_sides},
    {"signals are as at first", signals_are_as_at_first},
    {"no handler runs in the child", no_handler_runs_in_the_child},
    {"the standard input is empty", the_standard_input_is_empty},
    {"nothing is printed twice", nothing_is_printed_twice},
    {"the end of the parent ends it", the_end_of_the_parent_ends_it},
    {"a parent that has ended ends it", a_parent_that_has_ended_ends_it},
    {"a fork that fails changes nothing", a_fork_that_fails_changes_nothing},
    {"a program tells how it has ended", a_program_tells_how_it_has_ended},
    {"a program starts afresh", a_program_starts_afresh},
    {"descriptors come from anywhere", descriptors_come_from_anywhere},
    {"there may be eight descriptors", there_may_be_eight_descriptors},
    {"what is closed on exec is", what_is_closed_on_exec_is},
    {"a program is found through PATH", a_program_is_found_through_path},
    {"what was printed before comes before", what_was_printed_before_comes_before},
    {"what cannot be started is reported", what_cannot_be_started_is_reported},
    {"a lack of descriptors is reported", a_lack_of_descriptors_is_reported},
    {"a lack of memory is reported", a_lack_of_memory_is_reported},
    {"it ends when it ends", it_ends_when_it_ends},
    {"one that is stopped has not ended", one_that_is_stopped_has_not_ended},
    {"signals do not end a wait", signals_do_not_end_a_wait},
    {"one that somebody else has waited for", one_that_somebody_else_has_waited_for},
    {"one that nobody may wait for", one_that_nobody_may_wait_for},
    {"other children are left alone", other_children_are_left_alone},
    {"forgetting does not wait", forgetting_does_not_wait},
    {"a signal ends it", a_signal_ends_it},
    {"nobody else is signalled", nobody_else_is_signalled},
    {"one that has ended can be signalled", one_that_has_ended_can_be_signalled},
#ifdef SYS_pidfd_open
    {"older kernels serve", older_kernels_serve},
#endif
    {"many leave nothing", many_leave_nothing},
    {NULL, NULL},
};

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "program") == 0)
        return be_program(argc, argv);
    this_program = argv[0];
    handled_at_first = count_handled();
    signal(SIGCHLD, SIG_DFL); /* whatever the shell has made of these */
    setenv("PATH", "/usr/bin:/bin", 1);
    while (open("/dev/null", O_RDWR) <= STDERR_FILENO)
        ;
    return test_main("process_test", tests);
}
