/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/statistics.h"

#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

void dsctl_sort(uint64_t *values, size_t n)
{
    qsort(values, n, sizeof *values, compare);
}

uint64_t dsctl_quantile(const uint64_t *sorted, size_t n, double fraction)
{
    double rank = ceil(fraction * (double) n);
    size_t index = rank < 1 ? 0 : (size_t) rank - 1;

    return sorted[index < n ? index : n - 1];
}

double dsctl_mean(const double *values, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += values[i];
    return n ? sum / (double) n : 0;
}

double dsctl_deviation(const double *values, size_t n)
{
    double mean = dsctl_mean(values, n), sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (values[i] - mean) * (values[i] - mean);
    return n > 1 ? sqrt(sum / (double) (n - 1)) : 0;
}
