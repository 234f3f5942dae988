// What this processor can do, and the kernels that fit it.
#pragma once

#include <string>
#include <vector>

#include "core/kernels.h"

namespace penstock {

struct InstructionSet {
  std::string name;
  const KernelTable* kernels;  // null if this processor lacks it
  std::string reason;          // which features were found or are missing
};

// Best first.
const std::vector<InstructionSet>& instruction_sets();

// The named one, or the best for "auto". Throws std::invalid_argument if unknown or not supported here.
const InstructionSet& choose_instruction_set(const std::string& name);

}  // namespace penstock
