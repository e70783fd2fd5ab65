#include "fields.h"

#include "faults.h"
#include "slices.h"
#include "test.h"

#include <math.h>

/* ---- what every test needs ----------------------------------------------------------------- */

static bool is_same_number(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

static void put_field(Bytes *bytes, Slice name, int64_t value) {
    fields_put_string(bytes, name);
    fields_put_integer(bytes, value);
}

/* ---- random values, and the same once more to compare with --------------------------------- */

enum { DEEPEST = 4 };

static double random_number(uint64_t *seed) {
    uint64_t bits = test_random(seed);
    double number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static Slice random_string(uint64_t *seed, char *room, uint32_t limit) {
    uint32_t length = test_random_below(seed, limit);
    for (uint32_t i = 0; i < length; i++)
        room[i] = (char)test_random(seed);
    return (Slice){room, length};
}

static ValueKind random_kind(uint64_t *seed, int depth) {
    return (ValueKind)test_random_below(seed, depth < DEEPEST ? VALUE_MAP + 1 : VALUE_LIST);
}

static void put_random_fields(Bytes *bytes, uint64_t *seed, int depth);

static void put_random(Bytes *bytes, uint64_t *seed, int depth) {
    ValueKind kind = random_kind(seed, depth);
    char room[64];
    size_t place;
    switch (kind) {
    case VALUE_NIL:
        fields_put_nil(bytes);
        break;
    case VALUE_FALSE:
    case VALUE_TRUE:
        fields_put_boolean(bytes, kind == VALUE_TRUE);
        break;
    case VALUE_INTEGER:
        fields_put_integer(bytes, (int64_t)test_random(seed));
        break;
    case VALUE_FLOAT:
        fields_put_number(bytes, random_number(seed));
        break;
    case VALUE_STRING:
        fields_put_string(bytes, random_string(seed, room, sizeof room));
        break;
    case VALUE_LIST:
        place = fields_begin(bytes, VALUE_LIST);
        for (uint32_t count = test_random_below(seed, 6); count > 0; count--)
            put_random(bytes, seed, depth + 1);
        fields_end(bytes, place);
        break;
    case VALUE_MAP:
        place = fields_begin(bytes, VALUE_MAP);
        put_random_fields(bytes, seed, depth + 1);
        fields_end(bytes, place);
        break;
    }
}

static void put_random_fields(Bytes *bytes, uint64_t *seed, int depth) {
    char room[8];
    for (uint32_t count = test_random_below(seed, 6); count > 0; count--) {
        fields_put_string(bytes, random_string(seed, room, sizeof room));
        put_random(bytes, seed, depth);
    }
}

static void check_random_fields(Slice rest, uint64_t *seed, int depth);

static void check_random(const Value *value, uint64_t *seed, int depth) {
    ValueKind kind = random_kind(seed, depth);
    char room[64];
    Slice rest = value->as.bytes;
    if (!CHECK_EQUAL(value->kind, kind))
        return;
    switch (kind) {
    case VALUE_INTEGER:
        CHECK_EQUAL(value->as.integer, (int64_t)test_random(seed));
        break;
    case VALUE_FLOAT:
        CHECK(is_same_number(value->as.number, random_number(seed)));
        break;
    case VALUE_STRING:
        CHECK(slice_equals(value->as.bytes, random_string(seed, room, sizeof room)));
        break;
    case VALUE_LIST:
        for (uint32_t count = test_random_below(seed, 6); count > 0; count--) {
            Value inner;
            if (!CHECK(fields_next_value(&rest, &inner)))
                return;
            check_random(&inner, seed, depth + 1);
        }
        CHECK_EQUAL(rest.length, 0);
        break;
    case VALUE_MAP:
        check_random_fields(rest, seed, depth + 1);
        break;
    default:
        break;
    }
}

static void check_random_fields(Slice rest, uint64_t *seed, int depth) {
    char room[8];
    Slice name;
    Value value;
    for (uint32_t count = test_random_below(seed, 6); count > 0; count--) {
        if (!CHECK(fields_next(&rest, &name, &value)))
            return;
        CHECK(slice_equals(name, random_string(seed, room, sizeof room)));
        check_random(&value, seed, depth);
    }
    CHECK_EQUAL(rest.length, 0);
    CHECK(!fields_next(&rest, &name, &value));
}

static void random_fields_come_back(void) {
    for (uint64_t n = 1; n <= 2000 && test_failed_checks == 0; n++) {
        Bytes bytes = {.data = NULL};
        uint64_t seed = n;
        put_random_fields(&bytes, &seed, 0);
        seed = n;
        check_random_fields(bytes_slice(&bytes), &seed, 0);
        bytes_free(&bytes);
    }
}

/* ---- single values ------------------------------------------------------------------------- */

static void numbers_come_back(void) {
    static const int64_t integers[] = {0, 1, -1, INT64_MAX, INT64_MIN, 1000000007};
    static const double numbers[] = {0.0,      -0.0, 1.5,    -1e308,   5e-324,
                                     INFINITY, NAN,  0x1p63, -INFINITY};
    enum {
        INTEGERS = sizeof integers / sizeof *integers,
        NUMBERS = sizeof numbers / sizeof *numbers,
    };
    Bytes bytes = {.data = NULL};
    Slice rest;
    Value value;
    for (int i = 0; i < INTEGERS; i++)
        fields_put_integer(&bytes, integers[i]);
    for (int i = 0; i < NUMBERS; i++)
        fields_put_number(&bytes, numbers[i]);
    fields_put_boolean(&bytes, true);
    fields_put_boolean(&bytes, false);
    fields_put_nil(&bytes);
    rest = bytes_slice(&bytes);
    for (int i = 0; i < INTEGERS; i++)
        CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_INTEGER &&
              value.as.integer == integers[i]);
    for (int i = 0; i < NUMBERS; i++)
        CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_FLOAT &&
              is_same_number(value.as.number, numbers[i]));
    CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_TRUE);
    CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_FALSE);
    CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_NIL);
    CHECK(!fields_next_value(&rest, &value) && rest.length == 0);
    bytes_free(&bytes);
}

