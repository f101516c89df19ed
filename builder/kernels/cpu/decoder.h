// Decoder: token ids to hidden states to logits, all layers of a step in one call and one gathering of threads.
#pragma once

#include <memory>
#include <vector>

#include "activation.h"
#include "attention.h"
#include "linear.h"
#include "norm.h"
#include "rope.h"

namespace trierarch {

class AnyDecoder {
 public:
  virtual ~AnyDecoder() = default;
  virtual void hidden(const TrierarchStep& step, float* result, float* tapped) = 0;
  virtual void logits(const float* hidden, int64_t num_rows, const Adapter* const* adapters, float* result) = 0;
};

template <class T>
class Decoder final : public AnyDecoder {
 public:
  Decoder(const TrierarchModel& model, int num_threads)
      : model_(model),
        layers_(model.layers, model.layers + model.num_layers),
        ropes_(model.ropes, model.ropes + model.num_ropes),
        taps_(model.taps, model.taps + model.num_taps),
        num_threads_(num_threads) {
    for (int i = 0; i < num_threads; ++i) scratch_.emplace_back(attention_shape(0));
    rope_offsets_.push_back(0);
    for (const TrierarchRope& rope : ropes_) rope_offsets_.push_back(rope_offsets_.back() + rope.rotary_dim);
  }

  void hidden(const TrierarchStep& step, float* x, float* tapped) override {
    prepare(step);
    Team::gather(num_threads_, [&](Team& team) {
      embed(team, step, x);
      for (int64_t i = 0; i < model_.num_layers; ++i) run_layer(team, step, i, x, tapped);
      add_residual(team, step.num_tokens, layers_.back().post_mlp_norm, x, nullptr, tap_after(tapped, model_.num_layers));
    });
  }

