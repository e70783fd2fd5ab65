#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SETUP_METATABLE "opero.LogSetup"

#define FORWARD_MAX ((size_t)100 * 1024) /* bytes of a record that is sent to another process */

enum { KEPT = 16384 }; /* bytes of buffers that are kept from record to record */

/* ---- levels ------------------------------------------------------------------------------------- */

LogLevel log_check_level(lua_State *L, int index) {
    Slice name = {"", 0};
    if (lua_type(L, index) == LUA_TSTRING)
        name.data = lua_tolstring(L, index, &name.length);
    for (LogLevel level = LOG_DEBUG; level <= LOG_OFF; level++)
        if (slice_equals(name, (Slice){log_level_names[level], strlen(log_level_names[level])}))
            return level;
    return (LogLevel)0;
}

/* Works out what is in force, parents first. */
static void refresh_levels(Log *log) {
    const Logger *root = log->loggers;
    if (root == NULL)
        return;
    if (log->forward == NULL) {
        log->least = LOG_OFF;
        for (int i = 0; i < log->output_count; i++)
            if (log->outputs[i].level < log->least)
                log->least = log->outputs[i].level;
    }
    for (Logger *logger = log->loggers; logger != NULL; logger = logger->next) {
        if (logger->own != 0)
            logger->level = logger->own;
        else if (logger == log->opero && root->own == 0)
            logger->level = LOG_WARNING;
        else
            logger->level = logger->parent != NULL ? logger->parent->level : LOG_INFO;
        logger->threshold = logger->level > log->least ? logger->level : log->least;
    }
}

void log_set_level(Log *log, Logger *logger, LogLevel level) {
    logger->own = level;
    log->generation++;
    refresh_levels(log);
}

/* ---- loggers ------------------------------------------------------------------------------------ */

/* Makes a logger that is not there yet. The table of loggers by name is at stack index `table`. */
static Logger *make_logger(lua_State *L, Log *log, int table, Logger *parent, Slice name) {
    Logger *logger;
    lua_pushlstring(L, name.data, name.length);
    logger = lua_newuserdatauv(L, sizeof *logger + name.length, 0);
    memset(logger, 0, sizeof *logger);
    if (name.length > 0)
        memcpy(logger + 1, name.data, name.length);
    logger->name = (Slice){(const char *)(logger + 1), name.length};
    logger->parent = parent;
    lua_rawset(L, table); /* it is kept by that from here on */
    if (log->last != NULL)
        log->last->next = logger;
    else
        log->loggers = logger;
    log->last = logger;
    return logger;
}

Logger *log_logger(lua_State *L, Log *log, Slice name) {
    int top = lua_gettop(L), table = top + 2;
    Logger *logger = log->loggers;
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    if (name.length > LOG_NAME_MAX)
        luaL_error(L, "the name of a logger is too long: %d bytes", (int)name.length);
    runtime_open(L);
    lua_getiuservalue(L, -1, RUNTIME_LOGGERS);
    for (size_t end = 0; end < name.length; end++) {
        const char *dot = memchr(name.data + end, '.', name.length - end);
        end = dot != NULL ? (size_t)(dot - name.data) : name.length;
        lua_pushlstring(L, name.data, end);
        if (lua_rawget(L, table) == LUA_TUSERDATA)
            logger = lua_touserdata(L, -1);
        else
            logger = make_logger(L, log, table, logger, (Slice){name.data, end});
        lua_settop(L, table);
    }
    lua_settop(L, top);
    refresh_levels(log);
    return logger;
}

/* ---- outputs ------------------------------------------------------------------------------------ */

static void close_outputs(Output *outputs, int count) {
    for (int i = 0; i < count; i++)
        if (!outputs[i].is_function)
            sink_close(&outputs[i].sink);
    free(outputs);
}

static void free_secrets(Secrets *secrets) {
    for (size_t i = 0; i < secrets->count; i++)
        free((char *)secrets->names[i].data);
    free(secrets->names);
    *secrets = (Secrets){.names = NULL};
}

static Slice describe(const Output *output) {
    if (output->is_function)
        return SLICE("function");
    if (output->sink.path != NULL)
        return (Slice){output->sink.path, strlen(output->sink.path)};
    return output->sink.fd == STDERR_FILENO ? SLICE("stderr") : SLICE("stdout");
}

static int deliver(lua_State *L, Runtime *runtime, const LogRecord *record, Context *context);

