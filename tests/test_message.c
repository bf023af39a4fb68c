/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: what a peer packs costs a bounded amount of memory and at worst an error.
 * Method: honest messages go there and back; hostile bytes are made by hand, by cutting honest
 * messages and by a fixed pseudo-random stream. The sanitizer builds see what the parser touches.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/base.h"
#include "proto/message.h"

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A Request that uses strings, bytes, oneofs, repeated messages and packed numbers. */
static void *pack_chat(size_t *ret_size)
{
    Ds__ChatMessage turn = DS__CHAT_MESSAGE__INIT;
    Ds__ChatMessage *turns[40];
    Ds__ChatMessages chat = DS__CHAT_MESSAGES__INIT;
    Ds__Input input = DS__INPUT__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    Ds__TokenIds delivered = DS__TOKEN_IDS__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__Request request = DS__REQUEST__INIT;
    uint32_t ids[] = { 1, 128, 70000, UINT32_MAX };
    void *bytes;

    turn.role = "user";
    turn.content.data = (uint8_t *) "What is a ring?";
    turn.content.len = 15;
    for (size_t i = 0; i < 40; i++)
        turns[i] = &turn;
    chat.messages = turns;
    chat.n_messages = 40;
    input.kind_case = DS__INPUT__KIND_CHAT;
    input.chat = &chat;
    model.name = "small";
    sampling.has_temperature_case = DS__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    sampling.temperature = 0.0f;
    delivered.ids = ids;
    delivered.n_ids = 4;
    generate.model = &model;
    generate.input = &input;
    generate.sampling = &sampling;
    generate.delivered = &delivered;
    generate.max_tokens = 7;
    request.op_case = DS__REQUEST__OP_GENERATE;
    request.generate = &generate;
    assert_int_equal(ds_message_pack_new(&request, &bytes, ret_size), 0);
    return bytes;
}

static void a_request_goes_there_and_back(void **state)
{
    ds_cleanup(ds_free_p) void *bytes = NULL;
    ds_cleanup(ds_message_free_p) Ds__Request *request = NULL;
    size_t size;

    (void) state;
    bytes = pack_chat(&size);
    assert_int_equal(ds_message_unpack(&ds__request__descriptor, bytes, size, &request), 0);
    assert_int_equal(request->op_case, DS__REQUEST__OP_GENERATE);
    assert_string_equal(request->generate->model->name, "small");
    assert_int_equal(request->generate->input->chat->n_messages, 40);
    assert_string_equal(request->generate->input->chat->messages[39]->role, "user");
    assert_int_equal(request->generate->delivered->ids[3], UINT32_MAX);
    assert_int_equal(request->generate->sampling->has_temperature_case,
                     DS__SAMPLING__HAS_TEMPERATURE_TEMPERATURE);
    assert_int_equal(request->generate->sampling->has_top_k_case, 0);
}

static void nothing_at_all_is_an_empty_message(void **state)
{
    ds_cleanup(ds_message_free_p) Ds__Request *request = NULL;

    (void) state;
    assert_int_equal(ds_message_unpack(&ds__request__descriptor, "", 0, &request), 0);
    assert_int_equal(request->op_case, DS__REQUEST__OP__NOT_SET);
}

static void packing_never_writes_beyond_the_capacity(void **state)
{
    Ds__Error error = DS__ERROR__INIT;
    char buffer[64];
    size_t size = 99;

    (void) state;
    error.code = DS__ERROR__CODE__BUSY;
    error.text = "full";
    memset(buffer, 'x', sizeof buffer);
    for (size_t capacity = 0; capacity < ds_message_size(&error); capacity++) {
        assert_int_equal(ds_message_pack(&error, buffer, capacity, &size), -EMSGSIZE);
        assert_int_equal(buffer[0], 'x');
        assert_int_equal(size, 99);
    }
    assert_int_equal(ds_message_pack(&error, buffer, ds_message_size(&error), &size), 0);
    assert_int_equal(size, ds_message_size(&error));
    assert_int_equal(buffer[size], 'x');
}

static void a_message_cut_anywhere_is_an_error_or_a_shorter_message(void **state)
{
    ds_cleanup(ds_free_p) void *bytes = NULL;
    size_t size, refused = 0;

    (void) state;
    bytes = pack_chat(&size);
    for (size_t cut = 0; cut < size; cut++) {
        ds_cleanup(ds_free_p) void *copy = malloc(cut ? cut : 1); /* so ASan sees an overread */
        Ds__Request *request = NULL;
        int r;

        memcpy(copy, bytes, cut);
        r = ds_message_unpack(&ds__request__descriptor, copy, cut, &request);
        assert_true(r == 0 || r == -EBADMSG);
        refused += r != 0;
        ds_message_free(request);
    }
    assert_int_equal(refused, size - 1); /* only the empty one is whole */
}

