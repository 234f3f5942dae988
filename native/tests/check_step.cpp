// Whole steps of a small decoder on the executor and its threads: the same bits at any number of threads and
// however a sequence is cut, and the values of plain loops in double.
#include <algorithm>

#include "check.h"
#include "core/executor.h"
#include "core/pack.h"

namespace penstock::check {
namespace {

constexpr int kHidden = 96, kHeads = 4, kKvHeads = 2, kDim = 32, kSize = 64, kVocab = 80, kLayers = 2;
constexpr int kBlock = 16, kTokens = 70, kSequences = 2;
constexpr float kEps = 1e-5f;

struct Matrix {
  int n, k;
  std::vector<float> values;
  Weight weight{};
  std::vector<uint8_t> data;

  Matrix(int n, int k, Random& random, bool gated = false) : n(n), k(k), values(random.floats(size_t(n) * k, -0.3f, 0.3f)) {
    weight.format = Format::F32, weight.n = n, weight.k = k, weight.experts = 1, weight.gated = gated;
    weight.panels = panel_count(n, gated);
    weight.panel_stride = panel_bytes(Format::F32, k);
    weight.expert_stride = weight.panels * weight.panel_stride;
    data.resize(weight.expert_stride);
    weight.data = data.data();
    pack_floats(values.data(), n, 0, weight, data.data());
  }
  std::vector<double> times(const std::vector<double>& x) const {
    std::vector<double> y(n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < k; ++j) y[i] += values[size_t(i) * k + j] * x[j];
    }
    return y;
  }
};

struct Layer {
  Matrix qkv, o, up, down;
  std::vector<float> gain, post;

  explicit Layer(Random& r)
      : qkv((kHeads + 2 * kKvHeads) * kDim, kHidden, r), o(kHidden, kHeads * kDim, r),
        up(2 * kSize, kHidden, r, true), down(kHidden, kSize, r), gain(r.floats(kHidden)), post(r.floats(kHidden)) {}
};

struct Model {
  Random random{11};
  Matrix embed{kVocab, kHidden, random};
  std::vector<Layer> layers;
  std::vector<float> final_gain = random.floats(kHidden);
  std::vector<float> frequencies;
  std::vector<int32_t> tokens;

  Model() {
    for (int i = 0; i < kLayers; ++i) layers.emplace_back(random);
    for (Layer& layer : layers) {
      for (Matrix* m : {&layer.qkv, &layer.o, &layer.up, &layer.down}) m->weight.data = m->data.data();
    }
    for (int i = 0; i < kDim / 2; ++i) frequencies.push_back(std::pow(0.01f, 2.0f * i / kDim));
    for (int i = 0; i < kSequences * kTokens; ++i) tokens.push_back(random.below(kVocab));
  }

  Program program(uint8_t* pages) const {
    Program p;
    p.hidden = kHidden, p.vocab = kVocab, p.eps = kEps;
    p.embed = p.head = 0;
    p.final_gain = final_gain.data();
    p.weights.push_back(embed.weight);
    p.ropes.push_back({frequencies, 1.0f});
    const int64_t slot = int64_t(kBlock) * kKvHeads * kDim * 4;
    const HeadShape shape{kHeads, kKvHeads, kDim};
    for (int i = 0; i < kLayers; ++i) {
      const Layer& layer = layers[i];
      const int first = int(p.weights.size());
      for (const Matrix* m : {&layer.qkv, &layer.o, &layer.up, &layer.down}) p.weights.push_back(m->weight);
      p.layers.push_back({pages + 2 * i * slot, 2 * kLayers * slot, slot, slot / kKvHeads, kBlock, 0, KvKind::F32});
      auto add = [&](Code code, Buffer source, Buffer target, int weight) -> Operation& {
        Operation op{.code = code};
        op.source = source, op.target = target, op.weight = weight, op.layer = i, op.rope = 0;
        op.activation = {Act::Silu, 0, 0};
        op.rotation = {shape, kDim / 2, false, nullptr, nullptr, kEps, 1.0f / std::sqrt(float(kDim))};
        op.attention = {shape, 0, 0, nullptr};
        p.operations.push_back(op);
        return p.operations.back();
      };
      add(Code::Norm, Buffer::X, Buffer::Normed, -1).gain = layer.gain.data();
      add(Code::Linear, Buffer::Normed, Buffer::Qkv, first);
      add(Code::Rotate, Buffer::Qkv, Buffer::Q, -1);
      add(Code::Attend, Buffer::Q, Buffer::Mixed, -1);
      add(Code::AddLinear, Buffer::Mixed, Buffer::X, first + 1);
      add(Code::Norm, Buffer::X, Buffer::Normed, -1).gain = layer.post.data();
      add(Code::GatedLinear, Buffer::Normed, Buffer::Hidden, first + 2);
      add(Code::AddLinear, Buffer::Hidden, Buffer::X, first + 3);
    }
    return p;
  }
};

std::vector<double> normed(const std::vector<double>& x, const std::vector<float>& gain) {
  double squares = 0;
  for (double value : x) squares += value * value;
  std::vector<double> y(x);
  for (size_t i = 0; i < y.size(); ++i) y[i] *= gain[i] / std::sqrt(squares / double(x.size()) + kEps);
  return y;
}

void add_to(std::vector<double>& x, const std::vector<double>& delta) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += delta[i];
}

// Keys and values of one layer and sequence, [token][head * D + d].
struct Seen {
  std::vector<std::vector<double>> keys, values;
};

