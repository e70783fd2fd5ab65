#include "capture.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct Capture {
    Bytes *bytes;
    size_t start;
    const void *path[CAPTURE_DEPTH + 1]; /* the tables that it is in */
    int depth;
} Capture;

/* ---- strings ------------------------------------------------------------------------------------ */

/* The longest part of the text that is no longer than `max` and does not end within a character. */
static size_t cut(Slice text, size_t max) {
    size_t length = max;
    for (int i = 0; i < 3 && length > 0 && ((unsigned char)text.data[length] & 0xc0) == 0x80; i++)
        length--;
    return ((unsigned char)text.data[length] & 0xc0) == 0x80 ? max : length;
}

static void put_string(Bytes *bytes, Slice text, size_t max) {
    char note[48];
    uint32_t length;
    size_t kept, place;
    if (text.length <= max) {
        fields_put_string(bytes, text);
        return;
    }
    kept = cut(text, max);
    place = fields_begin(bytes, VALUE_STRING);
    bytes_append(bytes, text.data, kept);
    length = (uint32_t)snprintf(note, sizeof note, "... (%zu bytes more)", text.length - kept);
    bytes_append(bytes, note, length);
    fields_end(bytes, place);
}

static int to_text(lua_State *L) {
    luaL_tolstring(L, 1, NULL);
    return 1;
}

bool capture_ends_more(lua_State *L) {
    static const char ctrl_c[] = "interrupted!";
    const char *name;
    size_t length;
    bool is_it = false;
    if (lua_type(L, -1) == LUA_TSTRING) {
        const char *text = lua_tolstring(L, -1, &length);
        return length >= sizeof ctrl_c - 1 &&
               strcmp(text + length - (sizeof ctrl_c - 1), ctrl_c) == 0;
    }
    if (luaL_getmetafield(L, -1, "__name") != LUA_TNIL) {
        name = lua_tostring(L, -1);
        is_it = name != NULL && strcmp(name, "CancelledError") == 0;
        lua_pop(L, 1);
    }
    return is_it;
}

/* Pushes what tostring makes of the value, or a substitute. */
static Slice push_text(lua_State *L, int index) {
    Slice text;
    index = lua_absindex(L, index);
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    lua_pushcfunction(L, to_text);
    lua_pushvalue(L, index);
    if (lua_pcall(L, 1, 1, 0) != LUA_OK) {
        if (capture_ends_more(L))
            lua_error(L);
        lua_pop(L, 1);
        lua_pushfstring(L, "(a %s that cannot be shown)", luaL_typename(L, index));
    }
    text.data = lua_tolstring(L, -1, &text.length);
    return text;
}

/* ---- values ------------------------------------------------------------------------------------- */

static bool has_metafield(lua_State *L, int index, const char *name) {
    bool has_it = luaL_getmetafield(L, index, name) != LUA_TNIL;
    if (has_it)
        lua_pop(L, 1);
    return has_it;
}

bool capture_is_fields(lua_State *L, int index) {
    return lua_type(L, index) == LUA_TTABLE && !has_metafield(L, index, "__tostring") &&
           !has_metafield(L, index, "__name");
}

static void put_value(lua_State *L, Capture *capture, int index);

/* Puts the key on the top of the stack but one as a name. */
static void put_name(lua_State *L, Capture *capture) {
    Slice name;
    if (lua_type(L, -2) == LUA_TSTRING) {
        name.data = lua_tolstring(L, -2, &name.length);
        put_string(capture->bytes, name, CAPTURE_NAME_MAX);
    } else {
        name = push_text(L, -2);
        put_string(capture->bytes, name, CAPTURE_NAME_MAX);
        lua_pop(L, 1);
    }
}

static bool is_full(const Capture *capture) {
    return capture->bytes->has_failed ||
           capture->bytes->length - capture->start > CAPTURE_TOTAL_MAX;
}

