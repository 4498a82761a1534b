#include "cluster/coordinator/server/expert_maps_service.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/server/caller.h"
#include "cluster/coordinator/server/grpc_status.h"
#include "cluster/coordinator/validation.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

constexpr size_t kMaxPendingWrites = 256;  // calls of Append
constexpr size_t kMaxFingerprintBytes = 256;
constexpr size_t kMessageBytes = 1 << 20;
// Added to the version with every start: what a crash took from the database
// was perhaps seen by followers, under versions that must not come again.
constexpr uint64_t kVersionsPerLife = uint64_t{1} << 32;

template <typename Request>
grpc::Status Check(const Request& request) {
  if (absl::Status known = CheckUnknownFields(request); !known.ok()) {
    return ToGrpc(known);
  }
  const size_t bytes = request.store().fingerprint().size();
  if (bytes >= 1 && bytes <= kMaxFingerprintBytes) return grpc::Status::OK;
  return ToGrpc(
      FieldError(absl::StatusCode::kInvalidArgument, "store.fingerprint",
                 absl::StrCat("has ", bytes, " bytes; it must be 1 .. ",
                              kMaxFingerprintBytes)));
}

// What a row takes while it waits: small ones are mostly their own struct.
size_t PendingBytes(std::string_view key, std::string_view map) {
  return sizeof(SharedMaps::Row) + key.size() + map.size();
}

SharedMapsKey KeyOf(const v1::ExpertMapKey& key) {
  return {.fingerprint = key.fingerprint(), .format = key.format()};
}

}  // namespace

// One stream. The members are guarded by the service's lock, except `message_`
// between the decision to write and the end of that write, when it belongs to
// gRPC. While `writing_` the stream does not finish, so that a follower whose
// write is decided is still there when it starts.
class ExpertMapsService::Follower final
    : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  Follower(ExpertMapsService& service, SharedMapsKey key, uint64_t version)
      : service_(service), key_(std::move(key)), version_(version) {}

  // True if there is a message to be written by Write(), outside the lock.
  bool PrepareNext(const SharedMaps& maps) {
    if (writing_ || ending_) return false;
    if (!target_) {
      if (synced_ && version_ == maps.version()) return false;
      Begin(maps);
    }
    FillMessage(maps);
    writing_ = true;
    return true;
  }
  void Write() {
    bytes_ = ToBytes(message_);
    StartWrite(&bytes_);
  }

  // True if Finish() must be called now, outside the lock.
  bool End() {
    ending_ = true;
    return !writing_ && !std::exchange(finished_, true);
  }

  void OnWriteDone(bool ok) override {
    bool write = false;
    bool finish = false;
    {
      MutexLock lock(service_.mu_);
      writing_ = false;
      if (!ok || ending_ || service_.stopping_) {
        finish = End();
      } else {
        write = PrepareNext(*service_.stores_.at(key_).maps);
      }
    }
    if (write) Write();
    if (finish) FinishUnavailable();
  }

  void OnCancel() override {
    bool finish = false;
    {
      MutexLock lock(service_.mu_);
      finish = End();
    }
    if (finish) FinishUnavailable();
  }

  void OnDone() override {
    {
      MutexLock lock(service_.mu_);
      const auto store = service_.stores_.find(key_);
      if (store != service_.stores_.end()) store->second.followers.erase(this);
      service_.PublishStats();
      // Under the lock: the service may end once the last one is gone.
      service_.written_or_stopping_.NotifyAll();
    }
    delete this;
  }

  // Instead of anything else.
  void Refuse(const grpc::Status& status) {
    {
      MutexLock lock(service_.mu_);
      ending_ = true;
      finished_ = true;
    }
    Finish(status);
  }

  void FinishUnavailable() {
    Finish({grpc::StatusCode::UNAVAILABLE, "the coordinator ends"});
  }

 private:
  void Begin(const SharedMaps& maps) {
    SharedMaps::Delta delta = maps.Since(version_);
    target_ = maps.version();
    snapshot_ = delta.snapshot;
    added_ = std::move(delta.added);
    removed_ = std::move(delta.removed);
    next_ = 0;
  }

  void FillMessage(const SharedMaps& maps) {
    message_.Clear();
    message_.set_version(*target_);
    message_.set_capacity(static_cast<uint32_t>(maps.options().max_rows));
    message_.set_snapshot_begin(std::exchange(snapshot_, false));
    for (const uint64_t id : std::exchange(removed_, {})) {
      message_.add_removed_ids(id);
    }
    size_t bytes = 0;
    for (; next_ < added_.size() && bytes < kMessageBytes; ++next_) {
      const SharedMaps::Row* row = maps.Find(added_[next_]);
      if (row == nullptr) continue;  // gone since; the next delta may say so
      v1::ExpertMapRow* out = message_.add_added();
      out->set_id(row->id);
      out->set_key(row->key);
      out->set_map(row->map);
      bytes += row->key.size() + row->map.size();
    }
    if (next_ < added_.size()) return;
    message_.set_complete(true);
    version_ = *target_;
    target_.reset();
    synced_ = true;
  }

  ExpertMapsService& service_;
  const SharedMapsKey key_;
  uint64_t version_;
  bool synced_ = false;  // it was told so once
  // The delta in work leads to `target_`.
  std::optional<uint64_t> target_;
  bool snapshot_ = false;
  std::vector<uint64_t> removed_;
  std::vector<uint64_t> added_;
  size_t next_ = 0;
  bool writing_ = false;
  bool ending_ = false;
  bool finished_ = false;
  v1::ExpertMapUpdate message_;
  grpc::ByteBuffer bytes_;
};

