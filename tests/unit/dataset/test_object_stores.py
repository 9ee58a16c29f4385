"""Objects of S3 and of Google Cloud Storage: real servers of their APIs, in processes of their own."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from pyarrow import fs

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import sources as under_test
from services.dataset.columns import Unreadable
from services.dataset.sources import Sources, Stores
from services.dataset.vault import Vault
from tests.support.ports import free_port

ROWS = pl.DataFrame({"patient": [f"p{n // 2}" for n in range(3000)], "text": [f"note {n}" for n in range(3000)]})
SCHEMES = ("s3", "gs")


@pytest.fixture(scope="module", params=SCHEMES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server of one of the two APIs: its scheme, and host:port."""
    place, port = tmp_path_factory.mktemp("buckets"), str(free_port())
    module, arguments = {
        "s3": ("localbucket", ["--host", "127.0.0.1", "--port", port, str(place)]),
        "gs": ("gcp_storage_emulator", ["start", "--host", "127.0.0.1", "--port", port, "--in-memory"]),
    }[request.param]
    pytest.importorskip(module, reason=f"the {request.param} server {module} is not installed")
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, f"{module} does not start"
            time.sleep(0.1)
    yield request.param, f"127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def filled(server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Stores]:
    """A bucket `clinic` with the rows in every format; credentials are in the environment, as the operator's are."""
    scheme, address = server
    if scheme == "s3":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "murmura")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "murmura-secret")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    makers: dict[str, Callable[[], fs.FileSystem]] = {
        "s3": lambda: fs.S3FileSystem(
            endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
        ),
        "gs": lambda: fs.GcsFileSystem(
            endpoint_override=address, scheme="http", anonymous=True, project_id="murmura-tests"
        ),
    }
    store = makers[scheme]()
    store.create_dir("clinic")
    for ending, write in (("jsonl", ROWS.write_ndjson), ("csv", ROWS.write_csv), ("parquet", ROWS.write_parquet)):
        write(tmp_path / "rows")
        with store.open_output_stream(f"clinic/notes/rows.{ending}") as out:
            out.write((tmp_path / "rows").read_bytes())
    return scheme, stores(scheme, address)


def stores(scheme: str, address: str) -> Stores:
    if scheme == "s3":
        return Stores(s3_endpoint=f"http://{address}", s3_region="us-east-1")
    return Stores(gcs_endpoint=address)


def read(sources: Sources, url: str, directory: Path) -> pl.DataFrame:
    source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=url))
    items = sources.read(source, "patient", {}, Vault(directory / "vault"))
    return pl.concat(item for item in items if isinstance(item, pl.DataFrame))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_object_is_read_like_a_file(filled: tuple[str, Stores], tmp_path: Path, ending: str) -> None:
    scheme, there = filled
    sources = Sources([f"{scheme}://clinic/notes"], stores=there)
    assert read(sources, f"{scheme}://clinic/notes/rows.{ending}", tmp_path).equals(ROWS)


def test_what_is_not_there_or_not_allowed_is_refused(filled: tuple[str, Stores], tmp_path: Path) -> None:
    scheme, there = filled
    both = Sources([f"{scheme}://clinic/notes", f"{scheme}://clinic-of-others"], stores=there)
    for path in ("clinic/notes/absent.csv", "clinic-of-others/notes/rows.csv"):
        with pytest.raises(Unreadable, match="cannot be opened"):
            read(both, f"{scheme}://{path}", tmp_path)
    with pytest.raises(Unreadable, match="MURMURA_SOURCES"):
        read(Sources([f"{scheme}://clinic/other"], stores=there), f"{scheme}://clinic/notes/rows.csv", tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_store_that_is_away_is_not_waited_for_for_long(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone, the client of Google's store tries again for a quarter of an hour."""
    monkeypatch.setattr(under_test, "_PATIENCE", datetime.timedelta(seconds=1))
    away = Sources([f"{scheme}://clinic"], stores=stores(scheme, f"127.0.0.1:{free_port()}"))
    start = time.monotonic()
    with pytest.raises(Unreadable, match="cannot be opened"):
        read(away, f"{scheme}://clinic/rows.csv", tmp_path)
    assert time.monotonic() - start < 60
