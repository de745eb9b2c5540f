// Ways to multiply 8-bit gradients by sign bits, one inner loop each: out[r][k] += sum_j g[r][j] * bit(j, k), on
// operands that were brought into each way's form before, as the engine does for whole layers at once. Every way's
// sums are compared with the plain ones before it is timed. Prints "isa way GMAC/s" lines.
//
// 64 rows of g by 128 columns at depth 240: what the engine's kernels are given at most.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

namespace {

constexpr int kRows = 64, kColumns = 128, kDepth = 240;

int8_t g[kRows][kDepth];
uint8_t bit[kDepth][kColumns];
int32_t expected[kRows][kColumns], got[kRows][kColumns];

// 64-byte aligned room for a form.
struct Form {
  explicit Form(size_t bytes)
      : size(bytes), data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {
    std::memset(data, 0, (bytes + 63) / 64 * 64);
  }
  size_t size;
  uint8_t* data;
};

double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <typename Multiply>
void measure(const char* isa, const char* way, Multiply multiply) {
  std::memset(got, 0, sizeof(got));
  multiply();
  if (std::memcmp(got, expected, sizeof(got)) != 0) {
    std::printf("%s %s wrong\n", isa, way);
    std::exit(1);
  }
  std::vector<double> rates;
  for (int run = 0; run < 15; ++run) {
    const double start = seconds();
    for (int i = 0; i < 300; ++i) {
      multiply();
      asm volatile("" ::: "memory");
    }
    rates.push_back(300.0 * kRows * kColumns * kDepth / (seconds() - start) * 1e-9);
  }
  std::nth_element(rates.begin(), rates.begin() + 7, rates.end());
  std::printf("%s %s %.0f\n", isa, way, rates[7]);
}

// Sum over the subset `bits` of the group's gradients.
int subset_sum(int row, int first, int group, int bits) {
  int sum = 0;
  for (int i = 0; i < group && first + i < kDepth; ++i) sum += bits >> i & 1 ? g[row][first + i] : 0;
  return sum;
}

int index_of(int column, int first, int group) {
  int index = 0;
  for (int i = 0; i < group && first + i < kDepth; ++i) index |= bit[first + i][column] << i;
  return index;
}

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx512vpopcntdq")))
#define AVX2 __attribute__((target("avx2")))
#define UNROLL _Pragma("GCC unroll 8")

// 8 planes of g in two's complement, AND, VPOPCNTQ; lanes are columns.
AVX512 void bit_serial(const uint64_t* planes, const uint64_t* columns) {
  constexpr int kWords = (kDepth + 63) / 64;
  for (int r = 0; r < kRows; r += 2) {
    for (int k = 0; k < kColumns; k += 8) {
      __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      for (int plane = 0; plane < 8; ++plane) {
        __m512i count[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int w = 0; w < kWords; ++w) {
          const __m512i x = _mm512_load_si512(columns + w * kColumns + k);
          UNROLL for (int i = 0; i < 2; ++i) {
            const __m512i p = _mm512_set1_epi64(static_cast<int64_t>(planes[((r + i) * 8 + plane) * kWords + w]));
            count[i] = _mm512_add_epi64(count[i], _mm512_popcnt_epi64(_mm512_and_si512(x, p)));
          }
        }
        UNROLL for (int i = 0; i < 2; ++i) {
          const __m512i part = _mm512_slli_epi64(count[i], plane);
          sum[i] = plane == 7 ? _mm512_sub_epi64(sum[i], part) : _mm512_add_epi64(sum[i], part);
        }
      }
      UNROLL for (int i = 0; i < 2; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(&got[r + i][k]), _mm512_cvtepi64_epi32(sum[i]));
      }
    }
  }
}

// VPDPBUSD: bits as bytes, four rows j a lane; 4 rows of g by 64 columns.
AVX512 void dot_bytes(const uint8_t* bytes) {
  for (int r = 0; r < kRows; r += 4) {
    for (int k = 0; k < kColumns; k += 64) {
      __m512i sum[4][4];
      UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int v = 0; v < 4; ++v) sum[i][v] = _mm512_setzero_si512();
      for (int j = 0; j < kDepth; j += 4) {
        __m512i x[4];
        UNROLL for (int v = 0; v < 4; ++v) x[v] = _mm512_load_si512(bytes + size_t(j) * kColumns + 4 * (k + 16 * v));
        UNROLL for (int i = 0; i < 4; ++i) {
          int32_t four;
          std::memcpy(&four, &g[r + i][j], 4);
          const __m512i y = _mm512_set1_epi32(four);
          UNROLL for (int v = 0; v < 4; ++v) sum[i][v] = _mm512_dpbusd_epi32(sum[i][v], x[v], y);
        }
      }
      UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int v = 0; v < 4; ++v) {
        _mm512_storeu_si512(&got[r + i][k + 16 * v], sum[i][v]);
      }
    }
  }
}

