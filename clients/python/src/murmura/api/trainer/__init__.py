"""Generated from protos/murmura/api/trainer."""
