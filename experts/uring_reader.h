#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/file_reader.h"

namespace portolan {

// FileReader by io_uring. Should the kernel refuse to take reads later on (a
// limit, a filter), threads do the rest.
class UringReader final : public FileReader {
 public:
  // Errors: kUnimplemented if the kernel, a container or a limit refuses it.
  static absl::StatusOr<std::unique_ptr<FileReader>> Create(int depth);
  ~UringReader() override;

  std::string_view name() const override {
    const FileReader* const rest = rest_view_.load(std::memory_order_acquire);
    return rest == nullptr ? "io_uring" : rest->name();
  }
  int depth() const override { return depth_; }
  void Submit(const FileRead& read) override;
  void Wait(absl::Duration timeout, std::vector<FileReadDone>& done) override;
  void Wake() override;

 private:
  struct Ring;  // liburing's, and the event that ends a Wait()

  UringReader(int depth, std::unique_ptr<Ring> ring);

  // Has the ring complete a read of the event, so that Wake() ends a Wait().
  // False if the kernel refuses it.
  bool ArmWake();
  bool SubmitAll();
  // Takes all completions that are there; false if there was none at all.
  bool Reap(std::vector<FileReadDone>& done);
  // Waits for what the ring has under way and gives it up.
  void LeaveRing();

  const int depth_;
  std::unique_ptr<Ring> ring_;
  int under_way_ = 0;                    // on the ring
  std::vector<FileReadDone> last_ = {};  // of the ring that was given up
  bool refused_ = false;                 // the ring takes no more
  std::unique_ptr<FileReader> rest_;     // who then reads; else null
  std::atomic<FileReader*> rest_view_ = nullptr;  // the same, for any thread
};

}  // namespace portolan
