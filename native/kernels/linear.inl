// Linear layers: tiles of up to kTileRows rows by one panel of 16 output features.
//
// A product's floats see one order whatever the tile: inputs ascending, for quantized weights group
// by group "acc += scale_x * (scale_w * dot)", then "acc += minimum_w * sum_x"; never split over K.

constexpr int64_t kPanelBytes = 24 << 10;  // of panels that stay in the first level of cache beside rows
constexpr int kPrefetch = 6400;            // bytes ahead, to the second level

// acc += (total * d) * scale_x of one group
template <int M>
inline void add_scaled(const Activations& a, int g, const i32 (&total)[M], f32 d, f32 (&acc)[M]) {
  const f32 c = mul(d, set1(-kMagic));
  for (int r = 0; r < M; ++r) acc[r] = fma(scale_total(total[r], d, c), set1(a.scale[r * a.s_stride + g]), acc[r]);
}

// Q4. Two groups a pair of nibbles, at once if there are registers for both groups' sums.
template <int M>
inline void tile_q4(const Activations& a, const uint8_t* panel, int pairs, bool ahead, float* out) {
  f32 acc[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  for (int pair = 0; pair < pairs + a.fine_pairs; ++pair) {
    const uint8_t* lines = panel + 640 * (pair < pairs ? pair : a.fine[pair - pairs]);
    const int g = 2 * pair;
    const int8_t* q = a.q + int64_t(g) * kGroup;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(lines + 512);
#pragma GCC unroll 2
    for (int first = 0; first < 2; first += kGroupsAtOnce) {
      NibbleDot dot[kGroupsAtOnce][M];
      for (int i = 0; i < kGroupsAtOnce; ++i) {
        for (int r = 0; r < M; ++r) dot[i][r] = nibble_start();
      }
#pragma GCC unroll 8
      for (int line = 0; line < 8; ++line) {
        if (ahead && first == 0) prefetch_far(lines + kPrefetch + 64 * line);
        const i32 w = load_line(lines + 64 * line);
        const i32 low = low_nibbles(w), high = high_nibbles(w);
        for (int r = 0; r < M; ++r) {
          const int8_t* four = q + r * a.q_stride + 4 * line;
          for (int i = 0; i < kGroupsAtOnce; ++i) {
            const int odd = first + i;
            dot[i][r] = dot_nibbles(dot[i][r], odd ? high : low, four + odd * kGroup);
          }
        }
      }
      if (ahead && first == 0) {
        prefetch_far(lines + kPrefetch + 512);
        prefetch_far(lines + kPrefetch + 576);
      }
      for (int i = 0; i < kGroupsAtOnce; ++i) {
        const int odd = first + i;
        f32 d = load_f16(scales + 16 * odd);
        if (odd) d = mul(d, set1(kHighScale));
        i32 total[M];
        for (int r = 0; r < M; ++r) total[r] = nibble_total(dot[i][r]);
        add_scaled<M>(a, g + odd, total, d, acc);
        const f32 minimum = load_f16(scales + 32 + 16 * odd);
        for (int r = 0; r < M; ++r) acc[r] = fma(minimum, set1(a.sum[r * a.s_stride + g + odd]), acc[r]);
      }
    }
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

template <int M>
inline void tile_q8(const Activations& a, const uint8_t* panel, int groups, bool ahead, float* out) {
  const int own = (groups + 1) / 2 * 2;  // where the fine pairs begin
  f32 acc[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  for (int i = 0; i < groups + 2 * a.fine_pairs; ++i) {
    const int rest = i - groups, g = rest < 0 ? i : own + rest;
    const uint8_t* lines = panel + 544 * (rest < 0 ? i : 2 * a.fine[rest / 2] + rest % 2);
    i32 dot[M];
    for (int r = 0; r < M; ++r) dot[r] = byte_start(a.start[r * a.s_stride + g]);
    const int8_t* q = a.q + int64_t(g) * kGroup;
    if (ahead) prefetch_far(lines + kPrefetch + 512);  // a group is eight lines and a half
#pragma GCC unroll 8
    for (int line = 0; line < 8; ++line) {
      if (ahead) prefetch_far(lines + kPrefetch + 64 * line);
      i32 w = load_line(lines + 64 * line);
      for (int r = 0; r < M; ++r) dot[r] = dot_bytes(dot[r], w, q + r * a.q_stride + 4 * line);
    }
    add_scaled<M>(a, g, dot, load_f16(reinterpret_cast<const uint16_t*>(lines + 512)), acc);
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

template <int M>
inline void tile_f32(const Activations& a, const uint8_t* panel, int k, bool, float* out) {
  const float* w = reinterpret_cast<const float*>(panel);
  f32 acc[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  for (int i = 0; i < k; ++i) {
    f32 line = load(w + int64_t(i) * kPanel);
    for (int r = 0; r < M; ++r) acc[r] = fma(line, set1(a.f[r * a.f_stride + i]), acc[r]);
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

template <int M>
inline void tile_bf16(const Activations& a, const uint8_t* panel, int k, bool ahead, float* out) {
  f32 acc[M];
  for (int r = 0; r < M; ++r) acc[r] = zero();
  int i = 0;
  for (; i + 1 < k; i += 2, panel += 64) {
    if (ahead) prefetch_far(panel + kPrefetch);
    i32 line = load_line(panel);
    f32 w0 = bf16_low(line), w1 = bf16_high(line);
    for (int r = 0; r < M; ++r) {
      acc[r] = fma(w0, set1(a.f[r * a.f_stride + i]), acc[r]);
      acc[r] = fma(w1, set1(a.f[r * a.f_stride + i + 1]), acc[r]);
    }
  }
  if (i < k) {
    f32 w0 = bf16_low(load_line(panel));
    for (int r = 0; r < M; ++r) acc[r] = fma(w0, set1(a.f[r * a.f_stride + i]), acc[r]);
  }
  for (int r = 0; r < M; ++r) store(out + r * kPanel, acc[r]);
}

#include "kernels/linear_formats.inl"

// Not inlined: in a larger function GCC keeps sums in memory.
template <int M>
__attribute__((noinline)) void tile(const Weight& w, const Activations& a, const uint8_t* panel, bool ahead,
                                    float* out) {
  switch (w.format) {
    case Format::Q4: return tile_q4<M>(a, panel, (w.k + 2 * kGroup - 1) / (2 * kGroup), ahead, out);
    case Format::Q8: return tile_q8<M>(a, panel, (w.k + kGroup - 1) / kGroup, ahead, out);
    case Format::F32: return tile_f32<M>(a, panel, w.k, ahead, out);
    case Format::BF16: return tile_bf16<M>(a, panel, w.k, ahead, out);
    default: return tile_format<M>(w, a, panel, ahead, out);
  }
}

// The tile of exactly `rows` rows, 1..M.
template <int M = kTileRows>
inline void tile_of(int rows, const Weight& w, const Activations& a, const uint8_t* panel, bool ahead, float* out) {
  if (rows == M) return tile<M>(w, a, panel, ahead, out);
  if constexpr (M > 1) tile_of<M - 1>(rows, w, a, panel, ahead, out);
}

// How a product is made, as the way through rows and panels below sees it: up to kRows rows at once times one panel.
struct ByRows {
  static constexpr int kRows = kTileRows;

  // Rows [first, first + rows) -> out [rows][16].
  static void product(const LinearArgs& args, int panel, int first, int rows, float* out) {
    const bool ahead = args.prefetch && first == 0;
    const uint8_t* lines = args.weight->panel(panel, args.expert);
    tile_of(rows, *args.weight, args.input.row(first), lines, ahead, out);
  }
};

inline f32 load_bias(const float* bias, int column, int count) {
  return bias ? load_n(bias + column, count) : zero();
}

// emit(row, column, count, 16 values with the bias added), tile by tile: all rows with as many panels as stay in
// the first level of cache beside a tile of rows.
template <typename Way, typename Emit>
inline void each_tile(const LinearArgs& args, Emit emit) {
  alignas(64) float out[Way::kRows * kPanel];
  const Weight& w = *args.weight;
  const int most = w.panel_stride < kPanelBytes ? int(kPanelBytes / w.panel_stride) : 1;
  for (int begin = args.first, end; begin < args.last; begin = end) {
    end = args.last - begin < most ? args.last : begin + most;
    for (int first = 0; first < args.rows; first += Way::kRows) {
      const int rows = args.rows - first < Way::kRows ? args.rows - first : Way::kRows;
      for (int panel = begin; panel < end; ++panel) {
        const int column = panel * kPanel;
        const int count = w.n - column < kPanel ? w.n - column : kPanel;
        const f32 bias = load_bias(args.bias, column, count);
        Way::product(args, panel, first, rows, out);
        for (int r = 0; r < rows; ++r) emit(first + r, column, count, add(load(out + r * kPanel), bias));
      }
    }
  }
}

template <typename Way>
inline void linear(const LinearArgs& args) {
  const f32 scale = set1(args.scale);
  if (args.softcap != 0.0f) {
    const f32 cap = set1(args.softcap), inverse = set1(1.0f / args.softcap);
    each_tile<Way>(args, [&](int row, int column, int count, f32 y) {
      y = mul(cap, tanh(mul(mul(y, scale), inverse)));
      store_n(args.out + row * args.out_stride + column, y, count);
    });
    return;
  }
  each_tile<Way>(args, [&](int row, int column, int count, f32 y) {
    store_n(args.out + row * args.out_stride + column, mul(y, scale), count);
  });
}

template <typename Way>
inline void linear_add(const LinearArgs& args) {
  const f32 scale = set1(args.scale);
  each_tile<Way>(args, [&](int row, int column, int count, f32 y) {
    float* x = args.out + row * args.out_stride + column;
    store_n(x, fma(y, scale, load_n(x, count)), count);
  });
}

// Panels gate, up, gate, up -> 32 hidden features, quantized where they are made.
template <typename Way>
inline void linear_gated(const LinearArgs& args) {
  alignas(64) float gates[Way::kRows * kPanel], ups[Way::kRows * kPanel];
  alignas(64) float first_half[Way::kRows * kPanel];
  const int size = args.weight->n / 2;
  for (int unit = args.first; unit < args.last; unit += 4) {
    for (int first = 0; first < args.rows; first += Way::kRows) {
      const int rows = args.rows - first < Way::kRows ? args.rows - first : Way::kRows;
      for (int half = 0; half < 2; ++half) {
        const int column = (unit / 2 + half) * kPanel;
        const int left = size - column, count = left < 0 ? 0 : left < kPanel ? left : kPanel;
        Way::product(args, unit + 2 * half, first, rows, gates);
        Way::product(args, unit + 2 * half + 1, first, rows, ups);
        const f32 gate_bias = load_bias(args.bias, column, count);
        const f32 up_bias = args.bias ? load_n(args.bias + size + column, count) : zero();
        for (int r = 0; r < rows; ++r) {
          f32 h = gate(add(load(gates + r * kPanel), gate_bias), add(load(ups + r * kPanel), up_bias),
                       args.activation);
          const Activations out = args.hidden.row(first + r);
          if (out.f && count) store_n(out.f + column, h, count);
          if (half == 0) {
            store(first_half + r * kPanel, h);
          } else if (out.q) {
            quantize_group(load(first_half + r * kPanel), h, out, unit / 4);
            if (unit + 4 >= args.weight->panels) quantize_tail(size, out);
          }
        }
      }
    }
  }
}

// One row of the matrix as floats.
inline void embed(const Weight& w, int32_t token, float scale, float* out) {
  const uint8_t* panel = w.panel(token / kPanel);
  const int lane = token % kPanel;
  alignas(64) float group[kGroup];
  for (int first = 0; first < w.k; first += kGroup) {
    const int count = w.k - first < kGroup ? w.k - first : kGroup;
    decode_group(w, panel, lane, first / kGroup, group);
    for (int j = 0; j < count; ++j) out[first + j] = group[j] * scale;
  }
}
