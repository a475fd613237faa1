"""Keys of TRL, transformers and peft that recipes have under another name, or do without."""

from __future__ import annotations

PAIRS = "pairs come from `data:`, a recipe with `source: preference` and `dataset: NAME`"
WHOLE = "write per_device_train_batch_size, and gradient_accumulation_steps for the rest of the batch"
WORKSPACE = "what is made goes into the workspace: --workspace DIR"
EXPORT = "a finished model leaves the workspace by a command of its own"
EARLY = "a reward recipe has `stopping: early` with eval_steps; policies are evaluated by `rpo evaluate`"
STAYS = "leave it out: the reference is what the policy starts from, and stays"
SAID = "leave it out: the command says what is done"
WITH_REWARDS = "write monitor_steps in a policy recipe; a reward recipe has `stopping: early` with eval_steps"
COMPILED = "leave it out: torch_compile alone says it"
END = "leave it out: the tokenizer's own is used"
# What a key is of another objective, where it has no effect with this one.
ELSEWHERE = {"label_smoothing": "DPO with it, as in TRL, is `objective: cdpo`"}
NO_SUCH = {
    "bf16": "write `dtype: bfloat16`", "fp16": "write `dtype: bfloat16`; there is no float16 here",
    "torch_dtype": "write dtype", "tf32": "write `dtype: bfloat16` or `dtype: float32`",
    "no_cuda": "write `device: cpu`", "use_cpu": "write `device: cpu`",
    "dataset_name": PAIRS, "dataset_path": PAIRS, "datasets": PAIRS, "train_dataset": PAIRS,
    "train_file": PAIRS,
    "dataset_config": "write data_dir in the data recipe",
    "dataset_train_split": "write split in the data recipe",
    "dataset_test_split": "write split in the data recipe",
    "max_prompt_length": "write max_prompt_tokens in the data recipe, or max_length for prompt and response",
    "max_completion_length": "write max_length for prompt and response together",
    "max_target_length": "write max_length for prompt and response together",
    "max_seq_length": "write max_length", "cutoff_len": "write max_length",
    "output_dir": WORKSPACE, "logging_dir": WORKSPACE, "overwrite_output_dir": "say --force",
    "run_name": "a run is called like its artifact; write wandb_project for the project",
    "loss_type": "write objective", "pref_loss": "write objective", "pref_beta": "write beta",
    "model_name": "write model_name_or_path", "model": "write model_name_or_path",
    "model_id": "write model_name_or_path", "base_model": "write model_name_or_path",
    "ref_model": "the reference is what the policy starts from: model_name_or_path",
    "ref_model_name_or_path": "the reference is what the policy starts from: model_name_or_path",
    "precompute_ref_log_probs": "leave it out: the reference's log-probs are always computed once, ahead",
    "tokenizer_name_or_path": "leave it out: the model's own tokenizer is used",
    "reward_model_path": "write reward_model", "reward_model_name_or_path": "write reward_model",
    "trust_remote_code": "leave it out: code of the hub is never run",
    "per_device_batch_size": WHOLE, "batch_size": WHOLE, "train_batch_size": WHOLE, "micro_batch_size": WHOLE,
    "per_gpu_train_batch_size": WHOLE, "gradient_accumulation": "write gradient_accumulation_steps",
    "num_epochs": "write num_train_epochs", "epochs": "write num_train_epochs",
    "lr": "write learning_rate", "lr_scheduler": "write lr_scheduler_type", "optimizer": "write optim",
    "warmup_ratio": "write warmup_steps, the same share of all steps", "max_norm": "write max_grad_norm",
    "eval_strategy": EARLY, "evaluation_strategy": EARLY, "load_best_model_at_end": EARLY,
    "save_strategy": "write save_steps; without it there are no checkpoints to resume from",
    "resume_from_checkpoint": "leave it out: the same command goes on where it was interrupted",
    "push_to_hub": EXPORT, "hub_model_id": EXPORT,
    "use_lora": "write `use_peft: true`", "adapter": "write `use_peft: true`",
    "peft_config": "write `use_peft: true` with lora_r, lora_alpha, lora_dropout, lora_target_modules",
    "r": "write lora_r", "lora_rank": "write lora_r", "target_modules": "write lora_target_modules",
    "lora_target": "write lora_target_modules", "lora_task_type": "leave it out: the stage says it",
    "load_in_8bit": "write `load_in_4bit: true`", "use_4bit": "write `load_in_4bit: true`",
    "quantization_bit": "write `load_in_4bit: true`",
    "use_vllm": "write `sampler: vllm` in the evaluate recipe",
    "rpo_alpha": "write `objective: dpo-sft` with sft_weight",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "gradient_checkpointing_kwargs": "leave it out: gradient_checkpointing knows its own",
    "activation_checkpointing_kwargs": "leave it out: gradient_checkpointing knows its own",
    "enable_jit_checkpoint": "write save_steps",
    "eval_steps": WITH_REWARDS, "eval_on_start": WITH_REWARDS, "eval_delay": WITH_REWARDS,
    "eval_accumulation_steps": "leave it out: per_device_eval_batch_size says it",
    "reference_free": "not supported; `objective: simpo` has no reference",
    "reference_model": "the reference is what the policy starts from: model_name_or_path",
    "sync_ref_model": STAYS, "ref_model_mixup_alpha": STAYS, "ref_model_sync_steps": STAYS,
    "label_smoothing_factor": "not supported of tokens; of preferences it is `objective: cdpo`",
    "loss_weights": "a recipe has one loss; `objective: dpo-sft` adds a weighted one, with sft_weight",
    "ld_alpha": "LD-DPO is not supported; `objective: r-dpo` with length_alpha is another cure for length",
    "length_penalty": "write `objective: r-dpo` with length_alpha", "use_weighting": "WPO is not supported",
    "lr_scheduler_kwargs": "leave it out: lr_scheduler_type alone says the schedule",
    "optim_args": "leave it out: optim, adam_beta1, adam_beta2 and weight_decay say it",
    "optim_target_modules": "not supported, nor are optimisers that need it",
    "torch_compile_backend": COMPILED, "torch_compile_mode": COMPILED,
    "use_cache": "leave it out: training has no use for it",
    "disable_dropout": "leave it out: only lora_dropout drops anything", "dropout": "write lora_dropout",
    "eos_token": END, "pad_token_id": "write pad_token", "label_pad_token_id": "leave it out",
    "packing": "not supported: every row stands for itself",
    "packing_strategy": "not supported: every row stands for itself",
    "model_init_kwargs": "write dtype, attn_implementation and model_revision",
    "lora_target_parameters": "not supported; lora_target_modules names modules",
    "lora_modules_to_save": "leave it out: a reward model's head is always trained and saved",
    "lora_bias": "not supported: biases stay as they are",
    "bnb_4bit_quant_storage": "leave it out: load_in_4bit and bnb_4bit_quant_type say it",
    "inference_mode": SAID, "do_train": SAID, "do_eval": SAID, "do_predict": SAID,
    "auto_mapping": "leave it out: the stage says it",
    "deepspeed": "DeepSpeed is not supported; --accelerate takes a preset for several processes",
    "fsdp": "say --accelerate fsdp2", "hub_token": EXPORT, "hub_revision": EXPORT,
}  # fmt: skip


def hint(key: object) -> str:
    """`; write dtype`, for a key that another library has; else nothing."""
    said = NO_SUCH.get(str(key))
    return "" if said is None else f"; {said}"
