// Metrics for Prometheus, log lines and traces for Python.
#include <adaptive_k/observability/http_server.hpp>
#include <adaptive_k/observability/json_log.hpp>
#include <adaptive_k/observability/prometheus.hpp>
#include <adaptive_k/observability/trace_view.hpp>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <system_error>
#include <utility>

#include "arrays.hpp"
#include "parts.hpp"

namespace adaptive_k_python {
namespace {

using adaptive_k::http_server;
using adaptive_k::json_logger;
using adaptive_k::perfetto_trace;
using adaptive_k::prometheus_recorder;
using adaptive_k::trace_call;

/// A file that stays open while the logger's thread writes to it.
struct log_file {
  std::FILE* stream = nullptr;
  bool owned = false;

  explicit log_file(const std::string& path) {
    stream = path.empty() ? stderr : std::fopen(path.c_str(), "ae");
    owned = !path.empty();
    if (stream == nullptr) throw std::system_error(errno, std::generic_category(), path);
  }
  log_file(const log_file&) = delete;
  log_file& operator=(const log_file&) = delete;
  ~log_file() {
    if (owned) std::fclose(stream);
  }
  void write(std::string_view line) const {
    if (std::fwrite(line.data(), 1, line.size(), stream) != line.size() || std::fflush(stream) != 0)
      throw std::system_error(errno, std::generic_category(), "log");
  }
};

/// Lines go to the file on the logger's own thread, which never takes the GIL.
class bound_logger {
 public:
  bound_logger(const std::string& path, const std::string& fields, const std::string& name,
               std::size_t capacity) {
    adaptive_k::json_log_options options;
    if (fields != "ecs" && fields != "datadog")
      refuse("fields", "'" + fields + "', expected one of ecs, datadog");
    options.fields =
        fields == "ecs" ? adaptive_k::log_fields::ecs : adaptive_k::log_fields::datadog;
    options.logger = name;
    options.capacity = capacity;
    auto file = std::make_shared<log_file>(path);
    logger_ = std::make_unique<json_logger>([file](std::string_view line) { file->write(line); },
                                            options);
  }
  bound_logger(const bound_logger&) = delete;
  bound_logger& operator=(const bound_logger&) = delete;
  ~bound_logger() {
    const nb::gil_scoped_release released;  // it waits for its sink
    logger_.reset();
  }
  json_logger& logger() { return *logger_; }

 private:
  std::unique_ptr<json_logger> logger_;
};

bool log(bound_logger& self, const std::string& message, const std::string& level,
         const std::string& model, const std::string& policy, const std::string& trace_id,
         int layer, std::uint64_t tokens, double mean_k, double expert_savings,
         double latency_seconds) {
  adaptive_k::log_event event;
  constexpr const char* names[] = {"debug", "info", "warn", "error"};
  constexpr adaptive_k::log_level levels[] = {
      adaptive_k::log_level::debug, adaptive_k::log_level::info, adaptive_k::log_level::warn,
      adaptive_k::log_level::error};
  bool known = false;
  for (int i = 0; i < 4; ++i)
    if (level == names[i]) {
      event.level = levels[i];
      known = true;
    }
  if (!known) refuse("level", "'" + level + "', expected one of debug, info, warn, error");
  event.message = message;
  event.model = model;
  event.policy = policy;
  event.trace_id = trace_id;
  event.layer = layer;
  event.tokens = tokens;
  event.mean_k = mean_k;
  event.expert_savings = expert_savings;
  event.latency_seconds = latency_seconds;
  return self.logger().log(event);
}

/// One layer's call with its arrays, which live as long as it does.
struct bound_call {
  input_array entropies;
  input_array counts;
  int layer;
  double start_us;
  double duration_us;

