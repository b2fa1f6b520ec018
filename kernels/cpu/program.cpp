#include "program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace minibert {
namespace {

constexpr int64_t kRowsOfJob = 96;  // most of them

int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }  // 64 bytes

}  // namespace

int Program::add_value(Value value) {
  values_.push_back(value);
  return static_cast<int>(values_.size()) - 1;
}

void Program::check(int value) const {
  if (value < 0 || value >= static_cast<int>(values_.size()))
    throw std::invalid_argument("a program has no value " + std::to_string(value));
}

void Program::add(const Instruction& instruction) {
  check(instruction.out);
  if (instruction.kind != Instruction::kEmbed) check(instruction.in);
  if (instruction.residual >= 0) check(instruction.residual);
  instructions_.push_back(instruction);
}

// Where values lie. The widest is placed first, and each in the first slot whose values are never
// there at the same time: so no slot grows, and unlike layers, as pruning leaves them, share slots.
//
// `by_rows`: members take their rows through a run of operators without meeting. Within one, only
// values of one width may follow each other in a slot: no row may lie where another member still
// reads another one.
Program::Layout Program::lay_out(bool by_rows) const {
  struct Life {
    int value;
    size_t born, last;          // instructions
    size_t first_run, last_run;  // they belong to
  };
  std::vector<Life> lives;
  std::vector<int> life_of(values_.size(), -1);
  size_t run = 0;
  for (size_t i = 0; i < instructions_.size(); ++i) {
    const Instruction& step = instructions_[i];
    // All members meet before and after an operator that is not taken by rows.
    if (!by_rows || !takes_rows(step) || !takes_rows(instructions_[i - (i > 0)])) ++run;
    for (int value : {step.out, step.in, step.residual}) {
      if (value < 0 || std::find(results_.begin(), results_.end(), value) != results_.end())
        continue;
      if (life_of[value] < 0) {
        life_of[value] = static_cast<int>(lives.size());
        lives.push_back({value, i, i, run, run});
      }
      lives[life_of[value]].last = i;
      lives[life_of[value]].last_run = run;
    }
  }
  const auto exclude = [&](const Life& a, const Life& b) {
    if (values_[a.value].rows != values_[b.value].rows) return true;
    // An operator must not write over what it reads.
    if (a.born <= b.last && b.born <= a.last) return true;
    return values_[a.value].cols != values_[b.value].cols && a.first_run <= b.last_run &&
           b.first_run <= a.last_run;
  };
  std::stable_sort(lives.begin(), lives.end(), [&](const Life& a, const Life& b) {
    return values_[a.value].cols > values_[b.value].cols;
  });
  Layout layout;
  layout.slot_of.assign(values_.size(), -1);
  std::vector<std::vector<Life>> there;  // of each slot
  for (const Life& life : lives) {
    size_t slot = 0;
    while (slot < there.size() &&
           std::any_of(there[slot].begin(), there[slot].end(),
                       [&](const Life& other) { return exclude(life, other); }))
      ++slot;
    if (slot == there.size()) {
      there.emplace_back();
      layout.slots.push_back(values_[life.value]);
    }
    there[slot].push_back(life);
    layout.slot_of[life.value] = static_cast<int>(slot);
  }
  return layout;
}

// Operators over tokens that need no row but their own.
bool Program::takes_rows(const Instruction& step) const {
  return values_[step.out].rows == Rows::kTokens &&
         (step.kind == Instruction::kEmbed || step.kind == Instruction::kLinear ||
          step.kind == Instruction::kLayerNorm);
}

void Program::finish(const std::vector<int>& results) {
  for (int value : results) check(value);
  results_ = results;
  narrow_ = lay_out(false);
  rows_apart_ = lay_out(true);
  for (const Instruction& step : instructions_)
    if (step.kind == Instruction::kLinear && takes_rows(step))
      rows_alone_ = std::max(rows_alone_, step.weights->linear.kernel->rows_alone);
}

Program::Addresses Program::place(Stream& stream, const Layout& layout, const ProgramBatch& batch,
                                  float* const* results) const {
  std::vector<int64_t> offset(layout.slots.size());
  int64_t floats = 0;
  for (size_t i = 0; i < layout.slots.size(); ++i) {
    offset[i] = floats;
    floats += round_up(batch.rows(layout.slots[i].rows) * layout.slots[i].cols);
  }
  auto* memory = static_cast<float*>(
      stream.activations.reserve(sizeof(float) * static_cast<size_t>(floats)));
  Addresses at(values_.size(), nullptr);
  for (size_t value = 0; value < values_.size(); ++value)
    if (layout.slot_of[value] >= 0) at[value] = memory + offset[layout.slot_of[value]];
  for (size_t i = 0; i < results_.size(); ++i) at[results_[i]] = results[i];
  return at;
}

namespace {

void take_tables(EmbedTable* tables, const Instruction& step, const ProgramBatch& batch) {
  for (int t = 0; t < kNumTables; ++t) {
    tables[t] = step.tables[t];
    tables[t].ids = batch.ids[t];
  }
}

}  // namespace

