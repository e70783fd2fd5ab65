#include "record.h"

#include "faults.h"
#include "slices.h"
#include "test.h"

#include <ctype.h>
#include <math.h>
#include <time.h>

/* ---- locales -------------------------------------------------------------------------------- */

static const char *locale_point; /* what stands for the "." of numbers; NULL: that */

int snprintf(char *to, size_t size, const char *format, ...) {
    va_list arguments;
    char *point;
    int length;
    va_start(arguments, format);
    length = vsnprintf(to, size, format, arguments);
    va_end(arguments);
    if (locale_point == NULL || (point = strchr(to, '.')) == NULL)
        return length;
    memmove(point + strlen(locale_point), point + 1, strlen(point));
    memcpy(point, locale_point, strlen(locale_point));
    return length - 1 + (int)strlen(locale_point);
}

double strtod(const char *text, char **end) {
    static double (*real)(const char *, char **);
    const char *point;
    char copy[64];
    FAULTS_REAL("strtod");
    if (locale_point == NULL || (point = strstr(text, locale_point)) == NULL)
        return real(text, end);
    memcpy(copy, text, (size_t)(point - text));
    copy[point - text] = '.';
    strcpy(copy + (point - text) + 1, point + strlen(locale_point));
    return real(copy, end);
}

/* ---- what every test needs ----------------------------------------------------------------- */

static const Secrets NO_SECRETS = {.count = 0};
static const Slice NOTHING = {NULL, 0};

static bool check_text(Slice got, const char *wanted) {
    bool is_same = slice_equals(got, slice_of(wanted));
    if (!CHECK(is_same))
        printf("  is     %.*s\n  not    %s\n", (int)got.length, got.data, wanted);
    return is_same;
}

static Bytes line_made; /* its memory is used again and again */

static Slice format_line(const LogRecord *record, LogFormat format, bool is_coloured,
                         const Secrets *secrets) {
    bytes_clear(&line_made, SIZE_MAX);
    record_format(&line_made, record, format, is_coloured, secrets, NOTHING);
    CHECK(!line_made.has_failed);
    return bytes_slice(&line_made);
}

static void forget_line(void) {
    bytes_free(&line_made);
}

/* ---- characters, told in another way than where they are written ---------------------------- */

typedef struct Range {
    uint32_t first, last;
} Range;

/* The well-formed sequences of the Unicode Standard, table 3-7. Returns the length, or 0. */
static size_t sequence_at(Slice text, size_t at, uint32_t *point) {
    static const struct {
        size_t length;
        Range bytes[4];
    } forms[] = {
        {2, {{0xc2, 0xdf}, {0x80, 0xbf}}},
        {3, {{0xe0, 0xe0}, {0xa0, 0xbf}, {0x80, 0xbf}}},
        {3, {{0xe1, 0xec}, {0x80, 0xbf}, {0x80, 0xbf}}},
        {3, {{0xed, 0xed}, {0x80, 0x9f}, {0x80, 0xbf}}},
        {3, {{0xee, 0xef}, {0x80, 0xbf}, {0x80, 0xbf}}},
        {4, {{0xf0, 0xf0}, {0x90, 0xbf}, {0x80, 0xbf}, {0x80, 0xbf}}},
        {4, {{0xf1, 0xf3}, {0x80, 0xbf}, {0x80, 0xbf}, {0x80, 0xbf}}},
        {4, {{0xf4, 0xf4}, {0x80, 0x8f}, {0x80, 0xbf}, {0x80, 0xbf}}},
    };
    static const unsigned char bits[] = {0, 0, 0x1f, 0x0f, 0x07};
    const unsigned char *bytes = (const unsigned char *)text.data + at;
    if (*bytes < 0x80) { /* the most of them, quickly */
        *point = *bytes;
        return 1;
    }
    for (size_t i = 0; *bytes >= 0xc2 && i < sizeof forms / sizeof *forms; i++) {
        size_t length = forms[i].length, n = 0;
        while (n < length && at + n < text.length && bytes[n] >= forms[i].bytes[n].first &&
               bytes[n] <= forms[i].bytes[n].last)
            n++;
        if (n < length)
            continue;
        *point = *bytes & bits[length];
        for (n = 1; n < length; n++)
            *point = *point * 64 + bytes[n] % 64;
        return length;
    }
    return 0;
}

static bool is_harmful(uint32_t point) {
    static const Range harmful[] = {{0, 0x1f},        {0x7f, 0x9f},     {0x61c, 0x61c},
                                    {0x200e, 0x200f}, {0x2028, 0x202e}, {0x2066, 0x2069},
                                    {0xfeff, 0xfeff}};
    for (size_t i = 0; i < sizeof harmful / sizeof *harmful && point >= harmful[i].first; i++)
        if (point <= harmful[i].last)
            return true;
    return false;
}

static void put_point(Bytes *bytes, uint32_t point) { /* surrogates, too */
    if (point < 0x80) {
        bytes_put(bytes, (char)point);
        return;
    }
    if (point < 0x800) {
        bytes_put(bytes, (char)(0xc0 | point >> 6));
    } else {
        if (point < 0x10000) {
            bytes_put(bytes, (char)(0xe0 | point >> 12));
        } else {
            bytes_put(bytes, (char)(0xf0 | point >> 18));
            bytes_put(bytes, (char)(0x80 | (point >> 12 & 0x3f)));
        }
        bytes_put(bytes, (char)(0x80 | (point >> 6 & 0x3f)));
    }
    bytes_put(bytes, (char)(0x80 | (point & 0x3f)));
}

static void append_text(Bytes *bytes, const char *text) {
    bytes_append(bytes, text, strlen(text));
}

/* What one reads who reads the text as JSON: what is no UTF-8 is U+FFFD. */
static void sanitize(Bytes *to, Slice text) {
    uint32_t point;
    for (size_t at = 0, length; at < text.length; at += length + !length) {
        length = sequence_at(text, at, &point);
        put_point(to, length > 0 ? point : 0xfffd);
    }
}

static void put_code(Bytes *to, char letter, uint32_t value) {
    bytes_put(to, '\\');
    bytes_put(to, letter);
    for (int shift = letter == 'x' ? 4 : 12; shift >= 0; shift -= 4)
        bytes_put(to, "0123456789abcdef"[value >> shift & 15]);
}

/* As it is to stand in the format "text", in quotes or not. */
static void escape(Bytes *to, Slice text, bool is_quoted) {
    uint32_t point;
    for (size_t at = 0, length; at < text.length; at += length + !length) {
        length = sequence_at(text, at, &point);
        if (length == 0) {
            put_code(to, 'x', (unsigned char)text.data[at]);
        } else if (point == '\n' || point == '\r' || point == '\t') {
            append_text(to, point == '\n' ? "\\n" : point == '\r' ? "\\r" : "\\t");
        } else if (is_harmful(point)) {
            put_code(to, point > 0xff ? 'u' : 'x', point);
        } else {
            if (is_quoted && (point == '"' || point == '\\'))
                bytes_put(to, '\\');
            bytes_append(to, text.data + at, length);
        }
    }
}

static bool fits_word(uint32_t point) {
    return !is_harmful(point) && point != ' ' && point != '"' && point != '=' && point != '\\';
}

static bool is_word(Slice text) {
    uint32_t point;
    for (size_t at = 0, length; at < text.length; at += length) {
        length = sequence_at(text, at, &point);
        if (length == 0 || !fits_word(point))
            return false;
    }
    return text.length > 0;
}

static void append_name(Bytes *to, Slice name) {
    uint32_t point;
    if (name.length == 0)
        bytes_put(to, '_');
    for (size_t at = 0, length; at < name.length; at += length + !length) {
        length = sequence_at(name, at, &point);
        put_point(to, length > 0 && fits_word(point) ? point : '_');
    }
}

/* A line without colours: nothing ends it but its last byte, and nothing in it acts. */
static bool check_line(Slice line) {
    bool is_good = line.length > 0 && line.data[line.length - 1] == '\n';
    uint32_t point;
    for (size_t at = 0, length; is_good && at < line.length - 1; at += length) {
        length = sequence_at(line, at, &point);
        is_good = length > 0 && !is_harmful(point);
    }
    if (!CHECK(is_good))
        printf("  in %.*s", (int)line.length, line.data);
    return is_good;
}

/* ---- reading what was written ---------------------------------------------------------------- */

/* Strict, and without blanks. After the first mistake nothing is read. */
typedef struct Reader {
    const char *at, *end;
    bool has_failed;
} Reader;

static Reader reader_of(Slice text) {
    return (Reader){text.data, text.data + text.length, false};
}

static int next_byte(const Reader *reader) {
    return reader->has_failed || reader->at == reader->end ? -1 : (unsigned char)*reader->at;
}

static bool takes(Reader *reader, Slice text) {
    if (reader->has_failed || (size_t)(reader->end - reader->at) < text.length ||
        !slice_equals((Slice){reader->at, text.length}, text))
        return false;
    reader->at += text.length;
    return true;
}

static void expect(Reader *reader, Slice text) {
    if (!takes(reader, text))
        reader->has_failed = true;
}

static void expect_text(Reader *reader, const char *text) {
    expect(reader, slice_of(text));
}

static uint32_t read_hex(Reader *reader) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        int byte = next_byte(reader);
        if (byte < 0 || !isxdigit(byte)) {
            reader->has_failed = true;
            return 0;
        }
        value = value * 16 + (uint32_t)(isdigit(byte) ? byte - '0' : tolower(byte) - 'a' + 10);
        reader->at++;
    }
    return value;
}

