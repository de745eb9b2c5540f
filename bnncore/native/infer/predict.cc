#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "packed.h"

namespace bitfleet {
namespace {

// A map, height x width x channels.
struct Map {
  int height = 0, width = 0, channels = 0;
  std::vector<int64_t> values;

  Map(int h, int w, int c) : height(h), width(w), channels(c), values(size_t(h) * size_t(w) * size_t(c)) {}
  int64_t& at(int y, int x, int c) { return values[(size_t(y) * width + x) * channels + c]; }
  int64_t at(int y, int x, int c) const { return values[(size_t(y) * width + x) * channels + c]; }
};

// The same numbers as a map of other sizes.
Map shaped(Map map, const PlanRow& plan) {
  Map result(plan[1], plan[2], plan[3]);
  if (result.values.size() != map.values.size()) throw std::runtime_error("two layers in the file do not fit");
  result.values = std::move(map.values);
  return result;
}

// Calls use(element of the kernel, row, column) for what output (y, x) reads inside the map.
template <typename Use>
void for_taps(const PlanRow& plan, int y, int x, Use use) {
  for (int ky = 0; ky < plan[5]; ++ky) {
    const int64_t row = int64_t{y} * plan[7] + ky - plan[8];
    if (row < 0 || row >= plan[1]) continue;
    for (int kx = 0; kx < plan[6]; ++kx) {
      const int64_t column = int64_t{x} * plan[7] + kx - plan[9];
      if (column < 0 || column >= plan[2]) continue;
      use(ky * plan[6] + kx, int(row), int(column));
    }
  }
}

bool is_minus(const Signs& signs, size_t element, int channel) {
  return signs.bits[element * signs.words + channel / 64] >> (channel % 64) & 1;
}

// Sums term(tap of the weights, row, column) over what each output reads; taps are counted over all outputs' kernels.
template <typename Term>
Map products(const PlanRow& plan, Term term) {
  Map out(plan[10], plan[11], plan[4]);
  const size_t kernel = size_t(plan[5]) * plan[6];
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      for (int n = 0; n < out.channels; ++n) {
        int64_t sum = 0;
        for_taps(plan, y, x, [&](int element, int row, int column) { sum += term(n * kernel + element, row, column); });
        out.at(y, x, n) = sum;
      }
    }
  }
  return out;
}

// Products of the 8-bit input with signs.
Map input_products(const Map& in, const PlanRow& plan, const Signs& signs) {
  return products(plan, [&](size_t tap, int row, int column) {
    int64_t sum = 0;
    for (int c = 0; c < in.channels; ++c) {
      const int64_t value = in.at(row, column, c);
      sum += is_minus(signs, tap, c) ? -value : value;
    }
    return sum;
  });
}

// Products of the signs of a map (negative: minus) with signs: a word of both, and the bits in which they differ.
Map sign_products(const Map& in, const PlanRow& plan, const Signs& signs) {
  const size_t words = signs.words, pixels = size_t(in.height) * in.width;
  std::vector<uint64_t> bits(pixels * words);
  for (size_t pixel = 0; pixel < pixels; ++pixel) {
    for (int c = 0; c < in.channels; ++c) {
      if (in.values[pixel * in.channels + c] < 0) bits[pixel * words + c / 64] |= uint64_t{1} << (c % 64);
    }
  }
  return products(plan, [&](size_t tap, int row, int column) {
    const uint64_t* weights = &signs.bits[tap * words];
    const uint64_t* pixel = &bits[(size_t(row) * in.width + column) * words];
    int64_t differing = 0;
    for (size_t word = 0; word < words; ++word) differing += std::popcount(weights[word] ^ pixel[word]);
    return in.channels - 2 * differing;
  });
}

// Products with real-valued weights in fixed point, shifted right, rounding down.
Map real_products(const Map& in, const PlanRow& plan, const RealWeights& weights) {
  Map out = products(plan, [&](size_t tap, int row, int column) {
    const int32_t* values = &weights.values[tap * in.channels];
    int64_t sum = 0;
    for (int c = 0; c < in.channels; ++c) sum += values[c] * in.at(row, column, c);
    return sum;
  });
  for (int64_t& sum : out.values) sum >>= weights.shift;
  return out;
}

struct Window {
  int height, width, down, across, above, left;
};

Map max_pool(const Map& in, const Window& window, int height, int width) {
  const bool fits = window.height >= 1 && window.width >= 1 && window.height <= in.height + 2 * window.above &&
                    window.width <= in.width + 2 * window.left && window.above < window.height &&
                    window.left < window.width && height >= 1 && width >= 1 && height <= in.height && width <= in.width;
  if (!fits) throw std::runtime_error("a pool in the file does not fit its map");
  Map out(height, width, in.channels);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < in.channels; ++c) {
        int64_t largest = INT64_MIN;
        for (int wy = 0; wy < window.height; ++wy) {
          for (int wx = 0; wx < window.width; ++wx) {
            const int64_t row = int64_t{y} * window.down + wy - window.above;
            const int64_t column = int64_t{x} * window.across + wx - window.left;
            if (row < 0 || row >= in.height || column < 0 || column >= in.width) continue;
            largest = std::max(largest, in.at(int(row), int(column), c));
          }
        }
        out.at(y, x, c) = largest;
      }
    }
  }
  return out;
}

