// Products on Intel's matrix unit (AMX): tiles of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include "packed.h"

namespace kvflow {

// GCC's intrinsics do not say which memory the unit reads: finish all writes first.
inline void finish_writes() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures the thread's tiles while it exists. Other libraries use the unit, too.
struct AmxUnit {
  AmxUnit() {
    static const TileConfig config;
    finish_writes();
    _tile_loadconfig(&config);
  }
  ~AmxUnit() { _tile_release(); }
  AmxUnit(const AmxUnit&) = delete;
  AmxUnit& operator=(const AmxUnit&) = delete;
};

constexpr int64_t kTileRows = 16, kTileBytes = 64, kSumsBytes = kPackedPanel * sizeof(float);
constexpr int64_t kStepBytes = kBlockDepth * kPackedPanel * sizeof(BFloat16);  // two tiles
constexpr int64_t kPrefetchBytes = 4 * kStepBytes;

// Tiles 0 to 3: sums, two tiles of rows by two of columns; 4, 5: rows of x; 6, 7: columns.
// sums f32[kTiles * 16, 32] (+)= rows of x times columns.
template <bool kAdd, bool kPrefetch, int kTiles>
inline void add_tiles(float* sums, const uint8_t* x, int64_t stride, const uint8_t* columns,
                      int64_t num_steps) {
  auto* out = reinterpret_cast<uint8_t*>(sums);
  finish_writes();
  if constexpr (kAdd) {
    _tile_loadd(0, out, kSumsBytes);
    _tile_loadd(1, out + kTileBytes, kSumsBytes);
    if constexpr (kTiles == 2) {
      _tile_loadd(2, out + kTileRows * kSumsBytes, kSumsBytes);
      _tile_loadd(3, out + kTileRows * kSumsBytes + kTileBytes, kSumsBytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t step = 0; step < num_steps; ++step, x += kTileBytes, columns += kStepBytes) {
    if constexpr (kPrefetch)
      for (int64_t i = 0; i < kStepBytes; i += kCacheLine)
        _mm_prefetch(reinterpret_cast<const char*>(columns + kPrefetchBytes + i), _MM_HINT_T0);
    _tile_loadd(4, x, stride);
    _tile_loadd(6, columns, 2 * kTileBytes);
    _tile_loadd(7, columns + kTileBytes, 2 * kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, x + kTileRows * stride, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, kSumsBytes);
  _tile_stored(1, out + kTileBytes, kSumsBytes);
  if constexpr (kTiles == 2) {
    _tile_stored(2, out + kTileRows * kSumsBytes, kSumsBytes);
    _tile_stored(3, out + kTileRows * kSumsBytes + kTileBytes, kSumsBytes);
  }
}

// A unit of packed.h. Its sums have whole tiles of rows. kPrefetch: few rows read the columns from
// memory.
struct MatrixUnit {
  using Element = BFloat16;
  using Thread = AmxUnit;
  static constexpr int kRowBlock = kTileRows;
  static constexpr int64_t kPart = 320;  // 20 KiB

  static int64_t row_bytes(int64_t K) { return PairsUnit::row_bytes(K); }
  static void prepare(uint8_t* row, const float* x, int64_t K, int64_t row_bytes) {
    PairsUnit::prepare(row, x, K, row_bytes);
  }

  template <bool kAdd, bool kPrefetch>
  static void add(float* sums, const uint8_t* x, int64_t stride, int64_t num_rows,
                  const BFloat16* columns, int64_t depth) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(columns);
    const int64_t num_steps = depth / kBlockDepth;
    if (num_rows <= kTileRows) return add_tiles<kAdd, kPrefetch, 1>(sums, x, stride, bytes, num_steps);
    for (; num_rows > kTileRows; num_rows -= 2 * kTileRows) {
      add_tiles<kAdd, false, 2>(sums, x, stride, bytes, num_steps);
      sums += 2 * kTileRows * kPackedPanel;
      x += 2 * kTileRows * stride;
    }
    if (num_rows > 0) add_tiles<kAdd, false, 1>(sums, x, stride, bytes, num_steps);
  }
};

}  // namespace kvflow
