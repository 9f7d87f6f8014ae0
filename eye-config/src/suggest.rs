//! Suggestions: the known name that is nearest to a written one.
//!
//! [`did_you_mean`] is the only such function of the program; [`suggestion`] puts its result into a message.

/// The shortest name of which a part may be missing.
const MIN_PARTIAL_CHARS: usize = 4;

/// Returns the candidate that `written` most likely stands for, if any is near.
///
/// Case does not count. A third of the characters may differ, or one contiguous part may be missing: `max_body` is near
/// `max_body_bytes`, and `time_after` near `timestamp_after`.
pub fn did_you_mean<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let written = written.to_lowercase();
    let length = written.chars().count();
    // Never all of its characters: any short name would be near any other.
    let bound = (length / 3).max(1).min(length.saturating_sub(1));
    let distances = candidates.into_iter().map(|candidate| (distance(&written, candidate), candidate));
    let nearest = distances.filter(|(distance, _)| *distance <= bound).min_by_key(|(distance, _)| *distance);
    nearest.map(|(_, candidate)| candidate)
}

/// Returns the number of edits between two names. A missing part, such as a unit, counts as one.
fn distance(written: &str, candidate: &str) -> usize {
    let edits = strsim::osa_distance(written, candidate);
    if written.chars().count() >= MIN_PARTIAL_CHARS && is_part(written, candidate) { edits.min(1) } else { edits }
}

/// Returns whether removing one contiguous part, or a prefix and a suffix, turns the candidate into `written`.
fn is_part(written: &str, candidate: &str) -> bool {
    let is_split_by_gap = |(at, _)| candidate.starts_with(&written[..at]) && candidate.ends_with(&written[at..]);
    candidate.contains(written) || written.len() < candidate.len() && written.char_indices().any(is_split_by_gap)
}

/// Returns what to write instead: the nearest candidate, or all of them.
pub fn suggestion(written: &str, candidates: &[&str], plural: &str) -> String {
    match did_you_mean(written, candidates.iter().copied()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None if candidates.is_empty() => format!("there are no {plural}"),
        None => format!("{plural}: {}", candidates.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["max_events", "max_body_bytes", "listen", "postgres", "url"];
        let cases = [
            ("max_event", Some("max_events")),
            ("max_body", Some("max_body_bytes")),
            ("max_bytes", Some("max_body_bytes")),
            ("body", Some("max_body_bytes")),
            ("lisetn", Some("listen")),
            ("postgresql", Some("postgres")),
            ("URL", Some("url")),
            ("ur", Some("url")),
            ("password", None),
            ("", None),
            ("u", None),
            ("xyz", None),
            ("é", None),
        ];
        for (written, expected) in cases {
            assert_eq!(did_you_mean(written, known), expected, "{written}");
        }
    }

    #[test]
    fn suggestion_lists_all_where_none_is_near() {
        assert_eq!(suggestion("lsten", &["listen", "url"], "known keys"), "did you mean `listen`?");
        assert_eq!(suggestion("x", &["listen", "url"], "known keys"), "known keys: listen, url");
        assert_eq!(suggestion("x", &[], "known keys"), "there are no known keys");
    }

    /// Parameters of a query as callers mistake them.
    #[test]
    fn query_parameters_are_suggested() {
        let known = [
            "category",
            "cursor",
            "format",
            "include",
            "limit",
            "name",
            "offset",
            "session_id",
            "timestamp_after",
            "timestamp_before",
            "timestamp_end",
            "timestamp_start",
        ];
        let cases = [
            ("sesion_id", Some("session_id")),
            ("Session_ID", Some("session_id")),
            ("sessionId", Some("session_id")),
            ("session", Some("session_id")),
            ("limits", Some("limit")),
            ("time_after", Some("timestamp_after")),
            ("before", Some("timestamp_before")),
            ("offest", Some("offset")),
            ("categories", Some("category")),
            ("foo", None),
            ("page", None),
            ("👁", None),
            ("", None),
        ];
        for (written, expected) in cases {
            assert_eq!(did_you_mean(written, known), expected, "{written}");
        }
    }
}
