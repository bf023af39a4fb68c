/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ds.h - libds: models resident in dsd, used through shared memory.
 *
 * The mental model: connect once; submit any number of requests; take their events in the order
 * they come, until each request's last event (DS_EVENT_FINAL or DS_EVENT_ERROR). A daemon or engine
 * that dies in between costs a pause: libds connects again and resumes every request after the
 * tokens it has delivered, with the same seed, so the bytes go on as if nothing had happened.
 *
 * Blocking programs call ds_next() with a timeout. Event loops (epoll, io_uring poll, select) wait
 * until ds_fd() is readable, then call ds_next() with timeout 0 until it returns DS_NONE.
 *
 * A request that dsd refuses or drops because it is being stopped (ds.Error.Code DRAINING) is held
 * and resumed likewise when the next dsd is there. The one request that is not sent twice is
 * CancelRequest: the ids it names belong to one life of the daemon.
 *
 * libds starts no threads, touches no signals, writes to no stream.
 *
 * Threads: one connection is used by one thread at a time; any number of connections may exist.
 * Return values: 0 or positive as documented; negative errno on failure, with one line for a person
 * in ds_error_text(). Structures start with struct_size so that they can grow.
 */
#ifndef DS_H
#define DS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DS_VERSION "0.1.0"

#if defined(__GNUC__)
#define DS_API __attribute__((visibility("default")))
#else
#define DS_API
#endif

struct ds; /* a connection */

struct ds_connect_options {
    size_t struct_size;            /* sizeof(struct ds_connect_options) */
    const char *socket;            /* NULL: $DSD_SOCKET, else the user's, else /run/dsd/dsd.sock */
    const char *app_name;          /* shown by `dsctl requests`; NULL: the program's name */
    uint32_t arena_bytes;          /* room for requests not yet taken by dsd; 0: 1 MiB */
    uint32_t reconnect_timeout_ms; /* how long a lost daemon is waited for; 0: 30 s; UINT32_MAX: not
                                      at all */
    uint32_t spin_usec;            /* how long a waiting ds_next() looks before it sleeps; 0: libds
                                      decides; UINT32_MAX: it sleeps at once */
};

/* Connects (options may be NULL). -ENOENT, -ECONNREFUSED: no daemon there; -EACCES: not allowed;
 * -EBUSY: over a limit; -EPROTONOSUPPORT. On failure *ret_ds is NULL and the line is
 * ds_error_text(NULL) of the calling thread. */
DS_API int ds_connect(struct ds **ret_ds, const struct ds_connect_options *options);

/* Ends the connection; unfinished requests are cancelled. Accepts NULL. */
DS_API void ds_close(struct ds *ds);

/* The line for a person about the last failure on this connection (NULL: of this thread's
 * ds_connect). Borrowed. */
DS_API const char *ds_error_text(const struct ds *ds);

struct ds_chat_turn {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8, NUL-terminated */
};

/* Who guesses tokens ahead (ds.Speculation of ds.proto). */
enum ds_speculation {
    DS_SPECULATION_DEFAULT, /* as dsd is configured */
    DS_SPECULATION_OFF,
    DS_SPECULATION_NGRAM,
    DS_SPECULATION_MTP /* an error where the model has no module for it */
};

/* A request for an answer. Zero-initialise, set struct_size and what you need. Exactly one of
 * prompt, turns, tokens. Everything is copied. */
struct ds_request {
    size_t struct_size;               /* sizeof(struct ds_request) */
    const char *model;                /* name; NULL where attachment is used */
    uint64_t attachment;              /* of ds_attach(), 0: none */
    const char *prompt;               /* text as it is, no template */
    const struct ds_chat_turn *turns; /* rendered by the model's chat template */
    size_t n_turns;
    const uint32_t *tokens;
    size_t n_tokens;
    uint32_t max_tokens;     /* 0: until the model ends or its context is full */
    const char *const *stop; /* stop strings */
    size_t n_stop;
    uint32_t set;      /* DS_SET_* bits: which of the following are said; others take defaults */
    float temperature; /* 0 = always the likeliest token */
    uint32_t top_k;
    float top_p;
    float min_p;
    float repeat_penalty;
    uint64_t seed; /* not said: a random one */
    int ignore_eos;
    uint32_t logprobs;        /* alternatives per token */
    uint64_t deadline_nsec;   /* CLOCK_MONOTONIC; 0: none */
    const char *lora;         /* LoRA adapter: one that is loaded (`dsctl lora load`, or a packed
                                 LoraLoadRequest), or in the models directory; NULL: none */
    uint64_t lora_attachment; /* or its files, of ds_attach(); 0: none */
    float lora_scale;         /* DS_SET_LORA_SCALE; not said: 1; 0 is as without */
    enum ds_speculation speculation; /* who guesses tokens ahead; changes the time alone */
    const char *draft; /* a smaller model of the same vocabulary that guesses instead, loaded
                          where it is not; NULL: none. speculation stays unsaid with it */
    uint64_t draft_attachment; /* or its files, of ds_attach(); 0: none */
};

