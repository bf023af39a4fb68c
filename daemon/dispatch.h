/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dispatch.h - from a submission to who answers it: dsd itself, or an engine.
 */
#pragma once

#include <stdbool.h>

#include "proto/message.h"

struct ds_call;
struct ds_session;
struct ds_sqe;

/* A SUBMIT. The payload (entry->payload_len bytes) is a private copy. */
void ds_dispatch_submit(struct ds_session *session, const struct ds_sqe *entry,
                        const void *payload);

/* What dsd answers from its own knowledge (verbs.c). True: it was that, and the call is over. */
bool ds_verb_answer(struct ds_call *call, const Ds__Request *request);

/* LoadRequest that has found its model resident; also when the load has ended. */
void ds_verb_loaded(struct ds_call *call);
