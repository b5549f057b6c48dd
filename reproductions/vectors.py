"""The claims of Alignment Vectors (arXiv 2410.19206), measured on the built-in model: `python -m
reproductions.vectors [PART ...] [--report FILE]`.

Prints one figure per line as JSON. Parts, all by default and in this order:

    levels      accuracy of every level at the best lambda, and the 27 combinations (bar of
                .80 and ranking per token are ours; the paper reports 22 of 27 by its own)
    curve       accuracy against lambda from -1.5 to 1.5
    prompting   the level asked for in words (zero-shot, few-shot) instead, by likelihood
    generation  what is written, by a judge, and what it costs (paper: half the cost of prompting)
    joint       one model trained for one combination: its accuracy, and its time times 27 (paper:
                12 times the vectors')
    plain       the paper's own recipe, plain DPO at lambda = 1: curve, levels, combinations by grid
                search, spill-over, lessons and time, beside the shipped vectors
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from fader import Fader
from fader.data.records import LEVELS, Level, shuffled, split
from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.evaluation.cache import Query, ResultCache
from fader.evaluation.judge import Labelled, classifier, judge_accuracy, level_namings
from fader.evaluation.levels import combinations, curve, every_combination, few, spillover
from fader.evaluation.metrics import Metric, average, exactly, paired_difference
from fader.evaluation.suite import Suite
from fader.evaluation.tasks import TASKS
from fader.evaluation.tune import curves, grid_search, strengths, top1, trial
from fader.files import whole_folder
from fader.request import Request
from fader.starter.shipped import DOMAINS, STYLES, starter_levels, starter_pairs
from fader.training.lessons import at_one, lessons_of
from fader.training.vector import DPO, train_vector
from fader.vectors.peft_folder import CONFIG
from fader.vectors.vector import Vector, project_out
from reproductions.runner import print_metrics, public_rows

RUNS = Path("runs/vectors")
COMBINATION: Mapping[str, Level] = {
    "medical": "expert",
    "legal": "generic",
    "financial": "avoidance",
}


def task(*names: str) -> Callable[[Suite], Iterator[Metric]]:
    """A part that is one or several of the evaluation's tasks."""

    def run(suite: Suite) -> Iterator[Metric]:
        for name in names:
            yield from TASKS[name](suite)

    return run


def written(suite: Suite) -> Iterator[Metric]:
    """The task `generation`, and how right the classifier that judges is on other people's
    texts."""
    yield from TASKS["generation"](suite)
    namings = level_namings(suite.judge or classifier())
    for _, name, found in public_pairs(suite.limit or 60):
        levels: tuple[Level, ...] = ("expert", "avoidance" if "refusals" in name else "generic")
        texts = [
            Labelled(f"{query} {expert}", text, level)  # the two are of one content
            for query, expert, other in found
            for text, level in zip((expert, other), levels, strict=True)
        ]
        yield from judge_accuracy("generation", name, texts, namings, suite.seed)


def joint(suite: Suite) -> Iterator[Metric]:
    """One vector trained on all three domains for one combination, served at 1; and what the
    training for all 27 takes, against the vectors'."""
    name, folder = "joint", RUNS / "joint"
    pairs = [
        item.pair(wanted, other)
        for domain, wanted in COMBINATION.items()
        for item in suite.items(domain, "train")
        for other in LEVELS
        if other != wanted
    ]
    trained = train_vector(name, at_one(pairs), folder, model=suite.cache.fader.model, force=True)
    suite.cache.fader.add_vector(trained)
    alone = [trial(suite, {name: 1.0}, domain, suite.split) for domain in COMBINATION]
    picks = strengths(suite, "joint")
    mixture = {suite.vectors[domain]: picks[domain, level] for domain, level in COMBINATION.items()}
    mixed = [trial(suite, mixture, domain, suite.split) for domain in COMBINATION]
    for (domain, level), one, two in zip(
        COMBINATION.items(),
        suite.ranked("joint", alone),
        suite.ranked("joint", mixed),
        strict=True,
    ):
        best, ranks = f"best_{level}", (top1(one, level), top1(two, level))
        yield average("joint", "joint training", domain, best, ranks[0], suite.seed)
        yield average("joint", "vectors", domain, best, ranks[1], suite.seed)
        yield paired_difference(
            "joint", "vectors", domain, f"{best}_over_joint", ranks[1], ranks[0], suite.seed
        )
    for kind in ("lessons", "seconds"):
        # the vectors were trained together: the card of one tells of all
        together = _of_all_stages(
            suite.cache.fader.vector(next(iter(suite.vectors.values()))).card, kind
        )
        for method, taken in (("joint training", 27 * trained.card[kind]), ("vectors", together)):
            yield exactly("joint", method, "27 combinations", f"training_{kind}", taken, suite.seed)


