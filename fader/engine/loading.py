"""`load`: a model that is exactly what its files say.

transformers fills what a checkpoint lacks with random numbers, drops what it has no place for, and
applies an adapter that lies in the model's folder. Here its report of the loading is read, and each
of these is refused by name. Files that are cut short are named before anything is read.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import logging as transformers_logging

from fader.engine import builtin
from fader.engine.apart import apart
from fader.engine.backbone import TorchBackbone
from fader.engine.kernels import bound_caches
from fader.engine.linear import choose_dtype
from fader.files import refuse_pointer

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KNOWN = (
    f"the built-in {builtin.NAME!r}, a folder with config.json and weights, a .gguf file, or a hub"
    " id"
)
QUIET = threading.RLock()  # what `quiet` turns off belongs to the process, not to a thread
NO_ADAPTER = {"subfolder": "no-adapter-unless-asked"}  # where transformers looks for one: nowhere
# buffers that older checkpoints hold and that are computed anew: no weights are lost with them
COMPUTED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|(attn|attention)\.bias)$")
# settings of a generation_config that change what greedy decoding writes -> values that do not
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "stop_strings": (),
    "watermarking_config": (),
    "token_healing": (False,),
    "constraints": (),
    "force_words_ids": (),
}


@apart
def load(
    name: str = builtin.NAME,
    device: str | None = None,
    dtype: str | None = None,
    kv_bytes: int | None = None,
    kernels: str | None = None,
) -> TorchBackbone:
    """A backbone from the built-in model's name, a folder, a GGUF file or a hub id.

    `device` and `dtype`: chosen (cuda, else mps, else cpu; float32 on a CPU, else bfloat16) unless
    given; `dtype="auto"` takes on a CPU the faster of float32 and bfloat16 and says so on standard
    error. `kv_bytes`: memory for keys and values. `kernels`: "measured" (unless FADER_KERNELS says
    otherwise) or "default", see docs/engine.md. Raises ValueError for a model that cannot run,
    OSError for one that cannot be had. One line on standard error names the settings of the model's
    generation_config that are not applied.
    """
    bound_caches()
    device = device or (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    auto = dtype == "auto" and device == "cpu"
    if dtype is None or dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    numbers = getattr(torch, dtype, None)
    if not isinstance(numbers, torch.dtype) or not numbers.is_floating_point:
        raise ValueError(
            f"dtype: {dtype!r} is not a floating-point type; give float32, bfloat16, float16 or"
            " auto"
        )
    if auto:
        numbers = choose_dtype(AutoConfig.from_pretrained(**files_of(name)), kernels)
    model, tokenizer = read(name, numbers)
    on_device: Any = model.to(torch.device(device))  # type: ignore[arg-type]
    try:
        backbone = TorchBackbone(name, on_device, tokenizer, kv_bytes)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"model: {name} ({on_device.config.model_type}) does not run: {_first_line(error)}"
        ) from error
    backbone.choose_kernels(kernels)
    return backbone


def read(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of that name with all of its weights and no others, on the CPU, and its tokenizer.

    Raises ValueError for what is not whole or cannot be read, OSError for what cannot be had.
    """
    source = files_of(name)
    with one_message(name), quiet():
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise ValueError(
            f"model: {name} ({config.model_type}) is an encoder-decoder; fader runs causal"
            " language models"
        )
    quantised = None if "gguf_file" in source else getattr(config, "quantization_config", None)
    with quiet():
        known = not quantised or AutoHfQuantizer.supports_quant_method(_method(quantised))
    if not known:
        raise ValueError(
            f"model: {name} is quantised ({_method(quantised).get('quant_method')}), which"
            " transformers does not know; give one in full precision, or a GGUF file"
        )
    if not quantised and "gguf_file" not in source:
        _refuse_whole_numbers(Path(source["pretrained_model_name_or_path"]))
    with one_message(name, quantised), quiet():
        found: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=False,
            adapter_kwargs=NO_ADAPTER,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
        )
    model, report = found
    refuse_by_report(name, report)
    _refuse_broken_numbers(name, model)
    with one_message(f"{name}: its tokenizer"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    if "gguf_file" in source:
        with one_message(name):
            reader = GGUFReader(name)
            unread = _gguf_unread(reader, model)
        if unread:
            raise ValueError(
                f"model: {name} holds {_some(unread)}, which transformers does not read from GGUF"
                " files; give the model as a folder of safetensors"
            )
        model.generation_config.eos_token_id = gguf_ends(reader, tokenizer)
    else:
        _say_of_an_adapter(name, Path(source["pretrained_model_name_or_path"]))
    _say_what_is_not_applied(name, model.generation_config)
    return model, tokenizer


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that transformers reads from a model's folder: the one file, else the
    shards of its index; none where there are no such files.

    Raises ValueError for a shard that is missing, a pointer file, and one that is cut short.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        names = {"model.safetensors"}
    elif index.is_file():
        refuse_pointer(index)
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = {str(Path(name)) for name in named}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of shards: {error!r}") from None
    else:
        return ()
    files = tuple(folder / name for name in sorted(names))
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"{file}: no such file, but {index.name} names it; get all shards of the model"
            )
        check_safetensors(file)
    return files


