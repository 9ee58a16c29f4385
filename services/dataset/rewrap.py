"""`python -m services.dataset.rewrap`: wrap every data key anew, so that who holds them, or the key itself, can change.

The environment says who shall hold them: the transit engine of `MURMURA_TRANSIT_URL`, or without one a fresh
`master.key`. Who holds them now is found out: `master.key` where there is one, the same transit key (after it was
rotated), or the engine that `MURMURA_OLD_TRANSIT_URL`, `…_KEY`, `…_MOUNT`, `…_TOKEN_FILE` and `…_AUTHORITY` name.

Rows are not touched, and no data key changes: whoever kept wrapped keys together with what opened them can open those
datasets still, and only registering anew helps against that. Each key is replaced as a whole file, and what opens it is
forgotten last; a run that ended early is run again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.files import alone, sync, write
from services.dataset.holders import TransitSettings
from services.dataset.keys import FileKeys, HolderAway, Keys
from services.dataset.sealing import Sealed
from services.dataset.vault import CHANGING, LINEAGE, MASTER


class RewrapSettings(TransitSettings):
    """Where the keys are, and who shall hold them."""

    model_config = SettingsConfigDict(env_prefix="MURMURA_", extra="ignore")

    state_dir: Path = Field(description="directory of the dataset service")


class OldTransit(TransitSettings):
    """Who held them, where it was another transit engine."""

    model_config = SettingsConfigDict(env_prefix="MURMURA_OLD_", extra="ignore")


def rewrap(directory: Path, old: Keys | None, new: Keys | None) -> int:
    """Wrap every key of a dataset service anew. Services that register or erase meanwhile wait.

    Args:
        directory: of the service.
        old: a transit engine that held keys until now; None: none, or the one that shall hold them.
        new: the transit engine that shall hold them; None: a fresh key in a file.

    Returns:
        How many keys there are.

    Raises:
        Sealed: if a key cannot be opened; nothing is lost.
        HolderAway: if a transit engine cannot be asked; nothing is lost.
    """
    master, lineage = directory / MASTER, directory / f"{LINEAGE}.key"
    if not lineage.exists():
        raise Sealed(f"{directory} is not the directory of a dataset service: there is no {lineage.name}")
    with alone(directory / CHANGING):
        openers = [keys for keys in (new, old) if keys is not None]
        if master.exists():
            openers.append(FileKeys(master, may_make=False))
        # Before anything is made or changed.
        _open(lineage, openers)
        if new is None:
            new = _fresh(master)
        wrapped = [lineage, *sorted((directory / "rows").glob("*.key"))]
        for path in wrapped:
            key = _open(path, openers)
            again = new.wrap(key, path.stem)
            if new.unwrap(again, path.stem) != key:
                raise Sealed(f"{new.holder} does not give back what it was given")
            write(path, again)
        if isinstance(new, FileKeys):
            new.retire()
        elif master.exists():
            master.unlink()
            sync(directory)
    return len(wrapped)


def _fresh(master: Path) -> FileKeys:
    """Return the keys of a file that wraps with a fresh one, and still opens what an older one wrapped."""
    if not master.exists():
        return FileKeys(master, may_make=True)
    keys = FileKeys(master, may_make=False)
    keys.renew()
    return keys


def _open(path: Path, openers: Sequence[Keys]) -> bytes:
    for keys in openers:
        with suppress(Sealed):
            return keys.unwrap(path.read_bytes(), path.stem)
    asked = " nor by ".join(keys.holder for keys in openers) or "anything that is here"
    raise Sealed(
        f"{path.name} is not opened by {asked}; restore {MASTER}, or name who holds the keys (MURMURA_OLD_TRANSIT_URL)"
    )


def main() -> int:
    """Run the command; returns the exit code."""
    settings, old = RewrapSettings.load(), OldTransit.load()
    try:
        count = rewrap(settings.state_dir, old.transit, settings.transit)
    except (Sealed, HolderAway) as problem:
        away = " does not answer or refuses. Run this again." if isinstance(problem, HolderAway) else ""
        print(f"Nothing is lost, and not every key has changed hands: {problem}{away}", file=sys.stderr)
        return 2
    if settings.transit is None:
        print(f"{count} keys are wrapped by a fresh {MASTER}. Back it up now: the old one opens old backups alone.")
    else:
        print(f"{count} keys are wrapped by {settings.transit.holder}. Restart a service that knew another holder.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
