#!/usr/bin/env python3
"""Small tokenizers trained on generated text, and what the tokenizers package makes of some strings.

    pip install tokenizers
    python3 make.py            # writes NAME.json and cases.json beside itself
"""
import json, os, random
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


def deepseek():
    """DeepSeek's pre-tokenizer: numbers by three, Han and kana, words, then bytes."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("\\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                                   " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
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


STRINGS = [
    "", " ", "a", "\n", "anberco deel, figahe!", "  two  spaces\tand a tab \n\n newline ", "1234567 12 3.14159 1e-9", "it's we'll I'VE don't",
    "стоварегони тьла привет", "的一是不了人 日本語テキスト 한국어 ไทย العربية", "café cafe\u0301 naïve Å", "🙂👩‍👩‍👧‍👦 ½ ² ⅷ ①", "x = f(y); if (a[i] != 0) { return; } // == !!",
    "ſ İ ß K", "\u00a0nbsp\u2003em\u3000wide\u200bzero", "a\r\nb\rc\x0bd\x0ce\x85f\u2028g", "\x00\x01\x7f", "<｜begin▁of▁sentence｜>co<｜end▁of▁sentence｜>",
    "<think>deep <think> deeper</think> <thin", "in <mask> an  <mask>  <|end|>un<|end|>", "<s>wa</s> <unk> <0x41> ▁ Ġ Ċ", "verververver" * 12, "!?!?...!!! ((( ]]] ===",
    "#include <stdio.h>\nint main(void) { return 0; }\n", "    indented\n        more\n", "_snake_case CamelCase kebab-case x.y.z", "ververunwanted 的的的的的 000000000",
]


def main():
    cases = {}
    for make in (deepseek, gpt2, fallback, unknown):
        t, name = make(), make.__name__
        t.save(os.path.join(HERE, name + ".json"), pretty=False)
        cases[name] = [dict(text=s, ids=(ids := t.encode(s, add_special_tokens=False).ids), decoded=t.decode(ids, skip_special_tokens=False)) for s in STRINGS]
    with open(os.path.join(HERE, "cases.json"), "w") as f: json.dump(cases, f, ensure_ascii=True)


if __name__ == "__main__": main()