/* Puts what a table holds, as fields. */
static void put_fields(lua_State *L, Capture *capture, int index) {
    size_t start = capture->bytes->length;
    int count = 0;
    bool is_cut = false;
    lua_pushnil(L);
    while (lua_next(L, index)) {
        if (count++ >= CAPTURE_ENTRIES || is_full(capture)) {
            is_cut = true;
            lua_pop(L, 2);
            break;
        }
        put_name(L, capture);
        put_value(L, capture, lua_gettop(L));
        lua_pop(L, 1);
    }
    if (is_cut) {
        fields_put_string(capture->bytes, SLICE("..."));
        fields_put_string(capture->bytes, SLICE("and more"));
    }
    fields_sort(capture->bytes, start);
}

/* The number of elements if the table is a list, 0 if it is none or empty. */
static lua_Unsigned list_length(lua_State *L, int index) {
    lua_Unsigned length = lua_rawlen(L, index), count = 0;
    if (length == 0)
        return 0;
    lua_pushnil(L);
    while (lua_next(L, index)) {
        lua_Integer key = lua_isinteger(L, -2) ? lua_tointeger(L, -2) : 0;
        lua_pop(L, 1);
        if (key < 1 || (lua_Unsigned)key > length) {
            lua_pop(L, 1);
            return 0;
        }
        if (++count > CAPTURE_ENTRIES) { /* the rest is not shown */
            lua_pop(L, 1);
            break;
        }
    }
    return length;
}

static void put_list(lua_State *L, Capture *capture, int index, lua_Unsigned length) {
    for (lua_Unsigned i = 1; i <= length; i++) {
        if (i > CAPTURE_ENTRIES || is_full(capture)) {
            char note[48];
            int written = snprintf(note, sizeof note, "... (%llu more)",
                                   (unsigned long long)(length - i + 1));
            fields_put_string(capture->bytes, (Slice){note, (size_t)written});
            return;
        }
        lua_rawgeti(L, index, (lua_Integer)i);
        put_value(L, capture, lua_gettop(L));
        lua_pop(L, 1);
    }
}

static void put_table(lua_State *L, Capture *capture, int index) {
    const void *table = lua_topointer(L, index);
    lua_Unsigned length;
    size_t place;
    for (int i = 0; i < capture->depth; i++)
        if (capture->path[i] == table) {
            fields_put_string(capture->bytes, SLICE("(the table it is in)"));
            return;
        }
    if (capture->depth >= CAPTURE_DEPTH || is_full(capture)) {
        fields_put_string(capture->bytes, SLICE("{...}"));
        return;
    }
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    capture->path[capture->depth++] = table;
    length = list_length(L, index);
    place = fields_begin(capture->bytes, length > 0 ? VALUE_LIST : VALUE_MAP);
    if (length > 0)
        put_list(L, capture, index, length);
    else
        put_fields(L, capture, index);
    fields_end(capture->bytes, place);
    capture->depth--;
}

/* `index` must be absolute. */
static void put_value(lua_State *L, Capture *capture, int index) {
    Slice text;
    switch (lua_type(L, index)) {
    case LUA_TNIL:
        fields_put_nil(capture->bytes);
        break;
    case LUA_TBOOLEAN:
        fields_put_boolean(capture->bytes, lua_toboolean(L, index));
        break;
    case LUA_TNUMBER:
        if (lua_isinteger(L, index))
            fields_put_integer(capture->bytes, lua_tointeger(L, index));
        else
            fields_put_number(capture->bytes, lua_tonumber(L, index));
        break;
    case LUA_TSTRING:
        text.data = lua_tolstring(L, index, &text.length);
        put_string(capture->bytes, text, CAPTURE_STRING_MAX);
        break;
    default:
        if (capture_is_fields(L, index)) {
            put_table(L, capture, index);
        } else {
            text = push_text(L, index);
            put_string(capture->bytes, text, CAPTURE_STRING_MAX);
            lua_pop(L, 1);
        }
        break;
    }
}

void capture_fields(lua_State *L, int index, Bytes *bytes) {
    Capture capture = {.bytes = bytes, .start = bytes->length, .depth = 1};
    index = lua_absindex(L, index);
    capture.path[0] = lua_topointer(L, index);
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    put_fields(L, &capture, index);
}

