/* What the module and the three builds of the kernels agree on. */
#include <stddef.h>
#include <stdint.h>

enum { DTYPE_BF16, DTYPE_F16, DTYPE_F32 };

enum { CODE_E4M3, CODE_INT8, CODE_UINT8, CODE_INT4, CODE_COUNT };

struct rows {
    const void *values; /* count rows of columns values each, row-major */
    int dtype;
    size_t count, columns;
};

/* One build for one width of vector; `quantize` knows the types of TYPES by their place there. */
struct kernels {
    const char *name;
    int lanes;
    void (*quantize)(int type, struct rows rows, const float *importance, uint8_t *blocks);
    void (*absmax)(struct rows rows, float *out);
    /* a scale a row; `rounded` is the dtype that quotients are rounded to before they are coded */
    void (*codes)(struct rows rows, int rounded, int code, const float *scales, uint8_t *out);
};

struct type {
    const char *name;
    int values, bytes;
};

enum { Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, TYPE_COUNT };
extern const struct type TYPES[TYPE_COUNT];
extern const struct kernels BASELINE, AVX2, AVX512;
