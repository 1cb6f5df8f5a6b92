// One function a method file; registry.cc lists them.
#pragma once

#include "kvrazor/recipe.h"

namespace kvrazor {

Method F16Method();
Method KiviMethod();
Method OscarMethod();
Method Razor2Method();

}  // namespace kvrazor
