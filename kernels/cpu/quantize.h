// quantize.h: rows of activations to 8 bits, each with its own scale and zero point, and rows of
// weights to int8 with a scale per output feature.
//
// activation = act_scale * (q + excess - zero_point), q in 0..kSteps. All steps cover the row's own
// range, which after GELU is far from symmetric; zero_point is a whole number, so that 0 stays 0
// and the correction for it is an exact integer.
// A few values of a row are far from the others (BERT's outlier features, and neurons that fire).
// They would make the steps coarse for all: the range therefore ends at `clip` times the root mean
// square of the row, and what a value has beyond is its excess, a whole number of steps, multiplied
// on its own. Nothing saturates. No row has more than 1 / clip^2 such values (Chebyshev).
// A layer with an input_range takes that for every row instead; what lies beyond saturates.
// Every step is one float32 operation with a fixed order: equal integers on every path of the same
// kSteps.
#pragma once

#include "elementary.h"
#include "tile.h"

namespace {

using minibert::InputRange;
using minibert::Linear;

// A wider range leaves fewer values an excess and makes steps coarser, which 255 of them can afford.
constexpr float kLeastClip = 3.5f;
constexpr float clip_of(int steps) { return steps > 127 ? 6.0f : kLeastClip; }
constexpr int64_t kGroup = 4;  // inputs that lie side by side for one output, one 32-bit lane

// Sums of this many products and of a row's excess are exact int32. The excess adds up to at most
// in_features / clip^2 * kSteps steps, by Cauchy and Schwarz.
constexpr int64_t kInt8MaxInFeatures = 32768;
static_assert(kInt8MaxInFeatures * 255 * 127 / 4 * 5 < (int64_t{1} << 31), "int32 sums are exact");

struct RowScale {
  float act_scale;
  int32_t zero_point;
  int32_t num_excess;
};

struct Excess {
  uint16_t input;
  int16_t steps;  // within kSteps * sqrt(65536) / clip
};

// 1 / kLeastClip^2 and more: room for the rounding of the root mean square.
inline int64_t max_excess(int64_t in_features) { return in_features / 11 + 1; }

// Rows as `prepare` leaves them: scales of all of them, then whatever order of the values a kernel
// takes, then their excess.
struct QuantizedRows {
  RowScale* scales;  // (num_rows,)
  uint8_t* values;
  Excess* excess;  // (num_rows, capacity)
  int64_t capacity;
  size_t bytes;

  QuantizedRows(const void* prepared, int64_t num_rows, int64_t in_features, int64_t value_bytes)
      : capacity(max_excess(in_features)) {
    const size_t header = (size_t)round_up(num_rows * (int64_t)sizeof(RowScale), 64);
    const size_t matrix = (size_t)round_up(value_bytes, 64);
    scales = (RowScale*)prepared;
    values = (uint8_t*)prepared + header;
    excess = (Excess*)(values + matrix);
    bytes = header + matrix + sizeof(Excess) * (size_t)(num_rows * capacity);
  }
};

// Weights as `pack` leaves them: scale and sum of each output, then the panels of a kernel.
struct QuantizedWeights {
  int64_t padded_cols, panel_bytes, panels;
  size_t header_bytes, bytes;

