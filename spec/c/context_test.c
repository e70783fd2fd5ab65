#include "context.h"

#include "faults.h"
#include "slices.h"
#include "test.h"

/* ---- what every test needs ----------------------------------------------------------------- */

enum { SPARES = 64, KEPT = 1024 }; /* as many are kept for reuse at most, and so much of each */

static void put_text(Bytes *bytes, const char *name, const char *value) {
    fields_put_string(bytes, slice_of(name));
    fields_put_string(bytes, slice_of(value));
}

static Context *make(Contexts *contexts, const char *name, const char *value) {
    Bytes fields = {.data = NULL};
    Context *context;
    put_text(&fields, name, value);
    context = context_make(contexts, &fields);
    CHECK(context != NULL && fields.data == NULL);
    return context;
}

static bool has(Slice fields, const char *name, const char *value) {
    Value found;
    return fields_find(fields, slice_of(name), &found) && found.kind == VALUE_STRING &&
           slice_equals(found.as.bytes, slice_of(value));
}

static int count_fields(Slice rest) {
    Slice name;
    Value value;
    int count = 0;
    while (fields_next(&rest, &name, &value))
        count++;
    return count;
}

static bool has_id(Slice fields, uint64_t id) {
    char digits[CONTEXT_ID_LENGTH + 1] = "";
    context_write_id(id, digits);
    return has(fields, "correlation_id", digits);
}

/* ---- one context --------------------------------------------------------------------------- */

static void a_context_takes_its_fields(void) {
    Contexts contexts = {.outside = NULL};
    Bytes fields = {.data = NULL};
    const char *data;
    Context *context;
    put_text(&fields, "a", "1");
    put_text(&fields, "b", "2");
    data = fields.data;
    context = context_make(&contexts, &fields);
    CHECK(fields.data == NULL && fields.length == 0 && fields.capacity == 0);
    CHECK(context_fields(context).data == data);
    CHECK_EQUAL(context->references, 1);
    CHECK(context->base == NULL && !context->has_id && !context->is_correlated);
    CHECK_EQUAL(context->generation, 0);
    CHECK(has(context_fields(context), "a", "1") && has(context_fields(context), "b", "2"));
    context_release(&contexts, context);
    contexts_destroy(&contexts);
}

static void a_context_without_fields(void) {
    Contexts contexts = {.outside = NULL};
    Bytes fields = {.data = NULL};
    Context *context = context_make(&contexts, &fields);
    CHECK(context != NULL);
    CHECK_EQUAL(context_fields(context).length, 0);
    CHECK_EQUAL(context_fields(NULL).length, 0);
    CHECK(context_keep(NULL) == NULL);
    context_release(&contexts, NULL);
    context_release(&contexts, context);
    contexts_destroy(&contexts);
}

static void a_field_of_that_name_correlates(void) {
    Contexts contexts = {.outside = NULL};
    Context *with = make(&contexts, "correlation_id", "from a request");
    Context *without = make(&contexts, "correlation_id2", "x");
    CHECK(with->is_correlated && !with->has_id);
    CHECK(!without->is_correlated);
    context_release(&contexts, with);
    with = make(&contexts, "a", "b"); /* in the same memory */
    CHECK(!with->is_correlated);
    context_release(&contexts, with);
    context_release(&contexts, without);
    contexts_destroy(&contexts);
}

static void it_lives_as_long_as_there_are_references(void) {
    Contexts contexts = {.outside = NULL};
    Context *context = make(&contexts, "a", "1");
    for (int i = 0; i < 1000; i++)
        CHECK(context_keep(context) == context);
    CHECK_EQUAL(context->references, 1001);
    for (int i = 0; i < 1000; i++)
        context_release(&contexts, context);
    CHECK_EQUAL(context->references, 1);
    CHECK_EQUAL(contexts.spare_count, 0);
    CHECK(has(context_fields(context), "a", "1"));
    context_release(&contexts, context);
    CHECK_EQUAL(contexts.spare_count, 1);
    contexts_destroy(&contexts);
}

