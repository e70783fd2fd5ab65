#include "parcel.h"

#include <string.h>

void parcel_init(Parcel *parcel, RecordKind kind, RecordStatus status, uint32_t id,
                 const CodecMessage *message) {
    memset(parcel, 0, sizeof *parcel);
    parcel->record.kind = (uint8_t)kind;
    parcel->record.status = (uint8_t)status;
    parcel->record.id = id;
    parcel->message = message;
    if (message != NULL)
        parcel->record.length = (uint32_t)(message->length + message->segmented);
}

size_t parcel_size(const Parcel *parcel) {
    return sizeof(Record) + parcel->record.length;
}

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Copies the next bytes of the message, at most `room`, to `to`; returns how many. */
static size_t copy_next(Parcel *parcel, char *to, size_t room) {
    const CodecMessage *message = parcel->message;
    const CodecSegment *segment =
        parcel->segment < message->segment_count ? &message->segments[parcel->segment] : NULL;
    size_t end = segment != NULL ? segment->at : message->length, count;
    if (parcel->at < end) {
        count = min_size(room, end - parcel->at);
        memcpy(to, message->bytes + parcel->at, count);
        parcel->at += count;
        return count;
    }
    if (segment == NULL)
        return 0;
    count = min_size(room, segment->length - parcel->in_segment);
    memcpy(to, segment->bytes + parcel->in_segment, count);
    parcel->in_segment += count;
    if (parcel->in_segment == segment->length) {
        parcel->segment++;
        parcel->in_segment = 0;
    }
    return count;
}

/* Pieces of this size are handed over while the rest is still being copied. */
#define PIECE ((size_t)64 * 1024)

bool parcel_send(Parcel *parcel, Port *port) {
    size_t room = ring_room(&port->out), filled = 0;
    const CodecMessage *message = parcel->message;
    if (!parcel->has_begun) {
        if (room < sizeof parcel->record)
            return false;
        memcpy(ring_place(&port->out), &parcel->record, sizeof parcel->record);
        parcel->has_begun = true;
        filled = sizeof parcel->record;
    }
    while (message != NULL && filled < room &&
           (parcel->at < message->length || parcel->segment < message->segment_count)) {
        filled += copy_next(parcel, ring_place(&port->out) + filled, room - filled);
        if (filled >= PIECE) {
            ring_publish(&port->out, filled);
            port_wake(port);
            room -= filled;
            filled = 0;
        }
    }
    ring_publish(&port->out, filled);
    return message == NULL ||
           (parcel->at == message->length && parcel->segment == message->segment_count);
}

bool parcel_send_whole(Port *port, RecordKind kind, const void *bytes, size_t length) {
    Record record = {.length = (uint32_t)length, .kind = (uint8_t)kind};
    char *place = ring_place(&port->out);
    if (ring_room(&port->out) < sizeof record + length)
        return false;
    memcpy(place, &record, sizeof record);
    if (length > 0)
        memcpy(place + sizeof record, bytes, length);
    ring_publish(&port->out, sizeof record + length);
    return true;
}

bool message_append(CodecMessage *message, const void *bytes, size_t length) {
    if (!codec_message_reserve(message, length))
        return false;
    if (length > 0)
        memcpy(message->bytes + message->length, bytes, length);
    message->length += length;
    return true;
}

size_t item_length(const char *bytes, size_t length) {
    uint32_t inner;
    if (length == 0 || (unsigned char)*bytes != CODEC_NO_SCALAR)
        return codec_scalar_length(bytes, length);
    if (length < 1 + sizeof inner)
        return 0;
    memcpy(&inner, bytes + 1, sizeof inner);
    return length - 1 - sizeof inner >= inner ? 1 + sizeof inner + inner : 0;
}