  QuantizedWeights(int64_t out_features, int64_t panel_cols, int64_t one_panel_bytes)
      : padded_cols(round_up(out_features, panel_cols)),
        panel_bytes(one_panel_bytes),
        panels(padded_cols / panel_cols),
        header_bytes((size_t)round_up(padded_cols * 8, 64)),
        bytes(header_bytes + (size_t)(panels * panel_bytes)) {}
  float* weight_scale(void* packed) const { return (float*)packed; }
  int32_t* weight_sum(void* packed) const { return (int32_t*)packed + padded_cols; }
  int8_t* panel(void* packed, int64_t index) const {
    return (int8_t*)packed + header_bytes + index * panel_bytes;
  }
};

struct RowQuantizer {
  float steps_per_unit;
  float zero_point;
  float limit;  // values beyond have an excess
  RowScale scale;
};

inline bool all_finite(const float* row, int64_t size) {
  Vec::type poison = Vec::zero();  // becomes NaN where a value is NaN or infinite
  for (int64_t c = 0; c < size; c += Vec::kLanes)
    poison = Vec::fma(load_up_to(row + c, min_of(Vec::kLanes, size - c)), Vec::zero(), poison);
  return Vec::reduce_add(poison) == 0.0f;
}

constexpr RowQuantizer kUndefined = {0.0f, 0.0f, __builtin_inff(), {__builtin_nanf(""), 0, 0}};

// kSteps steps from `low` to `high`; values beyond `limit` have an excess.
template <int kSteps>
inline RowQuantizer steps_over(float low, float high, float limit) {
  const float range = high - low;
  if (!(range < 3.0e38f)) return kUndefined;
  if (range < 1e-30f) return {0.0f, 0.0f, __builtin_inff(), {0.0f, 0, 0}};  // all but zeros
  const float steps_per_unit = (float)kSteps / range;
  const float zero_point = __builtin_rintf(-low * steps_per_unit);
  return {steps_per_unit, zero_point, limit, {range / (float)kSteps, (int32_t)zero_point, 0}};
}

template <int kSteps>
inline RowQuantizer row_quantizer(const float* row, int64_t size) {
  // kSums sums of squares, added up in one order: the same on paths of 4, 8 and 16 lanes. Two chains
  // at least of each kind, or every step would wait for the one before.
  constexpr int64_t kSums = 32, kParts = kSums / Vec::kLanes;
  Vec::type sums[kParts], lows[2], highs[2];
  for (Vec::type& sum : sums) sum = Vec::zero();
  for (int i = 0; i < 2; ++i) lows[i] = highs[i] = Vec::zero();
  const auto add = [&](int64_t p, Vec::type x) MINIBERT_INLINE {
    sums[p] = Vec::add(sums[p], Vec::mul(x, x));
    lows[p % 2] = Vec::min(lows[p % 2], x);
    highs[p % 2] = Vec::max(highs[p % 2], x);
  };
  int64_t c = 0;
  for (; c + kSums <= size; c += kSums)
#pragma GCC unroll 8
    for (int64_t p = 0; p < kParts; ++p) add(p, Vec::load(row + c + p * Vec::kLanes));
#pragma GCC unroll 8
  for (int64_t p = 0; p < kParts; ++p, c += Vec::kLanes)
    if (c < size) add(p, load_up_to(row + c, min_of(Vec::kLanes, size - c)));
  const Vec::type low = Vec::min(lows[0], lows[1]), high = Vec::max(highs[0], highs[1]);
  float lanes[kSums];
  for (int64_t p = 0; p < kParts; ++p) Vec::store(lanes + p * Vec::kLanes, sums[p]);
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];

  const float squares = lanes[0], infinity = __builtin_inff();
  if (!(squares < infinity) && !all_finite(row, size)) return kUndefined;
  // Squares of tiny values vanish and those of huge ones overflow: such rows have no limit.
  const float limit =
      squares > 1e-30f ? clip_of(kSteps) * __builtin_sqrtf(squares / (float)size) : infinity;
  const float smallest = Vec::reduce_min(low), largest = Vec::reduce_max(high);
  return steps_over<kSteps>(smallest > -limit ? smallest : -limit,
                            largest < limit ? largest : limit, limit);
}

// Without a look at the values, but for whether they are finite.
template <int kSteps>
inline RowQuantizer fixed_quantizer(const float* row, int64_t size, InputRange fixed) {
  if (!all_finite(row, size)) return kUndefined;
  return steps_over<kSteps>(fixed.low, fixed.high, __builtin_inff());
}

template <int kSteps>
inline RowQuantizer row_quantizer(const float* row, const Linear& linear) {
  if (linear.input_range.low < linear.input_range.high)
    return fixed_quantizer<kSteps>(row, linear.in_features, linear.input_range);
  return row_quantizer<kSteps>(row, linear.in_features);
}

