// native.cpp: the Python module minibert.kernels.cpu._native, in the limited API of CPython 3.10:
// operators one by one. Whole forward passes are in native_program.cpp, work at load beside the
// caller's in native_background.cpp.
//
// Arrays come as themselves or as addresses (int), with sizes: their owner, minibert/ops/cpu.py, has
// checked them. Streams and packed weights are capsules,
// freed with their last reference. Every operator releases the GIL.
#include "native.h"

#include <vector>

#include "dispatch.h"

namespace {

using namespace minibert;

const Kernels* kernels_at(int64_t index) {
  int count = 0;
  const Path* paths = all_paths(&count);
  if (index < 0 || index >= count || !paths[index].supported) {
    PyErr_Format(PyExc_ValueError, "path %lld is not supported here", (long long)index);
    return nullptr;
  }
  return paths[index].kernels;
}

// paths() -> [(name, supported, what it needs, (formats, ...)), ...], the fastest first.
PyObject* py_paths(PyObject*, PyObject*) {
  int count = 0;
  const Path* paths = all_paths(&count);
  PyObject* list = PyList_New(0);
  for (int i = 0; list != nullptr && i < count; ++i) {
    PyObject* formats = PyList_New(0);
    for (const LinearKernel* k = paths[i].kernels->linear; formats && k->format; ++k) {
      PyObject* format = PyUnicode_FromString(k->format);
      if (format == nullptr || PyList_Append(formats, format) != 0) Py_CLEAR(formats);
      Py_XDECREF(format);
    }
    PyObject* entry = formats == nullptr
                          ? nullptr
                          : Py_BuildValue("(sOsN)", paths[i].kernels->name,
                                          paths[i].supported ? Py_True : Py_False, paths[i].needs,
                                          formats);
    if (entry == nullptr || PyList_Append(list, entry) != 0) Py_CLEAR(list);
    Py_XDECREF(entry);
  }
  return list;
}

// left_out() -> [(name of a path that is not in this build, why), ...]
PyObject* py_left_out(PyObject*, PyObject*) {
  PyObject* list = PyList_New(0);
  for (const LeftOut* path = left_out; list != nullptr && path->name != nullptr; ++path) {
    PyObject* entry = Py_BuildValue("(ss)", path->name, path->reason);
    if (entry == nullptr || PyList_Append(list, entry) != 0) Py_CLEAR(list);
    Py_XDECREF(entry);
  }
  return list;
}

void free_stream(PyObject* capsule) {
  auto* owned = static_cast<OwnedStream*>(PyCapsule_GetPointer(capsule, kStreamName));
  // After a fork the child has the object but not its threads: joining them would wait forever.
  if (owned != nullptr && owned->pid == getpid()) delete owned;
}

// stream(path, num_threads) -> capsule
PyObject* py_stream(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 2);
  const int64_t path = a.integer();
  const int64_t threads = a.integer();
  const Kernels* kernels = a.ok() ? kernels_at(path) : nullptr;
  if (kernels == nullptr) return nullptr;
  OwnedStream* owned = nullptr;
  if (!without_gil([&] { owned = new OwnedStream(kernels, static_cast<int>(threads)); })) {
    return nullptr;
  }
  return PyCapsule_New(owned, kStreamName, free_stream);
}

// stream_bytes(stream) -> bytes of scratch that it holds
PyObject* py_stream_bytes(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 1);
  const Stream* stream = stream_of(a);
  return stream == nullptr ? nullptr : PyLong_FromSize_t(stream->bytes());
}

// wake(stream): work is coming
PyObject* py_wake(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 1);
  Stream* stream = stream_of(a);
  return none_after(a, [&] { stream->team->wake(); });
}

void free_linear(PyObject* capsule) {
  delete static_cast<PackedLinear*>(PyCapsule_GetPointer(capsule, kLinearName));
}

// pack_linear(path, format, weight, out_features, in_features, bias or 0, background or None) ->
// capsule; with a background it may not be used before background_wait
PyObject* py_pack_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 7);
  const int64_t path = a.integer();
  PyObject* format_object = a.object();
  const auto* weight = a.address<const float>();
  const int64_t out_features = a.integer(), in_features = a.integer();
  const auto* bias = a.address<const float>();
  Background* background = a.ok() && values[6] != Py_None ? background_of(a) : nullptr;
  const Kernels* kernels = a.ok() ? kernels_at(path) : nullptr;
  if (kernels == nullptr) return nullptr;
  Py_ssize_t size = 0;
  const char* format = PyUnicode_AsUTF8AndSize(format_object, &size);
  if (format == nullptr) return nullptr;
  PackedLinear* packed = nullptr;
  if (!without_gil([&] {
        packed = new PackedLinear(kernels, format, weight, out_features, in_features, bias,
                                  nullptr, background);
      })) {
    return nullptr;
  }
  return PyCapsule_New(packed, kLinearName, free_linear);
}

