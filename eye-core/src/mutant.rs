//! Deliberate faults that the tests must find: only with the feature `mutants`, which no release has.

/// Returns whether the environment variable `EYE_MUTANT` selects this fault.
#[cfg(feature = "mutants")]
pub fn is(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("EYE_MUTANT").ok());
    CHOSEN.as_deref() == Some(name)
}

/// Returns false: without the feature the faults are not compiled.
#[cfg(not(feature = "mutants"))]
pub const fn is(_name: &str) -> bool {
    false
}
