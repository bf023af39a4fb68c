/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps that narrow the choice work on a list of candidates. Top-k fills it by one pass over
 * the logits with a heap of k; top-p and typical make a heap of what is left and pop it until the
 * wanted mass is out, so nobody ever sorts a whole vocabulary to draw from its head.
 *
 * The token must be the same on every machine, so what decides it uses plain arithmetic and an
 * exponential of our own: libm's may differ in the last bit from one processor to the next.
 */
#include "engine/serve/sampler.h"

#include <assert.h>
#include <float.h>
#include <math.h>

#include "engine/serve/philox.h"

enum { BIAS_MAX = 1024, CHUNK = 64 };

struct candidate {
    float logit;
    uint32_t id;
    double key;    /* largest first; ties: lowest id first */
    double weight; /* exp(logit - largest logit) */
};

struct ds_sampler {
    uint32_t n_vocab;
    float *logits;                /* [n_vocab] after bias and penalties */
    uint32_t *counts;             /* [n_vocab] all zero between calls */
    struct candidate *candidates; /* [n_vocab] */
};

/* exp(x) of n numbers x <= 0, within 2 ulp, the same on every machine; in place. x = k ln 2 + r,
 * |r| <= ln 2 / 2, two at a time. */
typedef double vec2 __attribute__((vector_size(16)));
typedef int64_t ivec2 __attribute__((vector_size(16)));

static inline vec2 exp_pair(vec2 x)
{
    /* 1/n!, n = 12..0 */
    static const double series[] = { 1.0 / 479001600,
                                     1.0 / 39916800,
                                     1.0 / 3628800,
                                     1.0 / 362880,
                                     1.0 / 40320,
                                     1.0 / 5040,
                                     1.0 / 720,
                                     1.0 / 120,
                                     1.0 / 24,
                                     1.0 / 6,
                                     1.0 / 2,
                                     1.0,
                                     1.0 };
    const ivec2 one = (ivec2) (vec2){ 1.0, 1.0 };
    ivec2 normal = x > -700.0; /* else 0; not for NaN either */
    vec2 shifted, k, r, sum;

    x = (vec2) ((ivec2) x & normal);
    shifted = x * 1.4426950408889634074 + 0x1.8p52; /* k in the low bits, to nearest */
    k = shifted - 0x1.8p52;
    r = x - k * 0x1.62e42fefa38p-1; /* ln 2 in two parts: the first times k is exact */
    r -= k * 0x1.ef35793c7673p-45;
    sum = r * (1.0 / 6227020800.0) + series[0];
    for (unsigned i = 1; i < sizeof series / sizeof series[0]; i++)
        sum = sum * r + series[i];
    sum *= (vec2) (((ivec2) shifted << 52) + one);
    return (vec2) ((ivec2) sum & normal);
}

static void exp_below(double *x, uint32_t n)
{
    uint32_t i = 0;

    for (; i + 2 <= n; i += 2) {
        vec2 pair = { x[i], x[i + 1] };

        pair = exp_pair(pair);
        x[i] = pair[0];
        x[i + 1] = pair[1];
    }
    if (i < n)
        x[i] = exp_pair((vec2){ x[i], -INFINITY })[0];
}

/* What a logit counts as: NaN can never win, and no infinity makes NaN of a difference. */
static inline float sane(float logit)
{
    if (!(logit >= -FLT_MAX)) /* NaN too */
        return -INFINITY;
    return logit > FLT_MAX ? FLT_MAX : logit;
}

/* --- parameters --- */

static int check_range(const char *name, float value, float low, float high, struct ds_error *error)
{
    if (value >= low && value <= high) /* false for NaN */
        return 0;
    return ds_error_set(error, -EINVAL, "%s is %g: it must be between %g and %g", name,
                        (double) value, (double) low, (double) high);
}

