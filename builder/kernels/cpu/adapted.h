// Adapted: what adapters add to a matrix's products, row by row, inside the product's own panels.
//
// The rows of a step are cut into *runs* of one adapter each. Before a matrix is multiplied, each adapted row x gets its
// few numbers z = a x; while a panel's totals are in the cache, gain * total + b z takes their place. Rows of the base model
// meet nothing of it. Like the products, a row's z and its share of a panel are summed in one order whatever its neighbours.
#pragma once

#include <vector>

#include "abi.h"
#include "plain_panel.h"
#include "scratch.h"
#include "team.h"

namespace trierarch {

using Adapter = TrierarchAdapter;

// Rows of one adapter, one after the other.
struct Run {
  const Adapter* adapter;
  int64_t first, end;
};

// The runs of rows, `rows(i)` for each of `count` adapters; those of the base model are left out.
template <class Rows>
void cut_into_runs(const Adapter* const* adapters, int64_t count, Rows&& rows, std::vector<Run>& runs) {
  runs.clear();
  if (adapters == nullptr) return;
  for (int64_t i = 0, row = 0; i < count; row += rows(i++)) {
    if (adapters[i] == nullptr) continue;
    if (!runs.empty() && runs.back().adapter == adapters[i] && runs.back().end == row) runs.back().end += rows(i);
    else runs.push_back({adapters[i], row, row + rows(i)});
  }
}

// A matrix whose rows are those of up to three pieces, as builder/adapter.py names them.
struct Stack {
  struct Piece {
    TrierarchPiece TrierarchAdaptedLayer::* member;
    int64_t first_block, block_step, out_features;  // blocks first_block, first_block + block_step, ... of the matrix
  };
  int count;
  Piece pieces[3];
  int64_t layer;  // -1: the lm_head

  const TrierarchPiece& of(const Adapter& adapter, int i) const {
    return layer < 0 ? adapter.lm_head : adapter.layers[layer].*pieces[i].member;
  }
};

constexpr int kDotRows = 4, kDotRanks = 4;

// Sixteen lanes' worth of products at a time, whatever stands left.
template <class T>
struct DotStep {
  static constexpr bool kIsWord = kSteps<T> == 1;
  static constexpr int64_t kElements = kIsWord ? kRegisterLanes * kPerWord<T> : kLanes;
};

// Sums x · a of some rows and ranks, over the first `depth` elements, a multiple of DotStep's.
template <class T, int Rows, int Ranks>
TRIERARCH_INLINE void dot_whole(const Operand<T>* x, int64_t x_stride, const T* a, int64_t a_stride, int64_t depth,
                                FloatRegister (&acc)[Rows][Ranks]) {
  for (int64_t d = 0; d < depth; d += DotStep<T>::kElements) {
    if constexpr (DotStep<T>::kIsWord) {
      WordRegister factors[Ranks];
      unrolled<Ranks>([&](auto k) TRIERARCH_LAMBDA_INLINE { factors[k] = load<WordRegister>(a + k * a_stride + d); });
      unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
        const auto left = load<WordRegister>(x + m * x_stride + d);
        unrolled<Ranks>([&](auto k) TRIERARCH_LAMBDA_INLINE { acc[m][k] = add_product<T>(acc[m][k], left, factors[k]); });
      });
    } else {
      unrolled<Ranks>([&](auto k) TRIERARCH_LAMBDA_INLINE {
        const auto factors = Parts<WordRegister>::of(as_words(load_elements(a + k * a_stride + d)));
        unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
          unrolled<kParts>([&](auto p) TRIERARCH_LAMBDA_INLINE {
            const auto left = load<WordRegister>(x + m * x_stride + d + p * kRegisterLanes);
            acc[m][k] = add_product<float>(acc[m][k], left, factors.at[p]);
          });
        });
      });
    }
  }
}

TRIERARCH_INLINE float sum_register(FloatRegister value) {
  return fold_register<kRegisterLanes / 2>(
      value, [](FloatRegister a, FloatRegister b) __attribute__((always_inline)) { return a + b; })[0];
}

// z = a x for some rows and ranks.
template <class T, int Rows, int Ranks>
__attribute__((noinline)) void dot_tile(const Operand<T>* x, const T* a, int64_t depth, Operand<T>* z, int64_t z_stride) {
  FloatRegister acc[Rows][Ranks] = {};
  const int64_t whole = depth / DotStep<T>::kElements * DotStep<T>::kElements;
  dot_whole<T>(x, depth, a, depth, whole, acc);
  if (whole < depth) {
    Operand<T> rows[Rows][DotStep<T>::kElements] = {};
    T ranks[Ranks][DotStep<T>::kElements] = {};
    for (int m = 0; m < Rows; ++m) std::memcpy(rows[m], x + m * depth + whole, (depth - whole) * sizeof(Operand<T>));
    for (int k = 0; k < Ranks; ++k) std::memcpy(ranks[k], a + k * depth + whole, (depth - whole) * sizeof(T));
    dot_whole<T>(rows[0], DotStep<T>::kElements, ranks[0], DotStep<T>::kElements, DotStep<T>::kElements, acc);
  }
  unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
    float sums[kLanes] = {};
    unrolled<Ranks>([&](auto k) TRIERARCH_LAMBDA_INLINE { sums[k] = sum_register(acc[m][k]); });
    store_some(z + m * z_stride, load<Floats>(sums), Ranks);
  });
}

