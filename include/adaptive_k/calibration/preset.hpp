// Presets: a model's gating, sizes and policies from a calibration file, found by name.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/format/json_reader.hpp"
#include "adaptive_k/calibration/format/policy_file.hpp"
#include "adaptive_k/calibration/policy_spec.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/router.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Experts that every token runs, whatever the router says.
struct shared_expert_sizes {
  int count = 0;                  ///< 0: none
  std::int64_t intermediate = 0;  ///< width of each
};

/// One calibration file.
struct preset {
  std::string name;                     ///< the model's
  std::vector<std::string> aliases;     ///< other names of the model
  gating model;                         ///< its own routing
  int num_moe_layers = 0;               ///< layers that route
  expert_sizes sizes;                   ///< of the routed experts
  shared_expert_sizes shared_experts;   ///< beside them
  std::vector<std::string> sources;     ///< which public configuration the figures come from
  std::vector<std::string> unverified;  ///< what was not checked against it
  std::string notes;                    ///< in words
  std::vector<preset_policy> policies;  ///< one or more
  std::string default_policy;           ///< name of the one that `policy("")` is
  std::filesystem::path file;           ///< what it was read from

  /// The policy of that name; "" means the default one. Throws preset_error.
  const preset_policy& policy(std::string_view policy_name = {}) const {
    if (policy_name.empty()) policy_name = default_policy;
    std::string names;
    for (const preset_policy& candidate : policies) {
      if (candidate.name == policy_name) return candidate;
      names += (names.empty() ? "" : ", ") + candidate.name;
    }
    throw preset_error(file.string(), "policies",
                       "no policy '" + std::string(policy_name) + "', expected one of " + names);
  }

  /// A router with a policy of this preset ("" means the default one) or with any other that
  /// `parse_policy` reads, such as "top_p:0.9". Throws preset_error.
  router make_router(std::string_view policy_spec = {}, router_options options = {}) const;
};

/// `spec` as in policy_spec.hpp, or the name of a policy of `known`, or "" for its default one.
inline preset_policy parse_policy(std::string_view spec, const preset& known) {
  return parse_policy(spec.empty() ? std::string_view(known.default_policy) : spec, known.model,
                      known.num_moe_layers, known.policies);
}

inline router preset::make_router(std::string_view policy_spec, router_options options) const {
  return adaptive_k::make_router(model, parse_policy(policy_spec, *this), num_moe_layers, options);
}

namespace detail {

inline std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

inline void read_sizes(const json_node& node, preset& result) {
  constexpr std::int64_t widest = std::int64_t{1} << 24;
  node.expect_keys({"num_moe_layers", "hidden", "intermediate", "matrices", "shared_experts"});
  result.num_moe_layers = node.at("num_moe_layers", "an integer").as_int(1, calibration_max_layers);
  result.sizes.hidden = node.at("hidden", "an integer").as_integer(1, widest);
  result.sizes.intermediate = node.at("intermediate", "an integer").as_integer(1, widest);
  result.sizes.matrices = node.at("matrices", "2 or 3").as_int(2, 3);
  const json_node shared = node.at("shared_experts", "an object with count and intermediate");
  shared.expect_keys({"count", "intermediate"});
  result.shared_experts.count = shared.at("count", "an integer").as_int(0, max_experts);
  result.shared_experts.intermediate =
      shared.at("intermediate", "an integer").as_integer(0, widest);
}

inline void read_names(const json_node& root, preset& result) {
  result.name = root.at("name", "a name").as_string();
  const json_node aliases = root.at("aliases", "an array of strings");
  result.aliases = aliases.as_strings();
  std::set<std::string> taken = {lower_case(result.name)};
  for (std::size_t i = 0; i < result.aliases.size(); ++i)
    if (!taken.insert(lower_case(result.aliases[i])).second)
      aliases.at(i).refuse("a name that the file does not have already (case is ignored)");
}

inline preset read_preset(const json_node& root, std::filesystem::path file) {
  if (!root.find("policies") && !root.find("gating") && (root.find("rule") || root.find("layers")))
    throw preset_error(root.file(), "",
                       "is a policy, expected a preset, with gating, sizes and policies; give this "
                       "file as the policy of a preset or model");
  root.expect_keys({"$schema", "schema_version", "name", "aliases", "gating", "sizes", "sources",
                    "unverified", "notes", "policies", "default_policy"});
  root.at("schema_version", "an integer")
      .as_integer(calibration_schema_version, calibration_schema_version);
  preset result;
  result.file = std::move(file);
  read_names(root, result);
  result.model = read_gating(root.at("gating", "an object"));
  read_sizes(root.at("sizes", "an object"), result);
  result.sources = root.at("sources", "an array of strings").as_strings();
  if (const auto list = root.find("unverified")) result.unverified = list->as_strings();
  if (const auto notes = root.find("notes")) result.notes = notes->as_string();

  const json_node policies = root.at("policies", "an array of policies");
  const std::size_t count = policies.expect_array("an array of policies");
  std::set<std::string> taken;
  for (std::size_t i = 0; i < count; ++i) {
    const json_node node = policies.at(i);
    result.policies.push_back(read_policy(node, result.model, result.num_moe_layers));
    if (!taken.insert(result.policies.back().name).second)
      node.at("name", "").refuse("a name that no policy before it has");
  }
  const json_node chosen = root.at("default_policy", "the name of one of the policies");
  result.default_policy = chosen.as_string();
  std::string names;
  bool exists = false;
  for (const preset_policy& policy : result.policies) {
    exists = exists || policy.name == result.default_policy;
    names += (names.empty() ? "" : ", ") + policy.name;
  }
  if (!exists)
    chosen.refuse("the name of a policy of this file: " + (names.empty() ? "it has none" : names));
  return result;
}

/// The calibration files of a directory, sorted by name; none where it is missing.
inline std::vector<std::filesystem::path> calibration_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    if (entry->path().extension() == ".json" && entry->path().filename() != "schema.json" &&
        entry->is_regular_file(error))
      files.push_back(entry->path());
  std::sort(files.begin(), files.end());
  return files;
}

