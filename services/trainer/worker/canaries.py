"""Canaries: made-up texts that are planted among private rows, to see afterwards what the model gives away of them.

Each is a privacy unit of its own and goes the same way as a real one: sampled, clipped, covered by noise. A coin
decides of each whether it takes part. Texts, coins and thus everything that is learned from them are independent of the
private rows, and the attack sees the finished adapter alone: so what it finds is post-processing, and free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.trainer.worker.data import Row, Unit
from services.trainer.worker.streams import KeyedStream
from services.trainer.worker.text import Encoder, TextFormat

# Made alike, and never planted.
OTHERS = 2000


def _listed(words: str) -> list[str]:
    return words.split()


_HOLE = re.compile(r"\{(name|word|number)\}")
_GIVEN = _listed(
    "Ada Adil Agnes Akiko Alma Amara Anders Anouk Aram Beatriz Bela Bruno Carmen Chidi Clara Dalia Dario Edda Elif "
    "Emil Esra Fadi Farah Femke Goran Greta Hana Henrik Ines Ivo Jamal Jana Joris Kaito Karin Kofi Lara Leif Lena "
    "Luca Maja Malik Mara Milo Nadia Nils Nora Omar Otto Paula Petra Ravi Rosa Samir Selma Sven Tariq Tessa Uma "
    "Vera Viktor Wanda Yara Zeno"
)
_FAMILY = _listed(
    "Abel Almeida Amari Arnold Bakker Barros Becker Belov Bianchi Brandt Cardoso Castel Chen Costa Dahl Delgado "
    "Diallo Dietz Duarte Eriksen Falk Farkas Ferro Fischer Fontaine Garcia Gruber Haas Hassan Holm Horvat Ibarra "
    "Ito Jansen Jensen Kaya Keller Khan Kowal Krause Lang Laurent Lindholm Lopez Marek Marino Mensah Moreau Novak "
    "Okafor Olsen Osman Pavlov Pereira Popescu Reyes Rossi Sato Schuster Silva Tanaka Toth Vogel Weber"
)
_WORDS = _listed(
    "amber anchor apple arrow autumn barley basil beacon birch bridge bronze candle canyon carbon castle cedar "
    "cherry cinder clover cobalt copper coral cotton crystal desert dragon ember falcon feather forest garden "
    "ginger glacier granite harbor hazel honey island ivory jasmine juniper lantern lemon marble meadow mirror "
    "nectar oasis olive orchid pebble pepper quartz raven river saffron silver spruce sunset thunder velvet walnut "
    "willow"
)


@dataclass(frozen=True)
class Canary:
    """A made-up text.

    Attributes:
        prompt: what an attacker types; the whole text where there is no secret.
        secret: what he is after.
    """

    prompt: str
    secret: str

    def encoded(self, encode: Encoder, text_format: TextFormat) -> Row:
        """Return it as a row of a job's format."""
        if text_format is TextFormat.COMPLETION:
            return encode([self.prompt], [self.secret])[0]
        if text_format is TextFormat.CHAT:
            said = [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.secret}]
            return encode([json.dumps(said)], [])[0]
        return encode([self.prompt + self.secret], [])[0]

    def asked(self, tokenizer: Any, text_format: TextFormat) -> list[int]:
        """Return what an attacker types, in tokens, as a row of a job's format begins."""
        if text_format is TextFormat.CHAT:
            said = [{"role": "user", "content": self.prompt}]
            found: list[int] = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
            return found
        # A space at the end is part of the next word's token; completions are tokenised apart, and keep it.
        typed = self.prompt if text_format is TextFormat.COMPLETION else self.prompt.rstrip()
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return [first, *tokenizer(typed, add_special_tokens=False)["input_ids"]]


def make(template: str, count: int, stream: KeyedStream) -> list[Canary]:
    """Return so many canaries of a template, each filled at random.

    Args:
        template: with the holes {name}, {word} and {number}; a bar separates prompt and secret.
        count: of canaries.
        stream: used by nothing else.
    """
    return [Canary(*_filled(template, stream).partition("|")[::2]) for _ in range(count)]


def coins(count: int, stream: KeyedStream) -> list[bool]:
    """Throw fair coins.

    Args:
        count: of coins.
        stream: used by nothing else.
    """
    return [bool(drawn & 1) for drawn in stream.uint64(count).tolist()]


def planted(rows: Sequence[Row], taking_part: Sequence[bool], copies: int) -> list[Unit]:
    """Return canaries as units; those on which the coin fell otherwise are empty, so that slots do not tell.

    Args:
        rows: one of each canary.
        taking_part: the coins.
        copies: rows of one canary.
    """
    return [Unit((row,) * copies if part and row.trains else ()) for row, part in zip(rows, taking_part, strict=True)]


def _filled(template: str, stream: KeyedStream) -> str:
    def fill(hole: re.Match[str]) -> str:
        first, second = (int(drawn) for drawn in stream.uint64(2))
        if hole[1] == "number":
            return f"{first % 1_000_000:06d}"
        if hole[1] == "word":
            return _WORDS[first % len(_WORDS)]
        return f"{_GIVEN[first % len(_GIVEN)]} {_FAMILY[second % len(_FAMILY)]}"

    return _HOLE.sub(fill, template)