def check_safetensors(file: Path) -> None:
    """Raises ValueError for a file that is a pointer, cut short, or no safetensors at all."""
    refuse_pointer(file)
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file}: corrupt or cut short: {_first_line(error)}; get the file again"
        ) from None


def files_of(name: str) -> dict[str, str]:
    """Where transformers finds the model of that name; its files, where they are at hand, looked
    at."""
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"model: there is no file {name}")
        refuse_pointer(path)
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"model: {name} is a file but not a .gguf; give a folder with config.json, a .gguf file"
            " or a hub id"
        )
    folder = Path(builtin.source(name))
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ValueError(
                f"model: {name} is an adapter, not a model; load its base model and ask for the"
                " adapter under alignment.vectors"
            )
        for pattern in ("*.json", "*.model", "*.bin", "*.jinja"):
            for file in filter(Path.is_file, sorted(folder.glob(pattern))):
                refuse_pointer(file)
        weight_files(folder)
        _refuse_no_settings(folder / "generation_config.json")
    return {"pretrained_model_name_or_path": str(folder) if folder.is_dir() else name}


def _refuse_no_settings(file: Path) -> None:
    """Raises ValueError for settings that transformers cannot read, and passes over without a word:
    the ends of answers stand there."""
    if file.is_file():
        try:
            sound = isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        except (ValueError, RecursionError):
            sound = False
        if not sound:
            raise ValueError(f"{file}: no JSON object; get the file again, or take it away")


