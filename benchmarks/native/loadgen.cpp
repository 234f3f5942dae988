// Load generator for /v1/completions and /v1/chat/completions: one thread, epoll, no dependencies.
//
//   loadgen --port PORT [--host 127.0.0.1] --requests FILE --concurrency N [--timeout-s 600] [--raw FILE]
//
// FILE: one request a line, {"path": "/v1/completions", "body": {…}, "tag": "chat", "arrival_s": 1.5}; the
// body is sent as it stands and must ask for a stream. Lines with arrival_s are sent at that time after the
// start (open loop), whatever is running; the others are sent in order, N at once, always (closed loop).
// Both may stand in one file. A connection per request; TTFT counts from before the connection is made.
//
// stdout: one JSON object: totals, per tag TTFT/ITL/E2E percentiles in seconds, the generator's own CPU
// time. --raw: one line a request with the arrival time of every chunk that carried tokens.
// Build: c++ -std=c++20 -O2.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "sse_reader.hpp"

namespace {

struct Request {
  std::string tag, message;  // message: the HTTP bytes
  std::optional<double> arrival_s;
};

struct Record {
  double sent_s = 0, end_s = 0;
  std::vector<double> arrivals_s;
  int events = 0, output_tokens = 0;
  std::string error;
};

struct Options {
  std::string host = "127.0.0.1", requests, raw;
  int port = 0, concurrency = 0;
  double timeout_s = 600;
};

[[noreturn]] void die(const std::string& reason) {
  std::cerr << "loadgen: " << reason << "\n";
  std::exit(2);
}

double now_s() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// ---------------------------------------------------------------- the run

class Generator {
 public:
  Generator(const Options& options, std::vector<Request> requests)
      : options_(options), requests_(std::move(requests)), records_(requests_.size()), poll_(epoll_create1(0)) {
    for (std::size_t i = 0; i < requests_.size(); i++) (requests_[i].arrival_s ? open_ : closed_).push_back(i);
    std::stable_sort(open_.begin(), open_.end(),
                     [&](auto a, auto b) { return *requests_[a].arrival_s < *requests_[b].arrival_s; });
  }

  void run() {
    start_s_ = now_s();
    while (true) {
      const double now = now_s();
      while (next_open_ < open_.size() && *requests_[open_[next_open_]].arrival_s <= now - start_s_) {
        send(open_[next_open_++], false);
      }
      while (next_closed_ < closed_.size() && closed_running_ < options_.concurrency) send(closed_[next_closed_++], true);
      if (running_ == 0 && next_open_ == open_.size() && next_closed_ == closed_.size()) return;
      wait(now);
      expire();
    }
  }

  const std::vector<Record>& records() const { return records_; }
  double start_s() const { return start_s_; }

 private:
  struct Stream {
    std::size_t request;
    int fd;
    bool closed_loop;
    std::size_t written = 0;
    SseReader reader;
  };

  const Options& options_;
  std::vector<Request> requests_;
  std::vector<Record> records_;
  std::vector<std::size_t> open_, closed_;
  std::map<int, std::unique_ptr<Stream>> streams_;  // by file descriptor
  std::size_t next_open_ = 0, next_closed_ = 0;
  int poll_, running_ = 0, closed_running_ = 0;
  double start_s_ = 0;

