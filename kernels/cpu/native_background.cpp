// native_background.cpp: the functions of the Python module for work on weights at load, done by a
// thread beside the caller's (background.h). The caller keeps the arrays alive until it has waited
// or closed.
#include "native.h"

namespace minibert {
namespace {

void free_background(PyObject* capsule) {
  auto* owned = static_cast<OwnedBackground*>(PyCapsule_GetPointer(capsule, kBackgroundName));
  // After a fork the child has the object but not its thread: joining it would wait forever.
  if (owned != nullptr && owned->pid == getpid()) delete owned;
}

// background() -> capsule
PyObject* py_background(PyObject*, PyObject*) {
  auto* owned = new (std::nothrow) OwnedBackground;
  if (owned == nullptr) return PyErr_NoMemory();
  return PyCapsule_New(owned, kBackgroundName, free_background);
}

// background_check(background, values, count): float32 values that must be finite
PyObject* py_check(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 3);
  Background* background = background_of(a);
  const auto* checked = a.address<const float>();
  const int64_t size = a.integer();
  return none_after(a, [&] { background->check_finite(checked, size); });
}

// background_copy(background, out, in, bytes)
PyObject* py_copy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 4);
  Background* background = background_of(a);
  auto* out = a.address<void>();
  const auto* in = a.address<const void>();
  const int64_t bytes = a.integer();
  return none_after(a, [&] { background->copy(out, in, static_cast<size_t>(bytes)); });
}

// background_release(background, address, bytes): whole pages of a mapped file
PyObject* py_release(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 3);
  Background* background = background_of(a);
  auto* begin = a.address<void>();
  const int64_t bytes = a.integer();
  return none_after(a, [&] { background->release(begin, static_cast<size_t>(bytes)); });
}

// background_wait(background) -> whether all values checked so far are finite
PyObject* py_wait(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 1);
  Background* background = background_of(a);
  if (!a.ok() || !without_gil([&] { background->wait(); })) return nullptr;
  return PyBool_FromLong(background->finite());
}

// background_close(background): what has not begun is dropped; later work is done at once
PyObject* py_close(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count, 1);
  Background* background = background_of(a);
  return none_after(a, [&] { background->close(); });
}

}  // namespace

const PyMethodDef background_methods[] = {
    {"background", py_background, METH_NOARGS, nullptr},
    fast("background_check", py_check),
    fast("background_copy", py_copy),
    fast("background_release", py_release),
    fast("background_wait", py_wait),
    fast("background_close", py_close),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace minibert