absl::StatusOr<std::unique_ptr<ExpertMapsService>> ExpertMapsService::Create(
    Options options, std::string& notice) {
  std::unique_ptr<ExpertMapsService> service(
      new ExpertMapsService(std::move(options)));
  if (!service->options_.database.empty()) {
    PORTOLAN_RETURN_IF_ERROR(service->LoadDatabase(notice));
    service->writer_ = std::thread([raw = service.get()] { raw->WriteLoop(); });
  }
  return service;
}

absl::Status ExpertMapsService::LoadDatabase(std::string& notice) {
  PORTOLAN_ASSIGN_OR_RETURN(
      database_, SharedMapsDatabase::Open(options_.database, notice));
  PORTOLAN_ASSIGN_OR_RETURN(auto rows, database_->Load());
  std::map<SharedMapsKey, std::vector<uint64_t>> ids;
  for (const auto& stored : rows) ids[stored.store].push_back(stored.row.id);
  MutexLock lock(mu_);
  for (const auto& [key, rising] : ids) {
    const uint64_t life = rising.back() / kVersionsPerLife + 1;
    stores_[key].maps =
        std::make_unique<SharedMaps>(options_.store, life * kVersionsPerLife);
  }
  for (auto& stored : rows) {
    stores_[stored.store].maps->Restore(std::move(stored.row));
  }
  for (auto& [key, store] : stores_) {
    store.maps->Trim();
    std::erase_if(ids[key], [&maps = store.maps](uint64_t id) {
      return maps->Find(id) != nullptr;
    });
    if (ids[key].empty()) continue;
    const absl::Status removed = database_->Apply(key, {}, ids[key]);
    if (removed.ok()) continue;
    notice = absl::StrCat(
        options_.database, " keeps ", ids[key].size(),
        " expert maps too many until the next start: ", removed.message());
  }
  PublishStats();
  return absl::OkStatus();
}

ExpertMapsService::~ExpertMapsService() {
  EndStreams();
  {
    // Those whose last write is under way.
    MutexLock lock(mu_);
    const auto followed = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return std::ranges::any_of(stores_, [](const auto& store) {
        return !store.second.followers.empty();
      });
    };
    while (followed()) written_or_stopping_.Wait(mu_);
  }
  if (writer_.joinable()) writer_.join();
}

void ExpertMapsService::EndStreams() {
  std::vector<Follower*> finish;
  {
    MutexLock lock(mu_);
    stopping_ = true;
    for (auto& [key, store] : stores_) {
      for (Follower* follower : store.followers) {
        if (follower->End()) finish.push_back(follower);
      }
    }
    written_or_stopping_.NotifyAll();
  }
  for (Follower* follower : finish) follower->FinishUnavailable();
}

ExpertMapsService::Store* ExpertMapsService::FindOrAddStore(
    const SharedMapsKey& key) {
  const auto found = stores_.find(key);
  if (found != stores_.end()) return &found->second;
  if (stores_.size() >= options_.max_stores) return nullptr;
  Store& store = stores_[key];
  store.maps = std::make_unique<SharedMaps>(options_.store, kVersionsPerLife);
  return &store;
}

template <typename Request>
grpc::Status ExpertMapsService::Enter(grpc::CallbackServerContext& context,
                                      const grpc::ByteBuffer& bytes,
                                      Request& request) const {
  if (authorize_) {
    if (grpc::Status status = authorize_(context, bytes); !status.ok()) {
      return status;
    }
  }
  if (absl::Status read = FromBytes(bytes, request); !read.ok()) {
    return ToGrpc(read);
  }
  return Check(request);
}

grpc::ServerUnaryReactor* ExpertMapsService::Append(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::AppendExpertMapsRequest message;
  v1::AppendExpertMapsResponse answer;
  std::vector<Follower*> woken;
  grpc::Status status = Enter(*context, *request, message);
  if (status.ok()) status = Take(message, answer, woken);
  for (Follower* follower : woken) follower->Write();
  *response = ToBytes(answer);
  reactor->Finish(status);
  return reactor;
}

