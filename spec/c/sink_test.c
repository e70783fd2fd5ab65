#include "sink.h"

#include "clock.h"
#include "faults.h"
#include "test.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#ifdef __linux__
#include <sys/prctl.h>
#endif

/* ---- system calls that fail ---------------------------------------------------------------- */

#define MS 1000000LL
#define FOR_EVER 1000 /* more steps than there can be calls */

/* What calls do, one after the other: 0 or more is a result, less an errno. */
typedef struct Script {
    const int *steps;
    int count, taken; /* if count is FOR_EVER, there is only one, again and again */
} Script;

static struct {
    int fd;        /* only writes to this one count */
    Script writes; /* at most so many bytes; when it has ended, all */
    Script polls;  /* when it has ended, the real one is called */
    int write_calls, send_calls, poll_calls, fstat_calls;
    int timeout_ms;              /* of the last poll */
    void (*on_poll)(void);       /* meanwhile */
    int64_t now_ns, per_poll_ns; /* a clock that only polls make go; 0: the real one */
    const char *refused;         /* the name of a call that fails ... */
    int error, refusals;         /* ... like this, so often */
} calls;

static void reset_calls(void) {
    memset(&calls, 0, sizeof calls);
    calls.fd = -1;
}

static void set_script(Script *script, const int *steps, int count) {
    *script = (Script){steps, count, 0};
}

#define SCRIPT(NAME, ...)                                                                          \
    set_script(&calls.NAME, (const int[]){__VA_ARGS__}, sizeof(int[]){__VA_ARGS__} / sizeof(int))

static bool has_step(const Script *script) {
    return script->taken < script->count;
}

static int take_step(Script *script) {
    int at = script->taken++;
    return script->steps[script->count == FOR_EVER ? 0 : at];
}

static void refuse(const char *name, int error, int times) {
    calls.refused = name;
    calls.error = error;
    calls.refusals = times;
}

static bool is_refused(const char *name) {
    if (calls.refusals == 0 || strcmp(calls.refused, name) != 0)
        return false;
    calls.refusals--;
    errno = calls.error;
    return true;
}

/* What is left to do of a write: false, with its result, if it is nothing. */
static bool begin_write(int fd, size_t *length, ssize_t *result) {
    int step;
    if (fd != calls.fd || !has_step(&calls.writes))
        return true;
    step = take_step(&calls.writes);
    errno = step < 0 ? -step : EAGAIN; /* after a success it means nothing */
    *result = step < 0 ? -1 : 0;
    if ((size_t)step < *length)
        *length = (size_t)step;
    return step > 0;
}

ssize_t write(int fd, const void *data, size_t length) {
    static ssize_t (*real)(int, const void *, size_t);
    ssize_t result = 0;
    FAULTS_REAL("write");
    calls.write_calls += fd == calls.fd;
    return begin_write(fd, &length, &result) ? real(fd, data, length) : result;
}

ssize_t send(int fd, const void *data, size_t length, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    ssize_t result = 0;
    FAULTS_REAL("send");
    calls.send_calls += fd == calls.fd;
    return begin_write(fd, &length, &result) ? real(fd, data, length, flags) : result;
}

int poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    static int (*real)(struct pollfd *, nfds_t, int);
    int step;
    FAULTS_REAL("poll");
    calls.poll_calls++;
    calls.timeout_ms = timeout_ms;
    CHECK(count == 1 && fds->fd == calls.fd && fds->events == POLLOUT);
    if (calls.on_poll != NULL)
        calls.on_poll();
    if (!has_step(&calls.polls))
        return real(fds, count, timeout_ms);
    step = take_step(&calls.polls);
    calls.now_ns += step == 0 ? timeout_ms * MS : calls.per_poll_ns;
    if (step < 0)
        errno = -step;
    return step < 0 ? -1 : step;
}

int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    FAULTS_REAL("clock_gettime");
    if (calls.now_ns == 0)
        return real(id, time);
    *time = (struct timespec){calls.now_ns / (1000 * MS), calls.now_ns % (1000 * MS)};
    return 0;
}

int open(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    va_list arguments;
    mode_t mode;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t); /* what is not there is not looked at */
    va_end(arguments);
    FAULTS_REAL("open");
    return is_refused("open") ? -1 : real(path, flags, mode);
}

int fcntl(int fd, int command, ...) {
    static int (*real)(int, int, ...);
    va_list arguments;
    long argument;
    va_start(arguments, command);
    argument = va_arg(arguments, long);
    va_end(arguments);
    FAULTS_REAL("fcntl");
    return command == F_DUPFD_CLOEXEC && is_refused("fcntl") ? -1 : real(fd, command, argument);
}

int fstat(int fd, struct stat *status) {
    static int (*real)(int, struct stat *);
    FAULTS_REAL("fstat");
    calls.fstat_calls++;
    return is_refused("fstat") ? -1 : real(fd, status);
}

char *getcwd(char *to, size_t size) {
    static char *(*real)(char *, size_t);
    FAULTS_REAL("getcwd");
    return is_refused("getcwd") ? NULL : real(to, size);
}

/* May change errno, though it succeeds. */
int close(int fd) {
    static int (*real)(int);
    int result;
    FAULTS_REAL("close");
    result = real(fd);
    if (result == 0)
        errno = ECHILD;
    return result;
}

/* ---- what every test needs ----------------------------------------------------------------- */

static char folder[PATH_MAX]; /* of this run, and where it stands */

