// Warpgroup MMA: issue of a whole tile product, and the register views of its operands.
#pragma once

#include <cute/tensor.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>

namespace fa3gen {

enum class Accumulate { kNo, kYes };

// Issue C (+)= A B over all k blocks; asynchronous until its group is waited for.
template <Accumulate kAccumulate, class Mma, class TensorA, class TensorB, class TensorC>
__device__ __forceinline__ void issue_gemm(Mma mma, TensorA const& a, TensorB const& b,
                                           TensorC& c) {
  using cute::_;
  mma.accumulate_ = kAccumulate == Accumulate::kYes ? cute::GMMA::ScaleOut::One
                                                    : cute::GMMA::ScaleOut::Zero;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(a); ++k) {
    cute::gemm(mma, a(_, _, k), b(_, _, k), c);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
}

// An accumulator of one warpgroup, ((2 columns, 2 rows, N/8), 1, 1), as (2 rows, N/4 columns).
template <class Fragment>
__device__ __forceinline__ auto row_column_view(Fragment&& accumulator) {
  using namespace cute;
  constexpr int kGroups = decltype(size<0, 2>(accumulator.layout()))::value;
  static_assert(decltype(size(accumulator.layout()))::value == 4 * kGroups,
                "one warpgroup MMA spans the whole tile");
  return make_tensor(accumulator.data(),
                     Layout<Shape<_2, Shape<_2, Int<kGroups>>>, Stride<_2, Stride<_1, _4>>>{});
}

// The A operand of a 16-bit product over kColumns: element for element the accumulator's order.
template <class Element, int kColumns>
__device__ __forceinline__ auto make_a_fragment() {
  using namespace cute;
  return make_tensor<Element>(Layout<Shape<Shape<_2, _2, _2>, _1, Int<kColumns / 16>>,
                                     Stride<Stride<_1, _2, _4>, _0, _8>>{});
}

// Rounds an accumulator to the operand type, two elements an instruction.
template <class Accumulator, class Operand>
__device__ __forceinline__ void convert(Accumulator const& from, Operand& to) {
  using namespace cute;
  using Element = typename Operand::value_type;
  static_assert(decltype(size(from.layout()))::value == decltype(size(to.layout()))::value,
                "an operand holds as many elements as its accumulator");
  using Pair = cutlass::Array<float, 2>;
  cutlass::NumericArrayConverter<Element, float, 2> round;
  auto pairs = recast<cutlass::Array<Element, 2>>(to);
  CUTE_UNROLL
  for (int i = 0; i < size(pairs); ++i) {
    pairs(i) = round(Pair{from(2 * i), from(2 * i + 1)});
  }
}

}  // namespace fa3gen
