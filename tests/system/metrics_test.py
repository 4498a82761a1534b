"""What a running service tells Prometheus: every series that DESIGN.md of the
coordinator promises, with real values, by model.

    metrics_test.py BUILD
"""

import json
import pathlib
import re
import sys
import tempfile
import unittest
import urllib.request

BUILD = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(BUILD / "clients" / "python"))

from portolan_client import PortolanError

import portolan
import service

PROMPTS = [f"The lighthouse keeper counted {i} ships and" for i in range(4)]
TOKENS = 12

# The stems of vLLM's, and those that nobody else has.
BY_MODEL = """
    num_requests_running num_requests_waiting kv_cache_usage_perc
    prefix_cache_queries_total prefix_cache_hits_total num_preemptions_total
    prompt_tokens_total generation_tokens_total request_success_total
    admission_rejections_total cache_config_info
    expert_cache_requests_total expert_cache_resident_bytes
    expert_cache_capacity_bytes
    expert_load_bytes_total expert_load_stall_seconds_total
    expert_prefetch_total expert_prefetch_bytes_total dispatch_bytes_total
    rank_tokens_total rank_imbalance_ratio
""".split()
HISTOGRAMS = """
    time_to_first_token_seconds inter_token_latency_seconds
    e2e_request_latency_seconds request_queue_time_seconds
    request_inference_time_seconds request_prefill_time_seconds
    request_decode_time_seconds iteration_tokens_total request_prompt_tokens
    request_generation_tokens request_max_num_generation_tokens
    request_params_n request_params_max_tokens
    expert_map_match_score alltoall_seconds
""".split()


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not service.has_worker(BUILD):
            raise unittest.SkipTest("this build has no `portolan serve`")
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        memory = ["--expert-memory", "25%", "--policy", "fmoe"]
        cls.service = service.Service(
            BUILD, cls.directory, "--http", "127.0.0.1:0", "--model-name", "one",
            *memory)
        cls.addClassCleanup(cls.service.stop)
        told = json.loads((cls.service.data / "endpoint.json").read_text())
        cls.url = f"http://{told['http']}/metrics"
        cls.other = service.Job(
            BUILD, cls.directory, cls.service.address, "--job", "other",
            "--model-name", "two", *memory)
        cls.addClassCleanup(cls.other.stop)
        cls.client = service.client(cls.service.address)
        cls.addClassCleanup(cls.client.close)
        service.wait_for_ranks(cls.client, 4, cls.other)
        for prompt in PROMPTS:
            cls.generate(prompt, "one")
        cls.generate(PROMPTS[0], "two")
        try:
            cls.client.generate("a", temperature=-1, model="one")
        except PortolanError:
            pass
        # The last figures of ranks come with a later heartbeat.
        service.wait_until(lambda: cls.value(
            "portolan_iteration_tokens_total_count", model_name="one") >=
            len(PROMPTS) * TOKENS)
        service.wait_until(lambda: cls.value(
            "portolan_iteration_tokens_total_count", model_name="two") >=
            TOKENS)

    @classmethod
    def generate(cls, prompt, model):
        cls.client.generate(prompt, model=model, max_tokens=TOKENS,
                            temperature=0, ignore_eos=True)

    @classmethod
    def series(cls, name):
        """[(labels, value)] of what has that name."""
        with urllib.request.urlopen(cls.url) as page:
            text = page.read().decode()
        return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
                for labels, value in re.findall(
                    rf"(?m)^{name}(?:\{{(.*)\}})? (\S+)$", text)]

    @classmethod
    def value(cls, name, **wanted):
        """The sum of the series with these labels."""
        return sum(value for labels, value in cls.series(name)
                   if wanted.items() <= labels.items())

    def test_every_series_is_there_and_tells_its_model(self):
        for name in [*BY_MODEL, *(f"{name}_count" for name in HISTOGRAMS)]:
            found = self.series(f"portolan_{name}")
            self.assertTrue(found, name)
            for labels, _ in found:
                self.assertIn("model_name", labels, name)
        for name in HISTOGRAMS:
            self.assertGreater(
                self.value(f"portolan_{name}_count", model_name="one"), 0, name)

    def test_models_on_one_coordinator_are_told_apart(self):
        for model, requests in (("one", len(PROMPTS)), ("two", 1)):
            self.assertEqual(self.value("portolan_generation_tokens_total",
                                        model_name=model), requests * TOKENS)
            self.assertEqual(self.value("portolan_request_success_total",
                                        model_name=model), requests)
            self.assertGreater(self.value("portolan_expert_cache_requests_total",
                                          model_name=model), 0)
        self.assertGreater(
            self.value("portolan_expert_cache_requests_total", model_name="one"),
            self.value("portolan_expert_cache_requests_total", model_name="two"))

    def test_the_tokens_of_steps_are_those_of_the_requests(self):
        """All but the last token of a request are computed, each once."""
        computed = (self.value("portolan_prompt_tokens_total", model_name="one")
                    - self.value("portolan_prefix_cache_hits_total",
                                 model_name="one")
                    + len(PROMPTS) * (TOKENS - 1))
        self.assertEqual(self.value("portolan_iteration_tokens_total_sum",
                                    model_name="one"), computed)

    def test_reads_ahead_are_counted_by_outcome(self):
        """Each used or late one has its bytes among the used ones."""
        ahead = {labels["outcome"]: value for labels, value in
                 self.series("portolan_expert_prefetch_total")
                 if labels["model_name"] == "one"}
        self.assertEqual(set(ahead), {"used", "late", "wasted"})
        self.assertGreater(sum(ahead.values()), 0)
        used = self.value("portolan_expert_prefetch_bytes_total",
                          model_name="one", outcome="used")
        wasted = self.value("portolan_expert_prefetch_bytes_total",
                            model_name="one", outcome="wasted")
        each = (used + wasted) / sum(ahead.values())
        self.assertEqual(used, each * (ahead["used"] + ahead["late"]))

    def test_the_cache_of_each_rank_is_described(self):
        info = [labels for labels, value in
                self.series("portolan_cache_config_info") if value == 1]
        self.assertEqual({(labels["job"], labels["rank"]) for labels in info
                          if labels["model_name"] == "two"},
                         {("other", "0"), ("other", "1")})
        for labels in info:
            self.assertGreater(int(labels["block_size"]), 0)
            self.assertGreater(int(labels["num_blocks"]), 0)
            self.assertEqual(labels["cache_dtype"], "bfloat16")

    def test_the_client_shows_the_experts_of_each_rank(self):
        def ranks():
            shown = portolan.run(
                [BUILD / "launcher" / "portolan-client", "stats", "--json",
                 "--coordinator", self.service.address])
            self.assertEqual(shown.returncode, 0, shown.stderr)
            return json.loads(shown.stdout)["ranks"]

        def sums():
            return [(sum(rank[f"expert_{shown}"] for rank in ranks()
                         if rank["model"] == "one"),
                     self.value("portolan_expert_cache_requests_total",
                                model_name="one", result=result))
                    for shown, result in (("hits", "hit"), ("late", "late"),
                                          ("misses", "miss"))]

        # A rank's last heartbeat may come between the two.
        service.wait_until(lambda: all(one == other for one, other in sums()))
        self.assertEqual(len(ranks()), 4)
        for rank in ranks():
            self.assertGreater(rank["expert_hits"] + rank["expert_misses"], 0)
            self.assertGreater(rank["expert_memory_bytes"], 0)
        memory = sum(rank["expert_memory_bytes"] for rank in ranks()
                     if rank["model"] == "one")
        self.assertEqual(self.value("portolan_expert_cache_capacity_bytes",
                                    model_name="one"), memory)
        self.assertLessEqual(self.value("portolan_expert_cache_resident_bytes",
                                        model_name="one"), memory)

    def test_refusals_are_counted_as_stats_does(self):
        self.assertEqual(self.value("portolan_admission_rejections_total"),
                         self.client.stats().rejected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