static void read_json_string(Reader *reader, Bytes *to) {
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    expect_text(reader, "\"");
    while (!takes(reader, SLICE("\""))) {
        int byte = next_byte(reader);
        Slice rest = {reader->at, (size_t)(reader->end - reader->at)};
        uint32_t point;
        size_t length;
        if (byte < 0x20) { /* or there is none */
            reader->has_failed = true;
            return;
        }
        if (takes(reader, SLICE("\\u"))) {
            point = read_hex(reader);
            if (point >= 0xd800 && point < 0xe000)
                reader->has_failed = true;
            put_point(to, point);
        } else if (takes(reader, SLICE("\\"))) {
            byte = next_byte(reader);
            if (byte <= 0 || strchr(letters, byte) == NULL)
                reader->has_failed = true;
            else
                bytes_put(to, meant[strchr(letters, byte) - letters]);
            reader->at++;
        } else {
            length = sequence_at(rest, 0, &point);
            if (length == 0)
                reader->has_failed = true;
            bytes_append(to, reader->at, length);
            reader->at += length;
        }
    }
}

static void read_digits(Reader *reader) {
    if (next_byte(reader) < 0 || !isdigit(next_byte(reader)))
        reader->has_failed = true;
    while (next_byte(reader) >= 0 && isdigit(next_byte(reader)))
        reader->at++;
}

/* Returns whether it is an integer. */
static bool read_json_number(Reader *reader) {
    bool is_integer = true;
    takes(reader, SLICE("-"));
    if (!takes(reader, SLICE("0")))
        read_digits(reader);
    if (takes(reader, SLICE("."))) {
        is_integer = false;
        read_digits(reader);
    }
    if (takes(reader, SLICE("e")) || takes(reader, SLICE("E"))) {
        is_integer = false;
        if (!takes(reader, SLICE("-")))
            takes(reader, SLICE("+"));
        read_digits(reader);
    }
    return is_integer;
}

/* Any value. */
static void read_json(Reader *reader, int depth) {
    Bytes text = {.data = NULL};
    int byte = next_byte(reader);
    if (depth > 100)
        reader->has_failed = true;
    if (byte == '"') {
        read_json_string(reader, &text);
    } else if (takes(reader, SLICE("{"))) {
        if (!takes(reader, SLICE("}"))) {
            do {
                read_json_string(reader, &text);
                expect_text(reader, ":");
                read_json(reader, depth + 1);
            } while (takes(reader, SLICE(",")));
            expect_text(reader, "}");
        }
    } else if (takes(reader, SLICE("["))) {
        if (!takes(reader, SLICE("]"))) {
            do
                read_json(reader, depth + 1);
            while (takes(reader, SLICE(",")));
            expect_text(reader, "]");
        }
    } else if (byte == '-' || (byte >= 0 && isdigit(byte))) {
        read_json_number(reader);
    } else if (!takes(reader, SLICE("null")) && !takes(reader, SLICE("true"))) {
        expect_text(reader, "false");
    }
    bytes_free(&text);
}

static bool is_json(Slice text) {
    Reader reader = reader_of(text);
    read_json(&reader, 0);
    return !reader.has_failed && reader.at == reader.end;
}

/* A string as JSON or logfmt have it, or as it is to stand in "text"; a word without quotes. */
static void expect_json_string(Reader *reader, Slice wanted) {
    Bytes got = {.data = NULL}, sane = {.data = NULL};
    read_json_string(reader, &got);
    sanitize(&sane, wanted);
    if (!slice_equals(bytes_slice(&got), bytes_slice(&sane)))
        reader->has_failed = true;
    bytes_free(&got);
    bytes_free(&sane);
}

static void expect_escaped(Reader *reader, Slice wanted, bool is_quoted) {
    Bytes escaped = {.data = NULL};
    escape(&escaped, wanted, is_quoted);
    if (is_quoted)
        expect_text(reader, "\"");
    expect(reader, bytes_slice(&escaped));
    if (is_quoted)
        expect_text(reader, "\"");
    bytes_free(&escaped);
}

static void expect_string(Reader *reader, Slice wanted, LogFormat format) {
    if (is_word(wanted))
        expect(reader, wanted);
    else if (format == FORMAT_LOGFMT)
        expect_json_string(reader, wanted);
    else
        expect_escaped(reader, wanted, true);
}

/* ---- comparing with what it was written from ------------------------------------------------- */

static bool is_secret(const Secrets *secrets, Slice name) {
    for (size_t i = 0; i < secrets->count; i++)
        if (secrets->names[i].length == name.length &&
            strncasecmp(secrets->names[i].data, name.data, name.length) == 0)
            return true;
    return false;
}

static void expect_number(Reader *reader, double wanted) {
    const char *begin = reader->at;
    char text[64] = "";
    if (isnan(wanted)) {
        expect_text(reader, "NaN");
    } else if (isinf(wanted)) {
        expect_text(reader, wanted < 0 ? "-Infinity" : "Infinity");
    } else {
        double got;
        bool is_integer = read_json_number(reader);
        memcpy(text, begin, (size_t)(reader->at - begin) % sizeof text);
        got = strtod(text, NULL);
        if (is_integer || memcmp(&got, &wanted, sizeof got) != 0)
            reader->has_failed = true;
    }
}

static void expect_integer(Reader *reader, int64_t wanted) {
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, wanted);
    expect_text(reader, text);
}

static void expect_json(Reader *reader, const Value *wanted, const Secrets *secrets) {
    static const Value mask = {.kind = VALUE_STRING, .as.bytes = {"***", 3}};
    const char *separator = "";
    Slice rest = wanted->as.bytes, name;
    Value value;
    switch (wanted->kind) {
    case VALUE_NIL:
        expect_text(reader, "null");
        return;
    case VALUE_FALSE:
    case VALUE_TRUE:
        expect_text(reader, wanted->kind == VALUE_TRUE ? "true" : "false");
        return;
    case VALUE_INTEGER:
        expect_integer(reader, wanted->as.integer);
        return;
    case VALUE_FLOAT:
        if (!isfinite(wanted->as.number))
            expect_text(reader, "\"");
        expect_number(reader, wanted->as.number);
        if (!isfinite(wanted->as.number))
            expect_text(reader, "\"");
        return;
    case VALUE_STRING:
        expect_json_string(reader, wanted->as.bytes);
        return;
    case VALUE_LIST:
        expect_text(reader, "[");
        for (; fields_next_value(&rest, &value); separator = ",") {
            expect_text(reader, separator);
            expect_json(reader, &value, secrets);
        }
        expect_text(reader, "]");
        return;
    case VALUE_MAP:
        expect_text(reader, "{");
        for (; fields_next(&rest, &name, &value); separator = ",") {
            expect_text(reader, separator);
            expect_json_string(reader, name);
            expect_text(reader, ":");
            expect_json(reader, is_secret(secrets, name) ? &mask : &value, secrets);
        }
        expect_text(reader, "}");
    }
}

static void expect_value(Reader *reader, const Value *wanted, LogFormat format,
                         const Secrets *secrets) {
    if (wanted->kind == VALUE_STRING) {
        expect_string(reader, wanted->as.bytes, format);
    } else if (wanted->kind == VALUE_FLOAT) {
        expect_number(reader, wanted->as.number);
    } else if (format == FORMAT_LOGFMT && next_byte(reader) == '"') { /* JSON in a string */
        Bytes inner = {.data = NULL};
        Reader nested;
        read_json_string(reader, &inner);
        nested = reader_of(bytes_slice(&inner));
        expect_json(&nested, wanted, secrets);
        reader->has_failed = reader->has_failed || nested.has_failed || nested.at != nested.end ||
                             wanted->kind < VALUE_LIST || is_word(bytes_slice(&inner));
        bytes_free(&inner);
    } else {
        Slice whole = {reader->at, 0};
        expect_json(reader, wanted, secrets);
        whole.length = (size_t)(reader->at - whole.data);
        if (format == FORMAT_LOGFMT && !is_word(whole))
            reader->has_failed = true;
    }
}

static bool is_one_of(Slice name, const char *const *names) {
    for (; *names != NULL; names++)
        if (slice_equals(name, slice_of(*names)))
            return true;
    return false;
}

static void expect_field(Reader *reader, Slice name, const Value *value, LogFormat format,
                         bool has_pid, const Secrets *secrets) {
    static const char *const taken[] = {"time", "level", "logger", "message", "msg", NULL};
    static const Value mask = {.kind = VALUE_STRING, .as.bytes = {"***", 3}};
    Bytes shown = {.data = NULL};
    if (is_one_of(name, taken) || (has_pid && slice_equals(name, SLICE("pid"))) ||
        (name.length >= 7 && memcmp(name.data, "fields.", 7) == 0))
        append_text(&shown, "fields.");
    if (is_secret(secrets, name))
        value = &mask;
    if (format == FORMAT_JSON) {
        bytes_append_slice(&shown, name);
        expect_text(reader, ",");
        expect_json_string(reader, bytes_slice(&shown));
        expect_text(reader, ":");
        expect_json(reader, value, secrets);
    } else {
        append_name(&shown, name);
        expect_text(reader, " ");
        expect(reader, bytes_slice(&shown));
        expect_text(reader, "=");
        expect_value(reader, value, format, secrets);
    }
    bytes_free(&shown);
}

/* Of each name the last. */
static void expect_fields(Reader *reader, const LogRecord *record, LogFormat format,
                          const Secrets *secrets) {
    bool is_first = true;
    for (int i = 0; i < RECORD_FIELDS; i++) {
        Slice rest = record->fields[i], name;
        Value value, other;
        while (fields_next(&rest, &name, &value)) {
            bool is_overridden = false;
            for (int j = i + 1; j < RECORD_FIELDS; j++)
                is_overridden = is_overridden || fields_find(record->fields[j], name, &other);
            if (is_overridden)
                continue;
            if (is_first && format <= FORMAT_PLAIN)
                expect_text(reader, " ");
            is_first = false;
            expect_field(reader, name, &value, format, record->pid != 0, secrets);
        }
    }
}

