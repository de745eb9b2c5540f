// Eight differences at a time: an element's eight sign bits are the index into a table of the row's 256 sums, so that
// an element costs one look-up and one addition, however many differences there are.
#include "bnncore/signs.h"

namespace bitfleet {

namespace {

constexpr int kPatterns = 1 << kFoldTerms;

// table[i] = start + sum over the terms j whose bit is set in i of change[j].
void fill_table(int64_t start, const int64_t* change, int num_terms, int64_t* table) {
  table[0] = start;
  for (int j = 0; j < num_terms; ++j) {
    const int half = 1 << j;
    for (int i = 0; i < half; ++i) table[half + i] = table[i] + change[j];
  }
}

// Transposes 8 x 8 bits: bit k of byte j becomes bit j of byte k. Warren, "Hacker's Delight", 7-3.
uint64_t transpose_bits(uint64_t x) {
  uint64_t t = (x ^ x >> 7) & 0x00aa00aa00aa00aau;
  x ^= t ^ t << 7;
  t = (x ^ x >> 14) & 0x0000cccc0000ccccu;
  x ^= t ^ t << 14;
  t = (x ^ x >> 28) & 0x00000000f0f0f0f0u;
  return x ^ t ^ t << 28;
}

// The terms' bits of eight elements: byte k has those of element k.
uint64_t patterns(const uint8_t* const* rows, int num_terms, size_t byte) {
  uint64_t x = 0;
  for (int j = 0; j < num_terms; ++j) x |= uint64_t{rows[j][byte]} << 8 * j;
  return transpose_bits(x);
}

// sums[k] += table[pattern k] for up to eight elements.
void add_eight(int64_t* sums, int some, const int64_t* table, uint64_t pattern) {
  if (some == 8) {
    for (int k = 0; k < 8; ++k) sums[k] += table[pattern >> 8 * k & 0xff];
  } else {
    for (int k = 0; k < some; ++k) sums[k] += table[pattern >> 8 * k & 0xff];
  }
}

template <int kTerms>
void add_row(int64_t* sums, const uint8_t* const* bits, int num_terms, const int64_t* table, int count) {
  const int terms = kTerms == 0 ? num_terms : kTerms;
  for (int first = 0; first < count; first += 8) {
    const uint64_t pattern = patterns(bits, terms, static_cast<size_t>(first) / 8);
    add_eight(sums + first, count - first < 8 ? count - first : 8, table, pattern);
  }
}

}  // namespace

void fold_signs(int64_t* sums, const SignTerm* terms, int num_terms, int rows, int count) {
  const size_t bytes = row_bytes(count);
  int64_t table[kPatterns], twice[kFoldTerms], values[kFoldTerms];
  const uint8_t* bits[kFoldTerms];
  const uint8_t* masks[kFoldTerms];
  for (int r = 0; r < rows; ++r) {
    const size_t row = static_cast<size_t>(r);
    int64_t* row_sums = sums + row * static_cast<size_t>(count);
    int64_t present = 0;  // what the terms without a mask add where no bit is set
    int num_masks = 0;
    for (int j = 0; j < num_terms; ++j) {
      const int64_t value = terms[j].weight * terms[j].scales[row];
      bits[j] = terms[j].bits + row * bytes;
      twice[j] = -2 * value;
      if (terms[j].mask == nullptr) {
        present += value;
      } else {
        masks[num_masks] = terms[j].mask + row * bytes;
        values[num_masks++] = value;
      }
    }
    fill_table(present, twice, num_terms, table);
    if (num_terms == kFoldTerms) {
      add_row<kFoldTerms>(row_sums, bits, num_terms, table, count);
    } else {
      add_row<0>(row_sums, bits, num_terms, table, count);
    }
    if (num_masks == 0) continue;
    fill_table(0, values, num_masks, table);
    add_row<0>(row_sums, masks, num_masks, table, count);
  }
}

}  // namespace bitfleet