static int64_t now_ns(const Runtime *runtime) {
    return runtime->loop->is_simulated ? clock_now_ns(&runtime->loop->clock) : clock_wall_ns();
}

static void write_to_stderr(const Log *log, const LogRecord *record) {
    Bytes line = {.data = NULL};
    Sink sink;
    sink_use(&sink, STDERR_FILENO);
    record_format(&line, record, FORMAT_TEXT, false, &log->secrets, (Slice){NULL, 0});
    if (!line.has_failed)
        sink_write(&sink, line.data, line.length);
    bytes_free(&line);
}

/* Says that an output fails: to the others, and to stderr when there are none. */
static void report_failure(lua_State *L, Runtime *runtime, Output *failed, Slice why) {
    Log *log = runtime->log;
    Bytes fields = {.data = NULL};
    LogRecord record = {.time_ns = now_ns(runtime),
                        .level = LOG_ERROR,
                        .logger = log->opero->name,
                        .message = SLICE("a log output failed")};
    if (failed->has_failed)
        return;
    failed->has_failed = true;
    fields_put_string(&fields, SLICE("error"));
    fields_put_string(&fields, why);
    fields_put_string(&fields, SLICE("output"));
    fields_put_string(&fields, describe(failed));
    record.fields[0] = bytes_slice(&fields);
    failed->is_busy = true;
    if (deliver(L, runtime, &record, NULL) == 0 &&
        (failed->is_function || failed->sink.fd != STDERR_FILENO))
        write_to_stderr(log, &record);
    failed->is_busy = false;
    bytes_free(&fields);
}

/* Pushes what a function is given beside the line. */
static void push_record(lua_State *L, const Log *log, const LogRecord *record) {
    int table, part = 0;
    Slice rest = record->fields[0], name;
    Value value;
    lua_createtable(L, 0, 6);
    table = lua_gettop(L);
    lua_pushnumber(L, clock_to_seconds(record->time_ns));
    lua_setfield(L, table, "time");
    lua_pushstring(L, log_level_names[record->level]);
    lua_setfield(L, table, "level");
    lua_pushlstring(L, record->logger.data, record->logger.length);
    lua_setfield(L, table, "logger");
    lua_pushlstring(L, record->message.data, record->message.length);
    lua_setfield(L, table, "message");
    if (record->pid != 0) {
        lua_pushinteger(L, record->pid);
        lua_setfield(L, table, "pid");
    }
    lua_newtable(L);
    while (record_next_field(record, &part, &rest, &name, &value))
        capture_set(L, lua_gettop(L), name, &value, &log->secrets);
    lua_setfield(L, table, "fields");
}

/* ---- interruptions --------------------------------------------------------------------------------
 *
 * An error of a user's function in here is caught. But Ctrl-C, in the stand-alone interpreter and in
 * workers, comes as an error too, wherever Lua code runs, and once only: it is kept, under the log's
 * address in the registry, and raised again when all is in order. */

/* The error of a protected call is on the top of the stack. */
static void note_error(lua_State *L, Log *log) {
    if (log->is_interrupted || !capture_ends_more(L))
        return;
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, log); /* which has a place for it: see log_open */
    log->is_interrupted = true;
}

static void raise_interruption(lua_State *L, Log *log) {
    log->is_interrupted = false;
    lua_rawgetp(L, LUA_REGISTRYINDEX, log);
    lua_pushboolean(L, false);
    lua_rawsetp(L, LUA_REGISTRYINDEX, log);
    lua_error(L);
}

/* ---- functions as outputs ------------------------------------------------------------------------- */

typedef struct Delivery {
    Runtime *runtime;
    const LogRecord *record;
    int output;
} Delivery;

static int call_output(lua_State *L) { /* Delivery */
    const Delivery *delivery = lua_touserdata(L, 1);
    Log *log = delivery->runtime->log;
    const Output *output = &log->outputs[delivery->output];
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    runtime_open(L);
    lua_getiuservalue(L, -1, RUNTIME_OUTPUTS);
    lua_rawgeti(L, -1, delivery->output + 1);
    bytes_clear(&log->line, KEPT);
    record_format(&log->line, delivery->record, output->format, false, &log->secrets,
                  (Slice){NULL, 0});
    if (log->line.has_failed)
        return luaL_error(L, "not enough memory");
    lua_pushlstring(L, log->line.data, log->line.length - 1);
    push_record(L, log, delivery->record);
    lua_call(L, 2, 0);
    return 0;
}

