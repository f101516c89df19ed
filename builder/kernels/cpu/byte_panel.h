// The panel of a matrix of codes where the processor has a dot product of bytes, which sums four products in one
// instruction: activations as two bytes, each with an accumulator of its own.
#pragma once

#include "codes.h"
#include "plain_panel.h"

#if defined(__AVX512VNNI__)

namespace trierarch {

constexpr int kByteRows = 3;  // of a tile with two accumulators an output: three rows by four blocks

// acc + the sum of four products, lane by lane; codes are unsigned bytes.
TRIERARCH_INLINE Ints dot_bytes(Ints acc, Words codes, const int8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(codes), _mm512_set1_epi32(word)));
}

// One group of some rows, added to their totals. codes: of the panel's first block.
template <class Codes, int Rows, int Blocks>
TRIERARCH_INLINE void byte_tile(const Activations<BFloat16>& x, int64_t row, int64_t group, const uint8_t* codes,
                                   int64_t block_stride, const GroupTables<Codes, Blocks>& tables, Totals totals) {
  Ints low[Rows][Blocks] = {}, high[Rows][Blocks] = {};
  const int64_t first = row * x.width + group * kGroup;
#pragma GCC unroll 8
  for (int64_t run = 0; run < kGroupQuads / Codes::kRunQuads; ++run) {
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      WordRegister quads[Codes::kRunQuads];
      Codes::load_run(codes + n * block_stride, run, 0, quads);
#pragma GCC unroll 2
      for (int64_t q = 0; q < Codes::kRunQuads; ++q)
#pragma GCC unroll 4
        for (int m = 0; m < Rows; ++m) {
          const int64_t input = first + m * x.width + (run * Codes::kRunQuads + q) * kQuad;
          low[m][n] = dot_bytes(low[m][n], quads[q], x.low + input);
          high[m][n] = dot_bytes(high[m][n], quads[q], x.high + input);
        }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
    const int64_t table = (row + m) * x.num_groups() + group;
    const int32_t excess = Codes::kBias * x.integer_sums[table];
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      const Ints exact = (high[m][n] << 8) + low[m][n] - excess;
      const Floats part = __builtin_convertvector(exact, Floats) * x.scales[table];
      add_group<Codes>(totals[m * kPanelRegisters + n], part, tables.scale[n], tables.offset[n], x.sums[table]);
    }
  }
}

template <class Codes, int Blocks>
void byte_panel(const Activations<BFloat16>& x, const Packed& weight, int64_t block, Totals totals) {
  const int64_t block_stride = weight.block_bytes(), num_groups = weight.num_groups();
  const int64_t num_whole = x.num_rows / kByteRows * kByteRows;
  const uint8_t* codes = weight.blocks + block * block_stride;
  // Totals of the last, lower tile stay in registers where there is no other.
  with_constant<kByteRows>(static_cast<int>(x.num_rows - num_whole + 1), [&](auto rows_and_one) {
    constexpr int kRows = decltype(rows_and_one)::value - 1;
    Floats rest[(kRows + 1) * kPanelRegisters] = {};
    std::memset(totals, 0, num_whole * kPanelRegisters * sizeof(Floats));
    for (int64_t group = 0; group < num_groups; ++group, codes += Codes::kGroupBytes) {
      const GroupTables<Codes, Blocks> tables(codes, block_stride);
      for (int64_t row = 0; row < num_whole; row += kByteRows)
        byte_tile<Codes, kByteRows, Blocks>(x, row, group, codes, block_stride, tables, totals + row * kPanelRegisters);
      if constexpr (kRows > 0)
        byte_tile<Codes, kRows, Blocks>(x, num_whole, group, codes, block_stride, tables, rest);
    }
    for (int i = 0; i < kRows * kPanelRegisters; ++i) totals[num_whole * kPanelRegisters + i] = rest[i];
  });
}

}  // namespace trierarch

#endif
