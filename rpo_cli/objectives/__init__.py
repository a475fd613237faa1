"""Losses, ensemble reductions, KL estimators and calibration as pure tensor functions.

Equations are those of "Robust Preference Optimization through Reward Model Distillation" (Fisch et al., TMLR 2025)
unless another source is named. Throughout: B pairs, k reward models, T response tokens, V vocabulary entries;
h(y) = log π_θ(y|x) − log π_ref(y|x) in nats, summed over the response's tokens, EOS included;
delta_h = h(y_w) − h(y_l); delta_r = r(x, y_w) − r(x, y_l) in raw Bradley–Terry logits."""

from rpo_cli.objectives.calibration import fit_temperature, mix_weights
from rpo_cli.objectives.distill import distill_losses
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.dpo_sft import nll_losses
from rpo_cli.objectives.ipo import ipo_losses
from rpo_cli.objectives.kl import gamma_at, kl_full, kl_sample, kl_weight
from rpo_cli.objectives.logps import sequence_logps, token_logps
from rpo_cli.objectives.members import MemberChoice, MemberEma, ensemble_losses, select_member
from rpo_cli.objectives.r_dpo import r_dpo_losses
from rpo_cli.objectives.robust_dpo import robust_dpo_losses
from rpo_cli.objectives.simpo import simpo_losses
from rpo_cli.objectives.teachers import lcb_margins, mean_margins