static void lengths_that_point_beyond_the_end_are_refused(void **state)
{
    static const struct {
        size_t size;
        uint8_t bytes[16];
    } cases[] = {
        { 2, { 0x0a, 0x7f } },                                            /* 127 of 0 bytes */
        { 6, { 0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f } },                    /* 4 GiB - 1 */
        { 6, { 0x0a, 0xff, 0xff, 0xff, 0xff, 0x07 } },                    /* 2 GiB - 1 */
        { 11, { 0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1 } }, /* 2^64 - 1 */
        { 1, { 0x0a } },                                                  /* no length */
        { 2, { 0x0a, 0x80 } },                                            /* unfinished length */
        { 1, { 0x00 } },                                                  /* field 0 */
        { 1, { 0x0b } },                                                  /* group */
        { 6, { 0x80, 0x80, 0x80, 0x80, 0x80, 0x80 } },                    /* endless tag */
    };

    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Ds__TokenIds *ids = NULL;

        assert_int_equal(
            ds_message_unpack(&ds__token_ids__descriptor, cases[i].bytes, cases[i].size, &ids),
            -EBADMSG);
        assert_null(ids);
    }
}

static void many_empty_submessages_hit_the_bound_not_the_memory(void **state)
{
    size_t size = 1u << 20;
    ds_cleanup(ds_free_p) uint8_t *bytes = malloc(size);
    Ds__ChatMessages *chat = NULL;

    (void) state;
    for (size_t i = 0; i < size; i += 2) { /* two bytes each that unpack to over a hundred */
        bytes[i] = 0x0a;
        bytes[i + 1] = 0;
    }
    assert_int_equal(ds_message_unpack(&ds__chat_messages__descriptor, bytes, size, &chat),
                     -EMSGSIZE);
    assert_null(chat);
}

static void a_payload_over_the_limit_is_not_even_looked_at(void **state)
{
    Ds__Request *request = NULL;

    (void) state;
    assert_int_equal(
        ds_message_unpack(&ds__request__descriptor, "", DS_PAYLOAD_BYTES_MAX + 1u, &request),
        -EMSGSIZE);
}

static void the_largest_honest_messages_stay_within_the_bound(void **state)
{
    enum { N = 60000 };
    static uint32_t ids[N];
    static ProtobufCBinaryData pieces[N];
    Ds__TokenizeResult result = DS__TOKENIZE_RESULT__INIT;
    size_t size;

    (void) state;
    for (size_t i = 0; i < N; i++) { /* one-byte pieces: the worst that tokenize can answer */
        ids[i] = (uint32_t) i;
        pieces[i] = (ProtobufCBinaryData){ 1, (uint8_t *) "a" };
    }
    result.ids = ids;
    result.pieces = pieces;
    for (size_t n = 1000; n <= N; n += n / 7) {
        ds_cleanup(ds_free_p) void *some = NULL;
        ds_cleanup(ds_message_free_p) Ds__TokenizeResult *back = NULL;

        result.n_ids = result.n_pieces = n;
        assert_int_equal(ds_message_pack_new(&result, &some, &size), 0);
        assert_int_equal(ds_message_unpack(&ds__tokenize_result__descriptor, some, size, &back), 0);
        assert_int_equal(back->n_pieces, n);
        assert_int_equal(back->ids[n - 1], n - 1);
    }
}

static void a_submessage_given_twice_is_merged_and_freed_once(void **state)
{
    ds_cleanup(ds_free_p) void *bytes = NULL, *twice = NULL;
    ds_cleanup(ds_message_free_p) Ds__Request *request = NULL;
    size_t size;
    int r;

    (void) state;
    bytes = pack_chat(&size);
    twice = malloc(2 * size);
    memcpy(twice, bytes, size);
    memcpy((char *) twice + size, bytes, size);
    r = ds_message_unpack(&ds__request__descriptor, twice, 2 * size, &request);
    assert_true(r == 0 || r == -EBADMSG || r == -EMSGSIZE);
    if (r == 0)
        assert_non_null(request->generate);
}

/* The parser recurses along the schema, so the schema must have a bottom. */
static unsigned depth_of(const ProtobufCMessageDescriptor *descriptor, unsigned above)
{
    unsigned deepest = above + 1;

    assert_true(above < 16);
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        unsigned depth;

        if (descriptor->fields[i].type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        depth = depth_of(descriptor->fields[i].descriptor, above + 1);
        deepest = depth > deepest ? depth : deepest;
    }
    return deepest;
}

