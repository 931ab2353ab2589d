// Rows of x in the form that a product takes, prepared once for all of its columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace kvflow {

constexpr int64_t kCacheLine = 64;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Memory of a thread, aligned to cache lines, which keeps its size between calls: fresh memory of
// this size costs a page fault for every 4 KiB.
class Scratch {
 public:
  uint8_t* reserve(int64_t size) {
    if (static_cast<int64_t>(bytes_.size()) < size + kCacheLine) bytes_.resize(size + kCacheLine);
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (round_up(address, kCacheLine) - address);
  }

 private:
  std::vector<uint8_t> bytes_;
};

// data: rows of ``stride`` bytes; scale: of each row, if rows are quantised.
struct Rows {
  const uint8_t* data;
  int64_t stride;
  const float* scale;

  const uint8_t* at(int64_t m) const { return data + m * stride; }
};

// Rounds x to bfloat16, with zeros up to the end of the row.
inline void round_row(uint8_t* to, const float* x, int64_t K, int64_t row_bytes) {
  auto* out = reinterpret_cast<BFloat16*>(to);
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) store(out + k, load(x + k));
  for (; k < K; ++k) {
    BFloat16 lanes[kLanes];
    store(lanes, splat(x[k]));
    out[k] = lanes[0];
  }
  std::memset(out + K, 0, row_bytes - K * sizeof(BFloat16));
}

constexpr float kMaxQuantised = 127.0f;

// Quantises x symmetrically to -127 .. 127 and stores each value + kOffset. Returns the scale.
// Not-a-number anywhere makes the scale, and so the row's products, not-a-number.
template <int kOffset>
inline float quantise_row(uint8_t* to, const float* x, int64_t K, int64_t row_bytes) {
  Vec peak = {}, check = {};
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    const Vec v = load(x + k);
    peak = max(v < 0 ? -v : v, peak);
    check += v * 0.0f;
  }
  float largest = max(peak), invalid = sum(check);
  for (; k < K; ++k) {
    largest = std::max(largest, std::fabs(x[k]));
    invalid += x[k] * 0.0f;
  }
  const float scale = largest / kMaxQuantised, factor = largest > 0 ? kMaxQuantised / largest : 0.0f;
  if (!(invalid == 0)) {
    std::memset(to, 0, row_bytes);
    return invalid + NAN;
  }
  for (k = 0; k + kLanes <= K; k += kLanes) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even.
    const Vec rounded = load(x + k) * factor + 12582912.0f;
    const IntVec whole = ((IntVec)rounded & 0x7fffff) - 0x400000 + kOffset;
    typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
    *reinterpret_cast<Bytes*>(to + k) = __builtin_convertvector(whole, Bytes);
  }
  for (; k < K; ++k) to[k] = static_cast<int8_t>(std::nearbyint(x[k] * factor)) + kOffset;
  std::memset(to + K, 0, row_bytes - K);
  return scale;
}

}  // namespace kvflow
