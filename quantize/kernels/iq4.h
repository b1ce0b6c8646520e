/* IQ4_NL and IQ4_XS: codes choose among 16 unevenly spaced whole numbers, x = d [* sc] * level[l].
 *
 *     IQ4_NL   32 values    d 2                                              codes 16    = 18
 *     IQ4_XS   256 values   d 2   upper scale bits 2   lower 4 (8 x 6 bits)  codes 128   = 136
 *
 * ggml finds the level nearest to a number by bisection and two subtractions. Both are exact near
 * the middle of two levels and monotone elsewhere, so the code is the number of middles not above
 * the number; NaN gets the last level.
 */

static const float LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};

INLINE float middle(int i) { return (LEVELS[i] + LEVELS[i + 1]) / 2; }

INLINE vi level_code(vf a)
{
    vi code = iall(15);
    for (int i = 0; i < 15; i++)
        code = isel(lt(a, all(middle(i))), code - 1, code);
    return code;
}

INLINE vf nearest_level(vf a)
{
#if LANES == 8
    vi code = iall(15);
    for (int i = 0; i < 15; i++)
        code += lt(a, all(middle(i)));
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(LEVELS), (__m256i)code);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(LEVELS + 8), (__m256i)code);
    return _mm256_blendv_ps(low, high, (__m256)(code << 28));
#elif LANES == 16
    return _mm512_permutexvar_ps((__m512i)level_code(a), _mm512_loadu_ps(LEVELS));
#else
    vf level = all(LEVELS[15]);
    for (int i = 0; i < 15; i++)
        level -= (vf)((vi)all(LEVELS[i + 1] - LEVELS[i]) & lt(a, all(middle(i))));
    return level;
#endif
}

/* Sums over the levels nearest to factor * x. */
INLINE void level_sums(const vf *x, const vf *w, vf factor, vf *sum_xl, vf *sum_l2)
{
    *sum_xl = *sum_l2 = zero();
    for (int i = 0; i < 32; i++) {
        vf level = nearest_level(factor * x[i]);
        *sum_xl += w[i] * level * x[i];
        *sum_l2 += w[i] * level * level;
    }
}

/* The scale of 32 values: of 16 factors the one whose levels fit best. 0 if all are below 1e-15. */
static __attribute__((noinline)) vf search_levels(const vf *x, const vf *w)
{
    vf peak = extreme(x, 32), sum_xl, sum_l2;
    vm dead = lt(magnitude(peak), all(SMALLEST_GROUP));
    level_sums(x, w, 1 / (-peak / LEVELS[0]), &sum_xl, &sum_l2);
    vf scale = sel(gt(sum_l2, zero()), sum_xl / sum_l2, zero());
    vf quality = scale * sum_xl;
    for (int step = -7; step <= 7; step++) {
        level_sums(x, w, all(step + LEVELS[0]) / peak, &sum_xl, &sum_l2);
        vm better = gt(sum_l2, zero()) & gt(sum_xl * sum_xl, quality * sum_l2);
        scale = sel(better, sum_xl / sum_l2, scale);
        quality = sel(better, scale * sum_xl, quality);
    }
    return sel(dead, zero(), scale);
}

/* Scales of n / 32 sub-blocks; with importance, weights contain the mean square of all n values. */
INLINE void search_all_levels(vf *scale, const vf *x, const vf *importance, int n)
{
    vf w[32], sigma2 = sum_of_squares(x, n) * (2.0f / n);
    for (int j = 0; j < n / 32; j++, x += 32) {
        for (int i = 0; i < 32; i++)
            w[i] = importance ? importance[32 * j + i] * root(sigma2 + x[i] * x[i]) : x[i] * x[i];
        scale[j] = search_levels(x, w);
    }
}

INLINE void put_levels(uint8_t *const *blocks, size_t at, const vf *x, vf scale)
{
    vi codes[32];
    vf factor = inverse(scale);
    for (int i = 0; i < 32; i++)
        codes[i] = level_code(factor * x[i]);
    put_codes(blocks, at, codes, 15);
}

INLINE void iq4_nl_block(const vf *x, const vf *importance, uint8_t *const *blocks)
{
    vf scale;
    search_all_levels(&scale, x, importance, 32);
    put_halves(blocks, 0, to_half(scale));
    put_levels(blocks, 2, x, scale);
}

INLINE void iq4_xs_block(const vf *x, const vf *importance, uint8_t *const *blocks)
{
    vf scale[8];
    vi upper = iall(0), lower = iall(0);
    search_all_levels(scale, x, importance, 256);
    vf d = -extreme(scale, 8) / 32.0f, factor = inverse(d);
    for (int j = 0; j < 8; j++) {
        vi code = iclamp(nearest(factor * scale[j]), -32, 31);
        put_levels(blocks, 8 + 16 * j, x + 32 * j, d * to_float(code));
        code += 32;
        lower |= (code & 15) << 4 * j;
        upper |= code >> 4 << 2 * j;
    }
    put_words(blocks, 0, to_half(d) | upper << 16);
    put_words(blocks, 4, lower);
}

static void iq4_nl(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    iq4_nl_block(x, NULL, blocks);
}

static void iq4_nl_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    iq4_nl_block(x, importance, blocks);
}

static void iq4_xs(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    iq4_xs_block(x, NULL, blocks);
}

static void iq4_xs_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    iq4_xs_block(x, importance, blocks);
}
