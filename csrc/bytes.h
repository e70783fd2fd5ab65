/*
 * Bytes that are put together one piece after the other.
 *
 * All zeros is an empty buffer. When memory runs out, the buffer stays as it is, has_failed is set,
 * and whatever is appended after that is dropped: it is enough to look once, at the end.
 */
#ifndef OPERO_BYTES_H
#define OPERO_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#pragma GCC visibility push(hidden)

typedef struct Bytes {
    char *data;
    size_t length, capacity;
    bool has_failed;
} Bytes;

/* Bytes that belong to somebody else. */
typedef struct Slice {
    const char *data;
    size_t length;
} Slice;

#define SLICE(literal) ((Slice){literal, sizeof(literal) - 1})

/* Of ASCII only, in every locale. */
static inline char byte_lower(char letter) {
    return letter >= 'A' && letter <= 'Z' ? (char)(letter + ('a' - 'A')) : letter;
}

/* Makes room for `more` bytes behind the last one; false when there is no memory for it, or was not
 * before. */
bool bytes_reserve(Bytes *bytes, size_t more);

static inline void bytes_append(Bytes *bytes, const void *data, size_t length) {
    if (length > bytes->capacity - bytes->length && !bytes_reserve(bytes, length))
        return;
    if (length > 0 && !bytes->has_failed) {
        memcpy(bytes->data + bytes->length, data, length);
        bytes->length += length;
    }
}

static inline void bytes_put(Bytes *bytes, char byte) {
    if ((bytes->length < bytes->capacity && !bytes->has_failed) || bytes_reserve(bytes, 1))
        bytes->data[bytes->length++] = byte;
}

static inline void bytes_append_slice(Bytes *bytes, Slice slice) {
    bytes_append(bytes, slice.data, slice.length);
}

static inline Slice bytes_slice(const Bytes *bytes) {
    return (Slice){bytes->data, bytes->length};
}

/* Empties it; keeps its memory unless that is more than `keep` bytes. */
void bytes_clear(Bytes *bytes, size_t keep);

/* Empties it and gives its memory back. */
void bytes_free(Bytes *bytes);

bool slice_equals(Slice a, Slice b);

/* In the order of their bytes: less than, equal to or greater than 0, as memcmp. */
int slice_compare(Slice a, Slice b);

#pragma GCC visibility pop

#endif