@contextmanager
def one_message(name: str, quantised: Any = None) -> Iterator[None]:
    """Whatever a reader of files raises becomes one sentence: OSError stays one, all else is a
    ValueError."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"model: {name!r} could not be loaded: {_first_line(error)} (known: {KNOWN})"
        ) from error
    except Exception as error:  # libraries raise what they like, bare Exception among it
        if quantised:
            raise ValueError(
                f"model: {name} is quantised ({_method(quantised).get('quant_method')}) and cannot"
                f" be read here: {_first_line(error)}; give one in full precision or a GGUF"
            ) from error
        why = _first_line(error)
        if "custom code" in why:
            why = "it needs code of its own (auto_map), which is not run; give a model that"
            why += " transformers knows"
        raise ValueError(f"model: {name} could not be loaded: {why}") from error


def _method(quantised: Any) -> dict[str, Any]:
    found: dict[str, Any] = quantised if isinstance(quantised, dict) else quantised.to_dict()
    return found


def _first_line(error: BaseException) -> str:
    """What an error says in its first line, and in those that it announces by a colon."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not said.endswith(":"):
            break
        said += f" {line}"
    return said[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars, reports and warnings: what they say is refused or said
    here. One thread at a time."""
    with QUIET:
        bars, level = (
            transformers_logging.is_progress_bar_enabled(),
            transformers_logging.get_verbosity(),
        )
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity(50)  # only what is critical
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()


def refuse_by_report(name: str, report: dict[str, Any]) -> None:
    """Raises ValueError for weights that are missing, of another shape, or without a place."""
    if mismatched := sorted(report["mismatched_keys"]):
        weight, stored, wanted = mismatched[0]
        raise ValueError(
            f"model: {name}: {weight} is {list(stored)} in the files, config.json says"
            f" {list(wanted)}; config and weights are of different models"
        )
    missing = [key for key in sorted(report["missing_keys"]) if not COMPUTED.search(key)]
    if missing:
        raise ValueError(
            f"model: {name} lacks {_some(missing)}, which would be random numbers; get the whole"
            " checkpoint of a causal language model"
        )
    surplus = [key for key in sorted(report["unexpected_keys"]) if not COMPUTED.search(key)]
    if surplus:
        raise ValueError(
            f"model: {name} holds {_some(surplus)}, which the model of its config.json has no"
            " place for; config and weights are of different models"
        )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more weights" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def _refuse_whole_numbers(folder: Path) -> None:
    """Raises ValueError for weights that are no floating-point numbers as they stand, as quantised
    ones, whose config.json does not say how they were quantised."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                kind = opened.get_slice(key).get_dtype()
                if kind not in ("F64", "F32", "BF16", "F16") and not COMPUTED.search(key):
                    raise ValueError(
                        f"{file}: {key} is stored as {kind}, and config.json has no"
                        " quantization_config that says what it stands for; get the whole"
                        " checkpoint, or one in full precision"
                    )


def _refuse_broken_numbers(name: str, model: PreTrainedModel) -> None:
    for weight, values in model.named_parameters():
        if values.dtype in FLOATS and not torch.isfinite(values.sum(dtype=torch.float32)):
            raise ValueError(
                f"model: {name}: {weight} holds NaN or infinite numbers in {values.dtype}; get the"
                " files again, or give another dtype"
            )


def gguf_ends(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end an answer or a turn by the file's own metadata; transformers reads only
    the first kind."""
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for key, field in reader.fields.items():
        if re.fullmatch(r"tokenizer\.ggml\.(eos|eot|eom|eog)_token_ids?", key):
            value = field.contents()
            found.update(int(token) for token in (value if isinstance(value, list) else [value]))
    return sorted(found)


def _gguf_unread(reader: GGUFReader, model: PreTrainedModel) -> list[str]:
    """The tensors of a GGUF file that transformers leaves out without a word, such as the factors
    by which Llama 3.1 scales its positions."""
    kind = reader.fields["general.architecture"].contents()
    processors: dict[str, Any] = TENSOR_PROCESSORS
    processor = processors.get(kind, TensorProcessor)(config=model.config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    return [
        tensor.name
        for tensor in reader.tensors
        if tensor.name not in known
        and "_exps." not in tensor.name  # stacked experts have rules of their own
        and not (tensor.name == "rope_freqs.weight" and (tensor.data == 1).all())
    ]


def _say_of_an_adapter(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        _say(
            f"model: {name} also holds an adapter, which is not applied; ask for it under"
            " alignment.vectors"
        )


def _say_what_is_not_applied(name: str, settings: GenerationConfig | None) -> None:
    """One line about what transformers' `generate` would do that a request does not by itself."""
    asked = [
        f"{key} {value!r}"
        for key, neutral in NEUTRAL.items()
        if (value := getattr(settings, key, None)) not in (None, [], {}, *neutral)
    ]
    if asked:
        hint = (
            "; give repetition_penalty in the request's sampling to have it"
            if asked[0].startswith("repetition_penalty")
            else ""
        )
        _say(f"model: {name}: not applied from its generation_config: {_listed(asked)}{hint}")


def _listed(items: Iterable[str]) -> str:
    return ", ".join(item if len(item) <= 80 else f"{item[:77]}..." for item in items)


def _say(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