  void send(std::size_t index, bool closed_loop) {
    records_[index].sent_s = now_s();
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(options_.port));
    if (inet_pton(AF_INET, options_.host.c_str(), &address.sin_addr) != 1) die("--host: " + options_.host + " is no IPv4 address");
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) die(std::string("socket: ") + std::strerror(errno));
    const int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    auto stream = std::make_unique<Stream>(Stream{index, fd, closed_loop, 0, {}});
    running_++;
    closed_running_ += closed_loop;
    const bool failed = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 && errno != EINPROGRESS;
    Stream& placed = *(streams_[fd] = std::move(stream));
    epoll_event event{.events = EPOLLIN | EPOLLOUT, .data = {.fd = fd}};
    epoll_ctl(poll_, EPOLL_CTL_ADD, fd, &event);
    if (failed) end(placed, std::string("connect: ") + std::strerror(errno));
  }

  void wait(double now) {
    double until = options_.timeout_s;
    if (next_open_ < open_.size()) until = std::min(until, start_s_ + *requests_[open_[next_open_]].arrival_s - now);
    epoll_event events[256];
    const int timeout_ms = std::clamp(static_cast<int>(std::ceil(until * 1e3)), 0, 1000);
    const int count = epoll_wait(poll_, events, 256, timeout_ms);
    for (int i = 0; i < count; i++) {
      const auto found = streams_.find(events[i].data.fd);
      if (found == streams_.end()) continue;
      if (events[i].events & EPOLLOUT) write(*found->second);
      // An error ends the stream inside write(): look again.
      const auto still = streams_.find(events[i].data.fd);
      if (still != streams_.end() && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) read(*still->second);
    }
  }

  void write(Stream& stream) {
    const std::string& message = requests_[stream.request].message;
    while (stream.written < message.size()) {
      const ssize_t count =
          ::send(stream.fd, message.data() + stream.written, message.size() - stream.written, MSG_NOSIGNAL);
      if (count < 0) {
        if (errno != EAGAIN && errno != EINTR) end(stream, std::string("send: ") + std::strerror(errno));
        return;
      }
      stream.written += static_cast<std::size_t>(count);
    }
    epoll_event event{.events = EPOLLIN, .data = {.fd = stream.fd}};
    epoll_ctl(poll_, EPOLL_CTL_MOD, stream.fd, &event);
  }

  void read(Stream& stream) {
    char buffer[16384];
    while (true) {
      const ssize_t count = recv(stream.fd, buffer, sizeof buffer, 0);
      if (count < 0) {
        if (errno != EAGAIN && errno != EINTR) end(stream, std::string("recv: ") + std::strerror(errno));
        return;
      }
      if (count == 0) {
        stream.reader.end_of_stream();
        end(stream, "");
        return;
      }
      stream.reader.feed({buffer, static_cast<std::size_t>(count)});
      Record& record = records_[stream.request];
      if (stream.reader.token_events > 0) {
        record.arrivals_s.push_back(now_s());
        record.events += stream.reader.token_events;
      }
      if (stream.reader.done) {
        end(stream, "");
        return;
      }
      if (static_cast<std::size_t>(count) < sizeof buffer) return;
    }
  }

  void end(Stream& stream, const std::string& error) {
    Record& record = records_[stream.request];
    record.end_s = now_s();
    record.error = stream.reader.error.empty() ? error : stream.reader.error;
    record.output_tokens = stream.reader.completion_tokens ? stream.reader.completion_tokens : record.events;
    if (record.error.empty() && record.arrivals_s.empty()) record.error = "no token came";
    running_--;
    closed_running_ -= stream.closed_loop;
    close(stream.fd);
    streams_.erase(stream.fd);
  }

  void expire() {
    const double now = now_s();
    std::vector<Stream*> late;
    for (auto& [fd, stream] : streams_)
      if (now - records_[stream->request].sent_s > options_.timeout_s) late.push_back(stream.get());
    for (Stream* stream : late) end(*stream, "no end within the timeout");
  }
};

// ---------------------------------------------------------------- input and output

std::vector<Request> load(const Options& options) {
  std::ifstream file(options.requests);
  if (!file) die("--requests: can't read " + options.requests);
  std::vector<Request> requests;
  std::string line;
  for (int number = 1; std::getline(file, line); number++) {
    if (json::trim(line).empty()) continue;
    const std::string_view body = json::member(line, "body"), path = json::text(json::member(line, "path"));
    if (body.empty() || path.empty()) die(options.requests + ":" + std::to_string(number) + ": path and body expected");
    Request request;
    request.tag = json::text(json::member(line, "tag"));
    if (const auto time = json::member(line, "arrival_s"); !time.empty()) request.arrival_s = json::number(time, 0);
    request.message.append("POST ").append(path).append(" HTTP/1.1\r\nhost: ").append(options.host).append(":");
    request.message += std::to_string(options.port) +
                       "\r\nconnection: close\r\naccept: text/event-stream\r\ncontent-type: application/json\r\n"
                       "content-length: " + std::to_string(body.size()) + "\r\n\r\n";
    request.message.append(body);
    requests.push_back(std::move(request));
  }
  if (requests.empty()) die(options.requests + " holds no request");
  return requests;
}

// Linear between order statistics, like numpy's default.
std::string spread(std::vector<double> values) {
  if (values.empty()) return "null";
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const double place = share * static_cast<double>(values.size() - 1);
    const std::size_t low = static_cast<std::size_t>(place), high = std::min(low + 1, values.size() - 1);
    return values[low] + (place - static_cast<double>(low)) * (values[high] - values[low]);
  };
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  char text[256];
  std::snprintf(text, sizeof text,
                R"({"count":%zu,"mean_s":%.6f,"p50_s":%.6f,"p90_s":%.6f,"p95_s":%.6f,"p99_s":%.6f,"max_s":%.6f})",
                values.size(), mean, at(0.5), at(0.9), at(0.95), at(0.99), values.back());
  return text;
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + "\"";
}

