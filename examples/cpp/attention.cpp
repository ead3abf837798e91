// Runs a kernel of a bundle in a process without Python, and compares it with attention computed here.
//
//   attention LIBRARY OP HEAD_DIM_QK HEAD_DIM_V DTYPE MASK
//
// DTYPE is bf16 or fp16, MASK full or causal; `make run BUNDLE=DIR` fills them in from bundle.json. The library needs
// libtorch_cpu, and libtorch_cuda at run time; the op is called through torch's stable ABI, so that this program and
// the library may come from different releases of torch, from 2.10 on.
// Exit codes: 0 the numbers agree, 1 they do not or something failed, 2 bad use, 3 no GPU to run on.
#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "schema.h"

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

constexpr int64_t kBatch = 2, kHeads = 4, kHeadsK = 2, kSeqlenQ = 200, kSeqlenK = 333;  // no multiples of a tile
constexpr int kWrong = 1, kBadUse = 2, kNoGpu = 3;

struct Variant {
  std::string op;  // "fa3gen::causal_d128_bf16_0123abcd"
  int64_t head_dim_qk;
  int64_t head_dim_v;
  bool bf16;
  bool causal;

  ScalarType dtype() const { return bf16 ? ScalarType::BFloat16 : ScalarType::Half; }
  double limit() const { return bf16 ? 2e-2 : 4e-3; }  // of an error: a few roundings of numbers up to 2
};

// Numbers on the host, (batch, seqlen, heads, head_dim) in memory order.
struct Array {
  int64_t seqlen, heads, head_dim;
  std::vector<float> values;

  Array(int64_t seqlen, int64_t heads, int64_t head_dim)
      : seqlen(seqlen), heads(heads), head_dim(head_dim), values(kBatch * seqlen * heads * head_dim) {}

  const float* row(int64_t b, int64_t s, int64_t h) const {
    return values.data() + ((b * seqlen + s) * heads + h) * head_dim;
  }
  float* row(int64_t b, int64_t s, int64_t h) {
    return values.data() + ((b * seqlen + s) * heads + h) * head_dim;
  }
  std::array<int64_t, 4> shape() const { return {kBatch, seqlen, heads, head_dim}; }
};

void* open(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    throw std::runtime_error(dlerror());
  }
  return handle;
}

// Whether the driver sees a GPU; it is asked directly, as torch would raise where there is none.
bool has_gpu() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) {
    return false;
  }
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  int devices = 0;
  return init != nullptr && count != nullptr && init(0) == 0 && count(&devices) == 0 && devices > 0;
}

Tensor empty(const std::array<int64_t, 4>& shape, ScalarType dtype, DeviceType device) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt, Device(device, 0));
}

template <class Element>
void round_into(Tensor& tensor, Array& array) {
  auto* elements = static_cast<Element*>(tensor.mutable_data_ptr());
  for (size_t i = 0; i < array.values.size(); ++i) {
    elements[i] = static_cast<Element>(array.values[i]);
    array.values[i] = static_cast<float>(elements[i]);
  }
}

// The numbers on the GPU. `array` is rounded as they are.
Tensor to_gpu(Array& array, const Variant& variant) {
  Tensor host = torch::stable::empty({array.shape().data(), 4}, variant.dtype());
  variant.bf16 ? round_into<c10::BFloat16>(host, array) : round_into<c10::Half>(host, array);
  Tensor device = empty(array.shape(), variant.dtype(), DeviceType::CUDA);
  torch::stable::copy_(device, host);
  return device;
}

// A tensor's numbers, in order, as fp32.
std::vector<float> to_host(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    shape.push_back(tensor.size(dim));
  }
  Tensor host = torch::stable::empty({shape.data(), shape.size()}, ScalarType::Float);
  torch::stable::copy_(host, tensor);  // converts, and waits for the kernel
  const auto* values = static_cast<const float*>(host.const_data_ptr());
  return {values, values + host.numel()};
}

// One call through the dispatcher: (q, k, v, scale) -> (out, lse).
std::tuple<Tensor, Tensor> call(const std::string& op, const Tensor& q, const Tensor& k, const Tensor& v,
                                double scale) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(q), from(k), from(v), from(scale)};
  if (torch_call_dispatcher(op.c_str(), "", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(op + " failed; torch has said why");
  }
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Attention of one row in double precision; returns the logarithm of its sum of exponentials.
double attend(const float* q, const Array& k, const Array& v, int64_t b, int64_t hk, int64_t keys, double scale,
              std::vector<double>& out) {
  std::vector<double> scores(keys);
  double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t key = 0; key < keys; ++key) {
    for (int64_t d = 0; d < k.head_dim; ++d) {
      scores[key] += double{q[d]} * k.row(b, key, hk)[d];
    }
    maximum = std::max(maximum, scores[key] *= scale);
  }
  std::fill(out.begin(), out.end(), 0.0);
  for (int64_t key = 0; key < keys; ++key) {
    const double weight = std::exp(scores[key] - maximum);
    sum += weight;
    for (int64_t d = 0; d < v.head_dim; ++d) {
      out[d] += weight * v.row(b, key, hk)[d];
    }
  }
  for (double& x : out) {
    x /= sum;
  }
  return maximum + std::log(sum);
}

