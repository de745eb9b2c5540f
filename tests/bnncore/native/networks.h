// Small networks on every edge of the engines' geometry, and the constants of every optimizer.
#pragma once

#include <string>
#include <vector>

#include "bnncore/network.h"

namespace bitfleet::test {

struct NamedNetwork {
  std::string name;
  std::vector<BlockSpec> blocks;
  bool with_every_optimizer = false;
};

struct NamedOptimizer {
  std::string name;
  OptimizerParams params;
  // Trains every network. What geometry has to do with an optimizer is whether its weights are bytes, bits or floats.
  bool everywhere;
};

// A dense layer over a whole map.
inline BlockSpec dense(int height, int width, int in, int out) {
  return {"dense", "norm", height, width, in, out, height, width, 1, 0, 0, 1, 1, Pool::kNone, 1, 1};
}

inline BlockSpec pooled(BlockSpec block, Pool pool, int height, int width) {
  block.pool = pool;
  block.pool_height = height;
  block.pool_width = width;
  return block;
}

struct Kernel {
  int height, width;
  int stride = 1;
  bool same = false;  // padded by (kernel - 1) / 2 on every side; such kernels are odd
};

inline BlockSpec conv(int height, int width, int in, int out, Kernel kernel) {
  const int pad_height = kernel.same ? (kernel.height - 1) / 2 : 0,
            pad_width = kernel.same ? (kernel.width - 1) / 2 : 0;
  const auto extent = [&](int size, int padding, int taps) { return (size + 2 * padding - taps) / kernel.stride + 1; };
  return {"conv",
          "norm",
          height,
          width,
          in,
          out,
          kernel.height,
          kernel.width,
          kernel.stride,
          pad_height,
          pad_width,
          extent(height, pad_height, kernel.height),
          extent(width, pad_width, kernel.width),
          Pool::kNone,
          1,
          1};
}

inline std::vector<NamedNetwork> networks() {
  const Pool before = Pool::kBeforeNorm, after = Pool::kAfterSign;
  return {
      {"dense", {dense(1, 1, 100, 70), dense(1, 1, 70, 129), dense(1, 1, 129, 10)}, true},
      {"narrow", {dense(1, 1, 3, 2), dense(1, 1, 2, 2)}},
      // More outputs than are expanded at once: in two parts that differ.
      {"parts", {dense(1, 1, 9, 60), dense(1, 1, 60, 250), dense(1, 1, 250, 250), dense(1, 1, 250, 5)}},
      {"padded-pool-before",
       {conv(8, 7, 3, 20, {3, 3, 1, true}), pooled(conv(8, 7, 20, 33, {3, 3, 1, true}), before, 2, 2),
        dense(4, 3, 33, 10)},
       true},
      {"pool-after",
       {pooled(conv(9, 10, 1, 18, {3, 3}), after, 2, 3), pooled(conv(3, 2, 18, 65, {2, 2}), after, 2, 1),
        dense(1, 1, 65, 7)}},
      {"stride",
       {conv(9, 8, 2, 17, {3, 3, 2, true}), conv(5, 4, 17, 16, {3, 2, 2}), conv(2, 2, 16, 12, {1, 1}),
        dense(2, 2, 12, 4)}},
      {"rectangles",
       {pooled(conv(6, 9, 1, 9, {1, 5, 1, true}), before, 2, 2), conv(3, 4, 9, 70, {5, 3, 1, true}),
        conv(3, 4, 70, 8, {2, 4}), dense(2, 1, 8, 10)}},
      {"sensor", {conv(1, 24, 9, 34, {1, 5, 2}), pooled(conv(1, 10, 34, 20, {1, 3}), after, 1, 2), dense(1, 4, 20, 6)}},
      // Lines that fill vectors, and maps whose positions a panel does not take at once.
      {"long-lines",
       {pooled(conv(34, 32, 1, 3, {3, 3, 1, true}), after, 1, 2), conv(34, 16, 3, 66, {3, 3, 1, true}),
        pooled(conv(34, 16, 66, 5, {3, 1}), before, 4, 2), dense(8, 8, 5, 9)}},
      {"many-positions",
       {conv(70, 16, 1, 2, {3, 3, 1, true}), pooled(conv(70, 16, 2, 3, {3, 3, 1, true}), after, 2, 1),
        pooled(conv(35, 16, 3, 2, {2, 3}), after, 17, 7), dense(2, 2, 2, 3)}},
      {"long-line",
       {conv(1, 2400, 1, 2, {1, 5, 2, true}), conv(1, 1200, 2, 3, {1, 3, 1, true}),
        pooled(conv(1, 1200, 3, 2, {1, 4}), after, 1, 199), dense(1, 6, 2, 3)}},
      // Maps of so few positions that vectors take samples.
      {"small-maps",
       {conv(5, 5, 1, 70, {3, 3}), conv(3, 3, 70, 20, {3, 3, 1, true}), pooled(conv(3, 3, 20, 33, {2, 2}), after, 2, 1),
        conv(1, 2, 33, 17, {3, 3, 1, true}), conv(1, 2, 17, 8, {1, 1, 2}), dense(1, 1, 8, 5)},
       true},
  };
}

// The defaults of bnncore/optimizer.py, with steps large enough to flip weights in a few steps.
inline NamedOptimizer optimizer(const char* name, OptimizerKind kind, float step_size, bool everywhere) {
  return {name,
          {kind, step_size, 0.9f, 32.0f, 1e-1f, 0.03f, 0.25f, 0.9f, 0.999f, 1e-8f, 1e-2f, 60, 3, 1.25f, 0.98f},
          everywhere};
}

inline std::vector<NamedOptimizer> float_optimizers() {
  return {optimizer("adam", OptimizerKind::kAdam, 1e-2f, true), optimizer("sgd", OptimizerKind::kSgd, 2e-2f, false)};
}

inline std::vector<NamedOptimizer> optimizers() {
  std::vector<NamedOptimizer> all = {optimizer("latent8", OptimizerKind::kLatent8, 5e-2f, true),
                                     optimizer("latent8m", OptimizerKind::kLatent8Momentum, 3e-2f, false),
                                     optimizer("bop", OptimizerKind::kBop, 1.0f, true)};
  for (NamedOptimizer& one : float_optimizers()) all.push_back(one);
  return all;
}

}  // namespace bitfleet::test
