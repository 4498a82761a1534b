"""portolan-client against a coordinator that breaks, refuses and lies by
script: output, exit codes, resumed streams, resumed batches."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BUILD = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(BUILD / "clients" / "python"))

import grpc

import certificates
from scripted_coordinator import PIECES, ScriptedCoordinator

PROGRAM = BUILD / "launcher" / "portolan-client"
TEXT = "".join(PIECES) + "!"
TOKENS = list(range(100, 100 + len(PIECES)))


def line(custom_id, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST",
                       "url": "/v1/completions",
                       "body": {"prompt": "Hello", **body}}) + "\n"


class ClientCase(unittest.TestCase):
    def setUp(self):
        self.server = ScriptedCoordinator()
        self.addCleanup(self.server.stop)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def command(self, *arguments):
        return [str(PROGRAM), *map(str, arguments)]

    def environment(self, **more):
        return {**os.environ, "PORTOLAN_COORDINATOR": self.server.address,
                **more}

    def run_client(self, *arguments, code=0, **options):
        done = subprocess.run(self.command(*arguments), text=True, timeout=60,
                              capture_output=True, env=self.environment(),
                              **options)
        self.assertEqual(done.returncode, code, done.stderr)
        if code == 1:
            self.assertRegex(done.stderr, r"(?m)^error: ")
        return done


class ProgramTest(ClientCase):
    def test_version(self):
        done = self.run_client("--version")
        self.assertRegex(done.stdout, r"\Aportolan-client \S+ \(\S.*\)\n"
                                      r"grpc: \d+\.\d+")

    def test_needs_neither_mpi_nor_cuda(self):
        libraries = subprocess.run(["ldd", PROGRAM], text=True, check=True,
                                   capture_output=True).stdout
        self.assertIn("libgrpc++", libraries)
        self.assertNotRegex(libraries, "libmpi|libopen-|libcuda|nccl|hwloc")

    def test_wrong_usage_is_exit_code_2(self):
        for arguments in ([], ["generate"], ["submit"], ["nothing"],
                          ["watch"], ["get"], ["list", "--state", "odd"],
                          ["submit", "--prompt", "a", "--batch", "b"],
                          ["generate", "--prompt", "a", "--top-k", "x"]):
            self.run_client(*arguments, code=2)

    def test_an_absent_coordinator_is_named_at_once(self):
        for arguments in (["generate", "--prompt", "a"], ["stats"],
                          ["watch", "r0"]):
            done = self.run_client(*arguments, "--coordinator", "localhost:1",
                                   code=1)
            self.assertIn("localhost:1", done.stderr)
            self.assertIn("--coordinator", done.stderr)


class GenerateTest(ClientCase):
    def test_streams_the_text(self):
        done = self.run_client("generate", "--prompt", "Hello")
        self.assertEqual(done.stdout, TEXT + "\n")

    def test_reads_the_prompt_from_standard_input(self):
        self.run_client("generate", "--prompt", "-", input="From a pipe")
        self.assertEqual(self.server.requests["r0"].text, "From a pipe")

    def test_json_ends_with_the_object_that_generate_gives(self):
        done = self.run_client("generate", "--prompt", "Hello", "--json",
                               "--id", "mine")
        result = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual(
            result, {"id": "mine", "prompt_tokens": 4, "tokens": TOKENS,
                     "text": TEXT, "finish_reason": "length", "ttft_s": 0.25,
                     "tpot_s": 0.125, "request_id": "r0", "seed": 7})

    def test_flags_and_environment_reach_the_service(self):
        subprocess.run(
            self.command("generate", "--prompt", "a", "--max-tokens", "3",
                         "--temperature", "0", "--stop", "x", "--stop", "y",
                         "--ignore-eos", "--timeout", "2.5"),
            env=self.environment(PORTOLAN_SEED="11"), check=True,
            capture_output=True)
        request = self.server.requests["r0"]
        self.assertEqual(request.params.max_tokens, 3)
        self.assertTrue(request.params.HasField("temperature"))
        self.assertFalse(request.params.HasField("top_p"))
        self.assertEqual(request.params.seed, 11)
        self.assertEqual(list(request.params.stop), ["x", "y"])
        self.assertTrue(request.params.ignore_eos)
        self.assertEqual(request.timeout.ToMilliseconds(), 2500)

    def test_goes_on_after_a_lost_coordinator(self):
        self.server.breaks = [3, 0, 5, 4]
        done = self.run_client("generate", "--prompt", "Hello")
        self.assertEqual(done.stdout, TEXT + "\n")
        self.assertEqual(len(self.server.requests), 1)
        self.assertEqual(self.server.calls, ["Generate"] + ["Watch"] * 4)

    def test_a_busy_service_is_asked_again(self):
        self.server.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 0.1)]
        done = self.run_client("generate", "--prompt", "Hello")
        self.assertEqual(done.stdout, TEXT + "\n")
        self.assertIn("again in", done.stderr)

    def test_a_service_that_shuts_down_speaks_for_itself(self):
        self.server.refusals = [(grpc.StatusCode.UNAVAILABLE, 600)]
        self.server.refusal_text = "the coordinator is shutting down"
        done = self.run_client("generate", "--prompt", "Hello", "--retry-for",
                               "2", code=1)
        self.assertIn("error: the coordinator is shutting down", done.stderr)
        self.assertNotIn("no answer", done.stderr)

    def test_a_prompt_of_broken_text_is_refused_by_name(self):
        done = subprocess.run(self.command("submit", "--prompt", "-"),
                              env=self.environment(), input=b"caf\xe9",
                              capture_output=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"error: --prompt", done.stderr)
        self.assertIn(b"UTF-8", done.stderr)
        self.assertEqual(self.server.calls, [])

    def test_a_busy_service_is_given_up_in_the_end(self):
        self.server.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 600)]
        self.run_client("generate", "--prompt", "Hello", "--retry-for", "2",
                        code=1)

    def test_an_error_of_the_request_is_told_after_its_text(self):
        self.server.error = (grpc.StatusCode.INTERNAL, "poison")
        done = self.run_client("generate", "--prompt", "Hello", code=1)
        self.assertEqual(done.stdout, TEXT + "\n")
        self.assertIn("error: poison", done.stderr)

    def test_a_missing_token_is_an_error(self):
        self.server.skip_a_token = True
        done = self.run_client("generate", "--prompt", "Hello", code=1)
        self.assertIn("token 4 came in place of 3", done.stderr)

    def test_an_interrupt_cancels(self):
        self.server.hold.clear()
        process = subprocess.Popen(
            self.command("generate", "--prompt", "Hello"), text=True,
            env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1, errors)
        self.assertTrue(self.server.gone.wait(10))

    def test_an_interrupt_cancels_a_resumed_stream_by_a_call(self):
        self.server.hold.clear()
        self.server.breaks = [2]
        process = subprocess.Popen(
            self.command("generate", "--prompt", "Hello"), text=True,
            env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        process.stdout.read(len("Once upon a time"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        self.assertEqual(self.server.cancelled, ["r0"])


class WatchTest(ClientCase):
    def submit(self):
        return self.run_client("submit", "--prompt", "Hello").stdout.strip()

    def test_watches_from_a_token_on_across_lost_connections(self):
        request_id = self.submit()
        self.server.breaks = [1, 2, 0]
        done = self.run_client("watch", request_id, "--from", "2", "--json")
        result = json.loads(done.stdout)
        self.assertEqual(result["tokens"], TOKENS[2:])
        self.assertEqual(result["text"], "".join(PIECES[2:]) + "!")

    def test_an_unknown_request_is_named(self):
        done = self.run_client("watch", "nobody", code=1)
        self.assertIn("nobody", done.stderr)

    def test_what_is_printed_ends_with_how_to_go_on(self):
        request_id = self.submit()
        self.server.breaks = [3]
        self.server.refusals = [None, (grpc.StatusCode.UNAUTHENTICATED, None)]
        done = self.run_client("watch", request_id, code=1)
        self.assertIn(f"watch {request_id} --from 3", done.stderr)

    def test_the_same_key_is_the_same_request(self):
        arguments = ("submit", "--prompt", "Hello", "--key", "k", "--json")
        first = json.loads(self.run_client(*arguments).stdout)
        second = json.loads(self.run_client(*arguments).stdout)
        self.assertEqual(first, {"request_id": "r0", "existed": False,
                                 "seed": 7})
        self.assertEqual(second, {**first, "existed": True})


class StateTest(ClientCase):
    def test_get_list_cancel_stats_and_health(self):
        for number in range(5):
            self.run_client("submit", "--prompt", "Hello", "--id", number)
        listed = self.run_client("list", "--json", "--limit", "4").stdout
        self.assertEqual([json.loads(text)["request_id"]
                          for text in listed.splitlines()],
                         ["r4", "r3", "r2", "r1"])
        got = json.loads(self.run_client("get", "r2", "--json").stdout)
        self.assertEqual((got["custom_id"], got["state"], got["tokens"]),
                         ("2", "done", TOKENS))
        self.assertIn("é", self.run_client("get", "r2").stdout)
        self.assertEqual(self.run_client("cancel", "r1").stdout,
                         "r1 cancelled\n")
        stats = json.loads(self.run_client("stats", "--json").stdout)
        self.assertEqual(stats["tokens"], 1 << 40)
        self.assertEqual(
            {name: value for name, value in stats["ranks"][0].items()
             if name.startswith("expert_")},
            {"expert_hits": 60, "expert_late": 5, "expert_misses": 4,
             "expert_stall_s": 0.5, "expert_memory_bytes": 3 << 20})
        self.assertIn("60 hits, 5 late, 4 misses, waited 0.5 s, 3.0 MiB of",
                      self.run_client("stats").stdout)
        self.assertEqual(self.run_client("health").stdout, "SERVING\n")
        self.server.serving = False
        self.run_client("health", code=1)
        self.assertIn("nobody", self.run_client("get", "nobody",
                                                code=1).stderr)

    def test_a_seed_beyond_64_bits_is_wrong_usage(self):
        refused = self.run_client("generate", "--prompt", "hi", "--seed",
                                  str(1 << 64), code=2)
        self.assertRegex(refused.stderr, r"^error: --seed: .*from 0 to "
                                         rf"{(1 << 64) - 1}; [^\n]*\n$")


class BatchTest(ClientCase):
    def setUp(self):
        super().setUp()
        self.input = self.directory / "in.jsonl"
        self.output = self.directory / "out.jsonl"

    def batch(self, *more, code=0):
        return self.run_client("submit", "--batch", self.input, "--output",
                               self.output, *more, code=code)

    def results(self):
        return {result["custom_id"]: result for result in
                map(json.loads, self.output.read_text().splitlines())}

    def test_every_line_gets_a_result(self):
        self.input.write_text("".join(line(f"c{n}") for n in range(40)))
        self.batch("--window", "8")
        results = self.results()
        self.assertEqual(len(results), 40)
        result = results["c17"]
        self.assertIsNone(result["error"])
        self.assertEqual(result["response"]["status_code"], 200)
        body = result["response"]["body"]
        self.assertEqual(body["object"], "text_completion")
        self.assertEqual(body["choices"][0]["text"], TEXT)
        self.assertEqual(body["usage"], {"prompt_tokens": 4,
                                         "completion_tokens": 12,
                                         "total_tokens": 16})

    def test_a_line_that_cannot_be_served_is_an_error_of_its_own(self):
        self.input.write_text(
            line("good") + line("echo", echo=True) + line("n", n="two") +
            line("many", prompt=["a", "b"]) + line("null", suffix=None))
        self.batch(code=1)
        results = self.results()
        self.assertIsNone(results["good"]["error"])
        self.assertIsNone(results["null"]["error"])
        self.assertEqual(results["echo"]["error"]["code"], "UNIMPLEMENTED")
        self.assertIn("echo", results["echo"]["error"]["message"])
        self.assertEqual(results["n"]["response"]["status_code"], 400)
        self.assertIn("only one prompt", results["many"]["error"]["message"])

    def test_a_malformed_file_is_refused_before_anything_is_sent(self):
        for text, wanted in ((line("a") + "{\n", "line 2"),
                             (line("a") + line("a"), "twice"),
                             (json.dumps({"body": {}}), "custom_id")):
            self.input.write_text(text)
            self.assertIn(wanted, self.batch(code=1).stderr)
        self.assertEqual(self.server.calls, [])

    def test_results_are_never_written_over_the_requests(self):
        self.input.write_text(line("a"))
        os.link(self.input, self.output)
        self.assertIn("--output: cannot write", self.batch(code=1).stderr)
        self.assertEqual(self.input.read_text(), line("a"))
        self.assertEqual(self.server.calls, [])

    def test_the_same_command_again_goes_on(self):
        self.input.write_text("".join(line(f"c{n}") for n in range(6)))
        # Three results are there; the last one was cut by a crash, one failed.
        self.batch()
        good = self.output.read_text().splitlines(keepends=True)
        failed = json.dumps({"custom_id": "c5", "error": {"code": "X"}}) + "\n"
        self.output.write_text("".join(good[:3]) + failed + good[4][:50])
        self.server.calls.clear()
        done = self.batch()
        self.assertEqual(len(self.results()), 6)
        self.assertEqual(self.output.read_text().splitlines(keepends=True)[:3],
                         good[:3])
        self.assertEqual(self.server.calls.count("Submit"), 3)
        self.assertEqual(len(self.server.requests), 6)
        self.assertIn("3 before", done.stderr)

    def test_what_failed_is_made_anew_by_the_same_command(self):
        self.input.write_text(line("c0") + line("c1"))
        self.server.error = (grpc.StatusCode.INTERNAL, "poison")
        self.batch(code=1)
        self.assertEqual(self.results()["c0"]["error"]["code"], "INTERNAL")
        self.server.error = None
        self.batch()
        for result in self.results().values():
            self.assertIsNone(result["error"])
        self.assertEqual(len(self.server.requests), 4)

    def test_an_interrupted_batch_goes_on(self):
        self.input.write_text("".join(line(f"c{n}") for n in range(20)))
        self.server.hold.clear()
        process = subprocess.Popen(
            self.command("submit", "--batch", self.input, "--output",
                         self.output), text=True, env=self.environment(),
            stderr=subprocess.PIPE)
        while self.server.calls.count("Watch") < 16:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1, errors)
        self.assertIn("same command again", errors)
        self.server.hold.set()
        self.batch()
        self.assertEqual(len(self.results()), 20)
        self.assertEqual(len(self.server.requests), 20)

    def test_busy_and_broken_services_cost_only_time(self):
        self.input.write_text("".join(line(f"c{n}") for n in range(10)))
        self.server.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 0.05),
                                (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.05)] * 3
        self.server.breaks = [0, 3, 2, 11, 12]
        self.batch()
        for result in self.results().values():
            self.assertEqual(
                result["response"]["body"]["choices"][0]["text"], TEXT)
        self.assertEqual(len(self.server.requests), 10)

    def test_a_key_that_names_another_request_says_what_to_do(self):
        self.input.write_text(line("c0"))
        self.batch()
        self.output.unlink()
        self.input.write_text(line("c0", prompt="Another"))
        self.batch(code=1)
        result = self.results()["c0"]
        self.assertEqual(result["response"]["status_code"], 409)
        self.assertIn("--key-prefix", result["error"]["message"])
        self.batch("--key-prefix", "second-")
        self.assertIsNone(self.results()["c0"]["error"])


class BenchTest(ClientCase):
    """`portolan bench serve`, which is another program but the same client."""

    def bench(self, *flags, code=0):
        prompts = self.directory / "prompts.jsonl"
        prompts.write_text("".join(
            json.dumps({"prompt": "Hello", "arrival_s": number / 50}) + "\n"
            for number in range(20)))
        records = self.directory / "records.jsonl"
        done = subprocess.run(
            [str(BUILD / "launcher" / "portolan"), "bench", "serve",
             "--prompts", str(prompts), "--records", str(records),
             *map(str, flags)], text=True, timeout=60, capture_output=True,
            env=self.environment())
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout, records

    def test_counts_what_was_done_and_what_was_refused(self):
        self.server.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 9)] * 3
        out, records = self.bench("--rate", 200, "--requests", 30, "--json")
        summary = json.loads(out)
        self.assertEqual(summary["requests"], 30)
        self.assertEqual(summary["done"], 27)
        self.assertEqual(summary["errors"], {"RESOURCE_EXHAUSTED": 3})
        self.assertEqual(summary["ttft_s"]["count"], 27)
        self.assertEqual(self.server.calls.count("Generate"), 30)
        lines = [json.loads(text) for text in records.read_text().splitlines()]
        self.assertEqual(len(lines), 30)
        self.assertEqual({line["tokens"] for line in lines
                          if line["code"] == "OK"}, {12})
        self.assertEqual(sorted(lines, key=lambda line: line["sent_s"]), lines)

    def test_recorded_arrivals_are_kept(self):
        _, records = self.bench("--recorded")
        lines = [json.loads(text) for text in records.read_text().splitlines()]
        self.assertEqual([line["arrival_s"] for line in lines],
                         [number / 50 for number in range(20)])
        for line in lines:
            self.assertGreaterEqual(line["sent_s"], line["arrival_s"])

    def test_a_closed_loop_keeps_no_more_in_work_than_asked(self):
        out, records = self.bench("--closed", 3, "--requests", 15)
        self.assertIn("15 requests, 15 done", out)
        lines = [json.loads(text) for text in records.read_text().splitlines()]
        for line in lines:
            others = [other for other in lines
                      if other["sent_s"] <= line["sent_s"] <
                      other["sent_s"] + other["end_s"] - 1e-3]
            self.assertLessEqual(len(others), 3)

    def test_says_how_it_wants_to_be_used(self):
        self.bench(code=2)
        self.bench("--rate", 5, "--closed", 2, code=2)
        self.bench("--closed", 1, "--coordinator", "localhost:1", code=1)


class SecurityTest(ClientCase):
    def test_the_token_goes_with_every_call(self):
        self.server.token = "secret"
        token = self.directory / "token"
        token.write_text("secret\n")
        done = self.run_client("generate", "--prompt", "a", code=1)
        self.assertIn("--token-file", done.stderr)
        for arguments in (["generate", "--prompt", "a"], ["stats"], ["list"],
                          ["submit", "--prompt", "a"], ["watch", "r0"],
                          ["get", "r0"], ["cancel", "r0"], ["health"]):
            self.run_client(*arguments, "--token-file", token)

    def test_a_token_does_not_travel_to_another_host_in_the_clear(self):
        token = self.directory / "token"
        token.write_text("secret")
        done = self.run_client("stats", "--token-file", token, "--coordinator",
                               "10.255.255.1:1", code=1)
        self.assertIn("--tls", done.stderr)

    def test_a_useless_token_file_is_named(self):
        token = self.directory / "token"
        for content in ("", "\n", "two words\n", "caf\u00e9\n"):
            token.write_text(content)
            done = self.run_client("stats", "--token-file", token, code=1)
            self.assertIn(str(token), done.stderr)
        self.assertEqual(self.server.calls, [])

    def test_tls_with_and_without_a_client_certificate(self):
        authority = certificates.Authority(self.directory)
        server_pem, server_key = authority.issue("server")
        own_pem, own_key = authority.issue("someone")
        server = ScriptedCoordinator(grpc.ssl_server_credentials(
            [(server_key.read_bytes(), server_pem.read_bytes())],
            authority.certificate.read_bytes(), True))
        self.addCleanup(server.stop)
        reach = ["--coordinator", server.address, "--tls-ca",
                 authority.certificate]
        self.run_client("stats", *reach, "--tls-cert", own_pem, "--tls-key",
                        own_key)
        self.run_client("stats", *reach, code=1)
        self.run_client("stats", "--coordinator", server.address, code=1)
        done = self.run_client("stats", *reach, "--tls-cert", own_pem, code=1)
        self.assertIn("--tls-key", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