  trace_call view() const {
    const auto size = static_cast<std::int64_t>(entropies.size());
    const std::optional<input_array> h(entropies), k(counts);
    return {layer,
            size,
            optional_input<float>("entropies", h, size, "float32"),
            optional_input<std::int32_t>("counts", k, size, "int32"),
            start_us,
            duration_us};
  }
};

adaptive_k::bar_options bars(double full_entropy, int full_k, int width, bool color) {
  if (width < 1 || width > 200) refuse("width", std::to_string(width) + ", expected 1..200");
  return {full_entropy, full_k, width, color};
}

void add_recorder(nb::module_& module) {
  nb::class_<prometheus_recorder>(module, "Recorder",
                                  "Counters by model, layer and policy, for Prometheus.")
      .def(
          "__init__",
          [](prometheus_recorder* self, int expert_load) {
            adaptive_k::prometheus_options options;
            options.expert_load = expert_load;
            new (self) prometheus_recorder(options);
          },
          nb::kw_only(), nb::arg("expert_load") = 0)
      .def(
          "record",
          [](prometheus_recorder& self, const std::string& model, int layer,
             const std::string& policy, const adaptive_k::routing_metrics& batch, double seconds) {
            self.record({model, layer, policy}, batch, seconds);
          },
          nb::arg("model"), nb::arg("layer"), nb::arg("policy"), nb::arg("metrics"),
          nb::arg("latency_seconds"),
          "Adds one batch's metrics and how long its routing took. A negative layer stands for "
          "all.")
      .def(
          "record_entropies",
          [](prometheus_recorder& self, const std::string& model, int layer,
             const std::string& policy, const input_array& entropies) {
            const auto size = static_cast<std::int64_t>(entropies.size());
            const std::optional<input_array> h(entropies);
            self.record_entropies(self.find({model, layer, policy}),
                                  optional_input<float>("entropies", h, size, "float32"), size);
          },
          nb::arg("model"), nb::arg("layer"), nb::arg("policy"), nb::arg("entropies"),
          "Adds a histogram of entropies in nats, [num_tokens] float32.")
      .def(
          "render",
          [](const prometheus_recorder& self, bool openmetrics) {
            return self.render(openmetrics ? adaptive_k::exposition::openmetrics
                                           : adaptive_k::exposition::prometheus);
          },
          nb::arg("openmetrics") = false, "All that was recorded, as text.");
  module.def("default_recorder", &adaptive_k::default_recorder, nb::rv_policy::reference,
             "The one of programs that need only one.");
}

void add_server(nb::module_& module) {
  nb::class_<http_server>(module, "HttpServer", "Serves a recorder's metrics until it is stopped.")
      .def(nb::init<>())
      .def(
          "start",
          [](http_server& self, const prometheus_recorder& recorder, int port,
             const std::string& host) {
            adaptive_k::http_server_options options;
            options.port = port;
            options.host = host;
            require(self.start(recorder, options));
          },
          nb::keep_alive<1, 2>(), nb::arg("recorder"), nb::arg("port") = 9464,
          nb::arg("host") = "127.0.0.1", "Port 0: any free one. Raises ValueError.")
      .def("stop", &http_server::stop, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("running", &http_server::running)
      .def_prop_ro("port", &http_server::port);
  module.def(
      "start_http_server", [](int port) { require(adaptive_k::start_http_server(port)); },
      nb::arg("port") = 9464, "Serves the default recorder on 127.0.0.1 until the process ends.");
}

}  // namespace

void add_observability(nb::module_& module) {
  add_recorder(module);
  add_server(module);
  nb::class_<bound_logger>(module, "JsonLogger",
                           "JSON lines by a thread of its own; a full queue drops and counts them.")
      .def(nb::init<const std::string&, const std::string&, const std::string&, std::size_t>(),
           nb::arg("path") = "", nb::kw_only(), nb::arg("fields") = "ecs",
           nb::arg("name") = "adaptive_k", nb::arg("capacity") = 4096)
      .def("log", &log, nb::arg("message") = "routed", nb::kw_only(), nb::arg("level") = "info",
           nb::arg("model") = "", nb::arg("policy") = "", nb::arg("trace_id") = "",
           nb::arg("layer") = -1, nb::arg("tokens") = 0,
           nb::arg("mean_k") = adaptive_k::log_event::not_given,
           nb::arg("expert_savings") = adaptive_k::log_event::not_given,
           nb::arg("latency_seconds") = adaptive_k::log_event::not_given,
           "False where the line was dropped. Never waits.")
      .def("flush",
           [](bound_logger& self) {
             adaptive_k::status flushed;
             {
               const nb::gil_scoped_release released;
               flushed = self.logger().flush();
             }
             require(flushed);
           })
      .def_prop_ro("dropped", [](bound_logger& self) { return self.logger().dropped(); })
      .def_prop_ro("written", [](bound_logger& self) { return self.logger().written(); });

  nb::class_<bound_call>(module, "TraceCall", "One layer's call: entropies in nats and K's.")
      .def(
          "__init__",
          [](bound_call* self, int layer, const input_array& entropies, const input_array& counts,
             double start_us, double duration_us) {
            new (self) bound_call{entropies, counts, layer, start_us, duration_us};
            self->view();  // refuses what does not fit
          },
          nb::arg("layer"), nb::arg("entropies"), nb::arg("counts"), nb::arg("start_us") = 0.0,
          nb::arg("duration_us") = 0.0);
  module.def(
      "layer_bars",
      [](const std::vector<bound_call>& calls, double full_entropy, int full_k, int width,
         bool color) {
        std::vector<trace_call> views;
        for (const bound_call& call : calls) views.push_back(call.view());
        return adaptive_k::layer_bars(views, bars(full_entropy, full_k, width, color));
      },
      nb::arg("calls"), nb::arg("full_entropy") = 0.0, nb::arg("full_k") = 0, nb::arg("width") = 24,
      nb::arg("color") = false, "One line a call: mean entropy and mean K.");
  module.def(
      "token_bars",
      [](const bound_call& call, double full_entropy, int full_k, int width, bool color) {
        return adaptive_k::token_bars(call.view(), bars(full_entropy, full_k, width, color));
      },
      nb::arg("call"), nb::arg("full_entropy") = 0.0, nb::arg("full_k") = 0, nb::arg("width") = 24,
      nb::arg("color") = false, "One line a token.");
  nb::class_<perfetto_trace>(module, "PerfettoTrace",
                             "Calls as a timeline that ui.perfetto.dev opens.")
      .def(nb::init<std::string_view>(), nb::arg("process") = "adaptive_k")
      .def("add", [](perfetto_trace& self, const bound_call& call) { self.add(call.view()); })
      .def("json", &perfetto_trace::json);
}

}  // namespace adaptive_k_python