static void serials_are_unlike(void) {
    Contexts contexts = {.outside = NULL};
    Context *held[100] = {NULL};
    uint64_t seed = 1, last = 0;
    for (int n = 0; n < 10000; n++) {
        uint32_t i = test_random_below(&seed, 100);
        Bytes fields = {.data = NULL};
        context_release(&contexts, held[i]);
        held[i] = n % 2 ? context_make(&contexts, &fields)
                        : context_make_execution(&contexts, held[(i + 1) % 100]);
        CHECK(held[i]->serial > last);
        last = held[i]->serial;
    }
    for (int i = 0; i < 100; i++)
        context_release(&contexts, held[i]);
    contexts_destroy(&contexts);
}

/* ---- spares -------------------------------------------------------------------------------- */

static void freed_ones_are_used_again(void) {
    Contexts contexts = {.outside = NULL};
    Context *context = make(&contexts, "a", "1"), *base = make(&contexts, "b", "2"), *again;
    bytes_append(&context->shown, "shown", 5);
    context->generation = 7;
    context_release(&contexts, context);
    CHECK_EQUAL(contexts.spare_count, 1);
    faults_begin(1, true); /* none is needed */
    again = context_make_execution(&contexts, base);
    CHECK(!faults_end());
    CHECK(again == context);
    CHECK_EQUAL(contexts.spare_count, 0);
    CHECK_EQUAL(again->references, 1);
    CHECK_EQUAL(again->generation, 0);
    CHECK_EQUAL(again->shown.length, 0);
    CHECK_EQUAL(again->fields.length, 0);
    CHECK_EQUAL(count_fields(context_fields(again)), 2);
    CHECK(has(context_fields(again), "b", "2") && has_id(context_fields(again), again->id));
    context_release(&contexts, again);
    again = make(&contexts, "c", "3"); /* it is an execution no more */
    CHECK(again == context);
    CHECK(!again->has_id && !again->is_correlated && again->base == NULL);
    CHECK_EQUAL(count_fields(context_fields(again)), 1);
    context_release(&contexts, again);
    context_release(&contexts, base);
    contexts_destroy(&contexts);
}

static void not_all_are_kept(void) {
    enum { MANY = 3 * SPARES };
    Contexts contexts = {.outside = NULL};
    Context *held[MANY];
    int count = 0;
    for (int i = 0; i < MANY; i++)
        held[i] = make(&contexts, "a", "1");
    for (int i = 0; i < MANY; i++)
        context_release(&contexts, held[i]);
    CHECK_EQUAL(contexts.spare_count, SPARES);
    for (Context *spare = contexts.spare; spare != NULL; spare = spare->base)
        count++;
    CHECK_EQUAL(count, SPARES);
    for (int i = 0; i < MANY; i++)
        held[i] = make(&contexts, "a", "1");
    CHECK_EQUAL(contexts.spare_count, 0);
    CHECK(contexts.spare == NULL);
    for (int i = 0; i < MANY; i++)
        context_release(&contexts, held[i]);
    contexts_destroy(&contexts);
    CHECK_EQUAL(contexts.spare_count, 0);
    CHECK(contexts.spare == NULL);
}

static void of_large_ones_the_memory_is_not_kept(void) {
    Contexts contexts = {.outside = NULL};
    for (int large = 0; large < 2; large++) {
        Bytes fields = {.data = NULL};
        Context *context;
        char text[2 * KEPT] = {0};
        memset(text, 'x', large ? sizeof text - 1 : 10);
        put_text(&fields, "a", text);
        context = context_make(&contexts, &fields);
        bytes_append_slice(&context->shown, slice_of(text));
        context_release(&contexts, context);
        CHECK(contexts.spare == context);
        CHECK_EQUAL(context->fields.data != NULL, !large);
        CHECK_EQUAL(context->shown.data != NULL, !large);
        CHECK(context->fields.capacity <= KEPT && context->shown.capacity <= KEPT);
    }
    contexts_destroy(&contexts);
}

/* ---- executions ---------------------------------------------------------------------------- */

static void an_execution_adds_an_id(void) {
    Contexts contexts = {.outside = NULL};
    Context *base = make(&contexts, "service", "api");
    Context *execution = context_make_execution(&contexts, base);
    Slice fields;
    CHECK(execution->has_id && execution->is_correlated);
    CHECK(execution->base == base);
    CHECK_EQUAL(base->references, 2);
    CHECK_EQUAL(execution->fields.length, 0); /* made when they are asked for */
    fields = context_fields(execution);
    CHECK_EQUAL(count_fields(fields), 2);
    CHECK(has(fields, "service", "api") && has_id(fields, execution->id));
    faults_begin(1, true); /* made only once */
    CHECK(context_fields(execution).data == fields.data);
    CHECK(!faults_end());
    CHECK_EQUAL(count_fields(context_fields(base)), 1); /* which never changes */
    context_release(&contexts, base);
    CHECK(has(context_fields(execution), "service", "api"));
    context_release(&contexts, execution);
    CHECK_EQUAL(contexts.spare_count, 2);
    contexts_destroy(&contexts);
}

