#!/usr/bin/env python3
"""Writes what Hugging Face's tokenizers library makes of many small tokenizers.

    python3 -m venv VENV && VENV/bin/pip install tokenizers sentencepiece
    VENV/bin/python tests/parity/tokenizer_parity.py             # the goldens
    VENV/bin/python tests/parity/tokenizer_parity.py --out DIR --random 400
    PORTOLAN_TOKENIZER_GOLDENS=DIR build/release/tests/tokenizer_parity_test

Each file of the output is one JSON object: "tokenizers" has the sections of
some tokenizer.json files by name (sections that all share are in "shared"),
"cases" what the library says of each. The second form makes other texts, at
random, for a longer comparison that is not committed.
"""

import argparse
import json
import pathlib
import random
import unicodedata

import tokenizers

# All texts are written for this file.
TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    " \t\n x",
    "The harbour master counts forty ships.",
    " leading and trailing ",
    "two  spaces   three    four",
    "tabs\tand\nlines\r\nand\n\n\nblank ones\n",
    "I'll say we've seen they're SURE it's HERE'S and I'D",
    "12 345 6789 1,000.5 ½ ² Ⅷ ٣٤ ① 七",
    "naïve café Ångström e\u0301 n\u0303 o\u0302\u0323 \u0301start",
    "İstanbul ǅungla ΣΟΦΟΣ straße ﬁne ｆｕｌｌ　width ™ Å",
    "日本語の海図。你好，世界！ 안녕 각 ㈎",
    "नमस्ते שלום مرحبا Привет",
    "🙂👩\u200d🚀🇵🇹 a🙂b ☸",
    "nbsp\u00a0thin\u2009line\u2028next\u0085zero\u200bjoin\ufeff",
    "(x_1+y)*[z] -> {a:b}; #tag @you $5 50% ~^`|\\ \"q\" a--b... ¿? «»",
    "snake_case camelCase HTTPServer2Go",
    "▁low▁line ▁ and <0x41> <unk> </w> ##x",
    "\x00\x01\x7f control",
    "<s>begin</s> and <sep> inside <SEP> upper",
    "a<mask>b a <mask> b  <mask>  <mask>\n\nc<mask>",
    "word wordy sword word, word",
    "raw\u00e9tok rawe\u0301tok RAW\u00c9TOK",
    "<tok><tok> <tok>\t<tok>x",
    "aaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbb ababababab",
    "-- --- ---- -a-b--c",
]

CORPUS = [
    "the pilot reads the chart and the ship follows the coast",
    "a storm from the north drives the ships back to the harbour",
    "sailors remember where others sailed and draw what they remember",
    "counting the stars, 1 2 3 10 20 100, she finds the island again",
    "they're late; it's dark; we've lost the light and don't see land",
    "der Hafen, le port, el puerto, гавань и море, 海と空と船 海 空",
] * 3

PIECES = (
    list("abcdexyz ABZ  \n\t.,;'-_!?<>0123456789éÉßİǅΣﬁ①½▁海空の船ш\u0301\u0323")
    + ["\u00a0", "\u200d", "🙂", "👩", "가", "\u3000", "<s>", "</s>", "<mask>",
       "<sep>", "word", "the", " the", "'s", "'LL", "  ", "\r\n", "\x85", "<tok>",
       "raw\u00e9tok"]
)

GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
         "use_regex": False}
PLAIN_DECODER = {"type": "Fuse"}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior,
            "invert": invert}


def sequence(field, *parts):
    return {"type": "Sequence", field: list(parts)}


def template(prefix=(), suffix=()):
    """prefix, suffix: (token, id)"""
    item = lambda t: {"SpecialToken": {"id": t[0], "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*map(item, prefix), {"Sequence": {"id": "A", "type_id": 0}},
                   *map(item, suffix)],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            t: {"id": t, "ids": [i], "tokens": [t]} for t, i in
            [*prefix, *suffix]},
    }


def added(i, content, **flags):
    token = {"id": i, "content": content, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False,
             "special": False}
    return {**token, **flags}


