"""Workers as Jobs of a cluster.

The trainer's store says what should be; this says what is, from watches, and makes, adopts and removes Jobs. It never
talks to a cloud: a pod that asks for a GPU makes the cluster's own autoscaler add a node, and an empty node goes again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from services.trainer.cluster import ended, objects, waiting
from services.trainer.cluster.client import Cluster, ClusterError, Object
from services.trainer.cluster.events import Events
from services.trainer.cluster.records import PodRecord, Records, record_of
from services.trainer.cluster.settings import ClusterSettings
from services.trainer.cluster.watch import Watched
from services.trainer.launcher import ABSENT, Observation, Refused, Unavailable, WorkOrder

WORKER = ("python", "-m", "services.trainer.worker")
_LOG_LINES = 200
# What is being deleted and does not go for so long is held by a finalizer whose owner is not there.
_STUCK_S = 60.0
_log = structlog.get_logger()


class KubernetesLauncher:
    """Starts workers as batch/v1 Jobs.

    Args:
        cluster: the namespace of the workers.
        settings: what they run on.
        directory: for what is remembered of pods, and the ends of their logs.
        told: what every worker is told, besides its job.
        running_limit_s: of a pod.
        command: what a worker runs.
        stuck_s: after which finalizers of what is being deleted are taken off.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: ClusterSettings,
        directory: Path,
        told: dict[str, str],
        running_limit_s: float,
        command: Sequence[str] = WORKER,
        stuck_s: float = _STUCK_S,
    ) -> None:
        self._cluster, self._settings, self._told = cluster, settings, told
        self._running_limit_s, self._command, self._stuck_s = running_limit_s, list(command), stuck_s
        self._records = Records(directory)
        self._harvest = ThreadPoolExecutor(2, thread_name_prefix="harvest")
        self._changed: Callable[[str], None] = lambda job_id: None
        self._events = Events()
        # Jobs by the uid of what an event may be about.
        self._about: dict[str, str] = {}
        self._no_room: dict[str, str] = {}
        self._image_since: dict[str, float] = {}
        self._going_since: dict[str, float] = {}
        mine = f"{objects.DEPLOYMENT}={settings.deployment}"
        self._jobs = Watched(cluster, "Job", mine, objects.JOB, self._job_changed, settings.resync_s)
        self._pods = Watched(cluster, "Pod", mine, objects.JOB, self._pod_changed, settings.resync_s)
        self._told_of = Watched(cluster, "Event", "", "", self._event_came, settings.resync_s)
        self._all = (self._jobs, self._pods, self._told_of)

    def start(self, changed: Callable[[str], None]) -> None:
        """Begin to watch the cluster; see `Launcher.start`."""
        self._changed = changed
        for watched in self._all:
            watched.start()

    def ensure(self, order: WorkOrder) -> None:
        """Create the Job of an attempt, or adopt the one that is there.

        Raises:
            Refused: if the cluster takes no such Job, or another one has its name.
            Unavailable: if the cluster does not answer.
        """
        if self.observe(order.job_id, order.attempt).exists:
            return
        wanted = objects.job(order, self._settings, self._told, self._command, self._running_limit_s)
        try:
            made = self._create(wanted)
            if order.nodes > 1:
                self._add_meeting(order, made)
        except ClusterError as error:
            self._refused(order, error)
            return
        self._no_room.pop(order.job_id, None)
        self._jobs.note(made)

    def observe(self, job_id: str, attempt: int) -> Observation:
        """Say how the pods of an attempt are, as last heard of.

        Raises:
            Unavailable: before the cluster has been listed.
        """
        if not (self._jobs.ready(0) and self._pods.ready(0)):
            raise Unavailable("the cluster has not been listed yet")
        job = self._job(job_id, attempt)
        records = self._records.of(job_id, attempt)
        if job is None and not records:
            words = self._no_room.get(job_id, "")
            return Observation(exists=False, alive=False, waiting=words) if words else ABSENT
        seen = ended.observed(job, records, time.time())
        if job is None or not seen.alive:
            return seen
        active = self._active(job_id, attempt)
        if cause := self._hopeless(job, active, len(records)):
            return replace(seen, alive=False, cause=cause)
        return replace(seen, waiting=waiting.words(job, active, self._events.told))

    def stop(self, job_id: str, attempt: int) -> None:
        """Delete the Job; its pods get SIGTERM and the time for a checkpoint."""
        job = self._job(job_id, attempt)
        if job is not None:
            self._quietly(partial(self._cluster.delete, "Job", job))

    def kill(self, job_id: str, attempt: int) -> None:
        """Delete the Job and take its pods out of the cluster, also those on a node that does not answer.

        A process on a lost node may go on for a while. Its attempt is fenced off: nothing that it sends is taken.
        """
        self.stop(job_id, attempt)
        for pod in self._of(job_id, attempt):
            self._quietly(partial(self._cluster.delete, "Pod", pod, grace_s=0))

    def renew(self, job_id: str, token: str) -> None:
        """Do nothing: a pod exchanges its own token for one of the job's whenever it needs one."""

    def logs(self, job_id: str, attempt: int) -> str:
        """Return what the pods of a job have printed: of those that are over, and of those that run."""
        running = [pod for pod in self._of(job_id, attempt) if not record_of(pod).over]
        return self._records.log(job_id) + "".join(self._printed(pod) for pod in running)

    def found(self) -> frozenset[str]:
        """Return the ids of the jobs of which a Job or a pod is left in the cluster."""
        left = [*self._jobs.all(), *self._pods.all()]
        return frozenset(one["metadata"]["labels"].get(objects.JOB, "") for one in left) - {""}

    def collect(self, job_id: str) -> None:
        """Delete the Jobs of a job that is over, and free what is being deleted and does not go."""
        for kind, watched in (("Pod", self._pods), ("Job", self._jobs)):
            for one in watched.of(job_id):
                meta = one["metadata"]
                if kind == "Job" and not meta.get("deletionTimestamp"):
                    self._quietly(partial(self._cluster.delete, kind, one))
                elif meta.get("deletionTimestamp"):
                    since = self._going_since.setdefault(meta["uid"], time.monotonic())
                    if time.monotonic() - since > self._stuck_s:
                        self._quietly(partial(self._free, kind, one))
        self._records.forget(job_id)
        self._no_room.pop(job_id, None)

    def owner(self, pod: str, uid: str) -> tuple[str, int] | None:
        """Return the job and the attempt that a pod is of; None where it is of none.

        Only what the cluster says counts: the pod's controller is the Job that this trainer made.

        Raises:
            ClusterError: if the cluster does not answer.
        """
        found = self._pods.get(pod)
        if found is None or found["metadata"]["uid"] != uid:
            found = self._cluster.get("Pod", pod)  # the watch may be late
        if found is None or found["metadata"]["uid"] != uid:
            return None
        references = found["metadata"].get("ownerReferences", [])
        owner = next((one for one in references if one.get("controller") and one["kind"] == "Job"), None)
        job = self._jobs.get(owner["name"]) if owner else None
        if owner is None or job is None or job["metadata"]["uid"] != owner["uid"]:
            return None
        marks = job["metadata"]["labels"]
        return (marks[objects.JOB], objects.attempt_of(marks)) if objects.attempt_of(marks) else None

    def close(self) -> None:
        """Stop watching; workers go on."""
        for watched in self._all:
            watched.close()
        self._harvest.shutdown(wait=False, cancel_futures=True)
        self._cluster.close()

    # ------------------------------------------------------------ what the watches tell

    def _job_changed(self, job: Object, gone: bool) -> None:
        job_id = job["metadata"]["labels"].get(objects.JOB, "")
        if gone:
            for known in (self._about, self._image_since, self._going_since):
                known.pop(job["metadata"]["uid"], None)
        else:
            self._about[job["metadata"]["uid"]] = job_id
        self._changed(job_id)

    def _pod_changed(self, pod: Object, gone: bool) -> None:
        meta = pod["metadata"]
        job_id, attempt = meta["labels"].get(objects.JOB, ""), objects.attempt_of(meta["labels"])
        if gone:
            for known in (self._about, self._going_since):
                known.pop(meta["uid"], None)
        else:
            self._about[meta["uid"]] = job_id
        before = self._records.of(job_id, attempt).get(meta["uid"])
        record = record_of(pod)
        if gone and not record.over:
            record = PodRecord(record.ran, None, record.reason, record.started, time.time())
        # A pod of a job that was cleared away needs no record; which jobs there are may not be known yet.
        if before is not None or self._job(job_id, attempt) is not None or not self._jobs.ready(0):
            self._records.put(job_id, attempt, meta["uid"], record)
        if record.over and not (before and before.over) and not gone:
            with contextlib.suppress(RuntimeError):  # this life is at its end; another one sees the pod anew
                self._harvest.submit(lambda: self._records.add_log(job_id, self._printed(pod)))
        self._changed(job_id)

    def _event_came(self, event: Object, gone: bool) -> None:
        if (job_id := self._about.get(self._events.note(event, gone))) is not None:
            self._changed(job_id)

    # ------------------------------------------------------------ inside

    def _create(self, wanted: Object) -> Object:
        """Create an object, or return the one of its name if that is what would be created."""
        try:
            return self._cluster.create(wanted)
        except ClusterError as error:
            if error.code != 409:
                raise
        found = self._cluster.get(wanted["kind"], wanted["metadata"]["name"])
        if found is None or found["metadata"].get("deletionTimestamp"):
            raise ClusterError(0, f"{wanted['metadata']['name']} is just being deleted")
        made_of = wanted["metadata"].get("annotations", {}).get(objects.SPEC_HASH)
        if found["metadata"].get("annotations", {}).get(objects.SPEC_HASH) != made_of:
            raise ClusterError(409, f"{wanted['metadata']['name']} exists and was made to another specification")
        return found

    def _add_meeting(self, order: WorkOrder, made: Object) -> None:
        """Give a Job's pods a place to meet, or take the Job away again: without one they would only wait."""
        try:
            for wanted in objects.meeting(order, self._settings, made["metadata"]["uid"]):
                self._create(wanted)
        except ClusterError:
            self._quietly(partial(self._cluster.delete, "Job", made))
            raise

    def _refused(self, order: WorkOrder, error: ClusterError) -> None:
        if error.code == 403 and "quota" in error.words:
            # It may have room later.
            self._no_room[order.job_id] = f"room in the quota: {error.words}"
            return
        if error.code in (400, 403, 409, 422):
            raise Refused(error.words) from None
        raise Unavailable(f"{error.code}: {error.words}") from None

    def _hopeless(self, job: Object, active: list[Object], pods: int) -> str:
        """Return why an attempt that is not over can never go on, or nothing."""
        if pods > self._settings.most_pods:
            return "EVICTED_TOO_OFTEN"
        uid = job["metadata"]["uid"]
        if waiting.broken(active):
            return "REFUSED_BY_CLUSTER"
        if not waiting.image_trouble(active):
            self._image_since.pop(uid, None)
        elif time.monotonic() - self._image_since.setdefault(uid, time.monotonic()) > self._settings.image_wait_s:
            return "IMAGE_UNAVAILABLE"
        return ""

    def _job(self, job_id: str, attempt: int) -> Object | None:
        return self._jobs.get(objects.name(job_id, attempt))

    def _of(self, job_id: str, attempt: int) -> list[Object]:
        pods = self._pods.of(job_id)
        return [pod for pod in pods if pod["metadata"]["labels"].get(objects.ATTEMPT) == str(attempt)]

    def _active(self, job_id: str, attempt: int) -> list[Object]:
        found = self._of(job_id, attempt)
        return [pod for pod in found if not record_of(pod).over and not pod["metadata"].get("deletionTimestamp")]

    def _printed(self, pod: Object) -> str:
        try:
            return self._cluster.log(pod["metadata"]["name"], _LOG_LINES)
        except ClusterError:
            return ""

    def _free(self, kind: str, found: Object) -> None:
        if kind == "Pod":
            self._cluster.delete("Pod", found, grace_s=0)
        self._cluster.release(kind, found)

    def _quietly(self, call: Callable[[], None]) -> None:
        """Make a call that is made again later where it does not succeed."""
        try:
            call()
        except ClusterError as error:
            _log.warning("cluster does not answer", code=error.code, why=error.words)
