/* SPDX-License-Identifier: Apache-2.0 */
/*
 * generate.h - one streamed answer, as `run` and every turn of `chat` show it.
 */
#pragma once

#include "client/dsctl/dsctl.h"
#include "client/dsctl/think.h"
#include "proto/base.h"

/* How to generate, from the command line. */
struct dsctl_generation {
    struct ds_request request; /* sampling, limits, stop strings; model and input come later */
    const char *stop[DS_STOP_STRINGS_MAX];
    const char *system; /* or NULL */
    enum dsctl_think_mode think;
    struct dsctl_lora lora;
    const char *draft; /* name or file of a draft model, or NULL */
    struct dsctl_model draft_model;
};

/* The options both verbs take; keys from 300 on are theirs. */
enum {
    DSCTL_KEY_TEMP = 300,
    DSCTL_KEY_TOP_K,
    DSCTL_KEY_TOP_P,
    DSCTL_KEY_MIN_P,
    DSCTL_KEY_REPEAT_PENALTY,
    DSCTL_KEY_SEED,
    DSCTL_KEY_STOP,
    DSCTL_KEY_IGNORE_EOS,
    DSCTL_KEY_SYSTEM,
    DSCTL_KEY_THINK,
    DSCTL_KEY_LORA,
    DSCTL_KEY_SPEC,
    DSCTL_KEY_NO_SPEC,
    DSCTL_KEY_DRAFT,
};
#define DSCTL_GENERATION_OPTIONS                                                                   \
    { "max-tokens", "N", "stop after N tokens (0: when the model ends)", 'n' },                    \
        { "temp", "X", "temperature; 0 is always the likeliest token", DSCTL_KEY_TEMP },           \
        { "top-k", "N", "draw from the N likeliest tokens (0: all)", DSCTL_KEY_TOP_K },            \
        { "top-p", "X", "draw from the likeliest that make up X", DSCTL_KEY_TOP_P },               \
        { "min-p", "X", "leave out what is X times less likely than the best", DSCTL_KEY_MIN_P },  \
        { "repeat-penalty", "X", "make repeated tokens less likely (1: off)",                      \
          DSCTL_KEY_REPEAT_PENALTY },                                                              \
        { "seed", "N", "the same seed gives the same answer", DSCTL_KEY_SEED },                    \
        { "stop", "TEXT", "stop before TEXT; up to 16 times", DSCTL_KEY_STOP },                    \
        { "ignore-eos", NULL, "go on after an end token", DSCTL_KEY_IGNORE_EOS },                  \
        { "system", "TEXT", "the system message", DSCTL_KEY_SYSTEM },                              \
        { "lora", "NAME[=SCALE]", "with this LoRA adapter, a name or a file", DSCTL_KEY_LORA },    \
        { "spec", "off|ngram|mtp", "who guesses tokens ahead", DSCTL_KEY_SPEC },                   \
        { "no-spec", NULL, "guess no tokens ahead", DSCTL_KEY_NO_SPEC },                           \
        { "draft", "MODEL", "a smaller model that guesses tokens ahead", DSCTL_KEY_DRAFT },        \
    {                                                                                              \
        "think", "show|hide|only", "what to do with the model's thoughts", DSCTL_KEY_THINK         \
    }

void dsctl_generation_init(struct dsctl_generation *generation);
/* One of the options above. 0 or DSCTL_USAGE. */
int dsctl_generation_take(struct dsctl_generation *generation, int key, const char *value);

/* The adapter and the draft model of the options, opened where they are files, into the request. An
 * exit code. */
int dsctl_generation_open(struct dsctl *dsctl, struct dsctl_generation *generation);

/* Does this prompt of turns leave the model inside its thoughts? Asks dsd to render it; a model
 * without a template starts outside. An exit code. */
int dsctl_starts_inside(struct dsctl *dsctl, const struct dsctl_model *model,
                        const struct ds_chat_turn *turns, size_t n_turns, bool *ret_inside);

/* Submits request and prints what comes. A first SIGINT cancels: the answer so far is printed and
 * DSCTL_INTERRUPTED returned. *ret_text (may be NULL): the whole answer, fresh, of a chat without
 * its reasoning. An exit code. */
int dsctl_answer(struct dsctl *dsctl, const struct ds_request *request, enum dsctl_think_mode think,
                 bool inside, char **ret_text);
