/* Q3_K and Q6_K: 256 values in 16 sub-blocks with a signed scale each, x = d * sc * (l - most).
 *
 *     Q3_K   third bits 32   codes 64 (lower 2 bits)   scales 12 (16 x 6 bits)   d 2   = 110
 *     Q6_K   codes 128 (lower 4 bits)   upper bits 64   scales 16 (8 bits)       d 2   = 210
 */

/* Codes of one sub-block under its final scale; where that is 0, those of the search. */
INLINE void symmetric_codes(vi *codes, const vf *x, vf d, int most)
{
    vm vanished = eq(d, zero());
    for (int i = 0; i < 16; i++) {
        vi code = iclamp(nearest(x[i] / d), -most, most - 1) + most;
        codes[i] = isel(vanished, codes[i], code);
    }
}

/* Sixteen scales of 6 bits: bytes 0-7 hold the lower four bits of scale j and j + 8, bytes 8-11
 * the upper two of scales j, j + 4, j + 8, j + 12. */
static void put_q3_k(const vf *x, vi *codes, const vi *scales, vi d, uint8_t *const *blocks)
{
    vi bytes[12];
    for (int j = 0; j < 16; j++)
        symmetric_codes(codes + 16 * j, x + 16 * j, from_half(d) * to_float(scales[j] - 32), 4);
    for (int j = 0; j < 8; j++)
        bytes[j] = (scales[j] & 15) | (scales[j + 8] & 15) << 4;
    for (int j = 0; j < 4; j++)
        bytes[j + 8] = scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 |
                       scales[j + 12] >> 4 << 6;
    put_one_bit(blocks, 0, codes, 2);
    put_two_bits(blocks, 32, codes);
    for (int j = 0; j < 12; j += 4)
        put_words(blocks, 96 + j, four_bytes(bytes[j], bytes[j + 1], bytes[j + 2], bytes[j + 3]));
    put_halves(blocks, 108, d);
}

static void q3_k(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    vf scale[16];
    vi codes[256], scales[16];
    for (int j = 0; j < 16; j += SIDE_BY_SIDE)
        refine_symmetric(x + 16 * j, codes + 16 * j, scale + j, 4);
    vf peak = extreme(scale, 16);
    vm none_found = eq(peak, zero());
    vf factor = -32.0f / peak;
    for (int j = 0; j < 16; j++) {
        scales[j] = iclamp(as_int8(nearest(factor * scale[j])), -32, 31) + 32;
        scales[j] = isel(none_found, iall(0), scales[j]);
    }
    put_q3_k(x, codes, scales, to_half(sel(none_found, zero(), 1 / factor)), blocks);
}

static void q3_k_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    vf scale[16], weight[16], w[16];
    vi codes[256], scales[16];
    sigma2 = 2.0f * sum_of_squares(x, 256) / 256.0f;
    for (int j = 0; j < 16; j++) {
        weigh(w, x + 16 * j, importance + 16 * j, sigma2, 16);
        weight[j] = zero();
        for (int i = 0; i < 16; i++)
            weight[j] += w[i];
        struct symmetric found = search_symmetric(x + 16 * j, w, 16, 4, 0);
        scale[j] = found.scale;
        for (int i = 0; i < 16; i++)
            codes[16 * j + i] = symmetric_code(&found, x[16 * j + i], 4);
    }
    struct symmetric found = search_symmetric(scale, weight, 16, 32, 1);
    for (int j = 0; j < 16; j++)
        scales[j] = symmetric_code(&found, scale[j], 32);
    put_q3_k(x, codes, scales, to_half(found.scale), blocks);
}

static void put_q6_k(const vi *codes, const vi *scales, vi d, uint8_t *const *blocks)
{
    for (int half = 0; half < 2; half++, codes += 128)
        for (int i = 0; i < 32; i += 4) {
            vi first[4], second[4], upper[4];
            for (int k = 0; k < 4; k++) {
                const vi *c = codes + i + k;
                first[k] = (c[0] & 15) | (c[64] & 15) << 4;
                second[k] = (c[32] & 15) | (c[96] & 15) << 4;
                upper[k] = c[0] >> 4 | c[32] >> 4 << 2 | c[64] >> 4 << 4 | c[96] >> 4 << 6;
            }
            put_words(blocks, 64 * half + i, four_bytes(first[0], first[1], first[2], first[3]));
            put_words(blocks, 64 * half + 32 + i,
                      four_bytes(second[0], second[1], second[2], second[3]));
            put_words(blocks, 128 + 32 * half + i,
                      four_bytes(upper[0], upper[1], upper[2], upper[3]));
        }
    for (int j = 0; j < 16; j += 4)
        put_words(blocks, 192 + j,
                  four_bytes(scales[j], scales[j + 1], scales[j + 2], scales[j + 3]));
    put_halves(blocks, 208, d);
}

/* The search weighs with importance as it is, or with x * x. */
static void q6_k_weighted(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    vf scale[16];
    vi codes[256], scales[16];
    for (int j = 0; j < 16; j++) {
        struct symmetric found = search_symmetric(x + 16 * j, importance + 16 * j, 16, 32, 0);
        scale[j] = found.scale;
        for (int i = 0; i < 16; i++)
            codes[16 * j + i] = symmetric_code(&found, x[16 * j + i], 32);
    }
    vf peak = extreme(scale, 16);
    vm empty = lt(magnitude(peak), all(SMALLEST_GROUP));
    vf factor = -128.0f / peak;
    vi d = isel(empty, iall(0), to_half(1 / factor));
    for (int j = 0; j < 16; j++) {
        scales[j] = as_int8(imin(nearest(factor * scale[j]), iall(127)));
        symmetric_codes(codes + 16 * j, x + 16 * j, from_half(d) * to_float(scales[j]), 32);
        scales[j] = isel(empty, iall(0), scales[j]);
        for (int i = 0; i < 16; i++)
            codes[16 * j + i] = isel(empty, iall(0), codes[16 * j + i]);
    }
    put_q6_k(codes, scales, d, blocks);
}

static void q6_k(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks)
{
    vf squares[256];
    for (int i = 0; i < 256; i++)
        squares[i] = x[i] * x[i];
    q6_k_weighted(x, squares, sigma2, blocks);
}
