/* The two searches of llama.cpp's ggml-quants.c that improve one integer at a time.
 *
 * Each pass tries, for every value in order, the integer that would fit best if the others stayed;
 * at most five passes, fewer once no lane changes: a pass without a change is without one forever.
 */

INLINE vm improves(vf with_xl, vf with_l2, vf sum_xl, vf sum_l2)
{
    return gt(with_xl * with_xl * sum_l2, sum_xl * sum_xl * with_l2);
}

/* ggml's make_q3_quants: integers l[i] in -most .. most - 1 for 16 values, weights x * x. */
struct refinement {
    const vf *x;
    vf l[16], sum_xl, sum_l2;
    vm dead, changed;
};

INLINE void begin_refinement(struct refinement *r, const vf *x, int most)
{
    vf peak = extreme(x, 16);
    vf factor = all(-most) / peak;
    r->x = x;
    r->dead = lt(magnitude(peak), all(SMALLEST_GROUP));
    r->sum_xl = r->sum_l2 = zero();
    for (int i = 0; i < 16; i++) {
        vf w = x[i] * x[i];
        r->l[i] = signed_quantum(factor * x[i], most, 0);
        r->sum_xl += w * x[i] * r->l[i];
        r->sum_l2 += w * r->l[i] * r->l[i];
    }
}

INLINE void refine_value(struct refinement *r, int i, int most)
{
    vf x = r->x[i], l = r->l[i], w = x * x;
    vf xl = r->sum_xl - w * x * l, l2 = r->sum_l2 - w * l * l;
    vf other = to_float(iclamp(nearest(x * l2 / xl), -most, most - 1));
    vf with_xl = xl + w * x * other, with_l2 = l2 + w * other * other;
    vm better = gt(xl, zero()) & ~eq(other, l) & gt(with_l2, zero()) & ~r->dead;
    better &= improves(with_xl, with_l2, r->sum_xl, r->sum_l2);
    r->l[i] = sel(better, other, l);
    r->sum_xl = sel(better, with_xl, r->sum_xl);
    r->sum_l2 = sel(better, with_l2, r->sum_l2);
    r->changed |= better;
}

/* Every value waits for the one before it, so some sub-blocks are refined side by side. */
#define SIDE_BY_SIDE 2

/* Stored codes and scales of SIDE_BY_SIDE sub-blocks; where no value reaches 1e-15 both are 0. */
INLINE void refine_symmetric(const vf *x, vi *code, vf *scale, int most)
{
    struct refinement r[SIDE_BY_SIDE];
    for (int k = 0; k < SIDE_BY_SIDE; k++)
        begin_refinement(&r[k], x + 16 * k, most);
    for (int pass = 0, changes = 1; pass < 5 && changes; pass++) {
        for (int k = 0; k < SIDE_BY_SIDE; k++)
            r[k].changed = none();
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < SIDE_BY_SIDE; k++)
                refine_value(&r[k], i, most);
        changes = 0;
        for (int k = 0; k < SIDE_BY_SIDE; k++)
            changes |= any(r[k].changed);
    }
    for (int k = 0; k < SIDE_BY_SIDE; k++) {
        for (int i = 0; i < 16; i++)
            code[16 * k + i] = isel(r[k].dead, iall(0), to_int(r[k].l[i]) + most);
        vm found = gt(r[k].sum_l2, zero()) & ~r[k].dead;
        scale[k] = sel(found, r[k].sum_xl / r[k].sum_l2, zero());
    }
}

/* The factor, of nine near most / largest, whose rounding errs least. */
INLINE vf positive_factor(const vf *x, const vf *w, int n, int most, vf largest)
{
    vf best = all(most) / largest, scale = 1 / best, best_error = zero();
    for (int i = 0; i < n; i++) {
        vf difference = x[i] - scale * to_float(nearest(best * x[i]) & 255);
        best_error += w[i] * difference * difference;
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0)
            continue;
        vf factor = all(0.1f * step + most) / largest, error = zero();
        scale = 1 / factor;
        for (int i = 0; i < n; i++) {
            vf l = to_float(imin(nearest(factor * x[i]), iall(most)));
            vf difference = x[i] - scale * l;
            error += w[i] * difference * difference;
        }
        vm better = lt(error, best_error);
        best_error = sel(better, error, best_error);
        best = sel(better, factor, best);
    }
    return best;
}

/* ggml's make_qp_quants for n scales or minima: codes to `code`, as the byte that it stores, and
 * the scale of scales. A negative x (there are such minima) is rounded to a byte beyond `most`. */
INLINE vf search_positive(const vf *x, const vf *w, vi *code, int n, int most)
{
    vf largest = zero(), sum_xl = zero(), sum_l2 = zero();
    for (int i = 0; i < n; i++)
        largest = vmax(largest, x[i]);
    vm dead = lt(largest, all(SMALLEST_GROUP));
    vf factor = positive_factor(x, w, n, most, largest);
    for (int i = 0; i < n; i++) {
        vi l = imin(nearest(factor * x[i]), iall(most));
        code[i] = l & 255;
        sum_xl += w[i] * x[i] * to_float(l);
        sum_l2 += w[i] * to_float(l) * to_float(l);
    }
    for (int pass = 0, changes = 1; pass < 5 && changes; pass++) {
        vm changed = none();
        for (int i = 0; i < n; i++) {
            vf old = to_float(code[i]);
            vf xl = sum_xl - w[i] * x[i] * old, l2 = sum_l2 - w[i] * old * old;
            vi other = imin(nearest(x[i] * l2 / xl), iall(most));
            vf l = to_float(other);
            vf with_xl = xl + w[i] * x[i] * l, with_l2 = l2 + w[i] * l * l;
            vm better = gt(xl, zero()) & gt(l2, zero()) & ~ieq(other, code[i]) & ~dead;
            better &= improves(with_xl, with_l2, sum_xl, sum_l2);
            code[i] = isel(better, other & 255, code[i]);
            sum_xl = sel(better, with_xl, sum_xl);
            sum_l2 = sel(better, with_l2, sum_l2);
            changed |= better;
        }
        changes = any(changed);
    }
    for (int i = 0; i < n; i++)
        code[i] = isel(dead, iall(0), code[i]);
    return sel(gt(sum_l2, zero()) & ~dead, sum_xl / sum_l2, zero());
}
