#include "timers.h"

#include "faults.h"
#include "test.h"

/* ---- a model: timers in a plain array, looked through from end to end --------------------- */

#define MODEL_MAX 400

typedef struct Model {
    Timers timers;
    Timer timer[MODEL_MAX];
    bool is_queued[MODEL_MAX];
    int64_t deadline_ns[MODEL_MAX];
    uint64_t order[MODEL_MAX], next_order;
    uint32_t count;
} Model;

static void model_init(Model *model) {
    memset(model, 0, sizeof *model);
    timers_init(&model->timers);
    for (uint32_t i = 0; i < MODEL_MAX; i++)
        model->timer[i].kind = i % 4;
}

/* The timer that is due first, MODEL_MAX if there is none. */
static uint32_t model_first(const Model *model) {
    uint32_t first = MODEL_MAX;
    for (uint32_t i = 0; i < MODEL_MAX; i++) {
        if (!model->is_queued[i])
            continue;
        if (first == MODEL_MAX || model->deadline_ns[i] < model->deadline_ns[first] ||
            (model->deadline_ns[i] == model->deadline_ns[first] &&
             model->order[i] < model->order[first]))
            first = i;
    }
    return first;
}

static void model_forget(Model *model, uint32_t i) {
    CHECK_EQUAL(model->timer[i].slot, 0);
    CHECK_EQUAL(model->timer[i].kind, i % 4);
    model->is_queued[i] = false;
    model->count--;
}

static void model_add(Model *model, uint32_t i, int64_t deadline_ns) {
    if (!CHECK(timers_add(&model->timers, &model->timer[i], deadline_ns)))
        return;
    CHECK_EQUAL(timers_deadline_ns(&model->timers, &model->timer[i]), deadline_ns);
    model->is_queued[i] = true;
    model->deadline_ns[i] = deadline_ns;
    model->order[i] = model->next_order++;
    model->count++;
}

static void model_expire(Model *model, int64_t now_ns) {
    for (;;) {
        uint32_t first = model_first(model);
        Timer *timer = timers_expire(&model->timers, now_ns);
        if (first == MODEL_MAX || model->deadline_ns[first] > now_ns) {
            CHECK(timer == NULL);
            return;
        }
        if (!CHECK(timer == &model->timer[first]))
            return;
        model_forget(model, first);
    }
}

static void model_compare(const Model *model) {
    uint32_t first = model_first(model);
    CHECK_EQUAL(model->timers.count, model->count);
    CHECK(model->timers.count <= model->timers.capacity);
    CHECK_EQUAL(timers_next_ns(&model->timers),
                first == MODEL_MAX ? INT64_MAX : model->deadline_ns[first]);
}

/* Deadlines below `spread`: the smaller, the more of them are equal. `target` is the number of
 * timers the walk tends to. */
static void walk(uint64_t seed, uint32_t spread, uint32_t target, int operations) {
    static Model model;
    int64_t now_ns = 0;
    model_init(&model);
    for (int n = 0; n < operations && test_failed_checks == 0; n++) {
        uint32_t i = test_random_below(&seed, MODEL_MAX), what = test_random_below(&seed, 100);
        if (what < 2) {
            now_ns += test_random_below(&seed, spread);
            model_expire(&model, now_ns);
        } else if (!model.is_queued[i]) {
            if (model.count < target)
                model_add(&model, i, now_ns + test_random_below(&seed, spread));
            else
                timers_cancel(&model.timers, &model.timer[i]); /* not queued: nothing happens */
        } else if (what < 60) {
            timers_cancel(&model.timers, &model.timer[i]);
            model_forget(&model, i);
        }
        model_compare(&model);
    }
    model_expire(&model, INT64_MAX);
    model_compare(&model);
    timers_destroy(&model.timers);
}

static void random_walks_agree_with_the_model(void) {
    walk(1, 4, MODEL_MAX, 40000);
    walk(2, 1000, MODEL_MAX, 40000);
    walk(3, UINT32_MAX, MODEL_MAX, 40000);
    walk(4, 50, 3, 10000);
    walk(5, 1, 20, 10000);
}

/* ---- cases --------------------------------------------------------------------------------- */