  void logits(const float* hidden, int64_t num_rows, const Adapter* const* adapters, float* result) override {
    normed_.reserve(num_rows * model_.hidden);
    activations_.reserve(num_rows, model_.hidden);
    cut_into_runs(adapters, num_rows, [](int64_t) { return 1; }, runs_);
    std::erase_if(runs_, [](const Run& run) {
      return run.adapter->lm_head.rank == 0 && run.adapter->own_lm_head.weight == nullptr;
    });
    reserve_space(num_rows, lm_head_stack().num_blocks());
    const std::vector<HeadRun> heads = head_runs(num_rows);
    Team::gather(num_threads_, [&](Team& team) {
      team.share(num_rows, 4, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) norm(hidden + row * model_.hidden, model_.norm, row);
      });
      for (const HeadRun& head : heads)
        linear(team, normed(num_rows).from(head.first).first(head.end - head.first), head.weight,
               adapted(head.runs, lm_head_stack()), result + head.first * model_.vocab);
      if (model_.logit_softcap == 0) return;
      const float cap = static_cast<float>(model_.logit_softcap);
      team.share(num_rows, 1, [&](int64_t row, int64_t) {
        for (int64_t i = 0; i < model_.vocab; ++i) {
          float& logit = result[row * model_.vocab + i];
          logit = std::tanh(logit / cap) * cap;
        }
      });
    });
  }

 private:
  AttentionShape attention_shape(int64_t window) const {
    return {model_.num_heads,
            model_.num_kv_heads,
            model_.head_dim,
            static_cast<float>(model_.attention_scale),
            static_cast<float>(model_.attention_softcap),
            window};
  }

  Packed lm_head() const { return packed(model_.lm_head, model_.vocab, model_.hidden); }

  // Rows whose logits come from one matrix, and the runs among them, counted from the first.
  struct HeadRun {
    Packed weight;
    int64_t first, end;
    std::vector<Run> runs;
  };

  // All rows at once, but for those of adapters that have an lm_head of their own.
  std::vector<HeadRun> head_runs(int64_t num_rows) const {
    std::vector<HeadRun> heads;
    const auto close = [&](int64_t end) {
      const int64_t first = heads.empty() ? 0 : heads.back().end;
      if (first == end) return;
      heads.push_back({lm_head(), first, end, {}});
      for (const Run& run : runs_)
        if (run.first >= first && run.end <= end) heads.back().runs.push_back({run.adapter, run.first - first, run.end - first});
    };
    for (const Run& run : runs_) {
      if (run.adapter->own_lm_head.weight == nullptr) continue;
      close(run.first);
      heads.push_back({packed(run.adapter->own_lm_head, model_.vocab, model_.hidden), run.first, run.end, {}});
    }
    close(num_rows);
    return heads;
  }

  // Of the step's runs.
  Adapted<T> adapted(const Stack& stack) { return adapted(runs_, stack); }

  Adapted<T> adapted(const std::vector<Run>& runs, const Stack& stack) { return {runs, stack, space_}; }

  // What adapters have of the layer after `index` is fetched while that one is computed.
  void send_for_next_layer(const Team& team, int64_t index) {
    if (runs_.empty()) return;
    Errand& errand = space_.errands[team.member()];
    errand.clear();
    if (index + 1 == model_.num_layers) return;
    for (const Run& run : runs_) {
      const TrierarchAdaptedLayer& next = run.adapter->layers[index + 1];
      errand.add(next.data, next.num_bytes, team.member(), team.size());
    }
  }

  // Room for what adapters need of `num_rows` rows; widest: of their matrices, the most blocks.
  void reserve_space(int64_t num_rows, int64_t widest) {
    space_.width = 0;
    int64_t num_short = 0;
    for (const Run& run : runs_) {
      space_.width = std::max(space_.width, run.adapter->z_width);
      if (run.end - run.first <= kShortRun) num_short = run.end;
    }
    space_.has_short_runs = num_short > 0;
    space_.errands.resize(num_threads_);
    for (Errand& errand : space_.errands) errand.clear();
    space_.z.reserve(num_rows * space_.width);
    space_.deltas.reserve(num_short * widest * kParts);
  }

  Stack qkv_stack(int64_t layer) const {
    using Layer = TrierarchAdaptedLayer;
    const int64_t queries = model_.num_heads * model_.head_dim, keys = model_.num_kv_heads * model_.head_dim;
    const int64_t first_key = blocks_of(queries), first_value = first_key + blocks_of(keys);
    return {3, {{&Layer::q, 0, 1, queries}, {&Layer::k, first_key, 1, keys}, {&Layer::v, first_value, 1, keys}}, layer};
  }
  Stack gate_up_stack(int64_t layer) const {
    using Layer = TrierarchAdaptedLayer;
    return {2, {{&Layer::gate, 0, 2, model_.intermediate}, {&Layer::up, 1, 2, model_.intermediate}}, layer};
  }
  Stack o_stack(int64_t layer) const { return {1, {{&TrierarchAdaptedLayer::o, 0, 1, model_.hidden}}, layer}; }
  Stack down_stack(int64_t layer) const { return {1, {{&TrierarchAdaptedLayer::down, 0, 1, model_.hidden}}, layer}; }
  Stack lm_head_stack() const { return {1, {{nullptr, 0, 1, model_.vocab}}, -1}; }

  Activations<T> normed(int64_t num_rows) {
    return activations_.template with<T>(normed_.begin(), num_rows, model_.hidden);
  }

  int64_t qkv_columns() const { return (model_.num_heads + 2 * model_.num_kv_heads) * model_.head_dim; }

  void prepare(const TrierarchStep& step) {
    const int64_t n = step.num_tokens, q_columns = model_.num_heads * model_.head_dim;
    normed_.reserve(n * model_.hidden);
    qkv_.reserve(n * qkv_columns());
    queries_.reserve(n * q_columns);
    attended_.reserve(n * q_columns);
    gated_.reserve(n * model_.intermediate);
    branch_.reserve(n * model_.hidden);
    activations_.reserve(n, std::max({model_.hidden, model_.intermediate, q_columns}));
    angles_.reserve(n * rope_offsets_.back());
    sequences_.clear();
    first_rows_.clear();
    for (int64_t s = 0, row = 0; s < step.num_sequences; row += step.num_queries[s++]) {
      first_rows_.push_back(row);
      sequences_.insert(sequences_.end(), step.num_queries[s], s);
    }
    cut_into_runs(step.adapters, step.num_sequences, [&](int64_t s) { return step.num_queries[s]; }, runs_);
    reserve_space(n, std::max({qkv_stack(0).num_blocks(), o_stack(0).num_blocks(), gate_up_stack(0).num_blocks()}));
    plans_.clear();
    plan_of_layer_.clear();
    std::vector<int64_t> windows;
    int64_t partial_rows = 0;
    for (const TrierarchLayer& layer : layers_) {
      const auto found = std::find(windows.begin(), windows.end(), layer.window);
      plan_of_layer_.push_back(found - windows.begin());
      if (found != windows.end()) continue;
      windows.push_back(layer.window);
      plans_.emplace_back(step, model_.num_kv_heads, attention_shape(0).group(), layer.window);
      partial_rows = std::max(partial_rows, plans_.back().num_partial_rows);
    }
    partials_.reserve(partial_rows * (model_.head_dim + 2));
    const int64_t width = model_.head_dim;
    float* base = partials_.begin();
    partial_ = {base + partial_rows * width, base + partial_rows * (width + 1), base, width};
  }

  void embed(Team& team, const TrierarchStep& step, float* x) {
    const float scale = static_cast<float>(model_.embedding_scale);
    team.share(step.num_tokens, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* target = x + row * model_.hidden;
        const int64_t sequence = sequences_[row];
        embed_token(step.token_ids[row], step.adapters == nullptr ? nullptr : step.adapters[sequence], scale, target);
        const int64_t position = step.starts[sequence] + row - first_rows_[sequence];
        for (size_t k = 0; k < ropes_.size(); ++k) rope_table(ropes_[k], position, angles(row, k));
      }
    });
  }

  void embed_token(int64_t token, const Adapter* adapter, float scale, float* target) const {
    const bool is_own = adapter != nullptr && adapter->embedding != nullptr;
    const void* table = is_own ? adapter->embedding : model_.embedding;
    if (table == nullptr) {
      copy_row<T>(lm_head(), token, scale, target);
    } else {
      const T* source = static_cast<const T*>(table) + token * model_.hidden;
      for (int64_t i = 0; i < model_.hidden; ++i) target[i] = to_float(source[i]) * scale;
    }
    const int64_t rank = adapter == nullptr ? 0 : adapter->embedding_rank;
    if (rank == 0) return;
    const T* a = static_cast<const T*>(adapter->embedding_a) + token * rank;
    const T* b = static_cast<const T*>(adapter->embedding_b);
    for (int64_t i = 0; i < model_.hidden; ++i)
      for (int64_t k = 0; k < rank; ++k) target[i] += to_float(b[i * rank + k]) * to_float(a[k]) * scale;
  }

  float* angles(int64_t row, int64_t rope) {
    return angles_.begin() + row * rope_offsets_.back() + rope_offsets_[rope];
  }

  void norm(const float* x, const float* weight, int64_t row) {
    rms_norm(x, weight, model_.hidden, static_cast<float>(model_.norm_eps), normed_.begin() + row * model_.hidden);
  }

  // Where the first row's hidden state after `num_layers` layers goes; null where nobody wants it.
  float* tap_after(float* tapped, int64_t num_layers) const {
    if (tapped == nullptr) return nullptr;
    const auto found = std::find(taps_.begin(), taps_.end(), num_layers);
    return found == taps_.end() ? nullptr : tapped + (found - taps_.begin()) * model_.hidden;
  }

  // x += branch, the branch normalised first where there is a post norm; then the next norm of x. `tap` is one of tap_after.
  void add_residual(Team& team, int64_t rows, const float* post_norm, float* x, const float* next_norm,
                    float* tap = nullptr) {
    const int64_t size = model_.hidden, tap_stride = static_cast<int64_t>(taps_.size()) * size;
    team.share(rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float *branch = branch_.begin() + row * size, *target = x + row * size;
        if (post_norm) rms_norm(branch, post_norm, size, static_cast<float>(model_.norm_eps), branch);
        for (int64_t i = 0; i < size; ++i) target[i] += branch[i];
        if (tap) std::copy(target, target + size, tap + row * tap_stride);
        if (next_norm) norm(target, next_norm, row);
      }
    });
  }

  void run_layer(Team& team, const TrierarchStep& step, int64_t index, float* x, float* tapped) {
    const TrierarchLayer& layer = layers_[index];
    const int64_t rows = step.num_tokens;
    send_for_next_layer(team, index);
    if (index == 0) {
      team.share(rows, 4, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) norm(x + row * model_.hidden, layer.attn_norm, row);
      });
    } else {
      add_residual(team, rows, layers_[index - 1].post_mlp_norm, x, layer.attn_norm, tap_after(tapped, index));
    }
    linear(team, normed(rows), packed(layer.qkv, qkv_columns(), model_.hidden), adapted(qkv_stack(index)),
           qkv_.begin());
    if (Format{model_.kv_element} == Format::kInt8) attend<int8_t>(team, step, index);
    else attend<T>(team, step, index);
    const int64_t q_columns = model_.num_heads * model_.head_dim;
    linear(team, activations_.template with<T>(attended_.begin(), rows, q_columns),
           packed(layer.o, model_.hidden, q_columns), adapted(o_stack(index)), branch_.begin());
    add_residual(team, rows, layer.post_attn_norm, x, layer.mlp_norm);
    const Packed gate_up = packed(layer.gate_up, model_.intermediate, model_.hidden);
    const Adapted<T> adapted_gate_up = adapted(gate_up_stack(index));
    if (model_.activation == 0) gated_linear(team, normed(rows), gate_up, adapted_gate_up, gated_.begin(), Silu());
    else gated_linear(team, normed(rows), gate_up, adapted_gate_up, gated_.begin(), GeluTanh());
    linear(team, activations_.template with<T>(gated_.begin(), rows, model_.intermediate),
           packed(layer.down, model_.hidden, model_.intermediate), adapted(down_stack(index)), branch_.begin());
  }

  // The heads in qkv_, attended; K is the type of stored keys and values.
  template <class K>
  void attend(Team& team, const TrierarchStep& step, int64_t index) {
    const TrierarchLayer& layer = layers_[index];
    const PagedKv<T, K> kv(step, index, model_.num_kv_heads, model_.head_dim);
    team.share(step.num_tokens, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) place(layer, step, kv, row);
    });
    const AttentionShape shape = attention_shape(layer.window);
    Attention<T, K>(shape, step, kv, first_rows_.data(), queries_.begin(), attended_.begin(), partial_)
        .run(team, plans_[plan_of_layer_[index]], scratch_[team.member()]);
  }

  // One token's heads: normalise, rotate, and put the queries aside and the keys and values into their block.
  template <class K>
  void place(const TrierarchLayer& layer, const TrierarchStep& step, const PagedKv<T, K>& kv, int64_t row) {
    const int64_t size = model_.head_dim, num_heads = model_.num_heads, sequence = sequences_[row];
    const int64_t position = step.starts[sequence] + row - first_rows_[sequence];
    const int64_t* table = block_table(step, sequence);
    float* heads = qkv_.begin() + row * qkv_columns();
    for (int64_t h = 0; h < num_heads + model_.num_kv_heads; ++h) {
      const float* weight = h < num_heads ? layer.q_norm : layer.k_norm;
      if (weight) rms_norm(heads + h * size, weight, size, static_cast<float>(model_.norm_eps), heads + h * size);
      if (layer.rope >= 0) rotate(heads + h * size, angles(row, layer.rope), ropes_[layer.rope].rotary_dim / 2);
    }
    copy(heads, num_heads * size, queries_.begin() + row * num_heads * size);
    const float *keys = heads + num_heads * size, *values = keys + model_.num_kv_heads * size;
    for (int64_t h = 0; h < model_.num_kv_heads; ++h) kv.put(table, h, position, keys + h * size, values + h * size);
  }

  // size is a multiple of kLanes.
  static void copy(const float* source, int64_t size, Operand<T>* target) {
    for (int64_t i = 0; i < size; i += kLanes) store_elements(target + i, load<Floats>(source + i));
  }

  const TrierarchModel model_;
  const std::vector<TrierarchLayer> layers_;
  const std::vector<TrierarchRope> ropes_;
  const std::vector<int64_t> taps_;
  const int num_threads_;
  std::vector<int64_t> rope_offsets_;  // where each rope's table begins in a token's angles
  std::vector<AttentionScratch<T>> scratch_;  // (num_threads)

  // Of the step at hand, one row a token.
  std::vector<int64_t> sequences_, first_rows_;
  std::vector<AttentionPlan> plans_;     // one for each distinct window
  std::vector<int64_t> plan_of_layer_;
  std::vector<Run> runs_;
  typename Adapted<T>::Space space_;
  Scratch<Operand<T>> normed_, queries_, attended_, gated_;
  Scratch<float> qkv_, branch_, angles_, partials_;
  ActivationScratch activations_;
  Partial partial_{};
};

}  // namespace trierarch
