/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: each limit holds to the unit, per user, and everything charged is given back.
 * Method: charge up to each limit and one beyond; release in another order; count the accounts.
 */
#include "daemon/admission.h"
#include "daemon/config.h"
#include "proto/base.h"

#include <sys/socket.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct fixture {
    struct ds_config config;
    struct ds_admission admission;
    struct ds_error error;
};

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    f->config.clients = 10;
    f->config.clients_per_user = 4;
    f->config.requests_per_user = 3;
    f->config.queued_bytes_per_user = 1000;
    f->config.region_bytes_per_user = 5000;
    ds_admission_init(&f->admission, &f->config);
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;

    assert_true(ds_list_empty(&f->admission.users)); /* nothing is left charged */
    ds_admission_deinit(&f->admission);
    free(f);
    return 0;
}

static void connections_are_limited_per_user_and_in_all(void **state)
{
    struct fixture *f = *state;
    struct ds_user *users[11], *extra;
    unsigned n = 0;

    for (uint32_t uid = 0; uid < 3; uid++) {
        for (unsigned i = 0; i < 4 && n < 10; i++)
            assert_int_equal(ds_admission_enter(&f->admission, uid, &users[n++], &f->error),
                             DS_ADMITTED);
        if (n < 10) {
            assert_int_equal(ds_admission_enter(&f->admission, uid, &extra, &f->error), DS_REFUSED);
            assert_non_null(strstr(f->error.text, "clients_per_user"));
        }
    }
    assert_int_equal(ds_admission_enter(&f->admission, 99, &extra, &f->error), DS_REFUSED);
    assert_non_null(strstr(f->error.text, "(clients)"));
    while (n > 0)
        ds_admission_leave(&f->admission, users[--n]);
    assert_int_equal(f->admission.n_clients, 0);
}

static void requests_are_limited_in_number_and_bytes(void **state)
{
    struct fixture *f = *state;
    struct ds_user *user;

    assert_int_equal(ds_admission_enter(&f->admission, 7, &user, &f->error), DS_ADMITTED);
    assert_int_equal(ds_user_uid(user), 7);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, 1001, &f->error), DS_REFUSED);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, 600, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, 401, &f->error), DS_REFUSED);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, SIZE_MAX, &f->error),
                     DS_REFUSED);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, 400, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, 0, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_charge_request(&f->admission, user, 0, &f->error), DS_REFUSED);
    assert_non_null(strstr(f->error.text, "requests_per_user"));
    ds_admission_leave(&f->admission, user); /* the account outlives the connection */
    ds_admission_release_request(&f->admission, user, 400);
    ds_admission_release_request(&f->admission, user, 0);
    ds_admission_release_request(&f->admission, user, 600);
}

static void shared_memory_is_limited(void **state)
{
    struct fixture *f = *state;
    struct ds_user *user, *other;

    assert_int_equal(ds_admission_enter(&f->admission, 7, &user, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_enter(&f->admission, 8, &other, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_charge_region(&f->admission, user, 4999, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_charge_region(&f->admission, user, 2, &f->error), DS_REFUSED);
    assert_int_equal(ds_admission_charge_region(&f->admission, user, UINT64_MAX, &f->error),
                     DS_REFUSED);
    assert_int_equal(ds_admission_charge_region(&f->admission, other, 5000, &f->error),
                     DS_ADMITTED); /* each user for himself */
    ds_admission_release_region(&f->admission, other, 5000);
    ds_admission_release_region(&f->admission, user, 4999);
    ds_admission_leave(&f->admission, user);
    ds_admission_leave(&f->admission, other);
}

static void a_limit_lowered_below_what_is_held_refuses_more(void **state)
{
    struct fixture *f = *state;
    struct ds_user *user;

    assert_int_equal(ds_admission_enter(&f->admission, 7, &user, &f->error), DS_ADMITTED);
    assert_int_equal(ds_admission_charge_region(&f->admission, user, 5000, &f->error), DS_ADMITTED);
    f->config.region_bytes_per_user = 100;
    assert_int_equal(ds_admission_charge_region(&f->admission, user, 1, &f->error), DS_REFUSED);
    ds_admission_release_region(&f->admission, user, 5000);
    ds_admission_leave(&f->admission, user);
}

static void a_peer_is_who_the_kernel_says(void **state)
{
    struct ds_peer peer;
    int pair[2];

    (void) state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    assert_int_equal(ds_peer_of(pair[0], &peer), 0);
    assert_int_equal(peer.uid, geteuid());
    assert_int_equal(peer.pid, getpid());
    (void) close(pair[0]);
    (void) close(pair[1]);
    assert_true(ds_peer_of(pair[0], &peer) < 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(connections_are_limited_per_user_and_in_all),
        TEST(requests_are_limited_in_number_and_bytes),
        TEST(shared_memory_is_limited),
        TEST(a_limit_lowered_below_what_is_held_refuses_more),
        TEST(a_peer_is_who_the_kernel_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