/* What an error says: it, or the message of an object. A raw look calls nothing. */
static int error_text(lua_State *L) {
    if (lua_istable(L, 1)) {
        lua_pushliteral(L, "message");
        lua_rawget(L, 1);
    }
    if (lua_type(L, -1) != LUA_TSTRING)
        lua_pushliteral(L, "an error that is no text");
    return 1;
}

/* True: the function has taken the record. */
static bool deliver_to_function(lua_State *L, Runtime *runtime, const LogRecord *record, int i) {
    Output *output = &runtime->log->outputs[i];
    Delivery delivery = {runtime, record, i};
    int top = lua_gettop(L);
    bool is_taken;
    if (!lua_checkstack(L, LUA_MINSTACK))
        return false;
    output->is_busy = true;
    lua_pushcfunction(L, call_output);
    lua_pushlightuserdata(L, &delivery);
    is_taken = lua_pcall(L, 1, 0, 0) == LUA_OK;
    output->is_busy = false;
    if (is_taken) {
        output->has_failed = false;
    } else if (capture_ends_more(L)) {
        note_error(L, runtime->log);
    } else {
        Slice why = SLICE("not enough memory");
        lua_pushcfunction(L, error_text);
        lua_insert(L, -2);
        if (lua_pcall(L, 1, 1, 0) == LUA_OK)
            why.data = lua_tolstring(L, -1, &why.length);
        report_failure(L, runtime, output, why);
    }
    lua_settop(L, top);
    return is_taken;
}

/* The first part of the record's fields, as it stands in lines: which is the same for many records. */
static Slice shown_context(const Log *log, const LogRecord *record, const Output *output,
                           Context *context) {
    if (context == NULL || output->is_coloured || record_overrides(record))
        return (Slice){NULL, 0};
    if (context->generation != log->generation || context->format != output->format) {
        bytes_clear(&context->shown, KEPT);
        record_format_fields(&context->shown, record->fields[0], output->format, &log->secrets);
        context->format = (uint8_t)output->format;
        context->generation = context->shown.has_failed ? 0 : log->generation;
    }
    return context->generation != 0 ? bytes_slice(&context->shown) : (Slice){NULL, 0};
}

/* True: it was written. */
static bool deliver_to_sink(lua_State *L, Runtime *runtime, const LogRecord *record, Output *output,
                            Context *context) {
    Log *log = runtime->log;
    int error;
    bytes_clear(&log->line, KEPT);
    record_format(&log->line, record, output->format, output->is_coloured, &log->secrets,
                  shown_context(log, record, output, context));
    error =
        log->line.has_failed ? ENOMEM : sink_write(&output->sink, log->line.data, log->line.length);
    if (error == 0) {
        output->has_failed = false;
    } else {
        const char *why = strerror(error);
        report_failure(L, runtime, output, (Slice){why, strlen(why)});
    }
    return error == 0;
}

/* To the process that started this one; what cannot get there goes to stderr. */
static void send_away(lua_State *L, Log *log, const LogRecord *record) {
    LogRecord shorter = *record;
    bytes_clear(&log->line, KEPT);
    record_encode(&log->line, record);
    if (log->line.length > FORWARD_MAX) {
        static const Slice none = {NULL, 0};
        for (int i = 0; i < RECORD_FIELDS; i++)
            shorter.fields[i] = none;
        bytes_clear(&log->line, KEPT);
        record_encode(&log->line, &shorter);
    }
    if (!log->line.has_failed && !log->forward(L, log->forward_owner, bytes_slice(&log->line)))
        write_to_stderr(log, record);
}

/* Gives the record to all outputs that take its level; returns how many have. Its first fields are those
 * of the context, if that is not NULL. Raises nothing. */
static int deliver(lua_State *L, Runtime *runtime, const LogRecord *record, Context *context) {
    Log *log = runtime->log;
    int taken = 0;
    if (log->forward != NULL) {
        send_away(L, log, record);
        return 1;
    }
    log->delivering++;
    for (int i = 0; i < log->output_count; i++) {
        Output *output = &log->outputs[i];
        if (record->level < output->level || output->is_busy)
            continue;
        taken += output->is_function ? deliver_to_function(L, runtime, record, i)
                                     : deliver_to_sink(L, runtime, record, output, context);
    }
    log->delivering--;
    return taken;
}

