// The one table of kernels, chosen once when the library is loaded.
//
// A new instruction set is one file a family plus one row in dispatch.cc; a family that has no file of its own for a
// set names its portable function there.
#pragma once

#include <string>
#include <vector>

#include "bnncore/channel.h"
#include "bnncore/fixed_point.h"
#include "bnncore/float_kernels.h"
#include "bnncore/input_gemm.h"
#include "bnncore/packing.h"
#include "bnncore/pool.h"
#include "bnncore/sign_gemm.h"
#include "bnncore/signs.h"
#include "bnncore/update.h"
#include "bnncore/xnor_gemm.h"

namespace bitfleet {

struct Kernels {
  const char* isa;
  PackInt8 pack_int8;
  PackFloat pack_float;
  TransposeBytes transpose_bytes;
  TransposeWords transpose_words;
  GatherPlanes gather_planes;
  XnorGemm xnor_gemm;
  InputExpand input_expand;
  InputGemm<int16_t> input_gemm_narrow;
  InputGemm<int32_t> input_gemm_wide;
  SignBitsBytes sign_bits_bytes;
  SignExpandBits sign_expand_bits;
  SignExpandRows sign_expand_rows;
  SignAccumulate sign_accumulate;
  InputGrad input_grad;
  const ChannelKernels* channel;
  const PoolKernels* pool;
  const UpdateKernels* update;
  const FloatKernels* floats;
  const FixedPointKernels* fixed_point;
  const SignKernels* signs;

  template <typename Y>
  InputGemm<Y> input_gemm_of() const {
    if constexpr (sizeof(Y) == sizeof(int16_t)) {
      return input_gemm_narrow;
    } else {
      return input_gemm_wide;
    }
  }
};

// Instruction sets that this machine can run, slowest first; the first is always "portable".
std::vector<std::string> available_isas();

// The table named by BITFLEET_ISA, else the fastest available one.
// Throws std::invalid_argument when BITFLEET_ISA names a set that this machine cannot run.
const Kernels& selected_kernels();

// The table of a named set; throws std::invalid_argument like selected_kernels().
const Kernels& kernels_for(const std::string& isa);

}  // namespace bitfleet
