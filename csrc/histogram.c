#include "histogram.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where a duration is counted: powers[0] has 0 to 63 one by one, powers[n] what begins at 64 * 2^(n-1),
 * in steps of 2^(n-1). */
static void locate(int64_t duration_ns, int *power, int *part) {
    uint64_t value = duration_ns > 0 ? (uint64_t)duration_ns : 0;
    int shift = 0;
    if (value < HISTOGRAM_PARTS) {
        *power = 0;
        *part = (int)value;
        return;
    }
#ifdef __GNUC__
    shift = 57 - __builtin_clzll(value); /* so that from 64 to 127 is left */
#else
    while (value >> shift >= 2 * HISTOGRAM_PARTS)
        shift++;
#endif
    *power = shift + 1;
    *part = (int)((value >> shift) - HISTOGRAM_PARTS);
}

/* The middle of a part. */
static int64_t middle_of(int power, int part) {
    int shift = power - 1;
    if (power == 0)
        return part;
    return (int64_t)(((uint64_t)(HISTOGRAM_PARTS + part) << shift) + (((uint64_t)1 << shift) >> 1));
}

bool histogram_add(Histogram *histogram, int64_t duration_ns) {
    int power, part;
    if (duration_ns < 0)
        duration_ns = 0;
    locate(duration_ns, &power, &part);
    if (histogram->parts[power] == NULL) {
        histogram->parts[power] = calloc(HISTOGRAM_PARTS, sizeof *histogram->parts[power]);
        if (histogram->parts[power] == NULL)
            return false;
    }
    histogram->parts[power][part]++;
    if (histogram->count == 0 || duration_ns < histogram->least_ns)
        histogram->least_ns = duration_ns;
    if (histogram->count == 0 || duration_ns > histogram->most_ns)
        histogram->most_ns = duration_ns;
    histogram->count++;
    histogram->sum_ns += (double)duration_ns;
    return true;
}

/* A part may reach beyond the durations that are in it. */
static int64_t within(const Histogram *histogram, int64_t duration_ns) {
    if (duration_ns < histogram->least_ns)
        return histogram->least_ns;
    return duration_ns > histogram->most_ns ? histogram->most_ns : duration_ns;
}

int64_t histogram_percentile_ns(const Histogram *histogram, double p) {
    /* 0.07 * 100 is a little more than 7. */
    double rank = ceil(p * (double)histogram->count - 1e-6);
    uint64_t wanted = rank > 1 ? (uint64_t)rank : 1, seen = 0;
    if (histogram->count == 0)
        return 0;
    if (wanted == 1)
        return histogram->least_ns;
    if (wanted >= histogram->count)
        return histogram->most_ns;
    for (int power = 0; power < HISTOGRAM_POWERS; power++)
        for (int part = 0; histogram->parts[power] != NULL && part < HISTOGRAM_PARTS; part++) {
            seen += histogram->parts[power][part];
            if (seen >= wanted)
                return within(histogram, middle_of(power, part));
        }
    return histogram->most_ns;
}

uint64_t histogram_count_below(const Histogram *histogram, int64_t limit_ns) {
    uint64_t count = 0;
    int last_power, last_part;
    if (limit_ns >= histogram->most_ns)
        return histogram->count;
    if (limit_ns < histogram->least_ns)
        return 0;
    locate(limit_ns, &last_power, &last_part);
    for (int power = 0; power <= last_power; power++)
        for (int part = 0; histogram->parts[power] != NULL && part < HISTOGRAM_PARTS; part++)
            if (power < last_power || part <= last_part)
                count += histogram->parts[power][part];
    return count;
}

void histogram_free(Histogram *histogram) {
    for (int power = 0; power < HISTOGRAM_POWERS; power++)
        free(histogram->parts[power]);
    memset(histogram, 0, sizeof *histogram);
}