/* ---- messages ----------------------------------------------------------------------------------- */

typedef struct Message {
    Bytes *bytes, *scratch;
    const Secrets *secrets;
} Message;

/* Appends a value as it stands in a message. */
static void append_value(lua_State *L, const Message *message, int index) {
    Slice text;
    switch (lua_type(L, index)) {
    case LUA_TNIL:
        bytes_append(message->bytes, "nil", 3);
        break;
    case LUA_TBOOLEAN:
        if (lua_toboolean(L, index))
            bytes_append(message->bytes, "true", 4);
        else
            bytes_append(message->bytes, "false", 5);
        break;
    case LUA_TNUMBER:
        if (lua_isinteger(L, index))
            text_append_integer(message->bytes, lua_tointeger(L, index));
        else
            text_append_number(message->bytes, lua_tonumber(L, index));
        break;
    case LUA_TSTRING:
        text.data = lua_tolstring(L, index, &text.length);
        bytes_append_slice(message->bytes, text);
        break;
    default:
        if (capture_is_fields(L, index)) {
            Capture capture = {.bytes = message->scratch};
            Value value;
            bytes_clear(message->scratch, CAPTURE_TOTAL_MAX);
            put_table(L, &capture, lua_absindex(L, index));
            text = bytes_slice(message->scratch);
            if (fields_next_value(&text, &value))
                json_append_value(message->bytes, &value, message->secrets);
        } else {
            text = push_text(L, index);
            bytes_append_slice(message->bytes, text);
            lua_pop(L, 1);
        }
        break;
    }
}

/* One of string.format's directives. */
typedef struct Directive {
    char spec[16]; /* from "%" to the end of the modifiers; room for more */
    size_t length; /* of what it takes in the format; 0: there is none */
    char letter;
    bool is_modified;
} Directive;

/* The flags that string.format takes with the letter; NULL: it is none of its letters. */
static const char *flags_of(char letter) {
    switch (letter) {
    case 'd':
    case 'i':
        return "-+0 ";
    case 'u':
        return "-0";
    case 'o':
    case 'x':
    case 'X':
        return "-#0";
    case 'a':
    case 'A':
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
        return "-+#0 ";
    case 'c':
    case 'p':
    case 's':
        return "-";
    case 'q':
        return "";
    default:
        return NULL;
    }
}

static const char *skip_digits(const char *at, const char *end) {
    for (int digits = 0; digits < 2 && at < end && *at >= '0' && *at <= '9'; digits++)
        at++;
    return at;
}

/* Reads the directive that begins at the "%" there. What string.format would refuse is none. */
static Directive read_directive(const char *at, const char *end) {
    Directive directive = {.length = 0};
    const char *begin = at++, *flags_end, *flags;
    size_t modifiers;
    while (at < end && *at != '\0' && strchr("-+ #0", *at) != NULL)
        at++;
    flags_end = at;
    at = skip_digits(at, end);
    if (at < end && *at == '.')
        at = skip_digits(at + 1, end);
    modifiers = (size_t)(at - begin);
    flags = at < end ? flags_of(*at) : NULL;
    if (flags == NULL || modifiers > 10 || (modifiers > 1 && *flags == '\0'))
        return directive;
    for (const char *flag = begin + 1; flag < flags_end; flag++)
        if (strchr(flags, *flag) == NULL)
            return directive;
    memcpy(directive.spec, begin, modifiers);
    directive.is_modified = modifiers > 1;
    directive.letter = *at;
    directive.length = modifiers + 1;
    return directive;
}

/* How many arguments the format has room for. */
static int count_directives(Slice format) {
    const char *at = format.data, *end = at + format.length;
    int count = 0;
    while ((at = memchr(at, '%', (size_t)(end - at))) != NULL) {
        Directive directive = read_directive(at, end);
        count += directive.length > 0;
        at += directive.length > 0 ? directive.length : at + 1 < end && at[1] == '%' ? 2 : 1;
    }
    return count;
}

