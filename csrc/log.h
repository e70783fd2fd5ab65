/*
 * Loggers, their levels, and where records go.
 *
 * Loggers have names with dots, a tree; each has the level that was set for it, or for the nearest one
 * above it. Until somebody sets a level that of "opero", the logger of the library's own events, is
 * warning and that of all others info. Loggers, and the log itself, live as long as the state: when the
 * runtime is closed, nothing goes anywhere any more.
 *
 * Outputs are descriptors and Lua functions. In a worker process there are none: records are forwarded
 * to the process that started it.
 *
 * Like those of runtime.h, functions that take a lua_State want to be called from a C function made by
 * runtime_push_function, unless it is said that they do not.
 */
#ifndef OPERO_LOG_H
#define OPERO_LOG_H

#include "capture.h"
#include "runtime.h"
#include "sink.h"

#pragma GCC visibility push(hidden)

typedef struct Logger {
    struct Logger *next;   /* in the order in which they were made: parents first */
    struct Logger *parent; /* NULL: it is the root */
    LogLevel own;          /* 0: as its parent's */
    LogLevel level;        /* in force */
    LogLevel threshold;    /* the same, or more where no output takes so little */
    Slice name;            /* in the memory behind the struct; of the root "root" */
} Logger;

typedef struct Output {
    LogLevel level;
    LogFormat format;
    bool is_coloured;
    bool is_function; /* at its place in the table of functions; else it is the sink */
    bool is_busy;     /* the function runs: what it logs does not come to it */
    bool has_failed;  /* which was reported */
    Sink sink;
} Output;

/* What records are put together in. */
typedef struct Scratch {
    Bytes message, fields, inner;
} Scratch;

enum { LOG_NESTING = 4 }; /* a record is being made, and a __tostring logs, and ... */

typedef struct Log {
    Service service; /* delivers what was noted */
    Logger *loggers, *last, *opero;
    Output *outputs;
    int output_count;
    Secrets secrets;
    uint64_t generation; /* of levels, outputs and secrets */
    LogLevel least;      /* that any output takes */
    Scratch scratch[LOG_NESTING];
    int nesting, delivering;
    Bytes line;
    Bytes noted; /* records, each with its length in 4 bytes before it */
    bool is_delivering_noted;
    bool is_closed;
    bool is_interrupted; /* an error that ends the program, or a task, was met: see log_record */
    /* In a worker: sends a record to where it is to go. False: it cannot, from here. */
    bool (*forward)(lua_State *L, void *owner, Slice record);
    void *forward_owner;
} Log;

/* The log of the runtime, made on first use. Raises only for lack of memory. Works anywhere. */
Log *log_open(lua_State *L, Runtime *runtime);

/* The runtime ends: lets go of all outputs and buffers. */
void log_close(Runtime *runtime);

#define LOG_NAME_MAX 1000 /* bytes of the name of a logger */

/* The logger of that name, made with those above it if need be: of "" the root. Works anywhere. */
Logger *log_logger(lua_State *L, Log *log, Slice name);

/* Sets the level of a logger; 0: as its parent's. */
void log_set_level(Log *log, Logger *logger, LogLevel level);

/* The level by that name at stack index `index`, or 0. Works anywhere. */
LogLevel log_check_level(lua_State *L, int index);

/* Makes a record and delivers it. The values from `first` to the top of the stack are the message's
 * format, its arguments and perhaps fields; `bound` are fields too. Raises nothing, but for Ctrl-C and
 * a cancellation that came while Lua code was called. Works anywhere. */
void log_record(lua_State *L, Runtime *runtime, const Logger *logger, LogLevel level, int first,
                Slice bound);

/* Notes a record, of the library's own or from a worker, where no Lua can be called: it is delivered
 * at the end of the turn. */
void log_note(Runtime *runtime, LogLevel level, const char *message, const Bytes *fields);
void log_note_forwarded(Runtime *runtime, int64_t pid, Slice record);

/* Whether a record of the library's own would come to anything. */
static inline bool log_is_noted(const Runtime *runtime, LogLevel level) {
    const Log *log = runtime->log;
    return log != NULL && log->opero != NULL && level >= log->opero->threshold;
}

/* Delivers what was noted, now. Raises nothing. Works anywhere. */
void log_deliver_noted(lua_State *L, Runtime *runtime);

/* ---- between a pool and its workers -------------------------------------------------------------- */

/* Appends levels and secrets, as bytes. */
void log_encode_settings(const Log *log, Bytes *bytes);

/* Takes them in a worker. Malformed ones are taken as far as they go. */
void log_decode_settings(lua_State *L, Runtime *runtime, Slice bytes);

/* Makes this process one that forwards its records. */
void log_forward(lua_State *L, Runtime *runtime,
                 bool (*forward)(lua_State *L, void *owner, Slice record), void *owner);

/* Adds log_configure, log_reopen and logger to the table at stack index `module`. */
void log_register(lua_State *L, int module);

#pragma GCC visibility pop

#endif