int ds_sampling_check(const struct ds_sampling *sampling, uint32_t n_vocab, struct ds_error *error)
{
    const struct {
        const char *name;
        float value, low, high;
    } ranges[] = {
        { "temperature", sampling->temperature, 0.0f, 100.0f },
        { "top_p", sampling->top_p, 0.0f, 1.0f },
        { "min_p", sampling->min_p, 0.0f, 1.0f },
        { "typical_p", sampling->typical_p, 0.0f, 1.0f },
        { "repeat_penalty", sampling->repeat_penalty, 0.01f, 100.0f },
        { "frequency_penalty", sampling->frequency_penalty, -100.0f, 100.0f },
        { "presence_penalty", sampling->presence_penalty, -100.0f, 100.0f },
    };

    for (unsigned i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        int r = check_range(ranges[i].name, ranges[i].value, ranges[i].low, ranges[i].high, error);
        if (r < 0)
            return r;
    }
    if (sampling->n_bias > BIAS_MAX)
        return ds_error_set(error, -EINVAL, "logit_bias has %u entries: at most %d are allowed",
                            sampling->n_bias, BIAS_MAX);
    for (uint32_t i = 0; i < sampling->n_bias; i++) {
        const struct ds_logit_bias *bias = &sampling->bias[i];

        if (bias->token >= n_vocab)
            return ds_error_set(error, -EINVAL,
                                "logit_bias names token %u: the vocabulary ends at %u", bias->token,
                                n_vocab - 1);
        if (!(bias->bias <= FLT_MAX))
            return ds_error_set(error, -EINVAL,
                                "logit_bias of token %u is %g: it must be finite, or -inf to ban "
                                "the token",
                                bias->token, (double) bias->bias);
    }
    return 0;
}

/* --- scratch --- */

int ds_sampler_new(struct ds_sampler **ret_sampler, uint32_t n_vocab)
{
    struct ds_sampler *sampler;

    assert(n_vocab > 0);
    sampler = calloc(1, sizeof *sampler);
    if (!sampler)
        return -ENOMEM;
    sampler->n_vocab = n_vocab;
    sampler->logits = calloc(n_vocab, sizeof *sampler->logits);
    sampler->counts = calloc(n_vocab, sizeof *sampler->counts);
    sampler->candidates = calloc(n_vocab, sizeof *sampler->candidates);
    if (!sampler->logits || !sampler->counts || !sampler->candidates) {
        (void) ds_sampler_free(sampler);
        return -ENOMEM;
    }
    *ret_sampler = sampler;
    return 0;
}

struct ds_sampler *ds_sampler_free(struct ds_sampler *sampler)
{
    if (!sampler)
        return NULL;
    free(sampler->logits);
    free(sampler->counts);
    free(sampler->candidates);
    free(sampler);
    return NULL;
}

/* --- heaps: parent i, children 2i+1 and 2i+2 --- */

/* Whether a is drawn before b. */
static inline bool before(const struct candidate *a, const struct candidate *b)
{
    return a->key > b->key || (a->key == b->key && a->id < b->id);
}

