"""The dataset service: private rows, and the one edge on which they leave."""