static void an_execution_of_nothing(void) {
    Contexts contexts = {.outside = NULL};
    Context *execution = context_make_execution(&contexts, NULL);
    CHECK(execution->base == NULL);
    CHECK_EQUAL(count_fields(context_fields(execution)), 1);
    CHECK(has_id(context_fields(execution), execution->id));
    context_release(&contexts, execution);
    contexts_destroy(&contexts);
}

/* Its id takes the place of one that is there; and the fields stay in order. */
static void an_id_overrides(void) {
    static const char *const names[] = {"a", "correlation_i", "correlation_id", "correlation_id0",
                                        "z"};
    Contexts contexts = {.outside = NULL};
    Bytes fields = {.data = NULL};
    Context *base, *execution;
    Slice rest, name;
    Value value;
    for (int i = 0; i < 5; i++)
        put_text(&fields, names[i], "old");
    base = context_make(&contexts, &fields);
    execution = context_make_execution(&contexts, base);
    rest = context_fields(execution);
    for (int i = 0; i < 5; i++) {
        CHECK(fields_next(&rest, &name, &value));
        CHECK(slice_equals(name, slice_of(names[i])));
        CHECK_EQUAL(slice_equals(value.as.bytes, SLICE("old")), i != 2);
    }
    CHECK_EQUAL(rest.length, 0);
    CHECK(has_id(context_fields(execution), execution->id));
    context_release(&contexts, base);
    context_release(&contexts, execution);
    contexts_destroy(&contexts);
}

static void a_chain_has_the_last_id(void) {
    enum { LENGTH = 1000 };
    Contexts contexts = {.outside = NULL};
    Context *first = make(&contexts, "a", "1"), *last = first;
    for (int i = 0; i < LENGTH; i++) {
        Context *next = context_make_execution(&contexts, last);
        context_release(&contexts, last); /* only the next one has it */
        last = next;
    }
    CHECK_EQUAL(first->references, 1);
    CHECK_EQUAL(count_fields(context_fields(last)), 2);
    CHECK(has(context_fields(last), "a", "1") && has_id(context_fields(last), last->id));
    for (Context *context = last; context != first; context = context->base) {
        CHECK_EQUAL(count_fields(context_fields(context)), 2);
        CHECK(has_id(context_fields(context), context->id));
    }
    context_release(&contexts, last); /* and so all */
    CHECK_EQUAL(contexts.spare_count, SPARES);
    contexts_destroy(&contexts);
}

static void a_long_chain_is_released(void) {
    Contexts contexts = {.outside = NULL};
    Context *last = NULL;
    for (int i = 0; i < 100000; i++) {
        Context *next = context_make_execution(&contexts, last);
        context_release(&contexts, last);
        last = next;
    }
    context_release(&contexts, last);
    contexts_destroy(&contexts);
}

static void ids_are_hexadecimal(void) {
    static const struct {
        uint64_t id;
        const char *text;
    } ids[] = {{0, "0000000000000000"},
               {1, "0000000000000001"},
               {UINT64_MAX, "ffffffffffffffff"},
               {0x0123456789abcdef, "0123456789abcdef"},
               {0xfedcba9876543210, "fedcba9876543210"}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        char text[CONTEXT_ID_LENGTH + 2];
        memset(text, '!', sizeof text);
        context_write_id(ids[i].id, text);
        CHECK(memcmp(text, ids[i].text, CONTEXT_ID_LENGTH) == 0);
        CHECK(text[CONTEXT_ID_LENGTH] == '!'); /* no more than that */
    }
}

static int compare_ids(const void *a, const void *b) {
    uint64_t left, right;
    memcpy(&left, a, sizeof left);
    memcpy(&right, b, sizeof right);
    return (left > right) - (left < right);
}

/* Those of one seed, and of another one nearby, are all unlike; and neighbours have about half of their
 * bits in common. */
