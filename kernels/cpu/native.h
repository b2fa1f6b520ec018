// native.h: what the functions of the Python module share: positional arguments, the GIL, capsules.
//
// Where an address is wanted, a NumPy array may be given instead: asking it here takes a tenth of
// what it takes in Python. The buffer protocol is not part of the limited API of CPython 3.10, so
// arrays are asked by NumPy's own, `__array_struct__`.
#pragma once

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <unistd.h>

#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "float_environment.h"
#include "operators.h"

namespace minibert {

constexpr char kStreamName[] = "minibert.stream";
constexpr char kLinearName[] = "minibert.linear";
constexpr char kProgramName[] = "minibert.program";
constexpr char kBackgroundName[] = "minibert.background";

struct OwnedStream {
  OwnedStream(const Kernels* kernels, int threads) : stream(kernels, threads), pid(getpid()) {}
  Stream stream;
  pid_t pid;
};

struct OwnedBackground {
  Background background;
  pid_t pid = getpid();
};

// What `__array_struct__` points to (NumPy's array interface protocol, version 3).
struct ArrayStruct {
  static constexpr int kContiguous = 0x1, kAligned = 0x100, kNativeOrder = 0x200,
                       kWriteable = 0x400;
  int two, nd;
  char kind;
  int item_bytes, flags;
  Py_intptr_t *shape, *strides;
  void* data;
};

// Where the values of a C-contiguous array of T begin, or null with an error set.
template <typename T>
T* values_of(PyObject* array) {
  constexpr bool kIntegers = std::is_integral_v<T>;
  PyObject* capsule = PyObject_GetAttrString(array, "__array_struct__");
  if (capsule == nullptr) return nullptr;
  const auto* found = static_cast<const ArrayStruct*>(PyCapsule_GetPointer(capsule, nullptr));
  void* data = nullptr;
  if (found != nullptr) {
    constexpr int kNeeded = ArrayStruct::kContiguous | ArrayStruct::kAligned |
                            ArrayStruct::kNativeOrder |
                            (std::is_const_v<T> ? 0 : ArrayStruct::kWriteable);
    if (found->two == 2 && found->kind == (kIntegers ? 'i' : 'f') &&
        found->item_bytes == static_cast<int>(sizeof(T)) && (found->flags & kNeeded) == kNeeded)
      data = found->data;
    else
      PyErr_Format(PyExc_TypeError, "expected a C-contiguous%s array of %s%d",
                   std::is_const_v<T> ? "" : ", writeable", kIntegers ? "int" : "float",
                   static_cast<int>(8 * sizeof(T)));
  }
  Py_DECREF(capsule);
  return static_cast<T*>(data);
}

// Reads positional arguments one after the other; after a first error the rest are zeros.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count, Py_ssize_t expected)
      : values_(values), ok_(count == expected) {
    if (!ok_) PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
  }
  bool ok() const { return ok_; }
  int64_t integer() {
    if (!ok_) return 0;
    const long long value = PyLong_AsLongLong(values_[next_++]);
    if (value == -1 && PyErr_Occurred()) ok_ = false;
    return value;
  }
  template <typename T>
  T* address() {
    if (!ok_) return nullptr;
    PyObject* given = values_[next_++];
    T* value = nullptr;
    if constexpr (std::is_arithmetic_v<T>)
      value = PyLong_Check(given) ? static_cast<T*>(PyLong_AsVoidPtr(given)) : values_of<T>(given);
    else
      value = static_cast<T*>(PyLong_AsVoidPtr(given));
    if (value == nullptr && PyErr_Occurred()) ok_ = false;
    return value;
  }
  float number() {
    if (!ok_) return 0.0f;
    const double value = PyFloat_AsDouble(values_[next_++]);
    if (value == -1.0 && PyErr_Occurred()) ok_ = false;
    return static_cast<float>(value);
  }
  template <typename T>
  T* capsule(const char* name) {
    if (!ok_) return nullptr;
    void* value = PyCapsule_GetPointer(values_[next_++], name);
    if (value == nullptr) ok_ = false;
    return static_cast<T*>(value);
  }
  PyObject* object() { return ok_ ? values_[next_++] : nullptr; }

 private:
  PyObject* const* values_;
  Py_ssize_t next_ = 0;
  bool ok_;
};

// Runs the function without the GIL, with the kernels' rounding, and turns C++ exceptions into
// Python ones.
template <typename Function>
bool without_gil(Function function) {
  const char* memory = nullptr;
  std::string invalid;
  PyThreadState* state = PyEval_SaveThread();
  try {
    const FloatEnvironment environment;
    function();
  } catch (const std::bad_alloc&) {
    memory = "out of memory in a CPU kernel";
  } catch (const std::exception& error) {
    invalid = error.what();
  }
  PyEval_RestoreThread(state);
  if (memory != nullptr) PyErr_SetString(PyExc_MemoryError, memory);
  if (!invalid.empty()) PyErr_SetString(PyExc_ValueError, invalid.c_str());
  return memory == nullptr && invalid.empty();
}

template <typename Function>
PyObject* none_after(const Arguments& arguments, Function function) {
  if (!arguments.ok() || !without_gil(function)) return nullptr;
  Py_RETURN_NONE;
}

inline Stream* stream_of(Arguments& arguments) {
  auto* owned = arguments.capsule<OwnedStream>(kStreamName);
  return owned == nullptr ? nullptr : &owned->stream;
}

inline Background* background_of(Arguments& arguments) {
  auto* owned = arguments.capsule<OwnedBackground>(kBackgroundName);
  return owned == nullptr ? nullptr : &owned->background;
}

inline Norm norm_of(Arguments& a) {
  Norm norm;
  norm.weight = a.address<const float>();
  norm.bias = a.address<const float>();
  norm.eps = a.number();
  return norm;
}

using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

// METH_FASTCALL functions are stored under the type of the classic calling convention.
inline PyMethodDef fast(const char* name, FastFunction function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, nullptr};
}

// Each ends with an empty entry.
extern const PyMethodDef program_methods[];
extern const PyMethodDef background_methods[];

}  // namespace minibert