AVX512 void store_16_bits(int row, int k, __m512i sums) {
  _mm512_storeu_si512(&got[row][k], _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums)));
  _mm512_storeu_si512(&got[row][k + 16], _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums, 1)));
}

enum class LookUp { kVpermw, kVpermb, kVpermi2w };

// VPERMW, or VPERMB by the numbers of both bytes: tables of 32 sums of five; VPERMI2W: of 64 sums of six. 4 rows by 128
// columns, or 2 by 128.
template <LookUp kBy, int kGroup, int kAtOnce>
AVX512 void look_up_words(const uint8_t* tables, const uint8_t* indices) {
  constexpr int kGroups = (kDepth + kGroup - 1) / kGroup, kTable = kGroup == 5 ? 64 : 128;
  for (int r = 0; r < kRows; r += kAtOnce) {
    __m512i sum[kAtOnce][4];
    UNROLL for (int i = 0; i < kAtOnce; ++i) UNROLL for (int v = 0; v < 4; ++v) sum[i][v] = _mm512_setzero_si512();
    for (int q = 0; q < kGroups; ++q) {
      __m512i x[4];
      UNROLL for (int v = 0; v < 4; ++v) x[v] = _mm512_load_si512(indices + (size_t(q) * 4 + v) * 64);
      UNROLL for (int i = 0; i < kAtOnce; ++i) {
        const uint8_t* table = tables + (size_t(r + i) * kGroups + q) * kTable;
        const __m512i low = _mm512_load_si512(table);
        UNROLL for (int v = 0; v < 4; ++v) {
          const __m512i found = kBy == LookUp::kVpermw ? _mm512_permutexvar_epi16(x[v], low)
                                : kBy == LookUp::kVpermb
                                    ? _mm512_permutexvar_epi8(x[v], low)
                                    : _mm512_permutex2var_epi16(low, x[v], _mm512_load_si512(table + kTable / 2));
          sum[i][v] = _mm512_add_epi16(sum[i][v], found);
        }
      }
    }
    UNROLL for (int i = 0; i < kAtOnce; ++i) UNROLL for (int v = 0; v < 4; ++v) store_16_bits(r + i, 32 * v, sum[i][v]);
  }
}

// Tables of low and of high bytes: VPSHUFB of 16 sums of four, VPERMB of 64 sums of six. The high bytes add up in bytes
// (some at a time), the low ones as words and their upper halves.
template <int kGroup>
AVX512 void look_up_bytes(const uint8_t* tables, const uint8_t* indices) {
  constexpr int kGroups = (kDepth + kGroup - 1) / kGroup, kTable = kGroup == 4 ? 16 : 64, kHold = 30;
  for (int r = 0; r < kRows; r += 2) {
    for (int k = 0; k < kColumns; k += 64) {
      __m512i words[2], upper[2], high_low[2], high_high[2];
      UNROLL for (int i = 0; i < 2; ++i) words[i] = upper[i] = high_low[i] = high_high[i] = _mm512_setzero_si512();
      for (int start = 0; start < kGroups; start += kHold) {
        __m512i high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int q = start; q < std::min(kGroups, start + kHold); ++q) {
          const __m512i x = _mm512_load_si512(indices + size_t(q) * kColumns + k);
          UNROLL for (int i = 0; i < 2; ++i) {
            const uint8_t* table = tables + (size_t(r + i) * kGroups + q) * 2 * kTable;
            __m512i low, top;
            if constexpr (kGroup == 4) {
              low = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))),
                                        x);
              top = _mm512_shuffle_epi8(
                  _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table + kTable))), x);
            } else {
              low = _mm512_permutexvar_epi8(x, _mm512_load_si512(table));
              top = _mm512_permutexvar_epi8(x, _mm512_load_si512(table + kTable));
            }
            high[i] = _mm512_add_epi8(high[i], top);
            words[i] = _mm512_add_epi16(words[i], low);
            upper[i] = _mm512_add_epi16(upper[i], _mm512_srli_epi16(low, 8));
          }
        }
        UNROLL for (int i = 0; i < 2; ++i) {  // bytes to words: even columns, odd columns
          high_low[i] = _mm512_add_epi16(high_low[i], _mm512_srai_epi16(_mm512_slli_epi16(high[i], 8), 8));
          high_high[i] = _mm512_add_epi16(high_high[i], _mm512_srai_epi16(high[i], 8));
        }
      }
      for (int i = 0; i < 2; ++i) {
        const __m512i even = _mm512_add_epi16(_mm512_sub_epi16(words[i], _mm512_slli_epi16(upper[i], 8)),
                                              _mm512_slli_epi16(high_low[i], 8));
        const __m512i odd = _mm512_add_epi16(upper[i], _mm512_slli_epi16(high_high[i], 8));
        alignas(64) int16_t sums[2][32];
        _mm512_store_si512(sums[0], even);
        _mm512_store_si512(sums[1], odd);
        for (int c = 0; c < 64; ++c) got[r + i][k + c] = sums[c % 2][c / 2];
      }
    }
  }
}

