// The backend as ggml sees it: a device beside the CPU that claims the nodes of routed experts.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

#include "experts.hpp"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "hooks.hpp"
#include "moe_layer.hpp"
#include "routing.hpp"
#include "settings.hpp"

namespace adaptive_k_ggml {

layer_hooks& hooks() {
  static layer_hooks own;
  return own;
}

namespace {

using clock_type = std::chrono::steady_clock;

/// Made as the library is loaded, kept until the process ends: contexts may outlive statics.
routing_service* service = nullptr;

ggml_backend_dev_t cpu_device() {
  return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

template <class Function>
Function cpu_function(const char* name) {
  return reinterpret_cast<Function>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu_device()), name));
}

// --- A backend: one a context ----------------------------------------------------------------

using threadpool_ptr = std::unique_ptr<ggml_threadpool, void (*)(ggml_threadpool*)>;

struct backend_context {
  explicit backend_context(ggml_backend_t own_cpu) : cpu(own_cpu), runner(own_cpu) {}
  backend_context(const backend_context&) = delete;
  backend_context& operator=(const backend_context&) = delete;
  ~backend_context() {
    ggml_backend_free(cpu);
    pool.reset();
  }

  ggml_backend_t cpu;
  threadpool_ptr pool{nullptr, [](ggml_threadpool*) {}};
  int num_threads = 0;
  int pool_size = 0;
  expert_runner runner;
  std::vector<std::int32_t> ids, counts, chosen;
  std::vector<float> weights, factors;
  moe_layer layer;
};

backend_context& context_of(ggml_backend_t backend) {
  return *static_cast<backend_context*>(backend->context);
}

const char* backend_name(ggml_backend_t) {
  return "adaptive-k";
}

void free_backend(ggml_backend_t backend) {
  delete static_cast<backend_context*>(backend->context);
  delete backend;
}

/// Workers of its own where ggml's CPU backend would start new ones at each graph. They sleep at
/// once: the context's own workers are on the same cores.
void set_num_threads(ggml_backend_t backend, int number) {
  backend_context& context = context_of(backend);
  if (number == context.num_threads) return;
  context.num_threads = number;
  if (const auto set = cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads"))
    set(context.cpu, number);
  if (number <= context.pool_size) return;  // prompts and tokens take turns
  const auto create =
      cpu_function<ggml_threadpool* (*)(ggml_threadpool_params*)>("ggml_threadpool_new");
  const auto destroy = cpu_function<void (*)(ggml_threadpool*)>("ggml_threadpool_free");
  const auto use =
      cpu_function<void (*)(ggml_backend_t, ggml_threadpool*)>("ggml_backend_cpu_set_threadpool");
  if (create == nullptr || destroy == nullptr || use == nullptr) return;
  use(context.cpu, nullptr);
  ggml_threadpool_params params = ggml_threadpool_params_default(number);
  params.poll = 0;
  context.pool = threadpool_ptr(create(&params), destroy);
  context.pool_size = context.pool != nullptr ? number : 0;
  use(context.cpu, context.pool.get());
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void* data) {
  if (const auto set =
          cpu_function<ggml_backend_set_abort_callback_t>("ggml_backend_set_abort_callback"))
    set(context_of(backend).cpu, callback, data);
}

/// k and r^-a of each token. Null policy: the layer runs at full K.
std::shared_ptr<const model_policy> decide(backend_context& context, const float* logits) {
  const moe_layer& layer = context.layer;
  std::shared_ptr<const model_policy> policy = service->policy_of(layer, logits);
  if (policy == nullptr) return nullptr;
  const bool shadow = service->own_settings().shadow;
  const auto tokens = static_cast<std::size_t>(layer.num_tokens());
  const std::size_t slots = tokens * static_cast<std::size_t>(layer.top_k());
  context.ids.resize(slots);
  context.weights.resize(slots);
  context.counts.resize(tokens);
  context.factors.resize(tokens);
  if (shadow) context.chosen.resize(tokens);
  adaptive_k::routing_output<> output = {context.ids.data(), context.weights.data(),
                                         context.counts.data()};
  output.weight_factors = context.factors.data();
  if (shadow) output.chosen_counts = context.chosen.data();
  adaptive_k::routing_extras extras;
  extras.routing_bias = layer.bias;
  adaptive_k::routing_metrics metrics;
  const auto start = clock_type::now();
  const adaptive_k::status routed = policy->router().route(
      policy->index_of(layer.number), {logits, layer.num_tokens(), layer.num_experts()}, output,
      &metrics, extras);
  const double seconds = std::chrono::duration<double>(clock_type::now() - start).count();
  if (!routed.ok()) {
    service->say_passed(layer.number, routed.message());
    return nullptr;
  }
  service->record(*policy, layer.number, metrics, seconds);
  return policy;
}

/// The program's decision in the policy's place: its experts and weights are written where the
/// graph has its own, so that all that is left are counts.
bool decide_by_hook(backend_context& context, int index, const float* logits) {
  const moe_layer& layer = context.layer;
  const auto tokens = static_cast<std::size_t>(layer.num_tokens());
  const auto top_k = static_cast<std::size_t>(layer.top_k());
  context.ids.assign(tokens * top_k, 0);
  context.weights.assign(tokens * top_k, 0.0f);
  context.counts.assign(tokens, 0);
  context.factors.assign(tokens, 1.0f);
  adaptive_k::routing_extras extras;
  extras.routing_bias = layer.bias;
  const adaptive_k::status routed =
      hooks().route(index, layer, {logits, layer.num_tokens(), layer.num_experts()},
                    {context.ids.data(), context.weights.data(), context.counts.data()}, extras);
  if (!routed.ok()) {
    service->say_passed(layer.number, routed.message());
    return false;
  }
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t j = 0; j < static_cast<std::size_t>(context.counts[t]); ++j) {
      char* const id =
          static_cast<char*>(layer.ids->data) + j * layer.ids->nb[0] + t * layer.ids->nb[1];
      char* const weight = static_cast<char*>(layer.weights->data) + j * layer.weights->nb[1] +
                           t * layer.weights->nb[2];
      std::memcpy(id, &context.ids[t * top_k + j], sizeof(std::int32_t));
      std::memcpy(weight, &context.weights[t * top_k + j], sizeof(float));
    }
  return true;
}

