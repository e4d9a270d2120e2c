// Device memory of a test: owned, sized in elements, copied whole.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "adaptive_k/cuda/device_plans.cuh"

namespace device {

template <class T>
class buffer {
 public:
  explicit buffer(std::size_t count) : count_(count) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), cudaSuccess);
  }
  explicit buffer(const std::vector<T>& values) : buffer(values.size()) { write(values); }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { cudaFree(data_); }

  T* get() const { return data_; }

  void write(const std::vector<T>& values) {
    ASSERT_EQ(values.size(), count_);
    ASSERT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  void clear() { ASSERT_EQ(cudaMemset(data_, 0, bytes()), cudaSuccess); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  std::size_t bytes() const { return (count_ == 0 ? 1 : count_) * sizeof(T); }
  std::size_t count_;
  T* data_ = nullptr;
};

/// A router's policies, on the device.
template <class Router>
adaptive_k::cuda::device_plans uploaded(const Router& from) {
  adaptive_k::cuda::device_plans plans;
  const adaptive_k::status result = plans.upload(from, nullptr);
  EXPECT_TRUE(result.ok()) << result.message();
  return plans;
}

/// A copy of a host vector, or null where that is empty.
template <class T>
class optional_copy {
 public:
  explicit optional_copy(const std::vector<T>& values) : empty_(values.empty()), buffer_(values) {}
  const T* get() const { return empty_ ? nullptr : buffer_.get(); }

 private:
  bool empty_;
  buffer<T> buffer_;
};

}  // namespace device
