// Undefined bytes travel through registers and memory as they do on a device, and no further.
#include "support.cuh"

namespace {

using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

struct Undefined : ptx_test::Ptx {};

__global__ void copies(const u32* in, u32* out) {
  out[threadIdx.x] = in[threadIdx.x];
}

struct padded {
  u8 small;
  u32 big;
};
__global__ void copies_padding(const padded* in, padded* out) {
  out[0] = in[0];
}

__global__ void splits(const u64* in, u32* out) {
  out[0] = static_cast<u32>(in[0]);        // the defined half
  out[1] = static_cast<u32>(in[0] >> 32);  // the undefined half
  out[2] = static_cast<u32>((in[0] >> 8) & 0xffff);
  if (static_cast<u32>(in[0]) == 7) out[3] = 1;
}

__global__ void chooses(const u32* in, u32* out) {
  u32 a, b, c, d;
  asm volatile("{ .reg .pred p; setp.eq.u32 p, %1, 5; selp.u32 %0, %1, %2, p; }"
               : "=r"(a)
               : "r"(in[0]), "r"(in[1]));
  asm volatile("and.b32 %0, %1, 0x00ff00ff;" : "=r"(b) : "r"(in[1]));
  asm volatile("or.b32 %0, %1, 0xffff0000;" : "=r"(c) : "r"(in[1]));
  asm volatile("prmt.b32 %0, %1, %2, 0x0504;" : "=r"(d) : "r"(in[1]), "r"(in[0]));
  out[0] = a;
  out[1] = b;
  out[2] = c;
  out[3] = d;
}

__global__ void guards(const u32* in, u32* out) {
  // An undefined comparison that a defined false makes harmless.
  asm volatile(
      "{ .reg .pred p, q; setp.gt.u32 p, %1, 3; setp.gt.u32 q, %2, 100; and.pred p, p, q;"
      " @p st.global.u32 [%0], 9; }" ::"l"(out),
      "r"(in[1]), "r"(in[0]));
}

__global__ void shuffles(const u32* in, u32* out) {
  const u32 value = threadIdx.x == 3 ? in[1] : threadIdx.x;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffff, value, 1);
}

__global__ void leaves_a_hole(u32* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = 1;
}

__global__ void forgets_to_initialise(u32* out, int n) {
  __shared__ u32 box[32];
  if (static_cast<int>(threadIdx.x) < n) box[threadIdx.x] = 1;
  __syncwarp();
  out[threadIdx.x] = box[threadIdx.x];
}

__global__ void votes_on_it(const u32* in, u32* out) {
  out[threadIdx.x] = static_cast<u32>(__ballot_sync(0xffffffff, in[1] == 3));
}

__global__ void adds_to_it(u32* out) {
  atomicAdd(out, 1U);
}

/// Device memory of `n` words, of which the first `defined` are 5.
struct partly {
  partly(std::size_t n, std::size_t defined) : cells(n) {
    const std::vector<u32> five(defined, 5);
    cudaMemcpy(cells.get(), five.data(), defined * sizeof(u32), cudaMemcpyHostToDevice);
  }
  ptx_test::buffer<u32> cells;
};

}  // namespace

TEST_F(Undefined, copies_carry_it) {
  const partly in(32, 20);
  ptx_test::buffer<u32> out(32);
  copies<<<1, 32>>>(in.cells.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.undefined(), 12 * sizeof(u32));
  EXPECT_EQ(ptx::undefined_bytes(out.get(), 20 * sizeof(u32)), 0U);
  ptx_test::buffer<u32> again(32);
  cudaMemcpy(again.get(), out.get(), 32 * sizeof(u32), cudaMemcpyDeviceToDevice);
  EXPECT_EQ(again.undefined(), 12 * sizeof(u32));
  cudaMemset(again.get(), 0, 128);
  EXPECT_EQ(again.undefined(), 0U);
}

TEST_F(Undefined, padding_is_no_fault) {
  ptx_test::buffer<padded> in(1), out(1);
  cudaMemset(in.get(), 1, 1);
  cudaMemset(reinterpret_cast<char*>(in.get()) + 4, 1, 4);
  copies_padding<<<1, 1>>>(in.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_LE(out.undefined(), 3U);
}

TEST_F(Undefined, halves_of_a_register_are_apart) {
  ptx_test::buffer<u64> in(1);
  cudaMemset(in.get(), 0, 4);
  ptx_test::buffer<u32> out(std::vector<u32>(4, 0));
  splits<<<1, 1>>>(in.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(ptx::undefined_bytes(out.get(), 4), 0U);
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 1, 4), 4U);
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 2, 4), 0U);
}

TEST_F(Undefined, masks_and_choices_decide) {
  const partly in(2, 1);
  ptx_test::buffer<u32> out(4);
  chooses<<<1, 1>>>(in.cells.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(ptx::undefined_bytes(out.get(), 4), 0U);      // selp takes the defined one
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 1, 4), 2U);  // a zero byte of a mask decides
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 2, 4), 2U);  // a full byte too
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 3, 4), 2U);  // prmt picks bytes
}

TEST_F(Undefined, a_defined_false_decides) {
  const partly in(2, 1);
  ptx_test::buffer<u32> out(std::vector<u32>(1, 0));
  guards<<<1, 1>>>(in.cells.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.read()[0], 0U);
}

TEST_F(Undefined, shuffles_carry_it) {
  const partly in(2, 1);
  ptx_test::buffer<u32> out(32);
  shuffles<<<1, 32>>>(in.cells.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.undefined(), 4U);
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 2, 4), 4U);
}

TEST_F(Undefined, outputs_can_be_checked_for_holes) {
  ptx_test::buffer<u32> out(32);
  leaves_a_hole<<<1, 32>>>(out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.undefined(), 4U);
  EXPECT_EQ(ptx::undefined_bytes(out.get() + 5, 4), 4U);
  ptx::mark_undefined(out.get(), 16);
  EXPECT_EQ(out.undefined(), 20U);
}

TEST_F(Undefined, shared_memory_starts_undefined) {
  ptx_test::buffer<u32> out(32);
  forgets_to_initialise<<<1, 32>>>(out.get(), 30);
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.undefined(), 8U);
  forgets_to_initialise<<<1, 32>>>(out.get(), 32);
  EXPECT_EQ(out.undefined(), 0U);
}

TEST_F(Undefined, votes_and_atomics_fault) {
  const partly in(2, 1);
  ptx_test::buffer<u32> out(32);
  votes_on_it<<<1, 32>>>(in.cells.get(), out.get());
  EXPECT_EQ(ptx::last_fault().kind, ptx::fault_kind::uninitialised) << ptx::last_fault().text();
  ptx::clear_fault();
  adds_to_it<<<1, 32>>>(in.cells.get() + 1);
  EXPECT_EQ(ptx::last_fault().kind, ptx::fault_kind::uninitialised) << ptx::last_fault().text();
}

TEST_F(Undefined, the_check_can_be_left_out) {
  ptx::checks enabled;
  enabled.undefined = false;
  ptx::set_checks(enabled);
  const partly in(2, 1);
  ptx_test::buffer<u32> out(32);
  votes_on_it<<<1, 32>>>(in.cells.get(), out.get());
  ptx_test::expect_no_fault();
}
