#include "tests/integrations/ggml/tiny_model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <random>

#include "ggml.h"
#include "gguf.h"

namespace kvrazor::ggml_test {
namespace {

constexpr int kEmbedding = 128, kFeedForward = 128, kLayers = 2, kContext = 4096;
constexpr int kVocabulary = 3 + 256;  // <unk>, <s>, </s>, bytes

// Gains over a matrix that keeps the variance. Queries and keys: logits with a standard deviation of about 3, so that a few
// tokens get most of the attention, as in real models. Output: likewise, so that errors show in the next token.
constexpr float kQueryKeyGain = 1.7f, kOutputGain = 3.0f;

class Writer {
 public:
  explicit Writer(const std::string& architecture)
      : architecture_(architecture), gguf_(gguf_init_empty()), tensors_(ggml_init({kTensorBytes, nullptr, false})) {
    gguf_set_val_str(gguf_.get(), "general.architecture", architecture.c_str());
    Int("context_length", kContext);
    Int("embedding_length", kEmbedding);
    Int("feed_forward_length", kFeedForward);
    Int("block_count", kLayers);
    Float("attention.layer_norm_rms_epsilon", 1e-5f);
    Float("attention.layer_norm_epsilon", 1e-5f);
    Vocabulary();
  }

  // Keys get the architecture in front.
  Writer& Int(const std::string& key, uint32_t value) {
    gguf_set_val_u32(gguf_.get(), Key(key).c_str(), value);
    return *this;
  }
  Writer& Ints(const std::string& key, const std::vector<int32_t>& values) {
    gguf_set_arr_data(gguf_.get(), Key(key).c_str(), GGUF_TYPE_INT32, values.data(), values.size());
    return *this;
  }
  Writer& Float(const std::string& key, float value) {
    gguf_set_val_f32(gguf_.get(), Key(key).c_str(), value);
    return *this;
  }
  Writer& Bool(const std::string& key, bool value) {
    gguf_set_val_bool(gguf_.get(), Key(key).c_str(), value);
    return *this;
  }
  Writer& Token(const char* key, uint32_t value) {
    gguf_set_val_u32(gguf_.get(), key, value);
    return *this;
  }

  /// Heads and their sizes; ropes the whole key.
  Writer& Heads(int num_qo_heads, int num_kv_heads, int key_length, int value_length) {
    Int("attention.head_count", static_cast<uint32_t>(num_qo_heads));
    Int("attention.head_count_kv", static_cast<uint32_t>(num_kv_heads));
    Int("attention.key_length", static_cast<uint32_t>(key_length));
    Int("attention.value_length", static_cast<uint32_t>(value_length));
    return Int("rope.dimension_count", static_cast<uint32_t>(key_length));
  }

  /// Random values of the given mean and deviation.
  Writer& Values(const std::string& name, const std::vector<int64_t>& ne, float mean, float deviation) {
    ggml_tensor* t = ggml_new_tensor(tensors_.get(), GGML_TYPE_F32, static_cast<int>(ne.size()), ne.data());
    ggml_set_name(t, name.c_str());
    std::normal_distribution<float> normal(mean, deviation);
    auto* values = static_cast<float*>(t->data);
    for (int64_t i = 0; i < ggml_nelements(t); ++i) values[i] = normal(random_);
    gguf_add_tensor(gguf_.get(), t);
    return *this;
  }
  /// [ne[0] in, ne[1] out, ...] that keeps the variance, times gain.
  Writer& Matrix(const std::string& name, const std::vector<int64_t>& ne, float gain = 1) {
    return Values(name + ".weight", ne, 0, gain / std::sqrt(static_cast<float>(ne[0])));
  }
  Writer& Norm(const std::string& name, int64_t n) { return Values(name + ".weight", {n}, 1, 0.1f); }
  Writer& Bias(const std::string& name, const std::vector<int64_t>& ne) { return Values(name + ".bias", ne, 0, 0.1f); }

