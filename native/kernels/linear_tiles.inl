// Linear layers with quantized weights by tiles (simd/tiles.h): of 16 rows or more, 16 rows times one panel at once.
// The floats of each row are those of ByRows, in the same order, so the bits are too.
//
// What should take the time (by the manuals; never timed) is the fold of the sums into floats, not the products: of one
// group of 32 inputs these are 16 cycles, the fold of 16 rows of Q4 is 64 operations on two ports beside a store of
// the sums, loads of them and of two scales a row. Hence scales wait beside the bytes, made once for all rows of a
// block, and sums are two groups ahead.

constexpr int kBlockRows = 128;   // rows that meet a slice's bytes: their floats are on the stack
constexpr int kSliceGroups = 32;  // groups unpacked at once, 20 KB: they stay in the first level of cache
constexpr int kTilesAhead = 2;

// One product of tiles: its weights as signed bytes, and what its sums are multiplied with.
template <int Inputs>
struct alignas(64) Step {
  static constexpr int kInputs = Inputs;
  int8_t bytes[Inputs / 4 * 64];
  float scale[kPanel];
  float minimum[kPanel];
};

// How sums enter the floats of a row (linear.inl, linear_formats.inl).
enum class Fold {
  Scaled,   // add_scaled
  Minimum,  // add_scaled, add_minimum
  Table,    // tile_table's
  Parts     // tile_group's
};

// Lines [First, Last) as signed bytes: less what the form adds to them.
template <typename Bits, int Middle, int Odd, int First = 0, int Last = 8>
inline void unpack_lines(const uint8_t* pair, int8_t* bytes) {
  each_line<First, Last>([&](auto index) __attribute__((always_inline)) {
    constexpr int line = decltype(index)::value;
    store_line(bytes + 64 * (line - First), minus_bytes<Middle>(Bits::template line<line, Odd>(pair)));
  });
}
template <typename Bits, int Middle>
inline void unpack_group(const uint8_t* pair, int odd, int8_t* bytes) {
  if (odd) return unpack_lines<Bits, Middle, 1>(pair, bytes);
  unpack_lines<Bits, Middle, 0>(pair, bytes);
}

// The forms. unpack: group g of a panel -> its steps. groups: those of which the floats see something.

struct Q4Tiles {
  using Made = Step<32>;
  static constexpr Fold kFold = Fold::Minimum;
  static int groups(const Weight& w) { return (w.k + 63) / 64 * 2; }
  static void unpack(const Weight&, const uint8_t* panel, int g, Made* step) {
    const uint8_t* pair = panel + int64_t(g / 2) * 640;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(pair + 512) + 16 * (g % 2);
    unpack_group<Bits4, 0>(pair, g % 2, step->bytes);
    store(step->scale, load_f16(scales));
    store(step->minimum, load_f16(scales + 32));
  }
};

struct Q8Tiles {
  using Made = Step<32>;
  static constexpr Fold kFold = Fold::Scaled;
  static int groups(const Weight& w) { return (w.k + kGroup - 1) / kGroup; }
  static void unpack(const Weight&, const uint8_t* panel, int g, Made* step) {
    const uint8_t* lines = panel + int64_t(g) * 544;
    unpack_lines<Bits8, 128, 0>(lines, step->bytes);
    store(step->scale, load_f16(reinterpret_cast<const uint16_t*>(lines + 512)));
  }
};

struct Q5Tiles {
  using Made = Step<32>;
  static constexpr Fold kFold = Fold::Minimum;
  static int groups(const Weight& w) { return (w.k + 63) / 64 * 2; }
  static void unpack(const Weight&, const uint8_t* panel, int g, Made* step) {
    const uint8_t* pair = panel + int64_t(g / 2) * (128 + Bits5::kPair);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(pair) + 16 * (g % 2);
    unpack_group<Bits5, 0>(pair + 128, g % 2, step->bytes);
    store(step->scale, load_f16(scales));
    store(step->minimum, load_f16(scales + 32));
  }
};

