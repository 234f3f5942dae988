#include "core/sample.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

namespace penstock {
namespace {

constexpr double kUnit = 0x1p-42;
constexpr int kFewItems = 64;    // sorted as they are
constexpr double kDoubt = 1e-5;  // relative error that estimates may have, see kernels/sample.inl
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One row on its way to a token. Candidates are scratch.ids[0, count) with scores and, once weighed, weights.
class Row {
 public:
  Row(const float* logits, int vocab, Scratch& scratch) : logits_(logits), vocab_(vocab), s_(scratch) {
    s_.reserve(vocab);
    sound_ = s_.kernels->sample_peaks(logits, vocab, s_.peaks.get());
    blocks_ = (vocab + kPeakBlock - 1) / kPeakBlock;
    peak_ = *std::max_element(s_.peaks.get(), s_.peaks.get() + blocks_);
    sound_ &= std::isfinite(peak_);
  }

  bool sound() const { return sound_; }
  float peak() const { return peak_; }
  int count() const { return count_; }

  int32_t argmax() const {
    int block = 0;
    while (s_.peaks[block] != peak_) ++block;
    int32_t i = block * kPeakBlock;
    while (logits_[i] != peak_) ++i;
    return i;
  }

  void heat(double temperature) {
    inverse_ = std::min(1.0 / temperature, DBL_MAX);
    temperature_ = temperature;
  }

  void top_k_of_row(int k);
  void top_p_of_row(double mass);
  void at_least_of_row(double share);

  // Every token that has a weight.
  void all_of_row() {
    collect(bound(kNoWeight));
    weigh();
  }

  void weigh() { s_.kernels->sample_weigh(s_.scores.get(), count_, peak_, inverse_, s_.weights.get()); }
  void top_p(double mass);
  void min_p(double share);
  void typical_p(double mass);

  int32_t draw(uint64_t noise) const;
  int32_t draw_from_row(uint64_t noise);

  int64_t exact_total() {
    s_.kernels->sample_sums(logits_, vocab_, s_.peaks.get(), peak_, inverse_, s_.sums.get());
    int64_t total = 0;
    for (int i = 0; i < sum_blocks(); ++i) total += s_.sums[i];
    return total;
  }

 private:
  int sum_blocks() const { return (vocab_ + kSumBlock - 1) / kSumBlock; }
  // In float32 neither 0 nor infinity, which times a score's distance would be NaN.
  bool can_estimate() const { return inverse_ > 1e-30 && inverse_ < 1e30; }

  // Sums of blocks in float32 and their total, 1 being a weight of 2^42 units.
  double estimate() {
    s_.kernels->sample_estimates(logits_, vocab_, s_.peaks.get(), peak_, float(inverse_), s_.estimates.get());
    double total = 0.0;
    for (int i = 0; i < sum_blocks(); ++i) total += s_.estimates[i];
    return total;
  }

  // The score that is `distance` (negative) from the peak after temperature, or lower.
  float bound(double distance) const {
    const double score = double(peak_) + distance * temperature_;
    return score < -FLT_MAX ? -kInfinity : std::nextafter(float(score), -kInfinity);
  }

  void collect(float bound);
  int64_t total() const {
    int64_t sum = 0;
    for (int i = 0; i < count_; ++i) sum += s_.weights[i];
    return sum;
  }
  double depth_of(double missing, double from);
  template <bool Weighted>
  void sort_into_buckets(double lowest);
  template <bool Weighted>
  int64_t find_cheapest(int64_t goal);
  template <bool Weighted>
  void keep_cheapest();

