"""A registered dataset, as the registry keeps it."""

from __future__ import annotations

import polars as pl

from murmura.api.dataset.v1 import dataset_pb2, expressions_pb2
from services.dataset.registry import Registry
from services.dataset.units import Units
from services.dataset.vault import Vault


def resource(name: str = "datasets/notes", lineage: str = "aaaa") -> dataset_pb2.Dataset:
    """Return a dataset of three columns, the last of which has public values."""
    made = dataset_pb2.Dataset(name=name, lineage=lineage, row_count=3, unit_count=2, privacy_unit_column="patient")
    made.policy_version = 1
    for column, kind in (("patient", "STRING"), ("n", "INTEGER"), ("text", "STRING")):
        made.schema.columns.add(name=column, type=expressions_pb2.ValueType.Value(f"VALUE_TYPE_{kind}"))
    made.schema.columns[2].public_values.extend(["a|b", "c|d"])
    return made


def store(vault: Vault, name: str, rows: pl.DataFrame) -> None:
    """Keep rows in a vault."""
    incoming = vault.incoming(name)
    incoming.add(rows)
    incoming.keep()


def add(registry: Registry, made: dataset_pb2.Dataset, request: str = "r1", fingerprint: str = "f") -> None:
    """Write a dataset of three rows, of which the first two share a unit, into a registry."""
    units = Units()
    units.add(pl.Series([0, 0, 1]))
    answer = (request, "body", b"answer")
    registry.add(made, f"storage-{made.name[9:]}", units.packed(), fingerprint, answer)