static int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Runs a test in a process of its own, as it changes what belongs to all of it. */
static void run_apart(void (*run)(void)) {
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        alarm(20);
        run();
        _exit(test_failed_checks > 0);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* What is there to read, at once. */
static const char *read_some(int fd) {
    static char text[1 << 18];
    ssize_t length = read(fd, text, sizeof text - 1);
    text[length > 0 ? length : 0] = '\0';
    CHECK(length <= 0 || strlen(text) == (size_t)length);
    return text;
}

static const char *read_file(const char *path) {
    int fd = open(path, O_RDONLY);
    const char *text = read_some(fd);
    CHECK(fd >= 0);
    close(fd);
    return text;
}

static void check_file(const char *path, const char *wanted) {
    const char *got = read_file(path);
    if (!CHECK(strcmp(got, wanted) == 0))
        printf("  it is    %s\n  and not  %s\n", got, wanted);
}

static int write_text(Sink *sink, const char *text) {
    return sink_write(sink, text, strlen(text));
}

static bool exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

static void make_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK_EQUAL(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

/* ---- opening ------------------------------------------------------------------------------- */

static void a_file_is_made_and_appended_to(void) {
    int before = count_open();
    struct stat status;
    Sink sink;
    umask(022);
    unlink("log");
    for (int i = 0; i < 2; i++) {
        memset(&sink, 0xa5, sizeof sink);
        CHECK_EQUAL(sink_open(&sink, "log"), 0);
        CHECK(sink.fd > STDERR_FILENO && sink.is_regular && !sink.is_torn);
        CHECK_EQUAL(count_open(), before + 1);
        CHECK_EQUAL(fcntl(sink.fd, F_GETFD), FD_CLOEXEC);
        CHECK(fcntl(sink.fd, F_GETFL) & O_APPEND);
        CHECK(fstat(sink.fd, &status) == 0 && (status.st_mode & 07777) == 0644);
        CHECK_EQUAL(write_text(&sink, "one\n"), 0);
        CHECK_EQUAL(write_text(&sink, "two\n"), 0);
        sink_close(&sink);
        CHECK(sink.fd == -1 && sink.path == NULL);
        CHECK_EQUAL(count_open(), before);
    }
    check_file("log", "one\ntwo\none\ntwo\n");
    sink_close(&sink); /* once more does nothing */
    CHECK_EQUAL(count_open(), before);
}

/* One call to the system a line, however many have the file. */
static void a_line_is_one_write(void) {
    Sink sinks[3];
    unlink("log");
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(sink_open(&sinks[i], "log"), 0);
    for (int i = 0; i < 3; i++) {
        reset_calls();
        calls.fd = sinks[i].fd;
        CHECK_EQUAL(write_text(&sinks[i], i == 0 ? "a\n" : i == 1 ? "b\n" : "c\n"), 0);
        CHECK_EQUAL(calls.write_calls, 1);
        CHECK_EQUAL(calls.fstat_calls, 0);
    }
    CHECK_EQUAL(truncate("log", 2), 0);
    CHECK_EQUAL(write_text(&sinks[0], "d\n"), 0);
    check_file("log", "a\nd\n");
    for (int i = 0; i < 3; i++)
        sink_close(&sinks[i]);
    reset_calls();
}

static void lines_of_processes_do_not_mix(void) {
    enum { PROCESSES = 4, LINES = 300, LENGTH = 80 };
    pid_t children[PROCESSES];
    int counts[PROCESSES] = {0}, status;
    const char *text;
    unlink("log");
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            Sink sink;
            char line[LENGTH];
            memset(line, 'a' + i, sizeof line);
            line[LENGTH - 1] = '\n';
            if (sink_open(&sink, "log") != 0)
                _exit(1);
            for (int n = 0; n < LINES; n++)
                if (sink_write(&sink, line, sizeof line) != 0)
                    _exit(1);
            _exit(0);
        }
    }
    for (int i = 0; i < PROCESSES; i++)
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    text = read_file("log");
    CHECK_EQUAL(strlen(text), PROCESSES * LINES * LENGTH);
    for (const char *line = text; *line != '\0'; line += LENGTH) {
        for (int i = 1; i < LENGTH - 1; i++)
            CHECK(line[i] == line[0]);
        CHECK(line[LENGTH - 1] == '\n');
        counts[(line[0] - 'a') % PROCESSES]++;
    }
    for (int i = 0; i < PROCESSES; i++)
        CHECK_EQUAL(counts[i], LINES);
}

/* Nothing is open, there is nothing to close, and what is done with it does no harm. */
static void check_nothing(Sink *sink, int open_before) {
    CHECK(sink->fd == -1 && sink->path == NULL);
    CHECK_EQUAL(count_open(), open_before);
    CHECK_EQUAL(write_text(sink, "lost\n"), EBADF);
    CHECK_EQUAL(sink_reopen(sink), 0);
    sink_close(sink);
    CHECK_EQUAL(count_open(), open_before);
}

static void what_cannot_be_opened(void) {
    static char long_name[PATH_MAX + 100];
    const struct {
        const char *path;
        int error;
    } cases[] = {
        {"", EISDIR},
        {".", EISDIR},
        {"/", EISDIR},
        {"no/such/folder", ENOENT},
        {"/no/such/folder", ENOENT},
        {"file/log", ENOTDIR},
        {"file/", EISDIR},
        {long_name, ENAMETOOLONG},
        {long_name + 1, ENAMETOOLONG},
    };
    int before = count_open();
    memset(long_name, 'a', sizeof long_name - 1);
    *long_name = '/';
    make_file("file", "");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Sink sink;
        memset(&sink, 0xa5, sizeof sink);
        CHECK_EQUAL(sink_open(&sink, cases[i].path), cases[i].error);
        check_nothing(&sink, before);
    }
}

