// gpu_time: what the routing kernels take on a GPU, beside a copy of the logits (it reads them once
// too, and writes as much again, so that a routing call may well take less), beside CUB sorting the
// rows, and beside a kernel that does nothing.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cub/device/device_segmented_radix_sort.cuh>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/cuda/launch.cuh"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;         // NOLINT(google-build-using-namespace)
namespace cuda = adaptive_k::cuda;  // not libcu++'s, which CUB includes

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
void require(const status& result) {
  if (!result.ok()) throw std::runtime_error(result.message());
}

struct device_delete {
  void operator()(void* pointer) const { cudaFree(pointer); }
};
template <class T>
using device_array = std::unique_ptr<T, device_delete>;

template <class T>
device_array<T> allocate(std::size_t count) {
  void* pointer = nullptr;
  require(cudaMalloc(&pointer, count * sizeof(T)));
  return device_array<T>(static_cast<T*>(pointer));
}
template <class T>
device_array<T> copy_to_device(const std::vector<T>& values) {
  device_array<T> copy = allocate<T>(values.size());
  require(cudaMemcpy(copy.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return copy;
}

/// Microseconds of one `enqueue(stream, i)`, i = 0..calls-1, replayed as one graph: the median of
/// `repeats` replays, so that neither launch overhead nor a slow first run counts.
template <class Enqueue>
double microseconds(Enqueue enqueue, int calls, int repeats) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  require(cudaStreamCreate(&stream));
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < calls; ++i) enqueue(stream, i);
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&replay, graph, 0));
  require(cudaEventCreate(&begin));
  require(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = -3; i < repeats; ++i) {  // three to warm up
    require(cudaEventRecord(begin, stream));
    require(cudaGraphLaunch(replay, stream));
    require(cudaEventRecord(end, stream));
    require(cudaEventSynchronize(end));
    float milliseconds = 0.0f;
    require(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 0) times.push_back(1e3 * static_cast<double>(milliseconds) / calls);
  }
  require(cudaEventDestroy(begin));
  require(cudaEventDestroy(end));
  require(cudaGraphExecDestroy(replay));
  require(cudaGraphDestroy(graph));
  require(cudaStreamDestroy(stream));
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<std::size_t>(repeats / 2)];
}

__global__ void nothing() {}

template <class Logit>
using cub_key = std::conditional_t<std::is_same_v<Logit, float>, float, __nv_bfloat16>;

/// What CUB needs to sort each row of a batch descending, with the experts' indices; it has no
/// top-k by segments.
template <class Logit>
class row_sort {
 public:
  row_sort(std::int64_t num_tokens, int num_experts)
      : num_tokens_(static_cast<int>(num_tokens)),
        cells_(static_cast<int>(num_tokens) * num_experts),
        sorted_(allocate<cub_key<Logit>>(static_cast<std::size_t>(cells_))),
        sorted_ids_(allocate<std::int32_t>(static_cast<std::size_t>(cells_))) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(cells_));
    for (std::size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(num_experts));
    std::vector<std::int32_t> starts(static_cast<std::size_t>(num_tokens) + 1);
    for (std::size_t i = 0; i < starts.size(); ++i)
      starts[i] = static_cast<std::int32_t>(i) * num_experts;
    ids_ = copy_to_device(ids);
    starts_ = copy_to_device(starts);
    sort(nullptr, nullptr);  // sets the size of the workspace
    workspace_ = allocate<unsigned char>(std::max<std::size_t>(bytes_, 1));
  }
  void enqueue(const Logit* logits, cudaStream_t stream) { sort(logits, stream); }

 private:
  void sort(const Logit* logits, cudaStream_t stream) {
    require(cub::DeviceSegmentedRadixSort::SortPairsDescending(
        workspace_.get(), bytes_, reinterpret_cast<const cub_key<Logit>*>(logits), sorted_.get(),
        ids_.get(), sorted_ids_.get(), cells_, num_tokens_, starts_.get(), starts_.get() + 1, 0,
        static_cast<int>(8 * sizeof(Logit)), stream));
  }

  int num_tokens_;
  int cells_;
  device_array<cub_key<Logit>> sorted_;
  device_array<std::int32_t> ids_, sorted_ids_, starts_;
  device_array<unsigned char> workspace_;
  std::size_t bytes_ = 0;
};