// Quantises inputs begin..begin+lanes of a row: returns kWhole + q, appends what is beyond to
// `excess` and counts it in row.scale.
template <int kSteps>
inline Vec::type quantize(const float* source, int64_t begin, int64_t lanes, RowQuantizer& row,
                          Excess* excess) {
  const Vec::type x = load_up_to(source + begin, lanes);
  const Vec::type steps = Vec::add(Vec::mul(x, Vec::broadcast(row.steps_per_unit)),
                                   Vec::broadcast(kWhole + row.zero_point));
  const Vec::type q = Vec::max(Vec::broadcast(kWhole),
                               Vec::min(Vec::broadcast(kWhole + (float)kSteps), steps));
  uint32_t beyond = Vec::exceed(x, Vec::broadcast(row.limit));
  if (__builtin_expect(beyond != 0, 0)) {
    float rest[Vec::kLanes];
    Vec::store(rest, Vec::sub(steps, q));
    for (; beyond; beyond &= beyond - 1) {
      const int lane = __builtin_ctz(beyond);
      excess[row.scale.num_excess++] = {(uint16_t)(begin + lane), (int16_t)rest[lane]};
    }
  }
  return q;
}

// weight = weight_scale * q, q in -127..127: calls store(g, four values) for each group of kGroup
// inputs, the last one filled with zeros; returns weight_scale; `sum` gets the sum of q.
template <typename Store>
inline float quantize_weight_row(const float* weight, int64_t size, int32_t* sum, Store store) {
  constexpr int64_t kStrip = 64;
  Vec::type largest_lanes = Vec::zero();
  for (int64_t k = 0; k < size; k += Vec::kLanes)
    largest_lanes = Vec::max(
        largest_lanes, Vec::abs(load_up_to(weight + k, min_of(Vec::kLanes, size - k))));
  const float largest = Vec::reduce_max(largest_lanes);
  const Vec::type steps_per_unit = Vec::broadcast(largest > 1e-30f ? 127.0f / largest : 0.0f);
  int32_t total = 0;
  for (int64_t begin = 0; begin < size; begin += kStrip) {
    float rounded[kStrip];
    int8_t q[kStrip];
    for (int64_t k = 0; k < kStrip; k += Vec::kLanes) {
      const int64_t lanes = min_of(Vec::kLanes, size - begin - k);
      const Vec::type x = lanes > 0 ? load_up_to(weight + begin + k, lanes) : Vec::zero();
      Vec::store(rounded + k, Vec::round(Vec::mul(x, steps_per_unit)));
    }
    for (int64_t k = 0; k < kStrip; ++k) {
      q[k] = (int8_t)(int32_t)rounded[k];
      total += q[k];
    }
    for (int64_t k = 0; k < min_of(kStrip, size - begin); k += kGroup)
      store((begin + k) / kGroup, q + k);
  }
  *sum = total;
  return largest / 127.0f;
}

// The excess of a tile's rows in one list, so that one loop runs over all of it: a loop for each row
// would end where the processor cannot predict it, once for each row and panel.
struct TileExcess {
  uint32_t acc_at, weights_at;  // of the row in the tile's sums; of the input's group in the panel
  uint32_t one;                 // 1 in the byte of the group that is the input's
  int32_t steps;                // int16, twice
};

// Appends the excess of `rows` rows of a tile of kCols columns; neighbours in the list are of
// different rows, whose sums do not wait for each other. Returns the list's new end.
template <int64_t kCols>
inline TileExcess* gather_excess(TileExcess* end, const RowScale* scales, const Excess* excess,
                                 int64_t capacity, int64_t rows) {
  for (int32_t i = 0, left = 1; left; ++i) {
    left = 0;
    for (int64_t r = 0; r < rows; ++r) {
      if (i >= scales[r].num_excess) continue;
      const Excess& e = excess[r * capacity + i];
      const uint32_t steps = (uint16_t)e.steps;
      *end++ = {(uint32_t)(r * kCols), (uint32_t)(e.input / kGroup * kGroup * kCols),
                1u << 8 * (e.input % kGroup), (int32_t)(steps << 16 | steps)};
      left = 1;
    }
  }
  return end;
}

