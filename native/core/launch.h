// Launches: steps over the request table, run in order by one thread, each drawing its tokens.
//
// A launch is one step of any rows, or a window: decode steps of one token a row, one after the other, the
// drawn token of a step being the input of the next. Rows that drew a stop token are left out from then on.
// Every step is published as it comes; `cut` ends a window after the step that runs. Rows that only the host
// can draw (grammars, thinking budgets) are left to it: see `attended`.
//
// Threads: one launches and waits, one runs (`next`, `run`, `write`, `admit`). A launch's plan is read by
// both and written by none; a step's results are written before it is published and not after.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/acceptance.h"
#include "core/executor.h"
#include "core/sampler.h"

namespace penstock {

constexpr int32_t kNotDrawn = -1;
constexpr int32_t kBroken = -2;  // the row's logits were NaN, +inf, or all -inf

// Blocks of (slot, group) from logical index `first` on.
struct TableWrite {
  int32_t slot, group, first;
  std::vector<int32_t> blocks;
};

// R rows; row r is the request in slots[r]. window 1: it computes counts[r] tokens from starts[r]. More: it
// takes part in the first counts[r] <= window steps, computing one token in each, and draws after every one.
// The last draft_counts[r] tokens that row r computes are `drafts` (row after row; both empty: none): it draws
// after its last known token and after every draft that, with those before it, is what was drawn.
struct LaunchPlan {
  std::vector<int32_t> slots, starts, counts, draft_counts, drafts;
  std::vector<uint8_t> samples;
  int window = 1;
  std::vector<TableWrite> writes;
};

struct StepOutput {
  std::vector<int32_t> tokens;  // [R, width]; kNotDrawn, kBroken
  int width = 1;                // most drafts of a row, and one
  double seconds = 0.0;         // that the step took
  int broken = 0;
  std::vector<int32_t> head_rows;  // [R]: the first row of logits of each row, -1
  // Log-probabilities of tokens of rows `logprob_rows` [n] that want them: chosen [n], ids and values [n, k].
  std::vector<int32_t> logprob_rows, logprob_places, ids;  // places: rows of logits
  std::vector<float> chosen, values;
  int k = 0;
  // What the program captures of the step's tokens [T, width of features], and [R] the first token of each row, -1.
  std::vector<float> features;
  std::vector<int32_t> first_tokens;
};

class Launch {
 public:
  // attended: Python takes part (see StepQueue::next). held: its only step is published by `release`.
  Launch(LaunchPlan plan, bool attended, bool held);

  const LaunchPlan plan;
  const bool attended, held;

  // Blocks until step `index` was published: its output, or null if it never runs. Throws what it threw.
  const StepOutput* wait(int index);

  // How many steps were published, once step `index` was or never will be, `seconds` passed, or `interrupt`
  // was called.
  int wait_until(int index, double seconds);

  // Ends the present or the next `wait_until`.
  void interrupt();

  // Ends the window after the step that runs, after the first if none does; returns how many steps run.
  int cut();

  void release();
  void fail(const std::string& message);
  StepOutput& output(int index) { return outputs_[size_t(index)]; }

 private:
  friend class StepQueue;
  bool begin(int index);  // false: the window ends before it
  void publish(int index);
  void end(int steps);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<StepOutput> outputs_;
  int started_ = 0, done_ = 0, limit_;
  int awaited_ = 0;  // the step that the one thread that waits is waiting for: steps before it wake nobody
  bool failed_ = false, interrupted_ = false;
  std::string error_;
};

// What the device knows of a slot's request beside its tokens.
struct SlotState {
  bool ended = false;           // it drew a stop token: left out of later steps
  int32_t host_upto = 0;        // the host draws the tokens at positions below it
  int32_t logprobs = -1;        // alternatives wanted with each token; -1: no log-probabilities
  int32_t min_known = 0;        // stop tokens count once more tokens than this are known
  std::vector<int32_t> stops;
};

// The request table, memory of the host: tokens [slots, longest], tables[group] [slots, blocks], and room for
// logits [slots, vocab].
struct RequestMemory {
  int32_t* tokens;
  int64_t longest;
  std::vector<int32_t*> tables;
  std::vector<int64_t> widths;
  float* logits;
  int64_t logit_rows;
  int slots;
};

class StepQueue {
 public:
  // acceptance: by which drafts count where it is on; else those count that are what is drawn.
  StepQueue(Executor* executor, SamplerTable* sampler, RequestMemory memory, SyntheticAcceptance acceptance);

  // Throws std::invalid_argument for rows, slots or places that do not exist; nothing is launched then.
  std::shared_ptr<Launch> launch(LaunchPlan plan, bool attended, bool held);

  // Runs launches until one is attended, which the caller is to run; null once closed and all has run.
  std::shared_ptr<Launch> next();

  void write(const Launch& launch);
  void admit(int slot, SlotState state);
  // Steps of a launch whose tables are written. Throws, after which the caller fails the launch.
  void run(Launch& launch);
  void close();

 private:
  void check(const LaunchPlan& plan) const;
  bool gather(const Launch& launch, int step, StepOutput& output);
  void draw(const Launch& launch, StepOutput& output);
  void draw_by_chance();
  bool keep(int32_t token, int32_t row, int32_t position, const Launch& launch, StepOutput& output);
  void add_logprobs(StepOutput& output, const Launch& launch);

  Executor* executor_;
  SamplerTable* sampler_;
  RequestMemory memory_;
  SyntheticAcceptance acceptance_;
  std::vector<SlotState> slots_;

  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<std::shared_ptr<Launch>> queue_;
  bool closed_ = false;

  // The step: rows that take part and their tokens; of the tokens drawn here, their row in the plan, of logits,
  // slot, the place that they take and the draft in that place, -1 behind the last.
  std::vector<int32_t> index_, starts_, counts_, tokens_, head_rows_;
  std::vector<int32_t> rows_, logit_rows_, drawn_slots_, positions_, drafts_, drawn_;
};

}  // namespace penstock