static void ids_are_unlike(void) {
    enum { COUNT = 1000000 };
    Contexts contexts = {.outside = NULL};
    uint64_t *ids = malloc(COUNT * sizeof *ids);
    int64_t bits = 0;
    bool is_unlike = true;
    contexts_seed(&contexts, 42);
    for (int i = 0; i < COUNT; i++) {
        Context *execution;
        if (i == COUNT / 2)
            contexts_seed(&contexts, 43);
        execution = context_make_execution(&contexts, NULL);
        ids[i] = execution->id;
        context_release(&contexts, execution);
    }
    for (int i = 1; i < COUNT; i++) {
        int differ = __builtin_popcountll(ids[i] ^ ids[i - 1]);
        bits += differ;
        is_unlike = is_unlike && differ >= 4;
    }
    CHECK(is_unlike);
    CHECK(bits > 31LL * COUNT && bits < 33LL * COUNT);
    qsort(ids, COUNT, sizeof *ids, compare_ids);
    for (int i = 1; i < COUNT; i++)
        is_unlike = is_unlike && ids[i] != ids[i - 1];
    CHECK(is_unlike);
    free(ids);
    contexts_destroy(&contexts);
}

static void the_same_seed_gives_the_same_ids(void) {
    uint64_t ids[2][100];
    for (int way = 0; way < 2; way++) {
        Contexts contexts = {.outside = NULL};
        contexts_seed(&contexts, 7);
        for (int i = 0; i < 100; i++) {
            Context *execution = context_make_execution(&contexts, NULL);
            ids[way][i] = execution->id;
            context_release(&contexts, execution);
        }
        contexts_destroy(&contexts);
    }
    CHECK(memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
}

/* As whoever else has written splitmix64 has them. */
static void ids_are_those_of_the_generator(void) {
    static const uint64_t wanted[] = {6457827717110365317u, 3203168211198807973u,
                                      9817491932198370423u, 4593380528125082431u};
    Contexts contexts = {.outside = NULL};
    contexts_seed(&contexts, 1234567);
    for (int i = 0; i < 4; i++) {
        Context *execution = context_make_execution(&contexts, NULL);
        CHECK(execution->id == wanted[i]);
        context_release(&contexts, execution);
    }
    contexts_destroy(&contexts);
}

/* ---- shortening ---------------------------------------------------------------------------- */

static void what_is_short_enough_is_left_as_it_is(void) {
    Bytes fields = {.data = NULL}, shorter = {.data = NULL};
    put_text(&fields, "a", "1");
    put_text(&fields, "correlation_id", "2");
    put_text(&fields, "z", "3");
    bytes_append(&shorter, "abc", 3); /* what is there stays, and does not count */
    context_shorten(&shorter, bytes_slice(&fields), fields.length);
    CHECK_EQUAL(shorter.length, 3 + fields.length);
    CHECK(memcmp(shorter.data, "abc", 3) == 0);
    CHECK(memcmp(shorter.data + 3, fields.data, fields.length) == 0);
    bytes_clear(&shorter, 0);
    context_shorten(&shorter, (Slice){NULL, 0}, 100);
    CHECK_EQUAL(shorter.length, 0);
    bytes_free(&fields);
    bytes_free(&shorter);
}

/* Fields of all sizes into as many bytes as there may be: never more; short ones before long ones;
 * the id always; those that are left in their order and as they were. */
static void fields_are_shortened(void) {
    enum { LARGEST = 3000 };
    static char text[LARGEST + 1];
    uint64_t seed = 3;
    int notices = 0, dropped = 0;
    for (int n = 0; n < 3000 && test_failed_checks == 0; n++) {
        Bytes fields = {.data = NULL}, shorter = {.data = NULL};
        uint32_t max = test_random_below(&seed, 6000), count = test_random_below(&seed, 20);
        bool has_an_id = n % 2 > 0;
        size_t id_length = has_an_id ? 5 + 14 + 5 + 2 : 0;
        Slice rest, name;
        Value value, before;
        for (uint32_t i = 0; i < count; i++) {
            char key[8];
            snprintf(key, sizeof key, "%c%u", i < count / 2 ? 'a' : 'd', 100 + i);
            if (has_an_id && i == count / 2)
                put_text(&fields, "correlation_id", "me");
            memset(text, 'x', LARGEST);
            text[test_random_below(&seed, i % 3 ? LARGEST : 100)] = '\0';
            put_text(&fields, key, text);
        }
        context_shorten(&shorter, bytes_slice(&fields), max);
        CHECK(!shorter.has_failed);
        CHECK(shorter.length <= max + id_length);
        CHECK(!has_an_id || count == 0 || has(bytes_slice(&shorter), "correlation_id", "me"));
        rest = bytes_slice(&shorter);
        for (Slice last = {NULL, 0}; fields_next(&rest, &name, &value); last = name) {
            CHECK(slice_compare(last, name) < 0);
            CHECK(fields_find(bytes_slice(&fields), name, &before));
            if (slice_equals(value.as.bytes, before.as.bytes))
                continue;
            CHECK(slice_equals(value.as.bytes, SLICE("(too long to be sent)")));
            notices++;
        }
        CHECK_EQUAL(rest.length, 0);
        dropped += count_fields(bytes_slice(&shorter)) < count_fields(bytes_slice(&fields));
        if (fields.length <= max / 2)
            CHECK(slice_equals(bytes_slice(&fields), bytes_slice(&shorter)));
        bytes_free(&fields);
        bytes_free(&shorter);
    }
    CHECK(notices > 1000 && dropped > 100);
}

static void a_long_field_leaves_room_for_others(void) {
    static char text[1000];
    Bytes fields = {.data = NULL}, shorter = {.data = NULL};
    memset(text, 'x', sizeof text - 1);
    put_text(&fields, "a", "1");
    put_text(&fields, "b", text);
    put_text(&fields, "c", "3");
    context_shorten(&shorter, bytes_slice(&fields), 1000);
    CHECK_EQUAL(count_fields(bytes_slice(&shorter)), 3);
    CHECK(has(bytes_slice(&shorter), "a", "1") && has(bytes_slice(&shorter), "c", "3"));
    CHECK(has(bytes_slice(&shorter), "b", "(too long to be sent)"));
    bytes_clear(&shorter, 0);
    context_shorten(&shorter, bytes_slice(&fields), 2100); /* half of that is enough */
    CHECK(slice_equals(bytes_slice(&shorter), bytes_slice(&fields)));
    bytes_free(&fields);
    bytes_free(&shorter);
}

static void without_memory_nothing_is_shortened(void) {
    static char text[300];
    Bytes fields = {.data = NULL};
    bool was_due = true;
    memset(text, 'x', sizeof text - 1);
    for (int i = 0; i < 10; i++)
        put_text(&fields, "a", i % 2 ? text : "1");
    for (long n = 1; was_due && n < 50; n++) {
        Bytes shorter = {.data = NULL};
        faults_begin(n, false);
        context_shorten(&shorter, bytes_slice(&fields), 900);
        was_due = faults_end();
        CHECK_EQUAL(shorter.has_failed, was_due);
        bytes_free(&shorter);
    }
    CHECK(!was_due);
    bytes_free(&fields);
}

/* ---- the table ----------------------------------------------------------------------------- */

static void no_table_without_contexts(void) {
    Contexts contexts = {.outside = NULL};
    faults_begin(1, true);
    CHECK(contexts_get(&contexts, 0) == NULL && contexts_get(&contexts, 1) == NULL);
    CHECK(contexts_get(&contexts, UINT32_MAX) == NULL);
    CHECK(contexts_place(&contexts, 0) == &contexts.outside); /* is not in it */
    contexts_drop(&contexts, 0);
    contexts_drop(&contexts, 1);
    contexts_clear(&contexts);
    CHECK(!faults_end());
    CHECK(contexts.of_task == NULL);
    CHECK(!contexts_are_used(&contexts));
    context_set(&contexts, &contexts.outside, make(&contexts, "a", "1"));
    CHECK(contexts_are_used(&contexts));
    contexts_clear(&contexts);
    CHECK(!contexts_are_used(&contexts));
    CHECK(contexts_place(&contexts, 1) != NULL);
    CHECK(contexts_are_used(&contexts));
    contexts_destroy(&contexts);
    CHECK(!contexts_are_used(&contexts));
}

/* Each task finds what it has put there, while the table grows. */
static void places_stay_while_the_table_grows(void) {
    enum { TASKS = 5000 };
    static Context *held[TASKS + 1];
    Contexts contexts = {.outside = NULL};
    int steps = 0;
    for (uint32_t task = 0; task <= TASKS; task++) {
        uint32_t capacity = contexts.capacity;
        Context **place = contexts_place(&contexts, task);
        CHECK(*place == NULL);
        held[task] = make(&contexts, "a", "1");
        *place = context_keep(held[task]);
        CHECK(contexts_place(&contexts, task) == place);
        steps += contexts.capacity != capacity;
    }
    CHECK(steps < 12);
    for (uint32_t task = 0; task <= TASKS; task++)
        CHECK(contexts_get(&contexts, task) == held[task]);
    CHECK(contexts_get(&contexts, contexts.capacity) == NULL);
    for (uint32_t task = 1; task <= TASKS; task += 2) {
        contexts_drop(&contexts, task);
        contexts_drop(&contexts, task); /* it had none any more */
        CHECK(contexts_get(&contexts, task) == NULL);
        CHECK_EQUAL(held[task]->references, 1);
    }
    contexts_drop(&contexts, 0); /* that is no task */
    CHECK(contexts_get(&contexts, 0) == held[0]);
    contexts_forget(&contexts, 2);
    CHECK(contexts_get(&contexts, 2) == NULL);
    contexts_clear(&contexts);
    for (uint32_t task = 0; task <= TASKS; task++) {
        CHECK_EQUAL(held[task]->references, 1);
        context_release(&contexts, held[task]);
    }
    contexts_destroy(&contexts);
}

static void a_table_grows_to_what_is_asked_for(void) {
    static const uint32_t tasks[] = {1, 15, 16, 17, 1000, 100000};
    Contexts contexts = {.outside = NULL};
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) {
        Context **place = contexts_place(&contexts, tasks[i]);
        CHECK(place == &contexts.of_task[tasks[i]]);
        CHECK(contexts.capacity > tasks[i]);
        for (uint32_t task = 0; task < contexts.capacity; task++)
            CHECK(contexts.of_task[task] == NULL);
    }
    contexts_clear(&contexts);
    CHECK(contexts.of_task == NULL && contexts.capacity == 0);
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) { /* each at first */
        CHECK(contexts_place(&contexts, tasks[i]) == &contexts.of_task[tasks[i]]);
        CHECK(*contexts_place(&contexts, tasks[i]) == NULL);
        contexts_clear(&contexts);
    }
    contexts_destroy(&contexts);
}