struct timing {
  double route;
  double route_permute;
  double copy;
  double row_sort;
  double nothing;
};

/// Times a softmax model with entropy thresholds, counts and signal; every call on another of
/// eight inputs.
template <class Logit>
timing time_as(int num_experts, int top_k, std::int64_t num_tokens, int repeats) {
  constexpr int num_inputs = 8;
  gating model;
  model.num_experts = num_experts;
  model.top_k = top_k;
  const float middle = 0.7f * std::log(static_cast<float>(num_experts));
  const k_policy policy = k_policy::entropy({std::max(1, top_k / 2), top_k}, {middle});
  const router host(model, policy);
  require(host.validity());
  cuda::device_plans plans;
  require(plans.upload(host, nullptr));

  inputs::sequence from(1);
  const auto cells = static_cast<std::size_t>(num_tokens) * static_cast<std::size_t>(num_experts);
  std::vector<Logit> logits(cells);
  std::vector<device_array<Logit>> copies;
  for (int i = 0; i < num_inputs; ++i) {
    for (Logit& logit : logits) logit = from_float<Logit>(inputs::fine_logit(from));
    copies.push_back(copy_to_device(logits));
  }
  const device_array<Logit> target = allocate<Logit>(cells);
  const auto slots = static_cast<std::size_t>(num_tokens) * static_cast<std::size_t>(top_k);
  const device_array<std::int32_t> ids = allocate<std::int32_t>(slots);
  const device_array<std::int32_t> counts =
      allocate<std::int32_t>(static_cast<std::size_t>(num_tokens));
  const device_array<float> weights = allocate<float>(slots);
  const device_array<float> signal = allocate<float>(static_cast<std::size_t>(num_tokens));
  const routing_output<> output = {ids.get(), weights.get(), counts.get(), signal.get()};

  const permutation_shape shape = {num_tokens, top_k, num_experts, 0, 64};
  const auto rows = static_cast<std::size_t>(permuted_capacity(shape));
  const device_array<std::int32_t> offsets =
      allocate<std::int32_t>(static_cast<std::size_t>(num_experts) + 1);
  const device_array<std::int32_t> sorted = allocate<std::int32_t>(rows);
  const device_array<std::int32_t> row_of_slot = allocate<std::int32_t>(slots);
  cuda::expert_major order = {};
  order.output.expert_offsets = offsets.get();
  order.output.sorted_tokens = sorted.get();
  order.output.row_of_slot = row_of_slot.get();
  order.block_size = 64;

  const cuda::device_router device(model, plans.ref());
  const auto view = [&](int i) {
    return logits_view<Logit>{copies[static_cast<std::size_t>(i % num_inputs)].get(), num_tokens,
                              num_experts, 0};
  };
  std::size_t bytes = 0;
  require(device.route_permute(0, view(0), routing_replay<>{}, output, order, nullptr, {}, nullptr,
                               &bytes, nullptr));
  const device_array<unsigned char> workspace = allocate<unsigned char>(bytes);
  require(cudaMemset(workspace.get(), 0, bytes));

  constexpr int calls = 64;
  timing made = {};
  made.route =
      microseconds([&](cudaStream_t stream,
                       int i) { require(device.route(0, view(i), output, nullptr, {}, stream)); },
                   calls, repeats);
  made.route_permute = microseconds(
      [&](cudaStream_t stream, int i) {
        require(device.route_permute(0, view(i), routing_replay<>{}, output, order, nullptr, {},
                                     workspace.get(), &bytes, stream));
      },
      calls, repeats);
  made.copy = microseconds(
      [&](cudaStream_t stream, int i) {
        require(cudaMemcpyAsync(target.get(), view(i).data, cells * sizeof(Logit),
                                cudaMemcpyDeviceToDevice, stream));
      },
      calls, repeats);
  row_sort<Logit> sorting(num_tokens, num_experts);
  made.row_sort = microseconds(
      [&](cudaStream_t stream, int i) { sorting.enqueue(view(i).data, stream); }, calls, repeats);
  made.nothing = microseconds(
      [](cudaStream_t stream, int) {
        nothing<<<1, 128, 0, stream>>>();
        require(cudaGetLastError());
      },
      calls, repeats);
  return made;
}

