"""The fixtures that all inference tests share."""

from tests.support.inference_fixtures import tiny_adapters, tiny_base, trainer_key

__all__ = ["tiny_adapters", "tiny_base", "trainer_key"]
