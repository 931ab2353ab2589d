// Vectors of eight floats in the compilers' vector types: one source for AVX2, AVX-512 and NEON.
#pragma once

#include <cmath>
#include <cstdint>

namespace kvflow {

constexpr int kLanes = 8;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void store(float* to, Vec v) { *reinterpret_cast<UnalignedVec*>(to) = v; }
inline Vec splat(float x) { return Vec{} + x; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// Keeps a loaded vector in its register. Otherwise GCC loads it again at every use, which halves
// the rate of a load-bound product.
inline void keep_in_register(Vec& v) {
#if defined(__AVX__)
  asm("" : "+x"(v));
#else
  (void)v;
#endif
}

inline float sum(Vec v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

inline float max(Vec v) {
  float result = v[0];
  for (int i = 1; i < kLanes; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

// exp(x) for x <= 0, within 2 units in the last place: a power of two times Cephes' polynomial.
// Below x = -87 it returns 1e-38 rather than 0.
inline Vec exp_nonpositive(Vec x) {
  x = max(x, splat(-87.3f));
  const IntVec whole = __builtin_convertvector(x * 1.44269504f - 0.5f, IntVec);
  const Vec n = __builtin_convertvector(whole, Vec);
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (Vec)((whole + 127) << 23);
}

// c[MU rows, NU vectors] (+)= a[MU, depth] * b[depth, NU vectors], in registers.
// Every entry is one chain of fused multiply-adds in the order of depth, so it is bit-identical for
// all MU and NU.
template <int MU, int NU, bool kAdd>
inline void tile_product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b,
                         int64_t ldb, int64_t depth) {
  Vec acc[MU][NU];
#pragma GCC unroll 16
  for (int m = 0; m < MU; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < NU; ++n) acc[m][n] = kAdd ? load(c + m * ldc + n * kLanes) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[NU];
#pragma GCC unroll 16
    for (int n = 0; n < NU; ++n) {
      row[n] = load(b + k * ldb + n * kLanes);
      keep_in_register(row[n]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MU; ++m) {
      const float s = a[m * lda + k];
#pragma GCC unroll 16
      for (int n = 0; n < NU; ++n) acc[m][n] += row[n] * s;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MU; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < NU; ++n) store(c + m * ldc + n * kLanes, acc[m][n]);
}

}  // namespace kvflow
