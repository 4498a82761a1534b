// RequestStore: requests, tokens and models as they come back from the disk.

#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/call_headers.h"
#include "cluster/coordinator/request_store.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

#define PORTOLAN_REQUEST_COLUMNS                                             \
  "seq, id, client, idempotency_key, request, traceparent, detached, "       \
  "model, seed, prompt_tokens, max_tokens, created_us, deadline_us, state, " \
  "attempt, deaths, numerics_id, job, rank, incarnation, params, "           \
  "first_token_us, ended_us, finish, x_request_id, assigned_us"
#define PORTOLAN_FROM_REQUESTS " FROM requests JOIN bodies USING(seq) "

absl::Time ReadTime(const SqliteQuery& row, int column) {
  return row.IsNull(column) ? absl::InfiniteFuture()
                            : absl::FromUnixMicros(row.Int(column));
}

template <typename Message>
absl::Status ReadMessage(const SqliteQuery& row, int column, int64_t seq,
                         Message& message) {
  const std::string_view bytes = row.Bytes(column);
  if (message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("request ", seq, " in --data-dir: a ",
                                          message.GetTypeName(),
                                          " is damaged"));
}

}  // namespace

absl::StatusOr<StoredRequest> RequestStore::ReadRow(const SqliteQuery& row) {
  StoredRequest stored;
  QueuedRequest& queued = stored.queued;
  queued.seq = row.Int(0);
  stored.id = row.Bytes(1);
  queued.client = row.Bytes(2);
  PORTOLAN_RETURN_IF_ERROR(ReadMessage(row, 4, queued.seq, stored.request));
  // An older program kept what came.
  stored.traceparent = SoundTraceparent(std::string(row.Bytes(5)));
  queued.detached = row.Int(6) != 0;
  queued.model = row.Bytes(7);
  stored.seed = static_cast<uint64_t>(row.Int(8));
  queued.prompt_tokens = row.Int(9);
  queued.max_tokens = row.Int(10);
  stored.created = absl::FromUnixMicros(row.Int(11));
  queued.deadline = ReadTime(row, 12);
  queued.state = static_cast<RequestState>(row.Int(13));
  queued.attempt = static_cast<int>(row.Int(14));
  queued.deaths = static_cast<int>(row.Int(15));
  queued.numerics_id = row.Bytes(16);
  queued.job = row.Bytes(17);
  queued.rank = static_cast<int>(row.Int(18));
  queued.incarnation = static_cast<uint64_t>(row.Int(19));
  if (!row.IsNull(20)) {
    PORTOLAN_RETURN_IF_ERROR(
        ReadMessage(row, 20, queued.seq, stored.params.emplace()));
  }
  stored.first_token = ReadTime(row, 21);
  stored.ended = ReadTime(row, 22);
  if (!row.IsNull(23)) {
    PORTOLAN_RETURN_IF_ERROR(
        ReadMessage(row, 23, queued.seq, stored.finish.emplace()));
  }
  stored.x_request_id = SoundRequestId(std::string(row.Bytes(24)));
  stored.assigned = ReadTime(row, 25);
  return stored;
}

absl::StatusOr<std::vector<StoredRequest>> RequestStore::ReadRows(
    SqliteQuery rows) {
  std::vector<StoredRequest> requests;
  while (rows.Next()) {
    PORTOLAN_ASSIGN_OR_RETURN(requests.emplace_back(), ReadRow(rows));
  }
  PORTOLAN_RETURN_IF_ERROR(rows.status());
  PORTOLAN_RETURN_IF_ERROR(CountTokens(requests));
  return requests;
}