def bpe(vocab, merges, **options):
    model = {"type": "BPE", "dropout": None, "unk_token": None,
             "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocab, "merges": merges}
    return {**model, **options}


def train(pre_tokenizer, size, alphabet, special=(), normalizer=None):
    """Vocabulary and merges of a BPE trained on CORPUS."""
    model = tokenizers.models.BPE()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(special),
        show_progress=False)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(m) for m in model["merges"]]


def byte_level():
    pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab, merges = train(pre, 256 + 90, pre.alphabet())
    n = len(vocab)
    ends = [added(n, "<|end|>", special=True), added(n + 1, "<|user|>"),
            added(n + 2, "<s>", special=True)]
    qwen = {"normalizer": {"type": "NFC"},
            "pre_tokenizer": sequence("pretokenizers", split(QWEN2), BYTES),
            "post_processor": BYTES, "decoder": BYTES, "added_tokens": ends}
    whole = dict(vocab)
    whole["Ġharbour"] = n  # no merges lead here
    return {
        "shared": {"model": bpe(vocab, merges)},
        "tokenizers": {
            "qwen2": qwen,
            "llama3": {
                "pre_tokenizer": sequence("pretokenizers", split(LLAMA3),
                                          BYTES),
                "post_processor": sequence("processors", BYTES,
                                           template([("<s>", n + 2)])),
                "decoder": BYTES, "added_tokens": ends},
            "gpt2": {
                "pre_tokenizer": {"type": "ByteLevel", "trim_offsets": True,
                                  "add_prefix_space": False,
                                  "use_regex": True},
                "decoder": BYTES, "added_tokens": ends[:1]},
            "gpt2_prefix_space": {
                "pre_tokenizer": {"type": "ByteLevel", "trim_offsets": True,
                                  "add_prefix_space": True,
                                  "use_regex": True},
                "post_processor": template([("<s>", n + 2)],
                                           [("<|end|>", n)]),
                "decoder": BYTES, "added_tokens": ends},
            "deepseek": {
                "pre_tokenizer": sequence(
                    "pretokenizers", split(r"[\r\n]"), split(r"\s?\p{L}+"),
                    split(r"\s?\p{P}+"), split(r"[\u4e00-\u9fff\u3040-\u30ff]+"),
                    {"type": "Digits", "individual_digits": True}, BYTES),
                "decoder": BYTES, "added_tokens": ends},
            "normalizer_bytes": {
                "normalizer": sequence("normalizers", {"type": "NFD"},
                                       {"type": "ByteLevel"}),
                "pre_tokenizer": split("Ġ", "MergedWithNext", kind="String"),
                "decoder": BYTES,
                "added_tokens": [added(n, "raw\u00e9tok", normalized=True)]},
            "no_pre_tokenizer": {
                "normalizer": {"type": "ByteLevel"}, "decoder": BYTES},
            "no_decoder": {"pre_tokenizer": BYTES},
            "merges_as_pairs": {
                **qwen, "model": bpe(vocab, [m.split(" ") for m in merges])},
            "ignore_merges": {
                **qwen, "added_tokens": [],
                "model": bpe(whole, merges, ignore_merges=True)},
        },
    }


