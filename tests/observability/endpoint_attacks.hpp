// What a hostile client does to a metrics endpoint. Each attack ends by itself, within seconds of a
// server's hanging up.
#pragma once

#include <sys/resource.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "http_client.hpp"

namespace endpoint_attacks {

using http_client::connection;

/// So that both ends of thousands of connections fit.
inline void allow_many_connections() {
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max < 8192 ? files.rlim_max : 8192;
  setrlimit(RLIMIT_NOFILE, &files);
}

/// Sends `start`, then `again` until the server hangs up or has got `most` bytes.
inline void send_without_end(int port, const std::string& start, const std::string& again,
                             std::size_t most = std::size_t{600} << 20) {
  const connection to(port);
  if (!to.send(start)) return;
  for (std::size_t sent = 0; sent < most && to.send(again); sent += again.size()) {
  }
}

/// Each of `requests` on a connection of its own, `times` over, whose answers are read.
inline void ask(int port, const std::vector<std::string>& requests, int times) {
  for (int i = 0; i < times; ++i)
    for (const std::string& request : requests) {
      const connection to(port);
      to.send(request);
      to.end_sending();
      to.receive(5);
    }
}

/// `count` connections at once that send `request` and read nothing until `time` is over.
inline void hold(int port, int count, const std::string& request, std::chrono::milliseconds time) {
  std::vector<connection> held;
  for (int i = 0; i < count; ++i) {
    held.emplace_back(port);
    held.back().send(request);
  }
  std::this_thread::sleep_for(time);
}

inline std::string times(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

/// Zeros by gzip, 258 bytes in 13 bits: a literal, then matches at distance 1, in the fixed code.
inline std::string gzip_of_zeros(std::size_t megabytes) {
  std::string out("\x1F\x8B\x08\0\0\0\0\0\0\x03", 10);
  unsigned held = 0;
  int bits = 0;
  const auto put = [&](unsigned value, int count) {  // lowest bit first
    held |= value << bits;
    for (bits += count; bits >= 8; bits -= 8, held >>= 8) out += static_cast<char>(held & 255);
  };
  put(3, 3);     // the last block, in the fixed code
  put(0x0C, 8);  // literal 0: 00110000, highest bit first
  for (std::size_t i = 0; i < (megabytes << 20) / 258; ++i) {
    put(0xA3, 8);  // length 258: 11000101
    put(0, 5);     // distance 1
  }
  put(0, 7);  // the end
  put(0, 7);
  return out;
}

struct attack {
  const char* name;
  std::function<void(int port)> run;
};

inline std::vector<attack> all() {
  using std::chrono::milliseconds;
  const std::string get = "GET /metrics HTTP/1.1\r\nHost: x\r\n", end = "\r\n";
  const std::string post = "POST /metrics HTTP/1.1\r\nHost: x\r\n";
  const std::string filler(65536, 'a');
  return {
      {"a thousand byte ranges in 3 kB",
       [=](int port) { ask(port, {get + "Range: bytes=0-" + times(",0-", 999) + end + end}, 10); }},
      {"a body of gzip that unpacks to 700 MB",
       [=](int port) {
         const std::string zeros = gzip_of_zeros(700);
         for (const std::string& line : {get, post})
           ask(port,
               {line + "Content-Encoding: gzip\r\nContent-Length: " + std::to_string(zeros.size()) +
                end + end + zeros},
               1);
       }},
      {"a header line without end", [=](int port) { send_without_end(port, get + "X: ", filler); }},
      {"headers without end",
       [=](int port) { send_without_end(port, get, times("a: b\r\n", 10000)); }},
      {"a folded header without end",
       [=](int port) { send_without_end(port, get + "X: a\r\n", times(" b\r\n", 10000)); }},
      {"a URI without end", [=](int port) { send_without_end(port, "GET /", filler); }},
      {"a method without end", [=](int port) { send_without_end(port, "", filler); }},
      {"empty lines without end",
       [=](int port) { send_without_end(port, "", times("\r\n", 10000)); }},
      {"zero bytes without end",
       [=](int port) { send_without_end(port, "", std::string(65536, '\0')); }},
      {"a chunked body without end",
       [=](int port) {
         for (const std::string& line : {get, post})
           send_without_end(port, line + "Transfer-Encoding: chunked\r\n\r\n",
                            "10000\r\n" + filler + end);
       }},
      {"a chunk's size without end",
       [=](int port) {
         send_without_end(port, post + "Transfer-Encoding: chunked\r\n\r\n",
                          std::string(65536, '1'));
       }},
      {"a body without end",
       [=](int port) {
         for (const std::string& line : {get, post})
           send_without_end(port, line + "Content-Length: 99999999999\r\n\r\n", filler);
       }},
      {"a form of many parts without end",
       [=](int port) {
         send_without_end(
             port,
             post +
                 "Content-Type: multipart/form-data; boundary=b\r\n"
                 "Content-Length: 99999999999\r\n\r\n",
             times("--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n", 1000));
       }},
      {"requests without end on one connection",
       [=](int port) { send_without_end(port, "", times(get + end, 1000)); }},
      {"Expect: 100-continue before a body that never comes",
       [=](int port) {
         hold(port, 1000, post + "Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n",
              milliseconds(1000));
         ask(port, {get + "Expect: 100-continue\r\n\r\n", get + "Expect: miracles\r\n\r\n"}, 20);
       }},
      {"HTTP/1.0 and HEAD",
       [=](int port) {
         ask(port,
             {"GET /metrics HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
              "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD / HTTP/1.0\r\n\r\n"},
             20);
       }},
      {"methods, paths and versions that are not served",
       [=](int port) {
         std::vector<std::string> requests;
         for (const char* method : {"PUT", "DELETE", "TRACE", "CONNECT", "OPTIONS", "PRI", "get"})
           requests.push_back(std::string(method) + " /metrics HTTP/1.1\r\nHost: x\r\n" +
                              "Content-Length: 100000\r\n\r\n" + std::string(100000, 'x'));
         for (const char* path : {"/../../etc/passwd", "/metrics/../x", "*", "//", "/%00", "a:1"})
           requests.push_back(std::string("GET ") + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
         for (const char* version : {"HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/9.9", "FTP/1.1", ""})
           requests.push_back(std::string("GET /metrics ") + version + "\r\nHost: x\r\n\r\n");
         ask(port, requests, 5);
       }},
      {"an Accept header of 7 kB",
       [=](int port) {
         ask(port,
             {get + "Accept: " + times("a/b;q=0.1;x=\"\\\",\",", 400) + end + end,
              get + "Accept: " + times(",", 7000) + end + end,
              get + "Accept: \"" + times("\\", 7000) + end + end},
             10);
       }},
      {"5000 silent connections", [=](int port) { hold(port, 5000, "", milliseconds(500)); }},
      {"1000 connections that send a byte now and then",
       [=](int port) {
         std::vector<connection> slow;
         for (int i = 0; i < 1000; ++i) slow.emplace_back(port);
         for (std::size_t byte = 0; byte < 20; ++byte) {
           for (const connection& one : slow) one.send(get.substr(byte, 1));
           std::this_thread::sleep_for(milliseconds(100));
         }
       }},
      {"1000 connections that do not read the answer",
       [=](int port) {
         hold(port, 500, get + end, milliseconds(1000));
         hold(port, 500, get + "Accept: application/openmetrics-text\r\n\r\n", milliseconds(1000));
       }},
      {"200 connections, one after another, that take no byte of the answer",
       [=](int port) {
         std::vector<connection> held;
         for (int i = 0; i < 200; ++i) {
           held.emplace_back(port, "127.0.0.1", 2048);
           held.back().send(get + (i % 2 == 0 ? "" : "Accept: application/openmetrics-text\r\n") +
                            end);
           std::this_thread::sleep_for(milliseconds(10));
         }
       }},
      {"3000 connections that hang up after the request",
       [=](int port) {
         for (int i = 0; i < 3000; ++i) connection(port).send(i % 2 == 0 ? get + end : get);
       }},
  };
}

}  // namespace endpoint_attacks
