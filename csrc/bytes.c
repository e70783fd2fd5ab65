#include "bytes.h"

#include <stdlib.h>

enum { SMALLEST = 64 };

bool bytes_reserve(Bytes *bytes, size_t more) {
    size_t needed = bytes->length + more, capacity = bytes->capacity;
    char *data;
    if (bytes->has_failed)
        return false;
    if (needed <= capacity && needed >= more)
        return true;
    capacity = capacity < SMALLEST ? SMALLEST : capacity * 2;
    if (capacity < needed)
        capacity = needed;
    data = needed < more ? NULL : realloc(bytes->data, capacity);
    if (data == NULL) {
        bytes->has_failed = true;
        return false;
    }
    bytes->data = data;
    bytes->capacity = capacity;
    return true;
}

void bytes_clear(Bytes *bytes, size_t keep) {
    if (bytes->capacity > keep)
        bytes_free(bytes);
    bytes->length = 0;
    bytes->has_failed = false;
}

void bytes_free(Bytes *bytes) {
    free(bytes->data);
    *bytes = (Bytes){.data = NULL};
}

bool slice_equals(Slice a, Slice b) {
    return a.length == b.length && (a.length == 0 || memcmp(a.data, b.data, a.length) == 0);
}

int slice_compare(Slice a, Slice b) {
    size_t shorter = a.length < b.length ? a.length : b.length;
    int order = shorter > 0 ? memcmp(a.data, b.data, shorter) : 0;
    return order != 0 ? order : (a.length > b.length) - (a.length < b.length);
}