absl::Status RequestStore::CountTokens(std::vector<StoredRequest>& requests) {
  for (StoredRequest& stored : requests) {
    PORTOLAN_ASSIGN_OR_RETURN(
        stored.queued.num_tokens,
        db_->Value("SELECT first + num FROM tokens WHERE seq = ?1 "
                   "ORDER BY first DESC LIMIT 1",
                   stored.queued.seq));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<StoredRequest>> RequestStore::Find(int64_t seq) {
  PORTOLAN_ASSIGN_OR_RETURN(
      std::vector<StoredRequest> found,
      ReadRows(
          db_->Query("SELECT " PORTOLAN_REQUEST_COLUMNS PORTOLAN_FROM_REQUESTS
                     "WHERE seq = ?1",
                     seq)));
  if (found.empty()) return std::nullopt;
  return std::move(found.front());
}

absl::StatusOr<std::optional<StoredRequest>> RequestStore::FindByKey(
    std::string_view client, std::string_view key) {
  PORTOLAN_ASSIGN_OR_RETURN(
      std::vector<StoredRequest> found,
      ReadRows(
          db_->Query("SELECT " PORTOLAN_REQUEST_COLUMNS PORTOLAN_FROM_REQUESTS
                     "WHERE client = ?1 AND "
                     "idempotency_key = ?2",
                     client, key)));
  if (found.empty()) return std::nullopt;
  return std::move(found.front());
}

absl::StatusOr<std::vector<StoredRequest>> RequestStore::Unfinished() {
  return ReadRows(
      db_->Query("SELECT " PORTOLAN_REQUEST_COLUMNS PORTOLAN_FROM_REQUESTS
                 "WHERE ended_us IS NULL ORDER BY seq"));
}

absl::StatusOr<std::vector<v1::TokenDelta>> RequestStore::Tokens(int64_t seq) {
  SqliteQuery rows =
      db_->Query("SELECT delta FROM tokens WHERE seq = ?1 ORDER BY first", seq);
  std::vector<v1::TokenDelta> deltas;
  while (rows.Next()) {
    PORTOLAN_RETURN_IF_ERROR(ReadMessage(rows, 0, seq, deltas.emplace_back()));
  }
  PORTOLAN_RETURN_IF_ERROR(rows.status());
  return deltas;
}

absl::StatusOr<std::vector<StoredRequest>> RequestStore::List(
    const ListFilter& filter) {
  const std::string client = filter.client.value_or("");
  SqliteQuery rows = db_->Query(
      "SELECT seq, id, client, model, seed, created_us, state, attempt, "
      "ended_us, finish, custom_id, CASE WHEN custom_id IS NULL THEN (SELECT "
      "request FROM bodies WHERE bodies.seq = requests.seq) END FROM requests "
      "WHERE seq < ?1 AND (?2 = 0 OR client = ?3) AND "
      "((?4 >> state) & 1) = 1 ORDER BY seq DESC LIMIT ?5",
      filter.before_seq, int64_t{filter.client.has_value()}, client,
      int64_t{filter.states}, filter.limit);
  std::vector<StoredRequest> requests;
  while (rows.Next()) {
    PORTOLAN_ASSIGN_OR_RETURN(requests.emplace_back(), ReadSummary(rows));
  }
  PORTOLAN_RETURN_IF_ERROR(rows.status());
  PORTOLAN_RETURN_IF_ERROR(CountTokens(requests));
  return requests;
}

absl::StatusOr<StoredRequest> RequestStore::ReadSummary(
    const SqliteQuery& row) {
  StoredRequest stored;
  QueuedRequest& queued = stored.queued;
  queued.seq = row.Int(0);
  stored.id = row.Bytes(1);
  queued.client = row.Bytes(2);
  queued.model = row.Bytes(3);
  stored.seed = static_cast<uint64_t>(row.Int(4));
  stored.created = absl::FromUnixMicros(row.Int(5));
  queued.state = static_cast<RequestState>(row.Int(6));
  queued.attempt = static_cast<int>(row.Int(7));
  stored.ended = ReadTime(row, 8);
  if (!row.IsNull(9)) {
    PORTOLAN_RETURN_IF_ERROR(
        ReadMessage(row, 9, queued.seq, stored.finish.emplace()));
  }
  if (!row.IsNull(10)) {
    stored.request.set_custom_id(std::string(row.Bytes(10)));
    return stored;
  }
  v1::GenerateRequest body;
  PORTOLAN_RETURN_IF_ERROR(ReadMessage(row, 11, queued.seq, body));
  stored.request.set_custom_id(body.custom_id());
  return stored;
}

absl::StatusOr<std::vector<v1::ModelIdentity>> RequestStore::Models() {
  SqliteQuery rows = db_->Query("SELECT identity FROM models");
  std::vector<v1::ModelIdentity> models;
  while (rows.Next()) {
    PORTOLAN_RETURN_IF_ERROR(ReadMessage(rows, 0, 0, models.emplace_back()));
  }
  PORTOLAN_RETURN_IF_ERROR(rows.status());
  return models;
}

}  // namespace portolan