int attribute(cudaDeviceAttr what) {
  int value = 0;
  require(cudaDeviceGetAttribute(&value, what, 0));
  return value;
}

/// Other than that of a mistake, 2.
constexpr int status_without_gpu = 3;

int run(int argc, char** argv) {
  CLI::App app("What the routing kernels take on the first GPU.", "gpu_time");
  std::vector<std::int64_t> tokens = {1, 8, 64, 512, 4096, 16384};
  std::string json_file;
  int repeats = 50;
  app.add_option("--tokens", tokens, "rows of a launch")->check(CLI::Range(1, 1 << 20));
  app.add_option("--repeats", repeats, "replays of 64 calls each")->check(CLI::Range(1, 100000));
  app.add_option("--json", json_file, "write the rows here ('-': stdout, and no table)");
  CLI11_PARSE(app, argc, argv);
  bench::file_roles roles;
  roles.writes("--json", json_file);

  cudaDeviceProp properties = {};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) {
    std::fprintf(stderr, "gpu_time: no GPU to measure on (%s)\n", cudaGetErrorString(error));
    return status_without_gpu;
  }
  bench::text_table table({"E/K0", "T", "<dtype", "route us", "ns/token", "route+permute us",
                           "copy of the logits us", "route / copy", "CUB sorts the rows us",
                           "empty kernel us"});
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  const auto number = [](double value, const char* format) {
    char text[32];
    std::snprintf(text, sizeof text, format, value);
    return std::string(text);
  };
  const int shapes[][2] = {{8, 2}, {60, 4}, {64, 8}, {128, 8}, {256, 8}, {384, 8}};
  for (const auto& [num_experts, top_k] : shapes)
    for (const bool half : {true, false})
      for (const std::int64_t count : tokens) {
        const timing t = half ? time_as<bfloat16>(num_experts, top_k, count, repeats)
                              : time_as<float>(num_experts, top_k, count, repeats);
        const char* const dtype = half ? "bf16" : "f32";
        table.add_row({std::to_string(num_experts) + "/" + std::to_string(top_k),
                       std::to_string(count), dtype, number(t.route, "%.2f"),
                       number(1e3 * t.route / static_cast<double>(count), "%.2f"),
                       number(t.route_permute, "%.2f"), number(t.copy, "%.2f"),
                       number(t.route / t.copy, "%.2f"), number(t.row_sort, "%.2f"),
                       number(t.nothing, "%.2f")});
        rows.push_back({{"device", properties.name},
                        {"compute_capability", 10 * properties.major + properties.minor},
                        {"multiprocessors", properties.multiProcessorCount},
                        {"clock_mhz", attribute(cudaDevAttrClockRate) / 1000},
                        {"num_experts", num_experts},
                        {"top_k", top_k},
                        {"num_tokens", count},
                        {"dtype", dtype},
                        {"route_us", t.route},
                        {"route_permute_us", t.route_permute},
                        {"copy_us", t.copy},
                        {"row_sort_us", t.row_sort},
                        {"empty_us", t.nothing}});
      }
  bench::write_json("--json", json_file, rows);
  if (roles.stdout_is_taken()) return 0;
  std::printf("%s; entropy thresholds; median of %d replays of 64 calls\n\n%s", properties.name,
              repeats, table.text().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "gpu_time: %s\n", failure.what());
    return 2;
  }
}