static void write_time(char *to, size_t size, int64_t time_ns) {
    time_t seconds = (time_t)(time_ns / 1000000000);
    int rest = (int)(time_ns % 1000000000);
    struct tm tm;
    size_t length;
    if (rest < 0) {
        rest += 1000000000;
        seconds--;
    }
    gmtime_r(&seconds, &tm);
    length = strftime(to, size, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(to + length, size - length, ".%06dZ", rest / 1000);
}

static bool check_record(Slice line, const LogRecord *record, LogFormat format,
                         const Secrets *secrets) {
    const char *level = log_level_names[record->level];
    Reader reader = reader_of(line);
    char time[40], text[16];
    write_time(time, sizeof time, record->time_ns);
    if (format == FORMAT_JSON) {
        expect_text(&reader, "{\"time\":\"");
        expect_text(&reader, time);
        expect_text(&reader, "\",\"level\":\"");
        expect_text(&reader, level);
        expect_text(&reader, "\",\"logger\":");
        expect_json_string(&reader, record->logger);
        if (record->pid != 0) {
            expect_text(&reader, ",\"pid\":");
            expect_integer(&reader, record->pid);
        }
        expect_text(&reader, ",\"message\":");
        expect_json_string(&reader, record->message);
    } else if (format == FORMAT_LOGFMT) {
        expect_text(&reader, "time=");
        expect_text(&reader, time);
        expect_text(&reader, " level=");
        expect_text(&reader, level);
        expect_text(&reader, " logger=");
        expect_string(&reader, record->logger, format);
        if (record->pid != 0) {
            expect_text(&reader, " pid=");
            expect_integer(&reader, record->pid);
        }
        expect_text(&reader, " msg=");
        expect_string(&reader, record->message, format);
    } else {
        if (format == FORMAT_TEXT) {
            expect_text(&reader, time);
            snprintf(text, sizeof text, " %-8s ", level);
            for (char *at = text; *at != '\0'; at++)
                *at = (char)toupper((unsigned char)*at);
            expect_text(&reader, text);
        }
        expect_escaped(&reader, record->logger, false);
        if (record->pid != 0) {
            expect_text(&reader, "[");
            expect_integer(&reader, record->pid);
            expect_text(&reader, "]");
        }
        expect_text(&reader, ": ");
        expect_escaped(&reader, record->message, false);
    }
    expect_fields(&reader, record, format, secrets);
    expect_text(&reader, format == FORMAT_JSON ? "}\n" : "\n");
    if (!CHECK(!reader.has_failed && reader.at == reader.end)) {
        printf("  at byte %d of %.*s", (int)(reader.at - line.data), (int)line.length, line.data);
        return false;
    }
    return true;
}

/* In all formats it is what it is to be. */
static bool check_formats(const LogRecord *record, const Secrets *secrets) {
    bool is_good = true;
    for (int format = 0; format < LOG_FORMATS && is_good; format++) {
        Slice line = format_line(record, (LogFormat)format, false, secrets);
        is_good = check_line(line) && check_record(line, record, (LogFormat)format, secrets);
        if (is_good && format == FORMAT_JSON)
            is_good = CHECK(is_json((Slice){line.data, line.length - 1}));
    }
    return is_good;
}

/* ---- random records -------------------------------------------------------------------------- */

/* Text that is troublesome in every way. */
static void put_trouble(Bytes *bytes, uint64_t *seed, uint32_t most) {
    static const char *const ascii[] = {"a",    "word", " ",        "\"", "\\",  "=",
                                        "\n",   "\r\n", "\x1b[31m", "{}", "\t",  "'",
                                        "\x7f", "\b\f", ",",        ":",  "NaN", "1"};
    static const char *const others[] = {
        "\xc3\xa4",     "\xf0\x9f\x90\x8e", "\xe2\x80\xa8", "\xe2\x80\xae",
        "\xc2\x85",     "\xef\xbb\xbf",     "\xff",         "\xc0\x80",
        "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82",     "\xf0\x9f"};
    for (uint32_t count = test_random_below(seed, most + 1); count > 0; count--) {
        uint32_t which = (uint32_t)test_random(seed);
        switch (test_random_below(seed, 8)) {
        case 0:
            bytes_put(bytes, (char)which);
            break;
        case 1:
            put_point(bytes, which % 0x110000);
            break;
        case 2:
        case 3:
        case 4:
            append_text(bytes, others[which % (sizeof others / sizeof *others)]);
            break;
        default:
            append_text(bytes, ascii[which % (sizeof ascii / sizeof *ascii)]);
        }
    }
}

/* Names: reserved, secret, troublesome. In pairs one overrides the other easily. */
static void put_random_name(Bytes *bytes, uint64_t *seed, uint32_t which) {
    static const char *const names[] = {
        "time",        "level", "logger",   "message",  "msg",  "pid",      "fields", "fields.",
        "fields.time", "Time",  "password", "PassWord", "a",    "b",        "c",      "",
        "a b",         "a=b",   "\"",       "\n",       "\xff", "\xc3\xa4", "token"};
    enum { COUNT = sizeof names / sizeof *names };
    Bytes name = {.data = NULL};
    if (which < COUNT)
        append_text(&name, names[which]);
    else
        put_trouble(&name, seed, 4);
    fields_put_string(bytes, bytes_slice(&name));
    bytes_free(&name);
}

static double random_number(uint64_t *seed) {
    uint64_t bits = test_random(seed);
    double number;
    memcpy(&number, &bits, sizeof number);
    switch (bits % 5) {
    case 0:
        return (double)(int64_t)(bits >> 40);
    case 1:
        return (double)(int64_t)(bits >> 44) / 100;
    case 2:
        return bits % 3 == 0 ? NAN : bits % 3 == 1 ? INFINITY : -INFINITY;
    default:
        return number;
    }
}

static void put_random_value(Bytes *bytes, uint64_t *seed, int depth) {
    Bytes text = {.data = NULL};
    size_t place;
    switch ((ValueKind)test_random_below(seed, depth < 3 ? 8 : 6)) {
    case VALUE_NIL:
        fields_put_nil(bytes);
        break;
    case VALUE_FALSE:
        fields_put_boolean(bytes, false);
        break;
    case VALUE_TRUE:
        fields_put_boolean(bytes, true);
        break;
    case VALUE_INTEGER:
        fields_put_integer(bytes, (int64_t)test_random(seed) >> test_random_below(seed, 64));
        break;
    case VALUE_FLOAT:
        fields_put_number(bytes, random_number(seed));
        break;
    case VALUE_STRING:
        put_trouble(&text, seed, 8);
        fields_put_string(bytes, bytes_slice(&text));
        bytes_free(&text);
        break;
    case VALUE_LIST:
        place = fields_begin(bytes, VALUE_LIST);
        for (uint32_t count = test_random_below(seed, 4); count > 0; count--)
            put_random_value(bytes, seed, depth + 1);
        fields_end(bytes, place);
        break;
    case VALUE_MAP:
        place = fields_begin(bytes, VALUE_MAP);
        for (uint32_t count = test_random_below(seed, 4); count > 0; count--) {
            put_random_name(bytes, seed, test_random_below(seed, 30));
            put_random_value(bytes, seed, depth + 1);
        }
        fields_end(bytes, place);
    }
}

typedef struct Sample {
    LogRecord record;
    Bytes logger, message, fields[RECORD_FIELDS];
} Sample;

static void sample_make(Sample *sample, uint64_t *seed) {
    memset(sample, 0, sizeof *sample);
    put_trouble(&sample->logger, seed, 4);
    put_trouble(&sample->message, seed, 10);
    for (int i = 0; i < RECORD_FIELDS; i++) {
        uint32_t which = test_random_below(seed, 3);
        for (uint32_t count = test_random_below(seed, 6); count > 0; count--) {
            put_random_name(&sample->fields[i], seed, which);
            put_random_value(&sample->fields[i], seed, 0);
            which += 1 + test_random_below(seed, 8); /* so no name comes twice in one part */
        }
        fields_sort(&sample->fields[i], 0);
    }
    sample->record = (LogRecord){
        .time_ns = (int64_t)test_random(seed) >> test_random_below(seed, 30),
        .level = (LogLevel)(LOG_DEBUG + test_random_below(seed, LOG_CRITICAL)),
        .pid = test_random_below(seed, 2) ? (int64_t)test_random(seed) >> 40 : 0,
        .logger = bytes_slice(&sample->logger),
        .message = bytes_slice(&sample->message),
    };
    for (int i = 0; i < RECORD_FIELDS; i++)
        sample->record.fields[i] = bytes_slice(&sample->fields[i]);
}

static void sample_free(Sample *sample) {
    bytes_free(&sample->logger);
    bytes_free(&sample->message);
    for (int i = 0; i < RECORD_FIELDS; i++)
        bytes_free(&sample->fields[i]);
}

static Slice some_names[] = {{"password", 8}, {"token", 5}, {"\xc3\xa4", 2}};
static const Secrets SOME_SECRETS = {some_names, 3};

static void random_records_are_as_they_are_to_be(void) {
    uint64_t seed = 21;
    for (int n = 0; n < 2000 && test_failed_checks == 0; n++) {
        Sample sample;
        sample_make(&sample, &seed);
        check_formats(&sample.record, n % 2 ? &SOME_SECRETS : &NO_SECRETS);
        sample_free(&sample);
    }
    forget_line();
}

/* ---- examples -------------------------------------------------------------------------------- */

#define NOON 1769860800000000000 /* 2026-01-31T12:00:00Z */

static void put_text_field(Bytes *bytes, const char *name, const char *value) {
    fields_put_string(bytes, slice_of(name));
    fields_put_string(bytes, slice_of(value));
}

static void the_documented_examples(void) {
    static const char *const plain[LOG_FORMATS] = {
        "2026-01-31T12:00:00.000000Z INFO     my_app: fetched 3 bytes  url=/a size=3\n",
        "my_app: fetched 3 bytes  url=/a size=3\n",
        "time=2026-01-31T12:00:00.000000Z level=info logger=my_app msg=\"fetched 3 bytes\" "
        "url=/a size=3\n",
        "{\"time\":\"2026-01-31T12:00:00.000000Z\",\"level\":\"info\",\"logger\":\"my_app\","
        "\"message\":\"fetched 3 bytes\",\"url\":\"/a\",\"size\":3}\n"};
    static const char *const bare[LOG_FORMATS] = {
        "2026-01-31T12:00:00.000000Z CRITICAL my_app[42]: begin\n", "my_app[42]: begin\n",
        "time=2026-01-31T12:00:00.000000Z level=critical logger=my_app pid=42 msg=begin\n",
        "{\"time\":\"2026-01-31T12:00:00.000000Z\",\"level\":\"critical\",\"logger\":\"my_app\","
        "\"pid\":42,\"message\":\"begin\"}\n"};
    Bytes url = {.data = NULL}, size = {.data = NULL};
    LogRecord record = {.time_ns = NOON,
                        .level = LOG_INFO,
                        .logger = SLICE("my_app"),
                        .message = SLICE("fetched 3 bytes")};
    put_text_field(&url, "url", "/a");
    fields_put_string(&size, SLICE("size"));
    fields_put_integer(&size, 3);
    record.fields[0] = bytes_slice(&url);
    record.fields[2] = bytes_slice(&size);
    for (int format = 0; format < LOG_FORMATS; format++)
        check_text(format_line(&record, (LogFormat)format, false, &NO_SECRETS), plain[format]);
    record = (LogRecord){.time_ns = NOON,
                         .level = LOG_CRITICAL,
                         .pid = 42,
                         .logger = SLICE("my_app"),
                         .message = SLICE("begin")};
    for (int format = 0; format < LOG_FORMATS; format++)
        check_text(format_line(&record, (LogFormat)format, false, &NO_SECRETS), bare[format]);
    bytes_free(&url);
    bytes_free(&size);
    forget_line();
}

/* Values one by one: how they stand in text, in logfmt, and in JSON. */
static void values_in_each_format(void) {
    static const struct {
        const char *string, *text, *logfmt, *json;
    } strings[] = {
        {"", "\"\"", "\"\"", "\"\""},
        {"word", "word", "word", "\"word\""},
        {"/a?b&c", "/a?b&c", "/a?b&c", "\"/a?b&c\""},
        {"nil", "nil", "nil", "\"nil\""},
        {"\xc3\xa4", "\xc3\xa4", "\xc3\xa4", "\"\xc3\xa4\""},
        {"a b", "\"a b\"", "\"a b\"", "\"a b\""},
        {"a=b", "\"a=b\"", "\"a=b\"", "\"a=b\""},
        {"a\"b", "\"a\\\"b\"", "\"a\\\"b\"", "\"a\\\"b\""},
        {"a\\b", "\"a\\\\b\"", "\"a\\\\b\"", "\"a\\\\b\""},
        {"a\nb", "\"a\\nb\"", "\"a\\nb\"", "\"a\\nb\""},
        {"\x1b", "\"\\x1b\"", "\"\\u001b\"", "\"\\u001b\""},
        {"\b\f\v", "\"\\x08\\x0c\\x0b\"", "\"\\b\\f\\u000b\"", "\"\\b\\f\\u000b\""},
        {"\xff", "\"\\xff\"", "\"\\ufffd\"", "\"\\ufffd\""},
        {"\xc2\x85", "\"\\x85\"", "\"\\u0085\"", "\"\\u0085\""},
        {"\xe2\x80\xa8", "\"\\u2028\"", "\"\\u2028\"", "\"\\u2028\""},
    };
    LogRecord record = {
        .time_ns = NOON, .level = LOG_INFO, .logger = SLICE("l"), .message = SLICE("m")};
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        Bytes fields = {.data = NULL}, line = {.data = NULL};
        char wanted[100];
        put_text_field(&fields, "f", strings[i].string);
        record_format_fields(&line, bytes_slice(&fields), FORMAT_TEXT, &NO_SECRETS);
        snprintf(wanted, sizeof wanted, " f=%s", strings[i].text);
        check_text(bytes_slice(&line), wanted);
        bytes_clear(&line, 0);
        record_format_fields(&line, bytes_slice(&fields), FORMAT_LOGFMT, &NO_SECRETS);
        snprintf(wanted, sizeof wanted, " f=%s", strings[i].logfmt);
        check_text(bytes_slice(&line), wanted);
        bytes_clear(&line, 0);
        record_format_fields(&line, bytes_slice(&fields), FORMAT_JSON, &NO_SECRETS);
        snprintf(wanted, sizeof wanted, ",\"f\":%s", strings[i].json);
        check_text(bytes_slice(&line), wanted);
        record.fields[1] = bytes_slice(&fields);
        check_formats(&record, &NO_SECRETS);
        bytes_free(&line);
        bytes_free(&fields);
    }
    forget_line();
}

