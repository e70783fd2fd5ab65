/* Slices as the tests need them. */
#ifndef OPERO_SLICES_H
#define OPERO_SLICES_H

#include "bytes.h"

#include <stdlib.h>
#include <string.h>

static inline Slice slice_of(const char *text) {
    return (Slice){text, strlen(text)};
}

/* A copy in a block of just its size: a sanitizer sees who reads past its end. */
static inline Slice copy_exactly(Slice from) {
    char *copy = malloc(from.length > 0 ? from.length : 1);
    if (from.length > 0)
        memcpy(copy, from.data, from.length);
    return (Slice){copy, from.length};
}

static inline void free_copy(Slice copy) {
    free((void *)(uintptr_t)copy.data);
}

#endif