static void each_call_may_fail(void) {
    static const struct {
        const char *call;
        int error;
    } cases[] = {{"open", EMFILE}, {"open", EACCES}, {"getcwd", ENOENT}, {"getcwd", ERANGE}};
    int before = count_open();
    Sink sink;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        refuse(cases[i].call, cases[i].error, 1);
        CHECK_EQUAL(sink_open(&sink, "log"), cases[i].error);
        check_nothing(&sink, before);
    }
    refuse("open", EINTR, 3); /* this is no failure */
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    sink_close(&sink);
    refuse("fstat", EIO, 1); /* it is asked again with each line */
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    CHECK(!sink.is_regular);
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    refuse("fstat", EIO, 1);
    CHECK_EQUAL(write_text(&sink, "line\n"), EIO);
    sink_close(&sink);
    CHECK_EQUAL(count_open(), before);
    reset_calls();
}

static void without_memory_nothing_is_opened(void) {
    static const char *const paths[] = {"log", "/dev/null"};
    int before = count_open();
    for (int i = 0; i < 2; i++) {
        bool was_due = true;
        for (long n = 1; was_due && n < 20; n++) {
            Sink sink;
            int error;
            faults_begin(n, false);
            error = sink_open(&sink, paths[i]);
            was_due = faults_end();
            CHECK_EQUAL(error, was_due ? ENOMEM : 0);
            if (error == 0)
                sink_close(&sink);
            check_nothing(&sink, before);
        }
        CHECK(!was_due);
    }
}

/* Should a standard descriptor be closed, the log is not to be taken for it. */
static void open_without_standard_descriptors(void) {
    Sink sink;
    int before;
    close(STDIN_FILENO);
    close(STDERR_FILENO);
    before = count_open();
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    CHECK(sink.fd > STDERR_FILENO);
    CHECK_EQUAL(fcntl(sink.fd, F_GETFD), FD_CLOEXEC);
    CHECK(!(fcntl(sink.fd, F_GETFL) & O_NONBLOCK));
    CHECK_EQUAL(sink_reopen(&sink), 0);
    CHECK(sink.fd > STDERR_FILENO);
    CHECK_EQUAL(count_open(), before + 1);
    refuse("fcntl", EMFILE, 1);
    CHECK_EQUAL(sink_reopen(&sink), EMFILE);
    CHECK_EQUAL(count_open(), before + 1);
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    sink_close(&sink);
    refuse("fcntl", EMFILE, 1);
    CHECK_EQUAL(sink_open(&sink, "log"), EMFILE);
    check_nothing(&sink, before);
}

static void it_stands_above_the_standard_descriptors(void) {
    run_apart(open_without_standard_descriptors);
}

static void a_lost_folder(void) {
    Sink sink;
    int before = count_open();
    CHECK(mkdir("lost", 0700) == 0 && chdir("lost") == 0 && rmdir("../lost") == 0);
    CHECK_EQUAL(sink_open(&sink, "log"), ENOENT);
    check_nothing(&sink, before);
}

static void where_the_process_stands_may_be_gone(void) {
    run_apart(a_lost_folder);
}

static void what_belongs_to_others_is_not_closed(void) {
    int fd[2], before;
    Sink sink;
    CHECK(pipe(fd) == 0);
    before = count_open();
    sink_use(&sink, fd[1]);
    CHECK(sink.fd == fd[1] && sink.path == NULL && !sink.is_torn);
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    CHECK_EQUAL(sink_reopen(&sink), 0);
    CHECK_EQUAL(sink.fd, fd[1]);
    sink_close(&sink);
    CHECK_EQUAL(sink.fd, -1);
    CHECK_EQUAL(count_open(), before);
    CHECK(strcmp(read_some(fd[0]), "line\n") == 0);
    close(fd[0]);
    close(fd[1]);
}

/* ---- opening anew -------------------------------------------------------------------------- */

static void after_it_was_moved_away_a_new_file_is_made(void) {
    int before = count_open();
    Sink sink;
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    CHECK_EQUAL(write_text(&sink, "one\n"), 0);
    CHECK_EQUAL(rename("log", "old"), 0);
    CHECK_EQUAL(write_text(&sink, "two\n"), 0);
    CHECK(!exists("log"));
    CHECK_EQUAL(sink_reopen(&sink), 0);
    CHECK_EQUAL(write_text(&sink, "three\n"), 0);
    CHECK_EQUAL(sink_reopen(&sink), 0); /* nothing was moved: it goes on */
    CHECK_EQUAL(write_text(&sink, "four\n"), 0);
    check_file("old", "one\ntwo\n");
    check_file("log", "three\nfour\n");
    CHECK_EQUAL(count_open(), before + 1);
    sink_close(&sink);
    CHECK_EQUAL(count_open(), before);
}

static void move_elsewhere(void) {
    Sink sink;
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "./log"), 0);
    CHECK(sink.path[0] == '/');
    CHECK_EQUAL(chdir("/"), 0);
    CHECK_EQUAL(sink_reopen(&sink), 0);
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    check_file(sink.path, "line\n");
    sink_close(&sink);
    CHECK_EQUAL(sink_open(&sink, folder + 1), EISDIR); /* it is found from the root */
    CHECK_EQUAL(sink_open(&sink, "dev/null"), 0);
    CHECK_EQUAL(chdir(folder), 0);
    CHECK_EQUAL(sink_reopen(&sink), 0);
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    sink_close(&sink);
    check_file("log", "line\n");
}

