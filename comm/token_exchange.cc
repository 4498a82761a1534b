#include "comm/token_exchange.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/agreement.h"
#include "comm/peer_errors.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"
#include "runtime/base/thread_pool.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

// Long enough for peers that still compute to be passed by: an abort fits into
// any transport's own buffers.
constexpr absl::Duration kAbortTimeout = absl::Seconds(2);

// Less would blame a rank for the time that another one has used up.
constexpr absl::Duration kLeastWait = absl::Seconds(1);

size_t RoundUp(size_t value, size_t to) { return (value + to - 1) / to * to; }

absl::Status CheckOwner(const ExchangeOptions& options, const OwnerTable& owner,
                        int world_size) {
  if (owner.size() != static_cast<size_t>(options.num_layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("placement of ", owner.size(), " layers for a model with ",
                     options.num_layers));
  }
  for (size_t layer = 0; layer < owner.size(); ++layer) {
    const bool fits =
        owner[layer].size() == static_cast<size_t>(options.num_experts) &&
        std::all_of(owner[layer].begin(), owner[layer].end(), [&](Rank rank) {
          return ToIndex(rank) >= 0 && ToIndex(rank) < world_size;
        });
    if (!fits) {
      return absl::InvalidArgumentError(absl::StrCat(
          "placement of layer ", layer, " does not name a rank below ",
          world_size, " for each of ", options.num_experts, " experts"));
    }
  }
  return absl::OkStatus();
}

uint64_t DigestOf(const OwnerTable& owner) {
  uint64_t digest = Digest({});
  for (const auto& layer : owner) {
    digest = Digest(std::as_bytes(std::span(layer)), digest);
  }
  return digest;
}

uint64_t DigestOf(std::span<const int32_t> values, int32_t last) {
  const uint64_t digest = Digest(std::as_bytes(values));
  return Digest(std::as_bytes(std::span(&last, 1)), digest);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenExchange>> TokenExchange::Create(
    Transport& transport, ExchangeOptions options, OwnerTable owner) {
  PORTOLAN_RETURN_IF_ERROR(options.Validate());
  PORTOLAN_RETURN_IF_ERROR(CheckOwner(options, owner, transport.world_size()));
  if (RoundTokens(options, transport.world_size()) < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "exchange buffers of ", options.buffer_bytes,
        " bytes do not hold one token of each of ", transport.world_size(),
        " ranks; allow ", MinBufferBytes(options, transport.world_size()),
        " or more by --exchange-memory"));
  }
  std::unique_ptr<TokenExchange> exchange(
      new TokenExchange(transport, std::move(options), std::move(owner)));
  PORTOLAN_RETURN_IF_ERROR(exchange->AgreeWithAll());
  PORTOLAN_RETURN_IF_ERROR(exchange->AllocateMessages());
  return exchange;
}

TokenExchange::TokenExchange(Transport& transport, ExchangeOptions options,
                             OwnerTable owner)
    : transport_(transport),
      options_(std::move(options)),
      owner_(std::move(owner)),
      world_(static_cast<size_t>(transport.world_size())),
      self_(static_cast<size_t>(ToIndex(transport.rank()))),
      round_tokens_(RoundTokens(options_, transport.world_size())),
      records_(world_),
      load_us_(world_),
      send_(world_),
      recv_(world_),
      received_(world_),
      peer_rounds_(world_),
      incoming_(world_),
      in_row_begin_(world_ + 1),
      in_begin_(world_ + 1),
      terms_(static_cast<size_t>(options_.top_k) *
             static_cast<size_t>(
                 options_.pool == nullptr ? 1 : options_.pool->num_threads())),
      hints_(owner_, transport.world_size(), transport.rank(),
             options_.hint_distances, options_.step_hint_layers) {}

TokenExchange::~TokenExchange() {
  if (broken_.ok()) return;
  for (AlignedBuffer* buffer : {&out_messages_, &in_messages_, &out_rows_,
                                &in_rows_, &results_, &sums_, &returned_}) {
    KeepUntilExit(std::move(*buffer));
  }
}