static void lists_and_maps_in_each_format(void) {
    static const char *const wanted[LOG_FORMATS] = {
        " e=[] l=[1,2.5,\"NaN\",null] m={\"n\":true,\"s\":\"a b\"} n=NaN",
        " e=[] l=[1,2.5,\"NaN\",null] m={\"n\":true,\"s\":\"a b\"} n=NaN",
        " e=[] l=\"[1,2.5,\\\"NaN\\\",null]\" m=\"{\\\"n\\\":true,\\\"s\\\":\\\"a b\\\"}\" n=NaN",
        ",\"e\":[],\"l\":[1,2.5,\"NaN\",null],\"m\":{\"n\":true,\"s\":\"a b\"},\"n\":\"NaN\""};
    Bytes fields = {.data = NULL};
    size_t place;
    fields_put_string(&fields, SLICE("e"));
    fields_end(&fields, fields_begin(&fields, VALUE_LIST));
    fields_put_string(&fields, SLICE("l"));
    place = fields_begin(&fields, VALUE_LIST);
    fields_put_integer(&fields, 1);
    fields_put_number(&fields, 2.5);
    fields_put_number(&fields, NAN);
    fields_put_nil(&fields);
    fields_end(&fields, place);
    fields_put_string(&fields, SLICE("m"));
    place = fields_begin(&fields, VALUE_MAP);
    fields_put_string(&fields, SLICE("n"));
    fields_put_boolean(&fields, true);
    put_text_field(&fields, "s", "a b");
    fields_end(&fields, place);
    fields_put_string(&fields, SLICE("n"));
    fields_put_number(&fields, NAN);
    for (int format = 0; format < LOG_FORMATS; format++) {
        Bytes line = {.data = NULL};
        record_format_fields(&line, bytes_slice(&fields), (LogFormat)format, &NO_SECRETS);
        check_text(bytes_slice(&line), wanted[format]);
        bytes_free(&line);
    }
    bytes_free(&fields);
}

static void all_levels_have_names(void) {
    static const char *const names[] = {"debug", "info", "warning", "error", "critical", "off"};
    LogRecord record = {.time_ns = NOON, .logger = SLICE("l"), .message = SLICE("m")};
    for (int level = LOG_DEBUG; level <= LOG_OFF; level++)
        CHECK(strcmp(log_level_names[level], names[level - 1]) == 0);
    for (int level = LOG_DEBUG; level <= LOG_CRITICAL; level++) {
        record.level = (LogLevel)level;
        check_formats(&record, &NO_SECRETS);
    }
    for (int level = 0; level<9; level += level> 0 ? 1 : LOG_OFF) { /* those that are none */
        record.level = (LogLevel)level;
        for (int format = 0; format < LOG_FORMATS; format++)
            check_line(format_line(&record, (LogFormat)format, false, &NO_SECRETS));
        check_text(format_line(&record, FORMAT_TEXT, true, &NO_SECRETS),
                   "2026-01-31T12:00:00.000000Z ?\033[0m        l: m\n");
    }
    forget_line();
}

/* ---- colours --------------------------------------------------------------------------------- */

/* Takes away what sets colours, and nothing else. */
static void strip(Bytes *to, Slice line) {
    for (size_t i = 0; i < line.length; i++)
        if (line.data[i] == '\033' && i + 1 < line.length && line.data[i + 1] == '[')
            while (i < line.length && line.data[i] != 'm')
                i++;
        else
            bytes_put(to, line.data[i]);
}

static void colours_are_all_that_differs(void) {
    static const char *const colours[] = {"", "36", "32", "33", "31", "1;31"};
    uint64_t seed = 22;
    for (int n = 0; n < 500 && test_failed_checks == 0; n++) {
        Sample sample;
        Bytes stripped = {.data = NULL};
        Slice line;
        char begin[100], time[40];
        sample_make(&sample, &seed);
        line = format_line(&sample.record, FORMAT_TEXT, true, &SOME_SECRETS);
        write_time(time, sizeof time, sample.record.time_ns);
        snprintf(begin, sizeof begin, "%s \033[%sm", time, colours[sample.record.level]);
        CHECK(line.length > strlen(begin) && memcmp(line.data, begin, strlen(begin)) == 0);
        strip(&stripped, line);
        line = format_line(&sample.record, FORMAT_TEXT, false, &SOME_SECRETS);
        CHECK(slice_equals(bytes_slice(&stripped), line));
        bytes_free(&stripped);
        sample_free(&sample);
    }
    forget_line();
}

