// The library's entry points: C names around the decoder for each element type. No exception leaves them.
#include "abi.h"
#include "decoder.h"
#include "move.h"

using namespace trierarch;

namespace {

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

int64_t trierarch_packed_bytes(const TrierarchMatrix* matrix) { return Packer(*matrix, nullptr).num_bytes(); }

void trierarch_pack(const TrierarchMatrix* matrix, void* packed, int64_t num_threads) {
  const Packer packer(*matrix, packed);
  Team::gather(static_cast<int>(num_threads), [&](Team& team) { packer.run(team); });
}

int64_t trierarch_move(const TrierarchMove* moves, int64_t count) {
  return guarded([&] { make_moves(moves, count); });
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

int64_t trierarch_decoder_hidden(void* decoder, const TrierarchStep* step, float* hidden, float* tapped) {
  return guarded([&] { static_cast<AnyDecoder*>(decoder)->hidden(*step, hidden, tapped); });
}

int64_t trierarch_decoder_logits(void* decoder, const float* hidden, int64_t num_rows,
                                 const TrierarchAdapter* const* adapters, float* logits) {
  return guarded([&] { static_cast<AnyDecoder*>(decoder)->logits(hidden, num_rows, adapters, logits); });
}

}  // extern "C"
