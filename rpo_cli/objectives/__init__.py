"""Objectives and their teachers: each declares itself, and its loss is a pure tensor function.

Equations are those of "Robust Preference Optimization through Reward Model Distillation" (Fisch et al., TMLR
2025) unless another source is named. Throughout: B pairs, k reward models, T response tokens, V vocabulary
entries; h(y) = log π_θ(y|x) − log π_ref(y|x) in nats, summed over the response's tokens, EOS included;
delta_h = h(y_w) − h(y_l); delta_r = r(x, y_w) − r(x, y_l) in raw Bradley–Terry logits. Recipes and help texts
read this table, so nothing here imports torch; kl, logps, members and calibration, which do, are imported
from their own files."""

from rpo_cli.objectives.base import Key, Objective, Pair
from rpo_cli.objectives.teachers import TEACHERS

# The table: a line for each file of objectives, in the order in which help texts and messages name them.
# isort: off
from rpo_cli.objectives.dpo import DPO
from rpo_cli.objectives.ipo import IPO, IPO_NORM
from rpo_cli.objectives.d_dpo import D_DPO
from rpo_cli.objectives.p_dpo import P_DPO
from rpo_cli.objectives.dp_dpo import DP_DPO
from rpo_cli.objectives.e_dpo import E_DPO
from rpo_cli.objectives.r_dpo import R_DPO
from rpo_cli.objectives.dpo_sft import DPO_SFT
from rpo_cli.objectives.robust_dpo import ROBUST_DPO
from rpo_cli.objectives.simpo import SIMPO
from rpo_cli.objectives.cdpo import CDPO
from rpo_cli.objectives.chi_po import CHI_PO
from rpo_cli.objectives.rm_dpo import RM_DPO

OBJECTIVES = {each.name: each for each in globals().values() if isinstance(each, Objective)}
