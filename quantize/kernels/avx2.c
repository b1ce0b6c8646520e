/* Eight lanes. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2")
#endif
#define LANES 8
#define NAME AVX2
#define NAME_TEXT "avx2"
#include "build.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
