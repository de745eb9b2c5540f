#include "bnncore/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace bitfleet {

namespace {

struct Candidate {
  Kernels kernels;
  bool (*runs_here)();
};

const Candidate kCandidates[] = {
    {{"portable",
      portable::pack_int8,
      portable::pack_float,
      portable::transpose_bytes,
      portable::transpose_words,
      portable::gather_planes,
      portable::xnor_gemm,
      portable::input_expand,
      portable::input_gemm_narrow,
      portable::input_gemm_wide,
      portable::sign_bits_bytes,
      portable::sign_expand_bits,
      portable::sign_expand_rows,
      portable::sign_accumulate,
      portable::input_grad,
      &portable::channel_kernels,
      &portable::pool_kernels,
      &portable::update_kernels,
      &portable::float_kernels,
      &portable::fixed_point_kernels,
      &portable::sign_kernels},
     [] { return true; }},
#if defined(__x86_64__)
    {{"avx2",
      avx2::pack_int8,
      avx2::pack_float,
      avx2::transpose_bytes,
      avx2::transpose_words,
      avx2::gather_planes,
      avx2::xnor_gemm,
      avx2::input_expand,
      avx2::input_gemm_narrow,
      avx2::input_gemm_wide,
      avx2::sign_bits_bytes,
      avx2::sign_expand_bits,
      avx2::sign_expand_rows,
      avx2::sign_accumulate,
      avx2::input_grad,
      &avx2::channel_kernels,
      &avx2::pool_kernels,
      &avx2::update_kernels,
      &avx2::float_kernels,
      &avx2::fixed_point_kernels,
      &avx2::sign_kernels},
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("popcnt") != 0 &&
              __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("f16c") != 0;
     }},
    {{"avx512",
      avx512::pack_int8,
      avx2::pack_float,
      avx2::transpose_bytes,
      avx2::transpose_words,
      avx2::gather_planes,
      avx512::xnor_gemm,
      avx512::input_expand,
      avx512::input_gemm_narrow,
      avx512::input_gemm_wide,
      avx512::sign_bits_bytes,
      avx512::sign_expand_bits,
      avx512::sign_expand_rows,
      avx512::sign_accumulate,
      avx512::input_grad,
      &avx512::channel_kernels,
      &avx512::pool_kernels,
      &avx512::update_kernels,
      &avx512::float_kernels,
      &avx512::fixed_point_kernels,
      &avx512::sign_kernels},
     [] {
       return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
              __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
              __builtin_cpu_supports("avx512vbmi") != 0 && __builtin_cpu_supports("avx512vnni") != 0 &&
              __builtin_cpu_supports("avx512vpopcntdq") != 0 && __builtin_cpu_supports("gfni") != 0 &&
              __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("f16c") != 0;
     }},
#elif defined(__aarch64__)
    // NEON is part of the architecture: portable loops use it already.
    {{"neon",
      neon::pack_int8,
      neon::pack_float,
      neon::transpose_bytes,
      portable::transpose_words,
      portable::gather_planes,
      neon::xnor_gemm,
      neon::input_expand,
      neon::input_gemm_narrow,
      neon::input_gemm_wide,
      neon::sign_bits_bytes,
      neon::sign_expand_bits,
      neon::sign_expand_rows,
      neon::sign_accumulate,
      neon::input_grad,
      &portable::channel_kernels,
      &portable::pool_kernels,
      &portable::update_kernels,
      &neon::float_kernels,
      &portable::fixed_point_kernels,
      &portable::sign_kernels},
     [] { return true; }},
    {{"neon_dotprod",
      neon::pack_int8,
      neon::pack_float,
      neon::transpose_bytes,
      portable::transpose_words,
      portable::gather_planes,
      neon::xnor_gemm,
      neon_dotprod::input_expand,
      neon_dotprod::input_gemm_narrow,
      neon_dotprod::input_gemm_wide,
      neon_dotprod::sign_bits_bytes,
      neon_dotprod::sign_expand_bits,
      neon_dotprod::sign_expand_rows,
      neon_dotprod::sign_accumulate,
      neon_dotprod::input_grad,
      &portable::channel_kernels,
      &portable::pool_kernels,
      &portable::update_kernels,
      &neon::float_kernels,
      &portable::fixed_point_kernels,
      &portable::sign_kernels},
     [] { return (getauxval(AT_HWCAP) & 1ul << 20) != 0; }},  // HWCAP_ASIMDDP of Linux's asm/hwcap.h
#endif
};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs_here()) names.emplace_back(candidate.kernels.isa);
  }
  return names;
}

const Kernels& kernels_for(const std::string& isa) {
  std::string known;
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.runs_here()) continue;
    if (isa == candidate.kernels.isa) return candidate.kernels;
    known += known.empty() ? candidate.kernels.isa : std::string(", ") + candidate.kernels.isa;
  }
  throw std::invalid_argument("instruction set '" + isa + "' is not one that this machine can run (" + known +
                              "); unset BITFLEET_ISA to use the fastest");
}

const Kernels& selected_kernels() {
  const char* forced = std::getenv("BITFLEET_ISA");
  if (forced != nullptr && *forced != '\0') return kernels_for(forced);
  return kernels_for(available_isas().back());
}

}  // namespace bitfleet
