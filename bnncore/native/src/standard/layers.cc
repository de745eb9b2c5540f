// The l2 batch norm of the preset `standard`, its parameters and their updates.
#include <algorithm>
#include <cmath>

#include "bnncore/standard_layers.h"

namespace bitfleet {

L2NormLayout add_l2_norm(MemoryPlan& plan, const std::string& name, int batch_size, int positions, int channels) {
  const auto add = [&](const char* part, const char* role) {
    return plan.add(name + "." + part, role, "float32", {channels}, kPersistent);
  };
  L2NormLayout norm{};
  norm.beta = add("beta", "norm");
  norm.beta_first = add("beta_mean", "norm");
  norm.beta_second = add("beta_square", "norm");
  norm.running_mean = add("mean", "norm");
  norm.running_mean_abs_dev = add("mean_abs_dev", "norm");
  norm.mean = add("batch_mean", "activations");
  norm.deviation = add("batch_deviation", "activations");
  norm.beta_grad = add("beta_gradient", "gradients");
  norm.x = plan.add(name + ".output", "activations", "float32", {batch_size, positions, channels}, kPersistent);
  return norm;
}

NormScratch add_norm_scratch(MemoryPlan& plan, int most_channels) {
  return {plan.add("channel_sums", "scratch", "float64", {2, most_channels}, kForward | kNormalise),
          plan.add("channel_terms", "scratch", "float32", {3, most_channels}, kForward | kNormalise)};
}

void resolve(const MemoryPlan& plan, WeightLayout& weights) {
  for (size_t* field : {&weights.values, &weights.first_moment, &weights.second_moment, &weights.gradient}) {
    *field = plan.offset(*field);
  }
}

void resolve(const MemoryPlan& plan, L2NormLayout& norm) {
  for (size_t* field : {&norm.beta, &norm.beta_first, &norm.beta_second, &norm.beta_grad, &norm.mean, &norm.deviation,
                        &norm.running_mean, &norm.running_mean_abs_dev, &norm.x}) {
    *field = plan.offset(*field);
  }
}

void resolve(const MemoryPlan& plan, NormScratch& scratch) {
  scratch = {plan.offset(scratch.sums), plan.offset(scratch.terms)};
}

StandardLayers::StandardLayers(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                               int num_threads, CommonLayout common, const NormScratch& norm_scratch)
    : LayerwiseEngine(std::move(blocks), optimizer, batch_size, num_threads, common),
      norm_scratch_(norm_scratch),
      input_offset_(common.input) {}

void StandardLayers::forget(const WeightLayout& layout, size_t count) {
  std::fill_n(at<float>(layout.first_moment), count, 0.0f);
  if (layout.second_moment != kAbsent) std::fill_n(at<float>(layout.second_moment), count, 0.0f);
}

void StandardLayers::forget(const L2NormLayout& layout, int channels) {
  std::fill_n(at<float>(layout.beta_first), channels, 0.0f);
  std::fill_n(at<float>(layout.beta_second), channels, 0.0f);
  std::fill_n(at<float>(layout.running_mean), channels, 0.0f);
  std::fill_n(at<float>(layout.running_mean_abs_dev), channels, 1.0f);
}

void StandardLayers::normalise(const L2NormLayout& norm, int channels, int rows, bool training) {
  float* x = at<float>(norm.x);
  float *mean = at<float>(norm.mean), *deviation = at<float>(norm.deviation);
  float *running_mean = at<float>(norm.running_mean), *running_mean_abs_dev = at<float>(norm.running_mean_abs_dev);
  float* inverse = at<float>(norm_scratch_.terms);
  const float keep = kept_share();
  over_channels(channels, [&](int first, int some) {
    if (training) {
      double *sums = at<double>(norm_scratch_.sums) + first, *squares = sums + channels;
      std::fill_n(sums, some, 0.0);
      std::fill_n(squares, some, 0.0);
      const size_t stride = static_cast<size_t>(channels);
      kernels_.add_rows(x + first, stride, rows, some, sums);
      for (int c = 0; c < some; ++c) sums[c] /= rows;
      kernels_.add_squares(x + first, stride, rows, some, sums, squares);
      for (int c = 0; c < some; ++c) {
        mean[first + c] = static_cast<float>(sums[c]);
        deviation[first + c] = static_cast<float>(std::sqrt(squares[c] / rows));
      }
    }
    for (int c = first; c < first + some; ++c) {
      if (training) {
        running_mean[c] = keep * running_mean[c] + (1.0f - keep) * mean[c];
        running_mean_abs_dev[c] = keep * running_mean_abs_dev[c] + (1.0f - keep) * deviation[c];
      }
      const float psi = training ? deviation[c] : running_mean_abs_dev[c];
      inverse[c] = psi > 0.0f ? 1.0f / psi : 0.0f;
    }
  });
  const float* centre = training ? mean : running_mean;
  over_rows(rows, [&](Range part, int) {
    float* from = x + size_t(part.begin) * size_t(channels);
    kernels_.normalise(from, part.end - part.begin, channels, centre, inverse, at<float>(norm.beta), from);
  });
}

void StandardLayers::norm_gradient(const L2NormLayout& norm, int channels, int rows, bool masked, const float* grad,
                                   float* grad_y) {
  const float *x = at<float>(norm.x), *beta = at<float>(norm.beta), *deviation = at<float>(norm.deviation);
  float *inverse = at<float>(norm_scratch_.terms), *mean_v = inverse + channels, *mean_vx = mean_v + channels;
  float* beta_grad = at<float>(norm.beta_grad);
  over_channels(channels, [&](int first, int some) {
    double *sum_g = at<double>(norm_scratch_.sums) + first, *sum_gx = sum_g + channels;
    std::fill_n(sum_g, some, 0.0);
    std::fill_n(sum_gx, some, 0.0);
    kernels_.gradient_sums(grad + first, x + first, static_cast<size_t>(channels), rows, some, beta + first, masked,
                           sum_g, sum_gx);
    for (int i = 0; i < some; ++i) {
      const int c = first + i;
      inverse[c] = deviation[c] > 0.0f ? 1.0f / deviation[c] : 0.0f;
      beta_grad[c] = static_cast<float>(sum_g[i]);
      mean_v[c] = static_cast<float>(sum_g[i] * double{inverse[c]} / rows);
      mean_vx[c] = static_cast<float>(sum_gx[i] * double{inverse[c]} / rows);
    }
  });
  over_rows(rows, [&](Range part, int) {
    const size_t from = size_t(part.begin) * size_t(channels);
    kernels_.gradient(grad + from, x + from, part.end - part.begin, channels, beta, masked, {inverse, mean_v, mean_vx},
                      grad_y + from);
  });
}

void StandardLayers::update_latent(const WeightLayout& layout, size_t count, float step_scale) {
  const float step_size = optimizer_.step_size * step_scale;
  over_units(static_cast<int>(count), kChannelUnit, [&](Range part, int) {
    const size_t from = static_cast<size_t>(part.begin), some = static_cast<size_t>(part.end - part.begin);
    float *values = at<float>(layout.values) + from, *first = at<float>(layout.first_moment) + from;
    const float* grad = at<float>(layout.gradient) + from;
    if (optimizer_.kind == OptimizerKind::kAdam) {
      kernels_.adam(values, first, at<float>(layout.second_moment) + from, grad, some, adam_step(step_size));
    } else {
      // A real gradient falls with the root of the layer's number of weights: SGD takes that back (docs/optimizers.md).
      const float unit = std::sqrt(static_cast<float>(count));
      kernels_.sgd(values, first, grad, some, unit, {optimizer_.momentum, step_size});
    }
  });
}

void StandardLayers::update_real(const WeightLayout& layout, size_t count, float step_scale) {
  const AdamStep adam = adam_step(optimizer_.beta_step_size * step_scale);
  over_units(static_cast<int>(count), kChannelUnit, [&](Range part, int) {
    const size_t from = static_cast<size_t>(part.begin);
    adam_real(at<float>(layout.values) + from, at<float>(layout.first_moment) + from,
              at<float>(layout.second_moment) + from, at<float>(layout.gradient) + from, part.end - part.begin, adam);
  });
}

void StandardLayers::update_norm(const L2NormLayout& norm, int channels, float step_scale) {
  adam_real(at<float>(norm.beta), at<float>(norm.beta_first), at<float>(norm.beta_second), at<float>(norm.beta_grad),
            channels, adam_step(optimizer_.beta_step_size * step_scale));
}

}  // namespace bitfleet