static void a_line_with_colours(void) {
    Bytes fields = {.data = NULL};
    LogRecord record = {
        .time_ns = NOON, .level = LOG_WARNING, .logger = SLICE("a"), .message = SLICE("b")};
    put_text_field(&fields, "time", "\033[31m");
    record.fields[0] = bytes_slice(&fields);
    check_text(format_line(&record, FORMAT_TEXT, true, &NO_SECRETS),
               "2026-01-31T12:00:00.000000Z \033[33mWARNING\033[0m  a: b  "
               "\033[2mfields.time=\033[0m\"\\x1b[31m\"\n");
    bytes_free(&fields);
    forget_line();
}

/* ---- characters ------------------------------------------------------------------------------ */

/* Puts the text everywhere in a record where text can be. */
static void check_everywhere(Slice text) {
    Slice exact = copy_exactly(text);
    Bytes fields = {.data = NULL};
    LogRecord record = {.time_ns = NOON, .level = LOG_ERROR, .logger = exact, .message = exact};
    size_t place;
    fields_put_string(&fields, exact);
    fields_put_string(&fields, exact);
    fields_put_string(&fields, SLICE("zz"));
    place = fields_begin(&fields, VALUE_MAP);
    fields_put_string(&fields, exact);
    fields_put_string(&fields, exact);
    fields_end(&fields, place);
    fields_sort(&fields, 0);
    record.fields[0] = bytes_slice(&fields);
    check_formats(&record, &NO_SECRETS);
    bytes_free(&fields);
    free_copy(exact);
}

static void every_byte_alone(void) {
    for (int byte = 0; byte < 256; byte++) {
        char text[3] = {(char)byte, (char)byte, 'a'};
        check_everywhere((Slice){text, 1});
        check_everywhere((Slice){text, 2});
        check_everywhere((Slice){text + 1, 2});
    }
    forget_line();
}

/* A long one, so only there. In text it is the same as in plain. */
static void check_message(Slice text) {
    LogRecord record = {.time_ns = NOON, .level = LOG_DEBUG, .logger = SLICE("l"), .message = text};
    for (int format = FORMAT_PLAIN; format < LOG_FORMATS; format++) {
        Slice line = format_line(&record, (LogFormat)format, false, &NO_SECRETS);
        check_line(line);
        check_record(line, &record, (LogFormat)format, &NO_SECRETS);
    }
}

/* All of Unicode, surrogates too, which are no characters; as messages of some hundred each. */
static void every_code_point(void) {
    enum { BLOCK = 512 };
    Bytes text = {.data = NULL};
    for (uint32_t first = 0; first < 0x110000 && test_failed_checks == 0; first += BLOCK) {
        bytes_clear(&text, SIZE_MAX);
        for (uint32_t point = first; point < first + BLOCK; point++)
            put_point(&text, point);
        check_message(bytes_slice(&text));
    }
    bytes_free(&text);
    forget_line();
}

/* Those at the limits of each class, everywhere. */
static void code_points_at_limits(void) {
    static const uint32_t points[] = {
        0x7e,   0x7f,   0x80,   0x85,   0x9f,   0xa0,   0x7ff,  0x800,   0x61b,    0x61c,
        0x61d,  0x200d, 0x200e, 0x200f, 0x2010, 0x2027, 0x2028, 0x2029,  0x202a,   0x202e,
        0x202f, 0x2065, 0x2066, 0x2069, 0x206a, 0xd7ff, 0xd800, 0xdbff,  0xdc00,   0xdfff,
        0xe000, 0xfefe, 0xfeff, 0xff00, 0xfffd, 0xfffe, 0xffff, 0x10000, 0x10ffff, 0x110000};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        Bytes text = {.data = NULL};
        put_point(&text, points[i]);
        check_everywhere(bytes_slice(&text));
        bytes_put(&text, 'a');
        check_everywhere(bytes_slice(&text));
        bytes_free(&text);
    }
    forget_line();
}

/* All that begin like a sequence: of two bytes all, of three and four those with the bytes where
 * the classes end. Each is followed by a letter. */
static void every_kind_of_broken_sequence(void) {
    static const unsigned char ends[] = {0x22, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0};
    enum { ENDS = sizeof ends / sizeof *ends };
    Bytes text = {.data = NULL};
    for (int first = 0x80; first < 0x100 && test_failed_checks == 0; first++) {
        char bytes[5] = {(char)first};
        bytes_clear(&text, SIZE_MAX);
        for (int second = 0; second < 0x100; second++) {
            bytes[1] = (char)second;
            bytes[2] = 'x';
            bytes_append(&text, bytes, 3);
            for (int third = 0; first >= 0xe0 && third < ENDS; third++) {
                bytes[2] = (char)ends[third];
                bytes[3] = 'x';
                bytes_append(&text, bytes, 4);
                for (int fourth = 0; first >= 0xf0 && fourth < ENDS; fourth += 2) {
                    bytes[3] = (char)ends[fourth];
                    bytes[4] = 'x';
                    bytes_append(&text, bytes, 5);
                }
            }
        }
        check_message(bytes_slice(&text));
    }
    bytes_free(&text);
    forget_line();
}

static void every_sequence_that_is_cut(void) {
    static const char *const sequences[] = {"\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x90\x8e",
                                            "\xe2\x80\xae"};
    for (size_t i = 0; i < sizeof sequences / sizeof *sequences; i++)
        for (size_t length = 0; length <= strlen(sequences[i]); length++) {
            check_everywhere((Slice){sequences[i], length});
            check_everywhere((Slice){sequences[i] + 1, length > 0 ? length - 1 : 0});
        }
    forget_line();
}

static void long_texts(void) {
    enum { MANY = 1 << 14 };
    char *text = malloc(MANY);
    for (int i = 0; i < MANY; i++)
        text[i] = (char)(i * 7 + i / 256);
    check_everywhere((Slice){text, MANY});
    free(text);
    forget_line();
}

/* ---- times ----------------------------------------------------------------------------------- */

static void check_time(int64_t time_ns, const char *wanted) {
    LogRecord record = {.time_ns = time_ns, .level = LOG_INFO};
    Slice line = format_line(&record, FORMAT_TEXT, false, &NO_SECRETS);
    char got[40] = "";
    memcpy(got, line.data, strlen("1970-01-01T00:00:00.000000Z"));
    if (!CHECK(strcmp(got, wanted) == 0))
        printf("  %" PRId64 " is %s, not %s\n", time_ns, got, wanted);
}

static void known_times(void) {
    static const struct {
        int64_t seconds, ns;
        const char *text;
    } times[] = {
        {0, 0, "1970-01-01T00:00:00.000000Z"},
        {0, 999, "1970-01-01T00:00:00.000000Z"},
        {0, 1000, "1970-01-01T00:00:00.000001Z"},
        {0, 999999999, "1970-01-01T00:00:00.999999Z"},
        {0, -1, "1969-12-31T23:59:59.999999Z"},
        {0, -1000, "1969-12-31T23:59:59.999999Z"},
        {0, -1001, "1969-12-31T23:59:59.999998Z"},
        {-1, 0, "1969-12-31T23:59:59.000000Z"},
        {-86400, 0, "1969-12-31T00:00:00.000000Z"},
        {-86401, 999999999, "1969-12-30T23:59:59.999999Z"},
        {-58060800, 0, "1968-02-29T00:00:00.000000Z"},
        {68169600, 0, "1972-02-29T00:00:00.000000Z"},
        {951782400, 0, "2000-02-29T00:00:00.000000Z"},
        {951868799, 999999999, "2000-02-29T23:59:59.999999Z"},
        {951868800, 0, "2000-03-01T00:00:00.000000Z"},
        {1104537599, 0, "2004-12-31T23:59:59.000000Z"},
        {2147483647, 0, "2038-01-19T03:14:07.000000Z"},
        {2147483648, 0, "2038-01-19T03:14:08.000000Z"},
        {-2203891201, 0, "1900-02-28T23:59:59.000000Z"}, /* no leap year */
        {-2203891200, 0, "1900-03-01T00:00:00.000000Z"},
        {4107542399, 0, "2100-02-28T23:59:59.000000Z"}, /* no leap year */
        {4107542400, 0, "2100-03-01T00:00:00.000000Z"},
        {9214646400, 0, "2262-01-01T00:00:00.000000Z"},
    };
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        check_time(times[i].seconds * 1000000000 + times[i].ns, times[i].text);
    check_time(INT64_MAX, "2262-04-11T23:47:16.854775Z");
    check_time(INT64_MIN, "1677-09-21T00:12:43.145224Z");
    forget_line();
}

/* Every day there can be, and every second of some. */
static void times_agree_with_the_library(void) {
    uint64_t seed = 23;
    char wanted[40];
    for (int64_t day = -106751; day <= 106750 && test_failed_checks == 0; day++) {
        int64_t time_ns = day * 86400000000000 + (int64_t)(test_random(&seed) % 86400000000000);
        write_time(wanted, sizeof wanted, time_ns);
        check_time(time_ns, wanted);
    }
    for (int second = 0; second < 86400 && test_failed_checks == 0; second += 7) {
        write_time(wanted, sizeof wanted, NOON + (int64_t)second * 1000000000);
        check_time(NOON + (int64_t)second * 1000000000, wanted);
    }
    for (int n = 0; n < 20000 && test_failed_checks == 0; n++) {
        int64_t time_ns = (int64_t)test_random(&seed);
        write_time(wanted, sizeof wanted, time_ns);
        check_time(time_ns, wanted);
    }
    forget_line();
}

