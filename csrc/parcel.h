/*
 * What a pool and its workers send each other, piece by piece as far as there is room: a record and
 * an encoded message. And the form of a chunk: many items for one function.
 *
 * A chunk's message is: the length of the function's encoding in 4 bytes, that, then the items. An
 * item is a scalar, or CODEC_NO_SCALAR, a length in 4 bytes and an encoding of one value.
 */
#ifndef OPERO_PARCEL_H
#define OPERO_PARCEL_H

#include "codec.h"
#include "port.h"

#pragma GCC visibility push(hidden)

#define PARCEL_MAX ((uint64_t)UINT32_MAX) /* bytes of a message */

typedef struct Parcel {
    Record record;
    const CodecMessage *message; /* must stay as it is until all is sent; NULL: none */
    bool has_begun;
    size_t at;         /* bytes of the message's own that are sent */
    size_t segment;    /* segments that are sent ... */
    size_t in_segment; /* ... and bytes of the next one */
} Parcel;

void parcel_init(Parcel *parcel, RecordKind kind, RecordStatus status, uint32_t id,
                 const CodecMessage *message);

/* All that there is to send, in bytes. */
size_t parcel_size(const Parcel *parcel);

/* Sends as much as there is room for. True when that was all of it. */
bool parcel_send(Parcel *parcel, Port *port);

/* Sends a record with these bytes whole, if there is room for that. */
bool parcel_send_whole(Port *port, RecordKind kind, const void *bytes, size_t length);

#define ITEM_HEAD (1 + sizeof(uint32_t)) /* of an item that is no scalar */

/* Appends bytes; false when there is no memory. */
bool message_append(CodecMessage *message, const void *bytes, size_t length);

/* The length of the item that stands at `bytes`; 0 when there is none. */
size_t item_length(const char *bytes, size_t length);

#pragma GCC visibility pop

#endif