/// The layer at full K, its experts' outputs shown.
ggml_status run_observed(backend_context& context, ggml_tensor* const* nodes, int index,
                         const float* logits) {
  const moe_layer& layer = context.layer;
  const ggml_tensor* const outputs = layer.weighted->src[0];
  int weighing = layer.first;
  while (weighing < layer.end && nodes[weighing] != layer.weighted) ++weighing;
  ggml_status status = context.runner.run(nodes + layer.first, weighing - layer.first);
  if (status != GGML_STATUS_SUCCESS) return status;
  const auto* const begin = static_cast<const float*>(outputs->data);
  const std::vector<float> shown(begin, begin + ggml_nelements(outputs));
  status = context.runner.run(nodes + weighing, layer.end - weighing);
  if (status == GGML_STATUS_SUCCESS)
    hooks().observe(index, layer, logits, shown.data(),
                    static_cast<const float*>(layer.output->data));
  return status;
}

/// The rest of a layer whose router has run, as a program asks; `ran` says whether it did.
ggml_status run_by_hooks(backend_context& context, ggml_tensor* const* nodes, bool& ran) {
  const float* const logits = context.runner.kept_logits();
  const auto policy = service->policy_of(context.layer, logits);
  const int index = policy != nullptr ? policy->index_of(context.layer.number) : -1;
  ran = index >= 0 && decide_by_hook(context, index, logits);
  if (!ran) return GGML_STATUS_SUCCESS;
  const bool full = std::all_of(context.counts.begin(), context.counts.end(),
                                [&](std::int32_t k) { return k == context.layer.top_k(); });
  if (hooks().observe && full) return run_observed(context, nodes, index, logits);
  return context.runner.run_experts(context.layer, nodes, context.counts.data(),
                                    context.factors.data());
}

/// Runs the layer whose first product is node `first`; `begin` is the first node that has not run.
/// The result is the first node that has not run afterwards.
ggml_status run_layer(backend_context& context, ggml_tensor* const* nodes, int num_nodes, int first,
                      int& begin, int& next) {
  moe_layer& layer = context.layer;
  std::string why = read_layer(nodes, num_nodes, first, layer);
  if (why.empty() && layer.top_k() == layer.num_experts()) {  // also llama.cpp's warm-up
    next = layer.end;
    return GGML_STATUS_SUCCESS;
  }
  bool has_logits = false;
  for (int i = begin; i < first && why.empty(); ++i)
    has_logits = has_logits || nodes[i] == layer.logits;
  if (why.empty() && !has_logits) why = "its router is not in the same part of the graph";
  if (!why.empty()) {
    service->say_passed(layer_number(nodes[first]), why);
    next = first + 1;
    while (next < num_nodes && nodes[next]->op != GGML_OP_MUL_MAT) ++next;  // the next router
    return GGML_STATUS_SUCCESS;
  }
  next = layer.end;
  if (layer.num_tokens() == 0) return GGML_STATUS_SUCCESS;
  const auto start = clock_type::now();
  ggml_status status = context.runner.run(nodes + begin, first - begin, layer.logits);
  begin = first;
  if (status != GGML_STATUS_SUCCESS) return status;
  if (hooks().route) {
    bool ran = false;
    status = run_by_hooks(context, nodes, ran);
    if (ran) begin = layer.end;
    hooks().layer_seconds += std::chrono::duration<double>(clock_type::now() - start).count();
    return status;
  }
  if (decide(context, context.runner.kept_logits()) == nullptr) return GGML_STATUS_SUCCESS;
  begin = layer.end;
  return context.runner.run_experts(layer, nodes, context.counts.data(), context.factors.data());
}

