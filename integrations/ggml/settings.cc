#include "integrations/ggml/settings.h"

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "kvrazor/error.h"
#include "kvrazor/recipe_json.h"

namespace kvrazor::ggml {
namespace {

std::mutex g_mutex;
std::shared_ptr<const Settings> g_settings = std::make_shared<Settings>();
thread_local std::shared_ptr<const Settings> t_settings;

}  // namespace

std::shared_ptr<const Settings> CurrentSettings() {
  if (t_settings) return t_settings;
  const std::lock_guard lock(g_mutex);
  return g_settings;
}

void SetSettings(Settings settings) {
  auto next = std::make_shared<const Settings>(std::move(settings));
  const std::lock_guard lock(g_mutex);
  g_settings = std::move(next);
}

Settings MakeSettings(const char* recipe, bool require) {
  Settings settings;
  settings.require = require;
  const char* state = std::getenv("KVRAZOR_STATE");
  settings.rows_only = state && std::strcmp(state, "rows") == 0;
  if (std::strcmp(recipe, "off") != 0) settings.recipe = LoadRecipe(recipe);
  if (settings.recipe) RequirePackable(*settings.recipe);
  // llama.cpp names a cache's layers one by one and never says how many the model has.
  if (settings.recipe && settings.recipe->depends_on_num_layers())
    (void)settings.recipe->ForLayer(0);  // says what to do
  return settings;
}

Settings SettingsFromEnvironment(const char* fallback) {
  const char* text = std::getenv("KVRAZOR_RECIPE");
  const char* require_text = std::getenv("KVRAZOR_REQUIRE");
  const bool require = require_text && std::strcmp(require_text, "0") != 0 && *require_text;
  try {
    return MakeSettings(text && *text ? text : fallback, require);
  } catch (const Error& error) {
    Settings settings;
    settings.require = require;
    settings.error = error.what();
    return settings;
  }
}

ScopedThreadSettings::ScopedThreadSettings(Settings settings) {
  t_settings = std::make_shared<const Settings>(std::move(settings));
}

ScopedThreadSettings::~ScopedThreadSettings() { t_settings.reset(); }

}  // namespace kvrazor::ggml
