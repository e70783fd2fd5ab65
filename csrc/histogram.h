/*
 * How long things took: counts of durations, in memory that does not grow with their number.
 *
 * Each power of two is divided into HISTOGRAM_PARTS equal parts, after the manner of Gil Tene's
 * HdrHistogram, so a percentile is off by less than 1 %. Durations are int64 nanoseconds; what is
 * negative counts as 0. Nothing here knows Lua.
 */
#ifndef OPERO_HISTOGRAM_H
#define OPERO_HISTOGRAM_H

#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

enum { HISTOGRAM_PARTS = 64, HISTOGRAM_POWERS = 58 };

/* All zeros is an empty one. */
typedef struct Histogram {
    uint64_t count;
    int64_t least_ns, most_ns; /* mean nothing while the count is 0 */
    double sum_ns;
    uint64_t *parts[HISTOGRAM_POWERS]; /* made when they are needed */
} Histogram;

/* False when there is no memory: nothing was counted. */
bool histogram_add(Histogram *histogram, int64_t duration_ns);

/* The duration that the fraction `p`, from 0 to 1, of all are not longer than, by nearest rank; never
 * less than the least, nor more than the most. 0 when it is empty. */
int64_t histogram_percentile_ns(const Histogram *histogram, double p);

/* How many are not longer than that, as far as the parts can tell: those of the limit's own part count.
 */
uint64_t histogram_count_below(const Histogram *histogram, int64_t limit_ns);

/* Empties it and gives its memory back. */
void histogram_free(Histogram *histogram);

#pragma GCC visibility pop

#endif