static void strings_come_back(void) {
    enum { MANY = 1 << 20 };
    char *large = malloc(MANY);
    Slice strings[] = {{NULL, 0}, {"", 0}, {"\0a\0", 3}, {"\xff\xfe", 2}, {large, MANY}};
    enum { COUNT = sizeof strings / sizeof *strings };
    Bytes bytes = {.data = NULL};
    Slice rest, name;
    Value value;
    for (int i = 0; i < MANY; i++)
        large[i] = (char)(i * 7);
    for (int i = 0; i < COUNT; i++) {
        fields_put_string(&bytes, strings[i]);
        fields_put_string(&bytes, strings[COUNT - 1 - i]);
    }
    rest = bytes_slice(&bytes);
    for (int i = 0; i < COUNT; i++) {
        CHECK(fields_next(&rest, &name, &value));
        CHECK(slice_equals(name, strings[i]));
        CHECK(value.kind == VALUE_STRING && slice_equals(value.as.bytes, strings[COUNT - 1 - i]));
    }
    CHECK(!fields_next(&rest, &name, &value));
    bytes_free(&bytes);
    free(large);
}

static void lists_and_maps_nest(void) {
    enum { DEPTH = 1000 };
    size_t places[DEPTH];
    Bytes bytes = {.data = NULL};
    Slice rest;
    Value value;
    for (int i = 0; i < DEPTH; i++) {
        places[i] = fields_begin(&bytes, i % 2 ? VALUE_MAP : VALUE_LIST);
        if (i % 2)
            fields_put_string(&bytes, SLICE("in"));
    }
    fields_put_integer(&bytes, 42);
    for (int i = DEPTH - 1; i >= 0; i--)
        fields_end(&bytes, places[i]);
    fields_end(&bytes, fields_begin(&bytes, VALUE_LIST));
    fields_end(&bytes, fields_begin(&bytes, VALUE_MAP));
    rest = bytes_slice(&bytes);
    CHECK(fields_next_value(&rest, &value));
    for (int i = 0; i < DEPTH; i++) {
        Slice inner = value.as.bytes, name;
        CHECK_EQUAL(value.kind, i % 2 ? VALUE_MAP : VALUE_LIST);
        if (i % 2)
            CHECK(fields_next(&inner, &name, &value) && slice_equals(name, SLICE("in")));
        else
            CHECK(fields_next_value(&inner, &value));
        CHECK_EQUAL(inner.length, 0);
    }
    CHECK(value.kind == VALUE_INTEGER && value.as.integer == 42);
    CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_LIST);
    CHECK_EQUAL(value.as.bytes.length, 0);
    CHECK(fields_next_value(&rest, &value) && value.kind == VALUE_MAP);
    CHECK_EQUAL(value.as.bytes.length, 0);
    CHECK_EQUAL(rest.length, 0);
    bytes_free(&bytes);
}