def _of_all_stages(card: Mapping[str, Any], kind: str) -> float:
    """What a vector's training took, with the stages that it went on from."""
    return float(card[kind]) + sum(
        _of_all_stages(stage, kind) for stage in card.get("started_from") or ()
    )


PLAIN = replace(DPO, epochs=3.0)
"""Plain DPO: after a single pass of 72 pairs a vector moves the order of answers hardly at all."""
GRID = (-1.5, -0.9, -0.4, 0.0, 0.6, 1.2)
"""The strengths of each vector among which combinations are searched, as in the paper, which does
not state its own."""


def plain(suite: Suite) -> Iterator[Metric]:
    """The paper's own recipe, a vector a domain by plain DPO at lambda = 1 with expert over
    avoidance and nothing else, beside the shipped ones (method `line-trained`): alone, in the 27
    combinations by grid search, on other subjects, and what the training took.

    The vectors are those of `fader train vector NAME --data ... --loss dpo --epochs 3`, in folders
    `runs/vectors/plain/DOMAIN-plain`. Those that are there are taken as they are, the others
    trained.
    """
    fader = suite.cache.fader
    names = {domain: f"{domain}-plain" for domain in suite.vectors}
    for domain, name in names.items():
        folder = RUNS / "plain" / name
        if (folder / CONFIG).is_file():
            vector = Vector.load(folder, name)
        else:
            # of all items, though few be measured: a later run takes the vector as it is
            lessons = at_one(replace(suite, limit=None).items(domain, "train"))
            vector = train_vector(name, lessons, folder, PLAIN, model=fader.model)
        fader.add_vector(vector)
    for method, where in (
        ("plain DPO", replace(suite, vectors=names)),
        ("line-trained", suite),
    ):
        for metric in _recipe(where):
            yield replace(metric, task="plain", method=method)


def _recipe(suite: Suite) -> Iterator[Metric]:
    """What one way of training gives; the strengths stand in the case."""
    for metric in curve(suite):
        yield replace(metric, case=f"{metric.case} {metric.method.rpartition('=')[2]}")
    picks = strengths(suite, "plain")
    points = [(domain, picks[domain, level]) for domain in suite.vectors for level in LEVELS]
    found = curves(suite, "plain", points, suite.split)
    for (domain, strength), level in zip(points, [*LEVELS] * len(suite.vectors), strict=True):
        ranks = top1(found[domain, strength], level)
        yield average("plain", "", domain, f"best_{level}", ranks, suite.seed)
        yield exactly("plain", "", domain, f"lambda_{level}", strength, suite.seed)
    wanted = every_combination(suite)
    mixtures = grid_search(few(suite), "plain", wanted, GRID)
    for metric in combinations(suite, "plain", wanted, mixtures):
        case = metric.case if metric.method == "vectors" else f"{metric.case} at {metric.method}"
        yield replace(metric, case=case)
    for metric in spillover(suite):
        if metric.metric == "moved":
            yield metric
    cards = [suite.cache.fader.vector(name).card for name in suite.vectors.values()]
    for kind in ("lessons", "seconds"):
        yield exactly("plain", "", "all", f"training_{kind}", _in_all(cards, kind), suite.seed)


def _in_all(cards: Sequence[Mapping[str, Any]], kind: str) -> float:
    """What training several vectors took; those that were trained side by side count once."""
    runs = {
        tuple(card.get("trained_with", ())) or (place,): card for place, card in enumerate(cards)
    }
    return sum(_of_all_stages(card, kind) for card in runs.values())


