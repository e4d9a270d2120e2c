// A client for tests: bare sockets, so that it can misbehave.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace http_client {

class connection {
 public:
  /// `receive_buffer`: bytes that the system takes before they are read; 0: as many as it likes.
  explicit connection(int port, const char* address = "127.0.0.1", int receive_buffer = 0)
      : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0)
      setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<std::uint16_t>(port));
    inet_pton(AF_INET, address, &to.sin_addr);
    connected_ = connect(socket_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0;
  }
  connection(connection&& other) noexcept : socket_(other.socket_), connected_(other.connected_) {
    other.socket_ = -1;
  }
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;
  ~connection() {
    if (socket_ >= 0) close(socket_);
  }
  bool connected() const { return connected_; }
  /// False where the other side has hung up, or takes nothing for 100 ms.
  bool send(const std::string& text) const {
    for (std::size_t sent = 0; sent < text.size();) {
      pollfd ready = {socket_, POLLOUT, 0};
      if (poll(&ready, 1, 100) <= 0) return false;
      const ssize_t length =
          ::send(socket_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (length <= 0) return false;
      sent += static_cast<std::size_t>(length);
    }
    return true;
  }
  void end_sending() const { shutdown(socket_, SHUT_WR); }
  /// All up to the end of the connection, at most `seconds` after the last byte.
  std::string receive(int seconds = 60) const {
    std::string all;
    char part[4096];
    for (;;) {
      pollfd ready = {socket_, POLLIN, 0};
      if (poll(&ready, 1, seconds * 1000) <= 0) return all + "<nothing more came>";
      const ssize_t length = recv(socket_, part, sizeof part, 0);
      if (length <= 0) return all;
      all.append(part, static_cast<std::size_t>(length));
    }
  }

 private:
  int socket_;
  bool connected_ = false;
};

/// The whole answer; `headers` are lines with their ends.
inline std::string get(int port, const std::string& target = "/metrics",
                       const std::string& headers = "", const std::string& version = "1.1") {
  const connection to(port);
  if (!to.connected()) return "not connected";
  to.send("GET " + target + " HTTP/" + version + "\r\nHost: localhost\r\n" + headers + "\r\n");
  return to.receive();
}

inline int code(const std::string& answer) {
  return answer.compare(0, 7, "HTTP/1.") == 0 && answer.size() > 9 ? std::atoi(answer.c_str() + 9)
                                                                   : -1;
}

inline std::string body(const std::string& answer) {
  const std::size_t at = answer.find("\r\n\r\n");
  return at == std::string::npos ? "" : answer.substr(at + 4);
}

}  // namespace http_client
