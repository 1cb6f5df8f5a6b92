// Runs a fuzz target on its seeds and on inputs made from them by a fixed random generator, or on the files that are named.
//   PROGRAM [--inputs N] [--seed S] [FILE]...
// The input under way is kept in PROGRAM.crash while it runs, so a crash can be replayed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/seeds.h"

namespace {

using Random = std::mt19937_64;

std::string Mutated(std::string input, const std::vector<std::string>& seeds, Random& random) {
  for (uint64_t changes = 1 + random() % 8; changes > 0; --changes) {
    const size_t at = input.empty() ? 0 : random() % (input.size() + 1);
    const size_t length =
        input.empty() ? 0 : random() % std::min<size_t>(16, input.size() - std::min(at, input.size()) + 1);
    const std::string& other = seeds[random() % seeds.size()];
    switch (random() % 7) {
      case 0: input.insert(at, 1, static_cast<char>(random())); break;
      case 1: input.erase(at, length); break;
      case 2: input.insert(at, input.substr(at, length)); break;
      case 3:
        if (at < input.size()) input[at] = static_cast<char>(random());
        break;
      case 4:
        if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << random() % 8));
        break;
      case 5: {
        const size_t from = other.empty() ? 0 : random() % other.size();
        input.insert(at, other.substr(from, 1 + random() % 32));
        break;
      }
      default: {
        const char* numbers[] = {"0", "-1", "128", "4096", "2147483648", "9223372036854775807", "1e999"};
        input.insert(at, numbers[random() % std::size(numbers)]);
      }
    }
  }
  return input;
}

std::string RandomBytes(Random& random) {
  std::string bytes(random() % 400, 0);
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

void RunInput(const std::string& program, const std::string& input) {
  const std::string path = program + ".crash";
  std::ofstream(path, std::ios::binary) << input;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  std::remove(path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t num_inputs = 20000, seed = 1;
  bool ran_files = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--inputs" && i + 1 < argc) {
      num_inputs = std::strtoull(argv[++i], nullptr, 10);
    } else if (arg == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      std::ifstream file(arg, std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "%s: cannot read '%s'\n", argv[0], argv[i]);
        return 2;
      }
      const std::string input{std::istreambuf_iterator<char>(file), {}};
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
      ran_files = true;
    }
  }
  if (ran_files) return 0;
  const std::vector<std::string> seeds = kvrazor::fuzz::Seeds();
  for (const std::string& input : seeds) RunInput(argv[0], input);
  Random random(seed);
  for (uint64_t i = 0; i < num_inputs; ++i) {
    RunInput(argv[0], i % 16 == 15 ? RandomBytes(random) : Mutated(seeds[random() % seeds.size()], seeds, random));
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(num_inputs + seeds.size()));
  return 0;
}
