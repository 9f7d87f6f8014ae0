//! "Did you mean": the known word nearest to what was written.

/// The candidate that `word` is most likely a slip of, if any is near.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    // A third of the word may differ, but never all of it.
    let bound = (length / 3).max(1).min(length.saturating_sub(1));
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Slips of the pen between two words. A left-out part, such as a unit, counts as one.
fn distance(word: &str, candidate: &str) -> usize {
    let slips = strsim::osa_distance(word, candidate);
    if word.len() >= 4 && candidate.contains(word) { slips.min(1) } else { slips }
}

/// What to write instead: the nearest candidate, or all of them.
pub(crate) fn instead(word: &str, candidates: &[&str], plural: &str) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None if candidates.is_empty() => format!("there are no {plural}"),
        None => format!("{plural}: {}", candidates.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_word_and_other_words_find_none() {
        let known = ["max_events", "max_body_bytes", "listen", "postgres", "url"];
        let cases = [
            ("max_event", Some("max_events")),
            ("max_body", Some("max_body_bytes")),
            ("lisetn", Some("listen")),
            ("postgresql", Some("postgres")),
            ("URL", Some("url")),
            ("ur", Some("url")),
            ("password", None),
            ("", None),
            ("u", None),
            ("xyz", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }
}
