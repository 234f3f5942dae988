// Encoder: BERT-like networks over a batch of texts, as hidden states of their tokens.
//
// Texts are grouped; a thread claims a group and takes it through all layers alone, in buffers of its own. So there
// is no barrier, and what a group holds stays in the thread's caches. Where groups are too few to keep every thread at
// work (a single text), the threads take one together: they claim parts of each operation, and go on when all its parts
// are done, not when all threads have come, so one that the system keeps waiting holds up nobody. A token's bits depend
// on its text only: the kernels' items depend on no other row and on no other column.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "core/memory.h"
#include "core/pool.h"

namespace penstock {

struct EncoderLayer {
  Weight qkv, out, up, down;  // F32 or BF16
  const float *qkv_bias, *out_bias, *up_bias, *down_bias;
  const float *attention_gain, *attention_bias, *ffn_gain, *ffn_bias;  // norms behind the residual additions
};

struct EncoderProgram {
  int32_t hidden, heads, vocab, positions, kinds;  // kinds: token types
  int32_t first_position;                          // row of `place` of a text's first token
  float eps;
  Act activation;
  const float* word;   // [vocab, hidden]
  const float* place;  // [positions, hidden]
  const float* kind;   // [kinds, hidden], or null
  const float *gain, *bias;  // the norm of the embeddings
  std::vector<EncoderLayer> layers;
};

class Encoder {
 public:
  Encoder(EncoderProgram program, const KernelTable* kernels, ThreadPool* pool);

  // Texts of tokens [offsets[i], offsets[i + 1]) with their types (or null: 0) -> out [tokens, hidden].
  void encode(const int32_t* tokens, const int32_t* kinds, const int32_t* offsets, int texts, float* out);

  const EncoderProgram& program() const { return program_; }

 private:
  struct Group {
    int32_t first, last;  // texts
  };

  // Parts of one operation on a group that threads take together.
  struct Phase {
    alignas(64) std::atomic<int32_t> claimed{0};
    alignas(64) std::atomic<int32_t> done{0};
  };

  // A thread's way through the operations on a group: alone, or claiming parts beside others.
  struct Share {
    Phase* next;  // null: alone
    int threads;

    // fn(first, last) of `total` items, `least` or more at once; returns when all of them are done.
    template <typename Fn>
    void each(int total, int least, Fn fn);
  };

  void group(int threads);
  void run(Group group, float* memory, float* scratch, Share& share);
  void embed(Group group, Share& share);
  void attend(Group group, const float* qkv, float* out, float* scratch, Share& share) const;
  void linear(const Weight& weight, const float* bias, const float* input, int rows, float* out, bool activated,
              Share& share) const;

  EncoderProgram program_;
  const KernelTable* kernels_;
  ThreadPool* pool_;
  int widest_ = 0;  // of qkv and the MLP

  // The batch.
  const int32_t *tokens_ = nullptr, *kinds_ = nullptr, *offsets_ = nullptr;
  int texts_ = 0, alone_ = 0;  // alone_: groups that one thread takes each
  float* out_ = nullptr;
  std::vector<Group> groups_;
  std::vector<Phase> phases_;  // of the groups that threads take together
  int64_t thread_floats_ = 0, scratch_floats_ = 0;  // of a thread's memory, and its end that attention uses
  Arena arena_;
};

}  // namespace penstock
