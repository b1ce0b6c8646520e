/* The four searches for scales of llama.cpp's ggml-quants.c, one block per lane.
 *
 * x[i] is value i of every lane's block, w[i] its weight. Sums run over i in order, products and
 * quotients associate as there; a scalar branch is a select here, an early exit a lane that is not
 * live. The integers found are not stored but follow from the factor they were rounded with.
 * Where no number to be rounded can reach 2^22, rounding stays in floats (`rounded`), otherwise it
 * takes ggml's way through the bits (`nearest`), whose result is defined for every float.
 */

#define SMALLEST_GROUP 1e-15f

/* x is near scale * l + low, l = clamp(nearest(factor * (x - base))), 0 in lanes not live. */
struct affine {
    vf scale, low, factor, base;
    vm live;
};

struct steps {
    float first, step;
    int last, absolute; /* steps 0..last; errors are absolute differences, otherwise squares */
};

INLINE vf quantum(vf a, int most, int exact)
{
    return exact ? to_float(iclamp(nearest(a), 0, most)) : clamp(rounded(a), 0, most);
}

/* Sums over a block are chains of additions, each of which waits for the one before; a pair of
 * blocks side by side keeps the processor busy meanwhile. `pair` is how many there are, 1 or PAIR;
 * block k's n values begin at x[k * n]. */
#define PAIR 2

INLINE void weighted_errors(vf *error, const vf *x, const vf *w, const vf *l, const vf *scale,
                            const vf *low, int pair, int n, int absolute)
{
    for (int k = 0; k < pair; k++)
        error[k] = zero();
    for (int i = 0; i < n; i++)
        for (int k = 0; k < pair; k++) {
            vf difference = scale[k] * l[k * n + i] + low[k] - x[k * n + i];
            error[k] += w[k * n + i] * (absolute ? magnitude(difference) : difference * difference);
        }
}

/* Products are monotone in x, so the outermost values tell whether all stay below 2^22. */
INLINE int rounds_in_floats(vf factor, vf low, vf smallest, vf largest, vm live)
{
    vm fits = le(magnitude(factor * (smallest - low)), all(ROUNDED_LIMIT));
    fits &= le(magnitude(factor * (largest - low)), all(ROUNDED_LIMIT));
    return !any(live & ~fits);
}

/* What is known of a block before its search. */
struct extent {
    vf smallest, largest, sum_w, sum_x;
};

INLINE struct extent extent_of(const vf *x, const vf *w, int n)
{
    struct extent e = {x[0], x[0], w[0], w[0] * x[0]};
    for (int i = 1; i < n; i++) {
        e.smallest = vmin(x[i], e.smallest);
        e.largest = vmax(x[i], e.largest);
        e.sum_w += w[i];
        e.sum_x += w[i] * x[i];
    }
    return e;
}

/* One step: quantize with `factor`, fit scale and low to the result, keep what is better. */
INLINE void affine_step(struct affine *best, vf *best_error, const vf *x, const vf *w,
                        const struct extent *e, const vf *factor, int pair, int n, int most,
                        int absolute, int exact)
{
    vf l[PAIR * 32], sum_l[PAIR], sum_l2[PAIR], sum_xl[PAIR], determinant[PAIR];
    vf scale[PAIR], low[PAIR], error[PAIR];
    for (int k = 0; k < pair; k++)
        sum_l[k] = sum_l2[k] = sum_xl[k] = zero();
    for (int i = 0; i < n; i++)
        for (int k = 0; k < pair; k++) {
            int at = k * n + i;
            l[at] = quantum(factor[k] * (x[at] - best[k].low), most, exact);
            vf weighted = w[at] * l[at];
            sum_l[k] += weighted;
            sum_l2[k] += weighted * l[at];
            sum_xl[k] += weighted * x[at];
        }
    for (int k = 0; k < pair; k++) {
        determinant[k] = e[k].sum_w * sum_l2[k] - sum_l[k] * sum_l[k];
        scale[k] = (e[k].sum_w * sum_xl[k] - e[k].sum_x * sum_l[k]) / determinant[k];
        low[k] = (sum_l2[k] * e[k].sum_x - sum_l[k] * sum_xl[k]) / determinant[k];
        vm above = gt(low[k], zero());
        if (any(above)) {
            scale[k] = sel(above, sum_xl[k] / sum_l2[k], scale[k]);
            low[k] = sel(above, zero(), low[k]);
        }
    }
    weighted_errors(error, x, w, l, scale, low, pair, n, absolute);
    for (int k = 0; k < pair; k++) {
        vm better = best[k].live & gt(determinant[k], zero()) & lt(error[k], best_error[k]);
        best_error[k] = sel(better, error[k], best_error[k]);
        best[k].factor = sel(better, factor[k], best[k].factor);
        best[k].scale = sel(better, scale[k], best[k].scale);
        best[k].base = sel(better, best[k].low, best[k].base);
        best[k].low = sel(better, low[k], best[k].low);
    }
}

