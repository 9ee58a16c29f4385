"""Plans, launches and watches fine-tuning jobs; their work is done in `worker`."""
