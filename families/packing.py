"""How a checkpoint that is published in 4 bits stores its matrices: by GPTQ or AWQ, and in which layout.

What a layout means is said once, here; `exporter/packed_tensors.py` computes it. Other methods and layouts are refused
in a sentence: their integers would be read as other numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import CheckpointError, UnsupportedError
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.reading import shown
from vlm_trt.families.config_files import origin_of, read_object
from vlm_trt.families.published.sections import QUANTIZATION, Section

CONFIG_FILE = "config.json"
# Beside config.json in repositories older than its key; where both say something, they agree.
OLD_GPTQ_FILE, OLD_AWQ_FILE = "quantize_config.json", "quant_config.json"
_READS = "GPTQ (checkpoint_format gptq or gptq_v2) and AWQ (version gemm) of 4 bits are read"
_INSTEAD = f"{_READS}; export the checkpoint that it was quantized from"
_BITS, _GROUP = Within(1, 64), Within(-1, 1 << 20)
# AutoAWQ's own file has other names.
_OLD_AWQ_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}


class Method(StrEnum):
    GPTQ = "gptq"
    AWQ = "awq"


@dataclass(frozen=True)
class Packing:
    """A layout of 4-bit matrices.

    Source: AutoGPTQ 0.7.1 `qlinear_cuda_old.py`, GPTQModel 1.9.0 `utils/model.py`, AutoAWQ 0.2.9 `gemm.py`.
    """

    method: Method
    group: int | None  # inputs that share a scale and a zero point; None: all
    less_one: bool  # zero points are stored less one: GPTQ's first format
    reordered: bool  # activation order: which group an input belongs to stands in a tensor
    files: tuple[str, ...] = ()  # beside config.json, what says so


# How the matrices were found, and how others run them: nothing of it changes what the stored numbers stand for.
_UNREAD = {
    Method.GPTQ: (
        "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "sym", "model_name_or_path",
        "model_file_base_name", "dataset", "tokenizer", "block_name_to_quantize", "module_name_preceding_first_block",
        "modules_in_block_to_quantize", "batch_size", "pad_token_id", "use_cuda_fp16", "use_exllama", "disable_exllama",
        "exllama_config", "max_input_length", "model_seqlen", "cache_block_outputs", "backend", "meta", "quantizer",
        "mse", "lm_head", "act_group_aware", "modules_to_not_convert",
    ),
    Method.AWQ: (
        "zero_point", "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config",
        "meta", "lm_head",
    ),
}  # fmt: skip


def read_packing(folder: Path) -> Packing | None:
    """The layout of a checkpoint's matrices; None where they are floats.

    Raises:
        CheckpointError: a file is damaged, or two of them disagree.
        UnsupportedError: quantized in another way than those that are read.
    """
    files = {CONFIG_FILE: read_object(folder / CONFIG_FILE).get(QUANTIZATION)}
    for name in (OLD_GPTQ_FILE, OLD_AWQ_FILE):
        if (folder / name).exists():
            files[name] = _in_new_words(name, read_object(folder / name))
    said = {name: raw for name, raw in files.items() if raw is not None}
    if not said:
        return None
    found = {name: _packing(folder / name, raw, name) for name, raw in said.items()}
    (first, packing), *others = found.items()
    for name, other in others:
        if other != packing:
            raise CheckpointError(
                f"{folder / name} describes other 4-bit matrices than {first} ({other.method}, "
                f"{_in_words(other)} instead of {packing.method}, {_in_words(packing)}); copy both from the published "
                "checkpoint"
            )
    return replace(packing, files=tuple(name for name in said if name != CONFIG_FILE))


def _in_new_words(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What an older file says, under the names of `quantization_config`."""
    method = Method.GPTQ if name == OLD_GPTQ_FILE else Method.AWQ
    return {"quant_method": method.value, **{_OLD_AWQ_NAMES.get(key, key): value for key, value in raw.items()}}


def _packing(path: Path, raw: Any, name: str) -> Packing:
    get = Section(raw, origin_of(path), QUANTIZATION if name == CONFIG_FILE else "")
    method = get.text("quant_method")
    if method not in list(Method):
        raise get.unsupported("quant_method", f"is {shown(method)}; {_INSTEAD}")
    if (bits := get.whole("bits", _BITS)) != 4:
        raise get.unsupported("bits", f"is {bits}; {_INSTEAD}")
    get.accept(*_UNREAD[Method(method)])
    group = get.whole("group_size", _GROUP, -1)
    if group != -1 and (group < 16 or group % 16):
        raise get.unsupported("group_size", f"is {group}; -1 and multiples of 16 are read")
    packing = _gptq(get, group) if method == Method.GPTQ else _awq(get, group)
    get.close()
    return packing


def _gptq(get: Section, group: int) -> Packing:
    for key in ("checkpoint_format", "format"):
        named = get.text(key) if get.has(key) else "gptq"
        if named not in ("gptq", "gptq_v2"):
            raise get.unsupported(key, f"is {shown(named)}; {_INSTEAD}")
    for key, wanted in (("pack_dtype", "int32"), ("is_marlin_format", False), ("awq_gemm_checkpoint", False)):
        _require(get, key, wanted)
    # Rules for single layers: "-:" leaves one in float, which shows in its tensors.
    if get.has("dynamic"):
        rules = get.nested("dynamic")
        rules.accept(*rules.raw)
        if others := [rule for rule in rules.raw if not rule.startswith("-:")]:
            raise get.unsupported("dynamic", f"has the rule {shown(others[0])} for some layers alone; {_INSTEAD}")
    second = "gptq_v2" in (get.raw.get("checkpoint_format"), get.raw.get("format"))
    reordered = get.flag("desc_act", False)
    return Packing(Method.GPTQ, None if group == -1 else group, not second, reordered)


def _awq(get: Section, group: int) -> Packing:
    for key in ("version", "checkpoint_format", "format"):
        named = get.text(key).lower() if get.has(key) else "gemm"
        if named != "gemm":
            raise get.unsupported(key, f"is {shown(named)}; {_INSTEAD}")
    backend = get.text("backend") if get.has("backend") else "autoawq"
    if backend == "llm-awq":
        raise get.unsupported("backend", f"is {shown(backend)}, whose layout is another; {_INSTEAD}")
    return Packing(Method.AWQ, None if group == -1 else group, less_one=False, reordered=False)


def _require(get: Section, key: str, wanted: Any) -> None:
    if get.has(key) and get.raw[key] != wanted:
        raise get.unsupported(key, f"is {shown(get.raw[key])}; {_INSTEAD}")


def _in_words(packing: Packing) -> str:
    group = "all inputs" if packing.group is None else f"groups of {packing.group}"
    return f"{group}, {'first' if packing.less_one else 'second'} format, desc_act {str(packing.reordered).lower()}"


def refused(path: Path, what: str) -> UnsupportedError:
    """The error of a layout that turns out in the tensors."""
    return UnsupportedError(f"{path}: {what}; {_INSTEAD}")
