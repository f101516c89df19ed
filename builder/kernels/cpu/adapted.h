// Adapted: what adapters add to a matrix's products, row by row, inside the product's own panels.
//
// The rows of a step are cut into *runs* of one adapter each. Before a matrix is multiplied, each adapted row x gets its
// few numbers z = a x (*shrink*); while a panel's totals are in the cache, gain * total + b z takes their place (*expand*).
// Rows of the base model meet nothing of it. Like the products, a row's z and b z are summed in one order whatever its
// neighbours.
//
// Where many runs are short, b comes from memory, and must be read front to back to come fast: b z of short runs is worked
// out ahead, run by run, and a panel only adds it. A long run reads b again for each of its tiles, which wants it in the
// cache: there a panel works it out itself.
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

  // Blocks of all the pieces before the `i`-th.
  int64_t first_delta(int i) const {
    int64_t blocks = 0;
    for (int before = 0; before < i; ++before) blocks += blocks_of(pieces[before].out_features);
    return blocks;
  }

  int64_t num_blocks() const { return first_delta(count); }
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

TRIERARCH_INLINE WordRegister as_word_register(FloatRegister value) { return reinterpret_cast<WordRegister>(value); }

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

// b z of some rows of some blocks. b: of the blocks, one after the other. result: rows of `stride` registers.
template <class T, int Rows, int Blocks>
__attribute__((noinline)) void expand_tile(const Operand<T>* z, int64_t z_stride, const uint32_t* b, int64_t depth,
                                           FloatRegister* result, int64_t stride) {
  FloatRegister acc[Rows][kColumns<Blocks>] = {};
  multiply<T, Rows, kColumns<Blocks>>(z, z_stride, b, depth * kLanes, depth, acc);
  unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
    unrolled<kColumns<Blocks>>([&](auto c) TRIERARCH_LAMBDA_INLINE { result[m * stride + c] = acc[m][c]; });
  });
}

constexpr int64_t kShortRun = 8;

// One matrix in one step. Empty where all rows are the base model's.
template <class T>
class Adapted {
 public:
  // What is worked out of the rows of a step, kept from one matrix to the next.
  struct Space {
    Scratch<Operand<T>> z;          // (rows, width)
    Scratch<FloatRegister> deltas;  // (rows, registers of the widest matrix): b z of short runs
    int64_t width = 0;              // at least the z of any of the adapters
    bool has_short_runs = false;
    std::vector<Errand> errands;  // (num_threads)
  };

  Adapted(const std::vector<Run>& runs, const Stack& stack, Space& space) : runs_(runs), stack_(stack), space_(space) {}

  bool is_empty() const { return runs_.empty(); }

  // What a thread's products are to fetch meanwhile; null where nothing is.
  Errand* errand(const Team& team) const { return is_empty() ? nullptr : &space_.errands[team.member()]; }

