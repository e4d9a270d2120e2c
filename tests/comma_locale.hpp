// The process under a locale whose decimal point is a comma and which groups digits, until the end
// of the scope.
#pragma once

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <locale>
#include <string>

#include "cli/scratch.hpp"

class comma_locale {
 public:
  comma_locale() {
    if (!set_c_locale()) {  // make one: a few systems have none but C
      const std::string file = (folder_.path() / "de_DE.UTF-8").string();
      const std::string make = "localedef -c -i de_DE -f UTF-8 '" + file + "' > /dev/null 2>&1";
      setenv("LOCPATH", folder_.path().c_str(), 1);
      made_ = std::system(make.c_str()) == 0 && set_c_locale();
    }
    before_ = std::locale::global(std::locale(std::locale::classic(), new commas));
    set_c_locale();  // global() may have changed it
  }
  comma_locale(const comma_locale&) = delete;
  comma_locale& operator=(const comma_locale&) = delete;
  ~comma_locale() {
    std::locale::global(before_);
    std::setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
  }

  /// Whether C's own functions follow it too.
  static bool rules_printf() {
    char text[16];
    std::snprintf(text, sizeof text, "%.1f", 0.5);
    return std::string(text) == "0,5";
  }

 private:
  struct commas : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };

  static bool set_c_locale() {
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8"})
      if (std::setlocale(LC_ALL, name) != nullptr) return rules_printf();
    return false;
  }

  scratch_folder folder_;
  std::locale before_;
  bool made_ = false;
};
