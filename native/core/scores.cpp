#include "core/scores.h"

#include <algorithm>
#include <cfloat>
#include <limits>

namespace penstock {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool allows_all(const int32_t* mask, int vocab) {
  const int words = vocab / 32, rest = vocab % 32;
  const auto full = [](int32_t word) { return word == -1; };
  if (!std::all_of(mask, mask + words, full)) return false;
  const uint32_t last = rest ? (1u << rest) - 1 : 0;
  return !rest || (uint32_t(mask[words]) & last) == last;
}

bool is_allowed(const int32_t* mask, int32_t token) { return (uint32_t(mask[token / 32]) >> (token % 32)) & 1; }

// `scores` from `row`, with -inf for every token whose bit is not set. The two may be the same.
void mask_scores(const float* row, int vocab, const int32_t* mask, float* scores) {
  for (int first = 0; first < vocab; first += 32) {
    const int count = std::min(32, vocab - first);
    const uint32_t word = uint32_t(mask[first / 32]);
    const float* from = row + first;
    float* to = scores + first;
    if (word == 0) {
      std::fill_n(to, count, -kInfinity);
    } else if (word != 0xFFFFFFFFu) {  // branchless: compilers make vectors of it
      for (int bit = 0; bit < count; ++bit) to[bit] = (word >> bit) & 1 ? from[bit] : -kInfinity;
    } else if (from != to) {
      std::copy_n(from, count, to);
    }
  }
}

int32_t argmax(const float* x, int n) { return int32_t(std::max_element(x, x + n) - x); }

}  // namespace

ScoreRules::ScoreRules(ScoreSettings settings, const int32_t* tokens, int64_t n, int64_t prompt)
    : settings_(std::move(settings)) {
  // Dividing by nothing would make every score infinite.
  settings_.repetition = std::max(settings_.repetition, FLT_MIN);
  for (const auto& word : settings_.bad_words) longest_ = std::max(longest_, word.size() - 1);
  is_plain_ = settings_.bias.empty() && settings_.allowed.empty() && settings_.bad_words.empty() && !penalizes();
  if (penalizes()) {
    const int64_t first = settings_.repetition != 1.0f ? 0 : prompt;
    for (int64_t i = first; i < n; ++i) see(tokens[i], i >= prompt);
  }
  tail_.assign(tokens + std::max<int64_t>(0, n - int64_t(longest_)), tokens + n);
}

void ScoreRules::see(int32_t token, bool generated) {
  const auto [entry, is_new] = place_.try_emplace(token, int32_t(seen_.size()));
  if (is_new) seen_.push_back(token), counts_.push_back(0.0f);
  counts_[size_t(entry->second)] += generated ? 1.0f : 0.0f;
}

void ScoreRules::record(int32_t token) {
  if (penalizes()) see(token, true);
  if (!longest_) return;
  if (tail_.size() == longest_) tail_.erase(tail_.begin());
  tail_.push_back(token);
}

// Repetition first (CTRL's formula, taken so that it always lowers), then frequency and presence.
void ScoreRules::penalize(float* scores) const {
  for (size_t i = 0; i < seen_.size(); ++i) {
    float score = scores[seen_[i]];
    score = score < 0.0f ? score * settings_.repetition : score / settings_.repetition;
    score = std::min(score, FLT_MAX);
    const float often = settings_.frequency * counts_[i];
    score -= often;
    score -= counts_[i] > 0.0f ? settings_.presence : 0.0f;
    scores[seen_[i]] = score;
  }
}

void ScoreRules::forbid(float* scores, int vocab, int32_t position) const {
  for (const auto& word : settings_.bad_words) {
    const size_t prefix = word.size() - 1;
    if (tail_.size() >= prefix && std::equal(word.begin(), word.end() - 1, tail_.end() - int64_t(prefix))) {
      scores[word.back()] = -kInfinity;
    }
  }
  if (position >= settings_.late_until) return;
  for (int32_t token : settings_.late) {
    if (token < vocab) scores[token] = -kInfinity;
  }
}

const float* ScoreRules::apply(const float* logits, int vocab, int32_t position, const int32_t* mask,
                               std::vector<float>& out, int32_t& only) const {
  only = -1;
  if (mask && allows_all(mask, vocab)) mask = nullptr;
  if (!mask && is_plain(position)) return logits;
  out.resize(size_t(vocab));
  float* scores = out.data();
  if (mask && is_plain_) {
    mask_scores(logits, vocab, mask, scores);
  } else {
    std::copy_n(logits, vocab, scores);
    for (const auto& [token, bias] : settings_.bias) scores[token] += bias;
    penalize(scores);
    if (!settings_.allowed.empty()) {
      std::vector<float> kept;
      for (int32_t token : settings_.allowed) kept.push_back(scores[token]);
      std::fill_n(scores, vocab, -kInfinity);
      for (size_t i = 0; i < kept.size(); ++i) scores[settings_.allowed[i]] = kept[i];
    }
    if (mask) mask_scores(scores, vocab, mask, scores);
  }
  const bool restricts = mask || !settings_.allowed.empty();
  int32_t best = -1;
  const auto find_best = [&] { return best < 0 ? best = argmax(scores, vocab) : best; };
  if (restricts && scores[find_best()] == -kInfinity) {  // the model rules out all that may come
    if (!mask) {
      only = *std::min_element(settings_.allowed.begin(), settings_.allowed.end());
    } else {
      for (int32_t token = 0; token < vocab; ++token) {
        if (is_allowed(mask, token) && (only < 0 || logits[token] > logits[only])) only = token;
      }
    }
    return scores;
  }
  if (settings_.bad_words.empty() && position >= settings_.late_until) return scores;
  find_best();
  forbid(scores, vocab, position);
  if (scores[best] == -kInfinity && scores[argmax(scores, vocab)] == -kInfinity) only = best;
  return scores;
}

}  // namespace penstock
