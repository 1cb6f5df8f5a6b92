#include "src/methods/method.h"

namespace kvrazor {

const std::vector<Method>& Methods() {
  static const std::vector<Method> methods = {
      F16Method(),
      KiviMethod(),
      OscarMethod(),
      Razor2Method(),
  };
  return methods;
}

}  // namespace kvrazor
