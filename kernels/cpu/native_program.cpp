// native_program.cpp: the functions of _native that record and run a Program. Whoever records keeps
// the weights alive (minibert/ops/cpu_program.py).
#include "native.h"

#include <vector>

#include "program.h"

namespace minibert {
namespace {

void free_program(PyObject* capsule) {
  delete static_cast<Program*>(PyCapsule_GetPointer(capsule, kProgramName));
}

// program() -> capsule
PyObject* py_program(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 0);
  Program* program = nullptr;
  if (!a.ok() || !without_gil([&] { program = new Program; })) return nullptr;
  return PyCapsule_New(program, kProgramName, free_program);
}

// program_value(program, per_sequence, cols) -> number of a new value
PyObject* py_value(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 3);
  auto* program = a.capsule<Program>(kProgramName);
  const Rows rows = a.integer() ? Rows::kSequences : Rows::kTokens;
  const int64_t cols = a.integer();
  int value = -1;
  if (!a.ok() || !without_gil([&] { value = program->add_value({rows, cols}); })) return nullptr;
  return PyLong_FromLong(value);
}

// Each of the following: (program, out, [in, [residual]], what the operator needs).
template <typename Read>
PyObject* add(PyObject* const* values, Py_ssize_t count, Py_ssize_t expected,
              Instruction::Kind kind, Read read) {
  Arguments a(values, count, expected);
  auto* program = a.capsule<Program>(kProgramName);
  Instruction step = {};
  step.kind = kind;
  step.out = static_cast<int>(a.integer());
  if (kind != Instruction::kEmbed) step.in = static_cast<int>(a.integer());
  read(a, step);
  return none_after(a, [&] { program->add(step); });
}

PyObject* py_embed(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 2 + 2 * kNumTables + 3, Instruction::kEmbed,
             [](Arguments& a, Instruction& step) {
               for (EmbedTable& table : step.tables) {
                 table.weight = a.address<const float>();
                 table.num_rows = a.integer();
               }
               step.norm = norm_of(a);
             });
}

PyObject* py_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 6, Instruction::kLinear, [](Arguments& a, Instruction& step) {
    step.residual = static_cast<int>(a.integer());
    step.weights = a.capsule<const PackedLinear>(kLinearName);
    step.activation = static_cast<Activation>(a.integer());
  });
}

PyObject* py_layer_norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 6, Instruction::kLayerNorm,
             [](Arguments& a, Instruction& step) { step.norm = norm_of(a); });
}

PyObject* py_attention(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 7, Instruction::kAttention, [](Arguments& a, Instruction& step) {
    step.num_heads = a.integer();
    step.head_dim = a.integer();
    step.softmax_scale = a.number();
    step.format = static_cast<AttentionFormat>(a.integer());
  });
}

PyObject* py_pool(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 4, Instruction::kPool, [](Arguments& a, Instruction& step) {
    step.mode = static_cast<PoolMode>(a.integer());
  });
}

PyObject* py_normalize(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 3, Instruction::kNormalize, [](Arguments&, Instruction&) {});
}

PyObject* py_copy_columns(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return add(values, count, 4, Instruction::kCopyColumns,
             [](Arguments& a, Instruction& step) { step.first_col = a.integer(); });
}

// program_finish(program, result, ...)
PyObject* py_finish(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, count < 1 ? 1 : count);
  auto* program = a.capsule<Program>(kProgramName);
  std::vector<int> results;
  for (Py_ssize_t i = 1; i < count; ++i) results.push_back(static_cast<int>(a.integer()));
  return none_after(a, [&] { program->finish(results); });
}

// program_run(stream, program, ids, ids, ids, cu_seqlens, skip, num_tokens, num_seqs, result, ...)
// -> -1, or 3 * token + table of the first id outside its table
PyObject* py_run(PyObject*, PyObject* const* values, Py_ssize_t count) {
  constexpr Py_ssize_t kFixed = 2 + kNumTables + 4;
  Arguments a(values, count, count < kFixed ? kFixed : count);
  Stream* stream = stream_of(a);
  const auto* program = a.capsule<const Program>(kProgramName);
  ProgramBatch batch = {};
  for (const int32_t*& ids : batch.ids) ids = a.address<const int32_t>();
  batch.cu_seqlens = a.address<const int32_t>();
  batch.skip = a.address<const int32_t>();
  batch.num_tokens = a.integer();
  batch.num_seqs = a.integer();
  std::vector<float*> results;
  for (Py_ssize_t i = kFixed; i < count; ++i) results.push_back(a.address<float>());
  if (a.ok() && results.size() != program->num_results()) {
    PyErr_Format(PyExc_TypeError, "expected %zu results, got %zu", program->num_results(),
                 results.size());
    return nullptr;
  }
  int64_t outside = -1;
  if (!a.ok() || !without_gil([&] { outside = program->run(*stream, batch, results.data()); }))
    return nullptr;
  return PyLong_FromLongLong(outside);
}

}  // namespace

const PyMethodDef program_methods[] = {
    fast("program", py_program),
    fast("program_value", py_value),
    fast("program_embed", py_embed),
    fast("program_linear", py_linear),
    fast("program_layer_norm", py_layer_norm),
    fast("program_attention", py_attention),
    fast("program_pool", py_pool),
    fast("program_normalize", py_normalize),
    fast("program_copy_columns", py_copy_columns),
    fast("program_finish", py_finish),
    fast("program_run", py_run),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace minibert
