/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layout.h - where things lie in the two regions: worked out by who creates, checked by who joins.
 */
#pragma once

#include "shm/channel.h"
#include "shm/wire.h"

/* Fills ret_layout from wishes: defaults, rounding, limits. Cannot fail. */
void ds_layout_init(struct ds_c_header *ret_layout, const struct ds_geometry *geometry,
                    uint64_t epoch);

/* Is a received layout one that ds_layout_init() could have made? 0 or -EPROTO. */
int ds_layout_check(const struct ds_c_header *layout);