def metaspace():
    pre = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    vocab, merges = train(pre, 259 + 140, [], special)
    fallback = dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    marks = [added(0, "<unk>", special=True), added(1, "<s>", special=True),
             added(2, "</s>", special=True)]
    spelled = {k: v for k, v in vocab.items() if not k.startswith("<0x")}
    half = {k: v for k, v in vocab.items() if not k.startswith("<0xE")}
    decoder = sequence(
        "decoders",
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, PLAIN_DECODER,
        {"type": "Strip", "content": " ", "start": 1, "stop": 0})
    space = lambda **o: {"type": "Metaspace", "replacement": "▁",
                         "prepend_scheme": "always", "split": True, **o}
    bos = template([("<s>", 1)])
    llama2 = {
        "normalizer": sequence(
            "normalizers", {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        "post_processor": bos, "decoder": decoder, "added_tokens": marks}
    return {
        "shared": {"model": bpe(vocab, merges, **fallback)},
        "tokenizers": {
            "llama2": llama2,
            "llama2_normalized_token": {
                **llama2, "added_tokens":
                    marks + [added(len(vocab), "<tok>", normalized=True)]},
            "mixtral": {
                "pre_tokenizer": space(prepend_scheme="first", split=False),
                "post_processor": bos, "decoder": decoder,
                "added_tokens": marks},
            "first_strip": {
                "normalizer": {"type": "Strip", "strip_left": True,
                               "strip_right": False},
                "pre_tokenizer": space(prepend_scheme="first"),
                "decoder": space(prepend_scheme="first"),
                "added_tokens": marks},
            "first_replace": {
                "normalizer": {"type": "Replace", "content": "",
                               "pattern": {"Regex": "^(<|T|1)"}},
                "pre_tokenizer": space(prepend_scheme="first"),
                "decoder": space(prepend_scheme="first")},
            "always": {"pre_tokenizer": space(), "decoder": space(),
                       "added_tokens": marks},
            "never": {"pre_tokenizer": space(prepend_scheme="never"),
                      "decoder": space(prepend_scheme="never"),
                      "added_tokens": marks},
            "legacy": {
                "pre_tokenizer": {"type": "Metaspace", "replacement": "▁",
                                  "add_prefix_space": True},
                "decoder": {"type": "Metaspace", "replacement": "▁",
                            "add_prefix_space": True}},
            "behind_split": {
                "pre_tokenizer": sequence(
                    "pretokenizers", {"type": "WhitespaceSplit"}, space()),
                "decoder": space()},
            "unk": {
                **llama2, "model": bpe(spelled, merges, unk_token="<unk>")},
            "unk_fused": {
                **llama2, "model": bpe(spelled, merges, unk_token="<unk>",
                                       fuse_unk=True)},
            "no_unk": {**llama2, "model": bpe(spelled, merges)},
            "half_of_the_bytes": {
                **llama2, "model": bpe(half, merges, **fallback)},
            "strip_both_ends": {
                **llama2, "decoder": sequence(
                    "decoders", {"type": "ByteFallback"}, PLAIN_DECODER,
                    {"type": "Replace", "pattern": {"String": "▁the"},
                     "content": "[THE]"},
                    {"type": "Replace", "pattern": {"Regex": "▁+"},
                     "content": "_"},
                    {"type": "Strip", "content": "_", "start": 1, "stop": 2})},
            "strip_every_token": {
                **llama2, "decoder": sequence(
                    "decoders", {"type": "Replace", "content": "<->",
                                 "pattern": {"Regex": "[aeiou]+"}},
                    {"type": "Strip", "content": "▁", "start": 1, "stop": 0},
                    {"type": "ByteFallback"})},
        },
    }


def components():
    """One small model in which the end of each piece shows: "</w>"."""
    characters = set("▁<>|")
    for text in TEXTS + PIECES:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            normal = unicodedata.normalize(form, text)
            characters.update(normal + normal.lower())
    vocab = {"<unk>": 0}
    for c in sorted(characters):
        vocab.setdefault(c, len(vocab))
        vocab.setdefault(c + "</w>", len(vocab))
    merges = []
    for left, right in [("a", "b"), ("ab", "ab"), (" ", " "), ("t", "h"),
                        ("th", "e"), ("-", "-")]:
        for r in (right, right + "</w>"):
            for part in (left, r):
                vocab.setdefault(part, len(vocab))
            vocab.setdefault(left + r, len(vocab))
            merges.append([left, r])
    options = dict(unk_token="<unk>", end_of_word_suffix="</w>")
    n = len(vocab)
    prefixed = {"<unk>": 0}
    for c in "abcdefghijklmnopqrstuvwxyz":
        for form in (c, "##" + c, "##" + c + "</w>"):
            prefixed.setdefault(form, len(prefixed))
    prefixed["the</w>"] = len(prefixed)
    prefixed["th"] = len(prefixed)
    cases = {
        "prefix_and_suffix": {
            "pre_tokenizer": {"type": "Whitespace"},
            "model": bpe(prefixed, [["t", "##h"], ["th", "##e</w>"]],
                         continuing_subword_prefix="##", **options)},
    }
    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        cases[name] = {"normalizer": {"type": name}}
    cases["accents"] = {"normalizer": sequence(
        "normalizers", {"type": "NFD"}, {"type": "StripAccents"},
        {"type": "Lowercase"})}
    for left, right in ((True, True), (True, False), (False, True)):
        cases[f"strip_{left}_{right}"] = {"normalizer": {
            "type": "Strip", "strip_left": left, "strip_right": right}}
    for kind, pattern, content in (("Regex", r"\s+", " "), ("String", "a", ""),
                                   ("String", "aa", "a"),
                                   ("Regex", r"(?<=a)b|\d", "<>")):
        cases[f"replace_{kind}_{pattern}"] = {"normalizer": {
            "type": "Replace", "pattern": {kind: pattern}, "content": content}}
    behaviors = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                 "Contiguous")
    for behavior in behaviors:
        cases[f"punctuation_{behavior}"] = {"pre_tokenizer": {
            "type": "Punctuation", "behavior": behavior}}
        for invert in (False, True):
            for kind, pattern in (("String", "-"), ("Regex", r"\s|-"),
                                  ("Regex", r"x*")):
                cases[f"split_{kind}_{pattern}_{behavior}_{invert}"] = {
                    "pre_tokenizer": split(pattern, behavior, invert, kind)}
    for name in ("Whitespace", "WhitespaceSplit"):
        cases[name] = {"pre_tokenizer": {"type": name}}
    for individual in (False, True):
        cases[f"digits_{individual}"] = {"pre_tokenizer": {
            "type": "Digits", "individual_digits": individual}}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for flag in (None, *flags):
        on = {flag: True} if flag else {}
        cases[f"added_{flag}"] = {
            "normalizer": sequence("normalizers", {"type": "Lowercase"},
                                   {"type": "NFC"}),
            "added_tokens": [
                added(n, "word", **on), added(n + 1, "<mask>", **on),
                added(n + 2, "<sep>", **on), added(n + 3, "raw\u00e9tok", **on),
                added(n + 4, "<tok>", **on), added(n + 5, "<tok><tok>", **on),
                added(n + 6, "\n\n", **on)]}
    cases["added_strip_both"] = {"added_tokens": [
        added(n, "<mask>", lstrip=True, rstrip=True, special=True),
        added(n + 1, "\n\n", lstrip=True), added(n + 2, "<tok>", rstrip=True)]}
    return {"shared": {"model": bpe(vocab, merges, **options)},
            "tokenizers": cases}


def some_ids(rng, size, specials):
    ids = [rng.randrange(size) for _ in range(rng.randint(1, 12))]
    if specials and rng.random() < 0.3:
        ids.insert(rng.randrange(len(ids) + 1), rng.choice(specials))
    return ids


def byte_runs(rng, tokenizer):
    """Ids that spell whole, broken and cut characters byte by byte."""
    chosen = "🙂é海a".encode() if rng.random() < 0.5 else "船".encode()
    chosen = bytearray(chosen)
    if rng.random() < 0.5:
        chosen[rng.randrange(len(chosen))] = rng.randrange(256)
    if rng.random() < 0.5:
        del chosen[rng.randrange(len(chosen)):]
    names = [f"<0x{b:02X}>" for b in chosen]
    ids = [tokenizer.token_to_id(name) for name in names]
    return [i for i in ids if i is not None]


def expectations(config, texts, rng):
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(
        {"version": "1.0", "truncation": None, "padding": None,
         "normalizer": None, "pre_tokenizer": None, "post_processor": None,
         "decoder": None, "added_tokens": [], **config}))
    return cases_of(tokenizer, config, texts, rng)


