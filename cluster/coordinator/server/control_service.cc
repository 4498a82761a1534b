#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <utility>

#include "cluster/coordinator/server/grpc_status.h"
#include "cluster/coordinator/server/services.h"
#include "proto/control.grpc.pb.h"

namespace portolan {
namespace {

// Held as GrpcClientStream is.
class GrpcRankStream final
    : public RankStream,
      public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  GrpcRankStream(RequestHub& hub, const Gate& gate,
                 const grpc::CallbackServerContext& context)
      : hub_(hub), gate_(gate), context_(context) {}
  void Open(std::shared_ptr<GrpcRankStream> self) {
    self_ = self;
    hub_.RankCame(std::move(self));
    StartRead(&incoming_);
  }

  void Refuse(std::shared_ptr<GrpcRankStream> self, const absl::Status& why) {
    self_ = std::move(self);
    Finish(ToGrpc(why));
  }

  void Send(v1::CoordinatorMessage message) override {
    outgoing_ = ToBytes(message);
    StartWrite(&outgoing_);
  }
  void ReadNext() override { StartRead(&incoming_); }
  void End(absl::Status status) override { Finish(ToGrpc(status)); }

  void OnReadDone(bool ok) override {
    if (!ok) return hub_.RankGone(this);
    v1::RankMessage message;
    absl::Status read =
        gate_.Read(context_, ServiceKind::kControl, incoming_, message);
    if (!read.ok()) return hub_.RankGone(this, std::move(read));
    hub_.RankSent(this, std::move(message));
  }
  void OnWriteDone(bool ok) override { hub_.RankWritten(this, ok); }
  void OnCancel() override { hub_.RankGone(this); }
  void OnDone() override { self_.reset(); }

 private:
  RequestHub& hub_;
  const Gate& gate_;
  const grpc::CallbackServerContext& context_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  std::shared_ptr<GrpcRankStream> self_;
};

class ControlService final
    : public v1::Control::WithRawCallbackMethod_Attach<v1::Control::Service> {
 public:
  ControlService(RequestHub& hub, const Gate& gate) : hub_(hub), gate_(gate) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Attach(
      grpc::CallbackServerContext* context) override {
    const auto stream = std::make_shared<GrpcRankStream>(hub_, gate_, *context);
    const auto caller = gate_.Enter(*context, ServiceKind::kControl);
    if (caller.ok()) {
      stream->Open(stream);
    } else {
      stream->Refuse(stream, caller.status());
    }
    return stream.get();
  }

 private:
  RequestHub& hub_;
  const Gate& gate_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeControlService(RequestHub& hub,
                                                  const Gate& gate) {
  return std::make_unique<ControlService>(hub, gate);
}

}  // namespace portolan
