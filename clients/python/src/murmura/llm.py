"""Models: what is fine-tuned, and what is sampled.

`LLM(name).fit(X)` says what should be trained and does nothing yet; `murmura.eval` plans, pays and trains. After
that, `sample` and `stream` are post-processing: they cost no more privacy, however often they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from murmura.audit import Audit, Canaries
from murmura.errors import InvalidInput, MurmuraError
from murmura.frame import RemoteFrame
from murmura.metrics import Evaluation
from murmura.sampler import Sampler

if TYPE_CHECKING:
    from murmura.api.common.v1 import privacy_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.client import Client
    from murmura.report import Report

_SETTINGS = {
    "epochs": float,
    "batch_size": int,
    "learning_rate": float,
    "lora_rank": int,
    "lora_alpha": float,
    "max_length": int,
    "max_rows_per_unit": int,
    "clipping_norm": float,
}


class LLM(Sampler):
    """A base model.

    Args:
        name: its public name, for example `murmura-base`.
        client: who asks; by default the client made last.
    """

    def __init__(self, name: str, client: Client | None = None) -> None:
        super().__init__(client)
        self.name = name.removeprefix("baseModels/")

    def fit(
        self,
        X: RemoteFrame,
        text_field: str | None = None,
        *,
        prompt_field: str | None = None,
        completion_field: str | None = None,
        messages_field: str | None = None,
        **settings: float,
    ) -> Model:
        """Say what should be trained; nothing runs before `murmura.eval`.

        A row is a text (`text_field`), a prompt with the completion that is learned (`prompt_field` and
        `completion_field`), or a conversation whose assistant is learned (`messages_field`: JSON, a list of objects
        with role and content, written by the base model's chat template). Texts of other shapes are made in the frame:
        `X["text"] = X["note"].apply(trace(lambda note: f"Note: {note}"))`.

        Args:
            X: a remote frame.
            text_field: the column that holds the text; `text` unless something else is named.
            prompt_field: the column that holds prompts.
            completion_field: the column that holds completions.
            messages_field: the column that holds conversations.
            **settings: epochs, batch_size, learning_rate, lora_rank, lora_alpha, max_length, max_rows_per_unit,
                clipping_norm. What is left out gets a default that works.

        Raises:
            InvalidInput: if a setting does not exist or is no number, a column does not exist, or the columns do not go
                together.
        """
        if not isinstance(X, RemoteFrame):
            raise InvalidInput(f"fit takes a remote frame, not a {type(X).__name__}: client.dataset('…').as_pandas().")
        columns = _columns(text_field, prompt_field, completion_field, messages_field)
        for column in columns.values():
            if column not in X.columns:
                raise InvalidInput(
                    f"No column {column!r} in this frame; it has {', '.join(X.columns)}. "
                    "Rename one, or pass text_field='…'."
                )
        if unknown := sorted(set(settings) - set(_SETTINGS)):
            raise InvalidInput(f"No setting {', '.join(unknown)}. There are: {', '.join(_SETTINGS)}.")
        return Model(self.name, X.copy(), columns, settings)

    def served_name(self) -> str:
        """Return its name at the inference service."""
        return f"baseModels/{self.name}"

    def __repr__(self) -> str:
        return f"<base model {self.name}>"


class Model(Sampler):
    """A fine-tuned model: before `murmura.eval` a wish, after it an adapter.

    Args:
        base: the base model's public name.
        X: the rows.
        columns: the columns of text: `text`, `prompt` and `completion`, or `messages`.
        settings: what was chosen.
    """

    def __init__(self, base: str, X: RemoteFrame, columns: dict[str, str], settings: dict[str, Any]) -> None:
        super().__init__(X.client)
        self._base = base
        self._frame = X
        self._columns = columns
        self._settings = {name: _setting(name, value) for name, value in settings.items()}
        self.job: trainer_pb2.TrainingJob | None = None

    def spec(
        self,
        target_epsilon: float | str,
        held_out: RemoteFrame | None = None,
        evaluation_epsilon: float | None = None,
        canaries: Canaries | None = None,
    ) -> trainer_pb2.JobSpec:
        """Return what the contracts call this job; arguments as for `murmura.eval`.

        Raises:
            InvalidInput: if they do not go together.
        """
        from murmura.api.trainer.v1 import trainer_pb2
        from murmura.calls import jobs

        spec = trainer_pb2.JobSpec(
            base_model=f"baseModels/{self._base}",
            frame=self._frame.proto,
            text_column=next(iter(self._columns.values())),
            completion_column=self._columns.get("completion", ""),
            text_format=_FORMATS[next(iter(self._columns))],
            settings=trainer_pb2.Settings(**self._settings),
        )
        jobs.ask_for(spec, target_epsilon)
        if (held_out is None) != (evaluation_epsilon is None):
            missing = "held_out=X_test" if held_out is None else "evaluation_epsilon=0.5"
            raise InvalidInput(
                f"held_out and evaluation_epsilon go together: a measurement has a price. Pass {missing} too."
            )
        if held_out is not None and evaluation_epsilon is not None:
            spec.evaluation.CopyFrom(
                trainer_pb2.EvaluationSpec(frame=self._other(held_out).proto, target_epsilon=float(evaluation_epsilon))
            )
        if canaries is not None:
            if not isinstance(canaries, Canaries):
                raise InvalidInput(f"canaries takes murmura.Canaries('…'), not a {type(canaries).__name__}.")
            spec.canaries.CopyFrom(canaries.spec())
        return spec

    def _other(self, frame: RemoteFrame) -> RemoteFrame:
        """Check a frame that is not trained on."""
        if not isinstance(frame, RemoteFrame):
            raise InvalidInput(f"held_out takes a remote frame, not a {type(frame).__name__}: X.iloc[2000:].")
        if frame.proto.dataset != self._frame.proto.dataset:
            raise InvalidInput(
                f"held_out is of {frame.proto.dataset}, and the model is trained on {self._frame.proto.dataset}; "
                "both must be frames of one dataset."
            )
        if missing := [column for column in self._columns.values() if column not in frame.columns]:
            raise InvalidInput(f"held_out has no column {', '.join(missing)}; prepare it as the rows that are fitted.")
        return frame

    @property
    def statement(self) -> privacy_pb2.PrivacyStatement:
        """What is promised about the trained adapter."""
        return self._trained().statement

    @property
    def evaluation(self) -> Evaluation:
        """What was measured on held-out rows."""
        job = self._trained()
        if not job.HasField("evaluation"):
            raise MurmuraError(
                "Nothing was measured. murmura.eval(…, held_out=X_test, evaluation_epsilon=0.5) does, at that price."
            )
        return Evaluation(job.evaluation)

    @property
    def audit(self) -> Audit:
        """What an attacker found out about its canaries."""
        return Audit(self._trained())

    def report(self) -> Report:
        """Return all that can be said about its privacy: `model.report().save("report.html")`, or `.json`."""
        from murmura.report import of_adapter

        return of_adapter(self.client, self._trained().adapter)

    def served_name(self) -> str:
        """Return the adapter's name at the inference service."""
        return self._trained().adapter

    def _trained(self) -> trainer_pb2.TrainingJob:
        if self.job is None or not self.job.adapter:
            raise MurmuraError(
                "This model is not trained yet: murmura.eval(model, target_epsilon=…) shows the plan and trains it."
            )
        return self.job

    def __repr__(self) -> str:
        if self.job is None:
            return f"<{self._base} on {self._frame.proto.dataset}, not trained; next: murmura.eval(model, …)>"
        return f"<{self.job.adapter or self.job.name} of {self._base} on {self._frame.proto.dataset}>"


# Numbers of the contract's TextFormat, by what the first column holds.
_FORMATS: dict[str, Any] = {"text": 1, "prompt": 2, "messages": 3}


def _setting(name: str, value: Any) -> Any:
    """Return a setting as the contract has it: a whole number, or any."""
    try:
        number = float(value)
        whole = number.is_integer()
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} is a number, not {value!r}.") from None
    if _SETTINGS[name] is int and not whole:
        raise InvalidInput(f"{name} is a whole number, not {value!r}.")
    return _SETTINGS[name](number)


def _columns(text: str | None, prompt: str | None, completion: str | None, messages: str | None) -> dict[str, str]:
    """Return the columns that hold text, by what they hold."""
    if (prompt is None) != (completion is None):
        missing = "completion_field" if completion is None else "prompt_field"
        raise InvalidInput(f"prompt_field and completion_field go together; pass {missing}='…' as well.")
    if sum(named is not None for named in (text, prompt, messages)) > 1:
        raise InvalidInput(
            "A row is one thing: pass text_field='…', or prompt_field='…' and completion_field='…', or "
            "messages_field='…'."
        )
    if prompt is not None and completion is not None:
        return {"prompt": prompt, "completion": completion}
    return {"messages": messages} if messages is not None else {"text": text or "text"}
