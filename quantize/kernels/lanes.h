/* Arithmetic on LANES independent numbers at once; every lane computes as scalar IEEE code would.
 *
 * vf and vi are GCC/Clang vectors of float and int32, vm is the result of a comparison: a bit mask
 * with AVX-512, otherwise a vector of 0 and -1. Only selects, square roots, minima and maxima need
 * an intrinsic of the width. vmin(a, b) is a < b ? a : b and vmax(a, b) is a > b ? a : b, which
 * decides what happens to NaN and to zeros of different sign.
 */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint8_t vb __attribute__((vector_size(LANES)));

#if LANES == 16
typedef __mmask16 vm;
#define WIDE(name) _mm512_##name
INLINE vm lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OS); }
INLINE vm gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OS); }
INLINE vm le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OS); }
INLINE vm eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE vm ieq(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm igt(vi a, vi b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE int any(vm m) { return m != 0; }
INLINE vm none(void) { return 0; }
INLINE vf sel(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
INLINE vi isel(vm m, vi a, vi b)
{
    return (vi)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a);
}
#define HAS_INTEGER_MINIMUM 1
#define INTEGER_VECTOR __m512i
#else
typedef vi vm;
INLINE vm lt(vf a, vf b) { return a < b; }
INLINE vm gt(vf a, vf b) { return a > b; }
INLINE vm le(vf a, vf b) { return a <= b; }
INLINE vm eq(vf a, vf b) { return a == b; }
INLINE vm ieq(vi a, vi b) { return a == b; }
INLINE vm igt(vi a, vi b) { return a > b; }
INLINE vm none(void) { return (vm){0}; }
#if LANES == 8
#define WIDE(name) _mm256_##name
INLINE int any(vm m) { return _mm256_movemask_ps((vf)m) != 0; }
INLINE vf sel(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, (vf)m); }
INLINE vi isel(vm m, vi a, vi b) { return (vi)sel(m, (vf)a, (vf)b); }
#define HAS_INTEGER_MINIMUM 1
#define INTEGER_VECTOR __m256i
#else
#define WIDE(name) _mm_##name
INLINE int any(vm m) { return _mm_movemask_ps((vf)m) != 0; }
INLINE vi isel(vm m, vi a, vi b) { return (m & a) | (~m & b); }
INLINE vf sel(vm m, vf a, vf b) { return (vf)isel(m, (vi)a, (vi)b); }
#define HAS_INTEGER_MINIMUM 0
#endif
#endif

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf all(float value) { return value - (vf){0}; }
INLINE vi iall(int32_t value) { return value - (vi){0}; }
INLINE vf vmin(vf a, vf b) { return WIDE(min_ps)(a, b); }
INLINE vf vmax(vf a, vf b) { return WIDE(max_ps)(a, b); }
INLINE vf root(vf a) { return WIDE(sqrt_ps)(a); }
INLINE vf magnitude(vf a) { return (vf)((vi)a & 0x7fffffff); }
INLINE vf zero(void) { return (vf){0}; }

#if HAS_INTEGER_MINIMUM
INLINE vi imin(vi a, vi b) { return (vi)WIDE(min_epi32)((INTEGER_VECTOR)a, (INTEGER_VECTOR)b); }
INLINE vi imax(vi a, vi b) { return (vi)WIDE(max_epi32)((INTEGER_VECTOR)a, (INTEGER_VECTOR)b); }
#else
INLINE vi imin(vi a, vi b) { return isel(igt(b, a), a, b); }
INLINE vi imax(vi a, vi b) { return isel(igt(a, b), a, b); }
#endif
INLINE vi iclamp(vi a, int low, int high) { return imax(imin(a, iall(high)), iall(low)); }
INLINE vf clamp(vf a, int low, int high) { return vmax(vmin(a, all(high)), all(low)); }

INLINE vf to_float(vi a) { return __builtin_convertvector(a, vf); }
/* Towards zero; what does not fit becomes -2^31, as cvttps2dq has it. */
INLINE vi to_int(vf a) { return (vi)WIDE(cvttps_epi32)(a); }
INLINE vi as_int8(vi a) { return (a << 24) >> 24; }

/* 1.5 * 2^23: added to a number below 2^22, it leaves the nearest integer, ties to even, in the
 * lowest bits. `nearest` gives what those bits hold for any number, NaN and infinity included;
 * `rounded` is the same integer as a float, for |a| < 2^22 only. */
#define MAGIC 12582912.0f
#define ROUNDED_LIMIT 4194303.0f
INLINE vi nearest(vf a) { return ((vi)(a + MAGIC) & 0x007fffff) - 0x00400000; }
INLINE vf rounded(vf a) { return (a + MAGIC) - MAGIC; }

/* The bits of IEEE half precision, ties to even. Scaled up, overflow becomes infinity; added to a
 * power of two 2^13 times its own last place, the float is rounded to half's 10 fraction bits. */
INLINE vi to_half(vf a)
{
    vf base = (magnitude(a) * 0x1.0p+112f) * 0x1.0p-110f;
    vi exponent = imax((vi)a & 0x7f800000, iall(0x38800000));
    vi bits = (vi)((vf)(exponent + 0x07800000) + base);
    vi value = ((bits >> 13) & 0x7c00) + (bits & 0x0fff);
    vm nan = igt((vi)magnitude(a), iall(0x7f800000));
    return isel(nan, iall(0x7e00), value) | ((vi)((vu)a >> 16) & 0x8000);
}

/* Exactly the value of half precision bits. Subnormals are made by a subtraction of normals. */
INLINE vf from_half(vi half)
{
    vi bits = (half & 0x7fff) << 13;
    vi exponent = bits & (0x7c00 << 13);
    vi normal = bits + ((127 - 15) << 23);
    vi special = normal + ((128 - 16) << 23);
    vf small = (vf)(normal + (1 << 23)) - 0x1.0p-14f;
    vi value = isel(ieq(exponent, iall(0)), (vi)small, normal);
    value = isel(ieq(exponent, iall(0x7c00 << 13)), special, value);
    return (vf)(value | ((half & 0x8000) << 16));
}