static void a_context_may_stand_at_many_places(void) {
    Contexts contexts = {.outside = NULL};
    Context *context = make(&contexts, "a", "1"), *other = make(&contexts, "b", "2");
    for (uint32_t task = 0; task < 100; task++)
        context_set(&contexts, contexts_place(&contexts, task), context_keep(context));
    CHECK_EQUAL(context->references, 101);
    context_set(&contexts, contexts_place(&contexts, 5), context_keep(context)); /* itself */
    CHECK_EQUAL(context->references, 101);
    for (uint32_t task = 0; task < 100; task += 2)
        context_set(&contexts, contexts_place(&contexts, task), context_keep(other));
    CHECK_EQUAL(context->references, 51);
    CHECK_EQUAL(other->references, 51);
    context_set(&contexts, contexts_place(&contexts, 0), NULL);
    CHECK(contexts_get(&contexts, 0) == NULL);
    CHECK_EQUAL(other->references, 50);
    contexts_clear(&contexts);
    CHECK_EQUAL(context->references, 1);
    CHECK_EQUAL(other->references, 1);
    context_release(&contexts, context);
    context_release(&contexts, other);
    contexts_destroy(&contexts);
}

static void cleared_it_can_be_used_again(void) {
    Contexts contexts = {.outside = NULL};
    for (int round = 0; round < 3; round++) {
        Context *held = make(&contexts, "a", "1");
        context_set(&contexts, contexts_place(&contexts, 0), make(&contexts, "b", "2"));
        context_set(&contexts, contexts_place(&contexts, 9), context_keep(held));
        context_set(&contexts, contexts_place(&contexts, 40),
                    context_make_execution(&contexts, held));
        contexts_clear(&contexts);
        CHECK(contexts.outside == NULL && contexts.of_task == NULL);
        CHECK(contexts_get(&contexts, 0) == NULL && contexts_get(&contexts, 9) == NULL);
        CHECK_EQUAL(held->references, 1); /* others hold it */
        CHECK(has(context_fields(held), "a", "1"));
        context_release(&contexts, held);
    }
    contexts_destroy(&contexts);
}

