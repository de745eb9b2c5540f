// One-bit differences of latent weights: bnncore/reference/signs.py says in NumPy what is computed, bit for bit.
//
// A tensor is [rows][count]; a row has one scale, in fine units of 1/256 of a latent step, and one bit an element: 1
// means minus. Element k is bit k % 8 of byte k / 8, row_bytes(count) bytes a row, unused bits zero. A mask, where
// there is one, has bit 1 where an element is there; elsewhere the difference is 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

constexpr size_t row_bytes(int count) { return (static_cast<size_t>(count) + 7) / 8; }

// What is told, element by element: latent + error - replica in whole steps (error may be null), or, where master is
// not null, 127 master - replica in 2^-20 of a step. master lies in [-1, 1].
struct SignSource {
  const int8_t* latent;
  const int8_t* error;
  const float* master;
  const int8_t* replica;

  SignSource from(size_t first) const {
    return {latent == nullptr ? nullptr : latent + first, error == nullptr ? nullptr : error + first,
            master == nullptr ? nullptr : master + first, replica + first};
  }
};

inline constexpr int kStepBits = 20;     // of 127 master - replica
inline constexpr int kSignBlock = 1024;  // elements that `sizes` gives at most

struct SignKernels {
  // Bits and scale of a row, of the elements in `mask` (null: all). Of latent weights also what remains to be told:
  // remaining[count], in whole steps. The bits of others are zero, and all of theirs remains.
  uint16_t (*encode_row)(const SignSource& source, const uint8_t* mask, int count, uint8_t* bits, int8_t* remaining);

  // |x| of count <= kSignBlock elements, in whole steps or, of a master, in whole fine units.
  void (*sizes)(const SignSource& source, int count, uint16_t* sizes);

  // replica <- clip(replica + sign * ((scale + 128) >> 8), -127, 127).
  void (*apply_row)(int8_t* replica, const uint8_t* bits, const uint8_t* mask, int count, uint16_t scale);

  // values[count]: -scale, 0 or +scale.
  void (*expand_row)(const uint8_t* bits, const uint8_t* mask, int count, uint16_t scale, int32_t* values);
};

namespace portable {
extern const SignKernels sign_kernels;
}
namespace avx2 {
extern const SignKernels sign_kernels;
}
namespace avx512 {
extern const SignKernels sign_kernels;
}

// A whole tensor. `sent` is how many elements are told, those of the largest |x| and the first of equals, none that is
// 0; they are marked in `mask`. With a null mask all are. remaining is null where the source is a master.
void encode_tensor(const SignKernels& kernels, const SignSource& source, int rows, int count, size_t sent,
                   uint16_t* scales, uint8_t* bits, uint8_t* mask, int8_t* remaining);

// One of several differences that are added up.
struct SignTerm {
  const uint16_t* scales;
  const uint8_t* bits;
  const uint8_t* mask;  // null: every element is there
  int64_t weight;       // |weight| <= 2^40
};

inline constexpr int kFoldTerms = 8;

// sums[rows][count] += weight * difference of 1 to kFoldTerms terms, in fine units.
void fold_signs(int64_t* sums, const SignTerm* terms, int num_terms, int rows, int count);

}  // namespace bitfleet