struct Tally {
  std::size_t requests = 0, failed = 0;
  long tokens = 0;
  std::vector<double> ttft, itl, e2e;
};

void write_summary(const std::vector<Request>& requests, const std::vector<Record>& records, double cpu_s) {
  std::map<std::string, Tally> tags;
  std::map<std::string, int> errors;
  Tally all;
  double first = records.front().sent_s, last = 0;
  for (std::size_t i = 0; i < records.size(); i++) {
    const Record& r = records[i];
    first = std::min(first, r.sent_s);
    last = std::max(last, r.end_s);
    for (Tally* tally : {&all, &tags[requests[i].tag]}) {
      tally->requests++;
      if (!r.error.empty()) {
        tally->failed++;
        continue;
      }
      tally->tokens += r.output_tokens;
      tally->ttft.push_back(r.arrivals_s.front() - r.sent_s);
      tally->e2e.push_back(r.end_s - r.sent_s);
      for (std::size_t k = 1; k < r.arrivals_s.size(); k++) tally->itl.push_back(r.arrivals_s[k] - r.arrivals_s[k - 1]);
    }
    if (!r.error.empty()) errors[r.error]++;
  }
  const double duration = last - first;
  std::printf(R"({"requests":%zu,"failed":%zu,"duration_s":%.6f,"output_tokens":%ld,"output_tokens_per_s":%.3f,)",
              all.requests, all.failed, duration, all.tokens, static_cast<double>(all.tokens) / duration);
  std::printf(R"("generator_cpu_s":%.6f,"generator_cpu_cores":%.6f,"tags":{)", cpu_s, cpu_s / duration);
  const char* comma = "";
  for (const auto& [tag, t] : tags) {
    std::printf(R"(%s%s:{"requests":%zu,"failed":%zu,"output_tokens":%ld,"ttft":%s,"itl":%s,"e2e":%s})", comma,
                quoted(tag).c_str(), t.requests, t.failed, t.tokens, spread(t.ttft).c_str(), spread(t.itl).c_str(),
                spread(t.e2e).c_str());
    comma = ",";
  }
  std::printf("},\"errors\":{");
  comma = "";
  for (const auto& [reason, count] : errors) {
    std::printf("%s%s:%d", comma, quoted(reason).c_str(), count);
    comma = ",";
  }
  std::printf("}}\n");
}

void write_raw(const std::string& path, const std::vector<Request>& requests, const std::vector<Record>& records, double start_s) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (!file) die("--raw: can't write " + path);
  for (std::size_t i = 0; i < records.size(); i++) {
    const Record& r = records[i];
    std::fprintf(file, R"({"index":%zu,"tag":%s,"sent_s":%.6f,"end_s":%.6f,"output_tokens":%d,"error":%s,"arrivals_s":[)", i,
                 quoted(requests[i].tag).c_str(), r.sent_s - start_s, r.end_s - start_s, r.output_tokens,
                 r.error.empty() ? "null" : quoted(r.error).c_str());
    for (std::size_t k = 0; k < r.arrivals_s.size(); k++)
      std::fprintf(file, "%s%.6f", k ? "," : "", r.arrivals_s[k] - start_s);
    std::fprintf(file, "]}\n");
  }
  std::fclose(file);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) die(name + ": a value is missing");
    const std::string value = argv[i + 1];
    if (name == "--host") options.host = value;
    else if (name == "--port") options.port = std::atoi(value.c_str());
    else if (name == "--requests") options.requests = value;
    else if (name == "--concurrency") options.concurrency = std::atoi(value.c_str());
    else if (name == "--timeout-s") options.timeout_s = std::atof(value.c_str());
    else if (name == "--raw") options.raw = value;
    else die(name + ": no such option; see the head of loadgen.cpp");
  }
  if (options.port <= 0 || options.port > 65535) die("--port: 1 … 65535 expected");
  if (options.concurrency < 1) die("--concurrency: 1 or more expected");
  if (options.requests.empty()) die("--requests: a file is needed");
  return options;
}

double cpu_s() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](timeval t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const std::vector<Request> requests = load(options);
  Generator generator(options, requests);
  const double before = cpu_s();
  generator.run();
  const double used = cpu_s() - before;
  write_summary(requests, generator.records(), used);
  if (!options.raw.empty()) write_raw(options.raw, requests, generator.records(), generator.start_s());
  return 0;
}