  const float* logits_;
  int vocab_;
  Scratch& s_;
  bool sound_;
  int blocks_ = 0;
  float peak_ = 0.0f;
  double temperature_ = 1.0, inverse_ = 1.0;
  int count_ = 0;
  int border_ = 0;
  size_t border_kept_ = 0;
};

// Candidates: the scores that reach `bound`.
void Row::collect(float bound) {
  int n = 0;
  for (int block = 0; block < blocks_; ++block) {
    if (!(s_.peaks[block] >= bound)) continue;
    const int end = std::min((block + 1) * kPeakBlock, vocab_);
    for (int i = block * kPeakBlock; i < end; ++i) {
      s_.ids[n] = i;
      s_.scores[n] = logits_[i];
      n += logits_[i] >= bound;
    }
  }
  count_ = n;
}

int64_t goal_of(double mass, double total) {
  return std::max<int64_t>(1, int64_t(std::min(std::ceil(mass * total), 9e18)));
}

bool cheaper(const Scratch::Item& a, const Scratch::Item& b) {
  return a.cost != b.cost ? a.cost < b.cost : a.place < b.place;
}

// How many of `items`, in order, it takes for `before` plus their weights to reach `goal`: those come first
// then, in any order. `before` becomes the sum. All, if they do not reach it.
size_t shortest_prefix(std::vector<Scratch::Item>& items, int64_t& before, int64_t goal) {
  size_t low = 0, high = items.size();
  while (high - low > 24) {
    // Of three different items the middle one leaves something on both sides.
    Scratch::Item a = items[low], b = items[low + (high - low) / 2], c = items[high - 1];
    if (cheaper(b, a)) std::swap(a, b);
    const Scratch::Item pivot = cheaper(c, a) ? a : cheaper(c, b) ? c : b;
    int64_t left = 0;
    auto middle = std::partition(items.begin() + int64_t(low), items.begin() + int64_t(high), [&](const auto& item) {
      const bool is_left = cheaper(item, pivot);
      left += is_left ? item.weight : 0;
      return is_left;
    });
    if (before + left >= goal) {
      high = size_t(middle - items.begin());
    } else {
      before += left;
      low = size_t(middle - items.begin());
    }
  }
  std::sort(items.begin() + int64_t(low), items.begin() + int64_t(high), cheaper);
  while (low < high && before < goal) before += items[low++].weight;
  return low;
}

// Buckets of the candidates' costs, none below `lowest`, and what each weighs, or holds if not weighted.
template <bool Weighted>
void Row::sort_into_buckets(double lowest) {
  double widths[4] = {};
  for (int i = 0; i < count_; ++i) {
    const double width = s_.costs[i] - lowest;
    if (width < DBL_MAX) widths[i % 4] = std::max(widths[i % 4], width);
  }
  const double widest = std::max(std::max(widths[0], widths[1]), std::max(widths[2], widths[3]));
  // Few are sorted anyway.
  const double scale = count_ > kFewItems && widest > 0.0 ? Scratch::kBuckets / widest : 0.0;
  std::fill_n(s_.bucket_sums, Scratch::kBuckets + 1, 0);
  for (int i = 0; i < count_; ++i) {
    const double place = scale > 0.0 ? std::min((s_.costs[i] - lowest) * scale, double(Scratch::kBuckets)) : 0.0;
    s_.buckets[i] = int16_t(place);
    s_.bucket_sums[s_.buckets[i]] += Weighted ? s_.weights[i] : 1;
  }
}

// Finds the candidates that, in order of rising costs (then id), first reach `goal` with their weights, or in
// number: those of buckets below border_, and the first border_kept_ of s_.border. Returns what they reach; all
// are found if that is less than the goal.
template <bool Weighted>
int64_t Row::find_cheapest(int64_t goal) {
  int64_t reached = 0;
  border_ = 0;
  while (border_ < Scratch::kBuckets && reached + s_.bucket_sums[border_] < goal) reached += s_.bucket_sums[border_++];
  s_.border.clear();
  for (int i = 0; i < count_; ++i) {
    if (s_.buckets[i] == border_) s_.border.push_back({s_.costs[i], Weighted ? s_.weights[i] : 1, i});
  }
  border_kept_ = shortest_prefix(s_.border, reached, goal);
  return reached;
}

// Drops all but the found.
template <bool Weighted>
void Row::keep_cheapest() {
  for (size_t i = 0; i < border_kept_; ++i) s_.buckets[s_.border[i].place] = -1;
  int n = 0;
  for (int i = 0; i < count_; ++i) {
    s_.ids[n] = s_.ids[i];
    s_.scores[n] = s_.scores[i];
    if (Weighted) s_.weights[n] = s_.weights[i];
    n += s_.buckets[i] < border_;
  }
  count_ = n;
}

void Row::top_k_of_row(int k) {
  float bound = -kInfinity;
  if (k < blocks_) {
    // k blocks hold a score as large as the k-th largest of their maxima. Blocks are joined while enough are
    // left: finding the k-th of few is cheaper than the candidates that a lower bound adds.
    int n = blocks_;
    std::copy_n(s_.peaks.get(), n, s_.coarse.get());
    float* m = s_.coarse.get();
    while (n >= 8 * k && n > 64) {
      for (int i = 0; i < n / 2; ++i) m[i] = std::max(m[2 * i], m[2 * i + 1]);
      if (n % 2) m[n / 2] = m[n - 1];
      n = (n + 1) / 2;
    }
    std::nth_element(m, m + k - 1, m + n, std::greater<float>());
    bound = m[k - 1];
  }
  collect(bound);
  for (int i = 0; i < count_; ++i) s_.costs[i] = -double(s_.scores[i]);
  sort_into_buckets<false>(-double(peak_));
  find_cheapest<false>(k);
  keep_cheapest<false>();
}

// How far below the peak (after temperature, negative) scores must be taken for `missing` units of weight beyond
// those down to `from`; from every 16th block, a quarter nat too far rather than too near.
double Row::depth_of(double missing, double from) {
  double masses[4 * 32] = {};
  for (int block = 0; block < blocks_; block += 16) {
    const float* x = logits_ + block * kPeakBlock;
    const int n = std::min(kPeakBlock, vocab_ - block * kPeakBlock);
    s_.kernels->sample_weigh(x, n, peak_, inverse_, s_.weights.get());
    for (int i = 0; i < n; ++i) {
      const double depth = std::min((double(peak_) - x[i]) * inverse_, 31.9);
      if (depth > -from) masses[int(4 * depth)] += 16.0 * double(s_.weights[i]);
    }
  }
  double found = 0.0;
  for (int i = 0; i < 4 * 32; ++i) {
    found += masses[i];
    if (found > 1.05 * missing) return std::max(-0.25 * (i + 2), kNoWeight);
  }
  return kNoWeight;
}

// The nucleus is looked for among the best scores, its mass being a share of the estimated total, and of the
// exact one where the two ends of the estimate do not end it with the same token.
void Row::top_p_of_row(double mass) {
  double low, high;
  if (can_estimate()) {
    const double guess = estimate() / kUnit;
    low = guess * (1.0 - kDoubt) - vocab_, high = guess * (1.0 + kDoubt) + vocab_;
  } else {
    low = high = double(exact_total());
  }
  double depth = -4.0;
  while (true) {
    collect(bound(depth));
    weigh();
    const int64_t sum = total();
    if (depth == kNoWeight) {
      low = high = double(sum);
      break;
    }
    const double missing = double(goal_of(mass, high) - sum);
    if (missing <= 0.0) break;
    // In a peaked row a sample sees little of the mass: no deeper than twice, which costs little there.
    depth = std::max({kNoWeight, 2.0 * depth, std::min(depth_of(missing, depth), depth - 1.0)});
  }
  for (int i = 0; i < count_; ++i) s_.costs[i] = double(peak_) - s_.scores[i];
  sort_into_buckets<true>(0.0);
  if (find_cheapest<true>(goal_of(mass, low)) < goal_of(mass, high)) {
    find_cheapest<true>(goal_of(mass, double(exact_total())));
  }
  keep_cheapest<true>();
}

void Row::top_p(double mass) {
  for (int i = 0; i < count_; ++i) s_.costs[i] = double(peak_) - s_.scores[i];
  sort_into_buckets<true>(0.0);
  find_cheapest<true>(goal_of(mass, double(total())));
  keep_cheapest<true>();
}

void Row::at_least_of_row(double share) {
  // Half a unit below the share is rounded up to it.
  const double limit = share > kUnit ? std::log(share - 0.5 * kUnit) - 1e-9 : kNoWeight;
  collect(bound(std::max(limit, kNoWeight)));
  weigh();
  min_p(share);
}

void Row::min_p(double share) {
  int n = 0;
  for (int i = 0; i < count_; ++i) {
    s_.ids[n] = s_.ids[i];
    s_.scores[n] = s_.scores[i];
    s_.weights[n] = s_.weights[i];
    n += double(s_.weights[i]) >= share / kUnit;
  }
  count_ = n;
}

void Row::typical_p(double mass) {
  const int64_t sum = total();
  double parts[8] = {};  // short chains round less
  for (int i = 0; i < count_; ++i) {
    s_.costs[i] = double(s_.scores[i]) - peak_;
    if (s_.weights[i]) parts[i % 8] += double(s_.weights[i]) * s_.costs[i];
  }
  const double mean = ((parts[0] + parts[1]) + (parts[2] + parts[3]) + ((parts[4] + parts[5]) + (parts[6] + parts[7]))) /
                      double(sum);
  int n = 0;
  for (int i = 0; i < count_; ++i) {
    s_.ids[n] = s_.ids[i];
    s_.scores[n] = s_.scores[i];
    s_.costs[n] = std::abs(s_.costs[i] - mean);
    s_.weights[n] = s_.weights[i];
    n += s_.weights[i] > 0;
  }
  count_ = n;
  sort_into_buckets<true>(0.0);
  find_cheapest<true>(goal_of(mass, double(sum)));
  keep_cheapest<true>();
}

// First place whose running sum exceeds `rest`, or `n`.
int place_of(const int64_t* weights, int n, int64_t rest) {
  int64_t sum = 0;
  for (int i = 0; i < n; ++i) {
    sum += weights[i];
    if (sum > rest) return i;
  }
  return n;
}

int64_t target_of(uint64_t noise, int64_t total) {
  return int64_t((static_cast<unsigned __int128>(noise) * uint64_t(total)) >> 53);
}

int32_t Row::draw(uint64_t noise) const {
  return s_.ids[place_of(s_.weights.get(), count_, target_of(noise, total()))];
}

int32_t Row::draw_from_row(uint64_t noise) {
  auto weigh_block = [&](int block) {
    const int start = block * kSumBlock, n = std::min(kSumBlock, vocab_ - start);
    s_.kernels->sample_weigh(logits_ + start, n, peak_, inverse_, s_.weights.get());
    return n;
  };
  if (can_estimate()) {
    const double sum = estimate(), uniform = double(noise) * 0x1p-53;
    double before = 0.0;
    int block = 0;
    for (; block + 1 < sum_blocks() && before + s_.estimates[block] <= uniform * sum; ++block) {
      before += s_.estimates[block];
    }
    // target - before = uniform * (sum - before) - (1 - uniform) * before
    const double after = uniform * (sum - before), passed = (1.0 - uniform) * before;
    const double doubt = (after + passed) * kDoubt / kUnit + vocab_ + 1;
    const double rest = (after - passed) / kUnit;
    const int n = weigh_block(block);
    const int place = place_of(s_.weights.get(), n, int64_t(std::max(0.0, rest - doubt)));
    if (rest >= doubt && place < n && place == place_of(s_.weights.get(), n, int64_t(rest + doubt) + 1)) {
      return block * kSumBlock + place;
    }
  }
  int64_t target = target_of(noise, exact_total());
  int block = 0;
  while (s_.sums[block] <= target) target -= s_.sums[block++];
  return block * kSumBlock + place_of(s_.weights.get(), weigh_block(block), target);
}

}  // namespace

void Scratch::reserve(int vocab) {
  if (vocab <= capacity_) return;
  const size_t n = size_t(vocab) + kSumBlock;
  peaks = std::make_unique_for_overwrite<float[]>(n / kPeakBlock + 1);
  coarse = std::make_unique_for_overwrite<float[]>(n / kPeakBlock + 1);
  estimates = std::make_unique_for_overwrite<float[]>(n / kSumBlock + 1);
  sums = std::make_unique_for_overwrite<int64_t[]>(n / kSumBlock + 1);
  ids = std::make_unique_for_overwrite<int32_t[]>(n);
  scores = std::make_unique_for_overwrite<float[]>(n);
  weights = std::make_unique_for_overwrite<int64_t[]>(n);
  costs = std::make_unique_for_overwrite<double[]>(n);
  buckets = std::make_unique_for_overwrite<int16_t[]>(n);
  capacity_ = vocab;
}

uint64_t noise_bits(uint64_t seed, uint32_t position, uint32_t stream) {
  uint32_t c[4] = {position, stream, 0, 0};
  uint32_t k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t(c[0]) * 0xD2511F53u, right = uint64_t(c[2]) * 0xCD9E8D57u;
    const uint32_t next[4] = {uint32_t(right >> 32) ^ c[1] ^ k[0], uint32_t(right),
                              uint32_t(left >> 32) ^ c[3] ^ k[1], uint32_t(left)};
    std::copy_n(next, 4, c);
    k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
  }
  return ((uint64_t(c[0]) << 32) | c[1]) >> 11;
}

