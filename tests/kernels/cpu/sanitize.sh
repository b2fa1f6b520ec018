#!/bin/sh
# Builds the extension with a sanitizer in a copy of the tree and runs the kernel tests on it.
#
#   tests/kernels/cpu/sanitize.sh address,undefined      out-of-bounds, use after free, overflow
#   tests/kernels/cpu/sanitize.sh thread                 data races between streams and in the team
#
# The interpreter is not instrumented, so the sanitizer's library is loaded before it. PYTHON names
# another interpreter than python3.
set -eu

sanitizers=${1:-address,undefined}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/../../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

(cd "$root" && tar cf - minibert kernels weights tests setup.py pyproject.toml LICENSE README.md) |
  tar xf - -C "$copy"
cd "$copy"
rm -f kernels/cpu/_native*.so
# Instrumented and unrolled at -O3, one path takes minutes to compile.
sed -i.orig 's/"-O3"/"-O1"/' setup.py

# Which variable reaches a C++ compiler depends on the version of setuptools: both are set, and the
# result is checked.
flags="-fsanitize=$sanitizers -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
MINIBERT_SOFTWARE_PATHS=1 CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="-fsanitize=$sanitizers" \
  "$python" setup.py --quiet build_ext --inplace
if ! nm -D kernels/cpu/_native*.so | grep -q -e __asan_ -e __tsan_ -e __ubsan_; then
  echo "sanitize.sh: the extension was built without the sanitizer" >&2
  exit 1
fi

case $sanitizers in
  thread*) runtime=libtsan.so
    tests="tests/test_cpu_ops.py tests/test_cpu_streams.py tests/test_cpu_program.py
      tests/kernels/cpu/test_linear.py" ;;
  *) runtime=libasan.so tests="tests/test_cpu_ops.py tests/test_cpu_streams.py tests/kernels/cpu" ;;
esac

# Leaks are not looked for: the interpreter keeps its own memory until the end. Fork and subprocess
# tests are left out: they are about processes, and a sanitizer's own threads do not survive a fork.
# Tests that build programs of their own are left out: a watched compiler takes for ever.
# TSan cannot see the synchronisation inside the uninstrumented BLAS threads: NumPy gets one thread.
export PYTHONPATH="$copy" OPENBLAS_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1:exitcode=66
export LD_PRELOAD="$(g++ -print-file-name=$runtime) $(g++ -print-file-name=libstdc++.so)"
# shellcheck disable=SC2086
"$python" -m pytest -q -s -p no:cacheprovider $tests \
  --deselect tests/kernels/cpu/test_aarch64.py --deselect tests/kernels/cpu/test_sanitized.py \
  --deselect tests/kernels/cpu/test_amx_trapped.py --deselect tests/kernels/cpu/test_amx_emulator.py \
  -k "not forked and not without_the_extension"
