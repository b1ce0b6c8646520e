/* Sixteen lanes. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define LANES 16
#define NAME AVX512
#define NAME_TEXT "avx512"
#include "build.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