/* After the end each is freed with its last reference, and none kept. */
static void references_outlive_the_table(void) {
    Contexts contexts = {.outside = NULL};
    Context *held = make(&contexts, "a", "1"), *execution, *other;
    context_release(&contexts, make(&contexts, "spare", "1"));
    context_release(&contexts, make(&contexts, "spare", "2"));
    execution = context_make_execution(&contexts, held);
    other = make(&contexts, "b", "2");
    context_set(&contexts, contexts_place(&contexts, 3), context_keep(other));
    contexts_destroy(&contexts);
    CHECK(contexts.spare == NULL && contexts.spare_count == 0);
    CHECK_EQUAL(count_fields(context_fields(execution)), 2);
    CHECK(has(context_fields(other), "b", "2"));
    context_release(&contexts, held);
    CHECK(has(context_fields(execution), "a", "1"));
    context_release(&contexts, execution); /* and what it stands on */
    context_release(&contexts, other);
    CHECK(contexts.spare == NULL && contexts.spare_count == 0);
    contexts_destroy(&contexts); /* once more does nothing */
}

/* ---- no memory ----------------------------------------------------------------------------- */

static void without_memory_there_is_no_context(void) {
    Contexts contexts = {.outside = NULL};
    Context *base = make(&contexts, "a", "1");
    Bytes fields = {.data = NULL}, broken = {.data = NULL};
    uint64_t serial = contexts.serial, next_id = contexts.next_id;
    put_text(&fields, "b", "2");
    faults_begin(1, false);
    CHECK(context_make(&contexts, &fields) == NULL);
    CHECK(faults_end());
    CHECK(has(bytes_slice(&fields), "b", "2")); /* still the caller's */
    faults_begin(1, false);
    CHECK(context_make_execution(&contexts, base) == NULL);
    CHECK(faults_end());
    CHECK_EQUAL(base->references, 1);
    faults_begin(1, true); /* fields that are not whole make none either */
    put_text(&broken, "c", "3");
    CHECK(faults_end() && broken.has_failed);
    context_release(&contexts, make(&contexts, "spare", "1"));
    CHECK(context_make(&contexts, &broken) == NULL);
    CHECK_EQUAL(contexts.spare_count, 1);
    CHECK_EQUAL(contexts.next_id, next_id);
    CHECK(contexts.serial >= serial);
    bytes_free(&fields);
    bytes_free(&broken);
    context_release(&contexts, base);
    contexts_destroy(&contexts);
}

