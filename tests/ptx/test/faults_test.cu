// One planted mistake for each fault: it is found, with the right kernel, line, block and thread.
#include "support.cuh"

namespace {

using ptx::fault_kind;

struct Faults : ptx_test::Ptx {
  /// The last launch failed with this fault, in this kernel, on this line.
  static void expect(fault_kind kind, const char* kernel, int line, cudaError_t error) {
    EXPECT_EQ(cudaPeekAtLastError(), error);
    EXPECT_EQ(cudaDeviceSynchronize(), error);
    const ptx::fault& f = ptx::last_fault();
    EXPECT_EQ(ptx::name_of(f.kind), std::string(ptx::name_of(kind))) << f.text();
    EXPECT_NE(f.kernel.find(kernel), std::string::npos) << f.text();
    EXPECT_TRUE(f.is_at("faults_test.cu", line)) << "not on line " << line << "\n" << f.text();
    EXPECT_EQ(cudaGetLastError(), error);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    ptx::clear_fault();
  }
  ptx_test::buffer<int> cells{std::vector<int>(1024, 0)};
};

constexpr int read_past_line = __LINE__ + 2;
__global__ void read_past(const int* in, int* out, int n) {
  out[threadIdx.x] = in[threadIdx.x + n];
}

constexpr int write_past_line = __LINE__ + 2;
__global__ void write_past(int* out, int n) {
  out[threadIdx.x + n] = 1;
}

constexpr int shared_past_line = __LINE__ + 4;
__global__ void shared_past(int* out, int n) {
  __shared__ int a[32];
  __shared__ int b[32];
  a[threadIdx.x + n] = 1;
  b[threadIdx.x] = 2;
  out[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
}

constexpr int dynamic_past_line = __LINE__ + 3;
__global__ void dynamic_past(int n) {
  extern __shared__ int dynamic[];
  dynamic[n] = 1;
}

constexpr int local_past_line = __LINE__ + 4;
__global__ void local_past(int* out, int n) {
  int a[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) a[(i + n) & 3] += n;
  out[threadIdx.x] = a[n * 1000];
}

constexpr int early_line = __LINE__ + 5;
__global__ void early(int* out, bool waits) {
#if __CUDA_ARCH__ >= 900
  if (waits) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  out[threadIdx.x] = 1;
}

constexpr int misaligned_line = __LINE__ + 2;
__global__ void misaligned(const char* in, int* out) {
  out[0] = *reinterpret_cast<const int*>(in + 2);
}

constexpr int undefined_branch_line = __LINE__ + 2;
__global__ void undefined_branch(const int* in, int* out) {
  if (in[0] > 3) out[0] = out[1] + out[2] * out[3];
}

constexpr int undefined_address_line = __LINE__ + 2;
__global__ void undefined_address(const int* in, int* out) {
  out[0] = out[in[0] & 7];
}

constexpr int shared_race_line = __LINE__ + 5;
__global__ void shared_race(int* out) {
  __shared__ int a[64];
  a[threadIdx.x] = static_cast<int>(threadIdx.x);
  // __syncthreads() belongs here.
  out[threadIdx.x] = a[63 - threadIdx.x];
}

constexpr int warp_race_line = __LINE__ + 5;
__global__ void warp_race(int* out) {
  __shared__ int a[32];
  a[threadIdx.x] = static_cast<int>(threadIdx.x);
  // __syncwarp() belongs here: lanes of a warp need not run together.
  out[threadIdx.x] = a[threadIdx.x ^ 1];
}

constexpr int write_race_line = __LINE__ + 3;
__global__ void write_race(int* out) {
  __shared__ int a;
  a = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = a;
}

constexpr int block_race_line = __LINE__ + 2;
__global__ void block_race(int* out) {
  if (threadIdx.x == 0) out[0] = out[0] + 1;
}

constexpr int unfenced_line = __LINE__ + 5;
__global__ void unfenced(int* data, unsigned* count, int* out) {
  data[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
  // __threadfence() belongs here.
  if (atomicAdd(count, 1) == gridDim.x - 1)
    for (unsigned i = 0; i < gridDim.x; ++i) out[0] += data[i];
}

constexpr int divergent_line = __LINE__ + 2;
__global__ void divergent(int* out) {
  if (threadIdx.x % 32 < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

constexpr int inactive_line = __LINE__ + 2;
__global__ void inactive(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffff, static_cast<int>(threadIdx.x), 20);
}

constexpr int missing_line = __LINE__ + 3;
__global__ void missing(int* out) {
  if (threadIdx.x < 31) {
    out[threadIdx.x] = static_cast<int>(__ballot_sync(0xffffffff, threadIdx.x & 1));
  } else {
    __syncwarp(0xffffffff);
  }
}

constexpr int not_member_line = __LINE__ + 2;
__global__ void not_member(int* out) {
  out[threadIdx.x] = static_cast<int>(__ballot_sync(0x0000ffff, 1));
}

constexpr int deadlock_line = __LINE__ + 2;
__global__ void deadlock() {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 96;" ::: "memory");
}

constexpr int runaway_line = __LINE__ + 2;
__global__ void runaway(volatile int* flag) {
  while (*flag == 0) {
  }
}

constexpr int trap_line = __LINE__ + 2;
__global__ void traps(const int* in) {
  if (in[threadIdx.x] == 0) __trap();
}

constexpr int unsupported_line = __LINE__ + 2;
__global__ void unsupported(int* out) {
  asm volatile("vadd.s32.s32.s32 %0, %1, %2;" : "=r"(out[0]) : "r"(out[1]), "r"(out[2]));
}

__device__ __forceinline__ int inner(const int* p, int i) {
  return p[i];
}
constexpr int inlined_line = __LINE__ + 2;
__global__ void inlined(const int* in, int* out) {
  out[0] = inner(in, 4096);
}

}  // namespace

TEST_F(Faults, reads_past_the_end) {
  read_past<<<1, 32>>>(cells.get(), cells.get(), 1000);
  EXPECT_EQ(ptx::last_fault().thread[0], 24U);
  EXPECT_NE(ptx::last_fault().message.find("0 bytes past the end"), std::string::npos);
  expect(fault_kind::out_of_bounds, "read_past", read_past_line, cudaErrorIllegalAddress);
}

TEST_F(Faults, writes_past_the_end) {
  write_past<<<dim3(1), 32>>>(cells.get(), 1024);
  expect(fault_kind::out_of_bounds, "write_past", write_past_line, cudaErrorIllegalAddress);
}

TEST_F(Faults, null_and_freed_and_host_pointers) {
  write_past<<<1, 1>>>(nullptr, 0);
  EXPECT_NE(ptx::last_fault().message.find("null"), std::string::npos);
  expect(fault_kind::out_of_bounds, "write_past", write_past_line, cudaErrorIllegalAddress);
  int host = 0;
  write_past<<<1, 1>>>(&host, 0);
  EXPECT_NE(ptx::last_fault().message.find("host address"), std::string::npos);
  expect(fault_kind::out_of_bounds, "write_past", write_past_line, cudaErrorIllegalAddress);
  int* freed = nullptr;
  cudaMalloc(&freed, 64);
  cudaFree(freed);
  write_past<<<1, 1>>>(freed, 0);
  expect(fault_kind::out_of_bounds, "write_past", write_past_line, cudaErrorIllegalAddress);
}

TEST_F(Faults, shared_memory_past_the_end) {
  shared_past<<<1, 32>>>(cells.get(), 0);
  ptx_test::expect_no_fault();
  shared_past<<<1, 32>>>(cells.get(), 1);
  EXPECT_NE(ptx::last_fault().message.find("0 bytes past the end of shared"), std::string::npos);
  expect(fault_kind::out_of_bounds, "shared_past", shared_past_line, cudaErrorIllegalAddress);
}

TEST_F(Faults, dynamic_shared_memory_past_the_end) {
  dynamic_past<<<1, 1, 64>>>(15);
  ptx_test::expect_no_fault();
  dynamic_past<<<1, 1, 64>>>(16);
  expect(fault_kind::out_of_bounds, "dynamic_past", dynamic_past_line, cudaErrorIllegalAddress);
}

TEST_F(Faults, local_memory_past_the_end) {
  local_past<<<1, 32>>>(cells.get(), 0);
  ptx_test::expect_no_fault();
  local_past<<<1, 32>>>(cells.get(), 1);
  expect(fault_kind::out_of_bounds, "local_past", local_past_line, cudaErrorIllegalAddress);
}

TEST_F(Faults, misaligned) {
  misaligned<<<1, 1>>>(reinterpret_cast<const char*>(cells.get()), cells.get());
  expect(fault_kind::misaligned, "misaligned", misaligned_line, cudaErrorMisalignedAddress);
}

TEST_F(Faults, undefined_value_decides_a_branch) {
  ptx_test::buffer<int> fresh(4);
  undefined_branch<<<1, 1>>>(fresh.get(), cells.get());
  expect(fault_kind::uninitialised, "undefined_branch", undefined_branch_line,
         cudaErrorLaunchFailure);
}

TEST_F(Faults, undefined_value_is_an_address) {
  ptx_test::buffer<int> fresh(4);
  undefined_address<<<1, 1>>>(fresh.get(), cells.get());
  expect(fault_kind::uninitialised, "undefined_address", undefined_address_line,
         cudaErrorLaunchFailure);
}

TEST_F(Faults, shared_race) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    ptx::set_seed(seed);
    shared_race<<<1, 64>>>(cells.get());
    // Either of the two may come second, and is the one reported.
    const bool on_write = ptx::last_fault().is_at("faults_test.cu", shared_race_line - 2);
    expect(fault_kind::shared_race, "shared_race", shared_race_line - (on_write ? 2 : 0),
           cudaErrorLaunchFailure);
  }
}

TEST_F(Faults, race_within_a_warp) {
  warp_race<<<1, 32>>>(cells.get());
  expect(fault_kind::shared_race, "warp_race", warp_race_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, race_of_writes) {
  write_race<<<1, 64>>>(cells.get());
  expect(fault_kind::shared_race, "write_race", write_race_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, race_between_blocks) {
  block_race<<<2, 32>>>(cells.get());
  EXPECT_NE(ptx::last_fault().message.find("of block"), std::string::npos);
  expect(fault_kind::global_race, "block_race", block_race_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, counter_without_a_fence) {
  ptx_test::buffer<unsigned> count(std::vector<unsigned>(1, 0));
  unfenced<<<4, 1>>>(cells.get() + 8, count.get(), cells.get());
  expect(fault_kind::global_race, "unfenced", unfenced_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, divergent_barrier) {
  divergent<<<1, 64>>>(cells.get());
  expect(fault_kind::divergent_barrier, "divergent", divergent_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, shuffle_from_an_inactive_lane) {
  inactive<<<1, 32>>>(cells.get());
  EXPECT_NE(ptx::last_fault().message.find("reads lane 20"), std::string::npos);
  expect(fault_kind::inactive_lane, "inactive", inactive_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, missing_lane) {
  missing<<<1, 32>>>(cells.get());
  expect(fault_kind::missing_lane, "missing", missing_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, lane_outside_its_own_mask) {
  not_member<<<1, 32>>>(cells.get());
  expect(fault_kind::missing_lane, "not_member", not_member_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, barrier_that_never_completes) {
  deadlock<<<1, 64>>>();
  expect(fault_kind::deadlock, "deadlock", deadlock_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, runaway_loop) {
  ptx::schedule order;
  order.warp_budget = 10000;
  ptx::set_schedule(order);
  runaway<<<1, 32>>>(cells.get());
  EXPECT_NE(ptx::last_fault().message.find("10000"), std::string::npos);
  expect(fault_kind::runaway, "runaway", runaway_line, cudaErrorLaunchTimeout);
}

TEST_F(Faults, trap) {
  traps<<<1, 32>>>(cells.get());
  expect(fault_kind::trap, "traps", trap_line, cudaErrorAssert);
}

TEST_F(Faults, unknown_instructions_are_named) {
  unsupported<<<1, 1>>>(cells.get());
  EXPECT_NE(ptx::last_fault().message.find("vadd.s32.s32.s32"), std::string::npos);
  expect(fault_kind::unsupported, "unsupported", unsupported_line, cudaErrorNotSupported);
}

TEST_F(Faults, inlined_functions_name_their_callers) {
  inlined<<<1, 1>>>(cells.get(), cells.get());
  EXPECT_NE(ptx::last_fault().call_path.find(":" + std::to_string(inlined_line)), std::string::npos)
      << ptx::last_fault().text();
  expect(fault_kind::out_of_bounds, "inlined", inlined_line - 4, cudaErrorIllegalAddress);
}

TEST_F(Faults, access_before_the_kernel_before_is_done) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, early, cells.get(), true);
  ptx_test::expect_no_fault();
  cudaLaunchKernelEx(&config, early, cells.get(), false);
  if (ptx::compute_capability() < 90)  // there launches do not overlap
    ptx_test::expect_no_fault();
  else
    expect(fault_kind::early_access, "early", early_line, cudaErrorLaunchFailure);
}

TEST_F(Faults, a_launch_that_no_device_would_take) {
  runaway<<<1, 2000>>>(cells.get());
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(ptx::last_fault().kind, fault_kind::bad_launch);
  dynamic_past<<<1, 1, 100 * 1024>>>(0);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST_F(Faults, the_device_works_on_after_a_fault) {
  read_past<<<1, 32>>>(cells.get(), cells.get(), 100000);
  ptx::clear_fault();
  read_past<<<1, 32>>>(cells.get(), cells.get() + 512, 0);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ptx_test::expect_no_fault();
}