static void the_schema_is_not_recursive(void **state)
{
    (void) state;
    assert_in_range(depth_of(&ds__request__descriptor, 0), 4, 8);
    assert_in_range(depth_of(&ds__reply__descriptor, 0), 3, 8);
    assert_in_range(depth_of(&ds__link_request__descriptor, 0), 4, 8);
    assert_in_range(depth_of(&ds__link_step__descriptor, 0), 4, 8);
    assert_in_range(depth_of(&ds__link_reply__descriptor, 0), 3, 8);
    assert_in_range(depth_of(&ds__link_load__descriptor, 0), 1, 8);
}

static void deep_nesting_in_the_bytes_does_not_deepen_the_parse(void **state)
{
    enum { DEPTH = 100000 };
    ds_cleanup(ds_free_p) uint8_t *bytes = malloc(6 * DEPTH);
    Ds__Request *request = NULL;
    size_t at = 6 * DEPTH;
    int r;

    (void) state;
    for (size_t inside = 0; inside < 5 * (size_t) DEPTH;) { /* field 1, length of all inside */
        at -= 5;
        bytes[at] = 0x0a;
        for (unsigned i = 0; i < 4; i++)
            bytes[at + 1 + i] = (uint8_t) ((inside >> (7 * i)) & 0x7f) | (i < 3 ? 0x80 : 0);
        inside += 5;
    }
    r = ds_message_unpack(&ds__request__descriptor, bytes + at, 6 * DEPTH - at, &request);
    assert_true(r == 0 || r == -EBADMSG);
    ds_message_free(request);
}

static void random_bytes_and_flipped_bits_never_do_harm(void **state)
{
    static const ProtobufCMessageDescriptor *const kinds[] = {
        &ds__request__descriptor,    &ds__reply__descriptor,       &ds__link_request__descriptor,
        &ds__link_step__descriptor,  &ds__token_chunk__descriptor, &ds__error__descriptor,
        &ds__link_reply__descriptor, &ds__link_load__descriptor,   &ds__progress__descriptor,
    };
    ds_cleanup(ds_free_p) uint8_t *honest = NULL;
    uint64_t seed = 0x9e3779b97f4a7c15u;
    size_t size, ok = 0, bad = 0;

    (void) state;
    honest = pack_chat(&size);
    for (unsigned round = 0; round < 30000; round++) {
        uint64_t draw = random_next(&seed);
        size_t length = draw & 1 ? size * (1 + (draw >> 7 & 1)) : (draw >> 8) % 200;
        ds_cleanup(ds_free_p) uint8_t *bytes = malloc(length ? length : 1);
        void *message = NULL;
        int r;

        if (draw & 1) /* once, or twice over: submessages are merged */
            for (size_t i = 0; i < length; i++)
                bytes[i] = honest[i % size];
        else
            for (size_t i = 0; i < length; i++) /* small bytes: more of them parse */
                bytes[i] = (uint8_t) (random_next(&seed) & (draw & 2 ? 0x1f : 0xff));
        for (unsigned flips = (draw >> 4) & 7; flips && length; flips--) {
            uint64_t flip = random_next(&seed);

            bytes[flip % length] ^= (uint8_t) (1u << ((flip >> 40) & 7));
        }
        r = ds_message_unpack(kinds[(draw >> 16) % (sizeof kinds / sizeof kinds[0])], bytes, length,
                              &message);
        assert_true(r == 0 || r == -EBADMSG || r == -EMSGSIZE);
        ok += r == 0;
        bad += r != 0;
        if (r == 0)
            (void) ds_message_size(message); /* walks everything that was unpacked */
        ds_message_free(message);
    }
    assert_true(ok > 100 && bad > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_goes_there_and_back),
        cmocka_unit_test(nothing_at_all_is_an_empty_message),
        cmocka_unit_test(packing_never_writes_beyond_the_capacity),
        cmocka_unit_test(a_message_cut_anywhere_is_an_error_or_a_shorter_message),
        cmocka_unit_test(lengths_that_point_beyond_the_end_are_refused),
        cmocka_unit_test(many_empty_submessages_hit_the_bound_not_the_memory),
        cmocka_unit_test(a_payload_over_the_limit_is_not_even_looked_at),
        cmocka_unit_test(the_largest_honest_messages_stay_within_the_bound),
        cmocka_unit_test(a_submessage_given_twice_is_merged_and_freed_once),
        cmocka_unit_test(the_schema_is_not_recursive),
        cmocka_unit_test(deep_nesting_in_the_bytes_does_not_deepen_the_parse),
        cmocka_unit_test(random_bytes_and_flipped_bits_never_do_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