static void without_memory_there_is_no_place(void) {
    Contexts contexts = {.outside = NULL};
    Context *context = make(&contexts, "a", "1");
    faults_begin(1, true);
    CHECK(contexts_place(&contexts, 1) == NULL);
    CHECK(contexts_place(&contexts, 0) != NULL);
    CHECK(faults_end());
    context_set(&contexts, contexts_place(&contexts, 15), context);
    faults_begin(1, true);
    CHECK(contexts_place(&contexts, 16) == NULL);
    CHECK(contexts_place(&contexts, 14) != NULL);
    CHECK(faults_end());
    CHECK_EQUAL(contexts.capacity, 16);
    CHECK(contexts_get(&contexts, 15) == context && contexts_get(&contexts, 16) == NULL);
    contexts_destroy(&contexts);
}

/* An execution then has what its base has, and its id as soon as there is memory. */
static void without_memory_there_are_the_fields_below(void) {
    for (int all = 0; all < 2; all++) {
        bool was_due = true;
        for (long n = 1; was_due && n < 50; n++) {
            Contexts contexts = {.outside = NULL};
            Bytes fields = {.data = NULL};
            Context *base, *middle, *execution;
            Slice seen;
            char text[300] = {0};
            memset(text, 'x', sizeof text - 1);
            put_text(&fields, "a", text);
            base = context_make(&contexts, &fields);
            middle = context_make_execution(&contexts, base);
            execution = context_make_execution(&contexts, middle);
            faults_begin(n, all > 0);
            seen = context_fields(execution);
            was_due = faults_end();
            CHECK(has(seen, "a", text));
            if (!was_due)
                CHECK(has_id(seen, execution->id));
            else if (!has_id(seen, execution->id))
                CHECK(count_fields(seen) == 1 || has_id(seen, middle->id));
            seen = context_fields(execution);
            CHECK(has(seen, "a", text) && has_id(seen, execution->id));
            CHECK_EQUAL(count_fields(seen), 2);
            context_release(&contexts, base);
            context_release(&contexts, middle);
            context_release(&contexts, execution);
            contexts_destroy(&contexts);
        }
        CHECK(!was_due);
    }
}

