// What the next contexts use: recipe and strictness, from the environment or the C API.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kvrazor/recipe.h"

namespace kvrazor::ggml {

struct Settings {
  std::optional<Recipe> recipe;  ///< nullopt: llama.cpp's own cache
  bool require = false;          ///< a context in which a layer would stay in 16 bits is refused
  bool rows_only = false;        ///< states are saved as 16-bit rows that stock llama.cpp can read (KVRAZOR_STATE=rows)
  bool quiet = false;            ///< no lines about caches (the self-test's)
  std::string error;             ///< a recipe was asked for that could not be read: with `require` contexts are refused
};

/// Never null. A cache keeps the settings it was created with.
std::shared_ptr<const Settings> CurrentSettings();
void SetSettings(Settings settings);

/// KVRAZOR_RECIPE (text, .json path or "off") and KVRAZOR_REQUIRE; `fallback` where KVRAZOR_RECIPE is not set.
Settings SettingsFromEnvironment(const char* fallback);

/// Throws Error.
Settings MakeSettings(const char* recipe, bool require);

/// Settings for caches that this thread creates while the object lives (the start-up self-test).
class ScopedThreadSettings {
 public:
  explicit ScopedThreadSettings(Settings settings);
  ~ScopedThreadSettings();
  ScopedThreadSettings(const ScopedThreadSettings&) = delete;
  ScopedThreadSettings& operator=(const ScopedThreadSettings&) = delete;
};

}  // namespace kvrazor::ggml
