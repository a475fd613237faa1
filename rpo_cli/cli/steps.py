"""Commands of the pipeline, from the demo and `rpo init` to a judged policy."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option, Typer

from rpo_cli.cli.shared import EVERY, ONE
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.runs.command import add_command
from rpo_cli.runs.options import Costs, Ensemble, OwnSuite

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

app = Typer()
command = partial(add_command, app)
WHERE = "Folder of all that is made. Default:"
TRAIN_POLICY = "\n\n".join(
    [
        "Train a policy, building every input that is missing.",
        "dh is the difference of the log-ratios log pi_theta - log pi_ref of the chosen and the rejected "
        "response, dr that of a teacher's rewards, KL the forward KL(pi_ref || pi_theta).",
        *(objective.help for objective in OBJECTIVES.values()),
    ]
)


@command("demo", takes={"workspace", "jobs", "dry_run"}, jobs=2, helps={"workspace": f"{WHERE} runs/demo."})
def demo(session: "Session") -> None:
    """See it work, in a minute on two cores: DPO beside a distilled policy under length bias.

    Trains small models of the embedded world, from pretrained ones that come along; needs no network.
    """
    from rpo_cli.runs.demo import demo

    demo(session)


@command(
    "init",
    "mine --pairs pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --reward-model ./my-rm",
    takes={"workspace"},
    helps={"workspace": f"{WHERE} runs/NAME."},
)
def init(session: "Session", wanted: OwnSuite) -> None:
    """Write a recipe for your own pairs: one file for the whole pipeline, filled in from the data.

    Reads the pairs into the workspace (the data stage, which later commands reuse), counts what is left out,
    holds out prompts to evaluate on, and sets lengths, steps and batches. Prints the next command.
    """
    from rpo_cli.runs.init import init

    init(session, wanted)


@command("train-sft", "miniature/sft.yaml", takes=ONE, recipe="sft.yaml")
def train_sft(session: "Session", costs: Costs) -> None:
    """Fine-tune on written responses: makes pi_SFT, the reference policy."""
    from rpo_cli.runs.make import build

    build(session, "sft", ("rpo train-rm", "oracle.yaml", ""), costs=costs)


RHO_02 = "rm.yaml --rho 0.2 --ensemble --jobs 2"


@command("train-rm", "oracle.yaml", RHO_02, takes=EVERY, recipe="rm.yaml")
def train_rm(session: "Session", costs: Costs, ensemble: Ensemble = False) -> None:
    """Train a Bradley-Terry reward model: the oracle, the one of D_rho, or an ensemble."""
    from rpo_cli.runs.make import build

    following = ("rpo train-policy", "e-dpo.yaml", session.at)
    build(session, "reward", following, members=ensemble, costs=costs)


@command("sample-pairs", "small/pairs.yaml", takes=ONE, recipe="pairs.yaml")
def sample_pairs(session: "Session") -> None:
    """Make preference pairs of a model's own samples:
    two of a prompt, or what people wrote against one of them.
    """
    from rpo_cli.runs.make import build

    build(session, "pairs", ("rpo relabel", "relabel.yaml", ""))


@command("relabel", "relabel.yaml", takes=ONE, recipe="relabel.yaml")
def relabel(session: "Session") -> None:
    """Replace human labels by the oracle's preference, with both scores kept."""
    from rpo_cli.runs.make import build

    build(session, "relabel", ("rpo make-biased-splits", "splits.yaml", " --rho all"))


@command("make-biased-splits", "splits.yaml --rho all", takes=EVERY - {"wandb"}, recipe="splits.yaml")
def make_biased_splits(session: "Session") -> None:
    """Draw D_rho, in which the longer response is preferred in a share rho of the pairs,
    and the ensemble's subsets.
    """
    from rpo_cli.runs.make import build

    build(session, "splits", ("rpo train-rm", "rm.yaml", f"{session.at} --ensemble"))


@command("train-policy", "e-dpo.yaml --rho 0.2", takes=EVERY, text=TRAIN_POLICY)
def train_policy(session: "Session", costs: Costs) -> None:
    from rpo_cli.runs import make

    make.train_policy(session, costs)


Split = Literal["validation", "test"]


@command("evaluate", "e-dpo.yaml --rho 0.2 --split test", takes=EVERY)
def evaluate(
    session: "Session",
    costs: Costs,
    split: Annotated[Split, Option(help="Prompts: validation chooses, test reports.")] = "test",
) -> None:
    """Sample from a policy and score with the oracle:
    advantage over pi_SFT, length, KL, length-controlled advantage.

    The recipe is a policy's; an evaluation recipe evaluates its baseline, pi_SFT.
    """
    from rpo_cli.runs import make

    make.evaluate(session, split, costs)


@command("judge", "own-data/dpo.yaml --model gpt-4.1-mini", takes=EVERY - {"accelerate"})
def judge(
    session: "Session",
    split: Annotated[Split, Option(help="Whose samples.")] = "test",
    model: Annotated[str | None, Option(help="The judge. Default: `judge:` of the evaluate recipe.")] = None,
    base_url: Annotated[str | None, Option(help="Its endpoint, such as http://localhost:8000/v1.")] = None,
) -> None:
    """Win rate of a policy by a judge model, each pair asked in both orders;
    with length control and agreement with the oracle.

    Settings stand in `judge:` of the evaluate recipe; the key comes from the environment (OPENAI_API_KEY).
    """
    from rpo_cli.runs import make

    make.judge(session, split, model, base_url)
