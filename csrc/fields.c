#include "fields.h"

#include <stdlib.h>
#include <string.h>

/* ---- writing --------------------------------------------------------------------------------- */

void fields_put_nil(Bytes *bytes) {
    bytes_put(bytes, VALUE_NIL);
}

void fields_put_boolean(Bytes *bytes, bool value) {
    bytes_put(bytes, value ? VALUE_TRUE : VALUE_FALSE);
}

/* A tag and 8 bytes, or nothing. */
static void put_number(Bytes *bytes, ValueKind kind, const void *number) {
    if (!bytes_reserve(bytes, 9))
        return;
    bytes_put(bytes, (char)kind);
    bytes_append(bytes, number, 8);
}

void fields_put_integer(Bytes *bytes, int64_t value) {
    put_number(bytes, VALUE_INTEGER, &value);
}

void fields_put_number(Bytes *bytes, double value) {
    put_number(bytes, VALUE_FLOAT, &value);
}

void fields_put_string(Bytes *bytes, Slice value) {
    uint32_t length = (uint32_t)value.length;
    if (!bytes_reserve(bytes, 1 + sizeof length + value.length))
        return;
    bytes_put(bytes, VALUE_STRING);
    bytes_append(bytes, &length, sizeof length);
    bytes_append_slice(bytes, value);
}

size_t fields_begin(Bytes *bytes, ValueKind kind) {
    uint32_t length = 0;
    size_t place = bytes->length + 1;
    if (bytes_reserve(bytes, 1 + sizeof length)) {
        bytes_put(bytes, (char)kind);
        bytes_append(bytes, &length, sizeof length);
    }
    return place;
}

void fields_end(Bytes *bytes, size_t place) {
    uint32_t length;
    if (bytes->has_failed)
        return;
    length = (uint32_t)(bytes->length - place - sizeof length);
    memcpy(bytes->data + place, &length, sizeof length);
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool take(Slice *rest, void *to, size_t length) {
    if (rest->length < length)
        return false;
    memcpy(to, rest->data, length);
    rest->data += length;
    rest->length -= length;
    return true;
}

bool fields_next_value(Slice *rest, Value *value) {
    unsigned char tag;
    uint32_t length;
    if (!take(rest, &tag, 1) || tag > VALUE_MAP)
        return false;
    value->kind = (ValueKind)tag;
    switch (value->kind) {
    case VALUE_INTEGER:
        return take(rest, &value->as.integer, sizeof value->as.integer);
    case VALUE_FLOAT:
        return take(rest, &value->as.number, sizeof value->as.number);
    case VALUE_STRING:
    case VALUE_LIST:
    case VALUE_MAP:
        if (!take(rest, &length, sizeof length) || rest->length < length)
            return false;
        value->as.bytes = (Slice){rest->data, length};
        rest->data += length;
        rest->length -= length;
        return true;
    default:
        return true;
    }
}

bool fields_next(Slice *rest, Slice *name, Value *value) {
    Value key;
    if (!fields_next_value(rest, &key) || key.kind != VALUE_STRING)
        return false;
    *name = key.as.bytes;
    return fields_next_value(rest, value);
}

bool fields_find(Slice fields, Slice name, Value *value) {
    Slice other;
    while (fields_next(&fields, &other, value))
        if (slice_equals(name, other))
            return true;
    return false;
}

/* ---- order ----------------------------------------------------------------------------------- */

typedef struct Field {
    Slice name, whole;
} Field;

/* Takes the next field as it stands. */
static bool next_field(Slice *rest, Field *field) {
    const char *begin = rest->data;
    Value value;
    if (!fields_next(rest, &field->name, &value))
        return false;
    field->whole = (Slice){begin, (size_t)(rest->data - begin)};
    return true;
}

static int compare(const void *a, const void *b) {
    const Field *left = a, *right = b;
    int order = slice_compare(left->name, right->name);
    return order != 0
               ? order
               : (left->whole.data > right->whole.data) - (left->whole.data < right->whole.data);
}

static bool is_sorted(const Field *list, size_t count) {
    for (size_t i = 1; i < count; i++)
        if (compare(&list[i - 1], &list[i]) > 0)
            return false;
    return true;
}

/* Puts the fields, which stand behind `start` now, into the order of the list. */
static void rearrange(Bytes *bytes, size_t start, const Field *list, size_t count) {
    enum { SHORT = 512 };
    size_t length = bytes->length - start, at = 0;
    char few[SHORT], *copy = length <= SHORT ? few : malloc(length);
    if (copy == NULL) {
        bytes->has_failed = true;
        return;
    }
    for (size_t i = 0; i < count; at += list[i++].whole.length)
        memcpy(copy + at, list[i].whole.data, list[i].whole.length);
    memcpy(bytes->data + start, copy, at);
    bytes->length = start + at;
    if (copy != few)
        free(copy);
}

/* Takes out of a sorted list what has the name of the one before; returns how many are left. */
static size_t drop_repeated(Field *list, size_t count) {
    size_t kept = count > 0;
    for (size_t i = 1; i < count; i++)
        if (!slice_equals(list[kept - 1].name, list[i].name))
            list[kept++] = list[i];
    return kept;
}

void fields_sort(Bytes *bytes, size_t start) {
    enum { FEW = 32 };
    Field few[FEW], *list = few, field;
    Slice rest = {bytes->data + start, bytes->length - start}, all = rest;
    size_t count = 0, kept;
    bool was_sorted;
    if (bytes->has_failed || rest.length == 0)
        return;
    while (next_field(&all, &field))
        count++;
    if (count > FEW)
        list = malloc(count * sizeof *list);
    if (list == NULL) {
        bytes->has_failed = true;
        return;
    }
    for (size_t i = 0; i < count && next_field(&rest, &list[i]); i++)
        ;
    was_sorted = is_sorted(list, count);
    if (!was_sorted)
        qsort(list, count, sizeof *list, compare);
    kept = drop_repeated(list, count);
    if (!was_sorted || kept < count)
        rearrange(bytes, start, list, kept);
    if (list != few)
        free(list);
}

void fields_merge(Bytes *bytes, Slice base, Slice over) {
    Field left, right;
    bool has_left = next_field(&base, &left), has_right = next_field(&over, &right);
    while (has_left || has_right) {
        int order = !has_left ? 1 : !has_right ? -1 : slice_compare(left.name, right.name);
        if (order != 0) /* else there may be more of that name to leave out */
            bytes_append_slice(bytes, order < 0 ? left.whole : right.whole);
        if (order <= 0)
            has_left = next_field(&base, &left);
        else
            has_right = next_field(&over, &right);
    }
}
