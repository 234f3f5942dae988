// RMSNorm (arXiv:1910.07467), residual additions and the quantization of activations.

// kMagicBits - factor * sum. The integers of a NaN are anything, and wrap.
inline int32_t magic_minus(uint32_t factor, uint32_t sum) { return int32_t(uint32_t(kMagicBits) - factor * sum); }

// 32 integers to int8 in group g, and what the products need of them.
inline void store_group(i32 qa, i32 qb, float scale, const Activations& out, int64_t g) {
  store_i8(out.q + g * kGroup, qa);
  store_i8(out.q + g * kGroup + 16, qb);
  int32_t sum = hsum(iadd(qa, qb));
  out.scale[g] = scale;
  out.sum[g] = scale * float(sum);
  out.start[g] = magic_minus(128, uint32_t(sum));
  if (out.half) {
    const uint32_t first = uint32_t(hsum(qa));
    out.half[2 * g] = magic_minus(32, first);
    out.half[2 * g + 1] = magic_minus(32, uint32_t(sum) - first);
  }
}

// 32 floats to int8 with scale = peak / 127. A NaN or infinity makes the scale NaN or infinite, hence the
// whole row's products: nothing broken turns into a number.
inline void quantize_to(float peak, f32 a, f32 b, const Activations& out, int64_t g) {
  const f32 inverse = set1(peak > 0.0f ? 127.0f / peak : 0.0f);
  store_group(round_to_int(mul(a, inverse)), round_to_int(mul(b, inverse)), peak * (1.0f / 127.0f), out, g);
}

inline void quantize_group(f32 a, f32 b, const Activations& out, int64_t g) {
  quantize_to(abs_peak(a, b), a, b, out, g);
}

// What quantize_to leaves of the fine pairs of a row of n inputs, behind its own pairs; value(i): 16 from i on.
template <typename Value>
inline void quantize_fine(int n, const Activations& out, Value value) {
  const int pairs = (n + 2 * kGroup - 1) / (2 * kGroup);
  for (int g = 0; g < 2 * out.fine_pairs; ++g) {
    const int first = (2 * out.fine[g / 2] + g % 2) * kGroup;
    const f32 a = value(first), b = value(first + 16);
    const float peak = abs_peak(a, b), scale = peak * (1.0f / 127.0f);
    const f32 inverse = set1(peak > 0.0f ? 127.0f / peak : 0.0f);
    const f32 up = set1(peak > 0.0f ? 128.0f * 127.0f / peak : 0.0f);
    const f32 rest_a = fma(round_even(mul(a, inverse)), set1(-scale), a);
    const f32 rest_b = fma(round_even(mul(b, inverse)), set1(-scale), b);
    const i32 qa = round_to_int(mul(rest_a, up)), qb = round_to_int(mul(rest_b, up));
    store_group(qa, qb, scale * (1.0f / 128.0f), out, 2 * pairs + g);
  }
}

inline void quantize_tail(int n, const Activations& out) {
  int64_t groups = (n + kGroup - 1) / kGroup;
  if (groups % 2) quantize_group(zero(), zero(), out, groups);
}

inline void quantize(const float* x, int n, const Activations& out) {
  int i = 0;
  for (; i + kGroup <= n; i += kGroup) quantize_group(load(x + i), load(x + i + 16), out, i / kGroup);
  if (i < n) {
    int left = n - i;
    f32 a = left >= 16 ? load(x + i) : load_n(x + i, left);
    f32 b = left > 16 ? load_n(x + i + 16, left - 16) : zero();
    quantize_group(a, b, out, i / kGroup);
  }
  quantize_tail(n, out);
  quantize_fine(n, out, [&](int first) { return load(x + first); });
}

// The same with one scale for the whole row, as checkpoints with scales per token prescribe.
inline void quantize_row(const float* x, int n, const Activations& out) {
  f32 peaks = zero();
  bool broken = false;
  for (int i = 0; i < n; i += 16) {
    const f32 v = abs(load_n(x + i, n - i < 16 ? n - i : 16));
    broken |= any_nan(v);
    peaks = max(peaks, v);
  }
  const float peak = broken ? __builtin_nanf("") : hmax(peaks);
  for (int i = 0; i < n; i += kGroup) {
    const int left = n - i, first = left < 16 ? left : 16, second = left - first < 16 ? left - first : 16;
    const f32 b = second ? load_n(x + i + 16, second) : zero();
    quantize_to(peak, load_n(x + i, first), b, out, i / kGroup);
  }
  quantize_tail(n, out);
}

// 1 / sqrt(mean(x^2) + eps)
inline float inverse_rms(const float* x, int n, float eps) {
  f32 s0 = zero(), s1 = zero();
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    f32 a = load(x + i), b = load(x + i + 16);
    s0 = fma(a, a, s0);
    s1 = fma(b, b, s1);
  }
  for (; i < n; i += 16) {
    f32 a = n - i >= 16 ? load(x + i) : load_n(x + i, n - i);
    s0 = fma(a, a, s0);
  }
  return 1.0f / __builtin_sqrtf(hsum(add(s0, s1)) / float(n) + eps);
}

inline void norm(const float* x, const float* gain, float eps, int n, const Activations& out) {
  const f32 inverse = set1(inverse_rms(x, n, eps));
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    f32 a = mul(mul(load(x + i), inverse), load(gain + i));
    f32 b = mul(mul(load(x + i + 16), inverse), load(gain + i + 16));
    if (out.f) {
      store(out.f + i, a);
      store(out.f + i + 16, b);
    }
    if (out.q) quantize_group(a, b, out, i / kGroup);
  }
  if (i < n) {
    int left = n - i, first = left < 16 ? left : 16, second = left - first;
    f32 a = mul(mul(load_n(x + i, first), inverse), load_n(gain + i, first));
    f32 b = second ? mul(mul(load_n(x + i + 16, second), inverse), load_n(gain + i + 16, second)) : zero();
    if (out.f) {
      store_n(out.f + i, a, first);
      if (second) store_n(out.f + i + 16, b, second);
    }
    if (out.q) quantize_group(a, b, out, i / kGroup);
  }
  if (!out.q) return;
  quantize_tail(n, out);
  quantize_fine(n, out, [&](int first) { return mul(mul(load(x + first), inverse), load(gain + first)); });
}

inline void add_scaled(float* x, const float* delta, float scale, int n) {
  const f32 s = set1(scale);
  for (int i = 0; i < n; i += 16) {
    int count = n - i < 16 ? n - i : 16;
    store_n(x + i, fma(load_n(delta + i, count), s, load_n(x + i, count)), count);
  }
}

inline void add_sigmoid(float* x, const float* delta, float gate_logit, int n) {
  float one[16] = {gate_logit};
  store(one, sigmoid(load(one)));
  add_scaled(x, delta, one[0], n);
}

inline int argmax(const float* x, int n) {
  f32 best = set1(-__builtin_inff());
  bool broken = false;
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    f32 v = load(x + i);
    broken |= any_nan(v);
    best = max(best, v);
  }
  float peak = hmax(best);
  for (; i < n; ++i) {
    if (x[i] != x[i]) broken = true;
    if (x[i] > peak) peak = x[i];
  }
  for (i = 0; i < n; ++i) {
    if (broken ? x[i] != x[i] : x[i] == peak) return i;
  }
  return 0;
}
