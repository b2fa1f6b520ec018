#include "program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace minibert {
namespace {

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

// The narrowest free slot that is wide enough, else the widest, made wider, else a new one.
int Program::take_slot(Value value, std::vector<int>& free) {
  auto best = free.end();
  for (auto it = free.begin(); it != free.end(); ++it) {
    if (slots_[*it].rows != value.rows) continue;
    if (best == free.end()) {
      best = it;
      continue;
    }
    const int64_t cols = slots_[*it].cols, best_cols = slots_[*best].cols;
    const bool fits = cols >= value.cols, best_fits = best_cols >= value.cols;
    if (fits != best_fits ? fits : fits ? cols < best_cols : cols > best_cols) best = it;
  }
  if (best == free.end()) {
    slots_.push_back({value.rows, value.cols});
    return static_cast<int>(slots_.size()) - 1;
  }
  const int slot = *best;
  free.erase(best);
  slots_[slot].cols = std::max(slots_[slot].cols, value.cols);
  return slot;
}

void Program::finish(const std::vector<int>& results) {
  for (int value : results) check(value);
  results_ = results;
  const size_t count = values_.size();
  std::vector<size_t> last_use(count, 0);
  for (size_t i = 0; i < instructions_.size(); ++i) {
    for (int value : {instructions_[i].out, instructions_[i].in, instructions_[i].residual})
      if (value >= 0) last_use[value] = i;
  }
  slot_of_.assign(count, -1);
  std::vector<int> free;
  for (size_t i = 0; i < instructions_.size(); ++i) {
    const int out = instructions_[i].out;
    const bool result = std::find(results.begin(), results.end(), out) != results.end();
    if (!result && slot_of_[out] < 0) slot_of_[out] = take_slot(values_[out], free);
    // Only now may inputs go: an operator must not write over what it reads.
    for (size_t value = 0; value < count; ++value)
      if (slot_of_[value] >= 0 && last_use[value] == i) free.push_back(slot_of_[value]);
  }
}

int64_t Program::run(Stream& stream, const ProgramBatch& batch, float* const* results) const {
  std::vector<int64_t> offset(slots_.size());
  int64_t floats = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    offset[i] = floats;
    floats += round_up(batch.rows(slots_[i].rows) * slots_[i].cols);
  }
  auto* memory = static_cast<float*>(
      stream.activations.reserve(sizeof(float) * static_cast<size_t>(floats)));
  std::vector<float*> at(values_.size(), nullptr);
  for (size_t value = 0; value < values_.size(); ++value)
    if (slot_of_[value] >= 0) at[value] = memory + offset[slot_of_[value]];
  for (size_t i = 0; i < results_.size(); ++i) at[results_[i]] = results[i];

  for (const Instruction& step : instructions_) {
    float* out = at[step.out];
    const float* in = step.in >= 0 ? at[step.in] : nullptr;
    const Value& to = values_[step.out];
    const int64_t rows = batch.rows(to.rows);
    switch (step.kind) {
      case Instruction::kEmbed: {
        EmbedTable tables[kNumTables];
        for (int t = 0; t < kNumTables; ++t) {
          tables[t] = step.tables[t];
          tables[t].ids = batch.ids[t];
        }
        const int64_t outside =
            embed(stream, out, tables, kNumTables, step.norm, batch.num_tokens, to.cols);
        if (outside >= 0) return outside;
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
        call.int16 = step.int16;
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
  return -1;
}

}  // namespace minibert
