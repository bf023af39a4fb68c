/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

#include "shm/handshake.h"

/*
 * What happens between two lives of the daemon.
 *
 * A connection is lost at the end of its socket, when dsd says it is dead, when it breaks the
 * protocol, or when it stays silent: an idle dsd makes no beats, so silence alone proves nothing;
 * after DS_CLIENT_SILENCE_MSEC of it with something unfinished we send a ping, and only a ping
 * without any answer for as long again is a loss.
 *
 * What was in the completion ring when the socket ended is still delivered: the mapping outlives
 * its maker. Then every request that had been sent waits again, and goes to the next dsd with the
 * ids delivered so far; a payload of which only some pieces came counts as not delivered.
 */

#define MSEC UINT64_C(1000000)

/* First at once, then 10 ms, 20, 40 ... each shortened by up to a quarter at random, so that the
 * clients of a restarted dsd do not come all at the same moment. */
static uint64_t pause_nsec(unsigned attempts)
{
    uint64_t pause = DS_CLIENT_RETRY_MSEC_MIN * MSEC;
    uint32_t random = 0;

    if (attempts == 0)
        return 0;
    while (--attempts && pause < DS_CLIENT_RETRY_MSEC_MAX * MSEC)
        pause *= 2;
    if (pause > DS_CLIENT_RETRY_MSEC_MAX * MSEC)
        pause = DS_CLIENT_RETRY_MSEC_MAX * MSEC;
    (void) ds_client_random(&random, sizeof random);
    return pause - (pause / 4 * (random % 1024)) / 1024;
}

static void give_up(struct ds *ds)
{
    char text[sizeof ds->error.text];

    (void) snprintf(text, sizeof text,
                    "dsd at %s went away and has not come back (%s): start it again", ds->path,
                    ds->why);
    for (struct ds_client_request *request = ds->first; request; request = request->next)
        ds_client_request_end(ds, request, DS__ERROR__CODE__INTERNAL, text);
    ds->given_up = true;
    ds_client_kick(ds);
}

static void take_back(struct ds *ds, struct ds_client_request *request)
{
    if (request->state != DS_CLIENT_SENT)
        return;
    request->state = DS_CLIENT_WAITING;
    ds->n_sent--;
    request->next_seq = 0;
    request->part_type = 0;
    request->part.size = 0;
    request->cancel_sent = false;
}

void ds_client_lose(struct ds *ds, const char *why)
{
    const uint64_t now = ds_now_nsec();

    (void) snprintf(ds->why, sizeof ds->why, "%s", why);
    for (struct ds_client_request *request = ds->first; request; request = request->next) {
        bool sent = request->state == DS_CLIENT_SENT;

        take_back(ds, request);
        if (sent && request->cancel_wanted)
            ds_client_request_end(ds, request, 0, NULL);
        else if (sent && request->once)
            ds_client_request_end(ds, request, DS__ERROR__CODE__INTERNAL,
                                  "dsd went away before it answered: list the requests again");
    }
    ds_client_hang_up(ds);
    ds->held_nsec = 0;
    ds->flush_due = true;
    if (now - ds->connected_nsec > DS_CLIENT_SETTLED_MSEC * MSEC) {
        ds->lost_nsec = 0;
        ds->attempts = 0;
    }
    if (!ds->lost_nsec)
        ds->lost_nsec = now;
    ds->retry_nsec = now + pause_nsec(ds->attempts++);
    if (!ds->reconnect_nsec)
        give_up(ds);
    ds_client_kick(ds);
}

void ds_client_hold(struct ds *ds, struct ds_client_request *request)
{
    take_back(ds, request);
    request->held_life = ds->life;
    if (!ds->held_nsec)
        ds->held_nsec = ds_now_nsec();
}

void ds_client_hear(struct ds *ds)
{
    uint8_t datagram[DS_DATAGRAM_MAX];
    unsigned n_fds = 0;
    size_t size = 0;
    int r;

    /* GOODBYE and what later versions may say need no answer: errors say DRAINING one by one. */
    r = ds_datagram_receive(ds->socket, datagram, sizeof datagram, &size, NULL, 0, &n_fds);
    if (r != -EAGAIN && (r < 0 || size == 0))
        ds->hangup = true;
}

/* --- what is due -------------------------------------------------------------------------------
 */

static void attempt_failed(struct ds *ds, int code, uint64_t now)
{
    if (!ds->why[0])
        (void) snprintf(ds->why, sizeof ds->why, "%s", strerror(-code));
    if (code == -EPROTONOSUPPORT) { /* waiting does not make it better */
        give_up(ds);
        return;
    }
    ds->state = DS_CLIENT_AWAY;
    ds->retry_nsec = now + pause_nsec(++ds->attempts);
}

