"""Generations: who may work on a job and publish it (contracts.md §5 Fence), and the checkpoint folder of each.

Every write that others act on is conditional, so an older driver that wakes up late loses the race by itself; looking
for a higher generation first only makes it stop sooner.
"""

from .errors import Fenced

ROOT = "stream/checkpoints/"


def decide(record, generation, has_object):
    """What to do with a job's result.json: `claim`, `mine`, `over` or `higher`."""
    if not has_object:
        return "claim"
    if not isinstance(record, dict) or type(record.get("generation")) is not int:
        return "claim"
    if record["generation"] > generation:
        return "higher"
    if record.get("state") != "processing":
        return "over"
    return "mine" if record["generation"] == generation else "claim"


def claim(store, job, generation):
    """Claims an open job. Returns the ETag of our claim, or None when the job is over. Raises Fenced."""
    key = f"jobs/{job}/result.json"
    wanted = {"job": job, "state": "processing", "generation": generation, "reason": None, "outputs": []}
    while True:
        record, etag = store.get_json(key)
        verdict = decide(record, generation, etag is not None)
        if verdict == "higher":
            raise Fenced(f"job {job} is claimed by generation {record['generation']}")
        if verdict == "over":
            return None
        if verdict == "mine":
            return etag
        store.swap(key, wanted, etag)  # read back whatever happened: the answer may have been lost


def publish(store, job, etag, result):
    """Writes the final result on our own claim. Raises Fenced when the claim is a higher generation's."""
    key = f"jobs/{job}/result.json"
    if store.swap(key, result, etag):
        return
    record, _ = store.get_json(key)
    if decide(record, result["generation"], record is not None) == "higher":
        raise Fenced(f"job {job} is claimed by generation {record['generation']}")


def generations(store):
    """All generations that ever took a checkpoint folder."""
    return sorted(int(name) for name in store.folders(ROOT) if name.isdigit())


def check(store, generation):
    """Raises Fenced when a higher generation has taken its folder."""
    highest = max(generations(store), default=0)
    if highest > generation:
        raise Fenced(f"generation {highest} has taken over")


def take_folder(store, generation, holder):
    """Takes this generation's checkpoint folder and seeds it once from the newest committed lower one. Returns its key prefix."""
    folder = f"{ROOT}{generation}/"
    store.put_if_absent(folder + "owner.json", b'{"generation":%d,"holder":"%s"}' % (generation, holder.encode()))
    check(store, generation)
    if store.exists(folder + "seeded.json"):
        return folder
    source = None
    for lower in sorted((g for g in generations(store) if g < generation), reverse=True):
        below = f"{ROOT}{lower}/"
        keys = store.keys(below)
        batch = last_committed(keys, below)
        if batch is not None:
            source = lower
            for key in to_copy(keys, below, batch):
                data = store.get(key)
                if data is not None:
                    store.put_if_absent(folder + key[len(below) :], data)
            break
    store.put_if_absent(folder + "seeded.json", b'{"from":%s}' % str(source or 0).encode())
    return folder


def last_committed(keys, below):
    """The newest batch that has both its offsets and its commit, or None."""
    both = [
        int(name)
        for name in (key[len(below) + len("q/commits/") :] for key in keys if key.startswith(below + "q/commits/"))
        if name.isdigit() and f"{below}q/offsets/{name}" in keys
    ]
    return max(both, default=None)


def to_copy(keys, below, batch):
    """The query's metadata, and offsets and commits up to `batch`; nothing of a batch that was only begun."""
    chosen = []
    for key in sorted(keys):
        folder, _, name = key[len(below) :].rpartition("/")
        if folder in ("q/offsets", "q/commits") and name.isdigit() and int(name) <= batch:
            chosen.append(key)
        elif (folder == "q" and name == "metadata") or (folder.startswith("q/sources/") and not name.startswith(".")):
            chosen.append(key)
    return chosen
