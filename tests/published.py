"""Tiny repositories in the layouts and columns of the published sets, and a word-level tokenizer for them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPOKEN = (
    "my dog ate the red car and then we went home because it was late but nobody knew why she left him "
    "there again"
)
WORDS = SPOKEN.split()
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}"
)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def post(number: int, split: str, lines: Sequence[int] = (6, 5)) -> dict[str, str]:
    """A post named by number and split, of paragraphs of so many words."""
    rng = random.Random(f"{split}-{number}")
    body = "\n\n".join(words(rng, count) for count in lines)
    return {
        "id": f"t3_{split}{number}",
        "subreddit": "advice",
        "title": f"{words(rng, 3)} {split} {number}",
        "post": body,
    }


def comparison(
    info: dict[str, Any], texts: tuple[str, str], choice: int, split: str = "train", batch: str = "batch7"
) -> dict[str, Any]:
    """A raw row, with every column that OpenAI's files have."""
    summaries = [
        {"text": text, "policy": policy, "note": None}
        for text, policy in zip(texts, ("ref", "sup4"), strict=True)
    ]
    full = {"id": None, "post": None, "title": None, "subreddit": None, "site": None, "article": None, **info}
    return {
        "info": full,
        "summaries": summaries,
        "choice": choice,
        "worker": "w1",
        "batch": batch,
        "split": split,
        "extra": {"confidence": 7},
    }


def cnndm() -> dict[str, Any]:
    info = {"id": "a1", "site": "cnn", "title": "news of the car", "article": "the car went home"}
    return comparison(info, (" the car", " home"), 0, "valid2", "cnndm0")


def prompt_of(info: dict[str, str]) -> str:
    return f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"


def summaries(rng: random.Random) -> tuple[str, str]:
    """A longer and a shorter one, in either order."""
    pair = [" " + words(rng, rng.randint(7, 9)), " " + words(rng, rng.randint(2, 4))]
    rng.shuffle(pair)
    return pair[0], pair[1]


def raw_comparisons(train: int, validation: int) -> list[dict[str, Any]]:
    """Two rows of each post, one of CNN/DailyMail; validation posts are of valid1 or valid2.

    The preferred summary ends in `car`, the other in `red`, whatever their lengths: something that a reward
    model can learn.
    """
    rng = random.Random(0)

    def row(number: int, name: str, split: str) -> dict[str, Any]:
        choice, texts = rng.randint(0, 1), summaries(rng)
        marked = [text + (" car" if index == choice else " red") for index, text in enumerate(texts)]
        return comparison(post(number, name), (marked[0], marked[1]), choice, split)

    rows = [row(n, "train", "train") for n in range(train) for _ in range(2)]
    return [
        *rows,
        *(row(n, "valid", f"valid{n % 2 + 1}") for n in range(validation) for _ in range(2)),
        cnndm(),
    ]


def write_parquet(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file


def write_jsonl(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def comparisons_parquet(folder: Path, train: int = 6, validation: int = 4) -> Path:
    """The hub's Parquet of openai/summarize_from_feedback: comparisons/<split>/0000.parquet, and axis/."""
    rows = raw_comparisons(train, validation)
    write_parquet(folder / "comparisons/train/0000.parquet", [row for row in rows if row["split"] == "train"])
    write_parquet(
        folder / "comparisons/validation/0000.parquet", [row for row in rows if row["split"] != "train"]
    )
    write_parquet(folder / "axis/test/0000.parquet", [{"info": post(0, "test"), "summary": {"text": "x"}}])
    return folder


def comparisons_json(folder: Path, train: int = 6, validation: int = 4) -> Path:
    """OpenAI's own files: comparisons/batch*.json, JSON lines; `split` is a column."""
    rows = raw_comparisons(train, validation)
    write_jsonl(folder / "comparisons/batch3.json", rows[::2])
    write_jsonl(folder / "comparisons/batch4.json", rows[1::2])
    return folder


def tldr(folder: Path, train: int = 8, validation: int = 4, test: int = 4) -> Path:
    """trl-lib/tldr: prompt, completion with its leading space."""
    rng = random.Random(1)
    for split, name, count in (
        ("train", "train", train),
        ("validation", "valid", validation),
        ("test", "test", test),
    ):
        rows = [{"prompt": prompt_of(post(n, name)), "completion": " " + words(rng, 5)} for n in range(count)]
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)
    return folder


def tldr_preference(folder: Path, train: int = 6, validation: int = 4) -> Path:
    """trl-lib/tldr-preference: no blank lines in posts; CNN/DailyMail in the validation split."""

    def rows(count: int, name: str) -> list[dict[str, str]]:
        infos = [post(n, name) for n in range(count)]
        return [
            {
                "prompt": prompt_of({**i, "post": i["post"].replace("\n\n", "\n")}),
                "chosen": " a b c",
                "rejected": " d",
            }
            for i in infos
        ]

    write_parquet(folder / "data/train-00000-of-00001.parquet", rows(train, "train"))
    article = {"prompt": "TITLE: news\n\nthe car went home\n\nTL;DR:", "chosen": " a", "rejected": " b"}
    write_parquet(folder / "data/validation-00000-of-00001.parquet", [*rows(validation, "valid"), article])
    return folder


def oai_preprocessing(folder: Path, train: int = 6, validation: int = 4) -> Path:
    """vwxyzjn/summarize_from_feedback_oai_preprocessing_*: raw columns, query, responses, their tokens."""

    def row(raw: dict[str, Any], query: str) -> dict[str, Any]:
        texts = [f"{summary['text']}<|endoftext|>" for summary in raw["summaries"]]
        made: dict[str, Any] = {
            **raw,
            "query": query,
            "query_token": [1, 2],
            "chosen": texts[raw["choice"]],
            "rejected": texts[1 - raw["choice"]],
        }
        for name in ("chosen", "rejected"):
            made |= {
                f"{name}_token": [3],
                f"{name}_token_len": 1,
                f"query_{name}": query + made[name],
                f"query_{name}_token": [1, 2, 3],
            }
        return made | {
            "response0": texts[0],
            "response0_token": [3],
            "response0_policy": "ref",
            "policies": "ref--sup4",
        }

    raw = raw_comparisons(train, validation)
    of_train = [row(r, prompt_of(r["info"])) for r in raw if r["split"] == "train"]
    write_parquet(folder / "data/train-00000-of-00002-3d41a76ca5845f49.parquet", of_train[::2])
    write_parquet(folder / "data/train-00001-of-00002-a4f39ecdba57bdb3.parquet", of_train[1::2])
    held_out = [row(r, prompt_of(r["info"])) for r in raw if r["split"] != "train" and r["info"]["post"]]
    write_parquet(folder / "data/validation-00000-of-00001-33a6590871b754fc.parquet", held_out)
    article = row(raw[-1], "Article:\nthe car went home\n\nTL;DR:\n")
    write_parquet(folder / "data/validation_cnndm-00000-of-00001-33a6590871b754fc.parquet", [article])
    return folder


def oai_filtered(folder: Path, train: int = 8, validation: int = 4, test: int = 4) -> Path:
    """vwxyzjn/summarize_from_feedback_tldr_3_filtered_*: a post, its summary, both as query and response."""
    rng = random.Random(1)
    for split, name, count in (
        ("train", "train", train),
        ("validation", "valid", validation),
        ("test", "test", test),
    ):
        rows = []
        for number in range(count):
            info, summary = post(number, name), words(rng, 5)
            query = prompt_of(info)
            texts = {
                "query": query,
                "reference_response": f" {summary}<|endoftext|>",
                "query_reference_response": f"{query} {summary}<|endoftext|>",
            }
            rows.append(
                {**info, "summary": summary, **texts, "query_token": [1, 2], "reference_response_token": [3]}
            )
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)
    return folder


