#include "packed.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

static_assert(std::endian::native == std::endian::little, "the file is little-endian");

namespace bitfleet {
namespace {

constexpr size_t kHead = 12, kAlign = 8;
constexpr double kMostNumbers = 1 << 24;           // of a map; all networks of the zoo have less
constexpr double kMostWeights = int64_t{1} << 40;  // of a layer; the file is to hold them

uint32_t crc32(const uint8_t* data, size_t size) {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ value >> 1 : value >> 1;
    table[i] = value;
  }
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) crc = table[(crc ^ data[i]) & 0xFF] ^ crc >> 8;
  return ~crc;
}

// Takes arrays from what follows the header.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  template <typename T>
  std::vector<T> take(int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > left_ / sizeof(T)) {
      throw std::runtime_error("the file ends before the numbers of its network");
    }
    std::vector<T> values(static_cast<size_t>(count));
    const size_t bytes = values.size() * sizeof(T), padded = bytes + (kAlign - bytes % kAlign) % kAlign;
    if (bytes > 0) std::memcpy(values.data(), data_, bytes);
    data_ += std::min(padded, left_);
    left_ -= std::min(padded, left_);
    return values;
  }

  int32_t number() { return take<int32_t>(1)[0]; }

  Signs signs(const PlanRow& plan) {
    Signs signs;
    signs.words = (plan[3] + 63) / 64;
    signs.bits = take<uint64_t>(int64_t{plan[4]} * plan[5] * plan[6] * signs.words);
    return signs;
  }

  Norm norm(int channels) {
    Norm norm{take<float>(channels), take<float>(channels), 0, 0};
    norm.low = number();
    norm.limit = number();
    if (norm.low > norm.limit) throw std::runtime_error("a norm has no range");
    return norm;
  }

  RealWeights real(int64_t count) {
    RealWeights weights{take<int32_t>(count), number()};
    if (weights.shift < 0 || weights.shift > 31) throw std::runtime_error("a shift makes no sense");
    return weights;
  }

  size_t left() const { return left_; }

 private:
  const uint8_t* data_;
  size_t left_;
};

void check_plan(const PlanRow& plan) {
  for (int32_t value : plan) {
    if (value < 0 || value > 1 << 24) throw std::runtime_error("a size in the file makes no sense");
  }
  const bool is_head = plan[0] == 4;
  for (int column = 1; column < (is_head ? 5 : 8); ++column) {
    if (plan[column] == 0) throw std::runtime_error("a size in the file is 0");
  }
  if (is_head) return;
  if (plan[10] == 0 || plan[11] == 0) throw std::runtime_error("a map in the file is empty");
  const bool fits = double(plan[1]) * plan[2] * plan[3] <= kMostNumbers &&
                    double(plan[10]) * plan[11] * plan[4] <= kMostNumbers &&
                    double(plan[4]) * plan[5] * plan[6] * plan[3] <= kMostWeights;
  const bool is_kernel = plan[8] < plan[5] && plan[9] < plan[6] && plan[5] <= plan[1] + 2 * plan[8] &&
                         plan[6] <= plan[2] + 2 * plan[9] && plan[10] <= plan[1] + 2 * plan[8] &&
                         plan[11] <= plan[2] + 2 * plan[9];
  if (!is_kernel) throw std::runtime_error("a kernel in the file is larger than its map");
  if (!fits) throw std::runtime_error("a map in the file is too large");
}

Layer read_layer(Reader& reader, const PlanRow& plan) {
  Layer layer;
  layer.plan = plan;
  const int channels = plan[4];
  if (plan[0] == 1) {
    layer.signs = reader.signs(plan);
    if (plan[15] != 0) {
      layer.mean = reader.take<double>(channels);
      layer.inverse = reader.take<double>(channels);
      layer.beta = reader.take<double>(channels);
    } else {
      layer.sign_from = reader.take<int32_t>(channels);
    }
  } else if (plan[0] == 2) {
    layer.weights = reader.real(int64_t{channels} * plan[5] * plan[6] * plan[3]);
    layer.norm = reader.norm(channels);
    if (plan[21] != 0) layer.second_norm = reader.norm(channels);
  } else {
    layer.signs = reader.signs(plan);
    layer.norm = reader.norm(channels);
    if (plan[12] != 0) {
      layer.shortcut = Shortcut{reader.real(int64_t{channels} * plan[3]), {}};
      layer.shortcut->norm = reader.norm(channels);
    }
  }
  return layer;
}

}  // namespace

int64_t Model::input_features() const {
  const PlanRow& plan = layers.front().plan;
  return int64_t{plan[1]} * plan[2] * plan[3];
}

int Model::classes() const { return head[0] == 4 ? head[4] : layers.back().plan[4]; }

Model read_model(const std::vector<uint8_t>& data) {
  if (data.size() < kHead + 4 || std::memcmp(data.data(), "bfpk", 4) != 0) {
    throw std::runtime_error("this is no packed file");
  }
  uint16_t version;
  uint32_t length, crc;
  std::memcpy(&version, &data[4], sizeof version);
  std::memcpy(&length, &data[8], sizeof length);
  std::memcpy(&crc, &data[data.size() - 4], sizeof crc);
  if (version != 1) throw std::runtime_error("the file is of another version");
  if (crc32(data.data(), data.size() - 4) != crc)
    throw std::runtime_error("the file is damaged: its checksum is wrong");
  if (length > data.size() - kHead - 4) throw std::runtime_error("the header ends beyond the file");
  Reader reader(&data[kHead] + length, data.size() - kHead - 4 - length);
  const int32_t rows = reader.number();
  const std::vector<int32_t> table = reader.take<int32_t>(int64_t{rows} * 24);
  Model model;
  for (int32_t row = 0; row < rows; ++row) {
    PlanRow plan;
    std::memcpy(plan.data(), &table[size_t(row) * 24], sizeof plan);
    check_plan(plan);
    const bool is_first = row == 0, is_last = row == rows - 1, is_chain = table[0] == 1;
    const int32_t wanted = is_chain ? 1 : is_first ? 2 : is_last ? 4 : 3;
    if (plan[0] != wanted || (is_chain && (plan[15] != 0) != is_last)) {
      throw std::runtime_error("the layers in the file have no order");
    }
    if (wanted == 4) {
      model.head = plan;
      model.unit = reader.take<float>(1)[0];
      model.matrix = reader.take<float>(int64_t{plan[4]} * plan[3]);
      model.bias = reader.take<float>(plan[4]);
    } else {
      model.layers.push_back(read_layer(reader, plan));
    }
  }
  if (model.layers.empty() || (model.layers[0].plan[0] == 2 && model.head[0] != 4)) {
    throw std::runtime_error("the file holds no whole network");
  }
  if (reader.left() != 0) throw std::runtime_error("bytes follow the network");
  return model;
}

}  // namespace bitfleet
