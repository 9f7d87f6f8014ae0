//! Faults on purpose, to show that the tests find them: only with the feature `mutants`, which no release has.

/// Whether the environment variable `EYE_MUTANT` asks for this fault.
#[cfg(feature = "mutants")]
pub fn is(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("EYE_MUTANT").ok());
    CHOSEN.as_deref() == Some(name)
}

/// Never: without the feature nothing is left of the faults.
#[cfg(not(feature = "mutants"))]
pub const fn is(_name: &str) -> bool {
    false
}
