// The part of `kvrazor eval ppl` and `kld` that holds the model: window by window, the 16-bit cache first, then the others.
// A window's reference distributions are overwritten by the next window's.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <set>

#include "apps/eval.h"
#include "apps/failures.h"
#include "eval/accuracy.h"
#include "eval/calibration.h"
#include "eval/model.h"
#include "eval/shadow.h"
#include "eval/text_windows.h"
#include "kvrazor/recipe_json.h"

namespace kvrazor::apps {
namespace {

using Tokens = std::vector<llama_token>;

struct Settings {
  eval::WindowChoice choice;
  int threads = 1;
  bool with_reference = true, require = false, seal_newest = false, shadow = false;
  std::optional<eval::Calibration> calibration;  // of the model, with shadow
};

// Every window begins as a text does, as in llama-perplexity.
Tokens WindowTokens(const llama_model* model, const Tokens& text, int64_t start, int64_t count) {
  Tokens tokens(text.begin() + start, text.begin() + start + count);
  const llama_vocab* vocab = llama_model_get_vocab(model);
  if (llama_vocab_get_add_bos(vocab)) tokens.front() = llama_vocab_bos(vocab);
  return tokens;
}

Json ToJson(const std::vector<eval::PositionAgreement>& positions, bool with_reference) {
  Json columns = {{"position", Json::array()}, {"nll", Json::array()}};
  for (const eval::PositionAgreement& p : positions) {
    columns["position"].push_back(p.position);
    columns["nll"].push_back(p.nll);
    if (!with_reference) continue;
    columns["kld"].push_back(p.kld);
    columns["same"].push_back(p.same_top1 ? 1 : 0);
  }
  return columns;
}

Json MeasureWindow(llama_model* model, const std::string& name, const Tokens& tokens, const Settings& settings,
                   eval::ReferenceFile* reference, bool is_reference, const std::function<void(int64_t)>& progress) {
  const eval::CacheChoice cache = eval::ParseCacheChoice(name, settings.shadow);
  std::optional<eval::ShadowCache> shadow;
  if (settings.shadow && cache.packed)
    shadow.emplace(LoadRecipe(cache.recipe), llama_model_n_layer(model), settings.threads,
                   settings.calibration ? &*settings.calibration : nullptr);
  const eval::ContextPtr context = eval::MakeContext(model, shadow ? eval::ParseCacheChoice("f16") : cache,
                                                     {.context = std::ssize(tokens),
                                                      .batch = eval::kAccuracyBatch,
                                                      .outputs = eval::kAccuracyBatch,
                                                      .threads = settings.threads,
                                                      .require = settings.require && cache.packed,
                                                      .on_node = shadow ? eval::ShadowCache::OnNode : nullptr,
                                                      .on_node_data = shadow ? &*shadow : nullptr});
  const eval::ReferenceUse use = !reference     ? eval::ReferenceUse::kNone
                                 : is_reference ? eval::ReferenceUse::kWrite
                                                : eval::ReferenceUse::kCompare;
  const std::vector<eval::PositionAgreement> positions = eval::MeasurePositions(
      context.get(), tokens, eval::WindowPositions(settings.choice), reference, use,
      [&](int64_t at) {
        if (shadow) shadow->EndBatch();
        progress(at);
      },
      settings.seal_newest && cache.packed);
  const eval::KvUsage kv = shadow ? shadow->Usage() : eval::MeasureKv(context.get(), cache);
  Json measurement = {
      {"cache", name},
      {"mode", shadow         ? "shadow"
               : cache.packed ? "packed"
                              : "llama.cpp"},
      {"page_bits_per_value", kv.page_bits_per_value > 0 ? kv.page_bits_per_value : 16.0},  // 0: nothing sealed
      {"bits_per_value",
       kv.f16_bytes > 0 ? 16.0 * static_cast<double>(kv.bytes) / static_cast<double>(kv.f16_bytes) : 0.0},
      {"f16_layers", kv.f16_layers}};
  measurement.update(ToJson(positions, settings.with_reference));
  return measurement;
}

}  // namespace

Json AccuracyJob(const Json& job, const OnProgress& progress) {
  Settings settings = {.choice = {.window = job.at("window"),
                                  .stride = job.at("stride"),
                                  .windows = job.at("windows"),
                                  .first = job.at("first"),
                                  .step = job.at("step")},
                       .threads = job.at("threads"),
                       .with_reference = job.at("with_reference"),
                       .require = job.at("require"),
                       .seal_newest = job.value("seal_newest", false),
                       .shadow = job.value("shadow", false),
                       .calibration = {}};
  // Of the windows only these are measured; by default all.
  const size_t first_window = job.value("first_window", size_t{0});
  const size_t end_window = job.value("end_window", std::numeric_limits<size_t>::max());
  const std::vector<std::string> caches = job.at("caches");
  std::optional<LineJournal> journal;
  if (const std::string path = job.at("journal"); !path.empty()) journal.emplace(path);
  std::vector<Json> measurements;
  std::set<std::pair<std::string, int64_t>> done;
  if (journal) {
    for (const Json& line : journal->lines()) {
      measurements.push_back(line);
      done.emplace(line.at("cache"), line.at("window"));
    }
  }
  if (const std::string path = job.value("calibration", std::string()); !path.empty())
    settings.calibration = eval::ReadCalibration(path, eval::ModelFingerprint(job.at("model")));
  progress("loading", 0, 1);
  const eval::ModelPtr model = eval::LoadModel(job.at("model"));
  if (llama_model_has_encoder(model.get()))
    throw Error("the model has an encoder: it does not continue a text, so its next tokens cannot be measured.");
  const Tokens text =
      eval::Tokenize(model.get(), job.at("text").get<std::string>(), /*add_first=*/true, /*special=*/false);
  const std::vector<int64_t> starts = eval::WindowStarts(std::ssize(text), settings.choice);
  std::optional<eval::ReferenceFile> reference;
  if (settings.with_reference) reference.emplace(eval::ReferenceFile::Borrow(job.at("reference_fd")));

  for (size_t i = first_window; i < std::min(end_window, starts.size()); ++i) {
    const int64_t window = static_cast<int64_t>(i);
    const auto is_missing = [&](const std::string& cache) { return !done.contains({cache, window}); };
    if (std::none_of(caches.begin(), caches.end(), is_missing)) continue;
    const Tokens tokens = WindowTokens(model.get(), text, starts[i], settings.choice.window);
    for (size_t c = 0; c < caches.size(); ++c) {
      const bool is_reference = settings.with_reference && c == 0;
      if (!is_missing(caches[c]) && !is_reference) continue;
      const std::string stage = fmt::format("window {}/{}, {}", i + 1, starts.size(), caches[c]);
      Json measurement = {{"window", window}, {"start", starts[i]}};
      try {
        measurement.update(MeasureWindow(model.get(), caches[c], tokens, settings, reference ? &*reference : nullptr,
                                         is_reference,
                                         [&](int64_t at) { progress(stage, at, settings.choice.window); }));
      } catch (const eval::NotPackedError&) {
        throw;
      } catch (const Error& e) {
        throw Error(fmt::format("cache '{}': {}", caches[c], e.what()));
      }
      if (!is_missing(caches[c])) continue;  // the reference again, for caches that did not have their turn
      if (journal) journal->Append(measurement);
      measurements.push_back(std::move(measurement));
    }
  }
  return {{"windows", starts.size()}, {"measurements", measurements}};
}

}  // namespace kvrazor::apps
