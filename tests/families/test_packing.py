"""What config.json says of 4-bit matrices: layouts that are read, and a sentence for every other."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.families.packing import Method, Packing, read_packing

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
# As Qwen-VL-Chat-Int4's quantize_config.json has it.
AUTO_GPTQ = {
    "bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "static_groups": False, "sym": True,
    "true_sequential": True, "model_name_or_path": None, "model_file_base_name": "model",
}  # fmt: skip


def read(folder: Path, config: object = None, **files: object) -> Packing | None:
    (folder / "config.json").write_text(json.dumps({} if config is None else {"quantization_config": config}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return read_packing(folder)


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (None, {}, None),
        (GPTQ, {}, Packing(Method.GPTQ, 128, less_one=True, reordered=False)),
        (GPTQ | {"group_size": -1, "desc_act": True}, {}, Packing(Method.GPTQ, None, less_one=True, reordered=True)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, {}, Packing(Method.GPTQ, 128, less_one=False, reordered=False)),
        (GPTQ | {"dynamic": {"-:.*visual.*": {}}, "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:1.9.0"]}},
         {}, Packing(Method.GPTQ, 128, less_one=True, reordered=False)),
        (AWQ | {"modules_to_not_convert": ["visual"]}, {}, Packing(Method.AWQ, 128, less_one=False, reordered=False)),
        (AWQ | {"version": "GEMM", "backend": "autoawq", "do_fuse": False, "exllama_config": None}, {},
         Packing(Method.AWQ, 128, less_one=False, reordered=False)),
        (None, {"quantize_config": AUTO_GPTQ},
         Packing(Method.GPTQ, 128, less_one=True, reordered=False, files=("quantize_config.json",))),
        (GPTQ, {"quantize_config": AUTO_GPTQ},
         Packing(Method.GPTQ, 128, less_one=True, reordered=False, files=("quantize_config.json",))),
        (None, {"quant_config": {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}},
         Packing(Method.AWQ, 64, less_one=False, reordered=False, files=("quant_config.json",))),
    ],
)  # fmt: skip
def test_a_layout_that_is_read(
    config: object, files: dict[str, object], expected: Packing | None, tmp_path: Path
) -> None:
    assert read(tmp_path, config, **files) == expected


@pytest.mark.parametrize(
    ("config", "kind", "sentence"),
    [
        (GPTQ | {"bits": 8}, UnsupportedError, "quantization_config.bits is 8; GPTQ .* of 4 bits are read; export the"),
        (GPTQ | {"bits": None}, CheckpointError, "quantization_config.bits is missing"),
        (GPTQ | {"checkpoint_format": "marlin"}, UnsupportedError, "checkpoint_format is 'marlin'; GPTQ"),
        (GPTQ | {"is_marlin_format": True}, UnsupportedError, "is_marlin_format is True"),
        (GPTQ | {"pack_dtype": "int16"}, UnsupportedError, "pack_dtype is 'int16'"),
        (GPTQ | {"group_size": 24}, UnsupportedError, "group_size is 24; -1 and multiples of 16 are read"),
        (GPTQ | {"group_size": "128"}, CheckpointError, "group_size is '128', not a whole number"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, UnsupportedError, "dynamic has the rule '.:..down"),
        (GPTQ | {"rotation": "hadamard"}, UnsupportedError, "unknown key 'quantization_config.rotation'; it"),
        (AWQ | {"version": "gemv"}, UnsupportedError, "version is 'gemv'; GPTQ"),
        (AWQ | {"version": "exllama"}, UnsupportedError, "version is 'exllama'"),
        (AWQ | {"version": "marlin"}, UnsupportedError, "version is 'marlin'"),
        (AWQ | {"backend": "llm-awq"}, UnsupportedError, "backend is 'llm-awq', whose layout is another"),
        ({"quant_method": "compressed-tensors"}, UnsupportedError, "quant_method is 'compressed-tensors'; GPTQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, UnsupportedError, "quant_method is 'bitsandbytes'"),
        ({"quant_method": "auto-round"}, UnsupportedError, "quant_method is 'auto-round'"),
        ({"bits": 4}, CheckpointError, "quantization_config.quant_method is missing"),
        (4, CheckpointError, "quantization_config is 4, not an object"),
    ],
)  # fmt: skip
def test_another_layout_is_a_sentence(config: object, kind: type[VlmTrtError], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=f"config.json.*{sentence}"):
        read(tmp_path, config)


def test_two_files_that_disagree(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"quantize_config.json describes other 4-bit matrices than config.json"):
        read(tmp_path, GPTQ, quantize_config=AUTO_GPTQ | {"group_size": 64})