static void the_first_of_a_name_is_found(void) {
    static const Slice names[] = {{"b", 1},    {"a", 1}, {"", 0},    {"ab", 2},
                                  {"a\0b", 3}, {"a", 1}, {"\xff", 1}};
    enum { COUNT = sizeof names / sizeof *names };
    const Slice absent[] = {{"c", 1}, {"a\0", 2}, {"abc", 3}, {"A", 1}, {"value", 5}};
    Bytes bytes = {.data = NULL};
    Slice none = {NULL, 0};
    Value value;
    CHECK(!fields_find(none, SLICE("a"), &value));
    CHECK(!fields_find(none, none, &value));
    for (int i = 0; i < COUNT; i++)
        put_field(&bytes, names[i], i);
    fields_put_string(&bytes, SLICE("last"));
    fields_put_string(&bytes, SLICE("value")); /* which is no name */
    for (int i = 0; i < COUNT; i++)
        CHECK(fields_find(bytes_slice(&bytes), names[i], &value) &&
              value.as.integer == (i == 5 ? 1 : i));
    CHECK(fields_find(bytes_slice(&bytes), none, &value) && value.as.integer == 2);
    CHECK(fields_find(bytes_slice(&bytes), SLICE("last"), &value) && value.kind == VALUE_STRING);
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        CHECK(!fields_find(bytes_slice(&bytes), absent[i], &value));
    bytes_free(&bytes);
}

/* ---- order --------------------------------------------------------------------------------- */

static int count_fields(Slice rest) {
    Slice name;
    Value value;
    int count = 0;
    while (fields_next(&rest, &name, &value))
        count++;
    return count;
}

/* Checks that they are in order, no name twice, and all read. */
static void check_order(Slice rest) {
    Slice before = {NULL, 0}, name;
    Value value;
    for (bool is_first = true; fields_next(&rest, &name, &value); is_first = false) {
        CHECK(is_first || slice_compare(before, name) < 0);
        before = name;
    }
    CHECK_EQUAL(rest.length, 0);
}

/* Checks that they are the fields from before, of each name the first, in order. */
static void check_sorted(Slice sorted, Slice before) {
    Slice rest = before, name;
    Value value, first, found;
    int names = 0;
    check_order(sorted);
    while (fields_next(&rest, &name, &value)) {
        CHECK(fields_find(before, name, &first));
        names += value.as.integer == first.as.integer; /* they are numbered */
        CHECK(fields_find(sorted, name, &found) && found.as.integer == first.as.integer);
    }
    CHECK_EQUAL(count_fields(sorted), names);
}

typedef enum Pattern { FORWARDS, BACKWARDS, RANDOM, FEW_NAMES, ONE_NAME, PATTERNS } Pattern;

static void put_pattern(Bytes *bytes, Pattern pattern, int count, uint64_t *seed) {
    for (int i = 0; i < count; i++) {
        char name[16];
        unsigned number = pattern == FORWARDS    ? (unsigned)i
                          : pattern == BACKWARDS ? (unsigned)(count - i)
                          : pattern == RANDOM    ? test_random_below(seed, 100000)
                          : pattern == FEW_NAMES ? test_random_below(seed, 7)
                                                 : 0;
        snprintf(name, sizeof name, pattern == RANDOM ? "%u" : "%05u", number);
        put_field(bytes, slice_of(name), i);
    }
}

static const int COUNTS[] = {0, 1, 2, 3, 31, 32, 33, 34, 1000};
enum { COUNTS_COUNT = sizeof COUNTS / sizeof *COUNTS };

static void of_each_name_the_first_stays(void) {
    uint64_t seed = 7;
    for (int i = 0; i < COUNTS_COUNT; i++)
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            size_t start = (size_t)(i + pattern) % 3;
            Bytes bytes = {.data = NULL};
            Slice before;
            bytes_append(&bytes, "zy", start); /* it is left alone */
            put_pattern(&bytes, (Pattern)pattern, COUNTS[i], &seed);
            before = copy_exactly(bytes_slice(&bytes));
            fields_sort(&bytes, start);
            CHECK(!bytes.has_failed);
            CHECK(start == 0 || memcmp(bytes.data, "zy", start) == 0);
            if (COUNTS[i] > 0)
                check_sorted((Slice){bytes.data + start, bytes.length - start},
                             (Slice){before.data + start, before.length - start});
            else
                CHECK_EQUAL(bytes.length, start);
            free_copy(before);
            bytes_free(&bytes);
        }
}