template <typename Bits>
struct SuperTiles {
  using Made = Step<32>;
  static constexpr Fold kFold = Fold::Minimum;
  static int groups(const Weight& w) { return (w.k + 255) / 256 * 8; }
  static void unpack(const Weight&, const uint8_t* panel, int g, Made* step) {
    const uint8_t* block = panel + int64_t(g / 8) * (320 + 4 * Bits::kPair);
    const uint8_t* codes = block + 16 * (g % 8);
    unpack_group<Bits, 0>(block + 320 + g % 8 / 2 * Bits::kPair, g % 2, step->bytes);
    store(step->scale, mul(load_f16(reinterpret_cast<const uint16_t*>(block + 256)), load_u8(codes)));
    store(step->minimum, mul(load_f16(reinterpret_cast<const uint16_t*>(block + 288)), load_u8(codes + 128)));
  }
};

// Two steps a group: a scale is of 16 inputs.
struct Q6Tiles {
  using Made = Step<16>;
  static constexpr Fold kFold = Fold::Scaled;
  static int groups(const Weight& w) { return (w.k + 255) / 256 * 8; }
  static void unpack(const Weight&, const uint8_t* panel, int g, Made* steps) {
    const uint8_t* block = panel + int64_t(g / 8) * (320 + 4 * Bits6::kPair);
    const uint8_t *pair = block + 320 + g % 8 / 2 * Bits6::kPair, *codes = block + 32 * (g % 8);
    if (g % 2) {
      unpack_lines<Bits6, 32, 1, 0, 4>(pair, steps[0].bytes);
      unpack_lines<Bits6, 32, 1, 4, 8>(pair, steps[1].bytes);
    } else {
      unpack_lines<Bits6, 32, 0, 0, 4>(pair, steps[0].bytes);
      unpack_lines<Bits6, 32, 0, 4, 8>(pair, steps[1].bytes);
    }
    const f32 d = load_f16(reinterpret_cast<const uint16_t*>(block + 256)), middle = set1(128.0f);
    store(steps[0].scale, mul(d, sub(load_u8(codes), middle)));
    store(steps[1].scale, mul(d, sub(load_u8(codes + 16), middle)));
  }
};

template <typename Bits>
struct TableTiles {
  using Made = Step<32>;
  static constexpr Fold kFold = Fold::Table;
  static int groups(const Weight& w) { return (w.k + 63) / 64 * 2; }
  static void unpack(const Weight&, const uint8_t* panel, int g, Made* step) {
    const uint8_t* pair = panel + int64_t(g / 2) * (128 + Bits::kPair);
    unpack_group<Bits, 128>(pair + 128, g % 2, step->bytes);
    store(step->scale, load(reinterpret_cast<const float*>(pair) + 16 * (g % 2)));
  }
};

// `minimum` is the offset.
template <typename Bits, int Middle>
struct GroupTiles {
  using Made = Step<32>;
  static constexpr Fold kFold = Fold::Parts;
  static int groups(const Weight& w) { return (w.k + 63) / 64 * 2; }
  // Groups of the activations in one of the weight's.
  static int each(const Weight& w) { return w.group == kGroup ? 1 : (w.group + 63) / 64 * 2; }
  static void unpack(const Weight& w, const uint8_t* panel, int g, Made* step) {
    const bool own = w.group == kGroup;
    const int pairs = own ? 1 : each(w) / 2, header = own ? 256 : 128;
    const uint8_t* block = panel + int64_t(g / 2 / pairs) * (header + int64_t(pairs) * Bits::kPair);
    const float* scales = reinterpret_cast<const float*>(block + (own ? 128 * (g % 2) : 0));
    unpack_group<Bits, Middle>(block + header + int64_t(g / 2 % pairs) * Bits::kPair, g % 2, step->bytes);
    store(step->scale, load(scales));
    store(step->minimum, load(scales + 16));
  }
};