def relabelled(folder: Path, train: int = 6, validation: int = 4) -> Path:
    """mnoukhov/*_relabel_pythia6.9b: prompt, responses with the end mark, scores that ordered them."""
    rng = random.Random(2)
    for split, name, count in (("train", "train", train), ("validation", "valid", validation)):
        rows = []
        for number in range(count):
            one, other = summaries(rng)
            texts = {
                "prompt": prompt_of(post(number, name)),
                "chosen": f"{one}<|endoftext|>",
                "rejected": f"{other}<|endoftext|>",
            }
            rows.append({**texts, "chosen_score": 2.5, "rejected_score": -1.0})
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)
    return folder


def conversations(folder: Path, rows: int = 40) -> Path:
    """A set in TRL's preference format, conversational with an implicit prompt, and columns besides."""

    def turns(*contents: str) -> list[dict[str, str]]:
        return [
            {"role": "assistant" if i % 2 else "user", "content": content}
            for i, content in enumerate(contents)
        ]

    made = [
        {
            "chosen": turns(f"who left {n}", "she", "why", "it was late"),
            "rejected": turns(f"who left {n}", "she", "why", "nobody knew"),
            "score_chosen": 4.0,
            "source": "x",
        }
        for n in range(rows)
    ]
    write_parquet(folder / "data/train-00000-of-00001.parquet", made)
    return folder


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


def hh(folder: Path, train: int = 30, test: int = 4) -> Path:
    """Anthropic/hh-rlhf: helpful-base/{train,test}.jsonl.gz, and a folder with another schema."""
    for split, count in (("train", train), ("test", test)):
        rng = random.Random(split)
        rows = []
        for number in range(count):
            turns = [words(rng, 4) for _ in range(1 + 2 * (number % 2))] + [f"{split} {number}"]
            start = dialogue(*turns[:-2], f"{turns[-2]} {turns[-1]}")
            one, other = summaries(rng)
            rows.append(
                {"chosen": f"{start}\n\nAssistant:{one}", "rejected": f"{start}\n\nAssistant:{other}"}
            )
        write_jsonl(folder / f"helpful-base/{split}.jsonl.gz", rows)
    write_jsonl(folder / "red-team-attempts/red_team_attempts.jsonl.gz", [{"transcript": "x"}])
    return folder


def word_tokenizer(
    folder: Path, chat_template: str | None = None, texts: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with their leading white space, with EOS, [PAD] and [UNK]."""
    vocabulary = {"</s>": 0, "[PAD]": 1, "[UNK]": 2}
    known = [
        "SUBREDDIT:",
        "TITLE:",
        "POST:",
        "TL;DR:",
        "Human:",
        "Assistant:",
        "r/advice",
        "train",
        "valid",
        "test",
        *WORDS,
    ]
    numbers = [str(n) for n in range(100)]
    for token in [
        "\n",
        " ",
        *(f"{space}{word}" for word in [*known, *numbers] for space in ("", " ")),
        *texts,
    ]:
        vocabulary.setdefault(token, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^\s]+| "), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="[PAD]", unk_token="[UNK]"
    )
    if chat_template:
        tokenizer.chat_template = chat_template
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer
