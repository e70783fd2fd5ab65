#include "bytes.h"

#include "faults.h"
#include "test.h"

static bool holds(const Bytes *bytes, const void *wanted, size_t length) {
    return slice_equals(bytes_slice(bytes), (Slice){wanted, length});
}

static void an_empty_buffer(void) {
    Bytes bytes = {.data = NULL};
    faults_begin(1, true); /* nothing is allocated for nothing */
    bytes_append(&bytes, NULL, 0);
    bytes_append_slice(&bytes, (Slice){NULL, 0});
    CHECK(bytes_reserve(&bytes, 0));
    bytes_clear(&bytes, 0);
    CHECK(!faults_end());
    CHECK(bytes.data == NULL && bytes.length == 0 && bytes.capacity == 0 && !bytes.has_failed);
    CHECK(slice_equals(bytes_slice(&bytes), SLICE("")));
    bytes_free(&bytes);
    bytes_free(&bytes);
}

static void pieces_stand_one_after_the_other(void) {
    enum { SIZE = 100000 };
    static char wanted[SIZE];
    Bytes bytes = {.data = NULL};
    uint64_t seed = 1;
    size_t length = 0;
    while (length < SIZE) {
        size_t piece = test_random_below(&seed, test_random_below(&seed, 8) == 0 ? 3000 : 10);
        if (piece > SIZE - length)
            piece = SIZE - length;
        for (size_t i = 0; i < piece; i++)
            wanted[length + i] = (char)test_random(&seed);
        if (piece == 1)
            bytes_put(&bytes, wanted[length]);
        else
            bytes_append(&bytes, wanted + length, piece);
        length += piece;
        CHECK(bytes.length == length && bytes.length <= bytes.capacity);
    }
    CHECK(!bytes.has_failed && holds(&bytes, wanted, SIZE));
    bytes_free(&bytes);
}

static void it_grows_in_few_steps(void) {
    Bytes bytes = {.data = NULL};
    faults_begin(1000, true);
    for (int i = 0; i < 1000000; i++)
        bytes_put(&bytes, (char)i);
    CHECK(!faults_end());
    CHECK(faults_memory.requests <= 20);
    CHECK_EQUAL(bytes.length, 1000000);
    bytes_free(&bytes);
}

static void what_is_reserved_needs_no_memory_later(void) {
    Bytes bytes = {.data = NULL};
    char block[1000] = {0};
    CHECK(bytes_reserve(&bytes, sizeof block + 2));
    CHECK_EQUAL(bytes.length, 0);
    faults_begin(1, true);
    CHECK(bytes_reserve(&bytes, 5));
    bytes_append(&bytes, block, sizeof block);
    bytes_put(&bytes, 'a');
    bytes_put(&bytes, 'b');
    CHECK(!faults_end());
    CHECK_EQUAL(bytes.length, sizeof block + 2);
    CHECK(!bytes.has_failed);
    bytes_free(&bytes);
}

/* The n-th request for memory fails, for each n: what was there stays, and nothing comes after it, be
 * there room for it or not. */
static void after_a_failure_all_is_dropped(void) {
    bool was_due = true;
    for (long n = 1; was_due && n < 100; n++) {
        Bytes bytes = {.data = NULL};
        char block[300];
        size_t kept = 0;
        memset(block, 'x', sizeof block);
        faults_begin(n, false);
        for (size_t i = 1; i < sizeof block && !bytes.has_failed; i++) {
            kept = bytes.length;
            bytes_append(&bytes, block, i);
        }
        was_due = faults_end();
        CHECK_EQUAL(bytes.has_failed, was_due);
        if (was_due) {
            CHECK_EQUAL(bytes.length, kept);
            CHECK(!bytes_reserve(&bytes, 0));
            CHECK(!bytes_reserve(&bytes, 1));
            bytes_put(&bytes, 'y');
            bytes_append(&bytes, "y", 1);
            bytes_append_slice(&bytes, SLICE("yyy"));
            CHECK_EQUAL(bytes.length, kept);
            for (size_t i = 0; i < bytes.length; i++)
                CHECK(bytes.data[i] == 'x');
            bytes_clear(&bytes, SIZE_MAX); /* as good as new */
            bytes_append(&bytes, "z", 1);
            CHECK(!bytes.has_failed && holds(&bytes, "z", 1));
        }
        bytes_free(&bytes);
    }
    CHECK(!was_due);
}