/* ---- records ------------------------------------------------------------------------------------ */

typedef struct Making {
    Runtime *runtime;
    Context *context;
    LogRecord record;
} Making;

/* Puts the record together from the values from `first` to `last`. False: not all of it. */
static bool capture(lua_State *L, Making *making, Scratch *scratch, int first, int last) {
    const Log *log = making->runtime->log;
    bool has_fields;
    bytes_clear(&scratch->message, KEPT);
    bytes_clear(&scratch->fields, KEPT);
    has_fields = capture_message(L, first, last, &scratch->message, &scratch->inner, &log->secrets);
    if (scratch->message.has_failed)
        return false;
    making->record.message = bytes_slice(&scratch->message);
    if (has_fields)
        capture_fields(L, last, &scratch->fields);
    if (scratch->fields.has_failed)
        return false;
    making->record.fields[2] = bytes_slice(&scratch->fields);
    return true;
}

static int capture_protected(lua_State *L) { /* Making, format, arguments, ... */
    Making *making = lua_touserdata(L, 1);
    Log *log = making->runtime->log;
    if (!capture(L, making, &log->scratch[log->nesting - 1], 2, lua_gettop(L)))
        return luaL_error(L, "not enough memory");
    return 0;
}

/* Whether to capture these values calls no Lua code and raises nothing. */
static bool is_simple(lua_State *L, int first, int last) {
    for (int i = first; i <= last; i++) {
        int type = lua_type(L, i);
        if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN && type != LUA_TNIL)
            return false;
    }
    return true;
}

/* The same for any values: an error in there is caught. */
static bool capture_any(lua_State *L, Making *making, int first, int last) {
    bool is_made;
    lua_pushcfunction(L, capture_protected);
    lua_pushlightuserdata(L, making);
    for (int i = first; i <= last; i++)
        lua_pushvalue(L, i);
    is_made = lua_pcall(L, last - first + 2, 0, 0) == LUA_OK;
    if (!is_made)
        note_error(L, making->runtime->log);
    lua_settop(L, last);
    return is_made;
}

void log_record(lua_State *L, Runtime *runtime, const Logger *logger, LogLevel level, int first,
                Slice bound) {
    Log *log = runtime->log;
    Making making = {.runtime = runtime,
                     .record = {.level = level, .logger = logger->name, .fields[1] = bound}};
    int last = lua_gettop(L);
    if (log->nesting >= LOG_NESTING || !lua_checkstack(L, last - first + 2 * LUA_MINSTACK))
        return;
    if (log->noted.length > 0 && log->delivering == 0)
        log_deliver_noted(L, runtime);
    making.record.time_ns = now_ns(runtime);
    making.context =
        context_keep(/* what is called may change it */
                     contexts_get(&runtime->contexts,
                                  runtime->current != NULL ? runtime->current->anchor : 0));
    making.record.fields[0] = context_fields(making.context);
    log->nesting++;
    if (!(is_simple(L, first, last)
              ? capture(L, &making, &log->scratch[log->nesting - 1], first, last)
              : capture_any(L, &making, first, last))) {
        Bytes *note = &log->scratch[log->nesting - 1].inner;
        if (making.record.message.data == NULL)
            making.record.message = SLICE("(the message could not be made)");
        bytes_clear(note, KEPT);
        fields_put_string(note, SLICE("fields"));
        fields_put_string(note, SLICE("(they could not be taken)"));
        if (!note->has_failed)
            making.record.fields[2] = bytes_slice(note);
    }
    deliver(L, runtime, &making.record, making.context);
    log->nesting--;
    context_release(&runtime->contexts, making.context);
    if (log->is_interrupted && log->nesting == 0)
        raise_interruption(L, log);
}

/* ---- records that come from where no Lua can be called ------------------------------------------ */

static void append_noted(Runtime *runtime, const LogRecord *record) {
    Log *log = runtime->log;
    size_t place = log->noted.length;
    uint32_t length = 0;
    if (log->is_closed)
        return;
    bytes_append(&log->noted, &length, sizeof length);
    record_encode(&log->noted, record);
    if (log->noted.has_failed) { /* this one is lost, those before it are not */
        log->noted.length = place;
        log->noted.has_failed = false;
        return;
    }
    length = (uint32_t)(log->noted.length - place - sizeof length);
    memcpy(log->noted.data + place, &length, sizeof length);
    runtime_service_due(runtime, &log->service);
}

