#include "scanner.hpp"

namespace ptx {

namespace {

bool in_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '$' || c == '%' || c == '.';
}

}  // namespace

void scanner::skip_blanks() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      ++at_;
    } else if (c == '/' && at_ + 1 < text_.size() && text_[at_ + 1] == '/') {
      const std::size_t end = text_.find('\n', at_);
      at_ = end == std::string_view::npos ? text_.size() : end + 1;
    } else if (c == '/' && at_ + 1 < text_.size() && text_[at_ + 1] == '*') {
      const std::size_t end = text_.find("*/", at_ + 2);
      at_ = end == std::string_view::npos ? text_.size() : end + 2;
    } else {
      return;
    }
  }
}

std::string_view scanner::next() {
  skip_blanks();
  if (at_ >= text_.size()) return {};
  const std::size_t start = at_;
  if (text_[at_] == '"') {
    const std::size_t end = text_.find('"', at_ + 1);
    at_ = end == std::string_view::npos ? text_.size() : end + 1;
    return text_.substr(start, at_ - start);
  }
  while (at_ < text_.size()) {
    if (in_word(text_[at_])) {
      ++at_;
    } else if (text_[at_] == ':' && at_ + 1 < text_.size() && text_[at_ + 1] == ':' &&
               at_ > start) {
      at_ += 2;
    } else {
      break;
    }
  }
  if (at_ == start) ++at_;
  return text_.substr(start, at_ - start);
}

std::string_view scanner::peek() {
  const std::size_t saved = at_;
  const std::string_view token = next();
  at_ = saved;
  return token;
}

bool scanner::accept(std::string_view token) {
  const std::size_t saved = at_;
  if (next() == token) return true;
  at_ = saved;
  return false;
}

void scanner::expect(std::string_view token) {
  const std::string_view got = next();
  if (got != token)
    throw parse_error("expected '" + std::string(token) + "', found '" + std::string(got) + "'");
}

std::string_view scanner::rest_of_braces() {
  const std::size_t start = at_;
  int depth = 1;
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c == '{') {
      ++depth;
    } else if (c == '}') {
      if (--depth == 0) {
        const std::string_view inside = text_.substr(start, at_ - start);
        ++at_;
        return inside;
      }
    } else if (c == '"') {
      at_ = text_.find('"', at_ + 1);
      if (at_ == std::string_view::npos) break;
    } else if (c == '/' && at_ + 1 < text_.size() &&
               (text_[at_ + 1] == '/' || text_[at_ + 1] == '*')) {
      skip_blanks();
      continue;
    }
    ++at_;
  }
  throw parse_error("a brace is never closed");
}

std::string_view scanner::until(char end) {
  const std::size_t start = at_;
  const std::size_t found = text_.find(end, at_);
  if (found == std::string_view::npos) throw parse_error(std::string("no '") + end + "' found");
  at_ = found + 1;
  return text_.substr(start, found - start);
}

}  // namespace ptx
