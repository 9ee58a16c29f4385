"""The search for the canary finds it in whatever an encoder makes of it; otherwise it would prove nothing."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import canary
from tests.support.canary import Canary


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: f"before {text} after".encode(),
        lambda text: json.dumps({"row": f"x{text}y"}).encode(),
        lambda text: json.dumps({"row": f"x{text}y"}, ensure_ascii=False).encode(),
        lambda text: repr(ValueError(text)).encode(),
        lambda text: str(f"x{text}".encode()).encode(),
        lambda text: base64.b64encode(f"{text} and more".encode()),
        lambda text: base64.b64encode(f"x{text} and more".encode()),
        lambda text: base64.b64encode(f"xy{text}".encode()),
        lambda text: base64.urlsafe_b64encode(f"xyz{text}".encode()),
        lambda text: f"x{text}".encode().hex().encode(),
        lambda text: f"x{text}".encode().hex().upper().encode(),
        lambda text: urllib.parse.quote(f"x {text}").encode(),
        lambda text: f"x{text}".encode("utf-16"),
        lambda text: f"x{text}".upper().encode(),
    ],
)
def test_it_is_found_however_it_is_written(encode: Callable[[str], bytes]) -> None:
    bird = Canary()
    assert bird.found_in(encode(bird.word))
    assert bird.found_in(encode(bird.text))
    assert not bird.found_in(encode(Canary().text))


def test_every_file_is_searched(tmp_path: Path) -> None:
    bird = Canary()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.log").write_text(bird.text)
    (tmp_path / "b.log").write_text("nothing")
    assert bird.leaks(canary.files(tmp_path)) == ["deep/a.log"]