// adopt_linear(path, format, packed, out_features, in_features, bias or 0) -> capsule over memory
// that the caller keeps, laid out by packed_linear of an equal layer
PyObject* py_adopt_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 6);
  const int64_t path = a.integer();
  PyObject* format_object = a.object();
  auto* packed = a.address<void>();
  const int64_t out_features = a.integer(), in_features = a.integer();
  const auto* bias = a.address<const float>();
  const Kernels* kernels = a.ok() ? kernels_at(path) : nullptr;
  if (kernels == nullptr) return nullptr;
  Py_ssize_t size = 0;
  const char* format = PyUnicode_AsUTF8AndSize(format_object, &size);
  if (format == nullptr) return nullptr;
  PackedLinear* made = nullptr;
  if (!without_gil([&] {
        made = new PackedLinear(kernels, format, nullptr, out_features, in_features, bias, packed);
      })) {
    return nullptr;
  }
  return PyCapsule_New(made, kLinearName, free_linear);
}

// set_input_range(linear, low, high): before its first use
PyObject* py_set_input_range(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 3);
  auto* packed = a.capsule<PackedLinear>(kLinearName);
  const float low = a.number(), high = a.number();
  return none_after(a, [&] { packed->linear.input_range = {low, high}; });
}

// linear_memory(linear) -> (address, bytes) of the laid out weights; 0 bytes where it was adopted
PyObject* py_linear_memory(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 1);
  const auto* packed = a.capsule<PackedLinear>(kLinearName);
  if (packed == nullptr) return nullptr;
  PyObject* address = PyLong_FromVoidPtr(packed->linear.packed);
  if (address == nullptr) return nullptr;
  return Py_BuildValue("(Nn)", address, static_cast<Py_ssize_t>(packed->packed.bytes()));
}

// linear_bytes(linear) -> bytes of the packed layer
PyObject* py_linear_bytes(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 1);
  const auto* packed = a.capsule<PackedLinear>(kLinearName);
  return packed == nullptr ? nullptr : PyLong_FromSize_t(packed->bytes());
}

// linear(stream, linear, out, hidden, residual or 0, num_rows, activation)
PyObject* py_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 7);
  Stream* stream = stream_of(a);
  const auto* packed = a.capsule<PackedLinear>(kLinearName);
  LinearCall call = {};
  call.out = a.address<float>();
  call.hidden = a.address<const float>();
  call.residual = a.address<const float>();
  call.num_rows = a.integer();
  call.activation = static_cast<Activation>(a.integer());
  return none_after(a, [&] { linear(*stream, *packed, call); });
}

// layer_norm(stream, out, hidden, weight, bias or 0, eps, num_rows, hidden_size)
PyObject* py_layer_norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 8);
  Stream* stream = stream_of(a);
  auto* out = a.address<float>();
  const auto* hidden = a.address<const float>();
  const Norm norm = norm_of(a);
  const int64_t num_rows = a.integer(), hidden_size = a.integer();
  return none_after(a, [&] { layer_norm(*stream, out, hidden, norm, num_rows, hidden_size); });
}

// embed(stream, out, ids, table, num_rows, [three times], weight or 0, bias or 0, eps, num_tokens,
//       hidden_size) -> -1, or 3 * token + table of the first id outside its table
PyObject* py_embed(PyObject*, PyObject* const* values, Py_ssize_t count) {
  constexpr int kTables = kNumTables;
  Arguments a(values, count, 2 + 3 * kTables + 5);
  Stream* stream = stream_of(a);
  auto* out = a.address<float>();
  EmbedTable tables[kTables];
  for (int t = 0; t < kTables; ++t) {
    tables[t].ids = a.address<const int32_t>();
    tables[t].weight = a.address<const float>();
    tables[t].num_rows = a.integer();
  }
  const Norm norm = norm_of(a);
  const int64_t num_tokens = a.integer(), hidden_size = a.integer();
  int64_t outside = -1;
  if (!a.ok() || !without_gil([&] {
        outside = first_outside(tables, kTables, num_tokens);
        if (outside < 0) embed(*stream, out, tables, kTables, norm, num_tokens, hidden_size);
      })) {
    return nullptr;
  }
  return PyLong_FromLongLong(outside);
}