absl::Status TokenExchange::AgreeWithAll() {
  constexpr absl::string_view kModel = "start every rank with the same model";
  constexpr absl::string_view kFlags = "start every rank with the same flags";
  const ExchangeOptions& o = options_;
  const auto number = [](int64_t value) {
    return static_cast<uint64_t>(value);
  };
  const auto counted = [&](absl::string_view name, int64_t value,
                           absl::string_view remedy) {
    return AgreedField{name, number(value), remedy, absl::StrCat(value)};
  };
  const bool exact = o.combine == CombineMode::kExact;
  const AgreedField fields[] = {
      counted("protocol version", kProtocolVersion,
              "install one version everywhere"),
      {"job and restart", o.epoch, "restart all ranks of the job together",
       o.described.epoch},
      {"model", o.model_fingerprint, kModel, o.described.model},
      {"numerics (--weights, --dense-weights, --activations)", o.numerics_id,
       "start every rank with the same model, weight format and activations",
       o.described.numerics},
      counted("number of MoE layers", o.num_layers, kModel),
      counted("number of experts", o.num_experts, kModel),
      counted("top-k", o.top_k, kModel),
      counted("row size", o.row_bytes, kModel),
      counted("hidden size", o.hidden, kModel),
      {"--combine", exact, kFlags, exact ? "exact" : "reduced"},
      {"--exchange-memory and --tokens-per-step", number(round_tokens_), kFlags,
       absl::StrCat(FormatBytes(number(o.buffer_bytes)), " and ",
                    o.max_round_tokens)},
      counted("eager limit", o.eager_bytes, kFlags),
      {"hints (--policy, --prefetch-distance)",
       DigestOf(o.hint_distances, o.step_hint_layers), kFlags,
       o.described.hints},
      {"expert placement", DigestOf(owner_), kFlags},
  };
  return Agree(transport_, fields, options_.start_timeout);
}

absl::Status TokenExchange::AllocateMessages() {
  const size_t longest =
      sizeof(MessageHeader) + sizeof(StepFields) +
      HintBytes(hints_.max_values()) +
      SelectionBytes(int64_t{round_tokens_} * options_.top_k) +
      static_cast<size_t>(options_.eager_bytes);
  message_bytes_ = RoundUp(longest, 64);
  for (AlignedBuffer* buffer : {&out_messages_, &in_messages_}) {
    PORTOLAN_ASSIGN_OR_RETURN(*buffer,
                              AlignedBuffer::Allocate(world_ * message_bytes_));
  }
  return absl::OkStatus();
}

absl::Status TokenExchange::Reserve(AlignedBuffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size()) >= bytes) return absl::OkStatus();
  buffer = AlignedBuffer();  // first give back, then ask for more
  PORTOLAN_ASSIGN_OR_RETURN(
      buffer, AlignedBuffer::Allocate(
                  RoundUp(static_cast<size_t>(bytes), size_t{64} << 10)));
  return absl::OkStatus();
}

size_t TokenExchange::HintBytes(size_t values) {
  return RoundUp(values * sizeof(Fp16), 8);
}

size_t TokenExchange::SelectionBytes(int64_t selections) const {
  const bool weights = options_.combine == CombineMode::kReduced;
  return static_cast<size_t>(selections) *
         (2 * sizeof(int32_t) + (weights ? sizeof(float) : 0));
}

void TokenExchange::ClearMessages() {
  std::fill(send_.begin(), send_.end(), std::span<const std::byte>());
  std::fill(recv_.begin(), recv_.end(), std::span<std::byte>());
}

std::string TokenExchange::Name(size_t rank) const {
  const Rank r{static_cast<int32_t>(rank)};
  return absl::StrCat("rank ", rank, " on ", transport_.host(r));
}

int32_t TokenExchange::NameOf(int layer) const {
  return layer < 0 || options_.layer_names.empty()
             ? layer
             : options_.layer_names[static_cast<size_t>(layer)];
}

MessageHeader TokenExchange::Header(MessageKind kind, int layer) const {
  return MessageHeader{.kind = kind,
                       .epoch = options_.epoch,
                       .step = step_,
                       .layer = NameOf(layer),
                       .round = round_,
                       .placement_version = placement_version_};
}

WaitContext TokenExchange::Context(ExchangePhase phase, int layer) const {
  return WaitContext{
      .phase = ToString(phase),
      .step = step_,
      .layer = NameOf(layer),
      .timeout = std::max(step_deadline_ - SteadyNow(), kLeastWait)};
}

void TokenExchange::Enter(ExchangePhase phase, int layer) {
  phase_ = phase;
  layer_ = layer;
  transport_.Note(Context(phase, layer));
  if (!options_.phase_hook) return;
  const std::span<const std::byte> next = send_[(self_ + 1) % world_];
  // All messages lie in buffers of this object.
  options_.phase_hook(
      PhaseEvent{phase,
                 step_,
                 NameOf(layer),
                 {const_cast<std::byte*>(next.data()), next.size()}});
}

