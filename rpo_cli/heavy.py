"""Everything slow to import, for worker processes that want to pay once: imported for that effect alone, hence the noqa."""

import rpo_cli.evaluation
import rpo_cli.training.policy
import rpo_cli.training.reward
import rpo_cli.training.sft  # noqa: F401
