#include "kvrazor/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "kvrazor/error.h"

namespace kvrazor {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& text) {
  try {
    ParseRecipe(text);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(RecipeTest, EveryMethodIsValidAndPrintsAsItsName) {
  std::set<std::string> names;
  std::vector<Method> methods = Methods();
  methods.insert(methods.end(), ShadowMethods().begin(), ShadowMethods().end());
  for (const Method& m : methods) {
    EXPECT_EQ(m.name, m.recipe.name);
    EXPECT_TRUE(names.insert(m.name).second) << m.name;
    EXPECT_NO_THROW(Validate(m.recipe)) << m.name;
    EXPECT_EQ(ToText(m.recipe), m.name);
    EXPECT_EQ(ParseRecipe(m.name), m.recipe);
    EXPECT_FALSE(m.summary.empty() || m.source.empty() || m.known_limits.empty()) << m.name;
  }
}

TEST(RecipeTest, KeysBeforeRopeAreNotPackable) {
  for (const Method& m : Methods()) EXPECT_NO_THROW(RequirePackable(m.recipe)) << m.name;
  for (const char* text : {"rotatekv", "rotatekv:k4g64", "razor-2;0-1=rotatekv"}) {
    try {
      RequirePackable(ParseRecipe(text));
      ADD_FAILURE() << text;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr(text));
      EXPECT_THAT(e.what(), HasSubstr("--shadow"));
    }
  }
  Recipe wrong = ParseRecipe("rotatekv");
  wrong.v.before_rope = true;
  EXPECT_THROW(Validate(wrong), Error) << "values have no RoPE";
  wrong = ParseRecipe("oscar");
  wrong.k.before_rope = true;
  EXPECT_THROW(Validate(wrong), Error) << "per channel, rotated, with a token scale";
}

TEST(RecipeTest, OptionsReachTheirFields) {
  const Recipe r = ParseRecipe("oscar:k4g64,v2g128,residual=256,sinks=4");
  EXPECT_EQ(r.k.bits, 4);
  EXPECT_EQ(r.k.group_size, 64);
  EXPECT_EQ(r.v.bits, 2);
  EXPECT_EQ(r.v.group_size, 128);
  EXPECT_EQ(r.residual_tokens, 256);
  EXPECT_EQ(r.sink_tokens, 4);
  EXPECT_TRUE(r.k.rotate);
}

TEST(RecipeTest, TextRoundTrips) {
  for (const char* text : {"oscar", "oscar:k4", "oscar:k2g64,v2g128,residual=256,sinks=4", "razor-2:sinks=0",
                           "kivi:v4g64", "razor-2;0-1=f16", "razor-2:k4;0=f16;3-29=oscar:k4g128"}) {
    const Recipe r = ParseRecipe(text);
    EXPECT_EQ(ToText(r), text);
    EXPECT_EQ(ParseRecipe(ToText(r)), r);
  }
  EXPECT_EQ(ToText(ParseRecipe(" oscar : k2g32 , v2g32,residual=128 ")), "oscar") << "defaults are left out";
}

TEST(RecipeTest, OverridesApplyToTheirLayersOnly) {
  const Recipe r = ParseRecipe("razor-2:residual=256;0-1=f16;5=oscar");
  EXPECT_TRUE(r.ForLayer(0).is_f16());
  EXPECT_TRUE(r.ForLayer(1).is_f16());
  EXPECT_EQ(r.ForLayer(2).name, "razor-2");
  EXPECT_EQ(r.ForLayer(5).k.codec, Codec::kAffine);
  EXPECT_EQ(r.ForLayer(5).residual_tokens, 256) << "the window is one for all layers";
  EXPECT_EQ(r.ForLayer(6).k.codec, Codec::kRazorKey);
}

TEST(RecipeTest, SharesOfTheLayers) {
  const Recipe r = ParseRecipe("razor-2;0=f16;25%-50%=oscar;75%-=kivi;last1=f16");
  EXPECT_EQ(ToText(r), "razor-2;0=f16;25%-50%=oscar;75%-100%=kivi;last1=f16");
  EXPECT_EQ(ParseRecipe(ToText(r)), r);
  EXPECT_TRUE(r.depends_on_num_layers());
  EXPECT_THROW(r.ForLayer(0), Error);
  EXPECT_THROW(r.ForModel(0), Error);
  // Of 10 layers: [2.5, 5) are 3 and 4, [7.5, 10) are 8 and 9; the first that covers a layer holds.
  const Recipe ten = r.ForModel(10);
  EXPECT_FALSE(ten.depends_on_num_layers());
  EXPECT_EQ(ToText(ten), "razor-2;0=f16;3-4=oscar;8-9=kivi");
  EXPECT_EQ(ParseRecipe(ToText(ten)), ten);
  EXPECT_EQ(ToText(ParseRecipe("oscar;last2=f16;50%-100%=kivi").ForModel(5)), "oscar;3-4=f16")
      << "[2.5, 5) are 3 and 4";
  EXPECT_EQ(ToText(ParseRecipe("oscar;last9=f16").ForModel(3)), "oscar;0-2=f16");
  EXPECT_EQ(ParseRecipe("oscar;0-1=f16").ForModel(1), ParseRecipe("oscar;0-1=f16")) << "indices are left alone";
}

TEST(RecipeTest, AMethodMayHaveOverridesOfItsOwn) {
  const Recipe r = ParseRecipe("razor-2.5");
  EXPECT_EQ(ToText(r), "razor-2.5");
  EXPECT_EQ(ToText(r.ForModel(30)), "razor-2;15-29=razor-2:k3");
  EXPECT_EQ(ToText(r.ForModel(5)), "razor-2;3-4=razor-2:k3") << "[2.5, 5)";
  const Recipe own = ParseRecipe("razor-2.5:sinks=8;0-1=f16;last1=oscar");
  EXPECT_EQ(ToText(own), "razor-2.5:sinks=8;0-1=f16;last1=oscar");
  EXPECT_EQ(ParseRecipe(ToText(own)), own);
  EXPECT_EQ(ToText(own.ForModel(8)), "razor-2:sinks=8;0-1=f16;4-6=razor-2:k3;7=oscar");
  EXPECT_EQ(ParseRecipe(ToText(own.ForModel(8))), own.ForModel(8));
  EXPECT_THAT(ErrorOf("oscar;0-1=razor-2.5"), HasSubstr("no overrides of its own"));
}

TEST(RecipeTest, OutlierTokens) {
  const Recipe ott = ParseRecipe("ott");
  EXPECT_EQ(ToText(ott), "ott");
  EXPECT_EQ(ott.ForLayer(1).exact_tokens, 0);
  EXPECT_EQ(ott.ForLayer(2).exact_tokens, 5);
  EXPECT_EQ(ott.ForLayer(2).exact_extra_tokens, 32);
  for (const char* text : {"ott:exact=0", "ott:k2g128,v2g64,exact=3", "ott:exact-extra=0", "ott:exact-from=0",
                           "kivi:exact=3,exact-extra=32,exact-from=2", "razor-2:sinks=8,exact=1", "ott;0-1=f16"}) {
    EXPECT_EQ(ToText(ParseRecipe(text)), text);
    EXPECT_EQ(ParseRecipe(ToText(ParseRecipe(text))), ParseRecipe(text));
    for (const int layer : {0, 1, 2}) {
      const Recipe own = ParseRecipe(text).ForLayer(layer);
      EXPECT_NO_THROW(Validate(own)) << text;
      EXPECT_EQ(ParseRecipe(ToText(own)), own) << text;
    }
  }
  EXPECT_EQ(ParseRecipe("razor-2;0-5=ott").ForLayer(1).exact_tokens, 0) << "layers are counted from the model's first";
  EXPECT_EQ(ParseRecipe("razor-2;0-5=ott").ForLayer(5).exact_tokens, 5);
  EXPECT_EQ(ParseRecipe("kivi:exact=3,exact=0"), ParseRecipe("kivi"));
}

TEST(RecipeTest, ErrorsSayWhatIsPossible) {
  EXPECT_THAT(ErrorOf("oskar"), HasSubstr("there are f16, kivi, oscar"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("name is missing"));
  EXPECT_THAT(ErrorOf("oscar:k5"), HasSubstr("2, 3 and 4 are possible"));
  EXPECT_THAT(ErrorOf("oscar:k2g48"), HasSubstr("32, 64 and 128"));
  EXPECT_THAT(ErrorOf("razor-2:k2g32"), HasSubstr("leave the group out"));
  EXPECT_THAT(ErrorOf("oscar:residual=100"), HasSubstr("multiple of 128"));
  EXPECT_THAT(ErrorOf("oscar:residual=0"), HasSubstr("multiple of 128"));
  EXPECT_THAT(ErrorOf("oscar:sinks=129"), HasSubstr("0 to 128"));
  EXPECT_THAT(ErrorOf("f16:k2"), HasSubstr("choose a method that quantizes"));
  EXPECT_THAT(ErrorOf("f16:exact=3"), HasSubstr("all in 16 bits"));
  EXPECT_THAT(ErrorOf("kivi:exact=17"), HasSubstr("0 to 16 outlier tokens"));
  EXPECT_THAT(ErrorOf("kivi:exact-extra=32"), HasSubstr("give its size, for example exact=3"));
  EXPECT_THAT(ErrorOf("ott:exact=0,exact-from=1"), HasSubstr("give its size, for example exact=3"));
  EXPECT_THAT(ErrorOf("ott:exact-extra=5000"), HasSubstr("0 to 4096"));
  EXPECT_THAT(ErrorOf("oscar:x=1"), HasSubstr("options are"));
  EXPECT_THAT(ErrorOf("oscar;1=f16;0=f16"), HasSubstr("ascending"));
  EXPECT_THAT(ErrorOf("razor-2:v2g128"), HasSubstr("32 or 64 tokens"));
  EXPECT_THAT(ErrorOf("oscar;50%-20%=f16"), HasSubstr("FIRST%-LAST%"));
  EXPECT_THAT(ErrorOf("oscar;0%-101%=f16"), HasSubstr("FIRST%-LAST%"));
  EXPECT_THAT(ErrorOf("oscar;last0=f16"), HasSubstr("last2=f16"));
  EXPECT_THAT(ErrorOf("oscar;0-1"), HasSubstr("FIRST-LAST=METHOD"));
  EXPECT_THAT(ErrorOf("oscar;0=f16:residual=256"), HasSubstr("one for all layers"));
}

TEST(RecipeTest, MalformedTextIsAlwaysAnError) {
  for (const char* text : {":",
                           "oscar:",
                           "oscar:,",
                           "oscar:k",
                           "oscar:k2g",
                           "oscar:k2x",
                           "oscar:k-2",
                           "oscar:sinks=",
                           "oscar:sinks=1x",
                           "ott:exact",
                           "ott:exact=",
                           "ott:exact-=3",
                           "ott:exact=-3",
                           "oscar:k99999999999",
                           "oscar;=f16",
                           "oscar;0-=f16",
                           "oscar;a-b=f16",
                           "oscar:k2,",
                           "oscar;0=f16;1=oscar;0=f16",
                           "oscar;0=",
                           "oscar;-1=f16",
                           "oscar;50%=f16",
                           "oscar;50%-60=f16",
                           "oscar;last=f16",
                           "oscar;lastx=f16",
                           "oscar;%-50%=f16",
                           "oscar;10%-50%%=f16",
                           "oscar;0-1=f16;1-2=f16"}) {
    EXPECT_THROW(ParseRecipe(text), Error) << text;
  }
  EXPECT_THROW(ParseRecipe(std::string(5000, 'a')), Error);
}

}  // namespace
}  // namespace kvrazor