// VPMADDUBSW: bits as bytes, four rows j a 32-bit lane; 4 rows of g by 16 columns.
AVX2 void multiply_bytes(const uint8_t* bytes) {
  for (int r = 0; r < kRows; r += 4) {
    for (int k = 0; k < kColumns; k += 16) {
      __m256i sum[4][2];
      UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int v = 0; v < 2; ++v) sum[i][v] = _mm256_setzero_si256();
      for (int j = 0; j < kDepth; j += 4) {
        __m256i x[2];
        UNROLL for (int v = 0; v < 2; ++v) {
          x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes + size_t(j) * kColumns + 4 * (k + 8 * v)));
        }
        UNROLL for (int i = 0; i < 4; ++i) {
          int32_t four;
          std::memcpy(&four, &g[r + i][j], 4);
          const __m256i y = _mm256_set1_epi32(four);
          UNROLL for (int v = 0; v < 2; ++v) sum[i][v] = _mm256_add_epi16(sum[i][v], _mm256_maddubs_epi16(x[v], y));
        }
      }
      UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int v = 0; v < 2; ++v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(&got[r + i][k + 8 * v]),
                            _mm256_madd_epi16(sum[i][v], _mm256_set1_epi16(1)));
      }
    }
  }
}

// VPSHUFB at 256 bits, tables of 16 sums of four in low and high bytes.
AVX2 void shuffle_bytes(const uint8_t* tables, const uint8_t* indices) {
  constexpr int kGroups = kDepth / 4;
  for (int r = 0; r < kRows; r += 2) {
    for (int k = 0; k < kColumns; k += 32) {
      __m256i words[2], upper[2], high[2];
      UNROLL for (int i = 0; i < 2; ++i) words[i] = upper[i] = high[i] = _mm256_setzero_si256();
      for (int q = 0; q < kGroups; ++q) {  // 60 high bytes, each in [-2, 1], fit a byte
        const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(indices + size_t(q) * kColumns + k));
        UNROLL for (int i = 0; i < 2; ++i) {
          const __m128i* table = reinterpret_cast<const __m128i*>(tables + (size_t(r + i) * kGroups + q) * 32);
          const __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(table)), x);
          const __m256i top = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(table + 1)), x);
          high[i] = _mm256_add_epi8(high[i], top);
          words[i] = _mm256_add_epi16(words[i], low);
          upper[i] = _mm256_add_epi16(upper[i], _mm256_srli_epi16(low, 8));
        }
      }
      for (int i = 0; i < 2; ++i) {
        const __m256i even =
            _mm256_add_epi16(_mm256_sub_epi16(words[i], _mm256_slli_epi16(upper[i], 8)), _mm256_slli_epi16(high[i], 8));
        const __m256i odd = _mm256_add_epi16(upper[i], _mm256_and_si256(high[i], _mm256_set1_epi16(-256)));
        alignas(32) int16_t sums[2][16];
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[0]), even);
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[1]), odd);
        for (int c = 0; c < 32; ++c) got[r + i][k + c] = sums[c % 2][c / 2];
      }
    }
  }
}

Form tables_of(int group, int entries, bool words) {
  const int groups = (kDepth + group - 1) / group;
  Form form(size_t(kRows) * groups * entries * 2);
  for (int r = 0; r < kRows; ++r) {
    for (int q = 0; q < groups; ++q) {
      uint8_t* table = form.data + (size_t(r) * groups + q) * entries * 2;
      for (int e = 0; e < entries; ++e) {
        const int sum = subset_sum(r, q * group, group, e);
        if (words) {
          reinterpret_cast<int16_t*>(table)[e] = static_cast<int16_t>(sum);
        } else {
          table[e] = static_cast<uint8_t>(sum & 255);
          table[entries + e] = static_cast<uint8_t>(sum >> 8);
        }
      }
    }
  }
  return form;
}