ggml_status compute_graph(ggml_backend_t backend, ggml_cgraph* graph) {
  backend_context& context = context_of(backend);
  try {
    ggml_tensor* const* const nodes = ggml_graph_nodes(graph);
    const int num_nodes = ggml_graph_n_nodes(graph);
    int begin = 0;  // nodes before it have run
    for (int first = find_experts(nodes, num_nodes, 0); first < num_nodes;) {
      int next = first + 1;
      const ggml_status status = run_layer(context, nodes, num_nodes, first, begin, next);
      if (status != GGML_STATUS_SUCCESS) return status;
      first = find_experts(nodes, num_nodes, next);
    }
    if (begin == 0) return ggml_backend_graph_compute(context.cpu, graph);
    return context.runner.run(nodes + begin, num_nodes - begin);
  } catch (const std::bad_alloc&) {
    say("out of memory");
    return GGML_STATUS_ALLOC_FAILED;
  } catch (const std::exception& error) {
    say("%s", error.what());
    return GGML_STATUS_FAILED;
  }
}

ggml_guid_t backend_guid() {
  static ggml_guid guid = {0xad, 0xa9, 0x71, 0x7e, 0x6b, 0x00, 0x4d, 0x0e,
                           0x91, 0x3c, 0x5e, 0x1f, 0x20, 0x26, 0x11, 0x30};
  return &guid;
}

// --- The device ------------------------------------------------------------------------------

const char* device_name(ggml_backend_dev_t) {
  return "adaptive-k";
}
const char* device_description(ggml_backend_dev_t) {
  return "experts that the router is sure not to need are left out";
}
void device_memory(ggml_backend_dev_t, std::size_t* free, std::size_t* total) {
  *free = 0;
  *total = 0;
}
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  *props = {};
  props->name = device_name(device);
  props->description = device_description(device);
  props->type = device_type(device);
  props->caps.buffer_from_host_ptr = true;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char*) {
  const ggml_backend_dev_t cpu = cpu_device();
  ggml_backend_t own_cpu = cpu != nullptr ? ggml_backend_dev_init(cpu, nullptr) : nullptr;
  if (own_cpu == nullptr) {
    say("ggml has no CPU backend in this process: nothing is done");
    return nullptr;
  }
  ggml_backend_i functions = {};
  functions.get_name = backend_name;
  functions.free = free_backend;
  functions.graph_compute = compute_graph;
  return new ggml_backend{backend_guid(), functions, device, new backend_context(own_cpu)};
}

ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t) {
  return ggml_backend_cpu_buffer_type();
}

ggml_backend_buffer_t buffer_from_host(ggml_backend_dev_t, void* pointer, std::size_t size,
                                       std::size_t) {
  return ggml_backend_cpu_buffer_from_ptr(pointer, size);
}

bool has_gpu() {
  static const bool found = [] {
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
      const auto type = ggml_backend_dev_type(ggml_backend_dev_get(i));
      if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU)
        return true;
    }
    return false;
  }();
  return found;
}

/// llama.cpp sends products of so many tokens to a GPU, with the weights.
constexpr std::int64_t tokens_for_gpu = 32;

bool supports_op(ggml_backend_dev_t, const ggml_tensor* node) {
  if (!belongs_to_moe(node)) return false;
  if (node->op == GGML_OP_MUL_MAT_ID && node->src[0] != nullptr && node->src[2] != nullptr) {
    if (node->src[2]->ne[1] >= tokens_for_gpu && has_gpu()) return false;
    const int number = layer_number(node);
    const ggml_tensor* const input = node->src[1];
    if (number >= 0 && input != nullptr && input->ne[1] == 1 &&
        node->src[2]->ne[0] != node->src[0]->ne[2])
      service->announce({static_cast<int>(node->src[0]->ne[2]), input->ne[0]}, number);
  }
  const ggml_backend_dev_t cpu = cpu_device();  // programs may load backends in any order
  return cpu != nullptr && ggml_backend_dev_supports_op(cpu, node);
}

