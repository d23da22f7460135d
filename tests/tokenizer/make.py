#!/usr/bin/env python3
"""What the tokenizers package makes of some strings, as golden results, and a comparison with it.

    pip install tokenizers
    python3 make.py                 # writes beside itself: NAME.json, small tokenizers trained on generated text, with cases.json;
                                    # splits.json, pieces of a sample of texts under the pre-tokenizers of published models
    python3 make.py --all ../../lsa # every assigned code point in eight places and 20,000 random strings through each of these
                                    # pre-tokenizers, in the package and here: prints what differs (minutes)
"""
import json, os, random, subprocess, sys, tempfile, unicodedata
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
BYTES = pre_tokenizers.ByteLevel.alphabet()


def text():
    """Words over several alphabets, numbers, code and punctuation, from a fixed seed."""
    r = random.Random(1)
    syllables = ["an", "ber", "co", "de", "el", "fi", "ga", "he", "in", "lo", "ma", "ne", "or", "pe", "ri", "sta", "ti", "un", "ver", "wa"]
    cyrillic = ["ва", "го", "ни", "ре", "сто", "ть", "ла"]
    han = list("的一是不了人我在有他这中大来上国")
    lines = []
    for _ in range(400):
        words = []
        for _ in range(r.randint(3, 12)):
            kind = r.random()
            if kind < 0.6: words.append("".join(r.choices(syllables, k=r.randint(1, 4))))
            elif kind < 0.7: words.append("".join(r.choices(cyrillic, k=r.randint(1, 3))))
            elif kind < 0.8: words.append("".join(r.choices(han, k=r.randint(1, 5))))
            elif kind < 0.9: words.append(str(r.randint(0, 10 ** r.randint(1, 7))))
            else: words.append(r.choice(["it's", "we'll", "x = f(y);", "if (a[i] != 0) {", "#include", "...", "café"]))
        lines.append(r.choice(["", "", "  ", "\t"]) + " ".join(words) + r.choice([".", "!", "?", ",", ""]))
    return lines


def train(tokenizer, size, alphabet=(), special=()):
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(text(), trainer)
    return tokenizer


def deepseek_splits():
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("\\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                                   " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def deepseek():
    """DeepSeek's pre-tokenizer: numbers by three, Han and kana, words, then bytes."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([])
    t.pre_tokenizer = deepseek_splits()
    t.decoder = decoders.ByteLevel()
    train(t, 420, BYTES, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    t.add_tokens([AddedToken("<think>", normalized=True, special=False), AddedToken("<think>deep", normalized=True, special=False)])
    return t


def gpt2():
    """ByteLevel with its own expression, a space before the text, whole words kept, stripping added tokens."""
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    train(t, 360, BYTES)
    t.add_special_tokens([AddedToken("<|end|>"), AddedToken("<mask>", lstrip=True, rstrip=True)])
    return t


def fallback():
    """Characters, spaces as ▁, bytes where a character has no token."""
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    train(t, 700, special=["<unk>", "<s>"] + [f"<0x{b:02X}>" for b in range(256)])
    return t


def unknown():
    """Characters, no bytes: what has no token is unknown, neighbours together. Splits of every behaviour."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("\\s+"), "removed"),
        pre_tokenizers.Split("=", "merged_with_previous"),
        pre_tokenizers.Split(Regex("[(\\[]"), "merged_with_next"),
        pre_tokenizers.Split(Regex("[.!?]"), "contiguous"),
        pre_tokenizers.Split(Regex("[a-z]+"), "isolated", invert=True),
        pre_tokenizers.Digits(individual_digits=True)])
    return train(t, 200, special=["<unk>"])


def added():
    """Added tokens that strip, that are words, that are looked for after normalisation; Unicode's spaces and letters around them."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Replace(Regex("é|e\u0301"), "e")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    train(t, 200, special=["<unk>"])
    t.add_tokens([AddedToken("<word>", single_word=True, normalized=False), AddedToken("the end", normalized=True), AddedToken("é<", normalized=True),
                  AddedToken("<strip>", lstrip=True, rstrip=True, normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
                  AddedToken("<right>", rstrip=True, normalized=False), AddedToken("end", single_word=True, normalized=True)])
    return t


def partial():
    """A byte fallback of some bytes: é is there as bytes, a character with a byte missing is unknown."""
    vocab = {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "<0x28>": 3, "a": 4, "b": 5, " ": 6, "ab": 7, "<0xB8>": 8, "<0x80>": 9, "<0xE4>": 10}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], byte_fallback=True, unk_token="<unk>", fuse_unk=False))
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return t


def few():
    """Bytes, most of them without a token, and no unknown token."""
    vocab = {c: i for i, c in enumerate("Ġabcdeno.Ã©")}
    vocab["Ġa"] = len(vocab)
    t = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "a")]))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    return t


def metaspace():
    """Metaspace, the mark before the first word alone; an added token between words."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    train(t, 250, special=["<unk>", "<s>"])
    return t


