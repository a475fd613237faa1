"""The devices: cpu, cuda and xla, and everything that differs between them."""

from rpo_cli.devices.choice import check, choose, dtype_in_force, lacking_xla
from rpo_cli.devices.device import CPU, HOST_BOUND, Device
from rpo_cli.devices.memory import HOST, cpus, crowded, free_bytes, gpus, seen_by, threads_of_a_worker
from rpo_cli.devices.ranks import arrangement, cut_batches, cut_model, is_spmd, join_spread, processes, rank
from rpo_cli.devices.setup import prepare, quiet, unheard
from rpo_cli.devices.transfer import Returning, behind, put
from rpo_cli.devices.xla import (
    environment,
    fixed_shapes,
    one_chip,
    reading,
    settle,
    step_mark,
    to_host,
    whole_products,
)
