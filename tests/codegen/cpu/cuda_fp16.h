// In cute/tensor.hpp.
