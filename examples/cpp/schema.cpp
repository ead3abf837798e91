// NOTES: the stable ABI calls ops but does not show their schemas, so this file alone uses torch's C++ classes, and
// must be compiled with the headers of the torch that runs. A program that only calls ops does without it.
#include "schema.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <sstream>

std::string schema_of(const std::string& op) {
  const auto handle = c10::Dispatcher::singleton().findSchema({op, ""});
  std::ostringstream text;
  if (handle.has_value()) {
    text << handle->schema();
  }
  return text.str();
}
