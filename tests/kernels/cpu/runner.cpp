// runner.cpp: one operator on one path, without Python: for builds that Python cannot load, such as
// another processor's under emulation.
//
//   runner paths
//   runner PATH THREADS linear FORMAT rows out_features in_features activation residual
//   runner PATH THREADS attention num_heads head_dim seqlen...       (or attention_narrow, _split)
//   runner PATH THREADS layer_norm rows hidden_size
//   runner PATH THREADS elementwise activation count        (activation -1: exp)
//
// Built with AMX_TRAP, `runner --trap-amx PATH ...` runs a path though the processor does not
// support it: amx_trap.h carries out its AMX instructions. Standard error says how many.
//
// float32 operands come from standard input in the order of the operator's parameters, the result
// goes to standard output.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "dispatch.h"
#include "operators.h"

#ifdef AMX_TRAP
#include "amx_trap.h"
#endif

namespace {

using namespace minibert;

std::vector<float> read_floats(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  if (std::fread(values.data(), sizeof(float), values.size(), stdin) != values.size()) {
    std::fprintf(stderr, "standard input must hold %lld more values\n", (long long)count);
    std::exit(2);
  }
  return values;
}

void write_floats(const std::vector<float>& values) {
  std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}

void run_linear(Stream& stream, const char* format, const std::vector<int64_t>& n) {
  const int64_t rows = n[0], out_features = n[1], in_features = n[2];
  const auto hidden = read_floats(rows * in_features);
  const auto weight = read_floats(out_features * in_features);
  const auto bias = read_floats(out_features);
  const auto residual = read_floats(n[4] ? rows * out_features : 0);
  const PackedLinear packed(stream.kernels, format, weight.data(), out_features, in_features,
                            bias.data());
  std::vector<float> out(static_cast<size_t>(rows * out_features));
  LinearCall call = {};
  call.out = out.data();
  call.hidden = hidden.data();
  call.residual = n[4] ? residual.data() : nullptr;
  call.num_rows = rows;
  call.activation = static_cast<Activation>(n[3]);
  linear(stream, packed, call);
  write_floats(out);
}

void run_attention(Stream& stream, AttentionFormat format, const std::vector<int64_t>& n) {
  std::vector<int32_t> cu_seqlens = {0};
  for (size_t i = 2; i < n.size(); ++i) {
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(n[i]));
  }
  const int64_t tokens = cu_seqlens.back(), width = n[0] * n[1];
  const auto qkv = read_floats(tokens * 3 * width);
  std::vector<float> context(static_cast<size_t>(tokens * width));
  const float scale = 1.0f / static_cast<float>(n[1]);
  attention(stream, {context.data(), qkv.data(), n[0], n[1], scale, format}, cu_seqlens.data(),
            static_cast<int64_t>(cu_seqlens.size()) - 1);
  write_floats(context);
}

void run_layer_norm(Stream& stream, const std::vector<int64_t>& n) {
  const auto hidden = read_floats(n[0] * n[1]);
  const auto weight = read_floats(n[1]), bias = read_floats(n[1]);
  std::vector<float> out(hidden.size());
  layer_norm(stream, out.data(), hidden.data(), {weight.data(), bias.data(), 1e-5f}, n[0], n[1]);
  write_floats(out);
}

void run_elementwise(const Kernels* kernels, const std::vector<int64_t>& n) {
  auto values = read_floats(n[1]);
  if (n[0] < 0)
    kernels->exponential(values.data(), n[1]);
  else
    kernels->activate(values.data(), n[1], static_cast<Activation>(n[0]));
  write_floats(values);
}

}  // namespace

int main(int argc, char** argv) {
  int count = 0;
  const Path* paths = all_paths(&count);
  if (argc == 2 && std::strcmp(argv[1], "paths") == 0) {
    for (int i = 0; i < count; ++i) {
      if (paths[i].supported) std::printf("%s\n", paths[i].kernels->name);
    }
    return 0;
  }
  bool trap = false;
#ifdef AMX_TRAP
  if (argc > 1 && std::strcmp(argv[1], "--trap-amx") == 0) {
    amx::install_trap();
    trap = true;
    ++argv, --argc;
  }
#endif
  if (argc < 5) return 2;
  const Kernels* kernels = nullptr;
  for (int i = 0; i < count; ++i) {
    if ((paths[i].supported || trap) && std::strcmp(paths[i].kernels->name, argv[1]) == 0) {
      kernels = paths[i].kernels;
    }
  }
  if (kernels == nullptr) return 3;
  const std::string op = argv[3];
  const int first = op == "linear" ? 5 : 4;
  std::vector<int64_t> numbers;
  for (int i = first; i < argc; ++i) numbers.push_back(std::atoll(argv[i]));
  Stream stream(kernels, std::atoi(argv[2]));
  if (op == "linear") run_linear(stream, argv[4], numbers);
  else if (op == "attention") run_attention(stream, kAttentionFloat32, numbers);
  else if (op == "attention_narrow") run_attention(stream, kAttentionNarrow, numbers);
  else if (op == "attention_split") run_attention(stream, kAttentionSplit, numbers);
  else if (op == "layer_norm") run_layer_norm(stream, numbers);
  else if (op == "elementwise") run_elementwise(kernels, numbers);
  else return 2;
#ifdef AMX_TRAP
  if (trap) std::fprintf(stderr, "trapped %ld\n", amx::trapped());
#endif
  return 0;
}
