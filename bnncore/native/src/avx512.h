// What "avx512" stands for: the extensions of Intel's Ice Lake and AMD's Zen 4 and of all that came after them.
#pragma once

#define BITFLEET_AVX512                                                                                            \
  __attribute__((                                                                                                  \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vpopcntdq,gfni,avx2,fma,f16c,popcnt," \
             "prefer-vector-width=512")))