int32_t sample_row(const float* logits, int vocab, const SampleParams& params, uint32_t position, Scratch& scratch) {
  Row row(logits, vocab, scratch);
  if (!row.sound()) return -1;
  if (params.temperature == 0.0) return row.argmax();
  row.heat(params.temperature);
  const uint64_t noise = noise_bits(params.seed, position);
  const bool top_p = params.top_p != 1.0, min_p = params.min_p != 0.0, typical_p = params.typical_p != 1.0;
  if (0 < params.top_k && params.top_k < vocab) {
    row.top_k_of_row(params.top_k);
    row.weigh();
    if (top_p) row.top_p(params.top_p);
    if (min_p) row.min_p(params.min_p);
  } else if (top_p) {
    row.top_p_of_row(params.top_p);
    if (min_p) row.min_p(params.min_p);
  } else if (min_p) {
    row.at_least_of_row(params.min_p);
  } else if (typical_p) {
    row.all_of_row();
  } else {
    return row.draw_from_row(noise);
  }
  if (typical_p) row.typical_p(params.typical_p);
  return row.draw(noise);
}

namespace {

void best_of(Row& row, const float* logits, int k, int32_t* ids, Scratch& scratch) {
  row.top_k_of_row(k);
  std::copy_n(scratch.ids.get(), k, ids);
  std::sort(ids, ids + k, [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
}

}  // namespace

void best_of_row(const float* logits, int vocab, int k, int32_t* ids, Scratch& scratch) {
  Row row(logits, vocab, scratch);
  best_of(row, logits, k, ids, scratch);
}

bool row_is_sound(const float* logits, int vocab, Scratch& scratch) { return Row(logits, vocab, scratch).sound(); }

bool row_logprobs(const float* logits, int vocab, int32_t token, int k, float* chosen, int32_t* ids, float* values,
                  Scratch& scratch) {
  Row row(logits, vocab, scratch);
  if (!row.sound()) return false;
  const float normalizer = float(double(row.peak()) + std::log(double(row.exact_total()) * kUnit));
  if (chosen) *chosen = logits[token] - normalizer;
  if (k == 0) return true;
  best_of(row, logits, k, ids, scratch);
  for (int i = 0; i < k; ++i) values[i] = logits[ids[i]] - normalizer;
  return true;
}

}  // namespace penstock
