#include "record.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const log_level_names[] = {NULL,    "debug",    "info", "warning",
                                       "error", "critical", "off"};

enum { DEEPEST = 32 }; /* far deeper than what is ever written */

static const char HEX[] = "0123456789abcdef";

/* ---- secrets ------------------------------------------------------------------------------------ */

static bool equals_lower(Slice name, Slice lowered) {
    if (name.length != lowered.length)
        return false;
    for (size_t i = 0; i < name.length; i++)
        if (byte_lower(name.data[i]) != lowered.data[i])
            return false;
    return true;
}

bool secrets_hide(const Secrets *secrets, Slice name) {
    for (size_t i = 0; i < secrets->count; i++)
        if (equals_lower(name, secrets->names[i]))
            return true;
    return false;
}

static const Value MASK = {.kind = VALUE_STRING, .as.bytes = {"***", 3}};

/* ---- characters --------------------------------------------------------------------------------- */

/* The length of the UTF-8 sequence that begins there and its code point; 0 when it is none: a stray
 * byte, one that is cut short, one that is longer than it need be, a surrogate, or too great. */
static size_t decode(Slice text, size_t at, uint32_t *point) {
    const unsigned char *bytes = (const unsigned char *)text.data + at;
    size_t left = text.length - at, length;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t value;
    if (bytes[0] < 0x80) {
        *point = bytes[0];
        return 1;
    }
    if (bytes[0] < 0xc2 || bytes[0] > 0xf4)
        return 0;
    length = bytes[0] < 0xe0 ? 2 : bytes[0] < 0xf0 ? 3 : 4;
    if (left < length)
        return 0;
    value = bytes[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (bytes[i] & 0x3f);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return 0;
    *point = value;
    return length;
}

/* Whether it must not stand in a line as it is: controls, those of the second set too; what separates
 * lines and paragraphs; what changes the direction of writing, so that a line reads as another. */
static bool is_harmful(uint32_t point) {
    if (point >= 0x20 && point < 0x7f)
        return false;
    return point < 0x20 || (point >= 0x7f && point <= 0x9f) || point == 0x2028 || point == 0x2029 ||
           point == 0x061c || point == 0x200e || point == 0x200f ||
           (point >= 0x202a && point <= 0x202e) || (point >= 0x2066 && point <= 0x2069) ||
           point == 0xfeff;
}

typedef enum Escaping {
    PLAIN,  /* what is harmful: \n, \x1b, \u2028 */
    QUOTED, /* the same, in quotes: " and \ too */
    JSON,   /* as JSON has it: \n, \u001b */
} Escaping;

static char short_escape(uint32_t point) {
    switch (point) {
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    default:
        return 0;
    }
}

static void append_hex(Bytes *line, uint32_t value, int digits) {
    for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4)
        bytes_put(line, HEX[value >> shift & 0xf]);
}

static void append_harmful(Bytes *line, uint32_t point, Escaping escaping) {
    char letter = short_escape(point);
    bytes_put(line, '\\');
    if (letter != 0 && (escaping == JSON || (point != '\b' && point != '\f'))) {
        bytes_put(line, letter);
    } else if (escaping == JSON || point > 0xff) {
        bytes_put(line, 'u');
        append_hex(line, point, 4);
    } else {
        bytes_put(line, 'x');
        append_hex(line, point, 2);
    }
}

/* Bytes that stand for themselves wherever they are, and need no second look. */
static bool is_easy(unsigned char byte) {
    return byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\';
}

static void append_escaped(Bytes *line, Slice text, Escaping escaping) {
    size_t at = 0;
    if (!bytes_reserve(line, text.length))
        return;
    while (at < text.length) {
        size_t easy = at, length;
        uint32_t point = 0;
        while (easy < text.length && is_easy((unsigned char)text.data[easy]))
            easy++;
        bytes_append(line, text.data + at, easy - at);
        at = easy;
        if (at == text.length)
            return;
        length = decode(text, at, &point);
        if (length == 0) { /* no UTF-8 */
            unsigned char byte = (unsigned char)text.data[at++];
            if (escaping == JSON) {
                bytes_append(line, "\\ufffd", 6);
            } else {
                bytes_append(line, "\\x", 2);
                append_hex(line, byte, 2);
            }
            continue;
        }
        if (is_harmful(point)) {
            append_harmful(line, point, escaping);
        } else {
            if (escaping != PLAIN && (point == '"' || point == '\\'))
                bytes_put(line, '\\');
            bytes_append(line, text.data + at, length);
        }
        at += length;
    }
}

