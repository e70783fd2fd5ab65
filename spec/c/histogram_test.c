#include "histogram.h"

#include <math.h>

#include "faults.h"
#include "test.h"

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* ---- distributions ------------------------------------------------------------------------- */

static double uniform(uint64_t *seed) {
    return (double)(test_random(seed) >> 11) / (double)(UINT64_C(1) << 53);
}

static int64_t evenly_to_a_second(uint64_t *seed) {
    return (int64_t)test_random_below(seed, 1000000000);
}

static int64_t exponential(uint64_t *seed) {
    return (int64_t)(-log(1 - uniform(seed)) * 2e6);
}

/* From a nanosecond to 292 years, each power as likely as any other. */
static int64_t over_all_powers(uint64_t *seed) {
    return (int64_t)(test_random(seed) >> (1 + test_random_below(seed, 63)));
}

/* As that of a server: most take a millisecond, one in a hundred a second. */
static int64_t two_humps(uint64_t *seed) {
    int64_t base_ns = test_random_below(seed, 100) == 0 ? 1000000000 : 1000000;
    return base_ns + test_random_below(seed, (uint32_t)(base_ns / 4));
}

/* Pareto's: the mean hardly settles. */
static int64_t heavy_tail(uint64_t *seed) {
    return (int64_t)(1000 / pow(1 - uniform(seed), 1.0 / 0.7));
}

static int64_t always_the_same(uint64_t *seed) {
    (void)seed;
    return 123456789;
}

static int64_t few_nanoseconds(uint64_t *seed) {
    return test_random_below(seed, 200);
}

/* ---- against sorted samples ---------------------------------------------------------------- */

static const double fractions[] = {0,    0.001, 0.01, 0.07, 0.1,   0.25,   0.29, 0.5,
                                   0.75, 0.9,   0.95, 0.99, 0.999, 0.9999, 1};

enum { FRACTIONS = sizeof fractions / sizeof *fractions, SAMPLES = 20000 };

/* The nearest rank, counted from 1: the least whole number that is not below p * count. The numbers
 * above have four places, so there is no rounding in this. */
static int rank_of(double p, int count) {
    int64_t parts = llround(p * 10000) * count;
    int rank = (int)((parts + 9999) / 10000);
    return rank < 1 ? 1 : rank;
}

static bool is_within_one_percent(int64_t got, int64_t wanted) {
    return fabs((double)got - (double)wanted) <= 0.01 * (double)wanted;
}

static void compare(int64_t (*sample)(uint64_t *), int count) {
    static int64_t sorted[SAMPLES];
    Histogram histogram = {0};
    uint64_t seed = 7 + (uint64_t)count;
    double sum = 0;
    int64_t before = 0;
    for (int i = 0; i < count; i++) {
        sorted[i] = sample(&seed);
        sum += (double)sorted[i];
        CHECK(histogram_add(&histogram, sorted[i]));
    }
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    CHECK_EQUAL(histogram.count, count);
    CHECK_EQUAL(histogram.least_ns, sorted[0]);
    CHECK_EQUAL(histogram.most_ns, sorted[count - 1]);
    CHECK(fabs(histogram.sum_ns - sum) <= 1e-9 * sum);
    for (int i = 0; i < FRACTIONS; i++) {
        int64_t wanted = sorted[rank_of(fractions[i], count) - 1];
        int64_t got = histogram_percentile_ns(&histogram, fractions[i]);
        if (!CHECK(is_within_one_percent(got, wanted)))
            printf("  percentile %g of %d: %" PRId64 ", not %" PRId64 "\n", fractions[i], count,
                   got, wanted);
        CHECK(got >= before);
        before = got;
    }
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 0), sorted[0]);
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 1), sorted[count - 1]);
    histogram_free(&histogram);
}

