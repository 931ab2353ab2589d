// Parallel loop of the calling thread and XLA's thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace kvflow {

// Runs body(0) to body(num_items - 1). Each thread takes the next item when it has finished one:
// on a shared machine equal shares would wait for the slowest thread. The caller never waits for a
// thread that has not started, so a busy pool cannot stall it.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t num_items, const Body& body) {
  const int64_t num_helpers = std::min<int64_t>(pool.num_threads(), num_items) - 1;
  if (num_helpers <= 0) {
    for (int64_t i = 0; i < num_items; ++i) body(i);
    return;
  }
  struct Progress {
    std::atomic<int64_t> next{0}, num_done{0};
  };
  // A helper may start after the caller has returned. It shares ownership of the counters, and
  // uses the body only after it has taken an item.
  auto progress = std::make_shared<Progress>();
  auto work = [progress, num_items, &body] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < num_items;) {
      body(i);
      progress->num_done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < num_helpers; ++i) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  for (int spins = 0; progress->num_done.load(std::memory_order_acquire) < num_items; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

}  // namespace kvflow
