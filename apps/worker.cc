#include "apps/worker.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <iterator>
#include <optional>

#include "apps/failures.h"
#include "apps/interrupt.h"
#include "eval/model.h"

namespace kvrazor::apps {
namespace {

constexpr size_t kKeptStderrBytes = 4096;

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw Error(fmt::format("cannot make a pipe: {}.", std::strerror(errno)));
    read_end = ends[0];
    write_end = ends[1];
  }
  ~Pipe() {
    CloseRead();
    CloseWrite();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void CloseRead() { Close(read_end); }
  void CloseWrite() { Close(write_end); }

 private:
  static void Close(int& fd) {
    if (fd >= 0) close(fd);
    fd = -1;
  }
};

// Kills and reaps the worker unless it has been waited for.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  ~Child() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    Wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  int Wait() {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_;
};

pid_t Spawn(const Pipe& in, const Pipe& out, const Pipe& err, int inherited_fd) {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) throw Error(fmt::format("cannot start a worker process: {}.", std::strerror(errno)));
  if (pid > 0) return pid;
  // Only async-signal-safe calls from here to exec.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kExitFailed);
  setpgid(0, 0);  // Ctrl-C reaches the parent only, which ends the worker
  dup2(in.read_end, STDIN_FILENO);
  dup2(out.write_end, STDOUT_FILENO);
  dup2(err.write_end, STDERR_FILENO);
  if (inherited_fd >= 0) fcntl(inherited_fd, F_SETFD, 0);
  char name[] = "kvrazor", command[] = "worker";
  char* const arguments[] = {name, command, nullptr};
  execv("/proc/self/exe", arguments);
  _exit(127);
}

void WriteAll(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR && !WasInterrupted()) continue;
    if (n <= 0) return;  // a worker that no longer reads has died: its status says why
    done += static_cast<size_t>(n);
  }
}

// Splits what arrives into lines; returns false at the end of the stream.
bool ReadInto(int fd, std::string& buffer) {
  std::array<char, 65536> chunk;
  const ssize_t n = read(fd, chunk.data(), chunk.size());
  if (n < 0 && errno == EINTR) return true;
  if (n <= 0) return false;
  buffer.append(chunk.data(), static_cast<size_t>(n));
  return true;
}

[[noreturn]] void Rethrow(const Json& event) {
  const std::string message = event.at("message");
  switch (event.at("status").get<int>()) {
    case kExitUsage: throw UsageError(message);
    case kExitRequirement: throw RequirementError(message);
    default: throw Error(message);
  }
}

std::string DescribeDeath(int status, const std::string& stderr_text) {
  const std::string how =
      WIFSIGNALED(status) ? fmt::format("was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))
                          : fmt::format("ended with status {}", WEXITSTATUS(status));
  const std::string hint = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL
                               ? " Out of memory is the usual reason: try a shorter context (-c)."
                               : "";
  return fmt::format("the worker process {} without a result.{}{}{}", how, hint,
                     stderr_text.empty() ? "" : " Its last words:\n", stderr_text);
}

}  // namespace

Json RunWorker(const Json& job, int inherited_fd, const OnProgress& progress) {
  std::signal(SIGPIPE, SIG_IGN);
  Pipe in, out, err;
  Child child(Spawn(in, out, err, inherited_fd));
  in.CloseRead();
  out.CloseWrite();
  err.CloseWrite();
  WriteAll(in.write_end, job.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  in.CloseWrite();

  std::string lines, stderr_text;
  std::optional<Json> result, error;
  while (out.read_end >= 0 || err.read_end >= 0) {
    pollfd fds[2] = {{out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}};  // a negative descriptor is skipped
    const int ready = poll(fds, 2, 500);
    ThrowIfInterrupted();
    if (ready <= 0) continue;
    if (fds[0].revents && !ReadInto(out.read_end, lines)) out.CloseRead();
    if (fds[1].revents && !ReadInto(err.read_end, stderr_text)) err.CloseRead();
    if (stderr_text.size() > 2 * kKeptStderrBytes) stderr_text.erase(0, stderr_text.size() - kKeptStderrBytes);
    for (size_t end; (end = lines.find('\n')) != std::string::npos; lines.erase(0, end + 1)) {
      const Json event = Json::parse(lines.substr(0, end));
      const std::string kind = event.at("event");
      if (kind == "progress" && progress) progress(event.at("stage"), event.at("done"), event.at("total"));
      if (kind == "result") result = event.at("value");
      if (kind == "error") error = event;
    }
  }
  const int status = child.Wait();
  ThrowIfInterrupted();
  if (error) Rethrow(*error);
  if (!result || !WIFEXITED(status) || WEXITSTATUS(status) != 0) throw Error(DescribeDeath(status, stderr_text));
  if (job.value("verbose", false)) std::fputs(stderr_text.c_str(), stderr);
  return *result;
}

int WorkerMain() {
  // Events keep the pipe for themselves: anything else that is printed goes to stderr.
  const int events = dup(STDOUT_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  const auto send = [events](const Json& event) {
    WriteAll(events, event.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  };
  const auto fail = [&send](ExitStatus status, const std::string& message) {
    send({{"event", "error"}, {"status", static_cast<int>(status)}, {"message", message}});
    return kExitOk;
  };
  const OnProgress progress = [&send](const std::string& stage, int64_t done, int64_t total) {
    send({{"event", "progress"}, {"stage", stage}, {"done", done}, {"total", total}});
  };
  try {
    const Json job = Json::parse(std::string(std::istreambuf_iterator<char>(std::cin), {}));
    eval::CaptureLogs(job.value("verbose", false));
    const std::string kind = job.at("kind");
    Json value;
    if (kind == "compare")
      value = CompareJob(job, progress);
    else if (kind == "bench")
      value = BenchJob(job, progress);
    else if (kind == "calibrate")
      value = CalibrateJob(job, progress);
    else if (kind == "accuracy")
      value = AccuracyJob(job, progress);
    else if (kind == "analyze")
      value = AnalyzeJob(job, progress);
    else if (kind == "answers")
      value = AnswersJob(job, progress);
    else if (kind == "explain")
      value = ExplainJob(job, progress);
    else
      throw UsageError("worker: unknown kind of job '" + kind +
                       "'. The worker is started by the other commands, not by people.");
    send({{"event", "result"}, {"value", value}});
    return kExitOk;
  } catch (const UsageError& e) {
    return fail(kExitUsage, e.what());
  } catch (const RequirementError& e) {
    return fail(kExitRequirement, e.what());
  } catch (const eval::NotPackedError& e) {
    return fail(kExitRequirement, e.what());
  } catch (const std::exception& e) {
    return fail(kExitFailed, e.what());
  }
}

}  // namespace kvrazor::apps
