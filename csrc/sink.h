/*
 * Descriptors that log records are written to.
 *
 * Each record is one write(2), and files are opened to append, so lines of several processes never
 * mix. Nothing here raises SIGPIPE. A descriptor that takes nothing at the moment is waited for,
 * SINK_PATIENCE_MS at most. Nothing here knows Lua.
 */
#ifndef OPERO_SINK_H
#define OPERO_SINK_H

#include <stdbool.h>
#include <stddef.h>

#pragma GCC visibility push(hidden)

#define SINK_PATIENCE_MS 1000

typedef struct Sink {
    int fd;     /* -1: none */
    char *path; /* of a file, from the root; NULL: the descriptor is not ours */
    bool is_regular;
    bool is_stuck; /* it was waited for in vain: the next line does not wait */
    bool is_torn;  /* the last line could be written in part only */
} Sink;

/* Opens a file to append to, which is made if need be. 0, or an errno, and there is nothing to close. */
int sink_open(Sink *sink, const char *path);

/* Makes it one of a descriptor that belongs to others: 1 or 2. */
void sink_use(Sink *sink, int fd);

/* Closes the file and opens that which has its name now: the other has been moved away. On failure,
 * which is an errno, it stays with the one that it has. */
int sink_reopen(Sink *sink);

/* Writes a line. 0, or an errno. */
int sink_write(Sink *sink, const char *line, size_t length);

void sink_close(Sink *sink);

#pragma GCC visibility pop

#endif
