"""Chooses what runs next, fairly over jobs: a short clip does not wait behind a long film. Pure: no I/O, no clock."""


def choose(waiting, running, last, free):
    """Picks up to `free` tasks. `waiting`: job → ordered tasks; `running`: job → count of tasks that run;
    `last`: job → number of its latest pick (absent: never). Returns [(job, task)] in the order picked.

    Each pick goes to the job with the fewest running tasks; of equals, the one that has waited longest since its last pick.
    """
    counts = {job: running.get(job, 0) for job in waiting}
    turn = {job: last.get(job, -1) for job in waiting}
    taken = {job: 0 for job in waiting}
    after = max(turn.values(), default=-1)
    chosen = []
    while len(chosen) < free:
        able = [job for job in waiting if taken[job] < len(waiting[job])]
        if not able:
            break
        job = min(able, key=lambda name: (counts[name], turn[name], name))
        chosen.append((job, waiting[job][taken[job]]))
        taken[job] += 1
        counts[job] += 1
        after += 1
        turn[job] = after
    return chosen