  // z of all rows, and b z of short runs; to be called by all of a team. x: (rows, depth).
  void prepare(Team& team, const Operand<T>* x, int64_t depth) const {
    shrink(team, x, depth);
    if (!space_.has_short_runs) return;
    const int64_t blocks = stack_.num_blocks();
    team.share(static_cast<int64_t>(runs_.size()) * blocks, blocks, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin / blocks; i * blocks < end; ++i) {
        const Run& run = runs_[i];
        if (is_short(run)) expand_ahead(run, std::max<int64_t>(begin - i * blocks, 0), std::min(end - i * blocks, blocks));
      }
    });
  }

  // gain * total + b z in place of the totals of `num_blocks` blocks from `block` on, for rows first to last.
  void add(int64_t block, int64_t num_blocks, int64_t first, int64_t last, Totals totals) const {
    over(first, last, [&](const Run& run, const TrierarchPiece& piece, int i, int64_t begin, int64_t end) {
      const Blocks blocks = meet(stack_.pieces[i], block, num_blocks);
      const int64_t count = blocks.count * kParts, step = stack_.pieces[i].block_step;
      if (count == 0) return;
      FloatRegister gain[kPanelRegisters];
      if (piece.gain != nullptr) load_gain(piece, blocks, stack_.pieces[i].out_features, gain);
      FloatRegister room[kWide.rows * kPanelRegisters];
      for (int64_t row = begin; row < end; row += kWide.rows) {
        const int64_t rows = std::min<int64_t>(kWide.rows, end - row);
        const FloatRegister* deltas = is_short(run) ? deltas_of(row, i, blocks.of_piece) : room;
        const int64_t stride = is_short(run) ? deltas_stride() : kPanelRegisters;
        if (!is_short(run)) expand(run, i, row, rows, blocks.of_piece, blocks.count, room, stride);
        for (int64_t m = 0; m < rows; ++m)
          combine(deltas + m * stride, count, step, piece.gain == nullptr ? nullptr : gain,
                  totals + (row + m - first) * kPanelRegisters + blocks.first * kParts);
      }
    });
  }

 private:
  static bool is_short(const Run& run) { return run.end - run.first <= kShortRun; }

  void shrink(Team& team, const Operand<T>* x, int64_t depth) const {
    team.share(runs_.back().end, 8, [&](int64_t first, int64_t last) {
      over(first, last, [&](const Run& run, const TrierarchPiece& piece, int i, int64_t begin, int64_t end) {
        const auto* a = static_cast<const T*>(piece.a);
        Operand<T>* z = z_of(run, i, begin);
        for (int64_t k = 0; k < piece.rank; k += kDotRanks)
          over_row_tiles<kDotRows>(end - begin, [&](int64_t row, auto rows) {
            with_constant<kDotRanks>(static_cast<int>(std::min<int64_t>(kDotRanks, piece.rank - k)), [&](auto ranks) {
              dot_tile<T, decltype(rows)::value, decltype(ranks)::value>(
                  x + (begin + row) * depth, a + k * depth, depth, z + row * space_.width + k, space_.width);
            });
          });
      });
    });
  }

  // Of the blocks first to last of all the pieces, one piece's after the other's.
  void expand_ahead(const Run& run, int64_t first, int64_t last) const {
    for (int i = 0; i < stack_.count; ++i) {
      const int64_t of_all = stack_.first_delta(i), count = blocks_of(stack_.pieces[i].out_features);
      const int64_t begin = std::max<int64_t>(first - of_all, 0), end = std::min(last - of_all, count);
      if (begin < end && stack_.of(*run.adapter, i).rank > 0)
        expand(run, i, run.first, run.end - run.first, begin, end - begin, deltas_of(run.first, i, begin), deltas_stride());
    }
  }

  // b z of `count` blocks of a piece.
  void expand(const Run& run, int i, int64_t first_row, int64_t num_rows, int64_t block, int64_t count,
              FloatRegister* result, int64_t stride) const {
    const TrierarchPiece& piece = stack_.of(*run.adapter, i);
    const int64_t depth = piece.rank / kPerWord<T>;
    const auto* b = static_cast<const uint32_t*>(piece.b) + block * depth * kLanes;
    const Operand<T>* z = z_of(run, i, first_row);
    over_block_tiles<kWide.blocks>(count, [&](int64_t n, auto blocks) {
      over_row_tiles<kWide.rows>(num_rows, [&](int64_t row, auto rows) {
        expand_tile<T, decltype(rows)::value, decltype(blocks)::value>(
            z + row * space_.width, space_.width, b + n * depth * kLanes, depth, result + row * stride + n * kParts, stride);
      });
    });
  }

  // One row's: of the totals' blocks, every `step`-th.
  static void combine(const FloatRegister* deltas, int64_t count, int64_t step, const FloatRegister* gain, Totals totals) {
    for (int64_t c = 0; c < count; ++c) {
      FloatRegister& total = totals[c / kParts * step * kParts + c % kParts];
      if (gain == nullptr) total += deltas[c];
      else total = add_product<float>(deltas[c], as_word_register(total), as_word_register(gain[c]));
    }
  }

  // Calls use(run, piece, its number, begin, end) for what is adapted of rows first to last.
  template <class Use>
  TRIERARCH_INLINE void over(int64_t first, int64_t last, Use&& use) const {
    for (const Run& run : runs_) {
      const int64_t begin = std::max(first, run.first), end = std::min(last, run.end);
      if (begin >= end) continue;
      for (int i = 0; i < stack_.count; ++i) {
        const TrierarchPiece& piece = stack_.of(*run.adapter, i);
        if (piece.rank > 0) use(run, piece, i, begin, end);
      }
    }
  }

  // Blocks of a matrix that are a piece's: the first of them, counted from where they were looked for, and its number in the
  // piece; each next one is block_step further on in the matrix.
  struct Blocks {
    int64_t first, of_piece, count;
  };

  static Blocks meet(const Stack::Piece& place, int64_t block, int64_t num_blocks) {
    const int64_t step = place.block_step, offset = block - place.first_block;
    const int64_t begin = offset <= 0 ? 0 : (offset + step - 1) / step;
    const int64_t last = offset + num_blocks - 1;
    const int64_t end = last < 0 ? 0 : std::min(blocks_of(place.out_features), last / step + 1);
    return {begin * step - offset, begin, std::max<int64_t>(end - begin, 0)};
  }

  static void load_gain(const TrierarchPiece& piece, const Blocks& blocks, int64_t out_features, FloatRegister* gain) {
    for (int64_t i = 0; i < blocks.count * kParts; ++i) {
      const int64_t column = blocks.of_piece * kLanes + i * kRegisterLanes;
      gain[i] = splat<FloatRegister>(1.0f);
      const int64_t left = std::min<int64_t>(kRegisterLanes, out_features - column);
      if (left > 0) std::memcpy(gain + i, piece.gain + column, left * sizeof(float));
    }
  }

  // A row's z of a piece: behind those of the pieces before it.
  Operand<T>* z_of(const Run& run, int i, int64_t row) const {
    int64_t first = 0;
    for (int before = 0; before < i; ++before) first += stack_.of(*run.adapter, before).rank;
    return space_.z.begin() + row * space_.width + first;
  }

  int64_t deltas_stride() const { return stack_.num_blocks() * kParts; }

  FloatRegister* deltas_of(int64_t row, int i, int64_t block) const {
    return space_.deltas.begin() + row * deltas_stride() + (stack_.first_delta(i) + block) * kParts;
  }

  const std::vector<Run>& runs_;
  const Stack stack_;
  Space& space_;
};

}  // namespace trierarch
