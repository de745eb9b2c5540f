#include "bnncore/memory_plan.h"

#include <algorithm>
#include <stdexcept>

#include "bnncore/packing.h"

namespace bitfleet {

namespace {

size_t item_size(const std::string& dtype) {
  if (dtype == "int8" || dtype == "uint8") return 1;
  if (dtype == "int16" || dtype == "uint16" || dtype == "float16") return 2;
  if (dtype == "int32" || dtype == "uint32" || dtype == "float32") return 4;
  if (dtype == "int64" || dtype == "uint64" || dtype == "float64") return 8;
  throw std::logic_error("memory plan: unknown dtype " + dtype);
}

bool live_together(const PlanEntry& a, const PlanEntry& b) { return (a.phases & b.phases) != 0; }

}  // namespace

size_t MemoryPlan::add(std::string name, std::string role, std::string dtype, std::vector<int64_t> shape,
                       uint32_t phases, size_t padding_bytes, int member) {
  size_t bytes = item_size(dtype);
  for (int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  entries_.push_back(
      {std::move(name), std::move(role), std::move(dtype), std::move(shape), bytes + padding_bytes, 0, phases, member});
  return entries_.size() - 1;
}

void MemoryPlan::lay_out() {
  std::vector<size_t> transient;
  size_t base = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].phases == kPersistent) {
      entries_[i].offset = base;
      base = round_up(base + entries_[i].bytes, kAlignment);
    } else {
      transient.push_back(i);
    }
  }
  std::stable_sort(transient.begin(), transient.end(),
                   [this](size_t a, size_t b) { return entries_[a].bytes > entries_[b].bytes; });
  peak_bytes_ = base;
  std::vector<size_t> placed;  // sorted by offset
  for (size_t index : transient) {
    PlanEntry& entry = entries_[index];
    size_t offset = base;
    for (size_t other_index : placed) {
      const PlanEntry& other = entries_[other_index];
      if (!live_together(other, entry)) continue;
      if (offset + entry.bytes <= other.offset) break;
      offset = std::max(offset, round_up(other.offset + other.bytes, kAlignment));
    }
    entry.offset = offset;
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                   [this](size_t value, size_t i) { return value < entries_[i].offset; }),
                  index);
    peak_bytes_ = std::max(peak_bytes_, round_up(offset + entry.bytes, kAlignment));
  }
}

}  // namespace bitfleet
