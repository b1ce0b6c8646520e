/* Q2_K, Q4_K, Q5_K: 256 values in sub-blocks with a scale and a minimum each, x = d*sc*l - dm*m.
 *
 *     Q2_K   scales 16 (4 bits sc, 4 bits m)             codes 64           d 2  dm 2    = 84
 *     Q4_K   d 2  dm 2  scales 12 (8 x 6 + 6 bits)       codes 128                       = 144
 *     Q5_K   d 2  dm 2  scales 12  fifth bits 32         codes 128                       = 176
 *
 * Every lane is a super-block. First each sub-block's scale and minimum are searched, then all are
 * rounded to 4 or 6 bits, then the values are rounded with what remains of their scale; a sub-block
 * whose scale becomes 0 keeps the codes of its search, as in ggml.
 */

struct sub_blocks {
    vf scale[16], minimum[16], weight[16];
    struct affine found[16];
};

INLINE vf sum_of_squares(const vf *x, int n)
{
    vf sum = zero();
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

/* Weights of one sub-block: importance * sqrt(sigma2 + x*x), or what the type has without it. */
INLINE void weigh(vf *w, const vf *x, const vf *importance, vf sigma2, int n)
{
    for (int i = 0; i < n; i++)
        w[i] = importance[i] * root(sigma2 + x[i] * x[i]);
}

/* Sub-blocks j to j + PAIR - 1, whose values begin at x. */
INLINE void search_pair(struct sub_blocks *s, int j, const vf *x, const vf *w, int n, int most,
                        struct steps steps)
{
    struct extent e[PAIR];
    search_affine(s->found + j, e, x, w, PAIR, n, most, steps);
    for (int k = 0; k < PAIR; k++) {
        s->weight[j + k] = e[k].sum_w;
        s->scale[j + k] = s->found[j + k].scale;
        s->minimum[j + k] = -s->found[j + k].low;
    }
}

#define WEIGHTED_STEPS ((struct steps){-0.9f, 0.05f, 36, 0})

INLINE void search_weighted(struct sub_blocks *s, const vf *x, const vf *importance, int n,
                            int most, vf sigma2)
{
    vf w[PAIR * 32];
    for (int j = 0; j < 256 / n; j += PAIR) {
        weigh(w, x + j * n, importance + j * n, sigma2, PAIR * n);
        search_pair(s, j, x + j * n, w, n, most, WEIGHTED_STEPS);
    }
}

INLINE vf largest_of(const vf *a, int n)
{
    vf largest = zero();
    for (int j = 0; j < n; j++)
        largest = vmax(a[j], largest);
    return largest;
}

/* Codes of one sub-block under its final scale d and minimum m. */
INLINE void affine_codes(vi *codes, const struct affine *found, const vf *x, vf d, vf m, int n,
                         int most)
{
    vm vanished = eq(d, zero());
    for (int i = 0; i < n; i++)
        codes[i] = iclamp(nearest((x[i] + m) / d), 0, most);
    if (any(vanished))
        for (int i = 0; i < n; i++)
            codes[i] = isel(vanished, affine_code(found, x[i], most), codes[i]);
}

static void finish_q2_k(const struct sub_blocks *s, const vi *scales, vi d, vi dm, const vf *x,
                        uint8_t *const *blocks)
{
    vi codes[256];
    for (int j = 0; j < 16; j++)
        affine_codes(codes + 16 * j, &s->found[j], x + 16 * j,
                     from_half(d) * to_float(scales[j] & 15),
                     from_half(dm) * to_float(scales[j] >> 4), 16, 3);
    for (int j = 0; j < 16; j += 4)
        put_words(blocks, j, four_bytes(scales[j], scales[j + 1], scales[j + 2], scales[j + 3]));
    put_two_bits(blocks, 16, codes);
    put_words(blocks, 80, d | dm << 16);
}

static void q2_k(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    struct sub_blocks s;
    vi scales[16];
    vf w[PAIR * 16];
    for (int j = 0; j < 16; j += PAIR) {
        for (int i = 0; i < PAIR * 16; i++)
            w[i] = magnitude(x[16 * j + i]);
        search_pair(&s, j, x + 16 * j, w, 16, 3, (struct steps){-0.5f, 0.1f, 15, 1});
    }
    vf scale = largest_of(s.scale, 16), minimum = largest_of(s.minimum, 16);
    vm some_scale = gt(scale, zero()), some_minimum = gt(minimum, zero());
    for (int j = 0; j < 16; j++) {
        vi low = isel(some_scale, nearest(15.0f / scale * s.scale[j]), iall(0));
        vi high = isel(some_minimum, nearest(15.0f / minimum * s.minimum[j]), iall(0));
        scales[j] = (low | high << 4) & 255;
    }
    finish_q2_k(&s, scales, to_half(scale / 15.0f), to_half(minimum / 15.0f), x, blocks);
}

static void q2_k_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    struct sub_blocks s;
    vi scales[16], minima[16];
    search_weighted(&s, x, importance, 16, 3, sum_of_squares(x, 256) / 256.0f);
    vf scale = search_positive(s.scale, s.weight, scales, 16, 15);
    vf minimum = search_positive(s.minimum, s.weight, minima, 16, 15);
    for (int j = 0; j < 16; j++)
        scales[j] = (scales[j] | minima[j] << 4) & 255;
    finish_q2_k(&s, scales, to_half(scale), to_half(minimum), x, blocks);
}