/* The values go with their names. */
static void values_of_all_sizes_are_sorted(void) {
    static char block[3000];
    Bytes bytes = {.data = NULL};
    Slice rest, name;
    Value value;
    memset(block, 'v', sizeof block);
    for (int i = 29; i >= 0; i--) {
        char text[2] = {(char)('A' + i), 0};
        size_t place;
        fields_put_string(&bytes, slice_of(text));
        place = fields_begin(&bytes, VALUE_LIST);
        fields_put_string(&bytes, (Slice){block, (size_t)i * 100});
        fields_put_integer(&bytes, i);
        fields_end(&bytes, place);
    }
    fields_sort(&bytes, 0);
    rest = bytes_slice(&bytes);
    for (int i = 0; i < 30; i++) {
        CHECK(fields_next(&rest, &name, &value));
        CHECK(name.length == 1 && name.data[0] == 'A' + i);
        name = value.as.bytes;
        CHECK(fields_next_value(&name, &value));
        CHECK(slice_equals(value.as.bytes, (Slice){block, (size_t)i * 100}));
        CHECK(fields_next_value(&name, &value) && value.as.integer == i);
    }
    CHECK_EQUAL(rest.length, 0);
    bytes_free(&bytes);
}

static void few_fields_are_sorted_without_memory(void) {
    uint64_t seed = 8;
    for (int is_sorted = 0; is_sorted < 2; is_sorted++) { /* then even more of them */
        Bytes bytes = {.data = NULL};
        int count = is_sorted ? 32 : 20;
        put_pattern(&bytes, is_sorted ? FORWARDS : BACKWARDS, count, &seed);
        faults_begin(1, true);
        fields_sort(&bytes, 0);
        CHECK(!faults_end());
        check_order(bytes_slice(&bytes));
        CHECK_EQUAL(count_fields(bytes_slice(&bytes)), count);
        bytes_free(&bytes);
    }
}

/* Either they are in order, or as they were, which is said. */
static void sorting_without_memory_fails(void) {
    uint64_t seed = 9;
    int failures = 0;
    for (int i = 0; i < COUNTS_COUNT; i++)
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            bool was_due = true;
            Bytes bytes = {.data = NULL};
            if (COUNTS[i] > 100)
                continue; /* it is no different */
            put_pattern(&bytes, (Pattern)pattern, COUNTS[i], &seed);
            for (long n = 1; was_due && n < 20; n++) {
                Slice before = copy_exactly(bytes_slice(&bytes));
                faults_begin(n, true);
                fields_sort(&bytes, 0);
                was_due = faults_end();
                if (bytes.has_failed) {
                    CHECK(was_due);
                    CHECK(slice_equals(before, bytes_slice(&bytes)));
                    bytes.has_failed = false;
                    failures++;
                } else {
                    check_sorted(bytes_slice(&bytes), before);
                    was_due = false;
                }
                free_copy(before);
            }
            bytes_free(&bytes);
        }
    CHECK(failures > 10);
}

static void what_has_failed_is_not_sorted(void) {
    Bytes bytes = {.data = NULL};
    put_field(&bytes, SLICE("b"), 1);
    put_field(&bytes, SLICE("a"), 2);
    bytes.has_failed = true;
    fields_sort(&bytes, 0);
    CHECK(bytes.has_failed);
    CHECK(bytes.data[1 + sizeof(uint32_t)] == 'b');
    bytes_free(&bytes);
}

/* ---- merging ------------------------------------------------------------------------------- */

/* Names of a few letters, in order; with `repeats`, some more than once. */
static void put_names(Bytes *bytes, uint64_t *seed, uint32_t most, int64_t first, bool repeats) {
    uint32_t letter = 0;
    for (uint32_t count = test_random_below(seed, most + 1); count > 0; count--) {
        char name[2];
        letter += test_random_below(seed, 3) + !repeats;
        name[0] = (char)('a' + letter % 26);
        name[1] = (char)('a' + letter / 26);
        if (letter >= 26)
            break;
        put_field(bytes, (Slice){name, 1}, first++);
    }
}

