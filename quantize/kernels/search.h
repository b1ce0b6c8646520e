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

INLINE vf weighted_error(const vf *x, const vf *w, const vf *l, vf scale, vf low, int n,
                         int absolute)
{
    vf error = zero();
    for (int i = 0; i < n; i++) {
        vf difference = scale * l[i] + low - x[i];
        error += w[i] * (absolute ? magnitude(difference) : difference * difference);
    }
    return error;
}

/* Products are monotone in x, so the outermost values tell whether all stay below 2^22. */
INLINE int rounds_in_floats(vf factor, vf low, vf smallest, vf largest, vm live)
{
    vm fits = le(magnitude(factor * (smallest - low)), all(ROUNDED_LIMIT));
    fits &= le(magnitude(factor * (largest - low)), all(ROUNDED_LIMIT));
    return !any(live & ~fits);
}

/* One step: quantize with `factor`, fit scale and low to the result, keep what is better. */
INLINE void affine_step(struct affine *best, vf *best_error, const vf *x, const vf *w, vf sum_w,
                        vf sum_x, vf factor, int n, int most, int absolute, int exact)
{
    vf l[32], sum_l = zero(), sum_l2 = zero(), sum_xl = zero();
    for (int i = 0; i < n; i++) {
        l[i] = quantum(factor * (x[i] - best->low), most, exact);
        vf weighted = w[i] * l[i];
        sum_l += weighted;
        sum_l2 += weighted * l[i];
        sum_xl += weighted * x[i];
    }
    vf determinant = sum_w * sum_l2 - sum_l * sum_l;
    vf scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    vf low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    vm above = gt(low, zero());
    if (any(above)) {
        scale = sel(above, sum_xl / sum_l2, scale);
        low = sel(above, zero(), low);
    }
    vf error = weighted_error(x, w, l, scale, low, n, absolute);
    vm better = best->live & gt(determinant, zero()) & lt(error, *best_error);
    *best_error = sel(better, error, *best_error);
    best->factor = sel(better, factor, best->factor);
    best->scale = sel(better, scale, best->scale);
    best->base = sel(better, best->low, best->base);
    best->low = sel(better, low, best->low);
}

/* ggml's make_qkx2_quants and make_qkx3_quants; 0 if a product may reach 2^22 and exact is 0. */
INLINE int try_affine(struct affine *best, const vf *x, const vf *w, int n, int most,
                      struct steps steps, int exact)
{
    vf smallest = x[0], largest = x[0], sum_w = w[0], sum_x = w[0] * x[0], l[32];
    for (int i = 1; i < n; i++) {
        smallest = vmin(x[i], smallest);
        largest = vmax(x[i], largest);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    vf low = sel(gt(smallest, zero()), zero(), smallest);
    vm live = gt(largest, low);
    vf factor = all(most) / (largest - low);
    if (!exact && !rounds_in_floats(factor, low, smallest, largest, live))
        return 0;
    *best = (struct affine){1 / factor, low, factor, low, live};
    for (int i = 0; i < n; i++)
        l[i] = quantum(factor * (x[i] - low), most, exact);
    vf best_error = weighted_error(x, w, l, best->scale, low, n, steps.absolute);
    for (int step = 0; step <= steps.last; step++) {
        factor = all(steps.first + steps.step * step + most) / (largest - best->low);
        if (!exact && !rounds_in_floats(factor, best->low, smallest, largest, live))
            return 0;
        affine_step(best, &best_error, x, w, sum_w, sum_x, factor, n, most, steps.absolute, exact);
    }
    best->scale = sel(live, best->scale, zero());
    return 1;
}

INLINE struct affine search_affine(const vf *x, const vf *w, int n, int most, struct steps steps)
{
    struct affine best;
    if (!try_affine(&best, x, w, n, most, steps, 0))
        try_affine(&best, x, w, n, most, steps, 1);
    return best;
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

INLINE void symmetric_sums(const vf *x, const vf *w, int n, int most, int exact, vf factor,
                           vf *sum_xl, vf *sum_l2)
{
    *sum_xl = *sum_l2 = zero();
    for (int i = 0; i < n; i++) {
        vf l = signed_quantum(factor * x[i], most, exact);
        *sum_xl += w[i] * x[i] * l;
        *sum_l2 += w[i] * l * l;
    }
}

/* ggml's make_qx_quants with weights. For finite x of magnitude 1e-15 and more, the products stay
 * below most + 1, whatever x; `exact` is for scales, which may be infinite. */
INLINE struct symmetric search_symmetric(const vf *x, const vf *w, int n, int most, int exact)
{
    vf peak = extreme(x, n), sum_xl, sum_l2;
    struct symmetric best = {.factor = all(-most) / peak};
    vm dead = lt(magnitude(peak), all(SMALLEST_GROUP));
    best.live = ~dead;
    symmetric_sums(x, w, n, most, exact, best.factor, &sum_xl, &sum_l2);
    best.scale = sel(eq(sum_l2, zero()), zero(), sum_xl / sum_l2);
    vf quality = best.scale * sum_xl;
    for (int step = -9; step <= 9; step++) {
        if (step == 0)
            continue;
        vf factor = all(-(most + 0.1f * step)) / peak;
        symmetric_sums(x, w, n, most, exact, factor, &sum_xl, &sum_l2);
        vm better = gt(sum_l2, zero()) & gt(sum_xl * sum_xl, quality * sum_l2);
        best.factor = sel(better, factor, best.factor);
        best.scale = sel(better, sum_xl / sum_l2, best.scale);
        quality = sel(better, best.scale * sum_xl, quality);
    }
    best.scale = sel(dead, zero(), best.scale);
    return best;
}

INLINE vi symmetric_code(const struct symmetric *found, vf x, int most)
{
    vi code = iclamp(nearest(found->factor * x), -most, most - 1) + most;
    return isel(found->live, code, iall(0));
}
