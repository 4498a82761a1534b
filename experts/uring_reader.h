#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/file_reader.h"

namespace portolan {

// FileReader by io_uring.
class UringReader final : public FileReader {
 public:
  // Errors: kUnimplemented if the kernel, a container or a limit refuses it.
  static absl::StatusOr<std::unique_ptr<FileReader>> Create(int depth);
  ~UringReader() override;

  std::string_view name() const override { return "io_uring"; }
  int depth() const override { return depth_; }
  void Submit(const FileRead& read) override;
  void Wait(absl::Duration timeout, std::vector<FileReadDone>& done) override;
  void Wake() override;

 private:
  struct Ring;  // liburing's, and the event that ends a Wait()

  UringReader(int depth, std::unique_ptr<Ring> ring);

  // Has the ring complete a read of the event, so that Wake() ends a Wait().
  void ArmWake();
  void SubmitAll();
  // Takes all completions that are there; false if there was none at all.
  bool Reap(std::vector<FileReadDone>& done);

  const int depth_;
  std::unique_ptr<Ring> ring_;
  int under_way_ = 0;
};

}  // namespace portolan
