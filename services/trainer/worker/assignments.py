"""What an assignment asks for, in the terms of the runs that do it."""

from __future__ import annotations

from murmura.api.trainer.v1 import trainer_pb2
from services.trainer.worker.clipping import Clipping
from services.trainer.worker.engine import TrainingSettings
from services.trainer.worker.plain import PlainSettings
from services.trainer.worker.text import TextFormat

FORMATS = {
    trainer_pb2.TEXT_FORMAT_UNSPECIFIED: TextFormat.PLAIN,
    trainer_pb2.TEXT_FORMAT_PLAIN: TextFormat.PLAIN,
    trainer_pb2.TEXT_FORMAT_COMPLETION: TextFormat.COMPLETION,
    trainer_pb2.TEXT_FORMAT_CHAT: TextFormat.CHAT,
}
_CLIPPING = {
    trainer_pb2.CLIPPING_FLAT: Clipping.FLAT,
    trainer_pb2.CLIPPING_NORMALISED: Clipping.NORMALISED,
}


def private(assignment: trainer_pb2.Assignment) -> TrainingSettings:
    """Return the private run that an assignment asks for."""
    chosen, mechanism = assignment.settings, assignment.mechanism
    return TrainingSettings(
        steps=mechanism.steps,
        expected_batch_units=mechanism.sampling_probability * assignment.unit_count,
        sampling_probability=mechanism.sampling_probability,
        noise_multiplier=mechanism.noise_multiplier,
        clipping_norm=chosen.clipping_norm,
        clipping=_CLIPPING[chosen.clipping],
        learning_rate=chosen.learning_rate,
        max_rows_per_unit=chosen.max_rows_per_unit,
        max_length=chosen.max_length,
    )


def plain(assignment: trainer_pb2.Assignment) -> PlainSettings:
    """Return the ordinary fine-tune that an assignment asks for."""
    chosen = assignment.settings
    return PlainSettings(
        steps=assignment.unlimited_steps,
        batch_rows=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        max_length=chosen.max_length,
    )