/* Moves heap[i] down. first: the root is the first in order, else the last. */
static void sift(struct candidate *heap, uint32_t n, uint32_t i, bool first)
{
    struct candidate moving = heap[i];

    for (;;) {
        uint32_t child = 2 * i + 1;

        if (child >= n)
            break;
        if (child + 1 < n && before(&heap[child + 1], &heap[child]) == first)
            child++;
        if (before(&moving, &heap[child]) == first)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void heapify(struct candidate *heap, uint32_t n, bool first)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(heap, n, i, first);
}

/* Turns a heap whose root is the last in order into an array in order. */
static void unheap(struct candidate *heap, uint32_t n)
{
    for (uint32_t end = n; end-- > 1;) {
        struct candidate last = heap[0];

        heap[0] = heap[end];
        heap[end] = last;
        sift(heap, end, 0, false);
    }
}

/* --- the steps --- */

static bool adjusts(const struct ds_sampling *sampling)
{
    return sampling->n_bias > 0 ||
           (sampling->repeat_last_n > 0 &&
            (sampling->repeat_penalty != 1.0f || sampling->frequency_penalty != 0.0f ||
             sampling->presence_penalty != 0.0f));
}

/* Bias, then penalties over the last repeat_last_n tokens, into sampler->logits. */
static const float *adjust(struct ds_sampler *sampler, const struct ds_sampling *sampling,
                           const float *logits, const uint32_t *history, size_t n_history)
{
    size_t start = n_history > sampling->repeat_last_n ? n_history - sampling->repeat_last_n : 0;
    float *out = sampler->logits;

    memcpy(out, logits, sampler->n_vocab * sizeof *out);
    for (uint32_t i = 0; i < sampling->n_bias; i++) {
        float *logit = &out[sampling->bias[i].token];

        *logit = sane(*logit) + sampling->bias[i].bias;
    }
    for (size_t i = start; i < n_history; i++) {
        assert(history[i] < sampler->n_vocab);
        sampler->counts[history[i]]++;
    }
    for (size_t i = start; i < n_history; i++) {
        uint32_t count = sampler->counts[history[i]];
        float *logit = &out[history[i]];

        if (count == 0)
            continue; /* done at an earlier occurrence */
        sampler->counts[history[i]] = 0;
        *logit =
            *logit > 0.0f ? *logit / sampling->repeat_penalty : *logit * sampling->repeat_penalty;
        *logit -= (float) count * sampling->frequency_penalty + sampling->presence_penalty;
    }
    return out;
}

/* The largest logit, NaN apart; -inf where there is none. */
static float largest_of(const float *logits, uint32_t n)
{
    typedef float vec4 __attribute__((vector_size(16)));
    typedef int32_t ivec4 __attribute__((vector_size(16)));
    const vec4 none = { -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    vec4 best[2] = { none, none }, x;
    float largest = -INFINITY;

    for (; n >= 8; n -= 8, logits += 8) {
        for (unsigned i = 0; i < 2; i++) {
            ivec4 larger;

            memcpy(&x, logits + (size_t) 4 * i, sizeof x);
            larger = x > best[i]; /* false for NaN */
            best[i] = (vec4) (((ivec4) x & larger) | ((ivec4) best[i] & ~larger));
        }
    }
    for (unsigned i = 0; i < 8; i++)
        largest = best[i / 4][i % 4] > largest ? best[i / 4][i % 4] : largest;
    for (uint32_t i = 0; i < n; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    return largest;
}

static uint32_t argmax(const float *logits, uint32_t n)
{
    float largest = largest_of(logits, n);
    uint32_t id = 0;

    if (largest == -INFINITY)
        return 0;
    while (logits[id] != largest)
        id++;
    return id;
}

/* The k largest logits, in order. */
static uint32_t select_top(struct candidate *list, const float *logits, uint32_t n, uint32_t k)
{
    enum { LOOK_AHEAD = 64 }; /* so many at a time are passed over when none is large enough */

    for (uint32_t i = 0; i < k; i++)
        list[i] = (struct candidate){ .logit = sane(logits[i]), .id = i, .key = sane(logits[i]) };
    heapify(list, k, false);
    for (uint32_t start = k; start < n; start += LOOK_AHEAD) {
        uint32_t end = n - start < LOOK_AHEAD ? n : start + LOOK_AHEAD;

        if (!(largest_of(logits + start, end - start) > list[0].logit))
            continue;
        for (uint32_t i = start; i < end; i++) {
            if (!(logits[i] > list[0].logit)) /* an equal one has the higher id: the one in wins */
                continue;
            list[0] =
                (struct candidate){ .logit = sane(logits[i]), .id = i, .key = sane(logits[i]) };
            sift(list, k, 0, false);
        }
    }
    unheap(list, k);
    return k;
}

static uint32_t take_all(struct candidate *list, const float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        list[i] = (struct candidate){ .logit = sane(logits[i]), .id = i };
    return n;
}

/* Sets every weight; returns their sum. */
static double weigh(struct candidate *list, uint32_t n, float largest, double temperature)
{
    double chunk[CHUNK], total = 0.0;

    for (uint32_t start = 0; start < n; start += CHUNK) {
        uint32_t m = n - start < CHUNK ? n - start : CHUNK;

        for (uint32_t i = 0; i < m; i++)
            chunk[i] = ((double) list[start + i].logit - (double) largest) / temperature;
        exp_below(chunk, m);
        for (uint32_t i = 0; i < m; i++)
            total += list[start + i].weight = chunk[i];
    }
    return total;
}

static uint32_t drop_light(struct candidate *list, uint32_t n, double lightest)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (list[i].weight >= lightest)
            list[kept++] = list[i];
    }
    return kept;
}

/* Keeps the candidates that come first by key until their weights reach mass; at least one. */
static uint32_t keep_mass(struct candidate *list, uint32_t n, double mass)
{
    double sum = 0.0;
    uint32_t kept = 0;

    /* Sort from the front: the heap's rest lies behind what has been taken. Swapping the root out
     * to the end would reverse the order, so the popped ones gather at the end and are turned. */
    heapify(list, n, true);
    while (kept < n) {
        struct candidate taken = list[0];
        uint32_t end = n - 1 - kept;

        list[0] = list[end];
        list[end] = taken;
        sift(list, end, 0, true);
        kept++;
        sum += taken.weight;
        if (sum >= mass)
            break;
    }
    for (uint32_t i = 0, j = n - 1; i < j; i++, j--) {
        struct candidate swap = list[i];

        list[i] = list[j];
        list[j] = swap;
    }
    return kept;
}

/* Locally typical sampling (Meister et al. 2022): nearest first to the expected surprise. With
 * -ln p_i = c - logit_i the constant cancels in |-ln p_i - entropy|. */
static uint32_t keep_typical(struct candidate *list, uint32_t n, double total, double mass)
{
    double mean = 0.0;

    for (uint32_t i = 0; i < n; i++) {
        if (list[i].weight > 0.0)
            mean += list[i].weight / total * (double) list[i].logit;
    }
    for (uint32_t i = 0; i < n; i++)
        list[i].key = -fabs(mean - (double) list[i].logit);
    return keep_mass(list, n, mass * total);
}

static uint32_t draw(const struct candidate *list, uint32_t n, double total, double uniform)
{
    double left = uniform * total;
    uint32_t id = list[0].id;

    for (uint32_t i = 0; i < n; i++) {
        if (list[i].weight <= 0.0)
            continue;
        id = list[i].id; /* rounding may leave a rest: the last possible one takes it */
        left -= list[i].weight;
        if (left < 0.0)
            break;
    }
    return id;
}

static float largest_logit(const struct candidate *list, uint32_t n)
{
    float largest = list[0].logit;

    for (uint32_t i = 1; i < n; i++)
        largest = list[i].logit > largest ? list[i].logit : largest;
    return largest;
}

uint32_t ds_sampler_pick(struct ds_sampler *sampler, const struct ds_sampling *sampling,
                         const float *logits, const uint32_t *history, size_t n_history,
                         uint64_t position)
{
    struct candidate *list = sampler->candidates;
    uint32_t n = sampler->n_vocab, k = sampling->top_k;
    float largest;
    double total;

    if (adjusts(sampling))
        logits = adjust(sampler, sampling, logits, history, n_history);
    if (sampling->temperature <= 0.0f || k == 1)
        return argmax(logits, n);

    n = k > 0 && k < n ? select_top(list, logits, n, k) : take_all(list, logits, n);
    largest = largest_logit(list, n);
    if (largest == -INFINITY)
        return 0; /* everything is banned */
    total = weigh(list, n, largest, 1.0);
    if (sampling->typical_p < 1.0f) {
        n = keep_typical(list, n, total, (double) sampling->typical_p);
        largest = largest_logit(list, n);
        total = weigh(list, n, largest, 1.0);
    }
    if (sampling->top_p < 1.0f) {
        /* First what it cannot reach: all of that together weighs less than what it leaves out. */
        n = drop_light(list, n, (1.0 - (double) sampling->top_p) * total / n);
        for (uint32_t i = 0; i < n; i++)
            list[i].key = (double) list[i].logit;
        n = keep_mass(list, n, (double) sampling->top_p * total);
    }
    if (sampling->min_p > 0.0f)
        n = drop_light(list, n, (double) sampling->min_p); /* the largest weighs 1 */
    total = weigh(list, n, largest, (double) sampling->temperature);
    return draw(list, n, total, ds_philox_uniform(sampling->seed, position));
}

/* --- log-probabilities: reported, never decide a token --- */

static double log_sum_exp(const float *logits, uint32_t n)
{
    double largest = (double) sane(largest_of(logits, n)), chunk[CHUNK], total = 0.0;

    if (largest == -INFINITY)
        return INFINITY;
    for (uint32_t start = 0; start < n; start += CHUNK) {
        uint32_t m = n - start < CHUNK ? n - start : CHUNK;

        for (uint32_t i = 0; i < m; i++)
            chunk[i] = (double) sane(logits[start + i]) - largest;
        exp_below(chunk, m);
        for (uint32_t i = 0; i < m; i++)
            total += chunk[i];
    }
    return largest + log(total);
}

double ds_logprob(const float *logits, uint32_t n_vocab, uint32_t id)
{
    assert(id < n_vocab);
    return (double) sane(logits[id]) - log_sum_exp(logits, n_vocab);
}

void ds_top_logprobs(const float *logits, uint32_t n_vocab, struct ds_top_token *ret_top,
                     unsigned n)
{
    double sum = log_sum_exp(logits, n_vocab);
    unsigned found = 0;

    assert(n <= n_vocab);
    /* Insertion into a short ordered list; .logprob holds the logit meanwhile. */
    for (uint32_t id = 0; id < n_vocab; id++) {
        float logit = sane(logits[id]);
        unsigned i;

        if (n == 0 || (found == n && !(logit > ret_top[n - 1].logprob)))
            continue;
        found += found < n;
        for (i = found - 1; i > 0 && logit > ret_top[i - 1].logprob; i--)
            ret_top[i] = ret_top[i - 1];
        ret_top[i] = (struct ds_top_token){ .id = id, .logprob = logit };
    }
    for (unsigned i = 0; i < n; i++)
        ret_top[i].logprob = (float) ((double) ret_top[i].logprob - sum);
}
