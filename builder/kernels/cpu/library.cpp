// The library's entry points: C names around the decoder for each element type. No exception leaves them.
#include "abi.h"
#include "decoder.h"

using namespace trierarch;

namespace {

int64_t words_of(int64_t element, int64_t in_features) { return element == 0 ? in_features : in_features / 2; }

template <class Work>
int64_t guarded(Work&& work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" {

int64_t trierarch_abi() { return TRIERARCH_ABI; }

int64_t trierarch_packed_words(int64_t element, int64_t out_features, int64_t in_features, int64_t is_gated) {
  const int64_t blocks = is_gated ? 2 * blocks_of(out_features / 2) : blocks_of(out_features);
  return blocks * kLanes * words_of(element, in_features);
}

void trierarch_pack(int64_t element, const void* weight, int64_t out_features, int64_t in_features, int64_t is_gated,
                    void* packed, int64_t num_threads) {
  const int64_t depth = words_of(element, in_features), halves = is_gated ? 2 : 1, columns = out_features / halves;
  const auto* source = static_cast<const uint32_t*>(weight);
  auto* target = static_cast<uint32_t*>(packed);
  Team::gather(static_cast<int>(num_threads), [&](Team& team) {
    for (int64_t half = 0; half < halves; ++half)
      pack_matrix(source + half * columns * depth, columns, depth, halves, target + half * depth * kLanes, team);
  });
}

void* trierarch_decoder_new(const TrierarchModel* model, int64_t num_threads) {
  AnyDecoder* decoder = nullptr;
  guarded([&] {
    if (model->element == 0) decoder = new Decoder<float>(*model, static_cast<int>(num_threads));
    else decoder = new Decoder<BFloat16>(*model, static_cast<int>(num_threads));
  });
  return decoder;
}

void trierarch_decoder_free(void* decoder) { delete static_cast<AnyDecoder*>(decoder); }

int64_t trierarch_decoder_hidden(void* decoder, const TrierarchStep* step, float* hidden) {
  return guarded([&] { static_cast<AnyDecoder*>(decoder)->hidden(*step, hidden); });
}

int64_t trierarch_decoder_logits(void* decoder, const float* hidden, int64_t num_rows, float* logits) {
  return guarded([&] { static_cast<AnyDecoder*>(decoder)->logits(hidden, num_rows, logits); });
}

}  // extern "C"