static void a_path_is_from_where_it_was_opened(void) {
    run_apart(move_elsewhere);
}

static void on_failure_it_stays_with_the_old_one(void) {
    int before = count_open();
    Sink sink;
    mkdir("sub", 0700);
    CHECK_EQUAL(sink_open(&sink, "sub/log"), 0);
    CHECK_EQUAL(rename("sub", "moved"), 0);
    CHECK_EQUAL(sink_reopen(&sink), ENOENT);
    CHECK_EQUAL(write_text(&sink, "one\n"), 0);
    CHECK(mkdir("sub", 0700) == 0 && mkdir("sub/log", 0700) == 0);
    CHECK_EQUAL(sink_reopen(&sink), EISDIR);
    CHECK_EQUAL(write_text(&sink, "two\n"), 0);
    refuse("open", EMFILE, 1);
    CHECK_EQUAL(sink_reopen(&sink), EMFILE);
    CHECK_EQUAL(write_text(&sink, "three\n"), 0);
    CHECK_EQUAL(rmdir("sub/log"), 0);
    CHECK_EQUAL(sink_reopen(&sink), 0);
    CHECK_EQUAL(write_text(&sink, "four\n"), 0);
    check_file("moved/log", "one\ntwo\nthree\n");
    check_file("sub/log", "four\n");
    sink_close(&sink);
    CHECK_EQUAL(count_open(), before);
    CHECK(unlink("moved/log") == 0 && unlink("sub/log") == 0);
    CHECK(rmdir("moved") == 0 && rmdir("sub") == 0);
    reset_calls();
}

/* ---- lines in parts ------------------------------------------------------------------------ */

static void short_writes_end_in_a_whole_line(void) {
    int fd[2];
    Sink sink;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    calls.fd = sink.fd;
    SCRIPT(writes, 1, 2, -EINTR, -EINTR, 3, -EINTR, 1);
    CHECK_EQUAL(write_text(&sink, "0123456789\n"), 0);
    CHECK(!sink.is_torn);
    CHECK_EQUAL(calls.write_calls, 8);
    check_file("log", "0123456789\n");
    sink_close(&sink);
    sink_use(&sink, fd[0]);
    calls.fd = fd[0];
    SCRIPT(writes, 1, 2, -EINTR, -EINTR, 3, -EINTR, 1);
    CHECK_EQUAL(write_text(&sink, "0123456789\n"), 0);
    CHECK(!sink.is_torn);
    CHECK_EQUAL(calls.send_calls, 8);
    CHECK(strcmp(read_some(fd[1]), "0123456789\n") == 0);
    close(fd[0]);
    close(fd[1]);
    reset_calls();
}

/* Any error, after any part of a line: the next one begins on a line of its own. */
static void a_torn_line_is_ended_first(void) {
    static const int errors[] = {ENOSPC, EIO, EDQUOT, EFBIG, EPIPE, EBADF, EINVAL, ECONNRESET, 0};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        for (int part = 0; part < 6; part++) {
            const int only_error[] = {-errors[i]}, parts[] = {part, -errors[i]};
            char wanted[40];
            Sink sink;
            unlink("log");
            CHECK_EQUAL(sink_open(&sink, "log"), 0);
            calls.fd = sink.fd;
            if (part == 0)
                set_script(&calls.writes, only_error, 1);
            else
                set_script(&calls.writes, parts, 2);
            CHECK_EQUAL(write_text(&sink, "first\n"), errors[i] != 0 ? errors[i] : EIO);
            CHECK_EQUAL(sink.is_torn, part > 0);
            CHECK_EQUAL(write_text(&sink, "second\n"), 0);
            CHECK(!sink.is_torn);
            CHECK_EQUAL(write_text(&sink, "third\n"), 0);
            snprintf(wanted, sizeof wanted, "%.*s%ssecond\nthird\n", part, "first",
                     part > 0 ? "\n" : "");
            check_file("log", wanted);
            sink_close(&sink);
        }
    reset_calls();
}

static void a_line_that_is_never_ended(void) {
    Sink sink;
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    calls.fd = sink.fd;
    SCRIPT(writes, 2, -ENOSPC, -ENOSPC, -ENOSPC);
    CHECK_EQUAL(write_text(&sink, "first\n"), ENOSPC);
    CHECK_EQUAL(write_text(&sink, "second\n"), ENOSPC); /* its newline could not be written */
    CHECK_EQUAL(write_text(&sink, "third\n"), ENOSPC);
    CHECK(sink.is_torn);
    check_file("log", "fi");
    SCRIPT(writes, 1, -ENOSPC);
    CHECK_EQUAL(write_text(&sink, "fourth\n"), ENOSPC); /* but for the newline */
    CHECK(!sink.is_torn);
    SCRIPT(writes, 1, -ENOSPC, 1, 1, -ENOSPC);
    CHECK_EQUAL(write_text(&sink, "fifth\n"), ENOSPC);
    CHECK_EQUAL(write_text(&sink, "sixth\n"), ENOSPC);
    CHECK_EQUAL(write_text(&sink, "seventh\n"), 0);
    check_file("log", "fi\nf\ns\nseventh\n");
    sink_close(&sink);
    reset_calls();
}