/* ---- numbers --------------------------------------------------------------------------------- */

static void check_integer(int64_t value) {
    Bytes got = {.data = NULL};
    char wanted[24];
    text_append_integer(&got, value);
    snprintf(wanted, sizeof wanted, "%" PRId64, value);
    check_text(bytes_slice(&got), wanted);
    bytes_free(&got);
}

static void integers_are_shown_in_full(void) {
    uint64_t seed = 24;
    check_integer(INT64_MIN);
    check_integer(INT64_MAX);
    check_integer(INT64_MIN + 1);
    for (int64_t value = -1000; value <= 1000; value++)
        check_integer(value);
    for (int64_t power = 1; power < INT64_MAX / 10; power *= 10) {
        check_integer(power);
        check_integer(-power);
        check_integer(power - 1);
    }
    for (int n = 0; n < 10000; n++)
        check_integer((int64_t)test_random(&seed) >> test_random_below(&seed, 64));
}

/* It comes back, is no integer, is a number to JSON too, and has no digit that it need not have. */
static void check_number(double value) {
    Bytes got = {.data = NULL};
    Reader reader;
    char text[64] = "", shortest[400];
    double back;
    int digits = 15;
    text_append_number(&got, value);
    CHECK(got.length < sizeof text);
    memcpy(text, got.data, got.length % sizeof text);
    reader = reader_of(bytes_slice(&got));
    back = strtod(text, NULL);
    if (!CHECK(memcmp(&back, &value, sizeof value) == 0) || !CHECK(!read_json_number(&reader)) ||
        !CHECK(!reader.has_failed && reader.at == reader.end))
        printf("  %.17g is shown as %s\n", value, text);
    do
        snprintf(shortest, sizeof shortest, "%.*g", digits, value);
    while (strtod(shortest, NULL) != value && ++digits <= 17);
    CHECK(strncmp(text, shortest, strlen(shortest)) == 0);
    bytes_free(&got);
}

static void random_numbers_come_back(void) {
    uint64_t seed = 25;
    for (int n = 0; n < 100000 && test_failed_checks == 0; n++) {
        uint64_t bits = test_random(&seed);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value))
            check_number(value);
        if (n % 10 == 0) {
            check_number((double)(int64_t)(bits >> (n % 64)));
            check_number((double)(int64_t)(bits >> 40) / 1000);
        }
    }
}

static const struct {
    double value;
    const char *text;
} KNOWN_NUMBERS[] = {
    {0.0, "0.0"},
    {-0.0, "-0.0"},
    {1.0, "1.0"},
    {-1.0, "-1.0"},
    {0.1, "0.1"},
    {1.5, "1.5"},
    {0.1 + 0.2, "0.30000000000000004"},
    {1e15, "1e+15"},
    {123456789012345.0, "123456789012345.0"},
    {1234567890123456.0, "1234567890123456.0"},
    {9007199254740993.0, "9007199254740992.0"},
    {1e16, "1e+16"},
    {1e100, "1e+100"},
    {1e-5, "1e-05"},
    {5e-324, "4.94065645841247e-324"},
    {1.7976931348623157e308, "1.7976931348623157e+308"},
    {INFINITY, "Infinity"},
    {-INFINITY, "-Infinity"},
    {NAN, "NaN"},
    {-NAN, "NaN"},
};
enum { KNOWN_COUNT = sizeof KNOWN_NUMBERS / sizeof *KNOWN_NUMBERS };

static void check_known_numbers(void) {
    for (int i = 0; i < KNOWN_COUNT; i++) {
        Bytes got = {.data = NULL};
        text_append_number(&got, KNOWN_NUMBERS[i].value);
        check_text(bytes_slice(&got), KNOWN_NUMBERS[i].text);
        bytes_free(&got);
    }
}

static void known_numbers(void) {
    check_known_numbers();
    for (int i = 0; i < KNOWN_COUNT; i++)
        if (isfinite(KNOWN_NUMBERS[i].value))
            check_number(KNOWN_NUMBERS[i].value);
}

/* Some write a comma, and some a character of two bytes. */
static void numbers_are_the_same_in_any_locale(void) {
    static const char *const points[] = {",", "\xd9\xab"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        locale_point = points[i];
        check_known_numbers();
        locale_point = NULL;
    }
}

/* ---- names ----------------------------------------------------------------------------------- */