/* Eight scales and minima of 6 bits: bytes 0-3 and 4-7 hold the first four scales and minima, and
 * in their upper two bits those of the last four, whose lower bits are in bytes 8-11. */
INLINE void join_six_bits(vi *bytes, const vi *scales, const vi *minima)
{
    for (int j = 0; j < 4; j++) {
        bytes[j] = (scales[j] | scales[j + 4] >> 4 << 6) & 255;
        bytes[j + 4] = (minima[j] | minima[j + 4] >> 4 << 6) & 255;
        bytes[j + 8] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4;
    }
}

INLINE void split_six_bits(vi *scales, vi *minima, const vi *bytes)
{
    for (int j = 0; j < 4; j++) {
        scales[j] = bytes[j] & 63;
        minima[j] = bytes[j + 4] & 63;
        scales[j + 4] = (bytes[j + 8] & 15) | bytes[j] >> 6 << 4;
        minima[j + 4] = bytes[j + 8] >> 4 | bytes[j + 4] >> 6 << 4;
    }
}

INLINE void finish_q45_k(const struct sub_blocks *s, vi *scales, vi *minima, vi d, vi dm,
                         const vf *x, int most, uint8_t *const *blocks)
{
    vi codes[256], bytes[12];
    join_six_bits(bytes, scales, minima);
    split_six_bits(scales, minima, bytes);
    for (int j = 0; j < 8; j++)
        affine_codes(codes + 32 * j, &s->found[j], x + 32 * j, from_half(d) * to_float(scales[j]),
                     from_half(dm) * to_float(minima[j]), 32, most);
    put_words(blocks, 0, d | dm << 16);
    for (int j = 0; j < 12; j += 4)
        put_words(blocks, 4 + j, four_bytes(bytes[j], bytes[j + 1], bytes[j + 2], bytes[j + 3]));
    if (most == 31)
        put_one_bit(blocks, 16, codes, 4);
    put_four_bits(blocks, most == 31 ? 48 : 16, codes);
}

INLINE void q45_k(const vf *x, int most, struct steps steps, uint8_t *const *blocks)
{
    struct sub_blocks s;
    vi scales[8], minima[8];
    vf w[PAIR * 32];
    for (int j = 0; j < 8; j += PAIR) {
        for (int k = 0; k < PAIR; k++) {
            const vf *values = x + 32 * (j + k);
            vf spread = root(sum_of_squares(values, 32) / 32.0f);
            for (int i = 0; i < 32; i++)
                w[32 * k + i] = spread + magnitude(values[i]);
        }
        search_pair(&s, j, x + 32 * j, w, 32, most, steps);
    }
    vf scale = largest_of(s.scale, 8), minimum = largest_of(s.minimum, 8);
    vf per_scale = sel(gt(scale, zero()), 63.0f / scale, zero());
    vf per_minimum = sel(gt(minimum, zero()), 63.0f / minimum, zero());
    for (int j = 0; j < 8; j++) {
        scales[j] = imin(nearest(per_scale * s.scale[j]) & 255, iall(63));
        minima[j] = imin(nearest(per_minimum * s.minimum[j]) & 255, iall(63));
    }
    finish_q45_k(&s, scales, minima, to_half(scale / 63.0f), to_half(minimum / 63.0f), x, most,
                 blocks);
}

INLINE void q45_k_weighted(const vf *x, const vf *importance, int most, uint8_t *const *blocks)
{
    struct sub_blocks s;
    vi scales[8], minima[8];
    search_weighted(&s, x, importance, 32, most, 2.0f * sum_of_squares(x, 256) / 256.0f);
    vf scale = search_positive(s.scale, s.weight, scales, 8, 63);
    vf minimum = search_positive(s.minimum, s.weight, minima, 8, 63);
    for (int j = 0; j < 8 && most == 31; j++) { /* only Q5_K limits these bytes */
        scales[j] = imin(scales[j], iall(63));
        minima[j] = imin(minima[j], iall(63));
    }
    finish_q45_k(&s, scales, minima, to_half(scale), to_half(minimum), x, most, blocks);
}

static void q4_k(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    q45_k(x, 15, (struct steps){-1.0f, 0.1f, 20, 0}, blocks);
}

static void q4_k_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    q45_k_weighted(x, importance, 15, blocks);
}

static void q5_k(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    q45_k(x, 31, (struct steps){-0.5f, 0.1f, 15, 0}, blocks);
}

static void q5_k_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    q45_k_weighted(x, importance, 31, blocks);
}
