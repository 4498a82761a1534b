"""What the command line offers beside the tokens themselves: fields of prompts,
figures, the version, the installed tree."""

import json
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"


def run(arguments, program=None, mpi_ranks=None):
    command = [program or portolan.program(BUILD), *arguments]
    if mpi_ranks is not None:
        command = [portolan.LAUNCH, "-np", mpi_ranks, "--", *command]
    done = portolan.run(command)
    if done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stderr}")
    return done


class CommandLineTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def generate(self, prompts, *arguments, **options):
        path = self.directory / "prompts.jsonl"
        path.write_text("".join(json.dumps(p) + "\n" for p in prompts))
        return portolan.generate(BUILD, path, arguments, **options)

    def test_the_version_names_what_was_built_in(self):
        text = run(["--version"]).stdout
        self.assertRegex(text, r"^portolan \d+\.\d+\.\d+ \([0-9a-f]{7,}\)\n")
        for name, pattern in (("cpu", r".*; kernels scalar"), ("mpi", r".*\d"),
                              ("grpc", r"\d+\.\d+"),
                              ("cuda", r"not built in|\d"),
                              ("nccl", r"not built in|\d")):
            self.assertRegex(text, rf"(?m)^{name}: +({pattern})")

    def test_results_come_in_the_order_of_the_input_with_all_fields(self):
        results = portolan.generate(
            BUILD, PROMPTS, ["--max-tokens", "3", "--ranks", "3"])
        self.assertEqual([r["id"] for r in results],
                         [f"p{i:02}" for i in range(16)])
        for result in results:
            self.assertEqual(list(result), [
                "id", "prompt_tokens", "tokens", "text", "finish_reason",
                "ttft_s", "tpot_s"])

    def test_each_prompt_may_have_its_own_wishes(self):
        text = "Once upon a time"
        tokens = self.generate([{"prompt": text, "temperature": 0}],
                               "--max-tokens", "12")[0]["tokens"]
        same, short, stopped, by_id, seeded, again = self.generate([
            {"id": "same", "prompt": text, "temperature": 0,
             "domain": "mine", "n": 1},
            {"id": "short", "prompt": text, "temperature": 0, "max_tokens": 5},
            {"id": "stopped", "prompt": text, "temperature": 0,
             "stop_token_ids": [tokens[3]]},
            {"id": "by_id", "prompt_tokens": tokens, "temperature": 0},
            {"id": "seeded", "prompt": text, "seed": 5},
            {"id": "again", "prompt": text, "seed": 5, "top_k": 40}],
            "--max-tokens", "12")
        self.assertEqual(same["tokens"], tokens)
        self.assertEqual(same["finish_reason"], "length")
        self.assertEqual(short["tokens"], tokens[:5])
        self.assertEqual(stopped["tokens"],
                         tokens[:tokens.index(tokens[3]) + 1])
        self.assertEqual(stopped["finish_reason"], "stop")
        self.assertEqual(by_id["prompt_tokens"], 12)
        # The model's own top_k is 40.
        self.assertEqual(seeded["tokens"], again["tokens"])

    def test_a_stop_text_ends_the_answer_before_it(self):
        text = "Once upon a time"
        whole = self.generate([{"prompt": text}], "--temperature", "0",
                              "--max-tokens", "20")[0]["text"]
        word = whole.split()[3]
        stopped = self.generate([{"prompt": text, "stop": [word]}],
                                "--temperature", "0", "--max-tokens", "20")[0]
        self.assertEqual(stopped["text"], whole[:whole.index(word)])
        self.assertEqual(stopped["finish_reason"], "stop")

    def test_a_stop_text_that_only_the_end_completes_is_a_stop_too(self):
        # The model goes on in curly quotes, which take several tokens.
        prompt = {"prompt": "\u201cYes,\u201d said she. \u201cIt is",
                  "temperature": 0}
        cut = [r for r in self.generate(
            [{**prompt, "max_tokens": n} for n in range(1, 25)])
            if r["text"].endswith("\ufffd")]
        self.assertTrue(cut)
        self.assertEqual(cut[0]["finish_reason"], "length")
        stopped = self.generate([{**prompt, "stop": "\ufffd", "max_tokens":
                                  len(cut[0]["tokens"])}])[0]
        self.assertEqual(stopped["text"], cut[0]["text"][:-1])
        self.assertEqual(stopped["finish_reason"], "stop")

    def test_ignore_eos_goes_on_where_the_model_would_end(self):
        end = 4093  # of the bundled model
        lines = PROMPTS.read_text().splitlines()
        prompt = {**json.loads(lines[8]), "max_tokens": 100, "seed": 1}
        ended, went_on = self.generate(
            [{**prompt, "id": "a"}, {**prompt, "id": "b", "ignore_eos": True}])
        self.assertEqual(ended["finish_reason"], "stop")
        self.assertEqual(ended["tokens"][-1], end)
        self.assertEqual(went_on["finish_reason"], "length")
        self.assertEqual(len(went_on["tokens"]), 100)
        self.assertEqual(went_on["tokens"][:len(ended["tokens"])],
                         ended["tokens"])

    def test_stop_texts_are_taken_as_they_are_written(self):
        def text(*flags):
            return run(["generate", "--model", portolan.MODEL, "--prompt",
                        "Once upon a time there was a", "--max-tokens", "12",
                        "--temperature", "0", *flags]).stdout

        self.assertEqual(text("--stop", "little"), " \n")
        self.assertEqual(text("--stop", "zzz", "--stop", "girl"),
                         " little \n")
        whole = text()
        for stop in ("[little]", "[little, girl]", "['little']"):
            self.assertEqual(text("--stop", stop), whole)
        config = self.directory / "config.toml"
        for stops, wanted in (["zzz", "girl"], " little \n"), (
                ["[little]", "[girl]"], whole):
            config.write_text(f"[generate]\nstop = {json.dumps(stops)}\n")
            self.assertEqual(text("--config", config), wanted)

    def test_penalties_change_the_answer(self):
        prompt = {"prompt": "Once upon a time", "temperature": 0,
                  "max_tokens": 60}
        plain, penalised = self.generate(
            [{"id": "a", **prompt},
             {"id": "b", "repetition_penalty": 1.8, **prompt}])
        self.assertLess(len(set(plain["tokens"])), len(set(
            penalised["tokens"])))

    def test_each_rank_reads_the_bytes_of_its_own_experts_once(self):
        sums = []
        for ranks in (1, 2, 3, 5):
            stats = self.directory / "stats.json"
            portolan.generate(BUILD, PROMPTS, [
                "--max-tokens", "1", "--ranks", str(ranks), "--expert-memory",
                "all", "--stats", stats])
            figures = json.loads(stats.read_text())
            each = [r["expert_bytes_at_start"] for r in figures["per_rank"]]
            self.assertEqual(len(each), ranks)
            # What the files gave: those bytes, in blocks of 4 KiB.
            for rank in figures["per_rank"]:
                logical = rank["expert_bytes_at_start"]
                self.assertGreaterEqual(rank["expert_bytes_read"], logical)
                self.assertLess(rank["expert_bytes_read"], 1.35 * logical)
            sums.append(sum(each))
            share = sums[-1] / ranks
            # 32 experts a layer: at most one more than the even share.
            self.assertLessEqual(max(each), share * (1 + ranks / 32))
            self.assertGreaterEqual(min(each), share * (1 - ranks / 32))
        header = (portolan.MODEL / "model.safetensors").read_bytes()
        tensors = json.loads(
            header[8:8 + int.from_bytes(header[:8], "little")])
        experts = sum(
            tensor["data_offsets"][1] - tensor["data_offsets"][0]
            for name, tensor in tensors.items() if ".mlp.experts." in name)
        self.assertEqual(sums, [experts] * 4)

    def test_every_flag_also_comes_from_the_environment(self):
        num_flags = 0
        for program in ("portolan", "portolan-client"):
            path = portolan.program(BUILD).parent / program
            commands = [[]]
            while commands:
                command = commands.pop()
                text = run([*command, "--help"], program=path).stdout
                subcommands = text.partition("\nSubcommands:\n")[2]
                commands += [[*command, name] for name in
                             re.findall(r"(?m)^  ([a-z]\S*)", subcommands)]
                for line in text.partition("\nSubcommands:\n")[0].splitlines():
                    flag = re.match(r" +(?:-\w,)?--([a-z-]+)", line)
                    if flag is None or flag[1] in ("help", "config", "version"):
                        continue
                    num_flags += 1
                    name = flag[1].upper().replace("-", "_")
                    self.assertIn(f"(Env:PORTOLAN_{name})", line,
                                  [program, *command])
        self.assertGreater(num_flags, 150)

    def test_a_prompt_may_come_from_the_environment(self):
        done = portolan.run(
            [portolan.program(BUILD), "generate", "--model", portolan.MODEL],
            env={"PORTOLAN_PROMPT": "Once", "PORTOLAN_MAX_TOKENS": "3",
                 "PORTOLAN_FORMAT": "jsonl"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(json.loads(done.stdout)["tokens"]), 3)

    def test_flags_may_come_from_a_toml_file(self):
        config = self.directory / "config.toml"
        config.write_text(
            f'[generate]\nmodel = "{portolan.MODEL}"\nprompt = "Once"\n'
            'max-tokens = 3\nformat = "jsonl"\nignore-eos = true\n'
            "ranks = 2\n")
        done = run(["generate", "--config", config])
        self.assertEqual(len(json.loads(done.stdout)["tokens"]), 3)
        # The command line goes before the file.
        done = run(["--config", config, "generate", "--max-tokens", "4"])
        self.assertEqual(len(json.loads(done.stdout)["tokens"]), 4)

    def test_a_full_disk_is_an_error(self):
        one = ["generate", "--model", portolan.MODEL, "--max-tokens", "4"]
        for arguments in (
                [*one, "--prompt", "hi"],
                [*one, "--prompt", "hi", "--format", "jsonl"],
                [*one, "--prompts", PROMPTS, "--ranks", "2"],
                ["plan", "--model", portolan.MODEL, "--ranks", "2"],
                ["plan", "--model", portolan.MODEL, "--ranks", "2", "--json"],
                ["bench", "kernels", "--seconds", "0.001", "--outputs", "64",
                 "--inputs", "64", "--threads", "1", "--json"],
                ["bench", "exchange", "--ranks", "2", "--tokens", "1",
                 "--iterations", "1"]):
            with self.subTest(arguments=arguments), \
                    open("/dev/full", "w") as full:
                done = subprocess.run(
                    [str(a) for a in [portolan.program(BUILD), *arguments]],
                    stdout=full, stderr=subprocess.PIPE, text=True,
                    timeout=60)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertEqual(
                    [line for line in done.stderr.splitlines()
                     if line.startswith("error: ")],
                    ["error: standard output: No space left on device"])

    def test_the_time_to_the_first_token_leaves_out_the_loading(self):
        stats = self.directory / "stats.json"
        results = portolan.generate(BUILD, PROMPTS, [
            "--max-tokens", "2", "--ranks", "2", "--batch", "16",
            "--expert-link", "20MB/s,1us", "--stats", stats])
        seconds = json.loads(stats.read_text())["seconds"]
        for result in results:
            self.assertGreater(result["ttft_s"], 0)
            self.assertLessEqual(result["ttft_s"] + result["tpot_s"], seconds)

    def test_reduced_combine_repeats_itself(self):
        arguments = ["--max-tokens", "8", "--temperature", "0", "--combine",
                     "reduced"]
        first = portolan.generate(BUILD, PROMPTS, arguments, mpi_ranks=3)
        again = portolan.generate(BUILD, PROMPTS, arguments, mpi_ranks=3)
        self.assertEqual([r["tokens"] for r in first],
                         [r["tokens"] for r in again])

    def test_bench_model_gives_tokens_per_second(self):
        arguments = ["bench", "model", "--model", portolan.MODEL,
                     "--prompt-tokens", "16", "--gen", "4", "--batch", "2",
                     "--threads", "1", "--rounds", "2"]
        for extra, ranks in ([], 1), (["--ranks", "2"], 2):
            figures = json.loads(run(arguments + extra + ["--json"]).stdout)
            self.assertEqual(figures["ranks"], ranks)
            self.assertEqual(figures["threads"], 1)
            self.assertEqual(figures["wrong"], 0)
            for phase in ("prefill", "decode"):
                rates = figures[f"{phase}_tokens_per_s"]
                self.assertGreater(rates["min"], 0)
                self.assertLessEqual(rates["min"], rates["max"])
                # Of two rounds.
                self.assertAlmostEqual(rates["median"],
                                       (rates["min"] + rates["max"]) / 2)
        self.assertRegex(run(arguments).stdout, r"prefill tok/s.*#wrong")

    def refusal(self, *arguments):
        done = portolan.run([portolan.program(BUILD), "bench", *arguments])
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        return done.stderr.splitlines()[-1]

    def test_a_bench_whose_steps_do_not_fit_is_refused(self):
        model = ["model", "--model", portolan.MODEL, "--prompt-tokens", "40",
                 "--gen", "2", "--rounds", "1"]
        self.assertRegex(
            self.refusal(*model, "--batch", "9", "--tokens-per-step", "8"),
            "^error: --batch 9 .*--tokens-per-step")
        text = portolan.SOURCE / "tests/data/perplexity/held_out.txt"
        perplexity = ["perplexity", "--model", portolan.MODEL, "--text", text,
                      "--context", "100"]
        for bench, pages in (([*model, "--batch", "4"], 8), (perplexity, 4)):
            least = re.search(r"^error: .*--kv-memory.*; write (\d+) or more$",
                              self.refusal(*bench, "--kv-memory", "128KiB"))
            self.assertEqual(int(least[1]) % pages, 0)
            self.assertIn("or more", self.refusal(
                *bench, "--kv-memory", str(int(least[1]) - 1)))
            run(["bench", *bench, "--kv-memory", least[1]])

    def test_bench_perplexity_keeps_a_profile_and_nothing_else(self):
        profile = self.directory / "profile.json"
        text = self.directory / "text"
        text.write_text("Once upon a time there was a little girl.")
        bench = ["perplexity", "--model", portolan.MODEL, "--text", text]
        run(["bench", *bench, "--profile", profile])
        self.assertIn("attention", {
            event["name"]
            for event in json.loads(profile.read_text())["traceEvents"]})
        for flag in ("--trace", "--history"):
            file = self.directory / "unwritten"
            self.assertIn(flag, self.refusal(*bench, flag, file))
            self.assertFalse(file.exists())

    def test_bench_model_checks_policies_that_foretell_too(self):
        figures = json.loads(run(
            ["bench", "model", "--model", portolan.MODEL, "--prompt-tokens",
             "40", "--gen", "3", "--batch", "2", "--rounds", "1", "--ranks",
             "2", "--expert-memory", "25%", "--policy", "adaptive",
             "--json"]).stdout)
        self.assertEqual(figures["wrong"], 0)

    def test_bench_model_says_that_it_keeps_no_history(self):
        history = self.directory / "history"
        done = run(["bench", "model", "--model", portolan.MODEL,
                    "--prompt-tokens", "4", "--gen", "2", "--rounds", "1",
                    "--history", history])
        self.assertIn(f"notice: bench model begins with --history {history} "
                      "and leaves it as it is\n", done.stderr)
        self.assertFalse(history.exists())

    def test_bench_model_draws_new_tokens_where_experts_are_missing(self):
        # All that one token needs fits: the same one again would not wait.
        profile = self.directory / "profile.json"
        figures = json.loads(run(
            ["bench", "model", "--model", portolan.MODEL, "--prompt-tokens",
             "0", "--gen", "1", "--rounds", "1", "--expert-memory", "50%",
             "--policy", "lru", "--expert-link", "1GB/s,1ms", "--profile",
             profile, "--json"]).stdout)
        waited = figures["zones_us_per_step"]["decode"]["wait for experts"]
        self.assertGreater(waited, 1000)
        self.assertEqual(figures["wrong"], 0)

    def test_bench_model_notices_one_damaged_payload(self):
        damaged = portolan.run(
            [portolan.program(BUILD), "bench", "model", "--model",
             portolan.MODEL, "--prompt-tokens", "256", "--gen", "2",
             "--rounds", "1", "--ranks", "2", "--json"],
            env={"PORTOLAN_FAULT": "rank=1,phase=payload,step=3,do=corrupt"})
        self.assertEqual(damaged.returncode, 1, damaged.stdout)
        self.assertGreater(json.loads(damaged.stdout)["wrong"], 0)
        self.assertRegex(damaged.stderr, r"error: .*logits have other bits")

    def test_flags_that_do_not_go_together_are_wrong_usage(self):
        pack = ["pack", "--model", portolan.MODEL, "--json"]
        for arguments, reason in (
                (["bench", "exchange", "--ranks", "2", "--top-k", "8",
                  "--experts", "4"], "--top-k: 8 experts"),
                (pack, "--quantize"),
                ([*pack, "--quantize", "int8", "--verify"], "--verify")):
            done = portolan.run([portolan.program(BUILD), *arguments])
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertIn(reason, done.stderr)

    def test_bench_model_compares_no_cached_weights_with_the_memory(self):
        figures = json.loads(run(
            ["bench", "model", "--model", portolan.MODEL, "--prompt-tokens",
             "4", "--gen", "2", "--rounds", "1", "--json"]).stdout)
        self.assertGreater(figures["memory_bytes_per_s"], 0)
        self.assertNotIn("decode_share_of_bandwidth", figures)
        # Nor does the memory that is read for it count as the model's.
        self.assertLess(figures["peak_memory_bytes"], 250 << 20)

    def test_bench_exchange_is_right_for_every_routing(self):
        small = ["--tokens", "0", "33", "--hidden", "64", "--iterations", "3",
                 "--json"]
        for arguments, ranks in ((["--ranks", "3"], None), ([], 2)):
            for combine in ("exact", "reduced"):
                figures = json.loads(run(
                    ["bench", "exchange", *arguments, "--combine", combine,
                     *small], mpi_ranks=ranks).stdout)
                rows = figures["rows"]
                self.assertEqual(len(rows), 8)
                self.assertEqual({row["routing"] for row in rows}, {
                    "uniform", "zipf", "all-to-one", "one-empty-rank"})
                self.assertEqual([row["wrong"] for row in rows], [0] * 8)
        rounds = json.loads(run(
            ["bench", "exchange", "--ranks", "2", "--exchange-memory", "64KiB",
             *small]).stdout)["rows"]
        self.assertGreater(max(row["rounds"] for row in rounds), 1)
        self.assertEqual([row["wrong"] for row in rounds], [0] * 8)
        table = run(["bench", "exchange", "--ranks", "2", *small[:-1]]).stdout
        self.assertIn("#wrong", table)

    def test_memory_that_ends_is_one_error_of_one_line(self):
        def few():
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        done = subprocess.run(
            [portolan.program(BUILD), "bench", "exchange", "--ranks", "2",
             "--tokens", "1048576", "--hidden", "65536", "--iterations", "1"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False, preexec_fn=few)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"^error: out of memory; [^\n]*\n$")

    def test_layers_that_are_left_out_are_told_once(self):
        model = self.directory / "model"
        shutil.copytree(portolan.MODEL, model)
        config = json.loads((model / "config.json").read_text())
        config["num_hidden_layers"] = 7  # of 8
        (model / "config.json").write_text(json.dumps(config))
        generate = ["generate", "--prompt", "Once", "--max-tokens", "2"]
        told = (rf"(?m)^notice: {re.escape(str(model))}: 105 tensors are not "
                r"used: model\.layers\.7\..*\(num_hidden_layers is 7\)$")
        for command, ranks in ((generate, None),
                               ([*generate, "--ranks", "2"], None),
                               (generate, "2"), (["pack"], None),
                               (["plan"], None)):
            done = run([*command, "--model", model], mpi_ranks=ranks)
            self.assertEqual(len(re.findall(told, done.stderr)), 1,
                             (command, done.stderr))
            self.assertEqual(done.stderr.count("not used"), 1)
        # The whole model uses all that it has.
        done = run([*generate, "--model", portolan.MODEL])
        self.assertNotIn("not used", done.stderr)

    def test_bench_kernels_looks_how_much_memory_there_is(self):
        meminfo = pathlib.Path("/proc/meminfo").read_text()
        if int(re.search(r"MemAvailable: +(\d+) kB", meminfo)[1]) > 60 << 20:
            self.skipTest("this machine has the memory")
        done = portolan.run([portolan.program(BUILD), "bench", "kernels",
                             "--outputs", "65536", "--inputs", "65536"])
        wanted = re.match(r"error: matrices of 65536 x 65536, [^\n]* take "
                          r"([\d.]+) GiB, .* are available; lower [^\n]*\n$",
                          done.stderr)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertGreater(float(wanted[1]), 64)

    def test_bench_kernels_is_right_on_every_path(self):
        figures = json.loads(run(["bench", "kernels", "--seconds", "0.001",
                                  "--outputs", "64", "--inputs", "64",
                                  "--threads", "1", "--json"]).stdout)
        self.assertGreater(len(figures["rows"]), 4)
        for row in figures["rows"]:
            self.assertFalse(row["wrong"], row)

    def test_bench_maps_searches_stores_of_either_format(self):
        figures = json.loads(run(["bench", "maps", "--records", "20,400",
                                  "--searches", "20", "--json"]).stdout)
        self.assertEqual([(row["format"], row["records"])
                          for row in figures["rows"]],
                         [("exact", 20), ("exact", 400), ("compact", 20),
                          ("compact", 400)])
        for row in figures["rows"]:
            self.assertGreater(row["bytes"], 0)
            for what in ("embedding_us", "nearest8_us",
                         "trajectory_us_per_layer"):
                self.assertGreater(row[what], 0)

    def test_the_installed_tree_runs(self):
        subprocess.run(["cmake", "--install", BUILD, "--prefix",
                        self.directory / "tree"], check=True,
                       capture_output=True)
        programs = self.directory / "tree" / "bin"
        arguments = ["generate", "--model", portolan.MODEL, "--prompt",
                     "Once upon a time", "--max-tokens", "8", "--temperature",
                     "0"]
        alone = run(arguments, program=programs / "portolan").stdout
        done = portolan.run([programs / "portolan-launch", "-np", "2", "--",
                             programs / "portolan", *arguments])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, alone)
        self.assertRegex(alone, r"\w+ \w+")
        # The module with SentencePiece was installed too, and is found.
        self.assertEqual(self.tokens_with_sentencepiece(programs / "portolan"),
                         self.tokens_with_sentencepiece())

    def tokens_with_sentencepiece(self, program=None):
        """Of the bundled weights, with another model's tokenizer.model."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "model.safetensors"):
                (pathlib.Path(folder) / name).symlink_to(portolan.MODEL / name)
            (pathlib.Path(folder) / "tokenizer.model").symlink_to(
                portolan.SOURCE / "tests" / "data" / "tokenizer" /
                "sentencepiece_bpe" / "tokenizer.model")
            done = run(["generate", "--model", folder, "--prompt", "hello",
                        "--max-tokens", "4", "--temperature", "0", "--format",
                        "jsonl"], program)
        result = json.loads(done.stdout)
        self.assertGreater(result["prompt_tokens"], 1)
        self.assertEqual(len(result["tokens"]), 4)
        return result["tokens"]


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
