#!/usr/bin/env python3
"""A rank whose model is a formula: it attaches to a coordinator as a rank does,
and its tokens follow from prompt, seed and position alone. So a test knows every
text beforehand, and the coordinator is what is tested.

    scripted_rank.py PACKAGES ADDRESS --job NAME [--rank R] [--world-size N]
                     [--sequences N] [--step-ms T]

PACKAGES is the folder with portolan_client. Runs until it is killed.
"""

import argparse
import hashlib
import queue
import random
import sys
import threading
import time

VOCABULARY = 1000
CONTEXT = 4096


def token_at(prompt, seed, position):
    digest = hashlib.blake2b(f"{prompt}|{seed}|{position}".encode(),
                             digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCABULARY


def text_at(prompt, seed, position):
    """What a token releases: now and then nothing, as inside a character."""
    token = token_at(prompt, seed, position)
    held = position > 0 and token_at(prompt, seed, position - 1) % 5 == 0
    before = f" é{token_at(prompt, seed, position - 1)}" if held else ""
    return before if token % 5 == 0 else f"{before} é{token}"


def expected(prompt, seed, max_tokens):
    """The tokens and the text of a whole request."""
    tokens = tuple(token_at(prompt, seed, i) for i in range(max_tokens))
    text = "".join(text_at(prompt, seed, i) for i in range(max_tokens))
    if tokens and tokens[-1] % 5 == 0:
        text += f" é{tokens[-1]}"  # held back, and released by the end
    return tokens, text


class Sequence:
    """A request on this rank. Tokens are made when they are sent, so what is
    held back needs no memory: only its range."""

    def __init__(self, assign):
        self.id = assign.request_id
        self.attempt = assign.attempt
        self.prompt = assign.text
        self.seed = assign.params.seed
        self.max_tokens = assign.params.max_tokens
        self.held_from = self.sent = self.next = len(assign.prefix)
        self.done = self.next >= self.max_tokens
        self.end_sent = False


class Rank:
    def __init__(self, arguments, control, pb):
        self._arguments = arguments
        self._control = control
        self._pb = pb
        self._incarnation = random.SystemRandom().getrandbits(64)
        self._lock = threading.Lock()
        self._sequences = {}  # id -> Sequence
        self._serial = 0
        self._attached = False
        self._out = None
        self._heartbeat_s = 1.0

    def register(self):
        arguments = self._arguments
        message = self._control.RankMessage()
        register = message.register
        register.protocol_version = 1
        register.job = arguments.job
        register.rank = arguments.rank
        register.world_size = arguments.world_size
        register.incarnation = self._incarnation
        register.host = "scripted"
        register.model.name = "formula"
        register.model.fingerprint = "formula"
        register.model.numerics_id = "formula"
        register.model.max_context = CONTEXT
        register.model.vocab_size = VOCABULARY
        register.capacity.max_sequences = arguments.sequences
        params = register.defaults
        params.max_tokens = 16
        params.temperature = params.top_p = params.repetition_penalty = 1
        params.presence_penalty = params.frequency_penalty = params.min_p = 0
        params.top_k = 0
        params.ignore_eos = False
        for sequence in self._sequences.values():
            register.running.add(request_id=sequence.id,
                                 attempt=sequence.attempt,
                                 held_from=sequence.held_from,
                                 next_offset=sequence.next)
        return message

    def run(self, connect):
        """Attaches, and attaches again, for ever."""
        threading.Thread(target=self._step_for_ever, daemon=True).start()
        while True:
            out = queue.Queue()
            with self._lock:
                out.put(self.register())
                self._out = out
                self._serial = 0
            channel = connect()
            try:
                for message in channel.Attach(iter(out.get, None)):
                    with self._lock:
                        self._take(message)
            except Exception as error:  # gRPC's own: the stream is lost
                print(error, file=sys.stderr, flush=True)
            with self._lock:
                self._attached = False
                self._out.put(None)
            time.sleep(0.1)

    def _take(self, message):
        kind = message.WhichOneof("kind")
        body = getattr(message, kind)
        if kind == "accepted":
            self._heartbeat_s = body.heartbeat_ms / 1000
            for resume in body.resume:
                sequence = self._sequences.get(resume.request_id)
                if resume.drop:
                    self._sequences.pop(resume.request_id, None)
                elif sequence is not None:
                    sequence.held_from = sequence.sent = resume.next_offset
                    sequence.end_sent = False
            self._attached = True
        elif kind == "assign":
            self._serial = body.serial
            self._sequences[body.request_id] = Sequence(body)
        elif kind == "cancel":
            sequence = self._sequences.get(body.request_id)
            if sequence is not None and sequence.attempt <= body.attempt:
                del self._sequences[body.request_id]
        elif kind == "ack":
            for durable in body.durable:
                sequence = self._sequences.get(durable.request_id)
                if sequence is None or sequence.attempt != durable.attempt:
                    continue
                sequence.held_from = durable.next_offset
                if durable.finished:
                    del self._sequences[durable.request_id]
        elif kind == "resend":
            sequence = self._sequences.get(body.request_id)
            if sequence is not None and sequence.attempt == body.attempt:
                sequence.sent = body.next_offset
                sequence.end_sent = False

    def _step_for_ever(self):
        last_heartbeat = 0.0
        while True:
            time.sleep(self._arguments.step_ms / 1000)
            with self._lock:
                running = [s for s in self._sequences.values() if not s.done]
                for sequence in running[:self._arguments.sequences]:
                    sequence.next += 1
                    sequence.done = sequence.next >= sequence.max_tokens
                if not self._attached:
                    continue
                self._send_tokens()
                now = time.monotonic()
                if now - last_heartbeat > self._heartbeat_s / 3:
                    last_heartbeat = now
                    self._send_heartbeat()

    def _send_tokens(self):
        message = self._control.RankMessage()
        for sequence in self._sequences.values():
            ends = sequence.done and not sequence.end_sent
            if sequence.sent == sequence.next and not ends:
                continue
            delta = message.tokens.deltas.add(
                request_id=sequence.id, attempt=sequence.attempt,
                offset=sequence.sent)
            for position in range(sequence.sent, sequence.next):
                delta.token_ids.append(
                    token_at(sequence.prompt, sequence.seed, position))
                delta.texts.append(
                    text_at(sequence.prompt, sequence.seed, position))
            if ends:
                self._fill_finish(sequence, delta.finish)
                sequence.end_sent = True
            sequence.sent = sequence.next
        if message.tokens.deltas:
            self._out.put(message)

    def _fill_finish(self, sequence, finish):
        finish.reason = self._pb.FINISH_REASON_LENGTH
        finish.usage.prompt_tokens = len(sequence.prompt)
        finish.usage.completion_tokens = sequence.max_tokens
        last = token_at(sequence.prompt, sequence.seed, sequence.max_tokens - 1)
        if last % 5 == 0:
            finish.text_tail = f" é{last}"

    def _send_heartbeat(self):
        active = sum(not s.done for s in self._sequences.values())
        message = self._control.RankMessage()
        heartbeat = message.heartbeat
        heartbeat.running = min(active, self._arguments.sequences)
        heartbeat.waiting = active - heartbeat.running
        heartbeat.free_sequences = self._arguments.sequences - heartbeat.running
        heartbeat.last_assign_serial = self._serial
        self._out.put(message)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("packages")
    parser.add_argument("address")
    parser.add_argument("--job", required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=10)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.packages)
    import grpc
    from portolan_client._proto import (control_pb2, control_pb2_grpc,
                                        inference_pb2)

    def connect():
        return control_pb2_grpc.ControlStub(grpc.insecure_channel(
            arguments.address, [("grpc.initial_reconnect_backoff_ms", 50),
                                ("grpc.max_reconnect_backoff_ms", 500)]))

    Rank(arguments, control_pb2, inference_pb2).run(connect)


if __name__ == "__main__":
    main()
