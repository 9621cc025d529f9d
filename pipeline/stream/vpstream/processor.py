"""The driver's fair processor: which jobs are open, what of them runs next, and how each one ends.

    open jobs ──claim──> segments, one Spark job each ──all there──> join, one Spark job ──> result.json

It keeps nothing that S3 does not know: a new driver begins where the objects say.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from . import fence
from .errors import BadVideo, Fenced, Interrupted
from .join import join_job
from .plan import read
from .scheduler import choose
from .segments import in_key
from .work import attempt, missing, process_segment

LIST_EVERY_S = 5.0
FENCE_EVERY_S = 2.0
JOIN = "join"
MOST_TASKS = 64
KILLED_TRIES = 6
BROKEN_TRIES = 3


def room(cores):
    """Tasks that may run on so many cores: of four and more, one is left to the intake, whose batches would wait behind segments for seconds."""
    return cores - 1 if cores >= 4 else cores


class Job:
    """An open job of ours: its plan, the ETag of our claim, and what is still to do."""

    def __init__(self, name, raw, plan, etag, todo):
        self.name, self.raw, self.plan, self.etag = name, raw, plan, etag
        self.todo = todo
        self.there = set()
        self.running = set()
        self.retry_at = {}
        self.failure = None
        self.tries = {}

    def needs(self):
        """Inputs that are still wanted: segments to do, and the audio for the join."""
        return set(self.todo) | ({"audio"} if self.plan.audio else set())


class Processor:
    """One thread calls `step`; tasks run in threads that each submit one Spark job. `cores` tells how many may run at once."""

    def __init__(self, context, store, generation, cores, log):
        self.context, self.store, self.generation, self.cores, self.log = context, store, generation, cores, log
        self.jobs, self.over, self.hints = {}, set(), set()
        self.last, self.turn = {}, 0
        self.pool = ThreadPoolExecutor(max_workers=MOST_TASKS, thread_name_prefix="task")
        self.finished = []
        self.wake = threading.Event()
        self.lock = threading.Lock()
        self.listed_at = self.fenced_at = -1e9
        self.arrivals = False

    def hint(self, jobs):
        """A batch was taken: jobs whose `end` record came with it; segments may have become whole."""
        with self.lock:
            self.hints.update(jobs)
            self.arrivals = True
        self.wake.set()

    def step(self, now):
        """One round. `now` in monotonic seconds. Raises Fenced, or Interrupted when S3 is away (call again)."""
        if now - self.fenced_at >= FENCE_EVERY_S:
            fence.check(self.store, self.generation)
            self.fenced_at = now
        self._collect(now)
        self._discover(now)
        self._launch(now)

    def _discover(self, now):
        with self.lock:
            names, self.hints = self.hints, set()
            arrivals, self.arrivals = self.arrivals, False
        if now - self.listed_at >= LIST_EVERY_S:
            names = names | self.store.folders("jobs/")
            self.listed_at = now
            arrivals = True
        for job in list(self.jobs.values()):
            if arrivals and job.plan and not job.needs() <= job.there:
                self._look(job)
            if self.listed_at == now and self.store.exists(f"jobs/{job.name}/cancel.json"):
                job.failure = job.failure or ("cancelled", "The job was cancelled.")
        for name in sorted(names - self.over - set(self.jobs)):
            try:
                self._open(name)
            except Interrupted:
                with self.lock:
                    self.hints.add(name)
                raise

    def _open(self, name):
        if self.store.exists(f"jobs/{name}/closed.json"):
            self.over.add(name)
            return
        raw, etag = self.store.get_json(f"jobs/{name}/plan.json")
        if etag is None:
            return  # not planned yet: the listing finds it again
        claim = fence.claim(self.store, name, self.generation)
        if claim is None:
            self.over.add(name)
            return
        job = Job(name, raw, None, claim, [])
        try:
            job.plan = read(raw, name)
            job.todo = missing(job.plan, self.store.keys(f"work/{name}/out/"))
            self._look(job)
        except BadVideo as error:
            job.failure = ("failed", str(error))
        if self.store.exists(f"jobs/{name}/cancel.json"):
            job.failure = ("cancelled", "The job was cancelled.")
        self.jobs[name] = job  # last: a job that S3 let us read only half of must not look as if nothing were to do
        if job.failure:
            return
        self.log("job opened", job=name, segments=len(job.plan.parts), todo=len(job.todo))

    def _look(self, job):
        """Which inputs of a job are whole on S3."""
        prefix = in_key(job.name, "")
        job.there = {key[len(prefix) :] for key in self.store.keys(prefix)}

    def _launch(self, now):
        running = {job.name: len(job.running) for job in self.jobs.values()}
        waiting = {}
        for job in list(self.jobs.values()):
            if job.failure:
                if not job.running:
                    self._finish(job, job.failure[0], job.failure[1], {})
                continue
            tasks = job.todo or ([] if job.running else [JOIN])
            tasks = [
                task
                for task in tasks
                if task not in job.running and job.retry_at.get(task, 0) <= now and (task in job.there or task == JOIN and job.needs() <= job.there)
            ]
            if tasks:
                waiting[job.name] = tasks
        free = min(room(self.cores()), MOST_TASKS) - sum(running.values())
        left = {job.name: len(job.todo) + 1 for job in self.jobs.values()}
        for name, task in choose(waiting, running, self.last, max(0, free), left):
            job = self.jobs[name]
            self.turn += 1
            self.last[name] = self.turn
            job.running.add(task)
            self.pool.submit(self._task, job, task)

    def _task(self, job, task):
        """In a thread: one Spark job of one task."""
        begun = time.monotonic()
        store, raw, name, generation = self.store, job.raw, job.name, self.generation
        if task == JOIN:
            work = lambda _: attempt(join_job, store, raw, name, generation)  # noqa: E731
        else:
            work = lambda _: attempt(process_segment, store, raw, name, task)  # noqa: E731
        try:
            self.context.setLocalProperty("spark.scheduler.pool", name)
            self.context.setJobDescription(f"{name} {task}")
            outcome = self.context.parallelize([0], 1).map(work).collect()[0]
        except Exception as error:  # a lost worker or a lost driver JVM: the same task is tried again
            text = str(error)
            outcome = ("again", text[-300:])
        with self.lock:
            self.finished.append((job, task, outcome, time.monotonic() - begun))
        self.wake.set()

    def _collect(self, now):
        """Takes what has finished, one by one: when S3 is away while one is published, it and the rest stay for the next round."""
        while True:
            with self.lock:
                if not self.finished:
                    return
                job, task, outcome, spent = self.finished[0]
            self._settle(job, task, outcome, spent, now)
            with self.lock:
                self.finished.pop(0)

    def _settle(self, job, task, outcome, spent, now):
        state, value = outcome
        if state == "fenced":
            raise Fenced(value)
        if state == "done" and task == JOIN and not job.failure:
            self._finish(job, "done", None, value)
        job.running.discard(task)
        if state == "failed":
            job.failure = job.failure or ("failed", value)
        elif state in ("again", "broken"):
            job.tries[task] = job.tries.get(task, 0) + 1
            if "was ended" in value and job.tries[task] >= KILLED_TRIES:
                job.failure = job.failure or ("failed", "Processing was ended again and again, most likely for want of memory.")
            if state == "broken" and job.tries[task] >= BROKEN_TRIES:
                job.failure = job.failure or ("failed", f"A defect of the streaming job stopped this video, please report it: {value}.")
            job.retry_at[task] = now + min(10.0, 0.25 * 2 ** min(job.tries[task], 6))
            self.log("task is tried again", job=job.name, task=task, cause=value)
        elif task != JOIN:
            job.todo.remove(task)
            self.log("segment done", job=job.name, segment=task, ffmpeg_s=round(value["ffmpeg_s"], 3), task_s=round(value["total_s"], 3), all_s=round(spent, 3))  # fmt: skip

    def _finish(self, job, state, reason, value):
        result = {"job": job.name, "state": state, "generation": self.generation, "reason": reason}
        result |= {"outputs": [], "video": None, "audio": None} | value
        fence.publish(self.store, job.name, job.etag, result)
        self.over.add(job.name)
        self.jobs.pop(job.name, None)
        self.last.pop(job.name, None)
        self.log("job is over", job=job.name, state=state, reason=reason)
