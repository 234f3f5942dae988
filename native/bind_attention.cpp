// Python binding of rotate, attend and merge by instruction set, for tests: one layer of one batch, cut into
// items as the test says.
#include "bind_attention.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <ctime>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/cpu.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <typename T, int Dims>
using Out = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Floats = std::optional<Array<float, 1>>;

const float* pointer(const Floats& array) { return array ? array->data() : nullptr; }

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// One layer over a pool [blocks, K and V, KV head, page] of one group.
class AttentionLayer {
 public:
  AttentionLayer(const std::string& isa, int heads, int kv_heads, int head_dim, int block_size, int kind,
                 const Out<uint8_t, 1>& pool, int64_t head_stride)
      : kernels_(choose_instruction_set(isa).kernels) {
    rotation_.shape = attention_.shape = {heads, kv_heads, head_dim};
    rotation_.scale = 1.0f;
    const int64_t kv = kv_heads * head_stride;
    pages_ = {pool.data(), 2 * kv, kv, head_stride, block_size, 0, KvKind(kind)};
  }

  void attention(int window, float softcap, const Floats& sinks) {
    attention_.window = window, attention_.softcap = softcap, attention_.sinks = pointer(sinks);
  }
  void rotation(bool interleaved, const Floats& q_gain, const Floats& k_gain, float eps, float scale) {
    rotation_.interleaved = interleaved, rotation_.q_gain = pointer(q_gain), rotation_.k_gain = pointer(k_gain);
    rotation_.eps = eps, rotation_.scale = scale;
  }

  // qkv [T, (H + 2G) * D] of one row at positions start.. -> q [T, H * D], its keys and values to their pages.
  void rotate(const Array<float, 2>& qkv, const Array<float, 2>& cos, const Array<float, 2>& sin,
              const Array<int32_t, 1>& table, int start, const Out<float, 2>& q) {
    const HeadShape& shape = rotation_.shape;
    rotation_.half = int(cos.shape(1));
    for (size_t token = 0; token < qkv.shape(0); ++token) {
      const int position = start + int(token);
      RotateArgs args{};
      args.rotation = &rotation_, args.pages = &pages_;
      args.qkv = qkv.data() + token * qkv.shape(1), args.q = q.data() + token * q.shape(1);
      args.cos = cos.data() + token * cos.shape(1), args.sin = sin.data() + token * sin.shape(1);
      args.block = table.data()[position / pages_.block_size], args.place = position % pages_.block_size;
      args.last_head = shape.heads + 2 * shape.kv_heads;
      kernels_->rotate(args);
    }
  }

  // q [T, H * D] of one row -> out [T, H * D] and out as int8 [T, H * D] with scales, if given. Items of `tokens`
  // tokens and `heads` query heads; `split`: of one token and one range of keys. Returns CPU seconds.
  double attend(const Array<float, 2>& q, const Array<int32_t, 1>& table, int start, int tokens, int heads, bool split,
                const Out<float, 2>& out, const std::optional<Out<int8_t, 2>>& bytes,
                const std::optional<Out<float, 2>>& scales) {
    const HeadShape& shape = attention_.shape;
    const int total = int(q.shape(0)), each = shape.heads / shape.kv_heads;
    std::vector<uint8_t> scratch(attend_scratch(pages_.kind, shape.head_dim));
    std::vector<float> sums(size_t(total) * (shape.heads * shape.head_dim / kGroup + 2));
    std::vector<int32_t> starts(sums.size()), halves(2 * sums.size());
    Activations target;
    if (bytes) {
      target.q = bytes->data(), target.q_stride = int64_t(bytes->shape(1));
      target.scale = scales->data(), target.s_stride = int64_t(scales->shape(1));
      target.sum = sums.data(), target.start = starts.data();
    }
    const double begin = thread_seconds();
    for (int first = 0; first < total; first += split ? 1 : tokens) {
      for (int head = 0; head < shape.heads;) {
        AttendArgs args{};
        args.attention = &attention_, args.pages = &pages_, args.table = table.data();
        args.kv_head = head / each, args.first_head = head;
        args.heads_each = std::min(heads, each - head % each);
        args.q = q.data() + int64_t(first) * q.shape(1), args.q_stride = int64_t(q.shape(1));
        args.tokens = split ? 1 : std::min(tokens, total - first), args.position = start + first;
        args.out = out.data() + int64_t(first) * out.shape(1), args.out_stride = int64_t(out.shape(1));
        if (bytes) args.quantized = target.row(first);
        args.scratch = scratch.data();
        if (split) {
          run_split(args);
        } else {
          kernels_->attend(args);
        }
        head += args.heads_each;
      }
    }
    return thread_seconds() - begin;
  }

 private:
  void run_split(AttendArgs& args) {
    const int ranges = (args.position + kKeyRange) / kKeyRange;
    const int floats = args.heads_each * partial_floats(attention_.shape.head_dim);
    std::vector<float> partials(size_t(ranges) * floats);
    for (args.range = 0; args.range < ranges; ++args.range) {
      args.partial = partials.data() + args.range * floats;
      kernels_->attend(args);
    }
    kernels_->merge(attention_, partials.data(), ranges, args.first_head, args.heads_each, args.out, args.quantized);
  }

  const KernelTable* kernels_;
  Rotation rotation_{};
  Attention attention_{};
  LayerPages pages_{};
};

}  // namespace

void bind_attention(nb::module_& m) {
  nb::class_<AttentionLayer>(m, "AttentionLayer")
      .def(nb::init<const std::string&, int, int, int, int, int, const Out<uint8_t, 1>&, int64_t>(), "isa"_a, "heads"_a,
           "kv_heads"_a, "head_dim"_a, "block_size"_a, "kind"_a, "pool"_a, "head_stride"_a, nb::keep_alive<1, 8>())
      .def("attention", &AttentionLayer::attention, "window"_a, "softcap"_a, "sinks"_a.none(), nb::keep_alive<1, 4>())
      .def("rotation", &AttentionLayer::rotation, "interleaved"_a, "q_gain"_a.none(), "k_gain"_a.none(), "eps"_a,
           "scale"_a, nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>())
      .def("rotate", &AttentionLayer::rotate, "qkv"_a, "cos"_a, "sin"_a, "table"_a, "start"_a, "q"_a)
      .def("attend", &AttentionLayer::attend, "q"_a, "table"_a, "start"_a, "tokens"_a, "heads"_a, "split"_a, "out"_a,
           "bytes"_a.none(), "scales"_a.none());
}

}  // namespace penstock
