#define _GNU_SOURCE
#include "sink.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- opening ------------------------------------------------------------------------------------ */

/* Above the standard descriptors: should one of those be closed, no log is to be taken for it. */
static int open_file(const char *path) {
    int fd, above, error;
    do
        fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd >= 0) /* only a FIFO that nobody reads was not to be waited for */
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    above = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    error = errno;
    close(fd);
    errno = error;
    return above;
}

/* The path from the root: where the process stands may change. NULL, with errno set. */
static char *absolute(const char *path) {
    char here[PATH_MAX] = "", *whole;
    size_t length;
    if (*path != '/' && getcwd(here, sizeof here - 1) == NULL)
        return NULL;
    if (*here != '\0')
        strcat(here, "/");
    length = strlen(here) + strlen(path) + 1;
    whole = malloc(length);
    if (whole == NULL)
        errno = ENOMEM;
    else
        snprintf(whole, length, "%s%s", here, path);
    return whole;
}

static bool is_regular(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

/* Whether two descriptors are of one file. */
static bool is_same(int a, int b) {
    struct stat one, other;
    return fstat(a, &one) == 0 && fstat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

int sink_open(Sink *sink, const char *path) {
    *sink = (Sink){.fd = -1, .path = absolute(path)};
    if (sink->path != NULL)
        sink->fd = open_file(sink->path);
    if (sink->fd < 0) {
        int error = errno;
        free(sink->path);
        sink->path = NULL;
        return error;
    }
    sink->is_regular = is_regular(sink->fd);
    return 0;
}

void sink_use(Sink *sink, int fd) {
    *sink = (Sink){.fd = fd};
}

int sink_reopen(Sink *sink) {
    int fd;
    if (sink->path == NULL)
        return 0;
    fd = open_file(sink->path);
    if (fd < 0)
        return errno;
    sink->is_torn = sink->is_torn && is_same(sink->fd, fd);
    close(sink->fd);
    sink->fd = fd;
    sink->is_regular = is_regular(fd);
    return 0;
}

void sink_close(Sink *sink) {
    if (sink->path != NULL)
        close(sink->fd);
    free(sink->path);
    *sink = (Sink){.fd = -1};
}

/* ---- writing ------------------------------------------------------------------------------------ */

/* Waits until a descriptor has room, or the deadline, which is set when it is 0. 0, or an errno. */
static int wait_for_room(int fd, int64_t *deadline_ns) {
    struct pollfd polled = {.fd = fd, .events = POLLOUT};
    int64_t now_ns = clock_real_ns();
    int count;
    if (*deadline_ns == 0)
        *deadline_ns = now_ns + SINK_PATIENCE_MS * INT64_C(1000000);
    if (now_ns >= *deadline_ns)
        return EAGAIN;
    count = poll(&polled, 1, (int)((*deadline_ns - now_ns + 999999) / 1000000));
    return count > 0 ? 0 : count == 0 ? EAGAIN : errno;
}

static int write_all(Sink *sink, const char *line, size_t length, bool is_socket) {
    size_t done = 0;
    int64_t deadline_ns = 0; /* as long as it takes nothing */
    while (done < length) {
        ssize_t count = is_socket ? send(sink->fd, line + done, length - done, MSG_NOSIGNAL)
                                  : write(sink->fd, line + done, length - done);
        int error = count < 0 ? errno : 0;
        if (count > 0) {
            done += (size_t)count;
            deadline_ns = 0;
            sink->is_stuck = false;
        } else if (error == EAGAIN || error == EWOULDBLOCK) {
            if (!sink->is_stuck)
                error = wait_for_room(sink->fd, &deadline_ns);
        } else if (count == 0) {
            error = EIO;
        }
        if (error != 0 && error != EINTR) {
            sink->is_torn = sink->is_torn || done > 0;
            sink->is_stuck = error == EAGAIN || error == EWOULDBLOCK;
            return error;
        }
    }
    sink->is_torn = false;
    return 0;
}

static int write_line(Sink *sink, const char *line, size_t length, bool is_socket) {
    int error = 0;
    if (sink->fd == STDOUT_FILENO)
        fflush(stdout); /* what was printed before comes before */
    if (sink->is_torn)
        error = write_all(sink, "\n", 1, is_socket);
    return error != 0 ? error : write_all(sink, line, length, is_socket);
}

/* The same where a write may raise SIGPIPE, which would end the process: the signal is held back, and
 * taken away if this has raised it. */
static int write_to_pipe(Sink *sink, const char *line, size_t length, bool is_socket) {
    sigset_t pipe, pending, before;
    bool was_pending;
    int error, number;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    sigpending(&pending);
    was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    error = write_line(sink, line, length, is_socket);
    sigpending(&pending);
    if (!was_pending && sigismember(&pending, SIGPIPE) == 1)
        sigwait(&pipe, &number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int sink_write(Sink *sink, const char *line, size_t length) {
    struct stat status;
    bool is_socket;
    if (sink->is_regular)
        return write_line(sink, line, length, false);
    if (fstat(sink->fd, &status) != 0) /* each time: what stands there may change */
        return errno;
    is_socket = S_ISSOCK(status.st_mode);
    if (S_ISFIFO(status.st_mode) || (is_socket && sink->fd == STDOUT_FILENO)) /* for fflush */
        return write_to_pipe(sink, line, length, is_socket);
    return write_line(sink, line, length, is_socket);
}
