// One function a method file; registry.cc lists them.
#pragma once

#include "kvrazor/recipe.h"

namespace kvrazor {

Method F16Method();
Method KiviMethod();
Method OscarMethod();
Method OscarKernelMethod();
Method QuarotMethod();
Method QuarotSymmetricMethod();
Method OttMethod();
Method TurboQuant2Method();
Method TurboQuant25Method();
Method TurboQuant3Method();
Method Razor2Method();
Method Razor2rMethod();
Method Razor25Method();
Method Razor3Method();
Method Razor3vMethod();
Method RotateKvMethod();

}  // namespace kvrazor