#define DS_SET_TEMPERATURE    (1u << 0)
#define DS_SET_TOP_K          (1u << 1)
#define DS_SET_TOP_P          (1u << 2)
#define DS_SET_MIN_P          (1u << 3)
#define DS_SET_REPEAT_PENALTY (1u << 4)
#define DS_SET_SEED           (1u << 5)
#define DS_SET_LORA_SCALE     (1u << 20)

/* Submits; *ret_id names the request on this connection. -EAGAIN: as many are unfinished as dsd
 * grants one connection, take events first; -EMSGSIZE: larger than the arena; -EINVAL. While dsd is
 * away the request is kept and goes out when it is back. */
DS_API int ds_submit(struct ds *ds, const struct ds_request *request, uint64_t *ret_id);

/* Submits any packed ds.Request (proto/ds.proto, installed as ds.proto): load, ps, tokenize, score,
 * ... or generate with everything it can say (a seed of 0 means a random one there). Errors as
 * ds_submit(). */
DS_API int ds_send(struct ds *ds, const void *request, size_t size, uint64_t *ret_id);

/* Hands over open files of one model (all splits), to be named by *ret_attachment in requests of
 * this connection. The descriptors stay the caller's. libds keeps duplicates until the connection
 * is closed, to hand them over again after a reconnect. -EINVAL, -EMFILE, -ENOMEM. */
DS_API int ds_attach(struct ds *ds, const char *name, const int *fds, unsigned n_fds,
                     uint64_t *ret_attachment);

/* The same with the files' names (without folders), as a model in the form of Hugging Face needs:
 * config.json, the *.safetensors, the tokeniser's files. file_names NULL is ds_attach(). */
DS_API int ds_attach_named(struct ds *ds, const char *name, const int *fds,
                           const char *const *file_names, unsigned n_fds, uint64_t *ret_attachment);

enum ds_event_type {
    DS_EVENT_TOKENS = 1, /* ids, text */
    DS_EVENT_FINAL,      /* message: packed ds.Reply; for generations also reason and usage */
    DS_EVENT_ERROR,      /* error_code (ds.Error.Code), text: the line; ends the request */
    DS_EVENT_PROGRESS,   /* text: stage; fraction */
    DS_EVENT_PONG
};

enum ds_reason {
    DS_REASON_STOP = 1,
    DS_REASON_LENGTH,
    DS_REASON_CANCELLED,
    DS_REASON_DEADLINE,
    DS_REASON_ERROR
};

/* What a piece of a chat answer's text is, as far as can be told when it comes. */
enum ds_event_part {
    DS_PART_IS_CONTENT,
    DS_PART_IS_REASONING,
    DS_PART_IS_TOOL_CALL, /* as the model writes it; content in the end where it is none */
    DS_PART_IS_MARKUP     /* tags, and white space around them */
};

struct ds_event_piece {
    enum ds_event_part part;
    size_t size; /* bytes of text */
};

struct ds_event_call {
    const char *id, *name;
    const char *arguments; /* a JSON object, as the model wrote it; not NUL-terminated */
    size_t arguments_size;
};

struct ds_event {
    uint64_t id;
    enum ds_event_type type;
    const uint32_t *ids; /* TOKENS */
    size_t n_ids;
    const char *text; /* UTF-8, whole characters; NUL-terminated at text_size. FINAL: the last text
                         of the answer */
    size_t text_size;
    const void *message; /* FINAL: packed ds.Reply. TOKENS with logprobs or pieces: packed
                            ds.TokenChunk. Else NULL */
    size_t message_size;
    enum ds_reason reason; /* FINAL of a generation */
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
    double ttft_ms, decode_ms;
    uint32_t error_code; /* ERROR */
    double fraction;     /* PROGRESS */
    /* Chats (turns, or ChatMessages): */
    const struct ds_event_piece *pieces; /* TOKENS, FINAL: text, piece by piece */
    size_t n_pieces;                     /* 0: all of text is content */
    const char *reasoning, *content; /* FINAL: the whole answer without tags, or NULL; not ended by
                                        a NUL */
    size_t reasoning_size, content_size;
    const struct ds_event_call *calls; /* FINAL: of tools, where the request gave some */
    size_t n_calls;
};

#define DS_NONE 1 /* no event within the time */

/* Next event; what it points to is valid until the next call on ds. timeout_ms: 0 = do not wait, -1
 * = no limit. 0: an event. DS_NONE. -ENOTCONN: the daemon is gone and did not come back in time;
 * every unfinished request gets a DS_EVENT_ERROR first. A later ds_submit() tries anew. -EINTR: a
 * signal handler ran while waiting: call again. */
DS_API int ds_next(struct ds *ds, struct ds_event *ret_event, int timeout_ms);

/* Asks for the end of a request; its last event still comes (FINAL with DS_REASON_CANCELLED for a
 * generation). Unknown ids are no error. */
DS_API int ds_cancel(struct ds *ds, uint64_t id);

/* Answered by DS_EVENT_PONG: the bare round trip. */
DS_API int ds_ping(struct ds *ds, uint64_t *ret_id);

/* Readable when ds_next() has something to do (level-triggered until DS_NONE). Changes never, also
 * across reconnects; belongs to ds: do not read or close it. */
DS_API int ds_fd(const struct ds *ds);

#ifdef __cplusplus
}
#endif
#endif
