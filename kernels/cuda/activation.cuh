// activation.cuh: what a linear layer applies before it writes, in float32.
//
// gelu is x * Phi(x) with the exact erf, as BERT's checkpoints were trained; gelu_tanh is the
// approximation under its own name and is never put in the place of the other.

#pragma once

enum Activation { kNone, kGelu, kGeluTanh, kRelu, kSilu, kTanh };

template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
  if (kActivation == kGelu) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  if (kActivation == kGeluTanh) {
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }
  if (kActivation == kRelu) return fmaxf(x, 0.0f);
  if (kActivation == kSilu) return x / (1.0f + expf(-x));
  if (kActivation == kTanh) return tanhf(x);
  return x;
}

template <Activation kActivation>
__device__ __forceinline__ float4 activate4(float4 x) {
  return make_float4(activate<kActivation>(x.x), activate<kActivation>(x.y),
                     activate<kActivation>(x.z), activate<kActivation>(x.w));
}