void log_note(Runtime *runtime, LogLevel level, const char *message, const Bytes *fields) {
    LogRecord record = {.time_ns = now_ns(runtime), .level = level};
    record.logger = runtime->log->opero->name;
    record.message = (Slice){message, strlen(message)};
    if (!fields->has_failed)
        record.fields[2] = bytes_slice(fields);
    append_noted(runtime, &record);
}

void log_note_forwarded(Runtime *runtime, int64_t pid, Slice bytes) {
    LogRecord record;
    if (!record_decode(&record, bytes))
        return;
    if (record.pid == 0) /* else it comes from a worker of the worker */
        record.pid = pid;
    append_noted(runtime, &record);
}

void log_deliver_noted(lua_State *L, Runtime *runtime) {
    Log *log = runtime->log;
    if (log->is_delivering_noted)
        return;
    log->is_delivering_noted = true;
    while (log->noted.length > 0) { /* more may come while they are delivered */
        Bytes noted = log->noted;
        size_t at = 0;
        uint32_t length;
        log->noted = (Bytes){.data = NULL};
        for (; at < noted.length; at += sizeof length + length) {
            LogRecord record;
            memcpy(&length, noted.data + at, sizeof length);
            if (record_decode(&record, (Slice){noted.data + at + sizeof length, length}))
                deliver(L, runtime, &record, NULL);
        }
        if (log->noted.length == 0 && noted.capacity <= KEPT) {
            bytes_free(&log->noted);
            noted.length = 0;
            log->noted = noted;
            break;
        }
        bytes_free(&noted);
    }
    log->is_delivering_noted = false;
}

static void work(lua_State *L, Service *service) {
    (void)service;
    log_deliver_noted(L, runtime_of(L));
}

static void move(Service *service, Loop *loop) {
    service->loop = loop;
}

static void stay(Service *service) {
    (void)service; /* nothing of it belongs to a loop or to a process */
}

/* ---- between a pool and its workers -------------------------------------------------------------- */

void log_encode_settings(const Log *log, Bytes *bytes) {
    fields_put_string(bytes, SLICE("least"));
    fields_put_integer(bytes, log->least);
    for (size_t i = 0; i < log->secrets.count; i++) {
        fields_put_string(bytes, SLICE("redact"));
        fields_put_string(bytes, log->secrets.names[i]);
    }
    for (const Logger *logger = log->loggers; logger != NULL; logger = logger->next)
        if (logger->own != 0 || logger == log->opero) {
            fields_put_string(bytes, logger->parent == NULL ? (Slice){"", 0} : logger->name);
            fields_put_integer(bytes, logger->level);
        }
}

static bool add_secret(Secrets *secrets, Slice name) {
    Slice *names = realloc(secrets->names, (secrets->count + 1) * sizeof *names);
    char *copy;
    if (names == NULL)
        return false;
    secrets->names = names;
    copy = malloc(name.length + 1);
    if (copy == NULL)
        return false;
    for (size_t i = 0; i < name.length; i++)
        copy[i] = byte_lower(name.data[i]);
    names[secrets->count++] = (Slice){copy, name.length};
    return true;
}

void log_decode_settings(lua_State *L, Runtime *runtime, Slice bytes) {
    Log *log = log_open(L, runtime);
    Slice name;
    Value value;
    bool is_first = true; /* which is the least level of the outputs */
    free_secrets(&log->secrets);
    for (Logger *logger = log->loggers; logger != NULL; logger = logger->next)
        logger->own = 0;
    while (fields_next(&bytes, &name, &value)) {
        if (value.kind == VALUE_STRING) {
            add_secret(&log->secrets, value.as.bytes);
        } else if (value.kind == VALUE_INTEGER && value.as.integer >= LOG_DEBUG &&
                   value.as.integer <= LOG_OFF) {
            if (is_first)
                log->least = (LogLevel)value.as.integer;
            else
                log_logger(L, log, name)->own = (LogLevel)value.as.integer;
        }
        is_first = false;
    }
    log->generation++; /* there may be workers of this one */
    refresh_levels(log);
}

