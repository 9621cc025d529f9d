"""Chooses what runs next, fairly over jobs: a short clip does not wait behind a long film, nor a long film behind many short clips. Pure: no I/O, no clock."""

# A job with this many tasks left at most is near its end: short clips, and the last of long films.
NEAR = 12
# What such a job's share weighs against another's: it is done sooner by much, and delays the others by little.
NEAR_WEIGHT = 3
# Of so many picks one goes to a job that is far from its end, however many are near theirs.
FAR_EVERY = 4


def choose(waiting, running, last, free, left=None):
    """Picks up to `free` tasks. `waiting`: job → ordered tasks; `running`: job → count of tasks that run; `last`: job → number of its latest pick
    (absent: never); `left`: job → tasks that are not done, where there are more than wait. Returns [(job, task)] in the order picked.

    Each pick goes to the job with the fewest running tasks for its weight; of equals, the one that has waited longest since its last pick. But a job far
    from its end that has waited for three picks of others goes first.
    """
    left = left or {}
    near = {job: left.get(job, len(tasks)) <= NEAR for job, tasks in waiting.items()}
    counts = {job: running.get(job, 0) for job in waiting}
    turn = {job: last.get(job, -1) for job in waiting}
    taken = {job: 0 for job in waiting}
    after = max(turn.values(), default=-1)
    chosen = []
    while len(chosen) < free:
        able = [job for job in waiting if taken[job] < len(waiting[job])]
        if not able:
            break
        overdue = [job for job in able if not near[job] and after - turn[job] >= FAR_EVERY - 1] if any(near[job] for job in able) else []
        if overdue:
            job = min(overdue, key=lambda name: (turn[name], name))
        else:
            # With one more each, so that weights count from the first on.
            job = min(able, key=lambda name: ((counts[name] + 1) / (NEAR_WEIGHT if near[name] else 1), turn[name], name))
        chosen.append((job, waiting[job][taken[job]]))
        taken[job] += 1
        counts[job] += 1
        after += 1
        turn[job] = after
    return chosen
