/* SPDX-License-Identifier: Apache-2.0 */
#include "shm/layout.h"

#include "proto/base.h"
#include "shm/region.h"

#define SQ_ENTRIES_MIN 2u
#define CQ_ENTRIES_MIN 4u

static uint32_t clamp(uint32_t value, uint32_t standard, uint32_t low, uint32_t high)
{
    if (value == 0)
        value = standard;
    if (value < low)
        return low;
    return value > high ? high : value;
}

static uint32_t power_of_two(uint32_t value)
{
    uint32_t power = 1;

    while (power < value)
        power *= 2;
    return power;
}

static uint32_t page(void)
{
    size_t size = ds_region_page();

    return size > DS_WIRE_PAGE ? (uint32_t) size : DS_WIRE_PAGE;
}

static uint64_t page_round(uint64_t value)
{
    uint64_t size = page();

    return (value + size - 1) / size * size;
}

/* Everything that follows from the entry counts and byte sizes. */
static void place(struct ds_c_header *layout)
{
    layout->sq_off = DS_WIRE_PAGE;
    layout->arena_off = page_round(layout->sq_off + (uint64_t) layout->sq_entries * 64);
    layout->s_size = layout->arena_off + layout->arena_size;
    layout->cq_off = 2 * DS_WIRE_PAGE;
    layout->rsp_off = page_round(layout->cq_off + (uint64_t) layout->cq_entries * 64);
    layout->c_size = layout->rsp_off + layout->rsp_size;
    layout->max_payload = layout->arena_size < DS_PAYLOAD_BYTES_MAX ? (uint32_t) layout->arena_size
                                                                    : DS_PAYLOAD_BYTES_MAX;
}

void ds_layout_init(struct ds_c_header *ret_layout, const struct ds_geometry *geometry,
                    uint64_t epoch)
{
    static const struct ds_geometry standard = { 0 };
    const struct ds_geometry *wish = geometry ? geometry : &standard;
    uint32_t cq_entries = clamp(wish->cq_entries, 256, CQ_ENTRIES_MIN, DS_CQ_ENTRIES_MAX);
    struct ds_c_header layout = {
        .magic = DS_WIRE_MAGIC,
        .major = DS_WIRE_MAJOR,
        .minor = DS_WIRE_MINOR,
        .header_size = sizeof layout,
        .epoch = epoch,
    };

    layout.sq_entries =
        power_of_two(clamp(wish->sq_entries, 64, SQ_ENTRIES_MIN, DS_SQ_ENTRIES_MAX));
    layout.max_inflight = clamp(wish->max_inflight, 64, 1, DS_CQ_ENTRIES_MAX / 2);
    if (cq_entries < 2 * layout.max_inflight) { /* who says the one means the other */
        if (wish->cq_entries && !wish->max_inflight)
            layout.max_inflight = power_of_two(cq_entries) / 2;
        else
            cq_entries = 2 * layout.max_inflight;
    }
    layout.cq_entries = power_of_two(cq_entries);
    layout.arena_size =
        power_of_two(clamp(wish->arena_bytes, 1u << 20, page(), DS_ARENA_BYTES_MAX));
    layout.rsp_size =
        power_of_two(clamp(wish->rsp_bytes, 256u << 10, page(), DS_RESPONSE_BYTES_MAX));
    place(&layout);
    *ret_layout = layout;
}

static bool is_power_between(uint64_t value, uint64_t low, uint64_t high)
{
    return value >= low && value <= high && (value & (value - 1)) == 0;
}

int ds_layout_check(const struct ds_c_header *layout)
{
    struct ds_c_header placed = *layout;

    if (layout->magic != DS_WIRE_MAGIC || layout->major != DS_WIRE_MAJOR ||
        layout->header_size != sizeof *layout)
        return -EPROTO;
    if (!is_power_between(layout->sq_entries, SQ_ENTRIES_MIN, DS_SQ_ENTRIES_MAX) ||
        !is_power_between(layout->cq_entries, CQ_ENTRIES_MIN, DS_CQ_ENTRIES_MAX) ||
        !is_power_between(layout->arena_size, page(), DS_ARENA_BYTES_MAX) ||
        !is_power_between(layout->rsp_size, page(), DS_RESPONSE_BYTES_MAX))
        return -EPROTO;
    if (layout->max_inflight == 0 || layout->max_inflight > layout->cq_entries / 2)
        return -EPROTO;
    place(&placed);
    return memcmp(&placed, layout, sizeof placed) == 0 ? 0 : -EPROTO;
}
