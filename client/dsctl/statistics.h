/* SPDX-License-Identifier: Apache-2.0 */
/*
 * statistics.h - a few numbers about many.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Ascending, in place. */
void dsctl_sort(uint64_t *values, size_t n);
/* The smallest value that at least fraction of them do not exceed; sorted, n > 0. */
uint64_t dsctl_quantile(const uint64_t *sorted, size_t n, double fraction);

double dsctl_mean(const double *values, size_t n);
/* Of a sample (n - 1); 0 for fewer than two. */
double dsctl_deviation(const double *values, size_t n);
