// bitfleet-infer MODEL.bfpk < samples: a line for each sample with its class and the logits.
// Samples are raw bytes, as many for each as the network takes.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>

#include "packed.h"

int main(int count, char** words) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s MODEL.bfpk < samples\n", words[0]);
    return 2;
  }
  try {
    std::ifstream file(words[1], std::ios::binary);
    if (!file) throw std::runtime_error("it cannot be read");
    const std::vector<uint8_t> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const bitfleet::Model model = bitfleet::read_model(data);
    std::vector<uint8_t> sample(static_cast<size_t>(model.input_features()));
    while (std::cin.read(reinterpret_cast<char*>(sample.data()), static_cast<std::streamsize>(sample.size()))) {
      const std::vector<float> logits = bitfleet::logits_of(model, sample.data());
      std::printf("%d", int(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      for (float logit : logits) std::printf(" %.9g", logit);
      std::printf("\n");
    }
    if (std::cin.gcount() != 0) throw std::runtime_error("the last sample is not whole");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bitfleet-infer: %s: %s\n", words[1], error.what());
    return 3;
  }
  return 0;
}