/* In the file that has its name now there is no torn line; unless it is the same. */
static void a_torn_line_and_opening_anew(void) {
    Sink sink;
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    for (int is_moved = 0; is_moved < 2; is_moved++) {
        calls.fd = sink.fd;
        SCRIPT(writes, 3, -ENOSPC);
        CHECK_EQUAL(write_text(&sink, "first\n"), ENOSPC);
        refuse("open", EMFILE, 1);
        CHECK_EQUAL(sink_reopen(&sink), EMFILE);
        CHECK(sink.is_torn);
        if (is_moved)
            CHECK_EQUAL(rename("log", "old"), 0);
        CHECK_EQUAL(sink_reopen(&sink), 0);
        CHECK_EQUAL(write_text(&sink, "second\n"), 0);
        if (!is_moved)
            check_file("log", "fir\nsecond\n");
    }
    check_file("old", "fir\nsecond\nfir");
    check_file("log", "second\n");
    sink_close(&sink);
    reset_calls();
}

/* A real short write: what a file may not grow to is not written. */
static void reach_the_limit(void) {
    struct rlimit limit;
    rlim_t before;
    Sink sink;
    signal(SIGXFSZ, SIG_IGN);
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "log"), 0);
    CHECK_EQUAL(getrlimit(RLIMIT_FSIZE, &limit), 0);
    before = limit.rlim_cur;
    limit.rlim_cur = 10;
    CHECK_EQUAL(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_EQUAL(write_text(&sink, "one\n"), 0);
    CHECK_EQUAL(write_text(&sink, "two is longer\n"), EFBIG);
    CHECK_EQUAL(write_text(&sink, "three\n"), EFBIG);
    check_file("log", "one\ntwo is");
    limit.rlim_cur = before;
    CHECK_EQUAL(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_EQUAL(write_text(&sink, "four\n"), 0);
    check_file("log", "one\ntwo is\nfour\n");
    sink_close(&sink);
}

static void a_file_that_may_not_grow(void) {
    run_apart(reach_the_limit);
}

static void a_full_disk(void) {
    Sink sink;
    if (!exists("/dev/full"))
        return;
    CHECK_EQUAL(sink_open(&sink, "/dev/full"), 0);
    CHECK(!sink.is_regular);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(write_text(&sink, "line\n"), ENOSPC);
    CHECK(!sink.is_torn);
    sink_close(&sink);
    sink_use(&sink, open("/dev/full", O_WRONLY));
    CHECK_EQUAL(write_text(&sink, "line\n"), ENOSPC);
    close(sink.fd);
}

static void what_stands_there_may_change(void) {
    int fd[2], place = open("/dev/null", O_WRONLY), other;
    Sink sink;
    sink_use(&sink, place);
    CHECK_EQUAL(write_text(&sink, "to nobody\n"), 0);
    CHECK(pipe(fd) == 0 && dup2(fd[1], place) == place);
    CHECK_EQUAL(write_text(&sink, "to a pipe\n"), 0);
    CHECK(strcmp(read_some(fd[0]), "to a pipe\n") == 0);
    make_file("log", "");
    other = open("log", O_WRONLY);
    CHECK_EQUAL(dup2(other, place), place);
    CHECK_EQUAL(write_text(&sink, "to a file\n"), 0);
    check_file("log", "to a file\n");
    close(place);
    CHECK_EQUAL(write_text(&sink, "to what is closed\n"), EBADF);
    close(other);
    close(fd[0]);
    close(fd[1]);
}

/* ---- SIGPIPE ------------------------------------------------------------------------------- */

static volatile sig_atomic_t pipe_signals;

static void note_pipe_signal(int number) {
    (void)number;
    pipe_signals++;
}

static bool is_pending(int number) {
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, number) == 1;
}

static bool is_blocked(int number) {
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    return sigismember(&blocked, number) == 1;
}

static void block(int number) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

/* To a pipe and to a socket that nobody reads, and to a FIFO that was opened by its name. */
static void write_to_nobody(void) {
    int fd[2];
    Sink sink;
    CHECK(pipe(fd) == 0);
    close(fd[0]);
    sink_use(&sink, fd[1]);
    CHECK_EQUAL(write_text(&sink, "line\n"), EPIPE);
    CHECK(!sink.is_torn);
    CHECK_EQUAL(write_text(&sink, "line\n"), EPIPE);
    close(fd[1]);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    close(fd[0]);
    sink_use(&sink, fd[1]);
    CHECK_EQUAL(write_text(&sink, "line\n"), EPIPE);
    close(fd[1]);
    unlink("fifo");
    CHECK_EQUAL(mkfifo("fifo", 0600), 0);
    CHECK_EQUAL(sink_open(&sink, "fifo"), ENXIO); /* nobody is waited for */
    fd[0] = open("fifo", O_RDONLY | O_NONBLOCK);
    CHECK_EQUAL(sink_open(&sink, "fifo"), 0);
    CHECK(!sink.is_regular);
    CHECK(!(fcntl(sink.fd, F_GETFL) & O_NONBLOCK)); /* but to be written to it is */
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    CHECK(strcmp(read_some(fd[0]), "line\n") == 0);
    close(fd[0]);
    CHECK_EQUAL(write_text(&sink, "line\n"), EPIPE);
    fd[0] = open("fifo", O_RDONLY | O_NONBLOCK); /* somebody is there again */
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    CHECK(strcmp(read_some(fd[0]), "line\n") == 0);
    close(fd[0]);
    sink_close(&sink);
    unlink("log");
    CHECK_EQUAL(sink_open(&sink, "log"), 0); /* a file, and in its place a FIFO */
    CHECK_EQUAL(rename("fifo", "log"), 0);
    CHECK_EQUAL(sink_reopen(&sink), ENXIO);
    fd[0] = open("log", O_RDONLY | O_NONBLOCK);
    CHECK_EQUAL(sink_reopen(&sink), 0);
    close(fd[0]);
    CHECK_EQUAL(write_text(&sink, "line\n"), EPIPE);
    sink_close(&sink);
    unlink("log");
}

