#include "apps/interrupt.h"

#include <csignal>

#include "apps/failures.h"

namespace kvrazor::apps {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void OnSignal(int signal) {
  if (interrupted) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  interrupted = 1;
}

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;  // no SA_RESTART: a blocking read returns and looks at the flag
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool WasInterrupted() { return interrupted != 0; }

void ThrowIfInterrupted() {
  if (WasInterrupted()) throw Interrupted();
}

}  // namespace kvrazor::apps