void log_forward(lua_State *L, Runtime *runtime,
                 bool (*forward)(lua_State *L, void *owner, Slice record), void *owner) {
    Log *log = log_open(L, runtime);
    bytes_clear(&log->noted, 0); /* the parent's */
    log->nesting = log->delivering = 0;
    log->is_delivering_noted = false;
    close_outputs(log->outputs, log->output_count);
    log->outputs = NULL;
    log->output_count = 0;
    log->forward = forward;
    log->forward_owner = owner;
    runtime_remove_service(runtime, &log->service);
    runtime_add_service(runtime, &log->service);
    refresh_levels(log);
}

/* ---- configuring -------------------------------------------------------------------------------- */

typedef struct Setup { /* a userdata, until it is in force */
    Output *outputs;
    int count;
    Secrets secrets;
} Setup;

static void free_setup(Setup *setup) {
    close_outputs(setup->outputs, setup->count);
    free_secrets(&setup->secrets);
    setup->outputs = NULL;
    setup->count = 0;
}

static int setup_gc(lua_State *L) {
    free_setup(lua_touserdata(L, 1));
    return 0;
}

static LogFormat check_format(lua_State *L, int index) {
    const char *name = luaL_tolstring(L, index, NULL);
    return strcmp(name, "json") == 0     ? FORMAT_JSON
           : strcmp(name, "logfmt") == 0 ? FORMAT_LOGFMT
           : strcmp(name, "plain") == 0  ? FORMAT_PLAIN
                                         : FORMAT_TEXT;
}

/* Whether a terminal is to have colours. See no-color.org for the variable. */
static bool wants_colour(int fd) {
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    return isatty(fd) && (no_color == NULL || *no_color == '\0') &&
           (terminal == NULL || strcmp(terminal, "dumb") != 0);
}

/* Fills in an output from the table at the top of the stack: { fd | path | fn, level, format }. */
static void set_up_output(lua_State *L, Setup *setup, lua_Integer number, int functions) {
    Output *output = &setup->outputs[number - 1];
    int table = lua_gettop(L);
    lua_getfield(L, table, "level");
    output->level = log_check_level(L, -1);
    lua_getfield(L, table, "format");
    output->format = check_format(L, -1);
    lua_getfield(L, table, "fn");
    output->is_function = !lua_isnil(L, -1);
    if (output->is_function) {
        lua_rawseti(L, functions, number);
        lua_settop(L, table);
        return;
    }
    if (lua_getfield(L, table, "path") == LUA_TSTRING) {
        int error = sink_open(&output->sink, lua_tostring(L, -1));
        if (error != 0) {
            lua_pushfstring(L, "%s: %s", lua_tostring(L, -1), strerror(error));
            free_setup(setup); /* now, and not when the collector comes by */
            lua_error(L);
        }
    } else {
        lua_getfield(L, table, "fd");
        sink_use(&output->sink, (int)lua_tointeger(L, -1));
    }
    output->is_coloured = output->format == FORMAT_TEXT && wants_colour(output->sink.fd);
    lua_settop(L, table);
}

/* log_configure(outputs, secrets): for the Lua layer, which has checked what it gives: a list of
 * { fd = n | path = s | fn = f, level = s, format = s } and one of names. Raises the reason why a file
 * cannot be opened; then all stays as it was. */
static int call_configure(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Log *log = log_open(L, runtime);
    lua_Integer outputs = luaL_len(L, 1), secrets = luaL_len(L, 2);
    Setup *setup;
    lua_settop(L, 2);
    if (log->is_closed)
        return luaL_error(L, "logging cannot be configured: the runtime is closed");
    if (log->delivering > 0)
        return luaL_error(L, "logging cannot be configured by an output of it");
    log_deliver_noted(L, runtime); /* where they were to go when they were made */
    setup = lua_newuserdatauv(L, sizeof *setup, 0);
    *setup = (Setup){.count = 0};
    luaL_setmetatable(L, SETUP_METATABLE);
    lua_createtable(L, (int)outputs, 0); /* of functions */
    if (log->forward != NULL)
        outputs = 0; /* those of the process that started this one serve it */
    setup->outputs = calloc((size_t)outputs + 1, sizeof *setup->outputs);
    if (setup->outputs == NULL)
        return luaL_error(L, "not enough memory");
    for (lua_Integer i = 1; i <= outputs; i++) {
        lua_rawgeti(L, 1, i);
        setup->outputs[i - 1] = (Output){.sink = {.fd = -1}};
        setup->count++;
        set_up_output(L, setup, i, 4);
        lua_pop(L, 1);
    }
    for (lua_Integer i = 1; i <= secrets; i++) {
        Slice name;
        lua_rawgeti(L, 2, i);
        name.data = lua_tolstring(L, -1, &name.length);
        if (!add_secret(&setup->secrets, name))
            return luaL_error(L, "not enough memory");
        lua_pop(L, 1);
    }
    lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_OUTPUTS); /* nothing raises from here on */
    close_outputs(log->outputs, log->output_count);
    free_secrets(&log->secrets);
    log->outputs = setup->outputs;
    log->output_count = setup->count;
    log->secrets = setup->secrets;
    *setup = (Setup){.count = 0};
    log->generation++;
    refresh_levels(log);
    return 0;
}