static void with_default_action(void) {
    signal(SIGPIPE, SIG_DFL);
    write_to_nobody();
    CHECK(!is_pending(SIGPIPE) && !is_blocked(SIGPIPE));
}

static void with_handler(void) {
    signal(SIGPIPE, note_pipe_signal);
    write_to_nobody();
    CHECK(!is_pending(SIGPIPE) && !is_blocked(SIGPIPE));
    CHECK_EQUAL(pipe_signals, 0);
}

static void with_signal_ignored(void) {
    signal(SIGPIPE, SIG_IGN);
    write_to_nobody();
    CHECK(!is_pending(SIGPIPE) && !is_blocked(SIGPIPE));
}

static void with_signal_blocked(void) {
    signal(SIGPIPE, note_pipe_signal);
    block(SIGPIPE);
    write_to_nobody();
    CHECK(!is_pending(SIGPIPE) && is_blocked(SIGPIPE));
}

static void with_signal_pending(void) {
    sigset_t set;
    signal(SIGPIPE, note_pipe_signal);
    block(SIGPIPE);
    raise(SIGPIPE);
    write_to_nobody();
    CHECK(is_pending(SIGPIPE) && is_blocked(SIGPIPE));
    sigemptyset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
    CHECK_EQUAL(pipe_signals, 1); /* the host's own */
}

static void with_other_signals_pending(void) {
    signal(SIGPIPE, SIG_DFL);
    block(SIGUSR1);
    raise(SIGUSR1);
    write_to_nobody();
    CHECK(is_pending(SIGUSR1) && is_blocked(SIGUSR1));
    CHECK(!is_pending(SIGPIPE) && !is_blocked(SIGPIPE));
}

static void nobody_reads_and_nothing_is_raised(void) {
    static void (*const ways[])(void) = {with_default_action, with_handler,
                                         with_signal_ignored, with_signal_blocked,
                                         with_signal_pending, with_other_signals_pending};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        run_apart(ways[i]);
}

/* ---- stdout -------------------------------------------------------------------------------- */

static void print_and_log(int reader, int writer) {
    Sink sink;
    CHECK_EQUAL(dup2(writer, STDOUT_FILENO), STDOUT_FILENO);
    setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
    sink_use(&sink, STDOUT_FILENO);
    fputs("printed, ", stdout);
    CHECK_EQUAL(write_text(&sink, "logged\n"), 0);
    CHECK(strcmp(read_some(reader), "printed, logged\n") == 0);
    sink_use(&sink, writer);
    fputs("printed", stdout);
    CHECK_EQUAL(write_text(&sink, "logged\n"), 0); /* this is not stdout's business */
    CHECK(strcmp(read_some(reader), "logged\n") == 0);
    fflush(stdout);
    CHECK(strcmp(read_some(reader), "printed") == 0);
}

static void print_to_pipe(void) {
    int fd[2];
    CHECK(pipe(fd) == 0);
    print_and_log(fd[0], fd[1]);
}

static void print_to_socket(void) {
    int fd[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    print_and_log(fd[0], fd[1]);
}

static void print_to_file(void) {
    int writer = open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    print_and_log(open("log", O_RDONLY), writer);
}

static void what_was_printed_comes_before(void) {
    run_apart(print_to_pipe);
    run_apart(print_to_socket);
    run_apart(print_to_file);
}

/* What was printed goes out with the first line, and nobody is there to take it. */
static void print_to_nobody(int reader, int writer) {
    Sink sink;
    signal(SIGPIPE, SIG_DFL);
    close(reader);
    CHECK_EQUAL(dup2(writer, STDOUT_FILENO), STDOUT_FILENO);
    setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
    sink_use(&sink, STDOUT_FILENO);
    fputs("printed", stdout);
    CHECK_EQUAL(write_text(&sink, "logged\n"), EPIPE);
    CHECK(!is_pending(SIGPIPE) && !is_blocked(SIGPIPE));
}

static void print_to_closed_pipe(void) {
    int fd[2];
    CHECK(pipe(fd) == 0);
    print_to_nobody(fd[0], fd[1]);
}

static void print_to_closed_socket(void) {
    int fd[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    print_to_nobody(fd[0], fd[1]);
}

static void what_was_printed_raises_nothing(void) {
    run_apart(print_to_closed_pipe);
    run_apart(print_to_closed_socket);
}

/* ---- waiting for room ---------------------------------------------------------------------- */

static struct {
    int reader, writer;
    size_t filled;
} full;

/* A pipe, or a socket pair, that has no room, and says so. */
static void fill(bool is_socket) {
    char block[4096];
    int fd[2];
    ssize_t length;
    CHECK((is_socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, fd) : pipe(fd)) == 0);
    memset(block, '.', sizeof block);
    full.reader = fd[0];
    full.writer = fd[1];
    full.filled = 0;
    CHECK_EQUAL(fcntl(full.writer, F_SETFL, O_NONBLOCK), 0);
    for (size_t size = sizeof block; size > 0; size /= 2)
        while ((length = write(full.writer, block, size)) > 0)
            full.filled += (size_t)length;
    CHECK_EQUAL(errno, EAGAIN);
    CHECK(full.filled > 0);
    reset_calls();
    calls.fd = full.writer;
    calls.now_ns = 5000 * MS;
}

static void end_full(void) {
    close(full.reader);
    close(full.writer);
    reset_calls();
}

/* All that fills it, and no more. */
static void drain(void) {
    char block[4096];
    while (full.filled > 0) {
        ssize_t length =
            read(full.reader, block, full.filled < sizeof block ? full.filled : sizeof block);
        if (!CHECK(length > 0))
            return;
        full.filled -= (size_t)length;
    }
}

static const int READY[] = {1}, TIMEOUT[] = {0}, INTERRUPTED[] = {-EINTR}, AGAIN[] = {-EAGAIN};

static void when_there_is_room_the_line_follows(void) {
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        Sink sink;
        fill(is_socket > 0);
        sink_use(&sink, full.writer);
        calls.on_poll = drain; /* and the real one sees it */
        CHECK_EQUAL(write_text(&sink, "line\n"), 0);
        CHECK_EQUAL(calls.poll_calls, 1);
        CHECK_EQUAL(calls.timeout_ms, SINK_PATIENCE_MS);
        CHECK(strcmp(read_some(full.reader), "line\n") == 0);
        end_full();
    }
}

