// What "avx512" stands for: the extensions of Intel's Ice Lake and AMD's Zen 4 and of all that came after them.
#pragma once

#define BITFLEET_AVX512_EXTENSIONS \
  "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vpopcntdq,gfni,avx2,fma,f16c,popcnt"
#define BITFLEET_AVX512 __attribute__((target(BITFLEET_AVX512_EXTENSIONS ",prefer-vector-width=512")))

// For loops that the compiler vectorises: at 256 bits the elements that are left over at the end of a batch of 100 fill
// a vector of half the width, at 512 they are taken one by one.
#define BITFLEET_AVX512_LOOPS __attribute__((target(BITFLEET_AVX512_EXTENSIONS ",prefer-vector-width=256")))
