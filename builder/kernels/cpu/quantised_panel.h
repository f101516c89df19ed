// The panel of a matrix of codes: group after group, the sum of a group's products times its scale.
#pragma once

#include "byte_panel.h"
#include "codes.h"
#include "plain_panel.h"

namespace trierarch {

// Activations as 16-bit integers, whose products are summed exactly.
template <class Codes>
struct IntegerProduct {
  using Sum = IntRegister;
  static constexpr int kFactors = 2;  // of a quad: its even bytes and its odd ones

  template <class T>
  static const int16_t* left(const Activations<T>& x, int64_t row) {
    return x.pairs + row * x.width;
  }

  static TRIERARCH_INLINE WordRegister factor(WordRegister quad, int i) { return quad >> 8 * i & 0x00ff00ffu; }

  static TRIERARCH_INLINE Sum add(Sum sum, WordRegister left, WordRegister factor) {
    return add_pairs(sum, left, factor);
  }

  template <class T>
  static TRIERARCH_INLINE Sum begin(const Activations<T>& x, int64_t table) {
    return IntRegister{} - Codes::kBias * x.integer_sums[table];
  }

  template <class T>
  static TRIERARCH_INLINE FloatRegister end(const Activations<T>& x, int64_t table, Sum sum) {
    return __builtin_convertvector(sum, FloatRegister) * x.scales[table];
  }
};

// Activations as they are, codes as float32.
template <class Codes>
struct RealProduct {
  using Sum = FloatRegister;
  static constexpr int kFactors = kQuad;

  template <class T>
  static const T* left(const Activations<T>& x, int64_t row) {
    return x.rows + row * x.width;
  }

  static TRIERARCH_INLINE WordRegister factor(WordRegister quad, int i) {
    const IntRegister code = reinterpret_cast<IntRegister>(quad >> 8 * i & 255u) - Codes::kBias;
    return reinterpret_cast<WordRegister>(__builtin_convertvector(code, FloatRegister));
  }

  static TRIERARCH_INLINE Sum add(Sum sum, WordRegister left, WordRegister factor) {
    return add_product<float>(sum, left, factor);
  }

  template <class T>
  static TRIERARCH_INLINE Sum begin(const Activations<T>&, int64_t) {
    return Sum{};
  }

  template <class T>
  static TRIERARCH_INLINE FloatRegister end(const Activations<T>&, int64_t, Sum sum) {
    return sum;
  }
};

// Adds up all groups for some rows of some blocks. Codes are taken apart anew for each tile of rows.
template <class T, class Codes, int Rows, int Blocks>
__attribute__((noinline)) void quantised_tile(const Activations<T>& x, int64_t row, const uint8_t* codes,
                                              int64_t block_stride, Totals totals) {
  using Product = std::conditional_t<kIsInteger<T>, IntegerProduct<Codes>, RealProduct<Codes>>;
  constexpr int kRegisters = kColumns<Blocks>;
  constexpr int64_t kLeftStep = kQuad / Product::kFactors;  // elements of a row that meet a factor
  const auto* left = Product::left(x, row);
  const int64_t num_groups = x.num_groups(), width = x.width;
  FloatRegister total[Rows][kRegisters] = {};
  for (int64_t group = 0; group < num_groups; ++group, codes += Codes::kGroupBytes) {
    typename Product::Sum sum[Rows][kRegisters];
    unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
      unrolled<kRegisters>([&](auto c) TRIERARCH_LAMBDA_INLINE {
        sum[m][c] = Product::begin(x, (row + m) * num_groups + group);
      });
    });
#pragma GCC unroll 1
    for (int64_t run = 0; run < kGroupQuads / Codes::kRunQuads; ++run) {
      unrolled<Codes::kRunQuads * Product::kFactors>([&](auto i) TRIERARCH_LAMBDA_INLINE {
        WordRegister factors[kRegisters];
        unrolled<kRegisters>([&](auto c) TRIERARCH_LAMBDA_INLINE {
          const uint8_t* block = codes + c / kParts * block_stride;
          if (i == 0 && c % kParts == 0) __builtin_prefetch(block + run * kLanes * kQuad + kAhead);
          WordRegister quads[Codes::kRunQuads];
          Codes::load_run(block, run, c % kParts, quads);
          factors[c] = Product::factor(quads[i / Product::kFactors], i % Product::kFactors);
        });
        unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
          const WordRegister word = broadcast(left + m * width);
          unrolled<kRegisters>([&](auto c) TRIERARCH_LAMBDA_INLINE {
            sum[m][c] = Product::add(sum[m][c], word, factors[c]);
          });
        });
        left += kLeftStep;
      });
    }
    const GroupTables<Codes, Blocks> tables(codes, block_stride);
    unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
      const int64_t table = (row + m) * num_groups + group;
      unrolled<kRegisters>([&](auto c) TRIERARCH_LAMBDA_INLINE {
        add_group<Codes>(total[m][c], Product::end(x, table, sum[m][c]), tables.scale[c], tables.offset[c], x.sums[table]);
      });
    });
  }
  store_totals(total, totals);
}

template <class T, class Codes, TileShape Shape>
void quantised_panel(const Activations<T>& x, const Packed& weight, int64_t block, int64_t num_blocks, Totals totals) {
  const int64_t stride = weight.block_bytes();
  const uint8_t* codes = weight.blocks + block * stride;
  if constexpr (kHasByteProduct<T>) {
    with_constant<kWide.panel_blocks>(static_cast<int>(num_blocks), [&](auto blocks) {
      byte_panel<Codes, decltype(blocks)::value>(x, weight, block, totals);
    });
  } else {
    over_block_tiles<Shape.blocks>(num_blocks, [&](int64_t n, auto blocks) {
      over_row_tiles<Shape.rows>(x.num_rows, [&](int64_t row, auto rows) {
        quantised_tile<T, Codes, decltype(rows)::value, decltype(blocks)::value>(
            x, row, codes + n * stride, stride, totals + row * kPanelRegisters + n * kParts);
      });
    });
  }
}

}  // namespace trierarch
