// What the metrics endpoint answers to the head of a request. No input or output here.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/system/error_code.hpp>
#include <cstddef>
#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/accept_header.hpp"
#include "adaptive_k/observability/text.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Most bytes of a request line with its headers.
inline constexpr std::size_t max_request_head = 8192;

struct http_answer {
  unsigned status = 200;  ///< 200: the metrics
  bool with_body = true;  ///< false for HEAD
  exposition format = exposition::prometheus;
  std::string_view more;  ///< header lines besides those that every answer has
};

/// The path of a request's target: without a query, and without the scheme and host that a request
/// through a proxy has.
inline std::string_view path_of(std::string_view target) noexcept {
  if (same_word(target.substr(0, 7), "http://")) {
    target.remove_prefix(7);
    const std::size_t slash = target.find_first_of("/?");
    target = slash == std::string_view::npos || target[slash] == '?' ? "/" : target.substr(slash);
  }
  return target.substr(0, target.find('?'));
}

/// Answers GET and HEAD of `path`, redirects "/" to it, ignores ranges, and refuses bodies. `head`
/// ends with an empty line.
inline http_answer answer_to(std::string_view head, std::string_view path) {
  namespace http = boost::beast::http;
  http_answer answer;
  const auto refuse = [&](unsigned status, std::string_view more = "") {
    answer.status = status;
    answer.more = more;
    return answer;
  };
  http::request_parser<http::empty_body> parser;
  parser.header_limit(max_request_head);
  boost::system::error_code error;
  parser.put(boost::asio::buffer(head.data(), head.size()), error);
  if (error == http::error::bad_version) return refuse(505);
  if (error || !parser.is_header_done()) return refuse(400);
  const auto& request = parser.get();
  const auto fields = [&](http::field name) {
    std::string all;
    const auto range = request.equal_range(name);
    for (auto field = range.first; field != range.second; ++field) {
      if (!all.empty()) all += ", ";
      all.append(field->value().data(), field->value().size());
    }
    return all;
  };

  answer.with_body = request.method() != http::verb::head;
  if (request.version() >= 11 && request.count(http::field::host) != 1) return refuse(400);
  if (request.method() == http::verb::unknown) return refuse(501);
  if (request.method() != http::verb::get && request.method() != http::verb::head)
    return refuse(405, "Allow: GET, HEAD\r\n");
  if (parser.chunked() || request.count(http::field::transfer_encoding) > 0 ||
      parser.content_length().value_or(0) > 0)
    return refuse(413);
  const std::string expected = fields(http::field::expect);
  if (!expected.empty() && !same_word(expected, "100-continue")) return refuse(417);
  const std::string_view asked = path_of({request.target().data(), request.target().size()});
  if (asked == "/") return refuse(302);
  if (asked != path) return refuse(404);
  answer.format = preferred_exposition(fields(http::field::accept));
  return answer;
}

/// The answer's status line and headers, for a body of `length` bytes.
inline std::string answer_head(const http_answer& answer, std::size_t length,
                               std::string_view path) {
  const auto reason =
      boost::beast::http::obsolete_reason(boost::beast::http::int_to_status(answer.status));
  std::string out = "HTTP/1.1 ";
  append_number(out, std::uint64_t{answer.status});
  out.append(" ").append(reason.data(), reason.size()).append("\r\nContent-Type: ");
  out.append(answer.status == 200 ? content_type(answer.format) : "text/plain; charset=utf-8");
  out += "\r\nContent-Length: ";
  append_number(out, std::uint64_t{length});
  out += "\r\nConnection: close\r\n";
  if (answer.status == 200) out += "Vary: Accept\r\n";
  if (answer.status == 302) out.append("Location: ").append(path).append("\r\n");
  return out.append(answer.more).append("\r\n");
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
