"""Tokenizers and rows of every kind, and TRL's own tokens of such rows, for test_preparation.py."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import DPOTrainer, RewardTrainer, SFTTrainer

SENTENCE = (
    "the cat sat on a mat while rain fell and nobody asked why 42 times naïve café 日本 🙂 Yes No it's "
)
WORDS = f"{SENTENCE} don't, (maybe) x=1; end. Question: Answer".split()
CORPUS = [
    "\n".join([" ".join(random.Random(seed).choices(WORDS, k=12)), " A A A B B B"]) for seed in range(300)
]
LLAMA_3 = (
    "{% set ns = messages %}{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n"
    "{{ tools | tojson }}<|eot_id|>{% endif %}{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think></think>"
    "{% endif %}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>{% else %}"
    "[INST] {{ m.content }}[/INST]{% endif %}{% endfor %}"
)
CLOSED = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"  # no EOS, no BOS
CLOSED += "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"


@dataclass(frozen=True)
class Sort:
    """A sort of tokenizer: its model, what it puts around texts, its control tokens and template."""

    model: str
    bos: str | None
    eos: str
    begins: bool = False
    ends: bool = False
    more: tuple[str, ...] = ()
    template: str | None = None


SORTS = {
    "bytes": Sort("bytes", None, "<|endoftext|>"),
    "bytes, BOS": Sort("bytes", "<s>", "</s>", begins=True),
    "bytes, BOS and EOS": Sort("bytes", "<s>", "</s>", begins=True, ends=True),
    "Llama 3": Sort("bytes", "<|begin_of_text|>", "<|eot_id|>", True, False,
                    ("<|start_header_id|>", "<|end_header_id|>"), LLAMA_3),
    "ChatML": Sort("bytes", "<|im_start|>", "<|im_end|>", template=CHATML),
    "turns without EOS": Sort("bytes", "<bos>", "<eos>", True, False, ("<turn>", "<end>"), CLOSED),
    "WordPiece": Sort("words", "[BOS]", "[EOS]", begins=True),
    "WordPiece, EOS": Sort("words", None, "[EOS]", ends=True),
    "SentencePiece": Sort("first", "<s>", "</s>", True, False, ("[INST]", "[/INST]"), INSTRUCT),
    "SentencePiece, dummy prefix": Sort("always", "<s>", "</s>", begins=True),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of this sort."""
    sort = SORTS[name]
    special = [token for token in ("<pad>", "<unk>", sort.bos, sort.eos, *sort.more) if token]
    trainer: Any
    if sort.model == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif sort.model == "words":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=sort.model)
        made.decoder = decoders.Metaspace(prepend_scheme=sort.model)
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(CORPUS, trainer)
    around = [sort.bos] * sort.begins + ["$A"] + [sort.eos] * sort.ends
    if len(around) > 1:
        pieces = [(token, made.token_to_id(token)) for token in (sort.bos, sort.eos) if token]
        made.post_processor = processors.TemplateProcessing(
            single=" ".join(map(str, around)), special_tokens=pieces
        )
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=sort.bos,
        eos_token=sort.eos,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(sort.more),
    )
    found.chat_template = sort.template
    return found


Row = dict[str, Any]
TOOLS = json.dumps([{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}])
FORMATS = ("explicit", "implicit", "conversations", "implicit conversations", "tools")


def formats_of(name: str) -> tuple[str, ...]:
    """The formats that a tokenizer can read: conversations need its template."""
    template = SORTS[name].template
    return FORMATS[:2] if template is None else FORMATS if "tools" in template else FORMATS[:4]


def rows_of_format(form: str, count: int, eos: str, bos: str | None, seed: str) -> Iterator[Row]:
    """Random rows {prompt, chosen, rejected}, of which some went through a template already."""
    draw = random.Random(seed)

    def words(most: int = 12) -> str:
        return draw.choice((" ", " ", " ", "\n", "  ")).join(draw.choices(WORDS, k=draw.randint(1, most)))

    def turns(answer: str) -> list[Row]:
        return [{"role": "assistant", "content": answer}]

    for _ in range(count):
        # They differ in their first letter, so that a prompt that both begin with ends before it.
        seam = " " if form == "implicit" else draw.choice((" ", " ", " ", "", "\n"))
        answers = {"chosen": f"{seam}A{words()}", "rejected": f"{seam}B{words()}"}
        if form in ("explicit", "implicit"):
            begin = "" if form == "implicit" else draw.choice(("", "", "", bos or "", (bos or "") * 2))
            prompt = f"{begin}{words(20)}\n\nAnswer:"
            for name in answers:
                answers[name] += draw.choice(("", "", "", eos, f"{eos}\n", eos * 2))
            if form == "explicit":
                yield {"prompt": prompt + draw.choice(("", "", "", " ", " ", "\n")), **answers}
            else:
                yield {name: prompt + text for name, text in answers.items()}
            continue
        asked = [{"role": "user", "content": words(20)}]
        if draw.random() < 0.3:
            asked += [*turns(words()), {"role": "user", "content": words()}]
        if form == "implicit conversations":
            yield {name: asked + turns(text) for name, text in answers.items()}
        else:
            row: Row = {"prompt": asked, **{name: turns(text) for name, text in answers.items()}}
            more = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
            yield row | more if form == "tools" else row


ARGUMENTS = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
disable_progress_bar()


def by_dpo_trainer(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """prompt_ids, chosen_ids, rejected_ids."""
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    found = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, ARGUMENTS, "train")
    return [*found.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])]


def by_reward_trainer(rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Row]:
    """chosen_ids, rejected_ids, with their prompts; without rows that are too long."""
    arguments: Any = SimpleNamespace(dataset_num_proc=None, max_length=max_length)
    data = Dataset.from_list(rows)
    trainer: Any = None
    found = RewardTrainer._prepare_dataset(trainer, data, tokenizer, arguments, "train")
    return [*found.select_columns(["row", "chosen_ids", "rejected_ids"])]


def by_sft_trainer(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """input_ids, labels (-100 in prompts)."""
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=True)
    arguments: Any = SimpleNamespace(
        dataset_num_proc=None,
        max_length=None,
        dataset_text_field="text",
        assistant_only_loss=False,
        shuffle_dataset=False,
    )
    data = Dataset.from_list(rows)
    found = SFTTrainer._prepare_dataset(trainer, data, tokenizer, arguments, False, None, "train")
    return [*found.select_columns(["input_ids", "labels"])]
