/* Kernels whose lanes lie along a row: maxima have no order, so nothing needs transposing.
 *
 *     Q8_0   32 values   d 2   codes 32   = 34
 *     absmax of rows; codes of rows under a scale each: E4M3, INT8, INT8 + 128, INT4 + 8
 */

INLINE float largest_lane(vf a)
{
    float lane[LANES], largest = 0;
    memcpy(lane, &a, sizeof a);
    for (int k = 0; k < LANES; k++)
        largest = lane[k] > largest ? lane[k] : largest;
    return largest;
}

/* The lowest byte of every lane. */
INLINE void put_bytes(uint8_t *at, vi a)
{
#if LANES == 8 /* GCC 12 needs twice as long for the conversion below */
    const __m128i lowest = _mm_set1_epi32(0x0c080400);
    __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128((__m256i)a), lowest);
    __m128i high = _mm_shuffle_epi8(_mm256_extracti128_si256((__m256i)a, 1), lowest);
    _mm_storel_epi64((__m128i *)at, _mm_unpacklo_epi32(low, high));
#else
    vb bytes = __builtin_convertvector(a, vb);
    memcpy(at, &bytes, sizeof bytes);
#endif
}

/* Half away from zero: the largest float below 0.5 carries exactly what is at least half. */
INLINE vi half_away(vf a)
{
    return to_int(a + (vf)((vi)all(0x1.fffffep-2f) | ((vi)a & (int32_t)0x80000000)));
}

INLINE void q8_0_blocks(const void *rows, int dtype, size_t values, uint8_t *block)
{
    for (size_t start = 0; start < values; start += 32, block += 34) {
        vf x[32 / LANES], largest = zero();
        for (int i = 0; i < 32 / LANES; i++) {
            x[i] = load(rows, start + i * LANES, dtype);
            largest = vmax(largest, magnitude(x[i]));
        }
        float d = largest_lane(largest) / 127.0f, factor = d ? 1.0f / d : 0.0f;
        vi half = to_half(all(d));
        memcpy(block, &half, 2);
        for (int i = 0; i < 32 / LANES; i++)
            put_bytes(block + 2 + i * LANES, half_away(x[i] * factor));
    }
}

INLINE float absmax_of_row(const void *rows, int dtype, size_t start, size_t columns)
{
    vf largest = zero();
    size_t i = 0;
    for (; i + LANES <= columns; i += LANES)
        largest = vmax(largest, magnitude(load(rows, start + i, dtype)));
    float found = largest_lane(largest);
    for (; i < columns; i++) {
        float value = largest_lane(magnitude(load_one(rows, start + i, dtype)));
        found = value > found ? value : found;
    }
    return found;
}

/* Rounds to bfloat16, half precision or not at all, as a float. */
INLINE vf round_to(vf a, int dtype)
{
    vu bits = (vu)a;
    if (dtype == DTYPE_BF16)
        return (vf)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
    return dtype == DTYPE_F16 ? from_half(to_half(a)) : a;
}

/* E4M3, ties to even: a normal keeps 3 of 23 fraction bits; a subnormal is a number of 2^-9, which
 * adding 2^14 (the float whose last place is 2^-9) leaves in the lowest bits. */
INLINE vi to_e4m3(vf a)
{
    vf limited = vmin(magnitude(a), all(448.0f));
    vi bits = (vi)limited;
    vi normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    vi subnormal = (vi)(limited + 0x1p14f) & 15;
    vi code = isel(lt(limited, all(0x1p-6f)), subnormal, normal);
    return code | ((vi)((vu)a >> 24) & 0x80);
}

/* Half to even: the float whose last place is 1 leaves the whole number in the lowest bits. */
INLINE vi to_integer(vf a, int low, int high, int shift)
{
    return (vi)(clamp(a, low, high) + 0x1.8p23f) + shift;
}

INLINE vi to_code(vf a, int code)
{
    if (code == CODE_E4M3)
        return to_e4m3(a);
    if (code == CODE_INT4)
        return to_integer(a, -8, 7, 8);
    return to_integer(a, -128, 127, code == CODE_UINT8 ? 128 : 0);
}

INLINE void codes_of_row(const void *rows, int dtype, int rounded, int code, size_t start,
                         size_t columns, float scale, uint8_t *codes)
{
    size_t i = 0;
    for (; i + LANES <= columns; i += LANES)
        put_bytes(codes + i, to_code(round_to(load(rows, start + i, dtype) / scale, rounded), code));
    for (; i < columns; i++) {
        vi found = to_code(round_to(load_one(rows, start + i, dtype) / scale, rounded), code);
        memcpy(codes + i, &found, 1);
    }
}

INLINE void codes_of_rows(struct rows rows, int dtype, int rounded, int code, const float *scales,
                          uint8_t *codes)
{
    for (size_t row = 0, start = 0; row < rows.count; row++, start += rows.columns)
        codes_of_row(rows.values, dtype, rounded, code, start, rows.columns, scales[row],
                     codes + start);
}

/* The dtype becomes a constant here, once a row. */
static void q8_0(const void *rows, int dtype, size_t values, uint8_t *blocks)
{
    if (dtype == DTYPE_BF16)
        q8_0_blocks(rows, DTYPE_BF16, values, blocks);
    else if (dtype == DTYPE_F16)
        q8_0_blocks(rows, DTYPE_F16, values, blocks);
    else
        q8_0_blocks(rows, DTYPE_F32, values, blocks);
}

static void absmax(struct rows rows, float *out)
{
    for (size_t row = 0, start = 0; row < rows.count; row++, start += rows.columns) {
        if (rows.dtype == DTYPE_BF16)
            out[row] = absmax_of_row(rows.values, DTYPE_BF16, start, rows.columns);
        else if (rows.dtype == DTYPE_F16)
            out[row] = absmax_of_row(rows.values, DTYPE_F16, start, rows.columns);
        else
            out[row] = absmax_of_row(rows.values, DTYPE_F32, start, rows.columns);
    }
}

/* The code and the dtypes become constants here, once a call. */
#define FOR_CODE(dtype, rounded)                                                                   \
    switch (code) {                                                                                \
    case CODE_E4M3: codes_of_rows(rows, dtype, rounded, CODE_E4M3, scales, out); break;            \
    case CODE_INT8: codes_of_rows(rows, dtype, rounded, CODE_INT8, scales, out); break;            \
    case CODE_UINT8: codes_of_rows(rows, dtype, rounded, CODE_UINT8, scales, out); break;          \
    default: codes_of_rows(rows, dtype, rounded, CODE_INT4, scales, out);                          \
    }

static void codes(struct rows rows, int rounded, int code, const float *scales, uint8_t *out)
{
    if (rows.dtype == DTYPE_BF16 && rounded == DTYPE_BF16)
        FOR_CODE(DTYPE_BF16, DTYPE_BF16)
    else if (rows.dtype == DTYPE_F16 && rounded == DTYPE_F16)
        FOR_CODE(DTYPE_F16, DTYPE_F16)
    else
        FOR_CODE(rows.dtype, rounded)
}
