// Content negotiation, against a table by the words of RFC 9110, section 12.5.1.
#include "adaptive_k/observability/accept_header.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

struct expectation {
  const char* accept;
  bool open;  ///< OpenMetrics
};

void check(const std::vector<expectation>& table) {
  for (const expectation& e : table)
    EXPECT_EQ(preferred_exposition(e.accept) == exposition::openmetrics, e.open) << e.accept;
}

TEST(AcceptHeader, AsScrapersAsk) {
  check({
      {"", false},
      {"*/*", false},                                                              // curl
      {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false},  // a browser
      // Prometheus 2.42 (Debian 12), 2.50 and 3.0
      {"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;"
       "q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
       true},
      {"application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;"
       "version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
       true},
      {"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/"
       "openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
       "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
       true},
      {"text/plain;version=0.0.4;q=1,*/*;q=0.1", false},
  });
}

TEST(AcceptHeader, GreaterWeightWins) {
  check({
      {"text/*;q=0.9,application/openmetrics-text;q=0.5", false},
      {"text/plain;q=0.5,application/openmetrics-text;q=0.501", true},
      {"text/plain;q=0.75, application/openmetrics-text; q=0.7", false},
      {"application/openmetrics-text;q=0.001,text/plain;q=0", true},
      {"application/openmetrics-text;q=0", false},
      {"application/openmetrics-text;q=0.000,text/plain;q=0.001", false},
  });
}

TEST(AcceptHeader, OrderDoesNotCount) {
  check({
      {"text/plain,application/openmetrics-text", true},
      {"application/openmetrics-text,text/plain", true},
      {"application/openmetrics-text;q=0.5,text/*;q=0.9", false},
      {"*/*;q=0.1,text/plain;q=0.2,application/openmetrics-text;q=0.3", true},
      {"application/openmetrics-text;q=0.3,text/plain;q=0.2,*/*;q=0.9", true},
  });
}

TEST(AcceptHeader, TheMostPreciseRangeCounts) {
  check({
      {"text/*;q=0.9,text/plain;q=0.1,application/openmetrics-text;q=0.5", true},
      {"text/plain;q=0.9,text/plain;version=0.0.4;q=0.1,application/openmetrics-text;q=0.5", true},
      {"text/plain;q=0.1,text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.5", false},
      {"*/*;q=1,application/*;q=0.2,text/*;q=0.1", true},
      {"*/*;q=0.9,application/*;q=0,text/plain;q=0.1", false},
      {"*/*,application/openmetrics-text;q=0", false},
      {"application/*", true},
      {"text/*", false},
      {"*/*;q=0.5,text/plain;q=0.1", true},  // any other type rather than text
      {"application/*;q=0.5,text/plain;q=0.5", false},
  });
}

TEST(AcceptHeader, ParametersMustBeThoseOnOffer) {
  check({
      {"application/openmetrics-text;version=1.0.0", true},
      {"application/openmetrics-text;version=\"1.0.0\"", true},
      {"application/openmetrics-text;version=\"1.\\0.0\"", true},
      {"application/openmetrics-text;version=2.0.0", false},
      {"application/openmetrics-text;charset=utf-8", true},
      {"application/openmetrics-text;charset=latin1", false},
      {"application/openmetrics-text;level=1", false},
      {"application/openmetrics-text;version=1.0.0;charset=UTF-8;q=0.5,text/plain;q=0.4", true},
      {"application/openmetrics-text;q=0.5;version=9,text/plain;q=0.4", true},  // behind the weight
  });
}

TEST(AcceptHeader, NamesHaveNoCaseAndSpacesAreOptional) {
  check({
      {"APPLICATION/OpenMetrics-Text;VERSION=1.0.0;Q=0.5,Text/Plain;q=0.4", true},
      {"application/openmetrics-text;Q=0,*/*;q=0.1", false},
      {" \t application/openmetrics-text \t ; \t version=1.0.0 ; q=0.5 \t , text/plain;q=0.4",
       true},
      {",,application/openmetrics-text,,", true},
      {"application/openmetrics-text;;q=0.5;,text/plain;q=0.4", true},
  });
}

TEST(AcceptHeader, MalformedElementsCountAsAbsent) {
  for (const char* weight :
       {"",    "x",   "-1",  "+0.5", ".5",  "1.1",  "1.001", "2",  "0.1234", "00.5",
        "0,5", "1e0", "0x1", "nan",  "inf", "0.5x", "0 .5",  "\"", "1.0000", "10"})
    EXPECT_EQ(preferred_exposition(std::string("application/openmetrics-text;q=") + weight),
              exposition::prometheus)
        << weight;
  for (const char* weight : {"1", "1.", "1.0", "1.000", "0.5", "0.50", "0.001", "\"0.5\""})
    EXPECT_EQ(preferred_exposition(std::string("application/openmetrics-text;q=") + weight),
              exposition::openmetrics)
        << weight;
  check({
      {",;q=,application/openmetrics-text;q=x,", false},
      {"application/openmetrics-text;q=2,text/plain;q=0.1", false},
      {"application/openmetrics-text-old", false},
      {"application/openmetrics-text/x", false},
      {"application/openmetrics-text q=1", false},
      {"application/openmetrics-text;version", false},
      {"application/openmetrics-text;version=", false},
      {"application /openmetrics-text", false},
      {"*/openmetrics-text", false},
      {"openmetrics-text", false},
      {"/", false},
      // A comma within quotes ends nothing.
      {"a/b;c=\"d,application/openmetrics-text\"", false},
      {"a/b;c=\"d\\\",application/openmetrics-text", false},
      {"a/b;c=\"d\",application/openmetrics-text", true},
      {"a b c, application/openmetrics-text", true},
      {"\"", false},
      {"\\", false},
      {"a/b;c=\"\\", false},
  });
  EXPECT_EQ(preferred_exposition(std::string("application/openmetrics-text\0", 29)),
            exposition::prometheus);
}

// Any short text of these characters is read to its end, within its bounds.
TEST(AcceptHeader, ReadsWhateverThereIs) {
  const std::string characters = "a/*;q=0.1, \"\\\xFF";
  unsigned random = 1;
  for (int i = 0; i < 100000; ++i) {
    std::string text;
    for (random = random * 1664525u + 1013904223u; text.size() < (random >> 24) % 40;) {
      random = random * 1664525u + 1013904223u;
      text += characters[(random >> 16) % characters.size()];
    }
    const std::string exact(text);  // a sanitizer sees reads behind its end
    preferred_exposition(exact);
  }
}

}  // namespace
