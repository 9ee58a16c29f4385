"""Workers as Jobs of a Kubernetes cluster."""