// attention(stream, context, qkv, cu_seqlens, num_seqs, num_heads, head_dim, softmax_scale,
//           format)
PyObject* py_attention(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 9);
  Stream* stream = stream_of(a);
  AttentionCall call = {};
  call.context = a.address<float>();
  call.qkv = a.address<const float>();
  const auto* cu_seqlens = a.address<const int32_t>();
  const int64_t num_seqs = a.integer();
  call.num_heads = a.integer();
  call.head_dim = a.integer();
  call.softmax_scale = a.number();
  call.format = static_cast<AttentionFormat>(a.integer());
  return none_after(a, [&] { attention(*stream, call, cu_seqlens, num_seqs); });
}

// pool(out, hidden, cu_seqlens, skip, num_seqs, hidden_size, mode)
PyObject* py_pool(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 7);
  auto* out = a.address<float>();
  const auto* hidden = a.address<const float>();
  const auto* cu_seqlens = a.address<const int32_t>();
  const auto* skip = a.address<const int32_t>();
  const int64_t num_seqs = a.integer(), hidden_size = a.integer();
  const auto mode = static_cast<PoolMode>(a.integer());
  return none_after(a, [&] { pool(out, hidden, cu_seqlens, skip, num_seqs, hidden_size, mode); });
}

// normalize(out, rows, num_rows, size)
PyObject* py_normalize(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 4);
  auto* out = a.address<float>();
  const auto* rows = a.address<const float>();
  const int64_t num_rows = a.integer(), size = a.integer();
  return none_after(a, [&] { normalize(out, rows, num_rows, size); });
}

// copy_columns(out, out_cols, first_col, in, in_cols, num_rows): in becomes columns of out
PyObject* py_copy_columns(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 6);
  auto* out = a.address<float>();
  const int64_t out_cols = a.integer(), first_col = a.integer();
  const auto* in = a.address<const float>();
  const int64_t in_cols = a.integer(), num_rows = a.integer();
  return none_after(a, [&] { copy_columns(out, out_cols, first_col, in, in_cols, num_rows); });
}

// elementwise(path, values, count, activation): in place; activation -1 is exp. For tests.
PyObject* py_elementwise(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 4);
  const int64_t path = a.integer();
  auto* data = a.address<float>();
  const int64_t size = a.integer(), activation = a.integer();
  const Kernels* kernels = a.ok() ? kernels_at(path) : nullptr;
  if (kernels == nullptr) return nullptr;
  return none_after(a, [&] {
    if (activation < 0)
      kernels->exponential(data, size);
    else
      kernels->activate(data, size, static_cast<Activation>(activation));
  });
}

const PyMethodDef own_methods[] = {
    {"paths", py_paths, METH_NOARGS, nullptr},
    {"left_out", py_left_out, METH_NOARGS, nullptr},
    fast("stream", py_stream),
    fast("wake", py_wake),
    fast("stream_bytes", py_stream_bytes),
    fast("pack_linear", py_pack_linear),
    fast("adopt_linear", py_adopt_linear),
    fast("set_input_range", py_set_input_range),
    fast("linear_memory", py_linear_memory),
    fast("linear_bytes", py_linear_bytes),
    fast("linear", py_linear),
    fast("layer_norm", py_layer_norm),
    fast("embed", py_embed),
    fast("attention", py_attention),
    fast("pool", py_pool),
    fast("normalize", py_normalize),
    fast("copy_columns", py_copy_columns),
    fast("elementwise", py_elementwise),
    {nullptr, nullptr, 0, nullptr},
};

// The module's table, from all files; filled when the module is imported.
std::vector<PyMethodDef> methods;

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "CPU kernels of minibert.", 0, nullptr,
                      nullptr,               nullptr,   nullptr,                    nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  if (methods.empty()) {
    for (const PyMethodDef* table : {own_methods, program_methods, background_methods})
      for (const PyMethodDef* method = table; method->ml_name; ++method)
        methods.push_back(*method);
    methods.push_back({nullptr, nullptr, 0, nullptr});
    module.m_methods = methods.data();
  }
  return PyModuleDef_Init(&module);
}
