// What torch knows of an op by its name.
#pragma once

#include <string>

// The schema of an op, "fa3gen::name(Tensor q, ...) -> ..."; empty if no library has defined it.
std::string schema_of(const std::string& op);