int64_t Program::run(Stream& stream, const ProgramBatch& batch, float* const* results) const {
  for (const Instruction& step : instructions_) {
    if (step.kind != Instruction::kEmbed) continue;
    EmbedTable tables[kNumTables];
    take_tables(tables, step, batch);
    const int64_t outside = first_outside(tables, kNumTables, batch.num_tokens);
    if (outside >= 0) return outside;
  }
  const int64_t members = stream.team->size();
  const bool by_rows = members > 1 && batch.num_tokens >= members * rows_alone_;
  const Addresses at = place(stream, by_rows ? rows_apart_ : narrow_, batch, results);
  for (size_t i = 0; i < instructions_.size();) {
    size_t end = i;
    while (by_rows && end < instructions_.size() && takes_rows(instructions_[end])) ++end;
    if (end > i) {
      run_rows(stream, i, end, batch, at);
      i = end;
    } else {
      run_step(stream, instructions_[i++], batch, at);
    }
  }
  return -1;
}

void Program::run_step(Stream& stream, const Instruction& step, const ProgramBatch& batch,
                       const Addresses& at) const {
  float* out = at[step.out];
  const float* in = step.in >= 0 ? at[step.in] : nullptr;
  const Value& to = values_[step.out];
  const int64_t rows = batch.rows(to.rows);
  switch (step.kind) {
    case Instruction::kEmbed: {
      EmbedTable tables[kNumTables];
      take_tables(tables, step, batch);
      embed(stream, out, tables, kNumTables, step.norm, rows, to.cols);
      break;
    }
    case Instruction::kLinear: {
      LinearCall call = {};
      call.out = out;
      call.hidden = in;
      call.residual = step.residual >= 0 ? at[step.residual] : nullptr;
      call.num_rows = rows;
      call.activation = step.activation;
      linear(stream, *step.weights, call);
      break;
    }
    case Instruction::kLayerNorm:
      layer_norm(stream, out, in, step.norm, rows, to.cols);
      break;
    case Instruction::kAttention: {
      AttentionCall call = {};
      call.context = out;
      call.qkv = in;
      call.num_heads = step.num_heads;
      call.head_dim = step.head_dim;
      call.softmax_scale = step.softmax_scale;
      call.format = step.format;
      attention(stream, call, batch.cu_seqlens, batch.num_seqs);
      break;
    }
    case Instruction::kPool:
      pool(out, in, batch.cu_seqlens, batch.skip, batch.num_seqs, to.cols, step.mode);
      break;
    case Instruction::kNormalize:
      normalize(out, in, rows, to.cols);
      break;
    case Instruction::kCopyColumns:
      copy_columns(out, to.cols, step.first_col, in, values_[step.in].cols, rows);
      break;
  }
}

void Program::run_rows(Stream& stream, size_t first, size_t end, const ProgramBatch& batch,
                       const Addresses& at) const {
  // As many jobs for each member as keep a job's rows in the second-level cache.
  const int64_t members = stream.team->size(), rows = batch.num_tokens;
  const int64_t num_jobs = members * ((rows - 1) / (members * kRowsOfJob) + 1);
  const int64_t rows_of_job = (rows - 1) / num_jobs + 1;
  for (size_t i = first; i < end; ++i) {
    if (instructions_[i].kind != Instruction::kLinear) continue;
    for (auto& member : stream.members)
      reserve(*member, *instructions_[i].weights, rows_of_job);
  }
  minibert::run(stream, num_jobs, [&](int64_t job, int worker) {
    for (size_t i = first; i < end; ++i)
      run_step_of_rows(*stream.kernels, *stream.members[static_cast<size_t>(worker)],
                       instructions_[i], batch, at, rows * job / num_jobs,
                       rows * (job + 1) / num_jobs);
  });
}

void Program::run_step_of_rows(const Kernels& kernels, Member& member, const Instruction& step,
                               const ProgramBatch& batch, const Addresses& at, int64_t row_begin,
                               int64_t row_end) const {
  float* out = at[step.out];
  const int64_t cols = values_[step.out].cols;
  if (step.kind == Instruction::kEmbed) {
    EmbedTable tables[kNumTables];
    take_tables(tables, step, batch);
    kernels.embed(out, tables, kNumTables, step.norm, row_begin, row_end, cols);
  } else if (step.kind == Instruction::kLayerNorm) {
    kernels.layer_norm(out, at[step.in], step.norm, row_begin, row_end, cols);
  } else {
    LinearCall call = {};
    call.out = out + row_begin * cols;
    call.hidden = at[step.in] + row_begin * values_[step.in].cols;
    if (step.residual >= 0) call.residual = at[step.residual] + row_begin * cols;
    call.num_rows = row_end - row_begin;
    call.activation = step.activation;
    linear(member, *step.weights, call);
  }
}

}  // namespace minibert
