"""Heads of an experiment put together: what becomes of each, beside what it was alone.

A card's `together` entries say `kind`, `grid`, `heads` (labels of the grid's other dimensions), `along` (the dimension
of the data sets) and `order` (its labels). Kinds:

    concatenation   all heads in one model, each seeing itself alone
    extension       trained in this order, each seeing all before it
    unmasked        the first, the first two, .. of them in one model in which every token sees every memory
"""

import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnable_memory import heads, tuned_files
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.experiment_runs import PlannedRun, data_of, run_options, run_pass
from learnable_memory.commands.inputs import evaluation_loader
from learnable_memory.commands.passes import Pass
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.evaluate import Answers, evaluate
from learnable_memory.experiments.card import Card, Together
from learnable_memory.experiments.findings import Findings
from learnable_memory.experiments.keys import digest
from learnable_memory.experiments.results import Results, pack_right
from learnable_memory.methods import Learned, PromptTuning, build_network
from learnable_memory.unmasked_together import UnmaskedTogether

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One of the heads.

    Attributes:
        along: the dimension of the data sets.
        label: of its own data set.
        name: legal for a head.
        row: its run in the results.
    """

    along: str
    label: str
    name: str
    run: PlannedRun
    row: Mapping[str, Any]


def run_together(
    card: Card, results: Results, folder: Path, where: Mapping[str, Any], resume: bool = False
) -> int:  # fmt: skip
    """Do the analyses that are not in the results yet, and return how many they were.

    Those whose runs are not all there are left for later, and so are those of which one has diverged.

    Args:
        folder: that of `run_card`.
        resume: go on with an extension that was interrupted; else it starts anew.
    """
    done = 0
    for analysis in card.together:
        findings = Findings(card, results.rows())
        for data_seed in findings.missing_of(analysis):
            members = members_of(findings, analysis, data_seed, where)
            if members is None:
                continue
            logger.info("%s: %s, data seed %d", card.name, analysis.name, data_seed)
            runs = [member.run.key for member in members]
            about = {
                "kind": "together", "analysis": analysis.name, "key": analysis.key(runs), "data_seed": data_seed,
                "members": runs,
            }  # fmt: skip
            # All of it, or nothing.
            results.append(*[{**about, **row} for row in KINDS[analysis.settings["kind"]](members, folder, resume)])
            done += 1
    return done


def members_of(
    findings: Findings, analysis: Together, data_seed: int, where: Mapping[str, Any]
) -> list[Member] | None:  # fmt: skip
    """The heads that an analysis puts together, in its order; None while one of them is not there, or has diverged."""
    along = analysis.settings["along"]
    members: list[Member] = []
    for variant in analysis.members(findings.card.grid(analysis.settings["grid"])):
        mine = [row for row in findings[variant].scored if row["data_seed"] == data_seed]
        if not mine:
            return None
        run = PlannedRun(variant, run_options(variant, mine[0]["lr"], data_seed, where))
        members.append(Member(along, variant.labels[along], f"D{len(members)}", run, mine[0]))
    return members


def learned_file(member: Member, folder: Path) -> Path:
    """The head or network of a run; trained once more where it was not kept."""
    kept = folder / "learned"
    path = kept / heads.file_name(member.run.name)
    if not path.exists():
        logger.info("%s: its tensors were not kept, so it is trained once more", member.run.variant.label)
        run_pass([member.run], folder / "passes", resume=False, keep=kept)
    return path


def concatenation(members: Sequence[Member], folder: Path, resume: bool) -> Iterator[dict[str, Any]]:
    """All in one model, all answering in every pass."""
    base = TrainingBase(members[0].run.options)
    names = [base.tokens.load_head(learned_file(member, folder)) for member in members]
    for name, member in zip(names, members, strict=True):
        yield _evaluated(base.tokens, name, base, member, alongside=names)


def extension(members: Sequence[Member], folder: Path, resume: bool) -> Iterator[dict[str, Any]]:
    """Each but the first is trained again, at its own rate, on top of all before it."""
    base = TrainingBase(members[0].run.options)
    before = [base.tokens.load_head(learned_file(members[0], folder))]
    yield _evaluated(base.tokens, before[0], base, members[0])
    for number, member in enumerate(members[1:], start=1):
        # Another parent makes another head of it: its state is found under all of their keys.
        own = folder / "passes" / digest(["extension", *(each.run.key for each in members[: number + 1])])
        if not resume:
            shutil.rmtree(own, ignore_errors=True)
        options, cells = member.run.options, {member.name: member.run.cell}
        one_pass = Pass(base, data_of(options), options, cells, member.run.data_seed, extends=before)
        one_pass.run(Checkpoint(own / "checkpoint.pt", options.checkpoint_steps), own / "outcomes.json")
        yield _evaluated(base.tokens, member.name, base, member)
        shutil.rmtree(own, ignore_errors=True)
        before.append(member.name)


def unmasked(members: Sequence[Member], folder: Path, resume: bool) -> Iterator[dict[str, Any]]:
    """The first alone, with the second, and so on; each data set that is in is evaluated each time."""
    base = TrainingBase(members[0].run.options)
    networks: dict[str, PromptTuning] = {}
    for member in members:
        file = tuned_files.load(learned_file(member, folder))
        network = build_network(base.tokens, file.spec, file.metadata["num_labels"])
        if not isinstance(network, PromptTuning):
            raise ValueError(f"{member.label} is {file.spec.label}, but only unmasked memory can be put beside others.")
        Learned(network).load_state_dict(file.tensors)
        networks[member.name] = network
    for count in range(1, len(members) + 1):
        inside = members[:count]
        model = UnmaskedTogether(dict(itertools.islice(networks.items(), count)))
        for member in inside:
            row = _evaluated(model, member.name, base, member)
            row["labels"]["together"] = " + ".join(each.label for each in inside)
            yield row


KINDS = {"concatenation": concatenation, "extension": extension, "unmasked": unmasked}


def _evaluated(
    model: Any, name: str, base: TrainingBase, member: Member, alongside: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """The row of one head, beside what it was alone."""
    options, alone = member.run.options, member.row
    answers: dict[str, Answers] = {}
    data = data_of(options)
    loader = evaluation_loader(data.eval, base.preprocessing, options, base.device)
    score = evaluate(model, loader, [name], alongside, answers=answers)[name]
    return {
        "labels": {member.along: member.label}, "top1": score.top1, "images": score.images,
        "eval_right": pack_right(answers[name].right.numpy()), "alone_top1": alone["eval"]["top1"],
        "alone_right": alone["eval_right"], "eval_hash": data.record()["splits"]["eval"]["hash"],
    }  # fmt: skip