/* The same, letter by letter. */
static void merge_slowly(Bytes *bytes, Slice base, Slice over) {
    for (char letter = 'a'; letter <= 'z'; letter++) {
        Slice wanted = {&letter, 1}, rest, name;
        Value value;
        rest = fields_find(over, wanted, &value) ? over : base;
        while (fields_next(&rest, &name, &value))
            if (slice_equals(name, wanted))
                put_field(bytes, name, value.as.integer);
    }
}

static void merging_agrees_with_a_slow_way(void) {
    uint64_t seed = 11;
    for (int n = 0; n < 5000 && test_failed_checks == 0; n++) {
        Bytes base = {.data = NULL}, over = {.data = NULL}, merged = {.data = NULL},
              wanted = {.data = NULL};
        bool repeats = n % 2 > 0;
        put_names(&base, &seed, n % 3 == 0 ? 0 : 12, 0, repeats);
        put_names(&over, &seed, n % 5 == 0 ? 0 : 12, 100, repeats);
        bytes_append(&merged, "abc", 3); /* what is there stays */
        bytes_append(&wanted, "abc", 3);
        fields_merge(&merged, bytes_slice(&base), bytes_slice(&over));
        merge_slowly(&wanted, bytes_slice(&base), bytes_slice(&over));
        CHECK(slice_equals(bytes_slice(&merged), bytes_slice(&wanted)));
        bytes_free(&base);
        bytes_free(&over);
        bytes_free(&merged);
        bytes_free(&wanted);
    }
}

/* A name that occurs twice below is overridden twice. */
static void a_field_overrides_all_of_its_name(void) {
    Bytes base = {.data = NULL}, over = {.data = NULL}, merged = {.data = NULL};
    put_field(&base, SLICE("a"), 1);
    put_field(&base, SLICE("a"), 2);
    put_field(&over, SLICE("a"), 3);
    fields_merge(&merged, bytes_slice(&base), bytes_slice(&over));
    CHECK(slice_equals(bytes_slice(&merged), bytes_slice(&over)));
    bytes_free(&base);
    bytes_free(&over);
    bytes_free(&merged);
}

static void merging_takes_values_as_they_are(void) {
    static char block[5000];
    Bytes base = {.data = NULL}, over = {.data = NULL}, merged = {.data = NULL};
    Slice rest, name;
    Value value;
    memset(block, 'x', sizeof block);
    fields_put_string(&base, SLICE("a"));
    fields_put_string(&base, (Slice){block, sizeof block});
    fields_put_string(&base, SLICE("c"));
    fields_end(&base, fields_begin(&base, VALUE_MAP));
    fields_put_string(&over, SLICE("b"));
    fields_put_nil(&over);
    fields_put_string(&over, SLICE("c"));
    fields_put_boolean(&over, true);
    fields_merge(&merged, bytes_slice(&base), bytes_slice(&over));
    rest = bytes_slice(&merged);
    CHECK(fields_next(&rest, &name, &value) && value.as.bytes.length == sizeof block);
    CHECK(fields_next(&rest, &name, &value) && value.kind == VALUE_NIL && *name.data == 'b');
    CHECK(fields_next(&rest, &name, &value) && value.kind == VALUE_TRUE && *name.data == 'c');
    CHECK_EQUAL(rest.length, 0);
    bytes_free(&base);
    bytes_free(&over);
    bytes_free(&merged);
}

/* ---- no memory ----------------------------------------------------------------------------- */

static void build(Bytes *bytes) {
    Bytes over = {.data = NULL};
    uint64_t seed = 3;
    for (int i = 0; i < 20; i++) {
        size_t place;
        fields_put_string(bytes, SLICE("list"));
        place = fields_begin(bytes, VALUE_LIST);
        fields_put_nil(bytes);
        fields_put_boolean(bytes, true);
        fields_put_integer(bytes, i);
        fields_put_number(bytes, i / 2.0);
        fields_put_string(bytes, SLICE("a string of some length"));
        fields_end(bytes, place);
        put_random_fields(bytes, &seed, 0);
    }
    put_field(&over, SLICE("name"), 1);
    fields_merge(bytes, bytes_slice(&over), (Slice){NULL, 0});
    bytes->has_failed = bytes->has_failed || over.has_failed;
    bytes_free(&over);
}

/* Every request for memory fails once, alone and with all after it. What was written is what would be
 * there but for lists that have not ended, and can be read. */
