"""Which stage needs which: from a recipe to the graph of artifacts it rests on.

Nothing is read from the workspace here and nothing heavy is imported; what is up to date is the pipeline's
question. What is made comes from the planners of `planning`; here is what measures it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from rpo_cli.artifacts import External, Stage, scores_of
from rpo_cli.recipes import Loaded, RecipeError, schema, where
from rpo_cli.runs.planning.base import wrong
from rpo_cli.runs.planning.models import name_of
from rpo_cli.runs.planning.policies import CHECKPOINTS, PolicyPlanner


class Planner(PolicyPlanner):
    """Plans every kind of stage; on top, what evaluates, measures and judges a policy."""

    def _policy(self, loaded: Loaded) -> Stage:
        """What a policy recipe trains; with select: validation the checkpoint that does best there."""
        trained, recipe = self._trained(loaded), cast(schema.PolicyRecipe, loaded.recipe)
        if not recipe.selects:
            return trained
        looks = {f"looks/{n}": look for n, look in enumerate(self.looks(loaded), 1)}
        place = trained.path.split("/", 1)[1].removesuffix(CHECKPOINTS)
        inputs = {**trained.inputs, "trained": trained, **looks}
        chooser = recipe.model_copy(update={"expected_seconds": 1.0})
        return self._add("selected", place, loaded, inputs, recipe=chooser)

    def looks(self, loaded: Loaded) -> list[Stage]:
        """The checkpoints that a training keeps, each on validation prompts."""
        trained, recipe = self._trained(loaded), cast(schema.PolicyRecipe, loaded.recipe)
        return [self._look(loaded, trained, number) for number in range(1, recipe.checkpoints + 1)]

    def _look(self, loaded: Loaded, trained: Stage, number: int) -> Stage:
        """One checkpoint of a training on validation prompts; without an oracle on held-out pairs."""
        with self._step(loaded, ("evaluate",)):
            evaluated = self._evaluated(loaded, trained, "validation", number)
        return evaluated if "oracle" in evaluated.inputs else self._ranked(loaded, trained, number)

    def _evaluate(self, loaded: Loaded) -> Stage:
        """The baseline's own evaluation: what `rpo evaluate` without a policy means."""
        recipe = cast(schema.EvaluateRecipe, loaded.recipe)
        baseline = self.reference("baseline", loaded)
        name = loaded.path.stem if isinstance(baseline, External) else baseline.path.split("/", 1)[1]
        inputs = {"policy": baseline, "reference": baseline, **self._judged(loaded)}
        return self._add("evaluate", f"evaluations/{name}/{recipe.split}", loaded, inputs)

    def _judged(self, loaded: Loaded) -> dict[str, Stage | External]:
        data = self.reference("data", loaded)
        self._need_table(data, f"prompts_{cast(schema.EvaluateRecipe, loaded.recipe).split}", loaded)
        without = cast(schema.EvaluateRecipe, loaded.recipe).oracle is None
        return {"data": data} if without else {"data": data, "oracle": self.reference("oracle", loaded)}

    def evaluation(self, policy: Loaded, split: str) -> Stage:
        """Evaluation of the policy a recipe describes, against its baseline on the same prompts."""
        return self._evaluated(policy, self.build(policy), split)

    def _evaluated(self, policy: Loaded, stage: Stage, split: str, checkpoint: int | None = None) -> Stage:
        name = cast(schema.PolicyRecipe, policy.recipe).evaluate
        loaded = self.load(policy.sibling(name, "evaluate"), expect="evaluate", flags={"split": split})
        baseline = self._evaluate(loaded)
        place, options = _of_checkpoint(stage, "evaluations", checkpoint)
        inputs = {
            "policy": stage,
            "reference": stage.inputs["model"],
            "baseline": baseline,
            **self._judged(loaded),
        }
        return self._add("evaluate", f"{place}/{split}", loaded, inputs, options)

    def held_out(self, policy: Loaded) -> Stage:
        """What the policy a recipe describes makes of the pairs that its splits hold out."""
        return self._ranked(policy, self.build(policy))

    def _ranked(self, policy: Loaded, stage: Stage, checkpoint: int | None = None) -> Stage:
        inputs = {"policy": stage, **{name: stage.inputs[name] for name in ("data", "reference")}}
        place, options = _of_checkpoint(stage, "held-out", checkpoint)
        return self._scoring("held_out", place, policy, inputs, options=options)

    def taught(self, policy: Loaded, evaluation: Stage) -> list[Stage]:
        """What each reward model that a policy distils says of the samples of an evaluation."""
        split = cast(schema.EvaluateRecipe, evaluation.recipe).split
        inputs = {name: evaluation.inputs[name] for name in ("baseline", "data")}
        folder = evaluation.path.split("/", 1)[1].replace("/evaluations/", "/taught/")
        found = []
        for scores in scores_of(self.build(policy).inputs).values():
            if isinstance(scores, Stage) and "model" in scores.inputs:
                place = f"{folder}/{scores.path.split('/scores/')[1]}"
                label = cast(schema.ScoringRecipe, scores.recipe).reward_label
                read = {name: scores.inputs[name] for name in ("model", "policy")}
                all_inputs = {"evaluation": evaluation, **inputs, **read}
                found.append(
                    self._scoring("taught", place, policy, all_inputs, label=label, options={"split": split})
                )
        return found

    def measure(self, policy: Loaded) -> Stage:
        """What a policy made of its training pairs, and how far it is from the reference."""
        stage = self.build(policy)
        model, splits = stage.inputs["model"], cast(Stage, stage.inputs["data"])
        pairs = cast(Stage, splits.inputs["data"])
        start = f"-{name}" if (name := self._start(policy, model, splits)) else ""
        place = f"reference-samples{start}/{pairs.path.split('/', 1)[1]}"
        samples = self._scoring("samples", place, policy, {"model": model, "data": pairs})
        inputs = {"policy": stage, "model": model, "data": splits, "samples": samples}
        place = stage.path.split("/", 1)[1].replace("/policies/", "/measures/")
        return self._scoring("measure", place, policy, inputs)

    def diagnosis(self, loaded: Loaded, *, members: bool = False) -> tuple[Stage, dict[str, Stage]]:
        """The pairs that a recipe is about, and scores of the held-out ones by each of its reward models.

        Those of a policy are its teachers and the oracle that its evaluation names; of a reward recipe it is
        the one that it trains, or its ensemble.
        """
        recipe = loaded.recipe
        if isinstance(recipe, schema.PolicyRecipe):
            inputs = self.build(loaded).inputs
            splits, model = cast(Stage, inputs["data"]), inputs["model"]
            scores = cast(dict[str, Stage], scores_of(inputs))
            if (judged := self._evaluation_of(loaded)) is not None:
                evaluation = cast(schema.EvaluateRecipe, judged.recipe)
                if evaluation.oracle is not None:
                    oracle, label = self.reference("oracle", judged), evaluation.reward_label
                    scores["oracle"] = self._scores(loaded, oracle, splits, model, label)
            return splits, scores
        if not isinstance(recipe, schema.RewardRecipe):
            return self.build(loaded), {}
        made = self.members(loaded) if members else [self._reward(loaded)]
        data = cast(Stage, made[0].inputs["data"])
        if data.kind != "splits":
            self._need_table(data, "pairs_validation", loaded)
            if data.kind == "relabel":
                raise wrong(loaded, "data", "has no held-out pairs to diagnose a reward model on")
        scores = {}
        for stage in made:
            # Read as it was trained; what a policy distils are scores of the policy's own stage.
            *folders, name = stage.path.split("/")[1:]
            place = "/".join([*folders[:1], "scores", "own", *folders[1:], name])
            inputs = {"model": stage, "data": data, "policy": stage}
            scores[name_of(stage) if members else loaded.path.stem] = self._scoring(
                "scores", place, loaded, inputs
            )
        return data, scores

    def _evaluation_of(self, policy: Loaded) -> Loaded | None:
        """The recipe that a policy's samples are evaluated with; None where there is none."""
        try:
            file = policy.sibling(cast(schema.PolicyRecipe, policy.recipe).evaluate, "evaluate")
        except RecipeError:
            return None
        return self.load(file, expect="evaluate")

    def judgement(self, policy: Loaded, split: str, overrides: Sequence[str] = ()) -> Stage:
        """A judge's verdicts on an evaluated policy; `overrides` change `judge:` (`judge.model=...`)."""
        evaluation = self.evaluation(policy, split)
        loaded = self.load(
            policy.sibling(cast(schema.PolicyRecipe, policy.recipe).evaluate, "evaluate"),
            expect="evaluate",
            overrides=overrides,
        )
        recipe = cast(schema.EvaluateRecipe, loaded.recipe)
        if recipe.judge is None:
            what = "missing; add `judge: {model: ...}`, or name one with --model"
            raise RecipeError([f"{where((loaded.path, 0))}: judge: {what}"])
        inputs = {"evaluation": evaluation, "baseline": evaluation.inputs["baseline"]}
        if "reference" in recipe.judge.against:
            inputs["data"] = evaluation.inputs["data"]
        same = (
            "suite", "seed", "sampling_seed", "report_to", "wandb_project", "truncated", "bootstrap_samples",
        )  # fmt: skip
        settings = {name: getattr(recipe.judge, name) for name in schema.JudgeSettings.model_fields}
        judge = schema.JudgeRecipe(
            stage="judge", device="cpu", **settings, **{name: getattr(recipe, name) for name in same}
        )
        place = evaluation.path.split("/", 1)[1].replace("/evaluations/", "/judged/")
        path = f"{place}/{re.sub(r'[^A-Za-z0-9.-]+', '-', recipe.judge.model)}"
        return self._add("judge", path, loaded, inputs, recipe=judge)


def _of_checkpoint(stage: Stage, folder: str, checkpoint: int | None) -> tuple[str, dict[str, int]]:
    """Where what is found of a policy stands, and which checkpoint of its training it is, if it is of one."""
    place = stage.path.split("/", 1)[1].replace("/policies/", f"/{folder}/")
    return (place, {}) if checkpoint is None else (f"{place}/{checkpoint}", {"checkpoint": checkpoint})


def planner_for(loaded: Loaded) -> Planner:
    """A planner under the recipe's seed, and on the device that the command line named."""
    return Planner(loaded.recipe.seed, loaded.overrides.get("device"))
