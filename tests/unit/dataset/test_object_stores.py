"""Objects of an S3 service: a real S3 API server, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from pyarrow import fs

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset.columns import Unreadable
from services.dataset.sources import Sources, Stores
from services.dataset.vault import Vault
from tests.support.ports import free_port

ROWS = pl.DataFrame({"patient": [f"p{n // 2}" for n in range(3000)], "text": [f"note {n}" for n in range(3000)]})


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("localbucket", reason="the S3 server localbucket is not installed")
    place, port = tmp_path_factory.mktemp("buckets"), free_port()
    command = [sys.executable, "-m", "localbucket", "--host", "127.0.0.1", "--port", str(port), str(place)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "localbucket does not start"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with the rows in every format; credentials are in the environment, as the operator's are."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "murmura")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "murmura-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = fs.S3FileSystem(
        endpoint_override=endpoint.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    store.create_dir("clinic")
    for ending, write in (("jsonl", ROWS.write_ndjson), ("csv", ROWS.write_csv), ("parquet", ROWS.write_parquet)):
        write(tmp_path / "rows")
        with store.open_output_stream(f"clinic/notes/rows.{ending}") as out:
            out.write((tmp_path / "rows").read_bytes())
    return endpoint


def read(sources: Sources, url: str, directory: Path) -> pl.DataFrame:
    source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=url))
    items = sources.read(source, "patient", {}, Vault(directory / "vault"))
    return pl.concat(item for item in items if isinstance(item, pl.DataFrame))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_object_is_read_like_a_file(bucket: str, tmp_path: Path, ending: str) -> None:
    sources = Sources(["s3://clinic/notes"], stores=Stores(s3_endpoint=bucket, s3_region="us-east-1"))
    assert read(sources, f"s3://clinic/notes/rows.{ending}", tmp_path).equals(ROWS)


def test_what_is_not_there_or_not_allowed_is_refused(bucket: str, tmp_path: Path) -> None:
    stores = Stores(s3_endpoint=bucket, s3_region="us-east-1")
    for url in ("s3://clinic/notes/absent.csv", "s3://clinic-of-others/notes/rows.csv"):
        with pytest.raises(Unreadable, match="cannot be opened"):
            read(Sources(["s3://clinic/notes", "s3://clinic-of-others"], stores=stores), url, tmp_path)
    with pytest.raises(Unreadable, match="MURMURA_SOURCES"):
        read(Sources(["s3://clinic/other"], stores=stores), "s3://clinic/notes/rows.csv", tmp_path)