/* ---- at random ----------------------------------------------------------------------------- */

/* Places and references that come and go, beside a count of what is to be there. */
static void random_walks_keep_count(void) {
    enum { TASKS = 60, HELD = 30 };
    for (uint64_t n = 1; n <= 20 && test_failed_checks == 0; n++) {
        Contexts contexts = {.outside = NULL};
        Context *held[HELD] = {NULL}, *placed[TASKS] = {NULL};
        uint64_t seed = n;
        for (int step = 0; step < 3000; step++) {
            uint32_t task = test_random_below(&seed, TASKS), i = test_random_below(&seed, HELD);
            Context *chosen = held[test_random_below(&seed, HELD)];
            char name[2] = {(char)('a' + i % 26), 0};
            switch (test_random_below(&seed, 8)) {
            case 0:
                chosen = make(&contexts, name, "v");
                context_set(&contexts, &held[i], chosen);
                break;
            case 1:
                context_set(&contexts, &held[i], context_make_execution(&contexts, chosen));
                break;
            case 2:
                context_set(&contexts, &held[i], NULL);
                break;
            case 3:
                context_fields(chosen);
                break;
            case 4:
                if (task > 0) {
                    contexts_drop(&contexts, task);
                    placed[task] = NULL;
                }
                break;
            case 5:
                if (step % 50 == 0) {
                    contexts_clear(&contexts);
                    memset(placed, 0, sizeof placed);
                }
                break;
            default:
                context_set(&contexts, contexts_place(&contexts, task), context_keep(chosen));
                placed[task] = chosen;
            }
            CHECK(contexts_get(&contexts, task) == placed[task]);
        }
        for (uint32_t task = 0; task < TASKS; task++)
            CHECK(contexts_get(&contexts, task) == placed[task]);
        contexts_destroy(&contexts);
        for (int i = 0; i < HELD; i++) {
            if (held[i] != NULL && !held[i]->has_id)
                CHECK_EQUAL(count_fields(context_fields(held[i])), 1);
            context_release(&contexts, held[i]);
        }
    }
}

static const Test tests[] = {
    {"a context takes its fields", a_context_takes_its_fields},
    {"a context without fields", a_context_without_fields},
    {"a field of that name correlates", a_field_of_that_name_correlates},
    {"it lives as long as there are references", it_lives_as_long_as_there_are_references},
    {"serials are unlike", serials_are_unlike},
    {"freed ones are used again", freed_ones_are_used_again},
    {"not all are kept", not_all_are_kept},
    {"of large ones the memory is not kept", of_large_ones_the_memory_is_not_kept},
    {"an execution adds an id", an_execution_adds_an_id},
    {"an execution of nothing", an_execution_of_nothing},
    {"an id overrides", an_id_overrides},
    {"a chain has the last id", a_chain_has_the_last_id},
    {"a long chain is released", a_long_chain_is_released},
    {"ids are hexadecimal", ids_are_hexadecimal},
    {"ids are unlike", ids_are_unlike},
    {"the same seed gives the same ids", the_same_seed_gives_the_same_ids},
    {"ids are those of the generator", ids_are_those_of_the_generator},
    {"what is short enough is left as it is", what_is_short_enough_is_left_as_it_is},
    {"fields are shortened", fields_are_shortened},
    {"a long field leaves room for others", a_long_field_leaves_room_for_others},
    {"without memory nothing is shortened", without_memory_nothing_is_shortened},
    {"no table without contexts", no_table_without_contexts},
    {"places stay while the table grows", places_stay_while_the_table_grows},
    {"a table grows to what is asked for", a_table_grows_to_what_is_asked_for},
    {"a context may stand at many places", a_context_may_stand_at_many_places},
    {"cleared it can be used again", cleared_it_can_be_used_again},
    {"references outlive the table", references_outlive_the_table},
    {"without memory there is no context", without_memory_there_is_no_context},
    {"without memory there is no place", without_memory_there_is_no_place},
    {"without memory there are the fields below", without_memory_there_are_the_fields_below},
    {"random walks keep count", random_walks_keep_count},
    {NULL, NULL},
};

int main(void) {
    return test_main("context_test", tests);
}