template <typename T>
Form indices_of(int group) {
  const int groups = (kDepth + group - 1) / group;
  Form form(size_t(groups) * kColumns * sizeof(T));
  for (int q = 0; q < groups; ++q) {
    for (int k = 0; k < kColumns; ++k) {
      reinterpret_cast<T*>(form.data)[q * kColumns + k] = static_cast<T>(index_of(k, q * group, group));
    }
  }
  return form;
}

}  // namespace

int main() {
  std::srand(1);
  for (auto& row : g) {
    for (int8_t& value : row) value = static_cast<int8_t>(std::rand() % 255 - 127);
  }
  for (auto& row : bit) {
    for (uint8_t& value : row) value = std::rand() >> 8 & 1;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kColumns; ++k) {
      for (int j = 0; j < kDepth; ++j) expected[r][k] += g[r][j] * bit[j][k];
    }
  }
  Form bytes(size_t(kDepth) * kColumns);
  for (int j = 0; j < kDepth; ++j) {
    for (int k = 0; k < kColumns; ++k) bytes.data[size_t(j / 4 * 4) * kColumns + 4 * k + j % 4] = bit[j][k];
  }
  const Form nibbles = tables_of(4, 16, false), nibble_indices = indices_of<uint8_t>(4);
  if (__builtin_cpu_supports("avx2")) {
    measure("avx2", "VPMADDUBSW", [&] { multiply_bytes(bytes.data); });
    measure("avx2", "VPSHUFB-tables", [&] { shuffle_bytes(nibbles.data, nibble_indices.data); });
  }
  if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512vpopcntdq")) {
    constexpr int kWords = (kDepth + 63) / 64;
    Form planes(size_t(kRows) * 8 * kWords * 8), columns(size_t(kWords) * kColumns * 8);
    for (int j = 0; j < kDepth; ++j) {
      for (int r = 0; r < kRows; ++r) {
        for (int plane = 0; plane < 8; ++plane) {
          const uint64_t set = static_cast<uint8_t>(g[r][j]) >> plane & 1;
          reinterpret_cast<uint64_t*>(planes.data)[(r * 8 + plane) * kWords + j / 64] |= set << (j % 64);
        }
      }
      for (int k = 0; k < kColumns; ++k) {
        reinterpret_cast<uint64_t*>(columns.data)[j / 64 * kColumns + k] |= uint64_t{bit[j][k]} << (j % 64);
      }
    }
    const Form fives = tables_of(5, 32, true), five_indices = indices_of<uint16_t>(5);
    Form five_pairs = indices_of<uint16_t>(5);  // bytes 2 i and 2 i + 1 of a table
    for (size_t i = 0; i < five_pairs.size / 2; ++i) {
      uint16_t& index = reinterpret_cast<uint16_t*>(five_pairs.data)[i];
      index = static_cast<uint16_t>(index * 0x0202 + 0x0100);
    }
    const Form sixes = tables_of(6, 64, true), six_indices = indices_of<uint16_t>(6);
    const Form six_bytes = tables_of(6, 64, false), six_byte_indices = indices_of<uint8_t>(6);
    measure("avx512", "bit-planes", [&] {
      bit_serial(reinterpret_cast<const uint64_t*>(planes.data), reinterpret_cast<const uint64_t*>(columns.data));
    });
    measure("avx512", "VPDPBUSD", [&] { dot_bytes(bytes.data); });
    measure("avx512", "VPSHUFB-tables", [&] { look_up_bytes<4>(nibbles.data, nibble_indices.data); });
    measure("avx512", "VPERMB-tables", [&] { look_up_bytes<6>(six_bytes.data, six_byte_indices.data); });
    measure("avx512", "VPERMI2W-words", [&] { look_up_words<LookUp::kVpermi2w, 6, 2>(sixes.data, six_indices.data); });
    measure("avx512", "VPERMW-words", [&] { look_up_words<LookUp::kVpermw, 5, 4>(fives.data, five_indices.data); });
    measure("avx512", "VPERMB-words", [&] { look_up_words<LookUp::kVpermb, 5, 4>(fives.data, five_pairs.data); });
  }
}
