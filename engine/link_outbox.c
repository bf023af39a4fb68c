/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_outbox.h"

#include "proto/base.h"

struct ds_outbox_item {
    struct ds_outbox_item *next;
    struct ds_cqe entry; /* seq of the next piece */
    uint8_t *bytes;
    size_t size, offset, piece_max;
    bool last;
};

void ds_outbox_init(struct ds_outbox *outbox)
{
    *outbox = (struct ds_outbox){ 0 };
    outbox->tail = &outbox->head;
}

static void drop_head(struct ds_outbox *outbox)
{
    struct ds_outbox_item *item = outbox->head;

    outbox->head = item->next;
    if (!outbox->head)
        outbox->tail = &outbox->head;
    outbox->n_items--;
    outbox->n_bytes -= item->size;
    free(item->bytes);
    free(item);
}

void ds_outbox_deinit(struct ds_outbox *outbox)
{
    while (outbox->head)
        drop_head(outbox);
}

int ds_outbox_put(struct ds_outbox *outbox, uint64_t req_id, enum ds_cqe_type type, uint32_t *seq,
                  void *bytes, size_t size, size_t piece_max, bool last)
{
    struct ds_outbox_item *item = malloc(sizeof *item);

    if (!item) {
        free(bytes);
        return -ENOMEM;
    }
    *item = (struct ds_outbox_item){
        .entry = { .req_id = req_id, .seq = *seq, .type = (uint16_t) type },
        .bytes = bytes,
        .size = size,
        .piece_max = piece_max,
        .last = last,
    };
    *seq += size ? (uint32_t) ((size + piece_max - 1) / piece_max) : 1;
    *outbox->tail = item;
    outbox->tail = &item->next;
    outbox->n_items++;
    outbox->n_bytes += size;
    return 0;
}

/* Posts the item's next piece. DS_CHANNEL_OK, DS_CHANNEL_FULL or negative. */
static int post_piece(struct ds_outbox_item *item, struct ds_channel *channel)
{
    size_t left = item->size - item->offset;
    size_t piece = left < item->piece_max ? left : item->piece_max;
    bool more = piece < left;
    int r;

    item->entry.flags = more ? DS_CQE_MORE : 0;
    r = ds_channel_post(channel, &item->entry, item->bytes ? item->bytes + item->offset : NULL,
                        piece, item->last && !more);
    if (r != DS_CHANNEL_OK)
        return r;
    item->offset += piece;
    item->entry.seq++;
    return DS_CHANNEL_OK;
}

int ds_outbox_flush(struct ds_outbox *outbox, struct ds_channel *channel)
{
    int r = 0;

    while (outbox->head) {
        struct ds_outbox_item *item = outbox->head;

        r = post_piece(item, channel);
        if (r != DS_CHANNEL_OK)
            break;
        if (item->offset == item->size)
            drop_head(outbox);
    }
    ds_channel_publish(channel);
    return r < 0 ? r : 0;
}

bool ds_outbox_empty(const struct ds_outbox *outbox)
{
    return !outbox->head;
}

bool ds_outbox_full(const struct ds_outbox *outbox)
{
    return outbox->n_items > DS_OUTBOX_ENTRIES_HIGH || outbox->n_bytes > DS_OUTBOX_BYTES_HIGH;
}
