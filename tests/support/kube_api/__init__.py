"""A small Kubernetes: an API server with real REST and watches, the controllers that a Job needs, and nodes that run
pods as processes of this machine.

What it models is what Murmura meets: optimistic locking, strict validation, conflicts, preconditions, finalizers, owner
references, foreground deletion, watches with bookmarks and 410; Indexed Jobs with a pod failure policy; scheduling by
taints, selectors and GPUs; an autoscaler; quotas; image pulls; evictions, lost nodes, bound service-account tokens. Its
faults are switched on by a test. It is no cluster: `make test-kubernetes` runs the same suite against one.
"""