STRINGS = [
    "", " ", "a", "\n", "anberco deel, figahe!", "  two  spaces\tand a tab \n\n newline ", "1234567 12 3.14159 1e-9", "it's we'll I'VE don't",
    "стоварегони тьла привет", "的一是不了人 日本語テキスト 한국어 ไทย العربية", "café cafe\u0301 naïve Å", "🙂👩‍👩‍👧‍👦 ½ ² ⅷ ①", "x = f(y); if (a[i] != 0) { return; } // == !!",
    "ſ İ ß K", "\u00a0nbsp\u2003em\u3000wide\u200bzero", "a\r\nb\rc\x0bd\x0ce\x85f\u2028g", "\x00\x01\x7f", "<｜begin▁of▁sentence｜>co<｜end▁of▁sentence｜>",
    "<think>deep <think> deeper</think> <thin", "in <mask> an  <mask>  <|end|>un<|end|>", "<s>wa</s> <unk> <0x41> ▁ Ġ Ċ", "verververver" * 12, "!?!?...!!! ((( ]]] ===",
    "#include <stdio.h>\nint main(void) { return 0; }\n", "    indented\n        more\n", "_snake_case CamelCase kebab-case x.y.z", "ververunwanted 的的的的的 000000000",
    "word two<word> <word>s a<word> (<word>) é<word>e\u0301<word>\u0300 _<word> 一<word> \u200d<word>", "the end the  end the\u00a0end The end",
    "x \u2003\u00a0<strip>\u3000\x85y <strip>\u200b<strip>  <strip> <left> <left>  <right>  <left>\u180e<right>\u1680z", "ab\xe9\u4e00\xe9 \u4e00\xe9\xe8\xe9\u20ac x\u20acy",

]


# ---- pre-tokenizers of published models ----

def split(pattern): return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(): return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def sequence(*parts): return pre_tokenizers.Sequence([*parts, byte_level()])


ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def cased(numbers, ends, contractions="", less=""):
    """Words in which small letters follow capital ones: o200k's kind."""
    start, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{UPPER}{less}]", f"[{LOWER}{less}]"
    return rf"{start}{upper}*{lower}+{contractions}|{start}{upper}+{lower}*{contractions}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[{ends}]*|{REST}"


PRE_TOKENIZERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "cl100k": sequence(split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")),
    "o200k": sequence(split(cased(r"\p{N}{1,3}", r"\r\n/", ENGLISH + "?"))),
    "llama3": sequence(split(ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + REST)),
    "qwen2": sequence(split(ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + REST)),
    "tekken": sequence(split(cased(r"\p{N}", r"\r\n/"))),
    "kimi": sequence(split(r"[\p{Han}]+|" + cased(r"\p{N}{1,3}", r"\r\n", ENGLISH + "?", r"&&[^\p{Han}]"))),
    "deepseek_v3": deepseek_splits(),
    "deepseek_v2": sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), pre_tokenizers.Digits(individual_digits=True)),
    "starcoder": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "falcon": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(), split("[0-9][0-9][0-9]")]),
    "bloom": sequence(split(" ?[^(\\s|[.,!?…。,、।۔،])]+")),
    "gemma": pre_tokenizers.Split(" ", "merged_with_previous"),
    "metaspace": pre_tokenizers.Metaspace(),
    "whitespace": pre_tokenizers.Whitespace(),
    "whitespace_split": pre_tokenizers.WhitespaceSplit(),
    # The syntax that sets Oniguruma apart.
    "thousands": split(r"(?<=\d)(?=(?:\d{3})+(?!\d))"),
    "empty": pre_tokenizers.Split(Regex(r"x*"), "merged_with_next"),
    "classes": split(r"[\p{L}&&[^a-z]]+|[a-c[x-z]]+|[[:punct:]]+|[[:digit:][:space:]]+"),
    "marks": split(r"[^\s[:punct:]]+|[\[\]]|[[:^punct:]&&[^0-9]]"),
    "letters": split(r"\w+|\h+|\R|\v"),
    "boundaries": split(r"\b\p{Greek}+\b|\H\b|^.|.$"),
}


def lengths(tokenizer, text):
    """Of the pieces, in bytes: a character of ByteLevel's is a byte."""
    pieces = [piece for piece, _ in tokenizer.pre_tokenize_str(text)]
    as_bytes = "ByteLevel" in repr(tokenizer)
    return " ".join(str(len(piece) if as_bytes else len(piece.encode())) for piece in pieces)


def around(code):
    """A text with a code point in eight places."""
    c = chr(code)
    return f"{c}a{c} {c}1{c}\n{c}{c} A.{c}'s{c}\r"


def random_strings(n, seed):
    r = random.Random(seed)
    pools = ["abcxyzABC", "0123456789", " \t\n\r\u00a0\u2003\u3000\u200b\u180e\u0085", ".,!?'\"()[]{}_-/\\|&^~`", "éßſİKΩавгд", "的一是。、ー゠ぁヿ々〇", "\u0301\u0300\u093e\u20dd\u200d\ufe0f",
             "½²ⅷ①٣५", "한글ไทยعربीकাআ", "🙂👩🏽𝐀𝟘𐐀𒀀"]
    for _ in range(n):
        yield "".join(r.choice(r.choice(pools)) if r.random() < 0.7 else r.choice(["'s", "'LL", "  ", "\r\n", "don't", "123456", "HTTPServer"]) for _ in range(r.randint(1, 30)))


