"""Tiny random models made here, and the built-in model for the few tests that need a real one."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side, in as many processes as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FADER_KERNELS", "default")  # nothing is measured when a model is loaded

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fader import Backbone, Fader, Vector, load
from fader.data.preferences import Family
from fader.data.records import LEVELS, LevelItem, Pair
from fader.evaluation.aims import AIMS
from fader.evaluation.cache import ResultCache
from fader.evaluation.suite import Suite
from fader.request import Message
from fader.starter.shipped import DOMAINS

settings.register_profile("fader", deadline=None)  # a busy machine is no fault
settings.load_profile("fader")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
ARCHITECTURES = {
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "qwen2": {**GROUPED, "tie_word_embeddings": False},
    "qwen3": {**GROUPED, "tie_word_embeddings": True},
    "mistral": {**GROUPED, "sliding_window": 12},
    "gemma2": {**GROUPED, "sliding_window": 12, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        **GROUPED,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "phi": {**SIZES},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 64,
    },
    "gpt_neox": {**SIZES},
}
warnings_of_the_trainer = pytest.mark.filterwarnings("ignore")


def trains(test: Callable[..., None]) -> Callable[..., None]:
    """A test that runs a training: long, and the trainer's warnings are its own."""
    return pytest.mark.long(warnings_of_the_trainer(test))


TEXT = """the sea is wide and the ship is small . a cat sat on a mat , and the dog ran home !
one two three four five six seven eight nine ten ? people say what they want from a model and it \
answers that way .
rivers bend slowly through green valleys while old stone bridges watch the water pass beneath them \
every day ."""
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if"
    " add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + TEMPLATE
)


def tokenizer(
    template: str | None = TEMPLATE, size: int = 400, text: str = TEXT
) -> PreTrainedTokenizerFast:
    """A byte-level BPE, with an end token that is not the padding token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|end|>", "<|stop|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<pad>", chat_template=template
    )


def make_model(
    folder: Path,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    seed: int = 0,
    words: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a tiny random model of that architecture, its logits peaked enough that ties do not
    happen; `words`: another tokenizer."""
    words = words or tokenizer(template)
    config = AutoConfig.for_model(
        architecture,
        **ARCHITECTURES[architecture],
        vocab_size=len(words),
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=[1, 2],
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
    model.generation_config.eos_token_id = [1, 2]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`: run the tests that are marked `long` too."""
    parser.addoption("--long", action="store_true", help="run what takes long too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses the built-in model, so that it can be left out; and keep it in one process,
    where tests run in several, so that the model is loaded once. Skip what takes long unless it is
    asked for."""
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("long"):
            item.add_marker(pytest.mark.skip(reason="takes long; give --long"))
        if "builtin" in getattr(item, "fixturenames", ()):
            item.add_marker("builtin")
        if item.get_closest_marker("builtin"):
            item.add_marker(pytest.mark.xdist_group("builtin"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    with Fader(load(str(tiny_folder))) as fader:
        yield fader


@pytest.fixture(scope="session")
def builtin():
    """The built-in model. What asks for it is marked `builtin`."""
    with Fader() as fader:
        yield fader


@pytest.fixture
def shared(builtin: Fader, monkeypatch: pytest.MonkeyPatch) -> Fader:
    """The built-in model, whose weights are then read only once: every `Fader()` of commands,
    examples and documentation is a new one on the same backbone."""

    def loaded(source: str, **settings: Any) -> Backbone:
        if source == builtin.model and not any(settings.values()):
            return builtin.backend.backbones[source]
        return load(source, **settings)

    monkeypatch.setattr("fader.backends.local.load", loaded)
    return builtin


SHORT = [
    ("the sea", " wide", " the ship is small .", " rivers bend slowly through green valleys"),
    ("a cat", " mat", " the dog ran home !", " old stone bridges watch the water pass"),
    ("one two", " three", " four five six", " people say what they want from a model"),
]


def level_items() -> list[LevelItem]:
    """Three short questions with answers at the three levels, in every split."""
    return [
        LevelItem(query, dict(zip(LEVELS, answers, strict=True)), split)
        for split in ("dev", "test", "train")
        for query, *answers in SHORT
    ]


def opposites(name: str, held_out: bool = False) -> Family:
    """A family of six pairs: two to be taught, two of each split to be measured."""
    splits = ("train", "train", "test", "test", "dev", "dev")
    pairs = [
        Pair(
            (Message(role="user", content=f"say {place}"),),
            f"the cat {place}",
            f"a dog {place}" + " there" * (place % 2),
            split,
        )
        for place, split in enumerate(splits)
    ]
    texts = ((f"{name} up", f"more {name}"), (f"{name} down", f"less {name}"))
    return Family(name, ("up", "down"), texts, texts, tuple(pairs), held_out)


def random_vector(
    fader: Fader,
    name: str,
    seed: int,
    rank: int = 4,
    targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
) -> Vector:
    noise = torch.Generator().manual_seed(seed)
    return Vector(
        name,
        {
            module: (
                torch.randn(rank, inner, generator=noise) * 0.2,
                torch.randn(out, rank, generator=noise) * 0.2,
            )
            for module, (out, inner) in fader.backend.backbones[fader.model].layers.items()
            if module.endswith(targets)
        },
    )


def random_vectors(fader: Fader, folder: Path, names: list[str]) -> dict[str, Path]:
    """Vectors of random factors for a tiny model, saved by name."""
    torch.manual_seed(1)
    layers = {
        name: sizes
        for name, sizes in fader.backend.backbones[fader.model].layers.items()
        if name.endswith(("down_proj", "o_proj"))
    }
    for name in names:
        factors = {
            name: (torch.randn(2, inner) * 0.1, torch.randn(out, 2) * 0.1)
            for name, (out, inner) in layers.items()
        }
        Vector(name, factors).save(folder / name)
    return {name: folder / name for name in names}


@pytest.fixture
def fader(tiny_folder: Path, tmp_path: Path):
    """A tiny model with a random vector for each domain, one style and each judged aim."""
    with Fader(load(str(tiny_folder))) as bare:
        found = random_vectors(bare, tmp_path / "vectors", [*DOMAINS, "warm", *AIMS])
        for name, folder in found.items():
            bare.add_vector(Vector.load(folder, name))
        yield bare


@pytest.fixture
def suite(fader: Fader, tmp_path: Path) -> Suite:
    """A lab on that model and the short questions."""
    return Suite(
        ResultCache(fader, tmp_path / "ledger.jsonl", quiet=True),
        dict.fromkeys((*DOMAINS, "other"), level_items()),
        styles=["warm"],
        pairs=[item.pair() for item in level_items()],
        families=[opposites("loud"), opposites("quiet", held_out=True)],
        personal="warm",
        limit=3,
    )


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until something that another thread does has come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


class Speaking(BaseHTTPRequestHandler):
    """A scripted endpoint's handler, less the script."""

    def say(self, status, content, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Quiet(ThreadingHTTPServer):
    """A server for one."""

    daemon_threads = True

    def handle_error(self, *_):
        """A client that went away is no news."""


@contextmanager
def scripted(handler: type[Speaking], **state: Any) -> Iterator[Any]:
    """Within: a server that answers by a script, with this state, at its `url`."""
    made: Any = Quiet(("127.0.0.1", 0), handler)
    for name, value in state.items():
        setattr(made, name, value)
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
