// The kernel table of the instruction set that is being compiled.

inline void add_entry(float* x, const float* delta, float scale, int n) { add_scaled(x, delta, scale, n); }

constexpr KernelTable make_table(const char* name) {
  KernelTable table{};
  table.name = name;
  table.tile_rows = kTileRows;
  table.embed = embed;
  table.norm = norm;
  table.quantize = quantize;
  table.quantize_row = quantize_row;
  table.add = add_entry;
  table.linear = linear<ByRows>;
  table.linear_add = linear_add<ByRows>;
  table.linear_gated = linear_gated<ByRows>;
  table.rotate = rotate;
  table.attend = attend;
  table.merge = merge;
  table.add_sigmoid = add_sigmoid;
  table.route = route;
  table.mix = mix;
  table.layer_norm = layer_norm;
  table.linear_activated = linear_activated;
  table.attend_text = attend_text;
  table.argmax = argmax;
  table.sample_peaks = sample_peaks;
  table.sample_weigh = sample_weigh;
  table.sample_sums = sample_sums;
  table.sample_estimates = sample_estimates;
  return table;
}
