/* One build of all kernels, for the LANES and NAME of the file that includes this. */
#if !defined(__x86_64__) || !(defined(__GNUC__) || defined(__clang__))
#error "the kernels are for x86-64 and need the vector types of GCC or Clang; ggml is used without"
#endif
#include "kernels.h"

#include "lanes.h"
#include "tile.h"
#include "search.h"
#include "search_scales.h"
#include "affine_k.h"
#include "symmetric_k.h"
#include "blocks32.h"
#include "iq4.h"
#include "along_rows.h"

/* x, importance: 32 or 256 values of each lane; sigma2: mean square of each lane's row. */
typedef void encode_lanes(const vf *x, const vf *importance, vf sigma2, uint8_t *const *blocks);

static encode_lanes *const PLAIN[TYPE_COUNT] = {
    [Q4_0] = q4_0, [Q4_1] = q4_1, [Q5_0] = q5_0, [Q5_1] = q5_1, [Q2_K] = q2_k,
    [Q3_K] = q3_k, [Q4_K] = q4_k, [Q5_K] = q5_k, [Q6_K] = q6_k, [IQ4_NL] = iq4_nl,
    [IQ4_XS] = iq4_xs,
};
static encode_lanes *const WEIGHTED[TYPE_COUNT] = {
    [Q4_0] = q4_0_weighted,     [Q4_1] = q4_1_weighted,     [Q5_0] = q5_0_weighted,
    [Q5_1] = q5_1_weighted,     [Q2_K] = q2_k_weighted,     [Q3_K] = q3_k_weighted,
    [Q4_K] = q4_k_weighted,     [Q5_K] = q5_k_weighted,     [Q6_K] = q6_k_weighted,
    [IQ4_NL] = iq4_nl_weighted, [IQ4_XS] = iq4_xs_weighted,
};

/* Mean squares of rows first, first + 1, ..., one a lane, each summed in order. */
static vf mean_squares(struct rows rows, size_t first, size_t count)
{
    size_t starts[LANES];
    vf tile[32], sum = zero();
    for (size_t i = 0; i < rows.columns; i += 32) {
        for (size_t k = 0; k < LANES; k++)
            starts[k] = (first + (k < count ? k : count - 1)) * rows.columns + i;
        load_tile(tile, rows.values, rows.dtype, starts, 32);
        for (int j = 0; j < 32; j++)
            sum += tile[j] * tile[j];
    }
    return sum / (float)rows.columns;
}

/* The next LANES blocks, beginning with block `first`; `row_sigma2` belongs to rows from
 * `first_row` on. */
static void encode_group(int type, struct rows rows, const float *importance, uint8_t *blocks,
                         size_t first, size_t last, size_t first_row, const float *row_sigma2)
{
    const struct type *t = &TYPES[type];
    size_t starts[LANES], columns[LANES];
    uint8_t *out[LANES];
    float sigma2[LANES];
    vf x[256], w[256], lane_sigma2;
    for (size_t k = 0; k < LANES; k++) {
        size_t block = first + k < last ? first + k : last - 1;
        starts[k] = block * t->values;
        columns[k] = starts[k] % rows.columns;
        sigma2[k] = row_sigma2[starts[k] / rows.columns - first_row];
        out[k] = blocks + block * t->bytes;
    }
    memcpy(&lane_sigma2, sigma2, sizeof sigma2);
    load_tile(x, rows.values, rows.dtype, starts, t->values);
    if (importance)
        load_tile(w, importance, DTYPE_F32, columns, t->values);
    (importance ? WEIGHTED : PLAIN)[type](x, w, lane_sigma2, out);
}

static void quantize(int type, struct rows rows, const float *importance, uint8_t *blocks)
{
    if (type == Q8_0) { /* which has no use for importance */
        q8_0(rows.values, rows.dtype, rows.count * rows.columns, blocks);
        return;
    }
    size_t per_row = rows.columns / TYPES[type].values;
    int needs_sigma2 = importance && TYPES[type].values == 32 && type != IQ4_NL;
    for (size_t row = 0; row < rows.count; row += LANES) {
        float sigma2[LANES] = {0};
        size_t count = rows.count - row < LANES ? rows.count - row : LANES;
        if (needs_sigma2) {
            vf mean = mean_squares(rows, row, count);
            memcpy(sigma2, &mean, sizeof mean);
        }
        size_t last = (row + count) * per_row;
        for (size_t first = row * per_row; first < last; first += LANES)
            encode_group(type, rows, importance, blocks, first, last, row, sigma2);
    }
}

const struct kernels NAME = {NAME_TEXT, LANES, quantize, absmax, codes};
