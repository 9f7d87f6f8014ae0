//! Environment variables in string values: `${VAR}` and `${VAR:-default}`.
//!
//! `$${` stands for a literal `${`; any other `$` stands for itself. The value of a variable is not searched again.

use std::env::VarError;

/// A lookup of variables, such as [`std::env::var`].
pub(crate) type Variables<'a> = dyn Fn(&str) -> Result<String, VarError> + 'a;

/// Returns the text with every variable replaced.
///
/// As in a shell, `${VAR:-default}` is the default also where the variable is set but empty.
///
/// # Errors
/// The fault of the text. It repeats names of variables, never the text.
pub(crate) fn interpolate(text: &str, variable: &Variables<'_>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = (&rest[..start], &rest[start + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            result.push_str(before);
            result.push_str("${");
            rest = reference;
            continue;
        }
        result.push_str(before);
        let end = reference.find('}').ok_or("`${` without `}`; write `$${` for a literal `${`")?;
        result.push_str(&resolve(&reference[..end], variable)?);
        rest = &reference[end + 1..];
    }
    result.push_str(rest);
    Ok(result)
}

/// Returns the value for `VAR` or `VAR:-default`.
fn resolve(reference: &str, variable: &Variables<'_>) -> Result<String, String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_name(name) {
        return Err("`${…}` takes the name of a variable: letters, digits and `_`, as in `${DATABASE_URL}` or \
                    `${DATABASE_URL:-default}`; write `$${` for a literal `${`"
            .to_owned());
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(format!("the default of `${{{name}}}` cannot hold another `${{`"));
    }
    match (variable(name), default) {
        (Ok(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Ok(value), _) => Ok(value),
        (Err(VarError::NotPresent), Some(default)) => Ok(default.to_owned()),
        (Err(VarError::NotPresent), None) => {
            Err(format!("the environment variable `{name}` is not set; set it, or write `${{{name}:-default}}`"))
        }
        (Err(VarError::NotUnicode(_)), _) => Err(format!("the environment variable `{name}` is not UTF-8")),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, String> {
        let variable = |name: &str| match name {
            "USER" => Ok("ann".to_owned()),
            "EMPTY" => Ok(String::new()),
            "ODD" => Ok("${USER}".to_owned()),
            "BYTES" => Err(VarError::NotUnicode("x".into())),
            _ => Err(VarError::NotPresent),
        };
        interpolate(text, &variable)
    }

    #[test]
    fn variables_are_replaced() {
        let cases = [
            ("", ""),
            ("plain $ and $$ and $USER and {}", "plain $ and $$ and $USER and {}"),
            ("${USER}", "ann"),
            ("a${USER}b${USER}c", "aannbannc"),
            ("${USER:-bob}", "ann"),
            ("${NONE:-bob}", "bob"),
            ("${NONE:-}", ""),
            ("${NONE:-a:-b}", "a:-b"),
            ("${EMPTY}", ""),
            ("${EMPTY:-bob}", "bob"),
            ("$${USER}", "${USER}"),
            ("$$${USER}", "$${USER}"),
            ("é${USER}é", "éanné"),
            ("${ODD}", "${USER}"),
        ];
        for (text, expected) in cases {
            assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_references_are_refused_without_repeating_the_text() {
        let cases = [
            ("hush ${NONE}", "`NONE` is not set"),
            ("hush ${USER", "without `}`"),
            ("hush ${}", "takes the name"),
            ("hush ${:-x}", "takes the name"),
            ("hush ${1X}", "takes the name"),
            ("hush ${hush hush}", "takes the name"),
            ("hush ${NONE:-${USER}}", "another `${`"),
            ("hush ${BYTES}", "not UTF-8"),
            ("hush ${BYTES:-x}", "not UTF-8"),
        ];
        for (text, expected) in cases {
            let message = run(text).expect_err(text);
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("hush"), "{message}");
        }
    }
}
