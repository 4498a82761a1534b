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

using grpc::CallbackServerContext;

// gRPC and the hub both hold it: the hub until it called End(), gRPC until
// OnDone(), and either may be last.
class GrpcClientStream final
    : public ClientStream,
      public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  GrpcClientStream(RequestHub& hub, CallbackServerContext& context)
      : hub_(hub), context_(context) {}
  void HoldForGrpc(std::shared_ptr<GrpcClientStream> self) {
    self_ = std::move(self);
  }

  void Send(v1::GenerateResponse message) override {
    message_ = std::move(message);
    StartWrite(&message_);
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
  v1::GenerateResponse message_;
  std::shared_ptr<GrpcClientStream> self_;
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(RequestHub& hub, const Gate& gate,
                   std::function<void(v1::Stats&)> complete_stats)
      : hub_(hub), gate_(gate), complete_stats_(std::move(complete_stats)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      CallbackServerContext* context,
      const v1::GenerateRequest* request) override {
    const auto stream = NewStream(*context);
    auto caller = gate_.Enter(*context, ServiceKind::kInference);
    if (caller.ok()) {
      hub_.Generate(*std::move(caller), *request, stream);
    } else {
      stream->End(std::move(caller).status());
    }
    return stream.get();
  }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Watch(
      CallbackServerContext* context,
      const v1::WatchRequest* request) override {
    const auto stream = NewStream(*context);
    auto caller = gate_.Enter(*context, ServiceKind::kInference);
    if (caller.ok()) {
      hub_.Watch(*std::move(caller), *request, stream);
    } else {
      stream->End(std::move(caller).status());
    }
    return stream.get();
  }

  grpc::ServerUnaryReactor* Submit(CallbackServerContext* context,
                                   const v1::GenerateRequest* request,
                                   v1::SubmitResponse* response) override {
    return Unary(&RequestHub::Submit, context, request, response);
  }
  grpc::ServerUnaryReactor* Get(CallbackServerContext* context,
                                const v1::GetRequest* request,
                                v1::RequestInfo* response) override {
    return Unary(&RequestHub::Get, context, request, response);
  }
  grpc::ServerUnaryReactor* List(CallbackServerContext* context,
                                 const v1::ListRequest* request,
                                 v1::ListResponse* response) override {
    return Unary(&RequestHub::List, context, request, response);
  }
  grpc::ServerUnaryReactor* Cancel(CallbackServerContext* context,
                                   const v1::CancelRequest* request,
                                   v1::RequestInfo* response) override {
    return Unary(&RequestHub::Cancel, context, request, response);
  }
  grpc::ServerUnaryReactor* GetStats(CallbackServerContext* context,
                                     const v1::GetStatsRequest* request,
                                     v1::Stats* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto reply = ReplyTo(context, reactor, response);
    const auto caller = gate_.Enter(*context, ServiceKind::kInference);
    const absl::Status known =
        caller.ok() ? CheckUnknownFields(*request) : caller.status();
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
  std::shared_ptr<GrpcClientStream> NewStream(CallbackServerContext& context) {
    auto stream = std::make_shared<GrpcClientStream>(hub_, context);
    stream->HoldForGrpc(stream);
    return stream;
  }

  template <typename Response>
  static RequestHub::Reply<Response> ReplyTo(CallbackServerContext* context,
                                             grpc::ServerUnaryReactor* reactor,
                                             Response* response) {
    return [context, reactor, response](absl::StatusOr<Response> result) {
      if (result.ok()) {
        *response = *std::move(result);
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
      CallbackServerContext* context, const Request* request,
      Response* response) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    RequestHub::Reply<Response> reply = ReplyTo(context, reactor, response);
    auto caller = gate_.Enter(*context, ServiceKind::kInference);
    if (caller.ok()) {
      (hub_.*function)(*std::move(caller), *request, std::move(reply));
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