// 16 rows from group g on times `count` steps. run [16][16]: the rows' floats, of Parts those of a group of `each`
// that is not whole yet; then acc [16][16] holds the rows' floats.
template <Fold How, int Inputs>
__attribute__((noinline)) void fold_steps(const Activations& a, const Step<Inputs>* steps, int count, int g, int each,
                                          float* run, float* acc) {
  constexpr int kHeld = 2 * kTilesAhead;
  alignas(64) int32_t sums[kHeld][kTileSums];
  const int8_t* q = a.q + int64_t(g) * kGroup;
  auto multiply = [&](auto odd, int i) __attribute__((always_inline)) {
    constexpr int o = decltype(odd)::value;
    tile_zero<kTileC + o>();
    tile_load<kTileA + o>(q + i * Inputs, a.q_stride);
    tile_load<kTileB + o>(steps[i].bytes, 64);
    tile_dot<kTileC + o, kTileA + o, kTileB + o>();
    tile_store<kTileC + o>(sums[i % kHeld]);
  };
  multiply(Const<0>(), 0);
  if (count > 1) multiply(Const<1>(), 1);
  f32 y[kTileSide];
#pragma GCC unroll 16
  for (int r = 0; r < kTileSide; ++r) y[r] = load(run + r * kPanel);
  for (int i = 0; i < count; ++i) {
    if (const int next = i + kTilesAhead; next < count) {
      if (i % 2) {
        multiply(Const<1>(), next);
      } else {
        multiply(Const<0>(), next);
      }
    }
    const int at = g + i * Inputs / kGroup;
    const int32_t* sum = sums[i % kHeld];
    const f32 d = load(steps[i].scale), c = mul(d, set1(-kMagic));
    f32 minimum = zero();
    if constexpr (How == Fold::Minimum) minimum = load(steps[i].minimum);
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r) {
      const i32 total = load_line(sum + r * kTileSide);
      const f32 scale = set1(a.scale[r * a.s_stride + at]);
      if constexpr (How == Fold::Parts) {
        y[r] = fma(to_float(total), scale, y[r]);
      } else if constexpr (How == Fold::Table) {
        y[r] = fma(mul(to_float(total), d), scale, y[r]);
      } else {
        y[r] = fma(scale_total(iadd(total, iset1(kMagicBits)), d, c), scale, y[r]);
      }
      if constexpr (How == Fold::Minimum) y[r] = fma(minimum, set1(a.sum[r * a.s_stride + at]), y[r]);
    }
    if (How != Fold::Parts || (at + 1) % each) continue;
    const f32 offset = load(steps[i].minimum);
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r) {
      f32 total = zero();
      for (int j = at + 1 - each; j <= at; ++j) total = add(total, set1(a.sum[r * a.s_stride + j]));
      store(acc + r * kPanel, fma(offset, total, fma(d, y[r], load(acc + r * kPanel))));
      y[r] = zero();
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileSide; ++r) store(run + r * kPanel, y[r]);
}

