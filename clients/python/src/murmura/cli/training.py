"""`murmura plan` and `murmura train`: a fine-tune without a line of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from murmura.cli.shared import AsJson, Role, as_dict, client, print_json
from murmura.errors import InvalidInput

if TYPE_CHECKING:
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.llm import Model

Dataset = Annotated[str, typer.Argument(help="datasets/…, or its last part.")]
Epsilon = Annotated[str, typer.Option(help="What the job may reach, a number; or: unlimited.")]
Base = Annotated[str, typer.Option(help="The base model.")]
TextField = Annotated[str, typer.Option(help="The column that holds the text.")]
Rows = Annotated[str, typer.Option(help="Which rows, as in Python: 0:2608.")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE: epochs=3, lora_rank=16, …")]
Template = Annotated[str, typer.Option(help="Plant canaries: '{name} suffers from |{word}'. They cost nothing.")]


def plan(
    dataset: Dataset,
    epsilon: Epsilon,
    base: Base = "murmura-base",
    text_field: TextField = "text",
    rows: Rows = "",
    settings: Setting = None,
    canaries: Template = "",
    as_json: AsJson = False,
    role: Role = "analyst",
) -> None:
    """Say what a fine-tune would promise and cost. Nothing is spent. Exit code 1 where the budget does not cover it."""
    from murmura import display
    from murmura.calls import jobs

    model, spec = _wish(dataset, epsilon, base, text_field, rows, settings, canaries, role)
    found = model.client.run(jobs.plan_job(spec)).plan
    if as_json:
        print_json(as_dict(found))
    else:
        display.show_plan(found, spec)
    jobs.require_affordable(found, spec)


def train(
    dataset: Dataset,
    epsilon: Epsilon,
    base: Base = "murmura-base",
    text_field: TextField = "text",
    rows: Rows = "",
    settings: Setting = None,
    canaries: Template = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    role: Role = "analyst",
) -> None:
    """Fine-tune: show the plan, ask, pay, watch to the end. Ctrl-C lets go of the job; it goes on."""
    from murmura.evaluation import train as fine_tune

    model, spec = _wish(dataset, epsilon, base, text_field, rows, settings, canaries, role)

    def agreed() -> None:
        if not yes:
            typer.confirm("Spend this?", abort=True)

    fine_tune(model, spec, agreed=agreed)


def _wish(
    dataset: str,
    epsilon: str,
    base: str,
    text_field: str,
    rows: str,
    settings: list[str] | None,
    canaries: str,
    role: str,
) -> tuple[Model, trainer_pb2.JobSpec]:
    """Return the model that options ask for, and its job."""
    from murmura.audit import Canaries
    from murmura.llm import LLM

    asker = client(role)
    frame = asker.dataset(dataset).as_pandas()
    if rows:
        frame = frame.iloc[_slice(rows)]
    chosen: dict[str, Any] = dict(_setting(one) for one in settings or [])
    model = LLM(base, asker).fit(frame, text_field, **chosen)
    target = epsilon if epsilon == "unlimited" else _number("--epsilon", epsilon)
    return model, model.spec(target, canaries=Canaries(canaries) if canaries else None)


def _slice(text: str) -> slice:
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        raise InvalidInput(f"--rows is {text!r}; give two positions and a colon between them, as in 0:2608.") from None


def _setting(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"--set is {text!r}; give NAME=VALUE, such as epochs=3.")
    return name, _number(f"--set {name}", value)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{option} is {text!r}, which is no number.") from None
