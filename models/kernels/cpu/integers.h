// Products of few rows with integers of 8 or 4 bits, in integers: what a step of few rows costs is
// the expansion of its matrices, which this does without.
#pragma once

#include "layouts.h"
#include "panels.h"

namespace kvflow {

// A format, as panels.h says. Each 32 values of a row of x are integers of 16 bits times a power of
// two, so their sum with a block of a column is exact, and bit-identical for every number of rows.
template <int kBits>
struct IntegerPanels : GroupedLayout<kBits> {
  using Layout = GroupedLayout<kBits>;
  using Unit = NoUnit;
  static constexpr int kPanel = kPackedPanel, kRowBlock = 1;

  static int64_t row_bytes(int64_t K) { return num_blocks(K) * sizeof(RowBlock); }

  static void prepare(uint8_t* row, const float* x, int64_t K, int64_t) {
    auto* block = reinterpret_cast<RowBlock*>(row);
    for (int64_t k = 0; k < K; k += kBlockDepth, ++block) {
      float values[kBlockDepth] = {};
      std::copy(x + k, x + std::min(K, k + kBlockDepth), values);
      *block = round(values);
    }
  }

  static void product(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    for_row_blocks<kMostRows>(num_rows, [&](auto MU, int64_t i) {
      multiply<MU>(y + i * ldy, ldy, x.at(m + i), x.stride, panel, num_blocks(K));
    });
  }

 private:
  static constexpr int kMostRows = 4;
  static constexpr int kVecs = 2;  // of columns at a time: 8 accumulators
  typedef int8_t Bytes __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  typedef uint8_t Nibbles __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  typedef int16_t Words __attribute__((vector_size(4 * kLanes)));
  typedef uint16_t UnsignedWords __attribute__((vector_size(4 * kLanes)));

  struct RowBlock {
    int16_t values[kBlockDepth];
    float scale;
    float sum;  // of the values times the scale
  };

  static constexpr int kBias = 127;  // of a float's exponent

  static float power_of_two(int exponent) {
    const int32_t bits = (exponent + kBias) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // A NaN or an infinity makes the block one of NaNs.
  static RowBlock round(const float* x) {
    constexpr float kMost = 32767.0f, kWhole = 12582912.0f;  // 1.5 * 2^23: adding it rounds
    Vec largest = {}, nothing = {};
    for (int k = 0; k < kBlockDepth; k += kLanes) {
      const Vec v = load(x + k);
      largest = max(largest, v < 0 ? -v : v);
      nothing += v * 0.0f;
    }
    const float peak = max(largest);
    int32_t bits;
    std::memcpy(&bits, &peak, sizeof bits);
    const int exponent = std::max(bits >> 23, kBias - 100) + 1 - kBias;  // peak < 2^exponent
    const float factor = power_of_two(15 - exponent);
    RowBlock block;
    block.scale = power_of_two(exponent - 15);
    Vec total = {};
    for (int k = 0; k < kBlockDepth; k += kLanes) {
      const Vec scaled = load(x + k) * factor;
      const Vec shifted = (scaled < kMost ? scaled : splat(kMost)) + kWhole;
      const auto words =
          __builtin_convertvector((IntVec)shifted - (IntVec)splat(kWhole), UnalignedHalves);
      std::memcpy(block.values + k, &words, sizeof words);
      total += shifted - kWhole;
    }
    block.scale += sum(nothing);
    block.sum = sum(total) * block.scale;
    return block;
  }

  // Sums of the products of pairs of words.
  static IntVec dot(Words a, Words b) {
#if defined(__AVX512BW__)
    return (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const IntVec c = (IntVec)a, d = (IntVec)b;
    return (c << 16 >> 16) * (d << 16 >> 16) + (c >> 16) * (d >> 16);
#endif
  }

  template <int MU>
  static void multiply(float* y, int64_t ldy, const uint8_t* x, int64_t stride,
                       const uint8_t* panel, int64_t num_blocks) {
    Vec sums[MU][kPackedVecs] = {};
    for (int64_t b = 0; b < num_blocks; ++b, panel += Layout::kBytes, x += sizeof(RowBlock)) {
      prefetch(panel + kPrefetchBlocks * Layout::kBytes, Layout::kBytes);
      const auto* scales = reinterpret_cast<const uint16_t*>(panel + Layout::kValueBytes);
#pragma GCC unroll 4
      for (int v = 0; v < kPackedVecs; v += kVecs) {
        IntVec acc[MU][kVecs] = {};
        add_block(acc, x, stride, panel + v * kLanes * 2);
#pragma GCC unroll 2
        for (int n = 0; n < kVecs; ++n) {
          const Vec scale = load_half(scales + (v + n) * kLanes);
#pragma GCC unroll 4
          for (int m = 0; m < MU; ++m) {
            const auto* row = reinterpret_cast<const RowBlock*>(x + m * stride);
            sums[m][v + n] += __builtin_convertvector(acc[m][n], Vec) * (scale * row->scale);
            if constexpr (Layout::kHasMinima)
              sums[m][v + n] += load_half(scales + kPackedPanel + (v + n) * kLanes) * row->sum;
          }
        }
      }
    }
    for (int m = 0; m < MU; ++m)
      for (int v = 0; v < kPackedVecs; ++v) store(y + m * ldy + v * kLanes, sums[m][v]);
  }

  template <int MU>
  static void add_block(IntVec (&acc)[MU][kVecs], const uint8_t* x, int64_t stride,
                        const uint8_t* bytes) {
    const auto add = [&](int64_t pair, const Words* columns) {
#pragma GCC unroll 4
      for (int m = 0; m < MU; ++m) {
        int32_t values;
        std::memcpy(&values, x + m * stride + pair * 4, 4);
        const Words factor = (Words)(IntVec{} + values);
#pragma GCC unroll 2
        for (int n = 0; n < kVecs; ++n) acc[m][n] += dot(columns[n], factor);
      }
    };
    constexpr int64_t kVecBytes = 2 * kLanes;
#pragma GCC unroll 16
    for (int64_t pair = 0; pair < Layout::kValueBytes / kPairBytes; ++pair, bytes += kPairBytes) {
      Words first[kVecs];
      if constexpr (kBits == 8) {
        for (int n = 0; n < kVecs; ++n)
          first[n] = __builtin_convertvector(
              *reinterpret_cast<const Bytes*>(bytes + n * kVecBytes), Words);
        add(pair, first);
      } else {
        Words second[kVecs];
        for (int n = 0; n < kVecs; ++n) {
          const auto both = __builtin_convertvector(
              *reinterpret_cast<const Nibbles*>(bytes + n * kVecBytes), UnsignedWords);
          first[n] = (Words)(both & 15);
          second[n] = (Words)(both >> 4);
        }
        add(pair, first);
        add(kPairs / 2 + pair, second);
      }
    }
  }
};

}  // namespace kvflow
