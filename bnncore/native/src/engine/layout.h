// What the plan of a residual network holds beside that of a chain of blocks; for lay_out_engine.
#pragma once

#include <cstddef>
#include <functional>

#include "bnncore/engine.h"

namespace bitfleet {

// Block 0 is then what a stem leaves: it has signs and a norm, but neither weights nor products.
struct LayoutExtras {
  int input_features;
  int classes;
  size_t num_scales;
  size_t gradient_stride;  // the least, as are the following
  size_t y_bytes, grad_t_bytes, staged_bytes;
  std::function<void(MemoryPlan&)> add_entries;
};

EngineLayout lay_out_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                            int num_threads, bool keep_products, const LayoutExtras* extras);

}  // namespace bitfleet
