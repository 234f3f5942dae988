// exp of 16 floats: Cody-Waite reduction, a polynomial of degree 6 on [-ln2/2, ln2/2]; about 1 ulp.
// exp(-inf) = 0, NaN stays NaN, results below 2^-126 are 0.

inline f32 exp(f32 x) {
  const f32 low = set1(-87.33654f);
  f32 clamped = min(set1(88.72283f), max(low, x));  // of a NaN, both return the second
  f32 n = round_even(mul(clamped, set1(1.44269504f)));
  f32 r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  f32 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  f32 y = add(fma(mul(r, r), p, r), set1(1.0f));
  y = mul(y, exp2_int(n));
  return select_less(x, low, zero(), y);
}

inline f32 sigmoid(f32 x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }
inline f32 silu(f32 x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

// tanh(x) = 1 - 2 / (exp(2x) + 1)
inline f32 tanh(f32 x) { return sub(set1(1.0f), div(set1(2.0f), add(exp(add(x, x)), set1(1.0f)))); }

// The tanh approximation of GELU (arXiv:1606.08415).
inline f32 gelu_tanh(f32 x) {
  f32 inner = mul(mul(fma(mul(x, x), set1(0.044715f), set1(1.0f)), x), set1(0.7978845608f));
  return mul(mul(set1(0.5f), x), add(set1(1.0f), tanh(inner)));
}

inline f32 gate(f32 g, f32 up, const Activation& activation) {
  switch (activation.kind) {
    case Act::Silu: return mul(silu(g), up);
    case Act::GeluTanh: return mul(gelu_tanh(g), up);
    case Act::ClampedSwiglu: {
      const f32 limit = set1(activation.limit);
      g = min(g, limit);
      up = max(min(up, limit), sub(zero(), limit));
      return mul(mul(g, sigmoid(mul(set1(activation.alpha), g))), add(up, set1(1.0f)));
    }
    case Act::Gelu:
    case Act::Relu: break;  // of encoders, which have no gate
  }
  return g;
}

constexpr float kLog2e = 1.44269504f;

// 2^t for t <= 0, as attention wants it: 2^0 is 1 exactly, below 2^-126 it is 0, NaN stays NaN. Relative error
// 1.4e-7 with Degree 5, 3e-6 with Degree 4 (a minimax fit on [0, 1] with the constant term fixed at 1).
template <int Degree>
inline f32 exp2(f32 t) {
  static_assert(Degree == 4 || Degree == 5);
  const f32 r = fraction(t);
  f32 p;
  if constexpr (Degree == 5) {
    p = set1(1.867130213e-3f);
    p = fma(p, r, set1(9.017030019e-3f));
    p = fma(p, r, set1(5.579991332e-2f));
    p = fma(p, r, set1(2.401644501e-1f));
    p = fma(p, r, set1(6.931513118e-1f));
  } else {
    p = set1(1.342668553e-2f);
    p = fma(p, r, set1(5.22424722e-2f));
    p = fma(p, r, set1(2.412802057e-1f));
    p = fma(p, r, set1(6.930448448e-1f));
  }
  return scale_exp2(fma(p, r, set1(1.0f)), t);
}
