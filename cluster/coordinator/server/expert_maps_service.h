#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "cluster/coordinator/shared_maps.h"
#include "cluster/coordinator/shared_maps_database.h"
#include "proto/expert_map.grpc.pb.h"
#include "runtime/base/mutex.h"

namespace portolan {

// The history that all ranks and jobs share (expert_map.proto): a SharedMaps
// store for each model and row format, kept in a database, followed by any
// number of ranks. Nothing here can delay or fail a request.
//
// Thread-safe. Calls run on gRPC's threads; the database is written by one
// thread of the service's own.
class ExpertMapsService final
    : public v1::ExpertMaps::WithRawCallbackMethod_Append<
          v1::ExpertMaps::WithRawCallbackMethod_Follow<
              v1::ExpertMaps::Service>> {
 public:
  struct Options {
    SharedMaps::Options store = {};
    size_t max_stores = 32;
    std::string database = {};  // file; empty: nothing is kept
    // Of rows that wait for the disk, the one that is being written included.
    // Calls that bring more are refused.
    size_t max_pending_bytes = 64 << 20;
    // Called where an Append searches, its lock held; for tests.
    std::function<void()> while_searching = {};
    // Called by the thread that writes before each write; for tests.
    std::function<void()> before_writing = {};
  };

  // Reads the database. `notice`: what the user should know, or empty.
  // Errors: the database's folder cannot be written.
  static absl::StatusOr<std::unique_ptr<ExpertMapsService>> Create(
      Options options, std::string& notice);
  ~ExpertMapsService() override;

  // Whom to let in, and with what message; everybody without it. Before the
  // server starts.
  using Authorize = std::function<grpc::Status(grpc::ServerContextBase&,
                                               const grpc::ByteBuffer&)>;
  void SetAuthorize(Authorize authorize) { authorize_ = std::move(authorize); }

  grpc::ServerUnaryReactor* Append(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Follow(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override;

  // Ends all streams with kUnavailable, those to come too. To be called before
  // the server is shut down, which waits for them.
  void EndStreams() ABSL_LOCKS_EXCLUDED(mu_);

  struct StoreStats {
    SharedMapsKey store;
    uint64_t rows = 0;
    uint64_t bytes = 0;
    uint64_t useful = 0;  // hits that ranks told of
  };
  struct Stats {
    std::vector<StoreStats> stores;
    uint64_t appended = 0;  // rows kept
    uint64_t repeated = 0;  // rows that were known
    uint64_t dropped = 0;   // rows that senders dropped, as they say
    uint64_t followers = 0;
  };
  // As of the last change. Never waits for a search or a snapshot.
  Stats stats() const ABSL_LOCKS_EXCLUDED(stats_mu_);

 private:
  class Follower;
  struct Store {
    std::unique_ptr<SharedMaps> maps;
    std::set<Follower*> followers;
    uint64_t useful = 0;
  };
  struct Write {
    SharedMapsKey store;
    std::vector<SharedMaps::Row> added;
    std::vector<uint64_t> removed;
    size_t bytes = 0;  // of `added`
  };

  explicit ExpertMapsService(Options options) : options_(std::move(options)) {}

  // Lets the call in and reads its message.
  template <typename Request>
  grpc::Status Enter(grpc::CallbackServerContext& context,
                     const grpc::ByteBuffer& bytes, Request& request) const;
  absl::Status LoadDatabase(std::string& notice);
  // nullptr if there are too many.
  Store* FindOrAddStore(const SharedMapsKey& key)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  grpc::Status Take(const v1::AppendExpertMapsRequest& request,
                    v1::AppendExpertMapsResponse& response,
                    std::vector<Follower*>& woken) ABSL_LOCKS_EXCLUDED(mu_);
  // OK if rows of so many bytes may wait for the disk beside those that do.
  grpc::Status CheckPending(size_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void KeepOnDisk(const SharedMapsKey& key, const SharedMaps& maps,
                  const SharedMaps::Change& change)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteLoop();
  // Whatever stats() tells has changed.
  void PublishStats() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_LOCKS_EXCLUDED(stats_mu_);

  const Options options_;
  Authorize authorize_;
  std::unique_ptr<SharedMapsDatabase> database_;  // of the writer once it runs

  Mutex mu_;
  CondVar written_or_stopping_;
  std::map<SharedMapsKey, Store> stores_ ABSL_GUARDED_BY(mu_);
  std::deque<Write> writes_ ABSL_GUARDED_BY(mu_);
  // Of `writes_` and of the one that is under way.
  size_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  Stats counts_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  // Taken for a copy only, so that whoever asks does not wait for `mu_`.
  mutable Mutex stats_mu_;
  Stats published_ ABSL_GUARDED_BY(stats_mu_);

  std::thread writer_;
};

}  // namespace portolan
