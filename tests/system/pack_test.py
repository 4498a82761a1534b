"""The expert pack from the command line: the same tokens with it and without,
on every CPU path; stale and damaged packs are named and never used."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"
FLAGS = ["--temperature", "0", "--max-tokens", "12", "--ignore-eos",
         "--expert-memory", "25%"]
PACK = "experts.portolan-pack"


def cpu_paths():
    text = portolan.run([portolan.program(BUILD), "--version"]).stdout
    return re.search(r"kernels (.*)", text).group(1).split()


class PackTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.model = pathlib.Path(self.directory.name) / "model"
        shutil.copytree(portolan.MODEL, self.model)

    def pack(self, *arguments, model=None):
        return portolan.run([portolan.program(BUILD), "pack", "--model",
                             model or self.model, *arguments])

    def generate(self, *arguments):
        return portolan.run(
            [portolan.program(BUILD), "generate", "--model", self.model,
             "--prompts", PROMPTS, "--format", "jsonl", *FLAGS, *arguments])

    def tokens(self, *arguments):
        done = self.generate(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line)["tokens"] for line in done.stdout.splitlines()]

    def test_the_tokens_are_the_same_on_every_cpu_path(self):
        reference = self.tokens()
        self.assertEqual(len(reference), 16)
        for path in cpu_paths():
            self.assertEqual(self.tokens("--cpu", path), reference)
        self.assertEqual(self.pack().returncode, 0)
        for path in cpu_paths():
            self.assertEqual(self.tokens("--cpu", path), reference)

    def test_a_pack_is_used_by_itself(self):
        self.assertEqual(self.pack().returncode, 0)
        # Damage shows that experts come from the pack.
        damage(self.model / PACK)
        done = self.generate()
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"error: .*experts\.portolan-pack is "
                                      r"damaged: the record of expert L\d+/E")
        self.assertEqual(done.stdout, "")

    def test_verify_finds_a_flipped_byte_and_a_new_pack_mends_it(self):
        self.assertEqual(self.pack().returncode, 0)
        sound = self.pack("--verify")
        self.assertEqual(sound.returncode, 0, sound.stderr)
        self.assertIn("256 experts, all sound", sound.stdout)
        damage(self.model / PACK)
        found = self.pack("--verify")
        self.assertEqual(found.returncode, 1)
        self.assertRegex(found.stderr, r"record of expert L\d+/E\d+ at byte \d+")
        self.assertEqual(self.pack().returncode, 0)
        self.assertEqual(self.pack("--verify").returncode, 0)

    def test_a_pack_dir_serves_several_models(self):
        packs = pathlib.Path(self.directory.name) / "packs"
        packs.mkdir()
        self.assertEqual(self.pack("--pack-dir", packs).returncode, 0)
        self.assertEqual([bool(re.fullmatch(r"experts-[0-9a-f]{16}\.portolan-"
                                            r"pack", entry.name))
                          for entry in packs.iterdir()], [True])
        self.assertFalse((self.model / PACK).exists())
        self.assertEqual(self.tokens("--pack-dir", packs), self.tokens())

    def test_a_stale_pack_is_named_and_the_checkpoint_used(self):
        self.assertEqual(self.pack().returncode, 0)
        touch_a_sample(self.model / "model.safetensors")
        done = self.generate()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"notice: .*experts\.portolan-pack.*"
                                      r"using the checkpoint")

    def test_a_truncated_pack_is_named_and_the_checkpoint_used(self):
        self.assertEqual(self.pack().returncode, 0)
        file = self.model / PACK
        with open(file, "r+b") as pack:
            pack.truncate(file.stat().st_size - 4096)
        done = self.generate()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"notice: .*experts\.portolan-pack is "
                                      r"damaged.*using the checkpoint")

    def test_a_full_disk_is_an_error_and_leaves_nothing_behind(self):
        with tempfile.TemporaryDirectory() as directory:
            packs = pathlib.Path(directory)
            script = ("mount -t tmpfs -o size=4m none $0 && shift; "
                      "\"$@\"; code=$?; ls -A $0; exit $code")
            done = subprocess.run(
                ["unshare", "-rm", "sh", "-c", script, packs, "-",
                 portolan.program(BUILD), "pack", "--model", self.model,
                 "--pack-dir", packs], capture_output=True, text=True)
            if "unshare" in done.stderr or "mount" in done.stderr:
                self.skipTest("no file system of our own: " + done.stderr)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"error: .*(left|No space).*--pack-dir")
        self.assertEqual(done.stdout, "")

    def test_an_interrupted_writer_leaves_the_old_pack(self):
        self.assertEqual(self.pack().returncode, 0)
        old = (self.model / PACK).read_bytes()
        limited = subprocess.run(
            ["sh", "-c", "ulimit -f 100; trap '' XFSZ; \"$@\"", "-",
             portolan.program(BUILD), "pack", "--model", self.model],
            capture_output=True, text=True)
        self.assertEqual(limited.returncode, 1)
        self.assertRegex(limited.stderr, r"error: cannot write .*: File too")
        self.assertEqual((self.model / PACK).read_bytes(), old)
        self.assertEqual([entry.name for entry in self.model.iterdir()
                          if ".tmp-" in entry.name], [])


def damage(pack):
    """Flips one byte in the middle of each of many records."""
    with open(pack, "r+b") as file:
        size = pack.stat().st_size
        for offset in range(size // 4, size, 50_000):
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0x10]))


def touch_a_sample(weights):
    """Changes weights as another training run would: every middle byte."""
    data = bytearray(weights.read_bytes())
    for i in range(len(data) // 2, len(data) - 1, 64):
        data[i] ^= 1
    weights.write_bytes(data)


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
