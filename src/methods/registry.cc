#include "src/methods/method.h"

namespace kvrazor {

const std::vector<Method>& Methods() {
  static const std::vector<Method> methods = {
      F16Method(),         KiviMethod(),        OscarMethod(),
      OscarKernelMethod(), QuarotMethod(),      QuarotSymmetricMethod(),
      OttMethod(),         TurboQuant2Method(), TurboQuant25Method(),
      TurboQuant3Method(), Razor2Method(),      Razor2rMethod(),
      Razor25Method(),     Razor3Method(),      Razor3vMethod(),
  };
  return methods;
}

const std::vector<Method>& ShadowMethods() {
  static const std::vector<Method> methods = {RotateKvMethod()};
  return methods;
}

}  // namespace kvrazor
