//! An eye that never blinks longer than 50 ms: who holds a slot of which there may be one holder, by the machine's processes. Two holders at once are the one
//! thing that must never be, so it looks at processes and asks no part of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::processes::{Process, all, environment};

const PERIOD: Duration = Duration::from_millis(50);
/// A process younger than this may not have executed its program yet: its environment is read again.
const YOUNG: Duration = Duration::from_secs(3);

/// Who: the slot's folder on an instance, and the generation.
pub type Holder = (PathBuf, u64);

#[derive(Default)]
struct Seen {
    holders: BTreeSet<Holder>,
    violations: Vec<String>,
}

/// Watches slots until it is dropped.
pub struct Observer {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Begins to watch `slot` below the instances' folder of a region.
    pub fn watch(instances: PathBuf, slot: &str) -> Self {
        Self::watch_all(instances, &[slot])
    }

    /// As [`Observer::watch`], several slots by the same look.
    pub fn watch_all(instances: PathBuf, slots: &[&str]) -> Self {
        let (stop, looks, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Seen::default())));
        let (ending, counter, notes) = (stop.clone(), looks.clone(), seen.clone());
        let slots = slots.iter().map(|slot| (*slot).to_owned()).collect();
        let thread = thread::spawn(move || {
            let mut known = Known { instances, slots, processes: BTreeMap::new() };
            while !ending.load(Ordering::Relaxed) {
                let begun = Instant::now();
                known.look(&notes);
                counter.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PERIOD.saturating_sub(begun.elapsed()));
            }
        });
        Self { stop, looks, seen, thread: Some(thread) }
    }

    /// How often it has looked.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Every holder seen so far.
    pub fn holders(&self) -> BTreeSet<Holder> {
        self.seen.lock().map(|seen| seen.holders.clone()).unwrap_or_default()
    }

    /// Moments with two holders, in words.
    pub fn violations(&self) -> Vec<String> {
        self.seen.lock().map(|seen| seen.violations.clone()).unwrap_or_default()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Known {
    instances: PathBuf,
    slots: BTreeSet<String>,
    /// What was found out about a process, and when it was first seen.
    processes: BTreeMap<Process, (Instant, Option<Holder>)>,
}

impl Known {
    fn look(&mut self, notes: &Mutex<Seen>) {
        let live: BTreeSet<Process> = all().filter_map(Process::of).collect();
        self.processes.retain(|process, _| live.contains(process));
        for process in live {
            let (first, holder) = self.processes.get(&process).cloned().unwrap_or((Instant::now(), None));
            if holder.is_none() && first.elapsed() < YOUNG {
                let holder = self.holder(process.pid);
                self.processes.insert(process, (first, holder));
            }
        }
        let mut slots: BTreeMap<&OsStr, BTreeMap<&Holder, Vec<Process>>> = BTreeMap::new();
        for (process, (_, holder)) in &self.processes {
            if let Some(holder) = holder
                && let Some(slot) = holder.0.file_name()
            {
                slots.entry(slot).or_default().entry(holder).or_default().push(*process);
            }
        }
        for (slot, mut holders) in slots {
            // A look takes a moment, in which one may end and another begin: at once are only those of which all are still alive after the last was found.
            holders.retain(|_, processes| processes.iter().any(Process::alive));
            let Ok(mut seen) = notes.lock() else { return };
            if holders.len() > 1 {
                seen.violations.push(format!("{} has two holders at once: {holders:?}", slot.to_string_lossy()));
            }
            seen.holders.extend(holders.into_keys().cloned());
        }
    }

    /// Folder and generation by one look: between two, the process may begin another program, and shows no environment meanwhile.
    fn holder(&self, pid: i32) -> Option<Holder> {
        let environment = environment(pid)?;
        let mark = PathBuf::from(environment.get("VP_SLOT_DIR")?);
        let ours = mark.starts_with(&self.instances) && mark.file_name().and_then(OsStr::to_str).is_some_and(|name| self.slots.contains(name));
        let generation = environment.get("VP_GENERATION")?.parse().ok()?;
        ours.then_some((mark, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait_until;
    use std::process::{Child, Command};

    fn holder(folder: &std::path::Path, instance: &str, generation: u64) -> Child {
        holder_of("stream-1", folder, instance, generation)
    }

    fn holder_of(slot: &str, folder: &std::path::Path, instance: &str, generation: u64) -> Child {
        let mark = folder.join(instance).join("root/slots").join(slot);
        Command::new("sleep").arg("600").env("VP_SLOT_DIR", mark).env("VP_GENERATION", generation.to_string()).spawn().unwrap()
    }

    #[test]
    fn one_holder_after_another_is_well_and_two_at_once_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let observer = Observer::watch(folder.path().to_owned(), "stream-1");
        let mut first = holder(folder.path(), "i-1", 3);
        let seen = |count: usize| wait_until("holders are seen", Duration::from_secs(10), || Ok((observer.holders().len() == count).then_some(())));
        seen(1).unwrap();
        first.kill().unwrap();
        first.wait().unwrap();
        let mut second = holder(folder.path(), "i-2", 4);
        seen(2).unwrap();
        assert_eq!(observer.violations(), Vec::<String>::new());
        let mut third = holder(folder.path(), "i-2", 5);
        let noticed = wait_until("two holders are noticed", Duration::from_secs(10), || Ok((!observer.violations().is_empty()).then_some(())));
        for child in [&mut second, &mut third] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        noticed.unwrap();
    }

    #[test]
    fn one_holder_each_of_two_slots_is_well_and_two_of_the_second_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let observer = Observer::watch_all(folder.path().to_owned(), &["stream-1", "kafka-1"]);
        let mut children = vec![holder_of("stream-1", folder.path(), "i-1", 3), holder_of("kafka-1", folder.path(), "i-2", 4)];
        let seen = wait_until("both holders are seen", Duration::from_secs(10), || Ok((observer.holders().len() == 2).then_some(())));
        let well = observer.violations();
        children.push(holder_of("kafka-1", folder.path(), "i-3", 4));
        let noticed = wait_until("two holders are noticed", Duration::from_secs(10), || Ok(observer.violations().first().cloned()));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        seen.unwrap();
        assert_eq!(well, Vec::<String>::new());
        assert!(noticed.unwrap().starts_with("kafka-1 has two holders at once"));
    }
    /// Found by a run in which a holder's own child was taken for another: looked at twice in a moment, it had a folder and no generation.
    #[test]
    fn a_process_that_begins_one_program_after_another_is_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("i-1/root/slots/stream-1");
        let again = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; exec sh -c \"$again\"";
        let mut child = Command::new("sh").args(["-c", again]).env("again", again).env("VP_SLOT_DIR", &mark).env("VP_GENERATION", "7").spawn().unwrap();
        let known = Known { instances: folder.path().to_owned(), slots: ["stream-1".to_owned()].into(), processes: BTreeMap::new() };
        let seen: BTreeSet<Option<Holder>> = (0..20_000).map(|_| known.holder(child.id() as i32)).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let others = seen.iter().flatten().filter(|(folder, generation)| *folder != mark || *generation != 7).count();
        assert!(others == 0 && seen.contains(&Some((mark, 7))), "{seen:?}");
    }
}