static void an_empty_queue(void) {
    Timers timers;
    Timer timer = {0};
    timers_init(&timers);
    CHECK_EQUAL(timers_next_ns(&timers), INT64_MAX);
    CHECK(timers_expire(&timers, INT64_MAX) == NULL);
    timers_cancel(&timers, &timer);
    CHECK(timers.heap == NULL); /* nothing was allocated for nothing */
    timers_destroy(&timers);
}

static void a_deadline_is_reached_when_it_is_now(void) {
    Timers timers;
    Timer timer = {0};
    timers_init(&timers);
    CHECK(timers_add(&timers, &timer, 100));
    CHECK(timers_expire(&timers, 99) == NULL);
    CHECK(timers_expire(&timers, 100) == &timer);
    CHECK(timers_expire(&timers, INT64_MAX) == NULL);
    timers_destroy(&timers);
}

static void equal_deadlines_keep_their_order(void) {
    enum { COUNT = 1000 };
    static Timer timer[COUNT];
    Timers timers;
    timers_init(&timers);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++)
            CHECK(timers_add(&timers, &timer[i], 7));
        for (int i = 0; i < COUNT; i += 3) /* what comes back stands at the end */
            timers_cancel(&timers, &timer[i]);
        for (int i = 0; i < COUNT; i += 3)
            CHECK(timers_add(&timers, &timer[i], 7));
        for (int i = 0; i < COUNT; i++)
            if (i % 3 != 0)
                CHECK(timers_expire(&timers, 7) == &timer[i]);
        for (int i = 0; i < COUNT; i += 3)
            CHECK(timers_expire(&timers, 7) == &timer[i]);
    }
    timers_destroy(&timers);
}

static void the_largest_and_smallest_deadlines(void) {
    static const int64_t deadline_ns[] = {INT64_MAX,     0,  INT64_MIN, INT64_MAX - 1, -1, 1,
                                          INT64_MIN + 1, 42, INT64_MAX, INT64_MIN};
    static const int order[] = {2, 9, 6, 4, 1, 5, 7, 3, 0, 8};
    Timer timer[10] = {{0}};
    Timers timers;
    timers_init(&timers);
    for (int i = 0; i < 10; i++)
        CHECK(timers_add(&timers, &timer[i], deadline_ns[i]));
    CHECK_EQUAL(timers_next_ns(&timers), INT64_MIN);
    for (int i = 0; i < 10; i++)
        CHECK(timers_expire(&timers, INT64_MAX) == &timer[order[i]]);
    timers_destroy(&timers);
}

static void a_cancelled_timer_can_be_used_again(void) {
    Timers timers;
    Timer timer = {.kind = 3};
    timers_init(&timers);
    for (int i = 0; i < 100; i++) {
        CHECK(timers_add(&timers, &timer, i));
        timers_cancel(&timers, &timer);
        timers_cancel(&timers, &timer);
        CHECK_EQUAL(timer.slot, 0);
        CHECK_EQUAL(timer.kind, 3);
        CHECK_EQUAL(timers_next_ns(&timers), INT64_MAX);
    }
    timers_destroy(&timers);
}

static void destroying_forgets_what_is_queued(void) {
    Timers timers;
    Timer timer[3] = {{0}};
    timers_init(&timers);
    for (int i = 0; i < 3; i++)
        CHECK(timers_add(&timers, &timer[i], i));
    timers_destroy(&timers);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(timer[i].slot, 0);
        timers_cancel(&timers, &timer[i]);
    }
    CHECK_EQUAL(timers_next_ns(&timers), INT64_MAX);
    CHECK(timers_add(&timers, &timer[0], 1)); /* and it can be filled again */
    timers_destroy(&timers);
}

/* ---- memory -------------------------------------------------------------------------------- */

enum { MANY = 100000 };
static Timer many[MANY];

static void a_burst_gives_its_memory_back(void) {
    Timers timers;
    uint64_t seed = 6;
    timers_init(&timers);
    for (int i = 0; i < MANY; i++)
        CHECK(timers_add(&timers, &many[i], (int64_t)test_random(&seed)));
    CHECK(timers.capacity >= MANY && timers.capacity <= 4 * MANY);
    for (int i = 0; i < MANY / 2; i++)
        timers_cancel(&timers, &many[i]);
    for (int64_t last_ns = INT64_MIN; timers.count > 0;) {
        int64_t next_ns = timers_next_ns(&timers);
        CHECK(next_ns >= last_ns);
        CHECK(timers_expire(&timers, next_ns) != NULL);
        last_ns = next_ns;
        CHECK(timers.capacity <= 16 || timers.capacity <= 16 * (timers.count + 1));
    }
    CHECK(timers.capacity <= 64);
    timers_destroy(&timers);
}