// What sums of a tile begin with: less the zero point of a row, times the sum of a column's weights.
struct ZeroPoints {
  const RowScale* scales;     // (rows,)
  const int32_t* weight_sum;  // (columns,)
};

template <typename Dot, int kRows>
inline __attribute__((always_inline)) void begin_sums(typename Dot::type (&acc)[kRows][2],
                                                      const ZeroPoints& zero_points) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int vec = 0; vec < 2; ++vec)
      acc[r][vec] = Dot::multiple(zero_points.weight_sum + vec * Dot::kLanes,
                                  Dot::kActivationShift - zero_points.scales[r].zero_point);
}

// A vector of the compiler's that the machine has too: wider ones it keeps in memory.
constexpr int kSumLanes = Vec::kLanes < 8 ? Vec::kLanes : 8;
typedef int32_t SumLanes __attribute__((vector_size(kSumLanes * sizeof(int32_t))));

// One row of kCols sums of q * weight to sums of whole activations: without the zero point.
template <int64_t kCols>
inline void subtract_zero_point(int32_t* acc, const RowScale& scale, const int32_t* weight_sum) {
#pragma GCC unroll 8
  for (int64_t c = 0; c < kCols; c += kSumLanes) {
    SumLanes sum, weight_sums;
    __builtin_memcpy(&sum, acc + c, sizeof sum);
    __builtin_memcpy(&weight_sums, weight_sum + c, sizeof sum);
    sum -= weight_sums * scale.zero_point;
    __builtin_memcpy(acc + c, &sum, sizeof sum);
  }
}

// acc[c] += steps * the weight of column c and input 4g + position; `group`: weights of inputs
// 4g..4g+3, kStride bytes from column to column.
template <int64_t kCols, int64_t kStride = kGroup>
inline void add_excess(int32_t* acc, const int8_t* group, int position, int32_t steps) {
  const int32_t up = 24 - 8 * position;  // the input's byte to the top of its lane
#pragma GCC unroll 8
  for (int64_t c = 0; c < kCols; c += kSumLanes) {
    SumLanes sum, weights;
    if constexpr (kStride == kGroup) {
      __builtin_memcpy(&weights, group + c * kStride, sizeof weights);
    } else {
      int32_t columns[kSumLanes];
      for (int i = 0; i < kSumLanes; ++i)
        __builtin_memcpy(columns + i, group + (c + i) * kStride, kGroup);
      __builtin_memcpy(&weights, columns, sizeof weights);
    }
    __builtin_memcpy(&sum, acc + c, sizeof sum);
    sum += (weights << up >> 24) * steps;
    __builtin_memcpy(acc + c, &sum, sizeof sum);
  }
}

// Both for one row whose excess is a list of its own.
template <int64_t kCols, int64_t kStride = kGroup, typename Group>
inline void correct_sums(int32_t* acc, const RowScale& scale, const int32_t* weight_sum,
                         const Excess* excess, Group group) {
  subtract_zero_point<kCols>(acc, scale, weight_sum);
  for (const Excess* e = excess; e < excess + scale.num_excess; ++e)
    add_excess<kCols, kStride>(acc, group(e->input / kGroup), e->input % kGroup, e->steps);
}

// What the epilogue starts from: exact sums, to float32.
template <int64_t kCols>
struct Int8Sums {
  const int32_t* acc;      // (rows, kCols)
  const RowScale* scales;  // of the tile's rows
  const float* weight_scale;
  Vec::type operator()(int64_t r, int64_t c, int64_t) const {
    const Vec::type scale =
        Vec::mul(Vec::broadcast(scales[r].act_scale), Vec::load(weight_scale + c));
    return Vec::mul(Vec::load_int32(acc + r * kCols + c), scale);
  }
};

}  // namespace
