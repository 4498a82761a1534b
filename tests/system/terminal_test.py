"""What `portolan generate` shows on a terminal: text as it comes, in whole
characters, and how far the loading has got."""

import json
import os
import pathlib
import pty
import select
import subprocess
import sys
import tempfile
import unittest

import portolan

BUILD = None


def on_terminal(arguments):
    """Runs portolan with standard output and error on terminals of their own;
    returns the exit code and what was written to each, write by write."""
    ends = [pty.openpty(), pty.openpty()]
    process = subprocess.Popen(
        [str(a) for a in [portolan.program(BUILD), *arguments]],
        stdin=subprocess.DEVNULL, stdout=ends[0][1], stderr=ends[1][1])
    for _, inner in ends:
        os.close(inner)
    written = {ends[0][0]: [], ends[1][0]: []}
    is_open = set(written)
    while is_open:
        ready, _, _ = select.select(list(is_open), [], [], 120)
        if not ready:
            process.kill()
            raise AssertionError("nothing came for two minutes")
        for end in ready:
            try:
                data = os.read(end, 1 << 16)
            except OSError:  # the other end is closed
                data = b""
            if data:
                written[end].append(data)
            else:
                is_open.remove(end)
    code = process.wait(60)
    for end in written:
        os.close(end)
    return code, written[ends[0][0]], written[ends[1][0]]


class TerminalTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.prompts = pathlib.Path(directory.name) / "prompt.jsonl"

    # The model goes on in curly quotes, of several tokens each.
    PROMPT = {"prompt": "\u201cYes,\u201d said she. \u201cIt is",
              "temperature": 0, "max_tokens": 40}

    def test_text_streams_in_whole_characters(self):
        self.prompts.write_text(json.dumps(self.PROMPT))
        flags = ["--prompts", self.prompts]
        whole = portolan.generate(BUILD, self.prompts, [])[0]
        # Slow enough that the terminal is read between two tokens.
        code, out, _ = on_terminal(
            ["generate", "--model", portolan.MODEL, *flags, "--expert-memory",
             "12.5%", "--expert-link", "40MB/s,10us"])
        self.assertEqual(code, 0)
        text = b"".join(out).decode().replace("\r\n", "\n")
        self.assertEqual(text, whole["text"] + "\n")
        # It came piece by piece, each of whole characters ...
        self.assertGreater(len(out), 8)
        for piece in out:
            piece.decode()
        # ... though a character was spread over tokens.
        self.assertTrue(self.splits_a_character(whole["tokens"]))

    def splits_a_character(self, tokens):
        tokenizer = json.loads(
            (portolan.MODEL / "tokenizer.json").read_text())
        text_of = {i: t for t, i in tokenizer["model"]["vocab"].items()}
        byte_of = byte_alphabet()
        for token in tokens:
            data = bytes(byte_of[c] for c in text_of.get(token, ""))
            try:
                data.decode()
            except UnicodeDecodeError:
                return True
        return False

    def test_loading_shows_how_far_it_is(self):
        code, out, err = on_terminal(
            ["generate", "--model", portolan.MODEL, "--prompt", "Once",
             "--max-tokens", "2", "--expert-link", "10MB/s,10us"])
        self.assertEqual(code, 0)
        self.assertNotIn(b"\033", b"".join(out))
        shown = b"".join(err).decode()
        self.assertRegex(shown, r"\r\033\[KLoading 256 experts +\d+ % \(")
        # The line is wiped at the end.
        self.assertTrue(shown.endswith("\r\033[K"), repr(shown[-80:]))


def byte_alphabet():
    """GPT-2's table of printable stand-ins: character to byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{chr(b): b for b in plain},
            **{chr(256 + i): b for i, b in enumerate(others)}}


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