def assigned():
    """The code points of the package's Unicode, less all but the first of the private areas, which are alike."""
    unassigned = pre_tokenizers.Split(Regex(r"\p{Cn}"), "removed")
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000 or 0xE001 <= code < 0xF8FF or code > 0xF0000: continue
        if unassigned.pre_tokenize_str(chr(code)): yield code


# Code points that dialects of regular expressions, or versions of Unicode, are known to part over.
ODD = [0, 0x0B, 0x0C, 0x1C, 0x1F, 0x7F, 0x85, 0xA0, 0xAA, 0xAD, 0xB2, 0xBC, 0x130, 0x17F, 0x300, 0x345, 0x660, 0x6DD, 0x903, 0xE31, 0x1680, 0x1885, 0x180E, 0x200B, 0x200C, 0x200D,
       0x2028, 0x2029, 0x202F, 0x203F, 0x2060, 0x2160, 0x20DD, 0x212A, 0x2460, 0x24B6, 0x2E2F, 0x3000, 0x3001, 0x3002, 0x3005, 0x3007, 0x3021, 0x309B, 0x30FB, 0x30FC, 0x3099, 0xA66F,
       0xFE0F, 0xFEFF, 0xFF10, 0xFF65, 0xFF9E, 0x1D165, 0x1F130, 0x1F3FB, 0x20000, 0xE0001, 0xE0100]


def sample():
    codes = [code for code in assigned() if unicodedata.ucd_3_2_0.category(chr(code)) != "Cn"]  # the same in any later version
    return STRINGS[1:] + [around(code) for code in ODD + random.Random(5).sample(codes, 25)] + list(random_strings(40, 6))


def ours(lsa, tokenizer, texts):
    """lengths() of every text, by the program."""
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("description", "texts", "result")]
        with open(names[0], "w") as f: f.write(description(tokenizer))
        with open(names[1], "w") as f: f.writelines(text.encode().hex() + "\n" for text in texts)
        subprocess.run([lsa, os.path.join(HERE, "split.lua"), *names], check=True)
        with open(names[2]) as f: return f.read().split("\n")[:-1]


def compare(lsa):
    """Every text through every pre-tokenizer, there and here; 1 where more differs than what the Unicode here does not have yet."""
    codes, strings = list(assigned()), list(random_strings(20000, 7)) + STRINGS[1:]
    newer = {code for code, left in zip(codes, ours(lsa, pre_tokenizers.Split(Regex(r"\p{Cn}"), "removed"), map(chr, codes))) if not left}
    print(f"{len(codes)} code points are assigned there, {len(newer)} of them not yet here")
    texts, parted, failed = [around(code) for code in codes] + strings, set(), False
    for name, tokenizer in PRE_TOKENIZERS.items():
        here = ours(lsa, tokenizer, texts)
        assert len(here) == len(texts)
        differ = [i for i, text in enumerate(texts) if lengths(tokenizer, text) != here[i]]
        points = {codes[i] for i in differ if i < len(codes)}
        rest = [texts[i] for i in differ if i >= len(codes)]
        parted |= points
        failed = failed or bool(rest)
        known = sorted(points - newer)
        print(f"{name}: {len(points)} code points differ, {len(known)} of them assigned here" + (" (" + " ".join(f"{c:04X}" for c in known[:9]) + ")" if known else "") +
              f"; {len(rest)} of {len(strings)} strings" + (f": {rest[0]!r}" if rest else ""), flush=True)
    print(f"any: {len(parted)} code points differ, {len(parted - newer)} of them assigned here: {' '.join(f'{c:04X}' for c in sorted(parted - newer))}")
    return int(failed)


def description(tokenizer):
    """As tokenizer.json has it."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = tokenizer
    return json.dumps(json.loads(t.to_str())["pre_tokenizer"])


def main():
    if sys.argv[1:2] == ["--all"]: return compare(sys.argv[2])
    cases = {}
    for make in (deepseek, gpt2, fallback, unknown, added, partial, few, metaspace):
        t, name = make(), make.__name__
        t.save(os.path.join(HERE, name + ".json"), pretty=False)
        cases[name] = [dict(text=s, ids=(ids := t.encode(s, add_special_tokens=False).ids), decoded=t.decode(ids, skip_special_tokens=False)) for s in STRINGS]
    with open(os.path.join(HERE, "cases.json"), "w") as f: json.dump(cases, f, ensure_ascii=True)
    texts = sample()
    splits = {name: dict(pre_tokenizer=json.loads(description(t)), lengths=[lengths(t, text) for text in texts]) for name, t in PRE_TOKENIZERS.items()}
    with open(os.path.join(HERE, "splits.json"), "w") as f: json.dump(dict(texts=texts, splits=splits), f, ensure_ascii=True)


if __name__ == "__main__": sys.exit(main())