/* Gives what was appended from `start` on the precision and the width of the directive. */
static void pad(Bytes *bytes, size_t start, const char *spec) {
    const char *at = spec + 1 + strspn(spec + 1, "-+ #0"), *point = strchr(spec, '.');
    size_t width = 0, precision = 0, length = bytes->length - start, missing;
    if (bytes->has_failed)
        return;
    for (; *at >= '0' && *at <= '9'; at++)
        width = width * 10 + (size_t)(*at - '0');
    if (point != NULL) {
        for (at = point + 1; *at >= '0' && *at <= '9'; at++)
            precision = precision * 10 + (size_t)(*at - '0');
        if (precision < length)
            length = precision;
        bytes->length = start + length;
    }
    missing = width > length ? width - length : 0;
    if (missing == 0 || !bytes_reserve(bytes, missing))
        return;
    if (strchr(spec, '-') == NULL) { /* to the right */
        memmove(bytes->data + start + missing, bytes->data + start, length);
        memset(bytes->data + start, ' ', missing);
    } else
        memset(bytes->data + bytes->length, ' ', missing);
    bytes->length += missing;
}

/* Appends an argument as the directive says, or as it is when it is not of that type. */
static void append_argument(lua_State *L, const Message *message, Directive *directive, int index) {
    char text[512]; /* %99.99f of the greatest number takes 410 */
    char *spec = directive->spec;
    int is_number, length = -1;
    lua_Integer integer;
    lua_Number number;
    switch (directive->letter) {
    case 'd':
    case 'i':
        integer = lua_tointegerx(L, index, &is_number);
        if (is_number && !directive->is_modified) {
            text_append_integer(message->bytes, integer);
            return;
        }
        strcat(spec, LUA_INTEGER_FRMLEN "d");
        if (is_number)
            length = snprintf(text, sizeof text, spec, integer);
        break;
    case 'c':
        integer = lua_tointegerx(L, index, &is_number);
        if (is_number) {
            size_t start = message->bytes->length;
            bytes_put(message->bytes, (char)integer);
            pad(message->bytes, start, spec);
            return;
        }
        break;
    case 'u':
    case 'o':
    case 'x':
    case 'X':
        integer = lua_tointegerx(L, index, &is_number);
        strcat(spec, LUA_INTEGER_FRMLEN);
        strncat(spec, &directive->letter, 1);
        if (is_number)
            length = snprintf(text, sizeof text, spec, integer);
        break;
    case 'p':
        if (lua_topointer(L, index) != NULL) {
            strcat(spec, "p");
            length = snprintf(text, sizeof text, spec, lua_topointer(L, index));
        } else { /* as string.format has it for what is no object */
            size_t start = message->bytes->length;
            bytes_append_slice(message->bytes, SLICE("(null)"));
            pad(message->bytes, start, spec);
            return;
        }
        break;
    case 's':
    case 'q':
        break;
    default:
        number = lua_tonumberx(L, index, &is_number);
        strcat(spec, LUA_NUMBER_FRMLEN);
        strncat(spec, &directive->letter, 1);
        if (is_number)
            length = snprintf(text, sizeof text, spec, number);
        break;
    }
    if (length >= 0 && (size_t)length < sizeof text) {
        bytes_append(message->bytes, text, (size_t)length);
    } else if (directive->letter == 's' && directive->is_modified) {
        size_t start = message->bytes->length;
        append_value(L, message, index);
        pad(message->bytes, start, spec);
    } else if (directive->letter == 'q' && lua_type(L, index) == LUA_TSTRING) {
        Value value = {.kind = VALUE_STRING};
        value.as.bytes.data = lua_tolstring(L, index, &value.as.bytes.length);
        json_append_value(message->bytes, &value, message->secrets);
    } else
        append_value(L, message, index);
}

/* Appends the format with the arguments from `first` to `last` in it; returns the first that was left. */
static int append_format(lua_State *L, const Message *message, Slice format, int first, int last) {
    const char *at = format.data, *end = at + format.length, *percent;
    while ((percent = memchr(at, '%', (size_t)(end - at))) != NULL) {
        Directive directive = read_directive(percent, end);
        bytes_append(message->bytes, at, (size_t)(percent - at));
        at = percent + 1;
        if (directive.length > 0 && first <= last) {
            append_argument(L, message, &directive, first++);
            at = percent + directive.length;
        } else {
            bytes_put(message->bytes, '%');
            if (at < end && *at == '%')
                at++;
        }
    }
    bytes_append(message->bytes, at, (size_t)(end - at));
    return first;
}

