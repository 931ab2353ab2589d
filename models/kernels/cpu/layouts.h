// How matrices in 16, 8 or 4 bits lie in memory: panels of 32 columns, [K / 32 blocks, 32 rows], and
// of each block pairs of rows, [16, 32, 2], as matrix units take them. formats.py packs them.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "rows.h"
#include "vec.h"

namespace kvflow {

constexpr int kPackedPanel = 32, kPackedVecs = kPackedPanel / kLanes;
constexpr int64_t kBlockDepth = 32;                  // rows of the matrix in a block
constexpr int64_t kPairs = kBlockDepth / 2;
constexpr int64_t kPairBytes = kPackedPanel * 2;     // of a pair of rows, a byte a value
constexpr int64_t kPrefetchBlocks = 4;

constexpr int64_t num_blocks(int64_t K) { return (K + kBlockDepth - 1) / kBlockDepth; }

inline void prefetch(const void* from, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += kCacheLine)
    __builtin_prefetch(static_cast<const uint8_t*>(from) + i);
}

struct BFloat16Layout {
  using Element = BFloat16;
  static constexpr int64_t kBytes = kPairs * kPairBytes * 2;

  static int64_t panel_bytes(int64_t K) { return num_blocks(K) * kBytes; }

  static void expand(float* to, const uint8_t* panel, int64_t k, int64_t depth) {
    const auto* pairs = reinterpret_cast<const BitsVec*>(panel + k * kPairBytes);
    for (; depth > 0; depth -= 2, to += 2 * kPackedPanel, pairs += kPackedVecs)
      for (int n = 0; n < kPackedVecs; ++n) {
        store(to + n * kLanes, (Vec)(pairs[n] << 16));
        store(to + kPackedPanel + n * kLanes, (Vec)(pairs[n] & 0xffff0000u));
      }
  }
};

// Integers of kBits with a scale in float16 for 32 rows of a column; 4 bits are 0 to 15 and have a
// float16 to add, 8 bits are signed. A block is [16 * kBits / 8 bytes + scales (+ minima), 32, 2].
// Of 4 bits a byte has a value of the first 16 rows of the block in its lower half, and of the last
// 16 in its upper one.
template <int kBits>
struct GroupedLayout {
  using Element = void;  // always expanded
  static constexpr bool kHasMinima = kBits == 4;
  static constexpr int64_t kValueBytes = kPairs * kPairBytes * kBits / 8;
  static constexpr int64_t kBytes = kValueBytes + (kHasMinima ? 2 : 1) * kPairBytes;

  static int64_t panel_bytes(int64_t K) { return num_blocks(K) * kBytes; }

  template <typename T>
  static void expand(T* to, const uint8_t* panel, int64_t k, int64_t depth) {
    const uint8_t* block = panel + k / kBlockDepth * kBytes;
    for (; depth > 0; depth -= kBlockDepth, block += kBytes, to += kBlockDepth * kPackedPanel) {
      prefetch(block + kPrefetchBlocks * kBytes, kBytes);
      expand_block(to, block);
    }
  }

 private:
  // A pair of rows in lanes of 32 bits: the first value in the lowest byte, the second one above.
  static void expand_block(float* to, const uint8_t* block) {
    const auto* scales = reinterpret_cast<const uint16_t*>(block + kValueBytes);
    for (int n = 0; n < kPackedPanel; n += kLanes) {
      const Vec scale = load_half(scales + n);
      const Vec minimum = kHasMinima ? load_half(scales + kPackedPanel + n) : Vec{};
      const auto put = [&](int64_t row, IntVec whole) {
        const Vec value = __builtin_convertvector(whole, Vec) * scale;
        store(to + row * kPackedPanel + n, kHasMinima ? value + minimum : value);
      };
      for (int64_t pair = 0; pair < kValueBytes / kPairBytes; ++pair) {
        const auto* at = reinterpret_cast<const UnalignedHalves*>(block + pair * kPairBytes + n * 2);
        const IntVec bits = __builtin_convertvector(*at, IntVec);
        if constexpr (kBits == 8) {
          put(2 * pair, bits << 24 >> 24);
          put(2 * pair + 1, bits << 16 >> 24);
        } else {
          put(2 * pair, bits & 15);
          put(2 * pair + 1, bits >> 8 & 15);
          put(kPairs + 2 * pair, bits >> 4 & 15);
          put(kPairs + 2 * pair + 1, bits >> 12);
        }
      }
    }
  }

#if defined(__AVX512BF16__)
  static void expand_block(BFloat16* to, const uint8_t* block) {
    constexpr int kQuarters = 4;  // of a pair of rows: 8 columns
    __m512 scale[kQuarters], minimum[kQuarters];
    for (int q = 0; q < kQuarters; ++q) {
      scale[q] = load_halves_twice(block + kValueBytes + q * 16);
      if constexpr (kHasMinima)
        minimum[q] = load_halves_twice(block + kValueBytes + kPairBytes + q * 16);
    }
    const auto put = [&](int64_t pair, const __m512i* whole) {
      __m512 values[kQuarters];
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q) {
        values[q] = _mm512_cvtepi32_ps(whole[q]);
        if constexpr (kHasMinima)
          values[q] = _mm512_fmadd_ps(values[q], scale[q], minimum[q]);
        else
          values[q] = _mm512_mul_ps(values[q], scale[q]);
      }
      auto* out = reinterpret_cast<__m512bh*>(to + pair * 2 * kPackedPanel);
      out[0] = _mm512_cvtne2ps_pbh(values[1], values[0]);
      out[1] = _mm512_cvtne2ps_pbh(values[3], values[2]);
    };
    for (int64_t pair = 0; pair < kValueBytes / kPairBytes; ++pair) {
      const auto* bytes = reinterpret_cast<const __m128i*>(block + pair * kPairBytes);
      __m512i first[kQuarters];
      [[maybe_unused]] __m512i second[kQuarters];
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q) {
        if constexpr (kBits == 8) {
          first[q] = _mm512_cvtepi8_epi32(bytes[q]);
        } else {
          const __m512i both = _mm512_cvtepu8_epi32(bytes[q]);
          first[q] = _mm512_and_si512(both, _mm512_set1_epi32(15));
          second[q] = _mm512_srli_epi32(both, 4);
        }
      }
      put(pair, first);
      if constexpr (kBits == 4) put(kPairs / 2 + pair, second);
    }
  }

  static __m512 load_halves_twice(const uint8_t* from) {
    const __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
    return _mm512_cvtph_ps(_mm256_or_si256(halves, _mm256_slli_epi32(halves, 16)));
  }
#endif
};

}  // namespace kvflow
