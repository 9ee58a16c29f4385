"""The embedded default: all of Murmura on one machine, as four ordinary processes."""
