/* SPDX-License-Identifier: Apache-2.0 */
/* Which experts a row goes to. Shazeer et al. 2017; groups and bias: DeepSeek-V2 and -V3 reports.
 */
#include <math.h>

#include "engine/cpu/cpu.h"

struct route {
    const struct ds_kernels *kernels;
    const struct ds_routing *routing;
    const float *logits;
    float *chosen, *weights;
};

/* The largest of those that are not out, the first of equals; NaN only where nothing else is. */
static uint32_t best_of(const float *score, const bool *out, uint32_t n)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < n; i++)
        if (!out[i] && (best == UINT32_MAX || score[i] > score[best] ||
                        (isnan(score[best]) && !isnan(score[i]))))
            best = i;
    return best;
}

static float group_score(const float *score, uint32_t n, bool by_two)
{
    float first = -INFINITY, second = -INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        if (score[i] > first) {
            second = first;
            first = score[i];
        } else if (score[i] > second) {
            second = score[i];
        }
    }
    return by_two && n > 1 ? first + second : first;
}

/* Puts out the experts of all groups but the best. */
static void keep_groups(const struct ds_routing *routing, const float *score, bool *out)
{
    const uint32_t n_groups = routing->n_groups, size = routing->n_experts / n_groups;
    float groups[DS_EXPERTS_MAX];
    bool kept[DS_EXPERTS_MAX] = { false };

    for (uint32_t i = 0; i < n_groups; i++)
        groups[i] = group_score(score + (size_t) i * size, size, routing->group_by_two);
    for (uint32_t i = 0; i < routing->n_groups_used; i++)
        kept[best_of(groups, kept, n_groups)] = true;
    for (uint32_t i = 0; i < routing->n_experts; i++)
        out[i] = !kept[i / size];
}

static void weigh(const struct route *route, float *weights)
{
    const struct ds_routing *routing = route->routing;
    float sum = 0;

    if (routing->gating == DS_GATING_SOFTMAX_CHOSEN)
        route->kernels->softmax(weights, routing->n_used);
    for (uint32_t i = 0; i < routing->n_used; i++)
        sum += weights[i];
    for (uint32_t i = 0; i < routing->n_used; i++) {
        if (routing->normalise)
            weights[i] /= sum + 1e-20f;
        weights[i] *= routing->scale;
    }
}

static void route_row(void *arg, uint32_t row, unsigned thread)
{
    const struct route *route = arg;
    const struct ds_routing *routing = route->routing;
    const uint32_t n = routing->n_experts;
    float *chosen = route->chosen + (size_t) row * routing->n_used;
    float *weights = route->weights + (size_t) row * routing->n_used;
    float p[DS_EXPERTS_MAX], score[DS_EXPERTS_MAX];
    bool out[DS_EXPERTS_MAX] = { false }, used[DS_EXPERTS_MAX] = { false };
    uint32_t count = 0;

    (void) thread;
    memcpy(p, route->logits + (size_t) row * n, n * sizeof *p);
    if (routing->gating == DS_GATING_SOFTMAX)
        route->kernels->softmax(p, n);
    else if (routing->gating == DS_GATING_SIGMOID)
        route->kernels->sigmoid(p, n);
    for (uint32_t i = 0; i < n; i++)
        score[i] = routing->bias ? p[i] + routing->bias->data[i] : p[i];
    if (routing->n_groups > 1)
        keep_groups(routing, score, out);
    for (uint32_t i = 0; i < routing->n_used; i++) {
        uint32_t best = best_of(score, out, n);

        out[best] = used[best] = true;
    }
    for (uint32_t i = 0; i < n; i++)
        if (used[i]) {
            chosen[count] = (float) i;
            weights[count++] = p[i];
        }
    weigh(route, weights);
}

static bool possible(const struct ds_routing *routing)
{
    uint32_t in_reach = routing->n_experts;

    if (routing->n_groups > 1) {
        if (routing->n_groups_used == 0 || routing->n_groups_used > routing->n_groups ||
            routing->n_experts % routing->n_groups != 0)
            return false;
        in_reach = routing->n_experts / routing->n_groups * routing->n_groups_used;
    }
    return routing->n_experts <= DS_EXPERTS_MAX && routing->n_used > 0 &&
           routing->n_used <= DS_EXPERTS_USED_MAX && routing->n_used <= in_reach;
}

int ds_cpu_route(struct ds_backend *backend, struct ds_buffer *chosen, struct ds_buffer *weights,
                 const struct ds_buffer *logits, const struct ds_routing *routing, uint32_t n)
{
    struct ds_cpu *cpu = ds_cpu(backend);
    struct route route = { .kernels = cpu->kernels,
                           .routing = routing,
                           .logits = logits->data,
                           .chosen = chosen->data,
                           .weights = weights->data };

    if (!possible(routing))
        return -EINVAL;
    ds_pool_run(cpu->pool, route_row, &route, n, 4);
    return 0;
}