static void a_size_that_overflows_fails(void) {
    Bytes bytes = {.data = NULL};
    bytes_append(&bytes, "ab", 2);
    faults_begin(1, true);
    CHECK(!bytes_reserve(&bytes, SIZE_MAX));
    CHECK(!faults_end()); /* nobody was asked */
    CHECK(bytes.has_failed && holds(&bytes, "ab", 2));
    bytes_clear(&bytes, SIZE_MAX);
    bytes_append(&bytes, "ab", 2);
    CHECK(!bytes_reserve(&bytes, SIZE_MAX - 1));
    CHECK(bytes.has_failed && holds(&bytes, "ab", 2));
    bytes_free(&bytes);
}

static void cleared_it_keeps_so_much_memory(void) {
    Bytes bytes = {.data = NULL};
    const char *data;
    size_t capacity;
    bytes_append(&bytes, "abc", 3);
    data = bytes.data;
    capacity = bytes.capacity;
    bytes_clear(&bytes, capacity);
    CHECK(bytes.data == data && bytes.length == 0 && bytes.capacity == capacity);
    bytes_append(&bytes, "d", 1);
    CHECK(holds(&bytes, "d", 1));
    bytes_clear(&bytes, capacity - 1);
    CHECK(bytes.data == NULL && bytes.length == 0 && bytes.capacity == 0);
}

static int sign(int number) {
    return (number > 0) - (number < 0);
}

static void slices_are_in_the_order_of_their_bytes(void) {
    static const Slice in_order[] = {
        {"", 0},     {"\0", 1},   {"\0\0", 2},     {"\0a", 2},  {"A", 1},      {"a", 1},
        {"a\0", 2},  {"a\0b", 3}, {"aa", 2},       {"ab", 2},   {"abc", 3},    {"b", 1},
        {"\x7f", 1}, {"\x80", 1}, {"\xc3\xa4", 2}, {"\xff", 1}, {"\xff\0", 2}, {"\xff\xff", 2}};
    enum { COUNT = sizeof in_order / sizeof *in_order };
    const Slice none = {NULL, 0};
    for (int i = 0; i < COUNT; i++) {
        for (int j = 0; j < COUNT; j++) {
            CHECK_EQUAL(sign(slice_compare(in_order[i], in_order[j])), sign(i - j));
            CHECK_EQUAL(slice_equals(in_order[i], in_order[j]), i == j);
        }
        CHECK_EQUAL(slice_equals(none, in_order[i]), i == 0);
        CHECK_EQUAL(sign(slice_compare(none, in_order[i])), -(i > 0));
        CHECK_EQUAL(sign(slice_compare(in_order[i], none)), i > 0);
    }
    CHECK(slice_equals(none, none) && slice_compare(none, none) == 0);
    CHECK(SLICE("abc").length == 3 && SLICE("").length == 0);
}

static const Test tests[] = {
    {"an empty buffer", an_empty_buffer},
    {"pieces stand one after the other", pieces_stand_one_after_the_other},
    {"it grows in few steps", it_grows_in_few_steps},
    {"what is reserved needs no memory later", what_is_reserved_needs_no_memory_later},
    {"after a failure all is dropped", after_a_failure_all_is_dropped},
    {"a size that overflows fails", a_size_that_overflows_fails},
    {"cleared it keeps so much memory", cleared_it_keeps_so_much_memory},
    {"slices are in the order of their bytes", slices_are_in_the_order_of_their_bytes},
    {NULL, NULL},
};

int main(void) {
    return test_main("bytes_test", tests);
}
