// What crosses from Python, by value and address only: no C++ and no torch types, so that one library serves every
// torch. `python_backend/executors/cpu/abi.py` mirrors these structs field by field; raise TRIERARCH_ABI on
// both sides when one changes. Only 8-byte fields, so that there is no padding to disagree about.
#pragma once

#include <cstdint>

#define TRIERARCH_ABI 5
#define TRIERARCH_EXPORT __attribute__((visibility("default")))

extern "C" {

// Formats of matrices: 0 float32, 1 bfloat16, 2 int8, 3 int4. What codes, scales and offsets are, builder/manifest.py
// says.
struct TrierarchMatrix {
  int64_t format;
  int64_t out_features, in_features;  // in_features: even; of int8 and int4, a multiple of 32
  int64_t is_gated;                   // gate over up, which packing weaves
  const void* codes;                  // of 0 and 1, the elements
  const void* scales;                 // of 2 and 3
  const void* offsets;                // of 3
};

struct TrierarchLinear {
  int64_t format;
  const void* weight;  // packed, see pack.h
  const float* bias;   // (out_features) or null
};

struct TrierarchRope {
  const float* inv_freq;  // (rotary_dim / 2)
  int64_t rotary_dim;
  double attention_factor;
};

struct TrierarchLayer {
  const float* attn_norm;       // (hidden)
  const float* q_norm;          // (head_dim) or null
  const float* k_norm;          // (head_dim) or null
  const float* post_attn_norm;  // (hidden) or null
  const float* mlp_norm;        // (hidden)
  const float* post_mlp_norm;   // (hidden) or null
  TrierarchLinear qkv, o, gate_up, down;
  int64_t window;  // tokens a query reaches back, itself included; 0 is all
  int64_t rope;    // index into ropes; -1 is none
};

struct TrierarchModel {
  int64_t element;     // of activations: 0 float32, 1 bfloat16; a matrix is of this or quantised
  int64_t kv_element;  // of keys and values: the same, or 2 int8
  int64_t hidden, intermediate, vocab;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t num_layers, num_ropes;
  int64_t activation;  // 0 silu, 1 gelu_tanh
  double norm_eps, attention_scale;
  double attention_softcap, logit_softcap;  // 0 is none
  double embedding_scale;
  const TrierarchLayer* layers;
  const TrierarchRope* ropes;
  const float* norm;      // (hidden)
  const void* embedding;  // (vocab, hidden), or null: the packed lm_head is read in its place
  TrierarchLinear lm_head;
  int64_t num_taps;     // hidden states that are given beside the last, after so many layers each, ascending
  const int64_t* taps;  // (num_taps), 1 to num_layers
};

// What an adapter does to one piece of a stacked matrix, W: gain * (W x) + b (a x). See builder/adapter.py.
struct TrierarchPiece {
  int64_t rank;       // even; 0 where there is no a and b
  const void* a;      // (rank, in_features) of element
  const void* b;      // (out_features, rank) of element, packed as an ungated matrix
  const float* gain;  // (out_features), or null: 1
};

struct TrierarchAdaptedLayer {
  TrierarchPiece q, k, v, o, gate, up, down;
  const void* data;   // where all that they point to lies
  int64_t num_bytes;  // of it
};

struct TrierarchAdapter {
  int64_t z_width;  // most ranks of one stacked matrix, its pieces added up
  const TrierarchAdaptedLayer* layers;  // (num_layers)
  TrierarchPiece lm_head;
  TrierarchLinear own_lm_head;  // in place of the model's, where weight is not null
  const void* embedding;        // (vocab, hidden) in place of the model's, or null
  int64_t embedding_rank;       // 0 where the next two are null
  const void* embedding_a;      // (vocab, embedding_rank) of element
  const void* embedding_b;      // (hidden, embedding_rank) of element
};

// A tensor of an adapter on its way from where it was read to where the kernels want it.
struct TrierarchMove {
  const void* source;  // (rows, columns) of element
  void* target;        // on a cache line
  int64_t element;     // 0 float32, 1 bfloat16
  int64_t rows, columns;
  int64_t is_packed;       // as an ungated matrix, see pack.h; with a column of zeros more where columns are odd
  int64_t num_zero_bytes;  // behind the tensor, where it is not packed
};

struct TrierarchStep {
  void* kv;          // (num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim)
  float* kv_scales;  // (num_layers, 2, num_blocks, num_kv_heads, block_size) where kv_element is int8, else null
  int64_t num_blocks, block_size;
  int64_t num_tokens;        // of all sequences, one sequence after the other
  const int64_t* token_ids;  // (num_tokens)
  int64_t num_sequences;
  const int64_t* starts;         // (num_sequences): position of each sequence's first token in this step
  const int64_t* num_queries;    // (num_sequences): its tokens in this step
  const int64_t* table_offsets;  // (num_sequences): where each sequence's block table begins in block_ids
  const int64_t* block_ids;      // tables one after the other, each long enough for its sequence's last token
  // (num_sequences): each sequence's adapter, null for the base model; null where all are. Sequences of one adapter are
  // faster side by side.
  const TrierarchAdapter* const* adapters;
};

TRIERARCH_EXPORT int64_t trierarch_abi();

// Bytes that a packed matrix takes.
TRIERARCH_EXPORT int64_t trierarch_packed_bytes(const TrierarchMatrix* matrix);

// Lay a matrix out as pack.h says. `packed` is on a cache line.
TRIERARCH_EXPORT void trierarch_pack(const TrierarchMatrix* matrix, void* packed, int64_t num_threads);

// Make them all, on the calling thread. Returns 0, or 1 where memory is short.
TRIERARCH_EXPORT int64_t trierarch_move(const TrierarchMove* moves, int64_t count);

// Null where memory is short. The structs and the taps may vanish after the call, the arrays they point to may not.
TRIERARCH_EXPORT void* trierarch_decoder_new(const TrierarchModel* model, int64_t num_threads);
TRIERARCH_EXPORT void trierarch_decoder_free(void* decoder);

// Run all layers, storing keys and values; hidden: (num_tokens, hidden) float32, before the last norm. tapped:
// (num_tokens, num_taps, hidden) float32, or null where nobody wants them.
// Both return 0, or 1 where memory is short.
TRIERARCH_EXPORT int64_t trierarch_decoder_hidden(void* decoder, const TrierarchStep* step, float* hidden,
                                                  float* tapped);

// hidden: (num_rows, hidden) float32 -> logits: (num_rows, vocab) float32. adapters: (num_rows), as in a step.
TRIERARCH_EXPORT int64_t trierarch_decoder_logits(void* decoder, const float* hidden, int64_t num_rows,
                                                  const TrierarchAdapter* const* adapters, float* logits);

}  // extern "C"
