//! Bugs that are planted by name, to see that the checks notice them. Only with the feature `mutants`, which nothing that ships has: without it the switch is
//! a constant false and the compiler takes the bugs out.

/// Whether the named bug is planted.
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutants::is_planted($name)
    };
}

#[cfg(not(feature = "mutants"))]
pub const fn is_planted(_: &str) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod planted {
    use std::cell::Cell;

    thread_local! {
        /// A thread begins with what the environment names, so that unit tests can be run against a bug.
        static PLANTED: Cell<&'static str> = Cell::new(std::env::var("VP_MUTANT").map_or("", |name| name.leak()));
    }

    pub fn is_planted(name: &str) -> bool {
        PLANTED.get() == name
    }

    /// Plants a bug in this thread, instead of the one before; an empty name plants none.
    pub fn plant(name: &'static str) {
        PLANTED.set(name);
    }
}

#[cfg(feature = "mutants")]
pub use planted::{is_planted, plant};