def transfer(suite: Suite) -> Iterator[Metric]:
    """The same figures on the base and on a checkpoint fine-tuned further, all its weights, on 200
    general answers."""
    picks = strengths(suite, "transfer")
    points = [(domain, picks[domain, level]) for domain in suite.vectors for level in LEVELS]
    tuned = further(RUNS / f"further-{suite.limit or 'all'}", suite.cache.fader.model, suite.limit)
    with Fader(str(tuned), dtype=quick_dtype()) as fader:
        for domain, name in suite.vectors.items():
            fader.add_vector(
                replace(
                    suite.cache.fader.vector(name),
                    base=fader.backend.backbones[fader.model].fingerprint,
                ),
                domain,
            )
        onto = replace(
            suite,
            cache=ResultCache(fader, RUNS / "further.jsonl"),
            vectors={domain: domain for domain in suite.vectors},
        )
        for method, where in (("base", suite), ("further tuned", onto)):
            found = curves(
                where,
                "transfer",
                [*points, *((domain, 0.0) for domain in suite.vectors)],
                suite.split,
            )
            for domain in suite.vectors:
                for level in LEVELS:
                    yield average(
                        "transfer",
                        method,
                        domain,
                        f"best_{level}",
                        top1(found[domain, picks[domain, level]], level),
                        suite.seed,
                    )
                    yield average(
                        "transfer",
                        f"{method}, lambda 0",
                        domain,
                        f"best_{level}",
                        top1(found[domain, 0.0], level),
                        suite.seed,
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
    with whole_folder(folder) as scratch:
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
        trainer.remove_callback(
            PrinterCallback
        )  # it prints to standard output, where the figures go
        trainer.train()
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return folder


def remedies(suite: Suite) -> Iterator[Metric]:
    """Spill-over of the shipped vectors; of the same without retained lessons; of the shipped ones
    orthogonalised to each other."""
    fader = suite.cache.fader
    yield from spillover(suite)
    shipped = {domain: fader.vector(name) for domain, name in suite.vectors.items()}
    for domain, vector in shipped.items():
        fader.add_vector(
            project_out(vector, [other for name, other in shipped.items() if name != domain]),
            f"{domain}-orthogonal",
        )
    yield from spillover(
        replace(suite, vectors={domain: f"{domain}-orthogonal" for domain in shipped})
    )
    fader.add_vector(
        train_vector(
            "medical-unheld",
            lessons_of(suite.items("medical", "train")),
            RUNS / "medical-unheld",
            model=fader.model,
            force=True,
        )
    )
    yield from spillover(replace(suite, vectors={"medical": "medical-unheld"}))


def public(suite: Suite) -> Iterator[Metric]:
    """On public data: are expert answers preferred to refusals, and technical to plain wordings, as
    lambda grows?"""
    for domain, name, pairs in public_pairs():
        for strength in (-1.0, -0.35, 0.0, 0.5, 1.0):
            fields = {
                "alignment": {"vectors": {suite.vectors[domain]: strength} if strength else {}}
            }
            asked = [
                Query(
                    "public",
                    f"{domain}={strength:g}",
                    name,
                    f"{place}:{side}",
                    Request.of(query, **fields),
                    text,
                )
                for place, (query, *texts) in enumerate(pairs)
                for side, text in enumerate(texts)
            ]
            means = [said.mean for said in suite.cache.ask(asked)]
            expert = [float(one > two) for one, two in zip(means[::2], means[1::2], strict=True)]
            yield average(
                "public",
                f"{suite.vectors[domain]}={strength:g}",
                name,
                "expert_preferred",
                expert,
                suite.seed,
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


PARTS: Mapping[str, Callable[[Suite], Iterator[Metric]]] = {
    "levels": task("levels"),
    "curve": task("curve"),
    "prompting": task("prompting"),
    "generation": written,
    "joint": joint,
    "plain": plain,
    "transfer": transfer,
    "spillover": remedies,
    "general": task("fluency", "ability", "styles"),
    "public": public,
}


if __name__ == "__main__":
    print_metrics(PARTS, RUNS / "claims.jsonl", sys.argv[1:])