/* ggml's make_qkx2_quants and make_qkx3_quants; 0 if a product may reach 2^22 and exact is 0. */
INLINE int try_affine(struct affine *best, const struct extent *e, const vf *x, const vf *w,
                      int pair, int n, int most, struct steps steps, int exact)
{
    vf l[PAIR * 32], scale[PAIR], low[PAIR], factor[PAIR], best_error[PAIR];
    for (int k = 0; k < pair; k++) {
        low[k] = sel(gt(e[k].smallest, zero()), zero(), e[k].smallest);
        vm live = gt(e[k].largest, low[k]);
        factor[k] = all(most) / (e[k].largest - low[k]);
        if (!exact && !rounds_in_floats(factor[k], low[k], e[k].smallest, e[k].largest, live))
            return 0;
        scale[k] = 1 / factor[k];
        best[k] = (struct affine){scale[k], low[k], factor[k], low[k], live};
        for (int i = 0; i < n; i++)
            l[k * n + i] = quantum(factor[k] * (x[k * n + i] - low[k]), most, exact);
    }
    weighted_errors(best_error, x, w, l, scale, low, pair, n, steps.absolute);
    for (int step = 0; step <= steps.last; step++) {
        for (int k = 0; k < pair; k++) {
            factor[k] = all(steps.first + steps.step * step + most) / (e[k].largest - best[k].low);
            if (!exact && !rounds_in_floats(factor[k], best[k].low, e[k].smallest, e[k].largest,
                                            best[k].live))
                return 0;
        }
        affine_step(best, best_error, x, w, e, factor, pair, n, most, steps.absolute, exact);
    }
    for (int k = 0; k < pair; k++)
        best[k].scale = sel(best[k].live, best[k].scale, zero());
    return 1;
}

/* What is found for each block of the pair, and e, what is known of it besides. */
INLINE void search_affine(struct affine *best, struct extent *e, const vf *x, const vf *w, int pair,
                          int n, int most, struct steps steps)
{
    for (int k = 0; k < pair; k++)
        e[k] = extent_of(x + k * n, w + k * n, n);
    if (!try_affine(best, e, x, w, pair, n, most, steps, 0))
        try_affine(best, e, x, w, pair, n, most, steps, 1);
}

INLINE vi affine_code(const struct affine *found, vf x, int most)
{
    vi code = iclamp(nearest(found->factor * (x - found->base)), 0, most);
    return isel(found->live, code, iall(0));
}

/* x is near scale * l, l = clamp(nearest(factor * x)) in -most .. most - 1; in lanes not live ggml
 * stores the code 0, in the others l + most. */
struct symmetric {
    vf scale, factor;
    vm live;
};

/* The value of largest magnitude, the first of equals. */
INLINE vf extreme(const vf *x, int n)
{
    vf largest = zero(), value = zero();
    for (int i = 0; i < n; i++) {
        vm larger = gt(magnitude(x[i]), largest);
        largest = sel(larger, magnitude(x[i]), largest);
        value = sel(larger, x[i], value);
    }
    return value;
}

INLINE vf signed_quantum(vf a, int most, int exact)
{
    return exact ? to_float(iclamp(nearest(a), -most, most - 1))
                 : clamp(rounded(a), -most, most - 1);
}

/* For a pair of factors; wx[i] is w[i] * x[i]. */
INLINE void symmetric_sums(const vf *x, const vf *w, const vf *wx, int pair, int n, int most,
                           int exact, const vf *factor, vf *sum_xl, vf *sum_l2)
{
    for (int k = 0; k < pair; k++)
        sum_xl[k] = sum_l2[k] = zero();
    for (int i = 0; i < n; i++)
        for (int k = 0; k < pair; k++) {
            vf l = signed_quantum(factor[k] * x[i], most, exact);
            sum_xl[k] += wx[i] * l;
            sum_l2[k] += w[i] * l * l;
        }
}

/* ggml's make_qx_quants with weights. For finite x of magnitude 1e-15 and more, the products stay
 * below most + 1, whatever x; `exact` is for scales, which may be infinite. */
INLINE struct symmetric search_symmetric(const vf *x, const vf *w, int n, int most, int exact)
{
    vf peak = extreme(x, n), factor[PAIR], sum_xl[PAIR], sum_l2[PAIR], wx[32];
    struct symmetric best = {.factor = all(-most) / peak};
    vm dead = lt(magnitude(peak), all(SMALLEST_GROUP));
    best.live = ~dead;
    for (int i = 0; i < n; i++)
        wx[i] = w[i] * x[i];
    symmetric_sums(x, w, wx, 1, n, most, exact, &best.factor, sum_xl, sum_l2);
    best.scale = sel(eq(sum_l2[0], zero()), zero(), sum_xl[0] / sum_l2[0]);
    vf quality = best.scale * sum_xl[0];
    for (int first = 0; first < 18; first += PAIR) { /* steps -9 to 9 without 0 */
        for (int k = 0; k < PAIR; k++) {
            int step = first + k < 9 ? first + k - 9 : first + k - 8;
            factor[k] = all(-(most + 0.1f * step)) / peak;
        }
        symmetric_sums(x, w, wx, PAIR, n, most, exact, factor, sum_xl, sum_l2);
        for (int k = 0; k < PAIR; k++) {
            vm better = gt(sum_l2[k], zero()) & gt(sum_xl[k] * sum_xl[k], quality * sum_l2[k]);
            best.factor = sel(better, factor[k], best.factor);
            best.scale = sel(better, sum_xl[k] / sum_l2[k], best.scale);
            quality = sel(better, best.scale * sum_xl[k], quality);
        }
    }
    best.scale = sel(dead, zero(), best.scale);
    return best;
}

INLINE vi symmetric_code(const struct symmetric *found, vf x, int most)
{
    vi code = iclamp(nearest(found->factor * x), -most, most - 1) + most;
    return isel(found->live, code, iall(0));
}
