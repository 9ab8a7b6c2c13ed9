"""What `vit_train.py` can be told. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

from learnable_memory.fit_spec import OPTIMIZERS, FitSpec
from learnable_memory.method_spec import MASKINGS, MEMORY_UPDATES, METHODS, OWNERS, WITH_PROMPTS, MethodSpec
from learnable_memory.options import FRACTION, NOT_EMPTY, above, at_least, option
from learnable_memory.projections import PROJECTIONS, USUAL_PROJECTIONS
from learnable_memory.run_options import DATA_SET_NAMES, HEAD_NAME, SEED, DataChoice, RunOptions, head_name

DEFAULT_BASE = "google/vit-base-patch32-224-in21k"
GRID = "what is learned (several values: a grid; its heads share one pass, other networks have one each)"
LORA_RANK = 8  # unless told
APART = "methods that cannot be put together"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataChoice, RunOptions):
    """What `vit_train.py` does: it learns one data set, by a head, another network, or a grid of them."""

    dataset: str = option(
        help=f"what to learn: {DATA_SET_NAMES}",
        flags=("-d", "--dataset"),
        group="data",
        legal=NOT_EMPTY,
    )
    on_bad_image: str = option(
        "stop",
        "what to do about an image that cannot be decoded. stop: the run ends and names it; skip: all images are "
        "looked at first, and such ones left out and counted",
        group="data",
        choices=("stop", "skip"),
    )

    decoding: str = option(
        "scaled",
        "of JPEG files that are several times as large as what the model is shown. scaled: at 1/2, 1/4 or 1/8, with at "
        "least twice the model's pixels, in training and ever after; full: as large as they are",
        group="data",
        choices=("scaled", "full"),
    )

    base_model: str = option(
        DEFAULT_BASE, "the frozen ViT: a name on the hub, a folder, or a checkpoint file", group="head", legal=NOT_EMPTY
    )
    image_size: int | None = option(
        None, "side of the images", group="head", legal=at_least(1), unit="pixels", default_help="the base's own"
    )
    name: str = option(None, "its name", group="head", legal=HEAD_NAME, default_help="the data set's")
    method: tuple[str, ...] = option(
        ("memory",),
        "what is learned. memory: memory, class token and classifier; head+class: no memory, the same as -m 0; "
        "head: only a classifier on the base's class token, a linear probe. These are heads, which can be put "
        "together; each of the others is a network of its own. full: all weights; bias: the base's biases; lora: "
        "low-rank updates of queries and values; vpt-shallow, vpt-deep: prompts",
        flags=("--method", "--regimes"),
        group=GRID,
        choices=METHODS,
    )
    number_of_memory_tokens: tuple[int, ...] = option(
        None,
        "memory tokens (the paper's cells) in each layer; 0 leaves class token and classifier; of VPT the prompts",
        flags=("-m", "--number_of_memory_tokens"),
        group=GRID,
        legal=at_least(0),
        default_help="1",
    )
    masking: tuple[str, ...] = option(
        ("masked",),
        "who sees the memory. masked: the head's class token alone; none: patches and base class token too, which "
        "cannot be put together with other heads",
        group=GRID,
        choices=MASKINGS,
    )
    lr: tuple[float, ...] = option(
        (0.03,),
        "highest learning rate",
        group=GRID,
        legal=above(0),
    )
    rank: tuple[int, ...] | None = option(
        None,
        "rank of low-rank weights: of a head (memory, head+class) for its own class token, which leaves it exact and "
        "combinable; of lora for the base's queries and values",
        group=GRID,
        legal=at_least(0),
        default_help="0, of lora 8",
    )
    optimizer: tuple[str, ...] = option(
        ("sgd",), "what steps; mixed: adamw for low-rank weights of a head, sgd for all else", group=GRID,
        choices=OPTIMIZERS,
    )  # fmt: skip
    rank_lr: tuple[float, ...] = option(
        (1.0,), "rate of low-rank weights of a head, as a multiple of --lr", group=GRID, legal=above(0)
    )
    weight_decay: tuple[float, ...] = option((0.0,), "of all that is learned", group=GRID, legal=at_least(0))
    label_smoothing: tuple[float, ...] = option((0.0,), "share spread over all classes", group=GRID, legal=FRACTION)
    ema: tuple[float, ...] = option(
        (0.0,), "decay of a moving average, which is then what is evaluated and kept (after step n at most "
        "n / (n + 9)); 0: none", group=GRID, legal=FRACTION,
    )  # fmt: skip
    seeds: tuple[int, ...] = option(
        None,
        "draw initial values",
        group=GRID,
        legal=SEED,
        default_help="that of --seed",
    )
    extends: tuple[str, ...] | None = option(
        None,
        "heads that it is built on: it sees their class tokens and memory too, and they stay as they are; names in "
        "--output, or files",
        group="head",
        legal=NOT_EMPTY,
        default_help="none",
    )
    init_from: str | None = option(
        None,
        "begin with what this head, or network, has learned, with a new schedule: a name in --output, or a file",
        group="head",
        legal=NOT_EMPTY,
        default_help="random values",
    )
    rank_of: tuple[str, ...] = option(
        USUAL_PROJECTIONS,
        "projections of each layer that --rank of a head is for; those of key and value are for its memory too",
        group="head",
        choices=PROJECTIONS,
    )
    memory_norm: bool = option(True, "pass the memory through each layer's first norm, as the paper does", group="head")

    memory_update: str = option(
        "none",
        "none: each layer has its own memory; propagate: what leaves a layer enters the next; additive: the same, with "
        "a learned update at each layer (the variants that the paper rejects)",
        group=APART,
        choices=MEMORY_UPDATES,
    )
    train_class_token: bool = option(
        True, "with --masking none, learn the class token; else it stays the base's", group=APART
    )
    prompt_dropout: float = option(0.0, "share of VPT's prompts that is dropped", group=APART, legal=FRACTION)
    gradient_checkpointing: bool = option(
        False, "compute each layer again for its gradients instead of keeping it: less memory, more time", group=APART
    )

    epochs: int = option(20, "passes over the data", flags=("-e", "--epochs"), group="training", legal=at_least(1))
    momentum: float = option(0.9, "momentum of SGD, first beta of AdamW", group="training", legal=FRACTION)
    clip: float = option(1.0, "scale gradients down to this norm", group="training", legal=above(0))
    warmup_steps: int = option(5, "linear warm-up", group="training", legal=at_least(0), unit="steps")
    max_steps: int | None = option(
        None,
        "stop here, with the cosine at zero",
        group="training",
        legal=at_least(1),
        unit="steps",
        default_help="the end of the last epoch",
    )
    seed: int = option(0, "stands for --seeds and --data_seeds where they are left out", group="training", legal=SEED)
    folds: int | None = option(
        None,
        "cross-validate: each head this many times more in the same pass, each without its share of the training "
        "images, which it is then tried on. Nothing is held out to choose on: the best of a grid is the best out of "
        "fold, and the head that is kept has learned from all images, to the last epoch",
        group="training",
        legal=at_least(2),
        default_help="a selection split",
    )
    data_seeds: tuple[int, ...] | None = option(
        None,
        "draw order, augmentation and the selection split, or the folds; each is a pass of its own",
        group="training",
        legal=SEED,
        default_help="that of --seed, with the selection split of --split_seed",
    )

    views: int | None = option(
        None,
        "random views of each image; 0: the evaluation view, no augmentation",
        group="training",
        legal=at_least(0),
        default_help="a new one in each epoch; 1 with a cache",
    )

    cache: str = option(
        "none",
        "keep what the heads need of the base, so that later epochs cost the heads only",
        group="cache",
        choices=("none", "memory", "disk"),
    )
    cache_dtype: str = option("float32", "of what is kept", group="cache", choices=("float32", "bfloat16", "float16"))
    cache_form: str = option(
        "keys_values",
        "keys_values: exact and fastest; tokens: half the size, more arithmetic",
        group="cache",
        choices=("keys_values", "tokens"),
    )
    cache_folder: Path | None = option(
        None, "where --cache disk keeps it", group="cache", default_help="cache/ in --directory"
    )

    checkpoint_steps: int = option(
        500, "write the state of the training that often", group="results", legal=at_least(1), unit="steps"
    )
    resume: bool = option(False, "go on where an interrupted run was; start if there is none", group="results")
    log_with: tuple[str, ...] | None = option(
        None,
        "also log to these, through accelerate",
        group="results",
        choices=("tensorboard", "wandb"),
        default_help="JSON lines only",
    )
    output: Path = option(Path("models"), "folder for the head, its curves and its log", group="results")
    keep_all: bool = option(False, "keep all heads of a grid, not only the best", group="results")
    overwrite: bool = option(False, "replace the results of an earlier run", group="results")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None:
            self._set("name", head_name(self.dataset))
        prompts = [method for method in self.method if method in WITH_PROMPTS]
        if self.number_of_memory_tokens is None:
            self._set("number_of_memory_tokens", (1,) if prompts else (0,))
        elif not prompts and self.number_of_memory_tokens != (0,):
            raise ValueError(
                f"--number_of_memory_tokens is {_list(self.number_of_memory_tokens)}, but --method "
                f"{_list(self.method)} has no memory: leave one of the two out."
            )
        self._check_methods()
        if self.seeds is None:
            self._set("seeds", (self.seed,))
        if self.views is None and self.cache != "none":
            self._set("views", 1)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite starts it anew: give one of them.")
        for name in (
            "number_of_memory_tokens", "method", "masking", "lr", "seeds", "data_seeds", "extends", "rank", "rank_of",
            "optimizer", "rank_lr", "weight_decay", "label_smoothing", "ema",
        ):  # fmt: skip
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"--{name} is {_list(values)}: name each value once.")

    def _check_methods(self) -> None:
        if "memory" not in self.method and (self.masking != ("masked",) or self.memory_update != "none"):
            raise ValueError(
                f"--masking and --memory_update belong to --method memory, and it is {_list(self.method)}: leave them "
                "out, or add memory."
            )
        if (self.masking != ("masked",) or self.memory_update != "none") and not any(self.number_of_memory_tokens):
            raise ValueError(
                "--masking and --memory_update need memory, but --number_of_memory_tokens is 0: leave them out."
            )
        if not self.train_class_token and "none" not in self.masking:
            raise ValueError("--no-train_class_token belongs to --masking none: leave one of the two out.")
        self._check_prompts()
        self._check_effects()
        apart = [spec for spec in self.method_specs if not spec.combinable]
        if apart and self.cache != "none":
            raise ValueError(
                f"--cache keeps what the base makes of an image, which is of no use to {apart[0].label} "
                f"({apart[0].reason}): leave --cache out, or train that one in a run of its own."
            )
        if apart and self.folds:
            raise ValueError(
                f"--folds is for heads, which learn in one pass, and {apart[0].label} is none: {apart[0].reason}. "
                "Leave it out."
            )
        if apart and self.extends:
            raise ValueError(f"--extends is for heads, which {apart[0].label} is not: {apart[0].reason}. Leave it out.")
        if self.init_from and self.folds:
            raise ValueError(
                "--init_from begins with what has learned from the images that --folds would hold out: give one of "
                "them."
            )
        if self.extends and "head" in self.method:
            raise ValueError("--extends needs class tokens, which linear probes do not have: leave --method head out.")
        if self.attn_implementation == "flash_attention_2" and self.precision != "bfloat16":
            raise ValueError("--attn_implementation flash_attention_2 needs --precision bfloat16.")

    def _check_prompts(self) -> None:
        for method in self.method:
            if method.startswith("vpt") and 0 in self.number_of_memory_tokens:
                raise ValueError(
                    f"{method} needs at least one prompt, and one --number_of_memory_tokens is 0: leave 0 out; "
                    "head+class is memory of 0 tokens."
                )

    def _check_effects(self) -> None:
        """Nothing is asked for in vain."""
        learned = {spec.method for spec in self.method_specs}
        words = ", ".join(sorted(learned))
        for field in fields(self):
            value, owners = getattr(self, field.name), OWNERS.get(field.name, METHODS)
            if value != field.default and not learned & set(owners):
                flag = f"--no-{field.name}" if value is False else f"--{field.name}"
                raise ValueError(
                    f"{flag} belongs to {', '.join(owners)}, and what is learned is {words}: leave it out."
                )
        ranked = any(spec.rank for spec in self.method_specs if spec.combinable)
        if self.rank_of != USUAL_PROJECTIONS and not ranked:
            raise ValueError("--rank_of says what --rank of a head is for, and no head has one: leave it out.")
        if ("mixed" in self.optimizer or self.rank_lr != (1.0,)) and not ranked:
            raise ValueError(
                "--optimizer mixed and --rank_lr are for low-rank weights of a head, and no head has any: leave them "
                "out, or give --rank."
            )
        if any(self.rank or ()) and not any(spec.rank for spec in self.method_specs):
            raise ValueError(
                f"--rank is {_list(self.rank or ())}, but low-rank weights belong to masked memory of each layer's "
                "own: leave it out, or --masking and --memory_update."
            )
        if self.gradient_checkpointing and all(spec.combinable for spec in self.method_specs):
            raise ValueError(
                f"--gradient_checkpointing is for gradients through the base, and for {words} there are none: leave it "
                "out."
            )

    @property
    def method_specs(self) -> list[MethodSpec]:
        """Every method that is asked for, told everything but rate and seed; each once."""
        return list(dict.fromkeys(spec for method in self.method for spec in self._specs(method)))

    @property
    def fit_specs(self) -> list[FitSpec]:
        """Every way of fitting that is asked for, rate and seed aside."""
        dimensions = product(self.optimizer, self.rank_lr, self.weight_decay, self.label_smoothing, self.ema)
        return [FitSpec(*each) for each in dimensions]

    def _specs(self, method: str) -> list[MethodSpec]:
        counts, ranks = self.number_of_memory_tokens, self.rank or (0,)
        if method == "lora":
            return [MethodSpec(method, rank=rank) for rank in self.rank or (LORA_RANK,)]
        if method in ("vpt-shallow", "vpt-deep"):
            return [MethodSpec(method, count, prompt_dropout=self.prompt_dropout) for count in counts]
        if method == "head+class":
            return [MethodSpec(method, rank=rank) for rank in ranks]
        if method != "memory":
            return [MethodSpec(method)]
        return [
            MethodSpec(
                method, count, masking, self.memory_update, self.memory_norm,
                self.train_class_token or masking == "masked", rank,
            ) if count else MethodSpec("head+class", rank=rank)
            for masking in self.masking
            for count in counts
            for rank in (ranks if masking == "masked" and self.memory_update == "none" else (0,))
        ]  # fmt: skip


def _list(values: tuple) -> str:
    return " ".join(map(str, values))
