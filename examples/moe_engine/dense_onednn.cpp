// `dense` by oneDNN: weights blocked once as its kernels want them, one compiled kernel for each
// shape, found by its number of rows.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <tuple>
#include <vector>

#include <dnnl.hpp>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "dense.hpp"

namespace moe_engine {
namespace {

using tag = dnnl::memory::format_tag;

// More rows than this are multiplied in several calls, so that the table of kernels stays small.
constexpr std::int64_t most_rows = 128;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

/// oneDNN takes what it only reads as void* too.
void* input(const float* values) {
  return const_cast<float*>(values);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
}

dnnl::memory::desc matrix(std::int64_t rows, std::int64_t columns, tag layout) {
  return {{rows, columns}, dnnl::memory::data_type::f32, layout};
}

dnnl::matmul::primitive_desc describe(std::int64_t rows, std::int64_t outputs, std::int64_t inputs,
                                      const dnnl::memory::desc& weight) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // the library's is per thread
  const auto in = matrix(rows, inputs, tag::ab);
  const auto out = matrix(rows, outputs, tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  return {cpu(), in, weight, out, attributes};
#else
  return {dnnl::matmul::desc(in, weight, out), attributes, cpu()};
#endif
}

struct kernel {
  explicit kernel(const dnnl::matmul::primitive_desc& what)
      : multiply(what),
        in(what.src_desc()),
        out(what.dst_desc()),
        scratchpad(what.scratchpad_desc()) {}

  dnnl::matmul multiply;
  dnnl::memory::desc in;
  dnnl::memory::desc out;
  dnnl::memory::desc scratchpad;
};

/// Kernels by rows, outputs, inputs; made when first asked for and kept. References stay valid.
const kernel& kernel_for(std::int64_t rows, std::int64_t outputs, std::int64_t inputs,
                         const dnnl::memory::desc& weight) {
  static std::shared_mutex mutex;
  static std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, kernel> kernels;
  const auto key = std::make_tuple(rows, outputs, inputs);
  {
    const std::shared_lock<std::shared_mutex> reading(mutex);
    const auto found = kernels.find(key);
    if (found != kernels.end()) return found->second;
  }
  kernel made(describe(rows, outputs, inputs, weight));
  const std::unique_lock<std::shared_mutex> writing(mutex);
  return kernels.emplace(key, std::move(made)).first->second;
}

struct free_memory {
  void operator()(void* memory) const noexcept { std::free(memory); }
};
using buffer = std::unique_ptr<void, free_memory>;

/// Large weights go on large pages where the system gives them: reading them once from end to end
/// is all that a small batch does, and page table walks would be felt.
buffer allocate(std::size_t bytes) {
  constexpr std::size_t large_page = std::size_t{2} << 20;
  const std::size_t alignment = bytes < large_page ? 64 : large_page;
  const std::size_t size = (bytes + alignment - 1) / alignment * alignment;
  buffer memory(std::aligned_alloc(alignment, size));
  if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == large_page) (void)madvise(memory.get(), size, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace

struct dense::packed {
  int outputs;
  int inputs;
  buffer memory;
  dnnl::memory weight;
};

dense::dense() = default;
dense::dense(dense&&) noexcept = default;
dense& dense::operator=(dense&&) noexcept = default;
dense::~dense() = default;

dense::dense(const float* weight, int outputs, int inputs) {
  // The layout must not depend on the rows of a later call, so a typical number decides it.
  const auto layout =
      describe(64, outputs, inputs, matrix(inputs, outputs, tag::any)).weights_desc();
  buffer memory = allocate(layout.get_size());
  const dnnl::memory packed_weight(layout, cpu(), memory.get());
  packed_.reset(new packed{outputs, inputs, std::move(memory), packed_weight});
  dnnl::memory plain(matrix(inputs, outputs, tag::ba), cpu(), input(weight));
  dnnl::stream stream(cpu());
  dnnl::reorder(plain, packed_->weight).execute(stream, plain, packed_->weight);
  stream.wait();
}

int dense::outputs() const noexcept {
  return packed_ ? packed_->outputs : 0;
}

int dense::inputs() const noexcept {
  return packed_ ? packed_->inputs : 0;
}

void dense::multiply(const float* x, std::int64_t rows, float* y) const {
  thread_local dnnl::stream stream(cpu());
  thread_local std::vector<char> scratchpad;
  for (std::int64_t begin = 0; begin < rows; begin += most_rows) {
    const std::int64_t count = std::min(most_rows, rows - begin);
    const kernel& k = kernel_for(count, outputs(), inputs(), packed_->weight.get_desc());
    scratchpad.resize(std::max(scratchpad.size(), k.scratchpad.get_size() + 64));
    void* scratch = scratchpad.data();
    std::size_t space = scratchpad.size();
    std::align(64, k.scratchpad.get_size(), scratch, space);
    k.multiply.execute(stream, {{DNNL_ARG_SRC, {k.in, cpu(), input(x + begin * inputs())}},
                                {DNNL_ARG_WEIGHTS, packed_->weight},
                                {DNNL_ARG_DST, {k.out, cpu(), y + begin * outputs()}},
                                {DNNL_ARG_SCRATCHPAD, {k.scratchpad, cpu(), scratch}}});
  }
  stream.wait();
}

const char* dense::backend() noexcept {
  return "oneDNN";
}

}  // namespace moe_engine