std::vector<double> attended(std::vector<double> qkv, int position, const std::vector<float>& frequencies, Seen& seen) {
  for (int head = 0; head < kHeads + kKvHeads; ++head) {
    double* x = qkv.data() + head * kDim;
    for (int i = 0; i < kDim / 2; ++i) {
      const double angle = double(float(position) * frequencies[i]), a = x[i], b = x[i + kDim / 2];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + kDim / 2] = b * std::cos(angle) + a * std::sin(angle);
    }
  }
  const auto k = qkv.begin() + kHeads * kDim, v = k + kKvHeads * kDim;
  seen.keys.emplace_back(k, v);
  seen.values.emplace_back(v, qkv.end());
  std::vector<double> mixed(kHeads * kDim);
  for (int head = 0; head < kHeads; ++head) {
    const int at = head / (kHeads / kKvHeads) * kDim;
    std::vector<double> scores;
    double total = 0;
    for (const std::vector<double>& key : seen.keys) {
      double score = 0;
      for (int d = 0; d < kDim; ++d) score += qkv[head * kDim + d] * key[at + d];
      scores.push_back(std::exp(score / std::sqrt(double(kDim))));
      total += scores.back();
    }
    for (size_t j = 0; j < scores.size(); ++j) {
      for (int d = 0; d < kDim; ++d) mixed[head * kDim + d] += scores[j] / total * seen.values[j][at + d];
    }
  }
  return mixed;
}

// Logits of every token of both sequences, [sequence][token][vocab].
std::vector<double> reference(const Model& model) {
  std::vector<double> logits;
  for (int sequence = 0; sequence < kSequences; ++sequence) {
    std::vector<Seen> seen(kLayers);
    for (int t = 0; t < kTokens; ++t) {
      const float* row = model.embed.values.data() + size_t(model.tokens[sequence * kTokens + t]) * kHidden;
      std::vector<double> x(row, row + kHidden);
      for (int i = 0; i < kLayers; ++i) {
        const Layer& layer = model.layers[i];
        add_to(x, layer.o.times(attended(layer.qkv.times(normed(x, layer.gain)), t, model.frequencies, seen[i])));
        std::vector<double> up = layer.up.times(normed(x, layer.post)), hidden(kSize);
        for (int j = 0; j < kSize; ++j) hidden[j] = up[j] / (1 + std::exp(-up[j])) * up[kSize + j];
        add_to(x, layer.down.times(hidden));
      }
      const std::vector<double> out = model.embed.times(normed(x, model.final_gain));
      logits.insert(logits.end(), out.begin(), out.end());
    }
  }
  return logits;
}

// Both sequences side by side in steps of `cut` tokens each.
std::vector<float> run(const Model& model, const KernelTable* kernels, int threads, int cut) {
  constexpr int kBlocks = (kTokens + kBlock - 1) / kBlock;
  const size_t page_bytes = size_t(kSequences) * kBlocks * kLayers * 2 * kBlock * kKvHeads * kDim * 4;
  std::vector<uint8_t> pages(page_bytes, 0xFF);  // as blocks that others leave behind: NaN
  std::vector<int32_t> table(kSequences * kBlocks);
  for (int i = 0; i < int(table.size()); ++i) table[i] = int32_t(table.size()) - 1 - i;
  ThreadPool pool(threads);
  Executor executor(model.program(pages.data()), kernels, &pool);
  std::vector<float> logits(size_t(kSequences) * kTokens * kVocab);
  for (int first = 0; first < kTokens; first += cut) {
    const int count = std::min(cut, kTokens - first);
    std::vector<int32_t> starts(kSequences, first), counts(kSequences, count), tokens, rows;
    for (int sequence = 0; sequence < kSequences; ++sequence) {
      const auto begin = model.tokens.begin() + sequence * kTokens + first;
      tokens.insert(tokens.end(), begin, begin + count);
    }
    for (int i = 0; i < kSequences * count; ++i) rows.push_back(i);
    Batch batch;
    batch.rows = kSequences, batch.starts = starts.data(), batch.counts = counts.data(), batch.tokens = tokens.data();
    batch.tables.push_back({table.data(), kBlocks});
    std::vector<float> out(rows.size() * kVocab);
    std::vector<int32_t> best(rows.size());
    executor.forward(batch, rows.data(), int(rows.size()), out.data(), best.data());
    for (int sequence = 0; sequence < kSequences; ++sequence) {
      std::copy_n(out.begin() + size_t(sequence) * count * kVocab, size_t(count) * kVocab,
                  logits.begin() + (size_t(sequence) * kTokens + first) * kVocab);
    }
  }
  return logits;
}

void check_set(const InstructionSet& set, const Model& model, const std::vector<double>& exact) {
  std::vector<float> whole;
  for (auto [threads, cut] : {std::pair{1, kTokens}, {3, kTokens}, {3, 1}, {2, 7}, {1, 33}}) {
    const std::vector<float> logits = run(model, set.kernels, threads, cut);
    if (whole.empty()) whole = logits;
    if (std::memcmp(whole.data(), logits.data(), logits.size() * 4) != 0) {
      std::printf("%s: other bits on %d threads in steps of %d\n", set.name.c_str(), threads, cut);
      failed = true;
    }
  }
  Digest digest;
  Error error;
  for (size_t i = 0; i < whole.size(); ++i) error.add(whole[i], exact[i], 1e-4 * (1 + std::abs(exact[i])));
  digest.add(whole.data(), whole.size());
  report(set, "step", digest, error);
}

}  // namespace
}  // namespace penstock::check

int main() {
  using namespace penstock;
  const check::Model model;
  const std::vector<double> exact = check::reference(model);
  for (const InstructionSet& set : instruction_sets()) {
    if (set.kernels) check::check_set(set, model, exact);
  }
  return check::failed ? 1 : 0;
}
