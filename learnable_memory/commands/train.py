"""`vit_train.py`: train one head on `train`, choose its best epoch on `select`, report it on `eval`, once."""

import logging
from dataclasses import asdict

import torch

from learnable_memory import heads, plots
from learnable_memory.commands.model import load_base, start_logging
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.data import DataSet, load_data_set, make_loader
from learnable_memory.evaluate import Score, evaluate
from learnable_memory.runlog import RunLog, read_metrics, versions
from learnable_memory.train import Best, Recipe, train
from learnable_memory.transforms import Preprocessing

logger = logging.getLogger(__name__)

# What a head file does not keep of the options: it would say something of a machine and nothing of the head.
OF_THE_MACHINE = ("directory", "output", "device", "workers", "no_download", "overwrite")


def run(options: TrainOptions) -> int:
    """Train as the options say; leaves the head's file, its curves and its run folder in `options.output`."""
    start_logging()
    name = heads.HeadSpec(options.name, num_labels=1).name  # a name that is not legal, before anything is loaded
    path = options.output / heads.file_name(name)
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{path} exists: choose another --name or --output, or replace it with --overwrite.")
    model, preprocessing = load_base(options.base_model, options)
    data = load_data_set(options.dataset, options.directory, options.split_seed, download=not options.no_download)
    model.add_head(
        name, len(data.labels), options.number_of_memory_tokens, memory_norm=options.memory_norm,
        class_token=options.regime != "head", generator=torch.Generator().manual_seed(options.seed),
    )  # fmt: skip
    announce(model, name, data)

    # A run folder without a head beside it is what an interrupted run left: it is written anew.
    with RunLog(options.output / f"{name}_run", overwrite=True) as log:
        log.options(to_dict(options))
        best, score = fit(model, name, data, preprocessing, options, log)
    chosen = {"epoch": best.epoch + 1, "select": asdict(best.score), "eval": asdict(score)}
    model.save_head(name, path, head_metadata(data, preprocessing, options, chosen))
    picture = plots.training_curves(read_metrics(log.metrics_path), options.output / f"{name}_curves.png", name)
    print(
        f"{name}: top-1 {score.top1:.4f}, top-5 {score.top5:.4f} on {score.images:,} evaluation images, after epoch "
        f"{best.epoch + 1} (select top-1 {best.score.top1:.4f})\n"
        f"head    {path} ({path.stat().st_size / 1000:.0f} kB)\ncurves  {picture}\nlog     {log.folder}"
    )
    return 0


def announce(model, name: str, data: DataSet) -> None:
    """Say what is about to be trained on what."""
    numbers = sum(parameter.numel() for parameter in model.heads[name].parameters())
    logger.info(
        "%s on %s: %s numbers to learn; %s images of %d classes (%s to choose on, %s to report on), from %s",
        name, model.base_id, f"{numbers:,}", f"{len(data.train):,}", len(data.labels), f"{len(data.select):,}",
        f"{len(data.eval):,}", data.source,
    )  # fmt: skip


def fit(
    model, name: str, data: DataSet, preprocessing: Preprocessing, options: TrainOptions, log: RunLog
) -> tuple[Best, Score]:
    """Train, then evaluate the chosen epoch."""
    workers = options.workers
    train_loader = make_loader(
        data.train, preprocessing.train_transform(data.views), options.batch_size, workers, options.seed, shuffle=True
    )
    select_loader, eval_loader = (
        make_loader(split, preprocessing.eval_transform(), options.batch_size, workers)
        for split in (data.select, data.eval)
    )
    recipe = Recipe(options.epochs, options.lr, options.momentum, options.clip, options.warmup_steps, options.max_steps)
    best = train(model, [name], train_loader, select_loader, recipe, log)[name]
    score = evaluate(model, eval_loader, [name], description=f"{name} eval")[name]
    rows = {f"eval/{key}": value for key, value in asdict(score).items()}
    log.metrics(rows, step=recipe.steps(len(train_loader)), epoch=best.epoch + 1)
    return best, score


def head_metadata(data: DataSet, preprocessing: Preprocessing, options: TrainOptions, chosen: dict) -> dict:
    """What a head's file says beyond its shapes: enough to evaluate it again without a flag."""
    kept = {key: value for key, value in to_dict(options).items() if key not in OF_THE_MACHINE}
    return {
        "labels": data.labels,
        "preprocessing": preprocessing.to_dict(),
        "dataset": data.record(),
        "metrics": chosen,
        "training": kept,
        "versions": versions(),
    }