/* Cuts what is too long. */
static void shorten(Bytes *bytes) {
    char note[48];
    size_t kept;
    int length;
    if (bytes->has_failed || bytes->length <= CAPTURE_MESSAGE_MAX)
        return;
    kept = cut(bytes_slice(bytes), CAPTURE_MESSAGE_MAX);
    length = snprintf(note, sizeof note, "... (%zu bytes more)", bytes->length - kept);
    bytes->length = kept;
    bytes_append(bytes, note, (size_t)length);
}

bool capture_message(lua_State *L, int first, int last, Bytes *bytes, Bytes *scratch,
                     const Secrets *secrets) {
    const Message message = {bytes, scratch, secrets};
    bool has_fields = false;
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    if (lua_type(L, first) == LUA_TSTRING) {
        Slice format;
        format.data = lua_tolstring(L, first, &format.length);
        has_fields = last - first > count_directives(format) && capture_is_fields(L, last);
        first = append_format(L, &message, format, first + 1, last - has_fields);
    } else {
        has_fields = last > first && capture_is_fields(L, last);
        if (first <= last)
            append_value(L, &message, first);
        first++;
    }
    for (; first <= last - has_fields; first++) { /* too many of them are not lost */
        bytes_put(bytes, ' ');
        append_value(L, &message, first);
    }
    shorten(bytes);
    return has_fields;
}

/* ---- back to Lua -------------------------------------------------------------------------------- */

enum { DEEPEST = 4 * CAPTURE_DEPTH }; /* who knows what another process has sent */

static void push_fields(lua_State *L, Slice fields, const Secrets *secrets, int depth);

static void push_value(lua_State *L, const Value *value, const Secrets *secrets, int depth) {
    Slice rest = value->as.bytes;
    Value element;
    if (depth > DEEPEST) {
        lua_pushliteral(L, "...");
        return;
    }
    luaL_checkstack(L, LUA_MINSTACK, "not enough memory");
    switch (value->kind) {
    case VALUE_NIL:
        lua_pushnil(L);
        break;
    case VALUE_FALSE:
    case VALUE_TRUE:
        lua_pushboolean(L, value->kind == VALUE_TRUE);
        break;
    case VALUE_INTEGER:
        lua_pushinteger(L, value->as.integer);
        break;
    case VALUE_FLOAT:
        lua_pushnumber(L, value->as.number);
        break;
    case VALUE_STRING:
        lua_pushlstring(L, rest.data, rest.length);
        break;
    case VALUE_LIST:
        lua_newtable(L);
        for (lua_Integer i = 1; fields_next_value(&rest, &element); i++) {
            push_value(L, &element, secrets, depth + 1);
            lua_rawseti(L, -2, i);
        }
        break;
    case VALUE_MAP:
        push_fields(L, rest, secrets, depth + 1);
        break;
    }
}

static void set_field(lua_State *L, int index, Slice name, const Value *value,
                      const Secrets *secrets, int depth) {
    lua_pushlstring(L, name.data, name.length);
    if (secrets_hide(secrets, name))
        lua_pushliteral(L, "***");
    else
        push_value(L, value, secrets, depth);
    lua_rawset(L, index);
}

static void push_fields(lua_State *L, Slice fields, const Secrets *secrets, int depth) {
    Slice name;
    Value value;
    lua_newtable(L);
    while (fields_next(&fields, &name, &value))
        set_field(L, lua_gettop(L), name, &value, secrets, depth);
}

void capture_set(lua_State *L, int index, Slice name, const Value *value, const Secrets *secrets) {
    set_field(L, index, name, value, secrets, 0);
}

void capture_push(lua_State *L, Slice fields, const Secrets *secrets) {
    push_fields(L, fields, secrets, 0);
}