void text_append_plain(Bytes *line, Slice text) {
    append_escaped(line, text, PLAIN);
}

static void append_quoted(Bytes *line, Slice text, Escaping escaping) {
    bytes_put(line, '"');
    append_escaped(line, text, escaping);
    bytes_put(line, '"');
}

/* ---- numbers ------------------------------------------------------------------------------------ */

void text_append_integer(Bytes *line, int64_t value) {
    char digits[24];
    int at = sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do
        digits[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (value < 0)
        digits[--at] = '-';
    bytes_append(line, digits + at, sizeof digits - (size_t)at);
}

void text_append_number(Bytes *line, double value) {
    char text[40];
    int length = 0;
    size_t kept = 0;
    bool is_integer = true;
    if (isnan(value)) {
        bytes_append(line, "NaN", 3);
        return;
    }
    if (isinf(value)) {
        bytes_append_slice(line, value > 0 ? SLICE("Infinity") : SLICE("-Infinity"));
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        length = snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    for (int i = 0; i < length; i++) {
        bool is_point =
            strchr("0123456789-+e", text[i]) == NULL; /* the locale's, in any encoding */
        if (!is_point || text[kept - 1] != '.')
            text[kept++] = is_point ? '.' : text[i];
        is_integer = is_integer && !is_point && text[i] != 'e';
    }
    bytes_append(line, text, kept);
    if (is_integer)
        bytes_append(line, ".0", 2);
}

/* ---- JSON --------------------------------------------------------------------------------------- */

static void append_json(Bytes *line, const Value *value, const Secrets *secrets, int depth);

static void append_list(Bytes *line, Slice rest, const Secrets *secrets, int depth) {
    Value value;
    char before = '[';
    while (fields_next_value(&rest, &value)) {
        bytes_put(line, before);
        append_json(line, &value, secrets, depth);
        before = ',';
    }
    if (before == '[')
        bytes_put(line, '[');
    bytes_put(line, ']');
}

static void append_map(Bytes *line, Slice rest, const Secrets *secrets, int depth) {
    Slice name;
    Value value;
    char before = '{';
    while (fields_next(&rest, &name, &value)) {
        bytes_put(line, before);
        append_quoted(line, name, JSON);
        bytes_put(line, ':');
        append_json(line, secrets_hide(secrets, name) ? &MASK : &value, secrets, depth);
        before = ',';
    }
    if (before == '{')
        bytes_put(line, '{');
    bytes_put(line, '}');
}

static void append_json(Bytes *line, const Value *value, const Secrets *secrets, int depth) {
    switch (value->kind) {
    case VALUE_NIL:
        bytes_append(line, "null", 4);
        break;
    case VALUE_FALSE:
        bytes_append(line, "false", 5);
        break;
    case VALUE_TRUE:
        bytes_append(line, "true", 4);
        break;
    case VALUE_INTEGER:
        text_append_integer(line, value->as.integer);
        break;
    case VALUE_FLOAT:
        if (isfinite(value->as.number)) {
            text_append_number(line, value->as.number);
        } else { /* JSON has none of these */
            bytes_put(line, '"');
            text_append_number(line, value->as.number);
            bytes_put(line, '"');
        }
        break;
    case VALUE_STRING:
        append_quoted(line, value->as.bytes, JSON);
        break;
    case VALUE_LIST:
    case VALUE_MAP:
        if (depth >= DEEPEST)
            bytes_append(line, "\"...\"", 5);
        else if (value->kind == VALUE_LIST)
            append_list(line, value->as.bytes, secrets, depth + 1);
        else
            append_map(line, value->as.bytes, secrets, depth + 1);
        break;
    }
}

void json_append_value(Bytes *line, const Value *value, const Secrets *secrets) {
    append_json(line, value, secrets, 0);
}

/* ---- values in text and logfmt ------------------------------------------------------------------ */

/* The length of the character there if it can stand in a name, or in a value without quotes; else 0.
 * How many bytes it takes then is `skip`. */
static size_t length_in_word(Slice text, size_t at, size_t *skip) {
    uint32_t point = (unsigned char)text.data[at];
    size_t length = 1;
    if (!is_easy((unsigned char)point))
        length = decode(text, at, &point);
    *skip = length > 0 ? length : 1;
    if (length == 0 || is_harmful(point) || point == ' ' || point == '"' || point == '=' ||
        point == '\\')
        return 0;
    return length;
}

/* Whether a string can stand without quotes. */
static bool is_word(Slice text) {
    size_t skip;
    for (size_t at = 0; at < text.length; at += skip) {
        unsigned char byte = (unsigned char)text.data[at];
        skip = 1;
        if ((byte < 'a' || byte > 'z') && length_in_word(text, at, &skip) == 0)
            return false;
    }
    return text.length > 0;
}

static void append_string(Bytes *line, Slice text, Escaping escaping) {
    if (is_word(text))
        bytes_append_slice(line, text);
    else
        append_quoted(line, text, escaping);
}

static void append_value(Bytes *line, const Value *value, LogFormat format,
                         const Secrets *secrets) {
    Bytes inner = {.data = NULL};
    switch (value->kind) {
    case VALUE_STRING:
        append_string(line, value->as.bytes, format == FORMAT_LOGFMT ? JSON : QUOTED);
        break;
    case VALUE_FLOAT:
        text_append_number(line, value->as.number);
        break;
    case VALUE_LIST:
    case VALUE_MAP:
        if (format != FORMAT_LOGFMT) {
            json_append_value(line, value, secrets);
            break;
        }
        json_append_value(&inner, value, secrets);
        append_string(line, bytes_slice(&inner), JSON);
        line->has_failed = line->has_failed || inner.has_failed;
        bytes_free(&inner);
        break;
    default:
        json_append_value(line, value, secrets);
        break;
    }
}

/* A name: what cannot stand before a "=" becomes "_". */
static void append_name(Bytes *line, Slice name) {
    size_t skip;
    if (name.length == 0)
        bytes_put(line, '_');
    for (size_t at = 0; at < name.length; at += skip) {
        size_t length = length_in_word(name, at, &skip);
        if (length == 0)
            bytes_put(line, '_');
        else
            bytes_append(line, name.data + at, length);
    }
}

/* ---- times -------------------------------------------------------------------------------------- */

/* The date of a day since 1970-01-01 in the Gregorian calendar. The algorithm is Howard Hinnant's
 * civil_from_days: years that begin in March, in eras of 400. */
static void date_of(int64_t day, int64_t *year, unsigned *month, unsigned *date) {
    int64_t shifted = day + 719468, era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
    unsigned of_era = (unsigned)(shifted - era * 146097);
    unsigned year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    unsigned of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    unsigned from_march = (5 * of_year + 2) / 153;
    *date = of_year - (153 * from_march + 2) / 5 + 1;
    *month = from_march < 10 ? from_march + 3 : from_march - 9;
    *year = (int64_t)year_of_era + era * 400 + (*month <= 2);
}

static char *put_digits(char *to, unsigned value, int digits) {
    for (int i = digits - 1; i >= 0; i--) {
        to[i] = (char)('0' + value % 10);
        value /= 10;
    }
    return to + digits;
}

static void append_time(Bytes *line, int64_t time_ns) {
    char text[32], *at = text;
    int64_t seconds = time_ns / 1000000000, rest = time_ns % 1000000000, year;
    int64_t day;
    unsigned month, date, of_day;
    if (rest < 0) {
        rest += 1000000000;
        seconds--;
    }
    day = (seconds >= 0 ? seconds : seconds - 86399) / 86400;
    of_day = (unsigned)(seconds - day * 86400);
    date_of(day, &year, &month, &date);
    at = put_digits(at, (unsigned)year, 4); /* int64 nanoseconds reach from 1677 to 2262 */
    *at++ = '-';
    at = put_digits(at, month, 2);
    *at++ = '-';
    at = put_digits(at, date, 2);
    *at++ = 'T';
    at = put_digits(at, of_day / 3600, 2);
    *at++ = ':';
    at = put_digits(at, of_day / 60 % 60, 2);
    *at++ = ':';
    at = put_digits(at, of_day % 60, 2);
    *at++ = '.';
    at = put_digits(at, (unsigned)(rest / 1000), 6);
    *at++ = 'Z';
    bytes_append(line, text, (size_t)(at - text));
}

/* ---- lines -------------------------------------------------------------------------------------- */

/* Whether a later part has a field of that name. */
static bool is_overridden(const LogRecord *record, int part, Slice name) {
    Value value;
    for (int i = part + 1; i < RECORD_FIELDS; i++)
        if (record->fields[i].length > 0 && fields_find(record->fields[i], name, &value))
            return true;
    return false;
}

bool record_next_field(const LogRecord *record, int *part, Slice *rest, Slice *name, Value *value) {
    for (;;) {
        while (!fields_next(rest, name, value)) {
            if (++*part >= RECORD_FIELDS)
                return false;
            *rest = record->fields[*part];
        }
        if (!is_overridden(record, *part, *name))
            return true;
    }
}

static bool is_reserved(Slice name, bool has_pid) {
    static const Slice reserved[] = {{"time", 4},    {"level", 5}, {"logger", 6},
                                     {"message", 7}, {"msg", 3},   {"pid", 3}};
    size_t count = sizeof reserved / sizeof *reserved - !has_pid;
    if (name.length >= 7 && memcmp(name.data, "fields.", 7) == 0)
        return true;
    for (size_t i = 0; i < count; i++)
        if (slice_equals(name, reserved[i]))
            return true;
    return false;
}

static Slice level_name(LogLevel level) {
    const char *name = level >= LOG_DEBUG && level <= LOG_CRITICAL ? log_level_names[level] : "?";
    return (Slice){name, strlen(name)};
}

typedef struct Style {
    LogFormat format;
    bool is_coloured, has_pid;
    const Secrets *secrets;
} Style;

/* Appends a field, and what separates it from what stands before it. */
static void append_field(Bytes *line, Slice name, const Value *value, const Style *style) {
    const Value *shown = secrets_hide(style->secrets, name) ? &MASK : value;
    bool is_taken = is_reserved(name, style->has_pid);
    if (style->format == FORMAT_JSON) {
        bytes_append(line, ",\"", 2);
        if (is_taken)
            bytes_append(line, "fields.", 7);
        append_escaped(line, name, JSON);
        bytes_append(line, "\":", 2);
        json_append_value(line, shown, style->secrets);
        return;
    }
    bytes_put(line, ' ');
    if (style->is_coloured)
        bytes_append_slice(line, SLICE("\033[2m"));
    if (is_taken)
        bytes_append(line, "fields.", 7);
    append_name(line, name);
    bytes_put(line, '=');
    if (style->is_coloured)
        bytes_append_slice(line, SLICE("\033[0m"));
    append_value(line, shown, style->format, style->secrets);
}

void record_format_fields(Bytes *line, Slice fields, LogFormat format, const Secrets *secrets) {
    const Style style = {.format = format, .secrets = secrets};
    Slice name;
    Value value;
    while (fields_next(&fields, &name, &value))
        append_field(line, name, &value, &style);
}

static void append_fields(Bytes *line, const LogRecord *record, Slice first, const Style *style) {
    int part = 0;
    Slice rest = record->fields[0], name;
    Value value;
    size_t begin = line->length;
    bool is_spaced = style->format == FORMAT_TEXT || style->format == FORMAT_PLAIN;
    if (is_spaced)
        bytes_put(line, ' ');
    if (first.length > 0) {
        bytes_append_slice(line, first);
        rest.length = 0;
    }
    while (record_next_field(record, &part, &rest, &name, &value))
        append_field(line, name, &value, style);
    if (is_spaced && line->length == begin + 1)
        line->length = begin; /* there was none */
}

bool record_overrides(const LogRecord *record) {
    for (int i = 1; i < RECORD_FIELDS; i++) {
        Slice rest = record->fields[i], name;
        Value value, other;
        while (fields_next(&rest, &name, &value))
            if (fields_find(record->fields[0], name, &other))
                return true;
    }
    return false;
}

static void append_time_and_level(Bytes *line, const LogRecord *record, bool is_coloured) {
    static const char *const colours[] = {"",         "\033[36m", "\033[32m",
                                          "\033[33m", "\033[31m", "\033[1;31m"};
    Slice name = level_name(record->level);
    append_time(line, record->time_ns);
    bytes_put(line, ' ');
    if (is_coloured && record->level >= LOG_DEBUG && record->level <= LOG_CRITICAL)
        bytes_append(line, colours[record->level], strlen(colours[record->level]));
    for (size_t i = 0; i < name.length; i++)
        bytes_put(line, name.data[i] >= 'a' ? (char)(name.data[i] - ('a' - 'A')) : name.data[i]);
    if (is_coloured)
        bytes_append_slice(line, SLICE("\033[0m"));
    for (size_t i = name.length; i <= sizeof "critical" - 1; i++)
        bytes_put(line, ' ');
}

static void format_plain(Bytes *line, const LogRecord *record) {
    text_append_plain(line, record->logger);
    if (record->pid != 0) {
        bytes_put(line, '[');
        text_append_integer(line, record->pid);
        bytes_put(line, ']');
    }
    bytes_append(line, ": ", 2);
    text_append_plain(line, record->message);
}

static void format_logfmt(Bytes *line, const LogRecord *record) {
    bytes_append_slice(line, SLICE("time="));
    append_time(line, record->time_ns);
    bytes_append_slice(line, SLICE(" level="));
    bytes_append_slice(line, level_name(record->level));
    bytes_append_slice(line, SLICE(" logger="));
    append_string(line, record->logger, JSON);
    if (record->pid != 0) {
        bytes_append_slice(line, SLICE(" pid="));
        text_append_integer(line, record->pid);
    }
    bytes_append_slice(line, SLICE(" msg="));
    append_string(line, record->message, JSON);
}

static void format_json(Bytes *line, const LogRecord *record) {
    bytes_append_slice(line, SLICE("{\"time\":\""));
    append_time(line, record->time_ns);
    bytes_append_slice(line, SLICE("\",\"level\":\""));
    bytes_append_slice(line, level_name(record->level));
    bytes_append_slice(line, SLICE("\",\"logger\":"));
    append_quoted(line, record->logger, JSON);
    if (record->pid != 0) {
        bytes_append_slice(line, SLICE(",\"pid\":"));
        text_append_integer(line, record->pid);
    }
    bytes_append_slice(line, SLICE(",\"message\":"));
    append_quoted(line, record->message, JSON);
}

void record_format(Bytes *line, const LogRecord *record, LogFormat format, bool is_coloured,
                   const Secrets *secrets, Slice first) {
    const Style style = {format, is_coloured, record->pid != 0, secrets};
    if (format == FORMAT_JSON)
        format_json(line, record);
    else if (format == FORMAT_LOGFMT)
        format_logfmt(line, record);
    else {
        if (format == FORMAT_TEXT)
            append_time_and_level(line, record, is_coloured);
        format_plain(line, record);
    }
    append_fields(line, record, first, &style);
    if (format == FORMAT_JSON)
        bytes_put(line, '}');
    bytes_put(line, '\n');
}

/* ---- between processes -------------------------------------------------------------------------- */

typedef struct Head {
    int64_t time_ns, pid;
    uint32_t logger, message, fields[RECORD_FIELDS]; /* lengths */
    uint32_t level;
} Head;

void record_encode(Bytes *bytes, const LogRecord *record) {
    Head head = {.time_ns = record->time_ns,
                 .pid = record->pid,
                 .logger = (uint32_t)record->logger.length,
                 .message = (uint32_t)record->message.length,
                 .level = record->level};
    for (int i = 0; i < RECORD_FIELDS; i++)
        head.fields[i] = (uint32_t)record->fields[i].length;
    bytes_append(bytes, &head, sizeof head);
    bytes_append_slice(bytes, record->logger);
    bytes_append_slice(bytes, record->message);
    for (int i = 0; i < RECORD_FIELDS; i++)
        bytes_append_slice(bytes, record->fields[i]);
}

static bool take(Slice *rest, Slice *part, uint32_t length) {
    if (rest->length < length)
        return false;
    *part = (Slice){rest->data, length};
    rest->data += length;
    rest->length -= length;
    return true;
}

bool record_decode(LogRecord *record, Slice bytes) {
    Head head;
    if (bytes.length < sizeof head)
        return false;
    memcpy(&head, bytes.data, sizeof head);
    bytes.data += sizeof head;
    bytes.length -= sizeof head;
    if (head.level < LOG_DEBUG || head.level > LOG_CRITICAL)
        return false;
    *record = (LogRecord){.time_ns = head.time_ns, .level = (LogLevel)head.level, .pid = head.pid};
    if (!take(&bytes, &record->logger, head.logger) ||
        !take(&bytes, &record->message, head.message))
        return false;
    for (int i = 0; i < RECORD_FIELDS; i++)
        if (!take(&bytes, &record->fields[i], head.fields[i]))
            return false;
    return bytes.length == 0;
}
