// program.h: a forward pass as a list of operators, recorded once and run for any batch.
//
// Between two operators called from Python pass some microseconds, of which a short text has dozens
// a layer. A program holds what does not depend on the batch; a run needs the batch's arrays only.
//
// A team meets after every operator, and then each member reads what another core has just written.
// Only attention has to: every other operator needs no row but its own. Where a text has rows enough
// (LinearKernel::rows_alone), each member therefore takes its rows through all operators between two
// attentions.
#pragma once

#include <vector>

#include "operators.h"

namespace minibert {

enum class Rows { kTokens, kSequences };

// The result of an operator: `cols` wide, with a row for each token or each sequence.
struct Value {
  Rows rows;
  int64_t cols;
};

struct Instruction {
  enum Kind { kEmbed, kLinear, kLayerNorm, kAttention, kPool, kNormalize, kCopyColumns };
  Kind kind;
  int out = -1, in = -1, residual = -1;  // values
  const PackedLinear* weights = nullptr;
  Activation activation = kNoActivation;
  Norm norm = {};
  EmbedTable tables[kNumTables] = {};    // without ids
  int64_t num_heads = 0, head_dim = 0, first_col = 0;
  float softmax_scale = 0.0f;
  AttentionFormat format = kAttentionFloat32;
  PoolMode mode = kCls;
};

struct ProgramBatch {
  const int32_t* ids[kNumTables];  // (num_tokens,)
  const int32_t* cu_seqlens;       // (num_seqs + 1,)
  const int32_t* skip;             // (num_seqs,)
  int64_t num_tokens, num_seqs;
  int64_t rows(Rows kind) const { return kind == Rows::kTokens ? num_tokens : num_seqs; }
};

class Program {
 public:
  int add_value(Value value);
  void add(const Instruction& instruction);
  // Ends the recording: these values are results, all others share memory by turns.
  void finish(const std::vector<int>& results);
  size_t num_results() const { return results_.size(); }
  // `results`: an array for each, (rows, cols). Returns what first_outside returns; an id outside
  // its table ends the run.
  int64_t run(Stream& stream, const ProgramBatch& batch, float* const* results) const;

 private:
  // Where values lie that share memory by turns.
  struct Layout {
    std::vector<Value> slots;
    std::vector<int> slot_of;  // of each value; -1 for results
  };
  using Addresses = std::vector<float*>;  // of each value

  void check(int value) const;
  bool takes_rows(const Instruction& step) const;
  Layout lay_out(bool by_rows) const;
  Addresses place(Stream& stream, const Layout& layout, const ProgramBatch& batch,
                  float* const* results) const;
  void run_step(Stream& stream, const Instruction& step, const ProgramBatch& batch,
                const Addresses& at) const;
  void run_rows(Stream& stream, size_t first, size_t end, const ProgramBatch& batch,
                const Addresses& at) const;
  void run_step_of_rows(const Kernels& kernels, Member& member, const Instruction& step,
                        const ProgramBatch& batch, const Addresses& at, int64_t row_begin,
                        int64_t row_end) const;

  std::vector<Value> values_;
  std::vector<Instruction> instructions_;
  std::vector<int> results_;
  Layout narrow_;        // least memory: for operators one after the other
  Layout rows_apart_;    // for members that each take their rows through several operators
  int64_t rows_alone_ = 1;
};

}  // namespace minibert