Map plain_max_pool(const Map& in, int height, int width) {
  if (height < 1 || width < 1) throw std::runtime_error("a pool in the file is empty");
  return max_pool(in, {height, width, height, width, 0, 0}, in.height / height, in.width / width);
}

// Means of windows, halves rounded up.
Map average_pool(const Map& in, int height, int width) {
  if (height < 1 || width < 1) throw std::runtime_error("a pool in the file is empty");
  Map out(in.height / height, in.width / width, in.channels);
  const int64_t count = int64_t{height} * width;
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      for (int c = 0; c < in.channels; ++c) {
        int64_t sum = 0;
        for (int wy = 0; wy < height; ++wy) {
          for (int wx = 0; wx < width; ++wx) sum += in.at(y * height + wy, x * width + wx, c);
        }
        const int64_t doubled = 2 * sum + count, divisor = 2 * count;
        out.at(y, x, c) = doubled / divisor - (doubled % divisor < 0 ? 1 : 0);
      }
    }
  }
  return out;
}

void into_stream(Map& map, const Norm& norm) {
  for (size_t i = 0; i < map.values.size(); ++i) {
    const size_t channel = i % map.channels;
    float value = float(map.values[i]) * norm.gain[channel];
    value = value + norm.offset[channel];  // not fused with the product: compiled with -ffp-contract=off
    value = std::clamp(value, float(norm.low), float(norm.limit));
    map.values[i] = int64_t(std::nearbyint(value));
  }
}

std::vector<float> chain_logits(const Model& model, Map x) {
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = model.layers[i];
    const PlanRow& plan = layer.plan;
    x = shaped(std::move(x), plan);
    Map y = i == 0 ? input_products(x, plan, layer.signs) : sign_products(x, plan, layer.signs);
    if (plan[12] == 1) y = plain_max_pool(y, plan[13], plan[14]);
    if (plan[15] != 0) {
      std::vector<float> logits(plan[4]);
      for (int n = 0; n < plan[4]; ++n) {
        const double centred = double(y.values[n]) - layer.mean[n];
        logits[n] = float(centred * layer.inverse[n] + layer.beta[n]);
      }
      return logits;
    }
    for (size_t j = 0; j < y.values.size(); ++j) y.values[j] = y.values[j] >= layer.sign_from[j % y.channels] ? 1 : -1;
    x = plan[12] == 2 ? plain_max_pool(y, plan[13], plan[14]) : std::move(y);
  }
  throw std::runtime_error("the network has no last layer");
}

Map shortcut_of(const Layer& unit, const Map& s) {
  const PlanRow& plan = unit.plan;
  const Map pooled = plan[13] != 0 ? average_pool(s, plan[14], plan[15]) : s;
  PlanRow point{};  // a convolution of 1 x 1
  point[1] = point[10] = pooled.height;
  point[2] = point[11] = pooled.width;
  point[3] = plan[3];
  point[4] = plan[4];
  point[5] = point[6] = point[7] = 1;
  Map y = real_products(pooled, point, unit.shortcut->weights);
  into_stream(y, unit.shortcut->norm);
  return y;
}

std::vector<float> residual_logits(const Model& model, Map x) {
  const Layer& stem = model.layers.front();
  const PlanRow& plan = stem.plan;
  Map s = real_products(shaped(std::move(x), plan), plan, stem.weights);
  if (plan[12] != 0) s = max_pool(s, {plan[13], plan[14], plan[15], plan[16], plan[17], plan[18]}, plan[19], plan[20]);
  into_stream(s, stem.norm);
  if (stem.second_norm) into_stream(s, *stem.second_norm);
  for (size_t i = 1; i < model.layers.size(); ++i) {
    const Layer& unit = model.layers[i];
    s = shaped(std::move(s), unit.plan);
    Map y = sign_products(s, unit.plan, unit.signs);
    into_stream(y, unit.norm);
    if (unit.shortcut) s = shortcut_of(unit, s);
    if (s.values.size() != y.values.size()) throw std::runtime_error("two layers in the file do not fit");
    for (size_t j = 0; j < y.values.size(); ++j) y.values[j] += s.values[j];
    s = std::move(y);
  }
  s = shaped(std::move(s), model.head);
  std::vector<float> features(s.channels), logits(model.classes());
  for (int c = 0; c < s.channels; ++c) {
    int64_t sum = 0;
    for (size_t i = c; i < s.values.size(); i += s.channels) {
      sum += model.head[5] != 0 ? std::max<int64_t>(s.values[i], 0) : s.values[i];
    }
    features[c] = float(sum) * model.unit;
  }
  for (int k = 0; k < model.classes(); ++k) {
    float total = 0;
    for (int c = 0; c < s.channels; ++c) {
      const float product = features[c] * model.matrix[size_t(k) * s.channels + c];
      total = total + product;
    }
    logits[k] = total + model.bias[k];
  }
  return logits;
}

}  // namespace

std::vector<float> logits_of(const Model& model, const uint8_t* sample) {
  const PlanRow& plan = model.layers.front().plan;
  Map x(plan[1], plan[2], plan[3]);
  for (size_t i = 0; i < x.values.size(); ++i) x.values[i] = 2 * int64_t{sample[i]} - 255;
  return plan[0] == 1 ? chain_logits(model, std::move(x)) : residual_logits(model, std::move(x));
}

}  // namespace bitfleet