static void without_room_it_is_given_up(void) {
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        int64_t begin;
        Sink sink;
        fill(is_socket > 0);
        sink_use(&sink, full.writer);
        begin = calls.now_ns;
        set_script(&calls.polls, TIMEOUT, FOR_EVER);
        CHECK_EQUAL(write_text(&sink, "line\n"), EAGAIN);
        CHECK_EQUAL(calls.now_ns - begin, SINK_PATIENCE_MS * MS);
        CHECK_EQUAL(calls.poll_calls, 1);
        CHECK(!sink.is_torn && sink.is_stuck);
        CHECK_EQUAL(write_text(&sink, "line\n"), EAGAIN); /* it has been waited for */
        CHECK_EQUAL(calls.poll_calls, 1);
        CHECK(sink.is_stuck);
        drain();
        CHECK_EQUAL(write_text(&sink, "next\n"), 0);
        CHECK(!sink.is_stuck);
        CHECK(strcmp(read_some(full.reader), "next\n") == 0);
        end_full();
    }
}

static void a_line_longer_than_the_room(void) {
    enum { LENGTH = 100000 };
    static char line[LENGTH + 1];
    int fd[2];
    const char *got;
    Sink sink;
    memset(line, 'x', LENGTH);
    CHECK(pipe(fd) == 0);
    CHECK_EQUAL(fcntl(fd[1], F_SETFL, O_NONBLOCK), 0);
    sink_use(&sink, fd[1]);
    calls.fd = fd[1];
    calls.now_ns = 1;
    set_script(&calls.polls, TIMEOUT, FOR_EVER);
    CHECK_EQUAL(sink_write(&sink, line, LENGTH), EAGAIN);
    CHECK(sink.is_torn);
    got = read_some(fd[0]);
    CHECK(strlen(got) > 0 && strlen(got) < LENGTH && strspn(got, "x") == strlen(got));
    CHECK_EQUAL(write_text(&sink, "next\n"), 0);
    CHECK(strcmp(read_some(fd[0]), "\nnext\n") == 0);
    close(fd[0]);
    close(fd[1]);
    reset_calls();
}

/* Each wait is for one that takes nothing; one that is slow takes the line in the end. */
static void a_slow_reader_gets_all(void) {
    static const int steps[] = {-EAGAIN, 1, -EAGAIN, 1, -EAGAIN, 1, -EAGAIN, 1, -EAGAIN, 1};
    Sink sink;
    fill(false);
    drain();
    sink_use(&sink, full.writer);
    set_script(&calls.writes, steps, sizeof steps / sizeof *steps);
    set_script(&calls.polls, READY, FOR_EVER);
    calls.per_poll_ns = (SINK_PATIENCE_MS - 100) * MS;
    CHECK_EQUAL(write_text(&sink, "a line\n"), 0);
    CHECK_EQUAL(calls.poll_calls, 5);
    CHECK(!sink.is_stuck);
    CHECK(strcmp(read_some(full.reader), "a line\n") == 0);
    end_full();
}

/* As soon as it takes something it is waited for again. */
static void what_is_stuck_may_come_loose(void) {
    Sink sink;
    fill(false);
    drain();
    sink_use(&sink, full.writer);
    SCRIPT(writes, -EAGAIN, -EAGAIN, 2, -EAGAIN, 1, -EAGAIN);
    SCRIPT(polls, 0, 1, 1);
    CHECK_EQUAL(write_text(&sink, "first\n"), EAGAIN);
    CHECK_EQUAL(calls.poll_calls, 1);
    CHECK_EQUAL(write_text(&sink, "second\n"), EAGAIN);
    CHECK_EQUAL(calls.poll_calls, 1);
    CHECK_EQUAL(write_text(&sink, "third\n"), 0);
    CHECK_EQUAL(calls.poll_calls, 3);
    CHECK(!sink.is_stuck && !sink.is_torn);
    CHECK(strcmp(read_some(full.reader), "third\n") == 0);
    SCRIPT(writes, -EAGAIN, -EAGAIN, 2, -EAGAIN, -EAGAIN);
    SCRIPT(polls, 0, 0);
    CHECK_EQUAL(write_text(&sink, "first\n"), EAGAIN);
    CHECK_EQUAL(write_text(&sink, "second\n"), EAGAIN);
    CHECK_EQUAL(write_text(&sink, "third\n"), EAGAIN); /* in part, and then waits */
    CHECK_EQUAL(calls.poll_calls, 5);
    CHECK(sink.is_stuck && sink.is_torn);
    CHECK_EQUAL(write_text(&sink, "fourth\n"), EAGAIN); /* not even the newline */
    CHECK_EQUAL(calls.poll_calls, 5);
    CHECK_EQUAL(write_text(&sink, "fifth\n"), 0);
    CHECK(strcmp(read_some(full.reader), "th\nfifth\n") == 0);
    end_full();
}

