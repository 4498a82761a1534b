#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <utility>

#include "cluster/coordinator/server/caller.h"
#include "cluster/coordinator/server/grpc_status.h"
#include "cluster/coordinator/server/services.h"
#include "cluster/coordinator/validation.h"
#include "proto/inference.grpc.pb.h"

namespace portolan {
namespace {

using grpc::ByteBuffer;
using grpc::CallbackServerContext;

// Every method gets its message as bytes, which Gate::Read() reads.
using RawService = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Submit<
        v1::Inference::WithRawCallbackMethod_Watch<
            v1::Inference::WithRawCallbackMethod_Get<
                v1::Inference::WithRawCallbackMethod_List<
                    v1::Inference::WithRawCallbackMethod_Cancel<
                        v1::Inference::WithRawCallbackMethod_GetStats<
                            v1::Inference::Service>>>>>>>;

// gRPC and the hub both hold it: the hub until it called End(), gRPC until
// OnDone(), and either may be last.
class GrpcClientStream final
    : public ClientStream,
      public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  GrpcClientStream(RequestHub& hub, CallbackServerContext& context)
      : hub_(hub), context_(context) {}
  void HoldForGrpc(std::shared_ptr<GrpcClientStream> self) {
    self_ = std::move(self);
  }

  void Send(v1::GenerateResponse message) override {
    bytes_ = ToBytes(message);
    StartWrite(&bytes_);
  }
  void End(absl::Status status) override {
    AddPushback(status, context_);
    Finish(ToGrpc(status));
  }

  void OnWriteDone(bool ok) override { hub_.ClientWritten(this, ok); }
  void OnCancel() override { hub_.ClientGone(this); }
  void OnDone() override { self_.reset(); }

 private:
  RequestHub& hub_;
  CallbackServerContext& context_;
  ByteBuffer bytes_;
  std::shared_ptr<GrpcClientStream> self_;
};

class InferenceService final : public RawService {
 public:
  InferenceService(RequestHub& hub, const Gate& gate,
                   std::function<void(v1::Stats&)> complete_stats)
      : hub_(hub), gate_(gate), complete_stats_(std::move(complete_stats)) {}

  grpc::ServerWriteReactor<ByteBuffer>* Generate(
      CallbackServerContext* context, const ByteBuffer* request) override {
    return Stream(&RequestHub::Generate, context, *request);
  }
  grpc::ServerWriteReactor<ByteBuffer>* Watch(
      CallbackServerContext* context, const ByteBuffer* request) override {
    return Stream(&RequestHub::Watch, context, *request);
  }
  grpc::ServerUnaryReactor* Submit(CallbackServerContext* context,
                                   const ByteBuffer* request,
                                   ByteBuffer* response) override {
    return Unary(&RequestHub::Submit, context, *request, response);
  }
  grpc::ServerUnaryReactor* Get(CallbackServerContext* context,
                                const ByteBuffer* request,
                                ByteBuffer* response) override {
    return Unary(&RequestHub::Get, context, *request, response);
  }
  grpc::ServerUnaryReactor* List(CallbackServerContext* context,
                                 const ByteBuffer* request,
                                 ByteBuffer* response) override {
    return Unary(&RequestHub::List, context, *request, response);
  }
  grpc::ServerUnaryReactor* Cancel(CallbackServerContext* context,
                                   const ByteBuffer* request,
                                   ByteBuffer* response) override {
    return Unary(&RequestHub::Cancel, context, *request, response);
  }
  grpc::ServerUnaryReactor* GetStats(CallbackServerContext* context,
                                     const ByteBuffer* request,
                                     ByteBuffer* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto reply = ReplyTo<v1::Stats>(context, reactor, response);
    v1::GetStatsRequest message;
    absl::Status known = Enter(*context, *request, message).status();
    if (known.ok()) known = CheckUnknownFields(message);
    if (known.ok()) {
      hub_.GetStats([this, reply = std::move(reply)](
                        absl::StatusOr<v1::Stats> stats) mutable {
        if (stats.ok()) complete_stats_(*stats);
        reply(std::move(stats));
      });
    } else {
      reply(known);
    }
    return reactor;
  }

 private:
  template <typename Request>
  absl::StatusOr<Caller> Enter(CallbackServerContext& context,
                               const ByteBuffer& bytes,
                               Request& request) const {
    auto caller = gate_.Enter(context, ServiceKind::kInference);
    if (!caller.ok()) return caller;
    absl::Status read =
        gate_.Read(context, ServiceKind::kInference, bytes, request);
    if (!read.ok()) return read;
    return caller;
  }

  template <typename Request>
  GrpcClientStream* Stream(void (RequestHub::*function)(
                               Caller, Request, std::shared_ptr<ClientStream>),
                           CallbackServerContext* context,
                           const ByteBuffer& bytes) {
    const auto stream = NewStream(*context);
    Request request;
    auto caller = Enter(*context, bytes, request);
    if (caller.ok()) {
      (hub_.*function)(*std::move(caller), std::move(request), stream);
    } else {
      stream->End(std::move(caller).status());
    }
    return stream.get();
  }

  std::shared_ptr<GrpcClientStream> NewStream(CallbackServerContext& context) {
    auto stream = std::make_shared<GrpcClientStream>(hub_, context);
    stream->HoldForGrpc(stream);
    return stream;
  }

  template <typename Response>
  static RequestHub::Reply<Response> ReplyTo(CallbackServerContext* context,
                                             grpc::ServerUnaryReactor* reactor,
                                             ByteBuffer* response) {
    return [context, reactor, response](absl::StatusOr<Response> result) {
      if (result.ok()) {
        *response = ToBytes(*result);
      } else {
        AddPushback(result.status(), *context);
      }
      reactor->Finish(ToGrpc(result.status()));
    };
  }

  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Unary(
      void (RequestHub::*function)(Caller, Request,
                                   RequestHub::Reply<Response>),
      CallbackServerContext* context, const ByteBuffer& bytes,
      ByteBuffer* response) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto reply = ReplyTo<Response>(context, reactor, response);
    Request request;
    auto caller = Enter(*context, bytes, request);
    if (caller.ok()) {
      (hub_.*function)(*std::move(caller), std::move(request),
                       std::move(reply));
    } else {
      reply(std::move(caller).status());
    }
    return reactor;
  }

  RequestHub& hub_;
  const Gate& gate_;
  const std::function<void(v1::Stats&)> complete_stats_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(
    RequestHub& hub, const Gate& gate,
    std::function<void(v1::Stats&)> complete_stats) {
  return std::make_unique<InferenceService>(hub, gate,
                                            std::move(complete_stats));
}

}  // namespace portolan
