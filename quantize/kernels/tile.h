/* Between rows in memory and lanes: LANES runs of values, widened to float32 and transposed.
 *
 * A run is one block of a quantized type (32 or 256 values of one row). tile[i] holds value i of
 * every run, so lane k works on run k alone. Runs past the end repeat the last one: their lanes
 * compute and write the same bytes again.
 */

INLINE vf load(const void *source, size_t at, int dtype)
{
    if (dtype == DTYPE_F32) {
        vf wide;
        memcpy(&wide, (const float *)source + at, sizeof wide);
        return wide;
    }
#if LANES == 4 /* half a register: spares the compiler a detour through memory */
    __m128i pair = _mm_loadl_epi64((const __m128i *)((const uint16_t *)source + at));
    if (dtype == DTYPE_BF16)
        return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), pair);
    return from_half((vi)_mm_unpacklo_epi16(pair, _mm_setzero_si128()));
#else
    vh narrow;
    memcpy(&narrow, (const uint16_t *)source + at, sizeof narrow);
    vi bits = __builtin_convertvector(narrow, vi);
    return dtype == DTYPE_BF16 ? (vf)(bits << 16) : from_half(bits);
#endif
}

/* The value at `at` in every lane, for the ends of rows. */
INLINE vf load_one(const void *source, size_t at, int dtype)
{
    uint32_t wide;
    uint16_t narrow;
    if (dtype == DTYPE_F32) {
        memcpy(&wide, (const float *)source + at, sizeof wide);
        return (vf)iall((int32_t)wide);
    }
    memcpy(&narrow, (const uint16_t *)source + at, sizeof narrow);
    return dtype == DTYPE_BF16 ? (vf)(iall(narrow) << 16) : from_half(iall(narrow));
}

/* Four by four within every 128 bits, over the rows i, i + 1, i + 2, i + 3. */
#if LANES == 4
#define PAIRS_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define PAIRS_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define HALVES_LOW(a, b) SHUFFLE(a, b, 0, 1, 4, 5)
#define HALVES_HIGH(a, b) SHUFFLE(a, b, 2, 3, 6, 7)
#elif LANES == 8
#define PAIRS_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define PAIRS_HIGH(a, b) SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define HALVES_LOW(a, b) SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HALVES_HIGH(a, b) SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define QUADS_LOW(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define QUADS_HIGH(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define PAIRS_LOW(a, b) \
    SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define PAIRS_HIGH(a, b) \
    SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define HALVES_LOW(a, b) \
    SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HALVES_HIGH(a, b) \
    SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EIGHTS_LOW(a, b) \
    SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define EIGHTS_HIGH(a, b) \
    SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define QUADS_EVEN(a, b) \
    SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define QUADS_ODD(a, b) \
    SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#endif

INLINE void transpose_fours(vf *a)
{
    vf p = PAIRS_LOW(a[0], a[1]), q = PAIRS_LOW(a[2], a[3]);
    vf r = PAIRS_HIGH(a[0], a[1]), s = PAIRS_HIGH(a[2], a[3]);
    a[0] = HALVES_LOW(p, q);
    a[1] = HALVES_HIGH(p, q);
    a[2] = HALVES_LOW(r, s);
    a[3] = HALVES_HIGH(r, s);
}

/* a[i][k] <-> a[k][i] */
INLINE void transpose(vf *a)
{
    for (int i = 0; i < LANES; i += 4)
        transpose_fours(a + i);
#if LANES == 8
    for (int i = 0; i < 4; i++) {
        vf low = QUADS_LOW(a[i], a[i + 4]), high = QUADS_HIGH(a[i], a[i + 4]);
        a[i] = low;
        a[i + 4] = high;
    }
#elif LANES == 16
    for (int i = 0; i < 4; i++) {
        vf p = EIGHTS_LOW(a[i], a[i + 4]), q = EIGHTS_LOW(a[i + 8], a[i + 12]);
        vf r = EIGHTS_HIGH(a[i], a[i + 4]), s = EIGHTS_HIGH(a[i + 8], a[i + 12]);
        a[i] = QUADS_EVEN(p, q);
        a[i + 4] = QUADS_ODD(p, q);
        a[i + 8] = QUADS_EVEN(r, s);
        a[i + 12] = QUADS_ODD(r, s);
    }
#endif
}