inline bool has_name(const preset& candidate, const std::string& lower_name) {
  if (lower_case(candidate.name) == lower_name) return true;
  return std::any_of(candidate.aliases.begin(), candidate.aliases.end(),
                     [&](const std::string& alias) { return lower_case(alias) == lower_name; });
}

inline preset_error same_name(const std::filesystem::path& file, const std::string& name,
                              const std::filesystem::path& other) {
  return {file.string(), "name",
          "'" + name + "' is also that of " + other.filename().string() +
              ", expected each name once in a folder"};
}

}  // namespace detail

/// Directories with calibration files, in the order they are searched, each once: those of the
/// environment variable ADAPTIVE_K_CALIBRATIONS (':' between them; ';' on Windows), then the
/// library's own. Throws preset_error where the variable names what is no directory.
inline std::vector<std::filesystem::path> calibration_path() {
#if defined(_WIN32)
  constexpr char separator = ';';
#else
  constexpr char separator = ':';
#endif
  std::vector<std::filesystem::path> folders;
  const auto add = [&](const std::filesystem::path& folder) {
    std::error_code ignored;
    for (const std::filesystem::path& before : folders)
      if (before == folder || std::filesystem::equivalent(before, folder, ignored)) return;
    folders.push_back(folder);
  };
  if (const char* list = std::getenv("ADAPTIVE_K_CALIBRATIONS"))
    for (const std::string& folder : detail::split(list, separator)) {
      if (folder.empty()) continue;
      std::error_code ignored;
      if (!std::filesystem::is_directory(folder, ignored))
        throw preset_error("ADAPTIVE_K_CALIBRATIONS", "", "'" + folder + "', expected a folder");
      add(folder);
    }
#if defined(ADAPTIVE_K_CALIBRATION_DIR)
  add(ADAPTIVE_K_CALIBRATION_DIR);
#endif
  return folders;
}

/// Reads one calibration file. Throws preset_error.
inline preset load_preset_file(const std::filesystem::path& file) {
  return detail::read_preset(detail::read_json_file(file), file);
}

/// Every preset on the search path, by name; the first directory wins where two have the same
/// name. A file that cannot be used, or has the name of another in its directory, is left out and
/// added to `unusable` where given. Throws as calibration_path does.
inline std::vector<preset> list_presets(std::vector<preset_error>* unusable = nullptr) {
  std::vector<preset> presets;
  std::map<std::string, std::filesystem::path> known;
  for (const std::filesystem::path& folder : calibration_path())
    for (const std::filesystem::path& file : detail::calibration_files(folder)) {
      try {
        preset candidate = load_preset_file(file);
        const auto [same, is_new] = known.emplace(detail::lower_case(candidate.name), file);
        if (is_new)
          presets.push_back(std::move(candidate));
        else if (same->second.parent_path() == folder)
          throw detail::same_name(file, candidate.name, same->second);
      } catch (const preset_error& error) {
        if (unusable != nullptr) unusable->push_back(error);
      }
    }
  std::sort(presets.begin(), presets.end(),
            [](const preset& a, const preset& b) { return a.name < b.name; });
  return presets;
}

/// The preset with that name or alias (case is ignored), or the one in that .json file. Bad files
/// elsewhere on the search path are ignored; two presets of that name in one directory are refused.
/// Throws preset_error.
inline preset load_preset(std::string_view name_alias_or_path) {
  const std::string given(name_alias_or_path);
  if (std::filesystem::path(given).extension() == ".json") return load_preset_file(given);
  const std::string name = detail::lower_case(given);
  std::string known;
  std::string searched;
  std::string unusable;
  for (const std::filesystem::path& folder : calibration_path()) {
    searched += (searched.empty() ? "" : ", ") + folder.string();
    std::optional<preset> found;
    for (const std::filesystem::path& file : detail::calibration_files(folder)) {
      std::optional<preset> candidate;
      try {
        candidate = load_preset_file(file);
      } catch (const preset_error& error) {
        if (!found && detail::lower_case(file.stem().string()) == name) throw;
        unusable += (unusable.empty() ? "" : "; ") + std::string(error.what());
        continue;
      }
      known += (known.empty() ? "" : ", ") + candidate->name;
      if (!detail::has_name(*candidate, name)) continue;
      if (found) throw detail::same_name(file, given, found->file);
      found = std::move(candidate);
    }
    if (found) return *std::move(found);
  }
  const auto part = [](const std::string& text, std::size_t most, const char* none) {
    return text.empty() ? std::string(none) : detail::printable(text, most);
  };
  throw preset_error(
      "preset '" + given + "'", "",
      "unknown in " + part(searched, 200, "(no directory: ADAPTIVE_K_CALIBRATIONS names none)") +
          ", expected one of " + part(known, 450, "(none found)") + ", or a path to a .json file" +
          (unusable.empty() ? "" : "; unusable: ") + part(unusable, 250, ""));
}

/// A router for a model by name, alias or path; `policy` as in preset::make_router. The default
/// policy is the one that the file names: a measured one, else the published one where there is
/// any, else full K (see calibrations/README.md). Throws preset_error.
inline router from_preset(std::string_view name, std::string_view policy = {},
                          router_options options = {}) {
  return load_preset(name).make_router(policy, options);
}

ADAPTIVE_K_NAMESPACE_END
