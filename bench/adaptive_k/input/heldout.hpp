// The held-out texts of a model, and which of them a data set means.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/dataset.hpp"

namespace bench {

enum class text_part { test, calibration };

/// A text of one domain, as texts.json beside the model's folder lists it.
struct domain_text {
  std::string domain;
  std::filesystem::path file;
  std::string sha256;
};

/// The domains' texts of that part; none where no texts.json stands beside the folder. Throws
/// std::runtime_error naming file, key and value.
std::vector<domain_text> domain_texts(const std::filesystem::path& model_folder, text_part part);

/// Whether the model has a text of its own: heldout_<part>.txt, or losses recorded on the domains'
/// texts (expected_loss.json).
bool has_own_text(const std::filesystem::path& model_folder, text_part part);

/// The data set asked for: a file, or a domain of texts.json. Where none is, the model's
/// heldout_<part>.txt, or else the texts of all domains, a window of `length` tokens of each in
/// turn. A domain's text must be the one that was listed. Throws failure.
dataset dataset_for(const std::string& asked, const std::filesystem::path& model_folder,
                    const vocabulary& words, int length, text_part part = text_part::test);

}  // namespace bench
