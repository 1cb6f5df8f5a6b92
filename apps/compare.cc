// kvrazor compare: the same model and text with several KV caches, side by side.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>

#include "apps/atomic_files.h"
#include "apps/commands.h"
#include "apps/compare.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "apps/read_text.h"
#include "eval/accuracy.h"
#include "eval/cache_choice.h"
#include "eval/gguf_header.h"
#include "eval/model_shape.h"

namespace kvrazor::apps {
namespace {

constexpr char kReference[] = "f16";

constexpr char kDescription[] =
    "Several KV caches on the same text, side by side.\n"
    "Reads a long text with each of several KV caches and shows, side by side: bytes and bits a value of the cache, "
    "peak memory of the "
    "process, tokens/s while reading (prefill) and writing (decode) at the full context, perplexity, KL divergence "
    "from the 16-bit cache, "
    "share of positions with the same most likely token, and an answer to a question about the text.\n\n"
    "Each cache runs in a process of its own. Accuracy is measured in a second pass over the same text, 128 tokens at "
    "a time, so that the "
    "past is read back from the cache as in decoding.";

constexpr char kExamples[] =
    "EXAMPLES\n"
    "  kvrazor compare -m model.gguf -f book.txt\n"
    "  kvrazor compare -m model.gguf -f book.txt -c 4096 --caches f16,q8_0,razor-2 --out results\n"
    "  kvrazor compare -m model.gguf -f notes.txt --question 'Who wrote this, and when?' --json | jq '.[].kld_mean'\n\n"
    "FILES\n"
    "  With --out DIR: DIR/compare.json (a list, one object a cache) and DIR/index.html (table, plots, answers; needs "
    "nothing else).\n"
    "  They are replaced only when the whole comparison has succeeded. While it runs, an unnamed temporary file there "
    "(without --out in\n"
    "  $TMPDIR) holds the reference's distributions: positions x vocabulary x 4 bytes.\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 3 --require and a layer stayed in 16 bits; 130 interrupted.";

struct Options {
  std::string model, text, out, question = "What is the text above about? Answer in a few sentences.";
  std::string caches = "f16,q8_0,q4_0,kivi,oscar,razor-2";
  int64_t context = 0, positions = 1024, answer_tokens = 60;
  int threads = 0;
  bool json = false, quiet = false, require = false, verbose = false;
};

// The reference comes first; every name must mean something before an hour of work starts.
std::vector<std::string> OrderedCaches(const std::string& asked) {
  std::vector<std::string> caches = eval::SplitCacheNames(asked);
  std::erase(caches, kReference);
  caches.insert(caches.begin(), kReference);
  return caches;
}

int64_t ReferenceBytes(const Options& options) {
  const eval::ModelShape shape = eval::ReadModelShape(options.model);
  return options.positions * std::max<int64_t>(shape.vocabulary, 1) * static_cast<int64_t>(sizeof(float));
}

std::string TemporaryFolder(const Options& options) {
  if (!options.out.empty()) return options.out;
  const char* folder = std::getenv("TMPDIR");
  return folder && *folder ? folder : "/tmp";
}

std::vector<Json> Measure(const Options& options, const std::vector<std::string>& arguments) {
  const std::vector<std::string> caches = OrderedCaches(options.caches);
  const std::string text = ReadTextFile(options.text);
  const int64_t reference_bytes = ReferenceBytes(options);
  if (!options.out.empty()) PrepareFolder(options.out);
  const eval::ReferenceFile reference = eval::ReferenceFile::Create(TemporaryFolder(options), reference_bytes);

  Progress progress(options.quiet);
  const std::string machine = MachineText(), commit = CommitText(), command = CommandText(arguments);
  int64_t context = options.context;
  std::vector<Json> records;
  for (const std::string& cache : caches) {
    const Json job = {{"kind", "compare"},
                      {"model", options.model},
                      {"text", text},
                      {"cache", cache},
                      {"context", context},
                      {"positions", options.positions},
                      {"question", options.question},
                      {"answer_tokens", options.answer_tokens},
                      {"threads", options.threads},
                      {"require", options.require && eval::ParseCacheChoice(cache).packed},
                      {"is_reference", records.empty()},
                      {"reference_fd", reference.fd()},
                      {"verbose", options.verbose}};
    const std::string label = fmt::format("[{}/{}] {}: ", records.size() + 1, caches.size(), cache);
    Json measured;
    try {
      measured = RunWorker(job, reference.fd(), [&](const std::string& stage, int64_t done, int64_t total) {
        progress.Update(label + stage, done, total);
      });
    } catch (const UsageError&) {
      throw;
    } catch (const RequirementError&) {
      throw;
    } catch (const Interrupted&) {
      throw;
    } catch (const Error& e) {
      throw Error(fmt::format("cache '{}': {}", cache, e.what()));
    }
    context = measured.at("context");
    Json record = {{"recipe", cache}, {"context", context}, {"bits_per_value", 0.0}};
    record.update(measured);
    const Json& f16 = records.empty() ? record : records.front();
    record["bits_per_value"] = 16.0 * measured.at("kv_bytes").get<double>() / f16.at("kv_bytes").get<double>();
    record["model"] = options.model;
    record["text"] = options.text;
    record["threads"] = options.threads;
    record["machine"] = machine;
    record["commit"] = commit;
    record["command"] = command;
    records.push_back(std::move(record));
  }
  return records;
}

void Compare(Options options, const Invocation& invocation) {
  if (options.threads == 0) options.threads = NumProcessors();
  CatchInterrupts();
  const std::vector<Json> records = Measure(options, invocation.arguments);
  const std::string json = Json(records).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  ThrowIfInterrupted();
  if (!options.out.empty())
    WriteAtomically(
        {{options.out + "/compare.json", json}, {options.out + "/index.html", CompareHtml(records, options.question)}});
  if (options.json) {
    fmt::print("{}", json);
  } else {
    fmt::print("{} tokens of {}, {} threads, {}\n\n{}\n{}", records.front().at("context").get<int64_t>(), options.text,
               options.threads, MachineText(), CompareTable(records), CompareAnswers(records, options.question));
    if (!options.out.empty()) fmt::print("\nWritten: {0}/compare.json and {0}/index.html\n", options.out);
  }
}

}  // namespace

void AddCompare(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("compare", kDescription);
  command->footer(kExamples);
  command->add_option("-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("-f,--file", options->text, "Text to read, UTF-8")->required();
  command
      ->add_option("-c,--context", options->context,
                   "Tokens to read; by default the least of what the model was trained for, the text's length and 8192")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--caches", options->caches,
                   "Caches, separated by commas: llama.cpp's own types (f16, q8_0, q4_0 ...) or recipes "
                   "(kvrazor methods); f16 is always measured first")
      ->capture_default_str();
  command->add_option("--question", options->question, "Question about the text")->capture_default_str();
  command->add_option("--answer-tokens", options->answer_tokens, "Tokens to write; decoding is timed over them")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}))
      ->capture_default_str();
  command
      ->add_option("--positions", options->positions,
                   "At most so many positions are compared, evenly spaced after token 256")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "Threads; by default all processors")
      ->check(CLI::Range(1, 1024));
  command->add_option("--out", options->out, "Folder for compare.json and index.html");
  command->add_flag("--require", options->require, "Fail if a recipe leaves any layer in 16 bits")
      ->envname("KVRAZOR_REQUIRE");
  command->add_flag("--json", options->json, "Print the records as JSON");
  command->add_flag("-q,--quiet", options->quiet, "No progress");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options, &invocation] { Compare(*options, invocation); });
}

}  // namespace kvrazor::apps
