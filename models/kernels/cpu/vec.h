// Vectors of floats in the compilers' vector types: 16 lanes with AVX-512, else 8 (AVX2, NEON).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace kvflow {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t UnalignedHalves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

// The bits of a bfloat16: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t whole = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
  }
};

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline Vec load(const BFloat16* from) {
  const auto halves = *reinterpret_cast<const UnalignedHalves*>(from);
  return (Vec)(__builtin_convertvector(halves, BitsVec) << 16);
}
// kLanes values in float16, in consecutive halves.
inline Vec load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  typedef _Float16 Half __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(from), Vec);
#endif
}
inline void store(float* to, Vec v) { *reinterpret_cast<UnalignedVec*>(to) = v; }
// Minus, because x - 0 is x and 0 + x is not: that would be an addition.
inline Vec splat(float x) { return x - Vec{}; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// Rounds to the nearest bfloat16, ties to even. A NaN stays a NaN.
inline BitsVec bfloat16_bits(Vec v) {
  const BitsVec bits = (BitsVec)v;
  const BitsVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return v == v ? rounded : bits >> 16 | 0x40;
}
inline void store(BFloat16* to, Vec v) {
  *reinterpret_cast<UnalignedHalves*>(to) =
      __builtin_convertvector(bfloat16_bits(v), UnalignedHalves);
}

// Keeps a loaded vector in its register. Otherwise GCC loads it again at every use, which halves
// the rate of a load-bound product.
inline void keep_in_register(Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX__)
  asm("" : "+x"(v));
#else
  (void)v;
#endif
}

inline float sum(Vec v) {
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32), may_alias));
  const Half* halves = reinterpret_cast<const Half*>(&v);
  const Half h = halves[0] + halves[1];
#else
  const Vec h = v;
#endif
  return ((h[0] + h[4]) + (h[2] + h[6])) + ((h[1] + h[5]) + (h[3] + h[7]));
}

inline float max(Vec v) {
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32), may_alias));
  const Half* halves = reinterpret_cast<const Half*>(&v);
  const Half h = halves[0] > halves[1] ? halves[0] : halves[1];
#else
  const Vec h = v;
#endif
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  return larger(larger(larger(h[0], h[4]), larger(h[2], h[6])),
                larger(larger(h[1], h[5]), larger(h[3], h[7])));
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

// 1 / (1 + exp(-x)), without overflow for any x.
inline Vec sigmoid(Vec x) {
  const Vec e = exp_nonpositive(x < 0 ? x : -x);
  return (x < 0 ? e : splat(1.0f)) / (1.0f + e);
}

#if defined(__AVX512F__)
// Transposes 16 rows of 16 times 32 bits, each row at its own address, to rows of ``stride`` bytes.
inline void transpose(uint8_t* to, int64_t stride, const void* const* rows) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i]);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
  // a[4 g + c]: columns c, c + 4, c + 8, c + 12 of rows 4 g to 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i high01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i low23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i high23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_si512(to + c * stride, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(to + (4 + c) * stride, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(to + (8 + c) * stride, _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_storeu_si512(to + (12 + c) * stride, _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
}
#endif

// c[MU rows, NU vectors] (+)= a[MU, depth] * b[depth, NU vectors], in registers.
// Every entry is one chain of fused multiply-adds in the order of depth, so it is bit-identical for
// all MU and NU. kAhead: how many values ahead to prefetch b into the second-level cache, or 0.
template <int MU, int NU, bool kAdd, int64_t kAhead = 0>
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
      if constexpr (kAhead > 0) __builtin_prefetch(b + k * ldb + n * kLanes + kAhead, 0, 2);
      keep_in_register(row[n]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MU; ++m) {
      Vec s = splat(a[m * lda + k]);
      keep_in_register(s);
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
