"""The claims of Alignment Vectors (arXiv 2410.19206), measured on the built-in model: `python -m
claims.vectors [PART ...] [--report FILE]`.

Prints one figure per line as JSON. Parts, all by default and in this order:

    levels      accuracy of every level at the best lambda, and the 27 combinations (paper: 22
                reached)
    curve       accuracy against lambda from -1.5 to 1.5
    prompting   the level asked for in words (zero-shot, few-shot) instead, by likelihood
    generation  what is written, by a judge, and what it costs (paper: half the cost of prompting)
    joint       one model trained for one combination: its accuracy, and its time times 27 (paper:
                12 times the vectors')
    transfer    the vectors on a further fine-tuned checkpoint of the base: how much of the effect
                is kept
    spillover   what each vector does to other subjects; the same for vectors trained without held
                lessons, and orthogonalised
    general     perplexity of neutral text, repetition, simple multiple choice
    public      preferences on public data in the folder that FADER_DATA names (medquad, fintextqa,
                cochrane_plain, legal_plain_english)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from claims.printed import print_figures, public_rows
from fader import Fader
from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.evaluation.figures import Figure, average
from fader.evaluation.lab import Lab
from fader.evaluation.ledger import Asked, Ledger
from fader.evaluation.levels import spillover
from fader.evaluation.tasks import TASKS
from fader.evaluation.tune import amounts, curves, firsts, trial
from fader.methods.vector import project_out
from fader.training.data import (
    DOMAINS,
    LEVELS,
    STYLES,
    Level,
    shuffled,
    split,
    starter_levels,
    starter_pairs,
)
from fader.training.lessons import at_one, lessons_of
from fader.training.vector import train_vector

RUNS = Path("runs/vectors")
COMBINATION: Mapping[str, Level] = {
    "medical": "expert",
    "legal": "generic",
    "financial": "avoidance",
}


def task(*names: str) -> Callable[[Lab], Iterator[Figure]]:
    """A part that is one or several of the evaluation's tasks."""

    def run(lab: Lab) -> Iterator[Figure]:
        for name in names:
            yield from TASKS[name](lab)

    return run


def joint(lab: Lab) -> Iterator[Figure]:
    """One vector trained on all three domains for one combination, served at 1; and what the
    training for all 27 takes, against the vectors'."""
    name, folder = "joint", RUNS / "joint"
    pairs = [
        item.pair(wanted, other)
        for domain, wanted in COMBINATION.items()
        for item in lab.items(domain, "train")
        for other in LEVELS
        if other != wanted
    ]
    trained = train_vector(name, at_one(pairs), folder, model=lab.ledger.fader.model)
    lab.ledger.fader.add_vector(trained)
    found = lab.ranked(
        "joint", [trial(lab, {name: 1.0}, domain, lab.split) for domain in COMBINATION]
    )
    for (domain, level), means in zip(COMBINATION.items(), found, strict=True):
        yield average(
            "joint", "joint training", domain, f"best_{level}", firsts(means, level), lab.seed
        )
    picks = amounts(lab, "joint")
    mixture = {lab.vectors[domain]: picks[domain, level] for domain, level in COMBINATION.items()}
    found = lab.ranked("joint", [trial(lab, mixture, domain, lab.split) for domain in COMBINATION])
    for (domain, level), means in zip(COMBINATION.items(), found, strict=True):
        yield average("joint", "vectors", domain, f"best_{level}", firsts(means, level), lab.seed)
    for kind in ("lessons", "seconds"):
        # the vectors were trained together: the card of one tells of all
        together = _of_all_stages(
            lab.ledger.fader.vector(next(iter(lab.vectors.values()))).card, kind
        )
        yield average(
            "joint",
            "joint training",
            "27 combinations",
            f"training_{kind}",
            [27 * trained.card[kind]],
            lab.seed,
        )
        yield average(
            "joint", "vectors", "27 combinations", f"training_{kind}", [together], lab.seed
        )


def _of_all_stages(card: Mapping[str, Any], kind: str) -> float:
    """What a vector's training took, with the stages that it went on from."""
    return float(card[kind]) + sum(
        _of_all_stages(stage, kind) for stage in card.get("started_from") or ()
    )


def transfer(lab: Lab) -> Iterator[Figure]:
    """The same figures on the base and on a checkpoint fine-tuned further, all its weights, on 200
    general answers."""
    picks = amounts(lab, "transfer")
    points = [(domain, picks[domain, level]) for domain in lab.vectors for level in LEVELS]
    tuned = further(RUNS / f"further-{lab.limit or 'all'}", lab.ledger.fader.model, lab.limit)
    with Fader(str(tuned), dtype=quick_dtype()) as fader:
        for domain, name in lab.vectors.items():
            fader.add_vector(
                replace(
                    lab.ledger.fader.vector(name), base=fader.backbones[fader.model].fingerprint
                ),
                domain,
            )
        onto = replace(
            lab,
            ledger=Ledger(fader, RUNS / "further.jsonl"),
            vectors={domain: domain for domain in lab.vectors},
        )
        for method, where in (("base", lab), ("further tuned", onto)):
            found = curves(
                where, "transfer", [*points, *((domain, 0.0) for domain in lab.vectors)], lab.split
            )
            for domain in lab.vectors:
                for level in LEVELS:
                    yield average(
                        "transfer",
                        method,
                        domain,
                        f"best_{level}",
                        firsts(found[domain, picks[domain, level]], level),
                        lab.seed,
                    )
                    yield average(
                        "transfer",
                        f"{method}, lambda 0",
                        domain,
                        f"best_{level}",
                        firsts(found[domain, 0.0], level),
                        lab.seed,
                    )


