"""Products: every kernel computes the same, and the choice among them is measured, kept, and can be
turned off."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM

from fader import Fader, load
from fader.engine import kernels, measured
from fader.engine.backbone import TorchBackbone
from fader.engine.linear import FusedLinear, choose_kernels

SHAPES = {(96, 64): 3, (64, 96): 3, (400, 64): 1}
F32 = torch.float32


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Kernels are measured, as on a machine that has nothing else to do, and kept here."""
    monkeypatch.setenv("FADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FADER_KERNELS", "measured")
    monkeypatch.setattr(measured, "_BUSY", 1000.0)
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def measurements(monkeypatch):
    """The measurements that were made."""
    made = []
    real = kernels.measure
    monkeypatch.setattr(kernels, "measure", lambda *a, **k: made.append(a) or real(*a, **k))
    return made


@pytest.fixture
def threads(monkeypatch):
    """Torch's thread count as it is where nobody chose one; back as it was afterwards."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(os.cpu_count())
    yield os.cpu_count()
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (50, 33)])
@pytest.mark.parametrize("bias", [False, True])
def test_every_kernel_is_the_linear_layer(shape, bias, dtype):
    weight = torch.randn(shape).to(dtype)
    shift = torch.randn(shape[0]).to(dtype) if bias else None
    for name, kernel in kernels.KERNELS.items():
        if not kernels._computes(kernel, weight):
            assert name == "packed"  # the others are everywhere
            continue
        prepared = kernel.prepare(weight)
        for rows in (*kernels.ROWS, 5, 130):
            x = torch.randn(1, rows, shape[1]).to(dtype)
            found, expected = (
                kernel.multiply(x, prepared, shift),
                functional.linear(x, weight, shift),
            )
            assert found.shape == expected.shape
            tolerance = 1e-4 if dtype == F32 else 0.05
            torch.testing.assert_close(found, expected, atol=20 * tolerance, rtol=tolerance)


def test_the_choice_of_the_nearest_measured_count_above():
    choice = {1: "default", 4: "packed", 8: "transposed"}
    found = [kernels.kernel_for(choice, rows) for rows in (1, 2, 4, 5, 8, 9, 1000)]
    assert found == ["default", "packed", "packed", "transposed", "transposed"] + ["transposed"] * 2
    assert kernels.kernel_for({}, 3) == "default"


def test_a_choice_is_measured_once_and_kept(cache, measurements):
    made = kernels.choose(SHAPES, F32)
    assert {shape: sorted(made.of(shape)) for shape in SHAPES} == dict.fromkeys(
        SHAPES, sorted(kernels.ROWS)
    )
    assert [file.suffix for file in cache.iterdir()] == [".json"]
    assert kernels.choose(SHAPES, F32) == made
    assert len(measurements) == 1
    kernels.choose({**SHAPES, (64, 64): 1}, F32)  # another model
    kernels.choose(SHAPES, torch.bfloat16)  # another type
    assert len(measurements) == len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"1": "', '"1": "no-such-', 1),
        lambda text: text.replace('"torch": "', '"torch": "0.', 1),
        lambda text: "\udcff",
    ],
)
def test_a_damaged_choice_is_measured_anew(cache, measurements, damage):
    kernels.choose(SHAPES, F32)
    (file,) = cache.iterdir()
    whole = file.read_text(encoding="utf-8")
    file.write_bytes(damage(whole).encode("utf-8", "surrogateescape"))
    again = kernels.choose(SHAPES, F32)
    assert len(measurements) == 2
    assert kernels.Choice.model_validate_json(file.read_bytes()) == again
    assert list(cache.iterdir()) == [file]


def test_what_was_measured_beside_other_work_is_measured_anew(cache, measurements, monkeypatch):
    monkeypatch.setattr(measured, "_BUSY", -1.0)
    assert not kernels.choose(SHAPES, F32).quiet
    assert not kernels.choose(SHAPES, F32).quiet
    assert len(measurements) == 1  # still busy: what there is must do
    monkeypatch.setattr(measured, "_BUSY", 1000.0)
    assert kernels.choose(SHAPES, F32).quiet
    kernels.choose(SHAPES, F32)
    assert len(measurements) == 2


def test_without_a_place_to_keep_it_a_model_loads_all_the_same(
    cache, tiny_folder, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FADER_CACHE", str(tmp_path / "file"))
    assert all(product.choice for product in load(str(tiny_folder))._mixer.products)


def test_a_measurement_ends_in_time(cache, monkeypatch):
    monkeypatch.setattr(kernels, "_SECONDS", 0.0)
    assert kernels.choose(SHAPES, F32).of((96, 64)) == {}


def test_measuring_leaves_torch_as_it_was(cache):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    before = torch.get_num_threads()
    kernels.measure(SHAPES, [F32], [before + 1])
    assert torch.get_num_threads() == before
    assert torch.equal(torch.rand(3), expected)


def test_a_kernel_that_is_wrong_or_missing_is_never_taken(cache, monkeypatch):
    def missing(weight):
        raise RuntimeError("this CPU has no such instruction")

    instant = lambda x, weight, bias: x.new_zeros(1)  # noqa: E731
    wrong = kernels.Kernel(lambda weight: weight, instant, copies=False)
    monkeypatch.setitem(kernels.KERNELS, "transposed", wrong)
    monkeypatch.setitem(kernels.KERNELS, "packed", kernels.Kernel(missing, instant, copies=True))
    assert {name for s in SHAPES for name in kernels.choose(SHAPES, F32).of(s).values()} == {
        "default"
    }


def test_copies_are_kept_below_a_limit(monkeypatch):
    assert any("packed" in layers[0].prepared for layers in kernels._layers(SHAPES, F32))
    monkeypatch.setattr(kernels, "COPY_LIMIT", 1000)
    assert not any("packed" in layers[0].prepared for layers in kernels._layers(SHAPES, F32))


def test_a_slice_of_a_large_layer_stands_for_it(monkeypatch):
    monkeypatch.setattr(kernels, "_LARGEST", 64 * 4 * 50)
    ((layer,),) = kernels._layers({(400, 64): 1}, F32)
    assert layer.prepared["default"].shape == (50, 64)
    assert layer.scale == 8


def test_a_loaded_model_multiplies_with_what_was_chosen(cache, tiny_folder):
    backbone = load(str(tiny_folder))
    assert len(backbone._mixer.products) == 3 * 4 + 1  # q k v, o, gate up and down; the head
    for product in backbone._mixer.products:
        assert list(product.choice) == sorted(kernels.ROWS)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_off_switch(cache, tiny_folder, monkeypatch, measurements, how):
    if how == "environment":
        monkeypatch.setenv("FADER_KERNELS", "default")
    backbone = load(str(tiny_folder), kernels="default" if how == "argument" else None)
    assert not any(product.choice for product in backbone._mixer.products)
    assert not measurements
    assert not cache.exists()


def test_another_word_is_refused(tiny_folder, monkeypatch):
    with pytest.raises(
        ValueError, match=r"kernels: must be 'measured' or 'default' \(got 'fast'\)"
    ):
        load(str(tiny_folder), kernels="fast")
    monkeypatch.setenv("FADER_KERNELS", "fast")
    with pytest.raises(ValueError, match="FADER_KERNELS: must be"):
        load(str(tiny_folder))


def test_a_backbone_of_ones_own_can_be_given_kernels(cache, tiny_folder):
    backbone = TorchBackbone("mine", AutoModelForCausalLM.from_pretrained(tiny_folder), tokenizer())
    assert not any(product.choice for product in backbone._mixer.products)
    choose_kernels(backbone._mixer.products)
    assert all(product.choice for product in backbone._mixer.products)


def test_a_row_alone_equals_the_row_in_a_batch_whatever_kernels(tiny_folder):
    """Law 2, with another kernel at nearly every count of rows."""
    asked = ["the sea", "a cat sat on a mat", "one two three", "old stone bridges", "rivers bend"]
    with Fader(load(str(tiny_folder), kernels="default")) as plain:
        expected = [plain.generate(text, max_tokens=12).answers[0].token_ids for text in asked]
    for order in (("packed", "transposed", "default"), ("transposed", "default", "packed")):
        backbone = load(str(tiny_folder), kernels="default")
        for place, product in enumerate(backbone._mixer.products):
            product.choice = {rows: order[(place + rows) % 3] for rows in range(1, 40)}
        with Fader(backbone) as mixed:
            together = [result.answers[0].token_ids for result in mixed.batch(asked, max_tokens=12)]
            alone = [mixed.generate(text, max_tokens=12).answers[0].token_ids for text in asked]
        used = {name for product in backbone._mixer.products for name in product._prepared}
        assert used == set(order)
        assert together == alone == expected


def test_a_copy_is_made_when_it_is_needed():
    layer = torch.nn.Linear(64, 96).requires_grad_(False)
    product = FusedLinear([layer])
    product.choice = {1: "default", 4: "packed"}
    product(torch.randn(1, 1, 64))
    assert set(product._prepared) == {"default"}
    product(torch.randn(1, 4, 64))
    assert set(product._prepared) == {"default", "packed"}


class TestThreads:
    def test_they_are_measured_and_kept(self, cache, threads, measurements):
        found = kernels.choose_threads(SHAPES, F32)
        assert found in {threads // 2**halvings for halvings in range(8)}
        assert torch.get_num_threads() == threads
        assert kernels.choose_threads(SHAPES, F32) == found
        assert len(measurements) == (threads > 1)

    @pytest.mark.parametrize("kept", [2**10, 2**80])
    def test_a_kept_count_beyond_those_of_the_machine_is_measured_anew(
        self, cache, threads, measurements, monkeypatch, kept
    ):
        torch.set_num_threads(4)
        monkeypatch.setattr(kernels, "_threads_are_set", lambda: False)
        key = {**kernels._key(SHAPES, F32), "found": "threads"}
        measured.keep(kernels.Threads(key=key, quiet=True, threads=kept))
        assert kernels.choose_threads(SHAPES, F32) in (1, 2, 4)
        assert len(measurements) == 1

    def test_a_model_is_read_by_as_many(self, cache, threads, tiny_folder, monkeypatch):
        monkeypatch.setattr(kernels, "choose_threads", lambda shapes, dtype: threads + 1)
        assert load(str(tiny_folder), kernels="default").threads is None
        backbone = load(str(tiny_folder))
        found = []
        real = backbone.model.forward
        monkeypatch.setattr(
            backbone.model,
            "forward",
            lambda *a, **k: found.append(torch.get_num_threads()) or real(*a, **k),
        )
        with Fader(backbone) as fader:
            fader.generate("the sea", max_tokens=1)
        assert {*found} == {threads + 1}
        assert torch.get_num_threads() == threads  # the caller's are his own

    def test_the_environment_wins(self, cache, threads, measurements, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        assert kernels.choose_threads(SHAPES, F32) == threads
        assert not measurements

    def test_a_count_that_was_set_wins(self, cache, threads, measurements):
        torch.set_num_threads(3 * threads)
        assert kernels.choose_threads(SHAPES, F32) == 3 * threads
        assert not measurements

    def test_a_busy_machine_says_nothing(self, cache, threads, measurements, monkeypatch):
        monkeypatch.setattr(measured, "_BUSY", -1.0)
        assert kernels.choose_threads(SHAPES, F32) == threads
        assert not measurements


class TestDtype:
    def test_auto_takes_the_faster_and_says_so(self, cache, tiny_folder, capsys, measurements):
        backbone = load(str(tiny_folder), dtype="auto")
        said = capsys.readouterr().err
        assert said.startswith(f"dtype: {str(backbone.dtype).removeprefix('torch.')} (share of")
        assert " at 1, " in said
        again = load(str(tiny_folder), dtype="auto")
        assert again.dtype == backbone.dtype
        assert capsys.readouterr().err == said
        types = [dtypes for _, dtypes, *_ in measurements]
        assert types == [(torch.float32, torch.bfloat16), [backbone.dtype]]

    @pytest.mark.parametrize(
        ("shares", "dtype"),
        [
            ({1: 0.5, 8: 0.6}, torch.bfloat16),
            ({1: 0.6, 8: 2.0}, torch.float32),  # slower over all row counts
            ({1: 0.98, 8: 0.99}, torch.float32),  # not faster by more than noise
            ({}, torch.float32),
        ],
    )
    def test_the_faster_over_all_row_counts(self, shares, dtype):
        found = kernels.Pace(key={}, quiet=True, shares=shares)
        assert found.dtype == dtype
        assert str(found).startswith(f"dtype: {str(dtype).removeprefix('torch.')} ")

    @pytest.mark.parametrize("share", ["0.0", "-1.0", "NaN"])
    def test_a_kept_share_that_is_none_is_measured_anew(self, cache, measurements, share):
        made = kernels.pace(SHAPES)
        (file,) = cache.iterdir()
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(made.shares[1]), share), encoding="utf-8")
        assert kernels.pace(SHAPES).dtype in (torch.float32, torch.bfloat16)
        assert len(measurements) == 2

    def test_auto_without_measuring_is_float32(self, cache, tiny_folder, capsys, measurements):
        backbone = load(str(tiny_folder), dtype="auto", kernels="default")
        assert backbone.dtype == torch.float32
        assert capsys.readouterr().err.startswith("dtype: float32 (nothing is measured")
        assert not measurements

    def test_left_out_it_is_float32(self, cache, tiny_folder):
        assert load(str(tiny_folder), device="cpu").dtype == torch.float32


def test_no_products_need_no_kernels(cache):
    choose_kernels([])
    assert not cache.exists()


GROWTH = """
import psutil, sys, torch
from fader.engine.loading import load
load(sys.argv[1])
weight = torch.randn(256, 128)
packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
def multiply(rows):
    x = torch.randn(rows, 128)
    torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
multiply(1000)
before = psutil.Process().memory_info().rss
for rows in range(1, 601):
    multiply(rows)
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def test_prompts_of_every_length_leave_no_code_behind(tiny_folder):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    }
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tiny_folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 100  # MiB; 370 where all are kept