static void percentiles_are_within_one_percent(void) {
    int64_t (*const samples[])(uint64_t *) = {
        evenly_to_a_second, exponential,     over_all_powers, two_humps,
        heavy_tail,         always_the_same, few_nanoseconds,
    };
    static const int counts[] = {1, 2, 3, 10, 100, 1001, SAMPLES};
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++)
        for (size_t j = 0; j < sizeof counts / sizeof *counts; j++)
            compare(samples[i], counts[j]);
}

/* Each duration of a range, and those around the powers of two: as the only one it is exact, and between
 * two others it is off by less than one part. */
static void each_duration_is_found(void) {
    for (int power = 0; power < 63; power++)
        for (int64_t step = -70; step <= 70; step++) {
            Histogram histogram = {0};
            int64_t base = (int64_t)(UINT64_C(1) << power), value = base + step;
            if (value < 0)
                continue;
            CHECK(histogram_add(&histogram, value));
            CHECK_EQUAL(histogram_percentile_ns(&histogram, 0.5), value);
            CHECK(histogram_add(&histogram, 0) && histogram_add(&histogram, INT64_MAX));
            CHECK(is_within_one_percent(histogram_percentile_ns(&histogram, 0.5), value));
            histogram_free(&histogram);
        }
}

/* ---- counts below a limit ------------------------------------------------------------------ */

static void counts_below_a_limit(void) {
    static int64_t samples[SAMPLES];
    Histogram histogram = {0};
    uint64_t seed = 3, before = 0;
    for (int i = 0; i < SAMPLES; i++) {
        samples[i] = exponential(&seed);
        CHECK(histogram_add(&histogram, samples[i]));
    }
    for (int64_t limit = 0; limit < 40000000; limit = limit * 21 / 20 + 1) {
        uint64_t least = 0, most = 0, got = histogram_count_below(&histogram, limit);
        for (int i = 0; i < SAMPLES; i++) {
            least += samples[i] <= limit;
            most += (double)samples[i] <= (double)limit * (1 + 1.0 / HISTOGRAM_PARTS);
        }
        CHECK(least <= got && got <= most);
        CHECK(got >= before);
        before = got;
    }
    CHECK_EQUAL(histogram_count_below(&histogram, INT64_MAX), SAMPLES);
    CHECK_EQUAL(histogram_count_below(&histogram, histogram.most_ns), SAMPLES);
    CHECK(histogram_count_below(&histogram, histogram.most_ns - 1) <= SAMPLES);
    CHECK_EQUAL(histogram_count_below(&histogram, histogram.least_ns - 1), 0);
    CHECK_EQUAL(histogram_count_below(&histogram, -1), 0);
    histogram_free(&histogram);
}

static void small_durations_are_counted_exactly(void) {
    Histogram histogram = {0};
    for (int64_t i = 0; i < HISTOGRAM_PARTS; i++)
        CHECK(histogram_add(&histogram, i));
    for (int64_t i = 0; i < HISTOGRAM_PARTS; i++) {
        CHECK_EQUAL(histogram_count_below(&histogram, i), i + 1);
        CHECK_EQUAL(histogram_percentile_ns(&histogram, (double)(i + 1) / HISTOGRAM_PARTS), i);
    }
    histogram_free(&histogram);
}

/* ---- the ends ------------------------------------------------------------------------------ */

static void an_empty_one(void) {
    Histogram histogram = {0};
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 0), 0);
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 0.5), 0);
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 1), 0);
    CHECK_EQUAL(histogram_count_below(&histogram, -1), 0);
    CHECK_EQUAL(histogram_count_below(&histogram, 0), 0);
    CHECK_EQUAL(histogram_count_below(&histogram, INT64_MAX), 0);
    histogram_free(&histogram);
}

