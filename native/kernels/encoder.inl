// What encoders need beyond linear layers: LayerNorm, activations without a gate, attention over whole texts.

// The error function within 4e-7: x * P(x^2) / Q(x^2) on [-4, 4], beyond which a float of it is +-1. Coefficients by
// reweighted least squares on the relative error.
inline f32 erf(f32 x) {
  const f32 c = max(set1(-4.0f), min(set1(4.0f), x));
  const f32 u = mul(c, c);
  f32 p = set1(1.911006109e-08f);
  p = fma(p, u, set1(-1.942060635e-06f));
  p = fma(p, u, set1(1.472457516e-04f));
  p = fma(p, u, set1(3.989097662e-03f));
  p = fma(p, u, set1(5.152041838e-02f));
  p = fma(p, u, set1(2.070924193e-01f));
  p = fma(p, u, set1(1.128379107e+00f));
  f32 q = set1(1.020736760e-03f);
  q = fma(q, u, set1(1.495516486e-02f));
  q = fma(q, u, set1(1.179570556e-01f));
  q = fma(q, u, set1(5.168621540e-01f));
  q = fma(q, u, set1(1.000000000e+00f));
  return mul(c, div(p, q));
}

// 0.5 * x * (1 + erf(x / sqrt(2))) (arXiv:1606.08415). Far below 0 the sum's last bit times x would not be nothing:
// from -6 on, where the value is under 6e-9, the factor x stays.
inline f32 gelu(f32 x) {
  const f32 half = mul(set1(0.5f), max(set1(-6.0f), x));
  return mul(half, add(set1(1.0f), erf(mul(x, set1(0.70710678f)))));
}

inline f32 activate(f32 x, Act kind) {
  switch (kind) {
    case Act::Gelu: return gelu(x);
    case Act::GeluTanh: return gelu_tanh(x);
    case Act::Relu: return max(zero(), x);  // of a NaN the second
    default: return silu(x);
  }
}

// out = act(product + bias)
inline void linear_activated(const LinearArgs& args) {
  each_tile<ByRows>(args, [&](int row, int column, int count, f32 y) {
    store_n(args.out + row * args.out_stride + column, activate(y, args.activation.kind), count);
  });
}

// LayerNorm (arXiv:1607.06450) of x [n] + delta [n], or of x alone; out may be x. Two passes: the variance is that of
// the differences.
inline void layer_norm(const float* x, const float* delta, const float* gain, const float* bias, float eps, int n,
                       float* out) {
  f32 sum = zero();
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    f32 v = load_n(x + i, m);
    if (delta) v = add(v, load_n(delta + i, m));
    sum = add(sum, v);
    store_n(out + i, v, m);
  }
  const f32 mean = set1(hsum(sum) / float(n));
  f32 squares = zero();
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    const f32 v = keep_range(sub(load_n(out + i, m), mean), 0, 0, m, zero());
    squares = fma(v, v, squares);
  }
  const f32 inverse = set1(1.0f / __builtin_sqrtf(hsum(squares) / float(n) + eps));
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    const f32 v = mul(sub(load_n(out + i, m), mean), inverse);
    store_n(out + i, fma(v, load_n(gain + i, m), load_n(bias + i, m)), m);
  }
}

// A matrix of floats in panels, made here and now.
inline Weight panels_of(int n, int k, const float* data) {
  Weight w{};
  w.format = Format::F32;
  w.n = n, w.k = k, w.experts = 1;
  w.panels = (n + kPanel - 1) / kPanel;
  w.panel_stride = int64_t(k) * kPanel * 4;
  w.data = reinterpret_cast<const uint8_t*>(data);
  return w;
}

// Scores [n] in units of log2 -> their softmax. What lies behind them up to a multiple of 16 is left as it is.
inline void softmax(float* scores, int n) {
  const f32 none = set1(-__builtin_inff());
  f32 top = none;
  for (int i = 0; i < n; i += 16) top = max(keep_range(load(scores + i), i, 0, n, none), top);
  const f32 peak = set1(hmax(top));
  f32 total = zero();
  for (int i = 0; i < n; i += 16) {
    const f32 y = exp2<5>(sub(keep_range(load(scores + i), i, 0, n, none), peak));
    store(scores + i, y);
    total = add(total, y);
  }
  const f32 inverse = set1(1.0f / hsum(total));
  for (int i = 0; i < n; i += 16) store(scores + i, mul(load(scores + i), inverse));
}

// One text and one head: every token sees every token. Keys and values become panels, so that both products are
// those of linear layers; rows of scores are few enough to stay in the first level of cache.
inline void attend_text(const AttendTextArgs& args) {
  const int n = args.tokens, d = args.head_dim;
  const int padded = (n + kPanel - 1) / kPanel * kPanel;
  float* keys = args.scratch;                                     // [padded / 16][d][16]
  float* values = keys + int64_t(padded) * d;                     // [ceil(d / 16)][n][16]
  float* scores = values + int64_t((d + kPanel - 1) / kPanel) * kPanel * n;  // [kTileRows][padded]
  for (int t = 0; t < padded; ++t) {
    float* panel = keys + int64_t(t / kPanel) * d * kPanel + t % kPanel;
    const float* k = args.k + t * args.stride;
    for (int i = 0; i < d; ++i) panel[int64_t(i) * kPanel] = t < n ? k[i] : 0.0f;
  }
  for (int first = 0; first < d; first += kPanel) {
    const int m = d - first < kPanel ? d - first : kPanel;
    float* panel = values + int64_t(first) * n;
    for (int t = 0; t < n; ++t) store(panel + int64_t(t) * kPanel, load_n(args.v + t * args.stride + first, m));
  }
  const Weight key_panels = panels_of(n, d, keys), value_panels = panels_of(d, n, values);
  LinearArgs score{}, mix{};
  score.weight = &key_panels, score.last = key_panels.panels;
  score.input.f_stride = args.stride;
  score.out = scores, score.out_stride = padded, score.scale = args.scale * kLog2e;
  mix.weight = &value_panels, mix.last = value_panels.panels;
  mix.input.f = scores, mix.input.f_stride = padded;
  mix.out_stride = args.out_stride, mix.scale = 1.0f;
  for (int first = 0; first < n; first += kTileRows) {
    score.rows = mix.rows = n - first < kTileRows ? n - first : kTileRows;
    score.input.f = const_cast<float*>(args.q + first * args.stride);
    linear<ByRows>(score);
    for (int r = 0; r < score.rows; ++r) softmax(scores + int64_t(r) * padded, n);
    mix.out = args.out + first * args.out_stride;
    linear<ByRows>(mix);
  }
}