/* A timer of the host's that goes off again and again does not make the wait longer. */
static void interruptions_are_no_more_time(void) {
    Sink sink;
    int64_t begin;
    fill(false);
    sink_use(&sink, full.writer);
    begin = calls.now_ns;
    set_script(&calls.polls, INTERRUPTED, FOR_EVER);
    calls.per_poll_ns = 30 * MS;
    CHECK_EQUAL(write_text(&sink, "line\n"), EAGAIN);
    CHECK(calls.now_ns - begin <= (SINK_PATIENCE_MS + 60) * MS);
    CHECK(calls.poll_calls > 20);
    sink_use(&sink, full.writer);
    SCRIPT(polls, -EINTR, -EINTR, -EINTR, 1);
    calls.on_poll = drain;
    CHECK_EQUAL(write_text(&sink, "line\n"), 0);
    end_full();
}

/* Nor does one that says that there is room, and has none. */
static void a_promise_of_room_is_no_room(void) {
    Sink sink;
    int64_t begin;
    fill(false);
    sink_use(&sink, full.writer);
    begin = calls.now_ns;
    set_script(&calls.writes, AGAIN, FOR_EVER);
    set_script(&calls.polls, READY, FOR_EVER);
    calls.per_poll_ns = 30 * MS;
    CHECK_EQUAL(write_text(&sink, "line\n"), EAGAIN);
    CHECK(calls.now_ns - begin <= (SINK_PATIENCE_MS + 60) * MS);
    CHECK(!sink.is_torn);
    end_full();
}

static void hang_up(void) {
    close(full.reader);
}

static void waiting_may_fail(void) {
    Sink sink;
    fill(false);
    sink_use(&sink, full.writer);
    SCRIPT(polls, -ENOMEM);
    CHECK_EQUAL(write_text(&sink, "line\n"), ENOMEM);
    CHECK(!sink.is_torn && !sink.is_stuck);
    calls.on_poll = hang_up; /* who was waited for goes */
    CHECK_EQUAL(write_text(&sink, "line\n"), EPIPE);
    close(full.writer);
    reset_calls();
}

/* ---- all of it ----------------------------------------------------------------------------- */

static const Test tests[] = {
    {"a file is made and appended to", a_file_is_made_and_appended_to},
    {"a line is one write", a_line_is_one_write},
    {"lines of processes do not mix", lines_of_processes_do_not_mix},
    {"what cannot be opened", what_cannot_be_opened},
    {"each call may fail", each_call_may_fail},
    {"without memory nothing is opened", without_memory_nothing_is_opened},
    {"it stands above the standard descriptors", it_stands_above_the_standard_descriptors},
    {"where the process stands may be gone", where_the_process_stands_may_be_gone},
    {"what belongs to others is not closed", what_belongs_to_others_is_not_closed},
    {"after it was moved away a new file is made", after_it_was_moved_away_a_new_file_is_made},
    {"a path is from where it was opened", a_path_is_from_where_it_was_opened},
    {"on failure it stays with the old one", on_failure_it_stays_with_the_old_one},
    {"short writes end in a whole line", short_writes_end_in_a_whole_line},
    {"a torn line is ended first", a_torn_line_is_ended_first},
    {"a line that is never ended", a_line_that_is_never_ended},
    {"a torn line and opening anew", a_torn_line_and_opening_anew},
    {"a file that may not grow", a_file_that_may_not_grow},
    {"a full disk", a_full_disk},
    {"what stands there may change", what_stands_there_may_change},
    {"nobody reads and nothing is raised", nobody_reads_and_nothing_is_raised},
    {"what was printed comes before", what_was_printed_comes_before},
    {"what was printed raises nothing", what_was_printed_raises_nothing},
    {"when there is room the line follows", when_there_is_room_the_line_follows},
    {"without room it is given up", without_room_it_is_given_up},
    {"a line longer than the room", a_line_longer_than_the_room},
    {"a slow reader gets all", a_slow_reader_gets_all},
    {"what is stuck may come loose", what_is_stuck_may_come_loose},
    {"waiting may fail", waiting_may_fail},
    {"interruptions are no more time", interruptions_are_no_more_time},
    {"a promise of room is no room", a_promise_of_room_is_no_room},
    {NULL, NULL},
};

int main(void) {
    static const char *const left[] = {"log", "old", "file", "fifo"};
    const char *place = getenv("TMPDIR");
    char made[PATH_MAX];
    int status;
    reset_calls();
    snprintf(made, sizeof made, "%.1000s/opero-sink-XXXXXX", place != NULL ? place : "/tmp");
    if (mkdtemp(made) == NULL || chdir(made) != 0 || getcwd(folder, sizeof folder) == NULL) {
        perror(made);
        return 2;
    }
    status = test_main("sink_test", tests);
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        unlink(left[i]);
    if (rmdir(folder) != 0) {
        perror(folder);
        return 2;
    }
    return status;
}
