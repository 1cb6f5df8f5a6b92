#include "kvrazor/version.h"

namespace kvrazor {

const char* Version() { return KVRAZOR_VERSION; }

}  // namespace kvrazor
