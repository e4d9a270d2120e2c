// The stand-in for the CUDA runtime: memory, symbols, errors, attributes, launches, the log.
#include <algorithm>
#include <numeric>

#include "support.cuh"

namespace {

struct Runtime : ptx_test::Ptx {};

__constant__ int table[4] = {2, 3, 5, 7};
__device__ int counter = 40;
__device__ float zeros[3];
__device__ int* pointer_to_counter = &counter;
__managed__ int managed_value = 11;

__global__ void use_symbols(int* out) {
  out[0] = table[threadIdx.x & 3] + counter + static_cast<int>(zeros[1]);
  counter += 1;
  *pointer_to_counter += 1;
  managed_value += 1;
}

struct big_argument {
  int values[200];
};
__global__ void takes_much(big_argument a, char c, double d, const __grid_constant__ big_argument b,
                           int* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = a.values[i] + c + static_cast<int>(d) + b.values[199 - i];
}

__global__ void __launch_bounds__(64) bounded(int* out) {
  out[threadIdx.x] = 1;
}

template <class T>
__global__ void generic(T* out) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  __shared__ T fixed[8];
  extern __shared__ char dynamic[];
  T* const where = threadIdx.x % 2 ? reinterpret_cast<T*>(dynamic) : fixed;
  where[threadIdx.x / 2] = static_cast<T>(threadIdx.x);  // a generic address: either array
  out[threadIdx.x] = where[threadIdx.x / 2];
}

__global__ void never_launched() {}
[[maybe_unused]] const auto keep_never_launched = &never_launched;

}  // namespace

TEST_F(Runtime, symbols) {
  ptx_test::buffer<int> out(1);
  use_symbols<<<1, 1>>>(out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.read()[0], 42);
  int now = 0;
  EXPECT_EQ(cudaMemcpyFromSymbol(&now, counter, sizeof now), cudaSuccess);
  EXPECT_EQ(now, 42);
  EXPECT_EQ(managed_value, 12);
  const int fresh[4] = {100, 0, 0, 0};
  EXPECT_EQ(cudaMemcpyToSymbol(table, fresh, sizeof fresh), cudaSuccess);
  use_symbols<<<1, 1>>>(out.get());
  EXPECT_EQ(out.read()[0], 142);
  void* address = nullptr;
  EXPECT_EQ(cudaGetSymbolAddress(&address, counter), cudaSuccess);
  EXPECT_EQ(cudaMemset(address, 0, 4), cudaSuccess);
  use_symbols<<<1, 1>>>(out.get());
  EXPECT_EQ(out.read()[0], 100);
  EXPECT_EQ(cudaMemcpyToSymbol(table, fresh, 17), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(Runtime, arguments_of_every_size) {
  big_argument a, b;
  std::iota(a.values, a.values + 200, 0);
  std::iota(b.values, b.values + 200, 1000);
  ptx_test::buffer<int> out(128);
  takes_much<<<1, 128>>>(a, 5, 7.5, b, out.get());
  ptx_test::expect_no_fault();
  for (const int v : out.read()) EXPECT_EQ(v, 5 + 7 + 1199);
}

TEST_F(Runtime, launch_with_attributes) {
  ptx_test::buffer<float> out(16);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(16);
  config.dynamicSmemBytes = 64;
  config.attrs = &attribute;
  config.numAttrs = 1;
  EXPECT_EQ(cudaLaunchKernelEx(&config, generic<float>, out.get()), cudaSuccess);
  ptx_test::expect_no_fault();
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(out.read()[i], static_cast<float>(i));
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  EXPECT_EQ(cudaLaunchKernelEx(&config, generic<float>, out.get()), cudaErrorNotSupported);
  cudaGetLastError();
}

TEST_F(Runtime, attributes_and_occupancy) {
  cudaFuncAttributes attributes;
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, bounded), cudaSuccess);
  EXPECT_EQ(attributes.maxThreadsPerBlock, 64);
  EXPECT_EQ(attributes.ptxVersion, ptx::compute_capability());
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, generic<double>), cudaSuccess);
  EXPECT_EQ(attributes.sharedSizeBytes, 64U);
  int blocks = 0;
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, generic<double>, 256, 0),
            cudaSuccess);
  EXPECT_EQ(blocks, 8);
  ptx_test::buffer<int> out(65);
  bounded<<<1, 65>>>(out.get());
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  ptx::clear_fault();
  EXPECT_EQ(cudaFuncSetAttribute(generic<char>, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536),
            cudaSuccess);
  ptx_test::buffer<char> chars(16);
  generic<char><<<1, 16, 65536>>>(chars.get());
  ptx_test::expect_no_fault();
  int value = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  EXPECT_EQ(value, ptx::compute_capability() / 10);
}

TEST_F(Runtime, copies_are_checked) {
  int* p = nullptr;
  int host[8] = {};
  EXPECT_EQ(cudaMalloc(&p, 16), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(p, host, 20, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, p + 1, 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(p + 3, 0, 8), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(p, host, 16, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(cudaFree(p + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST_F(Runtime, streams_events_and_pinned_memory) {
  cudaStream_t stream;
  cudaEvent_t event;
  EXPECT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  EXPECT_EQ(cudaEventCreate(&event), cudaSuccess);
  int* pinned = nullptr;
  EXPECT_EQ(cudaMallocHost(&pinned, 64 * sizeof(int)), cudaSuccess);
  bounded<<<1, 64, 0, stream>>>(pinned);
  EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(std::accumulate(pinned, pinned + 64, 0), 64);
  cudaPointerAttributes attributes;
  EXPECT_EQ(cudaPointerGetAttributes(&attributes, pinned), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

TEST_F(Runtime, the_log_tells_hot_paths_from_others) {
  ptx_test::buffer<int> out(64);
  ptx::clear_call_log();
  bounded<<<1, 64>>>(out.get());
  cudaMemsetAsync(out.get(), 0, 16);
  EXPECT_TRUE(ptx::synchronous_calls().empty());
  ASSERT_EQ(ptx::call_log().size(), 2U);
  EXPECT_EQ(ptx::call_log()[0].name, "launch");
  EXPECT_NE(ptx::call_log()[0].detail.find("bounded"), std::string::npos);
  EXPECT_EQ(ptx::call_log()[1].name, "cudaMemsetAsync");
  cudaDeviceSynchronize();
  int host = 0;
  cudaMemcpyAsync(&host, out.get(), 4, cudaMemcpyDeviceToHost);
  EXPECT_EQ(ptx::synchronous_calls(),
            (std::vector<std::string>{"cudaDeviceSynchronize", "cudaMemcpyAsync"}));
}

TEST_F(Runtime, kernels_are_listed) {
  ptx_test::buffer<int> out(64);
  bounded<<<1, 64>>>(out.get());
  const auto has = [](const std::vector<std::string>& names, const char* part) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& n) { return n.find(part) != std::string::npos; });
  };
  EXPECT_TRUE(has(ptx::kernels_registered(), "bounded"));
  EXPECT_TRUE(has(ptx::kernels_registered(), "never_launched"));
  EXPECT_TRUE(has(ptx::kernels_executed(), "bounded"));
  EXPECT_FALSE(has(ptx::kernels_executed(), "never_launched"));
  EXPECT_TRUE(ptx::unknown_instructions().empty());
}

TEST_F(Runtime, nothing_is_left_allocated) {
  const std::size_t before = ptx::live_allocations();
  { ptx_test::buffer<int> out(64); }
  EXPECT_EQ(ptx::live_allocations(), before);
}