// A block's totals of some rows: gain * total + b z.
template <class T, int Rows, bool HasGain>
__attribute__((noinline)) void add_tile(const Operand<T>* z, int64_t z_stride, const uint32_t* b, int64_t depth,
                                        const FloatRegister* gain, Totals totals) {
  FloatRegister acc[Rows][kParts] = {};
  multiply<T, Rows, kParts>(z, z_stride, b, 0, depth, acc);
  unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
    unrolled<kParts>([&](auto p) TRIERARCH_LAMBDA_INLINE {
      FloatRegister& total = totals[m * kPanelRegisters + p];
      if constexpr (HasGain) {
        const auto left = reinterpret_cast<WordRegister>(total), right = reinterpret_cast<WordRegister>(gain[p]);
        total = add_product<float>(acc[m][p], left, right);
      } else {
        total += acc[m][p];
      }
    });
  });
}

// One matrix in one step. Empty where all rows are the base model's.
template <class T>
class Adapted {
 public:
  // z: room for (rows, width), where width is at least the z of any of the adapters.
  Adapted(const std::vector<Run>& runs, const Stack& stack, Operand<T>* z, int64_t width)
      : runs_(runs), stack_(stack), z_(z), width_(width) {}

  bool is_empty() const { return runs_.empty(); }

  // z of all rows; to be called by all of a team. x: (rows, depth).
  void shrink(Team& team, const Operand<T>* x, int64_t depth) const {
    team.share(runs_.back().end, 8, [&](int64_t first, int64_t last) {
      over(first, last, [&](const TrierarchPiece& piece, const Stack::Piece&, int64_t first_z, int64_t begin, int64_t end) {
        const auto* a = static_cast<const T*>(piece.a);
        for (int64_t k = 0; k < piece.rank; k += kDotRanks)
          over_row_tiles<kDotRows>(end - begin, [&](int64_t row, auto rows) {
            with_constant<kDotRanks>(static_cast<int>(std::min<int64_t>(kDotRanks, piece.rank - k)), [&](auto ranks) {
              dot_tile<T, decltype(rows)::value, decltype(ranks)::value>(
                  x + (begin + row) * depth, a + k * depth, depth, z_ + (begin + row) * width_ + first_z + k, width_);
            });
          });
      });
    });
  }

  // Asks for what `add` will read, while something else is worked on.
  void prefetch(int64_t block, int64_t num_blocks, int64_t first, int64_t last) const {
    over(first, last, [&](const TrierarchPiece& piece, const Stack::Piece& place, int64_t, int64_t, int64_t) {
      over_blocks(place, block, num_blocks, [&](int64_t, int64_t of_piece) {
        const auto* b = reinterpret_cast<const char*>(words(piece, of_piece));
        for (int64_t i = 0; i < piece.rank * kLanes * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(b + i, 0, 2);
      });
    });
  }

  // gain * total + b z in place of the totals of `num_blocks` blocks from `block` on, for rows first to last.
  void add(int64_t block, int64_t num_blocks, int64_t first, int64_t last, Totals totals) const {
    over(first, last, [&](const TrierarchPiece& piece, const Stack::Piece& place, int64_t first_z, int64_t begin, int64_t end) {
      over_blocks(place, block, num_blocks, [&](int64_t n, int64_t of_piece) {
        const auto add_rows = [&](auto has_gain, const FloatRegister* gain) {
          over_row_tiles<kTall.rows>(end - begin, [&](int64_t row, auto rows) {
            add_tile<T, decltype(rows)::value, decltype(has_gain)::value>(
                z_ + (begin + row) * width_ + first_z, width_, words(piece, of_piece), piece.rank / kPerWord<T>, gain,
                totals + (begin + row - first) * kPanelRegisters + n * kParts);
          });
        };
        if (piece.gain == nullptr) return add_rows(std::false_type(), nullptr);
        FloatRegister gain[kParts];
        load_gain(piece, of_piece, place.out_features, gain);
        add_rows(std::true_type(), gain);
      });
    });
  }

 private:
  // Calls use(piece, its place, where its z begin, begin, end) for what is adapted of rows first to last.
  template <class Use>
  TRIERARCH_INLINE void over(int64_t first, int64_t last, Use&& use) const {
    for (const Run& run : runs_) {
      const int64_t begin = std::max(first, run.first), end = std::min(last, run.end);
      if (begin >= end) continue;
      for (int64_t i = 0, first_z = 0; i < stack_.count; ++i) {
        const TrierarchPiece& piece = stack_.of(*run.adapter, i);
        if (piece.rank > 0 || piece.gain != nullptr) use(piece, stack_.pieces[i], first_z, begin, end);
        first_z += piece.rank;
      }
    }
  }

  // Calls use(which of the blocks, its number in the piece) for those that are the piece's.
  template <class Use>
  static TRIERARCH_INLINE void over_blocks(const Stack::Piece& place, int64_t block, int64_t num_blocks, Use&& use) {
    const int64_t end = place.first_block + blocks_of(place.out_features) * place.block_step;
    for (int64_t n = 0; n < num_blocks; ++n) {
      const int64_t offset = block + n - place.first_block;
      if (offset >= 0 && block + n < end && offset % place.block_step == 0) use(n, offset / place.block_step);
    }
  }

  static const uint32_t* words(const TrierarchPiece& piece, int64_t block) {
    return static_cast<const uint32_t*>(piece.b) + block * piece.rank / kPerWord<T> * kLanes;
  }

  static void load_gain(const TrierarchPiece& piece, int64_t block, int64_t out_features, FloatRegister (&gain)[kParts]) {
    for (int64_t p = 0; p < kParts; ++p) {
      const int64_t column = block * kLanes + p * kRegisterLanes;
      gain[p] = splat<FloatRegister>(1.0f);
      const int64_t left = std::min<int64_t>(kRegisterLanes, out_features - column);
      if (left > 0) std::memcpy(gain + p, piece.gain + column, left * sizeof(float));
    }
  }

  const std::vector<Run>& runs_;
  const Stack stack_;
  Operand<T>* const z_;
  const int64_t width_;
};

}  // namespace trierarch
