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

constexpr int64_t kTileRows = 16, kTileBytes = 64;
constexpr int64_t kStepBytes = kGroupsPerTile * kGroupBytes;  // of a panel: two tiles side by side
constexpr int64_t kPrefetchBytes = 4 * kStepBytes;

// Tiles 0 to 3: sums, two tiles of rows by two of columns; 4, 5: rows of x; 6, 7: columns.
template <bool kInt8>
inline void add_products() {
  if constexpr (kInt8) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
}
template <bool kInt8>
inline void add_second_products() {
  if constexpr (kInt8) {
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  } else {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// sums[kBlocks * 16, 32] = rows of x times a panel. Few rows read the panel from memory: prefetch.
template <bool kInt8, int kBlocks, bool kPrefetch, bool kAdd>
inline void tile_sums(int32_t* sums, const uint8_t* x, int64_t stride, const uint8_t* panel,
                      int64_t num_steps) {
  auto* out = reinterpret_cast<uint8_t*>(sums);
  finish_writes();
  if constexpr (kAdd) {
    _tile_loadd(0, out, kGroupBytes);
    _tile_loadd(1, out + kTileBytes, kGroupBytes);
    if constexpr (kBlocks == 2) {
      _tile_loadd(2, out + kTileRows * kGroupBytes, kGroupBytes);
      _tile_loadd(3, out + kTileRows * kGroupBytes + kTileBytes, kGroupBytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kBlocks == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t step = 0; step < num_steps; ++step, x += kTileBytes, panel += kStepBytes) {
    if constexpr (kPrefetch)
      for (int64_t i = 0; i < kStepBytes; i += kCacheLine)
        _mm_prefetch(reinterpret_cast<const char*>(panel + kPrefetchBytes + i), _MM_HINT_T0);
    _tile_loadd(4, x, stride);
    _tile_loadd(6, panel, kGroupBytes);
    _tile_loadd(7, panel + kTileBytes, kGroupBytes);
    add_products<kInt8>();
    if constexpr (kBlocks == 2) {
      _tile_loadd(5, x + kTileRows * stride, stride);
      add_second_products<kInt8>();
    }
  }
  _tile_stored(0, out, kGroupBytes);
  _tile_stored(1, out + kTileBytes, kGroupBytes);
  if constexpr (kBlocks == 2) {
    _tile_stored(2, out + kTileRows * kGroupBytes, kGroupBytes);
    _tile_stored(3, out + kTileRows * kGroupBytes + kTileBytes, kGroupBytes);
  }
}

// All rows of a block and a part of a panel's steps, so that the part stays in the first-level cache.
template <bool kInt8, bool kAdd>
inline void add_steps(int32_t* sums, const uint8_t* rows, int64_t stride, int64_t num_rows,
                      const uint8_t* panel, int64_t num_steps) {
  for (int64_t m = 0; m < num_rows; m += 2 * kTileRows, sums += 2 * kTileRows * kPackedPanel) {
    const uint8_t* x = rows + m * stride;
    if (m + kTileRows < num_rows)
      tile_sums<kInt8, 2, false, kAdd>(sums, x, stride, panel, num_steps);
    else if (m > 0)
      tile_sums<kInt8, 1, false, kAdd>(sums, x, stride, panel, num_steps);
    else
      tile_sums<kInt8, 1, true, kAdd>(sums, x, stride, panel, num_steps);
  }
}

constexpr int64_t kAmxRows = 128;         // rows whose sums are kept at a time
constexpr int64_t kStepsPerPart = 10;     // 20 KiB of a panel

template <bool kInt8, typename Store>
inline void amx_product(const Rows& x, int64_t m0, int64_t num_rows, const uint8_t* panel,
                        int64_t num_steps, const Store& store_row) {
  alignas(kCacheLine) int32_t sums[kAmxRows * kPackedPanel];
  const int64_t part = num_rows > 2 * kTileRows ? kStepsPerPart : num_steps;
  for (int64_t m = 0; m < num_rows; m += kAmxRows) {
    const int64_t num = std::min(kAmxRows, num_rows - m);
    const uint8_t* rows = x.at(m0 + m);
    add_steps<kInt8, false>(sums, rows, x.stride, num, panel, std::min(part, num_steps));
    for (int64_t step = part; step < num_steps; step += part)
      add_steps<kInt8, true>(sums, rows + step * kTileBytes, x.stride, num,
                             panel + step * kStepBytes, std::min(part, num_steps - step));
    for (int64_t i = 0; i < num; ++i) store_row(m + i, sums + i * kPackedPanel);
  }
}

struct AmxBFloat16Panels : BFloat16Panels {
  static constexpr int kRowBlock = kTileRows;
  using Unit = AmxUnit;

  static void product(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    amx_product<false>(x, m, num_rows, panel, padded_groups(K, 2) / kGroupsPerTile,
                       [&](int64_t i, const int32_t* sums) {
                         std::memcpy(y + i * ldy, sums, kPackedPanel * sizeof(float));
                       });
  }
};

struct AmxInt8Panels : Int8Panels {
  static_assert(kOffset == 128, "the unit multiplies unsigned rows with signed columns");
  static constexpr int kRowBlock = kTileRows;
  using Unit = AmxUnit;

  static void product(float* y, int64_t ldy, const Rows& x, int64_t m, int64_t num_rows,
                      const uint8_t* panel, int64_t K) {
    const Int8Columns& columns = Int8Columns::of(panel, K);
    amx_product<true>(x, m, num_rows, panel, padded_groups(K, 4) / kGroupsPerTile,
                      [&](int64_t i, const int32_t* sums) {
                        store_scaled(y + i * ldy, reinterpret_cast<const IntVec*>(sums),
                                     x.scale[m + i], columns, true);
                      });
  }
};

}  // namespace kvflow
