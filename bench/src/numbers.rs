//! Statistics of samples, and numbers as the tables print them.

/// Returns the middle value, or the mean of the two middle values; `None` without values.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let &upper = values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

/// Returns the least value that at least `share` of all values do not exceed; 0 without values. Sorts the values.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Prints a whole number with commas between its thousands.
pub(crate) fn thousands(number: f64) -> String {
    let mut text = format!("{number:.0}");
    for comma in (1..text.len()).rev().filter(|index| (text.len() - index).is_multiple_of(3)).collect::<Vec<_>>() {
        text.insert(comma, ',');
    }
    text
}

/// Prints a target behind a figure, such as ` (≤ 20, **missed**)`. `sign` is ≥ or ≤.
pub(crate) fn target_note(sign: &str, target: f64, is_met: bool) -> String {
    let digits = if target < 1.0 { 2 } else { 0 };
    format!(" ({sign} {target:.digits$}{})", if is_met { "" } else { ", **missed**" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_value() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn quantile_is_the_nearest_rank() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&mut values, share)), [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }

    #[test]
    fn thousands_are_separated_by_commas() {
        let numbers = [0.0, 999.0, 1000.4, 1_234_567.0].map(thousands);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn target_note_names_a_missed_target() {
        assert_eq!(target_note("≥", 0.85, true), " (≥ 0.85)");
        assert_eq!(target_note("≤", 20.0, false), " (≤ 20, **missed**)");
    }
}
