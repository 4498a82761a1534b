"""A client that has no .proto file learns from the service itself what it
offers (gRPC server reflection), and can call it then.

    reflection_test.py BUILD
"""

import pathlib
import sys
import tempfile
import unittest

BUILD = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(BUILD / "clients" / "python"))

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import service

METHOD = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# Debian's grpcio has no reflection package: the few fields by their numbers in
# grpc/reflection/v1alpha/reflection.proto.
FILE_CONTAINING_SYMBOL, LIST_SERVICES = 4, 7
FILES, SERVICES, ERROR = 4, 6, 7


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data):
    """(number, value) of each field of a message; integers and bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
        yield key >> 3, value


class ReflectionTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        coordinator = service.Coordinator(BUILD, directory.name)
        self.addCleanup(coordinator.stop)
        self.channel = grpc.insecure_channel(coordinator.address)
        self.addCleanup(self.channel.close)

    def ask(self, number, text):
        """The kind of the answer and its bytes."""
        text = text.encode()
        request = bytes([number << 3 | 2, len(text)]) + text
        call = self.channel.stream_stream(METHOD)(iter([request]), timeout=30)
        answer, = [(kind, value) for kind, value in fields(next(call))
                   if kind in (FILES, SERVICES, ERROR)]
        call.cancel()
        return answer

    def files_of(self, symbol):
        kind, answer = self.ask(FILE_CONTAINING_SYMBOL, symbol)
        self.assertEqual(kind, FILES)
        return [descriptor_pb2.FileDescriptorProto.FromString(value)
                for _, value in fields(answer)]

    def test_lists_all_services(self):
        kind, answer = self.ask(LIST_SERVICES, "*")
        self.assertEqual(kind, SERVICES)
        names = {dict(fields(value))[1].decode() for _, value in fields(answer)}
        self.assertLessEqual(
            {"portolan.v1.Inference", "portolan.v1.Control",
             "portolan.v1.ExpertMaps", "grpc.health.v1.Health",
             "grpc.reflection.v1alpha.ServerReflection"}, names)

    def test_what_it_describes_can_be_called(self):
        pool = descriptor_pool.DescriptorPool()
        for file in reversed(self.files_of("portolan.v1.Inference")):
            pool.Add(file)
        described = pool.FindServiceByName("portolan.v1.Inference")
        self.assertLessEqual(
            {"Generate", "Submit", "Watch", "Get", "List", "Cancel",
             "GetStats"}, set(described.methods_by_name))
        method = described.methods_by_name["Submit"]
        factory = message_factory.MessageFactory(pool)
        request = factory.GetPrototype(method.input_type)(text="Hello")
        answer = self.channel.unary_unary("/portolan.v1.Inference/Submit")(
            request.SerializeToString(), timeout=30)
        response = factory.GetPrototype(method.output_type).FromString(answer)
        self.assertRegex(response.request_id, r"^r1-")

    def test_what_it_does_not_know_is_an_error(self):
        self.assertEqual(
            self.ask(FILE_CONTAINING_SYMBOL, "portolan.v1.Nothing")[0], ERROR)


if __name__ == "__main__":
    unittest.main(verbosity=2)
