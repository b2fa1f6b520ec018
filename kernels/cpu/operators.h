// operators.h: the operators of minibert/ops/interface.py, divided into jobs for one stream.
//
// A stream is one thread with its scratch memory (throughput) or a team with scratch for each
// member (latency). Job sizes differ between the two; results do not.
#pragma once

#include <memory>
#include <vector>

#include "background.h"
#include "kernels.h"
#include "team.h"
#include "weight_memory.h"

namespace minibert {

// Memory that grows to what was asked for and stays; 64-byte aligned.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* reserve(size_t bytes);
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// What one member of a team has to itself.
struct Member {
  Buffer scratch;
  Buffer prepared;  // activations of its own rows, as a linear kernel wants them
};

struct Stream {
  Stream(const Kernels* kernels, int num_threads);
  const Kernels* kernels;
  std::unique_ptr<Team> team;
  std::vector<std::unique_ptr<Member>> members;
  Buffer prepared;     // of all rows, where the team divides them
  Buffer activations;  // of a program
  size_t bytes() const;
};

// Calls function(job, worker) for each job, on all members of the stream's team.
template <typename Function>
void run(Stream& stream, int64_t num_jobs, Function function) {
  stream.team->run(
      num_jobs,
      [](void* context, int64_t job, int worker) {
        (*static_cast<Function*>(context))(job, worker);
      },
      &function);
}

// Weights, laid out by the kernel for `format`. Throws std::invalid_argument for a format that the
// path does not have or a layer too deep for exact integer sums.
struct PackedLinear {
  // `weight` null: `laid_out` is what another PackedLinear of these arguments had in
  // linear.packed, 64-byte aligned, and the caller keeps it. `background` lays out `weight` after
  // the constructor has returned, and may do so when this object has gone.
  PackedLinear(const Kernels* kernels, const char* format, const float* weight,
               int64_t out_features, int64_t in_features, const float* bias,
               void* laid_out = nullptr, Background* background = nullptr);
  Linear linear;
  size_t bytes() const { return packed.bytes() + bias.bytes(); }
  WeightMemory packed;
  Buffer bias;
};

void linear(Stream& stream, const PackedLinear& weights, LinearCall call);
// By one member alone; within a job, which must not throw, after `reserve` for as many rows or more.
void linear(Member& member, const PackedLinear& weights, LinearCall call);
struct MemberMemory {
  void* prepared;  // null where the kernel takes activations as they are
  void* scratch;
};
MemberMemory reserve(Member& member, const PackedLinear& weights, int64_t num_rows);
void layer_norm(Stream& stream, float* out, const float* hidden, const Norm& norm,
                int64_t num_rows, int64_t hidden_size);
// -1, or num_tables * token + table of the first id outside its table, which `embed` does not look
// for.
int64_t first_outside(const EmbedTable* tables, int num_tables, int64_t num_tokens);
void embed(Stream& stream, float* out, const EmbedTable* tables, int num_tables, const Norm& norm,
           int64_t num_tokens, int64_t hidden_size);
void attention(Stream& stream, const AttentionCall& call, const int32_t* cu_seqlens,
               int64_t num_seqs);

constexpr int kNumTables = 3;  // word, position, token type

enum PoolMode : int { kCls, kMean, kMax, kMeanSqrtLen, kWeightedMean, kLastToken };

// One vector per sequence; sums in float64, in the order of the tokens.
void pool(float* out, const float* hidden, const int32_t* cu_seqlens, const int32_t* skip,
          int64_t num_seqs, int64_t hidden_size, PoolMode mode);
void normalize(float* out, const float* rows, int64_t num_rows, int64_t size);

// `in` becomes columns first_col, first_col + 1 ... of `out`.
void copy_columns(float* out, int64_t out_cols, int64_t first_col, const float* in,
                  int64_t in_cols, int64_t num_rows);

}  // namespace minibert