absl::Status TokenExchange::Exchange(ExchangePhase phase, int layer) {
  Enter(phase, layer);
  return Transfer(phase, layer);
}

absl::Status TokenExchange::Transfer(ExchangePhase phase, int layer) {
  absl::Status status =
      transport_.AllToAllAny(send_, recv_, received_, Context(phase, layer));
  // A peer's own reason says more than the end of the wait that it caused.
  if (absl::Status abort = FindAbort(); !abort.ok()) {
    peer_aborted_ = true;
    return abort;
  }
  return status;
}

absl::Status TokenExchange::ExchangeExact(ExchangePhase phase, int layer,
                                          bool enter) {
  if (enter) Enter(phase, layer);
  PORTOLAN_RETURN_IF_ERROR(Transfer(phase, layer));
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_ || recv_[peer].empty()) continue;
    PORTOLAN_RETURN_IF_ERROR(Blame(peer, CheckSize(peer, recv_[peer].size())));
  }
  return absl::OkStatus();
}

absl::Status TokenExchange::FindAbort() const {
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_ || received_[peer] > kMaxAbortBytes) continue;
    if (auto abort =
            DecodeAbort(recv_[peer].first(received_[peer]), Name(peer))) {
      return *abort;
    }
  }
  return absl::OkStatus();
}

absl::Status TokenExchange::Break(absl::Status status) {
  broken_ = std::move(status);
  if (!peer_aborted_) SendAborts(broken_);
  return broken_;
}

void TokenExchange::SendAborts(const absl::Status& status) {
  const auto message = Message(out_messages_, self_);
  const size_t size =
      EncodeAbort(Header(MessageKind::kAbort, layer_), phase_, status, message);
  for (size_t peer = 0; peer < world_; ++peer) {
    send_[peer] = peer == self_ ? message.first(0) : message.first(size);
    recv_[peer] = {};
  }
  // Peers that cannot be told this way see this rank leave.
  (void)transport_.AllToAllAny(
      send_, recv_, received_,
      WaitContext{.phase = "abort", .step = step_, .timeout = kAbortTimeout});
}

void TokenExchange::Abort(const absl::Status& status) {
  PORTOLAN_CHECK(!status.ok());
  if (broken_.ok()) (void)Break(status);
}

absl::StatusOr<std::span<const StepRecord>> TokenExchange::BeginStep(
    const StepRecord& mine, std::span<const Fp16> hints) {
  const ProfileScope zone(options_.profile, Zone::kStepRecord);
  if (broken_.ok() && !mine.abort.ok()) (void)Break(mine.abort);
  if (!broken_.ok()) return broken_;
  if (absl::Status status = DoBeginStep(mine, hints); !status.ok()) {
    return Break(std::move(status));
  }
  return records_;
}

absl::Status TokenExchange::DoBeginStep(const StepRecord& mine,
                                        std::span<const Fp16> hints) {
  ++step_;
  round_ = 0;
  placement_version_ = mine.placement_version;
  step_deadline_ = SteadyNow() + options_.step_timeout;
  ClearMessages();
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer != self_) WriteStepRecord(peer, mine, hints);
  }
  PORTOLAN_RETURN_IF_ERROR(KeepOwnHints(-1, hints));
  PORTOLAN_RETURN_IF_ERROR(Exchange(ExchangePhase::kStepRecord, -1));
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_) continue;
    PORTOLAN_RETURN_IF_ERROR(Blame(peer, ReadStepRecord(peer)));
  }
  records_[self_] = mine;
  load_us_[self_] = absl::ToInt64Microseconds(options_.expert_load_time);
  step_deadline_ += TimeForStep();
  return absl::OkStatus();
}

// Beyond step_timeout. A row of any rank may need its experts of any other; an
// expert may be loaded again in every round, and in every step, for what is
// resident now may be evicted before its layer comes.
absl::Duration TokenExchange::TimeForStep() const {
  int64_t rows = 0, rounds = 1;
  for (const StepRecord& record : records_) {
    rows += record.rows_planned;
    rounds = std::max(
        rounds, (record.rows_planned + round_tokens_ - 1) / round_tokens_);
  }
  absl::Duration loads;
  for (size_t rank = 0; rank < world_; ++rank) {
    if (load_us_[rank] == 0) continue;
    int64_t experts = 0;
    for (int layer = 0; layer < options_.num_layers; ++layer) {
      experts += std::min<int64_t>(rows * options_.top_k,
                                   hints_.num_owned(layer, rank));
    }
    loads += absl::Microseconds(load_us_[rank]) * (experts * rounds);
  }
  return options_.timeout_per_row * rows + loads;
}

