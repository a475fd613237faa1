"""What is on disk: artifacts in a workspace, the graph that they form, and how they are written."""

from rpo_cli.artifacts.card import CARD, write_card
from rpo_cli.artifacts.damage import all_finite, checksum, cure, damaged_files
from rpo_cli.artifacts.files import (
    hash_of,
    hash_path,
    lease,
    no_memory,
    no_room,
    publish,
    read_json,
    sha256,
    write_csv,
    write_json,
)
from rpo_cli.artifacts.graph import (
    External,
    Stage,
    member_of,
    own_name,
    rho_folder,
    scores_of,
    told_of,
    walk,
    where,
)
from rpo_cli.artifacts.hub import cannot_read, look_for, unreachable
from rpo_cli.artifacts.job import Job, Launch, Outcome, checkpoint_in, job_from, job_of, processes_of
from rpo_cli.artifacts.manifest import MANIFEST, STARTED, Manifest
from rpo_cli.artifacts.model_folder import base_of_adapter, below_adapters, may_end_in_padding, positions_of
from rpo_cli.artifacts.origin import Origin, origin_of
from rpo_cli.artifacts.report import METRICS, Progress, Report, Silence, log_images
from rpo_cli.artifacts.tracker import need_answer, told_where, wandb_mode
from rpo_cli.artifacts.workspace import Workspace, difference, git_revision, versions