def cases_of(tokenizer, config, texts, rng):
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    encode = []
    for text in texts:
        case = {"text": text, "ids": plain(text)}
        special = tokenizer.encode(text).ids
        if special != case["ids"]:
            case["with_special"] = special
        encode.append(case)
    size = tokenizer.get_vocab_size()
    specials = [t["id"] for t in config.get("added_tokens", []) if t["special"]]
    if "decoder" not in config and "added_tokens" not in config:
        return {"encode": encode, "decode": []}
    sequences = [case.get("with_special", case["ids"]) for case in encode]
    sequences += [some_ids(rng, size + 3, specials) for _ in range(8)]
    if tokenizer.token_to_id("<0x41>") is not None:
        sequences += [byte_runs(rng, tokenizer) for _ in range(16)]
        sequences += [some_ids(rng, size, specials) + byte_runs(rng, tokenizer)
                      + some_ids(rng, 3, specials) for _ in range(8)]
    decode = []
    for ids in sequences:
        try:
            text = tokenizer.decode(ids, skip_special_tokens=False)
            skipped = tokenizer.decode(ids, skip_special_tokens=True)
        except BaseException as e:  # Strip panics on a text too short for it
            if type(e).__name__ != "PanicException":
                raise
            continue
        case = {"ids": ids, "text": text}
        if skipped != case["text"]:
            case["without_special"] = skipped
        decode.append(case)
    return {"encode": encode, "decode": decode}