void TokenExchange::WriteStepRecord(size_t peer, const StepRecord& mine,
                                    std::span<const Fp16> hints) {
  const auto message = Message(out_messages_, peer);
  MessageHeader header = Header(MessageKind::kStep, -1);
  const StepFields fields{
      .rows_planned = mine.rows_planned,
      .load_us = absl::ToInt64Microseconds(options_.expert_load_time),
      .has_work = mine.has_work,
      .drain = mine.drain,
      .has_output = mine.has_output};
  std::byte* end = message.data() + sizeof(header);
  std::memcpy(end, &fields, sizeof(fields));
  end += sizeof(fields);
  const std::span<Fp16> values(reinterpret_cast<Fp16*>(end),
                               hints_.max_values());
  const size_t count = hints_.Write(hints, -1, peer, values);
  header.hints = static_cast<int32_t>(count);
  std::memcpy(message.data(), &header, sizeof(header));
  end += HintBytes(count);
  send_[peer] = message.first(static_cast<size_t>(end - message.data()));
  recv_[peer] = Message(in_messages_, peer);
}

absl::Status TokenExchange::ReadStepRecord(size_t peer) {
  MessageHeader want = Header(MessageKind::kStep, -1);
  PORTOLAN_ASSIGN_OR_RETURN(MessageHeader got, ReadHeader(peer));
  want.placement_version = got.placement_version;  // each rank reports its own
  PORTOLAN_RETURN_IF_ERROR(CheckHeader(got, want));
  StepFields fields;
  const size_t fixed = sizeof(got) + sizeof(fields);
  PORTOLAN_RETURN_IF_ERROR(
      CheckSize(peer, fixed + HintBytes(static_cast<size_t>(got.hints))));
  std::memcpy(&fields, recv_[peer].data() + sizeof(got), sizeof(fields));
  PORTOLAN_RETURN_IF_ERROR(CheckStepFields(fields));
  load_us_[peer] = fields.load_us;
  records_[peer] = StepRecord{.has_work = fields.has_work != 0,
                              .drain = fields.drain != 0,
                              .rows_planned = fields.rows_planned,
                              .has_output = fields.has_output != 0,
                              .placement_version = got.placement_version};
  return hints_.Read(-1, peer,
                     {reinterpret_cast<const Fp16*>(recv_[peer].data() + fixed),
                      static_cast<size_t>(got.hints)});
}

absl::StatusOr<MessageHeader> TokenExchange::ReadHeader(size_t peer) const {
  MessageHeader header;
  if (received_[peer] < sizeof(header)) {
    return absl::InternalError(
        absl::StrCat("sent ", received_[peer], " bytes, less than a header"));
  }
  std::memcpy(&header, recv_[peer].data(), sizeof(header));
  return header;
}

absl::Status TokenExchange::CheckSize(size_t peer, size_t want) const {
  if (received_[peer] == want) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "sent ", received_[peer], " bytes where this rank expects ", want));
}

// Who sent what does not fit, and where this rank was.
absl::Status TokenExchange::Blame(size_t peer,
                                  const absl::Status& status) const {
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat(Name(peer), " ", status.message(), ", seen by ", Name(self_),
                   Describe(Context(phase_, layer_))));
}

absl::Status TokenExchange::KeepOwnHints(int layer,
                                         std::span<const Fp16> hints) {
  const std::span<Fp16> values(
      reinterpret_cast<Fp16*>(Message(out_messages_, self_).data()),
      hints_.max_values());
  return hints_.Read(layer, self_,
                     values.first(hints_.Write(hints, layer, self_, values)));
}

absl::Status TokenExchange::Run(int layer, const Routing& routing,
                                const ActivationRows& rows,
                                std::span<const Fp16> hints,
                                MatrixView<float> out, Compute compute) {
  if (!broken_.ok()) return broken_;
  PORTOLAN_CHECK(layer >= 0 && layer < options_.num_layers);
  PORTOLAN_CHECK(out.rows() == routing.num_tokens &&
                 out.cols() == options_.hidden);
  absl::Status status = DoRun(layer, routing, rows, hints, out, compute);
  return status.ok() ? status : Break(std::move(status));
}

}  // namespace portolan
