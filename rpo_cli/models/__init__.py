"""A model and its tokens: load, batch, score, sample."""

from rpo_cli.models.buckets import Buckets, Shape, for_training
from rpo_cli.models.capture import CAPTURES
from rpo_cli.models.choice import layout_for
from rpo_cli.models.compiled import cannot_compile, compiled, in_step, layers_of
from rpo_cli.models.draws import Sampling
from rpo_cli.models.frozen import four_bits
from rpo_cli.models.generation import stops_in, stops_of
from rpo_cli.models.graphs import Graphs
from rpo_cli.models.layout import (
    Batch,
    Layout,
    PairCollator,
    by_length,
    groups_of,
    logps_of,
    make_batch,
    pad_of,
    predicts,
    response_lengths,
    response_logits,
    response_logps,
    response_rewards,
    shape_of,
    to_device,
    token_accuracy,
)
from rpo_cli.models.load import (
    config_at,
    from_settings,
    load_causal,
    load_reward,
    new_causal,
    padding_read_over,
    save,
)
from rpo_cli.models.sample import need_room, room, sample
from rpo_cli.models.score import logps, pair_logps, pair_rewards, rewards
from rpo_cli.models.tokenizer import load_tokenizer, same_tokens
from rpo_cli.models.tokens import (
    Row,
    TokenRow,
    Tokens,
    encode,
    fingerprint,
    fitting,
    odd_tokens,
    views,
    without_end,
)