static void names_of_the_records_own_parts_are_taken(void) {
    static const struct {
        const char *name, *shown, *in_worker;
    } names[] = {
        {"time", "fields.time", "fields.time"},
        {"level", "fields.level", "fields.level"},
        {"logger", "fields.logger", "fields.logger"},
        {"message", "fields.message", "fields.message"},
        {"msg", "fields.msg", "fields.msg"},
        {"pid", "pid", "fields.pid"},
        {"fields.time", "fields.fields.time", "fields.fields.time"},
        {"fields.", "fields.fields.", "fields.fields."},
        {"fields", "fields", "fields"},
        {"Time", "Time", "Time"},
        {"tim", "tim", "tim"},
        {"times", "times", "times"},
        {"message2", "message2", "message2"},
        {"field.a", "field.a", "field.a"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int format = 0; format < LOG_FORMATS; format++)
            for (int pid = 0; pid < 2; pid++) {
                LogRecord record = {.time_ns = NOON, .level = LOG_INFO, .pid = pid};
                Bytes fields = {.data = NULL};
                const char *name = pid ? names[i].in_worker : names[i].shown;
                char wanted[100];
                Slice line;
                put_text_field(&fields, names[i].name, "v");
                record.fields[i % RECORD_FIELDS] = bytes_slice(&fields);
                line = format_line(&record, (LogFormat)format, false, &NO_SECRETS);
                snprintf(wanted, sizeof wanted,
                         format == FORMAT_JSON ? ",\"%s\":\"v\"}\n" : " %s=v\n", name);
                CHECK(line.length > strlen(wanted));
                check_text((Slice){line.data + line.length - strlen(wanted), strlen(wanted)},
                           wanted);
                check_formats(&record, &NO_SECRETS);
                bytes_free(&fields);
            }
    forget_line();
}

static void names_are_words(void) {
    static const struct {
        Slice name;
        const char *shown;
    } names[] = {
        {{"", 0}, "_"},
        {{"a b", 3}, "a_b"},
        {{"a=b", 3}, "a_b"},
        {{"\"a\"", 3}, "_a_"},
        {{"\\", 1}, "_"},
        {{"\n\r", 2}, "__"},
        {{"\xff"
          "a",
          2},
         "_a"},
        {{"\xc3", 1}, "_"},
        {{"\xc3\xa4", 2}, "\xc3\xa4"},
        {{"\0", 1}, "_"},
        {{"\xe2\x80\xae", 3}, "_"},
        {{"a.b-c", 5}, "a.b-c"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int format = 0; format <= FORMAT_LOGFMT; format++) {
            Bytes fields = {.data = NULL}, line = {.data = NULL};
            char wanted[32];
            fields_put_string(&fields, names[i].name);
            fields_put_integer(&fields, 1);
            record_format_fields(&line, bytes_slice(&fields), (LogFormat)format, &NO_SECRETS);
            snprintf(wanted, sizeof wanted, " %s=1", names[i].shown);
            check_text(bytes_slice(&line), wanted);
            bytes_free(&fields);
            bytes_free(&line);
        }
}

/* ---- secrets --------------------------------------------------------------------------------- */

static void secrets_are_found_in_any_case(void) {
    CHECK(secrets_hide(&SOME_SECRETS, SLICE("password")));
    CHECK(secrets_hide(&SOME_SECRETS, SLICE("PASSWORD")));
    CHECK(secrets_hide(&SOME_SECRETS, SLICE("pAsSwOrD")));
    CHECK(secrets_hide(&SOME_SECRETS, SLICE("Token")));
    CHECK(secrets_hide(&SOME_SECRETS, SLICE("\xc3\xa4")));
    CHECK(!secrets_hide(&SOME_SECRETS, SLICE("\xc3\x84"))); /* only ASCII has cases */
    CHECK(!secrets_hide(&SOME_SECRETS, SLICE("passwor")));
    CHECK(!secrets_hide(&SOME_SECRETS, SLICE("passwords")));
    CHECK(!secrets_hide(&SOME_SECRETS, SLICE("")));
    CHECK(!secrets_hide(&SOME_SECRETS, NOTHING));
    CHECK(!secrets_hide(&SOME_SECRETS, SLICE("pass\0ord")));
    CHECK(!secrets_hide(&SOME_SECRETS, SLICE("PASS7ORD"))); /* W less what tells cases apart */
    CHECK(!secrets_hide(&NO_SECRETS, SLICE("password")));
    for (char letter = 'a'; letter <= 'z'; letter++) {
        char upper = (char)(letter - 'a' + 'A');
        Slice secret = {&letter, 1};
        CHECK(secrets_hide(&(Secrets){&secret, 1}, (Slice){&upper, 1}));
    }
}

/* In lists of maps of lists, at each depth, with values of every kind. */
static void put_secret(Bytes *bytes, int depth, int kind) {
    size_t place;
    if (depth > 0) {
        place = fields_begin(bytes, VALUE_LIST);
        put_secret(bytes, 0, kind);
        fields_put_integer(bytes, 7);
        put_secret(bytes, depth - 1, kind);
        fields_end(bytes, place);
        return;
    }
    place = fields_begin(bytes, VALUE_MAP);
    fields_put_string(bytes, SLICE("PASSWORD"));
    if (kind == VALUE_STRING)
        fields_put_string(bytes, SLICE("hunter2"));
    else if (kind == VALUE_INTEGER)
        fields_put_integer(bytes, 1234567);
    else if (kind == VALUE_FLOAT)
        fields_put_number(bytes, 1234567.5);
    else {
        size_t inner = fields_begin(bytes, (ValueKind)kind);
        fields_put_string(bytes, SLICE("hunter2"));
        fields_put_string(bytes, SLICE("1234567"));
        fields_end(bytes, inner);
    }
    put_text_field(bytes, "open", "shown");
    fields_end(bytes, place);
}

static bool contains(Slice text, const char *wanted) {
    return memmem(text.data, text.length, wanted, strlen(wanted)) != NULL;
}

static void secrets_are_hidden_at_any_depth(void) {
    for (int kind = VALUE_INTEGER; kind <= VALUE_MAP; kind++)
        for (int depth = 0; depth < 18; depth += 1 + depth / 4)
            for (int part = 0; part < RECORD_FIELDS; part++) {
                Bytes fields = {.data = NULL};
                LogRecord record = {.time_ns = NOON, .level = LOG_INFO};
                fields_put_string(&fields, SLICE("a"));
                put_secret(&fields, depth, kind);
                fields_put_string(&fields, SLICE("toKen"));
                put_secret(&fields, depth, kind);
                record.fields[part] = bytes_slice(&fields);
                for (int format = 0; format < LOG_FORMATS; format++)
                    for (int is_coloured = 0; is_coloured < 2; is_coloured++) {
                        Slice line =
                            format_line(&record, (LogFormat)format, is_coloured > 0, &SOME_SECRETS);
                        CHECK(!contains(line, "hunter2") && !contains(line, "1234567"));
                        CHECK(contains(line, "***") && contains(line, "shown"));
                    }
                check_formats(&record, &SOME_SECRETS);
                check_formats(&record, &NO_SECRETS);
                bytes_free(&fields);
            }
    forget_line();
}

static void how_a_secret_is_shown(void) {
    static const char *const wanted[LOG_FORMATS] = {" fields.time=***", " fields.time=***",
                                                    " fields.time=***", ",\"fields.time\":\"***\""};
    Slice time = SLICE("time");
    const Secrets secrets = {&time, 1};
    Bytes fields = {.data = NULL};
    fields_put_string(&fields, time);
    fields_put_nil(&fields);
    for (int format = 0; format < LOG_FORMATS; format++) {
        Bytes line = {.data = NULL};
        record_format_fields(&line, bytes_slice(&fields), (LogFormat)format, &secrets);
        check_text(bytes_slice(&line), wanted[format]);
        bytes_free(&line);
    }
    bytes_free(&fields);
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* Of each name only the last is left, in its place, and all else in order. */
static void the_last_of_a_name_counts(void) {
    uint64_t seed = 26;
    for (int n = 0; n < 3000 && test_failed_checks == 0; n++) {
        Bytes fields[RECORD_FIELDS] = {{.data = NULL}};
        uint32_t chosen[RECORD_FIELDS];
        LogRecord record = {.time_ns = NOON, .level = LOG_INFO};
        int part = 0;
        Slice rest, name;
        Value value;
        for (int i = 0; i < RECORD_FIELDS; i++) {
            chosen[i] = (uint32_t)test_random(&seed) & (uint32_t)test_random(&seed) & 0xff;
            for (int letter = 0; letter < 8; letter++)
                if (chosen[i] >> letter & 1) {
                    char text[2] = {(char)('a' + letter), 0};
                    fields_put_string(&fields[i], slice_of(text));
                    fields_put_integer(&fields[i], i * 10 + letter);
                }
            record.fields[i] = bytes_slice(&fields[i]);
        }
        CHECK_EQUAL(record_overrides(&record), (chosen[0] & (chosen[1] | chosen[2])) != 0);
        check_formats(&record, &NO_SECRETS);
        rest = record.fields[0];
        for (int i = 0; i < RECORD_FIELDS; i++)
            for (int letter = 0; letter < 8; letter++) {
                uint32_t later = (i < 1 ? chosen[1] : 0) | (i < 2 ? chosen[2] : 0);
                if ((chosen[i] & ~later) >> letter & 1) {
                    CHECK(record_next_field(&record, &part, &rest, &name, &value));
                    CHECK_EQUAL(value.as.integer, i * 10 + letter);
                    CHECK_EQUAL(part, i);
                }
            }
        CHECK(!record_next_field(&record, &part, &rest, &name, &value));
        for (int i = 0; i < RECORD_FIELDS; i++)
            bytes_free(&fields[i]);
    }
    forget_line();
}

/* Fields that were formatted before, as the context's are, give the same line. */
static void the_first_part_can_be_formatted_before(void) {
    uint64_t seed = 27;
    int compared = 0;
    for (int n = 0; n < 2000 && test_failed_checks == 0; n++) {
        Sample sample;
        sample_make(&sample, &seed);
        sample.record.pid = 0;
        for (int format = 0; format < LOG_FORMATS && !record_overrides(&sample.record); format++) {
            Bytes first = {.data = NULL}, line = {.data = NULL};
            record_format_fields(&first, sample.record.fields[0], (LogFormat)format, &SOME_SECRETS);
            record_format(&line, &sample.record, (LogFormat)format, false, &SOME_SECRETS,
                          bytes_slice(&first));
            CHECK(slice_equals(bytes_slice(&line), format_line(&sample.record, (LogFormat)format,
                                                               false, &SOME_SECRETS)));
            compared += first.length > 0;
            bytes_free(&first);
            bytes_free(&line);
        }
        sample_free(&sample);
    }
    CHECK(compared > 1000);
    forget_line();
}

static void a_line_is_appended(void) {
    LogRecord record = {.level = LOG_INFO, .logger = SLICE("l"), .message = SLICE("m")};
    Bytes line = {.data = NULL};
    record_format(&line, &record, FORMAT_PLAIN, false, &NO_SECRETS, NOTHING);
    record_format(&line, &record, FORMAT_PLAIN, false, &NO_SECRETS, NOTHING);
    check_text(bytes_slice(&line), "l: m\nl: m\n");
    bytes_free(&line);
}

/* Deeper than can have been written it is not looked into. */
static void what_is_too_deep_is_left_out(void) {
    enum { DEPTH = 500 };
    size_t places[DEPTH];
    for (int kind = VALUE_LIST; kind <= VALUE_MAP; kind++) {
        Bytes fields = {.data = NULL}, line = {.data = NULL};
        LogRecord record = {.time_ns = NOON, .level = LOG_INFO};
        Slice rest, name;
        Value value;
        fields_put_string(&fields, SLICE("deep"));
        for (int i = 0; i < DEPTH; i++) {
            places[i] = fields_begin(&fields, (ValueKind)kind);
            if (kind == VALUE_MAP)
                fields_put_string(&fields, SLICE("in"));
        }
        fields_put_integer(&fields, 987654321);
        for (int i = DEPTH - 1; i >= 0; i--)
            fields_end(&fields, places[i]);
        record.fields[0] = bytes_slice(&fields);
        for (int format = 0; format < LOG_FORMATS; format++) {
            Slice shown = format_line(&record, (LogFormat)format, false, &NO_SECRETS);
            check_line(shown);
            CHECK(shown.length < 2000 && contains(shown, "..."));
            CHECK(!contains(shown, "987654321"));
        }
        rest = record.fields[0];
        CHECK(fields_next(&rest, &name, &value));
        json_append_value(&line, &value, &NO_SECRETS);
        CHECK(is_json(bytes_slice(&line)));
        bytes_free(&line);
        bytes_free(&fields);
    }
    forget_line();
}

/* ---- no memory ------------------------------------------------------------------------------- */

/* Every request for memory fails once, alone and with all after it: that is said, and nothing leaks. */
static void a_line_without_memory_fails(void) {
    uint64_t seed = 28;
    int failures = 0;
    for (int n = 0; n < 60; n++) {
        Sample sample;
        sample_make(&sample, &seed);
        for (int way = 0; way < 2 * LOG_FORMATS; way++) {
            LogFormat format = (LogFormat)(way / 2);
            Slice wanted = format_line(&sample.record, format, n % 2 > 0, &SOME_SECRETS);
            bool was_due = true;
            for (long request = 1; was_due && request < 1000; request++) {
                Bytes line = {.data = NULL};
                faults_begin(request, way % 2 > 0);
                record_format(&line, &sample.record, format, n % 2 > 0, &SOME_SECRETS, NOTHING);
                was_due = faults_end();
                CHECK_EQUAL(line.has_failed, was_due);
                CHECK(was_due || slice_equals(bytes_slice(&line), wanted));
                failures += was_due;
                bytes_free(&line);
            }
            CHECK(!was_due);
        }
        sample_free(&sample);
    }
    CHECK(failures > 500);
    forget_line();
}

static void parts_without_memory_fail(void) {
    Bytes fields = {.data = NULL};
    Value list = {.kind = VALUE_LIST};
    bool was_due = true;
    fields_put_string(&fields, SLICE("a string that is longer than what is allocated at first, "
                                     "so that there is more than one request for memory"));
    for (int i = 0; i < 30; i++)
        fields_put_integer(&fields, i);
    list.as.bytes = bytes_slice(&fields);
    for (long request = 1; was_due && request < 100; request++) {
        Bytes line = {.data = NULL}, encoded = {.data = NULL};
        LogRecord record = {.level = LOG_INFO, .message = SLICE("m"), .fields[1] = list.as.bytes};
        faults_begin(request, false);
        text_append_plain(&line, list.as.bytes);
        text_append_integer(&line, INT64_MIN);
        text_append_number(&line, 0.1);
        json_append_value(&line, &list, &NO_SECRETS);
        record_encode(&encoded, &record);
        was_due = faults_end();
        CHECK_EQUAL(line.has_failed || encoded.has_failed, was_due);
        bytes_free(&line);
        bytes_free(&encoded);
    }
    CHECK(!was_due);
    bytes_free(&fields);
}

/* ---- between processes ----------------------------------------------------------------------- */

static bool is_same_record(const LogRecord *a, const LogRecord *b) {
    bool is_same = a->time_ns == b->time_ns && a->level == b->level && a->pid == b->pid &&
                   slice_equals(a->logger, b->logger) && slice_equals(a->message, b->message);
    for (int i = 0; i < RECORD_FIELDS; i++)
        is_same = is_same && slice_equals(a->fields[i], b->fields[i]);
    return is_same;
}

static void records_come_back(void) {
    uint64_t seed = 29;
    LogRecord decoded;
    for (int n = 0; n < 1000 && test_failed_checks == 0; n++) {
        Sample sample;
        Bytes bytes = {.data = NULL};
        Slice exact;
        sample_make(&sample, &seed);
        record_encode(&bytes, &sample.record);
        exact = copy_exactly(bytes_slice(&bytes));
        CHECK(record_decode(&decoded, exact) && is_same_record(&decoded, &sample.record));
        bytes_put(&bytes, '\0'); /* one byte too many */
        CHECK(!record_decode(&decoded, bytes_slice(&bytes)));
        free_copy(exact);
        bytes_free(&bytes);
        sample_free(&sample);
    }
}

static void a_record_that_is_cut_is_refused(void) {
    uint64_t seed = 30;
    LogRecord decoded;
    CHECK(!record_decode(&decoded, NOTHING));
    for (int n = 0; n < 30; n++) {
        Sample sample;
        Bytes bytes = {.data = NULL};
        sample_make(&sample, &seed);
        record_encode(&bytes, &sample.record);
        for (size_t length = 0; length < bytes.length; length++) {
            Slice cut = copy_exactly((Slice){bytes.data, length});
            CHECK(!record_decode(&decoded, cut));
            free_copy(cut);
        }
        bytes_free(&bytes);
        sample_free(&sample);
    }
}

static void a_level_that_is_none_is_refused(void) {
    for (int level = 0; level < 300; level++) {
        LogRecord record = {.level = (LogLevel)level, .message = SLICE("m")}, decoded;
        Bytes bytes = {.data = NULL};
        record_encode(&bytes, &record);
        CHECK_EQUAL(record_decode(&decoded, bytes_slice(&bytes)),
                    level >= LOG_DEBUG && level <= LOG_CRITICAL);
        bytes_free(&bytes);
    }
}

/* A line of logfmt, whatever it is about. */
static bool is_logfmt(Slice line) {
    Reader reader = reader_of(line);
    Bytes text = {.data = NULL};
    do {
        Slice name = {reader.at, 0}, value;
        while (next_byte(&reader) >= 0 && next_byte(&reader) != '=')
            reader.at++;
        name.length = (size_t)(reader.at - name.data);
        reader.has_failed = reader.has_failed || !is_word(name);
        expect_text(&reader, "=");
        value = (Slice){reader.at, 0};
        if (next_byte(&reader) == '"') {
            read_json_string(&reader, &text);
            continue;
        }
        while (next_byte(&reader) > ' ')
            reader.at++;
        value.length = (size_t)(reader.at - value.data);
        reader.has_failed = reader.has_failed || !is_word(value);
    } while (takes(&reader, SLICE(" ")));
    expect_text(&reader, "\n");
    bytes_free(&text);
    return !reader.has_failed && reader.at == reader.end;
}

/* Whatever comes from a worker that has gone mad: if it is a record at all, its lines are in order. */
static void mutated_records_do_no_harm(void) {
    uint64_t seed = 31;
    int accepted = 0;
    for (int n = 0; n < 6000 && test_failed_checks == 0; n++) {
        Sample sample;
        Bytes bytes = {.data = NULL};
        LogRecord decoded;
        Slice exact;
        sample_make(&sample, &seed);
        record_encode(&bytes, &sample.record);
        for (uint32_t count = 1 + test_random_below(&seed, 6); count > 0; count--) {
            uint32_t from = test_random_below(&seed, 5) ? 48 : 0, /* past the head most times */
                at = from + test_random_below(&seed, (uint32_t)bytes.length);
            if (at < bytes.length)
                bytes.data[at] = test_random_below(&seed, 2) ? (char)test_random(&seed)
                                                             : (char)test_random_below(&seed, 9);
        }
        exact = copy_exactly(bytes_slice(&bytes));
        if (record_decode(&decoded, exact)) {
            accepted++;
            for (int format = 0; format < LOG_FORMATS; format++) {
                Slice line = format_line(&decoded, (LogFormat)format, false, &SOME_SECRETS);
                check_line(line);
                if (format == FORMAT_JSON)
                    CHECK(is_json((Slice){line.data, line.length - 1}));
                if (format == FORMAT_LOGFMT)
                    CHECK(is_logfmt(line));
            }
            record_overrides(&decoded);
        }
        free_copy(exact);
        bytes_free(&bytes);
        sample_free(&sample);
    }
    CHECK(accepted > 2500);
    forget_line();
}

static void noise_is_no_record(void) {
    uint64_t seed = 32;
    for (int n = 0; n < 5000; n++) {
        char noise[128];
        LogRecord decoded;
        Slice exact;
        uint32_t length = test_random_below(&seed, sizeof noise);
        for (uint32_t i = 0; i < length; i++)
            noise[i] = (char)test_random_below(&seed, n % 2 ? 256 : 3);
        exact = copy_exactly((Slice){noise, length});
        if (record_decode(&decoded, exact))
            check_line(format_line(&decoded, FORMAT_TEXT, false, &NO_SECRETS));
        free_copy(exact);
    }
    forget_line();
}

/* ---- the checks themselves -------------------------------------------------------------------- */

static void the_checks_can_fail(void) {
    static const char *const no_json[] = {
        "",     "{",      "{}x",       "{\"a\"}",   "{\"a\":}",    "{\"a\":1,}",
        "[1,]", "01",     "1.",        ".5",        "1e",          "-",
        "+1",   "\"\n\"", "\"\\x41\"", "\"\\u12\"", "\"\\ud800\"", "\"\xff\"",
        "nul",  "NaN",    "{a:1}",     " 1"};
    static const char *const json[] = {"{}", "[]", "{\"a\":[1,-0.5e+3,null,true,false,\"\\n\"]}",
                                       "0"};
    static const char *const no_logfmt[] = {"a=b",     "a\n",     "=b\n",    "a=b  c=d\n",
                                            "a=\"b\n", "a=b\"\n", "a b=c\n", "a=\n"};
    for (size_t i = 0; i < sizeof no_json / sizeof *no_json; i++)
        if (!CHECK(!is_json(slice_of(no_json[i]))))
            printf("  %s\n", no_json[i]);
    for (size_t i = 0; i < sizeof json / sizeof *json; i++)
        CHECK(is_json(slice_of(json[i])));
    for (size_t i = 0; i < sizeof no_logfmt / sizeof *no_logfmt; i++)
        if (!CHECK(!is_logfmt(slice_of(no_logfmt[i]))))
            printf("  %s", no_logfmt[i]);
    CHECK(is_logfmt(SLICE("a=b c=\"d e\" f=[1]\n")));
}

static const Test tests[] = {
    {"the checks can fail", the_checks_can_fail},
    {"the documented examples", the_documented_examples},
    {"values in each format", values_in_each_format},
    {"lists and maps in each format", lists_and_maps_in_each_format},
    {"all levels have names", all_levels_have_names},
    {"random records are as they are to be", random_records_are_as_they_are_to_be},
    {"a line with colours", a_line_with_colours},
    {"colours are all that differs", colours_are_all_that_differs},
    {"every byte alone", every_byte_alone},
    {"every code point", every_code_point},
    {"code points at limits", code_points_at_limits},
    {"every kind of broken sequence", every_kind_of_broken_sequence},
    {"every sequence that is cut", every_sequence_that_is_cut},
    {"long texts", long_texts},
    {"known times", known_times},
    {"times agree with the library", times_agree_with_the_library},
    {"integers are shown in full", integers_are_shown_in_full},
    {"known numbers", known_numbers},
    {"random numbers come back", random_numbers_come_back},
    {"numbers are the same in any locale", numbers_are_the_same_in_any_locale},
    {"names of the record's own parts are taken", names_of_the_records_own_parts_are_taken},
    {"names are words", names_are_words},
    {"secrets are found in any case", secrets_are_found_in_any_case},
    {"secrets are hidden at any depth", secrets_are_hidden_at_any_depth},
    {"how a secret is shown", how_a_secret_is_shown},
    {"the last of a name counts", the_last_of_a_name_counts},
    {"the first part can be formatted before", the_first_part_can_be_formatted_before},
    {"a line is appended", a_line_is_appended},
    {"what is too deep is left out", what_is_too_deep_is_left_out},
    {"a line without memory fails", a_line_without_memory_fails},
    {"parts without memory fail", parts_without_memory_fail},
    {"records come back", records_come_back},
    {"a record that is cut is refused", a_record_that_is_cut_is_refused},
    {"a level that is none is refused", a_level_that_is_none_is_refused},
    {"mutated records do no harm", mutated_records_do_no_harm},
    {"noise is no record", noise_is_no_record},
    {NULL, NULL},
};

int main(void) {
    return test_main("record_test", tests);
}
