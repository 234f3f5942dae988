// One HTTP/1.1 answer, fed in whatever pieces the socket gives: status, headers, chunked or
// length-delimited body, server-sent events, tokens. Invariant: any cut of the bytes counts the same.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "json_scan.hpp"

class SseReader {
 public:
  int token_events = 0;   // chunks that carry a token, in the last call of feed()
  int completion_tokens = 0;  // of the answer's usage; 0: not reported
  std::string error;      // why this answer is no success; empty while it is one
  bool done = false;      // [DONE] came, or the body ended

  // Take the next bytes.
  void feed(std::string_view bytes) {
    token_events = 0;
    input_.append(bytes);
    while (!done && advance()) {
    }
  }

  // The peer closed the connection.
  void end_of_stream() {
    if (done) return;
    if (state_ == State::head || chunked_ || left_ > 0) fail("the connection ended inside the answer");
    finish_body();
  }

 private:
  enum class State { head, chunk_size, chunk_data, chunk_end, length, until_close };

  State state_ = State::head;
  bool chunked_ = false;
  bool events_ = true;  // false: an error body, kept as text
  std::size_t left_ = 0;
  std::string input_;
  std::string line_;

  void fail(std::string reason) {
    if (error.empty()) error = std::move(reason);
  }

  // One unit of input; false when more bytes are needed.
  bool advance() {
    switch (state_) {
      case State::head: {
        const std::size_t end = input_.find("\r\n\r\n");
        if (end == std::string::npos) return false;
        read_head(std::string_view(input_).substr(0, end + 2));
        input_.erase(0, end + 4);
        return true;
      }
      case State::chunk_size: {
        const std::size_t end = input_.find("\r\n");
        if (end == std::string::npos) return false;
        left_ = std::strtoull(input_.c_str(), nullptr, 16);
        input_.erase(0, end + 2);
        if (left_ == 0) finish_body();
        state_ = State::chunk_data;
        return !done;
      }
      case State::chunk_end:
        if (input_.size() < 2) return false;
        input_.erase(0, 2);
        state_ = State::chunk_size;
        return true;
      default:
        return take_body();
    }
  }

  bool take_body() {
    if (input_.empty()) return false;
    const std::size_t count =
        state_ == State::until_close ? input_.size() : std::min(left_, input_.size());
    take_text(std::string_view(input_).substr(0, count));
    input_.erase(0, count);
    if (state_ == State::until_close) return false;
    left_ -= count;
    if (left_ > 0) return false;
    if (state_ == State::length) finish_body();
    else state_ = State::chunk_end;
    return true;
  }

  void read_head(std::string_view head) {
    const std::size_t space = head.find(' ');
    const int status = space == std::string_view::npos ? 0 : static_cast<int>(json::number(head.substr(space + 1, 3), 0));
    std::string lower(head);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    if (status != 200) {
      fail("HTTP " + std::to_string(status));
      events_ = false;
    }
    const std::size_t length = lower.find("\r\ncontent-length:");
    chunked_ = lower.find("\r\ntransfer-encoding: chunked") != std::string::npos;
    if (chunked_) {
      state_ = State::chunk_size;
    } else if (length != std::string::npos) {
      state_ = State::length;
      left_ = std::strtoull(lower.c_str() + length + 17, nullptr, 10);
      if (left_ == 0) finish_body();
    } else {
      state_ = State::until_close;
    }
  }

  void take_text(std::string_view text) {
    if (!events_) {
      if (error.size() < 300) error.append(": ").append(text.substr(0, 300));
      return;
    }
    while (!text.empty()) {
      const std::size_t newline = text.find('\n');
      line_.append(text.substr(0, newline));
      if (newline == std::string_view::npos) return;
      text.remove_prefix(newline + 1);
      take_line(line_);
      line_.clear();
    }
  }

  void take_line(std::string_view line) {
    if (!line.starts_with("data:")) return;
    const std::string_view data = json::trim(line.substr(5));
    if (data == "[DONE]") {
      done = true;
      return;
    }
    if (const auto failure = json::member(data, "error"); !failure.empty() && failure != "null") {
      fail(std::string(failure.substr(0, 300)));
      return;
    }
    const std::string_view choice = json::first_element(json::member(data, "choices"));
    if (!choice.empty() && carries_token(choice)) token_events++;
    const std::string_view usage = json::member(data, "usage");
    if (!usage.empty()) completion_tokens = static_cast<int>(json::number(json::member(usage, "completion_tokens"), 0));
  }

  // A chunk without text may still carry a token (half a character is held back); the one with the role,
  // and the last one, with finish_reason alone, carry none.
  static bool carries_token(std::string_view choice) {
    const std::string_view delta = json::member(choice, "delta");
    if (!delta.empty() && !json::member(delta, "role").empty() && json::text(json::member(delta, "content")).empty())
      return false;
    const std::string_view text = delta.empty() ? json::member(choice, "text") : json::member(delta, "content");
    const std::string_view finish = json::member(choice, "finish_reason");
    return !json::text(text).empty() || finish.empty() || finish == "null";
  }

  void finish_body() {
    if (events_ && !line_.empty()) take_line(line_);
    if (!done && events_ && error.empty() && state_ != State::head) fail("the stream ended without [DONE]");
    done = true;
  }
};
