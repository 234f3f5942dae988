// Executor: runs a Program on a thread pool, one ragged batch at a time.
//
// Every thread runs the same list of operations; an operation's items are claimed in chunks, and a
// barrier follows where the next operation reads what others wrote. With few tokens, norms are made
// by every thread for itself: that is cheaper than a barrier.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "core/memory.h"
#include "core/pool.h"
#include "core/program.h"

namespace penstock {

// One group's block tables: row r's blocks start at data + index[r] * stride.
struct BlockTable {
  const int32_t* data;
  int64_t stride;
};

// R rows; row r computes counts[r] tokens from position starts[r]. `tokens` [T], concatenated.
struct Batch {
  int32_t rows = 0;
  const int32_t* starts = nullptr;
  const int32_t* counts = nullptr;
  const int32_t* tokens = nullptr;
  const int32_t* index = nullptr;  // row -> row of the tables; null: itself
  std::vector<BlockTable> tables;
};

// The experts that a step's tokens chose, and their pairs (token, choice) grouped by expert (experts.cpp).
struct Routes {
  std::vector<int32_t> ids;      // [T, top_k], best first
  std::vector<float> weights;    // [T, top_k]
  std::vector<int32_t> rank;     // [T, top_k]: row of the pair among the grouped ones
  std::vector<int32_t> active, begins, counts;

  void group(const Routes& chosen, int pairs, int experts);
};

class Executor {
 public:
  Executor(Program program, const KernelTable* kernels, ThreadPool* pool);

  // Runs the operations, then the head for tokens `rows` (see `logits`; n may be 0). Hidden states
  // stay for `hidden` and `logits`.
  void forward(const Batch& batch, const int32_t* rows, int n, float* out, int32_t* best);

  // Runs the batch and chooses by it which inputs are fine from now on (core/fine.cpp).
  void choose_fine(const Batch& batch);
  // Whether there are inputs to choose from.
  bool can_be_fine() const { return fine_room_ > 0; }

  // Final-normed hidden states [n, hidden] of tokens `rows`.
  void hidden(const int32_t* rows, int n, float* out);

  // What the last forward captured: `features_width` floats of every token; 0 if the program captures nothing.
  const float* features() const { return features_.data(); }
  int features_width() const { return features_width_; }

  // Rows [n, hidden] of the embedding, as stored (not scaled).
  void embedding(const int32_t* tokens, int n, float* out) const;

  // Logits [n, vocab] of tokens `rows` of the last forward, and their argmax if `best` is given.
  void logits(const int32_t* rows, int n, float* out, int32_t* best);

  // Logits [n, vocab] of final-normed hidden states [n, hidden].
  void head(const float* hidden, int n, float* out);

  Program& program() { return program_; }
  int threads() const { return pool_->size(); }

  // Seconds that thread 0 spent per operation code since the last call, then embedding, head.
  static constexpr int kClocks = 12;
  std::array<double, kClocks> take_clocks();

 private:
  struct Lane;  // what one thread knows while it runs
  struct Item {
    int32_t row, first_token, tokens, position, kv_head, first_head, heads, range, partial, merge;
  };
  struct Merge {
    int32_t ranges, partial;
  };

  void grow(int tokens);
  void plan(const Batch& batch);
  void plan_items(std::vector<Item>& items, bool split);
  void layout(int tokens);
  Operation* fine_reader(size_t norm);
  bool takes_fine(int weight) const;
  void observe(const Operation& op);
  void run(Lane& lane);
  void run_team(bool whole);
  void quantize(Lane& lane, Buffer buffer, int rows, int n);
  void quantize_row(Buffer buffer, const float* x, int n, const Activations& out) const;
  void norm_row(const float* x, const float* gain, const Activations& out) const;
  bool per_token(Buffer buffer) const { return quantized_[int(buffer)] && !by_group_[int(buffer)]; }
  void embed(Lane& lane);
  void norm(Lane& lane, const Operation& op);
  void linear(Lane& lane, const Operation& op);
  void rotate(Lane& lane, const Operation& op);
  void attend(Lane& lane, const Operation& op);
  const Routes& route(Lane& lane, const Operation& op);
  void expert_product(Lane& lane, const Operation& op, bool gated);
  void mix_experts(Lane& lane, const Operation& op);
  void add_sigmoid(Lane& lane);
  void capture(Lane& lane, const Operation& op);
  void run_head(Lane& lane);
  Activations input(const Lane& lane, Buffer buffer) const;
  float* rows(Buffer buffer) const { return floats_[int(buffer)]; }
  int width(Buffer buffer) const { return widths_[int(buffer)]; }

  Program program_;
  const KernelTable* kernels_;
  ThreadPool* pool_;
  std::array<int, int(Buffer::Count)> widths_{};
  std::array<bool, int(Buffer::Count)> quantized_{};  // some linear layer reads it as int8
  std::array<bool, int(Buffer::Count)> as_floats_{};  // … as float
  std::array<bool, int(Buffer::Count)> halves_{};     // … with sums of 16 (Activations::half)
  std::array<bool, int(Buffer::Count)> by_group_{};   // … with a scale per group; else one per token
  std::array<float*, int(Buffer::Count)> floats_{};
  std::array<Activations, int(Buffer::Count)> shared_{};
  std::vector<std::array<Activations, int(Buffer::Count)>> private_;  // per thread, kPrivateTokens rows
  Arena arena_;
  int fine_room_ = 0;                // fine pairs that a row of `normed` has room for
  std::vector<uint16_t> fine_head_;  // pairs that the head reads fine
  std::vector<double>* observed_ = nullptr;  // while they are chosen: per operation, squared scales by pair
  int capacity_ = 0;
  int phases_ = 0;
  int features_width_ = 0;
  bool fused_mixed_ = false;  // attention itself makes int8 of its result
  int choices_ = 0;             // most experts that a token chooses
  std::vector<Routes> routes_;  // per thread

  // The step.
  const Batch* batch_ = nullptr;
  int tokens_ = 0;
  std::vector<int32_t> offsets_, token_row_, positions_;
  std::vector<float> features_;  // [tokens, features_width]
  std::vector<int32_t> spans_;  // first tokens of the runs that share a tile of 16 keys, then the end
  std::vector<std::vector<float>> cos_, sin_;
  std::vector<Item> items_, split_items_;  // attention's work; the second with rows cut into key ranges
  std::vector<Merge> merges_;              // what `split_items_` cut,
  std::vector<Counter> arrived_;           // how many ranges of it are done, over all layers,
  std::vector<float> partials_;            // and their results
  std::vector<uint8_t> scratch_;           // of all threads, for attention over small blocks
  const int32_t* head_rows_ = nullptr;
  const float* head_input_ = nullptr;
  int head_count_ = 0;
  float* head_out_ = nullptr;
  int32_t* head_best_ = nullptr;
  std::array<double, kClocks> clocks_{};
};

}  // namespace penstock
