#include "core/launch.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace penstock {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace

// ---------------------------------------------------------------- a launch

Launch::Launch(LaunchPlan plan_, bool attended_, bool held_)
    : plan(std::move(plan_)), attended(attended_), held(held_), outputs_(size_t(plan.window)), limit_(plan.window) {}

const StepOutput* Launch::wait(int index) {
  std::unique_lock lock(mutex_);
  awaited_ = index;
  changed_.wait(lock, [&] { return done_ > index || limit_ <= index || failed_; });
  if (done_ > index) return &outputs_[size_t(index)];
  if (limit_ <= index) return nullptr;
  throw std::runtime_error(error_);
}

int Launch::wait_until(int index, double seconds) {
  std::unique_lock lock(mutex_);
  awaited_ = index;
  changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                    [&] { return done_ > index || limit_ <= index || failed_ || interrupted_; });
  interrupted_ = false;
  return done_;
}

void Launch::interrupt() {
  std::lock_guard lock(mutex_);
  interrupted_ = true;
  changed_.notify_all();
}

int Launch::cut() {
  std::lock_guard lock(mutex_);
  limit_ = std::min(limit_, std::max(started_, 1));
  changed_.notify_all();
  return limit_;
}

bool Launch::begin(int index) {
  std::lock_guard lock(mutex_);
  if (index >= limit_) return false;
  started_ = index + 1;
  return true;
}

void Launch::publish(int index) {
  std::lock_guard lock(mutex_);
  done_ = index + 1;
  if (done_ > awaited_) changed_.notify_all();
}

void Launch::end(int steps) {
  std::lock_guard lock(mutex_);
  limit_ = std::min(limit_, steps);
  changed_.notify_all();
}

void Launch::release() { publish(plan.window - 1); }

void Launch::fail(const std::string& message) {
  std::lock_guard lock(mutex_);
  failed_ = true;
  error_ = message;
  changed_.notify_all();
}

// ---------------------------------------------------------------- the queue

StepQueue::StepQueue(Executor* executor, SamplerTable* sampler, RequestMemory memory, SyntheticAcceptance acceptance)
    : executor_(executor), sampler_(sampler), memory_(std::move(memory)), acceptance_(std::move(acceptance)),
      slots_(size_t(memory_.slots)) {
  require(sampler->slots() >= memory_.slots, "the sampler has fewer slots than the request table");
}

void StepQueue::check(const LaunchPlan& plan) const {
  require(plan.window >= 1, "a launch of no steps");
  require(plan.draft_counts.empty() || (plan.draft_counts.size() == plan.slots.size() && plan.window == 1),
          "drafts of other rows, or in a window");
  int64_t logits = 0, drafts = 0;
  for (size_t r = 0; r < plan.slots.size(); ++r) {
    const int64_t length = int64_t(plan.starts[r]) + plan.counts[r];
    require(plan.slots[r] >= 0 && plan.slots[r] < memory_.slots, "no such slot");
    require(plan.starts[r] >= 0 && plan.counts[r] > 0, "a row without tokens");
    require(length + (plan.samples[r] ? 1 : 0) <= memory_.longest, "a row longer than the request table");
    require(plan.window == 1 || (plan.samples[r] && plan.counts[r] <= plan.window), "a row that no window holds");
    const int32_t drafted = plan.draft_counts.empty() ? 0 : plan.draft_counts[r];
    require(drafted >= 0 && drafted < plan.counts[r] && (drafted == 0 || plan.samples[r]),
            "a row with drafts but without the token before them");
    require(!acceptance_.is_on() || size_t(drafted) <= acceptance_.chances.size(), "more drafts than have a chance");
    logits += plan.samples[r] ? 1 + drafted : 0;
    drafts += drafted;
  }
  require(drafts == int64_t(plan.drafts.size()), "drafts that are not those of the rows");
  require(logits <= memory_.logit_rows, "more rows to draw from than there is room for logits");
  for (const TableWrite& write : plan.writes) {
    require(write.slot >= 0 && write.slot < memory_.slots && write.group >= 0 &&
                write.group < int(memory_.tables.size()) && write.first >= 0 &&
                write.first + int64_t(write.blocks.size()) <= memory_.widths[size_t(write.group)],
            "a block table has no such place");
  }
}

std::shared_ptr<Launch> StepQueue::launch(LaunchPlan plan, bool attended, bool held) {
  check(plan);
  require(!held || (attended && plan.window == 1), "only a single step that Python attends can be held");
  auto launch = std::make_shared<Launch>(std::move(plan), attended, held);
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(launch);
  }
  filled_.notify_one();
  return launch;
}

void StepQueue::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  filled_.notify_one();
}

