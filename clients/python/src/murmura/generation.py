"""Synthetic datasets: many records from one model, in a file that says what is promised about them.

Sampling is post-processing, so a dataset of any size costs no more privacy than its model did. Whoever gets the file
gets the model's privacy statement with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from murmura import bars, display
from murmura.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from murmura.api.inference.v1 import inference_pb2, inference_service_pb2
    from murmura.sampler import Sampler

BATCH = 200
METADATA_KEY = "murmura"


def generate(
    model: Sampler,
    n: int,
    prompt: str | Sequence[str],
    path: Path,
    options: inference_pb2.SamplingOptions,
    overwrite: bool,
) -> Path:
    """Write a dataset; see `Sampler.generate_dataset`."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if n < 1 or not prompts:
        raise InvalidInput("A dataset has at least one record and one prompt: generate_dataset(n=1000, prompt='…').")
    if path.suffix not in _WRITERS:
        raise InvalidInput(f"{path.name}: name the file *.parquet, or *.jsonl for JSON Lines.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InvalidInput("Parquet needs pyarrow: `pip install pyarrow`, or name the file *.jsonl.")
    if path.exists() and not overwrite:
        raise InvalidInput(f"{path} exists. Choose another name, or pass overwrite=True.")
    if not path.parent.is_dir():
        raise InvalidInput(f"There is no folder {path.parent}. Make it first.")
    with bars.CountBar("records", n) as bar:
        batches = _batches(model, n, prompts, options, bar.update)
        asked, made = next(batches)
        first, done = made[0], len(made)
        writer = _WRITERS[path.suffix](
            path.with_name(f".{path.name}.part"), _provenance(model, first, prompts, options)
        )
        try:
            writer.write(asked, made)
            for asked, made in batches:
                writer.write(asked, made)
                done += len(made)
        finally:
            # What there is is whole, also where the rest did not come.
            bar.close()
            writer.close(path)
            display.show_dataset(path, done, n, first.statement if first.HasField("statement") else None)
    return path


def _batches(
    model: Sampler,
    n: int,
    prompts: Sequence[str],
    options: inference_pb2.SamplingOptions,
    seen: Callable[[int], None],
) -> Iterator[tuple[list[str], list[inference_service_pb2.GenerateResponse]]]:
    """Yield prompts with what followed them."""
    for start in range(0, n, BATCH):
        asked = [prompts[index % len(prompts)] for index in range(start, min(n, start + BATCH))]

        def reported(count: int, start: int = start) -> None:
            seen(start + count)

        yield asked, model.completions(asked, options, start, reported)


class Writer(Protocol):
    """Writes records to a file that has its name only when it is whole."""

    def __init__(self, partial: Path, provenance: dict[str, Any]) -> None: ...

    def write(self, prompts: Sequence[str], made: Sequence[inference_service_pb2.GenerateResponse]) -> None:
        """Add records."""

    def close(self, path: Path) -> None:
        """Give the file its name."""


class _JsonLines:
    """A record a line, and beside it a file with what is promised."""

    def __init__(self, partial: Path, provenance: dict[str, Any]) -> None:
        self._partial, self._provenance = partial, provenance
        self._file = partial.open("w", encoding="utf-8")

    def write(self, prompts: Sequence[str], made: Sequence[inference_service_pb2.GenerateResponse]) -> None:
        for prompt, completion in zip(prompts, made, strict=True):
            record = {"prompt": prompt, "text": prompt + completion.text}
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self, path: Path) -> None:
        self._file.close()
        # First what is promised: nobody finds the records without it.
        path.with_name(f"{path.name}.privacy.json").write_text(
            json.dumps(self._provenance, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        os.replace(self._partial, path)


class _Parquet:
    """Columns `prompt` and `text`, and what is promised in the schema's metadata."""

    def __init__(self, partial: Path, provenance: dict[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        metadata = {METADATA_KEY: json.dumps(provenance, ensure_ascii=False)}
        self._schema = pa.schema([("prompt", pa.string()), ("text", pa.string())], metadata=metadata)
        self._table = pa.table
        self._partial = partial
        self._writer = pq.ParquetWriter(partial, self._schema)

    def write(self, prompts: Sequence[str], made: Sequence[inference_service_pb2.GenerateResponse]) -> None:
        texts = [prompt + completion.text for prompt, completion in zip(prompts, made, strict=True)]
        self._writer.write_table(self._table([list(prompts), texts], schema=self._schema))

    def close(self, path: Path) -> None:
        self._writer.close()
        os.replace(self._partial, path)


_WRITERS: dict[str, type[Writer]] = {".jsonl": _JsonLines, ".parquet": _Parquet}


def _provenance(
    model: Sampler,
    first: inference_service_pb2.GenerateResponse,
    prompts: list[str],
    options: inference_pb2.SamplingOptions,
) -> dict[str, Any]:
    """Return what a reader of the file should know, in plain values."""
    from google.protobuf.json_format import MessageToDict

    from murmura import __version__

    return {
        "model": model.served_name(),
        # A base model has none: it is public.
        "statement": MessageToDict(first.statement) if first.HasField("statement") else None,
        "prompts": prompts,
        "options": MessageToDict(options),
        "create_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "murmura": __version__,
    }