def write_bundled(out, texts, rng):
    """Of the bundled model's own tokenizer, with some longer texts."""
    path = (pathlib.Path(__file__).resolve().parents[2] / "models" /
            "tiny-moe" / "tokenizer.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    longer = ["".join(rng.choices(PIECES, k=rng.randint(1, 30)))
              for _ in range(150)]
    write(out / "bundled.json",
          cases_of(tokenizers.Tokenizer.from_file(str(path)), config,
                   texts + longer, rng))


def write_sentencepiece(out, texts, rng):
    import io

    import sentencepiece
    for kind in ("bpe", "unigram"):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=model,
            model_type=kind, vocab_size=256 + 80, byte_fallback=True,
            character_coverage=1.0, minloglevel=2,
            remove_extra_whitespaces=kind == "unigram",
            normalization_rule_name="identity")
        processor = sentencepiece.SentencePieceProcessor(
            model_proto=model.getvalue())
        folder = out / f"sentencepiece_{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(model.getvalue())
        encode = [{"text": t, "ids": processor.encode(t),
                   "with_special": [processor.bos_id(), *processor.encode(t)]}
                  for t in texts if "\0" not in t]
        sequences = [c["with_special"] for c in encode]
        sequences += [some_ids(rng, processor.vocab_size(), [1, 2])
                      for _ in range(30)]
        sequences += [[3 + b for b in bytes(rng.choices(
            [0x41, 0xF0, 0x9F, 0x99, 0x82, 0xE6, 0xB5, 0xB7], k=9))]
            for _ in range(30)]
        special = lambda i: processor.is_control(i) or processor.is_unknown(i)
        decode = [{"ids": ids, "text": processor.decode(ids),
                   "without_special": processor.decode(
                       [i for i in ids if not special(i)])}
                  for ids in sequences]
        write(folder / "expected.json", {"encode": encode, "decode": decode})


def write(path, content):
    """JSON with one line a tokenizer or case, so that changes are readable."""
    compact = lambda o: json.dumps(o, ensure_ascii=False, separators=(",", ":"))
    parts = []
    for key, value in content.items():
        if isinstance(value, dict):
            body = ",\n".join(
                f"{compact(k)}:{compact(v)}" for k, v in value.items())
            parts.append(f"{compact(key)}:{{\n{body}}}")
        else:
            body = ",\n".join(map(compact, value))
            parts.append(f"{compact(key)}:[\n{body}]")
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=pathlib.Path,
                        default=here / "data" / "tokenizer")
    parser.add_argument("--random", type=int, default=0,
                        help="that many random texts instead of the fixed ones")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    texts = TEXTS
    if options.random:
        texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 40)))
                 for _ in range(options.random)]
    options.out.mkdir(parents=True, exist_ok=True)
    for make in (byte_level, metaspace, components):
        content = make()
        content["cases"] = {
            name: expectations({**content["shared"], **config}, texts, rng)
            for name, config in content["tokenizers"].items()}
        write(options.out / f"{make.__name__}.json", content)
    write_sentencepiece(options.out, texts, rng)
    write_bundled(options.out, texts, rng)


if __name__ == "__main__":
    main()