INLINE void load_runs(vf *tile, const void *source, int dtype, const size_t *starts, int values)
{
    for (int i = 0; i < values; i += LANES) {
        vf square[LANES];
        for (int k = 0; k < LANES; k++)
            square[k] = load(source, starts[k] + i, dtype);
        transpose(square);
        memcpy(tile + i, square, sizeof square);
    }
}

/* Values `starts[k]`, `starts[k] + 1`, ... of the source to lane k of tile[0], tile[1], ... */
static void load_tile(vf *tile, const void *source, int dtype, const size_t *starts, int values)
{
    if (dtype == DTYPE_BF16)
        load_runs(tile, source, DTYPE_BF16, starts, values);
    else if (dtype == DTYPE_F16)
        load_runs(tile, source, DTYPE_F16, starts, values);
    else
        load_runs(tile, source, DTYPE_F32, starts, values);
}

/* Lane k's 4 (2) bytes to byte `at` of block k. */
INLINE void put_words(uint8_t *const *blocks, size_t at, vi words)
{
    int32_t lane[LANES];
    memcpy(lane, &words, sizeof words);
    for (int k = 0; k < LANES; k++)
        memcpy(blocks[k] + at, lane + k, 4);
}

INLINE void put_halves(uint8_t *const *blocks, size_t at, vi halves)
{
    int32_t lane[LANES];
    memcpy(lane, &halves, sizeof halves);
    for (int k = 0; k < LANES; k++)
        memcpy(blocks[k] + at, lane + k, 2);
}

/* Four consecutive bytes, each in a lane's lowest 8 bits (the rest is ignored but in d). */
INLINE vi four_bytes(vi a, vi b, vi c, vi d)
{
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24;
}

/* From here on, 256 codes of each lane. The lower 2 bits of 4 values to a byte: of values i,
 * i + 32, i + 64, i + 96 of every 128. */
INLINE void put_two_bits(uint8_t *const *blocks, size_t at, const vi *codes)
{
    for (int half = 0; half < 2; half++, codes += 128)
        for (int i = 0; i < 32; i += 4) {
            vi byte[4];
            for (int k = 0; k < 4; k++) {
                const vi *c = codes + i + k;
                byte[k] = (c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | c[96] << 6;
            }
            put_words(blocks, at + half * 32 + i, four_bytes(byte[0], byte[1], byte[2], byte[3]));
        }
}

/* The lower 4 bits of 2 values to a byte: of values i, i + 32 of every 64. */
INLINE void put_four_bits(uint8_t *const *blocks, size_t at, const vi *codes)
{
    for (int quarter = 0; quarter < 4; quarter++, codes += 64)
        for (int i = 0; i < 32; i += 4) {
            vi byte[4];
            for (int k = 0; k < 4; k++)
                byte[k] = (codes[i + k] & 15) | (codes[i + k + 32] & 15) << 4;
            put_words(blocks, at + quarter * 32 + i,
                      four_bytes(byte[0], byte[1], byte[2], byte[3]));
        }
}

/* Bit `shift` of 8 values to a byte: of values i, i + 32, ..., i + 224. */
INLINE void put_one_bit(uint8_t *const *blocks, size_t at, const vi *codes, int shift)
{
    for (int i = 0; i < 32; i += 4) {
        vi byte[4];
        for (int k = 0; k < 4; k++) {
            byte[k] = iall(0);
            for (int j = 0; j < 8; j++)
                byte[k] |= (codes[32 * j + i + k] >> shift & 1) << j;
        }
        put_words(blocks, at + i, four_bytes(byte[0], byte[1], byte[2], byte[3]));
    }
}
