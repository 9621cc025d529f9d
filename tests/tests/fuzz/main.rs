//! Everything that parses what comes from outside, fed with what it should not get: no panic, whatever the bytes.
//!
//! Inputs are mutations of a committed corpus (`tests/corpus/PARSER/`, one valid input a file) and plain noise, from a seeded generator: a failure prints its
//! seed and its input. `VP_FUZZ_INPUTS` says how many each parser gets (`make fuzz`: ten million), `VP_FUZZ_SEED` where to begin, `VP_FUZZ_ONLY` which parsers.
//! Left out: coverage guidance, which wants a nightly compiler.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod corpus;
mod mutate;
mod parsers;
mod snapshots;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use mutate::Mutator;
use parsers::PARSERS;

/// Inputs for each parser in a plain run of the tests.
const SLICE: u64 = 20_000;

fn seeds(parser: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(parser);
    let listed = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: a number is wanted")))
}

/// Feeds one parser; the first input on which it panicked.
fn feed(parse: fn(&[u8]) -> bool, corpus: &[Vec<u8>], seed: u64, inputs: u64) -> Result<u64, (u64, Vec<u8>)> {
    let mut accepted = 0;
    for turn in 0..inputs {
        let input = Mutator::new(seed.wrapping_add(turn)).input(corpus);
        match catch_unwind(AssertUnwindSafe(|| parse(&input))) {
            Ok(yes) => accepted += u64::from(yes),
            Err(_) => return Err((seed.wrapping_add(turn), input)),
        }
    }
    Ok(accepted)
}

#[test]
fn no_parser_panics_whatever_it_is_given() {
    let (inputs, seed) = (number("VP_FUZZ_INPUTS", SLICE), number("VP_FUZZ_SEED", 1));
    let only = std::env::var("VP_FUZZ_ONLY").unwrap_or_default();
    println!("| parser | inputs | accepted | seconds |\n|---|---|---|---|");
    let chosen: Vec<_> = PARSERS.iter().filter(|(name, _)| only.is_empty() || only.split(',').any(|word| name.contains(word))).collect();
    // Two at a time: what two cores have.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let worker = || {
            let mut failed = Vec::new();
            while let Some((name, parse)) = chosen.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                let (corpus, begun) = (seeds(name), Instant::now());
                match feed(*parse, &corpus, seed, inputs) {
                    Ok(accepted) => println!("| {name} | {inputs} | {accepted} | {:.1} |", begun.elapsed().as_secs_f64()),
                    Err((seed, input)) => failed.push(format!("{name}, seed {seed}: {}", input.escape_ascii())),
                }
            }
            failed
        };
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_corpus_is_made_anew_when_asked_for() {
    if std::env::var("VP_FUZZ_CORPUS").is_ok_and(|word| word == "make") {
        corpus::write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"));
    }
    assert!(corpus::binary().iter().all(|(parser, _, bytes)| !bytes.is_empty() && PARSERS.iter().any(|(name, _)| name == parser)));
}

#[test]
fn every_file_of_the_corpus_is_accepted_as_it_is() {
    let mut seen = BTreeMap::new();
    for (name, parse) in PARSERS {
        for input in seeds(name) {
            assert!(parse(&input), "{name}: {}", input.escape_ascii());
            *seen.entry(*name).or_insert(0) += 1;
        }
    }
    assert!(seen.len() == PARSERS.len() && seen.values().all(|files| *files > 0), "{seen:?}");
}

#[test]
fn a_parser_that_panics_is_noticed_and_its_input_told() {
    let fragile = |input: &[u8]| {
        assert!(!input.windows(2).any(|pair| pair == b"=="), "found it");
        true
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = feed(fragile, &[b"a=b=c".to_vec()], 1, SLICE);
    std::panic::set_hook(hook);
    let (seed, input) = found.unwrap_err();
    assert_eq!(Mutator::new(seed).input(&[b"a=b=c".to_vec()]), input, "the seed gives the input again");
}