static void a_queue_of_steady_size_is_not_resized(void) {
    Timers timers;
    long requests;
    timers_init(&timers);
    for (int i = 0; i < 1000; i++)
        CHECK(timers_add(&timers, &many[i], i));
    faults_begin(1000000, false); /* only to count */
    for (int i = 0; i < 10000; i++) {
        timers_cancel(&timers, &many[i % 1000]);
        CHECK(timers_add(&timers, &many[i % 1000], 1000 + i));
    }
    requests = faults_memory.requests;
    faults_end();
    CHECK_EQUAL(requests, 0);
    timers_destroy(&timers);
}

/* With every add at which memory is asked for failing first: nothing has changed then, and the
 * next try goes well. */
static void short_of_memory_nothing_changes(void) {
    static TimerEntry before[MANY];
    Timers timers, copy;
    int refusals = 0;
    timers_init(&timers);
    for (int i = 0; i < 5000; i++) {
        int64_t deadline_ns = (int64_t)i * 7919 % 1000;
        bool added;
        if (timers.count > 0)
            memcpy(before, timers.heap, timers.count * sizeof *before);
        copy = timers;
        faults_begin(1, true);
        added = timers_add(&timers, &many[i], deadline_ns);
        if (faults_end()) {
            refusals++;
            CHECK(!added);
            CHECK_EQUAL(many[i].slot, 0);
            CHECK(timers.heap == copy.heap && timers.count == copy.count);
            CHECK_EQUAL(timers.capacity, copy.capacity);
            CHECK_EQUAL(timers.next_order, copy.next_order);
            CHECK(timers.count == 0 ||
                  memcmp(before, timers.heap, timers.count * sizeof *before) == 0);
            added = timers_add(&timers, &many[i], deadline_ns);
        }
        CHECK(added);
    }
    CHECK(refusals >= 9); /* 16 doubled until 5000 fit */
    timers_destroy(&timers);
}

static void a_queue_that_cannot_shrink_serves_on(void) {
    Timers timers;
    timers_init(&timers);
    for (int i = 0; i < 5000; i++)
        CHECK(timers_add(&timers, &many[i], i));
    faults_begin(1, true);
    for (int i = 0; i < 5000; i++)
        CHECK(timers_expire(&timers, i) == &many[i]);
    CHECK(faults_end());
    CHECK(timers.capacity >= 5000);
    CHECK(timers_add(&timers, &many[0], 1));
    CHECK(timers_expire(&timers, 1) == &many[0]);
    timers_destroy(&timers);
}

static void a_full_queue_refuses(void) {
    /* as if it held all it can: what it holds is not looked at */
    Timers timers = {NULL, TIMERS_MAX / 2 + 1, TIMERS_MAX / 2 + 1, 9};
    Timer timer = {0};
    CHECK(!timers_add(&timers, &timer, 1));
    CHECK_EQUAL(timer.slot, 0);
    CHECK_EQUAL(timers.count, TIMERS_MAX / 2 + 1);
    CHECK_EQUAL(timers.next_order, 9);
}

static const Test tests[] = {
    {"an empty queue has no deadline", an_empty_queue},
    {"a deadline is reached when it is now", a_deadline_is_reached_when_it_is_now},
    {"equal deadlines keep their order", equal_deadlines_keep_their_order},
    {"deadlines may be of any size", the_largest_and_smallest_deadlines},
    {"a cancelled timer can be used again", a_cancelled_timer_can_be_used_again},
    {"destroying forgets what is queued", destroying_forgets_what_is_queued},
    {"random walks agree with a naive queue", random_walks_agree_with_the_model},
    {"a burst gives its memory back", a_burst_gives_its_memory_back},
    {"a queue of steady size is not resized", a_queue_of_steady_size_is_not_resized},
    {"short of memory nothing changes", short_of_memory_nothing_changes},
    {"a queue that cannot shrink serves on", a_queue_that_cannot_shrink_serves_on},
    {"a full queue refuses", a_full_queue_refuses},
    {NULL, NULL},
};

int main(void) {
    return test_main("timers_test", tests);
}
