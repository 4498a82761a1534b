"""Whatever a user gets wrong ends in one line `error: ...` and exit code 1 or
2, before the long wait where that can be: never a crash, never silence."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import struct
import sys
import tempfile
import unittest

import portolan

BUILD = None


def run(arguments, env=None):
    return portolan.run([portolan.program(BUILD), *arguments], env=env,
                        timeout=60)


def read_header(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


def write_header(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class HostileTest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory()))

    def enterContext(self, context):  # unittest has it from 3.11 on
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    @contextlib.contextmanager
    def broken_model(self):
        """A copy of the bundled model to damage."""
        model = self.directory / "model"
        shutil.copytree(portolan.MODEL, model)
        try:
            yield model
        finally:
            shutil.rmtree(model)

    def refuses(self, arguments, *wanted, codes=(1,), env=None):
        with self.subTest(arguments=[str(a) for a in arguments]):
            done = run(arguments, env)
            self.assertIn(done.returncode, codes, done.stderr)
            self.assertEqual(done.stdout, "")
            errors = [line for line in done.stderr.splitlines()
                      if line.startswith("error: ")]
            self.assertEqual(len(errors), 1, done.stderr)
            for part in wanted:
                self.assertIn(part, errors[0])

    def generate(self, *arguments, model=portolan.MODEL):
        return ["generate", "--model", model, "--max-tokens", "2", *arguments]

    def refuses_prompt(self, flags, *wanted, **options):
        self.refuses(self.generate("--prompt", "hi", *flags), *wanted,
                     **options)

    def refuses_file(self, text, *wanted):
        path = self.directory / "prompts.jsonl"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        self.refuses(self.generate("--prompts", path), "prompts.jsonl",
                     *wanted)

    def refuses_model(self, damage, *wanted):
        with self.broken_model() as model:
            damage(model)
            self.refuses(self.generate("--prompt", "hi", model=model), *wanted,
                         codes=(1,))

    def test_wrong_usage_is_one_line_and_exit_code_2(self):
        for arguments, wanted in (
                ([], "ubcommand"),
                (["sing"], "sing"),
                (["generate"], "--model"),
                (["generate", "--prompt", "x"], "--model"),
                (self.generate(), "--prompt"),
                (self.generate("--prompt", "x", "--prompts", "y"), "--prompt"),
                (self.generate("--prompt", "x", "--wings"), "--wings"),
                (self.generate("--prompt"), "--prompt"),
                (self.generate("--prompt", "x", "stray"), "stray"),
                (["serve", "--model", portolan.MODEL, "--data-dir", "x",
                  "--seed", "1"], "--seed"),
                (["bench"], "ubcommand"),
                (["bench", "model"], "--model"),
                (["replay"], "--")):
            self.refuses(arguments, wanted, codes=(2,))

    def test_limits_of_the_coordinator_tell_their_range(self):
        for flag, value, wanted in (
                ("--client-streams", "-1", "0 to 2147483647"),
                ("--max-message-bytes", "99999999999", "1024 to 2147483647"),
                ("--max-message-bytes", "3", "1024 to 2147483647")):
            self.refuses(["coordinator", "--data-dir", "x", flag, value], flag,
                         wanted, codes=(2,))

    def test_a_policy_that_is_none_is_named_once(self):
        self.refuses(self.generate("--prompt", "x", "--policy", "astrology"),
                     "error: --policy: astrology: there are all-layer",
                     codes=(2,))

    def test_values_out_of_range_name_the_flag(self):
        for flag, value in (
                ("--ranks", "300"), ("--ranks", "0"), ("--ranks", "two"),
                ("--threads", "-1"), ("--batch", "0"), ("--batch", "1e9"),
                ("--max-tokens", "0"), ("--temperature", "warm"),
                ("--temperature", "-1"), ("--temperature", "nan"),
                ("--top-k", "-3"), ("--top-p", "0"), ("--top-p", "7"),
                ("--min-p", "2"), ("--seed", "-1"), ("--seed", "99999999999999999999999"),
                ("--seed", "x"),
                ("--tokens-per-step", "0"), ("--transport", "pigeon"),
                ("--combine", "maybe"), ("--activations", "int3"),
                ("--cpu", "z80"), ("--format", "xml"),
                ("--stop", ""), ("--policy", "astrology"),
                ("--kv-memory", "much"),
                ("--kv-memory", "0"),
                ("--step-timeout", "-1"), ("--liveness-timeout", "0"),
                ("--step-timeout", "nan"), ("--liveness-timeout", "nan"),
                ("--start-timeout", "nan"),
                ("--repetition-penalty", "0"), ("--top-p", "nan"),
                ("--min-p", "nan"), ("--temperature", "101"),
                ("--repetition-penalty", "nan"),
                ("--presence-penalty", "-101"),
                ("--frequency-penalty", "inf")):
            self.refuses_prompt([flag, value], flag, codes=(2,))

    def test_values_of_bench_kernels_out_of_range_name_the_flag(self):
        for flag, value in (("--cpu", "z80"), ("--weights", "int3"),
                            ("--rows", "0"), ("--seconds", "nan"),
                            ("--outputs", "15")):
            self.refuses(["bench", "kernels", flag, value], flag, codes=(2,))

    def test_values_that_only_the_job_can_judge_name_the_flag(self):
        for flag, value in (
                ("--expert-memory", "1"), ("--expert-memory", "some"),
                ("--expert-memory", "-5"), ("--expert-memory", "0%"),
                ("--expert-memory", "1000%"),
                ("--expert-link", "slow"), ("--kv-memory", "1"),
                ("--exchange-memory", "1")):
            self.refuses_prompt([flag, value], flag, codes=(1,))

    def test_too_little_memory_is_told_before_the_load_with_the_least(self):
        endless = ["--expert-link", "1B/s,1s"]
        for flag, prompt in (("--exchange-memory", [5] * 8),
                             ("--kv-memory", [5] * 500)):
            path = self.directory / "prompts.jsonl"
            path.write_text(json.dumps(
                {"prompt_tokens": prompt, "max_tokens": 1}))
            for ranks in ("1", "2"):
                one = self.generate("--prompts", path, "--ranks", ranks)
                few = "1" if flag == "--exchange-memory" else "65536"
                done = run([*one, *endless, flag, few])
                self.assertEqual(done.returncode, 1, done.stderr)
                least = re.search(rf"error: .*{flag} {few} .*; write (\d+) or "
                                  "more", done.stderr)
                self.assertTrue(least, done.stderr)
                done = run([*one, flag, least[1]])
                self.assertEqual(done.returncode, 0, done.stderr)
                self.refuses([*one, *endless, flag, int(least[1]) - 1], flag)
        self.refuses(["plan", "--model", portolan.MODEL, "--exchange-memory",
                      "1"], "--exchange-memory 1", "or more")

    def test_statistics_on_a_full_disk_name_the_cause(self):
        done = run(self.generate("--prompt", "hi", "--stats", "/dev/full"))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("error: --stats: cannot write /dev/full: No space left",
                      done.stderr)

    def test_values_from_the_environment_are_checked_alike(self):
        self.refuses_prompt([], "--ranks", codes=(2,),
                            env={"PORTOLAN_RANKS": "300"})
        self.refuses_prompt([], "z80", codes=(2,), env={"PORTOLAN_CPU": "z80"})

    def test_flags_that_contradict_each_other(self):
        self.refuses_prompt(["--ranks", "2", "--transport", "mpi"],
                            "--transport")
        self.refuses_prompt(["--activations", "f32", "--cpu", "avx2"],
                            "--activations")
        for transport in ("mpi", "shm"):
            self.refuses_prompt(
                ["--transport", transport],
                f"--transport {transport} is for processes under mpirun: "
                "portolan-launch -np N -- portolan ...; or drop it",
                codes=(1,))
            self.refuses(["bench", "exchange", "--transport", transport],
                         "portolan-launch", codes=(1,))

    def test_ranks_of_threads_and_of_processes_at_a_time(self):
        self.refuses_under_mpirun(["--ranks", "2"], 1, "drop --ranks")

    def refuses_unlike_ranks(self, one, other, *wanted):
        def command(flags):
            defaults = [part for flag, value in
                        (("--model", portolan.MODEL), ("--max-tokens", "2"))
                        if flag not in flags for part in (flag, value)]
            return [portolan.program(BUILD), "generate", *defaults, *flags]

        with self.subTest(one=one, other=other):
            done = portolan.run([portolan.LAUNCH, "-np", "1", "--",
                                 *command(one), ":", "-np", "1",
                                 *command(other)])
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertEqual(done.stdout, "")
            errors = [line for line in done.stderr.splitlines()
                      if line.startswith("error: ")]
            self.assertEqual(len(errors), 1, done.stderr)
            for part in wanted:
                self.assertIn(part, errors[0])

    def test_ranks_with_unlike_jobs_never_begin(self):
        four, three = self.directory / "four", self.directory / "three"
        lines = [json.dumps({"prompt": text}) + "\n" for text in "abcd"]
        four.write_text("".join(lines))
        three.write_text("".join(lines[:3]))
        one = ["--prompts", four]
        self.refuses_unlike_ranks(
            one, ["--prompts", three], "rank 1",
            f"has --prompt or --prompts {three} (3 prompts) where",
            f"have {four} (4 prompts): give every rank the same prompts")
        self.refuses_unlike_ranks(["--prompt", "a"], ["--prompt", "b"],
                                  'has --prompt or --prompts "b" where',
                                  'have "a": ')
        file = self.directory / "file"
        for flag, value, other in (
                ("--temperature", "0", "0.7"), ("--seed", "3", "0"),
                ("--stop", '"a"', "none"), ("--max-tokens", "7", "2"),
                ("--logprobs", "2", "none"), ("--history", file, "none"),
                ("--history-format", "compact", "exact"),
                ("--history-capacity", "7", "1000"), ("--stats", file, "none"),
                ("--format", "jsonl", "text"), ("--combine", "reduced", "exact"),
                ("--activations", "f32", "bf16"),
                ("--dense-weights", "int8", "bf16")):
            given = "a" if flag == "--stop" else value
            self.refuses_unlike_ranks(
                one, [*one, flag, given], "rank 1 on ",
                f"has {flag} {value} where the others (rank 0 on ",
                f") have {other}: give every rank")
            self.assertFalse(file.exists())

    def test_wishes_of_prompts_that_differ_are_told_as_they_come(self):
        files = []
        for name, seeds in ("one", (1, 2)), ("other", (1, 3)):
            files.append(self.directory / name)
            files[-1].write_text("".join(
                json.dumps({"prompt": "a", "seed": seed}) + "\n"
                for seed in seeds))
        self.refuses_unlike_ranks(["--prompts", files[0]],
                                  ["--prompts", files[1]],
                                  "has --seed 1; 3 where", "have 1; 2: give")

    def test_another_model_by_the_same_name_is_refused_as_such(self):
        model = self.directory / "model"
        shutil.copytree(portolan.MODEL, model)
        config = json.loads((model / "config.json").read_text())
        config["rms_norm_eps"] = 1e-5
        (model / "config.json").write_text(json.dumps(config))
        self.refuses_unlike_ranks(["--prompt", "a"],
                                  ["--prompt", "a", "--model", model],
                                  f"has --model {model} where the others",
                                  f"have {portolan.MODEL}: start every rank")

    def test_wrong_usage_is_told_once_by_all_ranks(self):
        self.refuses_under_mpirun(["--batch", "0"], 2, "--batch")

    def refuses_under_mpirun(self, flags, code, wanted):
        done = portolan.run(
            [portolan.LAUNCH, "-np", "3", "--", portolan.program(BUILD),
             *self.generate("--prompt", "hi", *flags)])
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        errors = [line for line in done.stderr.splitlines()
                  if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        self.assertIn(wanted, errors[0])

    def test_a_pack_dir_without_a_pack_is_never_passed_over(self):
        model = self.directory / "packed"
        shutil.copytree(portolan.MODEL, model)
        for quantise in ([], ["--quantize", "int8"]):
            done = run(["pack", "--model", model, *quantise])
            self.assertEqual(done.returncode, 0, done.stderr)
        empty = self.directory / "empty"
        empty.mkdir()
        for folder in (empty, self.directory / "nowhere"):
            for flags, name in ([], "experts.portolan-pack"), (
                    ["--weights", "int8"], "experts-int8.portolan-pack"):
                self.refuses(
                    self.generate("--prompt", "hi", "--pack-dir", folder,
                                  *flags, model=model),
                    f"--pack-dir {folder}", name, "portolan pack",
                    "or drop --pack-dir", codes=(1,))
        done = portolan.run(
            [portolan.LAUNCH, "-np", "2", "--", portolan.program(BUILD),
             *self.generate("--prompt", "hi", "--pack-dir", empty)])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("or drop --pack-dir", done.stderr)

    def test_a_damaged_pack_that_was_asked_for_is_an_error(self):
        packs = self.directory / "packs"
        packs.mkdir()
        done = run(["pack", "--model", portolan.MODEL, "--pack-dir", packs])
        self.assertEqual(done.returncode, 0, done.stderr)
        pack, = packs.iterdir()
        os.truncate(pack, pack.stat().st_size - 4096)
        self.refuses_prompt(["--pack-dir", packs], str(pack), "damaged",
                            codes=(1,))

    def test_files_that_cannot_be_read_or_written(self):
        nowhere = self.directory / "no" / "file"
        for flag in ("--stats", "--trace", "--history", "--profile"):
            # Before the wait for the model, which here has no end.
            self.refuses_prompt([flag, nowhere, "--expert-link", "1B/s,1s"],
                                flag, str(nowhere), codes=(1,))
        self.refuses_prompt(["--config", nowhere], str(nowhere), codes=(2,))
        self.refuses(self.generate("--prompts", nowhere), str(nowhere))
        self.refuses(self.generate("--prompts", self.directory),
                     "is a directory")
        self.refuses(self.generate("--prompt", "hi", model=nowhere),
                     str(nowhere), codes=(2,))
        config = self.directory / "config.toml"
        config.write_text("[generate]\nwings = 2\n")
        self.refuses_prompt(["--config", config], "wings", codes=(2,))
        config.write_text(f"model = \"{portolan.MODEL}\"\n")
        self.refuses_prompt(["--config", config], "--config", "`model`",
                            "[generate]", codes=(2,))

    def test_two_flags_never_write_one_file(self):
        file = self.directory / "file"
        again = self.directory / "folder" / ".." / "file"
        (self.directory / "folder").mkdir()
        for one, other in (("--trace", "--stats"), ("--profile", "--history")):
            self.refuses_prompt([one, file, other, again], one, other, "file")
        self.assertFalse(file.exists())

    def refuses_to_overwrite(self, arguments, flag, path, *wanted):
        before = path.read_bytes()
        self.refuses(arguments, f"{flag}: cannot write", str(path), *wanted)
        self.assertEqual(path.read_bytes(), before)

    def test_no_flag_writes_over_a_file_that_is_read(self):
        prompts = self.directory / "prompts.jsonl.0"
        prompts.write_text('{"prompt":"a"}\n')
        link = self.directory / "another name"
        os.link(prompts, link)
        config = self.directory / "config.toml"
        config.write_text("[generate]\nmax-tokens = 1\n")
        one = self.generate("--prompts", prompts)
        for flag in ("--stats", "--trace", "--profile", "--history"):
            for path in (prompts, link):
                self.refuses_to_overwrite([*one, flag, path], flag, path,
                                          "which --prompts reads")
        self.refuses_to_overwrite(
            [*one, "--ranks", "2", "--trace", prompts.with_suffix("")],
            "--trace", prompts, "which --prompts reads")
        self.refuses_to_overwrite(
            [*one, "--config", config, "--stats", config], "--stats", config,
            "which --config reads")
        self.refuses_to_overwrite(
            ["bench", "perplexity", "--model", portolan.MODEL, "--text",
             prompts, "--profile", prompts], "--profile", prompts,
            "which --text reads")
        self.refuses_to_overwrite(
            ["bench", "serve", "--closed", "1", "--prompts", prompts,
             "--records", link], "--records", link, "which --prompts reads")
        self.refuses_to_overwrite(
            ["replay", "--link", "1GB/s,50us", "--trace", prompts, "--plot",
             link], "--plot", link, "which --trace reads")

    def test_no_flag_writes_over_a_file_of_the_model(self):
        with self.broken_model() as model:
            packs = self.directory / "packs"
            packs.mkdir()
            done = run(["pack", "--model", model, "--pack-dir", packs])
            self.assertEqual(done.returncode, 0, done.stderr)
            pack, = packs.iterdir()
            one = self.generate("--prompt", "a", "--pack-dir", packs,
                                model=model)
            for name in ("model.safetensors", "config.json",
                         "generation_config.json", "tokenizer.json"):
                for flag in ("--trace", "--history"):
                    self.refuses_to_overwrite([*one, flag, model / name],
                                              flag, model / name,
                                              "which --model reads")
            self.refuses_to_overwrite([*one, "--stats", pack], "--stats",
                                      pack, "which --pack-dir reads")
            # Files of one's own may lie there.
            for _ in range(2):
                done = run([*one, "--stats", model / "stats.json"])
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_prompt_files_name_line_and_field(self):
        self.refuses_file("", "no prompt")
        self.refuses_file("\n\n", "no prompt")
        self.refuses_file("{\"prompt\":\"a\"}\nnot json", "line 2")
        self.refuses_file("{\"prompt\":\"a\"}\n{\"prompt\":", "line 2")
        self.refuses_file("[]", "line 1")
        self.refuses_file("{\"id\":\"a\"}", "\"prompt\"")
        self.refuses_file("{\"prompt\":\"a\",\"prompt_tokens\":[1]}",
                          "\"prompt_tokens\"")
        self.refuses_file("{\"prompt\":\"a\",\"max_token\":3}",
                          "\"max_token\"")
        self.refuses_file("{\"prompt\":\"a\",\"n\":2}", "\"n\"")
        self.refuses_file("{\"prompt\":\"a\",\"temperature\":-1}",
                          "temperature")
        self.refuses_file("{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens")
        self.refuses_file("{\"prompt_tokens\":[]}", "empty")
        self.refuses_file("{\"prompt_tokens\":[999999]}", "999999")
        self.refuses_file("{\"prompt_tokens\":[-1]}", "-1")
        self.refuses_file("{\"prompt\":\"a\",\"stop_token_ids\":[999999]}",
                          "stop_token_ids")
        self.refuses_file("{\"prompt\":\"a\",\"stop\":\"\"}", "stop")
        self.refuses_file(
            "{\"id\":\"a\",\"prompt\":\"x\"}\n{\"id\":\"a\",\"prompt\":\"y\"}",
            "line 2", "\"a\"")
        self.refuses_file(b"{\"prompt\":\"\xff\xfe\"}", "line 1")
        self.refuses_file("{\"prompt\":" + "[" * 100000, "line 1")
        self.refuses_file(json.dumps({"prompt_tokens": [5] * 600}), "600")

    def test_config_json(self):
        def text(contents):
            return lambda model: (model / "config.json").write_text(contents)

        def change(**fields):
            def damage(model):
                path = model / "config.json"
                config = json.loads(path.read_text())
                config.update(fields)
                path.write_text(json.dumps(
                    {k: v for k, v in config.items() if v is not None}))
            return damage

        self.refuses_model(lambda m: (m / "config.json").unlink(),
                           "config.json")
        self.refuses_model(text(""), "config.json")
        self.refuses_model(text("{"), "config.json")
        self.refuses_model(text("[]"), "config.json")
        self.refuses_model(text("[" * 100000), "config.json")
        for name, value in (
                ("architectures", ["LlamaForCausalLM"]), ("hidden_size", 0),
                ("hidden_size", -8), ("hidden_size", 10**12),
                ("hidden_size", "big"),
                ("hidden_size", None), ("num_hidden_layers", 0),
                ("num_hidden_layers", 10**9), ("num_hidden_layers", 2**63),
                ("num_experts", 0), ("num_experts", 10**9),
                ("num_experts_per_tok", 0), ("num_experts_per_tok", 99),
                ("vocab_size", 0), ("vocab_size", 10**12),
                ("num_attention_heads", 0), ("num_attention_heads", 10**9),
                ("num_key_value_heads", 4), ("head_dim", 10**9),
                ("head_dim", 7), ("moe_intermediate_size", 0),
                ("moe_intermediate_size", 10**12),
                ("max_position_embeddings", 0), ("rms_norm_eps", "x"),
                ("rope_theta", 0), ("rope_theta", -1),
                ("hidden_act", "relu6"),
                ("rope_scaling", {"rope_type": "dream", "factor": 2})):
            self.refuses_model(change(**{name: value}), "config.json",
                               name.replace("hidden_act", "act"))

        # Sizes that might be, but are not those of the tensors.
        self.refuses_model(change(hidden_size=193), "experts.0.gate_proj",
                           "wanted shape [96, 193], found [96, 192]")
        self.refuses_model(change(num_key_value_heads=3), "k_proj.weight",
                           "wanted shape [96, 192], found [64, 192]")

    def test_generation_config_json(self):
        for name, value in (
                ("top_p", 0), ("top_p", 1.5), ("temperature", 200),
                ("temperature", -1), ("temperature", "warm"), ("top_k", -1),
                ("min_p", 2), ("repetition_penalty", 0),
                ("repetition_penalty", 1000), ("eos_token_id", 10**9)):
            self.refuses_model(
                lambda model: (model / "generation_config.json").write_text(
                    json.dumps({name: value})),
                "generation_config.json", name)

    def test_a_context_longer_than_any_memory_costs_nothing(self):
        def positions(count):
            def damage(model):
                path = model / "config.json"
                config = json.loads(path.read_text())
                config["max_position_embeddings"] = count
                path.write_text(json.dumps(config))
            return damage

        for count in (1 << 22, 1 << 30):
            with self.broken_model() as model:
                positions(count)(model)
                arguments = self.generate("--prompt", "hi", model=model)
                done = run([*arguments, "--kv-memory", "8MiB"])
                self.assertEqual(done.returncode, 0, done.stderr)
                # Room for one context is what the default asks for.
                self.refuses([*arguments, "--memory-available", "2GiB"],
                             "--kv-memory", codes=(1,))

    def test_safetensors(self):
        weights = "model.safetensors"

        def truncate(bytes_left):
            return lambda m: os.truncate(m / weights, bytes_left)

        def header(edit):
            def damage(model):
                tensors, data = read_header(model / weights)
                edit(tensors)
                write_header(model / weights, tensors, data)
            return damage

        def first(tensors):
            return tensors[sorted(t for t in tensors if "experts.0." in t)[0]]

        self.refuses_model(lambda m: (m / weights).unlink(), "safetensors")
        for size in (0, 4, 8, 100, 200_000, 20_000_000):
            self.refuses_model(truncate(size), weights)
        self.refuses_model(
            lambda m: (m / weights).write_bytes(b"\xff" * 64), weights)
        self.refuses_model(
            lambda m: (m / weights).write_bytes(
                struct.pack("<Q", 2**40) + b"{}"), weights)

        def swap_for_directory(model):
            (model / weights).unlink()
            (model / weights).mkdir()
        self.refuses_model(swap_for_directory, weights)

        def rename(tensors):
            tensors["model.nrm.weight"] = tensors.pop("model.norm.weight")
        self.refuses_model(header(rename), "model.norm.weight")
        self.refuses_model(header(lambda t: first(t).update(dtype="F8")),
                           "experts.0.")
        self.refuses_model(header(lambda t: first(t).update(shape=[1, 1])),
                           "experts.0.")
        self.refuses_model(
            header(lambda t: first(t).update(shape=[2**62, 2**62])),
            "experts.0.")
        self.refuses_model(
            header(lambda t: first(t).update(data_offsets=[0, 2**62])),
            weights)
        self.refuses_model(
            header(lambda t: first(t).update(data_offsets=[10, 2])), weights)

        def shards(files):
            def damage(model):
                (model / weights).rename(model / "a.safetensors")
                tensors, _ = read_header(model / "a.safetensors")
                (model / "model.safetensors.index.json").write_text(
                    json.dumps({"weight_map": {t: files for t in tensors}}))
            return damage
        self.refuses_model(shards("gone.safetensors"), "gone.safetensors")
        self.refuses_model(shards("../a.safetensors"), "../a.safetensors")
        self.refuses_model(shards(7), "index.json")

    def test_weights_that_are_no_numbers(self):
        def damage(model):
            weights = model / "model.safetensors"
            tensors, data = read_header(weights)
            begin, end = tensors["model.norm.weight"]["data_offsets"]
            not_a_number = struct.pack("<H", 0x7fc0) * ((end - begin) // 2)
            write_header(weights, tensors,
                         data[:begin] + not_a_number + data[end:])
        self.refuses_model(damage, "logits are not finite", "weights")

    def test_tokenizer(self):
        tokenizer = "tokenizer.json"

        def text(contents):
            return lambda m: (m / tokenizer).write_text(contents)

        self.refuses_model(lambda m: (m / tokenizer).unlink(), "tokenizer")
        for contents in ("", "{", "[]", "{}", "[" * 100000,
                         '{"model":{"type":"Dream"}}'):
            self.refuses_model(text(contents), tokenizer)

        def swap_for_directory(model):
            (model / tokenizer).unlink()
            (model / tokenizer).mkdir()
        self.refuses_model(swap_for_directory, tokenizer)

        def swap_for_garbage(model):
            (model / tokenizer).unlink()
            (model / "tokenizer.model").write_bytes(b"\xff" * 1000)
        self.refuses_model(swap_for_garbage, "tokenizer.model")

    def test_under_mpirun_too(self):
        done = portolan.run(
            [portolan.LAUNCH, "-np", "2", "--", portolan.program(BUILD),
             *self.generate("--prompt", "hi", "--expert-memory", "1")])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("error: ", done.stderr)
        self.assertIn("--expert-memory 1", done.stderr)

    def test_launcher_usage(self):
        for arguments in ([], ["-np"], ["-np", "0", "--", "true"],
                          ["-np", "x", "--", "true"], ["--wings"],
                          ["--restart-on", "whim", "--", "true"]):
            done = portolan.run([portolan.LAUNCH, *arguments])
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
