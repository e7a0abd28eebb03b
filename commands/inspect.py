"""`vlm-trt inspect`: a bundle as a person wants to see it."""

import json
from pathlib import Path

import click

from vlm_trt.bundle.config import DecoderConfig, ModelConfig, within
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.leftovers import leftovers
from vlm_trt.bundle.manifest import Manifest
from vlm_trt.bundle.parts import RegionHeads
from vlm_trt.bundle.picture_rules import AnySize, Crops
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.terminal import figure, printable, say, size, table


def run(path: Path, check: bool, as_json: bool) -> None:
    bundle = Bundle.open(path)
    if check:
        bundle.check_all()
        say("every file is as the manifest says (size and sha256)")
    if as_json:
        left = [{"path": str(one.path), "bytes": one.bytes} for one in leftovers(bundle)]
        click.echo(json.dumps({**bundle.manifest.to_json(), "leftovers": left}, indent=2, ensure_ascii=False))
        return
    click.echo(printable("\n".join(_description(bundle))))


def _description(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    model, limits = within(manifest.model, manifest.limits), manifest.limits
    vision, connector, decoder = model.vision, model.connector, model.decoder
    return [
        f"{bundle.path}  ({model.family}, {model.generation.chat_format}, from {_origin(manifest)})",
        "",
        f"vision encoder   {_pixels(model)} → {_most(model.most_patches, model)} patches of {vision.width}, "
        f"{vision.layers} layers ({_words(vision.type)}; pictures: {_words(model.pictures.type)})",
        f"resampler        {_tokens(model)} tokens of {connector.hidden} per {_seen(model)} ({_words(connector.type)})",
        f"decoder          {decoder.layers} layers of {decoder.hidden} ({_words(decoder.block.type)}), "
        f"{_heads(decoder)}, vocabulary {decoder.vocab_size}",
        *([f"region heads     {_region(model.region)}"] if model.region is not None else []),
        f"positions        {_positions(decoder)}",
        f"limits           {limits.max_seq_tokens} positions, {_several(limits.max_batch, 'sequence')} at once, "
        f"{_several(limits.max_images, 'picture')} per run",
        f"made of          {_made_of(manifest)}",
        "",
        table(_graph_rows(manifest), ("graph", "precision", " weights", "sha256")),
        "",
        *(_precision_line(bundle.path, manifest, precision) for precision in manifest.precisions()),
        *(_engine_lines(bundle.path, manifest) if manifest.engines else []),
        *(_packed_lines(manifest) if manifest.packed else []),
        *_left_lines(bundle),
    ]


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    return f"{source.checkpoint}{''.join(f' with {one}' for one in source.adapters)}"


def _made_of(manifest: Manifest) -> str:
    """What the checkpoint is known by: its small files by their sha256."""
    return ", ".join(f"{name} {digest[:12]}" for name, digest in manifest.source.files.items() if ":" not in digest)


def _pixels(model: ModelConfig) -> str:
    rule = model.pictures
    if isinstance(rule, AnySize):
        return f"{rule.min_pixels:,} to {rule.max_pixels:,} px in all"
    if isinstance(rule, Crops):
        return f"2 to {1 + rule.most_crops} squares of {model.crops.image_size} px"
    return f"{model.square.image_size} px"


def _most(count: int, model: ModelConfig) -> str:
    return f"up to {count}" if isinstance(model.pictures, AnySize | Crops) else str(count)


def _tokens(model: ModelConfig) -> str:
    count = str(model.most_tile_tokens)
    return f"up to {count}" if isinstance(model.pictures, AnySize) else count


def _seen(model: ModelConfig) -> str:
    """What the tower sees at once, and how many of them a picture may be."""
    most = model.most_tiles
    return "picture" if most == 1 else f"tile, up to {most} tiles per picture"


def _heads(decoder: DecoderConfig) -> str:
    shared = "" if decoder.kv_heads == decoder.heads else f" ({decoder.kv_heads} of keys and values)"
    return f"{decoder.heads} heads of {decoder.head_dim}{shared}"


def _region(heads: RegionHeads) -> str:
    return f"coordinates in {heads.coordinate_bins} bins, widths and heights in {heads.size_bins}"


def _positions(decoder: DecoderConfig) -> str:
    """How long prompts may be, and what becomes of long ones."""
    window = "" if decoder.window is None else f"; a window of {decoder.window} on some layers"
    if not (decoder.dynamic_ntk or decoder.logn_attention):
        return f"{decoder.max_positions}{window}"
    return (
        f"trained on {decoder.trained_tokens}; dynamic NTK {_on(decoder.dynamic_ntk)}, "
        f"log-n attention {_on(decoder.logn_attention)}{window}"
    )


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _left_lines(bundle: Bundle) -> list[str]:
    """What runs that were ended have left, and what becomes of it."""
    kept = sorted((bundle.path / ".calibration").glob("*.npz"))
    rows = [(str(one.path), size(one.bytes), "the next command that writes removes it") for one in leftovers(bundle)]
    rows += [(str(path), size(path.stat().st_size), "the same quantize goes on with it") for path in kept]
    return ["", table(rows, ("left by runs that were ended", " size", ""))] if rows else []


def _graph_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for precision in manifest.precisions():
        for component in manifest.model.components:
            entry = manifest.graph(component, precision)
            if entry is None:
                rows.append((component.value, precision.value, "missing", ""))
            else:
                weights = "none" if entry.weights is None else size(entry.weights.size)
                rows.append((component.value, precision.value, weights, entry.graph.sha256[:12]))
    return rows


def _engine_lines(path: Path, manifest: Manifest) -> list[str]:
    """A row per engine, with what speaks against using it."""
    rows = [
        (engine.variant, engine.component.value, size(engine.plan.size), _engine_state(manifest, variant, engine))
        for variant in manifest.variants().values()
        for engine in variant
    ]
    hints = [hint for variant in manifest.variants().values() if (hint := _next(path, manifest, variant))]
    return ["", table(rows, ("engines", "component", " size", "state")), "", *dict.fromkeys(hints)]


def _packed_lines(manifest: Manifest) -> list[str]:
    """A row per packed graph, with what it was made for."""
    rows = []
    for one in manifest.packed:
        graph = manifest.graph(one.component, one.precision)
        fits = graph is not None and graph.identity == one.made_of
        state = (
            f"for ONNX Runtime {one.runtime} on {one.processor}" if fits else "stale: its graph changed; pack it again"
        )
        rows.append((one.component.value, one.precision.value, size(one.weights.size), state))
    return ["", table(rows, ("packed", "precision", " size", "state"))]


def _next(path: Path, manifest: Manifest, variant: tuple[EngineEntry, ...]) -> str | None:
    """What to run about engines that cannot be used yet."""
    one, which = variant[0], f"--backend {variant[0].backend} --precision {variant[0].precision}"
    if any(manifest.is_stale(engine) for engine in variant):
        return f"build again: vlm-trt build {path} {which} --target {one.target}"
    if manifest.verification(one.precision, variant) is None:
        return f"show them equal to the model, on a GPU of {one.target}: vlm-trt verify {path} {which}"
    return None


def _engine_state(manifest: Manifest, variant: tuple[EngineEntry, ...], engine: EngineEntry) -> str:
    if manifest.is_stale(engine):
        return "stale: its graph was exported again; build it again"
    verdict = manifest.verification(engine.precision, variant)
    if verdict is None:
        return "built, not run"
    return f"verified {verdict.created[:10]}" if verdict.passed else f"FAILED verification, see {verdict.report}"


def _precision_line(path: Path, manifest: Manifest, precision: Precision) -> str:
    decoder, limits = manifest.model.decoder, manifest.limits
    position_bytes = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * DTYPE_BYTES[precision.cache_dtype]
    cache = f"cache {size(position_bytes * limits.max_seq_tokens)} per sequence"
    verdict = manifest.verification(precision)
    if verdict is None:
        state = f"not verified; run: vlm-trt verify {path} --precision {precision}"
    elif verdict.passed:
        figures = ", ".join(f"{name} {figure(value)}" for name, value in verdict.figures.items())
        judged = "verified" if precision.quantization is None else "its answers held"
        state = f"{judged} on {verdict.backend} {verdict.created[:10]} ({figures})"
    else:
        state = f"FAILED verification, see {verdict.report}"
    return f"{precision.value:<20} {state}; {cache}"


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
