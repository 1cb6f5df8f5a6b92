// The part of `kvrazor compare` that runs in a process of its own, once a cache: first speed, memory and the answer, in a
// context as `kvrazor run` makes it; then accuracy, in another one.
#include <fmt/format.h>

#include <algorithm>

#include "apps/failures.h"
#include "apps/worker.h"
#include "eval/accuracy.h"
#include "eval/chat_format.h"
#include "eval/model.h"
#include "eval/process_memory.h"
#include "eval/speed.h"

namespace kvrazor::apps {
namespace {

constexpr int64_t kDefaultMaxContext = 8192;
constexpr int64_t kMinContext = 64;
constexpr int64_t kFirstPosition = 256;  // before it, little but the windows' own 16 bits is read

using Tokens = std::vector<llama_token>;

int64_t ChooseContext(int64_t asked, int64_t trained, int64_t text_tokens) {
  if (text_tokens < kMinContext)
    throw UsageError(fmt::format("the text has {} tokens; at least {} are needed. Give a longer text with -f.",
                                 text_tokens, kMinContext));
  if (asked == 0) return std::min({trained > 0 ? trained : kDefaultMaxContext, text_tokens, kDefaultMaxContext});
  if (asked < kMinContext) throw UsageError(fmt::format("-c {}: at least {} tokens are needed.", asked, kMinContext));
  if (asked > text_tokens)
    throw UsageError(fmt::format("-c {}: the text has only {} tokens. Give a longer text, or -c {} or less.", asked,
                                 text_tokens, text_tokens));
  if (trained > 0 && asked > trained)
    throw UsageError(
        fmt::format("-c {}: the model was trained for {} tokens. Give -c {} or less.", asked, trained, trained));
  return asked;
}

// The bytes of the first `count` tokens, without a character cut in two at the end.
std::string TextOf(const llama_model* model, const Tokens& tokens, int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += eval::Piece(model, tokens[static_cast<size_t>(i)]);
  size_t last = text.size();
  while (last > 0 && text.size() - last < 4 && (static_cast<unsigned char>(text[last - 1]) & 0xC0) == 0x80) --last;
  if (last > 0) {
    const unsigned char lead = static_cast<unsigned char>(text[last - 1]);
    const size_t needed = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (text.size() - (last - 1) < needed) text.resize(last - 1);
  }
  return text;
}

// A prompt that asks the question about as much of the text as `room` tokens hold.
Tokens FittingPrompt(const llama_model* model, const Tokens& text_tokens, const std::string& question, int64_t room) {
  const eval::ChatFormat format(model);
  const auto prompt = [&](int64_t count) {
    const std::string text = format.Prompt({{"user", TextOf(model, text_tokens, count) + "\n\n" + question}});
    return eval::Tokenize(model, text, /*add_first=*/!format.has_template(), /*special=*/true);
  };
  const int64_t overhead = std::ssize(prompt(0));
  if (overhead > room)
    throw UsageError(
        fmt::format("the question takes {} tokens, but only {} fit beside the answer. Ask a shorter one, or use a "
                    "longer context (-c).",
                    overhead, room));
  int64_t count = std::min<int64_t>(room - overhead, std::ssize(text_tokens));
  Tokens tokens = prompt(count);
  while (std::ssize(tokens) > room && count > 0) {
    count = std::max<int64_t>(0, count - (std::ssize(tokens) - room));
    tokens = prompt(count);
  }
  return tokens;
}

}  // namespace

Json CompareJob(const Json& job, const OnProgress& progress) {
  const eval::CacheChoice cache = eval::ParseCacheChoice(job.at("cache").get<std::string>());
  const bool is_reference = job.at("is_reference");
  const int64_t new_tokens = job.at("answer_tokens");
  const int threads = job.at("threads");
  const bool require = job.at("require");
  progress("loading", 0, 1);
  const eval::ModelPtr model = eval::LoadModel(job.at("model"));
  const Tokens text_tokens =
      eval::Tokenize(model.get(), job.at("text").get<std::string>(), /*add_first=*/true, /*special=*/false);
  const int64_t context =
      ChooseContext(job.at("context"), llama_model_n_ctx_train(model.get()), std::ssize(text_tokens));
  if (new_tokens + 16 > context)
    throw UsageError(fmt::format("--answer-tokens {}: the context holds {}. Give fewer.", new_tokens, context));
  const Tokens prompt = FittingPrompt(model.get(), text_tokens, job.at("question"), context - new_tokens);

  Json result = {{"context", context}, {"packed", cache.packed}};
  {
    const eval::ContextPtr ctx =
        eval::MakeContext(model.get(), cache, {.context = context, .threads = threads, .require = require});
    eval::WarmUp(ctx.get(), prompt);
    const int64_t total = std::ssize(prompt) + new_tokens;
    const eval::Generation generation =
        eval::Generate(ctx.get(), prompt, new_tokens, [&](int64_t done) { progress("speed and answer", done, total); });
    const eval::KvUsage kv = eval::MeasureKv(ctx.get(), cache);
    result["kv_bytes"] = kv.bytes;
    result["kv_bytes_by_kind"] = {{"sealed", kv.sealed_bytes},
                                  {"staging", kv.staging_bytes},
                                  {"sinks", kv.sink_bytes},
                                  {"tables", kv.table_bytes},
                                  {"unpacked", kv.unpacked_bytes}};
    result["page_bits_per_value"] = kv.page_bits_per_value;
    result["f16_layers"] = kv.f16_layers;
    result["peak_rss_bytes"] = eval::PeakResidentBytes();
    result["prompt_tokens"] = generation.prompt_tokens;
    result["prefill_tps"] = generation.prefill_tps;
    result["decode_tps"] = generation.decode_tps;
    result["decoded_tokens"] = generation.decoded_tokens;
    result["answer"] = generation.text;
    result["answer_tokens"] = generation.text_tokens;
  }

  const std::vector<int64_t> positions =
      eval::SamplePositions(context, std::min(kFirstPosition, context / 2), job.at("positions"));
  eval::ReferenceFile reference = eval::ReferenceFile::Borrow(job.at("reference_fd"));
  const eval::ContextPtr ctx = eval::MakeContext(
      model.get(), cache,
      {.context = context, .batch = eval::kAccuracyBatch, .outputs = eval::kAccuracyBatch, .threads = threads});
  const std::span<const llama_token> tokens(text_tokens.data(), static_cast<size_t>(context));
  const eval::ReferenceUse use = is_reference ? eval::ReferenceUse::kWrite : eval::ReferenceUse::kCompare;
  const eval::Agreement agreement = eval::Summarize(eval::MeasurePositions(
      ctx.get(), tokens, positions, &reference, use, [&](int64_t done) { progress("accuracy", done, context); }));
  result["positions"] = agreement.positions;
  result["ppl"] = agreement.ppl;
  result["kld_mean"] = agreement.kld_mean;
  result["kld_median"] = agreement.kld_median;
  result["kld_p99"] = agreement.kld_p99;
  result["kld_p999"] = agreement.kld_p999;
  result["kld_max"] = agreement.kld_max;
  result["kld_max_position"] = positions[static_cast<size_t>(agreement.worst_index)];
  result["same_top1"] = agreement.same_top1;
  return result;
}

}  // namespace kvrazor::apps
