// What the sampler does with a whole row of scores (core/sample.h): maxima of blocks, exact weights and
// their sums, estimates of the sums.

// exp(x) in units of 2^-42, rounded to a whole number, for x <= 0; below -40: 0. Cody-Waite reduction and a
// polynomial of degree 11 on [-ln2/2, ln2/2] (interpolated at Chebyshev nodes); about 1 ulp before rounding.
inline i64 weight_units(f64 x) {
  constexpr double kWhole = 4503599627370496.0;  // 2^52: a sum with it has its whole part in the low bits
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: the same for either sign
  const f64 low = f64{} - 40.0;
  x = x > low ? x : low;
  const f64 shifted = x * 1.4426950408889634 + kRound;
  const f64 n = shifted - kRound;
  f64 r = fma(n, f64{} - 0.6931471804855391, x);
  r = fma(n, f64{} - 7.440617110012397e-11, r);
  f64 p = f64{} + 2.510038549551032e-08;
  p = fma(p, r, f64{} + 2.7620088445409746e-07);
  p = fma(p, r, f64{} + 2.7557268459997064e-06);
  p = fma(p, r, f64{} + 2.4801521295954376e-05);
  p = fma(p, r, f64{} + 0.00019841269863053618);
  p = fma(p, r, f64{} + 0.0013888888917213717);
  p = fma(p, r, f64{} + 0.008333333333330062);
  p = fma(p, r, f64{} + 0.04166666666662413);
  p = fma(p, r, f64{} + 0.16666666666666669);
  p = fma(p, r, f64{} + 0.5000000000000001);
  const f64 y = fma(r * r, p, r) + 1.0;
  // Times 2^(n + 42), through the exponent.
  const i64 scaled = (i64)y + (((i64)shifted + 42) << 52);
  return (i64)((f64)scaled + kWhole) - (i64)(f64{} + kWhole);
}

inline i64 weight_of(const float* x, double peak, double inverse) {
  return weight_units((widen(x) - peak) * inverse);
}

// Calls `use(i, weights of kDoubles values from i)` over x [n]; lanes beyond n hold 0.
template <typename Use>
inline void each_weight(const float* x, int n, double peak, double inverse, Use use) {
  int i = 0;
  for (; i + kDoubles <= n; i += kDoubles) use(i, weight_of(x + i, peak, inverse));
  if (i == n) return;
  float rest[kDoubles];
  for (int j = 0; j < kDoubles; ++j) rest[j] = i + j < n ? x[i + j] : -__builtin_inff();
  use(i, weight_of(rest, peak, inverse));
}

inline bool sample_peaks(const float* x, int n, float* peaks) {
  bool broken = false;
  for (int start = 0; start < n; start += kPeakBlock) {
    const int end = start + kPeakBlock < n ? start + kPeakBlock : n;
    f32 best = set1(-__builtin_inff());
    int i = start;
    for (; i + 16 <= end; i += 16) {
      const f32 v = load(x + i);
      broken |= any_nan(v);
      best = max(best, v);
    }
    float peak = hmax(best);
    for (; i < end; ++i) {
      broken |= x[i] != x[i];
      peak = x[i] > peak ? x[i] : peak;
    }
    peaks[start / kPeakBlock] = peak;
  }
  return !broken;
}

inline void sample_weigh(const float* x, int n, double peak, double inverse, int64_t* weights) {
  each_weight(x, n, peak, inverse, [&](int i, i64 units) {
    if (i + kDoubles <= n) {
      store(weights + i, units);
    } else {
      for (int j = 0; i + j < n; ++j) weights[i + j] = units[j];
    }
  });
}

inline void sample_sums(const float* x, int n, const float* peaks, double peak, double inverse, int64_t* sums) {
  for (int start = 0; start < n; start += kSumBlock) {
    const int end = start + kSumBlock < n ? start + kSumBlock : n;
    i64 sum{};
    for (int i = start; i < end; i += kPeakBlock) {
      if ((peaks[i / kPeakBlock] - peak) * inverse < kNoWeight) continue;
      const int size = i + kPeakBlock < end ? kPeakBlock : end - i;
      each_weight(x + i, size, peak, inverse, [&](int, i64 units) { sum += units; });
    }
    sums[start / kSumBlock] = hsum(sum);
  }
}

// Sums of exp((x - peak) * inverse), within one part in 10^5: the argument is rounded three times, 3.6e-6 at
// -30, exp and the sum add 1.5e-6.
inline void sample_estimates(const float* x, int n, const float* peaks, float peak, float inverse, float* sums) {
  const f32 top = set1(peak), factor = set1(inverse);
  for (int start = 0; start < n; start += kSumBlock) {
    const int end = start + kSumBlock < n ? start + kSumBlock : n;
    f32 sum = zero();
    float rest = 0.0f;
    for (int i = start; i < end; i += kPeakBlock) {
      if ((peaks[i / kPeakBlock] - peak) * inverse < float(kNoWeight)) continue;
      const int stop = i + kPeakBlock < end ? i + kPeakBlock : end;
      int j = i;
      for (; j + 16 <= stop; j += 16) sum = add(sum, exp(mul(sub(load(x + j), top), factor)));
      if (j < stop) {
        float tail[16];
        for (int t = 0; t < 16; ++t) tail[t] = j + t < stop ? x[j + t] : -__builtin_inff();
        rest = hsum(exp(mul(sub(load(tail), top), factor)));
      }
    }
    sums[start / kSumBlock] = hsum(sum) + rest;
  }
}