// Rows [first, first + rows) of args times one panel -> out [rows up to a multiple of 16][16].
template <typename Form>
__attribute__((noinline)) void block_product(const LinearArgs& args, int panel, int first, int rows, float* out) {
  using Made = typename Form::Made;
  constexpr bool parts = Form::kFold == Fold::Parts;
  constexpr int kSteps = kGroup / Made::kInputs;
  alignas(64) Made steps[kSliceGroups * kSteps];
  alignas(64) float part[parts ? kBlockRows * kPanel : kPanel];
  const Weight& w = *args.weight;
  const uint8_t* lines = w.panel(panel, args.expert);
  const Activations& a = args.input;
  const bool ahead = args.prefetch && first == 0, fine = w.format == Format::Q4 || w.format == Format::Q8;
  const int groups = Form::groups(w), all = groups + (fine ? 2 * a.fine_pairs : 0), behind = (groups + 1) / 2 * 2;
  const int64_t group_bytes = w.panel_stride / groups;
  const int tiles = (rows + kTileSide - 1) / kTileSide;
  // The last tile of all rows is whole too: rows before it are made twice.
  auto first_of = [&](int tile) {
    const int row = first + tile * kTileSide, last = args.rows - kTileSide;
    return row < last ? row : last;
  };
  int each = 1;
  if constexpr (parts) each = Form::each(w);
  for (int i = 0; i < tiles * kTileSide; ++i) {
    store(out + i * kPanel, zero());
    if constexpr (parts) store(part + i * kPanel, zero());
  }
  for (int begin = 0, end; begin < all; begin = end) {
    const int limit = begin < groups ? groups : all;  // own and fine pairs need not be side by side
    end = limit - begin < kSliceGroups ? limit : begin + kSliceGroups;
    for (int i = begin; i < end; ++i) {
      const int rest = i - groups;
      if (ahead && rest < 0) prefetch_lines(lines + i * group_bytes, int(group_bytes + 63) / 64);
      Form::unpack(w, lines, rest < 0 ? i : 2 * a.fine[rest / 2] + rest % 2, steps + (i - begin) * kSteps);
    }
    const int g = begin < groups ? begin : behind + begin - groups;
    for (int tile = 0; tile < tiles; ++tile) {
      float* sums = out + tile * kTileSums;
      fold_steps<Form::kFold, Made::kInputs>(a.row(first_of(tile)), steps, (end - begin) * kSteps, g, each,
                                             parts ? part + tile * kTileSums : sums, sums);
    }
  }
  const int last = (tiles - 1) * kTileSide, twice = first + last - first_of(tiles - 1);
  for (int r = last; twice && r < rows; ++r) store(out + r * kPanel, load(out + (r + twice) * kPanel));
}

struct ByTiles {
  static constexpr int kRows = kBlockRows;

  static void product(const LinearArgs& args, int panel, int first, int rows, float* out) {
    switch (args.weight->format) {
      case Format::Q4: return block_product<Q4Tiles>(args, panel, first, rows, out);
      case Format::Q8: return block_product<Q8Tiles>(args, panel, first, rows, out);
      case Format::Q5: return block_product<Q5Tiles>(args, panel, first, rows, out);
      case Format::Q4Super: return block_product<SuperTiles<Bits4>>(args, panel, first, rows, out);
      case Format::Q5Super: return block_product<SuperTiles<Bits5>>(args, panel, first, rows, out);
      case Format::Q6: return block_product<Q6Tiles>(args, panel, first, rows, out);
      case Format::Q4Group: return block_product<GroupTiles<Bits4, 0>>(args, panel, first, rows, out);
      case Format::Q8Group: return block_product<GroupTiles<Bits8, 128>>(args, panel, first, rows, out);
      case Format::Iq4: return block_product<TableTiles<Table4<kIq4Values>>>(args, panel, first, rows, out);
      case Format::Fp4: return block_product<TableTiles<Table4<kFp4Values>>>(args, panel, first, rows, out);
      case Format::F32:
      case Format::BF16: return;
    }
  }
};

template <void (*Tiles)(const LinearArgs&), void (*Rows)(const LinearArgs&)>
inline void by_tiles_or_rows(const LinearArgs& args) {
  if (args.rows < kTileSide || !is_quantized(args.weight->format)) return Rows(args);
  tile_shapes(TileShapes(args.weight->format == Format::Q6 ? 16 : kGroup));
  Tiles(args);
  tile_release();
}

constexpr KernelTable with_tiles(KernelTable table) {
  table.linear = by_tiles_or_rows<linear<ByTiles>, linear<ByRows>>;
  table.linear_add = by_tiles_or_rows<linear_add<ByTiles>, linear_add<ByRows>>;
  table.linear_gated = by_tiles_or_rows<linear_gated<ByTiles>, linear_gated<ByRows>>;
  return table;
}