bool supports_buffer(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
  const ggml_backend_dev_t cpu = cpu_device();
  return cpu != nullptr ? ggml_backend_dev_supports_buft(cpu, type)
                        : ggml_backend_buft_is_host(type);
}

// --- The registry ----------------------------------------------------------------------------

const char* registry_name(ggml_backend_reg_t) {
  return "adaptive-k";
}
std::size_t device_count(ggml_backend_reg_t) {
  return 1;
}

ggml_backend_dev_t get_device(ggml_backend_reg_t registry, std::size_t) {
  static ggml_backend_device device = [&] {
    ggml_backend_device made = {};
    made.iface.get_name = device_name;
    made.iface.get_description = device_description;
    made.iface.get_memory = device_memory;
    made.iface.get_type = device_type;
    made.iface.get_props = device_props;
    made.iface.init_backend = init_backend;
    made.iface.get_buffer_type = buffer_type;
    made.iface.buffer_from_host_ptr = buffer_from_host;
    made.iface.supports_op = supports_op;
    made.iface.supports_buft = supports_buffer;
    made.reg = registry;
    return made;
  }();
  return &device;
}

/// Sums since the process began, for programs that link ggml and not the library.
void get_totals(std::uint64_t* tokens, std::uint64_t* expert_calls,
                std::uint64_t* full_expert_calls) {
  const adaptive_k::routing_metrics total = service->total();
  *tokens = total.tokens;
  *expert_calls = total.expert_calls;
  *full_expert_calls = total.full_expert_calls;
}

void* get_function(ggml_backend_reg_t, const char* name) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("ggml_backend_set_n_threads")) return reinterpret_cast<void*>(set_num_threads);
  if (is("ggml_backend_set_abort_callback")) return reinterpret_cast<void*>(set_abort_callback);
  if (is("adaptive_k_get_totals")) return reinterpret_cast<void*>(get_totals);
  return nullptr;
}

/// "" or why this build must not run in this process.
std::string unfit(const void* caller) {
  if (std::strcmp(ggml_version(), ADAPTIVE_K_GGML_VERSION) != 0)
    return std::string("built against ggml " ADAPTIVE_K_GGML_VERSION ", this process has ") +
           ggml_version() + ": build the plug-in again";
  constexpr std::size_t object_size = 32;
  if (ggml_tensor_overhead() != sizeof(ggml_tensor) + object_size)
    return "the ggml of this process has tensors of another size: build the plug-in again";
#if defined(__linux__)
  Dl_info loader = {}, own = {};
  if (dladdr(caller, &loader) != 0 &&
      dladdr(reinterpret_cast<const void*>(&ggml_backend_dev_count), &own) != 0 &&
      loader.dli_fbase != own.dli_fbase)
    return std::string("two copies of ggml: loaded by ") + loader.dli_fname + ", linked to " +
           own.dli_fname;
#endif
  return "";
}

/// The registry, or null, with a line that says why where it was asked for. `caller` is an address
/// in who asks.
ggml_backend_reg_t registry_for(const void* caller, bool asked_for) {
  static ggml_backend_reg registry = {};
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (service != nullptr) return &registry;
  const std::string why = unfit(caller);
  if (!why.empty()) {
    say("not loaded: %s", why.c_str());
    return nullptr;
  }
  try {
    const settings set = read_settings();
    if (set.is_off()) {
      if (asked_for && !set.quiet)
        say("off (ADAPTIVE_K is not set; ADAPTIVE_K=auto looks for the model's preset)");
      return nullptr;
    }
    service = new routing_service(set);
    std::atexit([] { service->flush_log(); });
  } catch (const std::exception& error) {
    say("not loaded: %s", error.what());
    return nullptr;
  }
  registry.api_version = GGML_BACKEND_API_VERSION;
  registry.iface.get_name = registry_name;
  registry.iface.get_device_count = device_count;
  registry.iface.get_device = get_device;
  registry.iface.get_proc_address = get_function;
  return &registry;
}

}  // namespace

}  // namespace adaptive_k_ggml

extern "C" {
/// What ggml calls in a library that it loads.
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
  return adaptive_k_ggml::registry_for(__builtin_return_address(0), true);
}
/// For programs that are linked to ggml with this file in them, and a ggml that has it: see
/// patch.cmake.
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_adaptive_k_reg() {
  return adaptive_k_ggml::registry_for(reinterpret_cast<const void*>(&ggml_backend_dev_count),
                                       false);
}
}
