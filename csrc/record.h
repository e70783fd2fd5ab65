/*
 * Log records: what they consist of, as bytes between processes, and as a line of text.
 *
 * A line holds no byte that ends it, or that a terminal would act on, but its last; what is in the
 * record cannot break it, nor make it look like two. It is valid UTF-8, whatever was in the record.
 * The formats:
 *
 *   text     2026-01-31T12:00:00.000000Z INFO     my_app: fetched 3 bytes  url=/a size=3
 *   plain    my_app: fetched 3 bytes  url=/a size=3
 *   logfmt   time=2026-01-31T12:00:00.000000Z level=info logger=my_app msg="fetched 3 bytes" url=/a
 *   json     {"time":"2026-01-31T12:00:00.000000Z","level":"info","logger":"my_app","message":...}
 *
 * Times are RFC 3339 in UTC. In the others lists and maps are JSON, in logfmt within a string. A field whose name is that of one of the record's own parts (time, level, logger, message,
 * msg, and pid if there is one), or begins with "fields.", is called "fields.NAME" instead.
 */
#ifndef OPERO_RECORD_H
#define OPERO_RECORD_H

#include "fields.h"

#pragma GCC visibility push(hidden)

typedef enum LogLevel {
    LOG_DEBUG = 1,
    LOG_INFO,
    LOG_WARNING,
    LOG_ERROR,
    LOG_CRITICAL,
    LOG_OFF, /* of loggers and outputs: lets nothing through */
} LogLevel;

typedef enum LogFormat { FORMAT_TEXT, FORMAT_PLAIN, FORMAT_LOGFMT, FORMAT_JSON } LogFormat;

/* "debug", ..., "off". */
extern const char *const log_level_names[];

enum { LOG_FORMATS = FORMAT_JSON + 1, RECORD_FIELDS = 3 };

typedef struct LogRecord {
    int64_t time_ns; /* since 1970-01-01 UTC */
    LogLevel level;
    int64_t pid; /* of the worker it comes from; 0: from this process */
    Slice logger, message;
    Slice fields[RECORD_FIELDS]; /* of one name the last counts; those of each are in order */
} LogRecord;

/* Names of fields whose values are not to be seen. */
typedef struct Secrets {
    Slice *names; /* lower case */
    size_t count;
} Secrets;

/* Whether a name is among them, in upper or lower case. */
bool secrets_hide(const Secrets *secrets, Slice name);

/* Appends the record as a line, with the newline. `first`, if it is not empty, is what
 * record_format_fields made of the first part of its fields. */
void record_format(Bytes *line, const LogRecord *record, LogFormat format, bool is_coloured,
                   const Secrets *secrets, Slice first);

/* Appends fields as they stand in a line without colours of a record of this process. */
void record_format_fields(Bytes *line, Slice fields, LogFormat format, const Secrets *secrets);

/* Whether a field of the first part is overridden by one of the others. */
bool record_overrides(const LogRecord *record);

/* Appends the record as bytes; from those, into slices of them. False: they are malformed. */
void record_encode(Bytes *bytes, const LogRecord *record);
bool record_decode(LogRecord *record, Slice bytes);

/* Takes the next of the record's fields that count; `part` and `rest` are where to go on: 0 and
 * the first slice at the beginning. */
bool record_next_field(const LogRecord *record, int *part, Slice *rest, Slice *name, Value *value);

/* ---- parts of lines, for messages too ----------------------------------------------------------- */

/* A string as it may stand in a line, without quotes. */
void text_append_plain(Bytes *line, Slice text);

/* A value as JSON; nothing deeper than it can have been written. */
void json_append_value(Bytes *line, const Value *value, const Secrets *secrets);

/* Numbers as they are in every format: integers in full, floats with as many digits as tell them from
 * each other, and never like an integer; NaN, Infinity, -Infinity. */
void text_append_integer(Bytes *line, int64_t value);
void text_append_number(Bytes *line, double value);

#pragma GCC visibility pop

#endif
