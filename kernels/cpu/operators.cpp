#include "operators.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace minibert {
namespace {

constexpr size_t kAlignment = 64;
constexpr int64_t kNormRows = 32;  // most rows of a layer_norm job

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Jobs that a team should have per member: enough that one who is interrupted is relieved.
constexpr int64_t kJobsPerMember = 4;
constexpr int64_t kFewestRows = 4;  // of a job: less is quicker done than handed out

// Rows of a job that costs little: all that one thread may take, or a member's share.
int64_t rows_per_job(const Stream& stream, int64_t num_rows, int64_t most) {
  if (stream.team->size() == 1) return most;
  const int64_t share = ceil_div(num_rows, kJobsPerMember * stream.team->size());
  return std::min(most, std::max(kFewestRows, share));
}

const LinearKernel* find_kernel(const Kernels* kernels, const char* format) {
  for (const LinearKernel* k = kernels->linear; k->format != nullptr; ++k) {
    if (std::strcmp(k->format, format) == 0) return k;
  }
  throw std::invalid_argument(std::string("format ") + format + " is not part of path " +
                              kernels->name);
}

}  // namespace

Buffer::~Buffer() { std::free(data_); }

void* Buffer::reserve(size_t bytes) {
  if (bytes > bytes_) {
    // The old block goes first: nobody wants its contents, and both might not fit.
    std::free(data_);
    bytes_ = 0;
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    data_ = std::aligned_alloc(kAlignment, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    bytes_ = rounded;
  }
  return data_;
}

Stream::Stream(const Kernels* path, int num_threads)
    : kernels(path), team(std::make_unique<Team>(num_threads)) {
  for (int i = 0; i < team->size(); ++i) members.push_back(std::make_unique<Member>());
}

size_t Stream::bytes() const {
  size_t sum = prepared.bytes() + activations.bytes();
  for (const auto& member : members) sum += member->scratch.bytes() + member->prepared.bytes();
  return sum;
}

PackedLinear::PackedLinear(const Kernels* kernels, const char* format, const float* weight,
                           int64_t out_features, int64_t in_features, const float* bias_values,
                           void* laid_out, Background* background) {
  const LinearKernel* kernel = find_kernel(kernels, format);
  if (kernel->max_in_features > 0 && in_features > kernel->max_in_features) {
    throw std::invalid_argument("in_features must be at most " +
                                std::to_string(kernel->max_in_features) + " in format " + format +
                                ", got " + std::to_string(in_features));
  }
  const int64_t padded = ceil_div(out_features, kernel->panel_cols) * kernel->panel_cols;
  auto* bias_padded = static_cast<float*>(bias.reserve(sizeof(float) * static_cast<size_t>(padded)));
  std::fill(bias_padded, bias_padded + padded, 0.0f);
  if (bias_values != nullptr) std::copy(bias_values, bias_values + out_features, bias_padded);
  if (weight != nullptr) {
    packed = WeightMemory(kernel->weight_bytes(weight, out_features, in_features));
    const auto pack = [kernel, memory = packed, weight, out_features, in_features] {
      kernel->pack(memory.data(), weight, out_features, in_features);
    };
    if (background != nullptr) {
      background->add(pack);
    } else {
      pack();
    }
    laid_out = packed.data();
  }
  linear = {kernel, out_features, in_features, laid_out, bias_padded, {0.0f, 0.0f}};
}

MemberMemory reserve(Member& member, const PackedLinear& weights, int64_t num_rows) {
  const Linear& layer = weights.linear;
  const LinearKernel& kernel = *layer.kernel;
  return {kernel.prepare == nullptr
              ? nullptr
              : member.prepared.reserve(kernel.prepared_bytes(num_rows, layer.in_features)),
          member.scratch.reserve(kernel.scratch_bytes(layer.in_features))};
}

void linear(Member& member, const PackedLinear& weights, LinearCall call) {
  const Linear& layer = weights.linear;
  const LinearKernel& kernel = *layer.kernel;
  const MemberMemory memory = reserve(member, weights, call.num_rows);
  if (kernel.prepare != nullptr)
    kernel.prepare(memory.prepared, call.hidden, 0, call.num_rows, call.num_rows, layer);
  call.prepared = memory.prepared;
  call.prefetch_end = ceil_div(layer.out_features, kernel.panel_cols);
  for (int64_t row = 0; row < call.num_rows; row += kernel.block_rows)
    kernel.compute(layer, call, row, std::min(call.num_rows, row + kernel.block_rows), 0,
                   call.prefetch_end, memory.scratch);
}

void linear(Stream& stream, const PackedLinear& weights, LinearCall call) {
  const Linear& layer = weights.linear;
  const LinearKernel& kernel = *layer.kernel;
  if (call.num_rows == 0) return;
  if (stream.team->size() == 1) return linear(*stream.members[0], weights, call);
  const int64_t row_blocks = ceil_div(call.num_rows, kernel.block_rows);
  const int64_t panels = ceil_div(layer.out_features, kernel.panel_cols);
  const int64_t rows_per_block = kernel.block_rows;
  if (kernel.prepare != nullptr) {
    void* prepared = stream.prepared.reserve(
        kernel.prepared_bytes(call.num_rows, layer.in_features));
    const int64_t unit = kernel.prepare_rows;
    const int64_t rows =
        ceil_div(rows_per_job(stream, call.num_rows, rows_per_block), unit) * unit;
    run(stream, ceil_div(call.num_rows, rows), [&](int64_t job, int) {
      kernel.prepare(prepared, call.hidden, job * rows, std::min(call.num_rows, (job + 1) * rows),
                     call.num_rows, layer);
    });
    call.prepared = prepared;
  }
  const int64_t wanted = ceil_div(kJobsPerMember * stream.team->size(), row_blocks);
  const int64_t groups = std::max<int64_t>(1, std::min(panels, wanted));
  const size_t scratch_bytes = kernel.scratch_bytes(layer.in_features);
  for (auto& member : stream.members) member->scratch.reserve(scratch_bytes);
  const int64_t num_jobs = row_blocks * groups;
  run(stream, num_jobs, [&](int64_t job, int worker) {
    const int64_t block = job / groups, group = job % groups;
    const int64_t panel_end = panels * (group + 1) / groups;
    const bool goes_on = group + 1 < groups && stream.team->same_share(num_jobs, job);
    LinearCall own = call;
    own.prefetch_end = panel_end + (goes_on ? 1 : 0);
    kernel.compute(layer, own, block * rows_per_block,
                   std::min(call.num_rows, (block + 1) * rows_per_block),
                   panels * group / groups, panel_end,
                   stream.members[static_cast<size_t>(worker)]->scratch.reserve(scratch_bytes));
  });
}

void layer_norm(Stream& stream, float* out, const float* hidden, const Norm& norm,
                int64_t num_rows, int64_t hidden_size) {
  const int64_t rows = rows_per_job(stream, num_rows, kNormRows);
  run(stream, ceil_div(num_rows, rows), [&](int64_t job, int) {
    stream.kernels->layer_norm(out, hidden, norm, job * rows, std::min(num_rows, (job + 1) * rows),
                               hidden_size);
  });
}

int64_t first_outside(const EmbedTable* tables, int num_tables, int64_t num_tokens) {
  for (int64_t i = 0; i < num_tokens; ++i) {
    for (int t = 0; t < num_tables; ++t) {
      if (tables[t].weight == nullptr) continue;
      const int32_t id = tables[t].ids[i];
      if (id < 0 || id >= tables[t].num_rows) return num_tables * i + t;
    }
  }
  return -1;
}

void embed(Stream& stream, float* out, const EmbedTable* tables, int num_tables, const Norm& norm,
           int64_t num_tokens, int64_t hidden_size) {
  const int64_t rows = rows_per_job(stream, num_tokens, kNormRows);
  run(stream, ceil_div(num_tokens, rows), [&](int64_t job, int) {
    stream.kernels->embed(out, tables, num_tables, norm, job * rows,
                          std::min(num_tokens, (job + 1) * rows), hidden_size);
  });
}

void attention(Stream& stream, const AttentionCall& call, const int32_t* cu_seqlens,
               int64_t num_seqs) {
  const AttentionKernel* kernels = stream.kernels->attention;
  const bool wide = call.head_dim > kMostHeadDim;
  const AttentionKernel& kernel =
      kernels[wide || kernels[call.format].compute == nullptr ? kAttentionFloat32 : call.format];
  const size_t scratch_bytes = kernel.scratch_bytes(call.head_dim);
  for (auto& member : stream.members) member->scratch.reserve(scratch_bytes);
  run(stream, num_seqs * call.num_heads, [&](int64_t job, int worker) {
    const int64_t seq = job / call.num_heads;
    kernel.compute(call, cu_seqlens[seq], cu_seqlens[seq + 1], job % call.num_heads,
                   stream.members[static_cast<size_t>(worker)]->scratch.reserve(scratch_bytes));
  });
}

}  // namespace minibert