def further(folder: Path, model_name: str, limit: int | None = None) -> Path:
    """A further fine-tuning stage of a model: one pass over 200 general answers, all weights
    trained."""
    if (folder / "config.json").is_file():
        return folder
    source = builtin.source(model_name)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    pairs = [pair for style in STYLES for pair in split(starter_pairs(style), "train")]
    rows = []
    for pair in shuffled(pairs, 0)[: limit or 200]:
        turns = [
            {"role": "user", "content": pair.messages[0].content},
            {"role": "assistant", "content": pair.rejected},
        ]
        ids = tokenizer(
            tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False
        )["input_ids"]
        rows.append({"input_ids": ids, "labels": ids})
    scratch = folder.with_name(f"{folder.name}.part")
    settings = TrainingArguments(
        str(scratch),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        learning_rate=5e-5,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        bf16=quick_dtype() == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    trainer = Trainer(model, settings, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, where the figures go
    trainer.train()
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch.rename(folder)


def remedies(lab: Lab) -> Iterator[Figure]:
    """Spill-over of the shipped vectors; of the same without held lessons; of the shipped ones
    orthogonalised to each other."""
    fader = lab.ledger.fader
    yield from spillover(lab)
    shipped = {domain: fader.vector(name) for domain, name in lab.vectors.items()}
    for domain, vector in shipped.items():
        fader.add_vector(
            project_out(vector, [other for name, other in shipped.items() if name != domain]),
            f"{domain}-orthogonal",
        )
    yield from spillover(
        replace(lab, vectors={domain: f"{domain}-orthogonal" for domain in shipped})
    )
    fader.add_vector(
        train_vector(
            "medical-unheld",
            lessons_of(lab.items("medical", "train")),
            RUNS / "medical-unheld",
            model=fader.model,
        )
    )
    yield from spillover(replace(lab, vectors={"medical": "medical-unheld"}))


def public(lab: Lab) -> Iterator[Figure]:
    """On public data: are expert answers preferred to refusals, and technical to plain wordings, as
    lambda grows?"""
    for domain, name, pairs in public_pairs():
        for amount in (-1.0, -0.35, 0.0, 0.5, 1.0):
            wish = {"alignment": {"vectors": {lab.vectors[domain]: amount} if amount else {}}}
            asked = [
                Asked(
                    "public",
                    f"{domain}={amount:g}",
                    name,
                    f"{place}:{side}",
                    Fader.request(query, **wish),
                    text,
                )
                for place, (query, *texts) in enumerate(pairs)
                for side, text in enumerate(texts)
            ]
            means = [said.mean for said in lab.ledger.ask(asked)]
            expert = [float(one > two) for one, two in zip(means[::2], means[1::2], strict=True)]
            yield average(
                "public",
                f"{lab.vectors[domain]}={amount:g}",
                name,
                "expert_preferred",
                expert,
                lab.seed,
            )


def public_pairs(count: int = 60) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """(domain, data set, [(query, expert text, other text)]) of each data set that is there, drawn
    with seed 0: the first 100 words of expert texts of at least 25 words and of others of at least
    12. Refusals are those of the test split."""
    refusals = {
        domain: [item.answers["avoidance"] for item in split(starter_levels(domain), "test")]
        for domain in DOMAINS
    }
    for domain, name, file, query, expert, other in (
        ("medical", "medquad against refusals", "medquad/qa.jsonl.gz", "question", "answer", None),
        (
            "financial",
            "fintextqa against refusals",
            "fintextqa/qa.jsonl",
            "question",
            "answer",
            None,
        ),
        (
            "medical",
            "cochrane technical against plain",
            "cochrane_plain/val.jsonl.gz",
            "What did this review find?",
            "technical",
            "plain",
        ),
        (
            "legal",
            "legal original against plain",
            "legal_plain_english/pairs.jsonl",
            "What does this clause say?",
            "original",
            "plain",
        ),
    ):
        found: list[tuple[str, str, str]] = []
        for place, row in enumerate(public_rows(file)):
            second = row[other] if other else refusals[domain][place % len(refusals[domain])]
            if len(row[expert].split()) >= 25 and len(second.split()) >= 12:
                found.append((row.get(query, query), _begin(row[expert]), _begin(second)))
        if found:
            yield domain, name, shuffled(found, 0)[:count]


def _begin(text: str, words: int = 100) -> str:
    return " ".join(text.split()[:words])


PARTS: Mapping[str, Callable[[Lab], Iterator[Figure]]] = {
    "levels": task("levels"),
    "curve": task("curve"),
    "prompting": task("prompting"),
    "generation": task("generation"),
    "joint": joint,
    "transfer": transfer,
    "spillover": remedies,
    "general": task("fluency", "ability", "styles"),
    "public": public,
}


if __name__ == "__main__":
    print_figures(
        PARTS, lambda ledger, limit: Lab(ledger, limit=limit), RUNS / "claims.jsonl", sys.argv[1:]
    )