static void writing_without_memory_fails(void) {
    Bytes whole = {.data = NULL};
    build(&whole);
    CHECK(!whole.has_failed && whole.length > 1000);
    for (int all = 0; all < 2; all++) {
        bool was_due = true;
        for (long n = 1; was_due && n < 100; n++) {
            Bytes bytes = {.data = NULL};
            Slice rest, name;
            Value value;
            faults_begin(n, all > 0);
            build(&bytes);
            was_due = faults_end();
            CHECK_EQUAL(bytes.has_failed, was_due);
            CHECK(bytes.length <= whole.length);
            CHECK(was_due || slice_equals(bytes_slice(&bytes), bytes_slice(&whole)));
            rest = bytes_slice(&bytes);
            while (fields_next(&rest, &name, &value))
                ;
            bytes_free(&bytes);
        }
        CHECK(!was_due);
    }
    bytes_free(&whole);
}

/* ---- malformed ----------------------------------------------------------------------------- */

static void walk_fields(Slice rest);

/* Reads all of a value. It lies within what it was read from. */
static void walk_value(const Value *value, const char *begin, const char *end) {
    Slice rest = value->as.bytes;
    Value inner;
    if (value->kind < VALUE_STRING)
        return;
    CHECK(rest.data >= begin && rest.data + rest.length <= end);
    if (value->kind == VALUE_MAP)
        walk_fields(rest);
    for (size_t left = rest.length; value->kind == VALUE_LIST && fields_next_value(&rest, &inner);
         left = rest.length) {
        CHECK(rest.length < left); /* so it ends */
        walk_value(&inner, value->as.bytes.data, end);
    }
}

static void walk_fields(Slice rest) {
    const char *begin = rest.data, *end = rest.data + rest.length;
    Slice name;
    Value value;
    for (size_t left = rest.length; fields_next(&rest, &name, &value); left = rest.length) {
        CHECK(rest.length < left);
        CHECK(name.data >= begin && name.data + name.length <= end);
        walk_value(&value, begin, end);
        begin = rest.data;
    }
}

/* How many bytes of it can be read. */
static size_t readable(Slice fields) {
    Slice rest = fields, name;
    Value value;
    size_t length = 0;
    while (fields_next(&rest, &name, &value))
        length = (size_t)(rest.data - fields.data);
    return length;
}

/* Does all there is to be done to fields with some that are malformed, in blocks of just their size. */
static void abuse(Slice from, Slice over) {
    Slice fields = copy_exactly(from);
    size_t length = readable(fields);
    Bytes sorted = {(char *)(uintptr_t)fields.data, fields.length, fields.length, false};
    Bytes merged = {.data = NULL};
    Value value;
    walk_fields(fields);
    fields_find(fields, SLICE("no such name"), &value);
    fields_merge(&merged, fields, over);
    fields_merge(&merged, over, fields);
    CHECK(merged.length <= 2 * (fields.length + over.length));
    walk_fields(bytes_slice(&merged));
    fields_sort(&sorted, 0);
    CHECK(!sorted.has_failed && sorted.length <= fields.length);
    sorted.length = readable(bytes_slice(&sorted));
    CHECK(sorted.length <= length);
    check_order(bytes_slice(&sorted));
    bytes_free(&merged);
    free_copy(fields);
}

static void make_sample(Bytes *bytes, uint64_t seed) {
    put_random_fields(bytes, &seed, 0);
    fields_put_string(bytes, SLICE("string"));
    fields_put_string(bytes, SLICE("value"));
    put_random_fields(bytes, &seed, 1);
    fields_put_string(bytes, SLICE("number"));
    fields_put_number(bytes, 0.5);
    put_field(bytes, SLICE("a"), -1);
}

/* Read to the last field that is whole, and no further. */
static void a_field_that_is_cut_is_none(void) {
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Bytes bytes = {.data = NULL};
        Slice rest, name;
        Value value;
        size_t whole = 0, next = 0; /* where the last field ends, and that which follows */
        make_sample(&bytes, seed);
        rest = bytes_slice(&bytes);
        for (size_t length = 0; length <= bytes.length; length++) {
            Slice cut = {bytes.data, length};
            if (length == next) {
                whole = next;
                fields_next(&rest, &name, &value);
                next = (size_t)(rest.data - bytes.data);
            }
            CHECK_EQUAL(readable(cut), whole);
            abuse(cut, bytes_slice(&bytes));
        }
        CHECK_EQUAL(whole, bytes.length);
        bytes_free(&bytes);
    }
}