grpc::Status ExpertMapsService::Take(const v1::AppendExpertMapsRequest& request,
                                     v1::AppendExpertMapsResponse& response,
                                     std::vector<Follower*>& woken) {
  const SharedMapsKey key = KeyOf(request.store());
  std::vector<SharedMaps::NewRow> rows;
  size_t bytes = 0;
  for (const v1::ExpertMapRow& row : request.rows()) {
    rows.push_back({row.key(), row.map()});
    bytes += PendingBytes(row.key(), row.map());
  }
  const std::vector<uint64_t> useful(request.useful_ids().begin(),
                                     request.useful_ids().end());
  MutexLock lock(mu_);
  if (stopping_) return {grpc::StatusCode::UNAVAILABLE, "draining"};
  if (grpc::Status status = CheckPending(bytes); !status.ok()) return status;
  Store* const store = FindOrAddStore(key);
  if (store == nullptr) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            absl::StrCat("store: expert maps of ", options_.max_stores,
                         " models are kept already")};
  }
  if (options_.while_searching) options_.while_searching();
  const auto change = store->maps->Append(rows, useful);
  if (!change.ok()) return ToGrpc(change.status());
  store->useful += useful.size();
  counts_.appended += change->kept;
  counts_.repeated += rows.size() - change->kept;
  counts_.dropped += request.dropped();
  PublishStats();
  response.set_version(store->maps->version());
  response.set_kept(static_cast<uint32_t>(change->kept));
  KeepOnDisk(key, *store->maps, *change);
  for (Follower* follower : store->followers) {
    if (follower->PrepareNext(*store->maps)) woken.push_back(follower);
  }
  return grpc::Status::OK;
}

grpc::Status ExpertMapsService::CheckPending(size_t bytes) const {
  if (database_ == nullptr) return grpc::Status::OK;
  if (writes_.size() >= kMaxPendingWrites) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            absl::StrCat("the coordinator is busy: ", kMaxPendingWrites,
                         " calls wait for the disk, the most that may; drop "
                         "the rows")};
  }
  // Never wraps: no more than the limit is ever taken.
  if (bytes <= options_.max_pending_bytes - pending_bytes_) {
    return grpc::Status::OK;
  }
  return {
      grpc::StatusCode::RESOURCE_EXHAUSTED,
      absl::StrCat("the coordinator is busy: rows of ",
                   FormatBytes(pending_bytes_), " wait for the disk, so that ",
                   FormatBytes(bytes), " more would exceed the limit of ",
                   FormatBytes(options_.max_pending_bytes), "; drop the rows")};
}

void ExpertMapsService::KeepOnDisk(const SharedMapsKey& key,
                                   const SharedMaps& maps,
                                   const SharedMaps::Change& change) {
  if (database_ == nullptr || change.added.empty()) return;
  Write write{.store = key, .added = {}, .removed = change.removed};
  for (const uint64_t id : change.added) {
    const SharedMaps::Row* row = maps.Find(id);
    if (row == nullptr) continue;
    write.bytes += PendingBytes(row->key, row->map);
    write.added.push_back(*row);
  }
  pending_bytes_ += write.bytes;
  writes_.push_back(std::move(write));
  written_or_stopping_.NotifyAll();
}

void ExpertMapsService::WriteLoop() {
  bool complained = false;
  while (true) {
    Write write;
    {
      MutexLock lock(mu_);
      while (writes_.empty() && !stopping_) written_or_stopping_.Wait(mu_);
      if (writes_.empty()) return;
      write = std::move(writes_.front());
      writes_.pop_front();
    }
    if (options_.before_writing) options_.before_writing();
    const absl::Status status =
        database_->Apply(write.store, write.added, write.removed);
    // The rows go before their bytes are free for others.
    const size_t bytes = std::exchange(write, {}).bytes;
    {
      MutexLock lock(mu_);
      pending_bytes_ -= bytes;
    }
    if (!status.ok() && !std::exchange(complained, true)) {
      std::fprintf(stderr, "warning: %s; new history is not kept\n",
                   status.ToString().c_str());
    }
  }
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ExpertMapsService::Follow(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  v1::FollowExpertMapsRequest message;
  grpc::Status status = Enter(*context, *request, message);
  const SharedMapsKey key = KeyOf(message.store());
  auto* const follower = new Follower(*this, key, message.from_version());
  bool write = false;
  {
    MutexLock lock(mu_);
    Store* const store = status.ok() ? FindOrAddStore(key) : nullptr;
    if (status.ok() && store == nullptr) {
      status = {grpc::StatusCode::RESOURCE_EXHAUSTED,
                absl::StrCat("store: expert maps of ", options_.max_stores,
                             " models are kept already")};
    }
    if (stopping_) {
      status = {grpc::StatusCode::UNAVAILABLE, "the coordinator ends"};
    }
    if (status.ok()) {
      store->followers.insert(follower);
      PublishStats();
      write = follower->PrepareNext(*store->maps);
    }
  }
  if (write) follower->Write();
  if (!status.ok()) follower->Refuse(status);
  return follower;
}

void ExpertMapsService::PublishStats() {
  Stats stats = counts_;
  for (const auto& [key, store] : stores_) {
    stats.stores.push_back({.store = key,
                            .rows = store.maps->size(),
                            .bytes = store.maps->bytes(),
                            .useful = store.useful});
    stats.followers += store.followers.size();
  }
  MutexLock lock(stats_mu_);
  published_ = std::move(stats);
}

ExpertMapsService::Stats ExpertMapsService::stats() const {
  MutexLock lock(stats_mu_);
  return published_;
}

}  // namespace portolan