/* log_reopen(): opens the files anew, by their names. Returns a list of { path, reason } of those that
 * could not be: they stay as they were. */
static int call_reopen(lua_State *L) {
    Log *log = log_open(L, runtime_of(L));
    lua_newtable(L);
    for (int i = 0; i < log->output_count; i++) {
        Output *output = &log->outputs[i];
        int error = output->is_function ? 0 : sink_reopen(&output->sink);
        if (error == 0)
            continue;
        lua_createtable(L, 2, 0);
        lua_pushstring(L, output->sink.path);
        lua_rawseti(L, -2, 1);
        lua_pushstring(L, strerror(error));
        lua_rawseti(L, -2, 2);
        lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    }
    return 1;
}

/* ---- the log itself ----------------------------------------------------------------------------- */

Log *log_open(lua_State *L, Runtime *runtime) {
    Log *log = runtime->log;
    int top = lua_gettop(L);
    if (log != NULL && (log->opero != NULL || log->is_closed))
        return log;
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    runtime_open(L);
    if (log == NULL) {
        log = lua_newuserdatauv(L, sizeof *log, 0);
        memset(log, 0, sizeof *log);
        link_init(&log->service.link);
        log->service.work = work;
        log->service.move = move;
        log->service.forget = stay;
        log->service.end = stay;
        log->generation = 1;
        lua_pushboolean(L, false); /* so that there is room for an interruption, whatever happens */
        lua_rawsetp(L, LUA_REGISTRYINDEX, log);
        lua_setiuservalue(L, top + 1, RUNTIME_LOG);
        runtime->log = log;
        runtime_add_service(runtime, &log->service);
    }
    if (log->outputs == NULL) {
        log->outputs = calloc(1, sizeof *log->outputs);
        if (log->outputs == NULL)
            luaL_error(L, "not enough memory");
        log->output_count = 1;
        log->outputs->level = LOG_DEBUG;
        log->outputs->is_coloured = wants_colour(STDERR_FILENO);
        sink_use(&log->outputs->sink, STDERR_FILENO);
    }
    if (lua_getiuservalue(L, top + 1, RUNTIME_LOGGERS) != LUA_TTABLE) {
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, top + 1, RUNTIME_LOGGERS);
    }
    if (log->loggers == NULL) {
        make_logger(L, log, lua_gettop(L), NULL, (Slice){"", 0});
        log->loggers->name = SLICE("root");
    }
    lua_settop(L, top);
    log->opero = log_logger(L, log, SLICE("opero"));
    refresh_levels(log);
    return log;
}

void log_close(Runtime *runtime) {
    Log *log = runtime->log;
    if (log == NULL)
        return;
    runtime_remove_service(runtime, &log->service);
    close_outputs(log->outputs, log->output_count);
    log->outputs = NULL;
    log->output_count = 0;
    log->forward = NULL;
    log->is_closed = true;
    refresh_levels(log); /* no output, so no record */
    free_secrets(&log->secrets);
    for (int i = 0; i < LOG_NESTING; i++) {
        bytes_free(&log->scratch[i].message);
        bytes_free(&log->scratch[i].fields);
        bytes_free(&log->scratch[i].inner);
    }
    bytes_free(&log->line);
    bytes_free(&log->noted);
}

static const luaL_Reg functions[] = {
    {"log_configure", call_configure}, {"log_reopen", call_reopen}, {NULL, NULL}};

void log_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    runtime_new_metatable(L, SETUP_METATABLE, NULL);
    lua_pushcfunction(L, setup_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    runtime_set_functions(L, module, functions);
    log_open(L, runtime_open(L));
    lua_pop(L, 1);
}