struct Errors {
  double out = 0, lse = 0;
};

// The largest deviations of (batch, seqlen_q, heads, head_dim_v) and (batch, heads, seqlen_q).
Errors compare(const Variant& variant, const Array& q, const Array& k, const Array& v, double scale,
               const std::vector<float>& out, const std::vector<float>& lse) {
  Errors errors;
  std::vector<double> expected(v.head_dim);
  const auto worst = [](double so_far, double error) {
    return std::isnan(so_far) || error <= so_far ? so_far : error;  // NaN stays
  };
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t s = 0; s < kSeqlenQ; ++s) {
        const int64_t keys = variant.causal ? s + 1 + kSeqlenK - kSeqlenQ : kSeqlenK;  // aligned to the last key
        const double sum = attend(q.row(b, s, h), k, v, b, h / (kHeads / kHeadsK), keys, scale, expected);
        errors.lse = worst(errors.lse, std::abs(lse[(b * kHeads + h) * kSeqlenQ + s] - sum));
        const float* row = out.data() + ((b * kSeqlenQ + s) * kHeads + h) * v.head_dim;
        for (int64_t d = 0; d < v.head_dim; ++d) {
          errors.out = worst(errors.out, std::abs(row[d] - expected[d]));
        }
      }
    }
  }
  return errors;
}

int run(const Variant& variant) {
  std::mt19937 bits(0);
  std::uniform_real_distribution<float> uniform(-2, 2);
  Array q(kSeqlenQ, kHeads, variant.head_dim_qk), k(kSeqlenK, kHeadsK, variant.head_dim_qk),
      v(kSeqlenK, kHeadsK, variant.head_dim_v);
  for (Array* array : {&q, &k, &v}) {
    std::generate(array->values.begin(), array->values.end(), [&] { return uniform(bits); });
  }
  const double scale = 1 / std::sqrt(static_cast<double>(variant.head_dim_qk));
  const Tensor on_gpu[] = {to_gpu(q, variant), to_gpu(k, variant), to_gpu(v, variant)};
  const auto [out, lse] = call(variant.op, on_gpu[0], on_gpu[1], on_gpu[2], scale);
  const std::vector<float> found = to_host(out);
  const Errors errors = compare(variant, q, k, v, scale, found, to_host(lse));
  const bool right = errors.out <= variant.limit() && errors.lse <= 1e-3;
  std::printf("out[0, 0, 0, 0] = %.4f; largest errors: out %.2e (limit %.0e), lse %.2e (limit 1e-03): %s\n", found[0],
              errors.out, variant.limit(), errors.lse, right ? "right" : "WRONG");
  return right ? 0 : kWrong;
}

int main_of(const std::string& library, const Variant& variant) {
  const bool gpu = has_gpu();
  if (gpu) {
    open("libtorch_cuda.so");  // first, as in a program that links it; not linked, to start where torch has no CUDA
  }
  open(library);
  const std::string schema = schema_of(variant.op);
  if (schema.empty()) {
    throw std::runtime_error(library + " does not define " + variant.op);
  }
  std::printf("%s\n", schema.c_str());
  if (!gpu) {
    std::printf("no GPU: the op is there, but nothing to run it on\n");
    return kNoGpu;
  }
  return run(variant);
}

bool is_size(const std::string& word) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  return !word.empty() && word.size() < 5 && std::all_of(word.begin(), word.end(), is_digit);
}

bool is_known(const std::vector<std::string>& given) {
  return given.size() == 6 && is_size(given[2]) && is_size(given[3]) && (given[4] == "bf16" || given[4] == "fp16") &&
         (given[5] == "full" || given[5] == "causal");
}

}  // namespace

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  if (!is_known(given)) {
    std::fprintf(stderr, "use: attention LIBRARY OP HEAD_DIM_QK HEAD_DIM_V bf16|fp16 full|causal\n");
    return kBadUse;
  }
  try {
    const Variant variant{given[1], std::stoll(given[2]), std::stoll(given[3]), given[4] == "bf16",
                          given[5] == "causal"};
    return main_of(given[0], variant);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attention: %s\n", error.what());
    return kWrong;
  }
}
