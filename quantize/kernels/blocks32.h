/* Q4_0, Q4_1, Q5_0, Q5_1: 32 values with a scale, and a minimum in the _1 types.
 *
 *     Q4_0   d 2        codes 16                 = 18      Q4_1   d 2  m 2       codes 16  = 20
 *     Q5_0   d 2        fifth bits 4  codes 16   = 22      Q5_1   d 2  m 2  fifth 4 ...    = 24
 *
 * Without importance a code is the value times 1/d, shifted and cut as a C cast does; with it, the
 * searches of the K types with weights that contain the whole row's mean square, sigma2.
 */

INLINE vf inverse(vf d) { return sel(eq(d, zero()), zero(), 1 / d); }

/* Value i in the lower, value i + 16 in the upper half of byte i; fifth bits in order. */
INLINE void put_codes(uint8_t *const *blocks, size_t at, const vi *codes, int most)
{
    if (most == 31) {
        vi fifth = iall(0);
        for (int i = 0; i < 32; i++)
            fifth |= (codes[i] >> 4 & 1) << i;
        put_words(blocks, at, fifth);
        at += 4;
    }
    for (int i = 0; i < 16; i += 4) {
        vi byte[4];
        for (int k = 0; k < 4; k++)
            byte[k] = (most == 31 ? codes[i + k] & 15 : codes[i + k]) | codes[i + k + 16] << 4;
        put_words(blocks, at + i, four_bytes(byte[0], byte[1], byte[2], byte[3]));
    }
}

INLINE void signed_block(const vf *x, int most, uint8_t *const *blocks)
{
    int half = (most + 1) / 2;
    vi codes[32];
    vf d = extreme(x, 32) / all(-half), factor = inverse(d);
    for (int i = 0; i < 32; i++)
        codes[i] = imin(as_int8(to_int(x[i] * factor + (half + 0.5f))), iall(most));
    put_halves(blocks, 0, to_half(d));
    put_codes(blocks, 2, codes, most);
}

INLINE void signed_block_weighted(const vf *x, const vf *importance, vf sigma2, int most,
                                  uint8_t *const *blocks)
{
    int half = (most + 1) / 2;
    vi codes[32];
    vf w[32];
    weigh(w, x, importance, sigma2, 32);
    struct symmetric found = search_symmetric(x, w, 32, half, 0);
    for (int i = 0; i < 32; i++)
        codes[i] = symmetric_code(&found, x[i], half);
    put_halves(blocks, 0, to_half(found.scale));
    put_codes(blocks, 2, codes, most);
}

INLINE void affine_block(const vf *x, int most, uint8_t *const *blocks)
{
    vi codes[32];
    vf low = all(0x1.fffffep+127f), high = -low;
    for (int i = 0; i < 32; i++) {
        low = vmin(x[i], low);
        high = vmax(x[i], high);
    }
    vf d = (high - low) / all(most), factor = inverse(d);
    for (int i = 0; i < 32; i++) {
        codes[i] = to_int((x[i] - low) * factor + 0.5f);
        if (most == 15)
            codes[i] = imin(as_int8(codes[i]), iall(most));
    }
    put_words(blocks, 0, to_half(d) | to_half(low) << 16);
    put_codes(blocks, 4, codes, most);
}

INLINE void affine_block_weighted(const vf *x, const vf *importance, vf sigma2, int most,
                                  uint8_t *const *blocks)
{
    vi codes[32];
    vf w[32];
    weigh(w, x, importance, sigma2, 32);
    struct affine found;
    struct extent extent;
    search_affine(&found, &extent, x, w, 1, 32, most, WEIGHTED_STEPS);
    for (int i = 0; i < 32; i++)
        codes[i] = affine_code(&found, x[i], most);
    put_words(blocks, 0, to_half(found.scale) | to_half(found.low) << 16);
    put_codes(blocks, 4, codes, most);
}

#define BLOCK_TYPE(name, form, most)                                                            \
    static void name(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)      \
    {                                                                                           \
        form(x, most, blocks);                                                                  \
    }                                                                                           \
    static void name##_weighted(const vf *x, const vf *importance, vf sigma2,                   \
                                uint8_t *const *blocks)                                         \
    {                                                                                           \
        form##_weighted(x, importance, sigma2, most, blocks);                                   \
    }
BLOCK_TYPE(q4_0, signed_block, 15)
BLOCK_TYPE(q4_1, affine_block, 15)
BLOCK_TYPE(q5_0, signed_block, 31)
BLOCK_TYPE(q5_1, affine_block, 31)