  void Save(const std::string& path) const {
    if (gguf_write_to_file(gguf_.get(), path.c_str(), false)) return;
    std::fprintf(stderr, "cannot write '%s'\n", path.c_str());
    std::exit(1);
  }

 private:
  struct Free {
    void operator()(gguf_context* g) const { gguf_free(g); }
    void operator()(ggml_context* c) const { ggml_free(c); }
  };
  static constexpr size_t kTensorBytes = size_t{16} << 20;

  std::string Key(const std::string& key) const { return architecture_ + "." + key; }

  /// Bytes as tokens, the form of SentencePiece models.
  void Vocabulary() {
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t> types = {2, 3, 3};
    for (int byte = 0; byte < 256; ++byte) {
      char text[8];
      std::snprintf(text, sizeof(text), "<0x%02X>", byte);
      tokens.emplace_back(text);
      types.push_back(6);
    }
    std::vector<const char*> pointers;
    for (const std::string& token : tokens) pointers.push_back(token.c_str());
    const std::vector<float> scores(tokens.size(), 0.0f);
    gguf_context* g = gguf_.get();
    gguf_set_val_str(g, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
    gguf_set_val_u32(g, "tokenizer.ggml.unknown_token_id", 0);
    gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", 2);
  }

  std::string architecture_;
  std::unique_ptr<gguf_context, Free> gguf_;
  std::unique_ptr<ggml_context, Free> tensors_;
  std::mt19937_64 random_{20261123};
};

std::string Block(int layer, const std::string& name) { return "blk." + std::to_string(layer) + "." + name; }

void Embedding(Writer& w) { w.Values("token_embd.weight", {kEmbedding, kVocabulary}, 0, 1); }

void Output(Writer& w) { w.Norm("output_norm", kEmbedding).Matrix("output", {kEmbedding, kVocabulary}, kOutputGain); }

void Attention(Writer& w, int layer, int num_qo_heads, int num_kv_heads, int key_length, int value_length) {
  w.Matrix(Block(layer, "attn_q"), {kEmbedding, num_qo_heads * key_length}, kQueryKeyGain);
  w.Matrix(Block(layer, "attn_k"), {kEmbedding, num_kv_heads * key_length}, kQueryKeyGain);
  w.Matrix(Block(layer, "attn_v"), {kEmbedding, num_kv_heads * value_length});
  w.Matrix(Block(layer, "attn_output"), {num_qo_heads * value_length, kEmbedding});
}

void GatedFeedForward(Writer& w, int layer) {
  w.Norm(Block(layer, "ffn_norm"), kEmbedding);
  w.Matrix(Block(layer, "ffn_gate"), {kEmbedding, kFeedForward});
  w.Matrix(Block(layer, "ffn_up"), {kEmbedding, kFeedForward});
  w.Matrix(Block(layer, "ffn_down"), {kFeedForward, kEmbedding});
}

struct HeadCounts {
  int qo = 4, kv = 2, key_length = 64, value_length = 64;
};

/// Decoder of norm, attention, norm, gated feed-forward: "llama", or "refact", the same with ALiBi in place of RoPE.
Writer Decoder(const std::string& architecture, const HeadCounts& heads = {}) {
  Writer w(architecture);
  w.Heads(heads.qo, heads.kv, heads.key_length, heads.value_length);
  Embedding(w);
  for (int i = 0; i < kLayers; ++i) {
    w.Norm(Block(i, "attn_norm"), kEmbedding);
    Attention(w, i, heads.qo, heads.kv, heads.key_length, heads.value_length);
    GatedFeedForward(w, i);
  }
  Output(w);
  return w;
}

/// Gemma 2: logits squashed by tanh; every other layer sees the last `window` tokens only.
Writer Softcap(int window) {
  Writer w("gemma2");
  w.Heads(4, 2, 64, 64).Int("attention.sliding_window", static_cast<uint32_t>(window));
  w.Float("attn_logit_softcapping", 5).Float("final_logit_softcapping", 30);
  w.Values("token_embd.weight", {kEmbedding, kVocabulary}, 0, 0.3f);  // also the output matrix
  for (int i = 0; i < kLayers; ++i) {
    w.Norm(Block(i, "attn_norm"), kEmbedding);
    Attention(w, i, 4, 2, 64, 64);
    w.Norm(Block(i, "post_attention_norm"), kEmbedding);
    GatedFeedForward(w, i);
    w.Norm(Block(i, "post_ffw_norm"), kEmbedding);
  }
  w.Norm("output_norm", kEmbedding);
  return w;
}

/// gpt-oss: learned attention sinks, sliding windows in every other layer, experts. All are used: choosing some would turn
/// rounding into another expert.
Writer AttentionSinks() {
  constexpr int kExperts = 2;
  Writer w("gpt-oss");
  w.Heads(8, 2, 64, 64)
      .Int("attention.sliding_window", 128)
      .Int("expert_count", kExperts)
      .Int("expert_used_count", kExperts);
  w.Int("expert_feed_forward_length", kFeedForward);
  Embedding(w);
  for (int i = 0; i < kLayers; ++i) {
    w.Norm(Block(i, "attn_norm"), kEmbedding).Norm(Block(i, "post_attention_norm"), kEmbedding);
    Attention(w, i, 8, 2, 64, 64);
    w.Bias(Block(i, "attn_output"), {kEmbedding}).Values(Block(i, "attn_sinks.weight"), {8}, 2, 2);
    w.Matrix(Block(i, "ffn_gate_inp"), {kEmbedding, kExperts}).Bias(Block(i, "ffn_gate_inp"), {kExperts});
    w.Matrix(Block(i, "ffn_gate_exps"), {kEmbedding, kFeedForward, kExperts})
        .Bias(Block(i, "ffn_gate_exps"), {kFeedForward, kExperts});
    w.Matrix(Block(i, "ffn_up_exps"), {kEmbedding, kFeedForward, kExperts})
        .Bias(Block(i, "ffn_up_exps"), {kFeedForward, kExperts});
    w.Matrix(Block(i, "ffn_down_exps"), {kFeedForward, kEmbedding, kExperts})
        .Bias(Block(i, "ffn_down_exps"), {kEmbedding, kExperts});
  }
  Output(w);
  return w;
}

/// Mamba: a state, no cache.
Writer Recurrent() {
  constexpr int kInner = 2 * kEmbedding, kState = 16, kRank = 8, kConv = 4;
  Writer w("mamba");
  w.Int("attention.head_count", 0);
  w.Int("ssm.conv_kernel", kConv)
      .Int("ssm.inner_size", kInner)
      .Int("ssm.state_size", kState)
      .Int("ssm.time_step_rank", kRank);
  Embedding(w);
  for (int i = 0; i < kLayers; ++i) {
    w.Norm(Block(i, "attn_norm"), kEmbedding).Matrix(Block(i, "ssm_in"), {kEmbedding, 2 * kInner});
    w.Matrix(Block(i, "ssm_conv1d"), {kConv, kInner}).Bias(Block(i, "ssm_conv1d"), {kInner});
    w.Matrix(Block(i, "ssm_x"), {kInner, kRank + 2 * kState});
    w.Matrix(Block(i, "ssm_dt"), {kRank, kInner}).Bias(Block(i, "ssm_dt"), {kInner});
    w.Values(Block(i, "ssm_a"), {kState, kInner}, -1, 0.2f).Values(Block(i, "ssm_d"), {kInner}, 1, 0.1f);
    w.Matrix(Block(i, "ssm_out"), {kInner, kEmbedding});
  }
  Output(w);
  return w;
}

/// LFM2: a short convolution in layer 0, attention in layer 1.
Writer Hybrid() {
  constexpr int kConv = 3;
  Writer w("lfm2");
  w.Int("attention.head_count", 2).Ints("attention.head_count_kv", {0, 1}).Int("shortconv.l_cache", kConv);
  w.Values("token_embd.weight", {kEmbedding, kVocabulary}, 0, kOutputGain / std::sqrt(float{kEmbedding}));
  w.Norm("token_embd_norm", kEmbedding);  // the output's: llama.cpp's name is this one
  for (int i = 0; i < kLayers; ++i) {
    w.Norm(Block(i, "attn_norm"), kEmbedding);
    if (i == 0) {
      w.Matrix(Block(i, "shortconv.conv"), {kConv, kEmbedding});
      w.Matrix(Block(i, "shortconv.in_proj"), {kEmbedding, 3 * kEmbedding})
          .Matrix(Block(i, "shortconv.out_proj"), {kEmbedding, kEmbedding});
    } else {
      w.Norm(Block(i, "attn_q_norm"), 64).Norm(Block(i, "attn_k_norm"), 64);
      Attention(w, i, 2, 1, 64, 64);
    }
    GatedFeedForward(w, i);
  }
  return w;
}

/// DeepSeek V2. latent: its cache holds what keys and values are made from, and values are a part of it; otherwise keys and
/// values, which differ in size.
Writer DeepSeek(bool latent) {
  constexpr int kHeads = 4, kNope = 32, kRope = 32, kRank = 96;
  const int value_length = latent ? 32 : 128;
  Writer w("deepseek2");
  if (latent) {
    w.Heads(kHeads, 1, kRank + kRope, kRank);
    w.Int("attention.key_length_mla", kNope + kRope)
        .Int("attention.value_length_mla", static_cast<uint32_t>(value_length));
  } else {
    w.Heads(kHeads, kHeads, kNope + kRope, value_length);
  }
  w.Int("rope.dimension_count", kRope).Int("leading_dense_block_count", kLayers);
  w.Int("attention.q_lora_rank", kRank).Int("attention.kv_lora_rank", kRank);
  w.Int("expert_feed_forward_length", kFeedForward).Int("expert_shared_count", 0);
  Embedding(w);
  for (int i = 0; i < kLayers; ++i) {
    w.Norm(Block(i, "attn_norm"), kEmbedding)
        .Norm(Block(i, "attn_q_a_norm"), kRank)
        .Norm(Block(i, "attn_kv_a_norm"), kRank);
    w.Matrix(Block(i, "attn_q_a"), {kEmbedding, kRank});
    w.Matrix(Block(i, "attn_q_b"), {kRank, kHeads * (kNope + kRope)}, kQueryKeyGain);
    w.Matrix(Block(i, "attn_kv_a_mqa"), {kEmbedding, kRank + kRope}, kQueryKeyGain);
    if (latent) {
      w.Matrix(Block(i, "attn_k_b"), {kNope, kRank, kHeads})
          .Matrix(Block(i, "attn_v_b"), {kRank, value_length, kHeads});
    } else {
      w.Matrix(Block(i, "attn_kv_b"), {kRank, kHeads * (kNope + value_length)});
    }
    w.Matrix(Block(i, "attn_output"), {kHeads * value_length, kEmbedding});
    GatedFeedForward(w, i);
  }
  Output(w);
  return w;
}

/// BERT: no cache at all.
Writer Encoder() {
  Writer w("bert");
  w.Int("attention.head_count", 2)
      .Bool("attention.causal", false)
      .Int("pooling_type", 1)
      .Token("tokenizer.ggml.token_type_count", 2);
  Embedding(w);
  w.Values("token_types.weight", {kEmbedding, 2}, 0, 1).Values("position_embd.weight", {kEmbedding, kContext}, 0, 1);
  w.Norm("token_embd_norm", kEmbedding).Bias("token_embd_norm", {kEmbedding});
  for (int i = 0; i < kLayers; ++i) {
    Attention(w, i, 2, 2, 64, 64);
    w.Norm(Block(i, "attn_output_norm"), kEmbedding).Bias(Block(i, "attn_output_norm"), {kEmbedding});
    w.Matrix(Block(i, "ffn_up"), {kEmbedding, kFeedForward}).Matrix(Block(i, "ffn_down"), {kFeedForward, kEmbedding});
    w.Norm(Block(i, "layer_output_norm"), kEmbedding).Bias(Block(i, "layer_output_norm"), {kEmbedding});
  }
  return w;
}

/// T5: the decoder adds a learned bias to the logits, which flash attention cannot.
Writer EncoderDecoder() {
  constexpr int kBuckets = 32, kHeads = 2, kRow = kHeads * 64;
  Writer w("t5");
  w.Heads(kHeads, kHeads, 64, 64).Int("attention.relative_buckets_count", kBuckets).Int("decoder_start_token_id", 1);
  Embedding(w);
  w.Norm("enc.output_norm", kEmbedding)
      .Norm("dec.output_norm", kEmbedding)
      .Matrix("output", {kEmbedding, kVocabulary}, kOutputGain);
  const auto attention = [&](const std::string& prefix) {
    w.Matrix(prefix + "_q", {kEmbedding, kRow})
        .Matrix(prefix + "_k", {kEmbedding, kRow}, 0.2f);  // logits are not divided by 8
    w.Matrix(prefix + "_v", {kEmbedding, kRow})
        .Matrix(prefix + "_o", {kRow, kEmbedding})
        .Norm(prefix + "_norm", kEmbedding);
  };
  for (int i = 0; i < kLayers; ++i) {
    for (const std::string side : {"enc.", "dec."}) {
      const std::string block = side + "blk." + std::to_string(i) + ".";
      attention(block + "attn");
      w.Values(block + "attn_rel_b.weight", {kHeads, kBuckets}, 0, 1);
      if (side == "dec.") attention(block + "cross_attn");
      w.Norm(block + "ffn_norm", kEmbedding);
      w.Matrix(block + "ffn_gate", {kEmbedding, kFeedForward}).Matrix(block + "ffn_up", {kEmbedding, kFeedForward});
      w.Matrix(block + "ffn_down", {kFeedForward, kEmbedding});
    }
  }
  return w;
}

const std::map<std::string, Writer (*)()>& Makers() {
  static const std::map<std::string, Writer (*)()> makers = {
      {"llama", [] { return Decoder("llama"); }},
      {"head80",
       [] {
         return Decoder("llama", {4, 2, 80, 80});
       }},
      {"head96",
       [] {
         return Decoder("llama", {4, 2, 96, 96});
       }},
      {"keys64_values128", [] { return DeepSeek(/*latent=*/false); }},
      {"gqa16",
       [] {
         return Decoder("llama", {16, 1, 64, 64});
       }},
      {"alibi",
       [] {
         return Decoder("refact", {6, 2, 64, 64});
       }},
      {"short_window_softcap", [] { return Softcap(64); }},
      {"long_window_softcap", [] { return Softcap(640); }},
      {"attention_sinks", AttentionSinks},
      {"recurrent", Recurrent},
      {"hybrid", Hybrid},
      {"latent_attention", [] { return DeepSeek(/*latent=*/true); }},
      {"embedding",
       [] {
         Writer w = Decoder("llama");
         w.Int("pooling_type", 3);  // of the last token
         return w;
       }},
      {"encoder", Encoder},
      {"encoder_decoder", EncoderDecoder},
  };
  return makers;
}

}  // namespace

std::vector<std::string> TinyModelNames() {
  std::vector<std::string> names;
  for (const auto& [name, maker] : Makers()) names.push_back(name);
  return names;
}

void WriteTinyModel(const std::string& name, const std::string& path) { Makers().at(name)().Save(path); }

TinyModelFolder::TinyModelFolder() {
  folder_ = (std::filesystem::temp_directory_path() / "kvrazor-models-XXXXXX").string();
  if (!mkdtemp(folder_.data())) {
    std::fprintf(stderr, "cannot make '%s'\n", folder_.c_str());
    std::exit(1);
  }
  for (const std::string& name : TinyModelNames()) WriteTinyModel(name, Path(name));
}

TinyModelFolder::~TinyModelFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace kvrazor::ggml_test