static int tend_away(struct ds *ds, uint64_t now)
{
    int r;

    if (ds->given_up)
        return DS_NONE;
    if (now - ds->lost_nsec >= ds->reconnect_nsec) {
        ds_client_hang_up(ds);
        give_up(ds);
        return 0;
    }
    if (ds->state == DS_CLIENT_AWAY) {
        if (now < ds->retry_nsec)
            return DS_NONE;
        ds->why[0] = '\0';
        r = ds_client_shake_begin(ds);
        if (r == 0) {
            ds->state = DS_CLIENT_SHAKING;
            ds->retry_nsec = now + DS_CLIENT_SHAKE_MSEC * MSEC;
        } else {
            attempt_failed(ds, r, now);
        }
        return 0;
    }
    r = ds_client_shake_continue(ds);
    if (r == -EAGAIN && now < ds->retry_nsec)
        return DS_NONE;
    if (r == -EAGAIN) {
        (void) snprintf(ds->why, sizeof ds->why, "it does not answer");
        ds_client_hang_up(ds);
    }
    if (r < 0)
        attempt_failed(ds, r, now);
    return 0;
}

/* Is dsd silent for too long while it owes us something? */
static int tend_silence(struct ds *ds, uint64_t now)
{
    const struct ds_sqe ping = { .op = DS_SQE_PING, .req_id = DS_CLIENT_PROBE_ID };
    uint64_t beat;

    if (ds->heard) {
        ds->heard = false;
        ds->heard_nsec = now;
        ds->probe_nsec = 0;
    }
    if (ds->n_sent == 0 || now - ds->heard_nsec < DS_CLIENT_SILENCE_MSEC * MSEC)
        return DS_NONE;
    beat = ds_channel_heartbeat(ds->channel);
    if (beat > ds->heard_nsec) {
        ds->heard_nsec = beat < now ? beat : now;
        ds->probe_nsec = 0;
        return DS_NONE;
    }
    if (!ds->probe_nsec) {
        if (ds_channel_submit(ds->channel, &ping, 0) == DS_CHANNEL_OK)
            ds_client_ring(ds);
        ds->probe_nsec = now;
        return DS_NONE;
    }
    if (now - ds->probe_nsec < DS_CLIENT_SILENCE_MSEC * MSEC)
        return DS_NONE;
    ds_client_lose(ds, "it does not answer");
    return 0;
}

/* Requests that a draining daemon gave back. */
static int tend_held(struct ds *ds, uint64_t now)
{
    if (!ds->held_nsec)
        return DS_NONE;
    if (ds->n_sent == 0) { /* nothing keeps us here: the next dsd may be listening already */
        ds_client_lose(ds, "it is being stopped");
        return 0;
    }
    if (now - ds->held_nsec < ds->reconnect_nsec)
        return DS_NONE;
    ds->held_nsec = 0;
    for (struct ds_client_request *request = ds->first; request; request = request->next)
        if (request->held_life == ds->life)
            ds_client_request_end(ds, request, DS__ERROR__CODE__DRAINING,
                                  "dsd is being stopped: ask again when it is back");
    return 0;
}

int ds_client_tend(struct ds *ds, uint64_t now)
{
    int r;

    if (ds->n_ended)
        return 0;
    if (ds->state != DS_CLIENT_UP)
        return tend_away(ds, now);
    if (ds->hangup) {
        ds_client_lose(ds, "it hung up");
        return 0;
    }
    r = ds_client_flush(ds);
    if (r < 0) {
        ds_client_lose(ds, "it broke the protocol");
        return 0;
    }
    r = tend_silence(ds, now);
    if (r == DS_NONE)
        r = tend_held(ds, now);
    return r;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

uint64_t ds_client_due(const struct ds *ds, uint64_t now)
{
    uint64_t due = UINT64_MAX;

    if (ds->n_ended)
        return now;
    if (ds->state != DS_CLIENT_UP)
        return ds->given_up ? due : earlier(ds->retry_nsec, ds->lost_nsec + ds->reconnect_nsec);
    if (ds->n_sent)
        due = (ds->probe_nsec ? ds->probe_nsec : ds->heard_nsec) + DS_CLIENT_SILENCE_MSEC * MSEC;
    if (ds->flush_due)
        due = earlier(due, now + DS_CLIENT_FLUSH_MSEC * MSEC);
    if (ds->held_nsec)
        due = earlier(due, ds->held_nsec + ds->reconnect_nsec);
    return due;
}
