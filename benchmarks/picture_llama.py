"""llama.cpp with its multimodal library, through llama-cpp-python, for benchmarks/other_picture_engines.py."""

from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_uint8
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gguf_files import special_words, write_decoder, write_tower
from benchmarks.other_engines import llama_quantize, llama_settings
from benchmarks.picture_work import CHECKPOINT, PictureWork

# Of the decoder → of what sees: 4 bits are for decoders, as ours has it.
TOWERS = {"f32": "f32", "q8_0": "q8_0", "q4_0": "q8_0"}


class LlamaCpp:
    """Quantized by llama.cpp from the fp32 files. It makes pixels of the picture once, before any look."""

    packages: tuple[str, ...] = ("llama-cpp-python", "gguf")

    def __init__(self, folder: Path, variant: str, work: PictureWork) -> None:
        self._llama, self._mtmd, self._work = import_module("llama_cpp"), import_module("llama_cpp.mtmd_cpp"), work
        decoder, tower = self._files(folder, variant)
        settings = llama_settings(self._llama, variant, work.threads)
        self.settings: dict[str, Any] = {**settings, "tower": TOWERS[variant]}
        self._model = self._llama.Llama(str(decoder), verbose=False, **settings)
        options = self._mtmd.mtmd_context_params_default()
        options.use_gpu, options.n_threads, options.warmup = False, work.threads, False
        self._eyes = self._mtmd.mtmd_init_from_file(str(tower).encode(), self._model.model, options)
        assert self._eyes, f"mtmd_init_from_file does not read {tower.name}"
        self._picture = self._chunk()
        self._batch = self._llama.llama_batch_init(len(work.ids), 0, 1)
        self._fed, self._hidden = 0, work.features.shape[1]

    def _files(self, folder: Path, variant: str) -> tuple[Path, Path]:
        """Decoder and tower, made once."""
        checkpoint, found = folder / CHECKPOINT, []
        for part, kind in (("decoder", variant), ("tower", TOWERS[variant])):
            source, file = folder / f"llama-{part}-f32.gguf", folder / f"llama-{part}-{kind}.gguf"
            if not source.exists():
                if part == "tower":
                    write_tower(checkpoint, source)
                else:
                    write_decoder(checkpoint, source, special_words(folder / "tokenizer.json"))
            if not file.exists():
                llama_quantize(self._llama, source, file, kind)
            found.append(file)
        return found[0], found[1]

    def _chunk(self) -> Any:
        """The picture as it is encoded. Of a picture that could be cut into tiles the whole of it comes last."""
        mtmd, rgb = self._mtmd, np.ascontiguousarray(self._work.rgb)
        rows, columns, _ = rgb.shape
        bitmap = mtmd.mtmd_bitmap_init(columns, rows, rgb.ctypes.data_as(POINTER(c_uint8)))
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(c_char_p(marker), len(marker), False, True)
        self._chunks = mtmd.mtmd_input_chunks_init()  # owns what is returned
        failed = mtmd.mtmd_tokenize(self._eyes, self._chunks, byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1)
        assert failed == 0, f"mtmd_tokenize returned {failed}"
        chunks = [
            mtmd.mtmd_input_chunks_get(self._chunks, at) for at in range(mtmd.mtmd_input_chunks_size(self._chunks))
        ]
        pictures = [one for one in chunks if mtmd.mtmd_input_chunk_get_type(one) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        tokens = mtmd.mtmd_input_chunk_get_n_tokens(pictures[-1])
        assert tokens == self._work.picture_tokens, f"{tokens} tokens of a picture, where ours has others"
        return pictures[-1]

    def look(self) -> None:
        failed = self._mtmd.mtmd_encode_chunk(self._eyes, self._picture)
        assert failed == 0, f"mtmd_encode_chunk returned {failed}"

    def seen(self) -> NDArray[np.float32]:
        values: NDArray[np.float32] = np.ctypeslib.as_array(
            self._mtmd.mtmd_get_output_embd(self._eyes), (self._work.picture_tokens, self._hidden)
        )
        return values

    def forget(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._model.ctx), True)
        self._fed = 0

    def feed(self, ids: Sequence[int]) -> int:
        if self._fed == 0:
            self._feed_picture()
            ids = ids[self._fed :]
        batch, positions = self._batch, self._work.positions[0]
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at] = token, int(positions[self._fed + at])
            batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, 0, at + 1 == len(ids)
        failed = self._llama.llama_decode(self._model.ctx, batch)
        assert failed == 0, f"llama_decode returned {failed}"
        self._fed += len(ids)
        logits = self._llama.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())

    def _feed_picture(self) -> None:
        mtmd, after = self._mtmd, c_int32(0)
        features, size = mtmd.mtmd_get_output_embd(self._eyes), self.settings["n_batch"]
        nothing = mtmd.mtmd_helper_post_decode_callback(0)
        failed = mtmd.mtmd_helper_decode_image_chunk(
            self._eyes, self._model.ctx, self._picture, features, 0, 0, size, byref(after), nothing, None
        )
        assert failed == 0, f"mtmd_helper_decode_image_chunk returned {failed}"
        self._fed = self._work.picture_tokens