std::shared_ptr<Launch> StepQueue::next() {
  while (true) {
    std::shared_ptr<Launch> launch;
    {
      std::unique_lock lock(mutex_);
      filled_.wait(lock, [&] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return nullptr;
      launch = std::move(queue_.front());
      queue_.pop_front();
    }
    if (launch->attended) return launch;
    try {
      write(*launch);
      run(*launch);
    } catch (const std::exception& error) {
      launch->fail(error.what());
    }
  }
}

void StepQueue::write(const Launch& launch) {
  for (const TableWrite& write : launch.plan.writes) {
    const size_t group = size_t(write.group);
    std::copy(write.blocks.begin(), write.blocks.end(),
              memory_.tables[group] + write.slot * memory_.widths[group] + write.first);
  }
}

void StepQueue::admit(int slot, SlotState state) {
  require(slot >= 0 && slot < memory_.slots, "no such slot");
  slots_[size_t(slot)] = std::move(state);
}

// ---------------------------------------------------------------- a step

void StepQueue::run(Launch& launch) {
  const bool window = launch.plan.window > 1;
  for (int step = 0; launch.begin(step); ++step) {
    const double began = now();
    StepOutput& output = launch.output(step);
    if (!gather(launch, step, output) && window) {
      launch.end(step);
      return;
    }
    Batch batch;
    batch.rows = int32_t(index_.size());
    batch.starts = starts_.data(), batch.counts = counts_.data(), batch.tokens = tokens_.data();
    batch.index = index_.data();
    for (size_t group = 0; group < memory_.tables.size(); ++group) {
      batch.tables.push_back({memory_.tables[group], memory_.widths[group]});
    }
    executor_->forward(batch, head_rows_.data(), int(head_rows_.size()), memory_.logits, nullptr);
    if (const int width = executor_->features_width()) {
      output.features.assign(executor_->features(), executor_->features() + tokens_.size() * size_t(width));
    }
    draw(launch, output);
    output.seconds = now() - began;
    if (!launch.held) launch.publish(step);
  }
}

// The rows of a step and their tokens. False if no row is left.
bool StepQueue::gather(const Launch& launch, int step, StepOutput& output) {
  const LaunchPlan& plan = launch.plan;
  const int vocab = executor_->program().vocab;
  for (auto* list : {&index_, &starts_, &counts_, &tokens_, &head_rows_, &rows_, &logit_rows_, &drawn_slots_,
                     &positions_, &drafts_}) {
    list->clear();
  }
  const size_t rows = plan.slots.size();
  for (int32_t count : plan.draft_counts) output.width = std::max(output.width, count + 1);
  output.tokens.assign(rows * size_t(output.width), kNotDrawn);
  output.head_rows.assign(rows, -1);
  output.first_tokens.assign(rows, -1);
  const int32_t* drafts = plan.drafts.data();
  for (size_t r = 0; r < rows; ++r) {
    const int32_t slot = plan.slots[r];
    const SlotState& state = slots_[size_t(slot)];
    const bool single = plan.window == 1;
    const int32_t drafted = plan.draft_counts.empty() ? 0 : plan.draft_counts[r];
    const int32_t* own = drafts;
    drafts += drafted;
    // One that Python attends may ask for logits of any of its tokens afterwards: all stay in their places.
    if ((state.ended && !launch.held) || (!single && step >= plan.counts[r])) continue;
    const int32_t start = plan.starts[r] + step, count = single ? plan.counts[r] : 1;
    int32_t* tokens = memory_.tokens + slot * memory_.longest + start;
    std::copy(own, own + drafted, tokens + count - drafted);
    for (int i = 0; i < count; ++i) {
      if (tokens[i] < 0 || tokens[i] >= vocab) {
        throw std::invalid_argument("slot " + std::to_string(slot) + ", position " + std::to_string(start + i) +
                                    ": token " + std::to_string(tokens[i]) + " is outside the vocabulary of " +
                                    std::to_string(vocab));
      }
    }
    output.first_tokens[r] = int32_t(tokens_.size());
    index_.push_back(slot);
    starts_.push_back(start);
    counts_.push_back(count);
    tokens_.insert(tokens_.end(), tokens, tokens + count);
    if (!plan.samples[r]) continue;
    output.head_rows[r] = int32_t(head_rows_.size());
    const int32_t first = start + count - drafted;
    for (int32_t i = 0; i <= drafted; ++i) {
      const int32_t position = first + i;
      if (first >= state.host_upto) {
        rows_.push_back(int32_t(r));
        logit_rows_.push_back(int32_t(head_rows_.size()));
        drawn_slots_.push_back(slot);
        positions_.push_back(position);
        drafts_.push_back(i < drafted ? own[i] : kNotDrawn);
      }
      head_rows_.push_back(int32_t(tokens_.size()) - 1 - drafted + i);
    }
  }
  return !index_.empty();
}

// Tokens of the rows that need nothing of the host, into the request table and `output`. Those after a draft that
// turns out wrong are drawn for nothing, or not drawn.
void StepQueue::draw(const Launch& launch, StepOutput& output) {
  const int n = int(rows_.size());
  drawn_.resize(size_t(n));
  if (acceptance_.is_on()) {
    draw_by_chance();
  } else {
    sampler_->draw(memory_.logits, executor_->program().vocab, logit_rows_.data(), drawn_slots_.data(),
                   positions_.data(), drafts_.data(), n, drawn_.data());
  }
  for (size_t i = 0; i < size_t(n);) {
    const int32_t row = rows_[i];
    bool follows = true;
    for (int column = 0; i < size_t(n) && rows_[i] == row; ++i, ++column) {
      if (!follows) continue;
      output.tokens[size_t(row) * size_t(output.width) + size_t(column)] = drawn_[i] < 0 ? kBroken : drawn_[i];
      follows = keep(drawn_[i], int32_t(i), positions_[i], launch, output) && drawn_[i] == drafts_[i];
    }
  }
  if (!output.logprob_rows.empty()) add_logprobs(output, launch);
}

// Drafts that count by chance are taken as if drawn; of each row one token behind them is drawn.
void StepQueue::draw_by_chance() {
  std::vector<int32_t> places, logit_rows, slots, positions;
  for (size_t first = 0, end; first < rows_.size(); first = end) {
    for (end = first + 1; end < rows_.size() && rows_[end] == rows_[first];) ++end;
    const int32_t slot = drawn_slots_[first];
    const uint64_t seed = sampler_->params(slot).seed;
    const size_t count = size_t(acceptance_.accepted(seed, uint32_t(positions_[first]), int(end - first) - 1));
    for (size_t i = first; i < first + count; ++i) {
      drawn_[i] = drafts_[i];
      sampler_->record(slot, drafts_[i]);
    }
    const size_t behind = first + count;
    drafts_[behind] = kNotDrawn;
    places.push_back(int32_t(behind));
    logit_rows.push_back(logit_rows_[behind]), slots.push_back(slot), positions.push_back(positions_[behind]);
  }
  const std::vector<int32_t> none(places.size(), kNotDrawn);
  std::vector<int32_t> drawn(places.size());
  sampler_->draw(memory_.logits, executor_->program().vocab, logit_rows.data(), slots.data(), positions.data(),
                 none.data(), int(places.size()), drawn.data());
  for (size_t i = 0; i < places.size(); ++i) drawn_[size_t(places[i])] = drawn[i];
}

// Token i of those drawn is what its request goes on with. False if it ends there.
bool StepQueue::keep(int32_t token, int32_t i, int32_t position, const Launch& launch, StepOutput& output) {
  const int32_t row = rows_[size_t(i)], slot = launch.plan.slots[size_t(row)];
  SlotState& state = slots_[size_t(slot)];
  if (token < 0) {
    state.ended = true;
    ++output.broken;
    return false;
  }
  memory_.tokens[slot * memory_.longest + position] = token;
  if (state.logprobs >= 0) output.logprob_rows.push_back(row), output.logprob_places.push_back(logit_rows_[size_t(i)]);
  const bool stops = std::find(state.stops.begin(), state.stops.end(), token) != state.stops.end();
  state.ended |= stops && position + 1 > state.min_known;
  return !state.ended;
}

void StepQueue::add_logprobs(StepOutput& output, const Launch& launch) {
  const size_t n = output.logprob_rows.size();
  const int vocab = executor_->program().vocab;
  std::vector<int32_t> tokens, ks;
  for (size_t i = 0; i < n; ++i) {
    const size_t row = size_t(output.logprob_rows[i]);
    const int32_t column = output.logprob_places[i] - output.head_rows[row];
    tokens.push_back(output.tokens[row * size_t(output.width) + size_t(column)]);
    ks.push_back(std::min(slots_[size_t(launch.plan.slots[row])].logprobs, vocab));
  }
  output.k = *std::max_element(ks.begin(), ks.end());
  output.chosen.resize(n);
  output.ids.resize(n * size_t(output.k));
  output.values.resize(n * size_t(output.k));
  const auto sound = std::make_unique<bool[]>(n);  // all are: a token was drawn from them
  sampler_->logprobs(memory_.logits, vocab, output.logprob_places.data(), tokens.data(), ks.data(), int(n), output.k,
                     output.chosen.data(), output.ids.data(), output.values.data(), sound.get());
}

}  // namespace penstock
