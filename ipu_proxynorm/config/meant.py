"""Which key was meant by one that does not exist: by its letters, or by what it means elsewhere."""

from __future__ import annotations

from typing import Dict, Iterable, List

from ipu_proxynorm.errors import nearest

#: Names that other programs give to what ours is called here.
ELSEWHERE: Dict[str, str] = {
    **dict.fromkeys(("learning_rate", "base_lr", "initial_lr", "lr"), "optimizer.lr"),
    **dict.fromkeys(("wd", "decay_rate", "l2"), "optimizer.weight_decay"),
    **dict.fromkeys(("opt", "optim"), "optimizer.name"),
    **dict.fromkeys(("batch_size", "batch", "bs", "micro_batch"), "ipu.micro_batch_size"),
    **dict.fromkeys(
        ("accumulation", "grad_accum", "accumulate_grad_batches", "grad_accum_steps"),
        "ipu.gradient_accumulation",
    ),
    **dict.fromkeys(("replicas", "gpus", "devices", "ipus"), "ipu.replication_factor"),
    **dict.fromkeys(("amp", "fp16", "half", "dtype"), "ipu.precision"),
    **dict.fromkeys(("pipeline_splits", "stages"), "ipu.splits"),
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "training.epochs"),
    **dict.fromkeys(("smoothing",), "training.label_smoothing"),
    **dict.fromkeys(("mixup",), "training.mixup_alpha"),
    **dict.fromkeys(("cutmix",), "training.cutmix_lambda_low"),
    **dict.fromkeys(
        ("pretrained", "checkpoint", "weights", "initial_checkpoint", "init_checkpoint"),
        "training.init_from",
    ),
    **dict.fromkeys(("freeze", "frozen"), "training.trainable"),
    **dict.fromkeys(("dataset", "data_name"), "data.name"),
    **dict.fromkeys(("data_dir", "data_path", "dataset_path", "root"), "data.path"),
    **dict.fromkeys(("num_workers", "workers", "dataloader_worker"), "data.workers"),
    **dict.fromkeys(
        ("img_size", "input_size", "resolution", "crop_size", "train_crop_size"), "data.image_size"
    ),
    **dict.fromkeys(("val_crop_size",), "data.eval_image_size"),
    **dict.fromkeys(("augmentation", "transform", "aa"), "data.augment"),
    **dict.fromkeys(("arch", "network", "architecture", "net"), "model.name"),
    **dict.fromkeys(("norm_layer", "norm_type", "normalization"), "model.norm"),
    **dict.fromkeys(("act", "act_layer"), "model.activation"),
    **dict.fromkeys(("drop", "drop_rate"), "model.dropout"),
    **dict.fromkeys(("drop_path_rate", "stochastic_depth"), "model.drop_path"),
    **dict.fromkeys(("sched", "scheduler", "lr_scheduler", "lr_schedule"), "schedule.name"),
    **dict.fromkeys(("warmup", "warmup_epochs", "lr_warmup_epochs"), "schedule.warmup_epochs"),
    **dict.fromkeys(("output", "output_dir", "save_dir", "log_dir", "out"), "runs"),
    **dict.fromkeys(("experiment", "exp_name", "run_name"), "name"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
}


def meant(name: str, keys: Iterable[str]) -> List[str]:
    """Return the keys that an unknown name may have been meant to be, the likeliest first."""
    keys = list(keys)
    last = name.rpartition(".")[2].lower().replace("-", "_")
    same = [key for key in keys if key.rpartition(".")[2] == last]
    if same:
        return same
    if ELSEWHERE.get(last) in keys:
        return [ELSEWHERE[last]]
    return nearest(name, keys)