static void mutated_fields_are_read_without_harm(void) {
    uint64_t seed = 5;
    for (int n = 0; n < 200; n++) {
        Bytes bytes = {.data = NULL}, over = {.data = NULL};
        make_sample(&bytes, (uint64_t)n + 1);
        make_sample(&over, (uint64_t)n + 1000);
        for (int i = 0; i < 50; i++) {
            Slice mutated = copy_exactly(bytes_slice(&bytes));
            char *data = (char *)(uintptr_t)mutated.data;
            for (uint32_t count = 1 + test_random_below(&seed, 8); count > 0; count--) {
                uint32_t at = test_random_below(&seed, (uint32_t)mutated.length);
                switch (test_random_below(&seed, 3)) {
                case 0:
                    data[at] = (char)test_random(&seed);
                    break;
                case 1:
                    data[at] = (char)test_random_below(&seed, VALUE_MAP + 2);
                    break;
                default:
                    data[at] = (char)(data[at] ^ 1 << test_random_below(&seed, 8));
                }
            }
            abuse(mutated, bytes_slice(&over));
            free_copy(mutated);
        }
        bytes_free(&bytes);
        bytes_free(&over);
    }
}

static void noise_is_read_without_harm(void) {
    uint64_t seed = 6;
    for (int n = 0; n < 5000; n++) {
        char noise[200];
        uint32_t length = test_random_below(&seed, sizeof noise);
        for (uint32_t i = 0; i < length; i++)
            noise[i] = (char)test_random_below(&seed, n % 2 ? 256 : VALUE_MAP + 1);
        abuse((Slice){noise, length}, (Slice){noise, length / 2});
    }
}

static void malformed_values_are_the_end(void) {
    static const Slice malformed[] = {
        {"\x08", 1},                         /* no such kind */
        {"\xff", 1},                         /* nor this */
        {"\x03\0\0\0\0\0\0\0", 8},           /* an integer of 7 bytes */
        {"\x04\0\0\0\0\0\0\0", 8},           /* a float */
        {"\x05\0\0\0", 4},                   /* a length of 3 */
        {"\x05\xff\xff\xff\xff\0\0\0\0", 9}, /* longer than what there is */
        {"\x06\x01\0\0\0", 5},
        {"\x07\0\0\0\x80zzz", 8},
    };
    static const Slice no_names[] = {{"\0\0", 2}, {"\1\1", 2}, {"\6\0\0\0\0\0", 6}};
    Slice name;
    Value value;
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        Slice copy = copy_exactly(malformed[i]), rest = copy;
        CHECK(!fields_next_value(&rest, &value));
        rest = copy;
        CHECK(!fields_next(&rest, &name, &value));
        free_copy(copy);
    }
    for (size_t i = 0; i < sizeof no_names / sizeof *no_names; i++) {
        Slice rest = no_names[i];
        CHECK(!fields_next(&rest, &name, &value));
    }
}

static const Test tests[] = {
    {"numbers come back", numbers_come_back},
    {"strings come back", strings_come_back},
    {"lists and maps nest", lists_and_maps_nest},
    {"random fields come back", random_fields_come_back},
    {"the first of a name is found", the_first_of_a_name_is_found},
    {"of each name the first stays", of_each_name_the_first_stays},
    {"values of all sizes are sorted", values_of_all_sizes_are_sorted},
    {"few fields are sorted without memory", few_fields_are_sorted_without_memory},
    {"sorting without memory fails", sorting_without_memory_fails},
    {"what has failed is not sorted", what_has_failed_is_not_sorted},
    {"merging agrees with a slow way", merging_agrees_with_a_slow_way},
    {"a field overrides all of its name", a_field_overrides_all_of_its_name},
    {"merging takes values as they are", merging_takes_values_as_they_are},
    {"writing without memory fails", writing_without_memory_fails},
    {"a field that is cut is none", a_field_that_is_cut_is_none},
    {"mutated fields are read without harm", mutated_fields_are_read_without_harm},
    {"noise is read without harm", noise_is_read_without_harm},
    {"malformed values are the end", malformed_values_are_the_end},
    {NULL, NULL},
};

int main(void) {
    return test_main("fields_test", tests);
}
