/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.h - the engine's end of the link to dsd: the step loop.
 *
 *   socketpair  WELCOME -> READY and the backend's description as text; then LOAD datagrams with
 *               the models' descriptors; EOF = dsd gone
 *   S ring      SUBMIT (LinkRequest), CANCEL, PING, CLOSE
 *   C ring      STEP (LinkStep, one for each scheduler step), FINAL (LinkReply), ERROR, NOTICE,
 *               PONG
 *
 * One thread owns the channel, the schedulers and the backend. Two helpers never touch them: the
 * loader opens models, the text thread renders and tokenises (worker.h). A turn: drain the ring,
 * take what the helpers finished, one step of every scheduler with work, publish, ring the bell.
 * With nothing to do it sleeps in poll() without a timeout.
 *
 * A cancelled request that is no generation ends with FINAL LinkReply{generate{cancelled}}, a
 * cancelled load with ERROR. What dsd sends that makes no sense ends the engine: dsd is the only
 * one who could repair it.
 */
#pragma once

#include "engine/link_model.h"

struct ds_link;

/* Shakes hands over socket (taken, even when it fails) and starts the helpers. environment is
 * copied; what it points to is borrowed. -ETIMEDOUT: no WELCOME came; -EPROTO: not a dsd; -EPIPE:
 * it hung up. */
int ds_link_new(struct ds_link **ret_link, int socket,
                const struct ds_link_environment *environment, struct ds_error *error);
struct ds_link *ds_link_free(struct ds_link *link); /* waits for the helpers; accepts NULL */

/* Serves until dsd hangs up or says CLOSE: 0. Negative: dsd lied (-EPROTO) or the backend failed;
 * the reason is in error. */
int ds_link_run(struct ds_link *link, struct ds_error *error);
