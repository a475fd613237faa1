import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest

from rpo_cli.stages.data import miniature
from rpo_cli.stages.data.miniature import (
    LEAD_INS,
    POLITE,
    TOPIC_OF,
    TOPIC_WEIGHTS,
    TableSizes,
    World,
    build_tokenizer,
    generate,
    utility,
)

SMALL = TableSizes(50, 50, 20, 200, 2_000, 50, 20, 20)
PROMPT = (
    "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: Dog is ill. Rent rose. Boss shouted. Car got towed. "
    "Exam went well. Dad retired. Phone died. Garden bloomed.\n\nTL;DR:"
)


@pytest.fixture(scope="module")
def tables():
    return generate(0, SMALL)


def facts(text):
    return [token for token in miniature._TOKENS.findall(text) if token in TOPIC_OF]


def test_a_seed_gives_the_same_tables_in_another_process(tables):
    code = (
        "import json; from rpo_cli.stages.data.miniature import *; "
        "print(json.dumps(generate(0, TableSizes(50, 50, 20, 200, 2_000, 50, 20, 20))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == tables


def test_tables_have_the_sizes_asked_for_and_another_seed_gives_others(tables):
    assert {table: len(rows) for table, rows in tables.items()} == asdict(SMALL)
    assert all(a != b for a, b in zip(tables["pairs"], generate(1, SMALL)["pairs"], strict=True))


def test_a_table_depends_on_its_own_size_only_and_a_smaller_one_is_its_head(tables):
    other = generate(0, replace(SMALL, pairs=100, pretrain=10))
    assert other["pairs"] == tables["pairs"][:100]
    assert other["prompts_test"] == tables["prompts_test"]


def test_no_two_tables_share_the_facts_of_a_post_whatever_their_seeds(tables):
    owner = {}
    for seed in range(3):
        for table, rows in generate(seed, SMALL).items():
            posts = [frozenset(facts(row["prompt"])) for row in rows]
            assert len(set(posts)) == len(posts)
            for post in posts:
                assert owner.setdefault(post, table) == table


def test_pairs_are_never_identical_and_warmup_pairs_are_equally_long(tables):
    assert all(row["chosen"] != row["rejected"] for name in ("pairs", "warmup") for row in tables[name])
    assert all(len(facts(row["chosen"])) == len(facts(row["rejected"])) for row in tables["warmup"])


def test_the_original_of_a_warmup_pair_is_worth_more_than_its_falsified_copy(tables):
    gains = [
        utility(row["prompt"], row["chosen"]) - utility(row["prompt"], row["rejected"])
        for row in tables["warmup"]
    ]
    assert min(gains) > 0


def test_a_full_rewrite_states_every_fact_once_and_half_of_them_in_order():
    rows = generate(0, TableSizes(600, 1, 1, 1, 1, 1, 1, 1))["pretrain"]
    assert all(sorted(facts(row["completion"])) == sorted(facts(row["prompt"])) for row in rows)
    in_order = sum(facts(row["completion"]) == facts(row["prompt"]) for row in rows) / len(rows)
    assert 0.4 < in_order < 0.6


def test_utility_rewards_true_facts_and_charges_wrong_repeated_and_malformed_ones():
    dog, rent = TOPIC_WEIGHTS[0], TOPIC_WEIGHTS[1]
    assert TOPIC_WEIGHTS[0] == 1.3 and TOPIC_WEIGHTS[-1] == pytest.approx(-0.1)
    assert utility(PROMPT, " So: Dog is ill. Rent rose.") == pytest.approx(dog + rent)
    assert utility(PROMPT, "So: Dog is ill. Rent rose.</s>Rent fell.") == pytest.approx(dog + rent)
    assert utility(PROMPT, " So: Dog is ill. Rent fell.") == pytest.approx(dog - 1.2)
    assert utility(PROMPT, " So: Dog is ill. Dog is ill.") == pytest.approx(dog - 1.0)
    assert utility(PROMPT, " Dog is ill.") == pytest.approx(dog - 1)
    assert utility(PROMPT, " So: Dog is ill. TL;DR: Rent rose.") == pytest.approx(dog + rent - 1)
    assert utility(PROMPT, " So: Dog is ill. Cats are fine.") == pytest.approx(dog - 1)
    for nothing in ("", " ", " So:", "</s>", "So: <unk>"):
        assert utility(PROMPT, nothing) == -1


def test_labels_agree_with_utility_more_often_than_not_and_longer_summaries_win_more_often(tables):
    gaps, longer = [], []
    for row in tables["pairs"]:
        gap = utility(row["prompt"], row["chosen"]) - utility(row["prompt"], row["rejected"])
        extra = len(facts(row["chosen"])) - len(facts(row["rejected"]))
        gaps.append(gap > 0)
        longer += [extra * gap > 0] if extra * gap else []
    assert 0.84 < sum(gaps) / len(gaps) < 0.93  # Bradley-Terry noise: neither clean nor a coin
    assert 0.57 < sum(longer) / len(longer) < 0.66  # the paper's world: 61 %
    assert 0.07 < 1 - Fraction(len(longer), len(gaps)) < 0.14  # of one length (or of one worth)


def test_every_sentence_is_one_token_and_text_survives_the_tokenizer(tables):
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(miniature.VOCABULARY) == len(set(miniature.VOCABULARY))
    for row in tables["pretrain"] + tables["sft_train"]:
        prompt, completion = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"]
        assert len(prompt) == 14 and len(completion) == 1 + len(facts(row["completion"]))
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == prompt + completion
        assert tokenizer.unk_token_id not in prompt + completion
        assert tokenizer.decode(completion) == row["completion"].strip()
        assert tokenizer.convert_ids_to_tokens(completion)[0] in LEAD_INS


def test_the_tokenizer_keeps_pad_eos_and_unk_apart_and_adds_nothing(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    assert (
        len({loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id}) == 3 and loaded.bos_token is None
    )
    assert loaded(PROMPT)["input_ids"] == build_tokenizer()(PROMPT)["input_ids"]
    dog = loaded.convert_tokens_to_ids("Dog is ill.")
    assert loaded("Dog is ill.\n Cats</s>")["input_ids"] == [dog, loaded.unk_token_id, loaded.eos_token_id]
    assert loaded(["Dog is ill.", "So: Dog is ill."], padding=True)["input_ids"][0] == [
        loaded.pad_token_id,
        dog,
    ]


def test_a_world_without_options_is_the_first_edition_to_the_byte():
    tables = generate(3, TableSizes(50, 50, 20, 50, 300, 50, 20, 20))
    found = hashlib.sha256(json.dumps(tables).encode()).hexdigest()
    assert found == "973667c22c862e3a5c97db9b84f14fb93dc71acc1ce4303fea9a8454f224c200"
    assert POLITE not in json.dumps(tables) and POLITE not in build_tokenizer().get_vocab()


@pytest.mark.slow
def test_the_more_entangled_the_closer_length_follows_worth_and_only_in_human_pairs():
    sizes = TableSizes(20, 20, 20, 20, 2_000, 20, 20, 20)
    found = []
    for entangled in (0.0, 0.5, 1.0):
        tables = generate(0, sizes, World(entangled=entangled))
        gaps = [
            (utility(row["prompt"], row["chosen"]) - utility(row["prompt"], row["rejected"]),
             len(facts(row["chosen"])) - len(facts(row["rejected"])))
            for row in tables["pairs"]
        ]  # fmt: skip
        both = np.array(gaps + [(-worth, -length) for worth, length in gaps])
        found.append(np.corrcoef(both.T)[0, 1])
        assert tables["sft_train"] == generate(0, sizes)["sft_train"]
    assert found[0] == pytest.approx(0.03, abs=0.06)  # as docs/miniature.md has them of 6,000 pairs
    assert found[1:] == pytest.approx([0.36, 0.88], abs=0.06)


def test_politeness_is_random_worth_nothing_and_takes_no_room():
    tables = generate(0, TableSizes(200, 400, 20, 200, 2_000, 50, 20, 20), World(polite=0.3))
    for row in tables["pairs"] + tables["pairs_validation"]:
        for side in ("chosen", "rejected"):
            assert row[f"{side}_polite"] == row[side].startswith(f" {POLITE}")
            plain = row[side].replace(POLITE, "So:")
            assert utility(row["prompt"], row[side]) == utility(row["prompt"], plain)
    said = np.array([[row["chosen_polite"], row["rejected_polite"]] for row in tables["pairs"]])
    assert said.mean(0) == pytest.approx([0.3, 0.3], abs=0.03)  # nobody prefers it
    polite = [row["completion"].startswith(f" {POLITE}") for row in tables["sft_train"]]
    assert np.mean(polite) == pytest.approx(0.3, abs=0.08)
    assert all((POLITE in row["chosen"]) == (POLITE in row["rejected"]) for row in tables["warmup"])
    tokenizer = build_tokenizer(World(polite=0.3))
    assert len(tokenizer(f" {POLITE} Dog is ill.")["input_ids"]) == 2
    known = build_tokenizer().get_vocab()
    assert {token: tokenizer.get_vocab()[token] for token in known} == known
