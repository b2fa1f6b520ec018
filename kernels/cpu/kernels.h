// kernels.h: what one instruction-set path offers, as plain tables of functions.
//
// Each path_*.cpp compiles the same headers with its own compiler flags and fills one `Kernels`.
// This header therefore holds declarations only: an inline function here would be compiled once per
// path, the linker would keep any one of the copies, and a processor without AVX-512 might be given
// the AVX-512 one. For the same reason paths include no C++ standard headers with inline code.
//
// Shapes are those of minibert/ops/interface.py. Row-major, float32, no padding between rows.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace minibert {

enum Activation : int { kNoActivation, kGelu, kGeluTanh, kRelu, kSilu, kTanh };

struct LinearKernel;

// A range of a layer's inputs fixed beforehand, low <= 0 <= high; low == high: there is none.
struct InputRange {
  float low, high;
};

// One linear layer as a kernel laid it out.
struct Linear {
  const LinearKernel* kernel;
  int64_t out_features;
  int64_t in_features;
  void* packed;       // weight_bytes of it, 64-byte aligned
  const float* bias;  // out_features rounded up to panel_cols, zeros where there is none
  InputRange input_range;  // for formats that quantise the activations
};

// One call: out = activation(hidden @ weight.T + bias) + residual.
struct LinearCall {
  float* out;             // (num_rows, out_features)
  const float* hidden;    // (num_rows, in_features)
  const float* residual;  // (num_rows, out_features) or null
  const void* prepared;   // what `prepare` wrote, or null
  int64_t num_rows;
  Activation activation;
  int64_t prefetch_end;   // end of the panels that this thread most likely takes, in this job or next
};

// How one number format is multiplied on one path. A job is a block of rows times a range of
// panels; its result does not depend on how the call was divided into jobs.
struct LinearKernel {
  const char* format;   // "float32", "float32-block", "bfloat16", "float16", "int8", ...
  int64_t panel_cols;   // output features that one packed panel holds
  int64_t block_rows;   // rows of a job: what keeps its slice of `hidden` in the second-level cache
  int64_t max_in_features;  // where an exact integer sum would overflow; 0: no limit
  // Which weights are zero matters to some formats.
  size_t (*weight_bytes)(const float* weight, int64_t out_features, int64_t in_features);
  void (*pack)(void* packed, const float* weight, int64_t out_features, int64_t in_features);
  // Formats that quantise or split the activations do it once per call, in jobs of a multiple of
  // prepare_rows rows.
  int64_t prepare_rows;
  size_t (*prepared_bytes)(int64_t num_rows, int64_t in_features);  // null: hidden is used as it is
  void (*prepare)(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                  int64_t num_rows, const Linear& linear);
  size_t (*scratch_bytes)(int64_t in_features);
  void (*compute)(const Linear& linear, const LinearCall& call, int64_t row_begin, int64_t row_end,
                  int64_t panel_begin, int64_t panel_end, void* scratch);
  // Rows whose products take about as long as reading all weights. From so many for each member of a
  // team, each reads all of them for its own rows, which saves meeting after every operator.
  int64_t rows_alone = 16;
};

struct EmbedTable {
  const int32_t* ids;   // (num_tokens,)
  const float* weight;  // (num_rows, hidden_size), null where the family has no such table
  int64_t num_rows;
};

struct Norm {
  const float* weight;  // (hidden_size,), null: no layer_norm
  const float* bias;    // (hidden_size,) or null
  float eps;
};

// How attention multiplies; a path that has no kernel of a format takes kAttentionFloat32.
enum AttentionFormat : int {
  kAttentionFloat32,
  kAttentionSplit,   // two bfloat16 parts of each operand
  kAttentionNarrow,  // 16 bits: bfloat16, or integers with a scale
  kAttentionFormats
};

// Heads wider than this are computed in float32, a block of keys at a time, whatever the format and
// the length: integer scores would not be exact, and short sequences keep their keys on the stack.
constexpr int64_t kMostHeadDim = 128;

struct AttentionCall {
  float* context;     // (num_tokens, num_heads * head_dim)
  const float* qkv;   // (num_tokens, 3 * num_heads * head_dim)
  int64_t num_heads;
  int64_t head_dim;
  float softmax_scale;
  AttentionFormat format;
};

struct AttentionKernel {
  size_t (*scratch_bytes)(int64_t head_dim);
  // One head of one sequence: tokens begin..end of the batch.
  void (*compute)(const AttentionCall& call, int64_t begin, int64_t end, int64_t head,
                  void* scratch);
};

struct Kernels {
  const char* name;
  const LinearKernel* linear;  // ends with an entry whose format is null
  void (*layer_norm)(float* out, const float* hidden, const Norm& norm, int64_t row_begin,
                     int64_t row_end, int64_t hidden_size);
  void (*embed)(float* out, const EmbedTable* tables, int num_tables, const Norm& norm,
                int64_t row_begin, int64_t row_end, int64_t hidden_size);
  AttentionKernel attention[kAttentionFormats];
  // values = activation(values), for tests of the polynomials themselves.
  void (*activate)(float* values, int64_t count, Activation activation);
  void (*exponential)(float* values, int64_t count);
};

}  // namespace minibert
