#include "core/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "core/lane.h"

namespace penstock {
namespace {

constexpr int kExtraPhases = 8;
constexpr int kOwnRows = 64;    // so many for every thread: products are cut by rows, which its caches hold
constexpr int kRowsChunk = 32;  // rows claimed at once then

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Executor::Executor(Program program, const KernelTable* kernels, ThreadPool* pool)
    : program_(std::move(program)), kernels_(kernels), pool_(pool) {
  const Program& p = program_;
  auto need = [&](Buffer buffer, int width) { widths_[int(buffer)] = std::max(widths_[int(buffer)], width); };
  auto reads = [&](Buffer buffer, int weight) {
    const Weight& w = p.weights[weight];
    (is_quantized(w.format) ? quantized_ : as_floats_)[int(buffer)] = true;
    if (w.format == Format::Q6) halves_[int(buffer)] = true;
    // Readers that differ get scales per group: the finer ones.
    if (is_quantized(w.format) && !w.per_token) by_group_[int(buffer)] = true;
    need(buffer, w.k);
  };
  need(Buffer::X, p.hidden);
  need(Buffer::Delta, p.hidden);
  reads(Buffer::Normed, p.head);
  for (const Operation& op : p.operations) {
    switch (op.code) {
      case Code::Linear:
        reads(op.source, op.weight);
        need(op.target, op.column + p.weights[op.weight].n);
        break;
      case Code::AddLinear: reads(op.source, op.weight); break;
      case Code::GatedLinear:
        reads(op.source, op.weight);
        need(op.target, p.weights[op.weight].n / 2);
        break;
      case Code::Rotate: need(Buffer::Q, op.rotation.shape.heads * op.rotation.shape.head_dim); break;
      case Code::Attend: {
        const int each = op.attention.shape.heads / op.attention.shape.kv_heads;
        need(Buffer::Mixed, op.attention.shape.heads * op.attention.shape.head_dim);
        as_floats_[int(Buffer::Mixed)] = true;
        fused_mixed_ = each * op.attention.shape.head_dim % kGroup == 0;
        if (op.attention.shape.head_dim > kMaxHeadDim) throw std::invalid_argument("head_dim above 512");
        break;
      }
      case Code::Experts:
        reads(Buffer::Normed, op.weight);
        reads(Buffer::PairInput, op.weight);
        reads(Buffer::PairHidden, op.weight2);
        need(Buffer::PairOutput, p.hidden);
        choices_ = std::max(choices_, op.top_k);
        if (op.top_k < 1 || op.top_k > kMaxChoices) throw std::invalid_argument("top_k outside 1 .. 64");
        phases_ += 3;
        break;
      case Code::Capture: features_width_ = std::max(features_width_, op.column + p.hidden); break;
      default: break;
    }
    phases_ += 3;
  }
  phases_ += kExtraPhases;
  for (size_t i = 0; i < program_.operations.size(); ++i) {
    if (fine_reader(i) || takes_fine(p.head)) fine_room_ = p.hidden / (2 * kGroup) / 2;
  }
  for (int b = 0; b < int(Buffer::Count); ++b) as_floats_[b] = as_floats_[b] || per_token(Buffer(b));
  fused_mixed_ = fused_mixed_ && quantized_[int(Buffer::Mixed)] && !per_token(Buffer::Mixed);
  for (Buffer buffer : {Buffer::X, Buffer::Qkv, Buffer::Q, Buffer::Delta, Buffer::Scores, Buffer::Shared,
                        Buffer::PairOutput}) {
    as_floats_[int(buffer)] = true;
  }
  cos_.resize(p.ropes.size());
  sin_.resize(p.ropes.size());
  grow(kPrivateTokens);
}

Activations Executor::input(const Lane& lane, Buffer buffer) const {
  const bool mixed = buffer == Buffer::Mixed && !fused_mixed_;
  const bool own = lane.small && (buffer == Buffer::Normed || mixed || buffer == Buffer::PairInput);
  return own ? private_[lane.thread][int(buffer)] : shared_[int(buffer)];
}

void Executor::embed(Lane& lane) {
  const Weight& weight = program_.weights[program_.embed];
  lane.share(tokens_, 1, [&](int token, int) {
    kernels_->embed(weight, batch_->tokens[token], program_.embedding_scale, shared_[int(Buffer::X)].row(token).f);
    for (size_t i = 0; i < program_.ropes.size(); ++i) {
      const Rope& rope = program_.ropes[i];
      const size_t half = rope.frequencies.size();
      for (size_t j = 0; j < half; ++j) {
        const float angle = float(positions_[token]) * rope.frequencies[j];
        cos_[i][token * half + j] = std::cos(angle) * rope.factor;
        sin_[i][token * half + j] = std::sin(angle) * rope.factor;
      }
    }
  });
  lane.team.barrier();
}

void Executor::norm(Lane& lane, const Operation& op) {
  const int d = program_.hidden;
  const bool add = op.code == Code::AddNorm;
  auto residual = [&](int token) {
    float* delta = shared_[int(Buffer::Delta)].row(token).f;
    if (op.post_gain) {
      Activations out;
      out.f = delta;
      kernels_->norm(delta, op.post_gain, program_.eps, d, out);
    }
    kernels_->add(shared_[int(Buffer::X)].row(token).f, delta, op.scale, d);
  };
  Activations out = input(lane, Buffer::Normed);
  out.fine = op.fine.data(), out.fine_pairs = int(op.fine.size());
  auto make = [&](int token) {
    norm_row(shared_[int(Buffer::X)].row(token).f, op.gain, out.row(token));
  };
  if (lane.small) {
    if (add) {
      lane.share(tokens_, 1, [&](int token, int) { residual(token); });
      lane.team.barrier();
    }
    if (!op.gain) return;
    for (int token = 0; token < tokens_; ++token) make(token);
    return;
  }
  lane.share(tokens_, 1, [&](int token, int) {
    if (add) residual(token);
    if (op.gain) make(token);
  });
  lane.team.barrier();
}

void Executor::linear(Lane& lane, const Operation& op) {
  const Weight& weight = program_.weights[op.weight];
  LinearArgs args{};
  args.weight = &weight;
  args.input = input(lane, op.source);
  args.input.fine = op.fine.data(), args.input.fine_pairs = int(op.fine.size());
  args.rows = tokens_;
  args.bias = op.bias;
  args.scale = op.scale;
  args.prefetch = tokens_ <= kPrefetchRows;
  const bool gated = op.code == Code::GatedLinear;
  const int unit = gated ? 4 : 1;
  if (gated) {
    args.activation = op.activation;
    args.hidden = shared_[int(op.target)];
    if (per_token(op.target)) args.hidden.q = nullptr;
  } else {
    const Activations& out = shared_[int(op.code == Code::AddLinear ? Buffer::X : op.target)];
    args.out = out.f + op.column;
    args.out_stride = out.f_stride;
  }
  auto kernel = gated                           ? kernels_->linear_gated
                : op.code == Code::AddLinear ? kernels_->linear_add
                                                : kernels_->linear;
  const int chunk = std::clamp(weight.panels / (6 * lane.team.size()), 1, kChunk / unit);
  auto multiply = [&](int first, int last) {
    LinearArgs part = args;
    part.first = first * unit;
    part.last = last * unit;
    kernel(part);
  };
  auto multiply_rows = [&](int first, int last) {
    LinearArgs part = args;
    part.first = 0, part.last = weight.panels;
    part.input = args.input.row(first);
    part.rows = last - first;
    if (gated) {
      part.hidden = args.hidden.row(first);
    } else {
      part.out = args.out + first * args.out_stride;
    }
    kernel(part);
  };
  if (args.prefetch) {
    lane.split(weight.panels / unit, multiply);
  } else if (tokens_ >= kOwnRows * lane.team.size()) {
    lane.share(tokens_, kRowsChunk, multiply_rows);
  } else {
    lane.share(weight.panels / unit, chunk, multiply);
  }
  if (op.last) lane.team.barrier();
  if (gated && per_token(op.target)) quantize(lane, op.target, tokens_, weight.n / 2);
}

void Executor::rotate(Lane& lane, const Operation& op) {
  const LayerPages& pages = program_.layers[op.layer];
  const BlockTable& table = batch_->tables[pages.group];
  const HeadShape& shape = op.rotation.shape;
  const int heads = shape.heads + 2 * shape.kv_heads;
  auto turn = [&](int token, int first, int last) {
    const int row = token_row_[token], position = positions_[token];
    const int32_t* blocks = table.data + (batch_->index ? batch_->index[row] : row) * table.stride;
    RotateArgs args{};
    args.rotation = &op.rotation;
    args.qkv = shared_[int(Buffer::Qkv)].row(token).f;
    if (op.rope >= 0) {
      const int64_t half = int64_t(program_.ropes[op.rope].frequencies.size());
      args.cos = cos_[op.rope].data() + token * half;
      args.sin = sin_[op.rope].data() + token * half;
    }
    args.q = shared_[int(Buffer::Q)].row(token).f;
    args.pages = &pages;
    args.block = blocks[position / pages.block_size];
    args.place = position % pages.block_size;
    args.first_head = first;
    args.last_head = last;
    kernels_->rotate(args);
  };
  if (lane.small) {
    lane.share(heads, 2, [&](int first, int last) {
      for (int token = 0; token < tokens_; ++token) turn(token, first, last);
    });
  } else {
    lane.share(int(spans_.size()) - 1, 1, [&](int span, int) {
      for (int token = spans_[span]; token < spans_[span + 1]; ++token) turn(token, 0, heads);
    });
  }
  lane.team.barrier();
}

// n floats of a row to int8, in the way that the readers of `buffer` want.
void Executor::quantize_row(Buffer buffer, const float* x, int n, const Activations& out) const {
  (per_token(buffer) ? kernels_->quantize_row : kernels_->quantize)(x, n, out);
}

// x to a row of `normed`.
void Executor::norm_row(const float* x, const float* gain, const Activations& out) const {
  Activations made = out;
  if (per_token(Buffer::Normed)) made.q = nullptr;
  kernels_->norm(x, gain, program_.eps, program_.hidden, made);
  if (out.q && !made.q) quantize_row(Buffer::Normed, out.f, program_.hidden, out);
}

// The shared floats [rows, n] of `buffer` to int8, if anyone reads it so.
void Executor::quantize(Lane& lane, Buffer buffer, int rows, int n) {
  if (!quantized_[int(buffer)]) return;
  const Activations out = input(lane, buffer), &from = shared_[int(buffer)];
  auto make = [&](int row) { quantize_row(buffer, from.row(row).f, n, out.row(row)); };
  if (lane.small && buffer == Buffer::Mixed) {
    for (int row = 0; row < rows; ++row) make(row);
    return;
  }
  lane.share(rows, 1, [&](int row, int) { make(row); });
  lane.team.barrier();
}

// Partial results of a row are merged by whoever finishes the last of them.
void Executor::attend(Lane& lane, const Operation& op) {
  const LayerPages& pages = program_.layers[op.layer];
  const BlockTable& table = batch_->tables[pages.group];
  const Attention& attention = op.attention;
  const std::vector<Item>& items = attention.window == 0 && !merges_.empty() ? split_items_ : items_;
  const Activations &q = shared_[int(Buffer::Q)], &mixed = shared_[int(Buffer::Mixed)];
  auto args_of = [&](const Item& item) {
    AttendArgs args{};
    args.attention = &attention;
    args.pages = &pages;
    args.table = table.data + (batch_->index ? batch_->index[item.row] : item.row) * table.stride;
    args.kv_head = item.kv_head;
    args.first_head = item.first_head;
    args.heads_each = item.heads;
    args.q = q.row(item.first_token).f;
    args.q_stride = q.f_stride;
    args.tokens = item.tokens;
    args.position = item.position;
    args.out = mixed.row(item.first_token).f;
    args.out_stride = mixed.f_stride;
    if (fused_mixed_) args.quantized = mixed.row(item.first_token);
    args.partial = item.range >= 0 ? partials_.data() + item.partial : nullptr;
    args.range = item.range;
    args.scratch = scratch_.data() + scratch_.size() / lane.team.size() * lane.thread;
    return args;
  };
  lane.share_ahead(int(items.size()), [&](int index, int next) {
    const Item& item = items[index];
    AttendArgs args = args_of(item), following;
    if (next >= 0) following = args_of(items[next]), args.next = &following;
    kernels_->attend(args);
    if (item.range < 0) return;
    const Merge& merge = merges_[item.merge];
    if ((arrived_[item.merge].next.fetch_add(1, std::memory_order_acq_rel) + 1) % merge.ranges) return;
    kernels_->merge(attention, partials_.data() + merge.partial, merge.ranges, item.first_head, item.heads, args.out,
                    args.quantized);
  });
  lane.team.barrier();
  if (!fused_mixed_) quantize(lane, Buffer::Mixed, tokens_, attention.shape.heads * attention.shape.head_dim);
}

// No barrier: the next operation that changes x comes after one.
void Executor::capture(Lane& lane, const Operation& op) {
  lane.share(tokens_, 1, [&](int token, int) {
    std::copy_n(shared_[int(Buffer::X)].row(token).f, program_.hidden,
                features_.data() + int64_t(token) * features_width_ + op.column);
  });
}

void Executor::run_head(Lane& lane) {
  const int d = program_.hidden, n = head_count_;
  const bool small = n <= kPrivateTokens;
  Activations normed = small ? private_[lane.thread][int(Buffer::Normed)] : shared_[int(Buffer::Normed)];
  normed.fine = fine_head_.data(), normed.fine_pairs = int(fine_head_.size());
  auto make = [&](int i) {
    const Activations out = normed.row(i);
    if (head_input_) {
      if (out.f) std::copy_n(head_input_ + int64_t(i) * d, d, out.f);
      if (out.q) quantize_row(Buffer::Normed, head_input_ + int64_t(i) * d, d, out);
    } else {
      norm_row(shared_[int(Buffer::X)].row(head_rows_[i]).f, program_.final_gain, out);
    }
  };
  if (small) {
    for (int i = 0; i < n; ++i) make(i);
  } else {
    lane.share(n, 1, [&](int i, int) { make(i); });
    lane.team.barrier();
  }
  const Weight& weight = program_.weights[program_.head];
  LinearArgs args{};
  args.weight = &weight;
  args.input = normed;
  args.rows = n;
  args.scale = program_.logit_scale;
  args.softcap = program_.logit_softcap;
  args.prefetch = n <= kPrefetchRows;
  args.out = head_out_;
  args.out_stride = program_.vocab;
  auto multiply = [&](int first, int last) {
    LinearArgs part = args;
    part.first = first;
    part.last = last;
    kernels_->linear(part);
  };
  if (args.prefetch) {
    lane.split(weight.panels, multiply);
  } else {
    lane.share(weight.panels, kChunk, multiply);
  }
  lane.team.barrier();
  if (head_best_) {
    lane.share(n, 1, [&](int i, int) {
      head_best_[i] = kernels_->argmax(head_out_ + int64_t(i) * program_.vocab, program_.vocab);
    });
  }
}

void Executor::run(Lane& lane) {
  lane.small = tokens_ <= kPrivateTokens;
  const bool timed = lane.thread == 0;
  double last = timed ? now() : 0.0;
  auto clock = [&](int which) {
    if (!timed) return;
    const double t = now();
    clocks_[which] += t - last;
    last = t;
  };
  embed(lane);
  clock(kClocks - 2);
  for (const Operation& op : program_.operations) {
    switch (op.code) {
      case Code::Norm:
      case Code::AddNorm: norm(lane, op); break;
      case Code::Linear:
      case Code::AddLinear:
      case Code::GatedLinear: linear(lane, op); break;
      case Code::Rotate: rotate(lane, op); break;
      case Code::Attend: attend(lane, op); break;
      case Code::Experts: mix_experts(lane, op); break;
      case Code::AddSigmoid: add_sigmoid(lane); break;
      case Code::Capture: capture(lane, op); break;
    }
    if (observed_ && lane.thread == 0) observe(op);
    clock(int(op.code));
  }
  if (head_count_) run_head(lane);
  clock(kClocks - 1);
}

void Executor::run_team(bool whole) {
  pool_->run(
      phases_,
      whole ? TeamFn([](void* self, Team& team, int thread) {
        Lane lane{team, thread, 0, false};
        static_cast<Executor*>(self)->run(lane);
      })
            : TeamFn([](void* self, Team& team, int thread) {
                Lane lane{team, thread, 0, false};
                static_cast<Executor*>(self)->run_head(lane);
              }),
      this);
}

void Executor::forward(const Batch& batch, const int32_t* rows, int n, float* out, int32_t* best) {
  plan(batch);
  head_rows_ = rows, head_count_ = n, head_out_ = out, head_best_ = best, head_input_ = nullptr;
  if (tokens_) run_team(true);
  batch_ = nullptr;
}

void Executor::hidden(const int32_t* rows, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    Activations target;
    target.f = out + int64_t(i) * program_.hidden;
    kernels_->norm(shared_[int(Buffer::X)].row(rows[i]).f, program_.final_gain, program_.eps, program_.hidden, target);
  }
}

void Executor::embedding(const int32_t* tokens, int n, float* out) const {
  for (int i = 0; i < n; ++i) {
    kernels_->embed(program_.weights[program_.embed], tokens[i], 1.0f, out + int64_t(i) * program_.hidden);
  }
}

void Executor::logits(const int32_t* rows, int n, float* out, int32_t* best) {
  head_rows_ = rows, head_count_ = n, head_out_ = out, head_best_ = best, head_input_ = nullptr;
  if (n) run_team(false);
}

void Executor::head(const float* hidden, int n, float* out) {
  grow(n);
  head_rows_ = nullptr, head_count_ = n, head_out_ = out, head_best_ = nullptr, head_input_ = hidden;
  if (n) run_team(false);
}

std::array<double, Executor::kClocks> Executor::take_clocks() {
  auto result = clocks_;
  clocks_.fill(0.0);
  return result;
}

}  // namespace penstock