static void the_least_and_the_greatest(void) {
    Histogram histogram = {0};
    CHECK(histogram_add(&histogram, INT64_MIN));
    CHECK(histogram_add(&histogram, -1));
    CHECK(histogram_add(&histogram, INT64_MAX));
    CHECK_EQUAL(histogram.count, 3);
    CHECK_EQUAL(histogram.least_ns, 0);
    CHECK_EQUAL(histogram.most_ns, INT64_MAX);
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 0.5), 0);
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 1), INT64_MAX);
    CHECK_EQUAL(histogram_count_below(&histogram, 0), 2);
    CHECK(histogram_add(&histogram, INT64_MAX)); /* so that the median is none of the ends */
    CHECK(histogram_add(&histogram, INT64_MAX));
    CHECK(is_within_one_percent(histogram_percentile_ns(&histogram, 0.7), INT64_MAX));
    histogram_free(&histogram);
}

static void freed_it_is_as_good_as_new(void) {
    Histogram histogram = {0};
    static const Histogram empty;
    CHECK(histogram_add(&histogram, 5) && histogram_add(&histogram, 5000000));
    histogram_free(&histogram);
    CHECK(memcmp(&histogram, &empty, sizeof empty) == 0);
    histogram_free(&histogram);
    CHECK(histogram_add(&histogram, 7));
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 0.5), 7);
    histogram_free(&histogram);
}

/* ---- memory -------------------------------------------------------------------------------- */

static void memory_does_not_grow_with_the_number(void) {
    Histogram histogram = {0};
    uint64_t seed = 5;
    faults_begin(1000000, true);
    for (int i = 0; i < 500000; i++)
        CHECK(histogram_add(&histogram, over_all_powers(&seed)));
    CHECK(!faults_end());
    CHECK(faults_memory.requests <= HISTOGRAM_POWERS);
    histogram_free(&histogram);
}

/* The n-th request for memory fails, for each n: that one is not counted, and all others are. */
static void what_finds_no_memory_is_not_counted(void) {
    bool was_due = true;
    for (long n = 1; was_due && n < 100; n++) {
        Histogram histogram = {0};
        uint64_t refused = 0;
        faults_begin(n, false);
        for (int power = 0; power < 63; power++)
            refused += !histogram_add(&histogram, (int64_t)(UINT64_C(1) << power));
        was_due = faults_end();
        CHECK_EQUAL(refused, was_due);
        CHECK_EQUAL(histogram.count, 63 - refused);
        CHECK_EQUAL(histogram_count_below(&histogram, INT64_MAX), 63 - refused);
        if (n == 1) /* then it was the least */
            CHECK_EQUAL(histogram.least_ns, 2);
        CHECK(histogram_add(&histogram, 1));
        histogram_free(&histogram);
    }
    CHECK(!was_due);
}

static void without_memory_it_stays_empty(void) {
    Histogram histogram = {0};
    faults_begin(1, true);
    for (int64_t i = 1; i < 1000; i++)
        CHECK(!histogram_add(&histogram, i * i));
    CHECK(faults_end());
    CHECK_EQUAL(histogram.count, 0);
    CHECK(histogram.sum_ns == 0);
    CHECK_EQUAL(histogram_percentile_ns(&histogram, 0.5), 0);
    CHECK_EQUAL(histogram_count_below(&histogram, INT64_MAX), 0);
    histogram_free(&histogram);
}

static const Test tests[] = {
    {"percentiles are within one percent", percentiles_are_within_one_percent},
    {"each duration is found", each_duration_is_found},
    {"counts below a limit", counts_below_a_limit},
    {"small durations are counted exactly", small_durations_are_counted_exactly},
    {"an empty one", an_empty_one},
    {"the least and the greatest", the_least_and_the_greatest},
    {"freed it is as good as new", freed_it_is_as_good_as_new},
    {"memory does not grow with the number", memory_does_not_grow_with_the_number},
    {"what finds no memory is not counted", what_finds_no_memory_is_not_counted},
    {"without memory it stays empty", without_memory_it_stays_empty},
    {NULL, NULL},
};

int main(void) {
    return test_main("histogram_test", tests);
}
